"""What training needs of a text: its datasets, and the facts that are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from slm.data.dataset import TextDataset
from slm.data.example_dataset import ExampleDataset
from slm.data.prepare import EVALUATED_TOKENS
from slm.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from slm.data.examples import Examples
    from slm.data.tasks import Task
    from slm.data.whole import WholeText


@dataclass(frozen=True)
class PreparedData:
    """What training needs of the data, and what the header tells of it."""

    train_dataset: TextDataset | ExampleDataset
    val_dataset: TextDataset | ExampleDataset
    tokenizer: Tokenizer | None  # None for the dummy data and for token ids
    vocab_size: int
    fingerprint: str
    name: str
    split: str  # how the validation part was chosen, in words
    num_bytes: int = 0  # of the text
    found: tuple[str, ...] = ()  # what was read and what was skipped, in words
    folder: str | None = None  # where the token files lie; None: in memory
    many_documents: bool = False  # with a token between them: the model sees often how one begins
    prepared_with: Mapping[str, Any] = field(default_factory=dict)  # by slm-prepare: those fields of DataConfig
    source_bits_per_byte: float | None = None  # the entropy of the validation text, where it is known
    task: Task | None = None  # where the model is to do something else than to go on with text
    train_examples: Examples | None = None  # of such a task
    val_examples: Examples | None = None
    max_seq_len: int | None = None  # positions that the examples of a task need
    also: WholeText | None = None  # another text to evaluate on

    @property
    def texts(self) -> tuple[TextDataset, TextDataset]:
        """The training and the validation text, where there is no task and they are texts."""
        assert isinstance(self.train_dataset, TextDataset) and isinstance(self.val_dataset, TextDataset)
        return self.train_dataset, self.val_dataset

    @property
    def facts(self) -> dict[str, Any]:
        """What a run keeps of its data: plain values."""
        return {
            "data_fingerprint": self.fingerprint,
            "many_documents": self.many_documents,
            "data_name": self.name,
            "found": list(self.found),
            "split": self.split,
            "text_bytes": self.num_bytes,
            "train_tokens": len(self.train_dataset.tokens),
            "val_tokens": len(self.val_dataset.tokens),
            **self._examples,
        }

    @property
    def _examples(self) -> dict[str, Any]:
        if not self.task or not self.train_examples or not self.val_examples:
            return {}
        numbers = {"train_examples": len(self.train_examples.inputs), "val_examples": len(self.val_examples.inputs)}
        return {**numbers, "task": self.task.as_dict()}

    def in_windows_of(self, max_seq_len: int, val_tokens: int) -> PreparedData:
        """The same tokens in windows of another length, of which evaluations read at most val_tokens.

        Examples of a task keep their windows.
        """
        most_targets = min(val_tokens, EVALUATED_TOKENS)
        if isinstance(self.train_dataset, ExampleDataset) or isinstance(self.val_dataset, ExampleDataset):
            assert isinstance(self.val_dataset, ExampleDataset)
            return replace(self, val_dataset=self.val_dataset.part(most_targets))
        train, val = (
            TextDataset(dataset.tokens, max_seq_len, start_id=dataset.start_id, max_targets=most)
            for dataset, most in ((self.train_dataset, None), (self.val_dataset, most_targets))
        )
        return replace(self, train_dataset=train, val_dataset=val)
