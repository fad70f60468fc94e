"""What a run recorded."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from slm.config import UserError
from slm.storage import files

METRICS = "metrics.jsonl"
Record = dict[str, Any]


@dataclass
class History:
    """What a run recorded: every log and evaluation in order, the best evaluation, and how the run ended."""

    total_steps: int
    records: list[Record] = field(default_factory=list)
    best: Record | None = None
    status: str = "finished"  # or "interrupted" or "diverged"
    message: str = ""  # why it ended before its last step, and what to do
    step: int = 0  # the last one done
    skipped_steps: int = 0  # for a loss or gradient that was no finite number
    resumed_from: int = 0  # the step of the checkpoint that the run went on from

    @property
    def evaluations(self) -> list[Record]:
        """The records of evaluations, each with step, epoch, val_loss, val_accuracy, val_perplexity."""
        return [record for record in self.records if "val_loss" in record]

    def since_best(self, most: int) -> int:
        """How many evaluations have come after the best one, counted up to `most`; all of them where there is none."""
        best, found = self.best["step"] if self.best else -1, 0
        for record in reversed(self.records):  # those of a long run are many, and the answer is near their end
            if "val_loss" in record:
                if record["step"] <= best or found == most:
                    break
                found += 1
        return found

    def ending(self) -> Record:
        """The last record: how the run ended."""
        return {"step": self.step, "status": self.status, "message": self.message}


def records_of(text: str) -> list[Record]:
    """The records of a metrics.jsonl; a null in it was no finite number. A last line that was cut off is left out."""
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{name: math.nan if value is None else value for name, value in record.items()} for record in found]


def read_records(folder: str) -> list[Record]:
    """The records of the run in a folder or at a URL. Raises OSError, and UserError where a line is no record."""
    path = files.join(folder, METRICS)
    try:
        found = records_of(files.read_bytes(path).decode(errors="replace"))
        if not all(type(record.get("step")) is int for record in found):
            raise ValueError("it has no step")
        return found
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged: a line of it is no record ({error}).") from error


def has_ended(text: bytes, so_far: bytes) -> bool:
    """Whether a metrics.jsonl begins with what it held at a checkpoint and tells after it how the run ended."""
    try:
        last = text[len(so_far) :].splitlines(keepends=True)[-1]
        return text.startswith(so_far) and last.endswith(b"\n") and "status" in json.loads(last)
    except (ValueError, LookupError, TypeError):
        return False
