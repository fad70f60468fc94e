"""The docs: each command of "Your data" trains, its Python runs, and each promise of "Never lose a run" has a test."""

from __future__ import annotations

import gzip
import io
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, make_text

import slm
from slm.cli import evaluate as cli_evaluate
from slm.cli import explain as cli_explain
from slm.cli import generate as cli_generate
from slm.cli import prepare as cli_prepare
from slm.cli import report as cli_report
from slm.cli import train as cli_train

PAGE = (Path(__file__).parent.parent / "docs" / "your-data.md").read_text(encoding="utf-8").replace("\\|", "|")
TRAIN = re.findall(r"`(slm-train [^`]*)`", PAGE)
FLAGS = [f"--{name}={value}" for name, value in SMALL.items() if name not in ("quiet", "tokenizer", "max_steps")]
SHORT = [*FLAGS, "--max_steps=2", "--quiet", "--model_dir=run"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that the page names, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    text = make_text(400)
    rows = [line for line in text.splitlines() if line]
    for name in ("book.txt", "one.txt", "two.txt", "train.txt", "val.txt", "notes/a.md", "notes/b/c.md"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    Path("book.txt.gz").write_bytes(gzip.compress(text.encode()))
    Path("stories.txt").write_text("\n<|endoftext|>\n".join(rows))
    Path("posts.jsonl").write_text("".join(json.dumps({"id": 1, "body": row}) + "\n" for row in rows))
    Path("reviews.csv").write_text("stars,review\n" + "".join(f'5,"{row}, ""so"""\n' for row in rows))
    Path("messages.tsv").write_text("".join(f'ham\t"{row}\n' for row in rows))
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"body": rows}), "posts.parquet")
    ids = np.frombuffer(text.encode(), np.uint8)
    np.save("train.npy", ids)
    np.save("val.npy", ids[:200])
    ids.astype("<u2").tofile("train.bin")
    ids.astype("<u4").tofile("train.u32.bin")
    Path("tokenizer.json").write_text(slm.make_tokenizer("bpe", [text], 300).to_json())


def run(command: str) -> int:
    """The exit code of a command of the page, with sizes that train in a moment."""
    program, *arguments = shlex.split(command.split("  #")[0])
    if program == "slm-prepare":
        return cli_prepare.main([*arguments, "--quiet"] if "--data" in arguments else arguments)
    vocabulary = [] if "--vocab_size" in arguments or ".bin" in command or ".npy" in command else ["--vocab_size=300"]
    return cli_train.main([*arguments, *vocabulary, *SHORT])


def test_the_page_has_a_command_for_each_format() -> None:
    for ending in (".txt", ".md", ".gz", ".jsonl", ".csv", ".tsv", ".parquet", ".npy", ".bin", ".u32.bin"):
        assert any(ending in command for command in TRAIN), ending


@pytest.mark.usefixtures("files")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("command", [one for one in TRAIN if not re.search("stories$|python$", one)])
def test_each_command_of_the_page_trains(command: str) -> None:
    assert run(command) == 0
    assert Path("run/model.pt").exists()


@pytest.mark.usefixtures("files")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_commands_on_preparing_work_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    block = next(block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if "slm-prepare" in block)
    for line in block.splitlines():
        assert run(line.replace("--data book.txt", "--data book.txt --vocab_size 300")) == 0
    assert "1 removed" in capsys.readouterr().out


@pytest.mark.usefixtures("files")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_python_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    train, short = slm.train, {**SMALL, "max_steps": 2}
    del short["tokenizer"]

    def train_shortly(data: Any, **settings: Any) -> slm.Run:
        return train(data, **{**short, **settings})

    monkeypatch.setattr(slm, "train", train_shortly)
    names: dict[str, Any] = {
        "slm": slm,
        "Path": Path,
        "dataset": {"text": ["one document", "and another one"] * 20},
        "token_ids": torch.arange(200) % 50,
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        if "class Reversed" not in block:  # a longer training
            exec(block, names)
    assert Path("runs/ids/model.pt").exists()


def test_each_promise_names_a_test_that_exists() -> None:
    page = (Path(__file__).parent.parent / "docs" / "never-lose-a-run.md").read_text(encoding="utf-8")
    table = page.split("## Promises")[1].split("## A checkpoint")[0]
    promises = [line for line in table.splitlines() if line.startswith("| ") and "`test_" in line]
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(promises) >= 30
    assert len(promises) == len(table.strip().splitlines()) - 2
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []


@pytest.mark.usefixtures("files")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_that_the_page_on_writing_and_evaluating_shows_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the dog\n"))
    page = (Path(__file__).parent.parent / "docs" / "write-and-evaluate.md").read_text(encoding="utf-8")
    for name in ("first", "second"):
        run_of = slm.train(Path("book.txt"), **SMALL, model_dir=f"runs/{name}")
    Path("other.txt").write_text(make_text(200))
    Path("start.txt").write_text("the cat")
    names: dict[str, Any] = {
        "slm": slm,
        "run": run_of,
        "model": run_of.model,
        "tokens": torch.zeros(2, 3, dtype=torch.long),
    }
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        exec(block.replace("stride=32", "stride=8"), names)
    assert names["new"].shape == (2, 50)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 8
    for command in commands:
        program, *arguments = shlex.split(command.split("  #")[0].replace("--stride 32", "--stride 8"))
        assert {"slm-generate": cli_generate, "slm-evaluate": cli_evaluate}[program].main(arguments) == 0
    told = capsys.readouterr().out
    assert "the dog" in told
    assert "be told on" in told  # which of two equal runs is better


class Writer:
    """As much of TensorBoard's SummaryWriter as the page needs."""

    def __init__(self, folder: str) -> None:
        self.scalars: dict[str, list[tuple[float, int]]] = {}
        self.texts: dict[str, list[tuple[str, int]]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.setdefault(name, []).append((float(value), step))

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.setdefault(name, []).append((text, step))

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("files")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_that_the_page_on_seeing_shows_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "see-it-learn.md").read_text(encoding="utf-8")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))  # type: ignore[arg-type]
    Path("my.txt").write_text(make_text(400))
    train = slm.train
    for name in ("first", "second"):
        train(Path("my.txt"), **SMALL, model_dir=f"runs/{name}")
    more = {**SMALL, "sample_every": 1, "max_seq_len": 32}
    monkeypatch.setattr(slm, "train", lambda data, **settings: train(Path(data), **{**more, **settings}))
    names: dict[str, Any] = {"slm": slm}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    writer, run = names["writer"], names["run"]
    records = run.history.records
    for name in ("train_loss", "val_loss", "mfu"):
        assert writer.scalars[name] == [(one[name], one["step"]) for one in records if name in one]
    assert writer.texts["sample"] == [(one["sample"], one["step"]) for one in records if "sample" in one] != []
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    assert np.allclose(names["found"].attention.sum(axis=-1), 1, atol=1e-5)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        program, *arguments = shlex.split(command.split("  #")[0].replace("Once upon a time", "the old dog"))
        assert {"slm-report": cli_report, "slm-explain": cli_explain}[program].main(arguments) == 0
    assert Path("comparison.html").exists()
    assert Path("explain.html").exists()


def test_every_picture_of_the_docs_is_there_small_and_told_in_words() -> None:
    docs = Path(__file__).parent.parent / "docs"
    shown: set[str] = set()
    for place in (docs.parent / "README.md", *docs.glob("*.md")):
        for told, name in re.findall(r"!\[(.*?)\]\((.*?)\)", place.read_text(encoding="utf-8")):
            picture = place.parent / name
            assert len(told) > 10
            assert 1000 < picture.stat().st_size < 150_000, name
            shown.add(picture.name)
    assert shown == {picture.name for picture in (docs / "images").iterdir()} != set()


@pytest.fixture
def examples(files: None) -> None:
    """Every file and run that the page on tasks names, in the working folder."""
    pairs = [(f"{a} {b}", f"{b} {a}") for a in ("one", "two", "six") for b in ("cat", "dog", "cow", "hen")]
    Path("pairs.jsonl").write_text("".join(json.dumps({"question": s, "answer": t}) + "\n" for s, t in pairs))
    for name in ("pairs.tsv", "test.tsv"):
        Path(name).write_text("".join(f"{s}\t{t}\n" for s, t in pairs))
    for part in ("train", "val"):
        for column, language in enumerate(("en", "de")):
            Path(f"{part}.{language}").write_text("".join(f"{pair[column]}\n" for pair in pairs))
    Path("reviews.csv").write_text("stars,review\n" + "".join(f"{1 + t.startswith(chr(99))},{s}\n" for s, t in pairs))
    Path("messages.tsv").write_text("".join(f"{'ham' if 'cat' in s else 'spam'}\t{s}\n" for s, _ in pairs))
    Path("new.txt").write_text(make_text(300))
    slm.train(Path("book.txt"), **{**SMALL, "positions": "rope", "val_fraction": 0.3}, model_dir="runs/first")


@pytest.mark.usefixtures("examples")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_that_the_page_on_tasks_shows_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "fine-tune.md").read_text(encoding="utf-8")
    page = page.partition("## How good, how fast")[0]
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    commands = [*lines, *re.findall(r"\| `(slm-train [^`]*)` \|", page)]
    assert len(commands) == 14
    commands.sort(key=lambda command: not command.startswith("slm-train"))  # each finds what another one trained
    programs = {"slm-train": cli_train, "slm-generate": cli_generate, "slm-evaluate": cli_evaluate}
    kept = ("batch_size", "device", "precision", "threads")
    short = [*(f"--{name}={SMALL[name]}" for name in kept), "--max_steps=2", "--quiet"]
    small = [f"--{name}={SMALL[name]}" for name in ("embed_dim", "num_heads", "num_layers", "hidden_dim")]
    for number, command in enumerate(commands):
        program, *arguments = shlex.split(command.split("  #")[0].replace("--max_minutes 1 ", ""))
        if program == "slm-train":
            arguments = ["stories:20KB" if one == "stories" else one for one in arguments]
            sizes = [] if "--init_from" in arguments else [*small, "--vocab_size=300"]
            folder = [] if "--model_dir" in arguments else [f"--model_dir=run-{number}"]
            arguments += [*sizes, *short, *folder]
        assert programs[program].main(arguments) == 0, command
    assert "BLEU" in capsys.readouterr().out
    train = slm.train
    settings = {name: value for name, value in SMALL.items() if name not in ("tokenizer", "max_seq_len")}
    monkeypatch.setattr(slm, "train", lambda data, **more: train(data, **{**settings, "tokenizer": "char", **more}))
    names: dict[str, Any] = {"slm": slm}
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
