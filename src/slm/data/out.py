"""Where prepared data goes when somebody names the place: nothing there that is not slm's is ever replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slm.config import UserError
from slm.data.manifest import MANIFEST, PROGRESS, TOKENIZER, clear, mark, read_manifest, read_mark
from slm.data.shards import Prepared
from slm.storage import files


def check_out(out: str, key: str | None) -> bool:
    """True where the data of that key is there already. Raises UserError or StorageError where no tokens can go."""
    files.check_path(out)
    manifest = read_manifest(out)
    if manifest is None:
        check_ours(out)
        files.check_writable(out)
        return False
    if key is not None:
        check_same(out, manifest, {"key": key})
    return key is not None


def check_ours(folder: str) -> None:
    """Raises ExistsError where a folder or URL holds files, but no preparation that goes on."""
    if files.list_names(folder) and not read_mark(folder):
        raise files.ExistsError(f"--out {folder} is not empty: choose a new folder, or an empty one.")


def check_same(folder: str, manifest: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises UserError where a folder or URL holds other prepared data than is wanted."""
    if any(manifest[name] != value for name, value in wanted.items()):
        raise UserError(
            f"{folder} holds data that was prepared from other files (by path, size and date) or with other settings: "
            "nothing was changed. Choose another --out, or remove it."
        )


def upload(
    prepared: Prepared, folder: str, url: str, *, again: bool, on_progress: Callable[[str, int, int | None], None]
) -> None:
    """Copies a prepared folder to a URL, the manifest last; where it is already, only if `again`.

    Raises UserError where other data is there.
    """
    about = prepared.about
    if (there := read_manifest(url)) is not None:
        check_same(url, there, {name: about[name] for name in ("key", "content")})
        if not again:
            return
    if there is not None or read_mark(url).get("key") != about["key"]:
        clear(url)
    mark(url, {"name": about["name"], "key": about["key"]})
    total, done = sum(shard["bytes"] for shard in about["shards"]), 0
    files.upload(files.join(folder, TOKENIZER), files.join(url, TOKENIZER), overwrite=True)
    for shard in about["shards"]:
        on_progress(f"uploading to {url}", done, total)
        files.upload(files.join(folder, shard["name"]), files.join(url, shard["name"]), overwrite=True)
        done += shard["bytes"]
    files.upload(files.join(folder, MANIFEST), files.join(url, MANIFEST), overwrite=True)
    files.remove(files.join(url, PROGRESS))
