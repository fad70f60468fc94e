"""What a run is about to do and why, row by row, and what is worth a warning beforehand."""

from __future__ import annotations

import math
import warnings

from slm.config import ModelConfig, TrainConfig
from slm.data.counts import many, size_in_words
from slm.data.example_dataset import ExampleDataset
from slm.data.prepared import PreparedData
from slm.data.tasks import Task
from slm.metrics.diagnosis import MANY_EPOCHS, SEEN_OFTEN
from slm.model.transformer import LanguageModel
from slm.settings import PRESET, TASK, TUNING, Settings, flat
from slm.training.device import Machine

FEW_STEPS = 100
_LABELS_SHOWN = 8


def header(
    settings: Settings,
    data: PreparedData,
    built: LanguageModel,
    config: TrainConfig,
    machine: Machine,
    steps_per_epoch: int,
    memory: int,
    plan: str = "",
) -> dict[str, str]:
    """The choices of a run, by name of the row; plan: why it has these sizes, where minutes were asked for."""
    model = built.config
    rows = {
        "data": data.name + (f": {'; '.join(data.found)}" if data.found else ""),
        "tokens": _tokens(data, model),
        "validation": _validation(data),
        "tokenizer": _tokenizer(settings, data, model),
        "model": f"{many(model.num_layers, 'layer')} x {model.embed_dim}, {_parameters(built)}, "
        f"windows of {model.max_seq_len}",
        "machine": machine.why,
        "memory": f"about {size_in_words(memory)}",
        "steps": _steps(data, config, steps_per_epoch),
        "saved in": settings.options.model_dir or "memory only; run.save(path) writes it",
    }
    if data.task:
        rows = {"task": _task(settings, data.task), **rows}
    if settings.task.init_from:
        rows["starts from"] = _start(settings)
    if data.also:
        rows["also on"] = f"{data.also.name}, which only is evaluated on"
    if plan:
        rows["plan"] = plan
    if settings.train.recipe != TrainConfig().recipe:
        rows["recipe"] = f"{settings.train.recipe}; optimizer {config.optimizer}, dropout {model.dropout:g}, "
        rows["recipe"] += f"learning rate {config.learning_rate:g}"
    if data.source_bits_per_byte:
        rows["yardstick"] = (
            f"the source's entropy, on this validation text, is {data.source_bits_per_byte:.3f} bits per byte: on "
            "average no model can do better"
        )
    if preset := [name for name, layer in settings.origins.items() if layer in (PRESET, TASK, TUNING)]:
        values = flat(settings.data, settings.task, settings.model, settings.train)
        rows["preset"] = f"{', '.join(f'{name} {values[name]}' for name in preset)}; what you set wins"
    return rows


def _parameters(model: LanguageModel) -> str:
    """How many numbers a model has, and how many of them are trained, where that is a part."""
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    total = sum(one.numel() for one in model.parameters())
    return f"{total:,} parameters" + (f" ({trained:,} of them trained)" if trained < total else "")


def _task(settings: Settings, task: Task) -> str:
    if task.labels:
        shown = ", ".join(task.labels[:_LABELS_SHOWN]) + (", ..." if len(task.labels) > _LABELS_SHOWN else "")
        weights = "" if settings.task.class_weights == "none" else "; each label counts the same in the loss"
        return f"{task.name}: {many(len(task.labels), 'label')} ({shown}){weights}"
    return f"{task.name}: {' '.join(task.template)}"


def _start(settings: Settings) -> str:
    trained = {"all": "all of it is trained", "head": "its class head alone is trained"}
    lora = f"matrices of rank {settings.task.lora_rank} beside its own are trained (LoRA)"
    return f"{settings.task.init_from}; {trained.get(settings.task.trainable, lora)}"


def _steps(data: PreparedData, config: TrainConfig, steps_per_epoch: int) -> str:
    dataset = data.train_dataset
    length = dataset.mean_length if isinstance(dataset, ExampleDataset) else dataset.window
    positions = round(config.batch_size * length)
    an_epoch = many(steps_per_epoch, "step")
    if config.max_steps is None:
        return f"each of {positions:,} tokens, as many as {config.max_minutes:g} minutes allow; an epoch has {an_epoch}"
    epochs = _epochs(config.max_steps / steps_per_epoch)
    return f"{config.max_steps:,}, each of {positions:,} tokens: {epochs} of {an_epoch}"


def _epochs(epochs: float) -> str:
    """Such as 2.5 epochs, 1 epoch, less than 0.01 epochs."""
    if epochs < 0.01:
        return "less than 0.01 epochs"
    return "1 epoch" if epochs == 1 else f"{epochs:.3g} epochs"


def _tokens(data: PreparedData, model: ModelConfig) -> str:
    per_epoch = f"{len(data.train_dataset.tokens):,} per epoch"
    if data.name == "dummy":
        expected = math.log(model.vocab_size)
        return f"{per_epoch}, random, which nobody can learn: expect a loss of ln({model.vocab_size}) = {expected:.3f}"
    if not data.tokenizer or not data.num_bytes:
        return per_epoch
    num_tokens = len(data.train_dataset.tokens) + len(data.val_dataset.tokens)
    return f"{per_epoch}, {data.num_bytes / num_tokens:.2f} bytes each; kept in {data.folder or 'memory'}"


def _tokenizer(settings: Settings, data: PreparedData, model: ModelConfig) -> str:
    if not data.tokenizer:
        return f"none, vocabulary {model.vocab_size:,}"
    text = f"{settings.data.tokenizer}, vocabulary {model.vocab_size:,}"
    return text if data.tokenizer.end_id is not None else f"{text}, without a token to put between documents"


def _validation(data: PreparedData) -> str:
    if data.val_examples:
        text, read = f"{data.split}: {many(len(data.val_examples.inputs), 'example')}", len(data.val_dataset)
        return text if read >= len(data.val_examples.inputs) else f"{text}, of which evaluations read {read:,}"
    dataset = data.texts[1]
    text = f"{data.split}: {len(dataset.tokens):,} tokens"
    if dataset.max_targets is not None and dataset.num_targets > dataset.max_targets:
        which = "the first whole documents" if dataset.start_id is not None else "spread evenly"
        text += f", of which evaluations always read the same {dataset.max_targets:,} ({which})"
    return text


def warn(settings: Settings, data: PreparedData, config: TrainConfig, steps_per_epoch: int) -> None:
    """Warns of a plan that will hardly learn what its owner hopes for."""
    for told in _worries(settings, data, config, (config.max_steps or 0) / steps_per_epoch):
        warnings.warn(told, stacklevel=3)


def _worries(settings: Settings, data: PreparedData, config: TrainConfig, epochs: float) -> list[str]:
    worries = []
    texts = () if data.task else zip(("training", "validation"), data.texts, strict=True)
    for part, dataset in texts:
        if dataset.window < settings.model.max_seq_len:
            worries.append(
                f"the {part} part has only {len(dataset.tokens)} tokens: its windows are shortened from "
                f"{settings.model.max_seq_len} to {dataset.window}."
            )
    if not data.tokenizer or config.max_steps is None or config.max_minutes:  # with minutes a plan weighed the rest
        return worries
    if config.max_steps < FEW_STEPS:
        worries.append(
            f"only {many(config.max_steps, 'step')}: too few to learn much. Raise --epochs or --max_steps, or "
            f"lower --batch_size (now {config.batch_size})."
        )
    if data.task:  # whose preset weighs the rest
        return worries
    if epochs > MANY_EPOCHS:
        worries.append(
            f"the plan reads the text {epochs:.0f} times; beyond a few times it is learned by heart rather than "
            "understood. More text, fewer steps, or --dropout 0.1 help."
        )
    num_tokens = len(data.train_dataset.tokens)
    is_given = settings.task.init_from is not None  # the tokenizer
    if settings.data.tokenizer == "bpe" and not is_given and num_tokens < SEEN_OFTEN * data.vocab_size:
        worries.append(
            f"the vocabulary of {data.vocab_size:,} is large for a text of {num_tokens:,} tokens: an entry occurs "
            f"{num_tokens / data.vocab_size:.1f} times on average. A smaller --vocab_size, or --tokenizer char, learns "
            "more."
        )
    return worries
