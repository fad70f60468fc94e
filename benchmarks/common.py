"""What the benchmarks share: results that are kept, so that one can be resumed, and tasks in processes of their own."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm.data.prepared import PreparedData

SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Results:
    """Measurements by name, one JSON object a line; those that the file holds already are not made again."""

    def __init__(self, path: Path | None, script: str = "") -> None:
        """script: the benchmark that `of_task` runs."""
        self.path, self.script = path, script
        lines = path.read_text().splitlines() if path and path.exists() else []
        self.known: dict[str, Any] = dict(json.loads(line) for line in lines)

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """The measurement of that name, made now where it is new."""
        if name not in self.known:
            self.known[name] = measure()
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps([name, self.known[name]]) + "\n")
        return self.known[name]

    def of_task(self, task: dict[str, Any]) -> Any:
        """What the script finds for that task, in a process of its own."""
        return self.get(json.dumps(task), lambda: in_new_process(self.script, task))


def in_new_process(script: str, task: dict[str, Any], **environment: str) -> Any:
    """What `script --task JSON` prints as its last line, as JSON; other output goes to standard error."""
    command = [sys.executable, script, "--task", json.dumps(task)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
    return json.loads(done.stdout.splitlines()[-1])


def prepared(settings: dict[str, Any]) -> PreparedData:
    """The tokens of some data, as training would read them with these settings."""
    from slm.data.splits import load_data
    from slm.settings import layered

    made = layered(settings, "keyword")
    return load_data(
        made.data,
        None,
        vocab_size=made.model.vocab_size,
        max_seq_len=made.model.max_seq_len,
        seed=0,
        recheck=False,
        asked=(),
        on_progress=lambda what, done, total: None,
    )


def text_of(corpus: str, data_dir: Path, characters: int | None = None) -> str:
    """The data of a corpus, or of its first characters: a built-in name, or the path of a text."""
    if corpus == "python" and characters is None:
        return "python"
    path = Path(tempfile.gettempdir()) / f"slm-benchmark-{corpus}{f'-{characters}' if characters else ''}.txt"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(_text(corpus, data_dir)[:characters])
        part.replace(path)
    return str(path)


def _text(corpus: str, data_dir: Path) -> str:
    if corpus == "python":
        from slm.data.counts import Counts
        from slm.data.sources import read_corpus

        return "".join(chunk.text for chunk in read_corpus(("python",)).chunks(0, Counts()))
    if corpus == "multi30k":
        return gzip.decompress((data_dir / "multi30k.train.en.gz").read_bytes()).decode()
    rows = (data_dir / "sms_spam.tsv").read_text(errors="replace").splitlines()
    return "\n".join(row.split("\t", 1)[1] for row in rows if "\t" in row)


def where() -> str:
    """The machine and the day, in words."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((s.split(":")[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")), cpu)
    return f"{cpu}, {os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%-d %B %Y')}"


def spread(values: list[float], digits: int = 4) -> str:
    """Mean, standard deviation and range in words."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    low, high = min(values), max(values)
    return f"{statistics.mean(values):.{digits}f} +- {deviation:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def shakespeare(data_dir: Path) -> Path:
    """The path of tinyshakespeare.txt, whose content is checked."""
    path = data_dir / "tinyshakespeare.txt"
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHAKESPEARE:
        raise SystemExit(f"{path} is not the file with sha256 {SHAKESPEARE} (github.com/karpathy/char-rnn)")
    return path
