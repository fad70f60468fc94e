"""Fits the constants of the law by which --max_minutes chooses sizes (slm/training/budget.py).

    python benchmarks/scaling.py --data_dir DIR --results scaling.jsonl [--jobs 2]

Trains models of several widths for several times on 'python' (built in), half a megabyte of it ("modules"), the English
captions of Multi30k and the messages of SMS spam (DIR holds multi30k.train.en.gz and sms_spam.tsv), each run in a
process of its own on one thread, with as many steps as fit into its CPU seconds, and fits

    bits per byte = E + s x (RATIO / parameters^ALPHA + 1 / tokens^BETA)

in millions, with s of each corpus, E of each corpus and time (for only which width wins in a time matters), and RATIO,
ALPHA, BETA and REPEATS of all; tokens that repeat count less, as REPEATS says. Tiny Shakespeare and the stories are not
looked at: they are the exam.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import Results, prepared, text_of, where
from torch import Tensor

import slm
from slm.settings import layered
from slm.training import budget
from slm.training.deadline import DECAY_SHARE

SECONDS = (30, 120)  # of CPU time
COUNTS = 0.01  # a point that is so far behind the best of its time counts 1/e of it: which one is best matters
WIDTHS = {
    "python": (64, 128, 192, 256),
    "multi30k": (64, 128, 192, 256),
    "sms": (128, 192, 256, 320),
    "modules": (64, 128, 192, 256),
}
VOCABULARY = {"python": 4096, "multi30k": 4096, "sms": 1024, "modules": 1024}
CHARACTERS = 550_000  # of the modules


def settings_of(corpus: str, width: int, seconds: float, tokens: float, data_dir: Path) -> dict[str, Any]:
    """The settings of a run of so many tokens, as a plan would choose them but for the width and its least batch."""
    window = budget.context_for(seconds)
    data = text_of("python", data_dir, CHARACTERS) if corpus == "modules" else text_of(corpus, data_dir)
    basis = {"data": data, "vocab_size": VOCABULARY[corpus], "max_seq_len": window}
    text_tokens = len(prepared(basis).train_dataset.tokens)
    batch_size = max(1, round(budget.batch_tokens_for(tokens, text_tokens) / window))
    rate = budget.learning_rate_for(tokens)
    settings = {
        **basis,
        "recipe": "modern",
        "embed_dim": width,
        "num_heads": budget.heads_for(width),
        "num_layers": budget.layers_for(width),
        "hidden_dim": 4 * width,
        "batch_size": batch_size,
        "learning_rate": rate,
        "schedule": "wsd",
        "threads": 1,
        "device": "cpu",
        "quiet": True,
    }
    crowding = budget.matrix_parameters(layered(settings, "keyword").model) / text_tokens
    steps_of_pass = text_tokens / (batch_size * window)
    return settings | budget.regularization_for(tokens / text_tokens, crowding, steps_of_pass, rate)


def run(corpus: str, seconds: float, width: int, data_dir: str) -> dict[str, float]:
    """Parameters, tokens, tokens of the text and the best bits per byte of one run."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tokens, max_steps = 1e6, 0
    for _ in range(2):  # the settings depend on the tokens that the time allows
        settings = settings_of(corpus, width, seconds, tokens, Path(data_dir))
        max_steps = max(20, round(seconds / seconds_of_step(settings)))
        tokens = max_steps * settings["batch_size"] * settings["max_seq_len"]
    decay_steps = max(1, round(DECAY_SHARE * max_steps))
    trained = slm.train(
        **settings, max_steps=max_steps, decay_steps=decay_steps, eval_every=-(-max_steps // 8), val_tokens=60_000
    )
    return {
        "parameters": budget.matrix_parameters(trained.model.config),
        "tokens": tokens,
        "text": len(prepared(settings).train_dataset.tokens),
        "seconds": seconds,
        "bits_per_byte": trained.metrics["val_bits_per_byte"],
        "best_at": trained.step / max_steps,
    }


def seconds_of_step(settings: dict[str, Any]) -> float:
    """The median CPU seconds of a step."""
    times: list[float] = []
    slm.train(
        **settings,
        max_steps=12,
        log_every=1,
        eval_every=99,
        val_tokens=1000,
        on_log=lambda _: times.append(time.process_time()),
    )
    return statistics.median(b - a for a, b in itertools.pairwise(times[3:-1]))


def fit(points: dict[str, list[dict[str, float]]]) -> tuple[dict[str, float], float]:
    """The constants of all corpora, and the root of the mean squared error in bits per byte."""
    flat = [point for found in points.values() for point in found]
    corpora = torch.tensor([number for number, found in enumerate(points.values()) for _ in found])
    groups = [(corpus, point["seconds"]) for corpus, found in points.items() for point in found]
    known = sorted(set(groups))
    which = torch.tensor([known.index(group) for group in groups])
    parameters, tokens, text, bits = (
        torch.tensor([point[name] for point in flat], dtype=torch.float64)
        for name in ("parameters", "tokens", "text", "bits_per_byte")
    )
    lowest = {group: min(float(b) for b, g in zip(bits, groups, strict=True) if g == group) for group in known}
    behind = bits / torch.tensor([lowest[group] for group in groups]) - 1
    weights = torch.exp(-behind / COUNTS)
    best: tuple[float, dict[str, Tensor], float] | None = None
    for alpha, beta in itertools.product((0.3, 0.6), (0.2, 0.4)):  # several starts, for there are many valleys
        start = {"ratio": -1.5, "alpha": math.log(alpha), "beta": math.log(beta), "repeats": 1.6}
        logs = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in start.items()}
        floors = torch.full((len(known),), 0.8, dtype=torch.float64, requires_grad=True)
        scales = torch.zeros(len(points), dtype=torch.float64, requires_grad=True)

        def errors(logs: Any = logs, floors: Any = floors, scales: Any = scales) -> Tensor:
            law = {name: value.exp() for name, value in logs.items()}
            passes = tokens / text
            again = law["repeats"] * -torch.expm1(-(passes - 1).clamp(min=0) / law["repeats"])
            worth = torch.where(passes > 1, text * (1 + again), tokens)
            terms = law["ratio"] * (parameters / 1e6) ** -law["alpha"] + (worth / 1e6) ** -law["beta"]
            return floors[which] + scales.exp()[corpora] * terms - bits

        optimizer = torch.optim.LBFGS([*logs.values(), floors, scales], max_iter=3000, line_search_fn="strong_wolfe")

        def closure(optimizer: Any = optimizer, errors: Any = errors, logs: Any = logs, start: Any = start) -> Tensor:
            optimizer.zero_grad()
            pull = sum((logs[name] - start[name]) ** 2 for name in start)  # where the points leave it open
            loss = (weights * errors().square()).mean() + 1e-5 * pull
            loss.backward()
            return loss

        optimizer.step(closure)
        loss = closure().item()
        if best is None or loss < best[0]:
            error = (weights * errors().square()).sum() / weights.sum()
            best = loss, {name: value.detach().exp() for name, value in logs.items()}, error.item()
    assert best is not None
    return {name: value.item() for name, value in best[1].items()}, best[2] ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run(**json.loads(arguments.task))))
        return
    results = Results(arguments.results, __file__)
    tasks = [
        {"corpus": corpus, "seconds": seconds, "width": width, "data_dir": str(arguments.data_dir)}
        for corpus, widths in WIDTHS.items()
        for seconds in SECONDS
        for width in widths
    ]
    print(where(), flush=True)

    points: dict[str, list[dict[str, float]]] = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for task, point in zip(tasks, pool.map(results.of_task, tasks), strict=True):
            points.setdefault(task["corpus"], []).append(point)
            size = f"{point['parameters'] / 1e6:.2f} M parameters, {point['tokens'] / 1e6:.2f} M tokens"
            passes = f"{point['tokens'] / point['text']:.1f} passes"
            passes += f": {point['bits_per_byte']:.4f} bits per byte, best after {point['best_at']:.0%}"
            print(f"{task['corpus']:<9} {task['seconds']:4} s, width {task['width']:3}: {size}, {passes}", flush=True)
    constants, error = fit(points)
    print(", ".join(f"{name.upper()} = {value:.3f}" for name, value in constants.items()))
    print(f"root of the weighted mean squared error: {error:.4f} bits per byte")
    for name, value in constants.items():
        setattr(budget, name.upper(), value)
    for corpus, seconds in itertools.product(WIDTHS, SECONDS):
        made = [point for point in points[corpus] if point["seconds"] == seconds]
        chosen = min(made, key=lambda one: budget.predicted_loss(one["parameters"], one["tokens"], one["text"]))
        behind = chosen["bits_per_byte"] / min(one["bits_per_byte"] for one in made) - 1
        print(f"{corpus:<9} {seconds:4} s: {behind:.1%} behind the best with what the law chooses")


if __name__ == "__main__":
    main()
