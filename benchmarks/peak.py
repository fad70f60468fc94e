"""The share of this machine's peak of matrix products that a training step of slm reaches.

    python benchmarks/peak.py [--threads 2] [--seconds 20]

4 layers of 256, windows of 256, batches of 16, vocabulary 8,192. Floating-point operations of a token: 6 for each
parameter of a matrix that multiplies it and 12 x layers x window x width for attention, as if no pair of positions were
masked. The peak is the best of several shapes of `a @ b.T`, those of the model among them, in the same precision,
measured in turn with the steps in the same process.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from common import where

import slm
from slm.metrics.speed import flops_per_token, peak_flops
from slm.training.device import Machine
from slm.training.optimizer import make_optimizer
from slm.training.step import train_step

MODEL = {"embed_dim": 256, "num_heads": 4, "num_layers": 4, "hidden_dim": 1024, "max_seq_len": 256, "vocab_size": 8192}
BATCH = 16
SHAPES = ((2048, 2048, 2048), (4096, 256, 1024), (4096, 1024, 256), (1024, 1024, 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each precision and recipe")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{where()}, {arguments.threads} threads")
    batch = torch.randint(0, MODEL["vocab_size"], (BATCH, MODEL["max_seq_len"] + 1))
    for recipe in ("classic", "modern"):
        settings = slm.settings.layered({"recipe": recipe, **MODEL}, "keyword")
        for precision in ("fp32", "bf16"):
            machine = Machine(torch.device("cpu"), precision, arguments.threads, "")
            torch.manual_seed(0)
            model = slm.LanguageModel(settings.model)
            with_loss, optimizer = slm.WithLoss(model), make_optimizer(model, settings.train, machine)
            flops = flops_per_token(settings.model) * batch[:, :-1].numel()
            peaks, rates = [], []
            end = time.perf_counter() + arguments.seconds
            while time.perf_counter() < end or len(rates) < 3:
                peaks.append(peak_flops(machine.device, precision, SHAPES))
                start = time.perf_counter()
                train_step(
                    with_loss,
                    optimizer,
                    batch[:, :-1],
                    batch[:, 1:],
                    micro_batch_size=BATCH,
                    max_grad_norm=1.0,
                    machine=machine,
                    scaler=machine.grad_scaler(),
                )
                rates.append(flops / (time.perf_counter() - start))
            rates, peaks = rates[1:], peaks[1:]
            shares = [100 * rate / peak for rate, peak in zip(rates, peaks, strict=True)]
            print(
                f"{recipe} {precision}: {statistics.median(rates) / 1e9:.0f} of {statistics.median(peaks) / 1e9:.0f} "
                f"GFLOP/s, share {statistics.median(shares):.1f} % ({min(shares):.1f}-{max(shares):.1f}), "
                f"{batch[:, :-1].numel() * statistics.median(rates) / flops:,.0f} tokens/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
