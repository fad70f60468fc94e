"""How well a translator is that a laptop trains from nothing in some minutes: BLEU against minutes on Multi30k.

    pip install 'slm[translate]'
    python benchmarks/translation.py --data_dir DIR [--minutes 1 3 10 20] [--results FILE] [--picture FILE]

DIR holds multi30k.{train,val,test_2016_flickr}.{en,de}.gz: 29,000 English captions with German translations. For each
number of minutes the command `slm-train --task pairs --max_minutes N` runs as a user would, its sizes those of the
task's preset, and `slm-evaluate` scores the test captions: BLEU and chrF by sacrebleu's defaults (cased), beams of 4.
Told are the seconds of the whole command, too, which after the minutes goes on with the scores on validation captions.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Results, where

PARTS = ("train", "val", "test_2016_flickr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 3.0, 10.0, 20.0])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--results", type=Path, help="A file that keeps measurements, to go on with later.")
    parser.add_argument("--picture", help="Where to draw the curve, a .png or .svg.")
    parser.add_argument("--task", type=json.loads, help="Used by the benchmark itself.")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(_translate(**arguments.task)))
        return
    results = Results(arguments.results, __file__)
    print(f"BLEU on test_2016_flickr, English to German; {where()}\n", flush=True)
    print("minutes   BLEU   chrF  exact match  copy  most similar  parameters   steps  training s  command s")
    curve: dict[float, dict[str, Any]] = {}
    for minutes in arguments.minutes:
        task = {"data_dir": str(arguments.data_dir), "minutes": minutes, "seed": arguments.seed}
        curve[minutes] = one = results.of_task(task)
        copy, similar = one["yardsticks"]
        print(
            f"{minutes:>7g} {one['bleu']:>6.2f} {one['chrf']:>6.2f} {100 * one['exact_match']:>10.2f} % {copy:>5.2f} "
            f"{similar:>13.2f} {one['parameters']:>11,} {one['steps']:>7,} {one['training']:>11.0f} "
            f"{one['command']:>10.0f}",
            flush=True,
        )
    if arguments.picture:
        _draw(curve, arguments.picture)


def _draw(curve: dict[float, dict[str, Any]], path: str) -> None:
    """BLEU against minutes, above what the most similar training caption's translation has."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    minutes, bleu = list(curve), [one["bleu"] for one in curve.values()]
    axes.plot(minutes, bleu, marker="o", color="#0b6e4f")
    for x, y in zip(minutes, bleu, strict=True):
        axes.annotate(f"{y:.1f}", (x, y), textcoords="offset points", xytext=(0, 7), ha="center")
    similar = next(iter(curve.values()))["yardsticks"][1]
    axes.axhline(similar, color="#888888", linestyle="--")
    axes.annotate("most similar training caption's translation", (minutes[0], similar + 0.7), color="#555555")
    axes.set_xscale("log")
    axes.set_xticks(minutes, [f"{x:g}" for x in minutes])
    axes.minorticks_off()
    axes.set(xlabel="minutes of training", ylabel="BLEU on the test captions", ylim=(0, 1.15 * max(bleu)))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def unpacked(data_dir: Path) -> Path:
    """A folder with the plain texts."""
    folder = Path(tempfile.gettempdir()) / "slm-benchmark-translation"
    folder.mkdir(exist_ok=True)
    for part in PARTS:
        for language in ("en", "de"):
            text = gzip.decompress((data_dir / f"multi30k.{part}.{language}.gz").read_bytes())
            (folder / f"{part}.{language}").write_bytes(text)
    return folder


def _translate(data_dir: str, minutes: float, seed: int) -> dict[str, Any]:
    import slm

    texts, programs = unpacked(Path(data_dir)), Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        files = {part: [str(texts / f"{part}.{language}") for language in ("en", "de")] for part in PARTS}
        subprocess.run(
            [programs / "slm-train", "--task", "pairs", "--data", files["train"][0], "--val_data", files["val"][0],
             "--target_file", files["train"][1], files["val"][1], "--max_minutes", str(minutes), "--seed", str(seed),
             "--model_dir", folder],
            check=True, stdout=sys.stderr,
        )  # fmt: skip
        command = time.perf_counter() - start
        test = files["test_2016_flickr"]
        told = subprocess.run(
            [programs / "slm-evaluate", "--model_dir", folder, "--data", test[0], "--target_file", test[1],
             "--output", "json"],
            check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip
        run, found = slm.load(folder), json.loads(told.splitlines()[-1])
        recorded = run.recorded
        return {
            **found["metrics"],
            "yardsticks": [one["metrics"]["bleu"] for one in found["yardsticks"]],
            "parameters": sum(one.numel() for one in run.model.parameters()),
            "steps": recorded.step,
            "training": recorded.seconds,
            "command": command,
        }


if __name__ == "__main__":
    main()
