"""The metrics of an evaluation in training: on the validation data, and on another text where one was named."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from slm.data.tokenizer import Tokenizer
from slm.metrics.evaluate import evaluate, evaluation_batch_size
from slm.model.classifier import Classifier

if TYPE_CHECKING:
    from slm.training.loop import Trainer

ALSO = "also_"  # before the names of metrics on the other text


def bytes_per_target(model: nn.Module, tokenizer: Tokenizer | None) -> Tensor | None:
    """The bytes that each target stands for, (V,); None where that is unknown, or targets are labels."""
    return tokenizer.bytes_per_token() if tokenizer and not isinstance(model, Classifier) else None


def evaluate_all(trainer: Trainer, should_stop: Callable[[], bool] = lambda: False) -> dict[str, float]:
    """The metrics of the validation data and, under names with also_ before, of the other text; {} where stopped."""

    def metrics_on(dataset: Dataset[Any]) -> dict[str, float]:
        return evaluate(
            trainer.model,
            dataset,
            batch_size=evaluation_batch_size(trainer.micro_batch_size, len(dataset[0][0])),
            bytes_per_token=trainer.bytes_per_token,
            autocast=trainer.machine.autocast(),
            should_stop=should_stop,
        )

    found = metrics_on(trainer.val_dataset)
    if not found or trainer.also_dataset is None:
        return found
    also = metrics_on(trainer.also_dataset)
    return found | {ALSO + name: value for name, value in also.items()} if also else {}
