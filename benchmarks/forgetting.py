"""How strong weight decay should be where a text is read again and again (slm/training/budget.py).

    python benchmarks/forgetting.py --data_dir DIR [--jobs 2] [--passes 4 12] [--forgotten_in 0.5 1 2 4]
                                    [--dropouts 0 0.1] [--seeds 1] [--only python] [--results forgetting.jsonl]

Each step takes the share learning rate x weight decay from the weights, so that they are made anew in
1 / (learning rate x weight decay x steps of a pass) passes. The messages of SMS spam and half a megabyte each of the
English captions of Multi30k (DIR holds sms_spam.tsv and multi30k.train.en.gz) and of Python's own sources are read
several times by models of several widths, with weights made anew in several numbers of passes; each run on one thread
in a process of its own. The end of a text is for validation: much like the rest for messages and captions, other
modules for sources. Dropout is that of a plan, or those asked for. Bits per byte are those of the end. Crowding is the
number of parameters for each token of the text.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from common import Results, prepared, text_of, where

import slm
from slm.settings import layered
from slm.training import budget
from slm.training.deadline import DECAY_SHARE

CORPORA = ("sms", "multi30k", "python")
WIDTHS = (64, 128, 192)
WINDOW, CHARACTERS = 256, 550_000


def run(
    corpus: str,
    passes: int,
    width: int,
    batch_size: int,
    dropout: float | None,
    forgotten_in: float,
    seed: int,
    data_dir: str,
) -> dict[str, float]:
    """Weight decay, dropout, crowding and bits per byte of one run."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    basis = {"data": text_of(corpus, Path(data_dir), CHARACTERS), "vocab_size": 1024, "max_seq_len": WINDOW}
    text_tokens = len(prepared(basis).train_dataset.tokens)
    steps_of_pass = text_tokens / (batch_size * WINDOW)
    rate = budget.learning_rate_for(passes * text_tokens)
    max_steps = round(passes * steps_of_pass)
    decay = 1 / (rate * steps_of_pass * forgotten_in)
    sizes = {
        "embed_dim": width,
        "num_heads": budget.heads_for(width),
        "num_layers": budget.layers_for(width),
        "hidden_dim": 4 * width,
    }
    basis |= {**sizes, "recipe": "modern", "tie_embeddings": True}
    crowding = budget.matrix_parameters(layered(basis, "keyword").model) / text_tokens
    dropout = budget.dropout_for(passes, crowding) if dropout is None else dropout
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
    parser.add_argument("--data_dir", type=Path, default=Path("."))
    parser.add_argument("--passes", type=int, nargs="+", default=[4, 12], help="how often the text is read")
    parser.add_argument("--forgotten_in", type=float, nargs="+", default=[0.5, 1, 2, 4], help="passes")
    parser.add_argument("--dropouts", type=float, nargs="+", default=[None], help="default: that of a plan")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8], help="windows of a batch")
    parser.add_argument("--only", nargs="+", choices=CORPORA, default=CORPORA)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run(**json.loads(arguments.task))))
        return
    results = Results(arguments.results, __file__)
    print(f"{where()}, {arguments.jobs} at once; bits per byte (weight decay)")
    columns = "".join(f" in {n:g} passes |" for n in arguments.forgotten_in)
    print(f"| corpus | passes | width | crowding | dropout | batch |{columns}")
    print("|---|---|---|---|---|---|" + "---|" * len(arguments.forgotten_in), flush=True)
    names = ("passes", "corpus", "width", "batch_size", "dropout")
    every = itertools.product(arguments.passes, arguments.only, WIDTHS, arguments.batch_sizes, arguments.dropouts)
    rows = [dict(zip(names, row, strict=True)) | {"data_dir": str(arguments.data_dir)} for row in every]
    cells = [{"forgotten_in": n, "seed": seed} for n in arguments.forgotten_in for seed in arguments.seeds]
    for corpus in arguments.only:
        text_of(corpus, arguments.data_dir, CHARACTERS)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        all_made = pool.map(results.of_task, [{**row, **cell} for row in rows for cell in cells])
        for row in rows:
            made = list(itertools.islice(all_made, len(cells)))
            told = f"| {row['corpus']} | {row['passes']} | {row['width']} | {made[0]['crowding']:.1f} |"
            told += f" {made[0]['dropout']:g} | {row['batch_size']} x {WINDOW} |"
            for number in range(0, len(made), len(arguments.seeds)):
                cell = made[number : number + len(arguments.seeds)]
                bits = statistics.mean(one["bits_per_byte"] for one in cell)
                told += f" {bits:.4f} ({cell[0]['weight_decay']:.2g}) |"
            print(told, flush=True)


if __name__ == "__main__":
    main()
