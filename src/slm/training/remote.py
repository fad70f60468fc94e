"""A run at a URL: what is there comes to its mirror on this machine, and each checkpoint goes from there to the URL.

A checkpoint counts at the URL from the moment its manifest is there, which is sent last and removed first.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from slm.config import UserError
from slm.metrics.pages.page import is_ours
from slm.storage import checkpoint_folder, files
from slm.storage.checkpoint_folder import MANIFEST, name_of, steps_of
from slm.storage.files import MissingError, StorageError, TakenError
from slm.training.history import has_ended
from slm.training.resume import BEST, CHECKPOINTS, CONFIG, METRICS, MODEL, PAGES

MAX_AT_ONCE = 4  # uploads of one checkpoint
_MAX_TEXT_BYTES = 2**20  # of a config.toml or manifest


class RemoteRun:
    """The two places of one run: `url`, where it is kept, and `local`, its mirror, where it is written.

    The methods raise StorageError where a network or disk fails. Where another process writes the same run they raise
    TakenError, which only a storage with versions (gs://) can tell.
    """

    def __init__(self, url: str, local: str) -> None:
        self.url, self.local = url, local
        self.unpruned: str | None = None  # why older checkpoints stay at the URL
        self._versions: dict[str, int | None] = {}  # of the files that one process at a time may replace
        self._tried: set[tuple[int, str]] = set()  # each metrics.jsonl that was sent, answered or not
        self._arrived: dict[str, tuple[int, str]] = {}  # size and checksum, by the name at the URL

    def fetch(self) -> list[str]:
        """Why newer checkpoints at the URL were passed over; the mirror has its config.toml and newest whole one.

        A newer whole checkpoint in the mirror stays: its upload may have failed. Where the URL holds no config.toml
        or another one, what the mirror had is removed. Raises UserError where config.toml is none.
        """
        self._tried.clear()
        self._arrived.clear()
        for name in (METRICS, CONFIG):  # before anything else: what comes after this look is a second writer's
            seen = files.look(files.join(self.url, name))
            self._versions[name] = seen.version if seen else 0
        there, here = _read(files.join(self.url, CONFIG)), os.path.join(self.local, CONFIG)
        if there is None or not os.path.isfile(here) or files.read_bytes(here) != there:
            self._empty()
        if there is None:
            return []
        files.write_bytes(here, there)
        return self._fetch_newest()

    def _empty(self) -> None:
        with files.explaining(self.local, "empty"):
            os.makedirs(self.local, exist_ok=True)
            # config.toml first: without it the next fetch empties what a kill left here.
            for name in sorted(os.listdir(self.local), key=lambda name: name != CONFIG):
                path = os.path.join(self.local, name)
                if os.path.isdir(path):
                    shutil.rmtree(path)
                else:
                    os.remove(path)

    def _fetch_newest(self) -> list[str]:
        _, here, _ = checkpoint_folder.newest(os.path.join(self.local, CHECKPOINTS))
        passed_over: list[str] = []
        for step in steps_of(files.list_names(files.join(self.url, CHECKPOINTS))):
            if step < here.get("step", 0):
                break
            try:
                self._fetch_step(step, here)
                break
            except (UserError, MissingError) as error:
                if step == here.get("step"):
                    break
                passed_over.append(str(error))
        return passed_over

    def _fetch_step(self, step: int, here: Mapping[str, Any]) -> None:
        """Afterwards the mirror has this checkpoint; UserError where there is no whole one. here: a manifest."""
        folder = files.join(self.url, f"{CHECKPOINTS}/{name_of(step)}")
        path = files.join(folder, MANIFEST)
        text = _read(path)
        if text is None:
            raise UserError(f"{folder} {checkpoint_folder.UNFINISHED}: {MANIFEST} is missing.")
        manifest = checkpoint_folder.read_manifest(text, path)
        if manifest["step"] != step:
            raise UserError(f"{path} is damaged: it is of step {manifest['step']}.")
        described = {name: (told["size"], told["crc32c"]) for name, told in manifest["files"].items()}
        for name, told in described.items():
            _check(files.join(folder, name), told)
        if manifest != here:
            savers = {name: partial(self._fetch_file, step, name, told) for name, told in described.items()}
            checkpoint_folder.write(os.path.join(self.local, CHECKPOINTS), step, savers, manifest)
        self._arrived |= {f"{CHECKPOINTS}/{name_of(step)}/{name}": told for name, told in described.items()}

    def _fetch_file(self, step: int, name: str, told: tuple[int, str], target: str) -> None:
        part = f"{CHECKPOINTS}/{name_of(step)}/{name}"
        there, here = files.join(self.url, part), os.path.join(self.local, part)
        if not os.path.isfile(here) or files.fingerprint(here) != told:
            here = there
        files.download(here, target)
        if files.fingerprint(target) != told:
            raise UserError(f"{there} is damaged: its checksum is not that of the manifest.")

    def claim(self) -> None:
        """Afterwards the URL has the mirror's config.toml, and this run is the one that may write there.

        TakenError if another process wrote it since `fetch`, or at all where `fetch` was not called.
        """
        source, url = os.path.join(self.local, CONFIG), files.join(self.url, CONFIG)
        if _read(url) != files.read_bytes(source):
            self._versions[CONFIG] = files.upload(source, url, overwrite=True, version=self._versions.get(CONFIG, 0))
        self._arrived[CONFIG] = files.fingerprint(source)

    def push_left(self, step: int, keep_last: int) -> None:
        """Sends what a run that went down had left to send; what the URL has of metrics.jsonl is not shortened."""
        so_far = files.read_bytes(self._parts(step, self._manifest(step))[METRICS])
        there, here = (_text(files.join(place, METRICS)) for place in (self.url, self.local))
        self.push(step, keep_last, with_metrics=not there.startswith(so_far))
        if has_ended(here, so_far) and not has_ended(there, so_far):
            self.push_last()

    def push(self, step: int | None, keep_last: int, *, with_metrics: bool = True) -> None:
        """Afterwards the URL has the checkpoint of this step, and model.pt with the best weights so far.

        Older checkpoints there, but the newest `keep_last` with this one, are removed. step None: the run has no
        checkpoints. What arrived before a failure is not sent again by the next call.
        """
        manifest = self._manifest(step)
        if CONFIG not in self._arrived:
            self.claim()
        parts = self._parts(step, manifest)
        metrics = parts.pop(METRICS)
        if with_metrics:
            self._push_metrics(metrics)
        model = parts.pop(MODEL, None)
        last = {name: parts.pop(name) for name in list(parts) if name.endswith(MANIFEST)}
        _at_once([partial(self._send, name, source) for name, source in parts.items()])
        for name, source in {**last, **({MODEL: model} if model else {})}.items():
            self._send(name, source)
        if step is not None:
            self._prune(step, keep_last)

    def push_last(self) -> None:
        """Afterwards the URL has the pages of a run that has ended, and then all lines of metrics.jsonl.

        So where those are there, the pages are, too; without both pages, the lines stay here.
        """
        url, pages = files.join(self.url, METRICS), self._pages()
        seen = files.look(url)
        ours = seen is None or seen.version in (None, self._versions.get(METRICS))
        if seen and not ours and (seen.size, seen.crc32c) not in self._tried:
            raise TakenError(f"{url}: another process wrote this file; use one folder per run.")
        for name, path in pages.items():
            there = _text(files.join(self.url, name))
            if not there or is_ours(there):
                self._send(name, path)
        if len(pages) == len(PAGES):
            self._push_metrics(os.path.join(self.local, METRICS))

    def _pages(self) -> dict[str, str]:
        return {name: path for name in PAGES if os.path.exists(path := os.path.join(self.local, name))}

    def missing(self, step: int | None) -> list[str]:
        """The names at the URL of what `push` has not brought there."""
        parts = {CONFIG: os.path.join(self.local, CONFIG), **self._parts(step, self._manifest(step))}
        return [name for name, source in parts.items() if self._arrived.get(name) != files.fingerprint(source)]

    def _manifest(self, step: int | None) -> dict[str, Any]:
        """The manifest of a checkpoint in the mirror, which is whole: a damaged one must not replace a good one."""
        if step is None:
            return {}
        try:
            return checkpoint_folder.verify(os.path.join(self.local, CHECKPOINTS, name_of(step)))
        except UserError as error:
            raise StorageError(f"{error} It is not sent to {self.url}.") from error

    def _parts(self, step: int | None, manifest: Mapping[str, Any]) -> dict[str, str]:
        """Where the files of a save lie here, by their names at the URL."""
        if step is None:
            return {name: os.path.join(self.local, name) for name in (METRICS, MODEL)} | self._pages()
        folder = os.path.join(self.local, CHECKPOINTS, name_of(step))
        parts = {METRICS: os.path.join(folder, METRICS)}  # not those at the top, which training changes meanwhile
        for name in (*manifest["files"], MANIFEST):
            parts[f"{CHECKPOINTS}/{name_of(step)}/{name}"] = os.path.join(folder, name)
        if BEST in manifest["files"]:
            parts[MODEL] = os.path.join(folder, BEST)
        elif manifest.get("best_step") == step:
            parts[MODEL] = os.path.join(folder, MODEL)
        return parts

    def _push_metrics(self, source: str) -> None:
        """Replaces metrics.jsonl only if it is as this run left it, so that a second writer spoils nothing."""
        url, ours = files.join(self.url, METRICS), files.fingerprint(source)
        version = self._versions.get(METRICS, 0)
        try:
            version = files.upload(source, url, overwrite=True, version=version)
        except TakenError:
            seen = files.look(url)
            if seen is None or (seen.size, seen.crc32c) not in self._tried:
                raise
            # The answer to an earlier upload was lost, and its bytes have arrived all the same.
            version = files.upload(source, url, overwrite=True, version=seen.version)
        finally:
            self._tried.add(ours)
        self._versions[METRICS], self._arrived[METRICS] = version, ours

    def _send(self, name: str, source: str) -> None:
        ours = files.fingerprint(source)
        if self._arrived.get(name) != ours:
            files.upload(source, files.join(self.url, name), overwrite=True)
            self._arrived[name] = ours

    def _prune(self, step: int, keep_last: int) -> None:
        """Removes older checkpoints at the URL; one that cannot be removed is no failure, all that counts arrived."""
        self.unpruned = None
        parent, kept = files.join(self.url, CHECKPOINTS), 1
        try:
            for older in (older for older in steps_of(files.list_names(parent)) if older < step):
                folder = files.join(parent, name_of(older))
                names = files.list_names(folder)
                if MANIFEST in names and kept < keep_last:
                    kept += 1
                    continue
                for name in sorted(names, key=lambda name: name != MANIFEST):
                    files.remove(files.join(folder, name))
                    self._arrived.pop(f"{CHECKPOINTS}/{name_of(older)}/{name}", None)
                files.remove(folder)
        except StorageError as error:
            self.unpruned = f"Older checkpoints stay in {parent}: {error}"


def _read(url: str) -> bytes | None:
    """A short text at a URL, or None where there is none."""
    seen = files.look(url)
    if seen is None:
        return None
    if seen.size is None or seen.size > _MAX_TEXT_BYTES:
        raise UserError(f"{url} is damaged: it has {seen.size} bytes, {_MAX_TEXT_BYTES} at most were written.")
    return files.read_bytes(url)


def _text(path: str) -> bytes:
    """The content of a file, or nothing where there is none."""
    try:
        return files.read_bytes(path)
    except MissingError:
        return b""


def _check(url: str, told: tuple[int, str]) -> None:
    """Raises UserError where a file is not that of the manifest, as far as the storage tells without sending it."""
    seen = files.look(url)
    if seen is None:
        raise UserError(f"{url} is missing.")
    if seen.size != told[0]:
        raise UserError(f"{url} has {seen.size} bytes, and had {told[0]} when written.")
    if seen.crc32c not in (None, told[1]):
        raise UserError(f"{url} is damaged: its checksum is not that of the manifest.")


def _at_once(jobs: list[Callable[[], None]]) -> None:
    """Returns when all jobs are done, some at a time; after a failure no further one begins, and it is raised."""
    waiting, failures = deque(jobs), list[BaseException]()

    def work() -> None:
        while not failures:
            try:
                job = waiting.popleft()
            except IndexError:
                return
            try:
                job()
            except BaseException as error:
                failures.append(error)

    # A pool of concurrent.futures would hold up the end of the process for an upload that is stalled.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(MAX_AT_ONCE, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise next((error for error in failures if isinstance(error, TakenError)), failures[0])
