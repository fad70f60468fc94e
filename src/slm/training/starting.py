"""Starting from a trained model: its weights in a model for another task, all of them trained or small ones beside."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slm.config import IGNORE_INDEX, ModelConfig, TaskConfig, TrainConfig, UserError
from slm.data.prepare import absolute
from slm.data.tasks import Task
from slm.data.tokenizer import Tokenizer
from slm.model.classifier import Classifier
from slm.model.lora import add_lora, is_lora, merge_lora
from slm.model.transformer import LanguageModel
from slm.settings import TUNING
from slm.storage import checkpoint, files
from slm.task_config import CLASSIFICATION, LANGUAGE_MODEL, PAIRS
from slm.training.packing import new_model, task_of, unpack_model
from slm.training.resume import MODEL, Previous

MAY_DIFFER = ("dropout", "max_seq_len")  # of a model from the one that it starts from
_TUNED, _TUNED_EPOCHS = 0.3, 3  # of the base's peak learning rate; passes over the new text
_ROWS = ("embedding.weight", "lm_head.weight")  # with one row for each token


@dataclass(frozen=True)
class Saved:
    """What a model.pt holds."""

    path: str
    model: LanguageModel
    tokenizer: Tokenizer | None
    metrics: dict[str, Any]
    asked: dict[str, Any]
    resolved: dict[str, Any]
    made_with: dict[str, Any]
    stands_for: dict[str, Any] | None = None  # the name and checksum of the model in whose place it is

    @property
    def task(self) -> Task | None:
        """The task that the model was made for."""
        return task_of(self.made_with)

    def named(self) -> dict[str, Any]:
        """The name and the checksum by which a run remembers what it started from."""
        return self.stands_for or {"path": absolute(self.path), "checksum": checksum(self.model.state_dict())}


def read_model(path: str, base: str | None = None) -> Saved:
    """The model in a run's folder, at its URL, or in a model.pt.

    Of one that was trained with LoRA the file holds small matrices alone, and the model beside which they stand is read
    from where it was then, or from `base`. Raises UserError and OSError; no code in a file is run.
    """
    files.check_path(path)
    if not path.endswith(".pt"):
        path = files.join(path, MODEL)
    content = checkpoint.load_file(path)
    asked, resolved, made_with = (_table(content, name) for name in ("asked", "resolved", "made_with"))
    with_lora = None
    if resolved.get("trainable") == "lora" and not made_with.get("merged"):
        beside = _read_base(path, made_with.get("base", {}), base)
        if base is not None:  # from here on it stands there
            made_with["base"] = {**made_with["base"], "path": absolute(base)}

        def with_lora(config: ModelConfig, task: Task | None) -> LanguageModel:
            model = grown(beside, config, task)
            set_trainable(model, "lora", int(resolved["lora_rank"]))
            return model

    elif base is not None:
        raise UserError(f"{path} is a whole model and stands beside none: leave out base = {base!r}.")
    model, tokenizer, metrics = unpack_model(content, path, with_lora)
    return Saved(path, model.eval(), tokenizer, metrics, asked, resolved, made_with)


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name, {})
    return dict(value) if isinstance(value, dict) else {}


def _read_base(path: str, named: Any, other: str | None) -> LanguageModel:
    """The model beside which the matrices of a file stand. Raises UserError where it is another one."""
    place, then = (named.get(name) for name in ("path", "checksum")) if isinstance(named, dict) else (None, None)
    where = other or place
    if not isinstance(where, str) or not isinstance(then, str):
        raise UserError(f"{path} is damaged: it does not say beside which model its LoRA stands. Copy it again.")
    try:
        found = read_whole_model(where)
    except FileNotFoundError as error:
        if other:
            raise UserError(f"base: {error} Name the folder of a run, its URL, or a model.pt.") from error
        raise UserError(
            f"{path} holds what LoRA trained beside {place}, which is not there any more ({error}). Bring it back, or "
            "name where it is now, once for all: slm.load(path, base=...).save(new_path)."
        ) from error
    if checksum(found.model.state_dict()) != then:
        raise UserError(
            f"{path} holds what LoRA trained beside {place}, and the model in {where} has other weights. Bring that "
            "one back, or name where it is now: slm.load(path, base=...)."
        )
    return found.model


def read_whole_model(path: str) -> Saved:
    """`read_model`, with what LoRA trained merged into the model."""
    found = read_model(path)
    if is_lora(found.model):
        merge_lora(found.model)
    return found


def read_base(path: str, previous: Previous | None = None) -> Saved:
    """The model to start from, as a whole. Raises UserError and OSError.

    Where it is gone, and a previous run that started from it is to be gone on with, a model of that run stands for it:
    its checkpoint has all weights, but for a run that trained matrices beside the model alone.
    """
    try:
        return read_whole_model(path)
    except FileNotFoundError as error:
        began_with = previous and previous.checkpoint and previous.resolved.get("init_from")
        is_its_own = bool(began_with) and absolute(str(began_with)) == absolute(path)
        if previous is None or not is_its_own or previous.resolved.get("trainable") == "lora":
            raise UserError(f"init_from: {error} Name the folder of a run, its URL, or a model.pt.") from error
        found = read_model(os.path.join(str(previous.checkpoint), MODEL))
        return dataclasses.replace(found, path=path, stands_for=previous.made_with.get("base"))


def checksum(weights: Mapping[str, Tensor]) -> str:
    """A SHA-256 over the names and numbers of weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def config_from(base: Saved, config: ModelConfig, asked: Mapping[str, Any]) -> ModelConfig:
    """The base's configuration with what may differ from it. Raises UserError for what is asked for and may not.

    config: the settings so far, with the vocabulary of the data.
    """
    own = base.model.config
    for name, value in dataclasses.asdict(own).items():
        if name in asked and asked[name] != value and name not in (*MAY_DIFFER, "vocab_size"):
            raise UserError(
                f"{name} = {asked[name]} is of another model than {base.path}, which has {name} = {value}. Leave it "
                "out, or train a new model without init_from."
            )
    longer = config.max_seq_len > own.max_seq_len
    if longer and own.positions == "learned":
        raise UserError(
            f"max_seq_len = {config.max_seq_len}: the model in {base.path} has learned a vector for each of "
            f"{own.max_seq_len} positions, and knows no others. Take at most {own.max_seq_len}, or start from a model "
            "with positions = 'rope'."
        )
    changed = {name: getattr(config, name) for name in (*MAY_DIFFER, "vocab_size")}
    return dataclasses.replace(own, **changed)


def brought_by(base: Saved, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a model brings to a run that starts from it. Raises UserError for a tokenizer beside."""
    for name in ("tokenizer", "vocab_size"):
        if name in asked:
            raise UserError(
                f"{name} = {asked[name]!r}: with init_from the tokenizer is that of {base.path}, whose tokens the "
                "model knows. Leave it out, or train a new model without init_from."
            )
    tokenizer = {"tokenizer": base.resolved["tokenizer"]} if "tokenizer" in base.resolved else {}
    return {**dataclasses.asdict(base.model.config), **tokenizer}


def tuning_of(base: Saved, task: TaskConfig, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The fine-tuning preset: how a model that goes on with text is best trained on.

    With its own optimizer, and with small steps, so that little is forgotten. What learns a task from it takes the
    settings of the task.
    """
    if task.task != LANGUAGE_MODEL:
        return {}
    if base.stands_for:  # what the preset was when the run began
        return {name: base.resolved[name] for name in ("optimizer", "learning_rate", "epochs")}
    rate = float(base.resolved.get("learning_rate", TrainConfig().learning_rate))
    if base.made_with.get("origins", {}).get("learning_rate") == TUNING:  # it is small already
        rate /= _TUNED
    optimizer = base.resolved.get("optimizer", TrainConfig().optimizer)
    if asked.get("optimizer", optimizer) != optimizer:  # whose rate says nothing about another's
        return {"epochs": _TUNED_EPOCHS}
    return {"optimizer": optimizer, "learning_rate": _TUNED * rate, "epochs": _TUNED_EPOCHS}


def class_weights_of(targets: Tensor, num_labels: int) -> Tensor:
    """What each label counts so that all targets of one count as much as those of any other: (C,), 1 on average.

    targets: numbers of labels, of any shape, and IGNORE_INDEX where there is none.
    """
    counts = torch.bincount(targets[targets != IGNORE_INDEX].long(), minlength=num_labels)
    return counts.sum() / (num_labels * counts.clamp(min=1))


def check_task(base: Saved, settings: TaskConfig) -> None:
    """Raises UserError where the base has not what the task needs."""
    task = settings.task
    if isinstance(base.model, Classifier) and task != CLASSIFICATION:
        raise UserError(
            f"{base.path} is a model that classifies: it has no output layer to go on with text by, which task = "
            f"{task!r} needs. Start from the model that it was made from."
        )
    if task == PAIRS and settings.trainable == "lora" and base.tokenizer and base.tokenizer.end_id is None:
        raise UserError(
            f"trainable = 'lora': the tokenizer of {base.path} has no token that ends a text, and matrices beside the "
            "layers cannot teach a new one. Take trainable = 'all'."
        )


def grown(base: LanguageModel, config: ModelConfig, task: Task | None, *, keep_head: bool = False) -> LanguageModel:
    """A model of another configuration or task with the weights of the base.

    Tokens that are new get, each in its turn, the mean row of all tokens, of every second one, of every third: near
    those that the model knows, unlike each other, and the same whenever the model is made again. A class head is new
    unless keep_head says that its labels are those of the base; all else is the base's.
    """
    model = new_model(config, task)
    theirs, own = base.state_dict(), model.state_dict()
    for name, tensor in own.items():
        if name.startswith("class_head") and not keep_head:
            continue
        known = theirs[name]
        if known.shape != tensor.shape:
            if name in _ROWS and len(tensor) > len(known):
                new = range(len(tensor) - len(known))
                known = torch.cat([known, *(known[:: each + 1].mean(dim=0, keepdim=True) for each in new)])
            else:  # a table of positions
                known = known[: len(tensor)]
        tensor.copy_(known)
    return model


def set_trainable(model: LanguageModel, trainable: str, lora_rank: int) -> None:
    """Freezes what is not to be trained: nothing, all but the class head, or all but it and LoRA's matrices."""
    if trainable == "lora":
        add_lora(model, lora_rank)
        vars(model)["stands_beside_base"] = True  # so that what is trained is saved alone
    elif trainable == "head":
        model.requires_grad_(False)
    if isinstance(model, Classifier):
        model.class_head.requires_grad_(True)
