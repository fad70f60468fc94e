"""What to change after a run: findings with their flags, and those that only a task or a start from a model has."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from slm.metrics.recorded import Recorded
from slm.metrics.task_evaluation import TITLES, may_be_chance, told
from slm.task_config import CLASSIFICATION

_RARE, _HARDLY_FOUND = 0.5, 0.5  # of the examples that a label has on average, and of those of it that are found


@dataclass(frozen=True)
class Finding:
    """Something that a run's numbers show: what it is, how one sees it, and what to change."""

    name: str  # such as "overfitting"
    title: str
    told: str
    advice: str
    flag: str  # as for slm-train, with its value; two where one alone would not do
    is_trouble: bool = True  # else it is room to learn more


def learned_from(run: Recorded) -> str:
    """What the run read, in a word."""
    return "examples" if run.task else "text"


def more_data(run: Recorded) -> str:
    """The flags for the same data and more."""
    names: Sequence[str] = run.asked.get("data") or run.resolved.get("data") or ()
    flags: list[str] = []
    if run.task and len(names) == 1 and names[0].partition(":")[0] == "stories":
        return f"--data stories:{max(1, math.ceil(5e-6 * run.made_with.get('text_bytes', 0)))}MB"
    for flag, files in (("--data", names), ("--target_file", run.asked.get("target_file") or ())):
        if flag == "--data" or files:
            ending = os.path.splitext(files[0])[1] if run.task and files else ".txt"
            flags += [flag, *files[: len(names)], f"more{ending}", *files[len(names) :]]  # then those of the validation
    return shlex.join(flags)


def longer(run: Recorded) -> str:
    """The flag for about twice as long a run."""
    if minutes := run.resolved.get("max_minutes"):
        return f"--max_minutes {2 * minutes:g}"
    if "max_steps" in run.asked:
        return f"--max_steps {2 * run.step}"
    return f"--epochs {2 * run.resolved.get('epochs', 5)}"


def next_step_from_base(run: Recorded) -> Finding:
    """What is worth trying after a healthy run that started from a trained model, whose sizes are given."""
    trained = {"head": "Only the class head was", "lora": "Only small matrices beside the model were"}
    if part := trained.get(run.resolved.get("trainable", "")):
        told = f"{part} trained. All of the model can learn more, and forgets more of what it knew:"
        return Finding("more of it", "Healthy", "", told, "--trainable all")
    told = f"The loss has nearly stopped falling: more {learned_from(run)} would teach more. Add some:"
    return Finding("more data", "Healthy", "", told, more_data(run))


def worse_than_simple(run: Recorded) -> Iterator[Finding]:
    """The model does its task worse than the best of the simple methods."""
    best, name = run.best_simple, run.task_metric
    if best is None or run.status != "finished" or run.task_scores["metrics"][name] >= best.metrics.get(name, 0.0):
        return
    if may_be_chance(run.task_scores, best):
        return
    if run.best is run.evaluations[-1]:
        advice, flag = "Train longer:", longer(run)
    elif run.resolved.get("init_from"):
        advice, flag = "More examples help most. Add some:", more_data(run)
    else:
        advice = "A model that has read much text of this kind needs fewer examples. Train one, and start from it:"
        flag = "--init_from runs/base"
    yield Finding(
        "worse than a simple method",
        "A simple method does the task better",
        f"Its {TITLES[name]} of {told(name, run.task_scores['metrics'][name])} is below the "
        f'{told(name, best.metrics[name])} of the yardstick "{best.name}", which is no network.',
        advice,
        flag,
    )


def rare_labels(run: Recorded) -> Iterator[Finding]:
    """Labels with few examples are hardly found."""
    scores = run.task_scores.get("scores") or {}
    if run.task != CLASSIFICATION or not scores or run.resolved.get("class_weights") != "none":
        return
    labels = [one for one in scores["by_label"] if one["support"]]
    few = _RARE * sum(one["support"] for one in labels) / max(len(labels), 1)
    missed = [one for one in labels if one["support"] < few and one["recall"] < _HARDLY_FOUND]
    if missed:
        names = ", ".join(f"{one['label']!r:.40}" for one in missed[:3]) + (", ..." if len(missed) > 3 else "")
        found = round(sum(one["recall"] * one["support"] for one in missed))
        yield Finding(
            "rare labels",
            "Rare labels are hardly found",
            f"Of the {sum(one['support'] for one in missed):,} validation examples with the rare "
            f"label{'s' * (len(missed) > 1)} {names} only {found:,} got it.",
            "Let all labels count the same, however rare:",
            "--class_weights balanced",
            is_trouble=False,
        )
