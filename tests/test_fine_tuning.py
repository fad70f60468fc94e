"""Laws of starting from a trained model: what comes along, what is trained, what is saved, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, make_text
from test_resume import stop_after

import slm
import slm.config
from slm import reading
from slm.config import RECIPES, UserError
from slm.data.tasks import Task
from slm.data.tokenizer import char_tokenizer
from slm.recipes import TASK_PRESETS
from slm.training.starting import checksum, grown, read_model

pytestmark = pytest.mark.filterwarnings("ignore:only .* step", "ignore:the plan reads")
ROPE = {**SMALL, "positions": "rope", "val_fraction": 0.3}
TUNED = {name: SMALL[name] for name in ("max_steps", "batch_size", "device", "precision", "threads", "quiet")}
PAIRS = [(f"the {a} {b}", f"{b} {a} the") for a in "abcdef" for b in "uvwxyz"]
LABELLED = [(f"cat {a} sees {b}", "even" if (ord(a) + ord(b)) % 2 == 0 else "odd") for a in "abcdef" for b in "uvwxyz"]
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "language_model": ([make_text(400)], {}),
    "pairs": (PAIRS, {"task": "pairs"}),
    "classification": (LABELLED, {"task": "classification"}),
}
every_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and with a model that was trained on it."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "text.txt").write_text(make_text(600))
    slm.train(folder / "text.txt", model_dir=folder / "base", **ROPE)
    return folder


def same_bits(first: slm.Run, second: slm.Run) -> bool:
    return checksum(first.model.state_dict()) == checksum(second.model.state_dict())


def tuned(home: Path, task: str = "language_model", **changes: Any) -> slm.Run:
    data, settings = TASKS[task]
    return slm.train(data, **{"init_from": home / "base", **TUNED, **settings, **changes})


@every_task
def test_tokenizer_and_sizes_come_along(home: Path, task: str) -> None:
    base, run = slm.load(home / "base"), tuned(home, task)
    assert base.tokenizer and run.tokenizer
    text = "the cat sees"
    assert run.tokenizer.encode(text) == base.tokenizer.encode(text)
    changed = {"vocab_size": run.tokenizer.vocab_size}
    if task != "language_model":  # rotary positions look as far as the examples reach
        changed["max_seq_len"] = 64
    assert run.model.config == slm.config.dataclasses.replace(base.model.config, **changed)
    assert run.made_with["base"]["checksum"] == checksum(base.model.state_dict())
    # Of the fine-tuning preset, or of the task's, below what anybody sets.
    peak = (
        0.3 * base.resolved["learning_rate"]
        if task == "language_model"
        else TASK_PRESETS[task].get("learning_rate", RECIPES["modern"]["learning_rate"])
    )
    assert run.resolved["learning_rate"] == pytest.approx(peak)
    assert tuned(home, task, learning_rate=2e-3).resolved["learning_rate"] == 2e-3


def test_an_optimizer_of_ones_own_leaves_the_rest_of_the_preset(home: Path) -> None:
    base = slm.load(home / "base")
    preset = {name: tuned(home).resolved[name] for name in ("optimizer", "learning_rate", "epochs")}
    same = tuned(home, optimizer=base.resolved["optimizer"]).resolved
    assert {name: same[name] for name in preset} == preset
    other = "adamw" if base.resolved["optimizer"] == "muon" else "muon"
    found = tuned(home, optimizer=other).resolved
    assert found["epochs"] == preset["epochs"] and found["optimizer"] == other
    assert found["learning_rate"] != preset["learning_rate"]  # which is of the other optimizer


def test_examples_reach_as_far_as_a_base_that_looks_farther_than_a_new_model_would(tmp_path: Path) -> None:
    settings = {**ROPE, "max_seq_len": 600, "max_steps": 1, "batch_size": 1}
    slm.train([make_text(4000)], model_dir=tmp_path / "base", **settings)
    long = [(f"{letter} the old dog " * 40, f"the {letter}") for letter in "abcdefgh"]  # tokens are characters
    run = slm.train(long, init_from=tmp_path / "base", task="pairs", **{**TUNED, "max_steps": 1, "batch_size": 2})
    assert run.model.config.max_seq_len == 600
    assert run.data is not None and run.data.train_dataset.window == 40 * 14 + 6
    longer = [(f"{source}{source}", target) for source, target in long] + long
    cut = slm.train(longer, init_from=tmp_path / "base", task="pairs", **{**TUNED, "max_steps": 1, "batch_size": 2})
    assert cut.model.config.max_seq_len == 600 and cut.data is not None  # not the next multiple of 64
    assert any("longer than max_seq_len = 600" in line for line in cut.data.found)


def test_lora_cannot_teach_an_end_that_the_tokenizer_lacks(home: Path, tmp_path: Path) -> None:
    backend = json.loads(char_tokenizer([make_text(100)]).to_json())
    text = json.dumps(backend).replace("<|endoftext|>", "<other>")
    (tmp_path / "tokenizer.json").write_text(text)
    slm.train([make_text(400)], model_dir=tmp_path / "base", **{**ROPE, "tokenizer": tmp_path / "tokenizer.json"})
    settings = {"init_from": tmp_path / "base", "task": "pairs", **TUNED}
    with pytest.raises(UserError, match=r"trainable = 'lora': the tokenizer of .* has no token that ends a text"):
        slm.train(PAIRS, trainable="lora", **settings)
    assert slm.train(PAIRS, **settings).complete("the a") is not None


def test_the_first_step_begins_at_the_weights_of_the_base(home: Path) -> None:
    base = slm.load(home / "base")
    run = tuned(home, learning_rate=1e-12, max_steps=1, weight_decay=0.0)
    for name, tensor in base.model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], tensor, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tie", [False, True])
def test_a_grown_model_gives_old_tokens_the_scores_of_before(tie: bool) -> None:
    torch.manual_seed(0)
    config = slm.ModelConfig(vocab_size=11, embed_dim=8, num_heads=2, num_layers=1, hidden_dim=8, tie_embeddings=tie)
    base = slm.LanguageModel(config)
    larger = grown(base, slm.config.dataclasses.replace(config, vocab_size=14), None)
    tokens = torch.randint(0, 11, (2, 6))
    torch.testing.assert_close(larger(tokens)[..., :11], base(tokens))
    new = larger.embedding.weight[11:]
    torch.testing.assert_close(new[0], base.embedding.weight.mean(dim=0))
    torch.testing.assert_close(new[1], base.embedding.weight[::2].mean(dim=0))
    assert len({tuple(row.tolist()) for row in new}) == 3
    again = grown(base, slm.config.dataclasses.replace(config, vocab_size=14), None)
    assert checksum(again.state_dict()) == checksum(larger.state_dict())
    assert (larger.lm_head.weight is larger.embedding.weight) == tie


def test_rotary_positions_allow_a_longer_context_and_learned_ones_a_shorter_alone(home: Path, tmp_path: Path) -> None:
    longer = tuned(home, max_seq_len=40)
    assert longer.model.config.max_seq_len == 40
    slm.train([make_text(600)], model_dir=tmp_path / "learned", **{**SMALL, "val_fraction": 0.3})
    with pytest.raises(UserError, match=r"max_seq_len = 40: .* has learned a vector for each of 16 positions"):
        slm.train([make_text(400)], init_from=tmp_path / "learned", max_seq_len=40, **TUNED)
    shorter = slm.train([make_text(400)], init_from=tmp_path / "learned", max_seq_len=8, **TUNED)
    assert shorter.model.positions.embedding.weight.shape == (8, 16)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"embed_dim": 32}, "embed_dim = 32 is of another model than .*, which has embed_dim = 16"),
        ({"norm": "rmsnorm"}, "norm = rmsnorm is of another model"),
        ({"tokenizer": "byte"}, "tokenizer = 'byte': with init_from the tokenizer is that of"),
        ({"vocab_size": 300}, "vocab_size = 300: with init_from"),
        ({"trainable": "head"}, "trainable = 'head' trains a class head, which task = 'language_model' has not"),
        ({"trainable": "lora", "lora_rank": 17}, "rank = 17: must be a whole number from 1 to 16"),
        ({"init_from": "nowhere"}, "nowhere"),
        ({"also_evaluate": "nowhere.txt"}, "nowhere.txt"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_base_is_refused_before_the_first_step(
    home: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises((UserError, OSError), match=told):
        tuned(home, model_dir=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["trainable", "also_evaluate"])
def test_what_needs_a_base_is_refused_without_one(name: str) -> None:
    value = {"trainable": "lora", "also_evaluate": "x.txt"}[name]
    with pytest.raises(UserError, match=rf"{name} = .* needs a trained model to start from: name it with init_from"):
        slm.train([make_text(100)], **{**SMALL, name: value})


def test_a_model_that_classifies_cannot_go_on_with_text(home: Path, tmp_path: Path) -> None:
    tuned(home, "classification", model_dir=tmp_path / "labels")
    for task in ("language_model", "pairs"):
        with pytest.raises(UserError, match="is a model that classifies: it has no output layer"):
            slm.train(TASKS[task][0], init_from=tmp_path / "labels", **{**TUNED, **TASKS[task][1]})


def test_a_class_head_is_kept_for_the_same_labels_and_new_for_others(home: Path, tmp_path: Path) -> None:
    first = tuned(home, "classification", model_dir=tmp_path / "labels", learning_rate=1e-2)
    quiet = {**TUNED, "max_steps": 1, "learning_rate": 1e-12, "weight_decay": 0.0, "task": "classification"}
    same = slm.train(LABELLED, init_from=tmp_path / "labels", **quiet)
    torch.testing.assert_close(same.model.class_head.weight, first.model.class_head.weight, rtol=0, atol=1e-9)
    other = slm.train([(t, label + "!") for t, label in LABELLED], init_from=tmp_path / "labels", **quiet)
    assert other.model.class_head.weight.abs().max() < 1e-9
    assert first.model.class_head.weight.abs().max() > 1e-4


@pytest.mark.parametrize(("task", "trainable"), [(task, "lora") for task in TASKS] + [("classification", "head")])
def test_what_is_not_to_be_trained_stays(home: Path, task: str, trainable: str) -> None:
    run = tuned(home, task, trainable=trainable, learning_rate=1e-2)
    base = slm.load(home / "base").model
    trained = {name for name, one in run.model.named_parameters() if one.requires_grad}
    kinds = {name.rpartition(".")[2] if "lora" in name else name.partition(".")[0] for name in trained}
    expected = {"lora_a", "lora_b"} if trainable == "lora" else set()
    assert kinds == expected | ({"class_head"} if task == "classification" else set())
    frozen = grown(base, run.model.config, run.task).state_dict()
    for name, one in run.model.named_parameters():
        if name not in trained:
            assert torch.equal(one, frozen[name.replace(".base.", ".")]), name
    assert any(one.abs().max() > 1e-3 for name, one in run.model.named_parameters() if name.endswith("lora_b")) or (
        trainable == "head"
    )


@every_task
def test_adapters_are_small_load_beside_their_base_and_merge_into_a_whole_model(
    home: Path, tmp_path: Path, task: str
) -> None:
    run = tuned(home, task, trainable="lora", learning_rate=1e-2, model_dir=tmp_path / "lora", lora_rank=2)
    content = slm.storage.load_file(str(tmp_path / "lora" / "model.pt"))
    assert all("lora_" in name or "class_head" in name for name in content["model"])
    assert content["made_with"]["base"] == {
        "path": str(home / "base" / "model.pt"),
        "checksum": checksum(slm.load(home / "base").model.state_dict()),
    }
    loaded = slm.load(tmp_path / "lora")
    tokens = torch.randint(0, run.model.config.vocab_size, (2, 9))
    assert torch.equal(loaded.model(tokens), run.model.eval()(tokens))
    before = loaded.model(tokens)
    loaded.merge()
    torch.testing.assert_close(loaded.model(tokens), before, rtol=1e-5, atol=1e-5)
    loaded.save(tmp_path / "whole")
    whole = slm.load(tmp_path / "whole")
    assert torch.equal(whole.model(tokens), loaded.model(tokens))
    assert not [name for name in whole.model.state_dict() if "lora" in name]
    with pytest.raises(UserError, match="is a whole model and stands beside none"):
        slm.load(tmp_path / "whole", base=home / "base")


def test_a_base_that_moved_is_named_and_another_one_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "base", tmp_path / "base")
    run = slm.train(
        PAIRS, init_from=tmp_path / "base", trainable="lora", task="pairs", model_dir=tmp_path / "lora", **TUNED
    )
    (tmp_path / "base").rename(tmp_path / "moved")
    told = r"^\S*lora/model.pt holds what LoRA trained beside .*base.*is not there any more.*slm.load\(path, base"
    with pytest.raises(UserError, match=told):
        slm.load(tmp_path / "lora")
    found = slm.load(tmp_path / "lora", base=tmp_path / "moved")
    tokens = torch.randint(0, run.model.config.vocab_size, (1, 5))
    assert torch.equal(found.model(tokens), run.model.eval()(tokens))
    found.save(tmp_path / "again")  # which knows the new place
    assert torch.equal(slm.load(tmp_path / "again").model(tokens), run.model(tokens))
    tuned(home, model_dir=tmp_path / "other")
    with pytest.raises(UserError, match="has other weights"):
        slm.load(tmp_path / "lora", base=tmp_path / "other")


def test_a_run_beside_a_run_with_adapters_starts_from_both_together(home: Path, tmp_path: Path) -> None:
    first = tuned(home, trainable="lora", learning_rate=1e-2, model_dir=tmp_path / "first")
    second = slm.train(
        PAIRS, init_from=tmp_path / "first", trainable="lora", task="pairs", model_dir=tmp_path / "second", **TUNED
    )
    first.merge()
    assert second.made_with["base"]["checksum"] == checksum(first.model.state_dict())
    tokens = torch.randint(0, second.model.config.vocab_size, (1, 5))
    assert torch.equal(slm.load(tmp_path / "second").model(tokens), second.model.eval()(tokens))


@every_task
@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_resumed_run_equals_the_unbroken_one(home: Path, tmp_path: Path, task: str, trainable: str) -> None:
    whole = tuned(home, task, trainable=trainable, model_dir=tmp_path / "whole", dropout=0.1)
    calls = iter(range(100))
    tuned(
        home, task, trainable=trainable, model_dir=tmp_path / "run", dropout=0.1, should_stop=lambda: next(calls) >= 5
    )
    run = tuned(home, task, trainable=trainable, model_dir=tmp_path / "run", dropout=0.1)
    assert run.history is not None and 0 < run.history.resumed_from < 12
    assert same_bits(run, whole)
    losses = [[one["val_loss"] for one in made.history.evaluations] for made in (run, whole) if made.history]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_run_goes_on_from_the_new_place_of_its_base(home: Path, tmp_path: Path, trainable: str) -> None:
    settings = {"trainable": trainable, "model_dir": tmp_path / "run"}
    whole = tuned(home, trainable=trainable)
    shutil.copytree(home / "base", tmp_path / "base")
    tuned(home, init_from=tmp_path / "base", should_stop=stop_after(5), **settings)
    (tmp_path / "base").rename(tmp_path / "moved")
    run = tuned(home, init_from=tmp_path / "moved", **settings)
    assert run.history is not None and run.history.resumed_from == 5
    assert same_bits(run, whole)
    assert same_bits(slm.load(tmp_path / "run"), whole)


def test_the_text_of_a_base_that_moved_is_evaluated_on_from_its_new_place(home: Path, tmp_path: Path) -> None:
    whole = tuned(home, also_evaluate=home / "base")
    shutil.copytree(home / "base", tmp_path / "base")
    places = [{"init_from": tmp_path / name, "also_evaluate": tmp_path / name} for name in ("base", "moved")]
    tuned(home, model_dir=tmp_path / "run", should_stop=stop_after(5), **places[0])
    (tmp_path / "base").rename(tmp_path / "moved")
    run = tuned(home, model_dir=tmp_path / "run", **places[1])
    assert run.metrics["also_val_loss"] == whole.metrics["also_val_loss"]
    tuned(home, model_dir=tmp_path / "other", also_evaluate=home / "base", should_stop=stop_after(5))
    with pytest.raises(UserError, match="also_evaluate was"):
        tuned(home, model_dir=tmp_path / "other", also_evaluate=home / "text.txt")


def test_a_run_whose_base_changed_is_not_gone_on_with(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "base", tmp_path / "base")
    settings = {**TUNED, "init_from": tmp_path / "base", "model_dir": tmp_path / "run"}
    slm.train([make_text(400)], should_stop=stop_after(4), **settings)
    shutil.rmtree(tmp_path / "base")
    slm.train([make_text(500)], model_dir=tmp_path / "base", **ROPE)
    with pytest.raises(UserError, match=r"init_from has changed|vocab_size"):
        slm.train([make_text(400)], **settings)


@every_task
def test_a_run_goes_on_without_the_model_that_it_started_from(home: Path, tmp_path: Path, task: str) -> None:
    whole = tuned(home, task)
    shutil.copytree(home / "base", tmp_path / "base")
    settings = {"init_from": tmp_path / "base", "model_dir": tmp_path / "run"}
    tuned(home, task, should_stop=stop_after(5), **settings)
    shutil.rmtree(tmp_path / "base")
    run = tuned(home, task, **settings)
    assert same_bits(run, whole)
    assert run.made_with["base"]["checksum"] == whole.made_with["base"]["checksum"]
    with pytest.raises(slm.UserError, match=r"does not exist.*Name the folder of a run"):
        tuned(home, task, init_from=tmp_path / "base")


def test_what_is_forgotten_is_measured_beside_what_is_learned(home: Path) -> None:
    run = tuned(home, also_evaluate=home / "base", learning_rate=1e-2)
    assert run.history is not None
    before = run.history.records[0]["before"]
    base = slm.load(home / "base")
    assert before["also_val_loss"] == pytest.approx(base.metrics["val_loss"], rel=1e-6)
    assert all("also_val_loss" in one for one in run.history.evaluations)
    assert run.history.evaluations[-1]["also_val_loss"] != before["also_val_loss"]
    on_text = tuned(home, also_evaluate=home / "text.txt")  # all of it, in place of the validation part
    assert on_text.history is not None
    found = slm.evaluate(base, home / "text.txt", with_yardsticks=False)
    assert on_text.history.records[0]["before"]["also_val_loss"] == pytest.approx(found.loss.value, rel=1e-6)


def test_a_text_to_evaluate_on_changes_nothing_else(home: Path) -> None:
    plain, beside = tuned(home), tuned(home, also_evaluate=home / "base")
    assert same_bits(plain, beside)


def test_a_fine_tuned_run_is_repeated_to_the_last_bit(home: Path, tmp_path: Path) -> None:
    settings = {**TUNED, "init_from": home / "base", "trainable": "lora"}
    first = slm.train(home / "text.txt", model_dir=tmp_path / "first", **settings)
    again = slm.train(repeat=tmp_path / "first", model_dir=None)
    assert same_bits(first, again)


def test_a_fine_tuned_run_reads_its_own_validation_text_again(home: Path, tmp_path: Path) -> None:
    run = slm.train(home / "text.txt", init_from=home / "base", model_dir=tmp_path / "run", **TUNED)
    found = slm.evaluate(tmp_path / "run", with_yardsticks=False)
    assert found.loss.value == pytest.approx(run.metrics["val_loss"], rel=1e-5)


def test_settings_say_which_layer_set_them(home: Path, tmp_path: Path) -> None:
    tuned(home, model_dir=tmp_path / "run")
    origins = slm.settings.read_table(str(tmp_path / "run"), "made_with")["origins"]
    assert origins["learning_rate"] == "fine-tuning preset"
    assert origins["embed_dim"] == "the model in init_from"
    asked = slm.settings.read_config(str(tmp_path / "run" / "config.toml"))
    assert asked["init_from"] == str(home / "base") and "embed_dim" not in asked


def test_a_model_file_tells_its_task(home: Path, tmp_path: Path) -> None:
    tuned(home, "pairs", model_dir=tmp_path / "run")
    saved = read_model(str(tmp_path / "run"))
    assert saved.task == Task.from_dict(json.loads(json.dumps(saved.task.as_dict())))  # type: ignore[union-attr]
    assert saved.task is not None and saved.task.template[2] == "<|target|>"


@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_run_does_not_start_from_the_model_that_it_would_replace(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainable: str, overwrite: bool
) -> None:
    shutil.copytree(home / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="lies in model_dir: the model to start from stays as it is"):
        tuned(home, init_from="base", model_dir=tmp_path / "base", overwrite=overwrite, trainable=trainable)
    assert checksum(slm.load("base").model.state_dict()) == checksum(slm.load(home / "base").model.state_dict())


def test_adapters_know_their_base_from_any_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    tuned(home, init_from="base", trainable="lora", model_dir=tmp_path / "lora", should_stop=stop_after(3))
    monkeypatch.chdir(tmp_path)
    tuned(home, init_from=home / "base", trainable="lora", model_dir=tmp_path / "lora")
    assert slm.load("lora").path


def test_a_repetition_from_another_base_is_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "base", tmp_path / "base")
    slm.train(home / "text.txt", init_from=tmp_path / "base", model_dir=tmp_path / "run", **TUNED)
    shutil.rmtree(tmp_path / "base")
    slm.train(home / "text.txt", model_dir=tmp_path / "base", **{**ROPE, "seed": 7})
    with pytest.raises(UserError, match="started from another model than"):
        slm.train(repeat=tmp_path / "run", model_dir=None)


def test_a_wrapped_model_of_ones_own_is_saved_as_a_whole(home: Path, tmp_path: Path) -> None:
    base = slm.load(home / "base")
    slm.add_lora(base.model, 2)
    dataset = slm.TextDataset(torch.arange(200) % 20, 16)
    config = slm.TrainConfig(max_steps=2, device="cpu", precision="fp32", threads=1)
    slm.train_and_evaluate(base.model, dataset, dataset, config, model_dir=tmp_path / "run")
    stored = slm.storage.load_file(str(tmp_path / "run" / "model.pt"))["model"]
    assert set(stored) == set(base.model.state_dict())


def test_a_model_without_a_tokenizer_reads_no_text(tmp_path: Path) -> None:
    slm.train(model_dir=tmp_path / "dummy", **{**SMALL, "vocab_size": 50})
    with pytest.raises(UserError, match="has no tokenizer"):
        slm.train([make_text(300)], init_from=tmp_path / "dummy", **TUNED)


def test_fine_tuning_needs_a_text(home: Path) -> None:
    with pytest.raises(UserError, match="goes on learning from a text: name it with data"):
        slm.train(init_from=home / "base", **TUNED)


def test_a_tuned_model_is_tuned_again_at_the_same_rate(home: Path, tmp_path: Path) -> None:
    first = tuned(home, model_dir=tmp_path / "first")
    second = tuned(home, init_from=tmp_path / "first")
    assert second.resolved["learning_rate"] == pytest.approx(first.resolved["learning_rate"])


def test_a_model_with_new_tokens_still_reads_the_text_of_the_old_one(home: Path, tmp_path: Path) -> None:
    tuned(home, "pairs", model_dir=tmp_path / "pairs")
    run = slm.train(PAIRS, init_from=tmp_path / "pairs", also_evaluate=home / "base", **{**TUNED, "task": "pairs"})
    assert run.history is not None and "also_val_loss" in run.history.evaluations[-1]


def test_of_a_long_other_text_a_part_tells_enough(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ALSO_TOKENS", 64)
    run = tuned(home, also_evaluate=home / "text.txt")
    assert run.data is not None and run.data.also is not None
    assert sum(int((targets != -100).sum()) for _, targets in run.data.also.dataset) <= 64 + 16


def learned(tmp_path: Path, **changes: Any) -> Path:
    """The folder of a base with a vector for each of 16 positions."""
    slm.train([make_text(600)], model_dir=tmp_path / "learned", **{**SMALL, "val_fraction": 0.3, **changes})
    return tmp_path / "learned"


def test_a_base_with_learned_positions_is_tuned_in_its_own_window(tmp_path: Path) -> None:
    base = learned(tmp_path)
    assert slm.train([make_text(400)], init_from=base, **TUNED).model.config.max_seq_len == 16
    long = [("the " * 9, "a"), *PAIRS]  # longer than it can look
    run = slm.train(long * 2, init_from=base, task="pairs", **TUNED)
    assert run.model.config.max_seq_len == 16
    assert run.data is not None and any("left out, longer than max_seq_len = 16" in line for line in run.data.found)


def test_what_a_base_can_look_at_it_goes_on_to(home: Path, tmp_path: Path) -> None:
    tuned(home, max_seq_len=160, model_dir=tmp_path / "long")
    assert tuned(home, "pairs", init_from=tmp_path / "long").model.config.max_seq_len == 160


def test_dropout_may_differ_from_that_of_the_base_and_what_is_the_same_may_be_said(home: Path) -> None:
    run = tuned(home, dropout=0.3, embed_dim=16, norm="layernorm")
    assert run.model.config.dropout == 0.3 and run.resolved["dropout"] == 0.3


def test_the_preset_of_fine_tuning_goes_with_the_optimizer_of_the_base(home: Path, tmp_path: Path) -> None:
    base = slm.load(home / "base")
    run = tuned(home, max_steps=None, plan_only=True)
    assert run.resolved["epochs"] == 3 and run.resolved["optimizer"] == base.resolved["optimizer"]
    learned(tmp_path, optimizer="muon", learning_rate=1e-2)
    assert tuned(home, init_from=tmp_path / "learned", plan_only=True).resolved["optimizer"] == "muon"


def test_the_vocabulary_of_ids_is_that_of_the_base(tmp_path: Path) -> None:
    slm.train([*range(50)] * 40, model_dir=tmp_path / "ids", **{k: v for k, v in SMALL.items() if k != "tokenizer"})
    run = slm.train([*range(20)] * 60, init_from=tmp_path / "ids", **TUNED)
    assert run.model.config.vocab_size == 50


def test_a_base_without_a_tokenizer_reads_no_examples_either(tmp_path: Path) -> None:
    slm.train(model_dir=tmp_path / "dummy", **{**SMALL, "vocab_size": 50})
    with pytest.raises(UserError, match="has no tokenizer"):
        slm.train(PAIRS, init_from=tmp_path / "dummy", task="pairs", **TUNED)


def test_labels_of_the_base_that_the_new_examples_lack_are_kept(home: Path, tmp_path: Path) -> None:
    three = [*LABELLED, *((f"dog {a}", "none") for a in "abcdefgh")]
    slm.train(three, init_from=home / "base", model_dir=tmp_path / "three", task="classification", **TUNED)
    for name, rows in (("new.jsonl", LABELLED), ("val.jsonl", three[-3:])):
        (tmp_path / name).write_text("".join(json.dumps({"text": t, "label": one}) + "\n" for t, one in rows))
    run = slm.train(
        tmp_path / "new.jsonl", val_data=tmp_path / "val.jsonl", init_from=tmp_path / "three", task="classification",
        model_dir=tmp_path / "run", **TUNED,
    )  # fmt: skip
    assert run.task is not None and run.task.labels == ("even", "none", "odd")
    assert slm.evaluate(tmp_path / "run").yardsticks  # type: ignore[union-attr]


def test_a_file_of_a_model_is_another_text_as_its_folder_is(home: Path) -> None:
    folder, file = (tuned(home, max_steps=2, also_evaluate=home / "base" / name) for name in ("", "model.pt"))
    losses = [run.history.evaluations[-1]["also_val_loss"] for run in (folder, file) if run.history]
    assert losses[0] == losses[1]


def test_of_another_text_no_more_is_read_than_of_the_own(home: Path) -> None:
    run = tuned(home, also_evaluate=home / "text.txt", val_tokens=64, max_steps=2)
    assert run.data is not None and run.data.also is not None
    assert sum(int((targets != -100).sum()) for _, targets in run.data.also.dataset) <= 64 + 16


def test_a_run_that_is_no_text_of_the_model_is_not_evaluated_on(home: Path, tmp_path: Path) -> None:
    slm.train(home / "text.txt", model_dir=tmp_path / "byte", **{**ROPE, "tokenizer": "byte"})
    slm.train([make_text(300)], model_dir=tmp_path / "python", **ROPE)
    for name, told in (
        ("byte", "that run has another tokenizer. Name a text"),
        ("python", "was trained on data given in Python, which a run does not store. Name a text"),
    ):
        with pytest.raises(UserError, match=told):
            tuned(home, also_evaluate=tmp_path / name)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in PAIRS))
    slm.train(pairs, init_from=home / "base", model_dir=tmp_path / "first", task="pairs", **TUNED)
    with pytest.raises(UserError, match="that run learned no text that this model reads"):
        tuned(home, "pairs", init_from=tmp_path / "first", also_evaluate=tmp_path / "first")


def test_a_run_whose_other_text_is_gone_with_its_base_goes_on_without_it(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "base", tmp_path / "base")
    settings = {"init_from": tmp_path / "base", "also_evaluate": tmp_path / "base", "model_dir": tmp_path / "run"}
    tuned(home, should_stop=stop_after(5), **settings)
    shutil.rmtree(tmp_path / "base")
    with pytest.warns(UserWarning, match="from here on the other text is not evaluated"):
        run = tuned(home, **settings)
    assert run.history is not None and "also_val_loss" not in run.history.evaluations[-1]


def test_only_the_base_of_a_run_is_stood_for(home: Path, tmp_path: Path) -> None:
    settings = {"model_dir": tmp_path / "run"}
    tuned(home, should_stop=stop_after(5), **settings)
    with pytest.raises(UserError, match=r"init_from: .*nowhere.* does not exist"):
        tuned(home, init_from=tmp_path / "nowhere", **settings)


def test_adapters_do_not_stand_for_their_base(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "base", tmp_path / "base")
    settings = {"init_from": tmp_path / "base", "trainable": "lora", "model_dir": tmp_path / "run"}
    tuned(home, should_stop=stop_after(5), **settings)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(
        UserError, match=r"^init_from: .* does not exist.* Name the folder of a run, its URL, or a model\.pt"
    ):
        tuned(home, **settings)


@pytest.mark.parametrize(
    ("table", "told"),
    [({"path": "base"}, "is damaged: it does not say beside which model its LoRA stands"), ([], "is damaged")],
)
def test_adapters_that_do_not_say_beside_what_they_stand_are_damaged(
    home: Path, tmp_path: Path, table: Any, told: str
) -> None:
    tuned(home, trainable="lora", model_dir=tmp_path / "run", max_steps=2)
    content = slm.storage.load_file(str(tmp_path / "run" / "model.pt"))
    content["made_with"]["base"] = table
    torch.save(content, tmp_path / "damaged.pt")
    with pytest.raises(UserError, match=told):
        slm.load(tmp_path / "damaged.pt")


def test_where_the_other_text_lies_is_kept_for_another_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    run = tuned(home, also_evaluate="text.txt", plan_only=True)
    assert run.resolved["also_evaluate"] == (str(home / "text.txt"),)


def test_the_name_of_a_base_that_is_gone_may_be_written_in_two_ways(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    tuned(home, init_from="base", model_dir=tmp_path / "run", should_stop=stop_after(5))
    shutil.rmtree(tmp_path / "base")
    run = tuned(home, init_from=tmp_path / "base", model_dir=tmp_path / "run")
    assert run.history is not None and run.history.resumed_from == 5


def test_a_shorter_window_keeps_the_first_positions(tmp_path: Path) -> None:
    config = slm.ModelConfig(vocab_size=11, embed_dim=8, num_heads=2, num_layers=1, max_seq_len=9, positions="learned")
    base = slm.LanguageModel(config)
    tokens = torch.randint(0, 11, (2, 5))
    shorter = grown(base, slm.config.dataclasses.replace(config, max_seq_len=5), None)
    torch.testing.assert_close(shorter(tokens), base(tokens))


def test_the_tokenizer_of_the_base_is_told_as_that_of_the_run(home: Path) -> None:
    assert tuned(home, max_steps=1).resolved["tokenizer"] == slm.load(home / "base").resolved["tokenizer"] == "char"


def test_a_head_of_fewer_labels_is_made_for_all_of_the_new_ones(home: Path, tmp_path: Path) -> None:
    tuned(home, "classification", model_dir=tmp_path / "two", max_steps=1)
    three = [*LABELLED, *((f"dog {a}", "none") for a in "abcdefgh")]
    run = slm.train(three, init_from=tmp_path / "two", **{**TUNED, "task": "classification", "max_steps": 1})
    assert run.task is not None and run.task.labels == ("even", "none", "odd")
