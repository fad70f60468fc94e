"""The run that a folder already holds: whether another invocation may go on with it, and from where."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slm.config import FIELDS, DataConfig, TrainConfig, UserError
from slm.settings import read_table, read_toml
from slm.storage import checkpoint as tensor_file
from slm.storage import checkpoint_folder, files
from slm.training.device import choose_device
from slm.training.history import METRICS as METRICS
from slm.training.history import has_ended

CONFIG, MODEL, CHECKPOINTS = "config.toml", "model.pt", "checkpoints"
PAGES = REPORT, CARD = "report.html", "MODEL_CARD.md"
STATE, BEST = "training.pt", "best.pt"  # in a checkpoint, beside its own model.pt and metrics.jsonl
RUN_FILES = (CONFIG, METRICS, MODEL, CHECKPOINTS, *PAGES)

_OTHER_DIGITS = "from here on, the last digits differ from those of an unbroken run"
_OTHER_SCORES = "the scores after the last step are of another search"
_LONGER = "from here on, the learning rate is that of the longer run"
MAY_CHANGE = {  # and what it does
    "device": _OTHER_DIGITS,
    "precision": "from here on, the numbers differ from those of an unbroken run",
    "threads": _OTHER_DIGITS,
    "compile": _OTHER_DIGITS,
    "micro_batch_size": _OTHER_DIGITS,
    "log_every": "from here on, metrics.jsonl has lines at other steps",
    "sample_every": "from here on, samples are of other evaluations",
    "max_steps": _LONGER,
    "num_beams": _OTHER_SCORES,
    "length_penalty": _OTHER_SCORES,
}
_MEASURED = ("device", "precision", "threads", "compile")
_LENGTH = ("epochs", "max_steps")
_OF_THE_TEXT = {field.name for field in dataclasses.fields(DataConfig)} - {"mask_documents", "val_tokens"}
_FROM_THE_TEXT = {"vocab_size", "document_start"}  # known once it is read
_OF_THE_BASE = ("init_from", "also_evaluate")  # which may have moved


@dataclass(frozen=True)
class Previous:
    """A run in a folder: its tables of config.toml, and its newest checkpoint that verifies, if there is any."""

    path: str
    asked: dict[str, Any]
    resolved: dict[str, Any]
    made_with: dict[str, Any]
    checkpoint: str | None = None  # a local folder
    manifest: dict[str, Any] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)  # newer checkpoints that do not verify, and why

    @property
    def step(self) -> int:
        """The step of the checkpoint, 0 where there is none."""
        return int(self.manifest.get("step", 0))

    @property
    def seconds_left(self) -> float | None:
        """Of a run with max_minutes, when the checkpoint was written."""
        return self.manifest.get("seconds_left")

    @property
    def best(self) -> str | None:
        """The path of the best weights so far in the checkpoint, None where there are none."""
        step = self.manifest.get("best_step")
        if self.checkpoint is None or step is None:
            return None
        return os.path.join(self.checkpoint, MODEL if step == self.step else BEST)

    @property
    def choices(self) -> dict[str, Any]:
        """What the run had chosen when the checkpoint was written."""
        return {**self.resolved, **self.manifest.get("choices", {})}

    def is_complete(self) -> bool:
        """False where what comes after the last checkpoint is missing, or model.pt is behind it, as after a full disk.

        At a URL model.pt is sent from the checkpoint, and metrics.jsonl as the last of all.
        """
        if self.checkpoint is None or not {METRICS, *PAGES} <= set(files.list_names(self.path)):
            return False
        metrics, model = (files.join(self.path, name) for name in (METRICS, MODEL))
        if not has_ended(files.read_bytes(metrics), files.read_bytes(os.path.join(self.checkpoint, METRICS))):
            return False
        try:
            if self.best is None or files.is_remote(self.path):
                return True
            return bool(tensor_file.load_file(model)["metrics"]["step"] == self.manifest["best_step"])
        except (UserError, OSError, LookupError, TypeError):  # it is not there, damaged, or another one
            return False

    def told(self) -> str:
        """From where the run goes on, in words."""
        return f"from step {self.step:,}"

    def take_over(self, config: TrainConfig) -> TrainConfig:
        """The settings with what was measured or derived then in place of measuring and deriving it again."""
        choices: dict[str, Any] = self.choices
        kept: dict[str, Any] = {}
        for name in ("warmup_steps", "eval_every"):
            if getattr(config, name) is None and name not in self.asked:
                kept[name] = choices.get(name)
        for name in _MEASURED if _is_here(choices.get("device")) else ():
            if getattr(config, name) in (None, "auto") and choices.get(name) is not None:
                kept[name] = choices[name]
        size, size_then = choices.get("micro_batch_size"), self.resolved.get("micro_batch_size")
        if size and config.micro_batch_size in (None, size_then):
            kept["micro_batch_size"] = min(size, config.micro_batch_size or size)  # memory allowed no more
        return dataclasses.replace(config, **kept)

    def check_early(self, values: Mapping[str, Any]) -> None:
        """Raises UserError where settings alone, before any text is read, tell that one cannot go on."""
        asked_then = (self.resolved.get("epochs"), self.asked.get("max_steps"))
        if (values["epochs"], values["max_steps"]) == asked_then:
            self._refuse_if_ended()
        unknown = {*_OF_THE_TEXT, *_FROM_THE_TEXT, *_LENGTH, *_OF_THE_BASE}
        known = {name: value for name, value in values.items() if name not in unknown and value not in (None, "auto")}
        differences = _differences(self.resolved, known)
        if differences and values.get("data"):  # the cause, where a corpus brings settings of its own
            differences = _differences(self.resolved, {"data": values["data"]}) + differences
        self._refuse_others(differences)

    def check(self, resolved: Mapping[str, Any], made_with: Mapping[str, Any]) -> list[str]:
        """What differs and may, with its effect. Raises UserError where something differs that may not."""
        same_text = self.made_with.get("data_fingerprint") == made_with.get("data_fingerprint")
        bases = [table.get("base", {}).get("checksum") for table in (self.made_with, made_with)]
        has_moved = bases[0] == bases[1] and self.resolved.get("init_from") != resolved.get("init_from")
        moved = set(_OF_THE_BASE) if has_moved else set()
        names = set(resolved) - set(_LENGTH) - (_OF_THE_TEXT if same_text else set()) - moved
        differences = _differences(self.resolved, {name: resolved[name] for name in names})
        if bases[0] != bases[1] and not any("init_from" in one for one in differences):
            differences.append("the model in init_from has changed")
        if not same_text and not any(name in difference for difference in differences for name in _OF_THE_TEXT):
            differences.append("the text itself, or a tokenizer.json, has changed")
        self._refuse_others(differences)
        # max_minutes leaves it open: 0
        steps, steps_then = resolved["max_steps"] or 0, self.resolved.get("max_steps", 0)
        if steps < steps_then:
            self._refuse_others([f"the run had {steps_then:,} steps, now {steps:,}: it can be longer, not shorter"])
        self._refuse_if_ended(longer=steps > steps_then)
        now = {name: resolved[name] for name in MAY_CHANGE if name in resolved}
        then = {name: self.choices.get(name, FIELDS[name].default) for name in now}
        told = [
            f"{name} was {then[name]}, is now {now[name]}: {MAY_CHANGE[name]}."
            for name in now
            if then[name] != now[name]
        ]
        versions = [name for name in ("slm", "torch", "platform") if self.made_with.get(name) != made_with.get(name)]
        told += [
            f"the run was begun with {name} {self.made_with.get(name)}, now it is {made_with.get(name)}: losses may "
            "differ in the last digits."
            for name in versions
        ]
        return told

    def _refuse_if_ended(self, *, longer: bool = False) -> None:
        status, total_steps = self.manifest.get("status"), self.manifest.get("total_steps", 0)
        # Made longer before, it may have been stopped before the next step.
        at_the_end = status == "finished" and not longer and total_steps >= self.resolved.get("max_steps", 0)
        by_patience = status == "finished" and self.step < total_steps
        if not (at_the_end or by_patience or status == "diverged") or not self.is_complete():
            return
        if by_patience:
            raise UserError(
                f"{self.path} already holds a run, which its patience ended at step {self.step:,}; it would end there "
                "with more steps, too. Choose another --model_dir, or add --overwrite, which moves that run aside to "
                "a folder previous-1 in it."
            )
        if at_the_end:
            by_time = self.resolved.get("max_minutes") and not self.resolved.get("max_steps")
            further = "Its time is spent" if by_time else "To train it further, raise --epochs or --max_steps"
            raise UserError(
                f"{self.path} already holds a run, which finished at step {self.step:,}. {further}; to begin anew, "
                "choose another --model_dir, or add --overwrite, which moves that run aside to a folder previous-1 in "
                "it."
            )
        raise UserError(
            f"{self.path} already holds a run, which stopped at step {self.step:,} because its loss was no finite "
            "number; the same settings would lead there again. Choose other settings and another --model_dir, or "
            "add --overwrite, which moves that run aside."
        )

    def _refuse_others(self, differences: list[str]) -> None:
        if differences:
            config = files.join(self.path, CONFIG)
            raise UserError(
                f"{self.path} already holds a run with other settings: {'; '.join(differences)}. Set them as they were "
                f"to go on with it (--config {config} does), choose another --model_dir, or add --overwrite, "
                "which moves that run aside to a folder previous-1 in it."
            )


def find_previous(path: str, local: str, names: Sequence[str], passed_over: Sequence[str] = ()) -> Previous:
    """The run in a folder; local is where its files are on this machine.

    names: what the folder holds. passed_over: checkpoints at a URL that are not whole, and why. Raises UserError where
    there is more than a run that ended before its first checkpoint, and nothing to go on from.
    """
    config = os.path.join(local, CONFIG)
    asked = {name: value for name, value in read_toml(config).items() if not isinstance(value, dict)}
    resolved, made_with = (read_table(local, name) for name in ("resolved", "made_with"))
    checkpoint, manifest, damaged = checkpoint_folder.newest(os.path.join(local, CHECKPOINTS))
    damaged = [*passed_over, *damaged]
    # The first checkpoint, cut off on its way to a URL, is nothing that could be lost; with it comes the first model.
    lost = MODEL in names or any(checkpoint_folder.UNFINISHED not in why for why in damaged)
    if checkpoint is None and lost:
        why = f"no checkpoint that can be used: {' '.join(damaged)}" if damaged else "without checkpoints."
        raise UserError(
            f"{path} already holds a run, {why} It cannot be gone on with. Choose another --model_dir, or add "
            "--overwrite, which moves that run aside to a folder previous-1 in it."
        )
    return Previous(path, asked, resolved, made_with, checkpoint, manifest, damaged)


def move_aside(folder: str, names: Sequence[str]) -> None:
    """Moves the files of a run to previous-1 in their folder, or to the first such name that is free."""
    there = files.list_names(folder)
    aside = next(name for n in range(1, len(there) + 2) if (name := f"previous-{n}") not in there)
    for name in names:
        _move(files.join(folder, name), files.join(files.join(folder, aside), name))


def _move(source: str, target: str) -> None:
    """Moves a file, or a folder with all that is in it."""
    if not files.is_folder(source):
        files.move(source, target)
        return
    for name in files.list_names(source):
        _move(files.join(source, name), files.join(target, name))
    files.remove(source)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each field that differs and may not, with both values; what a table does not have is at its default."""
    differences = []
    for name, value in sorted(now.items()):
        before = then.get(name, FIELDS[name].default)
        if name not in MAY_CHANGE and _plain(before) != _plain(value):
            differences.append(f"{name} was {_plain(before)}, is now {_plain(value)}")
    return differences


def _plain(value: Any) -> Any:
    """A value as TOML gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _is_here(device: Any) -> bool:
    try:
        choose_device(str(device))
    except UserError:
        return False
    return True
