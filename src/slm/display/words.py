"""Times, numbers and other people's text in calm words, as every display shows them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from slm.showing import harmless

CALM_SECONDS = 10.0  # between plain progress lines
_PROMPT_CHARACTERS = 40
_MOST_CHARACTERS = 1000  # of a text that is to become one line
# White space that is text; \x1c to \x1f and \x85 count as such in Python, but are control characters.
_SPACES = re.compile(r"[^\S\x1c-\x1f\x85]+")


def clock(seconds: float) -> str:
    """Such as 1:23 or 2:01:23."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def one_line(text: str) -> str:
    """The text on one line: white space is one blank, or ↵ where a line ended."""
    found = _SPACES.sub(lambda spaces: " " if set("\n\r\v\f\u2028\u2029").isdisjoint(spaces[0]) else "↵", text)
    return harmless(found)


def sample_line(record: Mapping[str, Any]) -> tuple[str, str]:
    """(The end of the prompt in quotation marks, what the model wrote after it), each on one line."""
    prompt, written = one_line(record["prompt"][-_MOST_CHARACTERS:]), one_line(record["sample"][:_MOST_CHARACTERS])
    if len(prompt) > _PROMPT_CHARACTERS:
        prompt = "…" + prompt[1 - _PROMPT_CHARACTERS :]
    return (f'"{prompt}" → ' if prompt else "→ "), written


def evaluation(record: Mapping[str, Any], mark: str = "", without: Collection[str] = ()) -> str:
    """The metrics of an evaluation. mark: what to say of its val_loss. without: names to leave out."""
    told = {
        "val_loss": f"val_loss {record['val_loss']:.4f}{mark}",
        "perplexity": f"perplexity {record['val_perplexity']:,.2f}",
        "accuracy": f"accuracy {100 * record['val_accuracy']:.2f} %",
    }
    if "val_bits_per_byte" in record:
        told["bits per byte"] = f"{record['val_bits_per_byte']:.3f} bits per byte"
    return ", ".join(text for name, text in told.items() if name not in without)


def peak(record: Mapping[str, Any]) -> str:
    """Such as "63 % of peak", the share of what the machine can do; nothing where that is not known."""
    share = 100 * record.get("mfu", math.nan)
    return f"{share:.{0 if share >= 9.95 else 1}f} % of peak" if math.isfinite(share) else ""
