"""Whether it helps to learn the task's own raw text first, without labels or pairs: with error bars over five seeds.

    pip install 'slm[classify,translate]'
    python benchmarks/pretraining.py --data_dir DIR [--only labels pairs] [--seeds 5] [--results FILE]

DIR holds sms_spam.tsv and multi30k.{train,test_2016_flickr}.{en,de}.gz. For each seed a task is learned twice from the
same training examples and scored on the same test examples: from nothing, and from a language model that learned these
examples' raw text before (the texts of the messages; the sentences of both languages, each a document of its own).

labels: spam in text messages, the split of the seed in spam.py; F1 of spam. pairs: PAIRS captions, others for each
seed, English to German; BLEU on 1,000 test captions, beams of 4. Both learn with the settings that `slm-train` has
without any flags, so that fine-tuning takes the fine-tuning preset. To be fair to the other side, the model from
nothing may also spend the seconds of both trainings together ("longer"): its epochs are raised in proportion.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Results, where
from spam import examples_of, f1_of, split_of

PAIRS = 4000
SIZES = ("vocab_size", "embed_dim", "num_heads", "num_layers", "hidden_dim", "tie_embeddings", "dropout")
WAYS = ("from nothing", "longer", "pretrained")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--only", nargs="+", choices=("labels", "pairs"), default=["labels", "pairs"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, help="A file that keeps measurements, to go on with later.")
    parser.add_argument("--task", type=json.loads, help="Used by the benchmark itself.")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(_compare(**arguments.task)))
        return
    results = Results(arguments.results, __file__)
    print(where(), flush=True)
    for kind in arguments.only:
        tasks = [{"kind": kind, "data_dir": str(arguments.data_dir), "seed": seed} for seed in range(arguments.seeds)]
        found = [results.of_task(task) for task in tasks]
        print(
            f"\n{kind}: {'F1 of spam' if kind == 'labels' else 'BLEU'}, {arguments.seeds} seeds, +- one standard error"
        )
        for way in WAYS:
            values = [one[way] for one in found]
            seconds = statistics.mean(one[f"{way} seconds"] for one in found)
            print(f"{way:<14}{_told(values)}   {seconds:>5.0f} s   {'  '.join(f'{value:.4f}' for value in values)}")
        for way in WAYS[:2]:
            print(f"pretrained less {way}: {_told([one['pretrained'] - one[way] for one in found])}", flush=True)


def _told(values: list[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):+.4f} +- {error:.4f}"


def _examples(kind: str, data_dir: Path, seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[str]]:
    """(Training examples, test examples, the raw text of the former)."""
    if kind == "labels":
        train, test = split_of(examples_of(data_dir), seed)
        return train, test, [text for text, _ in train]
    parts = {part: _captions(data_dir, part) for part in ("train", "test_2016_flickr")}
    train = random.Random(seed).sample(parts["train"], PAIRS)
    return train, parts["test_2016_flickr"], [text for pair in train for text in pair]


def _captions(data_dir: Path, part: str) -> list[tuple[str, str]]:
    sides = [gzip.decompress((data_dir / f"multi30k.{part}.{one}.gz").read_bytes()).decode() for one in ("en", "de")]
    return list(zip(*(text.splitlines() for text in sides), strict=True))


def _compare(kind: str, data_dir: str, seed: int, **settings: Any) -> dict[str, float]:
    import slm
    from slm.metrics.translations import score_texts
    from slm.recipes import TASK_PRESETS

    train, test, raw = _examples(kind, Path(data_dir), seed)
    task = "classification" if kind == "labels" else "pairs"
    sizes = {name: value for name, value in TASK_PRESETS[task].items() if name in SIZES}
    found: dict[str, float] = {}

    def learned(way: str, data: Any, **more: Any) -> tuple[slm.Run, float]:
        start = time.perf_counter()
        run = slm.train(data, seed=seed, quiet=True, **{**settings, **more})
        return run, time.perf_counter() - start

    def score(way: str, run: slm.Run, seconds: float) -> None:
        inputs, expected = [one for one, _ in test], [one for _, one in test]
        if kind == "labels":
            found[way] = f1_of(expected, [one.label for one in run.classify(inputs)])
        else:
            found[way] = score_texts(run.complete(inputs), expected).bleu or 0.0
        found[f"{way} seconds"] = seconds

    run, plain = learned("from nothing", train, task=task)
    score("from nothing", run, plain)
    epochs = run.resolved["epochs"]
    with tempfile.TemporaryDirectory() as folder:
        _, first = learned("raw", raw, recipe="modern", model_dir=folder, **sizes)
        run, second = learned("pretrained", train, task=task, init_from=folder)
        score("pretrained", run, first + second)
    score("longer", *learned("longer", train, task=task, epochs=round(epochs * max(1.0, (first + second) / plain))))
    return found


if __name__ == "__main__":
    main()
