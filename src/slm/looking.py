"""Looking inside: from a run and a text to what its model made of each token."""

from __future__ import annotations

import os

from slm.answering import complete, encoder_of
from slm.config import UserError
from slm.metrics.explain import Explanation, explain_tokens, most_tokens
from slm.run import Run, load
from slm.task_config import PAIRS


def explain(run: Run | str | os.PathLike[str], text: str) -> Explanation:
    """What a run's model made of a text: each token's probability, where attention looked, each layer's guess.

    run: a Run, its folder or URL, or a model.pt. In a notebook the result shows itself; `slm-explain` writes it as a
    page. Where the model was trained on many documents, the text is taken as the beginning of one, so that its first
    token has a probability, too. Of a model for pairs the text is a source, explained with the target that the model
    writes for it, in its template. A text has at most 256 tokens, at most max_seq_len, and few enough that layers x
    heads x tokens x tokens is at most 2,000,000. Raises UserError for a longer text, for an empty one, and for a run
    without a tokenizer; UserError and OSError where a run cannot be loaded.
    """
    if not isinstance(text, str):
        raise UserError(f"text = {text!r:.60}: must be a str.")
    if not isinstance(run, Run | str | os.PathLike):
        raise UserError(f"{run!r:.60} is no run: give a slm.Run, or the folder or URL of one.")
    run = run if isinstance(run, Run) else load(run)
    if run.task and run.task.labels:
        raise UserError(
            "this model tells labels, and expects no next token that could be explained: run.classify tells how "
            "probable each label is. Explain a model that goes on with text, or one for pairs."
        )
    if run.tokenizer is None:
        raise UserError(
            "this model has no tokenizer, for it was trained on dummy tokens or on token ids: it cannot read text."
        )
    if run.task:
        if not text.strip():
            raise UserError("the text is empty: give a source.")
        encoder, most = encoder_of(run, PAIRS), most_tokens(run.model.config)
        given = len(encoder.prompts([text])[0])
        target = complete(run, text, max_new_tokens=max(1, most - given))[0]
        row = encoder.row(text, target)[: max(most, given + 1)]  # a target that fills it has no end
        return explain_tokens(run.model, row, run.tokenizer, begins=True, given=given)
    ids = run.tokenizer.encode(text)
    if not ids:
        raise UserError("the text is empty: give one of at least one token.")
    start = [] if run.start_id is None else [run.start_id]
    if len(start) + len(ids) < 2:
        raise UserError("the text has one token, and nothing stands before it to expect it from: give a longer one.")
    return explain_tokens(run.model, [*start, *ids], run.tokenizer, begins=bool(start))
