"""Whether --threads auto finds the fastest number of threads, on an idle machine and beside a busy process.

    python benchmarks/threads.py [--rounds 3]

Each situation, round and choice is a process of its own: a training of `--seconds` at 4 layers of 128, windows of 64,
batches of 12, with --threads 1, 2 (and so on, up to all cores) and auto, in turn. Told is the speed of each fixed
number, that of auto with the time for choosing counted, and the ratio of auto to the best fixed number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from common import in_new_process, where


def steps_in(seconds: float, threads: int | str, precision: str) -> dict[str, Any]:
    """The steps of a training of so many seconds, and the seconds that it took."""
    import torch

    import slm

    torch.manual_seed(0)
    config = slm.ModelConfig(vocab_size=65, num_layers=4, max_seq_len=64)
    data = slm.TextDataset(torch.randint(0, 65, (200_000,)), 64)
    begin = time.perf_counter()
    history = slm.train_and_evaluate(
        slm.LanguageModel(config),
        data,
        slm.TextDataset(torch.randint(0, 65, (130,)), 64),
        slm.TrainConfig(
            batch_size=12, max_steps=10**6, eval_every=10**6, threads=threads, precision=precision, device="cpu"
        ),
        should_stop=lambda: time.perf_counter() - begin > seconds,
    )
    return {"steps": history.step, "seconds": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(steps_in(**json.loads(arguments.task))))
        return
    import torch

    from slm.training.tuning import thread_counts

    counts = thread_counts(torch.get_num_threads())
    print(where(), flush=True)
    for precision in ("fp32", "auto"):
        for busy in (0, 1):
            speeds: dict[int | str, list[float]] = {count: [] for count in (*counts, "auto")}
            for _ in range(arguments.rounds):
                for threads, measured in speeds.items():
                    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
                    task = {"seconds": arguments.seconds, "threads": threads, "precision": precision}
                    try:
                        found = in_new_process(__file__, task)
                    finally:
                        for other in others:
                            other.kill()
                    measured.append(found["steps"] / found["seconds"])
            medians = {threads: statistics.median(measured) for threads, measured in speeds.items()}
            best = max(medians[count] for count in counts)
            told = ", ".join(f"{threads}: {speed:.1f}" for threads, speed in medians.items())
            print(f"{precision}, {busy} busy processes: steps/s with threads {told}; "
                  f"auto takes {best / medians['auto']:.2f} times the time of the best", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
