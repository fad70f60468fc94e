"""Tokens per second of the data loader, and its share of a training step.

    python benchmarks/loader.py [--threads 1] [--tokens 200000000] [--repetitions 7]

Random ids lie as uint16 in five files of a temporary folder and are read as memory maps, warm: the disk is not
measured. The tokens per second are those of one process on one core, at batches of 32 windows of 256. The share is
that of 12 windows of 64, the time to make a batch over the time of a step of a model of 4 layers of width 128.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from slm import LanguageModel, ModelConfig, TextDataset
from slm.data.batches import Batches
from slm.data.tokens import Tokens
from slm.model import WithLoss

SHARDS, VOCAB_SIZE = 5, 65


def make_shards(folder: Path, num_tokens: int) -> list[np.ndarray]:
    """Memory maps of random ids, num_tokens in all."""
    rng = np.random.default_rng(0)
    maps = []
    for shard in range(SHARDS):
        path = folder / f"{shard}.bin"
        size = num_tokens * (shard + 1) // SHARDS - num_tokens * shard // SHARDS
        rng.integers(0, VOCAB_SIZE, size, dtype=np.uint16).tofile(path)
        maps.append(np.memmap(path, np.uint16, "r"))
    return maps


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def told(name: str, values: list[float], unit: str) -> str:
    """The median and the range of some values, in words."""
    return f"{name}: median {statistics.median(values):.4g} {unit} ({min(values):.4g} to {max(values):.4g})"


def read(batches: Batches, epoch: int, count: int) -> int:
    """The tokens of the first batches of an epoch, all of them read."""
    return sum(tokens.numel() for tokens, _ in islice(batches.epoch(epoch), count))


def make_step(dataset: TextDataset) -> Callable[[], None]:
    """One training step on a batch of 12 windows of 64: forward, backward, AdamW."""
    model = LanguageModel(
        ModelConfig(vocab_size=VOCAB_SIZE, embed_dim=128, num_heads=4, num_layers=4, hidden_dim=512, max_seq_len=64)
    )
    with_loss = WithLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    tokens, targets = next(Batches(dataset, 12, 0).epoch(0))

    def step() -> None:
        optimizer.zero_grad()
        with_loss(tokens, targets).backward()
        optimizer.step()

    return step


def measure_reading(maps: list[np.ndarray], repetitions: int) -> None:
    """Tells how fast a dataset is made and batches of 32 x 256 are read."""
    opening = [1000 * seconds_of(lambda: TextDataset(Tokens(maps), 256)) for _ in range(repetitions)]
    print(told("opening", opening, "ms"))
    for name, start_id in {"shuffled": None, "shuffled, at documents of 65 tokens": 0}.items():
        batches = Batches(TextDataset(Tokens(maps), 256, start_id=start_id), 32, 0)
        count = min(1000, len(batches) - 1)  # the last one may be smaller
        seconds = [seconds_of(partial(read, batches, epoch, count)) for epoch in range(repetitions + 1)][1:]
        rates = [32 * 256 * count / each / 1e6 for each in seconds]
        print(told(f"{name}, 32 x 256", rates, "million tokens/s"), flush=True)


def measure_share(maps: list[np.ndarray], repetitions: int) -> None:
    """Tells how much of the time of training at 12 x 64 goes into making batches."""
    dataset = TextDataset(Tokens(maps), 64)
    batches, step = Batches(dataset, 12, 0), make_step(dataset)
    loads, steps = [], []
    for epoch in range(repetitions):
        loads.append(1000 * seconds_of(partial(read, batches, epoch, 1000)))  # us each
        steps.append(1e6 / 50 * seconds_of(lambda: [step() for _ in range(50)]))
    print(told("a batch of 12 x 64", loads, "us"))
    print(told("a step on it", steps, "us"))
    shares = [100 * load / (load + step) for load, step in zip(loads, steps, strict=True)]
    print(told("the loader's share of training", shares, "%"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the training step")
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    where = f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{where}, numpy {np.__version__}; {arguments.tokens:,} tokens", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        maps = make_shards(Path(folder), arguments.tokens)
        measure_reading(maps, arguments.repetitions)
        measure_share(maps, arguments.repetitions)


if __name__ == "__main__":
    main()
