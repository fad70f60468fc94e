"""Tables of evaluations and yardsticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slm.metrics.scoring import Estimate, Evaluation, PositionLoss
    from slm.metrics.yardsticks import Yardstick


def yardstick_lines(found: Sequence[Yardstick], model: Yardstick) -> list[str]:
    """A table of yardsticks with the model among them, worst first, and whether it beats those that count tokens."""
    columns = {title: tell for title, tell in _COLUMNS.items() if tell(model)}
    scores = {one.name: one.bits_per_byte if model.bits_per_byte is not None else one.loss for one in (*found, model)}
    shown = [one for one in (*found, model) if scores[one.name] is not None]
    counting = [one for one in shown if one.loss is not None and one is not model]
    if not counting:
        return []
    shown.sort(key=lambda one: scores[one.name], reverse=True)  # type: ignore[arg-type, return-value]
    width = max(len(one.name) for one in shown)
    lines = [f"{'on the same text':<{width + 2}}" + "".join(f"{title:>15}" for title in columns)]
    for one in shown:
        told = f"   {one.told}" if one.told else ""
        line = f"  {one.name:<{width}}" + "".join(f"{tell(one):>15}" for tell in columns.values()) + told
        lines.append(line.rstrip())
    best = min(counting, key=lambda one: scores[one.name])  # type: ignore[arg-type, return-value]
    is_better = scores[model.name] < scores[best.name]  # type: ignore[operator]
    why = "" if is_better else f", which {'knows nothing' if best.name == 'uniform' else 'only counts'}"
    return [*lines, f"{model.name} is {'better' if is_better else 'not better'} than the {best.name}{why}"]


def _told(number: float | None, digits: int, unit: str = "") -> str:
    return "" if number is None else f"{number:,.{digits}f}{unit}"


# The columns of the table, each with what it tells of a predictor, or nothing.
_COLUMNS: dict[str, Callable[[Yardstick], str]] = {
    "bits per byte": lambda one: _told(one.bits_per_byte, 3),
    "val_loss": lambda one: _told(one.loss, 4),
    "perplexity": lambda one: _told(None if one.loss is None else math.exp(min(one.loss, 700)), 2),
    "accuracy": lambda one: _told(None if one.accuracy is None else 100 * one.accuracy, 2, " %"),
    "top-5": lambda one: _told(None if one.top5_accuracy is None else 100 * one.top5_accuracy, 2, " %"),
}


def evaluation_rows(name: str, found: Evaluation) -> dict[str, str]:
    """All numbers of a model on a text, each under its name."""
    size = "" if found.num_bytes is None else f" of {found.num_bytes:,} bytes"
    return {
        "model": name,
        "text": f"{found.text}: {found.num_tokens:,} tokens{size}",
        "val_loss": f"{_estimate(found.loss, 4)} nats per token",
        "perplexity": _estimate(found.perplexity, 2),
        "bits per byte": _estimate(found.bits_per_byte, 4) if found.bits_per_byte else "unknown",
        "accuracy": f"{_estimate(found.accuracy, 2, 100)} %",
        "top-5 accuracy": f"{_estimate(found.top5_accuracy, 2, 100)} %",
        "+-": f"standard errors, over {found.units_told}",
        "by context": ", ".join(f"{_range(one)}: {one.loss:.3f}" for one in found.loss_by_position)
        + " (val_loss after so many tokens of the window)",
    }


def _estimate(found: Estimate, digits: int, scale: float = 1) -> str:
    """Such as 2.3871 +- 0.0123."""
    value, error = (scale * number for number in found)
    return f"{value:,.{digits}f}" + (f" +- {error:,.{digits}f}" if error == error else "")  # else not a number


def _range(found: PositionLoss) -> str:
    return f"{found.fewest}" if found.fewest == found.most else f"{found.fewest}-{found.most}"
