"""How soon slm reaches the loss of nanoGPT's CPU recipe on tiny Shakespeare, and what loss in the recipe's time.

    python benchmarks/race.py --data_dir DIR [--seeds 1 2 3 4 5] [--results race.jsonl]

DIR holds tinyshakespeare.txt. For each seed, in turn, each in a process of its own: the recipe (nanogpt_recipe.py, with
1 and 2 threads, of which the faster counts), slm with the same sizes and context (a), with free ones (b), and slm with
as many minutes as the recipe took (c). Seconds are those of training: all after the imports but evaluations, so
reading, tokenizing, planning and timing threads count. Losses are over the whole last tenth, in windows of each
model's own context. The numbers of steps of (a) and (b) were chosen once, on seed 0, as the fewest that reach 1.91.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from common import Results, in_new_process, shakespeare, spread, where

TARGET = 1.91
SAME = {
    "recipe": "modern", "num_layers": 4, "embed_dim": 128, "num_heads": 4, "hidden_dim": 512, "max_seq_len": 64,
    "batch_size": 24, "learning_rate": 0.02, "max_steps": 128,
}  # fmt: skip
FREE = {**SAME, "num_layers": 2, "max_seq_len": 128, "batch_size": 12, "max_steps": 140}


def recipe(path: Path, seed: int, threads: int) -> dict[str, float]:
    import torch
    from nanogpt_recipe import train

    torch.set_num_threads(threads)
    loss, seconds = train(path.read_text(encoding="utf-8"), seed)
    return {"val_loss": loss, "seconds": seconds}


def slm_run(path: Path, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    import slm.run

    ended: list[float] = []
    start = time.perf_counter()
    one_evaluation = {} if "max_minutes" in settings else {"eval_every": 10**6}
    run = slm.train(
        path,
        tokenizer="char",
        seed=seed,
        quiet=True,
        on_log=lambda record: ended.append(time.perf_counter()) if "train_loss" in record else None,
        **one_evaluation,
        **settings,
    )
    chosen = {name: run.resolved[name] for name in ("embed_dim", "num_layers", "max_seq_len", "threads", "precision")}
    whole = time.perf_counter() - start  # of a run with max_minutes, whose evaluations count
    seconds = whole if "max_minutes" in settings else ended[-1] - start
    return {"val_loss": run.metrics["val_loss"], "seconds": seconds, "chosen": chosen}


def task(given: dict[str, Any]) -> dict[str, Any]:
    import torch  # noqa: F401

    path = Path(given["path"])
    if given["who"] == "recipe":
        return recipe(path, given["seed"], given["threads"])
    return slm_run(path, given["seed"], given["settings"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(task(json.loads(arguments.task))))
        return
    path = str(shakespeare(arguments.data_dir))
    results = Results(arguments.results)
    print(where(), flush=True)
    rows: dict[str, list[dict[str, Any]]] = {"recipe": [], "a": [], "b": [], "c": []}

    def measure(name: str, seed: int, **given: Any) -> dict[str, Any]:
        key = json.dumps([name, seed, given])
        found = results.get(key, lambda: in_new_process(__file__, {"path": path, "seed": seed, **given}))
        print(f"seed {seed}  {name:<16} val_loss {found['val_loss']:.4f}  {found['seconds']:6.1f} s  "
              f"{found.get('chosen', '')}", flush=True)  # fmt: skip
        return found

    for seed in arguments.seeds:
        recipes = [measure(f"recipe {n} threads", seed, who="recipe", threads=n) for n in (1, 2)]
        fastest = min(recipes, key=lambda found: found["seconds"])
        rows["recipe"].append(fastest)
        rows["a"].append(measure("(a) same sizes", seed, who="slm", settings=SAME))
        rows["b"].append(measure("(b) free sizes", seed, who="slm", settings=FREE))
        minutes = {"max_minutes": round(fastest["seconds"] / 60, 4)}
        rows["c"].append(measure("(c) same time", seed, who="slm", settings=minutes))
    for name, found in rows.items():
        losses, seconds = ([one[what] for one in found] for what in ("val_loss", "seconds"))
        ratios = [one["seconds"] / other["seconds"] for one, other in zip(rows["recipe"], found, strict=True)]
        faster = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"{name:<7} val_loss {spread(losses)}  seconds {spread(seconds, 1)}  times faster {faster}")


if __name__ == "__main__":
    main()
