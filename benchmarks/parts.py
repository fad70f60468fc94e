"""What each part of a training step costs in slm's formulation and in the plain one, timed in turn.

    python benchmarks/parts.py [--threads 1] [--rounds 15]

Each row: a part, forward and backward, in fp32 and in bf16: milliseconds of the plain formulation, of slm's, and of
other ones that were tried. The medians of rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from common import where
from torch import Tensor, nn

from slm.model.functions import attend, relu2, rotate
from slm.model.loss import chunked_loss, next_token_loss
from slm.training.muon import Muon

Part = dict[str, Callable[[], Any]]
B, T, H, D, WIDTH = 12, 64, 4, 32, 128


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def both_ways(make: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
    """A forward and a backward."""
    grad = torch.randn_like(make(*inputs))

    def run() -> None:
        make(*inputs).backward(grad)
        for x in inputs:
            x.grad = None

    return run


def loss(dtype: torch.dtype, positions: int, width: int, vocab: int) -> Part:
    features, weight = leaf(1, positions, width, dtype=dtype), leaf(vocab, width, dtype=torch.float32)
    targets = torch.randint(0, vocab, (1, positions))

    def fused(x: Tensor, w: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(x[0], w.to(dtype), targets[0], options=options)

    def products(x: Tensor, w: Tensor) -> Tensor:  # what no formulation can do without
        return (x @ w.to(dtype).t()).sum()

    ways = {
        "plain": lambda x, w: next_token_loss(x @ w.to(dtype).t(), targets),
        "slm": lambda x, w: chunked_loss(x, w.to(dtype), targets),
        "three products alone": products,
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        ways["torch's linear_cross_entropy"] = fused
    return {name: both_ways(way, features, weight) for name, way in ways.items()}


def attention(dtype: torch.dtype, batch: int, length: int, heads: int, size: int) -> Part:
    q, k, v = (leaf(batch, length, heads, size, dtype=dtype) for _ in range(3))

    def turned(way: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, v: way(*(x.transpose(1, 2) for x in (q, k, v)))

    flash = turned(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    return {
        "plain": both_ways(flash, q, k, v),
        "slm": both_ways(turned(lambda q, k, v: attend(q, k, v, None)), q, k, v),
    }


def rotation(dtype: torch.dtype) -> Part:
    x, cos, sin = leaf(B, T, 2 * H, D, dtype=dtype), torch.randn(T, 1, D), torch.randn(T, 1, D)

    def plain(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-second, first), dim=-1) * sin).type_as(x)

    return {"plain": both_ways(plain, x), "slm": both_ways(lambda x: rotate(x, cos, sin), x)}


def activations(dtype: torch.dtype) -> Part:
    x = leaf(B * T, 4 * WIDTH, dtype=dtype)
    return {
        "plain ReLU^2": both_ways(lambda x: F.relu(x).square(), x),
        "slm's ReLU^2": both_ways(relu2, x),
        "GELU, tanh form": both_ways(lambda x: F.gelu(x, approximate="tanh"), x),
        "GELU, exact": both_ways(F.gelu, x),
    }


def norms(dtype: torch.dtype) -> Part:
    x, weight = leaf(B, T, WIDTH, dtype=torch.float32), leaf(WIDTH, dtype=torch.float32)
    return {
        "LayerNorm": both_ways(lambda x, w: F.layer_norm(x, (WIDTH,), w).to(dtype), x, weight),
        "RMSNorm": both_ways(lambda x, w: F.rms_norm(x, (WIDTH,), w).to(dtype), x, weight),
    }


def updates(dtype: torch.dtype) -> Part:
    shapes = [(WIDTH, WIDTH)] * 16 + [(4 * WIDTH, WIDTH)] * 4 + [(WIDTH, 4 * WIDTH)] * 4
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    ours = Muon(parameters, [], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, dtype=dtype)
    theirs = torch.optim.Muon(parameters, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    return {"torch.optim.Muon (bf16)": theirs.step, "slm's Muon": ours.step, "AdamW, fused": adamw.step}


PARTS: dict[str, Callable[[torch.dtype], Part]] = {
    "loss, 4,096 positions x 128 x 10,000": lambda dtype: loss(dtype, 4096, 128, 10_000),
    "loss, 4,096 positions x 256 x 8,192": lambda dtype: loss(dtype, 4096, 256, 8192),
    "loss, 2,048 positions x 256 x 50,257": lambda dtype: loss(dtype, 2048, 256, 50_257),
    "attention, 12 windows of 64, 4 heads of 32": lambda dtype: attention(dtype, 12, 64, 4, 32),
    "attention, 16 windows of 256, 4 heads of 64": lambda dtype: attention(dtype, 16, 256, 4, 64),
    "attention, 2 windows of 1,024, 4 heads of 64": lambda dtype: attention(dtype, 2, 1024, 4, 64),
    "rotation of queries and keys, 12 x 64 x 8 x 32": rotation,
    "activation, 768 x 512": activations,
    "norm, 768 x 128": norms,
    "update of 4 layers of 128": updates,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{where()}, {arguments.threads} threads; milliseconds", flush=True)
    for name, make in PARTS.items():
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            ways = make(dtype)
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(arguments.rounds + 2):
                for way, run in ways.items():
                    start = time.perf_counter()
                    run()
                    taken[way].append(1000 * (time.perf_counter() - start))
            told = ", ".join(f"{way} {statistics.median(times[2:]):.2f}" for way, times in taken.items())
            print(f"{name}, {precision}: {told}", flush=True)


if __name__ == "__main__":
    main()
