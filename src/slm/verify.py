"""Proof that an interruption changes nothing: one run in one piece and one in two, compared to the last bit."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from slm.config import UserError
from slm.run import Run, train
from slm.storage import checkpoint, checkpoint_folder
from slm.training.resume import CHECKPOINTS, METRICS, MODEL

IDENTICAL = "identical"
_OTHERS = ("model_dir", "overwrite", "resume", "save_every", "keep_last", "quiet", "epochs", "max_steps", "repeat")


def verify_resume(data: Any = None, *, steps: int = 6, stop_after: int | None = None, **settings: Any) -> str:
    """ "identical", or the first value that differs between a run in one piece and one that was interrupted.

    Both make `steps` steps with these settings, which are those of `slm.train`; the second stops after `stop_after` of
    them (by default half) and goes on from its checkpoint. All that a run keeps is compared: weights, optimizer, loss
    scaling, random streams, best weights and metrics, but for times. Nothing is left on the disk. Raises UserError.
    """
    stop_after = steps // 2 if stop_after is None else stop_after
    if not 0 < stop_after < steps:
        raise UserError(f"stop_after = {stop_after}: must be above 0 and below steps = {steps}.")
    if taken := [name for name in _OTHERS if name in settings]:
        raise UserError(f"verify_resume sets {', '.join(taken)} itself: leave it out.")
    if settings.get("max_minutes"):
        raise UserError("verify_resume compares runs of so many steps: set steps, and leave out max_minutes.")
    data = list(data) if isinstance(data, Iterator) else data  # it is read three times
    settings = {"eval_every": max(1, stop_after - 1), "log_every": 1, **settings, "max_steps": steps, "quiet": True}
    with tempfile.TemporaryDirectory(prefix="slm-verify-") as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="only .* steps: too few")
        whole, parts = os.path.join(folder, "whole"), os.path.join(folder, "parts")
        chosen = _train(data, settings, whole).resolved
        # Measuring twice could choose twice.
        settings |= {name: chosen[name] for name in ("device", "precision", "threads", "compile")}
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return asked > stop_after

        _train(data, settings, parts, should_stop=should_stop)
        _train(data, settings, parts, resume="must")
        one, other = kept_by(whole), kept_by(parts)
        for content in (*one.values(), *other.values()):
            if isinstance(content, dict):
                content.pop("asked", None)  # differs by the choices above; what they became is compared
        return first_difference(one, other) or IDENTICAL


def _train(data: Any, settings: Mapping[str, Any], folder: str, **others: Any) -> Run:
    run = train(data, **settings, model_dir=folder, **others)
    if run.save_error:
        raise OSError(run.save_error)
    return run


def kept_by(folder: str) -> dict[str, Any]:
    """All that a local run keeps of its newest checkpoint, its model and its metrics, without times.

    Raises UserError where a file does not load.
    """
    newest, manifest, passed_over = checkpoint_folder.newest(os.path.join(folder, CHECKPOINTS))
    if newest is None:
        raise UserError(f"{folder} holds no whole checkpoint. {' '.join(passed_over)}")
    with open(os.path.join(folder, METRICS), encoding="utf-8") as file:
        metrics = [json.loads(line) for line in file]
    tensors = [name for name in manifest["files"] if name.endswith(".pt")]
    kept = {f"{os.path.basename(newest)}/{name}": os.path.join(newest, name) for name in tensors}
    kept[MODEL] = os.path.join(folder, MODEL)
    return {**{name: checkpoint.load_file(path) for name, path in kept.items()}, METRICS: metrics}


def first_difference(one: Any, other: Any, place: str = "") -> str | None:
    """Where two nested values of tensors and plain Python first differ, in words; None where they are the same bits.

    Fields that hold times (elapsed_seconds, tokens_per_second, mfu) are not compared.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            if str(name).endswith(("_seconds", "_per_second")) or name == "mfu":
                continue
            inner = f"{place}.{name}".removeprefix(".")
            if name not in one or name not in other:
                return f"{inner}: only {'the first' if name in one else 'the second'} run has it"
            if found := first_difference(one[name], other[name], inner):
                return found
        return None
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = (first_difference(a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=False)))
        length = None if len(one) == len(other) else f"{place}: {len(one)} items against {len(other)}"
        return next((found for found in pairs if found), length)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{place}: {one.dtype} {tuple(one.shape)} against {other.dtype} {tuple(other.shape)}"
        bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)]
        if torch.equal(*bits):
            return None
        return f"{place}: {int((one != other).sum())} of {one.numel()} numbers differ"
    return None if type(one) is type(other) and repr(one) == repr(other) else f"{place}: {one!r} against {other!r}"
