"""Damages files in thousands of ways and loads them: every outcome must be the content or one clear error.

    python benchmarks/fuzz.py --files 20000 --seed 0 [--jobs 2] [--only 123]

A model, a checkpoint, a config.toml, a tokenizer.json and prepared data are made and then damaged, byte by byte and, in
archives that are whole, inside: pickles with other instructions, sizes that lie, values of other types. Each file is
loaded in a process that may take little more memory than it has and a few seconds. A failure is any exception but
UserError and OSError, a warning, a crash, a file that was changed, code that was run; each is printed with its number,
and --only repeats that one alone. The exit status is 1 if there was one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import multiprocessing
import os
import pickletools
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

import slm
from slm import settings
from slm.cli import generate
from slm.data.shards import open_prepared
from slm.data.tokenizer import byte_tokenizer, make_tokenizer
from slm.model.transformer import LanguageModel
from slm.storage import checkpoint_folder, load_file, save_file
from slm.training.packing import pack_model

SECONDS, MEGABYTES = 10, 512  # that one file may take, beyond what the process has
HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 0.5, 2**31, 2**63 - 1, 2**63, 10**9, 10**30, -(2**200), 1e308, float("nan"), float("inf")),
    *("", "x", "../../canary", "/etc/passwd", "\ud800", "train-00000.bin", "x" * 100_000, "9" * 5000),
    *([], {}, [[]], [0] * 1000, {"x": {}}, {"": None}, {"type": "Split", "pattern": {"Regex": "(a+)+$"}}),
    *({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "Unigram", "vocab": []}),
)
RUN_CODE = b"cposix\nsystem\n(X\x0c\x00\x00\x00touch canarytR"
PROGRAMS = (
    *(RUN_CODE, b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR", b"cbuiltins\nexec\n(X\x01\x00\x00\x001tR"),
    *(b"\x8a\xff" + b"\x7f" * 255, b"\x8b\xff\xff\xff\x7f", b"r\xff\xff\xff\xff", b"(" * 5000, b"]" * 5000, b"0", b"."),
    *(b"\x85" * 100_000, b"h\x00" * 100, b"h\x01\x86" * 60, b"}h\x00h\x00s", b"cos\nsystem\n", b"B\xff\xff\xff\xff"),
    *(b"ctorch._utils\n_rebuild_tensor\n", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"ccollections\nOrderedDict\n)R"),
    *(b"ctorch\nrandn\n(J\xff\xff\xff\x7ftR", b"ctorch._utils\n_rebuild_parameter\n", b"2h\x00a", b"Vx\n", b"I9\n"),
)


def make_files(folder: Path) -> None:
    """Writes what will be damaged: files of every kind that slm reads, all of them good."""
    text = "the cat sees a small dog and finds the old house by the river\n" * 200
    (folder / "text.txt").write_text(text)
    slm.prepare(folder / "text.txt", tokenizer="bpe", vocab_size=280, out=folder / "prepared")
    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": 257, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "hidden_dim": 16, "max_seq_len": 16}
    asked = {"data": ["text.txt"], **sizes}
    origin = {"asked": asked, "resolved": {**asked, "epochs": 3}, "made_with": {"slm": "1", "many_documents": True}}
    for name, positions in {"learned.pt": "learned", "rope.pt": "rope"}.items():
        model = LanguageModel(slm.ModelConfig(**sizes, positions=positions, tie_embeddings=positions == "rope"))
        packed = pack_model(model, model.state_dict(), tokenizer, {"step": 3, "val_loss": 2.5})
        save_file(str(folder / name), {**packed, **origin})
    moments = {number: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4, 5).t()} for number in range(3)}
    state = {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1, 2]}]}
    state |= {"random": torch.get_rng_state(), "place": [3, None, "x"]}
    writers = {"state.pt": lambda path: save_file(path, state), "last.pt": lambda path: save_file(path, packed)}
    checkpoint_folder.write(str(folder), 7, writers, {"about": "a test"})
    (folder / "config.toml").write_bytes(settings.write_config(asked, origin["resolved"], origin["made_with"]))
    (folder / "tokenizer.json").write_text(tokenizer.to_json())


def load_model(path: str) -> None:
    run = slm.load(path)
    repr(run), run.step
    run.generate("the cat", max_new_tokens=3, seed=0)


def write_text(path: str) -> None:
    """Lets slm-generate write; SystemExit or a traceback are not among its ways to end."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if generate.main(["--model_dir", path, "--max_new_tokens", "3", "--prompt", "the cat"]):
            raise slm.UserError("told by slm-generate")


def load_checkpoint(path: str) -> None:
    try:
        checkpoint_folder.verify(os.path.dirname(path))
    except slm.UserError:
        if path.endswith(".pt"):  # as if the checksums fitted
            load_file(path)
        raise


def read_settings(path: str) -> None:
    settings.read_table(os.path.dirname(path), "resolved")
    settings.layered({"config": path}, "flag")


def read_tokenizer(path: str) -> None:
    tokenizer = make_tokenizer(path, [], 0)
    tokenizer.to_json()


def read_prepared(path: str) -> None:
    prepared = open_prepared(os.path.dirname(path))
    repr(prepared.about)
    for tokens in (prepared.train, prepared.val):
        assert tokens[0 : len(tokens)].shape == (len(tokens),)


DOORS: dict[str, tuple[Callable[[str], None], ...]] = {
    "learned.pt": (load_model, load_model, load_model, write_text),
    "rope.pt": (load_model,),
    "step-00000007/state.pt": (load_checkpoint,),
    "step-00000007/manifest.json": (load_checkpoint,),
    "config.toml": (read_settings,),
    "tokenizer.json": (read_tokenizer,),
    "prepared/manifest.json": (read_prepared,),
    "prepared/tokenizer.json": (read_prepared,),
    "prepared/train-00000.bin": (read_prepared,),
}
WEIGHTS = (6, 4, 5, 2, 2, 2, 2, 1, 1)
FINE = ("loaded", "UserError", "OSError")


def damage_bytes(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The bytes with one to four accidents: cut, flipped, moved, lost, doubled, mixed with another file's."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        size = len(data)
        start, stop = sorted((draw.randint(0, size), draw.randint(0, size)))
        if draw.random() < 0.5:
            stop = min(start + draw.choice((1, 2, 4, 8, 64)), size)
        other = draw.choice(others)
        part, many = data[start:stop], draw.randbytes(min(stop - start, 64))
        before, after, end = data[:start], data[start:], data[stop:]
        flipped = bytes(byte ^ 1 << draw.randrange(8) for byte in part[:8])
        filled = draw.choice((b"\0", b"\xff", b"\x7f")) * len(part)
        size = draw.randrange(2**64).to_bytes(8, "little")
        lost = [before, after, before + end, b"", before + filled + end, before + flipped + after[len(flipped) :]]
        moved = [end + before + part, data[:stop] + part + end, before + other[start:], other[:start] + after, other]
        wild = [before + many + after[len(many) :], before + size + after[8:], draw.randbytes(1000)]
        data = draw.choice([*lost, *moved, *wild, damage_directory(draw, data)])
    return data


def damage_directory(draw: random.Random, data: bytes) -> bytes:
    """The bytes with a lie in one of the headers of the archive, where they are one."""
    places = [found.start() for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06)", data)]
    at = draw.choice(places or [0]) + draw.randrange(4, 46)
    width = draw.choice((1, 2, 4, 8))
    lie = draw.choice((0, 1, 8, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**63, draw.randrange(len(data) + 1)))
    return data[:at] + (lie % 256**width).to_bytes(width, "little") + data[at + width :]


def damage_value(draw: random.Random, value: Any) -> Any:
    """The value with something hostile somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        changed = damage_value(draw, value[key])
        kept = {name: one for name, one in value.items() if name != key}
        return draw.choice((*[{**value, key: changed}] * 8, kept, {**kept, draw.choice(("x", "\ud800", "")): changed}))
    if isinstance(value, list | tuple) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], damage_value(draw, value[at]), *value[at + draw.randrange(2) :]]
    if isinstance(value, torch.Tensor) and draw.random() < 0.7:
        types = [value.double(), value.int(), value.bool(), value.bfloat16(), value + 0j, value.to_sparse()]
        sizes = [torch.empty(0), torch.ones(()), value.ravel()[::2], value.clone().expand(3, *value.shape)]
        return draw.choice([*types, *sizes, value.to("meta")])
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(damage_value(draw, json.loads(value)))
    if type(value) is int and draw.random() < 0.5:
        return value + draw.choice((-1, 1, 10**6, 10**9, -value, value))
    return draw.choice(HOSTILE)


def damage_json(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    if draw.random() < 0.1:
        return draw.choice((b"[", b'{"a":', b'{"format":"slm checkpoint","x":[')) * draw.choice((100, 100_000))
    return json.dumps(damage_value(draw, json.loads(data))).encode()


def damage_toml(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    lines = data.decode().splitlines()
    at = draw.randrange(len(lines))
    name, equals, value = lines[at].partition("=")
    wild = ["[" * 10_000, "1979-13-01", "'''", "{a=" * 300, "0x" + "f" * 9, ".".join("a" * 9999)]
    hostile = draw.choice([json.dumps(draw.choice(HOSTILE)), json.dumps(draw.choice(HOSTILE)), *wild])
    lines[at] = draw.choice((f"{name}{equals}{hostile}", f"{hostile}{equals}{value}", f"[{name}]", f"[{hostile}]"))
    return "\n".join(lines).encode()


def damage_archive(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """An archive that is whole, with right checksums, in which something is not."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    program = next(name for name in entries if name.endswith("/data.pkl"))
    name = draw.choice((*[program] * 8, *entries))
    content = entries[name]
    entries[name] = damage_program(draw, content) if name == program else damage_bytes(draw, content, others)
    names = {name: name for name in entries}
    if draw.random() < 0.1:
        names[draw.choice(list(entries))] = draw.choice(("../canary", "/canary", "archive/data/../x", program, "x/y"))
    packed = io.BytesIO()
    method = draw.choice((*[zipfile.ZIP_STORED] * 9, zipfile.ZIP_DEFLATED))
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in entries.items():
            archive.writestr(names[name], content)
    return packed.getvalue()


def damage_program(draw: random.Random, program: bytes) -> bytes:
    """A pickle with other instructions or other numbers."""
    places = [place for _, _, place in pickletools.genops(program) if place is not None] + [len(program)]
    # From the end on, so that the places before it stay.
    for index in sorted(draw.sample(range(len(places) - 1), draw.choice((1, 1, 2, 3))), reverse=True):
        start, stop = places[index], places[index + 1]
        code, rest = program[start:stop], program[stop:]
        other = draw.randrange(len(places) - 1)
        hostile, random_code = draw.choice(PROGRAMS), bytes([draw.randrange(256)]) + code[1:]
        moved = [b"", code * 2, hostile, hostile + code, random_code, program[places[other] : places[other + 1]]]
        numbers = [
            b"J" + draw.randbytes(4),
            b"\x8a\x09" + draw.randbytes(9),
            b"K\x00",
            b"K\x7f",
            code[:1] + b"\xff" * 4,
        ]
        wild = [code[:1] + draw.randbytes(max(len(code) - 1, 0)), draw.randbytes(len(code))]
        program = program[:start] + draw.choice([*moved, *numbers, *wild]) + rest
    return program


def damage_content(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """A file that torch wrote, of values that are not those that slm writes."""
    content = damage_value(draw, torch.load(io.BytesIO(data), weights_only=True))
    packed = io.BytesIO()
    torch.save(content, packed)
    return packed.getvalue()


def damage(draw: random.Random, name: str, data: bytes, others: list[bytes]) -> bytes:
    kinds: dict[str, list[Callable[[random.Random, bytes, list[bytes]], bytes]]] = {
        ".pt": [damage_archive, damage_archive, damage_content],
        ".json": [damage_json, damage_json],
        ".toml": [damage_toml, damage_toml],
        ".bin": [],
    }
    return draw.choice([damage_bytes, *kinds[os.path.splitext(name)[1]]])(draw, data, others)


def try_one(number: int, seed: int, good: Path, folder: Path) -> str:
    """How loading the damaged file of that number ended: "loaded", "UserError", "OSError" or what went wrong."""
    draw = random.Random(f"{seed} {number}")
    name = draw.choices(list(DOORS), WEIGHTS)[0]
    originals = [(good / other).read_bytes() for other in DOORS]
    path = folder / name
    if len(path.parts) > len(folder.parts) + 1:
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree((good / name).parent, path.parent)
    data = damage(draw, name, (good / name).read_bytes(), originals)
    path.write_bytes(data)
    names = sorted(path.parent.iterdir())
    try:
        draw.choice(DOORS[name])(str(path))
        outcome = "loaded"
    except (slm.UserError, OSError) as error:
        outcome = "UserError" if isinstance(error, slm.UserError) else "OSError"
        outcome = outcome if str(error) else "an error without words"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome = f"{type(error).__name__}: {error!s:.200} ({where.filename}:{where.lineno})"
    if path.read_bytes() != data or sorted(path.parent.iterdir()) != names:
        outcome = "the file or its folder was changed"
    return f"{name}: {outcome}"


def work(numbers: Iterable[int], seed: int, good: Path, folder: Path, parent: Connection) -> None:
    """Tries the numbers one after the other and tells each before and after it."""
    os.chdir(folder)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # a panic of Rust is printed before it is caught
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        parent.send((number, None, 0.0, 0))
        signal.alarm(SECONDS)  # ends the process, wherever it is
        start = time.perf_counter()
        outcome = try_one(number, seed, good, folder)
        seconds = time.perf_counter() - start
        signal.alarm(0)
        if list(Path(folder).rglob("canary*")):
            outcome = f"{outcome}, and code was run"
            (folder / "canary").unlink()
        parent.send((number, outcome, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


class Worker:
    """A process that tries numbers, and another one for the rest where one of them killed it."""

    def __init__(self, numbers: list[int], seed: int, good: Path, folder: Path) -> None:
        self.numbers, self.arguments = numbers, (seed, good, folder)
        folder.mkdir()
        self.start()

    def start(self) -> None:
        self.pipe, end = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.get_context("fork").Process(
            target=work, args=(self.numbers, *self.arguments, end)
        )
        self.process.start()
        end.close()

    def receive(self) -> tuple[int, str | None, float, int]:
        """What it tells; of one that died, how. EOFError when all is done."""
        try:
            told: tuple[int, str | None, float, int] = self.pipe.recv()
        except EOFError:
            self.process.join()
            if not self.numbers:
                raise
            number, code = self.numbers.pop(0), self.process.exitcode or 0
            self.start()
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return number, f"the process ended by {name}", float(SECONDS), 0
        if told[1] is not None:
            self.numbers.remove(told[0])
        return told


def run_all(numbers: list[int], seed: int, jobs: int, root: Path) -> int:
    """Tries all numbers, prints failures and figures, and returns the number of failures."""
    good = root / "good"
    good.mkdir()
    make_files(good)
    workers = [Worker(numbers[job::jobs], seed, good, root / str(job)) for job in range(jobs)]
    pipes = {worker.pipe: worker for worker in workers}
    counts: collections.Counter[str] = collections.Counter()
    slowest, largest, failures = 0.0, 0, 0
    while pipes:
        for pipe in wait(list(pipes)):
            worker = pipes.pop(pipe)  # type: ignore[arg-type]
            try:
                number, outcome, seconds, megabytes = worker.receive()
            except EOFError:
                continue
            pipes[worker.pipe] = worker
            if outcome is None:
                continue
            slowest, largest = max(slowest, seconds), max(largest, megabytes)
            fine = outcome.split(": ", 1)[-1] in FINE
            counts[outcome if fine else "failures"] += 1
            failures += not fine
            if not fine:
                print(f"--seed {seed} --only {number}: {outcome}", flush=True)
    for outcome, count in sorted(counts.items()):
        print(f"{count:6}  {outcome}")
    print(f"the slowest took {slowest:.2f} s, the largest process {largest} MB, of which slm and torch are most")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", type=int, help="the number of the one file to try")
    arguments = parser.parse_args()
    numbers = list(range(arguments.files)) if arguments.only is None else [arguments.only]
    torch.set_num_threads(1)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLM_CACHE"] = os.path.join(folder, "cache")
        failures = run_all(numbers, arguments.seed, min(arguments.jobs, len(numbers)), Path(folder))
    print(f"{len(numbers)} files in {time.perf_counter() - start:.0f} s, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
