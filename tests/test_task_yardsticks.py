"""Laws of slm.metrics.task_yardsticks: what scikit-learn finds, without a failure, from no more than is allowed."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import linear_model
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from slm.metrics import task_yardsticks as module
from slm.metrics.labels import score_labels
from slm.metrics.task_yardsticks import MISSING, LabelYardstick, Similar, evenly, label_yardsticks, text_yardsticks
from slm.metrics.translations import score_texts

laws = settings(deadline=None, max_examples=60)
Labelled = tuple[list[str], list[int]]
NAMES = ["majority label", "TF-IDF of words", "TF-IDF of characters"]
TOPICS = ("dog cat bird horse", "pan oven soup bread", "rain sun wind cloud", "car train road wheel")
FILLERS = ["the", "a", "and", "some", "then", "one", "old", "new", "big", "we", "saw", "there"]


def topic_texts(num_texts: int, seed: int = 0, num_labels: int = 3, noise: float = 0.0) -> Labelled:
    """Texts of six words, one of them as a rule of the topic that is their label; the first label is the commonest."""
    generator = np.random.default_rng(seed)
    texts, labels = [], []
    for _ in range(num_texts):
        label = int(generator.integers(num_labels + 1)) % num_labels
        words = list(generator.choice(FILLERS, 5))
        topic = int(generator.integers(num_labels)) if generator.random() < noise else label
        words.insert(int(generator.integers(6)), str(generator.choice(TOPICS[topic].split())))
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def measured(
    train: Labelled, val: Labelled, num_labels: int = 3, seconds: float | None = None
) -> dict[str, LabelYardstick]:
    """The yardsticks by name, of which none is missing."""
    labels = [f"label {place}" for place in range(num_labels)]
    found, missing = label_yardsticks(*train, *val, labels, seconds=seconds)
    assert missing == ""
    assert [one.name for one in found] == NAMES
    return {one.name: one for one in found}


def test_the_majority_label_is_the_commonest_in_training_and_of_equals_the_first() -> None:
    val: Labelled = (["x", "y", "z"], [2, 1, 1])
    for train_labels, commonest in (([2, 2, 0], 2), ([1, 2, 2, 1], 1), ([], 0)):
        found = measured((["a b"] * len(train_labels), train_labels), val)["majority label"]
        assert found.scores == score_labels(val[1], [commonest] * 3, ["label 0", "label 1", "label 2"])
        assert found.told == ""


@pytest.mark.parametrize("num_labels", [2, 3])
def test_classifiers_predict_as_scikit_learn_does_with_the_best_c(num_labels: int) -> None:
    train, val = topic_texts(120, 0, num_labels, 0.3), topic_texts(80, 1, num_labels, 0.3)
    found = measured(train, val, num_labels)
    options: dict[str, dict[str, Any]] = {
        "TF-IDF of words": {},
        "TF-IDF of characters": {"analyzer": "char_wb", "ngram_range": (2, 5)},
    }
    for name, how in options.items():
        vectorizer = TfidfVectorizer(sublinear_tf=True, **how)
        rows, asked = vectorizer.fit_transform(train[0]), vectorizer.transform(val[0])
        fits = [LogisticRegression(C=c, max_iter=1000).fit(rows, train[1]).predict(asked) for c in module._GRID]
        labels = [f"label {place}" for place in range(num_labels)]
        assert found[name].scores in [score_labels(val[1], fit.tolist(), labels) for fit in fits]
        assert found[name].told == ""


def test_where_words_tell_the_label_both_classifiers_find_it() -> None:
    found = measured(topic_texts(200), topic_texts(100, 1))
    assert found["majority label"].scores.accuracy < 0.7
    assert found["TF-IDF of words"].scores.accuracy == 1.0
    assert found["TF-IDF of characters"].scores.accuracy > 0.95


def test_parts_of_words_tell_what_whole_words_do_not() -> None:
    """No word of the validation texts stands in a training text, but its ending does."""
    stems = [f"{a}{b}" for a in "bdfgklmn" for b in ("al", "er", "ip", "on", "ut")]
    texts = [stem + ending for stem in stems for ending in ("ation", "ingly")]
    labels = [0, 1] * len(stems)
    found = measured((texts[:60], labels[:60]), (texts[60:], labels[60:]), 2)
    assert found["TF-IDF of words"].scores.accuracy == 0.5
    assert found["TF-IDF of characters"].scores.accuracy == 1.0


def test_characters_are_2_to_5_in_a_row_inside_words_and_words_have_2_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[list[str]] = []
    fit_transform = TfidfVectorizer.fit_transform

    def watched(self: Any, texts: list[str]) -> Any:
        rows = fit_transform(self, texts)
        tables.append(sorted(self.vocabulary_))
        return rows

    monkeypatch.setattr(TfidfVectorizer, "fit_transform", watched)
    measured((["I see dogs", "a cat"], [0, 1]), (["cats"], [1]))
    words, characters = tables
    assert words == ["cat", "dogs", "see"]
    for text in (" i ", " see ", " dogs ", " a ", " cat "):
        parts = {text[start:end] for start in range(len(text)) for end in range(start + 2, start + 6)}
        assert {part for part in parts if len(part) > 1} <= set(characters)
    assert {len(part) for part in characters} == {2, 3, 4, 5}
    assert not any(" " in part.strip() for part in characters)


def test_c_is_the_one_that_does_best_on_the_other_folds() -> None:
    """With labels at random, to learn the examples by heart is worse; where one rare word tells, small weights are."""
    generator = np.random.default_rng(0)
    ids = generator.integers(2, size=300)
    ids[:200] = 0
    at_random = TfidfVectorizer().fit_transform(topic_texts(300)[0])
    assert module._chosen_c(at_random, ids) == min(module._GRID)
    # Two of three texts are of label 0, and only a word among 30 others says which are not.
    words = [
        " ".join(generator.choice([f"word{n}" for n in range(400)], 30)) + " no" * (n % 3 == 0) for n in range(300)
    ]
    rows = TfidfVectorizer().fit_transform(words)
    assert module._chosen_c(rows, np.array([int(n % 3 == 0) for n in range(300)])) > min(module._GRID)


def test_each_fold_holds_the_labels_in_proportion_and_every_text_is_predicted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = np.random.default_rng(0).permutation([0] * 30 + [1] * 12 + [2] * 3)
    splits = []

    def predicted(rows: Any, seen: NDArray[np.int64], c: float, tolerance: float, asked: Any) -> Any:
        splits.append((rows[:, 0].tolist(), asked[:, 0].tolist()))
        return np.zeros(len(asked)), ""

    monkeypatch.setattr(module, "_predicted", predicted)
    module._chosen_c(np.arange(45)[:, None], ids)
    assert len(splits) == 3 * len(module._GRID)
    for seen, rest in splits:
        assert sorted(seen + rest) == list(range(45))
        assert np.bincount(ids[rest]).tolist() == [10, 4, 1]
    assert sorted(splits[0][1] + splits[1][1] + splits[2][1]) == list(range(45))


DEGENERATE: dict[str, tuple[Labelled, Labelled]] = {
    "one label": ((["a dog", "a cat", "the sun"], [1, 1, 1]), (["a dog", "x"], [1, 0])),
    "one example": ((["a dog"], [2]), (["a dog", "x"], [1, 2])),
    "two examples": ((["some dog", "some cat"], [2, 0]), (["some dog", "x"], [2, 0])),
    "fewer examples than folds": ((["dog one", "dog two", "dog six", "cat"], [0, 0, 0, 1]), (["dog", "cat"], [0, 1])),
    "empty texts": ((["", "", "", ""], [0, 1, 1, 2]), (["", "a dog"], [1, 0])),
    "some empty texts": ((["", "dog", "", "cat"], [0, 1, 0, 1]), (["", "a dog"], [1, 0])),
    "no words": ((["!", "?", "!"] * 3, [0, 1, 0] * 3), (["!", "?"], [0, 1])),
    "no training texts": (([], []), (["a dog"], [1])),
    "no validation texts": ((["dog", "cat", "dog"], [0, 1, 0]), ([], [])),
    "nothing": (([], []), ([], [])),
    "an odd character": ((["\ud800 dog", "\0 cat", "\ud800 dog"], [0, 1, 0]), (["\ud800", "cat"], [0, 1])),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_nothing_degenerate_fails(name: str) -> None:
    train, val = DEGENERATE[name]
    for one in measured(train, val).values():
        assert one.scores.num_examples == len(val[0])


def test_where_texts_hold_no_words_the_majority_is_predicted_and_that_is_told() -> None:
    train, val = DEGENERATE["no words"]
    found = measured(train, val)
    assert found["TF-IDF of words"].scores == found["majority label"].scores
    assert found["TF-IDF of words"].told == "no words to learn from"
    assert found["TF-IDF of characters"].scores.accuracy == 1.0
    empty = measured(*DEGENERATE["empty texts"])
    assert empty["TF-IDF of characters"].told == "no characters to learn from"


def test_a_fit_that_does_not_converge_is_told_and_no_warning_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = topic_texts(60, noise=0.2), topic_texts(30, 1)
    assert measured(train, val)["TF-IDF of words"].told == ""
    monkeypatch.setattr(module, "_MOST_STEPS", 2)
    assert measured(train, val)["TF-IDF of words"].told == "the fit did not converge"


def test_without_scikit_learn_the_majority_is_left_and_the_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert linear_model is sys.modules["sklearn.linear_model"]  # loaded before: still it counts as missing
    whole = measured(topic_texts(30), topic_texts(10, 1))
    monkeypatch.setitem(sys.modules, "sklearn", None)
    found, missing = label_yardsticks(
        *topic_texts(30), *topic_texts(10, 1), ["label 0", "label 1", "label 2"], seconds=None
    )
    assert found == [whole["majority label"]]
    assert missing == MISSING
    assert "pip install scikit-learn" in MISSING


def test_the_same_texts_give_the_same_scores() -> None:
    train, val = topic_texts(60, noise=0.3), topic_texts(30, 1, noise=0.3)
    assert measured(train, val, seconds=2.0) == measured(train, val, seconds=2.0)


def read_by(monkeypatch: pytest.MonkeyPatch, seconds: float | None) -> tuple[dict[str, LabelYardstick], list[int]]:
    """The yardsticks with bounds a thousandth of the real ones, and how many characters scikit-learn was given."""
    for bound in ("WORD_CHARACTERS", "NGRAM_CHARACTERS", "NUMBERS", "NUMBERS_TO_CHOOSE", "WEIGHTS"):
        monkeypatch.setattr(module, bound, getattr(module, bound) // 1000)
    monkeypatch.setattr(module, "FEWEST_FEATURES", 1)
    read = []
    fit_transform, transform = TfidfVectorizer.fit_transform, TfidfVectorizer.transform

    def counted(how: Any) -> Any:
        def count(self: Any, texts: list[str], *rest: Any, **options: Any) -> Any:
            read.append(sum(map(len, texts)))
            return how(self, texts, *rest, **options)

        return count

    monkeypatch.setattr(TfidfVectorizer, "fit_transform", counted(fit_transform))
    monkeypatch.setattr(TfidfVectorizer, "transform", counted(transform))
    train, val = topic_texts(2000), topic_texts(1000, 1)
    found = measured(train, val, seconds=seconds)
    monkeypatch.undo()
    return found, read


def test_what_is_read_is_bounded_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = topic_texts(2000), topic_texts(1000, 1)
    sizes = [sum(map(len, texts)) for texts, _ in (train, val)]
    bounds = [module.WORD_CHARACTERS // 1000, module.NGRAM_CHARACTERS // 1000]
    assert sizes[0] > bounds[0] > bounds[1]
    for seconds, share in ((None, 1.0), (module.FULL_SECONDS * 2, 1.0), (30.0, 0.5), (0.0, module.LEAST_SHARE)):
        found, read = read_by(monkeypatch, seconds)
        for place, name in enumerate(NAMES[1:]):
            most = int(share * bounds[place])
            for size, characters in zip(sizes, read[2 * place : 2 * place + 2], strict=True):
                assert characters == size if size <= most else 0.7 * most <= characters <= 1.1 * most
            told, scores = found[name].told, found[name].scores
            assert "of 2,000 training texts" in told
            assert (f"on {scores.num_examples:,} of 1,000 texts" in told) == (scores.num_examples < 1000)
            assert (scores.num_examples < 1000) == (sizes[1] > most)
        assert found["majority label"].told == ""
        assert found["majority label"].scores.num_examples == 1000


def test_more_labels_and_fewer_seconds_make_smaller_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    fit = LogisticRegression.fit

    def watched(self: Any, rows: Any, ids: Any) -> Any:
        shapes.append((rows.nnz, rows.shape[1]))
        return fit(self, rows, ids)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    for bound, value in (("NUMBERS", 2400), ("NUMBERS_TO_CHOOSE", 1200), ("WEIGHTS", 120)):
        monkeypatch.setattr(module, bound, value)
    monkeypatch.setattr(module, "FEWEST_FEATURES", 35)
    monkeypatch.setattr(module, "MOST_FEATURES", 100)
    full = module.FULL_SECONDS
    cases = ((2, 1, 100, full), (3, 3, 40, None), (4, 4, 35, full), (2, 2, 60, full / 2))
    for num_labels, outputs, features, seconds in cases:
        shapes.clear()
        found = measured(topic_texts(400, 0, num_labels), topic_texts(20, 1, num_labels), num_labels, seconds)
        of_characters = shapes[len(shapes) // 2 :]
        assert len(of_characters) == 3 * len(module._GRID) + 1
        assert {width for _, width in of_characters} == {features}
        *to_choose, (numbers, _) = of_characters
        assert numbers == pytest.approx(2400 / outputs, rel=0.2)
        assert [number for number, _ in to_choose] == pytest.approx([1200 * 2 / 3 / outputs] * len(to_choose), rel=0.2)
        assert "of 400 training texts" in found["TF-IDF of characters"].told


def test_of_a_long_text_only_the_beginning_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_TEXT", 20)
    train, val = topic_texts(60), topic_texts(30, 1)
    cut = [([text[:20] for text in texts], labels) for texts, labels in (train, val)]
    whole = measured(train, val)
    assert whole == measured(*cut)
    monkeypatch.setattr(module, "WORD_CHARACTERS", 20 * 60)
    assert whole == measured(train, val)
    sources = [text + " - and what comes after it" for text in train[0]]
    assert Similar(sources).rarity.tolist() == Similar(cut[0][0]).rarity.tolist()


@laws
@given(
    sizes=st.lists(st.integers(0, 50), max_size=60),
    most=st.integers(1, 400),
    num_labels=st.integers(1, 3),
)
def test_evenly_takes_all_or_about_as_much_as_is_allowed(sizes: list[int], most: int, num_labels: int) -> None:
    ids = np.arange(len(sizes)) % num_labels
    places = evenly(np.array(sizes, np.int64), most, ids)
    assert places.tolist() == sorted(set(places.tolist()))
    if sum(sizes) <= most:
        assert len(places) == len(sizes)
    else:
        assert len(places) == max(1, len(sizes) * most // sum(sizes))


def test_evenly_keeps_labels_and_sizes_in_proportion_however_they_alternate() -> None:
    ids, sizes = np.arange(1000) % 2, np.array([10, 10, 1, 1] * 250)
    places = evenly(sizes, int(sizes.sum()) // 10, ids)
    assert len(places) == 100
    assert np.bincount(ids[places]).tolist() == [50, 50]
    assert sizes[places].sum() == sizes.sum() // 10


WORDS = st.lists(st.sampled_from(["dog", "cat", "a", "i", "sun", "ß", "été", "run_2"]), max_size=8).map(" ".join)


@laws
@given(texts=st.lists(WORDS, min_size=1, max_size=12), asked=WORDS)
def test_the_most_similar_text_is_the_first_of_those_that_scikit_learn_finds(texts: list[str], asked: str) -> None:
    similar = Similar(texts)
    found = similar.most_similar(asked)
    if not any(texts):
        assert found == 0
        return
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    cosines = (vectorizer.fit_transform(texts) @ vectorizer.transform([asked]).T).toarray()[:, 0]
    rarity = {word: vectorizer.idf_[place] for word, place in vectorizer.vocabulary_.items()}
    assert {word: similar.rarity[place] for word, place in similar.ids.items()} == pytest.approx(rarity)
    assert cosines[found] == pytest.approx(cosines.max(), abs=1e-9)
    assert (cosines[:found] < cosines[found] + 1e-9).all()
    assert texts[found] not in texts[:found]


def test_a_word_said_often_weighs_less_than_often_as_much() -> None:
    assert Similar(["dog", "dog dog cat"]).most_similar("dog dog dog dog cat") == 1


def test_the_number_of_sums_is_that_of_the_texts_with_its_words() -> None:
    similar = Similar(["dog cat", "dog dog", "sun"])
    assert [similar.num_sums(text) for text in ("dog", "Cat dog sun", "moon", "")] == [5, 7, 3, 3]


def test_characters_of_scripts_without_spaces_are_words() -> None:
    similar = Similar(["今日は雨です", "猫が好きです", "iPhoneを買った"])
    assert [similar.most_similar(text) for text in ("猫と雨と猫と猫", "雨の日", "iphone")] == [1, 0, 2]


SOURCES = ["a dog runs in the park", "the sun is hot", "two cats sleep", "Berlin"]
TARGETS = ["ein Hund läuft im Park", "die Sonne ist heiß", "zwei Katzen schlafen", "Berlin"]


def test_texts_are_written_by_copying_and_by_looking_up_the_most_similar_source() -> None:
    val_sources, val_targets = ["the dog runs", "three cats sleep", "Berlin"], ["der Hund", "drei Katzen", "Berlin"]
    copy, similar = text_yardsticks(SOURCES, TARGETS, val_sources, val_targets)
    assert (copy.name, similar.name) == ("copy of the source", "most similar training sentence's translation")
    assert copy.scores == score_texts(val_sources, val_targets)
    assert copy.scores.exact_match == 1 / 3
    assert similar.scores == score_texts([TARGETS[0], TARGETS[2], TARGETS[3]], val_targets)
    assert (copy.told, similar.told) == ("", "")


def test_training_sources_are_translated_by_heart() -> None:
    similar = text_yardsticks(SOURCES, TARGETS, SOURCES[::-1], TARGETS[::-1])[1]
    assert similar.scores.exact_match == 1.0


@pytest.mark.parametrize("num_train", [0, 1])
@pytest.mark.parametrize("texts", [([], []), ([""], [""]), (["?", "x"], ["", "y"])])
def test_no_text_yardstick_fails(num_train: int, texts: tuple[list[str], list[str]]) -> None:
    for train in ((SOURCES[:num_train], TARGETS[:num_train]), ([""] * num_train, ["!"] * num_train)):
        found = text_yardsticks(*train, *texts)
        assert len(found) == 1 + num_train
        assert [one.scores.num_examples for one in found] == [len(texts[0])] * len(found)


def test_text_yardsticks_need_no_scikit_learn_and_say_what_sacrebleu_would_add(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = text_yardsticks(SOURCES, TARGETS, SOURCES, TARGETS)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert text_yardsticks(SOURCES, TARGETS, SOURCES, TARGETS) == whole
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    for one, with_all in zip(text_yardsticks(SOURCES, TARGETS, SOURCES, TARGETS), whole, strict=True):
        assert "pip install sacrebleu" in one.scores.missing
        assert one.scores.exact_match == with_all.scores.exact_match


def test_what_text_yardsticks_read_is_bounded_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    train = [f"word{n} word{n // 2} the" for n in range(200)], [f"target {n}" for n in range(200)]
    val = [f"word{n} the" for n in range(100)], [f"target {n}" for n in range(100)]
    copy, similar = text_yardsticks(*train, *val)
    assert (copy.told, similar.told) == ("", "")
    monkeypatch.setattr(module, "SCORED_CHARACTERS", sum(map(len, [*val[0], *val[1]])) // 2)
    copy, similar = text_yardsticks(*train, *val)
    assert copy.told == similar.told == "on 50 of 100 texts"
    monkeypatch.setattr(module, "SIMILAR_CHARACTERS", sum(map(len, train[0])) // 4 + 1)
    similar = text_yardsticks(*train, *val)[1]
    assert similar.told == "of 50 of 200 training texts, on 50 of 100 texts"
    # Each text asks for 50 sums to begin with and 50 for the word that stands in all.
    monkeypatch.setattr(module, "SIMILAR_SUMS", 1050)
    copy, similar = text_yardsticks(*train, *val)
    assert (copy.scores.num_examples, copy.told) == (50, "on 50 of 100 texts")
    assert similar.scores.num_examples in (9, 10)
    assert similar.told == f"of 50 of 200 training texts, on {similar.scores.num_examples} of 100 texts"


def test_what_belongs_together_in_a_sample_stays_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few texts are read, each comes with its own target or label."""
    kinds = [f"kind{n % 5}" for n in range(300)]
    sources = [f"{kind} {'x ' * (n % 7)}" for n, kind in enumerate(kinds)]
    monkeypatch.setattr(module, "SCORED_CHARACTERS", 2000)
    monkeypatch.setattr(module, "SIMILAR_CHARACTERS", 1000)
    monkeypatch.setattr(module, "SIMILAR_SUMS", 5000)
    similar = text_yardsticks(sources, kinds, sources[::-1], kinds[::-1])[1]
    assert similar.scores.exact_match == 1.0
    assert 10 < similar.scores.num_examples < 50
    for bound in ("WORD_CHARACTERS", "NGRAM_CHARACTERS"):
        monkeypatch.setattr(module, bound, 8000)
    found = measured(topic_texts(600), topic_texts(600, 1))
    for name in NAMES[1:]:
        assert found[name].scores.accuracy > 0.9
        assert found[name].scores.num_examples < 400


def test_both_text_yardsticks_are_measured_on_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each source is a training source and its own target there, to look it up is to copy it."""
    sources = [f"word{n}" for n in range(200)]
    targets = [source if n % 3 and n > 100 else "x" for n, source in enumerate(sources)]
    monkeypatch.setattr(module, "SCORED_CHARACTERS", 300)
    copy, similar = text_yardsticks(sources, sources, sources, targets)
    assert copy.scores == similar.scores
    assert 0 < copy.scores.exact_match < 1


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 labels for 2 texts"):
        label_yardsticks(["a", "b"], [0], ["a"], [0], ["x"], seconds=1)
    with pytest.raises(ValueError, match="2 labels for 1 texts"):
        label_yardsticks(["a"], [0], ["a"], [0, 0], ["x"], seconds=1)
    with pytest.raises(ValueError, match="1 targets for 2 sources"):
        text_yardsticks(["a", "b"], ["a"], [], [])
    with pytest.raises(ValueError, match="zip"):
        text_yardsticks([], [], ["a", "b"], ["a"])
