"""Validation loss and wall time on tiny Shakespeare by characters, against the same loop written plainly.

    python benchmarks/shakespeare.py --data_dir DIR [--seeds 1 2 3] [--threads 1]

DIR holds tinyshakespeare.txt (github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt; sha256 below). The two
train in turn, each in a process of its own. Wall time is all after the imports: reading, tokenizing, 2,000 steps and
20 evaluations over the whole last tenth. The ratio is taken pair by pair, because machines drift.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SIZES = {"embed_dim": 128, "num_heads": 4, "num_layers": 4, "max_seq_len": 64, "batch_size": 12, "max_steps": 2000}


def run_slm(path: Path, seed: int, threads: int) -> float:
    import slm

    run = slm.train(path, tokenizer="char", seed=seed, threads=threads, quiet=True, **SIZES)
    return run.history.evaluations[-1]["val_loss"]


def run_plain(path: Path, seed: int, threads: int) -> float:
    import torch
    from plain_loop import train

    torch.set_num_threads(threads)

    sizes = {"width": 128, "heads": 4, "layers": 4, "context": 64, "batch": 12, "steps": 2000}
    return train(path.read_text(encoding="utf-8"), seed, **sizes)


def measure(who: str, path: Path, seed: int, threads: int) -> tuple[float, float]:
    """The loss and seconds of one run in a process of its own."""
    command = [sys.executable, __file__, "--data_dir", str(path.parent), "--one", who]
    command += ["--seeds", str(seed), "--threads", str(threads)]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result["val_loss"], result["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1, help="1 is steady on a shared machine")
    parser.add_argument("--one", choices=("slm", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.data_dir / "tinyshakespeare.txt"
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{path} is not the file with sha256 {SHA256}")
    if arguments.one:
        import torch

        if arguments.one == "slm":
            import slm.run  # noqa: F401
        start = time.perf_counter()
        loss = {"slm": run_slm, "plain": run_plain}[arguments.one](path, arguments.seeds[0], arguments.threads)
        print(json.dumps({"val_loss": loss, "seconds": time.perf_counter() - start}))
        return
    import torch

    where = f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    print(where, flush=True)
    losses: dict[str, list[float]] = {"slm": [], "plain": []}
    ratios = []
    for seed in arguments.seeds:
        seconds = {}
        for who in losses:
            loss, seconds[who] = measure(who, path, seed, arguments.threads)
            losses[who].append(loss)
            print(f"seed {seed}  {who:<5}  val_loss {loss:.4f}  {seconds[who]:6.1f} s", flush=True)
        ratios.append(seconds["slm"] / seconds["plain"])
    for who, values in losses.items():
        print(f"{who:<5}  mean val_loss {statistics.mean(values):.4f}  ({min(values):.4f} to {max(values):.4f})")
    print(f"wall time slm / plain: {', '.join(f'{r:.2f}' for r in ratios)}; median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
