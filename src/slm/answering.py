"""From a run and texts to what its task asks for: the targets of sources, or the labels of texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slm.config import TaskConfig, UserError
from slm.data.counts import many
from slm.data.tasks import Encoder
from slm.model.beam import beam_search
from slm.task_config import CLASSIFICATION, PAIRS

if TYPE_CHECKING:
    from slm.run import Run

_ROWS_AT_ONCE = 64
_DOES = {
    "": "goes on with text: use run.generate",
    PAIRS: "writes targets of sources: use run.complete",
    CLASSIFICATION: "tells labels: use run.classify",
}


@dataclass(frozen=True)
class Classification:
    """The label of a text, how probable the model finds it, and all others (0-1 each, together 1)."""

    label: str
    probability: float
    probabilities: dict[str, float]


def encoder_of(run: Run, name: str) -> Encoder:
    """What turns texts into rows of the run's task. Raises UserError for a run of another task."""
    task = run.task
    if task is None or task.name != name or run.tokenizer is None:
        does = _DOES[task.name if task else ""]
        raise UserError(f"this model {does}. For {name} train one with task = {name!r}.")
    return Encoder(task, run.tokenizer, run.model.config.max_seq_len)


def texts_of(texts: str | Sequence[str], what: str) -> list[str]:
    """One or several texts as a list. Raises UserError for anything else."""
    if not isinstance(texts, str | Iterable):
        raise UserError(f"{what} = {texts!r:.60}, a {type(texts).__name__}: must be a str, or a list of them.")
    found = [texts] if isinstance(texts, str) else list(texts)
    wrong = next((text for text in found if not isinstance(text, str)), None)
    if wrong is not None:
        raise UserError(f"{what} = {wrong!r:.60}, a {type(wrong).__name__}: must be a str, or a list of them.")
    return found


@torch.inference_mode()
def classify(run: Run, texts: str | Sequence[str]) -> list[Classification]:
    """The label of each text, by a model that was trained with task = "classification".

    A text longer than the model can look at loses its end, with a warning. Raises UserError for another model.
    """
    encoder, found = encoder_of(run, CLASSIFICATION), texts_of(texts, "texts")
    labels, window = encoder.task.labels, encoder.max_seq_len
    rows = encoder.prompts(found)
    if cut := sum(len(row) > window for row in rows):
        warnings.warn(
            f"{many(cut, 'text')} of {len(rows):,} cut at the end: this model looks at {window:,} tokens at most.",
            stacklevel=3,
        )
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    made: list[Classification | None] = [None] * len(rows)
    was_training = run.model.training
    run.model.eval()
    try:
        for start in range(0, len(order), _ROWS_AT_ONCE):
            part = order[start : start + _ROWS_AT_ONCE]
            scores = _last_scores(run, [rows[number][:window] for number in part])
            for number, p in zip(part, scores.double().softmax(dim=-1).tolist(), strict=True):
                best = max(range(len(p)), key=p.__getitem__)
                made[number] = Classification(labels[best], p[best], dict(zip(labels, p, strict=True)))
    finally:
        run.model.train(was_training)
    return [one for one in made if one is not None]


def _last_scores(run: Run, rows: list[list[int]]) -> Tensor:
    """(B, C): the scores at the last token of each row."""
    device = next(run.model.parameters()).device
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    logits: Tensor = run.model(tokens)[torch.arange(len(rows), device=device), last]
    return logits.float().cpu()


def complete(
    run: Run,
    sources: str | Sequence[str],
    *,
    num_beams: int | None = None,
    length_penalty: float | None = None,
    max_new_tokens: int | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[str]:
    """What the model writes as the target of each source, by beam search in the template that it was trained with.

    num_beams, length_penalty: None takes those of the run. max_new_tokens: None writes on while the model can look at
    all of it. on_done is told how many more sources are done. Raises UserError for another model, and for a source that
    leaves no room for a target.
    """
    encoder, found = encoder_of(run, PAIRS), texts_of(sources, "sources")
    prompts = encoder.prompts(found)
    if long := [number for number, prompt in enumerate(prompts) if len(prompt) >= encoder.max_seq_len]:
        raise UserError(
            f"source {long[0]} has {len(prompts[long[0]]):,} tokens, and this model looks at {encoder.max_seq_len:,}, "
            f"those of the target among them: {found[long[0]]!r:.60}. Shorten it."
        )
    settings = TaskConfig(
        num_beams=run.resolved.get("num_beams", TaskConfig().num_beams) if num_beams is None else num_beams,
        length_penalty=run.resolved.get("length_penalty", 1.0) if length_penalty is None else length_penalty,
    )
    was_training = run.model.training
    run.model.eval()
    try:
        made = beam_search(
            run.model,
            prompts,
            end_id=encoder.end_id,
            num_beams=settings.num_beams,
            length_penalty=settings.length_penalty,
            max_new_tokens=encoder.max_seq_len if max_new_tokens is None else max_new_tokens,
            on_done=on_done,
        )
    finally:
        run.model.train(was_training)
    assert run.tokenizer
    return [run.tokenizer.decode(hypotheses[0].ids).strip() for hypotheses in made]
