"""Laws of the page about several runs: its verdicts are those of slm.compare, its numbers those of the runs."""

from __future__ import annotations

import html
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, make_text
from test_report import HOSTILE, check_harmless, check_well_formed, poisoned, shows

import slm
from slm.metrics.diagnosis import diagnose
from slm.metrics.pages.comparison import LETTERS, comparison_page
from slm.metrics.recorded import Recorded
from slm.metrics.scoring import compare_evaluations
from slm.reporting import comparison, recorded_of

FAST = SMALL | {"max_steps": 40, "eval_every": 10, "log_every": 5, "quiet": False, "val_fraction": 0.4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on one text, and on others; nobody changes them."""
    here = tmp_path_factory.mktemp("runs")
    text = here / "text.txt"
    text.write_text(make_text(4000))
    np.save(here / "ids.npy", np.arange(3000) % 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slm.train(text, model_dir=here / "slow", **FAST, learning_rate=1e-3)
        slm.train(text, model_dir=here / "fast", **FAST, learning_rate=1e-2)
        slm.train(text, model_dir=here / "bpe", **FAST | {"tokenizer": "bpe"}, vocab_size=300, learning_rate=1e-2)
        slm.train([make_text(3000)], model_dir=here / "python", **FAST)
        slm.train(here / "ids.npy", model_dir=here / "ids", **{k: v for k, v in FAST.items() if k != "tokenizer"})
    shutil.copytree(here / "slow", here / "no model")
    (here / "no model" / "model.pt").unlink()
    return here


@pytest.fixture(autouse=True)
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


def best_of(name: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
    return min((line for line in lines if "val_loss" in line), key=lambda line: line["val_loss"])  # type: ignore[no-any-return]


def panel(text: str) -> list[str]:
    """The verdicts on a page."""
    (found,) = re.findall(r"<b>Which is better\?</b></p>(.*?)</div>", text, re.DOTALL)
    return [html.unescape(one) for one in re.findall("<p>(.*?)</p>", found)]


@pytest.mark.parametrize(
    ("names", "best"),
    [(("slow", "fast"), 1), (("fast", "slow"), 0), (("slow", "bpe"), 1), (("bpe", "slow", "fast"), 0)],
)
def test_the_verdicts_are_those_of_compare(names: tuple[str, ...], best: int) -> None:
    text, told = comparison(names)
    check_harmless(text)
    assert panel(text) == told
    assert len(told) == len(names)
    shown = [f"{letter} ({name})" for letter, name in zip(LETTERS, names, strict=False)]
    found = [slm.compare(names[0], name) for name in names[1:]]
    if best:  # the last of two
        expected = [compare_evaluations(found[0].second, found[0].first).verdict(shown[1], shown[0])]
    else:
        expected = [one.verdict(shown[0], name) for one, name in zip(found, shown[1:], strict=True)]
    assert told[1:] == expected
    assert all(shown[best] in verdict and "better" in verdict for verdict in expected)
    assert [one.difference.value > 0 for one in found] == [not best] * len(found)
    assert "text.txt" in told[0]


def test_the_results_of_each_run_stand_in_its_row() -> None:
    names = ("slow", "fast")
    page = check_well_formed(comparison(names)[0])
    table = next(table for table in page.tables if table[0][0] == "run")
    for letter, name, row in zip(LETTERS, names, table[1:], strict=False):
        best, run = best_of(name), recorded_of(name)
        assert run.model_config is not None
        assert row[0].split()[0] == letter
        assert ("best of" in row[0]) == (name == "fast")
        assert shows(row[1], run.model_config.num_parameters) and shows(row[2], run.step)
        numbers = (best["val_loss"], best["val_bits_per_byte"], best["val_accuracy"])
        assert all(map(shows, row[4:], numbers))
    differences = next(table for table in page.tables if table[0][0] == "setting")
    assert differences[1:] == [["learning_rate", "0.001", "0.01"]]
    for letter, name in zip(LETTERS, names, strict=False):
        assert f"{letter}: {name}, finished after 40 steps" in page.text
        found = diagnose(recorded_of(name))
        assert all(one.title in page.text for one in found)
        assert str(recorded_of(name).samples[-1]["sample"]) in page.text
    charts = {text for text in page.inside("figcaption") if text.strip()}
    assert charts == {
        "Validation loss by step", "Validation loss by time", "Bits per byte by time", "Learning rate",
    }  # fmt: skip


def test_of_runs_with_other_texts_none_is_called_the_best() -> None:
    for names in (("slow", "bpe"), ("slow", "python")):
        page = check_well_formed(comparison(names)[0])
        assert "best of these" not in page.text
        assert "these numbers do not compare" in page.text
        assert not [1 for _, attributes in page.tags if attributes.get("class") == "ours"]
    assert "these numbers do not compare" not in comparison(("slow", "fast"))[0]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("python", "slow"), "data given in Python"),
        (("slow", "no model"), "no model"),
        (("ids", "slow"), "token ids"),
    ],
)
def test_where_no_verdict_can_be_given_the_page_says_why(names: tuple[str, ...], why: str) -> None:
    text, told = comparison(names)
    check_well_formed(text)
    assert len(told) == 1 and told[0].startswith("No paired verdict: ")
    assert why in told[0]
    assert panel(text) == told


def test_a_text_that_is_gone_or_has_changed_is_told(runs: Path) -> None:
    text = runs / "text.txt"
    kept = text.read_text()
    try:
        text.unlink()
        assert "is not there any more" in comparison(("slow", "fast"))[1][0]
        text.write_text(make_text(4100))
        assert "has changed since" in comparison(("slow", "fast"))[1][0]
    finally:
        text.write_text(kept)


def test_markup_in_any_text_of_a_run_never_becomes_markup() -> None:
    runs = [recorded_of(name) for name in ("slow", "fast")]
    hostile = []
    for run in runs:
        records = [{k: poisoned(v) if k in ("prompt", "sample") else v for k, v in one.items()} for one in run.records]
        made_with = run.made_with | {name: poisoned(run.made_with[name]) for name in ("data_name", "hardware", "torch")}
        hostile.append(Recorded(run.name + HOSTILE, records, run.resolved, made_with, run.asked))
    page = check_harmless(comparison_page(hostile, [HOSTILE]))
    plain = check_harmless(comparison_page(runs, ["verdict"]))
    assert page.skeleton == plain.skeleton
    assert page.text.count(HOSTILE) >= 6


def test_six_runs_have_six_colours_and_letters() -> None:
    run = recorded_of("slow")
    page = check_well_formed(comparison_page([run] * 6, []))
    assert "Their settings are the same." in page.text
    labels = [text for tags, text in page.of if tags and tags[-1] == "text" and text in [*LETTERS]]
    assert set(labels) == set(LETTERS)
    strokes = {attributes.get("style") for tag, attributes in page.tags if tag == "path"}
    assert len(strokes) == 6
