"""Laws of the model card: the hub reads it, its numbers are the run's, and it tells no folder of the machine."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, make_text
from huggingface_hub import ModelCard  # which tokenizers brings along
from hypothesis import given
from hypothesis import strategies as st

import slm
from slm.metrics.pages.card import model_card
from slm.metrics.recorded import Recorded
from slm.reporting import recorded_of

FAST = SMALL | {"quiet": False, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, all paths of which are given from the root of the disk."""
    here = tmp_path_factory.mktemp("secret-folder")
    corpus = here / "corpus"
    corpus.mkdir()
    for name in ("one.txt", "two.txt"):
        (corpus / name).write_text(make_text(2000))
    (corpus / "bad.txt").write_bytes(b"caf\xe9 " * 40)
    (here / "val_<b>text</b>.txt".replace("/", "")).write_text(make_text(500))
    (val,) = here.glob("val*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (here / "tokenizer.json").write_text(slm.make_tokenizer("char", [make_text(500)], 100).to_json())
        named = FAST | {"tokenizer": here / "tokenizer.json"}
        slm.train(corpus, val_data=val, model_dir=here / "folder", **named)
        slm.train([corpus / "one.txt", corpus / "two.txt"], model_dir=here / "files", **FAST)
        slm.train(str(corpus / "*.txt"), model_dir=here / "glob", **FAST)
        broken = FAST | {"learning_rate": 1e30, "max_grad_norm": 0}
        slm.train(corpus / "one.txt", model_dir=here / "diverged", **broken)
        slm.train([make_text(2000)], model_dir=here / "python", **FAST)
    return here


KINDS = ["folder", "files", "glob", "diverged", "python"]


def read(folder: Path) -> tuple[str, dict[str, Any] | None]:
    """The card, and the run's best evaluation."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    val = [line for line in lines if line.get("val_loss") is not None]
    return (folder / "MODEL_CARD.md").read_text(encoding="utf-8"), min(val, key=lambda v: v["val_loss"], default=None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_reads_the_card_and_finds_the_numbers_of_the_run(runs: Path, kind: str) -> None:
    text, best = read(runs / kind)
    data = ModelCard(text).data
    assert data.to_dict()["library_name"] == "slm"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["slm", "text-generation"]
    found = {one.metric_type: one.metric_value for one in data.eval_results or []}
    if best is None:
        assert kind == "diverged" and found == {}
        return
    names = {"loss": "val_loss", "perplexity": "val_perplexity", "bits_per_byte": "val_bits_per_byte"}
    names["accuracy"] = "val_accuracy"
    assert found == {kind: pytest.approx(best[name], abs=1e-6) for kind, name in names.items()}
    assert data.model_name == kind
    assert {one.task_type for one in data.eval_results} == {"text-generation"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_folder_of_the_machine_is_told(runs: Path, kind: str) -> None:
    text, _ = read(runs / kind)
    for part in runs.parts[1:]:
        assert part not in text
    assert not re.search(rf"(?<![\w.:/>]){re.escape(os.sep)}\w+{re.escape(os.sep)}\w", text)


def test_the_text_is_told_by_its_name(runs: Path) -> None:
    assert "- text: corpus\n" in read(runs / "folder")[0]
    assert "(first in bad.txt)" in read(runs / "folder")[0]
    assert "- text: 2 sources: one.txt, two.txt\n" in read(runs / "files")[0]
    (name,) = {one.dataset_name for one in ModelCard(read(runs / "files")[0]).data.eval_results}
    assert name == "the validation part of 2 sources: one.txt, two.txt"
    assert "- text: \\*.txt\n" in read(runs / "glob")[0]
    assert "- tokenizer: tokenizer.json\n" in read(runs / "folder")[0]
    assert "- tokenizer: char\n" in read(runs / "files")[0]
    assert "text given in Python" in read(runs / "python")[0]


@pytest.mark.skipif(os.name == "nt", reason="the paths are those of other systems")
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/home/me/text.txt", "/home/me/text.txt"),
        ("/text.txt", "/text.txt"),
        ("/home/me/text.txt", "2 sources: ...me/text.txt, a.txt"),
        ("/home/me/text.txt", "2 sources: .../text.txt, a.txt"),
    ],
)
def test_only_the_last_part_of_a_path_is_told(path: str, told: str) -> None:
    text = model_card(Recorded("run", [], {"data": [path], "val_data": None, "tokenizer": "bpe"}, {"data_name": told}))
    (line,) = (line for line in text.splitlines() if line.startswith("- text: "))
    assert line == f"- text: {'2 sources: text.txt, a.txt' if 'sources' in told else 'text.txt'}"


def test_the_card_tells_how_the_model_was_made_and_how_it_compares(runs: Path) -> None:
    text, best = read(runs / "files")
    run = recorded_of(runs / "files")
    assert best is not None
    assert without_code(text).count("\n# ") == 1
    for heading in ("How to use it", "Training text", "Results", "Training", "What its curves say", "Uses and limits"):
        assert text.count(f"\n## {heading}\n") == 1
    for name in ("embed_dim", "num_layers", "learning_rate", "batch_size", "max_steps", "seed"):
        assert f"- {name.replace('_', chr(92) + '_')}: {run.resolved[name]}\n".replace("\\", "") in text.replace(
            "\\", ""
        )
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    (mine,) = (row for row in rows if row[0] == "this model")
    assert mine[1:] == [
        f"{best['val_bits_per_byte']:.3f}", f"{best['val_loss']:.4f}", f"{100 * best['val_accuracy']:.2f} %",
    ]  # fmt: skip
    assert {row[0] for row in rows[1:]} == {"this model", *(one["name"] for one in run.yardsticks)}
    losses = [float(row[1]) for row in rows[1:]]
    assert losses == sorted(losses, reverse=True)
    assert "finished after 12 steps" in text
    assert "broke down after" in read(runs / "diverged")[0]


HOSTILE = "</h1><script>alert(1)</script> <img src=x onerror=y> [a](http://b) `c` | # d *e* ~~f~~ &lt; \"g' \\ h"


def unescaped(markdown: str) -> str:
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)


def without_code(markdown: str) -> str:
    return re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)


def active(markdown: str) -> set[str]:
    """The characters that Markdown or HTML would take for more than themselves."""
    return set(re.findall(r"(?<!\\)(?:\\\\)*([<`\[\]*|&~])", markdown))


def test_markup_in_names_is_text() -> None:
    made = {"data_name": HOSTILE, "found": [HOSTILE], "train_tokens": 9, "val_tokens": 9, "split": HOSTILE}
    made |= {"hardware": HOSTILE, "platform": HOSTILE, "torch": HOSTILE}
    val = {"step": 1, "epoch": 1, "val_loss": 1.0, "val_accuracy": 0.5, "val_perplexity": math.e}
    name = HOSTILE.replace("/", "|").replace("\\", "")
    name = " ".join(name.split())
    text = model_card(Recorded(name, [val], {"recipe": HOSTILE}, made))
    data = ModelCard(text).data
    assert data.model_name == name
    assert HOSTILE in data.eval_results[0].dataset_name
    body, comment = text.split("\n---\n")[1].rsplit("<!--", 1)
    assert comment.rstrip().endswith("-->") and comment.count(">") == 1
    quoted = without_code(body.replace("`slm`", ""))
    assert unescaped(quoted).count("alert(1)") == 8
    assert active(quoted) == set()
    (title,) = re.findall(r"^# (.*)$", quoted, re.MULTILINE)
    assert unescaped(title) == name


@given(name=st.text(min_size=1, max_size=20), loss=st.floats(0, 1e5))
def test_any_name_and_number_can_be_read_back(name: str, loss: float) -> None:
    val = {"step": 1, "epoch": 1, "val_loss": loss, "val_accuracy": 1e-7, "val_perplexity": 1e30}
    run = Recorded(name, [val], {}, {"data_name": name})
    data = ModelCard(model_card(run)).data
    shown = " ".join("".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in run.title).split())
    assert data.model_name == shown
    found = {one.metric_type: one.metric_value for one in data.eval_results}
    assert all(isinstance(one, float) for one in found.values())
    assert found["loss"] == pytest.approx(loss, abs=1e-6)
    assert found["perplexity"] == pytest.approx(1e30)


def test_what_is_no_number_is_left_out() -> None:
    val = {"step": 1, "epoch": 1, "val_loss": 800.0, "val_accuracy": None, "val_perplexity": math.inf}
    found = ModelCard(model_card(Recorded("run", [val]))).data.eval_results
    assert [one.metric_type for one in found] == ["loss"]
    assert ModelCard(model_card(Recorded("run", []))).data.eval_results is None
