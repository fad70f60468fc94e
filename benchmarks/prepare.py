"""How fast text becomes token files, how much memory that takes, and how soon training on them starts.

    python benchmarks/prepare.py speed --data_dir DIR [--threads 2]
    python benchmarks/prepare.py large [--gigabytes 2] [--threads 2]

`speed` prepares real text (tiny Shakespeare and the English and German of Multi30k, files below, several times over)
with a ready tokenizer, in turn with a bare `encode_batch_fast` of the `tokenizers` library on the same text and
threads, each in a process of its own. slm's time is all of slm.prepare: reading twice, tokenizing, writing, flushing to
disk. `large` generates a text, prepares it with all defaults, and then starts training on it.

DIR holds tinyshakespeare.txt (github.com/karpathy/char-rnn) and multi30k.train.en.gz, multi30k.train.de.gz
(github.com/multi30k/dataset, data/task1/raw).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHA256 = {
    "tinyshakespeare.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "multi30k.train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "multi30k.train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
}
REPEATS = 4  # of the real text
ROUNDS = 5
PIECE, BATCH = 1 << 14, 64  # characters and pieces in one call of encode_batch_fast, its fastest here


def read_texts(folder: Path) -> list[str]:
    """The real texts, checked."""
    texts = []
    for name, sha256 in SHA256.items():
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SystemExit(f"{folder / name} is not the file with sha256 {sha256}")
        texts.append((gzip.decompress(data) if name.endswith(".gz") else data).decode())
    return texts


def bare(folder: Path) -> float:
    """Seconds that encode_batch_fast alone takes for all texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    pieces = [text[i : i + PIECE] for text in texts for i in range(0, len(text), PIECE)]
    start = time.perf_counter()
    for i in range(0, len(pieces), BATCH):
        tokenizer.encode_batch_fast(pieces[i : i + BATCH], add_special_tokens=False)
    return time.perf_counter() - start


def ours(folder: Path) -> float:
    """Seconds that slm.prepare takes for all texts."""
    import slm

    slm.prepare  # noqa: B018  loads its module
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        slm.prepare(folder.as_posix() + "/*.txt", out=out, tokenizer=folder / "tokenizer.json")
        return time.perf_counter() - start


def speed(data_dir: Path, threads: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = read_texts(data_dir)
        for i in range(REPEATS):
            for j, text in enumerate(texts):
                (folder / f"{i}{j}.txt").write_text(text, encoding="utf-8")
        import slm

        tokenizer = slm.make_tokenizer("bpe", texts, 10_000)
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.glob("*.txt"))
        ratios = []
        for _ in range(ROUNDS):
            seconds = {who: in_process(who, folder, threads) for who in ("bare", "ours")}
            ratios.append(seconds["bare"] / seconds["ours"])
            told = ", ".join(f"{who} {size / 1e6 / s:5.2f} MB/s" for who, s in seconds.items())
            print(f"{size / 1e6:.1f} MB: {told}, ratio {ratios[-1]:.2f}", flush=True)
        print(f"speed of slm.prepare / encode_batch_fast: median {statistics.median(ratios):.2f}")


def in_process(who: str, folder: Path, threads: int) -> float:
    """The seconds that `who` takes in a process of its own."""
    command = [sys.executable, __file__, "one", "--who", who, "--data_dir", str(folder)]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    return float(
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    )


def generate(path: Path, num_bytes: int) -> None:
    """Writes lines of words that are as unequally frequent as those of a language."""
    import numpy as np

    draw = np.random.default_rng(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = np.array(
        ["".join(letters[int(26 * x**2)] for x in draw.random(draw.integers(2, 11))) for _ in range(60_000)]
    )
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            ranks = np.minimum((20 * draw.pareto(0.9, 200_000)).astype(np.int64), len(words) - 1)
            chosen = words[ranks]
            file.write("\n".join(" ".join(chosen[i : i + 12]) for i in range(0, len(chosen), 12)) + "\n")


START = """
import sys, time, torch, torch._dynamo, slm, slm.run  # torch.optim would import torch._dynamo later, in a second
start = time.perf_counter()
def stop():
    print(time.perf_counter() - start)
    raise KeyboardInterrupt
slm.train(sys.argv[1], should_stop=stop, quiet=True, threads=1)
"""


def large(gigabytes: float, threads: int) -> None:
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as name:
        text, out = Path(name) / "large.txt", Path(name) / "prepared"
        generate(text, int(gigabytes * 1e9))
        script = str(Path(sys.executable).parent / "slm-prepare")
        start = time.perf_counter()
        subprocess.run([script, "--data", str(text), "--out", str(out)], check=True, env=environment)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{text.stat().st_size / 1e9:.2f} GB prepared in {seconds:.0f} s, peak memory {peak:.0f} MiB", flush=True)
        for _ in range(3):
            command = [sys.executable, "-c", START, str(out)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"training starts {float(result.stdout):.2f} s after the imports", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "large", "one"))
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--who", choices=("bare", "ours"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "one":
        print(json.dumps({"bare": bare, "ours": ours}[arguments.who](arguments.data_dir)))
        return
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, Python {platform.python_version()}"
    )
    if arguments.what == "large":
        large(arguments.gigabytes, arguments.threads)
    elif arguments.data_dir is None:
        parser.error("speed needs --data_dir")
    else:
        speed(arguments.data_dir, arguments.threads)


if __name__ == "__main__":
    main()
