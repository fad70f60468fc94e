"""What a token costs to train on, and what a machine can do in a second: together they tell how well it is used."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from slm.config import ModelConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Shape = tuple[int, int, int]  # n, k, m: (n, k) @ (k, m)

# From small to large: a machine that is slow in a precision is measured at small ones only.
_CPU_SHAPES: tuple[Shape, ...] = ((256, 256, 256), (512, 512, 512), (1024, 256, 1024), (1024, 1024, 1024))
_GPU_SHAPES: tuple[Shape, ...] = ((1024, 1024, 1024), (4096, 4096, 4096), (8192, 4096, 8192))
_SECONDS = 0.05
_CALLS_ON_GPU = 8  # between two looks at the clock, so that starting them costs nothing that shows
_LEAST_RUNS, _MOST_RUNS = 2, 6  # of each shape; the first one of all warms up


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that each token is multiplied with: all but the table of embeddings and positions."""
    positions = config.max_seq_len * config.embed_dim if config.positions == "learned" else 0
    embeddings = 0 if config.tie_embeddings else config.vocab_size * config.embed_dim
    return config.num_parameters - embeddings - positions


def flops_per_token(config: ModelConfig) -> float:
    """Floating-point operations of a training step for each token (Kaplan et al. 2020, section 2.1, with attention)."""
    return 6.0 * matrix_parameters(config) + 12.0 * config.num_layers * config.max_seq_len * config.embed_dim


def peak_flops(device: torch.device, precision: str, shapes: Iterable[Shape] | None = None) -> float:
    """Floating-point operations per second of the fastest of a few products a @ b.T in that precision, measured now.

    precision: fp32, bf16 or fp16. shapes: (n, k, m) for a (n, k) and b (m, k), each measured; by default some from
    small to large, of which the larger are left out when 0.05 s are over. torch's random streams stay as they are.
    """
    generator = torch.Generator(device).manual_seed(0)  # its own: powers of a GPU depend on what it multiplies
    calls = 1 if device.type == "cpu" else _CALLS_ON_GPU
    ours = _CPU_SHAPES if device.type == "cpu" else _GPU_SHAPES
    small = torch.ones(64, 64, device=device, dtype=DTYPES[precision])
    _products(small, small, 1)  # the first one loads what products need
    best, end = 0.0, time.perf_counter() + _SECONDS
    for n, k, m in ours if shapes is None else shapes:
        if shapes is None and best and time.perf_counter() > end:
            break
        a, b = (
            torch.rand(rows, k, generator=generator, device=device).sub_(0.5).to(DTYPES[precision]) for rows in (n, m)
        )
        share = (end - time.perf_counter()) / 2 if shapes is None else _SECONDS
        best = max(best, 2 * n * k * m * calls / _least_seconds(functools.partial(_products, a, b, calls), share))
    return best


def _products(a: Tensor, b: Tensor, calls: int) -> None:
    for _ in range(calls):
        a @ b.T
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    elif a.device.type == "mps":
        torch.mps.synchronize()


def _least_seconds(run: Callable[[], None], seconds: float) -> float:
    """The time of the fastest of a few runs, which end early once so many seconds are over."""
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < _LEAST_RUNS or (len(taken) < _MOST_RUNS and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        run()
        taken.append(max(time.perf_counter() - start, 1e-9))
    return min(taken)


@functools.cache
def measured_peak(device_name: str, precision: str, threads: int) -> float:
    """`peak_flops` of a device with so many CPU threads, measured once in a process."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return peak_flops(torch.device(device_name), precision)
    finally:
        torch.set_num_threads(before)
