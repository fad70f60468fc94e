"""Pairs and labels -> (tokens, targets): the template of a task, which is stored in the model, fills the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slm.config import IGNORE_INDEX, UserError
from slm.data.example_dataset import ExampleDataset
from slm.data.tokenizer import END_OF_TEXT, Tokenizer
from slm.task_config import CLASSIFICATION, PAIRS

SOURCE, TARGET, TEXT = "{source}", "{target}", "{text}"  # what a template is filled with; its other parts are tokens
TARGET_BEGINS = "<|target|>"
_AT_ONCE = 1024  # texts that are encoded together

Ids = NDArray[np.int64]
Int32s = NDArray[np.int32]


@dataclass(frozen=True)
class Task:
    """What a model was made to do beside going on with text: plain values, stored in every checkpoint."""

    name: str  # PAIRS or CLASSIFICATION
    template: tuple[str, ...]  # special tokens, and the slots between them
    labels: tuple[str, ...] = ()

    @classmethod
    def pairs(cls, tokenizer: Tokenizer) -> Task:
        """A source, a token that begins its target, the target, and a token that ends it."""
        end = tokenizer.end_name or END_OF_TEXT
        return cls(PAIRS, (end, SOURCE, TARGET_BEGINS, TARGET, end))

    @classmethod
    def classification(cls, tokenizer: Tokenizer, labels: Sequence[str]) -> Task:
        """A text between tokens that begin and end documents; the label is told at the last one."""
        end = tokenizer.end_name or END_OF_TEXT
        return cls(CLASSIFICATION, (end, TEXT, end), tuple(labels))

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Task:
        """The task that `as_dict` told. Raises ValueError for anything else."""
        try:
            name, template, labels = stored["name"], tuple(stored["template"]), tuple(stored["labels"])
        except (LookupError, TypeError) as error:
            raise ValueError(f"its task is none: {error}") from error
        slots = {PAIRS: [SOURCE, TARGET], CLASSIFICATION: [TEXT]}.get(name)
        texts = all(isinstance(part, str) for part in (*template, *labels))
        if not texts or [part for part in template if part in (SOURCE, TARGET, TEXT)] != slots:
            raise ValueError(f"its task {name!r:.40} has another template")
        if (name == CLASSIFICATION) != (len(set(labels)) == len(labels) >= 2):
            raise ValueError("the labels of its task are not different ones")
        return cls(name, template, labels)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a model file."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def numbers_of(self, labels: Sequence[str], name: str) -> list[int]:
        """The number of each label. Raises UserError for one that is not known; name: where they come from."""
        number_of = {label: number for number, label in enumerate(self.labels)}
        if unknown := sorted(set(labels) - set(number_of)):
            known = ", ".join(map(repr, self.labels))
            raise UserError(
                f"the label {unknown[0]!r} in {name} is none that this model knows: {known:.200}. Train with examples "
                "of it, or leave out those that have it."
            )
        return [number_of[label] for label in labels]

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokens of the template, each once."""
        return tuple(dict.fromkeys(part for part in self.template if part not in (SOURCE, TARGET, TEXT)))


class Encoder:
    """Texts -> rows of token ids, by a task's template."""

    def __init__(self, task: Task, tokenizer: Tokenizer, max_seq_len: int) -> None:
        """tokenizer: with the template's special tokens, see `Tokenizer.with_special_tokens`."""
        self.task, self.tokenizer, self.max_seq_len = task, tokenizer, max_seq_len
        self.ids = {name: tokenizer.id_of(name) for name in task.special_tokens}

    @property
    def end_id(self) -> int:
        """The token that ends a target."""
        return self.ids[self.task.template[-1]]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text in its slot, with those of the template around it, up to the target."""
        template = self.task.template
        cut = template.index(TARGET) if TARGET in template else None
        return [ids.tolist() for ids in self._filled(template[:cut], texts)]

    def row(self, source: str, target: str) -> list[int]:
        """The tokens of a pair in its template."""
        ids: list[int] = next(self._filled(self.task.template, [source], [target])).tolist()
        return ids

    def _filled(self, template: Sequence[str], *columns: Sequence[str]) -> Iterator[Ids]:
        """Row after row of ids: special tokens as they stand, slots filled from the columns in order.

        White space around a text is no part of it, in training as in use.
        """
        slots = [part for part in template if part not in self.ids]
        for start in range(0, len(columns[0]), _AT_ONCE):
            texts = [[text.strip() for text in column[start : start + _AT_ONCE]] for column in columns]
            encoded = [list(self.tokenizer.encode_pieces(column)) for column in texts]
            for number in range(len(encoded[0])):
                filling = dict(zip(slots, (column[number] for column in encoded), strict=True))
                parts = [filling[part] if part in filling else [self.ids[part]] for part in template]
                yield np.concatenate([np.asarray(part, np.int64) for part in parts])

    def pairs(self, sources: Sequence[str], targets: Sequence[str]) -> tuple[ExampleDataset, int]:
        """(The rows of pairs, in which what follows the source alone is a target; how many were too long.)

        A row of n tokens gives n - 1 places to predict from. Rows of more than max_seq_len places are left out.
        """
        template = self.task.template
        cut = template.index(TARGET)
        heads = self._filled(template[:cut], sources)
        tails = self._filled(template[cut:], targets)
        rows: list[tuple[Int32s, Int32s]] = []
        too_long = 0
        for head, tail in zip(heads, tails, strict=True):
            if len(head) + len(tail) - 1 > self.max_seq_len:
                too_long += 1
                continue
            row = np.concatenate((head, tail)).astype(np.int32)
            goals = row[1:].copy()
            goals[: len(head) - 1] = IGNORE_INDEX
            rows.append((row[:-1], goals))
        if too_long and not rows:
            raise UserError(
                f"all {too_long:,} pairs are longer than max_seq_len = {self.max_seq_len} tokens: set a larger one (a "
                "model that has learned a vector for each position takes none), or give shorter pairs."
            )
        return ExampleDataset(rows), too_long

    def labelled(
        self, texts: Sequence[str], labels: Sequence[str], name: str, *, everywhere: bool = False
    ) -> tuple[ExampleDataset, int]:
        """(The rows of texts, with the number of the label as the target of the last place; how many were cut.)

        everywhere: as the target of every place, to learn the label from each beginning of a text, which is far more
        to learn from. name: where the labels come from. A text of more than max_seq_len tokens loses its end.
        """
        numbers = self.task.numbers_of(labels, name)
        rows: list[tuple[Int32s, Int32s]] = []
        cut = 0
        for row, number in zip(self._filled(self.task.template, texts), numbers, strict=True):
            cut += len(row) > self.max_seq_len
            tokens = row[: self.max_seq_len].astype(np.int32)
            goals = np.full(len(tokens), number if everywhere else IGNORE_INDEX, np.int32)
            goals[-1] = number
            rows.append((tokens, goals))
        return ExampleDataset(rows), cut
