"""How a model chooses each next token when it writes: every setting of generation, with its default and rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm.fields import Checked, UserError, setting
from slm.settings import nearest

_GROUP = "sampling"


@dataclass(frozen=True, kw_only=True)
class Sampling(Checked):
    """The settings of generation. The filters apply in the order of their fields, to what the one before leaves."""

    max_new_tokens: int = setting(200, "Tokens to write, at most.", group=_GROUP, rule="0 or above", everyday=True)
    repetition_penalty: float = setting(
        1.0,
        "Above 1: tokens that were there before, in the prompt too, become less likely (Keskar et al. 2019).",
        group=_GROUP,
        rule="above 0",
        everyday=True,
    )
    temperature: float = setting(
        0.8,
        "0 always takes the likeliest token, higher is wilder.",
        group=_GROUP,
        rule="0 or above",
        everyday=True,
    )
    top_k: int | None = setting(
        50,
        "Choose among so many likeliest tokens, or all.",
        group=_GROUP,
        rule="at least 1",
        everyday=True,
        word="all",
    )
    top_p: float | None = setting(
        None,
        "Choose among the likeliest tokens that together have at least this probability (Holtzman et al. 2019).",
        group=_GROUP,
        rule="above 0 and at most 1",
        everyday=True,
    )
    min_p: float | None = setting(
        None,
        "Choose among tokens that are at least this share as likely as the likeliest one (Nguyen et al. 2024).",
        group=_GROUP,
        rule="0 to 1",
        everyday=True,
    )
    stop: tuple[str, ...] | None = setting(
        None, "Texts that end what is written; they are not part of it.", group=_GROUP, everyday=True
    )
    seed: int | None = setting(
        None,
        "The same seed gives the same text; by default it is drawn anew each time.",
        group=_GROUP,
        rule="0 or above",
        everyday=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "" in (self.stop or ()):
            raise UserError("stop = '': an empty text ends everything at once. Leave it out.")

    @classmethod
    def from_names(cls, settings: Mapping[str, Any]) -> Sampling:
        """The settings of those names. Raises UserError for an unknown name or a value that breaks its rule."""
        for name in settings:
            if name not in NAMES:
                raise UserError(f"{name} is not a setting of generation: {', '.join(NAMES)}.{nearest(name, NAMES)}")
        return cls(**settings)


NAMES = tuple(field.name for field in dataclasses.fields(Sampling))
