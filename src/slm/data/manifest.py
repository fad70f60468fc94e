"""What tells that a folder is prepared data: `manifest.json` when it is complete, `progress.json` before."""

from __future__ import annotations

import json
import re
from typing import Any

from slm.config import UserError
from slm.storage import files

MANIFEST, PROGRESS, TOKENIZER = "manifest.json", "progress.json", "tokenizer.json"
SHARD_NAME = re.compile(r"(?:train|val)-[0-9]{5,}\.bin")
FORMAT = "slm prepared data"
FORMAT_VERSION = 1


def write_json(folder: str, name: str, content: dict[str, Any]) -> None:
    """Afterwards the file in the folder holds the object."""
    files.write_bytes(files.join(folder, name), json.dumps(content, indent=1).encode())


def read_json(folder: str, name: str) -> dict[str, Any]:
    """The object in a JSON file of a folder; an empty one where there is none, or it is none."""
    path = files.join(folder, name)
    if not files.exists(path):
        return {}
    try:
        content = json.loads(files.read_bytes(path))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def read_manifest(folder: str) -> dict[str, Any] | None:
    """What a folder of prepared data tells of itself; None where it is none. Raises UserError for a newer format."""
    manifest = read_json(folder, MANIFEST)
    if manifest.get("format") != FORMAT:
        return None
    if manifest.get("format_version", 0) > FORMAT_VERSION:
        raise UserError(f"{folder} was prepared by a newer slm than this one. Upgrade slm, or prepare the data anew.")
    return manifest


def mark(folder: str, progress: dict[str, Any]) -> None:
    """Notes how far a preparation has come; from now on the folder or URL is known as ours."""
    write_json(folder, PROGRESS, {"format": FORMAT, **progress})


def read_mark(folder: str) -> dict[str, Any]:
    """What `mark` noted, {} where a folder or URL is not ours or is complete."""
    progress = read_json(folder, PROGRESS)
    return progress if progress.get("format") == FORMAT else {}


def is_ours(folder: str) -> bool:
    """True where a folder or URL holds prepared data, complete or not."""
    return read_json(folder, MANIFEST).get("format") == FORMAT or bool(read_mark(folder))


def clear(folder: str) -> None:
    """Afterwards a folder that is ours holds no prepared data, neither complete nor in part; other files stay."""
    names = [name for name in files.list_names(folder) if SHARD_NAME.fullmatch(name)]
    # The manifest first, for without the shards it would lie; last what tells that the folder is ours.
    for name in (MANIFEST, *names, TOKENIZER, PROGRESS):
        files.remove(files.join(folder, name))
    remove_temporary(folder)


def remove_temporary(folder: str) -> None:
    """Removes what a process that was killed left of a file that it was writing."""
    for name in files.list_names(folder):
        if name.startswith(".slm-") and name.endswith(files.TEMPORARY_SUFFIX):
            files.remove(files.join(folder, name))
