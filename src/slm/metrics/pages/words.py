"""Numbers and results in words, for a reader who knows Python and no deep learning."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slm.metrics.recorded import THIS_MODEL, Record, Recorded

WORDS = {
    "token": "A piece of text: a word, part of a word, or a character. The model reads and writes tokens.",
    "parameters": "The numbers inside the model that training adjusts.",
    "step": "One adjustment of all parameters, after looking at one batch of text.",
    "training and validation text": "The model learns from the training text alone. The validation text is kept away "
    "from it, and so shows what it can do on text that it has never seen.",
    "loss": "How surprised the model is by the token that really comes next, on average, in nats. 0 would be no "
    "surprise at all; a model that knows nothing has the logarithm of the number of different tokens. Lower is better. "
    "train loss is on the training text, val_loss on the validation text.",
    "perplexity": "The same as a number of choices: with a perplexity of 10 the model is as unsure as if it had to "
    "guess among 10 equally likely tokens.",
    "accuracy": "How often the token that the model finds likeliest is the right one.",
    "bits per byte": "The loss for each byte of text, in bits. It compares models whatever their tokens are: a file "
    "without any compression has 8, a general-purpose compressor gets English text to 2 or 3.",
    "learning rate": "How far one step moves the parameters.",
    "gradient norm": "How strongly one batch pulls at the parameters. Pulls beyond the limit are cut down to it "
    "(clipped).",
    "yardstick": "A simple way to predict text, without any training of a network, on the same validation text. A "
    "model worth its time beats those that count.",
}
_PREDICTORS = {
    "uniform": "guesses among all tokens alike: knows nothing",
    "unigram": "knows how frequent each token is, and nothing of the context",
    "xz": "a general-purpose compressor that has seen the training text",
    "entropy of the source": "what nobody can beat on average: the text was made by a known rule",
}


def predictor_in_words(name: str) -> str:
    """What a yardstick does."""
    if name.startswith("Kneser-Ney"):
        return "counts which tokens followed the few tokens before: no network"
    return _PREDICTORS.get(name, "")


def minutes(seconds: float) -> str:
    """A duration: 43 seconds, 5.2 minutes, 3.1 hours."""
    if seconds < 100:
        return f"{seconds:.0f} second{'' if round(seconds) == 1 else 's'}"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def size(num_bytes: float) -> str:
    """A size: 350 bytes, 1.1 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,.0f} bytes"


def count(number: float) -> str:
    """A count: 812, 43,000, 1.2 million."""
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{number:,.0f}"


def learned(run: Recorded) -> tuple[bool, str]:
    """(Whether the run learned anything, and how one sees it.)"""
    best, vocab_size = run.best, run.resolved.get("vocab_size")
    if best is None:
        return False, "No: no evaluation gave a finite loss, so no model was kept."
    if run.made_with.get("data_name") == "dummy":
        return False, f"No, and it cannot: the dummy text is random tokens. Its loss is {best['val_loss']:.3f}."
    unigram = next((one for one in run.yardsticks if one["name"] == "unigram"), None)
    chance = math.log(vocab_size) if vocab_size else None
    hits = f"Its first guess is right for {100 * best['val_accuracy']:.1f} % of the tokens."
    now = f"a validation loss of {best['val_loss']:.3f}"
    if chance is None:
        return True, f"It reached {now}. {hits}"
    start = f"guessing blindly among its {vocab_size:,} tokens would give {chance:.3f}"
    if best["val_loss"] > 0.98 * chance:
        return False, f"No: it ended at {now}, and {start}."
    if unigram and best["val_loss"] > unigram["loss"]:
        return False, f"Hardly: it reached {now}. Knowing only how frequent each token is gives {unigram['loss']:.3f}."
    return True, f"Yes: it reached {now}; {start}. {hits}"


def compared(run: Recorded) -> str:
    """How good the model is beside the best predictor that only counts."""
    best = run.best_counting
    if best is None:
        why = "the dummy text is random" if run.made_with.get("data_name") == "dummy" else "none were measured"
        return f"There are no yardsticks: {why}." if run.best else "There is no model to compare."
    model = next(one for one in run.ranked if one["name"] == THIS_MODEL)
    unit = "nats per token" if model["bits_per_byte"] is None else "bits per byte"
    numbers = f"{model['score']:.3f} {unit} against {best['score']:.3f}, and lower is better"
    told = f"{_which(best['name'])} ({predictor_in_words(best['name'])})"
    if model["score"] < best["score"]:
        text = f"Better than {told}, the best of the simple predictors: {numbers}."
    else:
        text = f"Not better than {told}: {numbers}."
    if limit := next((one for one in run.ranked if one["name"] == "entropy of the source"), None):
        text += f" The best possible, on average, is {limit['score']:.3f}."
    return text


def _which(name: str) -> str:
    return f"a {name} model" if name[0].isupper() or name == "unigram" else "chance" if name == "uniform" else name


def facts(run: Recorded) -> list[tuple[str, str]]:
    """The text that was learned, in rows."""
    made = run.made_with
    rows = [("text", str(made["data_name"]))] if "data_name" in made else []
    rows += [("", str(line)) for line in made.get("found", ())]
    if made.get("text_bytes"):
        rows.append(("size", size(made["text_bytes"])))
    if "train_tokens" in made:
        rows.append(("training text", f"{made['train_tokens']:,} tokens" + _passes(run.passes)))
        rows.append(("validation text", f"{made['val_tokens']:,} tokens: {made['split']}"))
    return rows


def _passes(passes: float | None) -> str:
    return "" if not passes else f", read {passes:.3g} times" if passes != 1 else ", read once"


def ended(run: Recorded) -> str:
    """How the run ended, in words."""
    of = f" of {run.total_steps:,}" if run.total_steps and run.total_steps != run.step else ""
    steps = f"{run.step:,}{of} steps"
    how = {"finished": "finished after", "interrupted": "stopped after", "diverged": "broke down after"}
    return f"{how.get(run.status, 'not ended:')} {steps}"


def prompts(samples: Sequence[Record]) -> dict[str, list[Record]]:
    """Samples by their prompts, each in the order of steps."""
    found: dict[str, list[Record]] = {}
    for record in samples:
        found.setdefault(record["prompt"], []).append(record)
    return found
