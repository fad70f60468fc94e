"""What a run left: its records, its settings, and what it was made with; from memory or from its folder alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from slm.config import FIELDS, ModelConfig, UserError
from slm.metrics.task_evaluation import THIS_MODEL as THIS_MODEL
from slm.metrics.task_evaluation import Beside, ranked

Record = dict[str, Any]
DEFAULT, YOU = "default", "you"
THIS_RUN = "this run"  # name of what has none


@dataclass(frozen=True)
class Recorded:
    """A run as it can be told about. records: those of metrics.jsonl; a null in them becomes NaN."""

    name: str
    records: Sequence[Record]
    resolved: Mapping[str, Any] = field(default_factory=dict)  # what every setting became
    made_with: Mapping[str, Any] = field(default_factory=dict)  # versions, machine, facts about the text, origins
    asked: Mapping[str, Any] = field(default_factory=dict)  # what somebody set

    def __post_init__(self) -> None:
        if any(value is None for record in self.records for value in record.values()):
            numbers = [{name: math.nan if v is None else v for name, v in record.items()} for record in self.records]
            object.__setattr__(self, "records", numbers)

    @property
    def title(self) -> str:
        """The last part of the name, which may be a path."""
        last = self.name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        return last if last.strip(".") else THIS_RUN

    @cached_property
    def logs(self) -> list[Record]:
        """The records of training steps."""
        return [record for record in self.records if "train_loss" in record]

    @cached_property
    def evaluations(self) -> list[Record]:
        """The records of evaluations."""
        return [record for record in self.records if "val_loss" in record]

    @cached_property
    def samples(self) -> list[Record]:
        """The records of what the model wrote: prompt and sample."""
        return [record for record in self.records if "sample" in record]

    @cached_property
    def best(self) -> Record | None:
        """The evaluation with the lowest val_loss, whose weights are kept."""
        finite = [record for record in self.evaluations if math.isfinite(record["val_loss"])]
        return min(finite, key=lambda record: record["val_loss"], default=None)

    @cached_property
    def yardsticks(self) -> list[dict[str, Any]]:
        """What simple predictors scored on the validation text, as fields of `slm.metrics.yardsticks.Yardstick`."""
        found: list[list[dict[str, Any]]] = [record["yardsticks"] for record in self.records if "yardsticks" in record]
        return found[-1] if found else []

    @property
    def task(self) -> str:
        """What was learned beside going on with text: "pairs" or "classification"; "" where it is that alone."""
        task = self.made_with.get("task")
        return str(task.get("name", "")) if isinstance(task, Mapping) else ""

    @property
    def labels(self) -> list[str]:
        """The labels of a run that learned to tell them."""
        return list(self.made_with["task"].get("labels", ())) if self.task else []

    @cached_property
    def task_scores(self) -> dict[str, Any]:
        """How well the kept weights do the task, as `slm.metrics.task_evaluation.TaskEvaluation.as_record` tells it."""
        found: list[dict[str, Any]] = [one["task_scores"] for one in self.records if "task_scores" in one]
        return found[-1] if found else {}

    @property
    def task_metric(self) -> str:
        """The number by which models of the task are ranked: macro F1 of labels, else BLEU, or what there is of it."""
        metrics = self.task_scores.get("metrics", {})
        return "macro_f1" if "macro_f1" in metrics else next(iter(metrics), "")

    @cached_property
    def task_ranked(self) -> list[Beside]:
        """The simple methods that were scored on the task with the model among them, worst first."""
        found = self.task_scores
        beside = [Beside(one["name"], one["metrics"], one.get("told", "")) for one in found.get("yardsticks", ())]
        return ranked(found["metrics"], beside) if found.get("metrics") else []

    @property
    def best_simple(self) -> Beside | None:
        """The best of the simple methods that were scored on the task."""
        simple = [one for one in self.task_ranked if one.name != THIS_MODEL]
        return simple[-1] if simple else None

    @cached_property
    def before(self) -> Record:
        """The metrics of the model that the run started from, where another text is evaluated on, too.

        Those that are no finite numbers are left out.
        """
        found: list[Record] = [record["before"] for record in self.records if "before" in record]
        known = found[-1].items() if found else ()
        return {name: value for name, value in known if value is not None and math.isfinite(value)}

    @property
    def model_as_yardstick(self) -> dict[str, Any]:
        """The best evaluation in the fields of a yardstick; empty where there is none."""
        if self.best is None:
            return {}
        bits, loss, accuracy = (self.best.get(name) for name in ("val_bits_per_byte", "val_loss", "val_accuracy"))
        fields = {"bits_per_byte": bits, "loss": loss, "accuracy": accuracy, "top5_accuracy": None, "told": ""}
        return {"name": THIS_MODEL, **fields}

    @cached_property
    def ranked(self) -> list[dict[str, Any]]:
        """The yardsticks with the model among them, each with its "score", worst first; empty without either."""
        model = self.model_as_yardstick
        if not model or not self.yardsticks:
            return []
        field = "loss" if model["bits_per_byte"] is None else "bits_per_byte"
        known = [{**one, "score": one[field]} for one in (*self.yardsticks, model) if one[field] is not None]
        return sorted(known, key=lambda one: float(one["score"]), reverse=True)

    @property
    def best_counting(self) -> dict[str, Any] | None:
        """The best of the yardsticks that count tokens."""
        counting = [one for one in self.ranked if one["loss"] is not None and one["name"] != THIS_MODEL]
        return counting[-1] if counting else None

    @cached_property
    def ending(self) -> Record:
        """How the run ended: status and message. Empty for a run that is under way, or was killed."""
        last = self.records[-1] if self.records else {}
        return last if "status" in last else {}

    @property
    def status(self) -> str:
        """finished, interrupted, diverged, or "not ended"."""
        return str(self.ending.get("status", "not ended"))

    @cached_property
    def step(self) -> int:
        """The last step that was recorded."""
        return max((int(record["step"]) for record in self.records), default=0)

    @cached_property
    def total_steps(self) -> int:
        """The steps that were planned, 0 where that was never decided."""
        decided = [record["max_steps"] for record in self.records if "max_steps" in record]
        return int(decided[-1] if decided else self.resolved.get("max_steps") or 0)

    @cached_property
    def tokens_seen(self) -> int:
        """The tokens that training read, repeated ones included."""
        return max((int(record.get("tokens_seen", 0)) for record in self.records), default=0)

    @cached_property
    def seconds(self) -> float:
        """Seconds of training, without evaluations."""
        return max((float(record.get("elapsed_seconds", 0.0)) for record in self.records), default=0.0)

    @property
    def passes(self) -> float | None:
        """How many times the training text or examples were read, None where their size is unknown."""
        examples, batch_size = self.made_with.get("train_examples"), self.resolved.get("batch_size")
        if examples and batch_size:  # batches of them are filled up to one length: tokens do not tell
            return float(self.step / math.ceil(examples / batch_size))
        size = self.made_with.get("train_tokens")
        return self.tokens_seen / size if size else None

    @cached_property
    def model_config(self) -> ModelConfig | None:
        """The configuration of the model, None where the settings do not tell it."""
        known = {field.name for field in dataclasses.fields(ModelConfig)}
        found = {name: value for name, value in self.resolved.items() if name in known}
        if "embed_dim" not in found:
            return None
        try:
            return ModelConfig(**found)
        except UserError:
            return None

    def origin(self, name: str) -> str:
        """Where the value of a setting came from: YOU, a layer of settings, DEFAULT, or "" where it was worked out."""
        if name in self.asked:
            return YOU
        layer = str(self.made_with.get("origins", {}).get(name, DEFAULT))
        is_default = name in FIELDS and _plain(self.resolved.get(name)) == _plain(FIELDS[name].default)
        return layer if layer != DEFAULT or is_default else ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def curve(records: Sequence[Record], y: str, x: str = "step") -> list[tuple[float, float]]:
    """The points of two fields of those records that have both."""
    return [(record[x], record[y]) for record in records if x in record and y in record]
