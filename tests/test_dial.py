"""Laws of runs with max_minutes: they end on time, can be gone on with and repeated; a plan alone changes nothing."""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, make_text

import slm
from slm import dial
from slm.config import UserError
from slm.data import prepared, sources, splits
from slm.data.batches import Batches
from slm.display import Display, plain
from slm.display.course import Course
from slm.display.terminal import terminal
from slm.settings import layered, read_table
from slm.training import budget, plan
from slm.training.deadline import Deadline
from slm.training.device import Machine

# A busy machine may cut a run off, and short runs are warned of.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CPU = torch.device("cpu")
MINUTES = 0.06
FIXED = {name: SMALL[name] for name in ("tokenizer", "device", "precision", "threads", "quiet")}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds in place of minutes, and narrow candidates."""
    monkeypatch.setattr(dial, "SHORTEST_MINUTES", 0.01)
    monkeypatch.setattr(budget, "WIDTHS", (16, 32))


def train(data: Any, **settings: Any) -> slm.Run:
    return slm.train(data, **{**FIXED, "max_minutes": MINUTES, **settings})


def test_a_run_ends_on_time_with_a_decay_that_was_decided_once(text: str) -> None:
    began = time.monotonic()
    run = train([text])
    seconds = time.monotonic() - began
    assert run.history is not None
    assert 0.5 * 60 * MINUTES < seconds < 60 * MINUTES + 3
    decisions = [record for record in run.history.records if "decay_steps" in record]
    assert len(decisions) == 1
    assert run.history.status == "finished"
    lrs = {record["step"]: record["lr"] for record in run.history.records if "lr" in record}
    peak = max(lrs.values())
    before = [lr for step, lr in lrs.items() if step <= decisions[0]["step"]]
    assert before.count(peak) >= len(before) - 1
    last, decay_steps = max(lrs), decisions[0]["decay_steps"]  # a busy machine may cut it off before its end
    assert lrs[last] == pytest.approx(peak * (decisions[0]["max_steps"] + 1 - last) / decay_steps)
    assert run.metrics["val_loss"] < 3.0
    every = run.resolved["eval_every"]  # and no others: an epoch has few steps here
    steps = [record["step"] for record in run.history.evaluations]
    assert steps == [*range(every, steps[-1], every), run.history.total_steps]


def test_what_is_asked_for_is_kept_and_the_rest_is_planned(text: str) -> None:
    run = train([text], num_layers=1, learning_rate=0.004, num_heads=3, plan_only=True)
    resolved = run.resolved
    assert (resolved["num_layers"], resolved["learning_rate"], resolved["num_heads"]) == (1, 0.004, 3)
    assert resolved["embed_dim"] % 3 == 0
    assert (resolved["recipe"], resolved["optimizer"], resolved["positions"]) == ("modern", "muon", "rope")
    assert set(run.asked) == {"tokenizer", "device", "precision", "threads", "max_minutes", "num_layers",
                              "learning_rate", "num_heads"}  # fmt: skip


def test_planning_leaves_the_random_numbers_alone(text: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train([text], plan_only=True)
    assert torch.equal(torch.rand(3), expected)


def test_a_recipe_that_is_asked_for_is_kept(text: str) -> None:
    run = train([text], recipe="classic", plan_only=True)
    assert (run.resolved["optimizer"], run.resolved["positions"]) == ("adamw", "learned")


@pytest.mark.parametrize("minutes", [MINUTES, None])
def test_a_plan_alone_trains_nothing_and_writes_nothing(
    tmp_path: Path, text: str, minutes: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(text)
    sizes = {} if minutes else {name: SMALL[name] for name in ("embed_dim", "num_heads", "hidden_dim")}
    run = slm.train(tmp_path / "text.txt", **{**FIXED, **sizes, "quiet": False}, max_minutes=minutes, plan_only=True,
                    model_dir=tmp_path / "run")  # fmt: skip
    assert run.history is None
    assert not (tmp_path / "run").exists()
    told = capsys.readouterr().out
    assert "model " in told
    assert ("\nplan " in told) == (minutes is not None)


def test_a_run_that_was_stopped_goes_on_with_its_plan_and_the_time_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(make_text(400))
    asked = 0
    deadlines: list[tuple[float, float | None]] = []
    init = Deadline.__init__

    def remember(self: Deadline, seconds: float, left: float | None = None) -> None:
        deadlines.append((seconds, left))
        init(self, seconds, left)

    monkeypatch.setattr(Deadline, "__init__", remember)

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 8

    began = time.monotonic()
    first = train(tmp_path / "text.txt", model_dir=tmp_path / "run", should_stop=should_stop)
    taken = time.monotonic() - began
    (_, whole) = (seconds for seconds, _ in deadlines)  # of the run, and of its training after reading and planning
    time.sleep(0.5)
    second = train(tmp_path / "text.txt", model_dir=tmp_path / "run")
    assert second.history is not None
    assert second.history.resumed_from == 8
    assert second.history.status == "finished"
    seconds, left = deadlines[-1]
    assert seconds == whole
    assert left is not None
    assert whole - taken - 0.01 <= left < whole  # what the pause took is not missing
    planned = {name: value for name, value in first.resolved.items() if name in budget.PLANNED}
    assert planned == {name: second.resolved[name] for name in planned}


def test_a_run_that_goes_on_in_its_decay_tells_how_many_steps_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(make_text(400))
    decisions: list[Any] = []

    def on_log(record: Any) -> None:
        decisions.extend([record] if "decay_steps" in record else [])

    settings = {"model_dir": tmp_path / "run", "log_every": 1}
    train(tmp_path / "text.txt", on_log=on_log, should_stop=lambda: bool(decisions), **settings)
    monkeypatch.setattr(plain, "CALM_SECONDS", 0.0)
    capsys.readouterr()
    train(tmp_path / "text.txt", quiet=False, **settings)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ") and " loss " in line]
    assert steps
    assert all(f"/{decisions[0]['max_steps']} " in line for line in steps)


def test_a_run_that_is_repeated_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "has_passed", False)  # a busy machine would cut it off
    (tmp_path / "text.txt").write_text(make_text(400))
    first = train(tmp_path / "text.txt", model_dir=tmp_path / "run")
    again = slm.train(repeat=str(tmp_path / "run"), quiet=True)
    assert first.history is not None
    assert again.history is not None
    assert again.history.total_steps == first.history.total_steps
    assert again.metrics["val_loss"] == first.metrics["val_loss"]
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_stopped_before_its_end_was_decided_cannot_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text(400))
    train(tmp_path / "text.txt", model_dir=tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(UserError, match="stopped before it was decided when it ends"):
        layered({"repeat": str(tmp_path / "run")}, "keyword")


def test_a_run_with_other_minutes_is_another_run(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text(400))
    train(tmp_path / "text.txt", model_dir=tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(UserError, match=r"max_minutes was 0\.06, is now 0\.1"):
        train(tmp_path / "text.txt", model_dir=tmp_path / "run", max_minutes=0.1)


def test_the_decision_is_recorded_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text(400))
    run = train(tmp_path / "text.txt", model_dir=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (decision,) = [record for record in map(json.loads, lines) if "decay_steps" in record]
    assert run.history is not None
    assert decision["max_steps"] == run.history.total_steps == decision["step"] + decision["decay_steps"]
    assert "max_steps" not in read_table(str(tmp_path / "run"), "resolved")


def test_epochs_are_refused_beside_minutes_also_where_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text(400))
    train(tmp_path / "text.txt", model_dir=tmp_path / "run", should_stop=lambda: True)
    with pytest.raises(UserError, match="epochs and max_minutes both say when training ends"):
        train(tmp_path / "text.txt", model_dir=tmp_path / "run", epochs=2)


def test_a_run_whose_time_is_spent_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text(400))
    train(tmp_path / "text.txt", model_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"which finished at step \d+\. Its time is spent; to begin anew"):
        train(tmp_path / "text.txt", model_dir=tmp_path / "run")


def test_too_few_minutes_and_schedules_that_need_an_end_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"max_minutes = 0\.005: must be at least 0\.01"):
        train([text], max_minutes=0.005)
    for schedule in ("linear", "cosine", "constant"):
        with pytest.raises(UserError, match=f"schedule = '{schedule}' needs to know its last step"):
            train([text], schedule=schedule)
    with pytest.raises(UserError, match="decay_steps = 5: with max_minutes the decay has the steps that fit"):
        train([text], decay_steps=5)
    for settings in ({}, {"decay_steps": 2}):
        with pytest.raises(UserError, match="max_steps and max_minutes both say when training ends"):
            train([text], max_steps=5, **settings)
    with pytest.raises(UserError, match="patience = 3 would end the run before its decay"):
        train([text], patience=3)
    with pytest.raises(UserError, match="epochs and max_minutes both say when training ends"):
        train([text], epochs=2)


def test_what_is_refused_leaves_no_folder_behind(text: str, tmp_path: Path) -> None:
    for settings in ({"max_minutes": 0.005}, {"schedule": "cosine"}):
        with pytest.raises(UserError):
            train([text], model_dir=tmp_path / "runs" / "one", **settings)
    assert list(tmp_path.iterdir()) == []


def test_the_same_is_refused_where_the_loop_is_called_from_python() -> None:
    model = slm.LanguageModel(slm.ModelConfig(vocab_size=5, embed_dim=4, num_heads=1))
    dataset = slm.TextDataset(list(range(5)) * 40, max_seq_len=8)
    for settings, told in (({}, "schedule = 'linear'"), ({"schedule": "wsd", "max_steps": 3}, "max_steps and max")):
        with pytest.raises(UserError, match=told):
            slm.train_and_evaluate(model, dataset, dataset, slm.TrainConfig(max_minutes=0.01, **settings))


def test_a_plan_alone_warns_as_the_run_would(text: str) -> None:
    with pytest.warns(UserWarning, match="only 3 steps: too few to learn much"):
        slm.train([text], **{**SMALL, "max_steps": 3}, plan_only=True)


@pytest.mark.parametrize("micro_batch_size", [None, 100])
def test_of_a_large_batch_a_part_is_timed_and_reckoned_up(
    monkeypatch: pytest.MonkeyPatch, micro_batch_size: int | None
) -> None:
    def timed(model: Any, batch: tuple[torch.Tensor, torch.Tensor], machine: Machine) -> tuple[float, float]:
        assert batch[0].shape == batch[1].shape == (64, 64)
        return 1.0, 0.0

    monkeypatch.setattr(plan, "seconds_of_step", timed)
    dataset = slm.TextDataset(list(range(9)) * 1000, max_seq_len=64)
    config = slm.TrainConfig(batch_size=128, micro_batch_size=micro_batch_size, schedule="wsd", device="cpu", threads=1,
                             precision="fp32", max_minutes=10)  # fmt: skip
    model = slm.LanguageModel(slm.ModelConfig(vocab_size=9, embed_dim=4, num_heads=1))
    _, settled = plan.settle(config, model, Batches(dataset, 128, 0), dataset)
    steps = 10 * 60 / (plan._UPDATE * 128 / 64)
    assert settled.warmup_steps == steps // 20


def test_a_model_is_on_its_device_before_its_steps_are_timed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []

    def timed(config: Any, model: torch.nn.Module, *_: Any, **__: Any) -> Machine:
        seen.append({parameter.device.type for parameter in model.parameters()})
        return Machine(CPU, "fp32", 1, "")

    monkeypatch.setattr(plan, "choose_device", lambda name: (torch.device("meta"), ""))
    monkeypatch.setattr(plan, "choose_machine", timed)
    slm.train([text], **SMALL, plan_only=True)
    assert seen == [{"meta"}]


@pytest.mark.parametrize("asked", [{"num_kv_heads": 3}, {"num_kv_heads": 2, "num_layers": 1}, {"embed_dim": 48}])
def test_sizes_that_are_asked_for_alone_find_others_that_fit(text: str, asked: dict[str, int]) -> None:
    resolved = train([text], plan_only=True, **asked).resolved
    assert {name: resolved[name] for name in asked} == asked


def test_what_evaluations_read_at_most_is_the_same_when_a_run_is_gone_on_with(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for module in (splits, prepared):
        monkeypatch.setattr(module, "EVALUATED_TOKENS", 50)
    settings = layered({**FIXED, "val_tokens": 10**6}, "keyword")
    _, _, data, _ = dial.read_and_plan(settings, [text], None, Display(quiet=True), None, None, CPU)
    assert data.val_dataset.num_targets > 50
    assert data.val_dataset.max_targets == data.in_windows_of(16, 10**6).val_dataset.max_targets == 50


def test_the_vocabulary_of_texts_of_unknown_number_is_chosen_by_the_time(text: str) -> None:
    settings, seconds = layered({"max_minutes": 1}, "keyword"), 60.0
    huge, small = (dial.plan_text(settings, given, seconds, CPU) for given in (iter([text]), [text]))
    assert huge == {"vocab_size": budget.vocabulary_for(10**12, seconds, CPU)}
    assert small["vocab_size"] < huge["vocab_size"]
    for no_text in (torch.arange(9), np.arange(9), [1, 2], 5, torch.tensor(5), np.array(5)):
        assert dial.plan_text(settings, no_text, seconds, CPU) == {}


def test_texts_count_with_their_bytes_and_packed_files_with_about_what_they_hold(tmp_path: Path) -> None:
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(b"".join(b"%d " % (number**7 % 9973) for number in range(20_000))))
    of_file = splits.bytes_of_text(layered({"data": str(packed)}, "keyword").data, None)
    assert of_file == pytest.approx(len(gzip.decompress(packed.read_bytes())), rel=0.5)
    parquet = tmp_path / "text.parquet"
    parquet.write_bytes(bytes(1000))
    assert splits.bytes_of_text(layered({"data": str(parquet)}, "keyword").data, None) == 3000
    assert splits.bytes_of_text(layered({}, "keyword").data, ["abc", "\u0436\u0436"]) == 3 + 4


def test_a_file_whose_size_nobody_tells_is_of_unknown_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abc")
    monkeypatch.setattr(sources._FilePart, "stored_bytes", None)
    assert splits.bytes_of_text(layered({"data": str(path)}, "keyword").data, None) == math.inf


@pytest.mark.parametrize(("recipe", "lowest"), [("modern", 0.012), ("classic", 0.002)])
def test_a_lowest_rate_alone_is_below_the_planned_peak(text: str, recipe: str, lowest: float) -> None:
    resolved = train([text], plan_only=True, recipe=recipe, min_learning_rate=lowest).resolved
    assert resolved["min_learning_rate"] == lowest <= resolved["learning_rate"]
    with pytest.raises(UserError, match=r"min_learning_rate = 0\.5 is above learning_rate = 0\.1"):
        train([text], plan_only=True, min_learning_rate=0.5, learning_rate=0.1)


def test_token_ids_and_prepared_data_are_planned_for(tmp_path: Path, text: str) -> None:
    (tmp_path / "text.txt").write_text(text)
    slm.prepare(tmp_path / "text.txt", out=tmp_path / "tokens", vocab_size=300)
    assert train(tmp_path / "tokens", plan_only=True, tokenizer="bpe").resolved["vocab_size"] <= 300
    np.save(tmp_path / "ids.npy", np.arange(3000, dtype=np.uint16) % 50)
    no_tokenizer = {name: value for name, value in FIXED.items() if name != "tokenizer"}
    run = slm.train(tmp_path / "ids.npy", **no_tokenizer, max_minutes=MINUTES, plan_only=True)
    assert run.resolved["vocab_size"] > 49


def test_a_text_whose_reading_takes_all_the_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "left", lambda self: -5.0)
    with pytest.raises(UserError, match=r"max_minutes = 0\.06: reading the text alone took 9 seconds of them"):
        train([text])


def test_nothing_to_read_is_told_as_without_minutes() -> None:
    with pytest.raises(UserError, match="text") as with_minutes:
        train([])
    with pytest.raises(UserError) as without:
        slm.train([], **FIXED)
    assert str(with_minutes.value) == str(without.value)


def test_a_decay_that_becomes_too_slow_is_cut_off(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = iter([False] * 3)
    monkeypatch.setattr(Deadline, "has_passed", property(lambda self: next(passed, True)))
    monkeypatch.setattr(plain, "CALM_SECONDS", 0.0)
    with pytest.warns(UserWarning, match="time is up: the machine became slower, so step .* is the last"):
        run = train([text], quiet=False)
    assert run.history is not None
    assert run.history.status == "finished"
    decision = next(record for record in run.history.records if "decay_steps" in record)
    assert run.history.step == run.history.total_steps < decision["max_steps"]


def test_a_run_that_was_cut_off_cannot_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text(make_text(400))
    passed = iter([False] * 3)
    monkeypatch.setattr(Deadline, "has_passed", property(lambda self: next(passed, True)))
    train(tmp_path / "text.txt", model_dir=tmp_path / "run")
    with pytest.raises(UserError, match=r"was cut off at step \d+ of \d+, when its time was up"):
        layered({"repeat": str(tmp_path / "run")}, "keyword")


def test_both_displays_show_each_record_of_a_run_that_is_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    records = ({"step": 5, "max_steps": 9, "decay_steps": 4}, {"step": 7, "max_steps": 7})
    with terminal(Course(0, 9.0)) as show:
        for record in records:
            show(record)
    show = plain.Plain(Course(0, 9.0), print)
    for record in records:
        show(record)
    assert capsys.readouterr().out.count("the learning rate falls from here on, for 4 steps") == 2


def test_the_plan_has_the_seconds_and_the_validation_tokens_that_are_left(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    plan = dial.make_plan
    monkeypatch.setattr(dial, "make_plan", lambda *some, **more: seen.append(more) or plan(*some, **more))
    monkeypatch.setattr(Deadline, "left", lambda self: 0.5 * self.seconds)
    run = train([text], plan_only=True)
    assert run.data is not None
    assert [(one["seconds"], one["val_tokens"]) for one in seen] == [
        (pytest.approx(30 * MINUTES), len(run.data.val_dataset.tokens))
    ]


def test_a_tenth_of_the_time_must_be_left_after_reading(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "left", lambda self: 0.09 * self.seconds)
    with pytest.raises(UserError, match="reading the text alone took 3 seconds of them"):
        train([text])


def test_the_text_is_cut_into_the_windows_that_are_planned(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "context_for", lambda seconds: 32)
    run = train([text], plan_only=True)
    assert run.data is not None
    assert run.data.train_dataset.window == run.data.val_dataset.window == run.resolved["max_seq_len"] == 32


def test_minutes_are_checked_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="schedule = 'cosine' needs to know its last step"):
        train("nowhere.txt", schedule="cosine")


def test_the_time_that_is_shown_is_what_was_left_when_it_stopped(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[float] = []
    live = Display.live
    monkeypatch.setattr(
        Display, "live", lambda self, total, left, *so_far: shown.append(left) or live(self, total, left, *so_far)
    )
    steps = iter(range(10**6))
    train([text], model_dir=tmp_path / "run", should_stop=lambda: next(steps) >= 5)
    (manifest,) = (tmp_path / "run" / "checkpoints").glob("*/manifest.json")
    left = json.loads(manifest.read_text())["seconds_left"]
    train([text], model_dir=tmp_path / "run", should_stop=lambda: True)
    assert shown[1] == left < 60 * MINUTES
