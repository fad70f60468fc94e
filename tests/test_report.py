"""Laws of a run's report: its numbers are those of metrics.jsonl, it says how the run was, and text stays text."""

from __future__ import annotations

import html
import itertools
import json
import math
import os
import re
import shlex
import time
import warnings
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, make_text
from torch import nn

import slm
from slm.cli.train import make_parser
from slm.metrics.diagnosis import diagnose, next_step
from slm.metrics.pages import words
from slm.metrics.pages.page import MARKER, STYLE
from slm.metrics.pages.report import report_page
from slm.metrics.recorded import THIS_MODEL, Recorded
from slm.reporting import recorded_of

LOUD = SMALL | {"quiet": False, "max_steps": 60, "learning_rate": 1e-2, "eval_every": 12, "log_every": 5}
HOSTILE = "</script></pre><img src=x onerror=alert(1)> <b onclick='x'>\"&amp;<!-- ]]> https://evil.example {}"
VOID = {"meta"}
TAGS = {"html", "head", "meta", "title", "style", "body", "main", "code", "div", "span", "pre", "details", "summary"}
TAGS |= {"h1", "h2", "h3", "p", "b", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"}
TAGS |= {"small", "svg", "path", "line", "text", "tspan", "circle", "footer", "ul", "li"}
NAME = "run & 'so'" if os.name == "nt" else "<b onclick=x>run & 'so'\""


class Page(HTMLParser):
    """A page: its tags with attributes, its tables and texts. Raises where tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.of: list[tuple[tuple[str, ...], str]] = []  # (the open tags, text)
        self.tables: list[list[list[str]]] = []
        self.comments: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attributes}) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open  # in HTML itself the slash would mean nothing
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.pieces.append(data)
        self.of.append((tuple(self.open), data))
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def skeleton(self) -> list[Any]:
        return [(tag, attributes.get("class"), sorted(attributes)) for tag, attributes in self.tags]

    def inside(self, tag: str) -> list[str]:
        """The texts right inside such tags."""
        return [text for tags, text in self.of if tags and tags[-1] == tag]


def answers(text: str) -> dict[str, str]:
    """The three questions with their answers."""
    found = re.findall(r"<p><b>([^<]+\?)</b> (.*?)</p>(?:<pre>(.*?)</pre>)?", text, re.DOTALL)
    return {question: html.unescape(re.sub("<[^>]+>", "", " ".join(told))).strip() for question, *told in found}


def shows(cell: str, value: float | None) -> bool:
    """Whether a cell has that number, to the digits that it shows, or says that there is none."""
    if value is None:
        return cell in ("", "-")
    digits = cell.split()[0].replace(",", "")
    value = 100 * value if "%" in cell else value
    return abs(float(digits) - value) <= 0.5001 * 10.0 ** -len(digits.partition(".")[2])


def check_well_formed(text: str) -> Page:
    """The page, which is as HTML and people who cannot see it need it."""
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert text.splitlines()[0].endswith(MARKER)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.tags[0] == ("html", {"lang": "en"})
    assert any("width=device-width" in (attributes.get("content") or "") for _, attributes in page.tags)
    for tag, attributes in page.tags:
        if tag == "svg" and "x" not in attributes:  # else a part of one
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
    for table in page.tables:
        widths = {len(row) for row in table if row}
        assert len(widths) == 1
        assert widths == {2} or all(table[0]) or table[0][0]
    assert not {"nan", "inf", "None"} & {word for table in page.tables for row in table for word in row[-1].split()[:1]}
    return page


def check_harmless(text: str) -> Page:
    """The page, in which there is no code, nothing from elsewhere, and no tag or attribute that is not ours."""
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag in TAGS
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "href", "srcset", "action", "xlink:href", "http-equiv")
            if name == "style":
                assert re.fullmatch(r"((stroke|fill|stroke-width):(var\(--series-[1-6]\)|none|\d);?)+", value or "")
    assert page.comments == [MARKER.removeprefix("<!--").removesuffix("-->")]
    assert not re.search(r"@import|url\(", text)
    return page


class Tiny(nn.Module):
    """Somebody else's model."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 7)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens)  # type: ignore[no-any-return]


def quietly(train: Any, *arguments: Any, **keys: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(*arguments, **keys)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all kinds, each in its folder; nobody changes them."""
    here = tmp_path_factory.mktemp("runs")
    (here / "text.txt").write_text(make_text(4000))
    hostile = here / f"{NAME}.txt"
    hostile.write_text((HOSTILE + "\n") * 60)
    quietly(slm.train, here / "text.txt", model_dir=here / "healthy", **LOUD)
    quietly(slm.train, hostile, model_dir=here / NAME, **LOUD)
    quietly(
        slm.train, [make_text(4000)], model_dir=here / "diverged", **LOUD | {"learning_rate": 1e30, "max_grad_norm": 0}
    )
    quietly(slm.train, "dummy", model_dir=here / "dummy", **{k: v for k, v in LOUD.items() if k != "tokenizer"})
    steps = itertools.count()
    stop = {"should_stop": lambda: next(steps) > 30}
    quietly(slm.train, here / "text.txt", model_dir=here / "interrupted", **LOUD, **stop)
    quietly(slm.train, [make_text(4000)], **LOUD).save(here / "saved")
    data = slm.TextDataset([n % 7 for n in range(3000)], 16)
    config = slm.TrainConfig(batch_size=8, max_steps=30, device="cpu", precision="fp32", threads=1)
    quietly(slm.train_and_evaluate, Tiny(), data, data, config, model_dir=here / "foreign")
    return here


def read(folder: Path) -> tuple[str, Recorded, list[dict[str, Any]]]:
    """The report in a folder, what can be told of it, and the lines of its metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "report.html").read_text(encoding="utf-8"), recorded_of(folder), lines


KINDS = ["healthy", NAME, "diverged", "dummy", "interrupted", "saved", "foreign"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_leaves_a_report_that_is_well_formed_harmless_and_answers_three_questions(
    runs: Path, kind: str
) -> None:
    text, run, _ = read(runs / kind)
    check_harmless(text)
    page = check_well_formed(text)
    assert page.inside("h1") == [kind]
    assert [title for tags, title in page.of if tags == ("html", "head", "title")] == [f"{kind}: training report"]
    assert list(answers(text)) == ["Did it learn?", "How good is it?", "What next?"]
    assert all(re.fullmatch(r"[A-Z].*\S", answer, re.DOTALL) for answer in answers(text).values())
    headings = page.inside("h2")
    assert headings[:2] == ["What the curves say", "Curves"]
    assert headings[-5:] == [
        "What was trained on what", "Settings", "Environment", "How to use the model", "Words",
    ]  # fmt: skip
    assert ("Compared to simple predictors" in headings) == bool(run.ranked)
    assert ("What it wrote as it learned" in headings) == bool(run.samples)
    for found in diagnose(run):
        assert found.title[1:] in page.text and found.told in page.text and found.flag in page.inside("code")
    assert ("No trouble was found" in page.text) != any(found.is_trouble for found in diagnose(run))


def test_a_run_that_was_saved_by_hand_has_the_same_report(runs: Path) -> None:
    healthy, saved = (check_well_formed(read(runs / kind)[0]) for kind in ("healthy", "saved"))
    assert healthy.inside("h2") == saved.inside("h2")


def test_the_answers_of_a_healthy_run(runs: Path) -> None:
    text, run, lines = read(runs / "healthy")
    best = min((line for line in lines if "val_loss" in line), key=lambda line: line["val_loss"])
    found = answers(text)
    chance = math.log(run.resolved["vocab_size"])
    assert found["Did it learn?"] == (
        f"Yes: it reached a validation loss of {best['val_loss']:.3f}; guessing blindly among its "
        f"{run.resolved['vocab_size']} tokens would give {chance:.3f}. Its first guess is right for "
        f"{100 * best['val_accuracy']:.1f} % of the tokens."
    )
    beaten = min(line["bits_per_byte"] for line in lines[-2]["yardsticks"] if line["loss"] is not None)
    assert found["How good is it?"].startswith("Better than") == (best["val_bits_per_byte"] < beaten)
    assert f"{best['val_bits_per_byte']:.3f} bits per byte against {beaten:.3f}" in found["How good is it?"]
    assert "--" in found["What next?"]


def test_the_answers_of_other_runs(runs: Path) -> None:
    found = {kind: answers(read(runs / kind)[0]) for kind in KINDS}
    assert found["diverged"]["Did it learn?"] == "No: no evaluation gave a finite loss, so no model was kept."
    assert found["diverged"]["How good is it?"] == "There is no model to compare."
    assert all("slm" in one["What next?"] for kind, one in found.items() if kind != "foreign")
    assert found["foreign"]["What next?"].endswith("--max_steps 60")
    assert "learning_rate" in found["diverged"]["What next?"]
    assert found["dummy"]["Did it learn?"].startswith("No, and it cannot: the dummy text is random tokens.")
    assert found["dummy"]["How good is it?"] == "There are no yardsticks: the dummy text is random."
    assert "--data stories" in found["dummy"]["What next?"]
    assert found["interrupted"]["How good is it?"] == "There are no yardsticks: none were measured."
    assert "--resume must" in found["interrupted"]["What next?"]
    assert "broke down after" in read(runs / "diverged")[0]
    assert "stopped after 31 of 60 steps" in read(runs / "interrupted")[0]
    assert found["foreign"]["Did it learn?"].startswith("It reached a validation loss of ")
    assert "A model: finished after 30 steps" in read(runs / "foreign")[0]


def test_a_run_that_only_knows_how_frequent_tokens_are_has_hardly_learned() -> None:
    one = {"bits_per_byte": None, "told": "", "accuracy": None, "top5_accuracy": None}
    made = [{**one, "name": "uniform", "loss": math.log(50)}, {**one, "name": "unigram", "loss": 3.0}]
    for loss, begin in ((3.85, "No: "), (3.5, "Hardly: "), (2.9, "Yes: ")):
        val = {"step": 9, "epoch": 1, "val_loss": loss, "val_accuracy": 0.1, "val_perplexity": 9.0}
        run = Recorded("run", [val, {"step": 9, "yardsticks": made}], {"vocab_size": 50})
        learned, told = words.learned(run)
        assert told.startswith(begin)
        assert learned == (begin == "Yes: ")
        better = words.compared(run).startswith("Better than")
        assert better == (loss < 3.0)


def test_a_run_that_was_killed_is_told_as_not_ended(runs: Path, tmp_path: Path) -> None:
    lines = (runs / "healthy" / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(lines[: lines.index(b'"prompt": ""') + 5])
    (tmp_path / "config.toml").write_bytes((runs / "healthy" / "config.toml").read_bytes())
    text = report_page(recorded_of(tmp_path))
    check_well_formed(text)
    assert "not ended: 60 steps" in text
    assert answers(text)["Did it learn?"].startswith("Yes: ")
    assert answers(text)["How good is it?"] == "There are no yardsticks: none were measured."
    assert "--resume must" in answers(text)["What next?"]


@pytest.mark.parametrize("kind", ["healthy", "foreign", "dummy"])
def test_all_numbers_are_those_of_metrics_jsonl(runs: Path, kind: str) -> None:
    text, run, lines = read(runs / kind)
    page = Page(text)
    val = [line for line in lines if "val_loss" in line]
    best = min(val, key=lambda line: line["val_loss"])
    tiles = re.findall(r'<div class="tile"><b>([^<]*)</b><span>([^<]*)</span>', text)
    told = {name: value for value, name in tiles}
    assert shows(told["val_loss, nats per token"], best["val_loss"])
    assert shows(told["accuracy of the next token"], best["val_accuracy"])
    assert shows(told["perplexity"], best["val_perplexity"])
    assert shows(told["step of the kept weights, the best"], best["step"])
    assert ("bits per byte" in told) == ("val_bits_per_byte" in best)
    names = ["step", "epoch", "val_loss", "val_perplexity", "val_accuracy", "val_bits_per_byte"]
    evaluations = next(table for table in page.tables if table[0][:2] == ["step", "epoch"])
    for row, line in zip(evaluations[1:], val, strict=True):
        assert len(row) == sum(name in line for name in names)
        assert all(shows(cell, line[name]) for cell, name in zip(row, names, strict=False))
    (ours,) = re.findall(r'<tr class="ours"><t[hd][^>]*>([\d,]+)', text)[-1:]
    assert int(ours) == best["step"]
    dots = [title for title in page.inside("title") if title.startswith("val_loss ")]
    assert [int(dot.split(" at ")[1]) for dot in dots] == [line["step"] for line in val]
    assert [float(dot.split()[1]) for dot in dots] == pytest.approx([line["val_loss"] for line in val], rel=0.01)
    if measured := [line["yardsticks"] for line in lines if "yardsticks" in line]:
        table = next(table for table in page.tables if table[0][0] == "predictor")
        known = {row[0]: row[1:-1] for row in table[1:]}
        scores = [float(row[1]) for row in table[1:]]
        assert scores == sorted(scores, reverse=True)
        mine = {"bits_per_byte": best["val_bits_per_byte"], "loss": best["val_loss"], "accuracy": best["val_accuracy"]}
        (name,) = (name for name in known if name.startswith(THIS_MODEL))
        for one in ({"name": name, **mine}, *measured[0]):
            numbers = [one[key] for key in ("bits_per_byte", "loss", "accuracy")]
            assert all(map(shows, known[one["name"]], numbers))
    clipped = max(line["clipped_steps"] for line in lines if "clipped_steps" in line)
    shares = [share for text in page.inside("small") for share in re.findall(r"(\d+) % of the steps", text)]
    assert shares == [f"{100 * clipped / run.step:.0f}"]


def test_settings_stand_with_their_values_and_where_they_came_from(runs: Path) -> None:
    text, run, _ = read(runs / "healthy")
    rows = {row[0]: row[1:3] for table in Page(text).tables if table[0][0] == "setting" for row in table[1:]}
    assert rows["learning_rate"] == ["0.01", "you"]
    assert rows["beta1"] == ["0.9", "default"]
    assert rows["warmup_steps"][1] == "worked out by slm"
    assert rows["data"] == [str(runs / "text.txt"), "you"]
    assert not {"model_dir", "quiet", "resume"} & set(rows)
    known = {name for name, value in run.resolved.items() if value is not None}
    assert known == set(rows)


def test_samples_stand_with_their_steps_and_the_prompts_in_colour(runs: Path) -> None:
    text, run, _ = read(runs / "healthy")
    page = Page(text)
    assert run.samples
    for prompt, records in words.prompts(run.samples).items():
        assert records[-1]["sample"] in page.text
        assert not prompt or prompt in page.inside("span")
    assert [h3 for h3 in page.inside("h3") if h3.startswith(f"step {run.samples[0]['step']},")]
    assert f"The kept model (step {run.step}), from nothing" in page.inside("h3")


def poisoned(value: Any) -> Any:
    """The same with markup in every text that a run may hold from outside."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list | tuple):
        return [poisoned(one) for one in value]
    return value


def test_markup_in_any_text_of_a_run_never_becomes_markup(runs: Path) -> None:
    _, run, _ = read(runs / "healthy")
    told = ("prompt", "sample", "message")
    records = [{k: poisoned(v) if k in told else v for k, v in record.items()} for record in run.records]
    for record in records:
        if "yardsticks" in record:
            record["yardsticks"] = [{**one, "told": one["told"] + HOSTILE} for one in record["yardsticks"]]
        if record.get("prompt") == HOSTILE:  # none was given
            record["prompt"] = ""
    resolved = run.resolved | {name: poisoned(run.resolved[name]) for name in ("data", "tokenizer", "text_field")}
    made_with = {k: poisoned(v) for k, v in run.made_with.items() if k != "origins"}
    origins = {"origins": {"epochs": HOSTILE, "batch_size": HOSTILE}}
    text = report_page(
        Recorded(run.name + HOSTILE.replace("/", "|"), records, resolved, made_with | origins, run.asked)
    )
    page = check_harmless(text)
    plain = Recorded(run.name, run.records, run.resolved, run.made_with | {"origins": {"epochs": "x"}}, run.asked)
    assert page.skeleton == Page(report_page(plain)).skeleton
    for where in ("h1", "title", "span", "pre", "td"):
        assert any(HOSTILE[-9:] in piece for piece in page.inside(where)), where


def test_characters_that_control_a_terminal_or_a_line_are_not_on_the_page() -> None:
    sample = {"step": 1, "prompt": "\x1b[31m\0", "sample": "a\u202eb\r\nc\td\ud800"}
    text = report_page(Recorded("run", [sample]))
    assert not set(text) & set("\x1b\0\u202e\r\ud800")
    assert "a\ufffdb\ufffd\nc\td\ufffd" in text


def test_the_report_is_the_same_but_for_its_date(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, run, _ = read(runs / "healthy")
    today = time.strftime("%d %B %Y")
    monkeypatch.setattr(time, "strftime", lambda form, *_: "the day after")
    again = report_page(run)
    assert today in text
    assert again == text.replace(today, "the day after")


def test_the_command_to_use_a_model_names_its_folder_as_a_shell_reads_it(runs: Path) -> None:
    text, run, _ = read(runs / KINDS[1])
    (command,) = (line for line in Page(text).text.splitlines() if "slm-generate" in line)
    assert shlex.split(command.strip("# "))[2] == run.name == str(runs / KINDS[1])
    (call,) = (line for line in Page(text).text.splitlines() if line.startswith("run = slm.load("))
    assert eval(call.removeprefix("run = slm.load")) == run.name


def long_run(logs: int, evaluations: int, samples: int) -> Recorded:
    """The records of a long run with long numbers."""
    third = 1 / 3
    records: list[dict[str, Any]] = [
        {"step": n, "epoch": 1, "train_loss": 3 + third + 50 / n, "lr": third / n, "grad_norm": third * (n % 7)}
        | {"clipped_steps": n // 2, "tokens_per_second": 12345.678 + n, "mfu": third, "elapsed_seconds": n / 7}
        for n in range(1, logs + 1)
    ]
    records += [
        {
            "step": n * 4,
            "epoch": 1,
            "val_loss": 3 + third + 9 / n,
            "val_accuracy": third,
            "val_perplexity": 99.9 + third,
        }
        | {"val_bits_per_byte": third, "elapsed_seconds": n * 4 / 7}
        for n in range(1, evaluations + 1)
    ]
    records += [{"step": n * 4, "prompt": f"once {n % 2}", "sample": "<word> " * 40} for n in range(1, samples + 1)]
    return Recorded("long", records, {"learning_rate": 1e-3, "max_grad_norm": 1.0}, {"slm": "1", "data_name": "x"})


def test_the_report_of_a_long_run_is_below_three_megabytes() -> None:
    run = long_run(20_000, 5_000, 2_000)
    begin = time.perf_counter()
    text = report_page(run)
    print(f"{time.perf_counter() - begin:.2f} s, {len(text) / 1e6:.2f} MB")
    assert len(text.encode()) < 3e6
    page = check_well_formed(text)
    table = next(table for table in page.tables if table[0][:2] == ["step", "epoch"])
    assert len(table) < 260
    assert table[-1][0].startswith("20,000")  # the last and best evaluation is among them
    assert "20,000" in page.inside("h3")[-1] or any("step 8,000" in h3 for h3 in page.inside("h3"))


def test_the_best_evaluation_is_in_the_table_of_a_long_run_wherever_it_is() -> None:
    run = long_run(10, 1_001, 0)
    for place in (10, 512, 999):
        records = [dict(record) for record in run.records]
        next(record for record in records if record.get("val_loss") and record["step"] == 4 * place)["val_loss"] = 1.0
        text = report_page(Recorded("long", records))
        assert re.findall(r'<tr class="ours"><t[hd][^>]*>([\d,]+)', text) == [f"{4 * place:,}"]


def test_text_can_be_read_on_its_ground_in_light_and_dark() -> None:
    themes = re.findall(r"\{([^{}]*--ink:[^{}]*)\}", STYLE)
    assert len(set(themes)) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", theme))
        names = {"ink", "soft", "accent", *(f"series-{number}" for number in range(1, 7))}
        for name in names:
            for ground in ("paper", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    used = set(re.findall(r"(?<![-\w])(?:color|fill): var\(--(\w+)\)", STYLE))
    assert used <= {"ink", "soft", "accent"}


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, 1.4.3."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_report_changes_nothing_of_the_run(runs: Path) -> None:
    before = {name: os.stat(runs / "healthy" / name).st_mtime_ns for name in os.listdir(runs / "healthy")}
    report_page(recorded_of(runs / "healthy"))
    assert before == {name: os.stat(runs / "healthy" / name).st_mtime_ns for name in os.listdir(runs / "healthy")}


def test_what_to_do_next_is_a_command_that_asks_for_the_same_run_but_for_the_advice(runs: Path) -> None:
    for kind in KINDS:
        text, run, _ = read(runs / kind)
        advice = (diagnose(run) or [next_step(run)])[0]
        if not run.resolved.get("embed_dim"):  # somebody else's model, which no command of ours can train
            continue
        asked = {**run.asked, **make_parser(everything=False).parse(shlex.split(advice.flag))}
        command = answers(text)["What next?"]
        if "slm.train(" in command:
            call = command[command.rindex("slm.train(") :]
            found = eval(call, {"slm": SimpleNamespace(train=lambda data, **keys: keys), "your_data": None})
        else:
            parts = shlex.split(command[command.rindex("slm-train ") :])
            found = make_parser(everything=False).parse(parts[1:])
        assert found.pop("model_dir") != run.name or advice.name == "unfinished"
        assert {name: plain(value) for name, value in found.items()} == {k: plain(v) for k, v in asked.items()}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
