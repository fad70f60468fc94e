"""Laws of what happens beside training: every job is done, the newest checkpoint arrives, and no end is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.storage.files import StorageError, TakenError
from slm.training import background
from slm.training.background import FIRST_WAIT_SECONDS, LAST_PASSES, LONGEST_WAIT_SECONDS, Uploader, Worker

LONG = 30.0  # seconds, of a wait that is over at once unless something is broken


def test_jobs_are_done_in_order_and_none_is_lost() -> None:
    worker, done = Worker("test"), []
    for number in range(500):
        worker.do(lambda number=number: done.append(number))
        if number % 3 == 0:  # the thread ends whenever it has caught up, and has to begin again
            worker.wait()
            assert done == list(range(number + 1))
    worker.wait()
    assert done == list(range(500))
    assert not worker.busy


def test_jobs_from_several_threads_are_all_done_one_at_a_time() -> None:
    worker, done, at_once = Worker("test"), [], threading.Lock()

    def job() -> None:
        assert at_once.acquire(blocking=False)
        done.append(1)
        at_once.release()

    threads = [threading.Thread(target=lambda: [worker.do(job) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.wait()
    assert len(done) == 800


def test_a_worker_is_busy_until_its_last_job_is_done_and_keeps_no_process_alive() -> None:
    worker, begun, go_on, daemons = Worker("test"), threading.Event(), threading.Event(), []

    def job() -> None:
        daemons.append(threading.current_thread().daemon)
        begun.set()
        go_on.wait(LONG)

    assert not worker.busy
    worker.do(job)
    assert begun.wait(LONG)
    assert worker.busy
    go_on.set()
    worker.wait()
    assert (worker.busy, daemons) == (False, [True])


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_what_a_job_did_not_expect_is_raised_where_training_asks(error: BaseException) -> None:
    def fail() -> None:
        raise error

    worker, done = Worker("test"), []
    worker.check()
    worker.do(fail)
    worker.do(lambda: done.append(1))
    for ask in (worker.wait, worker.check, worker.wait):
        with pytest.raises(type(error)):
            ask()
    assert done == [1]


class Place:
    """Somewhere to send to, which answers as it is told to, and well after that."""

    def __init__(self, *answers: BaseException | Callable[[], object] | None) -> None:
        self.answers, self.pushed = list(answers), list[int | None]()
        self.asked = threading.Semaphore(0)

    def push(self, step: int | None, keep_last: int) -> None:
        assert keep_last == 2
        self.pushed.append(step)
        answer = self.answers.pop(0) if self.answers else None
        self.asked.release()
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer


DOWN, TAKEN = StorageError("the network is down."), TakenError("another run writes there.")


def uploader_to(place: Place) -> tuple[Uploader, list[float]]:
    """An uploader and the waits that it asked for, all of which are over at once."""
    uploader, waits = Uploader(place, 2), list[float]()
    real = uploader._changed.wait

    def wait(seconds: float | None = None) -> bool:
        if seconds is None:
            return real(LONG)
        waits.append(seconds)
        return False

    uploader._changed.wait = wait  # type: ignore[method-assign]
    return uploader, waits


def test_an_upload_that_arrives_is_not_repeated() -> None:
    place = Place()
    uploader, waits = uploader_to(place)
    assert not uploader.has_sent
    for step in (1, 2, 3):
        uploader.send(step)
        uploader._worker.wait()
    assert uploader.finish(patient=True)
    assert (place.pushed, waits, uploader.error, uploader.in_use) == ([1, 2, 3], [], None, {3})
    assert uploader.has_sent


def test_the_newest_is_sent_and_what_waited_before_it_is_left_out() -> None:
    go_on = threading.Event()
    place = Place(lambda: go_on.wait(LONG))
    uploader, _ = uploader_to(place)
    uploader.send(1)
    assert place.asked.acquire(timeout=LONG)
    for step in (2, 3, 4):
        uploader.send(step)
    assert uploader.in_use == {1, 4}  # the one under way, and the one to come
    go_on.set()
    assert uploader.finish(patient=True)
    assert place.pushed == [1, 4]


def test_a_failing_upload_is_tried_again_after_waits_that_double_up_to_a_limit() -> None:
    place = Place(*[DOWN] * 9)
    uploader, waits = uploader_to(place)
    uploader.send(1)
    uploader._worker.wait()
    doubled = [FIRST_WAIT_SECONDS * 2**number for number in range(9)]
    assert waits == [min(seconds, LONGEST_WAIT_SECONDS) for seconds in doubled]
    assert waits[-1] == LONGEST_WAIT_SECONDS
    assert (place.pushed, uploader.error) == ([1] * 10, None)


def test_the_trouble_of_the_last_pass_is_told() -> None:
    place = Place(DOWN)
    uploader, _ = uploader_to(place)
    errors: list[Any] = []
    place.answers.append(lambda: errors.append(uploader.error))
    uploader.send(1)
    assert uploader.finish(patient=True)
    assert (errors, uploader.error) == ([DOWN], None)


@settings(max_examples=30)
@given(patient=st.booleans(), failures=st.integers(0, 5))
def test_the_end_of_a_run_takes_a_few_more_passes_at_most(patient: bool, failures: int) -> None:
    place, held = Place(), threading.Event()
    uploader, waits = uploader_to(place)
    # The first pass fails, and while it lasts the run ends.
    place.answers = [lambda: (held.wait(LONG), DOWN)[1], *[DOWN] * failures]
    uploader.send(1)
    assert place.asked.acquire(timeout=LONG)
    real = uploader._worker.wait
    uploader._worker.wait = lambda: (held.set(), real())[1]  # type: ignore[func-returns-value, method-assign]
    arrived = uploader.finish(patient=patient)
    passes = LAST_PASSES if patient else 1
    assert arrived == (failures < passes)
    assert len(place.pushed) == 1 + min(failures + 1, passes)
    assert (uploader.error is None) == arrived
    # Not one before the first of them, nor after the last.
    assert len(waits) == min(failures, passes - 1)
    assert all(seconds <= FIRST_WAIT_SECONDS * LAST_PASSES for seconds in waits)


@pytest.mark.parametrize("how", ["the end", "a newer checkpoint"])
def test_a_long_wait_is_cut_short_by(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_WAIT_SECONDS", LONG)
    place, waiting = Place(DOWN), threading.Event()
    uploader = Uploader(place, 2)
    real = uploader._changed.wait

    def wait(seconds: float | None = None) -> bool:
        waiting.set()
        woken = real(seconds)
        assert woken
        return woken

    uploader._changed.wait = wait  # type: ignore[method-assign]
    uploader.send(1)
    assert waiting.wait(LONG)
    if how == "a newer checkpoint":
        uploader.send(2)
        uploader._worker.wait()
        assert place.pushed == [1, 2]
    assert uploader.finish(patient=False)


@pytest.mark.parametrize("earlier", [0, 1])
def test_nothing_is_sent_any_more_where_another_process_writes(earlier: int) -> None:
    place = Place(*[None] * earlier, TAKEN)
    uploader, waits = uploader_to(place)
    for step in range(earlier + 3):
        uploader.send(step)
        uploader._worker.wait()
    assert not uploader.finish(patient=True)
    assert place.pushed == list(range(earlier + 1))
    assert (uploader.refusal, uploader.error, uploader.has_sent) == (TAKEN, TAKEN, bool(earlier))
    assert len(waits) <= 1


def test_what_nobody_expects_of_an_upload_is_raised_where_training_asks() -> None:
    place = Place(ZeroDivisionError("a mistake of ours"))
    uploader, _ = uploader_to(place)
    uploader.send(1)
    with pytest.raises(ZeroDivisionError):
        uploader.finish(patient=True)
    with pytest.raises(ZeroDivisionError):
        uploader.check()


def test_where_nothing_was_to_be_sent_nothing_is() -> None:
    place = Place()
    uploader, _ = uploader_to(place)
    assert uploader.finish(patient=True)
    assert (place.pushed, uploader.in_use) == ([], set())
