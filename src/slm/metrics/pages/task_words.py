"""The numbers of a task, and of a start from a trained model, in words for a reader who knows no deep learning."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import nn

from slm.metrics.pages import words
from slm.metrics.recorded import Recorded
from slm.metrics.summary import Summary, Undrawn, summary
from slm.metrics.task_evaluation import THIS_MODEL, TITLES, may_be_chance, standard_error, told
from slm.model.classifier import Classifier
from slm.model.transformer import LanguageModel
from slm.task_config import CLASSIFICATION

_LEARNED = 0.1  # of the way from the most frequent label to all labels right, which chance does not go
_SAME = 0.005  # of a loss: what is no change
_LABELS_TOLD = 30
MAJORITY, COPY = "majority label", "copy of the source"
SIMILAR = "most similar training sentence's translation"
_YARDSTICKS = {
    MAJORITY: "always answers with the most frequent label, whatever the text",
    "TF-IDF of words": "weighs the words of a text and adds up, without regard to their order: no network",
    "TF-IDF of characters": "weighs pieces of words, 2 to 5 characters long, and adds up: no network",
    COPY: "answers with the source as it is",
    SIMILAR: "finds the training source whose words are most like those of the source, and answers with its target",
}
_ARTICLES = {MAJORITY: "the ", COPY: "a ", SIMILAR: "the "}
_OF_FINE_TUNING = {
    "fine-tuning": "To train a model further that has learned something else before. It needs fewer examples than to "
    "begin from nothing, since it knows the language already.",
    "LoRA": "The model stays as it is; beside each of its matrices two small ones are trained, whose product is added "
    "to it (low-rank adaptation). What is trained, and kept, is a small part of the whole.",
}
_OF_LABELS = {
    "label": "What a text is to be called: spam or no spam, say. Each text has exactly one.",
    "class head": "The part of the model that turns what it has read into a score for each label.",
    "loss": "How surprised the model is by the true label, on average, in nats. 0 would be no surprise at all; to "
    "guess among n labels has the logarithm of n. Lower is better. val_loss is on the validation examples. train loss "
    "is on the training examples, and harder: every beginning of a text is asked for the label, with some words "
    "exchanged, so that it may stay above the val_loss.",
    "accuracy": "Of all examples, the share to which the model gives the right label.",
    "precision": "Of the examples to which the model gave this label, the share that really has it.",
    "recall": "Of the examples that really have this label, the share to which the model gave it.",
    "F1": "Precision and recall in one number, which is low as soon as one of them is.",
    "macro F1": "The mean of F1 over the labels, so that a rare label counts as much as a frequent one. Accuracy can "
    "be high where a model ignores the rare ones; macro F1 cannot.",
    "TF-IDF": "Each word of a text counts by how often it is there (term frequency) and how rare it is elsewhere "
    "(inverse document frequency). A rule with one weight for each word and label then tells the label.",
    "yardstick": "A simple way to tell labels, without any training of a network, measured on the same examples. A "
    "model worth its time beats them all.",
}
_OF_PAIRS = {
    "source, target": "What is given, and what the model is to write: a sentence and its translation, say.",
    "BLEU": "How many of the words, and of the groups of 2, 3 and 4 words, that the model wrote stand in the expected "
    "text, too: from 0 for none to 100 for the very same text. Good translations that choose other words score far "
    "below 100, so it compares models on the same examples and says little across texts or languages.",
    "chrF": "The same idea with groups of up to 6 characters, from 0 to 100. It is fairer to languages with many "
    "endings.",
    "exact match": "The share of the examples for which the model wrote the expected text, letter for letter.",
    "loss": "How surprised the model is by the token of the target that really comes next, on average, in nats. Lower "
    "is better. train loss is on the training examples, val_loss on the validation examples.",
    "accuracy of the next token": "How often the token that the model finds likeliest is the next one of the target, "
    "given all those before it.",
    "beam search": "How the model looks for its answer: it keeps the few likeliest beginnings and lengthens them all, "
    "rather than the likeliest one alone.",
    "yardstick": "A simple way to answer, without any training of a network, measured on the same examples. A model "
    "worth its time beats them all.",
}
_NOT_OF_PAIRS = {"Kneser-Ney n-gram", "entropy", "bits per byte", "accuracy"}
_NOT_OF_LABELS = {*_NOT_OF_PAIRS, "perplexity"}
_EXAMPLES = (
    "The model learns from the training examples alone. The validation examples are kept away from it, and so show "
    "what it can do with ones that it has never seen."
)
TOO_GOOD = (
    "The best weights were chosen by the loss on these same validation examples, so these numbers are slightly too "
    "good. How good it is on others:"
)


def glossary(run: Recorded) -> dict[str, str]:
    """The words of a run's report, explained."""
    known = words.WORDS | (_OF_FINE_TUNING if "base" in run.made_with else {})
    if not run.task:
        return known
    own, without = (_OF_LABELS, _NOT_OF_LABELS) if run.task == CLASSIFICATION else (_OF_PAIRS, _NOT_OF_PAIRS)
    named = {name: text for name, text in (known | own).items() if name not in without or name in own}
    part = "training and validation text"
    return {
        name.replace(part, "training and validation examples"): _EXAMPLES if name == part else text
        for name, text in named.items()
    }


def yardstick_in_words(name: str) -> str:
    """What a yardstick of a task does."""
    return "what was trained here" if name == THIS_MODEL else _YARDSTICKS.get(name, "")


def learned(run: Recorded) -> tuple[bool, str]:
    """(Whether the run learned anything, and how one sees it.)"""
    best, metrics = run.best, run.task_scores.get("metrics", {})
    if not run.task or best is None or (not metrics and run.task != CLASSIFICATION):
        return words.learned(run)
    beside = {one.name: one.metrics for one in run.task_ranked}
    if run.task == CLASSIFICATION:
        return _learned_labels(run, metrics, beside.get(MAJORITY))
    name = run.task_metric
    same = f"{told('exact_match', metrics['exact_match'])} of what it wrote is the expected text, letter for letter"
    now = same if name == "exact_match" else f"{TITLES[name]} is {told(name, metrics[name])}, and {same}"
    copy = beside.get(COPY, {}).get(name)
    if copy is not None and metrics[name] <= copy:
        return False, f"Hardly: {now}. To copy the source as it is gives {TITLES[name]} {told(name, copy)}."
    start = f"; to copy the source gives {told(name, copy)}" if copy is not None else ""
    return True, f"Yes: {now}{start}."


def _learned_labels(run: Recorded, metrics: dict[str, float], majority: dict[str, float] | None) -> tuple[bool, str]:
    assert run.best
    accuracy = metrics["accuracy"] if metrics else float(run.best["val_accuracy"])
    now = f"it gives the right label to {100 * accuracy:.1f} % of the validation examples"
    if majority:
        always = f"always answering with the most frequent label is right for {100 * majority['accuracy']:.1f} %"
        gained, left = metrics["macro_f1"] - majority["macro_f1"], 1 - majority["macro_f1"]
        is_learned, some = gained > _LEARNED * left, gained > 0
    else:
        number = len(run.labels)
        always = f"guessing blindly among {number} labels would be right for {100 / max(number, 1):.1f} %"
        is_learned = run.best["val_loss"] < 0.98 * math.log(max(number, 2))
        some = is_learned
    begin = "Yes" if is_learned else "Hardly" if some else "No"
    return is_learned, f"{begin}: {now}; {always}."


def compared(run: Recorded) -> str:
    """How good the model is beside the best of the simple methods, and what it forgot of another text."""
    text = compared_task(run) if run.task and run.best else words.compared(run)
    return f"{text} {forgetting(run)}".rstrip()


def compared_task(run: Recorded) -> str:
    """How good the model is at its task beside the best of the simple methods."""
    metrics, best = run.task_scores.get("metrics", {}), run.best_simple
    if not metrics:
        return "It was not scored, which comes at the end of a run that is left to finish; slm-evaluate does it, too."
    name = run.task_metric
    if best is None:
        return f"{TITLES[name][0].upper()}{TITLES[name][1:]} is {told(name, metrics[name])}; there are no yardsticks."
    numbers = f"{TITLES[name]} {told(name, metrics[name])} against {told(name, best.metrics[name])}; higher is better"
    of = f"; {best.told}" if best.told else ""
    other = f"{_ARTICLES.get(best.name, '')}{best.name} ({yardstick_in_words(best.name)}{of})"
    if metrics[name] == best.metrics[name]:
        return f"As good as {other}, the best of the simple methods: {numbers}."
    if may_be_chance(run.task_scores, best):
        few = f"With {run.task_scores['num_examples']:,} examples such a difference may be chance"
        return f"About as good as {other}, the best of the simple methods: {numbers}. {few}."
    if metrics[name] > best.metrics[name]:
        return f"Better than {other}, the best of the simple methods: {numbers}."
    return f"Not yet worth its training: it is not better than {other}: {numbers}."


def other_examples(run: Recorded) -> str:
    """The flags that name other examples, to evaluate on."""
    return "--data FILE --target_file FILE" if run.asked.get("target_file") else "--data FILE"


def chance(run: Recorded) -> str:
    """By how much chance moves the accuracy; "" where that cannot be told."""
    accuracy, number = run.task_scores["metrics"].get("accuracy", 0.0), run.task_scores["num_examples"]
    error = 100 * standard_error(accuracy, number)
    why = f"With {number:,} examples chance alone moves the accuracy by about {error:.1f} points either way"
    return f"{why} (the standard error)." if error else ""


def has_forgotten(run: Recorded) -> bool:
    """Whether another text is clearly worse at the kept weights than before the run."""
    now, then = (one.get("also_val_loss", math.nan) for one in (run.best or {}, run.before))
    return bool(now - then > _SAME * then)


def forgetting(run: Recorded) -> str:
    """By how much another text got worse or better while this one was learned; "" where none was evaluated on."""
    best = run.best or {}
    if "also_val_loss" not in best:
        return ""
    now, then = best["also_val_loss"], run.before.get("also_val_loss")
    text = f"On the other text{_named(run.asked.get('also_evaluate') or run.resolved.get('also_evaluate'))} "
    if then is None:
        return f"{text}its loss is {words.measure(now)} nats per token."
    change = words.measure(abs(now - then))
    is_same = not abs(now - then) > _SAME * then
    what = "it stayed as it was" if is_same else f"it got {'worse' if now > then else 'better'} by {change}"
    both = f"{text}its loss was {words.measure(then)} nats per token before this run and is {words.measure(now)} now: "
    shares = [100 * one.get("also_val_accuracy", math.nan) for one in (best, run.before)]
    if not all(map(math.isfinite, shares)):
        return f"{both}{what}."
    return (
        f"{both}{what}. Its first guess there is right for {shares[0]:.1f} % of the tokens; before, {shares[1]:.1f} %."
    )


def _named(names: str | Sequence[str] | None) -> str:
    shown = [names] if isinstance(names, str) else list(names or ())
    return f" ({', '.join(shown)})" if shown else ""


def missing(run: Recorded) -> list[str]:
    """What could not be measured, and why, a sentence each."""
    return [f"{one.rstrip('.')}." for one in run.task_scores.get("missing", ())]


def described(run: Recorded) -> str:
    """What kind of model it is, with its size."""
    whole = parts(run)
    size = f" of {words.count(whole.num_parameters)} parameters" if whole else ""
    if run.task == CLASSIFICATION:
        return f"A model{size} that tells which of {len(run.labels):,} labels a text has"
    if run.task:
        return f"A model{size} that writes a target for a source"
    return f"A language model{size}" if whole else "A model"


def parts(run: Recorded) -> Summary | None:
    """The modules of the run's model with their parameters; None where its settings do not tell them."""
    model = _built(run)
    return summary(model) if model else None


def _built(run: Recorded) -> LanguageModel | None:
    """A model as the run's, whose weights take no memory."""
    if run.model_config is None:
        return None
    with torch.device("meta"), Undrawn():
        if run.task == CLASSIFICATION:
            return Classifier(run.model_config, len(run.labels))
        return LanguageModel(run.model_config)


def _trained(run: Recorded) -> str:
    """What of a model that the run started from was trained."""
    model = _built(run)
    how = run.resolved.get("trainable", "all")
    if model is None:
        return str(how)
    whole = sum(parameter.numel() for parameter in model.parameters())
    head = sum(p.numel() for p in model.class_head.parameters()) if isinstance(model, Classifier) else 0
    if how == "head":
        return f"the class head alone: {head:,} of {whole:,} parameters"
    if how != "lora":
        return f"all of it: {whole:,} parameters"
    rank = int(run.resolved.get("lora_rank") or 0)
    linears = [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    beside = rank * sum(linear.in_features + linear.out_features for linear in linears)
    also = f", and the class head, {head:,} parameters" if head else ""
    return (
        f"small matrices of rank {rank} beside its own (LoRA): {beside:,} parameters{also}; the other "
        f"{whole - head:,} stayed as they were"
    )


def facts(run: Recorded) -> list[tuple[str, str]]:
    """What was learned from what, in rows: the text or the examples, and the model that it started from."""
    return [*(_examples(run) if run.task else words.facts(run)), *start(run)]


def _examples(run: Recorded) -> list[tuple[str, str]]:
    made = run.made_with
    is_labels = run.task == CLASSIFICATION
    rows = [("task", "to tell the label of a text" if is_labels else "to write the target of a source")]
    if is_labels:
        labels = run.labels
        more = f" and {len(labels) - _LABELS_TOLD:,} more" if len(labels) > _LABELS_TOLD else ""
        rows.append(("labels", f"{len(labels):,}: {', '.join(labels[:_LABELS_TOLD])}{more}"))
    rows += [("examples", str(made["data_name"]))] if "data_name" in made else []
    rows += [("", str(line)) for line in made.get("found", ())]
    if "train_examples" in made:
        passes = f"{run.passes:.3g}" if run.passes else ""
        read = "" if not passes else ", read once" if passes == "1" else f", read {passes} times"
        tokens = f" ({made['train_tokens']:,} tokens)" if "train_tokens" in made else ""
        rows.append(("training examples", f"{made['train_examples']:,}{tokens}{read}"))
        number, split = f"{made['val_examples']:,}", str(made["split"])
        rows.append(("validation examples", split if split.startswith(f"{number} ") else f"{number}: {split}"))
    if run.resolved.get("class_weights") == "balanced":
        rows.append(("weights", "in the loss each label counts the same, however rare it is"))
    if not is_labels and "num_beams" in run.resolved:
        beams = run.resolved["num_beams"]
        rows.append(("answers", f"found by a search with {beams} beam{'s' * (beams != 1)}"))
    return rows


def start(run: Recorded) -> list[tuple[str, str]]:
    """The trained model that the run started from, and what of it was trained, in rows."""
    base = run.made_with.get("base")
    if not isinstance(base, dict):
        return []
    folder, name = os.path.split(str(base.get("path", "")))
    rows = [("base model", folder if name == "model.pt" and folder else os.path.join(folder, name))]
    rows.append(("trained of it", _trained(run)))
    if also := run.asked.get("also_evaluate") or run.resolved.get("also_evaluate"):
        rows.append(("the other text", _named(also).strip(" ()")))
    return rows
