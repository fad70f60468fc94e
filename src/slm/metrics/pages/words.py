"""Numbers and results in words, for a reader who knows Python and no deep learning."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence

from slm.config import ModelConfig
from slm.metrics.recorded import THIS_MODEL, THIS_RUN, Record, Recorded

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
    "nat": "The unit of surprise. A chance of 1 in 2 surprises by 0.69 nats, which is 1 bit; 1 in 100 by 4.6 nats.",
    "batch, epoch": "A batch is the text that one step looks at. An epoch is one reading of the whole training text.",
    "overfitting": "Learning the training text by heart: the train loss falls on, the val_loss rises.",
    "dropout": "In training, some of the numbers inside the model are set to 0 at random, so that it cannot rely on "
    "any one of them. It makes learning by heart harder, and learning slower.",
    "fp32, bf16, fp16": "The format of the numbers in products of matrices: 32 bits each, or 16, which is faster.",
    "peak": "What this machine can do at most, measured before the first step on products of matrices alone.",
    "Kneser-Ney n-gram": "It counts which tokens followed the last few tokens, and mixes the counts of longer and "
    "shorter beginnings: the best way to predict text from before neural networks.",
    "entropy": "The surprise that is left to somebody who knows exactly how a text is made.",
    "yardstick": "A simple way to predict text, without any training of a network, on the same validation text. A "
    "model worth its time beats those that count.",
}
OF_SEVERAL = {
    "+-": "The standard error: how far chance in the choice of the text may have moved a number. Differences of more "
    "than two standard errors are called better or worse, others are left open. How much another seed of the training "
    "would change, it does not tell.",
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


def measure(value: float, digits: int = 3, unit: str = "") -> str:
    """A loss or the like: 2.046; 35,880 where it is large; "infinite" where it is no finite number."""
    if not math.isfinite(value):
        return "infinite"
    return f"{value:,.{0 if abs(value) >= 1000 else digits}f}{unit}"


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
        return False, f"No, and it cannot: the dummy text is random tokens. Its loss is {measure(best['val_loss'])}."
    unigram = next((one for one in run.yardsticks if one["name"] == "unigram"), None)
    chance = math.log(vocab_size) if vocab_size else None
    hits = f"Its first guess is right for {100 * best['val_accuracy']:.1f} % of the tokens."
    now = f"a validation loss of {measure(best['val_loss'])}"
    if chance is None:
        return True, f"It reached {now}. {hits}"
    start = f"guessing blindly among its {vocab_size:,} tokens would give {measure(chance)}"
    if best["val_loss"] > 0.98 * chance:
        return False, f"No: its best evaluation, at step {best['step']:,}, gave {now}, and {start}."
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
    numbers = f"{measure(model['score'])} {unit} against {measure(best['score'])}; lower is better"
    of = f"; {best['told']}" if best["told"] else ""
    told = f"{_which(best['name'])} ({predictor_in_words(best['name'])}{of})"
    blind = next((one for one in run.ranked if one["name"] == "uniform"), None)
    if blind and model["score"] >= blind["score"]:
        text = f"Useless: it is no better than guessing blindly. Beside {told}: {numbers}."
    elif model["score"] < best["score"]:
        text = f"Better than {told}, the best of the predictors that only count: {numbers}."
    else:
        text = f"Not yet worth its training: it is not better than {told}: {numbers}."
    if limit := next((one for one in run.ranked if one["name"] == "entropy of the source"), None):
        text += f" The best possible, on average, is {limit['score']:.3f}."
    return text


def _which(name: str) -> str:
    return f"a {name} model" if name[0].isupper() or name == "unigram" else "chance" if name == "uniform" else name


def command(run: Recorded, flag: str) -> str:
    """What to type for a new run like this one, but for a flag such as "--dropout 0.2"."""
    if "data_name" not in run.made_with:  # datasets and a model of somebody's own
        return flag
    asked = dict(run.asked)
    for part in shlex.split(flag):
        if part.startswith("--"):
            values = asked[part.removeprefix("--")] = list[str]()
        else:
            values.append(part)
    if "--init_from" in flag:  # which brings its tokenizer and its sizes
        brought = {"tokenizer", *(field.name for field in dataclasses.fields(ModelConfig))} - {"dropout", "max_seq_len"}
        asked = {name: value for name, value in asked.items() if name not in brought}
    if "resume" in asked:
        asked["model_dir"] = run.name
    elif run.name != THIS_RUN:
        asked["model_dir"] = f"{run.name.rstrip('/' + chr(92))}-2" if run.name.strip("./") else "runs/next"
    if "data" not in run.asked and run.made_with.get("data_name") != "dummy":  # it was given in Python
        text = "[*your_data, *more_data]" if "data" in asked else "your_data"
        settings = [f"{name}={_in_python(value)}" for name, value in asked.items() if name != "data"]
        return f"slm.train({', '.join((text, *settings))})"
    parts = ["slm-train"]
    for name, value in asked.items():
        several = value if isinstance(value, list | tuple) else [value]
        switch = {True: f"--{name}", False: f"--no_{name}"}
        parts += [switch[value]] if isinstance(value, bool) else [f"--{name}", *map(str, several)]
    return shlex.join(parts)


def _in_python(value: object) -> str:
    """A value of a setting, of which those that stand behind a flag are texts."""
    if isinstance(value, list) and len(value) == 1:
        try:
            return str(float(value[0]) if "." in value[0] or "e" in value[0] else int(value[0]))
        except ValueError:
            return repr(value[0])
    return repr(value)


def facts(run: Recorded) -> list[tuple[str, str]]:
    """The text that was learned, in rows."""
    made = run.made_with
    rows = [("text", str(made["data_name"]))] if "data_name" in made else []
    rows += [("", str(line)) for line in made.get("found", ())]
    if made.get("text_bytes") and not made.get("found"):
        rows.append(("size", size(made["text_bytes"])))
    if "train_tokens" in made:
        rows.append(("training text", f"{made['train_tokens']:,} tokens" + _passes(run.passes)))
        rows.append(("validation text", f"{made['val_tokens']:,} tokens: {made['split']}"))
    return rows


def _passes(passes: float | None) -> str:
    times = f"{passes:.3g}" if passes else ""
    return "" if not times else ", read once" if times == "1" else f", read {times} times"


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
