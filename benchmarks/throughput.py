"""Tokens per second and peak memory at the original's default sizes, against transformers' Trainer and a plain loop.

    pip install transformers accelerate
    python benchmarks/throughput.py [--rounds 5] [--steps 30] [--threads 2] [--results throughput.jsonl]

Vocabulary 10,000, 2 layers of 128, windows of 128, batches of 32, AdamW, no dropout, random tokens; the same
architecture (GPT-2's, output layer of its own) in fp32 and in bf16. In each round, in turn, each in a process of its
own: slm.train_and_evaluate, GPT2LMHeadModel under transformers' Trainer (fused AdamW, no logging, no saving), and a
plain loop (fused AdamW, scaled_dot_product_attention). Tokens per second come from the time between two steps near the
ends of a run, so that no start or evaluation counts; peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from pathlib import Path
from typing import Any

from common import Results, in_new_process, where

VOCAB, LAYERS, WIDTH, HEADS, CONTEXT, BATCH, WARM = 10_000, 2, 128, 4, 128, 32, 5


def windows(steps: int) -> Any:
    import torch

    return torch.randint(0, VOCAB, (BATCH * (steps + 1) * CONTEXT,), generator=torch.Generator().manual_seed(0))


def with_slm(steps: int, precision: str, threads: int) -> float:
    import slm

    times: list[float] = []
    model = slm.LanguageModel(slm.ModelConfig())
    config = slm.TrainConfig(
        max_steps=steps, eval_every=10**6, log_every=1, precision=precision, threads=threads, device="cpu"
    )

    def on_log(record: dict[str, Any]) -> None:
        if "train_loss" in record:
            times.append(time.perf_counter())

    data = slm.TextDataset(windows(steps), CONTEXT)
    slm.train_and_evaluate(model, data, slm.TextDataset(windows(1)[: 4 * CONTEXT], CONTEXT), config, on_log=on_log)
    return (len(times) - WARM) * BATCH * CONTEXT / (times[-1] - times[WARM - 1])


def with_transformers(steps: int, precision: str, threads: int) -> float:
    import tempfile

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(threads)
    sizes = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "vocab_size": VOCAB}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": False, "use_cache": False}
    config = GPT2Config(**sizes, **none, activation_function="gelu")
    model = GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")
    rows = windows(steps).view(-1, CONTEXT)
    data = [{"input_ids": row, "labels": row} for row in rows]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=1e-3,
            weight_decay=0.1,
            optim="adamw_torch_fused",
            bf16=precision == "bf16",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        Trainer(model, arguments, train_dataset=data, callbacks=[Clock()]).train()
    return (len(times) - WARM) * BATCH * CONTEXT / (times[-1] - times[WARM - 1])


def with_plain_loop(steps: int, precision: str, threads: int) -> float:
    import torch
    import torch.nn.functional as F
    from plain_loop import Model

    torch.set_num_threads(threads)
    model = Model(VOCAB, WIDTH, HEADS, LAYERS, CONTEXT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    ids, times = windows(steps), []
    for step in range(steps):
        part = ids[step * BATCH * CONTEXT : (step + 1) * BATCH * CONTEXT + 1]
        x, y = part[:-1].view(BATCH, CONTEXT), part[1:].view(BATCH, CONTEXT)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert math.isfinite(loss.item())
        times.append(time.perf_counter())
    return (len(times) - WARM) * BATCH * CONTEXT / (times[-1] - times[WARM - 1])


WHO = {"slm": with_slm, "transformers": with_transformers, "plain loop": with_plain_loop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, help="file that keeps what was measured, to go on from")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task = json.loads(arguments.task)
        speed = WHO[task["who"]](task["steps"], task["precision"], task["threads"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"tokens_per_second": speed, "peak_mb": peak}))
        return
    results = Results(arguments.results)
    print(f"{where()}, {arguments.threads} threads", flush=True)
    for precision in ("fp32", "bf16"):
        found: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
        for number in range(arguments.rounds):
            for who, measured in found.items():
                task = {"who": who, "steps": arguments.steps, "precision": precision, "threads": arguments.threads}
                key = json.dumps([number, task])
                measured.append(results.get(key, lambda task=task: in_new_process(__file__, task)))
        for who, measured in found.items():
            speeds, peaks = ([one[what] for one in measured] for what in ("tokens_per_second", "peak_mb"))
            ratios = [ours["tokens_per_second"] / speed for ours, speed in zip(found["slm"], speeds, strict=True)]
            memory = statistics.median(one["peak_mb"] for one in found["slm"]) / statistics.median(peaks)
            speed, peak = statistics.median(speeds), statistics.median(peaks)
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) times as fast"
            print(f"{precision} {who:<13} {speed:9,.0f} tokens/s, peak {peak:,.0f} MB; slm is {ratio}, "
                  f"with {memory:.2f} of the memory", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
