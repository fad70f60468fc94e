"""What tells that a folder is prepared data: `manifest.json` when it is complete, `progress.json` before."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from slm.config import UserError
from slm.storage import files

MANIFEST, PROGRESS, TOKENIZER = "manifest.json", "progress.json", "tokenizer.json"
SHARD_NAME = re.compile(r"(?:train|val)-[0-9]{5,}\.bin")
FORMAT = "slm prepared data"
FORMAT_VERSION = 1
DTYPES = {"uint16": 2, "uint32": 4}  # bytes of an id
_SETTINGS = ("tokenizer", "vocab_size", "val_fraction", "text_field", "split_documents_on", "val_data")
_TEXTS = ("name", "key", "content", "split")


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
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_manifest(folder: str) -> dict[str, Any] | None:
    """What a folder of prepared data tells of itself; None where it is none.

    Raises UserError for a newer format, and where what it tells cannot be.
    """
    manifest = read_json(folder, MANIFEST)
    if manifest.get("format") != FORMAT:
        return None
    version = manifest.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise UserError(f"{folder} was prepared by a newer slm than this one. Upgrade slm, or prepare the data anew.")
    if wrong := _wrong(manifest):
        raise UserError(
            f"{files.join(folder, MANIFEST)} is damaged: what it tells of {wrong} cannot be. Copy it again from where "
            f"it was made, or remove {folder} and prepare the data anew."
        )
    return manifest


def _wrong(manifest: dict[str, Any]) -> str | None:
    """The name of what a manifest does not tell, or not as a preparation does; None where all is well."""
    told: Callable[[str], Any] = manifest.get
    vocab_size, start_id, bits = told("vocab_size"), told("start_id"), told("source_bits_per_byte")
    most_ids = 256 ** DTYPES.get(str(told("dtype")), 0)
    rules = {
        "format_version": told("format_version") == FORMAT_VERSION,
        **{name: isinstance(told(name), str) for name in _TEXTS},
        "found": isinstance(told("found"), list) and all(isinstance(line, str) for line in told("found")),
        "num_bytes": _is_count(told("num_bytes")),
        "held_out": isinstance(told("held_out"), bool),
        "source_bits_per_byte": bits is None or (isinstance(bits, int | float) and math.isfinite(bits)),
        "settings": isinstance(told("settings"), dict) and set(_SETTINGS) <= set(told("settings")),
        "dtype": most_ids > 1,
        "vocab_size": _is_count(vocab_size) and 0 < vocab_size <= most_ids,
        "start_id": start_id is None or (_is_count(start_id) and _is_count(vocab_size) and start_id < vocab_size),
        "documents": isinstance(told("documents"), list) and [*map(_is_count, told("documents"))] == [True, True],
        "shards": isinstance(told("shards"), list) and all(map(_is_shard, told("shards"))),
    }
    if wrong := next((name for name, right in rules.items() if not right), None):
        return wrong
    return None if told("tokens") == _tokens(manifest) else "tokens"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_shard(shard: Any) -> bool:
    return (
        isinstance(shard, dict)
        and isinstance(shard.get("name"), str)
        and SHARD_NAME.fullmatch(shard["name"]) is not None
        and shard.get("split") == shard["name"].partition("-")[0]
        and _is_count(shard.get("bytes"))
        and shard["bytes"] > 0
        and isinstance(shard.get("sha256"), str)
    )


def _tokens(manifest: dict[str, Any]) -> list[float]:
    """The ids in the shards of training and of validation."""
    shards, size = manifest["shards"], DTYPES[manifest["dtype"]]
    return [sum(shard["bytes"] for shard in shards if shard["split"] == split) / size for split in ("train", "val")]


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
