"""Where the parameters of a model are, and what each part of it costs: a table that adds up."""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from slm.config import ModelConfig, UserError
from slm.model.transformer import Attention, LanguageModel

HEADER = ("module", "kind", "weights", "times", "parameters", "FLOPs per token", "share")
_IS_NUMBER = (False, False, False, True, True, True, True)
_FORMULA = (
    "FLOPs: floating-point operations of a training step, 6 for each parameter that multiplies the token (2 forward, 4 "
    "backward; looking up a table costs none), and 12 x window x width for attention in a layer, as if unmasked."
)
_LINEAR_ONLY = (
    "FLOPs: floating-point operations of a training step in nn.Linear alone, 6 for each of its parameters (2 forward, "
    "4 backward); what other modules compute is not counted."
)
_TABLES = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Row:
    """A module with weights of its own, or a product inside attention; of several that are alike, the first."""

    name: str
    kind: str
    weights: tuple[str, ...]  # shapes, or the name of the parameter that serves here, too
    times: int  # how many are alike
    parameters: int  # of all of them
    flops: int  # of a training step for each token, of all of them


@dataclass(frozen=True, repr=False)
class Summary:
    """A table of a model's modules, whose parameters and FLOPs add up to those of the model."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def num_parameters(self) -> int:
        """Of the whole model; what several modules share counts once."""
        return sum(row.parameters for row in self.rows)

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations of a training step for each token."""
        return sum(row.flops for row in self.rows)

    def cells(self) -> Iterator[tuple[str, ...]]:
        """The table's text, a tuple for each row and one for the totals."""
        total = self.flops_per_token

        def numbers(parameters: int, flops: int) -> tuple[str, ...]:
            return f"{parameters:,}", f"{flops:,}", f"{100 * flops / total:.1f} %" if total else "-"

        for row in self.rows:
            times = f"x {row.times}" if row.times > 1 else ""
            yield row.name, row.kind, ", ".join(row.weights), times, *numbers(row.parameters, row.flops)
        yield "total", "", "", "", *numbers(self.num_parameters, total)

    def __str__(self) -> str:
        table = [HEADER, *self.cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for cells in table:
            aligned = zip(cells, widths, _IS_NUMBER, strict=True)
            lines.append("  ".join(cell.rjust(w) if number else cell.ljust(w) for cell, w, number in aligned).rstrip())
        rule = "-" * max(map(len, lines))
        return "\n".join([self.title, *lines[:1], rule, *lines[1:-1], rule, lines[-1], *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same table for a notebook."""

        def row(tag: str, cells: Sequence[str]) -> str:
            sides = ("right" if number else "left" for number in _IS_NUMBER)
            return (
                "<tr>"
                + "".join(
                    f'<{tag} style="text-align:{side};padding:0 .5em">{html.escape(cell)}</{tag}>'
                    for cell, side in zip(cells, sides, strict=True)
                )
                + "</tr>"
            )

        *rows, total = self.cells()
        body = "".join(row("td", cells) for cells in rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        title = f'<caption style="text-align:left;padding:0 .5em">{html.escape(self.title)}</caption>'
        return (
            f"<div><table>{title}<thead>{row('th', HEADER)}</thead>"
            f"<tbody>{body}</tbody><tfoot>{row('th', total)}</tfoot></table>{notes}</div>"
        )


def summary(model: nn.Module | ModelConfig) -> Summary:
    """A table of a model's modules: their weights, parameters, and FLOPs for each token of a training step.

    Blocks that are alike are one group of rows. A ModelConfig will do: its weights take no memory. Of another module
    than a LanguageModel only the FLOPs of nn.Linear are known. Raises UserError for what is neither.
    """
    if isinstance(model, ModelConfig):
        with torch.device("meta"), Undrawn():
            model = LanguageModel(model)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"slm.summary takes a model or a ModelConfig, and got {type(model).__name__}: of a run, take run.model."
        )
    _check_lazy(model)
    config = model.config if isinstance(model, LanguageModel) else None
    rows = tuple(_rows(model, config, {id(p): name for name, p in model.named_parameters()}, set()))
    repeated = any(row.times > 1 for row in rows)
    notes = ["x: so many blocks are alike; the name is the first one's, the numbers are of all of them."] * repeated
    if any(name.startswith("= ") for row in rows for name in row.weights):
        notes.append("= NAME: these weights are those of another module, and count there, once.")
    notes.append(_FORMULA if config else _LINEAR_ONLY)
    parameters = sum(row.parameters for row in rows)
    return Summary(f"{type(model).__name__} of {parameters:,} parameters", rows, tuple(notes))


class Undrawn(TorchFunctionMode):
    """Leaves random weights undrawn, and tables of positions unmade.

    On the meta device either would load torch's compiler, which takes a second.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keys = dict(kwargs or {})
        if func in (torch.Tensor.normal_, nn.init.normal_):
            return args[0] if args else keys["tensor"]
        if func is torch.arange:  # the tables are not counted: one number will do
            return torch.zeros(1, device="cpu")
        return func(*args, **keys)


def _check_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise UserError(f"{name} has no size yet: run the model on a batch first, then slm.summary knows it.")


def _rows(module: nn.Module, config: ModelConfig | None, names: dict[int, str], seen: set[int]) -> Iterator[Row]:
    """The rows of a module, named from it on. names: of parameters, by id. seen: ids of those counted already."""
    if any(p is not None for p in module._parameters.values()):
        yield _own_row(module, config, names, seen)
    # A module that stands in several places computes in each, which named_children would hide.
    parts = [
        (name, tuple(_rows(child, config, names, seen))) for name, child in module._modules.items() if child is not None
    ]
    for _, group in itertools.groupby(parts, key=lambda part: ("" if part[0].isdigit() else part[0], part[1])):
        same = list(group)
        first, rows = same[0]
        for row in rows:
            yield dataclasses.replace(
                row,
                name=f"{first}.{row.name}".rstrip("."),
                times=row.times * len(same),
                parameters=row.parameters * len(same),
                flops=row.flops * len(same),
            )
    if config and isinstance(module, Attention):
        flops = 6 * config.max_seq_len * config.embed_dim
        yield Row("queries x keys", "product", (), 1, 0, flops)
        yield Row("weights x values", "product", (), 1, 0, flops)


def _own_row(module: nn.Module, config: ModelConfig | None, names: dict[int, str], seen: set[int]) -> Row:
    """The row of a module's own parameters."""
    weights, counted, multiplied = [], 0, 0
    for parameter in module._parameters.values():
        if parameter is None:
            continue
        multiplied += parameter.numel()
        if id(parameter) in seen:
            weights.append(f"= {names[id(parameter)]}")
        else:
            seen.add(id(parameter))
            counted += parameter.numel()
            weights.append(" x ".join(map(str, parameter.shape)) or "1")
    costs = not isinstance(module, _TABLES) if config else isinstance(module, nn.Linear)
    return Row("", type(module).__name__, tuple(weights), 1, counted, 6 * multiplied * costs)
