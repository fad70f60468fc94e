"""Whether a small Transformer, trained from nothing on a few thousand text messages, tells spam as well as word counts.

    pip install 'slm[classify]'
    python benchmarks/spam.py --data_dir DIR [--results FILE]

DIR holds sms_spam.tsv (label, tab, text; the UCI SMS Spam Collection). Exact duplicates are removed; of what is left,
five stratified splits keep 20 % for testing. On each split `slm.train(examples, task="classification")` trains with all
settings at the task's preset, keeping a tenth of the training part to choose the best weights by, and the yardsticks
learn from the same training part: TF-IDF of words and of characters under logistic regression, C by cross-validation.
Told are the F1 of spam on the test parts, paired differences with their standard errors, and seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

from common import Results, where

SPLITS = 5
LINEAR: dict[str, dict[str, Any]] = {
    "TF-IDF of words": {},
    "TF-IDF of characters": {"analyzer": "char_wb", "ngram_range": (2, 5), "min_df": 2},
}
TEST_SHARE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--results", type=Path, help="A file that keeps measurements, to go on with later.")
    parser.add_argument("--task", type=json.loads, help="Used by the benchmark itself.")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(_split(**arguments.task)))
        return
    results = Results(arguments.results, __file__)
    found = [results.of_task({"data_dir": str(arguments.data_dir), "split": split}) for split in range(SPLITS)]
    print(f"F1 of spam on {SPLITS} stratified test splits; {where()}\n")
    names = list(found[0]["f1"])
    print(f"{'':<24}" + "".join(f"{f'split {split}':>10}" for split in range(SPLITS)) + f"{'mean':>10}")
    for name in names:
        values = [one["f1"][name] for one in found]
        print(f"{name:<24}" + "".join(f"{value:>10.4f}" for value in values) + f"{statistics.mean(values):>10.4f}")
    for name in names[1:]:
        differences = [one["f1"][names[0]] - one["f1"][name] for one in found]
        error = statistics.stdev(differences) / math.sqrt(SPLITS)
        print(f"slm less {name}: {statistics.mean(differences):+.4f} +- {error:.4f} (standard error, paired)")
    seconds = [one["seconds"] for one in found]
    print(f"training took {min(seconds):.0f} to {max(seconds):.0f} s, with its evaluations; {found[0]['size']}")


def examples_of(data_dir: Path) -> list[tuple[str, str]]:
    """(text, label) of each message, exact duplicates left out."""
    rows = (data_dir / "sms_spam.tsv").read_text(encoding="utf-8").splitlines()
    pairs = (row.split("\t", 1) for row in rows if "\t" in row)
    return list({text.strip(): (text.strip(), label) for label, text in pairs}.values())


def split_of(examples: list[tuple[str, str]], split: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(The training part, the test part) of a stratified split."""
    from sklearn.model_selection import StratifiedShuffleSplit

    labels = [label for _, label in examples]
    made = StratifiedShuffleSplit(1, test_size=TEST_SHARE, random_state=split).split(examples, labels)
    return tuple([examples[place] for place in part] for part in next(made))  # type: ignore[return-value]


def f1_of(true: list[str], predicted: list[str], label: str = "spam") -> float:
    """F1 of one label."""
    right = sum(a == b == label for a, b in zip(true, predicted, strict=True))
    return 2 * right / (true.count(label) + predicted.count(label))


def _linear(train: list[tuple[str, str]], test: list[tuple[str, str]], **how: Any) -> float:
    """F1 of spam of a logistic regression on TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    vectorizer = TfidfVectorizer(sublinear_tf=True, **how)
    rows = vectorizer.fit_transform([text for text, _ in train])
    search = GridSearchCV(
        LogisticRegression(solver="liblinear", max_iter=5000),
        {"C": [1, 10, 100, 1000, 10_000]},
        scoring="f1",
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
    )
    search.fit(rows, [label == "spam" for _, label in train])
    predicted = search.predict(vectorizer.transform([text for text, _ in test]))
    return f1_of([label for _, label in test], ["spam" if one else "ham" for one in predicted])


def _split(data_dir: str, split: int, **settings: Any) -> dict[str, Any]:
    import slm

    train, test = split_of(examples_of(Path(data_dir)), split)
    texts, true = [text for text, _ in test], [label for _, label in test]
    start = time.perf_counter()
    run = slm.train(train, task="classification", seed=split, quiet=True, **settings)
    seconds = time.perf_counter() - start
    predicted = [one.label for one in run.classify(texts)]
    f1 = {"slm": f1_of(true, predicted), **{name: _linear(train, test, **how) for name, how in LINEAR.items()}}
    size = f"{sum(one.numel() for one in run.model.parameters()):,} parameters, {run.step:,} steps"
    return {"f1": f1, "seconds": seconds, "size": size}


if __name__ == "__main__":
    main()
