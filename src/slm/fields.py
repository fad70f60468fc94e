"""How a setting is declared and checked: a dataclass field that carries its help, rule and group."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A message that a person can act on. Commands print it without a traceback and exit with 2."""


# The key is the wording of the error message: "dropout = 1.5: must be at least 0 and below 1".
RULES: dict[str, Callable[[Any], bool]] = {
    "at least 1": lambda value: value >= 1,
    "above 0 and at most 1440": lambda value: 0 < value <= 1440,
    "1 to 1024": lambda value: 1 <= value <= 1024,
    "at least 2": lambda value: value >= 2,
    "above 0": lambda value: value > 0,
    "above 0 and at most 1": lambda value: 0 < value <= 1,
    "0 to 10": lambda value: 0 <= value <= 10,
    "0 to 1": lambda value: 0 <= value <= 1,
    "0 or above": lambda value: value >= 0,
    "at least 0 and below 1": lambda value: 0 <= value < 1,
    "above 0 and below 1": lambda value: 0 < value < 1,
}


def setting(
    default: T,
    help: str,
    *,
    group: str,
    rule: str | None = None,
    choices: tuple[str, ...] = (),
    everyday: bool = False,
    word: str | None = None,
) -> T:
    """A dataclass field that carries all that flags, help and checks need to know of it.

    word: such as "auto", stands for None.
    """
    metadata = {"help": help, "group": group, "rule": rule, "choices": choices, "everyday": everyday, "word": word}
    field: T = dataclasses.field(default=default, metadata=metadata)
    return field


def kind_of(field: dataclasses.Field[Any]) -> str:
    """The field's type without its `| None`: "int", "float", "bool", "str", or "strs" for one or several."""
    kind = str(field.type).removesuffix(" | None")
    return "strs" if kind == "tuple[str, ...]" else kind


def _converted(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the field's type (2 is a fine float), or a UserError that names the rule it breaks."""
    kind = kind_of(field)
    if value is not None and value == field.metadata["word"]:
        value = None
    if value is None and str(field.type).endswith("| None"):
        return None
    if kind == "strs":
        return _several(field, value)
    if kind == "int" and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        value = int(value)
        if abs(value) >= 2**63:
            raise UserError(f"{field.name} = {value}: must fit in 63 bits.")
    elif kind == "float" and isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond every float is refused below
            value = float(value)
    elif (kind == "bool" and not isinstance(value, bool)) or (kind == "str" and not isinstance(value, str)):
        raise UserError(f"{field.name} = {value!r}: must be a {kind}, not a {type(value).__name__}.")
    elif kind in ("int", "float"):
        raise UserError(f"{field.name} = {value!r}: must be a number ({kind}), not a {type(value).__name__}.")
    rule, choices = field.metadata["rule"], field.metadata["choices"]
    if kind == "float" and not (isinstance(value, float) and math.isfinite(value)):
        raise UserError(f"{field.name} = {value!r}: must be a finite number.")
    if rule and not RULES[rule](value):
        raise UserError(f"{field.name} = {value!r}: must be {rule}.")
    if choices and value not in choices:
        raise UserError(f"{field.name} = {value!r}: must be one of {', '.join(choices)}.")
    return value


def _several(field: dataclasses.Field[Any], value: Any) -> tuple[str, ...]:
    """One or several strings as a tuple."""
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values or not all(isinstance(one, str) for one in values):
        what = "a text" if field.metadata["group"] == "sampling" else "a path, a URL or a built-in name"
        raise UserError(f"{field.name} = {value!r}: must be {what}, or a list of them.")
    return tuple(values)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Checks every field against its type and rule; subclasses add what concerns several fields."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _converted(field, getattr(self, field.name)))


def signature_with(
    function: Callable[..., Any], fields: Iterable[dataclasses.Field[Any]], **defaults: Any
) -> inspect.Signature:
    """The signature of a function with each field in place of its `**settings`, for notebooks to complete and show.

    defaults: of this function, where they are not the fields' own.
    """
    signature = inspect.signature(function)
    named = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
    settings = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=field.type,
        )
        for field in fields
        if field.name not in signature.parameters
    ]
    return signature.replace(parameters=[*named, *settings])
