"""A run's folder: claimed before step 0, written as training goes, uploaded at the end when it is remote."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

from slm.config import UserError
from slm.settings import MARKER, write_config
from slm.storage import checkpoint, files

CONFIG, METRICS, MODEL = "config.toml", "metrics.jsonl", "model.pt"
RUN_FILES = (CONFIG, METRICS, MODEL)


class RunFolder:
    """Where a run writes. Creating it checks access and changes nothing that is there; `begin` starts the run.

    A remote folder is staged in a local one and uploaded by `finish`; metrics.jsonl grows line by line there too.
    Raises UserError or OSError, each naming the folder and the way out.
    """

    def __init__(self, path: str, *, overwrite: bool = False) -> None:
        self.path = path
        for note in files.check_writable(path):
            warnings.warn(note, stacklevel=3)
        self._origin: dict[str, Any] = {}  # the tables of config.toml, stored in model.pt too
        self.upload_error: str | None = None
        self._taken = [name for name in files.list_names(path) if name in RUN_FILES]
        if self._taken:
            self._check_taken(overwrite)
        self.staging: str | None = None  # where the files of a remote run are until they are uploaded

    def _check_taken(self, overwrite: bool) -> None:
        config = files.join(self.path, CONFIG)
        if CONFIG not in self._taken or not files.read_bytes(config).startswith(MARKER.encode()):
            raise UserError(
                f"{files.join(self.path, self._taken[0])} exists and no run of slm wrote it; a run would replace it. "
                "Choose another --model_dir, or move the file away."
            )
        if not overwrite:
            raise UserError(
                f"{self.path} already holds a run. Choose another --model_dir, or add --overwrite, which moves "
                "that run aside to a folder previous-1 in it."
            )

    def begin(self, asked: Mapping[str, Any], resolved: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
        """Moves a run that is to be overwritten aside and writes config.toml."""
        self._origin = {"asked": dict(asked), "resolved": dict(resolved), "made_with": dict(made_with)}
        if self._taken:
            there = files.list_names(self.path)
            aside = next(name for n in range(1, len(there) + 2) if (name := f"previous-{n}") not in there)
            for name in self._taken:
                files.move(files.join(self.path, name), files.join(files.join(self.path, aside), name))
        if files.is_remote(self.path):
            self.staging = tempfile.mkdtemp(prefix="slm-run-")
        files.write_bytes(self._local(CONFIG), write_config(asked, resolved, made_with))

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl; numbers that JSON lacks (NaN, infinity) become null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        path = self._local(METRICS)
        with files.explaining(path, "write"), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def save_model(self, packed: Mapping[str, Any]) -> None:
        """Writes model.pt, whole or not at all."""
        checkpoint.save_file(self._local(MODEL), {**packed, **self._origin})

    def finish(self) -> None:
        """Uploads a remote run, the model last. What fails is kept locally and told in `upload_error`."""
        if self.staging is None:
            return
        try:
            for name in files.list_names(self.staging):
                files.upload(files.join(self.staging, name), files.join(self.path, name))
        except OSError as error:
            self.upload_error = f"{error} The run is complete in {self.staging}; copy it from there."
        else:
            shutil.rmtree(self.staging)

    def _local(self, name: str) -> str:
        return files.join(self.staging or self.path, name)
