"""Laws of the samples that a model writes while it learns: they show what it is like and change nothing in it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, loaded, make_text
from torch import Tensor, nn

import slm
from slm.config import ModelConfig, TrainConfig
from slm.data.dataset import TextDataset
from slm.data.prepared import PreparedData
from slm.model.generation import NewTokens
from slm.model.transformer import LanguageModel
from slm.storage import checkpoint_folder, files
from slm.training import evaluating, loop, samples
from slm.training.device import seeded
from slm.training.loop import History, train_and_evaluate
from slm.training.samples import Samples

TIMING = {"tokens_per_second", "elapsed_seconds", "mfu"}
VAL_TEXT = "a house in the old tree and a river " * 4
pytestmark = pytest.mark.filterwarnings("ignore:only [0-9]+ steps")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "flush", lambda path: None)  # waits for the disk, here in vain


@pytest.fixture(scope="module")
def data() -> PreparedData:
    return loaded([make_text(300)], val_data=[VAL_TEXT], tokenizer="char")


def make_model(data: PreparedData, kind: type[nn.Module] = LanguageModel, **options: Any) -> Any:
    sizes = {"embed_dim": 8, "num_heads": 2, "num_layers": 1, "hidden_dim": 16, "max_seq_len": 16}
    with seeded(torch.device("cpu"), 0):
        return kind(ModelConfig(vocab_size=data.vocab_size, **(sizes | options)))


def train(data: PreparedData, model: nn.Module, **others: Any) -> History:
    """A run of eight steps with an evaluation after each."""
    names = ("model_dir", "tokenizer", "train_dataset", "val_dataset")
    keys = {name: others.pop(name) for name in names if name in others}
    base = {"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 4, "max_steps": 8, "eval_every": 1}
    config = TrainConfig(**{**base, "log_every": 1, "learning_rate": 0.01, "sample_every": 1, **others})
    datasets = (keys.pop(f"{name}_dataset", getattr(data, f"{name}_dataset")) for name in ("train", "val"))
    return train_and_evaluate(model, *datasets, config, **{"tokenizer": data.tokenizer, **keys})


def written(history: History) -> list[dict[str, Any]]:
    return [record for record in history.records if "sample" in record]


def the_rest(history: History) -> list[dict[str, Any]]:
    """All records but samples, without times; what is no number is equal to itself."""
    kept = (record for record in history.records if "sample" not in record)
    return [{k: v if v == v else "nan" for k, v in record.items() if k not in TIMING} for record in kept]


# What they are.


def test_samples_go_on_with_the_same_places_of_the_validation_text_after_each_evaluation(data: PreparedData) -> None:
    history = train(data, make_model(data))
    found = written(history)
    prompts = [record["prompt"] for record in found if record["step"] == 1]
    assert len(prompts) == len(set(prompts)) == 2
    assert all(prompt in VAL_TEXT for prompt in prompts)
    assert VAL_TEXT.startswith(prompts[0])
    assert [(record["step"], record["prompt"]) for record in found] == list(itertools.product(range(1, 9), prompts))
    assert all(set(record) == {"step", "prompt", "sample"} for record in found)
    assert 50 < max(len(record["sample"]) for record in found) <= 60  # special tokens are no text
    # Each comes right after its evaluation, before the next step.
    kinds = ["sample" if "sample" in record else "val" if "val_loss" in record else "log" for record in history.records]
    assert kinds == ["log", "val", "sample", "sample"] * 8


def test_a_model_that_learns_writes_something_else_and_the_same_weights_write_the_same(
    data: PreparedData, tmp_path: Path
) -> None:
    model = make_model(data)
    folder = slm.training.saving.RunFolder(str(tmp_path), save_every=1, keep_last=9)
    history = train(data, model, model_dir=folder)
    folder.close()
    by_step = {step: [r["sample"] for r in written(history) if r["step"] == step] for step in range(1, 9)}
    assert len({tuple(texts) for texts in by_step.values()}) > 4
    paths = {step: tmp_path / "checkpoints" / checkpoint_folder.name_of(step) / "model.pt" for step in range(1, 9)}
    kept = {step: path for step, path in paths.items() if path.exists()}  # where the one before was written in time
    assert {1, 8} <= set(kept)
    for step, path in kept.items():
        again = Samples(slm.load(path).model, data.tokenizer, data.val_dataset, 1)
        for _ in range(2):
            assert [record["sample"] for record in again.records(step)] == by_step[step]


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [1, 4, 7]), (20, [1])])
def test_samples_come_after_each_so_many_evaluations(data: PreparedData, every: int, steps: list[int]) -> None:
    history = train(data, make_model(data), sample_every=every)
    assert sorted({record["step"] for record in written(history)}) == steps


def test_the_end_of_a_document_ends_a_sample(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = data.tokenizer
    assert tokenizer is not None
    (ids,) = ([*tokenizer.encode("a tree and a river")],)
    end = tokenizer.end_id
    rows = [ids, [*ids[:6], end, *ids[7:]]]
    monkeypatch.setattr(samples, "stream_tokens", lambda *_: map(NewTokens, map(list, zip(*rows, strict=True))))
    found = Samples(make_model(data), tokenizer, data.val_dataset, 1).records(1)
    assert [record["sample"] for record in found] == ["a tree and a river", "a tree"]


@pytest.mark.parametrize("max_seq_len", [1, 2, 3, 16, 200])
def test_the_shortest_windows_and_a_text_of_one_window_give_samples(data: PreparedData, max_seq_len: int) -> None:
    train_dataset, val_dataset = (
        TextDataset(dataset.tokens, max_seq_len) for dataset in (data.train_dataset, data.val_dataset)
    )
    assert (len(val_dataset) == 1) == (max_seq_len == 200)
    model = make_model(data, max_seq_len=max_seq_len)
    found = written(train(data, model, train_dataset=train_dataset, val_dataset=val_dataset, max_steps=2))
    prompts = {record["prompt"] for record in found}
    assert len(found) == 2 * (1 if max_seq_len == 200 else 2)
    # As much as makes a few words, and half of what the model reads at most.
    assert all(prompt and prompt in VAL_TEXT for prompt in prompts)
    assert max(map(len, prompts)) == {1: 1, 2: 1, 3: 1, 16: 8, 200: 20}[max_seq_len]


# What they leave alone.


OPTIONS: list[dict[str, Any]] = [
    {"dropout": 0.3},
    {"dropout": 0.3, "positions": "rope", "qk_norm": True, "tie_embeddings": True},
    {"dropout": 0.3, "document_start": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_samples_change_no_bit_of_training(data: PreparedData, options: dict[str, Any]) -> None:
    models = [make_model(data, **options) for _ in range(3)]
    histories = [train(data, model, sample_every=every) for model, every in zip(models, (0, 1, None), strict=True)]
    assert [len(written(history)) > 1 for history in histories] == [False, True, True]
    for history, model in zip(histories[1:], models[1:], strict=True):
        assert the_rest(history) == the_rest(histories[0])
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), models[0].parameters(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_samples_leave_the_mode_and_the_random_streams_as_they_were(data: PreparedData, training: bool) -> None:
    model = make_model(data, dropout=0.5).train(training)
    state = torch.random.get_rng_state()
    first = Samples(model, data.tokenizer, data.val_dataset, 1).records(1)
    assert model.training == training
    assert all(module.training == training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    assert Samples(model, data.tokenizer, data.val_dataset, 1).records(1) == first


def test_samples_before_the_first_step_leave_a_model_that_can_be_trained(data: PreparedData) -> None:
    for options in OPTIONS:
        model = make_model(data, **options)
        Samples(model, data.tokenizer, data.val_dataset, 1).records(0)
        assert train(data, model, max_steps=1).status == "finished"


class Patched(LanguageModel):
    """What somebody has made of ours: it may do anything."""

    def forward(self, tokens: Tensor, cache: Any = None) -> Tensor:
        assert cache is None
        return super().forward(tokens)


def test_models_that_are_not_ours_and_runs_without_a_tokenizer_have_no_samples(data: PreparedData) -> None:
    ours = train(data, make_model(data))
    assert written(ours)
    for every in (None, 1):
        for model, keys in ((make_model(data, Patched), {}), (make_model(data), {"tokenizer": None})):
            history = train(data, model, sample_every=every, **keys)
            assert not written(history)
            assert [r["train_loss"] for r in history.records if "lr" in r] == [
                r["train_loss"] for r in ours.records if "lr" in r
            ]
    foreign = nn.Sequential(nn.Embedding(data.vocab_size, 8), nn.Linear(8, data.vocab_size))
    assert not written(train(data, foreign))


# When they come.


@pytest.mark.parametrize("cost", [0.02, 1.0, 30.0])
def test_by_default_samples_take_a_hundredth_of_the_time_and_one_sample_at_most(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch, cost: float
) -> None:
    now, count = 0.0, 0

    def stream(*_: Any) -> Any:
        nonlocal now
        now += cost
        return iter(())

    monkeypatch.setattr(samples, "stream_tokens", stream)
    monkeypatch.setattr(samples, "time", SimpleNamespace(monotonic=lambda: now))
    one = Samples(make_model(data), data.tokenizer, data.val_dataset, None)
    for evaluation in range(1, 401):
        seconds = 5.0 * evaluation  # of training, which the clock of the run counts without evaluations
        if one.due(evaluation, {"val_loss": 1.0, "elapsed_seconds": seconds}):
            one.records(evaluation)
            count += 1
        assert one.seconds == pytest.approx(count * cost)
        assert count == 1 or one.seconds <= 0.01 * seconds + cost
    # And not much less than that: all of them where that is cheap, the first one in any case.
    assert count == min(400, math.floor(0.01 * 2000.0 / cost) + 1)


def test_quiet_runs_have_samples_only_where_they_are_asked_for(text: str) -> None:
    def count(**keys: Any) -> int:
        run = slm.train([text], **{**SMALL, "max_steps": 2, "eval_every": 1, **keys})
        assert run.history is not None
        assert run.resolved["sample_every"] == keys.get("sample_every")
        return len(written(run.history))

    assert count() == 0
    assert count(sample_every=1) == 4
    assert count(sample_every=0) == 0
    # Those after two evaluations, and the one of the end.
    assert count(quiet=False, sample_every=1) == 5
    assert count(quiet=False, sample_every=0) == 1
    assert count(quiet=False) >= 3


def test_a_model_whose_loss_is_no_number_writes_nothing(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_at(bad: set[int]) -> Any:
        count, evaluate = itertools.count(1), original

        def wrapped(*args: Any, **keys: Any) -> dict[str, float]:
            found = evaluate(*args, **keys)
            return {**found, "val_loss": math.nan} if next(count) in bad else found

        return wrapped

    original = evaluating.evaluate
    monkeypatch.setattr(evaluating, "evaluate", nan_at({1, 4, 8}))
    assert sorted({record["step"] for record in written(train(data, make_model(data)))}) == [2, 3, 5, 6, 7]


def test_the_stop_button_within_a_sample_leaves_a_run_that_goes_on(
    data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, count = samples.stream_tokens, itertools.count(1)

    def pressed(*args: Any) -> Any:
        found = stream(*args)
        yield next(found)
        if next(count) == 3:
            raise KeyboardInterrupt
        yield from found

    unbroken = train(data, make_model(data, dropout=0.2))
    monkeypatch.setattr(samples, "stream_tokens", pressed)
    model = make_model(data, dropout=0.2)
    history = train(data, model, model_dir=tmp_path)
    assert (history.status, history.step) == ("interrupted", 3)
    assert {record["step"] for record in written(history)} == {1, 2}
    assert not model.training
    again = train(data, make_model(data, dropout=0.2), model_dir=tmp_path)
    assert (again.resumed_from, again.status) == (3, "finished")
    assert the_rest(again)[:-1] == the_rest(unbroken)
    assert [r for r in written(again) if r["step"] != 3] == [r for r in written(unbroken) if r["step"] != 3]


def test_the_time_of_samples_does_not_count_as_training(data: PreparedData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def slow(self: Samples, step: int, *, is_last: bool = False) -> list[dict[str, Any]]:
        before = clock.elapsed_seconds()
        end = samples.time.monotonic() + 0.05
        while samples.time.monotonic() < end:
            pass
        seen.append(clock.elapsed_seconds() - before)
        return []

    make = loop.Clock
    clock = make()

    def made(*args: Any) -> Any:
        nonlocal clock
        clock = make(*args)
        return clock

    monkeypatch.setattr(loop, "Clock", made)
    monkeypatch.setattr(Samples, "records", slow)
    train(data, make_model(data), max_steps=2)
    assert seen == [0.0, 0.0]


def test_a_run_killed_right_after_its_first_checkpoint_has_the_samples_of_that_step(
    data: PreparedData, tmp_path: Path
) -> None:
    folder = slm.training.saving.RunFolder(str(tmp_path))
    train(data, make_model(data), model_dir=folder, max_steps=1)
    folder.close()
    (kept,) = (tmp_path / "checkpoints").glob("step-*/metrics.jsonl")
    assert '"sample"' in kept.read_text()


def test_where_memory_is_full_samples_end_with_a_warning_and_training_goes_on(
    data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(samples, "stream_tokens", full)
    model = make_model(data)
    with pytest.warns(UserWarning, match="memory is full: no samples"):
        history = train(data, model)
    assert written(history) == []
    assert history.step == 8
    assert history.status == "finished"
