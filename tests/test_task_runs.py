"""Laws of runs that learn pairs or labels: from files to answers, through the same loop, folders and commands."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL

import slm
from slm import answering, dial, ending
from slm.cli import evaluate as evaluate_command
from slm.cli import generate as generate_command
from slm.cli.train import main
from slm.config import FIELDS, TaskConfig, UserError
from slm.data.examples import given_examples, split_examples
from slm.data.stories import translate
from slm.data.story_tasks import story_examples
from slm.model.beam import beam_search
from slm.recipes import TASK_PRESETS
from slm.settings import layered
from slm.task_config import TASKS
from slm.task_scores import score_task
from slm.training import budget

pytestmark = pytest.mark.filterwarnings("ignore:only .* step", "ignore:the plan reads")
SIZES = {**SMALL, "embed_dim": 32, "max_steps": 60, "learning_rate": 1e-2, "positions": "rope", "val_fraction": 0.25}
del SIZES["max_seq_len"]
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "red": "rot", "cat": "Katze", "dog": "Hund"}
PAIRS = [(f"{a} {b}", f"{WORDS[b]} {WORDS[a]}") for a in WORDS for b in WORDS]
LABELLED = [(f"{a} {b} {c}", "cat" if "cat" in (a, b, c) else "none") for a in WORDS for b in WORDS for c in WORDS]


def run_of(task: str, **changes: Any) -> slm.Run:
    data = {"pairs": PAIRS, "classification": LABELLED}[task]
    return slm.train(data, **{**SIZES, "task": task, **changes})


def run_of_base(base: str, task: str, **changes: Any) -> slm.Run:
    data = {"pairs": PAIRS, "classification": LABELLED}[task]
    kept = {name: SIZES[name] for name in ("batch_size", "device", "precision", "threads", "quiet")}
    return slm.train(data, init_from=base, **{**kept, "task": task, "max_steps": 3, **changes})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with examples in files, and with a run of each task on them."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "pairs.jsonl").write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in PAIRS))
    (folder / "labels.tsv").write_text("".join(f"{label}\t{text}\n" for text, label in LABELLED))
    (folder / "a.en").write_text("".join(f"{s}\n" for s, _ in PAIRS))
    (folder / "a.de").write_text("".join(f"{t}\n" for _, t in PAIRS))
    slm.train(folder / "pairs.jsonl", model_dir=folder / "pairs", **{**SIZES, "task": "pairs"})
    labels = {"task": "classification", "text_field": "1", "label_field": "0", "max_steps": 150}
    slm.train(folder / "labels.tsv", model_dir=folder / "labels", **{**SIZES, **labels})
    return folder


def scores(folder: Path) -> dict[str, Any]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (found,) = [record["task_scores"] for record in records if "task_scores" in record]
    return dict(found)


def test_what_is_learned_is_answered_after_loading(home: Path) -> None:
    run = slm.load(home / "labels")
    found = run.classify(["one cat two", "one dog two"])
    assert [one.label for one in found] == ["cat", "none"]
    for one in found:
        assert one.probability == max(one.probabilities.values()) == one.probabilities[one.label]
        assert math.isclose(sum(one.probabilities.values()), 1)
        assert list(one.probabilities) == ["cat", "none"]


def test_the_label_of_a_text_does_not_depend_on_others_beside_it(home: Path) -> None:
    run = slm.load(home / "labels")
    texts = [text for text, _ in LABELLED[:70]] + ["", "a much longer text than all of the others"]
    together = run.classify(texts)
    for text, one in zip(texts, together, strict=True):
        (alone,) = run.classify(text)
        assert alone.label == one.label
        assert alone.probability == pytest.approx(one.probability, rel=1e-5)
    assert run.classify([]) == []


def test_a_completion_is_the_beam_search_in_the_template(home: Path) -> None:
    run = slm.load(home / "pairs")
    assert run.tokenizer and run.task
    made = run.complete("one cat")
    end, begins = run.tokenizer.end_id, run.tokenizer.id_of("<|target|>")
    assert end is not None
    prompt = [end, *run.tokenizer.encode("one cat"), begins]
    ((best, *_),) = beam_search(run.model, [prompt], end_id=end, num_beams=4)
    assert made == run.tokenizer.decode(best.ids).strip()
    assert run.complete(["one cat", "red dog"])[0] == made
    greedy = slm.generate_tokens(run.model, [prompt], end_id=end, temperature=0.0, max_new_tokens=20)[0].tolist()
    expected = run.tokenizer.decode(greedy[: greedy.index(end)] if end in greedy else greedy).strip()
    assert run.complete("one cat", num_beams=1, max_new_tokens=20) == expected


def test_beams_and_penalty_are_those_of_the_run_unless_others_are_named(home: Path, tmp_path: Path) -> None:
    run = run_of("pairs", num_beams=1, model_dir=tmp_path / "greedy")
    assert slm.load(tmp_path / "greedy").resolved["num_beams"] == 1
    assert run.complete("one cat") == run.complete("one cat", num_beams=1)
    with pytest.raises(UserError, match=r"num_beams = 0: must be at least 1"):
        run.complete("one cat", num_beams=0)


def test_each_run_refuses_what_is_of_another_task(home: Path) -> None:
    pairs, labels = slm.load(home / "pairs"), slm.load(home / "labels")
    with pytest.raises(UserError, match=r"tells labels: use run.classify. For pairs"):
        labels.complete("x")
    with pytest.raises(UserError, match=r"writes targets of sources: use run.complete. For classification"):
        pairs.classify("x")
    with pytest.raises(UserError, match=r"tells labels, and writes no text: use run.classify"):
        labels.generate("x")
    text = slm.train(["some text of no task " * 90], **{**SIZES, "max_steps": 2})
    with pytest.raises(UserError, match=r"goes on with text: use run.generate"):
        text.classify("x")
    with pytest.raises(UserError, match="texts = 3, a int: must be a str"):
        labels.classify([3])  # type: ignore[list-item]


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_generate_takes_a_source_in_its_template(home: Path) -> None:
    run = slm.load(home / "pairs")
    text = run.generate("one cat", temperature=0.0, max_new_tokens=20)
    assert text.strip() == run.complete("one cat", num_beams=1, max_new_tokens=20)


def test_a_finished_run_has_scores_with_yardsticks_and_examples(home: Path) -> None:
    pairs, labels = scores(home / "pairs"), scores(home / "labels")
    assert set(pairs["metrics"]) == {"bleu", "chrf", "exact_match"}
    assert {one["name"].split()[0] for one in pairs["yardsticks"]} == {"copy", "most"}
    assert set(labels["metrics"]) == {"accuracy", "macro_f1"}
    assert "majority label" in {one["name"] for one in labels["yardsticks"]}
    assert labels["metrics"]["accuracy"] > 0.9
    for found in (pairs, labels):
        assert found["examples"]
        assert {"given", "expected", "answered"} == set(found["examples"][0])


@pytest.mark.parametrize("name", ["pairs", "labels"])
def test_an_evaluation_of_the_own_examples_gives_the_scores_of_the_run_again(home: Path, name: str) -> None:
    found = slm.evaluate(home / name)
    assert found.as_record()["metrics"] == pytest.approx(scores(home / name)["metrics"])  # type: ignore[union-attr]
    assert [one.name for one in found.yardsticks]
    assert not slm.evaluate(home / name, with_yardsticks=False).yardsticks


def test_an_evaluation_reads_other_examples_in_the_way_of_the_training(home: Path, tmp_path: Path) -> None:
    (tmp_path / "other.tsv").write_text("cat\tone cat two\nnone\tone two two\ncat\tno such animal\n")
    found = slm.evaluate(home / "labels", tmp_path / "other.tsv", with_yardsticks=False)
    assert found.num_examples == 3  # type: ignore[union-attr]
    answered = slm.load(home / "labels").classify("no such animal")[0].label
    assert found.metrics["accuracy"] == pytest.approx(1 if answered == "cat" else 2 / 3)  # type: ignore[union-attr]
    given = slm.evaluate(home / "pairs", [("one cat", "Katze eins")], with_yardsticks=False, num_beams=1)
    assert given.num_examples == 1  # type: ignore[union-attr]
    (tmp_path / "bad.tsv").write_text("dog\tone cat two\n")
    with pytest.raises(UserError, match=r"the label 'dog' in .*bad.tsv is none that this model knows: 'cat', 'none'"):
        slm.evaluate(home / "labels", tmp_path / "bad.tsv")
    with pytest.raises(UserError, match="stride = 3 is for running text"):
        slm.evaluate(home / "labels", stride=3)
    with pytest.raises(UserError, match="split_documents_on is no setting for classification"):
        slm.evaluate(home / "labels", split_documents_on="x")
    with pytest.raises(UserError, match=r"learned classification: its scores are told one run at a time"):
        slm.compare(home / "labels", home / "pairs")


def test_two_aligned_files_are_the_same_pairs_as_a_table(home: Path, tmp_path: Path) -> None:
    aligned = slm.train(home / "a.en", target_file=home / "a.de", **{**SIZES, "task": "pairs"})
    table = slm.train(home / "pairs.jsonl", **{**SIZES, "task": "pairs"})
    given = run_of("pairs")
    states = [run.model.state_dict() for run in (aligned, table, given)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]) and torch.equal(tensor, states[2][name])
    beside = slm.train(
        home / "a.en",
        val_data=home / "a.en",
        target_file=[home / "a.de", home / "a.de"],
        **{**SIZES, "task": "pairs", "max_steps": 2},
    )
    assert beside.data is not None and len(beside.data.val_dataset) == len(PAIRS)


@pytest.mark.parametrize(
    ("data", "settings", "told"),
    [
        ("pairs.jsonl", {"task": "pairs", "source_field": "quelle"}, "has no field 'quelle'"),
        ("labels.tsv", {"task": "classification"}, "label_field|text_field"),
        ("a.en", {"task": "classification"}, "table"),
        ("a.en", {"task": "pairs"}, "table|target_file"),
        (
            "a.en",
            {"task": "pairs", "target_file": ["a.de", "a.de"]},
            "target_file names 2 files: it needs one for each",
        ),
        ("a.en", {"task": "pairs", "target_file": "pairs.jsonl"}, "pairs.jsonl is a table: with target_file"),
        (None, {"task": "pairs"}, "task = 'pairs' needs examples: name a table with data"),
        ("nowhere.tsv", {"task": "pairs"}, "nowhere.tsv"),
        ("pairs.jsonl", {"task": "poetry"}, "task = 'poetry': must be one of language_model, pairs, classification"),
    ],
    ids=str,
)
def test_bad_examples_get_one_message_and_nothing_is_written(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: str | None,
    settings: dict[str, Any],
    told: str,
) -> None:
    monkeypatch.chdir(home)
    flags = [*([] if data is None else ["--data", data]), "--model_dir", str(tmp_path / "run")]
    for name, value in settings.items():
        flags += [f"--{name}", *([value] if isinstance(value, str) else value)]
    before = sorted(path.name for path in home.iterdir())
    try:
        code = main(flags)
    except SystemExit as stop:
        code = int(stop.code or 0)
    error = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in error
    if settings.get("task") != "poetry":  # which argparse tells in its own words
        assert any(part in error for part in told.split("|")), error
    assert not (tmp_path / "run").exists()
    assert sorted(path.name for path in home.iterdir()) == before


def test_one_label_is_no_classification() -> None:
    with pytest.raises(UserError, match="label"):
        slm.train([(text, "same") for text, _ in LABELLED], **{**SIZES, "task": "classification"})


@pytest.mark.parametrize("task", ["pairs", "classification"])
def test_an_interrupted_command_goes_on_and_ends_as_the_unbroken_one(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    calls = iter(range(1000))
    run_of(task, model_dir=tmp_path / "run", should_stop=lambda: next(calls) >= 20, dropout=0.1)
    run = run_of(task, model_dir=tmp_path / "run", dropout=0.1)
    whole = run_of(task, model_dir=tmp_path / "whole", dropout=0.1)
    assert run.history is not None and run.history.resumed_from == 20
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name])
    assert scores(tmp_path / "run")["metrics"] == scores(tmp_path / "whole")["metrics"]
    with pytest.raises(UserError, match="already holds a run, which finished at step 60"):
        run_of(task, model_dir=tmp_path / "run", dropout=0.1)
    with pytest.raises(UserError, match=r"other settings: .*task was"):
        slm.train("stories:20KB", model_dir=tmp_path / "run", **SMALL)


@pytest.mark.parametrize("task", ["pairs", "classification"])
@pytest.mark.usefixtures("fake")
def test_a_run_of_a_task_is_saved_to_a_bucket_and_loaded_from_it(task: str, machine: Callable[[str], Path]) -> None:
    run = run_of(task, model_dir="gs://bucket/run", max_steps=6)
    machine("another machine")
    loaded = slm.load("gs://bucket/run")
    assert loaded.task == run.task
    if task == "pairs":
        assert loaded.complete("one cat") == run.complete("one cat")
    else:
        assert loaded.classify("one cat")[0].probabilities == run.classify("one cat")[0].probabilities
    tuned = run_of_base("gs://bucket/run", task, model_dir="gs://bucket/tuned", trainable="lora")
    machine("a third machine")
    again = slm.load("gs://bucket/tuned")  # with its base, from the bucket, too
    for name, tensor in tuned.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def answers(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    capsys.readouterr()
    assert generate_command.main(arguments) == 0
    return capsys.readouterr().out


def test_the_command_answers_as_the_run_does(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, labels = slm.load(home / "pairs"), slm.load(home / "labels")
    out = answers(capsys, ["--model_dir", str(home / "pairs"), "--prompt", "one cat"])
    assert out == pairs.complete("one cat") + "\n"
    out = answers(capsys, ["--model_dir", str(home / "pairs"), "--prompt", "one cat", "--output", "json"])
    assert json.loads(out) == {"prompt": "one cat", "text": pairs.complete("one cat")}
    (found,) = labels.classify("one cat two")
    out = answers(capsys, ["--model_dir", str(home / "labels"), "--prompt", "one cat two"])
    assert out == f"cat ({100 * found.probability:.1f} %)\n"
    out = answers(capsys, ["--model_dir", str(home / "labels"), "--prompt", "one cat two", "--output", "json"])
    assert json.loads(out)["probabilities"] == found.probabilities


@pytest.mark.parametrize(
    ("run", "flags", "told"),
    [
        ("labels", ["--num_beams", "2"], "num_beams is for models trained with --task pairs"),
        ("labels", ["--temperature", "1"], "temperature is for models that write, and this one tells labels"),
        ("pairs", ["--num_beams", "2", "--temperature", "1"], "num_beams searches for the best target and temperature"),
    ],
)
def test_the_command_refuses_settings_without_a_use(
    home: Path, capsys: pytest.CaptureFixture[str], run: str, flags: list[str], told: str
) -> None:
    assert generate_command.main(["--model_dir", str(home / run), "--prompt", "one", *flags]) == 2
    assert told in capsys.readouterr().err


def test_the_command_evaluates_a_task(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_command.main(["--model_dir", str(home / "labels"), "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"] == pytest.approx(scores(home / "labels")["metrics"])
    assert evaluate_command.main(["--model_dir", str(home / "pairs"), "--quiet", "--no_yardsticks"]) == 0
    assert "BLEU" in capsys.readouterr().out
    assert evaluate_command.main(["--model_dir", str(home / "pairs"), "--stride", "3"]) == 2
    assert "stride = 3 is for running text" in capsys.readouterr().err


def test_samples_in_training_are_targets_of_validation_sources(home: Path) -> None:
    run = run_of("pairs", sample_every=1, quiet=False, max_steps=5)
    assert run.history is not None and run.data is not None and run.data.val_examples is not None
    prompts = {record["prompt"] for record in run.history.records if "sample" in record}
    assert prompts and prompts <= set(run.data.val_examples.inputs)


def test_validation_examples_are_no_training_examples(home: Path) -> None:
    twice = [*PAIRS, *PAIRS]
    run = slm.train(twice, **{**SIZES, "task": "pairs", "max_steps": 2})
    assert run.data is not None and run.data.val_examples and run.data.train_examples
    assert not set(run.data.val_examples.inputs) & set(run.data.train_examples.inputs)


@pytest.mark.filterwarnings("ignore:54 texts of 54 cut")
def test_a_text_that_is_cut_is_told_in_training_and_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of("classification", max_seq_len=6, quiet=False, max_steps=2)
    assert "texts cut at the end, longer than max_seq_len = 6" in capsys.readouterr().out.replace("\n", " ")
    with pytest.warns(UserWarning, match="1 text of 1 cut at the end: this model looks at 6 tokens at most"):
        run.classify("one two three")


def test_a_window_fits_the_longest_example_unless_somebody_sets_it() -> None:
    run = run_of("pairs", max_steps=2)
    assert run.model.config.max_seq_len == 64
    long = slm.train([*PAIRS, ("x " * 60, "y " * 60)] * 4, **{**SIZES, "task": "pairs", "max_steps": 2})
    assert long.model.config.max_seq_len == 256
    assert run_of("pairs", max_steps=2, max_seq_len=40).model.config.max_seq_len == 40


def test_stories_have_a_known_best_score() -> None:
    pairs, labels = (story_examples("stories:50KB", task) for task in ("pairs", "classification"))
    assert all(translate(source) == target for source, target in zip(pairs.inputs, pairs.outputs, strict=True))
    assert len(set(pairs.inputs)) == len(pairs.inputs) > 500
    assert set(labels.outputs) == {"happy", "lesson", "proud", "sad"}
    train, val, _ = split_examples(pairs, 0.1, stratify=False)
    assert not set(train.inputs) & set(val.inputs)


def test_a_balanced_run_weighs_its_labels() -> None:
    run = run_of("classification", class_weights="balanced", max_steps=2)
    weights = run.model.class_weights
    assert weights is not None and weights[0] > weights[1]  # "cat" is the rarer label
    assert run_of("classification", max_steps=2).model.class_weights is None


@pytest.mark.parametrize(("task", "asked", "planned"), [
    ("pairs", {}, 0.33), ("pairs", {"dropout": 0.3}, 0.3), ("classification", {}, 0.0)
])  # fmt: skip
def test_the_plan_of_pairs_alone_weighs_dropout_by_passes(
    monkeypatch: pytest.MonkeyPatch, task: str, asked: dict[str, float], planned: float
) -> None:
    monkeypatch.setattr(budget, "dropout_of_pairs", lambda passes: 0.33)
    settings = {"task": task, "max_minutes": 0.5, "plan_only": True, "device": "cpu", "precision": "fp32", "threads": 1}
    run = slm.train("stories:40KB", quiet=True, **settings, **asked)  # type: ignore[arg-type]
    assert run.resolved["dropout"] == planned


def test_more_passes_over_pairs_need_more_dropout() -> None:
    assert [budget.dropout_of_pairs(passes) for passes in (0.1, 3, 9.9, 10, 50)] == [0.1, 0.1, 0.1, 0.2, 0.2]


def test_the_minutes_of_a_task_plan_a_model_for_it() -> None:
    run = slm.train(
        "stories:100KB", task="pairs", max_minutes=0.5, plan_only=True, device="cpu", precision="fp32", threads=1
    )
    assert run.resolved["optimizer"] == "muon"
    assert run.data is not None
    longest = max(run.data.train_dataset.window, run.data.val_dataset.window)
    assert longest <= run.resolved["max_seq_len"] < longest + 64
    preset = {**TASK_PRESETS["pairs"], **TASK_PRESETS["stories pairs"]}
    del preset["epochs"], preset["dropout"]
    assert {name: run.resolved[name] for name in preset} == preset
    assert run.resolved["batch_size"] == 64 and run.resolved["schedule"] == "wsd"


OTHER_VALUES = {
    "source_field": "a", "target_field": "b", "num_beams": 2, "length_penalty": 0.5, "label_field": "kind",
    "class_weights": "balanced", "token_dropout": 0.5, "target_file": "x.txt",
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_a_setting_of_another_task_is_refused(name: str) -> None:
    group = FIELDS[name].metadata["group"]
    assert {one for one, field in FIELDS.items() if field.metadata["group"] in TASKS} == set(OTHER_VALUES)
    with pytest.raises(UserError, match=rf"{name} = .* is for task = '{group}', and .*'language_model'"):
        slm.train(["some text"], **{name: OTHER_VALUES[name]})


@pytest.mark.parametrize("task", ["pairs", "classification"])
def test_a_run_with_minutes_goes_on_after_a_stop(tmp_path: Path, task: str) -> None:
    settings = {"task": task, "max_minutes": 0.5, "device": "cpu", "precision": "fp32", "threads": 1, "quiet": True}
    sizes = {"embed_dim": 32, "num_heads": 2, "num_layers": 1, "vocab_size": 300}
    calls = iter(range(10**6))
    data = "stories:30KB"
    slm.train(data, model_dir=tmp_path / "run", should_stop=lambda: next(calls) >= 5, **settings, **sizes)
    calls = iter(range(10**6))
    run = slm.train(data, model_dir=tmp_path / "run", should_stop=lambda: next(calls) >= 5, **settings, **sizes)
    assert run.history is not None and run.history.resumed_from == 5 and run.history.step >= 10


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
@pytest.mark.parametrize("task", ["pairs", "classification"])
def test_a_run_of_a_task_is_repeated_to_the_last_bit(home: Path, tmp_path: Path, task: str, tokenizer: str) -> None:
    name, flags = ("pairs.jsonl", {}) if task == "pairs" else ("labels.tsv", {"text_field": "1", "label_field": "0"})
    settings = {**SIZES, **flags, "task": task, "tokenizer": tokenizer, "max_steps": 4, "vocab_size": 300}
    first = slm.train(home / name, model_dir=tmp_path / "first", **settings)
    again = slm.train(repeat=tmp_path / "first", model_dir=None)
    for key, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[key])


def test_sources_without_room_for_a_target_are_left_out_of_the_scores() -> None:
    long = [(f"{a} " * 50, "x") for a in WORDS]
    val = [*PAIRS[:5], *long]
    run = slm.train(PAIRS, val_data=val, **{**SIZES, "task": "pairs", "max_steps": 2, "max_seq_len": 40})
    found = slm.evaluate(run, val, with_yardsticks=False)
    assert found.num_examples == 5  # type: ignore[union-attr]
    assert "6 sources left out, too long for a model that looks at 40 tokens" in found.missing  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"source 0 has \d+ tokens, and this model looks at 40"):
        run.complete(long[0][0])


def test_more_labels_than_tokens_are_fine() -> None:
    data = [(f"{a}{b}{c}", f"label {a}{b}") for a in "abcdefgh" for b in "abcdefgh" for c in "abc"]
    run = slm.train(data, **{**SIZES, "task": "classification", "max_steps": 2})
    assert run.task is not None and len(run.task.labels) == 64 > run.model.config.vocab_size


def test_an_error_in_the_scores_does_not_cost_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **others: Any) -> Any:
        raise RuntimeError("the memory is full")

    monkeypatch.setattr(ending, "score_task", fail)
    with pytest.warns(UserWarning, match=r"no scores: the memory is full\. slm-evaluate makes them"):
        run_of("pairs", max_steps=2, model_dir=tmp_path / "run")
    assert slm.load(tmp_path / "run").complete("one cat") is not None
    assert (tmp_path / "run" / "report.html").exists()


def test_a_stop_while_answers_are_scored_ends_it_and_keeps_the_run(tmp_path: Path) -> None:
    records: list[Any] = []

    def should_stop() -> bool:
        return bool(records) and records[-1].get("step") == 3 and "val_loss" in records[-1]

    with pytest.warns(UserWarning, match="no scores: stopped while scoring"):
        run = run_of("pairs", max_steps=3, model_dir=tmp_path / "run", on_log=records.append, should_stop=should_stop)
    assert run.history is not None and run.history.status == "finished"
    assert slm.load(tmp_path / "run").complete("one cat") is not None


def test_scoring_tells_how_far_it_is(home: Path) -> None:
    run, told = slm.load(home / "pairs"), []
    examples = given_examples(PAIRS * 3, "source", "target")
    score_task(run, examples, on_progress=lambda *progress: told.append(progress))
    (what, first, unknown), *later = told
    assert (first, unknown) == (0, None)
    assert {(one, total) for one, _, total in later} == {(what, len(PAIRS * 3))}
    done = [one for _, one, _ in later]
    assert len(done) > 1 and done == sorted(done) and done[-1] == len(PAIRS * 3)


def test_validation_examples_that_are_training_examples_are_told(home: Path) -> None:
    own = run_of("pairs", max_steps=1, val_data=[PAIRS[0], (PAIRS[1][0], "another target"), ("new", "neu")])
    assert own.data is not None
    told = "2 sources are among those of the training, so that the scores are too good"
    assert f"validation: {told}" in own.data.found
    assert told in slm.evaluate(own, [*PAIRS[:2], ("new", "neu")]).missing  # type: ignore[union-attr]
    other = run_of("pairs", max_steps=1, val_data=[("new", "neu")])
    assert other.data is not None and not any("are too good" in line for line in other.data.found)


def test_an_evaluation_reads_a_part_of_many_validation_examples_and_the_same_one_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = [(f"one {n}", f"eins {n}") for n in range(300)]
    settings = {**SIZES, "task": "pairs", "val_data": val, "val_tokens": 100, "max_steps": 6, "quiet": False}
    whole = slm.train(PAIRS, **settings)
    assert whole.data is not None and whole.data.val_examples is not None
    part = whole.data.val_dataset
    tokens = sum(len(part[place][0]) for place in range(len(part)))
    assert 60 < tokens <= 150 and len(whole.data.val_examples.inputs) == 300
    assert f"300 examples, of which evaluations read {len(part)}" in capsys.readouterr().out
    stops = iter(range(100))
    slm.train(PAIRS, model_dir=tmp_path / "run", should_stop=lambda: next(stops) >= 3, **settings)
    again = slm.train(PAIRS, model_dir=tmp_path / "run", **settings)
    assert again.metrics["val_loss"] == whole.metrics["val_loss"]


def test_a_file_of_targets_without_a_text_is_refused(home: Path) -> None:
    for data, told in ((PAIRS, "is for text files named with data"), ("stories:20KB", "has targets already")):
        with pytest.raises(UserError, match=told):
            slm.train(data, **{**SIZES, "task": "pairs", "target_file": home / "a.de"})


def test_a_label_that_only_the_validation_has_is_told_with_its_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "val.tsv").write_text("bird\tone two\ncat\tone cat\n")
    settings = {"text_field": "1", "label_field": "0", "val_data": tmp_path / "val.tsv"}
    with pytest.raises(UserError, match=r"the label 'bird' in .*val.tsv is none"):
        slm.train(home / "labels.tsv", **{**SIZES, "task": "classification", **settings})


def test_a_folder_named_as_a_task_has_no_preset() -> None:
    for name in TASKS:
        assert layered({"data": name}, "flag").model == layered({"data": "texts"}, "flag").model


def test_the_classic_recipe_is_taken_where_it_is_asked_for() -> None:
    settings = layered({"task": "pairs", "recipe": "classic", "data": "x"}, "flag")
    assert (settings.model.positions, settings.train.optimizer) == ("learned", "adamw")
    assert layered({"task": "pairs", "data": "x"}, "flag").train.optimizer == "muon"


def test_several_answers_are_drawn_or_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model_dir", str(home / "pairs"), "--prompt", "one cat", "--num_samples", "2"]
    assert generate_command.main(flags) == 2
    assert "there is one best answer" in capsys.readouterr().err
    out = answers(capsys, [*flags, "--temperature", "0.5", "--max_new_tokens", "8"])
    assert out.count("---") == 2 and "one cat" not in out


def test_a_line_that_is_too_long_does_not_end_the_others(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one cat\n" + "one " * 400 + "\none dog\n"))
    assert generate_command.main(["--model_dir", str(home / "pairs")]) == 2
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 2
    assert "source 0 has" in told.err


def test_a_share_of_tokens_is_dropped_as_the_settings_say() -> None:
    assert run_of("classification", max_steps=1).model.token_dropout == TaskConfig().token_dropout
    assert run_of("classification", max_steps=1, token_dropout=0.4).model.token_dropout == 0.4


def test_files_of_targets_are_found_from_another_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    first = slm.train(
        "a.en", target_file="a.de", model_dir=tmp_path / "run", **{**SIZES, "task": "pairs", "max_steps": 2}
    )
    monkeypatch.chdir(tmp_path)
    again = slm.train(repeat=tmp_path / "run", model_dir=None)
    assert again.metrics["val_loss"] == first.metrics["val_loss"]


def test_each_validation_file_has_its_own_targets(home: Path, tmp_path: Path) -> None:
    (tmp_path / "v.en").write_text("one cat\n")
    (tmp_path / "v.de").write_text("Katze eins\n")
    own = {"val_data": tmp_path / "v.en", "target_file": [home / "a.de", tmp_path / "v.de"]}
    run = slm.train(home / "a.en", **own, **{**SIZES, "task": "pairs", "max_steps": 2})
    assert run.data is not None and run.data.val_examples is not None
    assert run.data.val_examples.outputs == ["Katze eins"]


def test_a_run_of_aligned_files_is_evaluated_on_a_table_and_the_other_way_round(home: Path, tmp_path: Path) -> None:
    aligned = {**SIZES, "task": "pairs", "max_steps": 2, "target_file": home / "a.de"}
    slm.train(home / "a.en", model_dir=tmp_path / "run", **aligned)
    for folder, data, how in (
        (tmp_path / "run", home / "pairs.jsonl", {}),
        (home / "pairs", home / "a.en", {"target_file": [str(home / "a.de")]}),
    ):
        found = slm.evaluate(folder, data, with_yardsticks=False, **how)
        assert found.num_examples == len(PAIRS)  # type: ignore[union-attr]


def test_a_run_that_is_here_is_evaluated_on_the_examples_that_it_held_back() -> None:
    run = run_of("pairs", max_steps=2)  # whose examples no file holds
    found = slm.evaluate(run)
    assert run.data is not None and run.data.val_examples is not None
    assert found.num_examples == len(run.data.val_examples.inputs)  # type: ignore[union-attr]
    assert found.text == f"the validation part of {run.data.name}" and found.yardsticks  # type: ignore[union-attr]


def test_why_there_are_no_yardsticks_is_told(home: Path) -> None:
    run = dataclasses.replace(slm.load(home / "labels"), resolved={})
    found = slm.evaluate(run, [("one cat two", "cat")])
    told = "no yardsticks, which learn from the training examples: this model does not say what it was trained on"
    assert told in found.missing and not found.yardsticks  # type: ignore[union-attr]


def test_an_evaluation_searches_as_it_is_told_else_as_the_run_does(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []

    def search(model: Any, prompts: Any, *, num_beams: int, length_penalty: float, **others: Any) -> Any:
        seen.append((num_beams, length_penalty))
        return beam_search(model, prompts, num_beams=num_beams, length_penalty=length_penalty, **others)

    monkeypatch.setattr(answering, "beam_search", search)
    run = slm.load(home / "pairs")
    run.resolved = {**run.resolved, "num_beams": 2, "length_penalty": 0.5}
    pairs = [("one cat", "Katze eins")]
    slm.evaluate(run, pairs, with_yardsticks=False)
    slm.evaluate(run, pairs, with_yardsticks=False, num_beams=3, length_penalty=0.0)
    run.complete("one cat")
    run.complete("one cat", num_beams=3, length_penalty=0.0)
    assert seen == [(2, 0.5), (3, 0.0)] * 2


def test_scores_of_a_part_say_how_many_examples_it_has(home: Path) -> None:
    examples = given_examples(PAIRS, "source", "target")
    assert score_task(slm.load(home / "pairs"), examples, most=5).text == f"{examples.name} (5 examples)"
    assert score_task(slm.load(home / "pairs"), examples).text == examples.name


def test_a_source_that_fills_the_window_has_no_room_for_a_target(home: Path) -> None:
    run = slm.load(home / "pairs")
    full, fits = "o" * (run.model.config.max_seq_len - 2), "o" * (run.model.config.max_seq_len - 3)
    with pytest.raises(UserError, match=r"source 1 has 64 tokens, and this model looks at 64"):
        run.complete([fits, full])
    assert len(run.complete([fits])) == 1
    found = slm.evaluate(run, [(full, "x"), (fits, "x")], with_yardsticks=False)
    assert found.num_examples == 1  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"no source of .* leaves room for a target in 64 tokens"):
        slm.evaluate(run, [(full, "x")], with_yardsticks=False)


def test_a_text_that_just_fits_is_not_cut(home: Path) -> None:
    run = slm.load(home / "labels")
    run.classify("o" * (run.model.config.max_seq_len - 2))  # with the tokens around it
    with pytest.warns(UserWarning, match="1 text of 1 cut at the end"):
        run.classify("o" * (run.model.config.max_seq_len - 1))


@pytest.mark.parametrize("task", ["pairs", "classification"])
def test_a_model_in_training_answers_without_dropout_and_stays_in_training(task: str) -> None:
    run = run_of(task, dropout=0.5, max_steps=5)
    answer = run.complete if task == "pairs" else run.classify
    run.model.eval()
    still = answer(["one cat two", "red dog"])
    assert not run.model.training
    run.model.train()
    assert answer(["one cat two", "red dog"]) == still
    assert run.model.training


def test_what_is_no_text_is_refused_in_words(home: Path) -> None:
    with pytest.raises(UserError, match="texts = 3, a int: must be a str, or a list of them"):
        slm.load(home / "labels").classify(3)  # type: ignore[arg-type]


def test_no_time_is_kept_for_the_scores_of_a_task() -> None:
    assert ending.reserved_seconds(600, "pairs") == ending.reserved_seconds(600, "classification") == 0
    assert ending.reserved_seconds(600, "language_model") > ending._SAMPLE_SECONDS


def test_the_scores_take_a_small_part_of_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[int | None, float]] = []

    def score(*arguments: Any, most: int | None, seconds: float, **others: Any) -> Any:
        asked.append((most, seconds))
        return score_task(*arguments, most=most, seconds=seconds, **others)

    monkeypatch.setattr(ending, "score_task", score)
    for task in ("pairs", "classification"):
        run_of(task, max_steps=2, model_dir=tmp_path / task)
    assert asked == [(50, 15.0), (1000, 15.0)]
    for task, amounts in (
        ("pairs", [(50 * 60.5, 60), (1e7, 1000)]),
        ("classification", [(100, 1000), (4 * 2000.5, 2000)]),
    ):
        run = run_of(task, max_steps=2)
        assert run.data is not None
        for examples, most in amounts:
            run.metrics["tokens_seen"] = examples * run.data.val_dataset.mean_length  # type: ignore[union-attr]
            assert ending._num_scored(run, run.data) == most


def test_nobody_waits_for_scores_that_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "score_task", lambda *_, **__: pytest.fail("scored"))
    run = run_of("pairs", max_steps=2)  # quiet, and without a folder
    assert run.history is not None and not any("task_scores" in record for record in run.history.records)


def test_the_scores_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run_of("classification", max_steps=2, quiet=False)
    assert "majority label" in capsys.readouterr().out


def test_less_than_half_a_minute_is_too_little_to_plan() -> None:
    with pytest.raises(UserError, match=r"max_minutes = 0\.4: must be at least 0\.5"):
        slm.train("stories:20KB", task="pairs", max_minutes=0.4, plan_only=True)


def test_the_plan_of_examples_reckons_with_their_mean_length(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    plan = dial.make_plan
    monkeypatch.setattr(dial, "make_plan", lambda *some, **more: seen.append(more["context"]) or plan(*some, **more))
    run = slm.train(
        "stories:30KB",
        task="pairs",
        max_minutes=0.5,
        plan_only=True,
        quiet=True,
        device="cpu",
        precision="fp32",
        threads=1,
    )
    assert run.data is not None
    assert seen == [round(run.data.train_dataset.mean_length)] != [run.data.train_dataset.window]  # type: ignore[union-attr]


def test_the_dummy_text_has_no_examples() -> None:
    with pytest.raises(UserError, match="task = 'pairs' needs examples: name a table with data"):
        slm.train("dummy", **{**SIZES, "task": "pairs"})


def test_stories_stand_alone(home: Path) -> None:
    with pytest.raises(UserError):
        slm.train(
            ["stories:20KB", str(home / "pairs.jsonl")] and [Path("stories:20KB"), home / "pairs.jsonl"],
            **{**SIZES, "task": "pairs", "max_steps": 1},
        )


def test_the_bytes_of_examples_are_those_of_all_that_is_read() -> None:
    for task, data in (("pairs", PAIRS), ("classification", LABELLED)):
        run = run_of(task, max_steps=1)
        assert run.data is not None
        assert run.data.num_bytes == sum(
            len(given.encode()) + len(out.encode()) * (task == "pairs") for given, out in data
        )


def test_a_window_has_at_most_512_positions_unless_somebody_asks_for_more() -> None:
    run = slm.train(
        [*PAIRS, ("x " * 120, "y " * 130), ("x " * 300, "y")] * 4, **{**SIZES, "task": "pairs", "max_steps": 1}
    )
    assert run.model.config.max_seq_len == 512
    assert run.data is not None and any("longer than max_seq_len = 512" in line for line in run.data.found)


def test_what_was_found_in_the_validation_examples_is_told(home: Path, tmp_path: Path) -> None:
    pairs = [("one cat", "x" * 90), ("", "x"), ("a", "b")]
    lines = "".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in pairs)
    (tmp_path / "val.jsonl").write_text(lines)
    run = slm.train(
        home / "pairs.jsonl",
        val_data=tmp_path / "val.jsonl",
        **{**SIZES, "task": "pairs", "max_steps": 1, "max_seq_len": 64},
    )
    assert run.data is not None
    assert any(line.startswith("validation: ") for line in run.data.found), run.data.found
    assert "1 pair left out, longer than max_seq_len = 64" in run.data.found


def test_other_validation_examples_are_other_data() -> None:
    first, second = (run_of("pairs", max_steps=1, val_data=[("one cat", out)]) for out in ("x", "y"))
    assert first.made_with["data_fingerprint"] != second.made_with["data_fingerprint"]


def test_a_text_is_learned_from_each_of_its_beginnings_and_scored_at_its_end() -> None:
    run = run_of("classification", max_steps=1)
    assert run.data is not None
    for dataset, everywhere in ((run.data.train_dataset, True), (run.data.val_dataset, False)):
        tokens = sum(len(dataset[place][0]) for place in range(len(dataset)))
        assert dataset.num_targets == (tokens if everywhere else len(dataset))


def test_as_many_examples_are_held_back_as_the_settings_say() -> None:
    run = run_of("pairs", max_steps=1, val_fraction=0.5)
    assert run.data is not None and run.data.val_examples is not None
    assert 0.35 < len(run.data.val_examples.inputs) / len(PAIRS) < 0.65


def test_another_tokenizer_is_other_data(home: Path) -> None:
    char, byte = (run_of("pairs", max_steps=1, tokenizer=name) for name in ("char", "byte"))
    assert char.made_with["data_fingerprint"] != byte.made_with["data_fingerprint"]


def test_labels_are_not_in_the_vocabulary_of_texts() -> None:
    run = slm.train(
        [(text, label.upper()) for text, label in LABELLED], **{**SIZES, "task": "classification", "max_steps": 1}
    )
    assert run.tokenizer is not None and "N" not in run.tokenizer.to_json().replace("NF", "").split('"vocab"')[1]


def test_a_run_with_a_tokenizer_json_is_evaluated_without_that_file(home: Path, tmp_path: Path) -> None:
    tokenizer = slm.load(home / "pairs").tokenizer
    assert tokenizer is not None
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    own = {**SIZES, "task": "pairs", "max_steps": 1, "tokenizer": str(tmp_path / "tokenizer.json")}
    slm.train(home / "pairs.jsonl", model_dir=tmp_path / "run", **own)
    (tmp_path / "tokenizer.json").unlink()
    assert slm.evaluate(tmp_path / "run").yardsticks  # type: ignore[union-attr]


def test_blanks_around_what_is_written_are_no_part_of_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = slm.load(home / "pairs")
    assert run.tokenizer is not None
    ids = run.tokenizer.encode(" cat ")
    ((best, *_),) = beam_search(run.model, [[0]], end_id=0)
    monkeypatch.setattr(answering, "beam_search", lambda *_, **__: [[best._replace(ids=ids)]])
    assert run.complete("one") == "cat"


def test_examples_that_changed_are_no_more_those_of_the_run(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "pairs.jsonl", tmp_path)
    slm.train(tmp_path / "pairs.jsonl", model_dir=tmp_path / "run", **{**SIZES, "task": "pairs", "max_steps": 1})
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"source": "new", "target": "neu"}\n')
    with pytest.raises(UserError, match="has changed since this run was trained on it: name examples with data"):
        slm.evaluate(tmp_path / "run")


def test_yardsticks_take_a_twentieth_of_the_minutes_or_of_what_the_steps_take(home: Path) -> None:
    run = slm.load(home / "pairs")
    assert ending._yardstick_seconds(run) < 0.1
    run.resolved = {**run.resolved, "max_minutes": 2.0}
    assert ending._yardstick_seconds(run) == pytest.approx(min(ending.FULL_SECONDS, 6.0))
    assert ending._yardstick_seconds(run, 3.0) == 3.0
