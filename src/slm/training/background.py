"""Work in threads of its own, so that training waits for no disk and no network."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from slm.storage.files import StorageError, TakenError

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 300.0  # between passes of an upload that fails; doubled each time
LAST_PASSES = 3  # at the end of a run


class Worker:
    """Does jobs one after the other in a thread that never keeps the process alive.

    A job handles the errors that it expects; any other one is raised by the next `check` or `wait`.
    """

    def __init__(self, name: str) -> None:
        self._jobs: deque[Callable[[], None]] = deque()  # the first is being done
        self._changed = threading.Condition()
        self._name = name
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def do(self, job: Callable[[], None]) -> None:
        """Puts a job behind those that wait."""
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    @property
    def busy(self) -> bool:
        """True while a job waits or is being done."""
        return bool(self._jobs)

    def check(self) -> None:
        """Raises what a job did not expect."""
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Returns when all jobs are done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs)
        self.check()

    def _run(self) -> None:
        while True:
            try:
                self._jobs[0]()
            except BaseException as error:
                self._failure = error
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()
                if not self._jobs:
                    self._thread = None
                    return


class Destination(Protocol):
    """Where an Uploader sends: the one method of RemoteRun that it calls."""

    def push(self, step: int | None, keep_last: int) -> None:
        """Afterwards the checkpoint of that step is there. Raises StorageError."""


class Uploader:
    """Sends the newest checkpoint that it was told of, and tries again later where that fails."""

    def __init__(self, destination: Destination, keep_last: int) -> None:
        self._destination, self._keep_last = destination, keep_last
        self._changed = threading.Condition()
        self._wanted: int | None = None
        self._sending: int | None = None
        self._sent: int | None = None
        self._ending = False
        self._passes = 0  # since the run began to end
        self.refusal: TakenError | None = None  # another process writes there, and nothing is sent any more
        self.error: StorageError | None = None  # of the last pass, None where it went well
        self._worker = Worker("slm-upload")

    @property
    def in_use(self) -> set[int]:
        """The steps whose local checkpoints must stay for now."""
        with self._changed:
            return {step for step in (self._wanted, self._sending) if step is not None}

    @property
    def has_sent(self) -> bool:
        """True once something arrived."""
        return self._sent is not None

    def send(self, step: int) -> None:
        """Has a checkpoint sent, instead of an older one that is still waiting."""
        with self._changed:
            self._wanted = step
            self._changed.notify_all()
        self._worker.do(self._send_all)

    def check(self) -> None:
        """Raises what nobody expects of an upload."""
        self._worker.check()

    def finish(self, *, patient: bool) -> bool:
        """True when all that was wanted arrived, after one more pass or, with patient, some."""
        with self._changed:
            self._ending, self._passes = True, 0 if patient else LAST_PASSES - 1
            self._changed.notify_all()
        self._worker.wait()
        return self._wanted == self._sent

    def _send_all(self) -> None:
        wait = FIRST_WAIT_SECONDS
        while True:
            with self._changed:
                given_up = self.refusal or (self._ending and self._passes >= LAST_PASSES)
                if given_up or self._wanted is None or self._wanted == self._sent:
                    return
                step, ending = self._wanted, self._ending
                self._sending = step
            error = self._send(step)
            with self._changed:
                self._sending = None
                self._passes += ending
                self.error, self._sent = error, self._sent if error else step
                # An end that came during the pass has notified nobody: no wait then.
                if error and ending == self._ending and not (ending and self._passes >= LAST_PASSES):
                    self._changed.wait(min(wait, FIRST_WAIT_SECONDS * LAST_PASSES) if ending else wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS) if error else FIRST_WAIT_SECONDS

    def _send(self, step: int) -> StorageError | None:
        """What went wrong."""
        try:
            self._destination.push(step, self._keep_last)
        except TakenError as error:
            self.refusal = error
            return error
        except StorageError as error:
            return error
        return None
