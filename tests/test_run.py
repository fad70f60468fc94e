"""Laws of whole runs: what `slm.train` returns, writes, repeats and refuses, and what `slm.load` brings back."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from conftest import SMALL, make_text
from tokenizers import decoders, models, pre_tokenizers, trainers

import slm
from slm import ending as ending_module
from slm import run as run_module
from slm import writing
from slm.config import FIELDS, PRESETS, RunOptions
from slm.data.prepared import PreparedData
from slm.data.splits import load_data
from slm.display import Display
from slm.header import header, warn
from slm.metrics import evaluate
from slm.model.generation import NewTokens
from slm.settings import layered
from slm.storage import checkpoint, files
from slm.training import background
from slm.training import device as device_module
from slm.training.deadline import Deadline
from slm.training.remote import RemoteRun
from slm.training.saving import RunFolder

TIMING = {"tokens_per_second", "elapsed_seconds", "mfu"}
pytestmark = pytest.mark.filterwarnings("ignore:only 12 steps")


def records_of(folder: str | Path) -> list[dict[str, Any]]:
    lines = files.read_bytes(files.join(str(folder), "metrics.jsonl")).decode().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


RUN = {"model.pt", "config.toml", "metrics.jsonl", "checkpoints", "report.html", "MODEL_CARD.md"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".slm.lock"}


def test_a_notebook_trains_and_writes_nothing(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = slm.train([text], **SMALL)
    assert run.generate("the cat", max_new_tokens=5, seed=1).startswith("the cat")
    assert names_in(tmp_path) == set()


def test_a_loaded_run_equals_the_saved_one(tmp_path: Path, text_file: str) -> None:
    run = slm.train(text_file, **SMALL)
    run.save(tmp_path / "run")
    for path in (tmp_path / "run", str(tmp_path / "run" / "model.pt")):
        again = slm.load(path)
        assert again.metrics == run.metrics
        assert again.step == run.step
        assert again.generate("the", seed=3) == run.generate("the", seed=3)
        assert again.generate("the", temperature=0) == run.generate("the", temperature=0)
        for a, b in zip(again.model.parameters(), run.model.parameters(), strict=True):
            assert torch.equal(a, b)
    assert names_in(tmp_path / "run") == RUN - {"checkpoints"}


def test_one_file_is_all_one_needs(tmp_path: Path, text_file: str) -> None:
    run = slm.train(text_file, model_dir=tmp_path / "run", **SMALL)
    moved = (tmp_path / "run" / "model.pt").rename(tmp_path / "elsewhere.pt")
    again = slm.load(moved)
    assert again.generate("a", seed=1) == run.generate("a", seed=1)
    assert again.model.config == run.model.config
    assert again.resolved == run.resolved
    assert again.made_with["data_fingerprint"] == run.made_with["data_fingerprint"]


def test_streamed_pieces_join_to_the_generated_text(text: str) -> None:
    run = slm.train([text + "naïve 😀 "], **(SMALL | {"tokenizer": "byte"}))
    pieces = list(slm.stream(run, "the", max_new_tokens=60, seed=5))
    assert "the" + "".join(pieces) == run.generate("the", max_new_tokens=60, seed=5)


def test_the_dummy_data_is_the_one_of_the_original() -> None:
    run = slm.train(**(SMALL | {"vocab_size": 50, "max_steps": 3}))
    expected = torch.randint(0, 50, (10000,), generator=torch.Generator().manual_seed(42))
    val_data = slm.TextDataset(expected[9000:], SMALL["max_seq_len"])
    assert evaluate(run.model, val_data)["val_loss"] == pytest.approx(run.metrics["val_loss"], abs=1e-5)
    assert run.metrics["val_loss"] == pytest.approx(math.log(50), abs=0.1)
    with pytest.raises(slm.UserError, match="no tokenizer"):
        run.generate("x")


def test_the_validation_part_is_the_tail_and_is_not_trained_on(text: str) -> None:
    # The tail is made of a character that training never shows. The tokenizer knows it, the model cannot.
    cut = int(len(text) * 0.9)
    run = slm.train([text[:cut] + "Z" * (len(text) - cut)], **SMALL)
    assert run.tokenizer is not None
    assert run.tokenizer.decode(run.tokenizer.encode("Z")) == "Z"
    assert run.metrics["val_accuracy"] == 0


@pytest.mark.filterwarnings("ignore:the vocabulary of")
def test_bpe_learns_nothing_from_the_validation_part(text: str) -> None:
    cut = int(len(text) * 0.9)
    settings = SMALL | {"tokenizer": "bpe", "vocab_size": 300, "max_steps": 1}
    with pytest.warns(UserWarning, match="only 1 step:"):
        run = slm.train([text[:cut] + "ZY" * 500 + "Z" * (len(text) - cut - 1000)], **settings)
    assert run.tokenizer is not None
    assert run.tokenizer.to_json() == slm.make_tokenizer("bpe", [text[:cut]], 300).to_json()


@pytest.mark.filterwarnings("ignore:the vocabulary of")
def test_one_seed_gives_one_run_and_repeat_gives_it_again(
    tmp_path: Path, text_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        monkeypatch.chdir(tmp_path)
        slm.train("text.txt", model_dir=name, dropout=0.1, **(SMALL | {"tokenizer": "bpe", "vocab_size": 300}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    slm.train(repeat=tmp_path / "a", model_dir="c", quiet=True)
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "elsewhere" / "c"]
    assert records_of(folders[0]) == records_of(folders[1]) == records_of(folders[2])
    weights = [checkpoint.load_file(str(folder / "model.pt"))["model"] for folder in folders]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
        assert torch.equal(tensor, weights[2][name]), name


def test_repeat_takes_no_other_settings_and_no_other_data(tmp_path: Path, text_file: str) -> None:
    slm.train(text_file, model_dir=tmp_path / "run", **SMALL)
    with pytest.raises(slm.UserError, match=r"drop max_steps.*config"):
        slm.train(repeat=tmp_path / "run", max_steps=3)
    Path(text_file).write_text(make_text(1900))
    with pytest.raises(slm.UserError, match="other data"):
        slm.train(repeat=tmp_path / "run", model_dir=tmp_path / "again", quiet=True)
    assert not (tmp_path / "again" / "config.toml").exists()


def test_a_run_on_literal_text_says_that_it_cannot_be_repeated(tmp_path: Path, text: str) -> None:
    slm.train([text], model_dir=tmp_path / "run", **SMALL)
    with pytest.raises(slm.UserError, match="given in Python"):
        slm.train(repeat=tmp_path / "run", quiet=True)


def test_config_toml_holds_what_was_asked_and_what_it_became(tmp_path: Path, text_file: str) -> None:
    run = slm.train(text_file, model_dir=tmp_path / "run", **SMALL)
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    resolved, made_with = written.pop("resolved"), written.pop("made_with")
    assert written == {"data": [text_file]} | {k: v for k, v in SMALL.items() if k != "quiet"}
    assert resolved["vocab_size"] == run.model.config.vocab_size < 10000
    assert (resolved["warmup_steps"], resolved["eval_every"], resolved["micro_batch_size"]) == (0, 6, 8)
    assert made_with["slm"] == slm.__version__
    with pytest.warns(UserWarning, match="only 3 steps"):
        again = slm.train(config=tmp_path / "run" / "config.toml", max_steps=3, quiet=True)
    assert again.model.config == run.model.config
    assert again.history is not None
    assert again.history.total_steps == 3


def test_what_a_run_was_made_with_is_kept_in_its_folder_its_model_and_what_is_saved_again(
    tmp_path: Path, text_file: str
) -> None:
    """On how much text, on which machine, and which layer set what nobody asked for."""
    settings = {name: value for name, value in SMALL.items() if name not in ("embed_dim", "precision")}
    run = slm.train(text_file, model_dir=tmp_path / "run", recipe="modern", embed_dim=16, **settings)
    made_with = tomllib.loads((tmp_path / "run" / "config.toml").read_text())["made_with"]
    assert run.data is not None
    assert made_with["train_tokens"] == len(run.data.train_dataset.tokens) > 0
    assert made_with["val_tokens"] == len(run.data.val_dataset.tokens) > 0
    assert made_with["text_bytes"] == len(Path(text_file).read_bytes())
    assert made_with["data_name"] == run.data.name
    assert made_with["hardware"].endswith(" cores")
    origins = made_with["origins"]
    assert set(origins.values()) == {"recipe"}
    assert origins.keys() & {*settings, "recipe", "data", "embed_dim", "model_dir"} == set()
    assert all(run.resolved[name] != FIELDS[name].default for name in origins)
    saved = slm.load(tmp_path / "run")
    saved.save(tmp_path / "saved")
    slm.load(tmp_path / "saved").save(tmp_path / "once more")
    for again in (run, saved, slm.load(tmp_path / "once more"), slm.load(tmp_path / "saved" / "model.pt")):
        assert again.made_with == made_with
        assert again.recorded.made_with == made_with if again is not run else True
    assert tomllib.loads((tmp_path / "once more" / "config.toml").read_text())["made_with"] == made_with


def test_the_origins_of_settings_are_recipe_preset_and_plan_alone(tmp_path: Path, text_file: str) -> None:
    (tmp_path / "mine.toml").write_text("batch_size = 4\n")
    keys = {name: value for name, value in SMALL.items() if name not in ("batch_size", "tokenizer", "quiet")}
    in_file = layered({"config": str(tmp_path / "mine.toml"), **keys}, "keyword")
    assert in_file.origins_below == {}
    modern = layered({"recipe": "modern", "data": ("stories",), **keys}, "keyword")
    planned = modern.planned({"num_layers": 3, "learning_rate": 0.01})
    assert planned.origins_below == {
        **{name: "recipe" for name in modern.origins if modern.origins[name] == "recipe"},
        **{name: "preset of the corpus" for name in modern.origins if "preset" in modern.origins[name]},
        "learning_rate": "plan",
    }
    assert len(planned.origins_below) > 1


def test_a_file_that_no_run_wrote_is_never_replaced(tmp_path: Path, text_file: str) -> None:
    for name in ("config.toml", "model.pt", "metrics.jsonl"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine = 1\n")
        (folder / "README.md").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(slm.UserError, match=f"{name} exists and no run of slm wrote it"):
                slm.train(text_file, model_dir=folder, overwrite=overwrite, **SMALL)
        assert (folder / name).read_text() == "mine = 1\n"
        assert names_in(folder) == {name, "README.md"}


def test_a_run_is_moved_aside_on_request_and_kept_otherwise(tmp_path: Path, text_file: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    first = slm.train(text_file, model_dir=folder, **SMALL)
    with pytest.raises(slm.UserError, match="already holds a run"):
        slm.train(text_file, model_dir=folder, **SMALL)
    for number in (1, 2):
        slm.train(text_file, model_dir=folder, overwrite=True, seed=number, **SMALL)
        assert names_in(folder / f"previous-{number}") == RUN
    assert slm.load(folder / "previous-1").metrics == first.metrics
    assert slm.load(folder).resolved["seed"] == 2
    assert (folder / "README.md").read_text() == "mine"


def test_a_run_refused_before_step_0_leaves_the_old_one_where_it_is(tmp_path: Path, text_file: str) -> None:
    slm.train(text_file, model_dir=tmp_path / "run", **SMALL)
    with pytest.raises(slm.UserError, match="needs about"):
        slm.train(text_file, model_dir=tmp_path / "run", overwrite=True, **(SMALL | {"embed_dim": 10**6}))
    assert names_in(tmp_path / "run") == RUN


@pytest.mark.usefixtures("service")
def test_a_run_in_the_cloud_equals_the_local_one(tmp_path: Path, text_file: str) -> None:
    slm.train(text_file, model_dir=tmp_path / "run", **SMALL)
    local = slm.load(tmp_path / "run")
    for url in ("gs://bucket/", "gs://bucket/runs/first", f"memory://bucket/{tmp_path.name}"):
        slm.train(text_file, model_dir=url, **SMALL)
        remote = slm.load(url)
        assert remote.metrics["val_loss"] == local.metrics["val_loss"]
        data = slm.TextDataset(local.tokenizer.encode(make_text(300)), 16)  # type: ignore[union-attr]
        assert evaluate(remote.model, data) == evaluate(local.model, data)
        assert records_of(url) == records_of(tmp_path / "run")
        with pytest.raises(slm.UserError, match="already holds a run"):
            slm.train(text_file, model_dir=url, **SMALL)
        slm.train(text_file, model_dir=url, overwrite=True, seed=7, **SMALL)
        assert slm.load(files.join(url, "previous-1")).metrics["val_loss"] == local.metrics["val_loss"]
        assert slm.load(url).resolved["seed"] == 7
    assert not list(tmp_path.glob("gs*"))


def test_an_upload_that_fails_keeps_the_run_here_and_says_where(
    text_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise files.StorageError("the bucket burns.")

    monkeypatch.setattr(background, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(RemoteRun, "push", fail)
    with pytest.warns(UserWarning, match="the bucket burns"):
        run = slm.train(text_file, model_dir="memory://burning/run", **SMALL)
    assert run.upload_error is not None
    kept = run.upload_error.split(" is complete in ")[1].split(";")[0]
    assert slm.load(kept).metrics == run.metrics


def damaged(kind: str, good: bytes, folder: Path) -> bytes:
    """The content of a model.pt that must be refused."""
    path = folder / "made.pt"
    content = torch.load(folder / "good" / "model.pt", weights_only=True)
    if kind == "newer":
        torch.save(content | {"format_version": 99}, path)
    elif kind == "foreign":
        torch.save({"state_dict": {"weight": torch.ones(3)}}, path)
    elif kind == "other weights":
        torch.save(content | {"model": {"weight": torch.ones(3)}}, path)
    elif kind == "no tokenizer":
        torch.save({k: v for k, v in content.items() if k != "tokenizer"}, path)
    elif kind == "pickled object":
        torch.save(torch.nn.Linear(2, 2), path)
    elif kind == "flipped bit":
        middle = bytearray(good)
        middle[len(good) // 2] ^= 1  # within the weights, which are most of the file
        return bytes(middle)
    elif kind == "foreign zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    else:
        return {"empty": b"", "text": b"hello " * 99, "cut": good[: len(good) // 2], "cut end": good[:-40]}[kind]
    return path.read_bytes()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "cut short"),
        ("text", "not a model of slm"),
        ("cut", "cut short"),
        ("cut end", "cut short"),
        ("flipped bit", "checksum"),
        ("newer", "upgrade slm"),
        ("foreign", "not a model that slm saved"),
        ("foreign zip", "damaged"),
        ("other weights", "do not fit"),
        ("no tokenizer", "do not fit"),
        ("pickled object", "nothing in it was run"),
    ],
)
def test_a_bad_model_file_is_refused_with_one_message(tmp_path: Path, text: str, kind: str, words: str) -> None:
    slm.train([text], model_dir=tmp_path / "good", **SMALL)
    path = tmp_path / "bad.pt"
    path.write_bytes(damaged(kind, (tmp_path / "good" / "model.pt").read_bytes(), tmp_path))
    with pytest.raises(slm.UserError, match=words) as caught:
        slm.load(path)
    assert str(path) in str(caught.value)


def test_a_file_that_would_need_code_to_be_read_back_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="plain"):
        checkpoint.save_file(str(tmp_path / "x.pt"), {"a": [{"b": torch.Size([1])}]})
    assert names_in(tmp_path) == set()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no RLIMIT_FSIZE")
def test_a_full_disk_is_told_in_one_message_and_leaves_no_partial_model(tmp_path: Path) -> None:
    script = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from slm.cli.train import main
sys.exit(main(["--model_dir", {str(tmp_path)!r}, "--max_steps", "2", "--vocab_size", "500"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "model.pt" in done.stderr.splitlines()[-1]
    # The report is too large, too.
    assert names_in(tmp_path) == {"config.toml", "metrics.jsonl", "checkpoints", "MODEL_CARD.md"}
    assert names_in(tmp_path / "checkpoints") == set()


def test_a_module_that_is_not_ours_can_be_saved_and_says_how_to_load_it(tmp_path: Path) -> None:
    module = torch.nn.Embedding(7, 7)
    data = slm.TextDataset(torch.arange(100) % 7, 8)
    config = slm.TrainConfig(max_steps=2, device="cpu", precision="fp32")
    slm.train_and_evaluate(module, data, data, config, model_dir=str(tmp_path))
    with pytest.raises(slm.UserError, match="load_state_dict"):
        slm.load(tmp_path)
    module.load_state_dict(slm.storage.load_file(str(tmp_path / "model.pt"))["model"])


def test_what_cannot_fit_in_memory_is_refused_with_the_setting_to_change(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(slm.UserError, match="lower --embed_dim"):
        slm.train([text], **(SMALL | {"embed_dim": 2_000_000}))
    monkeypatch.setattr(device_module, "_physical_memory", lambda: 10_000_000)
    with pytest.raises(slm.UserError, match="Lower --micro_batch_size"):
        slm.train([text], **(SMALL | {"batch_size": 10_000}))
    slm.train([text], **SMALL)


def test_the_memory_estimate_is_near_what_a_step_keeps(text: str) -> None:
    """Counts what autograd saves for the backward pass, and weights, gradients and moments, against the estimate."""
    config = slm.ModelConfig(vocab_size=500, embed_dim=64, hidden_dim=256, num_layers=3, max_seq_len=32)
    model, saved = slm.LanguageModel(config), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.zeros(16, 32, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        slm.WithLoss(model)(tokens, tokens)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    counted = 4 * 5 * config.num_parameters + activations
    assert 0.9 <= device_module.estimate_memory(config, 16, 32, torch.device("cpu")) / counted <= 2.5


@pytest.mark.filterwarnings("ignore:only 3 steps")
def test_too_few_steps_and_short_windows_are_warned_of(text: str) -> None:
    with pytest.warns(UserWarning, match=r"only 5 steps.*--epochs or --max_steps"):
        slm.train([text], **(SMALL | {"max_steps": 5}))
    with pytest.warns(UserWarning, match="shortened from 16 to"):
        slm.train(["a short text, it is."], **(SMALL | {"max_steps": 3}))


@pytest.mark.parametrize(
    ("texts", "words"), [(["a"], "at least 2"), ([], "empty"), ([""], "empty"), (["ab"], "at least 2")]
)
def test_too_little_text_is_refused_with_the_minimum(texts: list[str], words: str) -> None:
    with pytest.raises(slm.UserError, match=words):
        slm.train(texts, **SMALL)


@pytest.mark.filterwarnings("ignore:the vocabulary of")
def test_a_vocabulary_that_was_asked_for_is_an_upper_bound(text: str) -> None:
    run = slm.train([text], **(SMALL | {"tokenizer": "bpe", "vocab_size": 5000}))
    assert run.tokenizer is not None
    assert run.model.config.vocab_size == run.tokenizer.vocab_size < 5000
    with pytest.raises(slm.UserError, match="vocab_size = 5"):
        slm.train([text], **(SMALL | {"vocab_size": 5}))


def test_the_recipe_of_nanogpt_can_be_said_in_settings(text: str) -> None:
    run = slm.train(
        [text], **SMALL, bias=False, tie_embeddings=True, schedule="cosine", min_learning_rate=1e-4, warmup_steps=2,
        beta2=0.99, weight_decay=0.1, max_grad_norm=1.0, dropout=0.0, learning_rate=1e-3,
    )  # fmt: skip
    assert not any(name.endswith("bias") for name, _ in run.model.named_parameters())
    assert run.model.lm_head.weight is run.model.embedding.weight


def test_unknown_and_wrong_settings_are_refused_by_name(text: str) -> None:
    with pytest.raises(slm.UserError, match=r"embed_dims is not a setting.*Did you mean embed_dim"):
        slm.train([text], embed_dims=3)  # type: ignore[call-arg]
    with pytest.raises(slm.UserError, match="device = 'cuda:77'"):
        slm.train([text], device="cuda:77")


@pytest.mark.parametrize("text", ["Once upon a time", "Who goes there?", "[silence]"])
def test_a_path_that_is_missing_says_how_to_pass_literal_text(text: str) -> None:
    with pytest.raises(FileNotFoundError, match="literal text goes in a list"):
        slm.train(text)


def test_every_setting_is_a_keyword_with_its_default() -> None:
    keywords = inspect.signature(slm.train).parameters
    for name, field in FIELDS.items():
        assert keywords[name].default == (None if name == "model_dir" else field.default), name


def test_a_config_file_says_where_to_write_as_a_keyword_does(tmp_path: Path, text_file: str) -> None:
    (tmp_path / "mine.toml").write_text(f"model_dir = {json.dumps(str(tmp_path / 'there'))}\n")
    slm.train(text_file, config=tmp_path / "mine.toml", **SMALL)
    assert slm.load(tmp_path / "there").step == 12


def test_text_given_as_a_path_is_told_to_go_in_a_list() -> None:
    for text in ("To be,\nor not to be", "word " * 500):
        with pytest.raises(slm.UserError, match="literal text goes in a list"):
            slm.train(text)


def test_a_repeat_with_another_tokenizer_json_is_refused(tmp_path: Path, text_file: str) -> None:
    tokenizer, other = (slm.make_tokenizer("bpe", [make_text()], size) for size in (280, 290))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    settings = SMALL | {"tokenizer": tmp_path / "tokenizer.json", "model_dir": tmp_path / "run"}
    slm.train(text_file, **settings)
    (tmp_path / "tokenizer.json").write_text(other.to_json(), encoding="utf-8")
    with pytest.raises(slm.UserError, match=r"another tokenizer\.json|vocab_size"):
        slm.train(repeat=tmp_path / "run", quiet=True)


def test_tied_weights_are_saved_once(tmp_path: Path, text: str) -> None:
    run = slm.train([text], model_dir=tmp_path / "run", tie_embeddings=True, **SMALL)
    weights = checkpoint.load_file(str(tmp_path / "run" / "model.pt"))["model"]
    assert weights["embedding.weight"].data_ptr() == weights["lm_head.weight"].data_ptr()
    assert slm.load(tmp_path / "run").generate("the", seed=1) == run.generate("the", seed=1)


def test_a_remote_run_that_dies_is_gone_on_with_by_the_same_call(text_file: str) -> None:
    def break_down(record: dict[str, Any]) -> None:
        if record["step"] == 12:
            raise RuntimeError("the tracker is down")

    with pytest.raises(RuntimeError, match="the tracker is down"):
        slm.train(text_file, model_dir="memory://dies/run", on_log=break_down, **SMALL)
    run = slm.train(text_file, model_dir="memory://dies/run", **SMALL)
    assert run.history is not None
    assert run.history.resumed_from == 6
    assert slm.load("memory://dies/run").metrics == run.metrics


def test_generated_text_goes_on_from_the_prompt_with_any_tokenizer(tmp_path: Path, text: str) -> None:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False)
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    run = slm.train([text], **(SMALL | {"tokenizer": str(tmp_path / "tokenizer.json")}))
    assert run.tokenizer is not None
    texts = {run.generate("the cat", max_new_tokens=8, seed=seed) for seed in range(8)}
    ids = {seed: run.tokenizer.encode(run.generate("the cat", max_new_tokens=8, seed=seed)) for seed in range(8)}
    assert any(text.startswith("the cat ") for text in texts)
    assert all(run.tokenizer.decode(found).startswith("the cat") for found in ids.values())


@pytest.mark.parametrize("documents", [1, 3])
def test_generation_ends_where_the_model_ends_its_document(
    text: str, documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = slm.train([text] * documents, **(SMALL | {"tokenizer": "byte"}))
    assert run.tokenizer is not None
    end = run.tokenizer.end_id
    written, prompts = [*run.tokenizer.encode("cat é"), end, *run.tokenizer.encode("dog"), end], []

    def tokens(model: Any, given: list[list[int]], *_: Any, **__: Any) -> Iterator[NewTokens]:
        prompts.extend(given)
        yield from (NewTokens([id]) for id in written)
        raise AssertionError("nobody asks beyond the end")

    monkeypatch.setattr(writing, "stream_tokens", tokens)
    assert run.generate("a ") == "a cat é"
    assert "".join(slm.stream(run, "")) == "cat é"
    assert prompts == [run.tokenizer.encode("a "), [end]]
    written.insert(0, end)
    assert run.generate("a ") == "a "


def test_a_prompt_begins_a_document_where_the_model_has_seen_many_begin(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[list[int]] = []

    def spy(model: Any, given: list[list[int]], *_: Any, **__: Any) -> Iterator[NewTokens]:
        prompts.extend(given)
        return iter(())

    monkeypatch.setattr(writing, "stream_tokens", spy)
    lines = text.splitlines()
    for documents, begins in ((lines[:150], True), (lines[:20], False)):
        run = slm.train(documents, **SMALL, model_dir=tmp_path / str(begins))
        assert run.tokenizer is not None
        expected = [run.tokenizer.end_id] * begins + run.tokenizer.encode("the")
        prompts.clear()
        assert run.generate("the") == "the"
        slm.load(tmp_path / str(begins)).generate("the")
        assert prompts == [expected, expected]


def test_a_text_that_only_spells_the_end_goes_on(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = slm.train([text], **(SMALL | {"tokenizer": "byte"}))
    assert run.tokenizer is not None
    spelled = run.tokenizer.encode("<|endoftext|> and more")
    monkeypatch.setattr(writing, "stream_tokens", lambda *_, **__: (NewTokens([id]) for id in spelled))
    assert run.generate("a ") == "a <|endoftext|> and more"


def prepared(data: Any, **settings: Any) -> PreparedData:
    """The data of a run with the settings, for windows of 16."""
    resolved = layered(settings, "keyword")
    return load_data(
        resolved.data, data, vocab_size=resolved.model.vocab_size, max_seq_len=16, seed=0, recheck=False,
        asked=resolved.origins, on_progress=lambda what, done, total: None,
    )  # fmt: skip


PLAN = {"max_seq_len": 16, "max_steps": 300, "model_dir": None}


def rows(data: PreparedData, /, **settings: Any) -> dict[str, str]:
    """The header of a run of 100 steps an epoch."""
    plan = layered(PLAN | settings, "keyword")
    model = dataclasses.replace(plan.model, vocab_size=data.vocab_size)
    machine = device_module.Machine(torch.device("cpu"), "fp32", 1, "the only one there is")
    return header(plan, data, slm.LanguageModel(model), plan.train, machine, 100, 1_230_000_000)


def warned(data: PreparedData, **settings: Any) -> list[str]:
    """What is said before a run of 100 steps an epoch."""
    plan = layered(PLAN | settings, "keyword")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn(plan, data, plan.train, 100)
    return [str(one.message) for one in caught]


def test_the_header_tells_each_choice_in_its_row(text: str) -> None:
    data = prepared([text, ""], tokenizer="char")
    told = rows(data, tokenizer="char", batch_size=8, embed_dim=32)
    assert list(told) == [
        "data", "tokens", "validation", "tokenizer", "model", "machine", "memory", "steps", "saved in"
    ]  # fmt: skip
    num_train, num_val = len(data.train_dataset.tokens), len(data.val_dataset.tokens)
    assert told["data"].startswith("text given in Python: 1 document, ")
    assert "1 empty document" in told["data"]
    assert told["tokens"] == f"{num_train:,} per epoch, 1.00 bytes each; kept in memory"
    assert told["validation"] == f"the last 10 % of the text: {num_val:,} tokens"
    assert told["tokenizer"] == f"char, vocabulary {data.vocab_size}"
    assert told["model"].startswith("2 layers x 32, ")
    assert told["machine"] == "the only one there is"
    assert told["memory"] == "about 1.2 GB"
    assert told["steps"] == "300, each of 128 tokens: 3 epochs of 100 steps"
    assert told["saved in"].startswith("memory only")
    assert rows(data, model_dir="there")["saved in"] == "there"


def test_the_header_tells_where_tokens_are_kept_and_how_much_was_skipped(text: str) -> None:
    data = dataclasses.replace(
        prepared([text]), folder="/the/cache/0123", name="big.txt", found=("a lot", "skipped: 1")
    )
    told = rows(data)
    assert told["data"] == "big.txt: a lot; skipped: 1"
    assert told["tokens"].endswith("kept in /the/cache/0123")


def test_the_header_tells_what_a_corpus_presets_and_how_short_a_plan_is(text: str) -> None:
    data = prepared([text])
    told = rows(data, data="stories", batch_size=4, num_layers=1, max_steps=1)
    assert told["preset"].startswith("val_fraction 0.01, vocab_size 2048, ")
    assert "batch_size" not in told["preset"]
    assert "preset" not in rows(data, data="python")
    assert told["model"].startswith("1 layer x ")
    assert told["steps"].endswith(": 0.01 epochs of 100 steps")
    assert rows(data, max_steps=100)["steps"].endswith(": 1 epoch of 100 steps")


def test_the_header_says_that_random_tokens_cannot_be_learned() -> None:
    told = rows(prepared(None, vocab_size=50), vocab_size=50)
    assert told["data"] == "dummy"
    assert told["tokens"].startswith("9,000 per epoch, random, ")
    assert told["tokens"].endswith(f"ln(50) = {math.log(50):.3f}")
    assert told["tokenizer"] == "none, vocabulary 50"


def test_the_header_tells_validation_tokens_beyond_a_million() -> None:
    few, many = (prepared(np.zeros(size, np.uint16), val_fraction=0.5) for size in (2_000_002, 2_000_004))
    assert rows(few)["validation"] == "the last 50 %: 1,000,001 tokens"
    assert rows(many)["validation"] == (
        "the last 50 %: 1,000,002 tokens, of which evaluations always read the same 1,000,000 (spread evenly)"
    )
    assert rows(few)["tokens"] == "1,000,001 per epoch"
    ids = np.arange(100) % 7
    documents = slm.TextDataset(ids, 16, start_id=0, max_targets=20)
    told = rows(dataclasses.replace(many, val_dataset=documents))["validation"]
    assert told.endswith("always read the same 20 (the first whole documents)")


def test_the_header_tells_the_entropy_of_the_source_where_it_is_known(text: str) -> None:
    data = prepared([text])
    assert "yardstick" not in rows(data)
    told = rows(dataclasses.replace(data, source_bits_per_byte=0.75))
    assert "0.750 bits per byte" in told["yardstick"]


@pytest.mark.parametrize(("steps", "times"), [(100, None), (1000, None), (1001, "10"), (1200, "12")])
def test_many_passes_over_the_text_are_warned_of(text: str, steps: int, times: str | None) -> None:
    told = warned(prepared([text], tokenizer="char"), tokenizer="char", max_steps=steps)
    assert [words.partition(" times;")[0] for words in told] == ([f"the plan reads the text {times}"] if times else [])
    assert all("--dropout" in words for words in told)


@pytest.mark.parametrize("steps", [99, 100])
def test_few_steps_are_warned_of(text: str, steps: int) -> None:
    told = warned(prepared([text], tokenizer="char"), tokenizer="char", max_steps=steps)
    assert ["only 99 steps" in words for words in told] == [True] * (steps < 100)


@pytest.mark.parametrize("size", [257, 258, 320])
def test_a_vocabulary_too_large_for_the_text_is_warned_of(size: int) -> None:
    line = "the fox sees the hen and runs.\n"
    data = prepared([line * 3000], tokenizer="bpe", vocab_size=size)
    enough = 50 * data.vocab_size
    for num_tokens in (enough - 1, enough):
        ids = np.zeros(num_tokens, np.uint16)
        part = dataclasses.replace(data, train_dataset=slm.TextDataset(ids, 16))
        told = warned(part, tokenizer="bpe", vocab_size=size)
        assert [words.partition(" is large")[0] for words in told] == (
            [f"the vocabulary of {data.vocab_size}"] if num_tokens < enough else []
        )
        assert all("--vocab_size" in words for words in told)
        assert warned(part, tokenizer="char") == []  # nobody chooses how many characters a text has


def test_windows_longer_than_the_text_are_warned_of_by_part(text: str) -> None:
    data = prepared([text], tokenizer="char")
    short = slm.TextDataset(np.arange(9), 16)
    for part, name in (("train_dataset", "training"), ("val_dataset", "validation")):
        told = warned(dataclasses.replace(data, **{part: short}), tokenizer="char")
        assert told == [f"the {name} part has only 9 tokens: its windows are shortened from 16 to 8."]


def test_nobody_is_warned_of_what_random_tokens_will_not_learn() -> None:
    assert warned(prepared(None, vocab_size=50), vocab_size=50, max_steps=2) == []


def test_several_sources_are_one_run_and_can_be_repeated_from_elsewhere(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = len(text) // 2
    for name, part in (("a.txt", text[:half]), ("b.txt", text[half:])):
        (tmp_path / name).write_text(part, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    slm.train([Path("a.txt"), Path("b.txt")], model_dir="run", **SMALL)
    written = tomllib.loads(Path("run/config.toml").read_text())
    assert written["data"] == ["a.txt", "b.txt"]
    assert written["resolved"]["data"] == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    slm.train(repeat=tmp_path / "run", model_dir="again", quiet=True)
    assert records_of("again") == records_of(tmp_path / "run")


def test_what_a_corpus_presets_is_taken_but_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "stories", {"num_layers": 1, "embed_dim": 8, "num_heads": 1, "max_seq_len": 64})
    keys = {"batch_size": 4, "max_steps": 2, "device": "cpu", "threads": 1, "quiet": True, "num_heads": 2}
    keys |= {"tokenizer": "byte", "precision": "fp32", "hidden_dim": 16}
    with pytest.warns(UserWarning, match="only 2 steps"):
        run = slm.train("stories:100KB", model_dir=tmp_path / "run", **keys)
    config = run.model.config
    assert (config.num_layers, config.embed_dim, config.num_heads, config.max_seq_len) == (1, 8, 2, 64)
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    resolved = written.pop("resolved")
    del written["made_with"]
    assert written == {"data": ["stories:100KB"]} | {name: value for name, value in keys.items() if name != "quiet"}
    assert (resolved["num_layers"], resolved["max_seq_len"]) == (1, 64)


def test_a_vocabulary_that_only_the_corpus_presets_is_no_upper_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "stories", {"vocab_size": 100})
    with pytest.warns(UserWarning, match="only 1 step:"):
        run = slm.train("stories:50KB", **(SMALL | {"tokenizer": "byte", "max_steps": 1}))
    assert run.model.config.vocab_size == 257


def test_what_concerns_one_invocation_is_not_in_config_toml(tmp_path: Path, text_file: str) -> None:
    slm.train(text_file, model_dir=tmp_path / "run", recheck=True, **SMALL)
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    options = {field.name for field in dataclasses.fields(RunOptions)}
    assert not options & {*written, *written["resolved"]}


def test_training_does_not_load_torchs_compiler() -> None:
    program = (
        "import sys, slm\n"
        "for recipe in ('classic', 'modern'):\n"
        "    slm.train(['abcd ' * 200], tokenizer='char', recipe=recipe, embed_dim=8, num_heads=1, max_seq_len=8,\n"
        "              max_steps=2, device='cpu', quiet=True)\n"
        "print([name for name in ('torch._dynamo', 'torch._inductor', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), slm.UserError("damaged"), MemoryError()], ids=repr)
def test_what_befalls_the_yardsticks_costs_the_table_and_not_the_run(
    error: BaseException, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(ending_module, "yardsticks", fail)
    run = slm.train([text], **(SMALL | {"quiet": False}))
    assert run.metrics["val_loss"] > 0
    assert f"no yardsticks: {error or type(error).__name__}" in capsys.readouterr().out
    names = inspect.signature(run.generate).parameters
    assert {"prompt", "max_new_tokens", "temperature", "top_p", "stop", "seed"} <= set(names)


def test_must_needs_a_folder(text: str) -> None:
    with pytest.raises(slm.UserError, match="resume = 'must': there is no model_dir to go on from"):
        slm.train([text], resume="must", **SMALL)


@pytest.mark.parametrize("path", ["", "gs:/bucket/run"])
def test_a_path_that_is_none_is_told_so(path: str) -> None:
    with pytest.raises(slm.UserError, match=r"is empty: give a file|is neither local nor a URL"):
        slm.load(path)


def test_what_a_model_file_alone_tells_is_saved_with_it(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slm.train([text], model_dir=tmp_path / "run", **SMALL)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "model.pt").write_bytes((tmp_path / "run" / "model.pt").read_bytes())
    run = slm.load(tmp_path / "alone" / "model.pt")
    run.save(tmp_path / "saved")
    (record,) = records_of(tmp_path / "saved")
    assert record["val_loss"] == run.metrics["val_loss"]
    monkeypatch.chdir(tmp_path / "run")
    here = slm.load("model.pt").recorded
    assert (here.name, len(here.records)) == (".", len(records_of(tmp_path / "run")))


def test_what_cannot_be_sent_when_a_run_is_saved_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise files.StorageError("the bucket burns.")

    monkeypatch.setattr(background, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(RemoteRun, "push", fail)
    with pytest.raises(OSError, match="the bucket burns"):
        slm.train([text], **SMALL).save("memory://burning/saved")


@pytest.mark.filterwarnings("ignore:the plan reads")
def test_the_memory_that_is_checked_is_that_of_a_micro_batch(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(run_module, "check_memory", lambda config, size, window, device: seen.append(size) or 1)
    for sizes in ({"micro_batch_size": 2}, {}, {"batch_size": 10**6}):
        run = slm.train([text], **{**SMALL, **sizes}, plan_only=True)
    assert run.data is not None
    assert seen[:2] == [2, 8] and seen[2] <= len(run.data.train_dataset)


def test_a_run_on_ids_has_no_tokenizer_in_its_settings() -> None:
    no_tokenizer = {name: value for name, value in SMALL.items() if name != "tokenizer"}
    assert "tokenizer" not in slm.train([*range(20)] * 40, **no_tokenizer).resolved


def test_a_header_tells_from_where_a_run_goes_on(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    steps = iter(range(100))
    slm.train([text], model_dir=tmp_path / "run", should_stop=lambda: next(steps) >= 5, **SMALL)
    capsys.readouterr()
    slm.train([text], model_dir=tmp_path / "run", **{**SMALL, "quiet": False})
    assert "from step 5" in capsys.readouterr().out


def test_samples_that_are_asked_for_are_drawn_in_silence_too_and_others_are_not(text: str) -> None:
    asked, free = (slm.train([text], **{**SMALL, **more}) for more in ({"sample_every": 5}, {}))
    assert asked.history is not None and free.history is not None
    assert [one for one in asked.history.records if "sample" in one]
    assert not [one for one in free.history.records if "sample" in one]


def test_minutes_keep_some_seconds_for_the_end_and_one_at_least_for_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = layered({"max_minutes": 1.0, "quiet": True}, "keyword")
    for left, seconds in ((60.0, 60 - ending_module.reserved_seconds(60, "language_model")), (-5.0, 1.0)):
        monkeypatch.setattr(Deadline, "left", lambda self, left=left: left)
        config = run_module._for_now(settings.train, settings, Deadline(60.0))
        assert config.max_minutes == pytest.approx(seconds / 60)
    assert ending_module.reserved_seconds(60, "language_model") == pytest.approx(0.5 + 0.4 * 3.0)


def test_a_repetition_with_another_torch_is_warned_of(tmp_path: Path, text_file: str) -> None:
    slm.train(text_file, model_dir=tmp_path / "run", **SMALL)
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(f'torch = "{torch.__version__}"', 'torch = "0.1"'))
    with pytest.warns(
        UserWarning, match=r"was made with torch 0\.1, this one with .*losses may differ in the last digits"
    ):
        slm.train(repeat=tmp_path / "run", model_dir=None, quiet=True)


def test_a_text_to_validate_on_is_found_from_another_folder(
    tmp_path: Path, text_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = slm.train("text.txt", val_data="text.txt", plan_only=True, **SMALL)
    assert run.resolved["val_data"] == (str(tmp_path / "text.txt"),)


def test_what_a_folder_was_prepared_with_is_what_the_settings_say(tmp_path: Path, text_file: str) -> None:
    slm.prepare(text_file, out=tmp_path / "tokens", tokenizer="char", val_fraction=0.3)
    no_tokenizer = {name: value for name, value in SMALL.items() if name != "tokenizer"}
    run = slm.train(tmp_path / "tokens", plan_only=True, **no_tokenizer)
    assert (run.resolved["val_fraction"], run.resolved["tokenizer"].rpartition("/")[2]) == (0.3, "char")


@pytest.mark.parametrize("several", [True, False])
def test_the_last_sample_begins_as_a_document_does(several: bool, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    monkeypatch.setattr(slm.Run, "generate", lambda self, prompt, **_: prompts.append(prompt) or "x")
    slm.train(text.splitlines() if several else [text], **{**SMALL, "quiet": False})
    assert prompts == ["" if several else "\n"]


@pytest.mark.filterwarnings("ignore:only 2 steps")
def test_the_table_of_yardsticks_has_all_that_is_known_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(Display, "yardsticks", lambda self, found, own: shown.append((found, own)))
    run = slm.train("stories:50KB", **{**SMALL, "quiet": False, "max_steps": 2})
    ((found, own),) = shown
    assert (own.loss, own.bits_per_byte, own.accuracy) == tuple(
        run.metrics[name] for name in ("val_loss", "val_bits_per_byte", "val_accuracy")
    )
    assert run.data is not None and run.data.source_bits_per_byte in [one.bits_per_byte for one in found]


def test_random_tokens_have_no_yardsticks() -> None:
    run = slm.train(**{**SMALL, "vocab_size": 50, "quiet": False})
    assert run.history is not None and not any("yardsticks" in record for record in run.history.records)


def test_what_a_run_of_random_tokens_was_trained_on_is_read_again(tmp_path: Path) -> None:
    run = slm.train(model_dir=tmp_path / "run", **{**SMALL, "vocab_size": 50})
    found = slm.evaluate(tmp_path / "run", with_yardsticks=False)
    assert found.loss.value == pytest.approx(run.metrics["val_loss"], rel=1e-5)


def test_how_often_and_how_many_checkpoints_are_kept_is_as_asked(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []
    init = RunFolder.__init__

    def remember(self: RunFolder, *path: Any, **settings: Any) -> None:
        seen.append((settings.get("save_every"), settings.get("keep_last")))
        init(self, *path, **settings)

    monkeypatch.setattr(RunFolder, "__init__", remember)
    slm.train([text], model_dir=tmp_path / "run", save_every=3, keep_last=1, **SMALL)
    assert seen == [(3, 1)]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_what_is_diagnosed_is_told_at_the_end(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr(Display, "summary", lambda *_, diagnosis, **__: told.append(diagnosis))
    run = slm.train([text], **{**SMALL, "quiet": False})
    assert told == [[f"{one.title}. {one.advice} {one.flag}" for one in ending_module.diagnose(run.recorded)]] != [[]]
