"""How near the preset of the built-in stories comes to their entropy, and samples to be read, 20 at each temperature.

    python benchmarks/stories.py [--threads 2]

Runs `slm-train --data stories` as a user would, all settings at the preset, and tells: the wall time of the command
(imports, text, tokens, training and evaluations), the model's bits per byte on the validation stories, the yardsticks
of `slm-evaluate`, and the share of the gap between unigram and entropy that the model closes.
No file is needed: the text comes from a grammar in slm.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    import slm

    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {os.cpu_count()} cores", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLM_CACHE"] = str(Path(folder) / "cache")
        command = [str(Path(sys.executable).parent / "slm-train"), "--data", "stories", "--model_dir", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run([*command, "--threads", str(arguments.threads)], check=True)
        seconds = time.perf_counter() - start
        run = slm.load(f"{folder}/run")
        found = slm.evaluate(run)
        beside = {one.name: one.bits_per_byte or math.nan for one in found.yardsticks}
        model = run.metrics["val_bits_per_byte"]
        unigram, entropy = beside["unigram"], beside["entropy of the source"]
        print(f"wall time {seconds:.0f} s, step {run.step}")
        print("bits per byte: " + ", ".join(f"{name} {score:.4f}" for name, score in beside.items()))
        print(f"bits per byte: unigram {unigram:.4f}, model {model:.4f}, entropy {entropy:.4f}")
        print(f"gap closed {100 * (unigram - model) / (unigram - entropy):.1f} %")
        print(f"above the entropy by {100 * (model / entropy - 1):.1f} %")
        for temperature in (0.8, 0.5):  # the default, and what a user would turn to for text without slips
            for seed in range(20):
                text = run.generate("", max_new_tokens=400, temperature=temperature, seed=seed)
                print(f"\ntemperature {temperature}, {seed + 1}. {text}")


if __name__ == "__main__":
    main()
