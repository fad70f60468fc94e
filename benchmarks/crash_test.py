"""Kills trainings at random moments, goes on with each until it is finished, and compares it with an unbroken one.

    python benchmarks/crash_test.py --kills 200 --stops 20 --full_disks 5 [--seed 0] [--jobs 2]

Each training is a process of its own that runs `slm-train` on a small text, with dropout, so that random numbers
count. Kills are SIGKILL, half of them while a file is being written. After each one every file under a final name must
load and no checkpoint may be lost; at the end all tensors, counters, random states and lines of metrics.jsonl must be
those of the unbroken run, timing aside. The same is done with SIGTERM and SIGINT, whose exit codes must be 143 and 130,
and, where a small disk can be mounted (as root, on Linux), with a disk that is full for a while or to the end. The exit
status is 1 if anything failed; what failed is left in a folder that is named.

A process that is killed loses nothing that it has handed to the system, so none of this shows whether bytes survive a
power cut. For that, slm flushes each file before its rename and each folder after it, which only cutting power tests.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # the first optimizer would import it, for a second, in each of the processes

import slm
from slm.cli import train
from slm.settings import read_table
from slm.storage import checkpoint_folder, load_file
from slm.training.resume import CHECKPOINTS, CONFIG, METRICS, MODEL
from slm.verify import first_difference, kept_by

SETTINGS = (
    "--tokenizer char --embed_dim 48 --num_heads 4 --num_layers 2 --hidden_dim 96 --max_seq_len 32 --dropout 0.1 "
    "--batch_size 8 --learning_rate 0.03 --schedule constant --epochs 5 --eval_every 7 --log_every 5 --save_every 5 "
    "--keep_last 2 --sample_every 3 --device cpu --precision fp32 --threads 1"
)
TEXT, CHARACTERS = "text.txt", 9000
SAVE_SECONDS = 0.02  # about what writing a checkpoint takes
LONGEST_SECONDS = 120  # that a training may take
DISK_MEGABYTES = 8
FULL = "the disk is full"
STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130}  # and their exit codes
SAVING = "while a checkpoint was written", "while model.pt, metrics.jsonl or config.toml was written"
REMOVING, STARTING, BETWEEN = "while a checkpoint was removed", "before the first step", "between saves"
HITS = (*SAVING, REMOVING, STARTING, BETWEEN)
FINISHED = "which finished at step"  # what the next start is told where a kill came after the last checkpoint


class Failure(Exception):
    """A promise that was not kept, in words."""


class Task(NamedTuple):
    """What one worker does: its part of the kills or stops, drawn by the seed, with files in the folder."""

    folder: Path
    seed: str
    hits: int
    expected: dict[str, Any]  # contents of the unbroken run
    seconds: float  # that the unbroken run took


class Training:
    """A process that trains in a folder as slm-train does, on the text above it; hold: it never ends a save."""

    def __init__(self, folder: Path, *, hold: bool = False) -> None:
        self.folder, self.root = folder, next(one for one in folder.parents if (one / TEXT).exists())
        self.log = self.root / f"{folder.relative_to(self.root)}.log".replace(os.sep, "-")  # not on a small disk
        self.code: int | None = None
        self.left_before = temporaries(folder)
        self.log.write_text("")
        self.pid = os.fork()
        if not self.pid:
            code = STOPS[signal.SIGINT]  # of Ctrl-C before slm-train listens to it
            try:
                code = self._run(hold)
            finally:
                os._exit(code)

    def _run(self, hold: bool) -> int:
        output = os.open(self.log, os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.alarm(LONGEST_SECONDS)  # ends the process, wherever it is
        if hold:
            checkpoint_folder.write = lambda *_: time.sleep(LONGEST_SECONDS)  # type: ignore[assignment]
        try:
            return train.main([*SETTINGS.split(), "--data", str(self.root / TEXT), "--model_dir", str(self.folder)])
        except SystemExit as end:
            return int(end.code or 0)
        except Exception:
            traceback.print_exc()
            return 1

    @property
    def told(self) -> str:
        """What it printed."""
        return self.log.read_text()

    @property
    def has_begun(self) -> bool:
        """True once it has the folder and its settings, just before the first step."""
        return "saved in" in self.told

    def is_saving(self) -> set[str]:
        """The files and checkpoints that have their temporary names."""
        return temporaries(self.folder) - self.left_before

    def wait(self, until: Callable[[], object] = lambda: False) -> int | None:
        """The exit code once the process has ended, -9 after SIGKILL and so on; None where `until` came first."""
        while self.code is None and not until():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            time.sleep(0.0002)
        return self.code

    def wait_for_seconds(self, seconds: float) -> int | None:
        """What `wait` gives, after so long at most."""
        end = time.monotonic() + seconds
        return self.wait(lambda: time.monotonic() >= end)

    def send(self, number: int) -> int | None:
        """The exit code after a signal that ends it."""
        if self.code is None:
            os.kill(self.pid, number)
        return self.wait()


def temporaries(folder: Path) -> set[str]:
    """The paths of files and checkpoints that are being written, or were when a process was killed."""
    return {str(path) for parent in (folder, folder / CHECKPOINTS) for path in parent.glob(".slm-*.part")}


def check_files(folder: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none, once every file under a final name was loaded."""
    steps = checkpoint_folder.steps_of(path.name for path in folder.glob(f"{CHECKPOINTS}/*"))
    paths = {step: folder / CHECKPOINTS / checkpoint_folder.name_of(step) for step in steps}
    whole = [step for step in steps if (paths[step] / checkpoint_folder.MANIFEST).exists()]
    try:
        for step in whole:
            for name in checkpoint_folder.verify(str(paths[step]))["files"]:
                if name != METRICS:
                    load_file(str(paths[step] / name))
        if (folder / MODEL).exists():
            slm.load(folder)
        if (folder / CONFIG).exists():
            read_table(str(folder), "resolved")
        if (folder / METRICS).exists():
            for line in (folder / METRICS).read_text().split("\n")[:-1]:  # the last one may be cut
                json.loads(line)
    except (ValueError, OSError) as error:
        raise Failure(f"{folder}: a file does not load: {error}") from error
    if steps[:1] != whole[:1]:
        raise Failure(f"{folder}: the newest checkpoint is not whole: of {steps}, {whole} are")
    return whole[0] if whole else 0


def contents(folder: Path) -> dict[str, Any]:
    """All that must be the same in a finished run, however often it was killed, and times."""
    _, manifest, _ = checkpoint_folder.newest(str(folder / CHECKPOINTS))
    manifest["files"] = sorted(manifest["files"])  # a time with more digits makes a file longer
    return {**kept_by(str(folder)), CONFIG: (folder / CONFIG).read_text(), "manifest": manifest}


def check_end(training: Training, task: Task) -> None:
    """Returns when a training has ended as the unbroken one did and left nothing else; otherwise raises Failure."""
    folder = training.folder
    if training.wait() and FINISHED not in training.told:
        raise Failure(f"{folder}: exit code {training.code}:\n{training.told}")
    if difference := first_difference(task.expected, contents(folder)):
        raise Failure(f"{folder}: not the unbroken run: {difference}")
    if not training.code and (left := temporaries(folder)):
        raise Failure(f"{folder}: temporary files of killed trainings were left: {sorted(left)}")
    shutil.rmtree(folder)


def kill(training: Training, draw: random.Random, seconds: float, *, in_a_save: bool) -> str | None:
    """Where in its life the training was killed; None where it came to its end before."""
    training.wait_for_seconds(draw.uniform(0, seconds))
    if in_a_save:
        training.wait(training.is_saving)
        training.wait_for_seconds(draw.random() * SAVE_SECONDS)
    if training.send(signal.SIGKILL) != -signal.SIGKILL:
        return None
    if new := training.is_saving():
        return SAVING[0] if any(CHECKPOINTS in name for name in new) else SAVING[1]
    if not all((step / checkpoint_folder.MANIFEST).exists() for step in training.folder.glob(f"{CHECKPOINTS}/step-*")):
        return REMOVING
    return BETWEEN if training.has_begun else STARTING


def run_killed(task: Task) -> collections.Counter[str]:
    """Where the kills hit; trainings are killed and begun again until enough were."""
    draw, counts = random.Random(task.seed), collections.Counter[str]()
    task.folder.mkdir()
    while sum(counts[name] for name in HITS) < task.hits:
        folder, step = task.folder / f"run-{counts['runs']}", 0
        while True:
            training = Training(folder)
            in_a_save = sum(counts[name] for name in SAVING) * 2 <= sum(counts[name] for name in HITS)
            where = kill(training, draw, task.seconds / 2, in_a_save=in_a_save)
            if where is None:
                break
            counts[where] += 1
            before, step = step, check_files(folder)
            if step < before:
                raise Failure(f"{folder}: a kill {where} took the checkpoint of step {before} away; {step} is left")
        check_end(training, task)
        counts["runs"] += 1
    return counts


def run_stopped(task: Task) -> collections.Counter[str]:
    """How often SIGTERM and SIGINT ended a training that went on later, and a second signal one that was saving."""
    draw, counts = random.Random(task.seed), collections.Counter[str]()
    task.folder.mkdir()
    while counts["stopped"] < task.hits:
        folder = task.folder / f"run-{counts['runs']}"
        while True:
            training = Training(folder)
            number = draw.choice(list(STOPS))
            training.wait_for_seconds(draw.uniform(0, task.seconds / 2))
            code = training.send(number)
            if code == 0 or FINISHED in training.told:
                break
            # The system itself ends a process that has only just begun.
            if code not in (STOPS[number], -number):
                raise Failure(f"{folder}: {number.name} gave exit code {code}:\n{training.told}")
            check_files(folder)
            counts["stopped"] += 1
        check_end(training, task)
        counts["runs"] += 1
    for number, code in STOPS.items():
        training = Training(task.folder / number.name, hold=True)
        training.wait(lambda training=training: "  loss " in training.told)  # type: ignore[misc]
        os.kill(training.pid, number)
        training.wait(lambda training=training: "once more" in training.told)  # type: ignore[misc]
        if training.wait_for_seconds(0.2) is not None or training.send(number) != code:
            raise Failure(f"a second {number.name} did not stop a save at once: {training.code}:\n{training.told}")
        counts["stopped at once"] += 1
    return counts


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """Yields whether a disk of a few megabytes is mounted at the place."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(place)]
    is_there = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield is_there
    finally:
        if is_there:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(filler: Path) -> bool:
    """True once a file takes all the space that there is."""
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return True


def fill_up(training: Training, draw: random.Random, seconds: float) -> Path:
    """The file that takes all the space, from a random moment after the first checkpoint on until that is noticed."""
    filler = training.folder.parent / "filler"
    training.wait(lambda: any((training.folder / CHECKPOINTS).glob("step-*")))
    training.wait_for_seconds(draw.uniform(0, seconds / 3))
    if training.wait(lambda: fill(filler) and FULL in training.told) is not None:
        raise Failure(f"{training.folder}: nothing was told of a full disk:\n{training.told}")
    return filler


def run_full_for_a_while(folder: Path, draw: random.Random, task: Task) -> None:
    """A training whose disk is full for some time in its middle."""
    training = Training(folder)
    filler = fill_up(training, draw, task.seconds)
    os.kill(training.pid, signal.SIGSTOP)
    try:
        check_files(folder)
    finally:
        os.kill(training.pid, signal.SIGCONT)
    training.wait_for_seconds(draw.uniform(0, task.seconds / 10))
    filler.unlink()
    check_end(training, task)
    if training.told.count(FULL) > len((CHECKPOINTS, MODEL, METRICS)):  # each of which is told of
        raise Failure(f"{folder}: too many warnings:\n{training.told}")


def run_full_to_the_end(folder: Path, draw: random.Random, task: Task) -> None:
    """A training that ends without space, and the same command before and after some is made."""
    training = Training(folder)
    filler = fill_up(training, draw, task.seconds)
    training.wait(lambda: not fill(filler))
    for go_on in (True, False):
        if training.wait() != 2 or FULL not in training.told:
            raise Failure(f"{folder}: exit code {training.code} on a full disk:\n{training.told}")
        check_files(folder)
        training = Training(folder) if go_on else training
    filler.unlink()
    check_end(Training(folder), task)


def run_on_small_disks(task: Task) -> collections.Counter[str]:
    """How often a disk was full, if one can be mounted."""
    draw, counts = random.Random(task.seed), collections.Counter[str]()
    task.folder.mkdir()
    for number in range(task.hits):
        for name, run in {"for a while": run_full_for_a_while, "to the end": run_full_to_the_end}.items():
            place = task.folder / f"{name.replace(' ', '-')}-{number}"
            with small_disk(place) as is_there:
                if not is_there:
                    return collections.Counter({"no disk": 1})
                run(place / "run", draw, task)
                counts[name] += 1
    return counts


def work(part: tuple[Callable[[Task], collections.Counter[str]], Task]) -> collections.Counter[str] | str:
    """What a part of the benchmark counted, or how it failed."""
    run, task = part
    try:
        return run(task)
    except Exception as error:
        words = str(error) if isinstance(error, Failure) else traceback.format_exc()
        return f"{run.__name__}, seed {task.seed!r}: {words}"


def run_all(folder: Path, asked: argparse.Namespace) -> list[str]:
    """What failed, once the figures are printed."""
    start = time.perf_counter()
    first = Training(folder / "unbroken")
    if first.wait():
        raise SystemExit(first.told)
    seconds, expected = time.perf_counter() - start, contents(first.folder)
    print(f"the unbroken run: {expected['manifest']['step']} steps in {seconds:.1f} s", flush=True)
    parts = [(run_killed, -(-asked.kills // asked.jobs))] * asked.jobs
    parts += [(run_stopped, asked.stops), (run_on_small_disks, asked.full_disks)]
    tasks = [
        (run, Task(folder / f"part-{n}", f"{asked.seed} {n}", hits, expected, seconds))
        for n, (run, hits) in enumerate(parts)
    ]
    counts, failures = collections.Counter[str](), []
    with multiprocessing.get_context("fork").Pool(asked.jobs) as pool:
        for result in pool.imap(work, tasks, chunksize=1):
            if isinstance(result, str):
                failures.append(result)
            else:
                counts += result
    print(f"{sum(counts[name] for name in HITS)} kills hit a living training:")
    for name in HITS:
        print(f"{counts[name]:6}  {name}")
    print(f"{counts['stopped']} trainings were ended by SIGTERM or SIGINT, {counts['stopped at once']} by a second one")
    disks = f"full for a while in {counts['for a while']} trainings, to the end in {counts['to the end']}"
    print("full disks were left out: mounting one takes root" if counts["no disk"] else f"disks were {disks}")
    print(f"{counts['runs']} runs were gone on with to their end and equal the unbroken one")
    print("not shown by this: that flushed bytes survive a power cut, for a kill takes nothing from the system")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"--kills": 200, "--stops": 20, "--full_disks": 5, "--seed": 0, "--jobs": 2}.items():
        parser.add_argument(name, type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # and none to lose when a process forks
    folder, start = Path(tempfile.mkdtemp(prefix="crash-test-")), time.perf_counter()
    (folder / TEXT).write_text("".join(random.Random(0).choices("aaaabbbccd \n", k=CHARACTERS)))
    os.environ["SLM_CACHE"] = str(folder / "cache")
    failures = run_all(folder, arguments)
    for failure in failures:
        print(f"FAILED: {failure}")
    seconds = time.perf_counter() - start
    print(f"{len(failures)} failures in {seconds:.0f} s on {platform.processor() or platform.machine()}", flush=True)
    if failures:
        print(f"the files are in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
