"""What it costs to see a run: displays, samples, the measured peak and the pages, as shares of a run of a minute or so.

    python benchmarks/seeing.py [--data stories] [--rounds 1]

Each round trains once as in a pipe, once in a pseudo-terminal and once, where nbclient and ipykernel are installed, in
the kernel of a notebook, each in a process of its own with a model_dir. The seconds within each part are summed up on
the clock, those of the terminal's own thread too. The yardsticks, which are measurements and not display, are told
apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import where

PARTS = ("display", "samples", "peak", "pages", "last sample")


def measure(data: str, folder: str) -> dict[str, float]:
    """Seconds of one training in all and within each part."""
    import rich.live

    import slm
    from slm import ending as ending_module
    from slm.display import Display
    from slm.training import device
    from slm.training.samples import Samples
    from slm.training.saving import RunFolder

    spent: Counter[str] = Counter()

    def timed(name: str, function: Callable[..., Any], only_other_threads: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any, **keys: Any) -> Any:
            if only_other_threads and threading.current_thread() is threading.main_thread():
                return function(*arguments, **keys)
            start = time.perf_counter()
            try:
                return function(*arguments, **keys)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    live = Display.live

    @contextmanager
    def live_timed(self: Display, *arguments: Any) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        with live(self, *arguments) as show:
            yield timed("display", show)

    Display.live = live_timed
    rich.live.Live.refresh = timed("display", rich.live.Live.refresh, only_other_threads=True)
    Samples.records = timed("samples", Samples.records)
    RunFolder.write_pages = timed("pages", RunFolder.write_pages)
    device.measured_peak = timed("peak", device.measured_peak)
    slm.Run.generate = timed("last sample", slm.Run.generate)
    ending_module.yardsticks = timed("yardsticks", ending_module.yardsticks)
    start = time.perf_counter()
    slm.train(data, model_dir=folder)
    return {"all": time.perf_counter() - start, **spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="stories")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        data, folder, result = json.loads(arguments.task)
        Path(result).write_text(json.dumps(measure(data, folder)))
        return
    ways = {"pipe": in_pipe, "terminal": in_terminal}
    if importlib.util.find_spec("nbclient") and importlib.util.find_spec("ipykernel"):
        ways["notebook"] = in_notebook
    print(where())
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                task = [arguments.data, os.path.join(folder, "run"), os.path.join(folder, "result.json")]
                way(task)
                found[name].append(json.loads(Path(task[-1]).read_text()))
    for name, runs in found.items():
        shares = [100 * sum(run.get(part, 0.0) for part in PARTS) / run["all"] for run in runs]
        parts = {part: statistics.mean(run.get(part, 0.0) for run in runs) for part in (*PARTS, "yardsticks")}
        told = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
        seconds = statistics.mean(run["all"] for run in runs)
        print(f"{name}: {statistics.mean(shares):.2f} % of {seconds:.1f} s (at most {max(shares):.2f} %); s: {told}")


def in_pipe(task: list[str]) -> None:
    """Runs the task with its output in a pipe."""
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    subprocess.run(command, check=True, stdout=subprocess.PIPE)


def in_terminal(task: list[str]) -> None:
    """Runs the task in a pseudo-terminal, whose output is read and thrown away."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    process = subprocess.Popen(command, stdout=theirs, stdin=theirs, env={**os.environ, "TERM": "xterm-256color"})
    os.close(theirs)
    try:
        while os.read(ours, 65536):
            pass
    except OSError:  # Linux says so when the other end is closed
        pass
    if process.wait():
        raise SystemExit("the training in the terminal failed")


def in_notebook(task: list[str]) -> None:
    """Runs the task in a notebook's kernel."""
    import nbclient
    import nbformat

    lines = (
        "import sys",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        f"sys.argv = ['', '--task', {json.dumps(task)!r}]",
        "import seeing",
        "seeing.main()",
    )
    cell = nbformat.v4.new_code_cell("\n".join(lines))
    nbclient.NotebookClient(nbformat.v4.new_notebook(cells=[cell]), timeout=1200).execute()


if __name__ == "__main__":
    main()
