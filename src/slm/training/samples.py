"""What a model writes after fixed prompts while it learns, so that one sees it learn."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from slm.config import IGNORE_INDEX
from slm.data.example_dataset import ExampleDataset
from slm.data.tokenizer import Tokenizer
from slm.model.generation import stream_tokens
from slm.model.transformer import LanguageModel
from slm.sampling import Sampling
from slm.training.device import is_out_of_memory
from slm.training.history import Record

_PROMPTS = 2
_PROMPT_CHARACTERS = 20
_TOKENS = 60  # to write
_SHARE = 0.01  # of the time of training


class Samples:
    """The beginnings of some places of the validation text, and how a model goes on with them, always with one seed."""

    def __init__(self, model: nn.Module, tokenizer: Tokenizer | None, dataset: Dataset[Any], every: int | None) -> None:
        """every: evaluations between samples, 0 for none; None takes each, but not more than 1 % of the time."""
        self.every = every if tokenizer and type(model) is LanguageModel else 0
        self.model, self.tokenizer, self.dataset = model, tokenizer, dataset
        self.seconds = 0.0  # that were spent
        self._prompts: list[list[int]] = []

    def due(self, evaluations: int, evaluation: Record) -> bool:
        """Whether it is time for them, after so many evaluations, the last of which is this one."""
        if not math.isfinite(evaluation["val_loss"]):
            return False
        if self.every is None:
            return self.seconds <= _SHARE * float(evaluation["elapsed_seconds"])
        return self.every > 0 and (evaluations - 1) % self.every == 0

    def records(self, step: int, *, is_last: bool = False) -> list[Record]:
        """A record for each prompt, with the text that comes after it. The model is left in the mode it was in.

        Where an accelerator's memory is full there is none, now and later, and a warning.
        """
        assert self.tokenizer and isinstance(self.model, LanguageModel)
        started, was_training = time.monotonic(), self.model.training
        self._prompts = self._prompts or self._beginnings(self.tokenizer)
        # Of a target there is one best, which is looked for from token to token; text is drawn.
        temperature = 0.0 if isinstance(self.dataset, ExampleDataset) else Sampling().temperature
        settings = Sampling(max_new_tokens=_TOKENS, seed=0, temperature=temperature)
        written: list[list[int]] = [[] for _ in self._prompts]
        self.model.eval()
        try:
            for new in stream_tokens(self.model, self._prompts, settings):
                for row, id in zip(written, new.ids, strict=True):
                    row.append(id)
        except KeyboardInterrupt:  # the stop button of a notebook; a run that is over is no more to be interrupted
            if not is_last:
                raise
            written = []
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            warnings.warn("the memory is full: no samples are written from here on.", stacklevel=2)
            self.every, written = 0, []
        finally:
            self.model.train(was_training)
        found = []
        for prompt, ids in zip(self._prompts, written, strict=False):
            if self.tokenizer.end_id in ids:
                ids = ids[: ids.index(self.tokenizer.end_id)]
            decode = self.tokenizer.decoder(prompt)
            found.append({"step": step, "prompt": self.tokenizer.decode(prompt), "sample": "".join(map(decode, ids))})
        self.seconds += time.monotonic() - started
        return found

    def _beginnings(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The first tokens of windows of the dataset, as many as make a few words; of pairs, all before the target."""
        found = []
        windows = len(self.dataset)  # type: ignore[arg-type]
        for index in sorted({windows * number // _PROMPTS for number in range(_PROMPTS)}):
            tokens, targets = self.dataset[index]
            ids = tokens.tolist()
            if isinstance(self.dataset, ExampleDataset):
                found.append(ids[: int((targets != IGNORE_INDEX).int().argmax()) + 1])
                continue
            length = 1
            while length < len(ids) // 2 and len(tokenizer.decode(ids[:length])) < _PROMPT_CHARACTERS:
                length += 1
            found.append(ids[:length])
        return found
