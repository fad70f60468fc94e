"""How strong weight decay should be where a text is read again and again (slm/training/budget.py).

    python benchmarks/forgetting.py --data_dir DIR [--jobs 2] [--seeds 1] [--batch_sizes 8] [--results forgetting.jsonl]

Each step takes the share learning rate x weight decay from the weights, so that they are made anew in
1 / (learning rate x weight decay x steps of a pass) passes. The messages of SMS spam and half a megabyte of the English
captions of Multi30k (DIR holds sms_spam.tsv and multi30k.train.en.gz) are read PASSES times by models of several
widths, with weights made anew in several numbers of passes; each run on one thread in a process of its own. Bits per
byte are those of the end. Crowding is the number of parameters for each token of the text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import Results, in_new_process, prepared, text_of, where

import slm
from slm.settings import layered
from slm.training import budget
from slm.training.deadline import DECAY_SHARE

PASSES = 12
FORGOTTEN_IN = (0.5, 1.0, 2.0, 4.0)  # passes
CORPORA = ("sms", "multi30k")
WIDTHS = (64, 128, 192)
WINDOW, CHARACTERS = 256, 550_000


def data_of(corpus: str, data_dir: Path) -> str:
    """The path of the first CHARACTERS of a corpus."""
    path = Path(tempfile.gettempdir()) / f"slm-benchmark-{corpus}-{CHARACTERS}.txt"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(Path(text_of(corpus, data_dir)).read_text()[:CHARACTERS])
        part.replace(path)
    return str(path)


def run(corpus: str, width: int, batch_size: int, forgotten_in: float, seed: int, data_dir: str) -> dict[str, float]:
    """Weight decay, dropout, crowding and bits per byte of one run."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    basis = {"data": data_of(corpus, Path(data_dir)), "vocab_size": 1024, "max_seq_len": WINDOW}
    text_tokens = len(prepared(basis).train_dataset.tokens)
    steps_of_pass = text_tokens / (batch_size * WINDOW)
    rate = budget.learning_rate_for(PASSES * text_tokens)
    max_steps = round(PASSES * steps_of_pass)
    decay = 1 / (rate * steps_of_pass * forgotten_in)
    sizes = {
        "embed_dim": width,
        "num_heads": budget.heads_for(width),
        "num_layers": budget.layers_for(width),
        "hidden_dim": 4 * width,
    }
    basis |= {**sizes, "recipe": "modern", "tie_embeddings": True}
    crowding = budget.matrix_parameters(layered(basis, "keyword").model) / text_tokens
    dropout = budget.dropout_for(PASSES, crowding)
    trained = slm.train(
        **basis,
        batch_size=batch_size,
        learning_rate=rate,
        weight_decay=decay,
        dropout=dropout,
        schedule="wsd",
        decay_steps=round(DECAY_SHARE * max_steps),
        max_steps=max_steps,
        eval_every=max_steps,
        seed=seed,
        threads=1,
        device="cpu",
        quiet=True,
    )
    assert trained.history is not None
    bits = trained.history.evaluations[-1]["val_bits_per_byte"]
    return {"weight_decay": decay, "dropout": dropout, "crowding": crowding, "bits_per_byte": bits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8], help="windows of a batch")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run(**json.loads(arguments.task))))
        return
    results = Results(arguments.results)

    def measure(task: dict[str, Any]) -> dict[str, float]:
        return results.get(json.dumps(task), lambda: in_new_process(__file__, task))

    print(f"{where()}, {arguments.jobs} at once; bits per byte after {PASSES} passes (weight decay)")
    print("| corpus | width | crowding | dropout | batch |" + "".join(f" in {n:g} passes |" for n in FORGOTTEN_IN))
    print("|---|---|---|---|---|" + "---|" * len(FORGOTTEN_IN), flush=True)
    for corpus, width, batch_size in itertools.product(CORPORA, WIDTHS, arguments.batch_sizes):
        data_of(corpus, arguments.data_dir)
        task = {"corpus": corpus, "width": width, "batch_size": batch_size, "data_dir": str(arguments.data_dir)}
        tasks = [{**task, "forgotten_in": n, "seed": seed} for n in FORGOTTEN_IN for seed in arguments.seeds]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            made = list(pool.map(measure, tasks))
        row = f"| {corpus} | {width} | {made[0]['crowding']:.1f} | {made[0]['dropout']:g} | {batch_size} x {WINDOW} |"
        for number in range(0, len(made), len(arguments.seeds)):
            cell = made[number : number + len(arguments.seeds)]
            bits = statistics.mean(one["bits_per_byte"] for one in cell)
            row += f" {bits:.4f} ({cell[0]['weight_decay']:.2g}) |"
        print(row, flush=True)


if __name__ == "__main__":
    main()
