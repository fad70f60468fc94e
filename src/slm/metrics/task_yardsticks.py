"""What predictors that know next to nothing score on a task, to hold a model's numbers against.

Shapes: N training texts, M texts to predict for, F features.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm.metrics.labels import LabelScores, score_labels
from slm.metrics.translations import TextScores, score_texts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MISSING = "The TF-IDF yardsticks need the package scikit-learn: pip install scikit-learn"

# At most so much is read and computed. A slow core, half as fast as the one that was measured, needs FULL_SECONDS for
# all of it. With fewer seconds all of these shrink in proportion, but never below LEAST_SHARE.
FULL_SECONDS, LEAST_SHARE = 60.0, 0.05
WORD_CHARACTERS, NGRAM_CHARACTERS = 20_000_000, 4_000_000  # of training texts, and as many of texts to predict for
NUMBERS = 20_000_000  # other than 0 in the features of the texts that a classifier is fitted to, times its outputs
NUMBERS_TO_CHOOSE = 5_000_000  # the same for the fits by which C is chosen
WEIGHTS = 300_000  # of a classifier, but at least FEWEST_FEATURES for each output and at most MOST_FEATURES
FEWEST_FEATURES, MOST_FEATURES = 1_000, 50_000
LONGEST_TEXT = 10_000  # characters; of a longer one, only its beginning is read

SCORED_CHARACTERS = 1_000_000  # of sources and targets to write for
SIMILAR_CHARACTERS = 10_000_000  # of training sources among which similar ones are looked for
SIMILAR_SUMS = 2_000_000_000  # numbers that are added up to find them

_GRID = (1.0, 10.0, 100.0, 1000.0)  # for C: how much the examples weigh against small weights
_FOLDS = 3
_ROUGH, _FINE = 1e-3, 1e-4  # tolerances of the fits by which C is chosen, and of the one that is measured
_MOST_STEPS = 500  # of a fit; it needs some tens, with many labels more than a hundred

# A character of a script without spaces between words counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class LabelYardstick:
    """What one predictor of labels scores on the validation texts."""

    name: str
    scores: LabelScores
    told: str = ""  # of which part of the texts it was made and on which measured; "" where that is all of them


@dataclass(frozen=True)
class TextYardstick:
    """What one writer of texts scores on the validation texts."""

    name: str
    scores: TextScores
    told: str = ""  # as in LabelYardstick


def label_yardsticks(
    train_texts: Sequence[str],
    train_labels: Sequence[int],
    val_texts: Sequence[str],
    val_labels: Sequence[int],
    labels: Sequence[str],
    *,
    seconds: float | None,
) -> tuple[list[LabelYardstick], str]:
    """(what the most frequent label and two linear classifiers score; what is missing, in words, "" where nothing is).

    The classifiers are logistic regressions on TF-IDF of words, and of the 2 to 5 characters in a row inside words:
    hard to beat where examples are few. Without scikit-learn there are none, and the words say how to install it.
    Labels are places in the list of labels; of equally frequent ones the first counts.

    seconds: what this may take on a slow core, None for FULL_SECONDS. It bounds what is read, and no clock is looked
    at: with the same data and seconds the results are the same. Raises ValueError for lists of different lengths.
    """
    train, val = _Labelled.of(train_texts, train_labels), _Labelled.of(val_texts, val_labels)
    majority = int(np.bincount(train.ids, minlength=1).argmax())
    always = np.full(len(val.ids), majority)
    found = [LabelYardstick("majority label", score_labels(val.ids.tolist(), always.tolist(), labels))]
    if not _has_sklearn():
        return found, MISSING
    share = 1.0 if seconds is None else min(max(seconds / FULL_SECONDS, LEAST_SHARE), 1.0)
    ngrams = {"analyzer": "char_wb", "ngram_range": (2, 5)}
    kinds: tuple[tuple[str, int, dict[str, Any]], ...] = (
        ("words", WORD_CHARACTERS, {}),
        ("characters", NGRAM_CHARACTERS, ngrams),
    )
    for name, most, options in kinds:
        read, asked = train.sample(int(share * most)), val.sample(int(share * most))
        rows = _tfidf(read, asked, share, options)
        if rows is None:  # no text has any
            predicted, num_read, told = np.full(len(asked.ids), majority), len(train.ids), f"no {name} to learn from"
        else:
            predicted, num_read, told = _classified(rows[0], read.ids, rows[1], share)
        scores = score_labels(asked.ids.tolist(), predicted.tolist(), labels)
        parts = _told(num_read, len(train.ids), len(asked.ids), len(val.ids))
        found.append(LabelYardstick(f"TF-IDF of {name}", scores, ", ".join(filter(None, (parts, told)))))
    return found, ""


def text_yardsticks(
    train_sources: Sequence[str],
    train_targets: Sequence[str],
    val_sources: Sequence[str],
    val_targets: Sequence[str],
) -> list[TextYardstick]:
    """What a copy of the source scores, and the target of the training source that is most like the source.

    Likeness is the cosine of sublinear TF-IDF vectors of words, and of equally similar ones the first counts. The
    second is left out where there is nothing to train on. What is read is bounded: a slow core needs about 20 seconds
    for the most, and `told` says where it was not all. Raises ValueError for lists of different lengths.
    """
    if len(train_sources) != len(train_targets):
        raise ValueError(f"{len(train_targets):,} targets for {len(train_sources):,} sources: must be as many.")
    sizes = [len(source) + len(target) for source, target in zip(val_sources, val_targets, strict=True)]
    asked = evenly(np.array(sizes, np.int64), SCORED_CHARACTERS)
    copies = _scored(val_sources, asked, val_targets, asked)
    found = [TextYardstick("copy of the source", copies, _told(0, 0, len(asked), len(val_sources)))]
    if not train_sources:
        return found
    read = evenly(_sizes(train_sources), SIMILAR_CHARACTERS)
    similar = Similar([train_sources[place] for place in read])
    sums = [similar.num_sums(val_sources[place]) for place in asked]
    asked = asked[evenly(np.array(sums, np.int64), SIMILAR_SUMS)]
    nearest = read[[similar.most_similar(val_sources[place]) for place in asked]]
    scores = _scored(train_targets, nearest, val_targets, asked)
    told = _told(len(read), len(train_sources), len(asked), len(val_sources))
    return [*found, TextYardstick("most similar training sentence's translation", scores, told)]


class Similar:
    """Finds the text that is most like another one among those it was made of.

    Likeness is the cosine of TF-IDF vectors. The weight of a word that stands c times in a text, and at all in d of the
    N texts, is (1 + ln c) (1 + ln((1 + N) / (1 + d))): Salton and Buckley, "Term-weighting approaches in automatic text
    retrieval" (1988), with the logarithm of the count and a share that is never 0.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """texts: at least one."""
        self.ids: dict[str, int] = {}  # of words
        ids, counts, places = [], [], []
        for place, text in enumerate(texts):
            for word, count in _words(text).items():
                ids.append(self.ids.setdefault(word, len(self.ids)))
                counts.append(count)
                places.append(place)
        words = np.array(ids, np.int64)
        texts_with = np.bincount(words, minlength=len(self.ids))
        self.rarity = 1 + np.log((1 + len(texts)) / (1 + texts_with))
        weights = (1 + np.log(np.array(counts, np.float64))) * self.rarity[words]
        where = np.array(places, np.int64)
        weights /= np.sqrt(np.bincount(where, weights**2, len(texts)))[where]
        order = np.argsort(words, kind="stable")
        begins = np.cumsum(texts_with)[:-1]
        # Of each word, the texts that hold it and its weight in them.
        self.places = np.split(where[order], begins)
        self.weights = np.split(weights[order], begins)
        self.num_texts = len(texts)

    def num_sums(self, text: str) -> int:
        """How many numbers most_similar adds up for a text."""
        return self.num_texts + sum(len(self.places[self.ids[word]]) for word in _words(text) if word in self.ids)

    def most_similar(self, text: str) -> int:
        """The place of the text that is most like this one; the first, where none shares a word with it."""
        cosines = np.zeros(self.num_texts)  # times the length of this text's vector, which is the same for all
        for word, count in _words(text).items():
            if (index := self.ids.get(word)) is not None:
                weight = (1 + np.log(count)) * self.rarity[index]
                cosines[self.places[index]] += weight * self.weights[index]
        return int(cosines.argmax())


def evenly(sizes: Ints, most: int, ids: Ints | None = None) -> Ints:
    """The places, in order, of all things of these sizes (N,), or of as many as have about the size `most` together.

    They are evenly spread over the labels `ids` (N,) and, within a label, over the sizes. At least one, where any is.
    """
    total = int(sizes.sum())
    if total <= most:
        return np.arange(len(sizes))
    kept = max(1, len(sizes) * most // total)
    # Every n-th in the order of the list could meet the same label again and again.
    order = np.lexsort((sizes, np.zeros_like(sizes) if ids is None else ids))
    return np.sort(order[np.arange(kept) * len(sizes) // kept])


@dataclass(frozen=True)
class _Labelled:
    """Texts (N,), cut to LONGEST_TEXT where they are read, and their labels (N,)."""

    texts: Sequence[str]
    ids: Ints

    @classmethod
    def of(cls, texts: Sequence[str], labels: Sequence[int]) -> _Labelled:
        """Raises ValueError where they are not as many."""
        if len(texts) != len(labels):
            raise ValueError(f"{len(labels):,} labels for {len(texts):,} texts: must be as many.")
        return cls(texts, np.asarray(labels, dtype=np.int64).reshape(-1))

    def sample(self, characters: int) -> _Labelled:
        """All of them, or as many as have about so many characters together."""
        places = evenly(_sizes(self.texts), characters, self.ids)
        return _Labelled([self.texts[place][:LONGEST_TEXT] for place in places], self.ids[places])


def _has_sklearn() -> bool:
    try:
        from sklearn import feature_extraction, linear_model  # noqa: F401
    except ImportError:
        return False
    return True


def _tfidf(train: _Labelled, val: _Labelled, share: float, options: dict[str, Any]) -> tuple[Any, Any] | None:
    """Sparse features of the training texts (N, F) and of the others (M, F); None where the former have none."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    most = int(share * WEIGHTS) // _num_outputs(train.ids)
    most = min(max(most, FEWEST_FEATURES), MOST_FEATURES)
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=most, **options)
    if not any(map(vectorizer.build_analyzer(), train.texts)):
        return None
    # Where there is nothing to predict for, an empty part of the rest keeps the shape.
    rows = vectorizer.fit_transform(train.texts)
    return rows, vectorizer.transform(val.texts) if val.texts else rows[:0]


def _classified(rows: Any, ids: Ints, asked: Any, share: float) -> tuple[Ints, int, str]:
    """(labels (M,) for the rows `asked` (M, F), of how many of the rows (N, F) they were learned, what went wrong)."""
    numbers, num_outputs = np.diff(rows.indptr), _num_outputs(ids)
    few = evenly(numbers, int(share * NUMBERS_TO_CHOOSE) // num_outputs, ids)
    read = evenly(numbers, int(share * NUMBERS) // num_outputs, ids)
    c = _chosen_c(rows[few], ids[few])
    predicted, told = _predicted(rows[read], ids[read], c, _FINE, asked)
    return predicted, len(read), told


def _chosen_c(rows: Any, ids: Ints) -> float:
    """The C of the grid that gives most rows (N, F) of the other folds their label; of equally good ones the least.

    The folds hold each label in proportion. They share one table of words and rarities, which knows no labels.
    """
    folds = np.empty(len(ids), np.int64)
    folds[np.argsort(ids, kind="stable")] = np.arange(len(ids)) % _FOLDS
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(_FOLDS)]

    def num_right(c: float) -> int:
        found = [
            (_predicted(rows[seen], ids[seen], c, _ROUGH, rows[rest])[0], ids[rest])
            for seen, rest in splits
            if len(seen)
        ]
        return sum(int((predicted == true).sum()) for predicted, true in found)

    return max(_GRID, key=num_right)


def _predicted(rows: Any, ids: Ints, c: float, tolerance: float, asked: Any) -> tuple[Ints, str]:
    """(labels (M,) for the rows `asked` (M, F), what went wrong) of a logistic regression on rows (N, F)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not asked.shape[0] or (ids == ids[0]).all():
        return np.full(asked.shape[0], ids[0]), ""
    model = LogisticRegression(C=c, tol=tolerance, max_iter=_MOST_STEPS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(rows, ids)
    unfinished = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return model.predict(asked), "the fit did not converge" if unfinished else ""


def _num_outputs(ids: Ints) -> int:
    """How many vectors of weights tell labels apart: one where they are two, else one each."""
    num_labels = len(np.unique(ids))
    return num_labels if num_labels > 2 else 1


def _scored(written: Sequence[str], places: Ints, references: Sequence[str], asked: Ints) -> TextScores:
    """The scores of the texts at some places against the references at as many."""
    return score_texts([written[place] for place in places], [references[place] for place in asked])


def _words(text: str) -> Counter[str]:
    return Counter(_WORD.findall(text[:LONGEST_TEXT].lower()))


def _sizes(texts: Sequence[str]) -> Ints:
    """Of each text (N,), how many characters are read."""
    return np.array([min(len(text), LONGEST_TEXT) for text in texts], np.int64)


def _told(num_read: int, num_train: int, num_asked: int, num_val: int) -> str:
    """Of how many of the training texts something was made, on how many of the others measured; "" where on all."""
    of = f"of {num_read:,} of {num_train:,} training texts" if num_read < num_train else ""
    on = f"on {num_asked:,} of {num_val:,} texts" if num_asked < num_val else ""
    return ", ".join(filter(None, (of, on)))
