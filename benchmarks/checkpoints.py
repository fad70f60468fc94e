"""What checkpoints cost: how long training waits for one, and how much longer a run takes with them.

    python benchmarks/checkpoints.py [--threads 1] [--rounds 3]

Two models train on random tokens with and without checkpoints, in turn, on the disk of the temporary folder. A wait is
the time in which the training loop does nothing else: the copy of weights and optimizer. The extra time of a run, by
the number of its checkpoints, holds also what the writing takes from the training in the background. Both are told as a
share of the time at one checkpoint a minute.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch

import slm
from slm.training import saving
from slm.training.loop import Trainer

MODELS = {
    "the defaults": {"batch_size": 8, "max_steps": 120},
    "a larger one": {"embed_dim": 512, "num_layers": 8, "hidden_dim": 2048, "batch_size": 4, "max_steps": 24},
}
CHECKPOINTS = 6  # of a run, beside the last one


def timed(save: Callable[[Trainer], None], waits: list[float]) -> Callable[[Trainer], None]:
    """`save` that notes how long it took, where it saved."""

    def measured(trainer: Trainer) -> None:
        before, start = trainer.folder and trainer.folder.step, time.perf_counter()
        save(trainer)
        if trainer.folder and trainer.folder.step != before:
            waits.append(time.perf_counter() - start)

    return measured


def seconds(settings: dict[str, int], threads: int, *, save_every: int) -> float:
    """The training time of a run, without evaluations."""
    with tempfile.TemporaryDirectory() as folder:
        run = slm.train(
            **settings, model_dir=folder, save_every=save_every, eval_every=10**9, threads=threads, device="cpu",
            precision="fp32", quiet=True,
        )  # fmt: skip
    assert run.history is not None
    return float(run.history.records[-1]["elapsed_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, threads {arguments.threads}")
    warnings.simplefilter("ignore", UserWarning)
    save, saving.SAVE_SECONDS = Trainer.save, 1e9
    for name, settings in MODELS.items():
        waits: list[float] = []
        extra: list[float] = []
        Trainer.save = timed(save, waits)  # type: ignore[method-assign]
        every = settings["max_steps"] // (CHECKPOINTS + 1)
        seconds({**settings, "max_steps": 3}, arguments.threads, save_every=10**9)
        waits.clear()
        for number in range(arguments.rounds):
            without = seconds(settings, arguments.threads, save_every=10**9)
            with_them = seconds(settings, arguments.threads, save_every=every)
            extra.append((with_them - without) / CHECKPOINTS)
            print(f"{name}, round {number + 1}: {without:.1f} s without checkpoints, {with_them:.1f} s with them")
        sizes = {key: value for key, value in settings.items() if key in slm.ModelConfig.__dataclass_fields__}
        parameters = slm.ModelConfig(**sizes).num_parameters
        for what, values in (("a wait", waits), ("the extra time", extra)):
            middle, low, high = statistics.median(values), min(values), max(values)
            print(
                f"{name}, {parameters:,} parameters: {what} of a checkpoint is {1000 * middle:.1f} ms (median of "
                f"{len(values)}, {1000 * low:.1f} to {1000 * high:.1f}): {middle / 60:.2%} at one a minute"
            )
    Trainer.save = save  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
