"""What the curves of a run say about it, in plain words, each with the one setting to change."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator

from slm.config import TrainConfig
from slm.metrics.advice import Finding as Finding
from slm.metrics.advice import learned_from, longer, more_data, next_step_from_base, rare_labels, worse_than_simple
from slm.metrics.recorded import Record, Recorded, curve
from slm.task_config import CLASSIFICATION

# Also the limits of what is warned of before a run.
MANY_EPOCHS = 10  # up to 4 passes learn nearly as much as new text would, beyond about 16 little (Muennighoff 2023)
SEEN_OFTEN = 50  # times that an entry of the vocabulary should occur in the training text, on average

# The limits below were set on runs made to show each trouble and on healthy ones, of characters, words and stories.
_RISE = 0.01  # of val_loss above its best, and of the train loss below what it was then: overfitting and not noise
_STILL_FALLING = 0.025  # of val_loss, in the last quarter of the steps
_SPIKE = 0.1  # of the loss, above the lowest so far
_SPIKE_OF_LABELS = 0.5  # of the loss at the beginning; a batch has but one target for each text, and soon low losses
_BOUNCES = 3.0  # times the usual change of val_loss on examples, of which there may be few
_NOISE = 5.0  # times the usual change from one record to the next, which is larger the fewer tokens a batch has
_STRONG_PULL = 3.0  # times the limit of gradients
_MOSTLY = 0.9  # of the steps
_ENOUGH_STEPS = 200  # to judge how fast the loss passed that of token counts
_LATE, _STUCK_AT, _STUCK = 0.25, 0.3, 0.93  # shares of the steps, and of the loss of token counts
_LIKELY_RATES = 0.001, 0.02  # one that works nearly always, and the highest that ever does, about
_DUMMY = "dummy"

Points = list[tuple[float, float]]


def diagnose(run: Recorded) -> list[Finding]:
    """What went wrong in a run, the gravest first; empty where nothing shows."""
    if run.made_with.get("data_name") == _DUMMY:  # random tokens: nothing that its curves show means anything
        return []
    found = [one for rule in _RULES for one in rule(run)]
    return found or [*_only_counts(run), *rare_labels(run)]


def next_step(run: Recorded) -> Finding:
    """What is worth trying after a run in which nothing went wrong."""
    if run.made_with.get("data_name") == _DUMMY:
        return Finding("data", "Random tokens", "", "Train on a text of your own, or on the built-in", "--data stories")
    if run.status in ("not ended", "interrupted"):
        told = "Let it finish: the same command goes on where it stopped. In a script, make sure of that with"
        return Finding("unfinished", "Not finished", "", told, "--resume must")
    if _all_right(run):
        told = "Each validation example got its label: only more of them would tell where it errs. Add some:"
        return Finding("more data", "Healthy", "", told, more_data(run))
    if run.resolved.get("init_from"):
        return next_step_from_base(run)
    if minutes := run.resolved.get("max_minutes"):
        told = "More time pays for a larger model, which is then planned:"
        if run.task:  # whose sizes are a preset
            told = "More time may teach it more:"
        return Finding("longer", "Healthy", "", told, f"--max_minutes {3 * minutes:g}")
    if run.model_config is None:
        return Finding("longer", "Healthy", "", "More text, a larger model, or more steps could help:", longer(run))
    what = learned_from(run)
    told = f"The loss has nearly stopped falling, so a larger model or more {what} would learn more. Double the width:"
    return Finding("larger", "Healthy", "", told, f"--embed_dim {2 * run.resolved.get('embed_dim', 128)}")


def _all_right(run: Recorded) -> bool:
    """Whether each validation example got its label."""
    return run.task == CLASSIFICATION and run.best is not None and run.best["val_accuracy"] == 1


def _diverged(run: Recorded) -> Iterator[Finding]:
    is_limited = bool(run.resolved.get("max_grad_norm", 1.0))
    unlimited = "" if is_limited else " Gradients had no limit, which would have helped (max_grad_norm is 0)."
    if run.status == "diverged":
        yield Finding(
            "diverged",
            "The learning rate was too high: training broke down",
            str(run.ending.get("message", "")).partition(" Lower ")[0] + unlimited,
            "Lower the learning rate:",
            f"{_rate(run, 0.1)}" + ("" if is_limited else " --max_grad_norm 1"),
        )


def _learning_rate_too_high(run: Recorded) -> Iterator[Finding]:
    """Jumps of the loss, gradients far beyond the limit, or a loss that stays at that of token counts."""
    signs = [] if _all_right(run) else _signs_of_high(run)  # jumps on the way to all labels right did no harm
    if signs and run.status != "diverged":
        told = "; ".join(signs)
        yield Finding(
            "learning rate too high",
            "The learning rate is too high",
            f"{told[0].upper()}{told[1:]}.",
            "Lower the learning rate:",
            _rate(run, 1 / 3),
        )


def _signs_of_high(run: Recorded) -> list[str]:
    signs = []
    losses = [(x, y) for x, y in curve(run.logs, "train_loss") if math.isfinite(y)]
    of_first = _SPIKE_OF_LABELS if run.task == CLASSIFICATION else _SPIKE
    spikes = _spikes(losses, at_least=of_first * losses[0][1] if run.task and losses else 0.0)
    if losses and (worst := max(losses, key=lambda point: point[1]))[1] > (1 + of_first) * losses[0][1]:
        signs.append(f"the training loss rose from {losses[0][1]:.2f} to {worst[1]:.2f}, near step {worst[0]:,}")
    elif len(spikes) >= 2:
        signs.append(f"the training loss jumped up {len(spikes)} times, first near step {spikes[0]:,}")
    logs = _after_warmup(run)
    limit = run.resolved.get("max_grad_norm") or math.inf
    norms = [y for _, y in curve(logs, "grad_norm") if math.isfinite(y)]
    # With one target for each text instead of one for each token gradients are large, and being cut is normal.
    if (
        norms
        and run.task != CLASSIFICATION
        and statistics.median(norms) > _STRONG_PULL * limit
        and _clipped_share(logs) > _MOSTLY
    ):
        signs.append(
            f"{100 * _clipped_share(logs):.0f} % of the steps after the warm-up had a gradient beyond the limit of "
            f"{limit:g} and were cut down, half of them to less than 1/{statistics.median(norms) / limit:.0f}"
        )
    counts, passed = _counts_loss(run), _steps_to_counts(run)
    late = [y for x, y in losses if abs(x - _STUCK_AT * run.step) <= 0.05 * run.step]
    if counts and passed <= _LATE * run.step and late and statistics.mean(late) > _STUCK * counts:
        signs.append(
            f"the training loss soon fell to {counts:.2f}, what knowing only how frequent each token is gives, and "
            f"then stayed near it: {statistics.mean(late):.2f} after {100 * _STUCK_AT:.0f} % of the steps"
        )
    return signs


def _learning_rate_too_low(run: Recorded) -> Iterator[Finding]:
    """The loss takes long to fall to that of token counts, which is easy to learn."""
    counts, passed = _counts_loss(run), _steps_to_counts(run)
    if counts is None or passed <= _LATE * run.step or run.status == "diverged" or _signs_of_high(run):
        return
    if _LIKELY_RATES[1] <= run.resolved.get("learning_rate", 0.0):  # then it is something else
        return
    when = "was not reached" if passed == math.inf else f"took {passed:,.0f} of the {run.step:,} steps"
    yield Finding(
        "learning rate too low",
        "The learning rate is too low",
        f"To learn how frequent each token is, a training loss of {counts:.2f}, is the easy beginning; it {when}.",
        "Raise the learning rate:",
        _rate(run, 10),
    )


def _overfitting(run: Recorded) -> Iterator[Finding]:
    """val_loss has risen from its best while the training loss fell on."""
    best, after = run.best, [one for one in run.evaluations if run.best and one["step"] > run.best["step"]]
    if best is None or len(after) < 2 or not math.isfinite(after[-1]["val_loss"]):
        return
    last = after[-1]["val_loss"]
    if run.task and last - best["val_loss"] < _BOUNCES * _usual_change(run):
        return
    then, now = _train_loss_at(run, best["step"]), _train_loss_at(run, run.step)
    if last < (1 + _RISE) * best["val_loss"] or not now < (1 - _RISE) * then:
        return
    dropout = run.resolved.get("dropout", 0.0)
    drop = min(0.5, dropout + 0.1 if dropout else 0.2) if dropout < 0.5 else None
    what, helps = learned_from(run), "examples help" if run.task else "text helps"
    slower = "drop some activations in training, which then learns more slowly"
    yield Finding(
        "overfitting",
        f"Overfitting since step {best['step']:,}",
        f"The validation loss was best there, {best['val_loss']:.3f}, and rose to {last:.3f} by the end, while the "
        f"training loss fell from {then:.3f} to {now:.3f}: the model went on to learn the training {what} by heart. "
        "The weights of the best step are the ones that were kept, so nothing is lost but time.",
        f"More {helps} most. With the same {what}, {slower if drop else 'stop sooner'}:",
        f"--dropout {drop:g}" if drop else "--patience 3",
    )


def _usual_change(run: Recorded) -> float:
    """The median change of val_loss from one evaluation to the next, up or down."""
    losses = [y for _, y in curve(run.evaluations, "val_loss") if math.isfinite(y)]
    return statistics.median(abs(after - before) for before, after in itertools.pairwise(losses))


def _underfitting(run: Recorded) -> Iterator[Finding]:
    """val_loss was still falling at the end."""
    points = [(x, y) for x, y in curve(run.evaluations, "val_loss") if math.isfinite(y)]
    if run.status != "finished" or _all_right(run) or not _is_falling(run, points):
        return
    if any(True for rule in (_learning_rate_too_high, _learning_rate_too_low) for _ in rule(run)):
        return
    (begin, before), (end, last) = _last_quarter(run, points)
    yield Finding(
        "underfitting",
        "The loss was still falling at the end",
        f"The validation loss fell by {100 * (before - last) / (end - begin):.3f} per 100 steps in the "
        f"last quarter, from {before:.3f} at step {begin:,} to {last:.3f}.",
        "Train longer:",
        longer(run),
        is_trouble=False,
    )


def _last_quarter(run: Recorded, points: Points) -> tuple[tuple[float, float], tuple[float, float]]:
    """The evaluations at the beginning and at the end of the last quarter of the steps."""
    return [point for point in points if point[0] <= 0.75 * run.step or point is points[0]][-1], points[-1]


def _is_falling(run: Recorded, points: Points) -> bool:
    """Whether val_loss, at its best now, fell clearly in the last quarter of the steps."""
    if len(points) < 4 or run.best is not run.evaluations[-1]:
        return False
    (_, before), (_, last) = _last_quarter(run, points)
    return before - last >= _STILL_FALLING * last


def _repeated(run: Recorded) -> Iterator[Finding]:
    """The text was read so often that further passes teach hardly anything."""
    passes = run.passes or 0.0
    if run.task:  # of which few examples are read often before they are known
        return
    if passes <= MANY_EPOCHS or run.resolved.get("max_minutes"):  # with minutes a plan weighed that
        return
    if _is_falling(run, curve(run.evaluations, "val_loss")):  # they still do
        return
    yield Finding(
        "repeated data",
        f"The text was read {passes:.0f} times",
        "Beyond a few times a text is learned by heart rather than understood.",
        "More text is worth more than more passes. Add some:",
        more_data(run),
    )


def _large_vocabulary(run: Recorded) -> Iterator[Finding]:
    size, tokens = run.resolved.get("vocab_size"), run.made_with.get("train_tokens")
    if run.resolved.get("tokenizer") != "bpe" or not size or not tokens or tokens >= SEEN_OFTEN * size:
        return
    if run.resolved.get("max_minutes") and run.origin("vocab_size") == "plan":
        return
    if run.resolved.get("init_from") or run.task == CLASSIFICATION:  # it came along; rare words tell labels
        return
    fitting = max(300, 2 ** int(math.log2(max(tokens / SEEN_OFTEN, 2))))
    if fitting >= size:  # it is as small as one of pieces of words gets
        return
    yield Finding(
        "large vocabulary",
        "The tokenizer is too large for the text",
        f"The vocabulary has {size:,} entries and the training text {tokens:,} tokens: an entry occurs "
        f"{tokens / size:.1f} times on average, too rarely to learn what it means ({SEEN_OFTEN} times is a good "
        "measure).",
        "Take a smaller vocabulary:",
        f"--vocab_size {fitting}",
    )


def _only_counts(run: Recorded) -> Iterator[Finding]:
    """The model is not better than the best predictor that counts tokens, and no other finding says why."""
    if run.task:
        yield from worse_than_simple(run)
    best = run.best_counting
    if best is None or run.status != "finished" or run.model_as_yardstick["loss"] < best["loss"]:
        return
    yield Finding(
        "no better than counting",
        "It has not learned more than counting gives",
        f"Its loss of {run.model_as_yardstick['loss']:.3f} is not below the {best['loss']:.3f} of the {best['name']}, "
        "which only counts.",
        "Train longer:",
        longer(run),
    )


_RULES: tuple[Callable[[Recorded], Iterator[Finding]], ...] = (
    _diverged,
    _learning_rate_too_high,
    _learning_rate_too_low,
    _overfitting,
    _large_vocabulary,
    _underfitting,
    _repeated,
)


def _after_warmup(run: Recorded) -> list[Record]:
    warmup = run.resolved.get("warmup_steps") or 0
    return [record for record in run.logs if record["step"] > warmup]


def _spikes(points: list[tuple[float, float]], at_least: float = 0.0) -> list[int]:
    """The steps at which the loss jumped above the lowest so far, by more than its noise, each jump once."""
    changes = [abs(after - before) for (_, before), (_, after) in itertools.pairwise(points)]
    noise = _NOISE * statistics.median(changes) if changes else 0.0
    lowest, above, found = math.inf, False, []
    for step, loss in points:
        jumped = loss > lowest + max(_SPIKE * lowest, noise, at_least)
        if jumped and not above:
            found.append(int(step))
        above, lowest = jumped, min(lowest, loss)
    return found


def _clipped_share(logs: list[Record]) -> float:
    """The share of steps, from the first of the records to the last, whose gradient was scaled down."""
    known = [record for record in logs if "clipped_steps" in record]
    if len(known) < 2:
        return 0.0
    first, last = known[0], known[-1]
    return (int(last["clipped_steps"]) - int(first["clipped_steps"])) / max(int(last["step"]) - int(first["step"]), 1)


def _counts_loss(run: Recorded) -> float | None:
    """The loss of knowing how frequent each token is; None where it was not measured or the run is too short.

    None also where counting what follows what gives hardly more: then there is hardly more to learn.
    """
    losses = {one["name"]: one["loss"] for one in run.yardsticks if one["loss"] is not None}
    counts = losses.get("unigram")
    if counts is None or run.step < _ENOUGH_STEPS or min(losses.values()) > _STUCK * counts:
        return None
    return float(counts)


def _steps_to_counts(run: Recorded) -> float:
    """The steps after which the training loss was at that of token counts; infinite where it never was."""
    counts = _counts_loss(run)
    if counts is None:
        return math.inf
    return next((x for x, y in curve(run.logs, "train_loss") if y <= counts), math.inf)


def _train_loss_at(run: Recorded, step: int) -> float:
    """The mean training loss of the last few records up to a step."""
    losses = [y for x, y in curve(run.logs, "train_loss") if x <= step and math.isfinite(y)]
    return statistics.mean(losses[-5:]) if losses else math.nan


def _rate(run: Recorded, factor: float) -> str:
    """The flag for so many times the learning rate, or for the nearest that is not far from any that works."""
    rate = factor * run.resolved.get("learning_rate", TrainConfig().learning_rate)
    rate = min(rate, _LIKELY_RATES[0 if factor < 1 else 1])
    lowest = " --min_learning_rate 0" if run.resolved.get("min_learning_rate", 0.0) > rate else ""
    return f"--learning_rate {rate:.2g}{lowest}"
