"""Laws of a run that is interrupted and gone on with: it equals the unbroken one, or is refused in one message."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, make_text
from torch import Tensor, nn
from torch.utils.data import Dataset

import slm
from slm.config import DataConfig, ModelConfig, TaskConfig, TrainConfig, UserError
from slm.data.batches import Batches
from slm.data.dataset import TextDataset
from slm.model.transformer import LanguageModel
from slm.storage import checkpoint, checkpoint_folder, files
from slm.training import device as device_module
from slm.training import resume
from slm.training.device import seeded
from slm.training.loop import History, train_and_evaluate
from slm.training.saving import RunFolder
from slm.training.tuning import Choice

TIMING = {"tokens_per_second", "elapsed_seconds", "mfu"}
TINY = ModelConfig(vocab_size=11, embed_dim=8, num_heads=2, num_layers=1, hidden_dim=16, max_seq_len=8)
STEPS = 11
pytestmark = pytest.mark.filterwarnings("ignore:only [0-9]+ steps?:")


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "flush", lambda path: None)  # waits for the disk, here in vain


def stop_after(steps: int) -> Callable[[], bool]:
    calls = iter(range(10**9))
    return lambda: next(calls) >= steps


def never() -> bool:
    return False


def random_data(num_tokens: int, seed: int = 0, start_id: int | None = None) -> TextDataset:
    tokens = torch.randint(0, 11, (num_tokens,), generator=torch.Generator().manual_seed(seed))
    return TextDataset(tokens, TINY.max_seq_len, start_id=start_id)


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Any map-style dataset will do; it counts its fetches."""

    def __init__(self) -> None:
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.fetched.append(index)
        tokens = (torch.arange(8) * 3 + index) % 11
        return tokens, (tokens + 1) % 11


class Foreign(nn.Module):
    """A module that is not ours, with a buffer that each step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.dropout = nn.Embedding(11, 11), nn.BatchNorm1d(8), nn.Dropout(0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.norm(self.dropout(self.table(tokens)))
        return logits


def make_model(**options: Any) -> nn.Module:
    with seeded(torch.device("cpu"), 0):
        return Foreign() if options.get("foreign") else LanguageModel(dataclasses.replace(TINY, **options))


def plain(value: Any) -> Any:
    """A value that compares equal exactly where all bits are, timing aside."""
    if isinstance(value, Tensor):
        return (str(value.dtype), list(value.shape), value.contiguous().flatten().view(torch.uint8).tolist())
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in TIMING}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return "no number" if isinstance(value, float) and not math.isfinite(value) else value


def left_in(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but times: its files and those of its newest checkpoint."""
    newest, manifest, passed_over = checkpoint_folder.newest(str(folder / "checkpoints"))
    assert newest is not None
    assert not passed_over
    states = {name: checkpoint.load_file(str(Path(newest) / name)) for name in manifest["files"] if name[-3:] == ".pt"}
    if (folder / "model.pt").exists():
        states["the best"] = checkpoint.load_file(str(folder / "model.pt"))
    lines = [(place / "metrics.jsonl").read_text().splitlines() for place in (folder, Path(newest))]
    records = [[plain(json.loads(line)) for line in part] for part in lines]
    told = {name: manifest[name] for name in ("step", "status", "total_steps", "best_step", "choices")}
    return {"states": plain(states), "records": records, "manifest": told}


@dataclasses.dataclass
class Case:
    """A small training run of certain settings, which can be broken off anywhere."""

    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    folder: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: Callable[[], Dataset[Any]] = lambda: random_data(100)

    def train(self, path: Path, *, on_log: Any = None, should_stop: Callable[[], bool] = never) -> History:
        base = {"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 5, "max_steps": STEPS, "log_every": 3}
        config = TrainConfig(**(base | {"eval_every": 2, "learning_rate": 3e-3} | self.config))
        folder = RunFolder(str(path), **self.folder)
        val_data = Pairs() if self.model.get("foreign") else random_data(60, seed=1)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "stopped early")
                history = train_and_evaluate(
                    make_model(**self.model), self.data(), val_data, config,
                    model_dir=folder, on_log=on_log, should_stop=should_stop,
                )  # fmt: skip
                folder.log(history.ending())
                folder.write_pages()
                return history
        finally:
            folder.close()


DROPOUT = Case({"dropout": 0.2})
CASES = {
    "dropout": DROPOUT,
    "micro-batches, tied": Case({"dropout": 0.1, "tie_embeddings": True}, {"micro_batch_size": 2}),
    "save every step, keep one": Case({"dropout": 0.1}, {"schedule": "cosine"}, {"save_every": 1, "keep_last": 1}),
    "save every third": Case({"positions": "rope"}, {"seed": 7, "log_every": 4}, {"save_every": 3}),
    "masked documents": Case({"document_start": 3}, {}, {"save_every": 4}, lambda: random_data(100, start_id=3)),
    "fp16": Case({"dropout": 0.1}, {"precision": "fp16"}),
    "bf16": Case({"dropout": 0.1}, {"precision": "bf16"}, {"save_every": 2}),
    "best early": Case({}, {"learning_rate": 0.3, "warmup_steps": 0}, {"save_every": 5, "keep_last": 1}),
    "patience": Case({"dropout": 0.1}, {"learning_rate": 0.3, "patience": 3, "max_steps": 40}, {"save_every": 2}),
    "epochs": Case({"dropout": 0.1}, {"epochs": 3, "max_steps": None, "eval_every": None}, {"save_every": 1}),
    "no clipping, no warm-up": Case({"qk_norm": True}, {"max_grad_norm": 0.0, "warmup_steps": 4, "log_every": 5}),
    "foreign": Case({"foreign": True}, {}, {"save_every": 2}, Pairs),
}


@pytest.mark.parametrize("steps", range(STEPS + 1))
def test_some_steps_and_then_the_others_are_all_steps(tmp_path: Path, steps: int) -> None:
    unbroken = DROPOUT.train(tmp_path / "unbroken")
    first = DROPOUT.train(tmp_path / "broken", should_stop=stop_after(steps))
    assert first.status == ("interrupted" if steps < STEPS else "finished")
    if steps < STEPS:
        second = DROPOUT.train(tmp_path / "broken")
        assert (second.resumed_from, second.status) == (steps, "finished")
        assert plain(second.records) == plain(unbroken.records)
        assert plain(second.best) == plain(unbroken.best)
    assert left_in(tmp_path / "broken") == left_in(tmp_path / "unbroken")


@pytest.mark.parametrize("name", CASES)
def test_a_run_broken_off_after_each_few_steps_equals_the_unbroken_one(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    unbroken = case.train(tmp_path / "unbroken")
    for few in (1, 4):
        lives, history = 1, case.train(tmp_path / f"{few}", should_stop=stop_after(few))
        while history.status == "interrupted":
            lives, history = lives + 1, case.train(tmp_path / f"{few}", should_stop=stop_after(few))
        assert lives > 2
        assert plain(history.records) == plain(unbroken.records)
        assert (plain(history.best), history.total_steps) == (plain(unbroken.best), unbroken.total_steps)
        assert left_in(tmp_path / f"{few}") == left_in(tmp_path / "unbroken")
    if name in ("best early", "patience"):
        assert "best.pt" in left_in(tmp_path / "unbroken")["states"]


def finished(case: Case, path: Path) -> History:
    """The history of the last of as many lives as a run takes."""
    history = case.train(path)
    while history.status == "interrupted":
        history = case.train(path)
    return history


@pytest.mark.parametrize("number", range(13))
def test_the_stop_button_at_any_record_loses_nothing(tmp_path: Path, number: int) -> None:
    calls = itertools.count()

    def press(record: dict[str, Any]) -> None:
        if next(calls) == number:
            raise KeyboardInterrupt

    unbroken = DROPOUT.train(tmp_path / "unbroken")
    assert DROPOUT.train(tmp_path / "broken", on_log=press).status == "interrupted"
    again = finished(DROPOUT, tmp_path / "broken")
    assert plain(again.records) == plain(unbroken.records)
    assert left_in(tmp_path / "broken") == left_in(tmp_path / "unbroken")


class Pressing(Foreign):
    """A module that is being computed when somebody presses the stop button."""

    def __init__(self, when: int) -> None:
        super().__init__()
        self.calls, self.when = 0, when

    def forward(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.when:
            raise KeyboardInterrupt
        return super().forward(tokens)


@pytest.mark.parametrize("call", [1, 2, 5, 6, 7, 8, 9, 14, 20])
def test_the_stop_button_inside_a_step_or_an_evaluation_loses_nothing(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["foreign"]
    case.train(tmp_path / "unbroken")
    with monkeypatch.context() as patch, seeded(torch.device("cpu"), 0):
        module = Pressing(call)
        patch.setitem(globals(), "make_model", lambda **_: module)
        assert case.train(tmp_path / "broken").status == "interrupted"
    finished(case, tmp_path / "broken")
    assert left_in(tmp_path / "broken") == left_in(tmp_path / "unbroken")


def test_a_run_interrupted_before_its_first_evaluation_has_a_model_all_the_same(tmp_path: Path) -> None:
    case = Case({"dropout": 0.1}, {"eval_every": 100, "batch_size": 1})
    case.train(tmp_path / "unbroken")
    history = case.train(tmp_path / "broken", should_stop=stop_after(3))
    assert [record["step"] for record in history.evaluations] == [3]
    assert slm.load(tmp_path / "broken").step == 3
    finished(case, tmp_path / "broken")
    assert left_in(tmp_path / "broken") == left_in(tmp_path / "unbroken")


def test_a_run_interrupted_before_its_next_step_stays_as_it_is(tmp_path: Path) -> None:
    DROPOUT.train(tmp_path / "run", should_stop=stop_after(4))
    before = left_in(tmp_path / "run")
    for _ in range(3):
        assert DROPOUT.train(tmp_path / "run", should_stop=stop_after(0)).resumed_from == 4
        assert left_in(tmp_path / "run") == before


def test_no_batch_is_replayed(tmp_path: Path) -> None:
    case, data = CASES["foreign"], [Pairs(), Pairs(), Pairs()]
    for number, (folder, stop) in enumerate((("unbroken", never), ("run", stop_after(7)), ("run", never))):
        dataclasses.replace(case, data=lambda number=number: data[number]).train(tmp_path / folder, should_stop=stop)
    first_batch, left = data[2].fetched[:5], data[2].fetched[5:]  # the first one, by which a machine is chosen
    assert first_batch == data[0].fetched[:5]
    epoch, step_in_epoch = divmod(7, len(Batches(Pairs(), 5, 0)))
    assert left == data[0].fetched[5 + epoch * 12 + step_in_epoch * 5 :]


def choices_in(folder: Path) -> dict[str, Any]:
    return dict(left_in(folder)["manifest"]["choices"])


def test_what_was_measured_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case({}, {"precision": "auto", "threads": None})
    monkeypatch.setattr(device_module, "time_steps", lambda *_: {Choice(2, "bf16"): 1.0, Choice(1, "fp32"): 9.0})
    torch.set_num_threads(2)
    try:
        case.train(tmp_path / "run", should_stop=stop_after(3))
    finally:
        torch.set_num_threads(1)
    monkeypatch.setattr(device_module, "time_steps", lambda *_: pytest.fail("measured again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*less than a third")  # of a busy machine, which is no matter here
        assert case.train(tmp_path / "run").resumed_from == 3
    assert choices_in(tmp_path / "run") == {
        "device": "cpu",
        "precision": "bf16",
        "threads": 2,
        "compile": "off",
        "micro_batch_size": 5,
    }


CHANGES = {"threads": 2, "precision": "bf16", "micro_batch_size": 2, "log_every": 1, "max_steps": 17}


@pytest.mark.parametrize("name", [*CHANGES, "fp16"])
def test_what_may_change_has_the_effect_that_is_told(tmp_path: Path, name: str) -> None:
    name, value = ("precision", "fp16") if name == "fp16" else (name, CHANGES[name])
    DROPOUT.train(tmp_path / "run", should_stop=stop_after(4))
    changed = dataclasses.replace(DROPOUT, config={name: value})
    with pytest.warns(UserWarning, match=rf"{name} was .*, is now {value}: {resume.MAY_CHANGE[name]}"):
        history = changed.train(tmp_path / "run", should_stop=stop_after(2))
    assert history.resumed_from == 4
    assert choices_in(tmp_path / "run").get(name, value) == value
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and is told once
        history = changed.train(tmp_path / "run")
    assert (history.status, history.total_steps) == ("finished", 17 if name == "max_steps" else STEPS)
    assert choices_in(tmp_path / "run").get(name, value) == value


def test_a_run_of_a_device_that_is_not_here_goes_on_with_one_that_is(tmp_path: Path) -> None:
    case = Case({}, {"device": "auto", "precision": "fp32"})
    case.train(tmp_path / "run", should_stop=stop_after(4))
    manifest = next((tmp_path / "run").glob("checkpoints/*/manifest.json"))
    manifest.write_text(manifest.read_text().replace('"cpu"', '"cuda:77"'))
    with pytest.warns(UserWarning, match="device was cuda:77, is now cpu: from here on"):
        assert case.train(tmp_path / "run").resumed_from == 4


def test_a_field_that_may_change_is_a_field() -> None:
    configs = (TrainConfig, TaskConfig)
    assert set(resume.MAY_CHANGE) <= {field.name for config in configs for field in dataclasses.fields(config)}


class Fits(Foreign):
    """A module for which there is memory only in micro-batches of some size."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.norm, self.dropout, self.most = nn.Identity(), nn.Dropout(0.0), most

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training and len(tokens) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(tokens)


@pytest.mark.parametrize(("most", "size"), [(4, 4), (3, 2), (1, 1)])
def test_micro_batches_are_halved_until_they_fit_and_stay_so(
    tmp_path: Path, most: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "make_model", lambda **_: Fits(most).requires_grad_())
    found = {"asked": Case({"foreign": True}, {"batch_size": 8, "micro_batch_size": size}, {}, Pairs)}
    for micro_batch_size in (None, 8):
        case = Case({"foreign": True}, {"batch_size": 8, "micro_batch_size": micro_batch_size}, {}, Pairs)
        found[f"found {micro_batch_size}"] = case
    left = {}
    for name, case in found.items():
        with contextlib.ExitStack() as stack:
            stack.enter_context(seeded(torch.device("cpu"), 3))
            told = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            case.train(tmp_path / name, should_stop=stop_after(4))
            assert len(told) == (name != "asked")
            told.clear()
            assert case.train(tmp_path / name).resumed_from == 4
            assert not told  # the smaller one is taken from the checkpoint
        assert choices_in(tmp_path / name)["micro_batch_size"] == size
        left[name] = left_in(tmp_path / name)
    for name, there in left.items():
        assert there["records"] == left["asked"]["records"], name
        for file, state in there["states"].items():
            assert state.get("model") == left["asked"]["states"][file].get("model"), (name, file)


# What a folder may hold, and what comes of another start.


class NeverFinite(Foreign):
    """A module whose loss is no number from some call on."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * (math.nan if self.training else 1.0)


def never_finite(**_: Any) -> nn.Module:
    with seeded(torch.device("cpu"), 0):
        return NeverFinite()


def diverged(path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    case = CASES["foreign"]
    monkeypatch.setitem(globals(), "make_model", never_finite)
    with pytest.warns(UserWarning, match="no finite number in 5 steps in a row, from step 1 on"):
        assert case.train(path).status == "diverged"
    return case


def refused(words: str) -> Any:
    return pytest.raises(UserError, match=words)


def with_config(case: Case, **config: Any) -> Case:
    return dataclasses.replace(case, config=case.config | config)


def with_folder(case: Case, **options: Any) -> Case:
    return dataclasses.replace(case, folder=case.folder | options)


def test_a_finished_run_is_not_begun_again(tmp_path: Path) -> None:
    DROPOUT.train(tmp_path)
    before = left_in(tmp_path)
    for case in (DROPOUT, with_config(DROPOUT, max_steps=STEPS, epochs=9), with_folder(DROPOUT, resume="must")):
        with refused("already holds a run, which finished at step 11. To train it further, raise --epochs"):
            case.train(tmp_path)
    with refused("already holds a run. Choose another --model_dir"):
        with_folder(DROPOUT, resume="never").train(tmp_path)
    assert left_in(tmp_path) == before


def test_the_same_length_in_other_words_is_the_same_run(tmp_path: Path) -> None:
    in_epochs = Case({"dropout": 0.1}, {"epochs": 2, "max_steps": None})
    in_steps = with_config(in_epochs, epochs=5, max_steps=6)
    in_epochs.train(tmp_path / "run", should_stop=stop_after(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert in_steps.train(tmp_path / "run").resumed_from == 4
    for case in (in_epochs, in_steps):
        with refused("which finished at step 6"):
            case.train(tmp_path / "run")


@pytest.mark.parametrize(
    "longer", [{"max_steps": 20}, {"epochs": 7, "max_steps": None}, {"epochs": 7, "max_steps": 20}]
)
@pytest.mark.parametrize("steps", [4, STEPS])
def test_a_run_can_be_made_longer_and_not_shorter(tmp_path: Path, longer: dict[str, Any], steps: int) -> None:
    DROPOUT.train(tmp_path / "run", should_stop=stop_after(steps))
    case = with_config(DROPOUT, **longer)
    total = longer["max_steps"] or 7 * len(Batches(DROPOUT.data(), 5, 0))
    with pytest.warns(UserWarning, match=f"max_steps was 11, is now {total}: from here on, the learning rate"):
        assert case.train(tmp_path / "run", should_stop=stop_after(0)).status == "interrupted"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = case.train(tmp_path / "run")
    assert (history.resumed_from, history.status, history.total_steps) == (steps, "finished", total)
    assert left_in(tmp_path / "run")["manifest"]["step"] == total
    with refused(f"which finished at step {total}"):
        case.train(tmp_path / "run")
    with refused(f"the run had {total} steps, now 11: it can be longer, not shorter"):
        DROPOUT.train(tmp_path / "run")


def test_a_run_made_longer_keeps_what_it_had_derived(tmp_path: Path) -> None:
    case = Case({}, {"eval_every": None, "warmup_steps": None, "batch_size": 1, "max_steps": 40})
    short = case.train(tmp_path / "run")
    with pytest.warns(UserWarning, match="max_steps was 40"):
        long = with_config(case, max_steps=80).train(tmp_path / "run")
    at = [record["step"] for record in short.evaluations]
    assert [record["step"] for record in long.evaluations][: len(at)] == at
    config = slm.settings.read_table(str(tmp_path / "run"), "resolved")
    assert config["warmup_steps"] == 40 // 20


def test_a_run_that_its_patience_ended_stays_ended(tmp_path: Path) -> None:
    case = CASES["patience"]
    history = case.train(tmp_path / "run")
    assert history.evaluations[-1]["step"] < history.total_steps
    for again in (case, with_config(case, max_steps=60)):
        with refused("which its patience ended at step 9; it would end there with more steps, too"):
            again.train(tmp_path / "run")


def test_a_run_that_diverged_stays_so_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = diverged(tmp_path, monkeypatch)
    manifest = left_in(tmp_path)["manifest"]
    assert (manifest["status"], manifest["step"]) == ("diverged", 5)
    with refused("stopped at step 5 because its loss was no finite number.*Choose other settings and another --model"):
        case.train(tmp_path)
    with refused("stopped at step 5 because"):
        with_config(case, max_steps=STEPS + 1).train(tmp_path)


def test_clipped_steps_are_counted_over_an_interruption(tmp_path: Path) -> None:
    limit = 0.8
    case = Case({"dropout": 0.2}, {"max_grad_norm": limit, "log_every": 1})
    unbroken = case.train(tmp_path / "unbroken")
    counts = [record["clipped_steps"] for record in unbroken.records if "lr" in record]
    norms = [record["grad_norm"] for record in unbroken.records if "lr" in record]
    assert counts == list(itertools.accumulate(norm > limit for norm in norms))
    assert counts[3] == 3
    assert counts[-1] == 5
    case.train(tmp_path / "broken", should_stop=stop_after(4))
    again = case.train(tmp_path / "broken")
    assert [record["clipped_steps"] for record in again.records if "lr" in record] == counts
    assert left_in(tmp_path / "broken") == left_in(tmp_path / "unbroken")


def test_a_checkpoint_without_what_earlier_versions_did_not_count_goes_on_from_0(tmp_path: Path) -> None:
    case = with_config(DROPOUT, max_grad_norm=1e-9, log_every=1)
    case.train(tmp_path, should_stop=stop_after(4))
    rewritten(tmp_path, "training.pt", lambda content: content.pop("clipped_steps"))
    history = case.train(tmp_path)
    assert history.resumed_from == 4
    counts = [record["clipped_steps"] for record in history.records if "lr" in record]
    assert counts == [1, 2, 3, 4, *range(1, STEPS - 3)]


def test_five_bad_steps_in_a_row_are_counted_over_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["foreign"]
    with monkeypatch.context() as patch:
        diverged(tmp_path / "unbroken", patch)
    monkeypatch.setitem(globals(), "make_model", never_finite)
    for steps in (2, 1):
        case.train(tmp_path / "broken", should_stop=stop_after(steps))
    with pytest.warns(UserWarning, match="from step 1 on"):
        history = case.train(tmp_path / "broken")
    assert (history.status, history.skipped_steps) == ("diverged", 5)
    assert [record["skipped_steps"] for record in history.records if "lr" in record] == [1, 3]
    assert left_in(tmp_path / "broken")["records"] == left_in(tmp_path / "unbroken")["records"]


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    DROPOUT.train(tmp_path / "unbroken")
    DROPOUT.train(tmp_path / "run", should_stop=stop_after(0))
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    with refused("without a checkpoint to go on from"):
        with_folder(DROPOUT, resume="must").train(tmp_path / "run")
    with refused("other settings: batch_size was 5, is now 4. Set them as they were"):
        with_config(DROPOUT, batch_size=4).train(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DROPOUT.train(tmp_path / "run").resumed_from == 0
    assert left_in(tmp_path / "run") == left_in(tmp_path / "unbroken")


def test_must_resumes_and_never_begins_only(tmp_path: Path) -> None:
    must, never_ = with_folder(DROPOUT, resume="must"), with_folder(DROPOUT, resume="never")
    with refused("holds no run to go on with"):
        must.train(tmp_path / "run")
    assert never_.train(tmp_path / "run", should_stop=stop_after(3)).resumed_from == 0
    with refused("already holds a run. Choose another"):
        never_.train(tmp_path / "run")
    with refused("leave one of them out"):
        with_folder(must, overwrite=True).train(tmp_path / "run")
    assert must.train(tmp_path / "run").resumed_from == 3


@pytest.mark.parametrize("state", ["finished", "interrupted", "begun", "damaged", "without checkpoints"])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_overwrite_moves_any_run_aside_whole(tmp_path: Path, state: str, resume: str) -> None:
    stop = {"interrupted": stop_after(4), "begun": stop_after(0)}.get(state, never)
    Case().train(tmp_path / "run", should_stop=stop)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    if state == "damaged":
        (tmp_path / "run" / "checkpoints" / "step-00000011" / "training.pt").write_bytes(b"")
    elif state == "without checkpoints":
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = contents(tmp_path / "run")
    before.pop("notes.txt")
    over = with_folder(DROPOUT, overwrite=True, resume=resume)
    assert over.train(tmp_path / "run").resumed_from == 0
    assert contents(tmp_path / "run" / "previous-1") == before
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    DROPOUT.train(tmp_path / "other")
    assert left_in(tmp_path / "run") == left_in(tmp_path / "other")


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != ".slm.lock"}


def test_a_model_without_checkpoints_is_not_gone_on_with(tmp_path: Path) -> None:
    DROPOUT.train(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    before = contents(tmp_path)
    with refused("already holds a run, without checkpoints. It cannot be gone on with"):
        DROPOUT.train(tmp_path)
    assert contents(tmp_path) == before


def several_checkpoints(path: Path) -> list[Path]:
    for steps in (3, 3, 2):
        with_folder(DROPOUT, keep_last=3).train(path, should_stop=stop_after(steps))
    found = sorted(path.glob("checkpoints/step-*"))
    assert [folder.name for folder in found] == ["step-00000003", "step-00000006", "step-00000008"]
    return found


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("name", ["training.pt", "model.pt", "metrics.jsonl", "best.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over_and_replaced(tmp_path: Path, name: str) -> None:
    DROPOUT.train(tmp_path / "unbroken")
    newest = several_checkpoints(tmp_path / "run")[-1]
    if not (newest / name).exists():
        pytest.skip("the newest weights are the best")
    if name == "manifest.json":
        (newest / name).unlink()
    else:
        damage(newest / name)
    with pytest.warns(UserWarning, match="passed over a newer checkpoint: .*step-00000008"):
        assert DROPOUT.train(tmp_path / "run", should_stop=stop_after(2)).resumed_from == 6
    assert checkpoint_folder.verify(str(newest))["step"] == 8
    DROPOUT.train(tmp_path / "run")
    assert left_in(tmp_path / "run") == left_in(tmp_path / "unbroken")


def test_where_no_checkpoint_is_whole_each_is_named_with_its_damage(tmp_path: Path) -> None:
    folders = several_checkpoints(tmp_path)
    damage(folders[0] / "model.pt")
    (folders[1] / "manifest.json").unlink()
    (folders[2] / "training.pt").unlink()
    before = contents(tmp_path)
    with refused("no checkpoint that can be used") as caught:
        DROPOUT.train(tmp_path)
    for words in (
        f"{folders[0] / 'model.pt'} is damaged",
        f"{folders[1]} was never completed",
        "training.pt is missing",
    ):
        assert words in str(caught.value)
    assert contents(tmp_path) == before


def test_files_of_others_stay_as_they_are(tmp_path: Path) -> None:
    foreign = {"notes.txt", "checkpoints/notes.txt", "checkpoints/step-4/x", "checkpoints/old/step-00000001/x"}
    DROPOUT.train(tmp_path, should_stop=stop_after(3))
    for name in foreign:
        files.write_bytes(str(tmp_path / name), name.encode())
    DROPOUT.train(tmp_path)
    there = contents(tmp_path)
    assert {name: there[name] for name in foreign} == {name: name.encode() for name in foreign}


# Settings and texts.

BYTES = SMALL | {"tokenizer": "byte", "patience": 9, "eval_every": 6}
CHANGED = {
    "vocab_size": 300, "embed_dim": 32, "num_heads": 1, "num_layers": 2, "hidden_dim": 16, "max_seq_len": 8,
    "dropout": 0.1, "bias": False, "tie_embeddings": True, "positions": "rope", "norm": "rmsnorm", "mlp": "swiglu",
    "num_kv_heads": 1, "qk_norm": True, "embedding_norm": True, "zero_init": True,
    "rope_base": 9.0, "norm_eps": 1e-6, "document_start": 3,
    "data": "other", "val_data": "other", "val_fraction": 0.3, "text_field": "body", "split_documents_on": "\n",
    "tokenizer": "char", "mask_documents": True, "val_tokens": 50, "max_minutes": 1.0,
    "batch_size": 7, "micro_batch_size": 3, "learning_rate": 1e-4, "epochs": 9, "max_steps": 20, "seed": 1,
    "schedule": "cosine", "warmup_steps": 5, "min_learning_rate": 1e-5, "weight_decay": 0.2, "beta1": 0.8,
    "beta2": 0.999, "max_grad_norm": 0.5, "patience": 3, "eval_every": 5, "log_every": 3, "sample_every": 1,
    "device": "cuda:77",
    "precision": "bf16", "threads": 2, "recipe": "modern", "optimizer": "muon", "decay_steps": 3, "compile": "on",
    "task": "pairs", "lora_rank": 3,
}  # fmt: skip
LENGTH = {"epochs", "max_steps"}
WITHOUT_EFFECT = {"vocab_size", "text_field"}  # on these settings and this text
FIELDS = [
    field.name
    for config in (ModelConfig, DataConfig, TrainConfig, TaskConfig)
    for field in dataclasses.fields(config)
    # Others need a model (test_fine_tuning.py) or another task (test_task_runs.py).
    if config is not TaskConfig or field.name in ("task", "lora_rank")
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, and with a run on it that was interrupted at step 2."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "text.txt").write_text(make_text(400))
    (folder / "other.txt").write_text(make_text(300))
    slm.train(folder / "text.txt", model_dir=folder / "run", should_stop=stop_after(2), **BYTES)
    return folder


def go_on(begun: Path, folder: Path, data: Path | None = None, **changes: Any) -> slm.Run:
    """The run of another start in a copy of what was begun, stopped at once."""
    shutil.copytree(begun / "run", folder)
    settings = BYTES | changes
    return slm.train(
        settings.pop("data", data or begun / "text.txt"), model_dir=folder, should_stop=lambda: True, **settings
    )


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_may_change_or_is_refused_by_name_with_both_values(begun: Path, tmp_path: Path, name: str) -> None:
    value = CHANGED[name]  # a new field cannot be forgotten
    value = begun / "other.txt" if value == "other" else value
    if name == "device":
        with refused("device = 'cuda:77': this machine has"):
            go_on(begun, tmp_path / "run", device=value)
    elif name == "max_minutes":
        with refused("max_steps and max_minutes both say when training ends"):
            go_on(begun, tmp_path / "run", max_minutes=value)
    elif name in resume.MAY_CHANGE or name in LENGTH | WITHOUT_EFFECT:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run = go_on(begun, tmp_path / "run", **{name: value})
        assert run.history is not None
        assert run.history.resumed_from == 2
        assert any(f"{name} was " in str(each.message) for each in told) == (name in resume.MAY_CHANGE)
    else:
        with refused(rf"other settings: .*{name} was .*, is now .*{getattr(value, 'name', value)}.*Set them as"):
            go_on(begun, tmp_path / "run", **{name: value})
        assert contents(tmp_path / "run") == contents(begun / "run")


@pytest.mark.parametrize("name", ["patience", "eval_every"])
def test_a_setting_that_is_left_out_is_a_change_too(begun: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(begun / "run", tmp_path / "run")
    settings = {key: value for key, value in BYTES.items() if key != name}
    with refused(f"{name} was "):
        slm.train(begun / "text.txt", model_dir=tmp_path / "run", **settings)


def test_a_text_that_changed_is_refused_and_one_that_moved_is_not(begun: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    shutil.copy(begun / "text.txt", moved)
    run = go_on(begun, tmp_path / "run", moved)
    assert run.history is not None
    assert run.history.resumed_from == 2
    assert slm.settings.read_table(str(tmp_path / "run"), "resolved")["data"] == [str(moved)]
    before = contents(tmp_path / "run")
    moved.write_text(make_text(399))
    with refused("other settings: the text itself, or a tokenizer.json, has changed"):
        slm.train(moved, model_dir=tmp_path / "run", **BYTES)
    assert contents(tmp_path / "run") == before


def test_another_corpus_is_named_before_the_settings_that_it_brings(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun / "run", tmp_path / "run")
    settings = {key: value for key, value in BYTES.items() if key != "learning_rate"}  # stories brings its own
    with refused("other settings: data was .*text.txt'], is now .*stories.*; learning_rate was"):
        slm.train("stories", model_dir=tmp_path / "run", **settings)


def test_a_text_to_validate_on_that_changed_is_refused(tmp_path: Path) -> None:
    for name, words in (("train", 400), ("val", 100)):
        (tmp_path / f"{name}.txt").write_text(make_text(words))
    settings = BYTES | {"val_data": tmp_path / "val.txt", "model_dir": tmp_path / "run"}
    slm.train(tmp_path / "train.txt", should_stop=stop_after(2), **settings)
    (tmp_path / "val.txt").write_text(make_text(101))
    with refused("the text itself"):
        slm.train(tmp_path / "train.txt", **settings)


def test_data_given_in_python_resumes_where_it_is_the_same(tmp_path: Path) -> None:
    text = make_text(400)
    slm.train([text], model_dir=tmp_path, should_stop=stop_after(2), **BYTES)
    with refused("the text itself"):
        slm.train([text + "!"], model_dir=tmp_path, **BYTES)
    run = slm.train([text], model_dir=tmp_path, **BYTES)
    assert run.history is not None
    assert (run.history.resumed_from, run.step) == (2, 12)


def test_the_settings_of_the_folder_go_on_with_it(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun / "run", tmp_path / "run")
    run = slm.train(config=tmp_path / "run" / "config.toml", model_dir=tmp_path / "run", quiet=True)
    assert run.history is not None
    assert (run.history.resumed_from, run.history.status) == (2, "finished")


# A state that nobody wrote, with a right checksum.


def rewritten(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a file of the newest checkpoint, and the manifest with it."""
    newest = Path(str(checkpoint_folder.newest(str(folder / "checkpoints"))[0]))
    content = checkpoint.load_file(str(newest / name))
    change(content)
    checkpoint.save_file(str(newest / name), content)
    described(newest, name)


def described(newest: Path, name: str) -> None:
    manifest = json.loads((newest / "manifest.json").read_text())
    size, crc32c = files.fingerprint(str(newest / name))
    manifest["files"][name] = {"size": size, "crc32c": crc32c}
    (newest / "manifest.json").write_text(json.dumps(manifest))


WRONG = [None, "x", -1, 5.5, [], [1], {}, {"a": 1}, torch.ones(3), True]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    HOSTED.train(folder, should_stop=stop_after(5))
    assert {path.name for path in folder.glob("checkpoints/*/*")} >= {"best.pt", "training.pt"}
    return folder


HOSTED = Case({}, {"learning_rate": 0.3, "warmup_steps": 0, "precision": "fp16", "patience": 9})


@pytest.mark.parametrize(
    "key",
    [
        "step", "tokens_seen", "bad_steps", "losses", "skipped_steps", "clipped_steps", "best", "optimizer",
        "scaler", "random", "elapsed_seconds",
    ],
)  # fmt: skip
def test_a_state_that_nobody_wrote_is_refused_or_does_no_harm(interrupted: Path, tmp_path: Path, key: str) -> None:
    for number, wrong in enumerate([*WRONG, "missing"]):
        shutil.copytree(interrupted, tmp_path / f"{number}")
        rewritten(
            tmp_path / f"{number}",
            "training.pt",
            lambda c, w=wrong: c.pop(key) if w == "missing" else c.update({key: w}),
        )
        # Some wrong values are right ones of another run, such as an empty list of losses.
        with contextlib.suppress(UserError):
            HOSTED.train(tmp_path / f"{number}", should_stop=stop_after(2))
            assert (key, wrong) in [
                ("losses", []), ("best", None), ("scaler", {}), ("elapsed_seconds", 5.5), ("clipped_steps", "missing")
            ]  # fmt: skip


MOMENT = ("optimizer", "state", 0)


@pytest.mark.parametrize(
    ("name", "path", "wrong"),
    [
        ("training.pt", (*MOMENT, "exp_avg"), torch.ones(3)),
        ("training.pt", (*MOMENT, "exp_avg"), "x"),
        ("training.pt", (*MOMENT, "step"), "x"),
        ("training.pt", (*MOMENT, "more"), torch.ones(1)),
        ("training.pt", MOMENT, {}),
        ("training.pt", ("optimizer", "state", 999), {"exp_avg": torch.ones(3)}),
        ("training.pt", ("best", "val_loss"), "x"),
        ("training.pt", ("best", "step"), None),
        ("training.pt", ("scaler", "scale"), "x"),
        ("model.pt", ("model",), {}),
        ("model.pt", ("model", "embedding.weight"), torch.ones(3)),
        ("model.pt", ("model", "embedding.weight"), "x"),
        ("best.pt", ("model",), {}),
        ("best.pt", ("model", "embedding.weight"), torch.ones(3)),
        ("best.pt", ("model", "embedding.weight"), "x"),
    ],
    ids=str,
)
def test_parts_that_nobody_wrote_are_refused(
    interrupted: Path, tmp_path: Path, name: str, path: tuple[Any, ...], wrong: Any
) -> None:
    def change(content: dict[str, Any]) -> None:
        *outer, last = path
        for key in outer:
            content = content[key]
        content[last] = wrong

    shutil.copytree(interrupted, tmp_path / "run")
    rewritten(tmp_path / "run", name, change)
    with refused("does not fit this run") as caught:
        HOSTED.train(tmp_path / "run", should_stop=stop_after(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"3\n", b"[]\n", b"{\n", b"\xff\xfe\n", b"null\n"])
def test_lines_that_nobody_wrote_are_refused_or_do_no_harm(interrupted: Path, tmp_path: Path, data: bytes) -> None:
    shutil.copytree(interrupted, tmp_path / "run")
    newest = next((tmp_path / "run").glob("checkpoints/*"))
    (newest / "metrics.jsonl").write_bytes(data)
    described(newest, "metrics.jsonl")
    with contextlib.nullcontext() if not data else refused("does not fit this run"):
        HOSTED.train(tmp_path / "run", should_stop=stop_after(2))


def test_another_module_is_refused_in_one_line(tmp_path: Path) -> None:
    DROPOUT.train(tmp_path, should_stop=stop_after(3))
    with refused("does not fit this run.*size mismatch|does not fit this run.*Missing key") as caught:
        dataclasses.replace(DROPOUT, model={"num_layers": 2, "dropout": 0.2}).train(tmp_path)
    assert "\n" not in str(caught.value)
