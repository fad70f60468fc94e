"""Laws of the deadline: the peak learning rate until the decay's share of the time is left, and then what fits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest

from slm.training import deadline as deadline_module
from slm.training.deadline import DECAY_SHARE, Deadline

NO_EVALUATIONS = {"eval_every": 1, "evaluation_steps": 0.0}


class FakeClock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(deadline_module, "time", clock)
    return clock


def run(
    clock: FakeClock, deadline: Deadline, pace: float, reserve: float = 0.0, first: int = 1, last: int = 100_000
) -> Iterator[tuple[int, int | None]]:
    """What each step, which takes `pace` seconds, is told: its number and the steps of the decay."""
    if not deadline._marks:
        deadline.begin(first - 1)
    for step in range(first, last + 1):
        clock.now += pace
        yield step, deadline.decay_steps(step, reserve=reserve, **NO_EVALUATIONS)


def decision(
    clock: FakeClock, deadline: Deadline, pace: float, reserve: float = 0.0, first: int = 1
) -> tuple[int, int]:
    """The step after which the decay begins, and its steps."""
    return next((step, steps) for step, steps in run(clock, deadline, pace, reserve, first) if steps is not None)


def test_what_is_left_counts_down_to_below_zero(clock: FakeClock) -> None:
    deadline = Deadline(60)
    assert deadline.left() == 60
    clock.now += 45
    assert deadline.left() == 15
    clock.now += 20
    assert deadline.left() == -5


def allowed_of(seconds: float) -> float:
    """How late a run of so many seconds may be."""
    return max(deadline_module._LATE * seconds, deadline_module._LATE_SECONDS)


@pytest.mark.parametrize("pace", [0.01, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("reserve", [0.0, 6.0])
def test_nothing_is_decided_before_only_the_decays_share_of_the_time_is_left(
    clock: FakeClock, pace: float, reserve: float
) -> None:
    deadline, began = Deadline(100), clock.now
    begin, _ = decision(clock, deadline, pace, reserve)
    spent = clock.now - began
    assert spent == pytest.approx(begin * pace)
    # The first moment at which the share is reached, at most one step late.
    assert 0 <= spent - ((1 - DECAY_SHARE) * 100 - reserve) < 1.001 * pace


@pytest.mark.parametrize("pace", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("reserve", [0.0, 5.0, 20.0])
def test_the_decay_has_as_many_steps_as_fit_into_what_is_left_without_the_reserve(
    clock: FakeClock, pace: float, reserve: float
) -> None:
    deadline = Deadline(100)
    _, steps = decision(clock, deadline, pace, reserve)
    assert steps == pytest.approx((deadline.left() - reserve) / pace, abs=0.51)
    clock.now += steps * pace
    assert deadline.left() == pytest.approx(reserve, abs=pace)
    assert not deadline.has_passed


def test_a_decision_stays_due_until_it_is_taken(clock: FakeClock) -> None:
    deadline = Deadline(100)
    begin, steps = decision(clock, deadline, 1.0)
    ((_, later),) = run(clock, deadline, 1.0, first=begin + 1, last=begin + 1)
    assert later == steps - 1


@pytest.mark.parametrize(("early", "late"), [(0.1, 0.4), (0.4, 0.1)])
def test_the_pace_is_that_of_the_later_half_of_the_steps(clock: FakeClock, early: float, late: float) -> None:
    deadline = Deadline(100)
    early_seconds = 0.4 * (1 - DECAY_SHARE) * 100  # over before the later half of those at the peak begins
    told = [steps for _, steps in run(clock, deadline, early, last=round(early_seconds / early))]
    assert set(told) == {None}
    _, steps = decision(clock, deadline, late, first=len(told) + 1)
    assert steps == pytest.approx(deadline.left() / late, rel=0.02)


@pytest.mark.parametrize("eval_every", [7, 100, 10_000])
@pytest.mark.parametrize("seconds", [0.01, 1.0, 8.0])
def test_evaluations_that_are_still_to_come_have_their_time(clock: FakeClock, eval_every: int, seconds: float) -> None:
    """Also where the first one comes after the decision, when the number of steps that it is worth is known."""
    deadline, pace, last = Deadline(1000), 0.1, 0
    deadline.begin(0)
    for step in itertools.count(1):
        clock.now += pace
        steps = deadline.decay_steps(step, reserve=0.0, eval_every=eval_every, evaluation_steps=seconds / pace)
        last = step + steps if steps and not last else last
        if step % eval_every == 0 or step == last:
            clock.now += seconds
            deadline.evaluated(seconds)
        if step == last:
            break
    assert -1 <= deadline.left() < 1


def test_an_evaluation_that_was_timed_counts_more_than_what_was_reckoned(clock: FakeClock) -> None:
    told = []
    for evaluation_steps in (0.0, 50.0):
        deadline = Deadline(100, left=50)
        deadline.evaluated(2.0)
        deadline.begin(0)
        for step in range(1, 10):
            clock.now += 0.1
            steps = deadline.decay_steps(step, reserve=0.0, eval_every=20, evaluation_steps=evaluation_steps)
        told.append(steps)
    assert told[0] == told[1]
    assert told[0] is not None


def test_two_steps_are_needed_to_know_the_pace_unless_there_is_time_for_few(clock: FakeClock) -> None:
    deadline = Deadline(100)
    clock.now += 90  # compiling, of which the pace knows nothing
    assert list(run(clock, deadline, 1.0, last=2)) == [(1, None), (2, 8)]
    assert list(run(clock, Deadline(100, left=5), 2.0, first=7, last=7)) == [(7, 2)]


@pytest.mark.parametrize("pace", [4.0, 9.0, 14.0, 20.0])
def test_a_run_of_few_long_steps_is_late_by_less_than_one(clock: FakeClock, pace: float) -> None:
    step, steps = decision(clock, Deadline(30), pace)
    assert (step + steps) * pace - 30 <= pace / 2


@pytest.mark.parametrize("reserve", [0.0, 30.0])
def test_without_time_left_one_step_ends_the_decay(clock: FakeClock, reserve: float) -> None:
    deadline = Deadline(100)
    list(run(clock, deadline, 1.0, reserve, last=20))
    clock.now += 80 - reserve
    assert decision(clock, deadline, 1.0, reserve, first=21) == (21, 1)


@pytest.mark.parametrize("seconds", [30.0, 1000.0])
def test_a_run_is_late_only_after_what_is_allowed(clock: FakeClock, seconds: float) -> None:
    deadline, allowed = Deadline(seconds), allowed_of(seconds)
    assert 0 < allowed <= seconds / 10
    clock.now += seconds
    assert not deadline.has_passed
    clock.now += 0.99 * allowed
    assert not deadline.has_passed
    clock.now += 0.02 * allowed
    assert deadline.has_passed


def test_the_evaluation_at_the_end_is_not_to_make_a_run_late(clock: FakeClock) -> None:
    deadline = Deadline(100)
    deadline.evaluated(20)
    clock.now += 79 + allowed_of(100)
    assert not deadline.has_passed
    clock.now += 2
    assert deadline.has_passed


def test_a_run_that_is_gone_on_with_has_what_was_left(clock: FakeClock) -> None:
    deadline = Deadline(100, left=70)
    assert deadline.left() == 70
    begin, steps = decision(clock, deadline, 0.5, first=61)
    share = 100 * DECAY_SHARE  # of the whole run, as is what is late
    assert begin - 60 == pytest.approx((70 - share) / 0.5, abs=1.01)
    assert steps == pytest.approx(share / 0.5, abs=1.01)
    clock.now += deadline.left() + 0.99 * allowed_of(100)
    assert not deadline.has_passed
    clock.now += 0.02 * allowed_of(100)
    assert deadline.has_passed


def test_a_run_that_is_gone_on_with_in_its_second_half_decays_once_its_pace_is_known(clock: FakeClock) -> None:
    deadline = Deadline(100, left=10)
    begin, steps = decision(clock, deadline, 0.5, first=201)
    assert begin <= 205
    assert steps == pytest.approx(deadline.left() / 0.5, abs=0.51)


def test_few_marks_are_kept_of_many_steps(clock: FakeClock) -> None:
    deadline = Deadline(100)
    begin, _ = decision(clock, deadline, 0.001)
    assert begin == pytest.approx((1 - DECAY_SHARE) * 100_000, abs=1)
    assert len(deadline._marks) <= math.ceil(deadline_module._MARKS * (1 - DECAY_SHARE)) + 1
