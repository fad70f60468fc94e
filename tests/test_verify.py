"""Laws of `slm.verify_resume`: it says "identical" of a run that goes on exactly, and names what does not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import SMALL

import slm
from slm.training import loop
from slm.training.loop import Trainer
from slm.verify import first_difference

SETTINGS = {name: value for name, value in SMALL.items() if name not in ("max_steps", "quiet")} | {"dropout": 0.2}


MUON = {"optimizer": "muon", "schedule": "wsd"}


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"batch_size": 64, "steps": 5, "stop_after": 1},
        {"sample_every": 1, "eval_every": 1, "max_grad_norm": 0.1},
        {"precision": "bf16"},
        {"recipe": "modern"},
        {"recipe": "modern", "precision": "bf16", **MUON},
    ],
)
def test_a_run_in_two_parts_is_identical(text: str, others: dict[str, Any]) -> None:
    assert slm.verify_resume([text], **(SETTINGS | others)) == "identical"
    assert slm.verify_resume((part for part in [text]), **(SETTINGS | others)) == "identical"


def forget_moments(trainer: Trainer) -> None:
    for moments in trainer.optimizer.state.values():
        moments["exp_avg"].zero_()


def forget_momentum(trainer: Trainer) -> None:
    for moments in trainer.optimizer.state.values():
        if "momentum_buffer" in moments:
            moments["momentum_buffer"].zero_()


def forget_random(trainer: Trainer) -> None:
    torch.manual_seed(0)


def forget_tokens(trainer: Trainer) -> None:
    trainer.tokens_seen = 0


@pytest.mark.parametrize(
    ("forget", "words", "others"),
    [
        (forget_moments, "model.pt", {}),
        (forget_momentum, "model.pt", {"recipe": "modern"}),
        (forget_random, "model.pt", {}),
        (forget_tokens, "tokens_seen", {}),
    ],
)
def test_what_is_forgotten_is_found(
    text: str, monkeypatch: pytest.MonkeyPatch, forget: Callable[[Trainer], None], words: str, others: dict[str, Any]
) -> None:
    restore = loop.restore

    def badly(trainer: Trainer) -> None:
        restore(trainer)
        if trainer.step:
            forget(trainer)

    monkeypatch.setattr(loop, "restore", badly)
    assert words in slm.verify_resume([text], **(SETTINGS | others))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stop_after": 6}, "below steps = 6"),
        ({"stop_after": 0}, "above 0"),
        ({"steps": 1}, "stop_after = 0"),
        ({"model_dir": "here", "epochs": 2}, "sets model_dir, epochs itself"),
        ({"embed_dims": 3}, "Did you mean embed_dim"),
    ],
)
def test_settings_that_make_no_sense_are_refused(text: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(slm.UserError, match=words):
        slm.verify_resume([text], **settings)


def test_the_first_difference_is_named_and_the_same_bits_are_none() -> None:
    zeros = torch.zeros(2, 3)
    value = {"a": [zeros, (1, 2.0, None)], "b": {"c": math.nan, "elapsed_seconds": 1.0}}
    same = {"b": {"c": math.nan, "elapsed_seconds": 2.0}, "a": [zeros.clone(), (1, 2.0, None)]}
    assert first_difference(value, same) is None
    for other, words in (
        (torch.zeros(3, 2), r"x: torch.float32 \(2, 3\) against"),
        (torch.zeros(2, 3, dtype=torch.float64), "torch.float64"),
        (zeros.index_fill(1, torch.tensor([1]), 1.0), "2 of 6 numbers differ"),
        (-zeros, "0 of 6 numbers differ"),  # the bits do
        (0.0, "against 0.0"),
    ):
        assert re.search(words, first_difference({"x": zeros}, {"x": other}) or "")
    assert first_difference([1], [1, 2]) == ": 1 items against 2"
    assert first_difference(1, 1.0) == ": 1 against 1.0"
    assert first_difference({"x": 1}, {}) == "x: only the first run has it"
    assert first_difference(torch.tensor([math.nan]), torch.tensor([math.nan])) is None


def test_runs_of_minutes_are_not_compared() -> None:
    with pytest.raises(slm.UserError, match="set steps, and leave out max_minutes"):
        slm.verify_resume(["some text"], max_minutes=1)
