"""How near --max_minutes comes to the best of six sizes by hand that get the same minutes, and whether it is on time.

    python benchmarks/dial.py --data_dir DIR [--minutes 1 3] [--seeds 1 2 3] [--only NAME ...] [--jobs 1]
                              [--grid "4 x 128" "4 x 256" ...] [--results dial.jsonl]

DIR holds tinyshakespeare.txt. Corpora: tiny Shakespeare, and the built-in 'stories' and 'python'. Six sizes by hand get
the same minutes with all else planned, in turn with the plan's own size; each run is a process of its own. Bits per
byte are over up to 200,000 tokens of the validation split, with the weights that the run kept. Seconds are those of
slm.train, all of it, without the imports. With the first seed all sizes run; with the others only those that it did
not leave CLEARLY_WORSE than its best; --grid names fewer sizes, or none. --jobs 2 runs two at once, each on a core of
its own, with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from common import Results, in_new_process, prepared, shakespeare, spread, where

GRID: dict[str, dict[str, int]] = {
    f"{layers} x {width}": {"num_layers": layers, "embed_dim": width}
    for layers, width in ((2, 64), (2, 128), (4, 128), (3, 192), (4, 256), (6, 384))
}
CLEARLY_WORSE = 1.02  # times the best bits per byte
VAL_TOKENS = 200_000


def run(task: dict[str, Any]) -> dict[str, Any]:
    """One training of so many minutes."""
    if task["core"] is not None:
        os.sched_setaffinity(0, {task["core"]})
    import slm
    from slm.metrics.evaluate import evaluate

    warnings.simplefilter("ignore")
    settings = {"data": task["data"], "max_minutes": task["minutes"], "seed": task["seed"], **task["sizes"]}
    began = time.perf_counter()
    run = slm.train(**settings, quiet=True)
    seconds = time.perf_counter() - began
    names = ("num_layers", "embed_dim", "max_seq_len", "vocab_size", "batch_size", "dropout", "threads", "precision")
    chosen = {name: run.resolved[name] for name in names}
    data = prepared({"data": task["data"], "vocab_size": chosen["vocab_size"], "max_seq_len": chosen["max_seq_len"]})
    data = data.in_windows_of(chosen["max_seq_len"], VAL_TOKENS)
    assert data.tokenizer is not None and run.history is not None
    metrics = evaluate(run.model, data.val_dataset, bytes_per_token=data.tokenizer.bytes_per_token())
    return {
        "bits_per_byte": metrics["val_bits_per_byte"],
        "seconds": seconds,
        "chosen": chosen,
        "tokens": run.history.records[-1]["tokens_seen"],
        "best_at": run.step / run.history.step,
        "message": run.history.message,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=["shakespeare", "stories", "python"])
    parser.add_argument("--grid", nargs="*", choices=list(GRID), default=list(GRID))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run(json.loads(arguments.task))))
        return
    corpora = {"shakespeare": "", "stories": "stories", "python": "python"}
    if "shakespeare" in (arguments.only or corpora):
        corpora["shakespeare"] = str(shakespeare(arguments.data_dir))
    results, cores = Results(arguments.results), Queue[int | None]()
    for core in range(arguments.jobs):
        cores.put(core if arguments.jobs > 1 else None)
    print(f"{where()}, {arguments.jobs} at once", flush=True)

    def measure(corpus: str, minutes: float, seed: int, sizes: str) -> dict[str, Any]:
        def now() -> Any:
            core = cores.get()
            try:
                task = {"data": corpora[corpus], "minutes": minutes, "seed": seed, "sizes": GRID.get(sizes, {})}
                return in_new_process(__file__, task | {"core": core})
            finally:
                cores.put(core)

        found: dict[str, Any] = results.get(json.dumps([corpus, minutes, seed, sizes, arguments.jobs]), now)
        print(f"{corpus:<11} {minutes:g} min, seed {seed}, {sizes:<7}: {found['bits_per_byte']:.4f} bits per byte, "
              f"{found['seconds']:.1f} s, {found['tokens'] / 1e6:.2f} M tokens, best after {found['best_at']:.0%}, "
              f"{found['chosen']} {found['message']}", flush=True)  # fmt: skip
        return found

    rows = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for minutes in arguments.minutes:
            for corpus in arguments.only or corpora:
                names = ["plan", *arguments.grid]
                found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
                for seed in arguments.seeds:
                    best = min((one[0]["bits_per_byte"] for one in found.values() if one), default=0.0)
                    names = [
                        name
                        for name, one in found.items()
                        if name == "plan" or not one or one[0]["bits_per_byte"] < CLEARLY_WORSE * best
                    ]
                    made = pool.map(lambda name, seed=seed: measure(corpus, minutes, seed, name), names)  # noqa: B023
                    for name, one in zip(names, made, strict=True):
                        found[name].append(one)
                rows.append(_row(corpus, minutes, found))
    columns = "plan | bits per byte | best of the grid | bits per byte | difference | seconds | of the grid"
    print(f"\n| corpus | minutes | {columns} |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def _row(corpus: str, minutes: float, found: dict[str, list[dict[str, Any]]]) -> str:
    """The plan beside the best size of the grid that ran with all seeds."""
    plan = found.pop("plan")
    bits = {name: [one["bits_per_byte"] for one in made] for name, made in found.items() if len(made) == len(plan)}
    ours, sizes = [one["bits_per_byte"] for one in plan], plan[0]["chosen"]
    seconds = [one["seconds"] for one in plan]
    others = [one["seconds"] for made in found.values() for one in made]
    row = f"| {corpus} | {minutes:g} | {sizes['num_layers']} x {sizes['embed_dim']} | {spread(ours)} |"
    if bits:
        best = min(bits, key=lambda name: statistics.mean(bits[name]))
        difference = statistics.mean(ours) / statistics.mean(bits[best]) - 1
        row += f" {best} | {spread(bits[best])} | {difference:+.1%} |"
    else:
        row += " | | |"
    return f"{row} {_range(seconds)} | {_range(others)} |"


def _range(seconds: list[float]) -> str:
    return f"{min(seconds):.1f}-{max(seconds):.1f}" if seconds else ""


if __name__ == "__main__":
    main()
