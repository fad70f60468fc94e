"""Laws of the pages of runs with a task: their numbers are the run's, and they say how good it is beside what."""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, make_text
from huggingface_hub import ModelCard
from test_model_card import active, unescaped, without_code
from test_report import HOSTILE, answers, check_harmless, check_well_formed, contrast, shows

import slm
from slm.cli import generate as generate_command
from slm.cli import report as report_command
from slm.cli.train import make_parser
from slm.metrics.diagnosis import diagnose, next_step
from slm.metrics.labels import score_labels
from slm.metrics.pages import pages_of, task_words, tasks, words
from slm.metrics.pages.card import model_card
from slm.metrics.pages.comparison import comparison_page
from slm.metrics.pages.page import STYLE
from slm.metrics.pages.report import report_page
from slm.metrics.plots import plot
from slm.metrics.recorded import THIS_MODEL, Record, Recorded
from slm.metrics.task_evaluation import Beside, Example, TaskEvaluation, metrics_of
from slm.metrics.translations import score_texts
from slm.reporting import comparison, recorded_of

LABELLED = [
    (f"the {colour} {thing} {verb}s {n}", verb)
    for colour in ("red", "old", "small")
    for thing in ("cat", "dog", "bird", "house")
    for verb, most in (("sleep", 4), ("eat", 3), ("run", 2))
    for n in range(most)
]
PAIRS = [(f"{a} {b} {c}", f"{c} {b} {a}") for a in "abc" for b in "stu" for c in "xyz"]
SIZES = {**SMALL, "max_steps": 20, "learning_rate": 1e-2, "eval_every": 5, "log_every": 5, "val_fraction": 0.25}
TUNED = {name: SIZES[name] for name in SIZES if name not in ("tokenizer", *vars(slm.ModelConfig())) or name == "seed"}
CLASSES = {"task": "classification", "text_field": "1", "label_field": "0"}
Made = dict[str, Path]


def quietly(train: Callable[..., Any], *arguments: Any, **keys: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train(*arguments, **keys)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all kinds, each in its folder; nobody changes them."""
    here = tmp_path_factory.mktemp("secret-folder")
    (here / "labels.tsv").write_text("".join(f"{label}\t{text}\n" for text, label in LABELLED))
    (here / "pairs.jsonl").write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in PAIRS))
    (here / "text.txt").write_text(make_text(600))
    (here / "new.txt").write_text(make_text(300)[::-1])
    window = {name: value for name, value in SIZES.items() if name != "max_seq_len"}
    quietly(slm.train, here / "labels.tsv", model_dir=here / "labels", **window, **CLASSES)
    quietly(slm.train, here / "pairs.jsonl", model_dir=here / "pairs", **window, task="pairs")
    quietly(slm.train, here / "text.txt", model_dir=here / "base", **SIZES, positions="rope")
    start = {**TUNED, "init_from": here / "base"}
    also = {"also_evaluate": here / "base"}
    quietly(slm.train, here / "new.txt", model_dir=here / "tuned", **start, **also)
    quietly(slm.train, here / "new.txt", model_dir=here / "lora", **start, **also, trainable="lora", lora_rank=3)
    quietly(slm.train, here / "labels.tsv", model_dir=here / "head", **start, **CLASSES, trainable="head")
    quietly(slm.train, here / "pairs.jsonl", model_dir=here / "both", **start, **also, task="pairs")
    steps = itertools.count()
    stop = {"should_stop": lambda: next(steps) > 12}
    quietly(slm.train, here / "labels.tsv", model_dir=here / "stopped", **window, **CLASSES, **stop)
    return here


OF_TASKS = ["labels", "pairs", "head", "both"]
KINDS = [*OF_TASKS, "tuned", "lora", "stopped"]


def scores_of(folder: Path) -> Record:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (found,) = [line["task_scores"] for line in lines if "task_scores" in line]
    return dict(found)


def report_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def card_of(folder: Path) -> str:
    return (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_leaves_a_report_that_is_well_formed_harmless_and_answers_three_questions(
    home: Path, kind: str
) -> None:
    text, run = report_of(home / kind), recorded_of(home / kind)
    check_harmless(text)
    page = check_well_formed(text)
    assert list(answers(text)) == ["Did it learn?", "How good is it?", "What next?"]
    assert all(re.fullmatch(r"[A-Z].*\S", answer, re.DOTALL) for answer in answers(text).values())
    headings = page.inside("h2")
    assert ("How well it does the task" in headings) == (kind in OF_TASKS)
    assert ("The other text" in headings) == ("also_evaluate" in run.asked)
    assert text.count("undefined") == text.count("Traceback") == 0


@pytest.mark.parametrize("kind", OF_TASKS)
def test_the_scores_stand_in_a_table_worst_first(home: Path, kind: str) -> None:
    scores, page = scores_of(home / kind), check_well_formed(report_of(home / kind))
    table = next(table for table in page.tables if table[0][0] == "method")
    rows = {row[0]: row[1:-1] for row in table[1:]}
    all_of_them = {THIS_MODEL: scores["metrics"], **{one["name"]: one["metrics"] for one in scores["yardsticks"]}}
    assert rows.keys() == all_of_them.keys() and len(rows) >= 3
    for name, metrics in all_of_them.items():
        for cell, (metric, value) in zip(rows[name], metrics.items(), strict=True):
            assert shows(cell, value), (name, metric)
    key = 0 if "bleu" in scores["metrics"] else 1  # macro F1 stands after accuracy
    ranked = [float(row[1 + key].split()[0]) for row in table[1:]]
    assert ranked == sorted(ranked)
    assert re.findall(r'<tr class="ours"><th[^>]*>([^<]+)', report_of(home / kind))[0] == THIS_MODEL
    assert all(row[-1] for row in table[1:])  # what each is
    tiles = dict(
        reversed(found)
        for found in re.findall(r'<div class="tile"><b>([^<]*)</b><span>([^<]*)</span>', report_of(home / kind))
    )
    names = {"accuracy": "accuracy of the label", "macro_f1": "macro F1, the mean over the labels"}
    names |= {"bleu": "BLEU", "chrf": "chrF", "exact_match": "exact match"}
    for metric, value in scores["metrics"].items():
        assert shows(tiles[names[metric]], value)
    assert "perplexity" not in tiles
    assert "slm-evaluate --model_dir" in page.text and "slightly too good" in page.text


def test_what_is_no_language_model_is_not_told_like_one(home: Path) -> None:
    text = re.sub(r"<h2>Settings</h2>.*?<h2>", "<h2>", report_of(home / "labels"), flags=re.DOTALL)
    for word in ("perplexity", "next token", "per token,", "bits per byte", "continues text", "generate("):
        assert word not in text.lower(), word
    assert "nats per label" in text and "nats per token" not in text
    pairs = report_of(home / "pairs")
    assert "Kneser-Ney" not in pairs and "BLEU" in pairs


def test_the_confusion_matrix_has_the_counts_and_shades_of_its_rows(home: Path) -> None:
    text = report_of(home / "labels")
    confusion, labels = (scores_of(home / "labels")["scores"][name] for name in ("confusion", "labels"))
    table = next(table for table in check_well_formed(text).tables if table[0][0] == "true label")
    assert table[0][1:] == labels and [row[0] for row in table[1:]] == labels
    assert [[int(cell) for cell in row[1:]] for row in table[1:]] == confusion
    (matrix,) = re.findall(r'<div class="matrix">.*?</table>', text, re.DOTALL)
    cells = re.findall(r'<span class="share (h(\d+)|none)( right)?">(\d+)</span>', matrix)
    for (_, shade, right, _), (row, column) in zip(cells, itertools.product(range(3), range(3)), strict=True):
        count, whole = confusion[row][column], sum(confusion[row])
        assert bool(right) == (row == column)
        assert (int(shade) if shade else 0) == (max(1, round(10 * count / whole)) if count else 0)


def test_each_label_has_its_row(home: Path) -> None:
    scores = scores_of(home / "labels")["scores"]
    table = next(table for table in check_well_formed(report_of(home / "labels")).tables if table[0][0] == "label")
    for row, one in zip(table[1:], scores["by_label"], strict=True):
        assert row[0] == one["label"]
        numbers = [one[name] for name in ("precision", "recall", "f1", "support")]
        assert all(map(shows, row[1:], numbers))


@pytest.mark.parametrize("kind", ["labels", "pairs"])
def test_examples_stand_with_what_was_expected_and_answered(home: Path, kind: str) -> None:
    examples, page = scores_of(home / kind)["examples"], check_well_formed(report_of(home / kind))
    first = "source" if kind == "pairs" else "text"
    rows = [row for table in page.tables if table[0][0] == first for row in table[1:]]
    told = [[one["given"], one["expected"], " ".join(one["answered"].split()) or "(nothing)"] for one in examples]
    assert sorted(row[:3] for row in rows) == sorted(told)
    if kind == "pairs":
        right = {one["given"] for one in examples if one["answered"].strip() == one["expected"].strip()}
        assert {row[0] for row in rows if row[3] == "yes"} == right
        assert len(page.inside("b")) >= len(right)


def test_right_answers_to_sources_are_marked() -> None:
    examples = [Example("eins", "one", " one\n"), Example("zwei", "two", "too")]
    scores = TaskEvaluation("pairs", "p", 2, score_texts([" one", "too"], ["one", "two"]), [], examples)
    text = report_page(with_scores(scores.as_record(), []))
    rows = next(table for table in check_well_formed(text).tables if table[0][0] == "source")[1:]
    assert rows == [["eins", "one", "one", "yes"], ["zwei", "two", "too", "-"]]
    assert "<td><b>one</b></td>" in text and "<b>too</b>" not in text


def made_up(num_labels: int = 3, **changes: Any) -> Recorded:
    """A run that was scored on a label of each kind, and on rare ones."""
    labels = [f"label {number}" for number in range(num_labels)]
    true = [number % num_labels for number in range(20 * num_labels)]
    predicted = [number if place % 4 else 0 for place, number in enumerate(true)]
    always = score_labels(true, [0] * len(true), labels)
    beside = [
        Beside("majority label", metrics_of(always)),
        Beside("TF-IDF of words", {"accuracy": 0.1, "macro_f1": 0.1}),
    ]
    scores = TaskEvaluation(
        "classification",
        "mails.tsv",
        len(true),
        score_labels(true, predicted, labels),
        beside,
        [Example("a text", labels[0], labels[1]), Example("another", labels[1], labels[1])],
    )
    return with_scores({**scores.as_record(), **changes}, labels)


def with_scores(scores: Record, labels: list[str], **resolved: Any) -> Recorded:
    records: list[Record] = [
        {"step": step, "epoch": 1, "val_loss": 1 / step, "val_accuracy": 0.5, "val_perplexity": 2.0} for step in (1, 2)
    ]
    records += [{"step": 2, "task_scores": scores}, {"step": 2, "status": "finished", "message": ""}]
    made = {"slm": "1", "data_name": "mails.tsv", "task": {"name": scores["task"], "template": [], "labels": labels}}
    return Recorded("run", records, {"class_weights": "none", **resolved}, made, {"data": ["mails.tsv"]})


def test_many_labels_are_numbered_and_too_many_not_shown() -> None:
    page = check_well_formed(report_page(made_up(12)))
    table = next(table for table in page.tables if table[0][0] == "true label")
    assert table[0][1:] == [str(number) for number in range(1, 13)]
    assert [row[0] for row in table[1:]] == [f"{number + 1} label {number}" for number in range(12)]
    page = check_well_formed(report_page(made_up(40)))
    assert "There are 40 labels" in page.text
    assert not [table for table in page.tables if table[0][0] in ("true label", "label")]
    assert "label 39" not in page.text and "and 10 more" in page.text


def test_what_is_missing_is_told() -> None:
    run = made_up(missing=["BLEU and <b>chrF</b> need the package sacrebleu: pip install sacrebleu"], yardsticks=[])
    text = report_page(run)
    check_harmless(text)
    assert "BLEU and &lt;b&gt;chrF&lt;/b&gt; need the package sacrebleu: pip install sacrebleu." in text
    assert "pip install sacrebleu" in model_card(run)
    assert answers(text)["How good is it?"].endswith("there are no yardsticks.")


def test_long_texts_are_cut() -> None:
    example = {"given": "word " * 400, "expected": "x" * 900, "answered": "\n\n"}
    run = made_up(examples=[example])
    page = check_well_formed(report_page(run))
    row = next(table for table in page.tables if table[0][0] == "text")[1]
    assert row[0].endswith("…") and len(row[0]) <= 240
    assert row[1] == f"{'x' * 23}…" and row[2] == "(nothing)"


def with_model(accuracy: float, macro_f1: float, *others: tuple[str, float, float], examples: int = 10_000) -> Recorded:
    beside = [{"name": name, "metrics": {"accuracy": a, "macro_f1": f}, "told": ""} for name, a, f in others]
    metrics = {"accuracy": accuracy, "macro_f1": macro_f1}
    one = {"precision": macro_f1, "recall": macro_f1, "f1": macro_f1, "support": examples // 2}
    by_label = [{"label": label, **one} for label in ("a", "b")]
    scores = {"labels": ["a", "b"], "confusion": [[1, 0], [0, 1]], "by_label": by_label}
    return made_up(metrics=metrics, yardsticks=beside, num_examples=examples, scores=scores)


@pytest.mark.parametrize(
    ("accuracy", "macro_f1", "examples", "learned", "good"),
    [
        (0.98, 0.95, 10_000, "Yes: it gives the right label to 98.0 %", "Better than TF-IDF of words"),
        (0.95, 0.90, 10_000, "Yes: ", "Not yet worth its training: it is not better than TF-IDF of words"),
        (0.98, 0.95, 50, "Yes: ", "About as good as TF-IDF of words"),
        (0.97, 0.92, 10_000, "Yes: ", "As good as TF-IDF of words"),
        (0.87, 0.47, 10_000, "Hardly: ", "Not yet worth its training"),
        (0.86, 0.46, 10_000, "No: ", "Not yet worth its training"),
    ],
)
def test_a_model_of_labels_is_held_against_the_best_of_the_others(
    accuracy: float, macro_f1: float, examples: int, learned: str, good: str
) -> None:
    others = (("majority label", 0.86, 0.46), ("TF-IDF of words", 0.97, 0.92), ("TF-IDF of characters", 0.96, 0.9))
    run = with_model(accuracy, macro_f1, *others, examples=examples)
    found = answers(report_page(run))
    assert found["Did it learn?"].startswith(learned)
    assert "most frequent label is right for 86.0 %" in found["Did it learn?"]
    assert found["How good is it?"].startswith(good)
    assert f"macro F1 {100 * macro_f1:.2f} % against 92.00 %" in found["How good is it?"]
    assert good in model_card(run)


@pytest.mark.parametrize(
    ("written", "learned", "good"),
    [
        (["one two three four five six"], "Yes: BLEU is 100.00", "Better than the most similar training"),
        (["six of six one nine"], "Hardly: BLEU is ", "Not yet worth its training"),
    ],
)
def test_a_model_of_pairs_is_held_against_a_copy_and_the_best(written: list[str], learned: str, good: str) -> None:
    target = ["one two three four five six"]
    beside = [
        Beside("copy of the source", metrics_of(score_texts(["one two three four nine"], target))),
        Beside(
            "most similar training sentence's translation", metrics_of(score_texts(["one two three four five"], target))
        ),
    ]
    scores = TaskEvaluation("pairs", "p", 1, score_texts(written, target), beside, [])
    found = answers(report_page(with_scores(scores.as_record(), [])))
    assert found["Did it learn?"].startswith(learned)
    assert found["How good is it?"].startswith(good)


def test_a_run_that_was_not_scored_says_so(home: Path) -> None:
    found = answers(report_of(home / "stopped"))
    assert "guessing blindly among 3 labels would be right for 33.3 %" in found["Did it learn?"]
    assert found["How good is it?"].startswith("It was not scored")
    assert ModelCard(card_of(home / "stopped")).data.pipeline_tag == "text-classification"


@pytest.mark.parametrize("kind", ["tuned", "lora", "both"])
def test_what_became_of_the_other_text_is_told_and_drawn(home: Path, kind: str) -> None:
    text, run = report_of(home / kind), recorded_of(home / kind)
    before, best = run.before, run.best
    assert best and before["also_val_loss"] > 0
    told = answers(text)["How good is it?"]
    assert f"its loss was {before['also_val_loss']:.3f} nats per token before this run and is" in told
    assert f"is {best['also_val_loss']:.3f} now" in told
    assert f"right for {100 * best['also_val_accuracy']:.1f} % of the tokens" in told
    page = check_well_formed(text)
    dots = [title for title in page.inside("title") if title.startswith("now ")]
    steps = [0, *(one["step"] for one in run.evaluations)]
    assert [int(dot.split(" at ")[1]) for dot in dots] == 2 * steps  # of the loss, and of the accuracy
    losses = [before["also_val_loss"], *(one["also_val_loss"] for one in run.evaluations)]
    assert [float(dot.split()[1]) for dot in dots[: len(steps)]] == pytest.approx(losses, rel=0.01)
    table = next(table for table in page.tables if table[0][:2] == ["step", "epoch"])
    place = table[0].index("other text: loss")
    assert all(shows(row[place], one["also_val_loss"]) for row, one in zip(table[1:], run.evaluations, strict=True))
    where = f"(base) its loss was {before['also_val_loss']:.3f} nats per token before this run"
    assert where in unescaped(card_of(home / kind))  # without the folder of this machine


@pytest.mark.parametrize(
    ("now", "change"), [(2.5, "it got worse by 0.500"), (1.5, "it got better by 0.500"), (2.001, "it stayed as it was")]
)
def test_forgetting_is_told_by_how_much(now: float, change: str) -> None:
    val = {"step": 3, "epoch": 1, "val_loss": 1.0, "val_accuracy": 0.5, "val_perplexity": 2.7, "also_val_loss": now}
    before = {"also_val_loss": 2.0, "also_val_perplexity": None, "also_val_accuracy": float("nan")}
    records = [{"step": 0, "before": before}, val | {"also_val_accuracy": 0.5}]
    run = Recorded("run", records, {"also_evaluate": ["<old>.txt"]}, {"slm": "1"})
    assert change in task_words.forgetting(run)
    assert task_words.has_forgotten(run) == (now == 2.5)
    text = report_page(run)
    check_harmless(text)
    assert ("To forget less" in text) == (now == 2.5)
    assert "first guess" not in task_words.forgetting(run)
    unknown = Recorded("run", [{"step": 0, "before": {"also_val_loss": float("inf")}}, val], {"seed": 1}, {"slm": "1"})
    assert "its loss is" in task_words.forgetting(unknown)
    assert "infinite" not in report_page(unknown)
    # A run that was gone on with may have lost its first records.
    alone = Recorded("run", [val], {"seed": 1}, {"slm": "1"})
    assert "its loss is" in task_words.forgetting(alone) and check_well_formed(report_page(alone))


@pytest.mark.parametrize("kind", ["labels", "pairs", "head", "lora", "tuned", "both"])
def test_the_numbers_of_parameters_are_those_of_the_model(home: Path, kind: str) -> None:
    run, model = recorded_of(home / kind), slm.load(home / kind).model
    text = html.unescape(report_of(home / kind))
    weights = dict(model.named_parameters())
    lora = sum(weight.numel() for name, weight in weights.items() if "lora" in name)
    whole = sum(weight.numel() for weight in weights.values()) - lora
    assert f"{whole:,} parameters: 1 layer" in text
    assert f"of {words.count(whole)} parameters" in text
    facts = dict(task_words.facts(run))
    head = sum(weight.numel() for name, weight in weights.items() if name.startswith("class_head"))
    expected = {
        "head": f"the class head alone: {head:,} of {whole:,} parameters",
        "lora": f"small matrices of rank 3 beside its own (LoRA): {lora:,} parameters",
        "tuned": f"all of it: {whole:,} parameters",
        "both": f"all of it: {whole:,} parameters",
    }
    assert facts.get("trained of it", "").startswith(expected.get(kind, ""))
    assert ("base model" in facts) == (kind in expected)
    if kind in expected:
        assert facts["base model"] == str(home / "base")


@pytest.mark.parametrize("kind", ["labels", "pairs", "lora"])
def test_the_code_on_the_page_uses_the_model(
    home: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = (text for text in check_well_formed(report_of(home / kind)).inside("pre") if "slm.load(" in text)
    monkeypatch.setattr(slm, "explain", lambda *_: None)
    exec(code, {})
    assert capsys.readouterr().out
    (command,) = (line.strip("# ") for line in code.splitlines() if "slm-generate" in line)
    assert generate_command.main(shlex.split(command)[1:]) == 0
    printed = capsys.readouterr().out
    assert printed.split()[0] in [label for _, label in LABELLED] if kind == "labels" else printed
    assert ("merge()" in code) == (kind == "lora")


def test_facts_tell_what_was_learned_from_what(home: Path) -> None:
    facts = dict(task_words.facts(recorded_of(home / "labels")))
    made = recorded_of(home / "labels").made_with
    assert facts["labels"] == "3: eat, run, sleep"
    assert facts["training examples"].startswith(f"{made['train_examples']} ")
    assert facts["validation examples"].startswith(f"{made['val_examples']} of ")
    run = recorded_of(home / "labels")
    assert run.passes == pytest.approx(next(one["epoch"] for one in reversed(run.evaluations)), abs=1)
    page = check_well_formed(report_of(home / "labels"))
    assert {"to tell the label of a text", "3: eat, run, sleep"} <= {text.strip() for text in page.inside("td")}


def body_of(card: str) -> str:
    """What Markdown makes of a card: without its head, code, and the comment at its end."""
    body = without_code(card.split("\n---\n")[1].rsplit("<!--", 1)[0])
    return re.sub("`slm[^`]*`", "", body)


CARDS = {"labels": "text-classification", "pairs": "text2text-generation", "tuned": "text-generation"}


@pytest.mark.parametrize("kind", ["labels", "pairs", "head", "both", "tuned", "lora"])
def test_the_hub_reads_the_card_and_finds_the_numbers_of_the_run(home: Path, kind: str) -> None:
    text, run = card_of(home / kind), recorded_of(home / kind)
    data = ModelCard(text).data
    tag = CARDS.get(kind, {"classification": "text-classification", "pairs": "text2text-generation"}.get(run.task))
    assert data.pipeline_tag == (tag or "text-generation")
    assert data.tags == ["slm", data.pipeline_tag]
    assert {one.task_type for one in data.eval_results} == {data.pipeline_tag}
    found = {one.metric_type: one.metric_value for one in data.eval_results}
    assert run.best
    if run.task:
        metrics = {{"macro_f1": "f1"}.get(name, name): value for name, value in run.task_scores["metrics"].items()}
        assert found == pytest.approx({**metrics, "loss": run.best["val_loss"]}, abs=1e-6)
        assert ("run.classify(" in text) == (run.task == "classification")
        assert ("run.complete(" in text) == (run.task == "pairs")
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
        assert [row[0] for row in rows if row[0] in {one.name for one in run.task_ranked}] == [
            one.name for one in run.task_ranked
        ]
    assert ("- base model: base\n" in text) == (kind not in ("labels", "pairs"))
    for part in home.parts[1:]:
        assert part not in text
    assert active(body_of(text)) <= {"|"}  # of tables of our own


@pytest.mark.skipif(os.name == "nt", reason="the paths are those of other systems")
def test_no_folder_of_the_model_before_or_of_the_other_text_is_told() -> None:
    run = made_up()
    for start in ("/home/secret/base", "/home/secret/base/model.pt"):
        paths = {"init_from": start, "also_evaluate": ["/mnt/private/old.txt"]}
        base = {"base": {"path": "/home/secret/base/model.pt", "checksum": ""}}
        records = [{**one, "also_val_loss": 3.0} if "val_loss" in one else one for one in run.records]
        text = model_card(Recorded("run", records, {**run.resolved, **paths}, {**run.made_with, **base}, paths))
        assert "- base model: base\n" in text and "- the other text: old.txt\n" in text and "(old.txt)" in text
        assert "secret" not in text and "private" not in text


def test_markup_in_labels_and_texts_is_text(home: Path) -> None:
    plain, scores = recorded_of(home / "labels"), scores_of(home / "labels")

    def with_markup(mark: str) -> Recorded:
        labels = [label + mark for label in scores["scores"]["labels"]]
        by_label = [{**one, "label": one["label"] + mark} for one in scores["scores"]["by_label"]]
        examples = [{name: mark + text for name, text in one.items()} for one in scores["examples"]]
        changed = {
            **scores,
            "text": scores["text"] + mark,
            "scores": {**scores["scores"], "labels": labels, "by_label": by_label},
            "examples": examples,
            "yardsticks": [{**one, "told": mark} for one in scores["yardsticks"]],
            "missing": [f"missing {mark}"],
        }
        records = [{**one, "task_scores": changed} if "task_scores" in one else one for one in plain.records]
        made = plain.made_with | {
            "task": {**plain.made_with["task"], "labels": labels},
            "base": {"path": f"a{mark}/model.pt", "checksum": ""},
        }
        resolved = plain.resolved | {"also_evaluate": [mark]}
        return Recorded("run", records, resolved, made, plain.asked)

    hostile, tame = (with_markup(mark) for mark in (HOSTILE, "x" * len(HOSTILE)))
    page = check_harmless(report_page(hostile))
    assert page.skeleton == check_harmless(report_page(tame)).skeleton
    assert page.text.count("</script>") > 10
    check_harmless(comparison_page([hostile, tame], []))
    body = body_of(model_card(hostile))
    assert active(body) <= {"|"}  # of tables of our own
    assert all(len(set(re.findall(r"(?<!\\)\|", row))) <= 1 for row in body.splitlines())
    columns = {row.count("|") - row.count("\\|") for row in body.splitlines() if row.startswith("|")}
    assert columns == {4, 6}
    ModelCard(model_card(hostile))


def test_numbers_on_shades_can_be_read_in_light_and_dark() -> None:
    themes = set(re.findall(r"\{([^{}]*--ink:[^{}]*)\}", STYLE))
    deepest = max(float(opacity) for opacity in re.findall(r"rgba\(var\(--heat\), ([\d.]+)\)", tasks.STYLE))
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", theme))
        (heat,) = re.findall(r"--heat: (\d+), (\d+), (\d+);", theme)
        ground = [int(colours["paper"][place : place + 2], 16) for place in (1, 3, 5)]
        mixed = [round(deepest * int(h) + (1 - deepest) * g) for h, g in zip(heat, ground, strict=True)]
        assert contrast(colours["ink"], "#" + "".join(f"{one:02x}" for one in mixed)) >= 4.5


def test_runs_of_one_task_are_ranked_by_their_scores(home: Path) -> None:
    text, told = comparison([str(home / "labels"), str(home / "head")])
    check_harmless(text)
    page = check_well_formed(text)
    assert told[0].startswith("No paired verdict: ")
    table = next(table for table in page.tables if table[0][0] == "run")
    assert table[0][-2:] == ["accuracy", "macro F1"] and "bits per byte" not in table[0]
    runs = [recorded_of(home / name) for name in ("labels", "head")]
    best = max((0, 1), key=lambda number: runs[number].task_scores["metrics"]["macro_f1"])
    for number, (row, run) in enumerate(zip(table[1:3], runs, strict=True)):
        assert all(map(shows, row[-2:], run.task_scores["metrics"].values()))
        assert ("best of these" in row[0]) == (number == best)  # though their tokenizers differ
    simple = runs[best].best_simple
    assert simple and table[3][0].startswith(simple.name)
    assert ("None of them beats" in page.text) == (
        runs[best].task_scores["metrics"]["macro_f1"] <= simple.metrics["macro_f1"]
    )
    assert "nats per label" in page.text and "perplexity" not in page.text


def test_a_source_and_what_was_written_for_it_stand_apart() -> None:
    sample = {"step": 2, "prompt": "a source", "sample": "its target"}
    for made_with, between in (({"task": {"name": "pairs"}}, "\n"), ({}, "")):
        one = Recorded("run", [sample], {}, {"slm": "1", **made_with})
        text = comparison_page([one, one], [])
        check_well_formed(text)
        assert text.count(f"a source{between}</span>its target") == 2


def test_runs_of_different_tasks_are_not_ranked(home: Path) -> None:
    for names in (("labels", "pairs"), ("pairs", "base"), ("base", "labels", "tuned"), ("stopped", "labels")):
        text, _ = comparison([str(home / name) for name in names])
        page = check_well_formed(text)
        check_harmless(text)
        table = next(table for table in page.tables if table[0][0] == "run")
        metrics = {"labels": {"accuracy", "macro F1"}, "pairs": {"BLEU", "chrF", "exact match"}}
        assert set().union(*(metrics.get(name, set()) for name in names)) <= set(table[0])
        if names != ("stopped", "labels"):
            assert "best of these" not in page.text
    assert "other text: loss" in comparison([str(home / "tuned"), str(home / "lora")])[0]


def test_other_examples_are_not_compared() -> None:
    first, second = with_model(0.9, 0.9), with_model(0.8, 0.8)
    other = Recorded("run", second.records, second.resolved, {**second.made_with, "val_examples": 7}, second.asked)
    for runs, best in (([first, second], "A"), ([second, first], "B")):
        table = next(table for table in check_well_formed(comparison_page(runs, [])).tables if table[0][0] == "run")
        assert [row[0][0] for row in table if "best of these" in row[0]] == [best]
    text = Recorded("text", [one for one in first.records if "task_scores" not in one], {}, {"slm": "1"})
    assert "best of these" not in comparison_page([text, text, first], [])
    assert "best of these" not in comparison_page([first, other], [])


def test_pictures_have_the_other_text_and_the_right_unit(home: Path) -> None:
    runs = {name: recorded_of(home / name) for name in ("labels", "head", "pairs", "tuned")}
    assert plot([runs["labels"], runs["head"]]).axes[0].get_ylabel() == "loss, nats per label"
    assert plot([runs["labels"], runs["pairs"]]).axes[0].get_ylabel() == "loss, nats"
    assert plot([runs["pairs"]]).axes[0].get_ylabel() == "loss, nats per token"
    axes = plot([runs["tuned"]]).axes[0]
    (line,) = (line for line in axes.get_lines() if line.get_label() == f"{home / 'tuned'}, the other text")
    evaluations = runs["tuned"].evaluations
    assert list(line.get_xdata()) == [0, *(one["step"] for one in evaluations)]
    losses = [runs["tuned"].before["also_val_loss"], *(one["also_val_loss"] for one in evaluations)]
    assert list(line.get_ydata()) == losses
    low, high = axes.get_ylim()
    assert low < min(losses) and max(losses) < high


def test_a_report_can_be_made_anew(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        before = report_of(home / kind), card_of(home / kind)
        assert report_command.main([str(home / kind)]) == 0
        again = report_of(home / kind), card_of(home / kind)
        assert len(again[0]) == len(before[0]) and again[1] == before[1]
    capsys.readouterr()


@pytest.mark.parametrize("kind", KINDS)
def test_advice_is_a_command_that_slm_train_takes(home: Path, kind: str) -> None:
    run = recorded_of(home / kind)
    for found in [*diagnose(run), next_step(run)]:
        command = words.command(run, found.flag)
        keys = make_parser(everything=False).parse(shlex.split(command)[1:])
        if "init_from" in keys:  # which brings them
            assert not {"tokenizer", "vocab_size", "embed_dim", "num_layers"} & set(keys)
        slm.settings.layered(keys, "flag")


def test_a_run_that_starts_from_a_model_is_not_told_to_change_its_sizes() -> None:
    scores = TaskEvaluation("pairs", "a.tsv", 1, score_texts(["one two three four"], ["one two three four"]))
    run = with_scores(scores.as_record(), [], tokenizer="bpe", vocab_size=2048, embed_dim=64)
    free = Recorded("run", run.records, run.resolved, {**run.made_with, "train_tokens": 3000}, run.asked)
    assert [one.flag.split()[0] for one in diagnose(free)] == ["--vocab_size"]
    for trainable, flag in (
        ("all", "--data mails.tsv more.tsv"),
        ("lora", "--trainable all"),
        ("head", "--trainable all"),
    ):
        resolved = {**run.resolved, "init_from": "base", "trainable": trainable}
        tuned = Recorded("run", run.records, resolved, free.made_with, run.asked)
        assert diagnose(tuned) == []
        assert next_step(tuned).flag == flag


def test_a_bounce_of_a_loss_on_few_examples_is_no_overfitting() -> None:
    run = with_model(0.9, 0.9)
    train = [{"step": step, "train_loss": 1 / step} for step in range(1, 13)]
    bounces = [1.0, 0.8, 0.9, 0.7, 0.6, 0.75, 0.65, 0.7]
    rises = [1.0, 0.8, 0.7, 0.6, 0.7, 0.8, 0.9, 1.0]
    for losses, names in ((bounces, []), (rises, ["overfitting"])):
        val = [
            {"step": step, "epoch": 1, "val_loss": loss, "val_accuracy": 0.5, "val_perplexity": 2.0}
            for step, loss in enumerate(losses, 1)
        ]
        records = [*train, *val, *(one for one in run.records if "val_loss" not in one)]
        found = diagnose(Recorded("run", records, run.resolved, run.made_with, run.asked))
        assert [one.name for one in found] == names
    assert "training examples by heart" in found[0].told


def test_findings_of_tasks() -> None:
    worse = with_model(0.9, 0.9, ("TF-IDF of words", 0.97, 0.96))
    (found,) = diagnose(worse)
    assert found.name == "worse than a simple method" and "90.00 % is below the 96.00 %" in found.told
    assert found.flag.startswith("--epochs")  # it was at its best at the end
    assert diagnose(with_model(0.9, 0.9, ("TF-IDF of words", 0.9, 0.9))) == []
    records = [{**one, "val_loss": 3.0} if one.get("step") == 2 and "val_loss" in one else one for one in worse.records]
    early = Recorded("run", records, worse.resolved, worse.made_with, {"data": ["a.tsv"], "embed_dim": 32})
    (found,) = diagnose(early)
    assert found.flag == "--init_from runs/base"
    assert "embed_dim" not in words.command(early, found.flag)
    labels = ["often", "rare"]
    scores = score_labels([0] * 90 + [1] * 10, [0] * 92 + [1] * 8, labels)
    assert diagnose(scored(scores, labels)) == []
    scores = score_labels([0] * 50 + [1] * 50, [0] * 90 + [1] * 10, labels)
    assert diagnose(scored(scores, labels)) == []  # the label that is missed is not rare
    scores = score_labels([0] * 90 + [1] * 10, [0] * 97 + [1] * 3, labels)
    (found,) = diagnose(scored(scores, labels))
    assert found.name == "rare labels" and found.flag == "--class_weights balanced" and not found.is_trouble
    assert "Of the 10 validation examples with the rare label 'rare' only 3 got it." in found.told
    assert diagnose(scored(scores, labels, class_weights="balanced")) == []


def scored(scores: Any, labels: list[str], **resolved: Any) -> Recorded:
    evaluation = TaskEvaluation("classification", "a", 100, scores)
    return with_scores(evaluation.as_record(), labels, **resolved)


def test_noise_of_a_small_loss_is_no_high_learning_rate() -> None:
    run = with_model(0.99, 0.99)
    losses = [0.7, 0.3, 0.1, *(0.02 if step % 9 else 0.1 for step in range(1, 40))]
    norms = [
        {"step": step, "train_loss": loss, "grad_norm": 9.0, "clipped_steps": step} for step, loss in enumerate(losses)
    ]
    quiet = Recorded("run", [*norms, *run.records], {**run.resolved, "max_grad_norm": 1.0}, run.made_with, run.asked)
    assert not [one for one in diagnose(quiet) if "learning rate" in one.name]
    high = [{**one, "train_loss": 3.0} if one["step"] == 20 else one for one in norms]
    loud = Recorded("run", [*high, *run.records], quiet.resolved, run.made_with, run.asked)
    assert [one.name for one in diagnose(loud)][:1] == ["learning rate too high"]


def test_more_data_is_of_the_same_kind() -> None:
    run = with_model(0.9, 0.9)
    for data, targets, flags in (
        (["a.de"], ["a.en"], "--data a.de more.de --target_file a.en more.en"),
        (["a.de"], ["a.en", "val.en"], "--data a.de more.de --target_file a.en more.en val.en"),
        (["a b.csv"], None, "--data 'a b.csv' more.csv"),
        (["stories:1MB"], None, "--data stories:5MB"),
    ):
        asked = {"data": data, **({"target_file": targets} if targets else {})}
        resolved = {**run.resolved, "init_from": "base", "trainable": "all"}
        made = {**run.made_with, "text_bytes": 1_000_000}
        assert next_step(Recorded("run", run.records, resolved, made, asked)).flag == flags


def test_pages_of_a_language_model_have_no_word_of_tasks(home: Path) -> None:
    pages = pages_of(recorded_of(home / "base"))
    text = re.sub(r"<h2>Settings</h2>.*?<h2>", "<h2>", pages["report.html"], flags=re.DOTALL)
    for word in ("label of", "macro F1", "BLEU", "other text", "base model", "matrix", "fine-tuning"):
        assert word not in text + pages["MODEL_CARD.md"], word
    assert task_words.glossary(recorded_of(home / "base")) == words.WORDS
