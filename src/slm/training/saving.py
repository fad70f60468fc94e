"""A run's folder: claimed before step 0, written in the background as training goes, sent on when it is remote."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from slm.config import TrainConfig, UserError
from slm.data.manifest import remove_temporary
from slm.metrics.pages import pages_of
from slm.metrics.pages.page import is_ours
from slm.metrics.recorded import Recorded
from slm.settings import MARKER, write_config
from slm.storage import checkpoint, checkpoint_folder, files
from slm.storage.cached import cache_folder, key_of
from slm.training import resume
from slm.training.background import Uploader, Worker
from slm.training.history import records_of
from slm.training.remote import RemoteRun
from slm.training.resume import CHECKPOINTS, CONFIG, METRICS, MODEL, Previous, find_previous

SAVE_SECONDS = 180.0  # between checkpoints, unless save_every counts steps
_LOCK = ".slm.lock"
_CLAIM = b"# claim "


class RunFolder:
    """Where a run writes. Creating it checks access and changes nothing that is there; `begin` starts the run.

    All is written to a folder of this machine, whole or not at all; for a URL that is a mirror in the cache, from which
    it is sent. A disk that is full or a network that fails is a warning, and the next save tries again.
    Raises UserError or OSError, each naming the folder and the way out.
    """

    def __init__(
        self,
        path: str,
        *,
        overwrite: bool = False,
        resume: str = "auto",
        save_every: int | None = None,
        keep_last: int = 2,
    ) -> None:
        self.path, self.save_every, self.keep_last = path, save_every, keep_last
        for note in files.check_writable(path):
            warnings.warn(note, stacklevel=3)
        self.remote: RemoteRun | None = None
        self.local = path
        if files.is_remote(path):
            self.local = os.path.join(cache_folder(), "runs", key_of(path.rstrip("/")))
            self.remote = RemoteRun(path, self.local)
        self._lock: Any = None
        # A folder that is new gets its lock by `begin`: a command that is refused before leaves nothing behind.
        if self.remote or os.path.exists(self._lock_path):
            self._take_lock()
        self.upload_error: str | None = None  # what did not arrive at the URL
        self.save_error: str | None = None  # what is not even on this disk
        self.step: int | None = None  # of the newest checkpoint that was asked for
        self.status = ""  # of the run, in that checkpoint
        self._committed: list[int] = []  # steps of checkpoints, the newest of which is known to be whole
        self._lines: list[str] = []  # of metrics.jsonl
        self._lines_written, self._bytes_written = 0, 0
        self._model: dict[str, Any] | None = None  # what model.pt does not hold yet
        self._trouble: dict[str, str] = {}  # by what was to be saved
        self._told: set[str] = set()
        self._origin: dict[str, Any] = {}  # the tables of config.toml, stored in model.pt too
        self._writer = Worker("slm-save")
        self._uploader: Uploader | None = None
        self._saved_at = time.monotonic()
        try:
            self._taken = self._names()
            self.previous = self._find(overwrite, resume)
        except BaseException:
            self.close()
            raise

    def _names(self) -> list[str]:
        return [name for name in files.list_names(self.path) if name in resume.RUN_FILES]

    @property
    def _lock_path(self) -> str:
        return f"{self.local}.lock" if self.remote else self._local(_LOCK)

    def _take_lock(self) -> None:
        """Takes the lock of the folder, which the system takes back when the process ends, however it ends."""
        from filelock import FileLock, Timeout

        place = self._lock_path
        lock = FileLock(place)
        with files.explaining(place, "lock"):
            os.makedirs(os.path.dirname(place) or ".", exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise UserError(
                    f"another run is writing to {self.path} now. Wait for it, stop it, or choose another --model_dir."
                ) from None
            except NotImplementedError:
                warnings.warn(f"the disk of {place} knows no locks: let only one run write to it.", stacklevel=4)
        self._lock = lock

    def _find(self, overwrite: bool, resume: str) -> Previous | None:
        """The run to go on with. Raises UserError where what is there and what is asked for do not fit."""
        if self._taken:
            config = files.join(self.path, CONFIG)
            if CONFIG not in self._taken or not files.read_bytes(config).startswith(MARKER.encode()):
                raise UserError(
                    f"{files.join(self.path, self._taken[0])} exists and no run of slm wrote it; a run would replace "
                    "it. Choose another --model_dir, or move the file away."
                )
        if overwrite and resume == "must":
            raise UserError("--overwrite begins anew and --resume must goes on: leave one of them out.")
        if overwrite or not self._taken:
            if resume == "must":
                raise UserError(f"{self.path} holds no run to go on with. Check --model_dir, or leave out --resume.")
            return None
        if resume == "never":
            raise UserError(
                f"{self.path} already holds a run. Choose another --model_dir, or add --overwrite, which moves "
                "that run aside to a folder previous-1 in it."
            )
        checkpoint_folder.sweep(self._local(CHECKPOINTS))
        passed_over = self.remote.fetch() if self.remote else []
        previous = find_previous(self.path, self.local, self._taken, passed_over)
        if resume == "must" and previous.checkpoint is None:
            raise UserError(f"{self.path} holds a run without a checkpoint to go on from. Leave out --resume.")
        if self.remote and previous.checkpoint:
            # What was left to send when a machine went down; where all is there this sends nothing.
            self.remote.push_left(previous.step, self.keep_last)
        return previous

    def check_early(self, values: Mapping[str, Any]) -> None:
        """Raises UserError where settings alone tell that the run that is there cannot be gone on with."""
        if self.previous:
            self.previous.check_early(values)

    def take_over(self, config: TrainConfig) -> TrainConfig:
        """The settings with what the run to go on with had measured or derived."""
        return self.previous.take_over(config) if self.previous else config

    def check(self, resolved: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
        """Warns of what differs from the run to go on with and may, and of checkpoints that are not whole.

        Raises UserError where something differs that may not.
        """
        if self.previous:
            for told in self.previous.check(resolved, made_with):
                warnings.warn(told, stacklevel=3)
            for why in self.previous.passed_over if self.previous.checkpoint else ():
                warnings.warn(f"passed over a newer checkpoint: {why}", stacklevel=3)

    def begin(self, asked: Mapping[str, Any], resolved: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
        """Moves a run that is to be overwritten aside, or brings one to go on with to its checkpoint's state."""
        if self._lock is None:
            self._take_lock()
            if self._names() != self._taken:
                raise UserError(f"another run was made in {self.path} meanwhile. Choose another --model_dir.")
        self._origin = {"asked": dict(asked), "resolved": dict(resolved), "made_with": dict(made_with)}
        if self._taken and not self.previous:
            resume.move_aside(self.path, self._taken)
        if self.remote and not self.previous:
            shutil.rmtree(self.local, ignore_errors=True)
        remove_temporary(self.local)
        for name in self._own_pages():  # of an earlier end: where they are, what comes after the last step is complete
            files.remove(self._local(name))
        path = self._local(CONFIG)
        config = write_config(asked, resolved, made_with) + (self._claim_line(path) if self.remote else b"")
        if not os.path.exists(path) or files.read_bytes(path) != config:
            files.write_bytes(path, config)
        saved = self.previous.checkpoint if self.previous else None
        if saved:
            self._restore(saved)
        if self.remote:
            self.remote.claim()
            self._uploader = Uploader(self.remote, self.keep_last)
        self._saved_at = time.monotonic()

    def _claim_line(self, path: str) -> bytes:
        """The last line of the config.toml of a run at a URL: two runs with the same settings have different ones."""
        if self.previous and os.path.exists(path):
            last = files.read_bytes(path).splitlines(keepends=True)[-1:]
            if last and last[0].startswith(_CLAIM):
                return last[0]
        return _CLAIM + uuid.uuid4().hex.encode() + b"\n"

    def _restore(self, saved: str) -> None:
        """metrics.jsonl and model.pt as they were at the checkpoint."""
        assert self.previous
        text = files.read_bytes(os.path.join(saved, METRICS))
        files.write_bytes(self._local(METRICS), text)
        self._lines = text.decode(errors="replace").splitlines(keepends=True)
        self._lines_written, self._bytes_written = len(self._lines), len(text)
        best, model = self.previous.best, self._local(MODEL)
        if best and not (os.path.exists(model) and files.fingerprint(best) == files.fingerprint(model)):
            files.download(best, model)
        self.step, self.status = self.previous.step, self.previous.manifest.get("status", "")
        there = checkpoint_folder.steps_of(files.list_names(self._local(CHECKPOINTS)))
        self._committed = sorted(step for step in there if step <= self.step)

    def records(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds at the start; a null in it was no finite number."""
        return records_of("".join(self._lines))

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl; numbers that JSON lacks (NaN, infinity) become null."""
        self._lines.append(json.dumps(_finite(record)) + "\n")
        self._try(METRICS, self._write_lines)

    def _write_lines(self) -> None:
        path, text = self._local(METRICS), "".join(self._lines[self._lines_written :]).encode()
        with files.explaining(path, "write"), open(path, "ab") as file:
            file.truncate(self._bytes_written)  # without what a full disk, or a run without checkpoints, left there
            file.write(text)
        self._lines_written, self._bytes_written = len(self._lines), self._bytes_written + len(text)

    @property
    def begun(self) -> bool:
        """True once `begin` was called."""
        return bool(self._origin)

    @property
    def errors(self) -> list[str]:
        """What `finish` could not save or send, in words."""
        return [error for error in (self.save_error, self.upload_error) if error]

    @property
    def due(self) -> bool:
        """True when SAVE_SECONDS have passed since the last checkpoint was asked for."""
        return time.monotonic() - self._saved_at >= SAVE_SECONDS

    @property
    def busy(self) -> bool:
        """True while something is being written."""
        return self._writer.busy

    def save(self, step: int, contents: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> None:
        """Has a checkpoint written of these dicts, which nobody changes any more, by the names of their files."""
        self.step, self.status, self._saved_at = step, about["status"], time.monotonic()
        lines = self._lines[:]
        models = {name: {**content, **self._origin} for name, content in contents.items()}

        def write() -> None:
            savers: dict[str, Any] = {name: partial(_save, content) for name, content in models.items()}
            savers[METRICS] = lambda path: files.write_bytes(path, "".join(lines).encode())
            folder = self._local(CHECKPOINTS)
            checkpoint_folder.verify(checkpoint_folder.write(folder, step, savers, about))
            self._committed = [*(one for one in self._committed if one < step), step]
            if self._uploader:
                self._uploader.send(step)
            in_use = self._uploader.in_use if self._uploader else set()
            keep = {*self._committed[-self.keep_last :], *in_use}
            self._try("older checkpoints", lambda: checkpoint_folder.prune(folder, keep))

        def write_or_forget() -> None:
            if not self._try(CHECKPOINTS, write) and self.step == step:
                self.step = self._committed[-1] if self._committed else None  # so that it may be asked for again

        self._writer.do(write_or_forget)
        if MODEL in self._trouble:
            self._writer.do(self._write_model)

    def save_model(self, packed: Mapping[str, Any]) -> None:
        """Has model.pt written; where that fails, again at each save."""
        self._model = {**packed, **self._origin}
        self._writer.do(self._write_model)

    def _write_model(self) -> None:
        content = self._model
        if content and self._try(MODEL, lambda: checkpoint.save_file(self._local(MODEL), content)):
            self._model = None if self._model is content else self._model

    def _try(self, what: str, write: Any) -> bool:
        try:
            write()
        except (files.StorageError, UserError) as error:
            self._trouble[what] = str(error)
            return False
        self._trouble.pop(what, None)
        return True

    def write_pages(self) -> None:
        """Writes report.html and MODEL_CARD.md, of all records so far; where that fails `finish` tells."""
        tables = (self._origin[name] for name in ("resolved", "made_with", "asked"))
        pages = pages_of(Recorded(self.path, self.records(), *tables))
        for name in self._own_pages():
            self._try(name, partial(files.write_bytes, self._local(name), pages[name].encode(errors="replace")))

    def _own_pages(self) -> list[str]:
        """The pages to write: those that are not there, and those that slm wrote and nobody has edited."""
        places = {name: self._local(name) for name in resume.PAGES}
        return [name for name, place in places.items() if not os.path.exists(place) or is_ours(files.read_bytes(place))]

    def poll(self) -> None:
        """Warns of trouble, once as long as it lasts. Raises StorageError where another run was first at the URL."""
        self._writer.check()
        if self._uploader:
            self._uploader.check()
            if self._uploader.refusal and not self._uploader.has_sent:
                raise self._uploader.refusal
        trouble = dict(self._trouble)
        if self._uploader and self._uploader.error:
            trouble["upload"] = str(self._uploader.error)
        for what in trouble.keys() - self._told:
            later = "is tried again in the background" if what == "upload" else "is tried again at the next save"
            if self._uploader and self._uploader.refusal:
                later = "has ended"
            warnings.warn(f"{trouble[what]} Training goes on; saving {later}.", stacklevel=2)
        self._told = set(trouble)

    def finish(self, *, interrupted: bool = False) -> None:
        """Returns when all is written and sent; what is not is told in `save_error` and `upload_error`."""
        self._writer.wait()
        if MODEL in self._trouble:
            self._write_model()
        if METRICS in self._trouble:
            self._try(METRICS, self._write_lines)
        needed = {MODEL, METRICS, CHECKPOINTS} if interrupted else {MODEL, METRICS}
        for what in sorted(needed & self._trouble.keys()):
            newest = "There is no checkpoint to go on from."
            if self._committed:
                newest = f"The same command goes on from step {self._committed[-1]:,}, once there is space."
            self.save_error = f"{self._trouble[what]} {newest}"
        for what in sorted({CHECKPOINTS, *resume.PAGES} & self._trouble.keys()) if not self.save_error else ():
            name = "its last checkpoint" if what == CHECKPOINTS else what
            warnings.warn(f"{self._trouble[what]} The model is saved, {name} is not.", stacklevel=3)
        if self.remote is None:
            return
        if self._uploader is None or not self._committed:  # a model without checkpoints, by Run.save
            if os.path.exists(self._local(MODEL)):
                self._push(partial(self.remote.push, None, self.keep_last))
        elif self._uploader.finish(patient=not interrupted):
            if not self.save_error:
                self._push(self.remote.push_last)
        else:
            self.upload_error = str(self._uploader.error or self._uploader.refusal)
        if self.upload_error:
            self.upload_error += f" The run is complete in {self.local}; the same command sends what is missing."
        elif not self.save_error:
            shutil.rmtree(self.local, ignore_errors=True)

    def _push(self, push: Callable[[], None]) -> None:
        try:
            push()
        except files.StorageError as error:
            self.upload_error = str(error)

    def close(self, *, at_once: bool = False) -> None:
        """Lets go of the folder, so that another run may have it, when what is being written is whole.

        at_once: does not wait for that; a checkpoint in the making is lost.
        """
        try:
            if not at_once:
                self._writer.wait()
                if self._uploader:
                    self._uploader.finish(patient=False)
        finally:
            if self._lock is not None:
                self._lock.release()

    def _local(self, name: str) -> str:
        return os.path.join(self.local, name)


@contextmanager
def opened(model_dir: str | os.PathLike[str] | RunFolder | None) -> Iterator[RunFolder | None]:
    """A context that gives the folder of a run, and lets go of it afterwards where it was only named."""
    if model_dir is None or isinstance(model_dir, RunFolder):
        yield model_dir
        return
    folder = RunFolder(os.fspath(model_dir))
    try:
        yield folder
    finally:
        folder.close()


def _finite(value: Any) -> Any:
    """A value with None for every number in it that JSON lacks."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _save(content: dict[str, Any], path: str) -> None:
    checkpoint.save_file(path, content)
