"""Tokens per second of generation, against transformers' generate and a loop without a cache.

    pip install transformers
    python benchmarks/generate.py [--rounds 5] [--new_tokens 512] [--threads 2] [--only 1M 10M] [--results FILE]

Models of 1M (4 layers of 128, vocabulary 2,000), 10M (6 of 320, 8,000) and 124M parameters (12 of 768, 50,257), GPT-2's
architecture with random weights in fp32; new tokens after a prompt of 64, top_k 50, temperature 1, for 1 and for 16
rows. In each round, in turn: slm.generate_tokens, GPT2LMHeadModel.generate (its cache on, the same settings), and
slm.generate_tokens without a cache; the last for few tokens only, whose cost is that of the middle of the text. All in
one process, with a warm-up. Each figure is a median over rounds; ratios are medians of the rounds' ratios.

The limit of a memory-bound model is the time in which its weights can be read once: the speed of reading is measured by
the sum of a tensor of 256 MB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Results, where

SIZES = {"1M": (4, 128, 4, 2000), "10M": (6, 320, 5, 8000), "124M": (12, 768, 12, 50257)}
PROMPT, UNCACHED = 64, {1: 8}  # tokens of the loop without a cache for so many rows; else 2


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(size: str, rows: int, new_tokens: int, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds per token of each way, by round, and of reading all weights once."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import slm

    torch.set_num_threads(threads)
    layers, width, heads, vocab = SIZES[size]
    window = PROMPT + new_tokens
    config = slm.ModelConfig(
        vocab_size=vocab, embed_dim=width, num_heads=heads, num_layers=layers, hidden_dim=4 * width,
        max_seq_len=window, tie_embeddings=True,
    )  # fmt: skip
    ours = slm.LanguageModel(config).eval()
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {"n_positions": window, "n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": vocab}
    theirs = GPT2LMHeadModel._from_config(
        GPT2Config(**sizes, **none, activation_function="gelu"), attn_implementation="sdpa"
    ).eval()
    prompt = torch.randint(0, vocab, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(prompt)

    def with_slm(count: int) -> Any:
        return slm.generate_tokens(ours, prompt, max_new_tokens=count, temperature=1.0, top_k=50, seed=0)

    def with_transformers(count: int) -> Any:
        with torch.inference_mode():
            made = theirs.generate(
                prompt, attention_mask=mask, do_sample=True, top_k=50, temperature=1.0, use_cache=True,
                max_new_tokens=count, min_new_tokens=count,
            )  # fmt: skip
        assert made.shape == (rows, PROMPT + count)

    few = UNCACHED.get(rows, 2)
    middle = torch.randint(0, vocab, (rows, PROMPT + new_tokens // 2 - few // 2))

    def without_cache(count: int) -> Any:
        sampling = {"temperature": 1.0, "top_k": 50, "seed": 0}
        return slm.generate_tokens(ours, middle, max_new_tokens=count, use_cache=False, **sampling)

    counts = {with_slm: new_tokens, with_transformers: new_tokens, without_cache: few}
    found: dict[str, list[float]] = {way.__name__: [] for way in counts}
    for way in counts:
        way(min(few, new_tokens))
    for _ in range(rounds):
        for way, count in counts.items():
            found[way.__name__].append(seconds(lambda way=way, count=count: way(count)) / count)
    numbers = torch.randn(2**26)
    reading = min(seconds(numbers.sum) for _ in range(5)) / numbers.numel()
    return {**found, "limit": reading * ours.config.num_parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new_tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(**json.loads(arguments.task))))
        return
    results = Results(arguments.results, __file__)
    names = {"new_tokens": arguments.new_tokens, "rounds": arguments.rounds, "threads": arguments.threads}
    print(f"{where()}, {arguments.threads} threads", flush=True)
    for rows in arguments.rows:
        for size in arguments.only:
            task = {"size": size, "rows": rows, **names}
            found = results.of_task(task)
            ours, theirs, plain = (found[name] for name in ("with_slm", "with_transformers", "without_cache"))
            speeds = [rows / statistics.median(times) for times in (ours, theirs, plain)]
            ratios = [[other / mine for mine, other in zip(ours, times, strict=True)] for times in (theirs, plain)]
            told = [f"{statistics.median(r):.2f} ({min(r):.2f}-{max(r):.2f})" for r in ratios]
            share = 100 * found["limit"] / statistics.median(ours)
            print(
                f"{size:>4}, {rows:2} rows: slm {speeds[0]:7,.0f} tokens/s ({1000 * statistics.median(ours):.2f} ms a "
                f"step), transformers {speeds[1]:6,.0f}, no cache {speeds[2]:6,.1f}; slm is {told[0]} and {told[1]} "
                f"times as fast; reading the weights once is {share:.0f} % of a step",
                flush=True,
            )


if __name__ == "__main__":
    main()
