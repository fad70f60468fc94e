"""What a model trained for some minutes scores on five texts, beside what simple predictors score on the same text.

    python benchmarks/yardsticks.py [--data_dir DIR] [--minutes 1] [--seed 42] [--results FILE]

DIR holds tinyshakespeare.txt, sms_spam.tsv and multi30k.train.en.gz; stories and Python's own sources need no file.
Each model is what `slm-train --data TEXT --max_minutes M` makes, with all else at its defaults, and is measured as by
`slm-evaluate`: bits per byte on the validation text with their standard error, and the yardsticks beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import Results, shakespeare, text_of, where

CORPORA = ("shakespeare", "shakespeare by characters", "sms", "multi30k", "python", "stories")


def measure(corpus: str, data: str, minutes: float, seed: int) -> dict[str, Any]:
    import slm

    by_characters = {"tokenizer": "char"} if corpus.endswith("characters") else {}
    run = slm.train(data, max_minutes=minutes, seed=seed, quiet=True, **by_characters)
    found = slm.evaluate(run)
    assert found.bits_per_byte is not None
    size = run.model.config
    return {
        "model": f"{size.num_layers} x {size.embed_dim}, {size.num_parameters:,}",
        "bits_per_byte": list(found.bits_per_byte),
        "over": found.units_told,
        "yardsticks": [[one.name, one.bits_per_byte, one.told] for one in found.yardsticks],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("."))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(**json.loads(arguments.task))))
        return
    results = Results(arguments.results, __file__)
    print(f"{where()}, {arguments.minutes:g} minutes each", flush=True)
    for corpus in CORPORA:
        data = corpus
        if corpus.startswith("shakespeare"):
            data = str(shakespeare(arguments.data_dir))
        elif corpus not in ("python", "stories"):
            data = text_of(corpus, arguments.data_dir)
        task = {"corpus": corpus, "data": data, "minutes": arguments.minutes, "seed": arguments.seed}
        found = results.of_task(task)
        value, error = found["bits_per_byte"]
        told = f"{corpus}: {found['model']} parameters: {value:.3f} +- {error:.3f} over {found['over']}"
        print(told, flush=True)
        for name, score, told in found["yardsticks"]:
            print(f"    {name:<22} {score:.3f}  {told}", flush=True)


if __name__ == "__main__":
    main()
