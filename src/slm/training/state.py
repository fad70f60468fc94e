"""The state of a run <-> the files of a checkpoint: all that decides how training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from slm.config import UserError
from slm.storage import checkpoint, files
from slm.training.adamw import AdamW
from slm.training.clock import Clock
from slm.training.deadline import Deadline
from slm.training.device import random_state, set_random_state
from slm.training.packing import copied, copy_weights, load_weights, pack_model
from slm.training.resume import BEST, MODEL, STATE

if TYPE_CHECKING:
    from slm.training.loop import Trainer

_COUNTS = ("step", "tokens_seen")
_LATER = ("clipped_steps",)  # which the first versions of slm did not count
_WATCHED = ("bad_steps", "skipped_steps", *_LATER)
_MOMENTS = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"})  # that AdamW or Muon keeps of a parameter


def checkpoint_of(trainer: Trainer, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the files of a checkpoint hold, by name, and what its manifest tells; tensors are copies.

    weights: those of this step, which nobody changes any more. The place in the data is the step: it need not be kept.
    """
    best, machine = trainer.history.best, trainer.machine
    metrics = best if best and trainer.is_best else {"step": trainer.step, "epoch": trainer.epoch}
    state = {
        **{name: getattr(trainer, name) for name in _COUNTS},
        **{name: getattr(trainer.watch, name) for name in _WATCHED},
        "losses": list(trainer.watch.losses),
        "evaluation_is_due": trainer.evaluation_is_due,
        "best": dict(best) if best else None,
        "optimizer": copied(trainer.optimizer.state_dict()),
        "scaler": trainer.scaler.state_dict(),
        "random": random_state(machine.device),
        "elapsed_seconds": trainer.clock.elapsed_seconds(),
        "deadline_seconds": (trainer.deadline.seconds, trainer.deadline.left()) if trainer.deadline else None,
    }
    contents = {MODEL: pack_model(trainer.model, weights, trainer.tokenizer, metrics), STATE: state}
    if best and not trainer.is_best:
        contents[BEST] = pack_model(trainer.model, trainer.best_weights, trainer.tokenizer, best)
    choices = {"device": str(machine.device), "precision": machine.precision, "threads": machine.threads}
    choices["compile"] = "on" if machine.compile else "off"
    choices["micro_batch_size"] = trainer.micro_batch_size
    about = {"status": trainer.status, "total_steps": trainer.total_steps, "choices": choices}
    about["message"] = trainer.history.message
    about["seconds_left"] = trainer.deadline.left() if trainer.deadline else None
    return contents, {**about, "best_step": best["step"] if best else None}


def restore(trainer: Trainer) -> None:
    """Brings a trainer to the state of the checkpoint that its folder goes on from, if there is one."""
    folder = trainer.folder
    saved = folder.previous.checkpoint if folder and folder.previous else None
    if folder is None or folder.previous is None or saved is None:
        return
    state, packed = (checkpoint.load_file(files.join(saved, name)) for name in (STATE, MODEL))
    state = {**dict.fromkeys(_LATER, 0), **state}
    history, device = trainer.history, trainer.machine.device
    try:
        _check(state, folder.previous.step)
        load_weights(trainer.model, packed["model"])
        _restore_moments(trainer.optimizer, **state["optimizer"])
        if state["scaler"]:  # empty in another precision
            trainer.scaler.load_state_dict(state["scaler"])
        set_random_state(device, state["random"])
        for name in _COUNTS:
            setattr(trainer, name, state[name])
        for name in _WATCHED:
            setattr(trainer.watch, name, state[name])
        trainer.watch.losses, trainer.evaluation_is_due = list(state["losses"]), bool(state["evaluation_is_due"])
        trainer.clock = Clock(state["elapsed_seconds"], trainer.tokens_seen)
        if folder.previous.manifest.get("status") == "diverged":  # only what comes after its last step is missing
            history.status = "diverged"
        history.message = str(folder.previous.manifest.get("message", ""))
        history.best, history.records = state["best"], folder.records()
        history.resumed_from = trainer.step
        if trainer.deadline:
            trainer.deadline = Deadline(*state["deadline_seconds"])
            for record in history.records:
                if "max_steps" in record:
                    trainer.take_decision(record)
        if history.best:
            best = packed if trainer.is_best else checkpoint.load_file(files.join(saved, BEST))
            if _shapes(best["model"]) != _shapes(packed["model"]):
                raise ValueError(f"the weights in {BEST} are of another model")
            trainer.best_weights = copy_weights(best["model"], lambda tensor: tensor.to(device))
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{saved} does not fit this run ({why:.300}). Add --overwrite to begin anew.") from error


def _check(state: Mapping[str, Any], step: int) -> None:
    """Raises an error of some kind where a state cannot be one that `checkpoint_of` made at this step."""
    counts, best = [state[name] for name in (*_COUNTS, *_WATCHED)], state["best"]
    fine = all(type(count) is int and count >= 0 for count in counts) and state["step"] == step
    fine = fine and type(state["losses"]) is list and type(state["scaler"]) is dict
    fine = fine and all(type(number) is float for number in (state["elapsed_seconds"], *state["losses"]))
    fine = fine and all(type(number) in (int, float) for number in state["scaler"].values())
    fine = fine and (best is None or (type(best["step"]) is int and type(best["val_loss"]) is float))
    if not fine:
        raise ValueError(f"{STATE} is not of step {step}, or not of a run")


def _restore_moments(optimizer: AdamW, state: Mapping[int, Any], param_groups: list[dict[str, Any]]) -> None:
    """Gives an optimizer the moments and learning rate of a saved one; its other settings are those of the run."""
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})
    for parameter, kept in optimizer.state.items():
        if set(kept) not in _MOMENTS or any(value.shape not in ((), parameter.shape) for value in kept.values()):
            raise ValueError("the moments are of another optimizer")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in weights.items()}
