"""Laws of the diagnosis: a trouble is found in a run made to have it, none in a healthy one, and the advice helps."""

from __future__ import annotations

import functools
import itertools
import math
import random
import shlex
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import SMALL, make_text
from hypothesis import given, settings
from hypothesis import strategies as st

import slm
from slm.cli.train import make_parser
from slm.config import FIELDS
from slm.metrics import diagnosis
from slm.metrics.diagnosis import MANY_EPOCHS, SEEN_OFTEN, Finding, diagnose, next_step
from slm.metrics.pages import pages_of
from slm.metrics.pages.comparison import comparison_page
from slm.metrics.plots import plot
from slm.metrics.recorded import Record, Recorded

DRAW = random.Random(1)
NAMES = [
    "mia",
    "tom",
    "the",
    "a",
    "cat",
    "ball",
    "park",
    "went",
    "to",
    "said",
    "happy",
    "sad",
    "with",
    "and",
    "then",
    "was",
]
STORIES = [f"Once upon a time {' '.join(DRAW.choice(NAMES) for _ in range(20))}. The end." for _ in range(300)]
RANDOM = "".join(DRAW.choice("abcdefgh ") for _ in range(20000))  # nothing in it but how frequent each letter is
TEXTS = {"words": [make_text(6000)], "few words": [make_text(240)], "stories": STORIES, "random": [RANDOM]}
TEXTS["dummy"] = "dummy"  # type: ignore[assignment]
LONG = {"max_steps": 300, "log_every": 5}
GOOD = {**LONG, "learning_rate": 1e-2}
OVERFITTING = {"max_steps": 200, "recipe": "modern", "embed_dim": 48, "hidden_dim": 64, "num_layers": 2}


@functools.cache
def _trained(text: str, keys: tuple[tuple[str, Any], ...]) -> Recorded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = slm.train(TEXTS[text], **{**SMALL, "model_dir": tempfile.mkdtemp(), **dict(keys)})
    return run.recorded


def trained(text: str, **keys: Any) -> Recorded:
    """What a run recorded; each is made once."""
    return _trained(text, tuple(sorted(keys.items())))


def flags(found: Finding) -> dict[str, Any]:
    """The settings that the flag of a finding sets, as slm-train understands it."""
    return make_parser(everything=False).parse(shlex.split(found.flag))


def names(run: Recorded) -> list[str]:
    return [found.name for found in diagnose(run)]


def only(run: Recorded, name: str) -> Finding:
    (found,) = (found for found in diagnose(run) if found.name == name)
    return found


def last_loss(run: Recorded) -> float:
    return float(run.evaluations[-1]["val_loss"])


def followed(text: str, keys: dict[str, Any], name: str) -> tuple[Recorded, Recorded]:
    """The run with a trouble, and the one that does as it is told."""
    run = trained(text, **keys)
    return run, trained(text, **{**keys, **flags(only(run, name))})


# Real runs.


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("words", {"max_steps": 600, "learning_rate": 1e-2}),
        ("words", {**GOOD, "seed": 7}),
        ("words", {**GOOD, "schedule": "constant"}),
        ("words", {**LONG, "recipe": "modern"}),
        ("stories", {**GOOD, "max_steps": 400}),
        ("stories", {**LONG, "learning_rate": 3e-2, "log_every": 10}),
        ("stories", {**LONG, "recipe": "modern", "seed": 2}),
        ("random", {**LONG, "learning_rate": 1e-3}),
    ],
)
def test_no_trouble_is_found_in_a_healthy_run(text: str, keys: dict[str, Any]) -> None:
    run = trained(text, **keys)
    found = [one.name for one in diagnose(run) if one.is_trouble]
    # Of words drawn at random counting learns all that there is, and a small model in a second not more.
    counting = min(one["loss"] for one in run.yardsticks if one["loss"] is not None)
    assert run.best is not None
    assert found == (["no better than counting"] if found and run.best["val_loss"] >= counting else [])


@pytest.mark.parametrize(
    ("keys", "sign"),
    [
        ({"learning_rate": 1.0}, "the training loss soon fell to"),
        ({"learning_rate": 10.0}, "the training loss rose from 3.1"),
        ({"learning_rate": 10.0}, "% of the steps after the warm-up had a gradient beyond the limit of 1 and were cut"),
        ({"learning_rate": 0.3, "schedule": "constant"}, "the training loss jumped up"),
    ],
)
def test_a_learning_rate_that_is_too_high_is_found_and_a_lower_one_is_better(keys: dict[str, Any], sign: str) -> None:
    run, lower = followed("words", {**LONG, **keys}, "learning rate too high")
    assert sign.lower() in only(run, "learning rate too high").told.lower()
    assert lower.resolved["learning_rate"] < run.resolved["learning_rate"]
    assert last_loss(lower) < last_loss(run)
    assert "learning rate too high" not in names(lower)
    assert names(run)[0] == "learning rate too high"


def test_a_learning_rate_that_is_too_low_is_raised_until_the_run_is_healthy() -> None:
    keys, losses = {**LONG, "learning_rate": 1e-5}, []
    for _ in range(2):
        run = trained("words", **keys)
        found = only(run, "learning rate too low")
        losses.append(last_loss(run))
        keys |= flags(found)
        assert keys["learning_rate"] == pytest.approx(10 * run.resolved["learning_rate"])
        unigram = next(one for one in run.yardsticks if one["name"] == "unigram")
        assert f"{unigram['loss']:.2f}" in found.told
    run = trained("words", **keys)
    assert not [name for name in names(run) if name.startswith("learning rate")]
    assert last_loss(run) < losses[1] < losses[0]


def test_a_run_that_diverges_finishes_with_the_rate_that_is_advised() -> None:
    run, lower = followed("words", {"max_steps": 20, "learning_rate": 1e30, "max_grad_norm": 0}, "diverged")
    assert names(run) == ["diverged"]
    assert run.status == "diverged" and lower.status == "finished"
    assert "no finite number in 5 steps in a row" in only(run, "diverged").told
    assert "no limit" in only(run, "diverged").told
    limited = Recorded(run.name, run.records, run.resolved | {"max_grad_norm": 1.0})
    assert "no limit" not in only(limited, "diverged").told
    assert math.isfinite(last_loss(lower))


def test_overfitting_is_dated_and_dropout_lessens_it() -> None:
    run, dropped = followed("few words", OVERFITTING, "overfitting")
    found = only(run, "overfitting")
    best = min(run.evaluations, key=lambda record: record["val_loss"])
    assert best["step"] < run.step
    assert found.title == f"Overfitting since step {best['step']:,}"
    for loss in (best["val_loss"], last_loss(run)):
        assert f"{loss:.3f}" in found.told
    assert last_loss(dropped) < last_loss(run)
    assert 0 < dropped.resolved["dropout"] < 1


def test_a_vocabulary_that_is_too_large_for_the_text_is_found() -> None:
    keys = {"tokenizer": "bpe", "max_steps": 30, "vocab_size": 2000}
    run, smaller = followed("words", keys, "large vocabulary")
    size, tokens = run.resolved["vocab_size"], run.made_with["train_tokens"]
    told = only(run, "large vocabulary").told
    assert f"{size:,} entries" in told and f"{tokens:,} tokens" in told and f"{tokens / size:.1f} times" in told
    assert smaller.resolved["vocab_size"] < size
    assert "large vocabulary" not in names(smaller)  # no smaller one is advised than there can be
    assert "large vocabulary" not in names(trained("words", max_steps=30))


@pytest.mark.parametrize(
    "keys", [{"max_steps": 100}, {"max_steps": None, "epochs": 1, "batch_size": 32}], ids=["steps", "epochs"]
)
def test_a_run_that_ended_too_soon_is_better_when_it_is_longer(keys: dict[str, Any]) -> None:
    run, longer = followed("words", {"learning_rate": 1e-2, **keys}, "underfitting")
    assert not only(run, "underfitting").is_trouble
    assert longer.step > 1.9 * run.step
    assert last_loss(longer) < last_loss(run)


def test_text_that_was_read_too_often_is_told() -> None:
    run = trained("few words", **OVERFITTING)
    passes = run.logs[-1]["tokens_seen"] / run.made_with["train_tokens"]
    assert passes > MANY_EPOCHS
    assert only(run, "repeated data").title == f"The text was read {passes:.0f} times"
    assert "repeated data" not in names(trained("words", max_steps=30))


def test_a_model_that_counting_beats_is_told_to_train_on() -> None:
    keys = {**LONG, "learning_rate": 1e-3}
    run, longer = followed("words", keys, "no better than counting")
    (found,) = diagnose(run)
    best = min((one for one in run.yardsticks if one["loss"]), key=lambda one: one["loss"])
    assert best["name"] in found.told and f"{best['loss']:.3f}" in found.told
    assert last_loss(longer) < last_loss(run)


def test_random_tokens_are_not_judged_and_a_text_is_advised() -> None:
    run = trained("dummy", max_steps=30)
    assert diagnose(run) == []
    found = next_step(run)
    assert flags(found) == {"data": ["stories"]}
    assert "Random" in found.title


def test_an_unfinished_run_is_advised_to_go_on() -> None:
    steps = itertools.count()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = slm.train(TEXTS["words"], should_stop=lambda: next(steps) > 8, **SMALL).recorded
    assert run.status == "interrupted"
    for one in (run, Recorded(run.name, run.records[:-1], run.resolved, run.made_with, run.asked)):
        assert diagnose(one) == []
        assert flags(next_step(one)) == {"resume": "must"}


def test_a_healthy_run_is_advised_a_larger_model_or_more_time() -> None:
    run = trained("words", max_steps=600, learning_rate=1e-2)
    assert flags(next_step(run)) == {"embed_dim": 2 * run.resolved["embed_dim"]}
    planned = Recorded(run.name, run.records, {**run.resolved, "max_minutes": 2.0}, run.made_with)
    assert flags(next_step(planned)) == {"max_minutes": 6.0}


# Made-up records, for the borders.


def log(step: int, loss: float, **more: Any) -> Record:
    return {"step": step, "epoch": 1, "train_loss": loss, "tokens_seen": 100 * step, "elapsed_seconds": step, **more}


def evaluation(step: int, loss: float) -> Record:
    perplexity = math.exp(min(loss, 700))
    return {"step": step, "epoch": 1, "val_loss": loss, "val_accuracy": 0.1, "val_perplexity": perplexity}


def ended(step: int, status: str = "finished") -> Record:
    return {"step": step, "status": status, "message": ""}


def measured(step: int, **losses: float) -> Record:
    one = {"bits_per_byte": None, "told": "", "accuracy": None, "top5_accuracy": None}
    return {"step": step, "yardsticks": [{**one, "name": name, "loss": loss} for name, loss in losses.items()]}


def recorded(*records: Record, made_with: dict[str, Any] | None = None, **resolved: Any) -> Recorded:
    return Recorded("run", records, {"learning_rate": 1e-3, "max_grad_norm": 1.0, **resolved}, made_with or {})


def falling(steps: int, begin: float = 3.0, end: float = 2.9) -> list[Record]:
    """A training loss that falls evenly."""
    return [log(step, begin + (end - begin) * step / steps) for step in range(10, steps + 1, 10)]


@pytest.mark.parametrize(
    ("val", "train_end", "is_found"),
    [
        ((2.0, 2.01, 2.0201), 1.0, True),
        ((2.0, 2.01, 2.0199), 1.0, False),  # less than 1 % above the best
        ((2.0, 2.0201), 1.0, False),  # one evaluation may be noise
        ((2.0, 2.5, 2.6), 2.99, False),  # the training loss did not fall
        ((2.0, 2.5, 2.6), 3.5, False),
        ((2.0, 2.5, math.nan), 1.0, False),
    ],
)
def test_overfitting_needs_a_val_loss_that_rises_while_the_train_loss_falls(
    val: Sequence[float], train_end: float, is_found: bool
) -> None:
    evaluations = [evaluation(50 + 25 * number, loss) for number, loss in enumerate(val)]
    records = [*falling(100, 3.0, train_end), *evaluations, ended(100)]
    run = recorded(*sorted(records, key=lambda record: record["step"]))
    assert ("overfitting" in names(run)) == is_found


@pytest.mark.parametrize(("dropout", "advised"), [(0.0, 0.2), (0.2, 0.3), (0.45, 0.5), (0.5, None), (0.8, None)])
def test_dropout_is_advised_as_far_as_it_can_be_raised(dropout: float, advised: float | None) -> None:
    val = [evaluation(50, 2.0), evaluation(75, 2.5), evaluation(100, 2.6)]
    found = only(recorded(*falling(100, 3.0, 1.0), *val, ended(100), dropout=dropout), "overfitting")
    assert flags(found) == ({"dropout": advised} if advised else {"patience": 3})


def rising(factor: float) -> list[float]:
    return [3.0, 2.9, 2.8, 3.0 * factor, 2.5]


def jumping(heights: Sequence[float], noise: float = 0.005) -> list[float]:
    """A loss of about 1 that goes up and down by its noise, and jumps to some heights."""
    quiet = [1 + noise * (number % 2) for number in range(8)]
    return [3.0, 2.0, *itertools.chain.from_iterable([*quiet, height] for height in heights), *quiet]


@pytest.mark.parametrize(
    ("losses", "is_found"),
    [
        (rising(1.11), True),
        (rising(1.09), False),
        (jumping([1.2, 1.3]), True),
        (jumping([1.2]), False),  # once may happen
        (jumping([1.2, 1.09]), False),
        (jumping([1.2, 1.3], noise=0.08), False),  # no more than the batches differ
        (jumping([math.nan, 1.2]), False),
    ],
)
def test_a_loss_that_jumps_beyond_its_noise_is_a_sign_of_too_high_a_learning_rate(
    losses: Sequence[float], is_found: bool
) -> None:
    run = recorded(*(log(10 * number + 1, loss) for number, loss in enumerate(losses)), ended(10 * len(losses)))
    assert ("learning rate too high" in names(run)) == is_found


@pytest.mark.parametrize(
    ("norm", "share", "limit", "is_found"),
    [
        (3.1, 0.95, 1.0, True),
        (2.9, 0.95, 1.0, False),
        (3.1, 0.85, 1.0, False),
        (3.1, 0.95, 2.0, False),
        (9, 1, 0, False),
    ],
)
def test_gradients_far_beyond_their_limit_are_a_sign_of_too_high_a_learning_rate(
    norm: float, share: float, limit: float, is_found: bool
) -> None:
    logs = [
        log(step, 3 - step / 1000, grad_norm=norm, clipped_steps=round(share * (step - 120)))
        for step in range(120, 321, 20)
    ]
    begin = log(1, 3.0, grad_norm=99.0, clipped_steps=0)  # in the warm-up, which does not count
    assert (
        "learning rate too high" in names(recorded(begin, *logs, ended(320), max_grad_norm=limit, warmup_steps=119))
    ) == is_found


@pytest.mark.parametrize(
    ("reached", "late", "bigram", "found"),
    [
        (50, 2.57, 2.0, None),
        (50, 2.59, 2.0, "learning rate too high"),  # the mean with 3.0 is above 93 % of 3.0
        (50, 2.59, 2.8, None),  # nothing to learn beyond counts
        (51, 2.0, 2.0, "learning rate too low"),  # a quarter of the steps is 50
        (None, 3.5, 2.0, "learning rate too low"),
        (None, 3.5, 2.8, None),
    ],
)
def test_how_fast_the_loss_passes_that_of_counts_tells_of_the_learning_rate(
    reached: int | None, late: float, bigram: float, found: str | None
) -> None:
    logs = [log(1, 4.0), *([log(reached, 3.0)] if reached else []), log(60, late), log(200, late)]
    run = recorded(*logs, evaluation(200, late), measured(200, unigram=3.0, other=bigram), ended(200))
    rates = [name for name in names(run) if name.startswith("learning rate")]
    assert rates == ([found] if found else [])
    # With fewer steps nothing can be said.
    short = recorded(*logs[:-1], log(199, late), measured(199, unigram=3.0, other=bigram), ended(199))
    assert not [name for name in names(short) if name.startswith("learning rate")]


@pytest.mark.parametrize(
    ("before", "found"), [(1.026, ["underfitting"]), (1.024, []), (0.99, [])], ids=["falls", "has settled", "rises"]
)
def test_a_val_loss_that_still_falls_by_more_than_a_fortieth_shows_room(before: float, found: list[str]) -> None:
    val = [evaluation(25, 3.0), evaluation(50, 2.0), evaluation(75, before), evaluation(100, 1.0)]
    run = recorded(*falling(100), *val, ended(100))
    assert names(run) == found
    assert "underfitting" not in names(recorded(*falling(100), *val[1:], ended(100)))
    assert "underfitting" not in names(recorded(*falling(100), *val, ended(100, "interrupted")))


@pytest.mark.parametrize(
    ("asked", "resolved", "flag"),
    [
        ({}, {"epochs": 4}, {"epochs": 8}),
        ({"max_steps": 100}, {"epochs": 5, "max_steps": 100}, {"max_steps": 200}),
        ({"max_minutes": 1.5}, {"epochs": 5, "max_minutes": 1.5}, {"max_minutes": 3.0}),
    ],
)
def test_longer_is_told_in_what_was_asked_for(
    asked: dict[str, Any], resolved: dict[str, Any], flag: dict[str, Any]
) -> None:
    val = [evaluation(25, 3.0), evaluation(50, 2.5), evaluation(75, 2.0), evaluation(100, 1.0)]
    run = recorded(*falling(100), *val, ended(100), **resolved)
    assert flags(only(Recorded(run.name, run.records, run.resolved, {}, asked), "underfitting")) == flag


@pytest.mark.parametrize(("tokens", "is_found"), [(1000, False), (999, True)])
def test_more_than_ten_passes_are_many(tokens: int, is_found: bool) -> None:
    records = [*falling(100), evaluation(50, 2.0), evaluation(100, 2.0), ended(100)]
    assert (
        "repeated data" in names(recorded(*records, made_with={"train_tokens": tokens}, data=["a.txt"]))
    ) == is_found
    assert "repeated data" not in names(recorded(*records, made_with={"train_tokens": 1}, max_minutes=1.0))


@pytest.mark.parametrize(
    ("tokenizer", "short", "found"), [("bpe", 0, []), ("bpe", 1, ["large vocabulary"]), ("char", 1, [])]
)
def test_an_entry_should_occur_fifty_times(tokenizer: str, short: int, found: list[str]) -> None:
    made = {"train_tokens": SEEN_OFTEN * 5000 - short}
    run = recorded(*falling(100), ended(100), made_with=made, tokenizer=tokenizer, vocab_size=5000)
    assert names(run) == found
    if found:
        assert flags(diagnose(run)[0])["vocab_size"] <= made["train_tokens"] / SEEN_OFTEN


# Whatever the records.

ODD = st.one_of(st.floats(), st.floats(0, 10), st.none())
MORE = dict.fromkeys(("lr", "grad_norm", "tokens_per_second", "mfu"), ODD) | {"clipped_steps": st.integers(0, 99)}
LOGS = st.fixed_dictionaries({"train_loss": ODD}, optional=MORE)
EVALUATIONS = st.fixed_dictionaries(
    {"val_loss": ODD, "val_accuracy": ODD, "val_perplexity": ODD}, optional={"val_bits_per_byte": ODD}
)
SAMPLES = st.fixed_dictionaries({"prompt": st.text(max_size=5), "sample": st.text(max_size=20)})
DECISIONS = st.fixed_dictionaries({"max_steps": st.integers(1, 400), "decay_steps": st.integers(1, 400)})
YARDSTICKS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(("uniform", "unigram", "xz", "Kneser-Ney 5-gram", "entropy of the source")),
            "bits_per_byte": st.none() | st.floats(0, 9),
            "loss": st.none() | st.floats(0, 9),
            "told": st.text(max_size=5),
            "accuracy": st.none() | st.floats(0, 1),
            "top5_accuracy": st.none(),
        }
    ).filter(lambda one: one["name"] != "unigram" or one["loss"] is not None),
    max_size=5,
)
ENDINGS = st.sampled_from(("finished", "interrupted", "diverged"))
RESOLVED = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(1e-9, 1e9),
        "max_grad_norm": st.sampled_from((0.0, 1.0)),
        "vocab_size": st.integers(1, 10000),
        "tokenizer": st.sampled_from(("bpe", "char")),
        "dropout": st.floats(0, 0.99),
        "epochs": st.integers(1, 9),
        "max_minutes": st.floats(0.5, 1440),
        "warmup_steps": st.none() | st.integers(0, 50),
        "embed_dim": st.integers(1, 64),
        "data": st.none() | st.lists(st.text(max_size=5), max_size=2),
    },
)
MADE_WITH = st.fixed_dictionaries(
    {}, optional={"data_name": st.text(max_size=9) | st.just("dummy"), "data_fingerprint": st.text(max_size=9)}
) | st.builds(
    lambda name, tokens: {"data_name": name, "train_tokens": tokens, "val_tokens": 3, "split": "its end"},
    st.text(max_size=9),
    st.integers(1, 10**6),
)


@st.composite
def runs(draw: Callable[..., Any]) -> Recorded:
    """The records of a run in the order in which training writes them; any number may be none."""
    records: list[Record] = []
    step = tokens = 0
    for record in draw(st.lists(LOGS | EVALUATIONS | SAMPLES | DECISIONS, max_size=30)):
        if "train_loss" in record:
            step += draw(st.integers(1, 20))
            tokens += draw(st.integers(0, 500))
        elif "val_loss" in record:
            step += draw(st.integers(1, 5))
        seen = {"tokens_seen": tokens, "elapsed_seconds": step / 7} if "train_loss" in record else {}
        records.append({"step": step, "epoch": 1, **record, **seen})
    if draw(st.booleans()):
        records.append({"step": step, "yardsticks": draw(YARDSTICKS)})
    if draw(st.booleans()):
        records.append(ended(step, draw(ENDINGS)))
    asked = draw(st.sampled_from(({}, {"max_steps": 9}, {"epochs": 2})))
    return Recorded(draw(st.sampled_from(("run", ".", "a/b/"))), records, draw(RESOLVED), draw(MADE_WITH), asked)


@settings(max_examples=80, deadline=None)
@given(run=runs())
def test_every_run_can_be_told_of_whatever_its_records(run: Recorded) -> None:
    found = [*diagnose(run), next_step(run)]
    for one in found:
        assert one.name and one.title and one.advice
        assert set(flags(one)) <= set(FIELDS)
    pages = pages_of(run)
    assert all(text.endswith("\n") for text in pages.values())
    assert comparison_page([run, run], ["a verdict"])
    if run.logs or run.evaluations:
        assert len(plot([run]).axes) == 2


def test_a_run_without_any_record_has_no_trouble() -> None:
    assert diagnose(Recorded("run", [])) == []


@pytest.mark.parametrize(("rate", "factor", "told"), [
    (1e-5, 10, "0.0001"), (0.01, 10, "0.02"), (0.1, 0.1, "0.001"), (30.0, 1 / 3, "0.001"), (0.0009, 1 / 3, "0.0003"),
])  # fmt: skip
def test_a_rate_that_is_advised_is_on_the_right_side_and_not_absurd(rate: float, factor: float, told: str) -> None:
    run = Recorded("run", [], {"learning_rate": rate})
    assert diagnosis._rate(run, factor) == f"--learning_rate {told}"
    assert (float(told) > rate) == (factor > 1)
    bounded = Recorded("run", [], {"learning_rate": rate, "min_learning_rate": 2 * float(told)})
    assert diagnosis._rate(bounded, factor) == f"--learning_rate {told} --min_learning_rate 0"


@pytest.mark.parametrize(("accuracy", "is_told"), [(1.0, False), (0.99, True)])
def test_jumps_on_the_way_to_all_labels_right_are_no_trouble(
    accuracy: float, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "_signs_of_high", lambda run: ["the loss jumped"])
    task = {"name": "classification", "template": ["{text}"], "labels": ["a", "b"]}
    best = {"step": 600, "epoch": 5, "val_loss": 0.01, "val_accuracy": accuracy, "val_perplexity": 1.01}
    ending = {"step": 600, "status": "finished", "message": ""}
    run = Recorded("run", [best, ending], {"task": "classification", "max_steps": 600}, {"task": task})
    assert ("learning rate too high" in [one.name for one in diagnose(run)]) == is_told


@pytest.mark.parametrize(("accuracy", "advice"), [(1.0, "--data a.tsv more.tsv"), (0.99, "--max_steps 1200")])
def test_who_gets_all_labels_right_is_not_told_to_train_longer(accuracy: float, advice: str) -> None:
    task = {"name": "classification", "template": ["{text}"], "labels": ["a", "b"]}
    found = [
        {"step": step, "epoch": 1, "val_loss": 60 / step, "val_accuracy": accuracy, "val_perplexity": 1.0}
        for step in range(30, 601, 30)
    ]
    asked = {"task": "classification", "max_steps": 600, "data": ["a.tsv"]}
    run = Recorded("run", [*found, {"step": 600, "status": "finished", "message": ""}], asked, {"task": task}, asked)
    assert [one.name for one in diagnose(run)] == ([] if accuracy == 1 else ["underfitting"])
    flags = [one.flag for one in diagnose(run)] or [diagnosis.next_step(run).flag]
    assert flags == [advice]
