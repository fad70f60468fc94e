"""Fits the constants of the law by which --max_minutes chooses sizes (slm/training/budget.py).

    python benchmarks/scaling.py --data_dir DIR --results scaling.jsonl [--jobs 2] [--fit_only]

Trains models of several widths for several times on 'python' (built in), the English captions of Multi30k and the
messages of SMS spam (DIR holds multi30k.train.en.gz and sms_spam.tsv), each run in a process of its own on one thread,
with as many steps as fit into its CPU seconds, and fits

    bits per byte = E + s x (RATIO / parameters^ALPHA + (1 + OVERFIT x parameters x passes / text) / tokens^BETA)

with E and s of each corpus, and RATIO, ALPHA, BETA, REPEATS and OVERFIT of all; tokens are what `worth` says. Tiny
Shakespeare and the stories are not looked at: they are the exam.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import Results, where

import slm
from slm.training import budget

RUNS: dict[str, list[tuple[int, int]]] = {  # CPU seconds and widths
    "python": [(s, w) for s in (20, 60, 150) for w in (64, 128, 192, 256)],
    "multi30k": [(s, w) for s in (20, 60, 150) for w in (64, 128, 192, 256)],
    "sms": [(s, w) for s in (60, 180) for w in (64, 128, 192)],
}
VOCABULARY = {"python": 2048, "multi30k": 2048, "sms": 1024}


def text_of(corpus: str, data_dir: Path) -> str:
    """The data of a corpus: a built-in name, or the path of a text."""
    if corpus == "python":
        return "python"
    path = Path(tempfile.gettempdir()) / f"slm-scaling-{corpus}.txt"
    if not path.exists():
        if corpus == "multi30k":
            path.write_bytes(gzip.decompress((data_dir / "multi30k.train.en.gz").read_bytes()))
        else:
            rows = (data_dir / "sms_spam.tsv").read_text(errors="replace").splitlines()
            path.write_text("\n".join(row.split("\t", 1)[1] for row in rows if "\t" in row))
    return str(path)


def settings_of(corpus: str, width: int, tokens_per_step: int, data_dir: Path) -> dict[str, Any]:
    """The settings of a run, as a plan would choose them but for the width."""
    return {
        "data": text_of(corpus, data_dir),
        "recipe": "modern",
        "vocab_size": VOCABULARY[corpus],
        "embed_dim": width,
        "num_heads": budget.heads_for(width),
        "num_layers": budget.layers_for(width),
        "hidden_dim": 4 * width,
        "max_seq_len": 128,
        "batch_size": max(1, tokens_per_step // 128),
        "threads": 1,
        "device": "cpu",
        "quiet": True,
        "log_every": 1,
    }


def run(corpus: str, seconds: float, width: int, data_dir: str) -> dict[str, float]:
    """Parameters, tokens, tokens of the text and bits per byte at the end of one run."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tokens_per_step = 1024
    for _ in range(2):  # the batch depends on the tokens that the time allows
        settings = settings_of(corpus, width, tokens_per_step, Path(data_dir))
        times: list[float] = []
        slm.train(**settings, max_steps=12, eval_every=99, val_tokens=1000,
                  on_log=lambda record: times.append(time.process_time()))  # fmt: skip
        steps = sorted(b - a for a, b in zip(times[3:-1], times[4:-1], strict=False))
        max_steps = max(20, round(seconds / steps[len(steps) // 2]))
        tokens_per_step = budget.batch_tokens_for(max_steps * settings["batch_size"] * 128)
    trained = slm.train(**settings, max_steps=max_steps, eval_every=max_steps, val_tokens=60_000)
    config = trained.model.config
    assert trained.history is not None
    last = trained.history.evaluations[-1]
    epochs = max_steps * settings["batch_size"] * 128
    return {
        "parameters": budget.matrix_parameters(config),
        "tokens": epochs,
        "text": epochs / max(last["epoch"], 1) if last["epoch"] > 3 else text_tokens(trained),
        "bits_per_byte": last["val_bits_per_byte"],
    }


def text_tokens(trained: slm.Run) -> float:
    """Tokens of the training text, from how far into its epoch the last record is."""
    assert trained.history is not None
    first = next(record for record in trained.history.records if "lr" in record)
    return float(first["tokens_seen"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--fit_only", action="store_true")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run(**json.loads(arguments.task))))
        return
    results = Results(arguments.results)
    tasks = [
        {"corpus": corpus, "seconds": seconds, "width": width, "data_dir": str(arguments.data_dir)}
        for corpus, runs in RUNS.items()
        for seconds, width in runs
    ]
    print(where(), flush=True)


if __name__ == "__main__":
    main()
