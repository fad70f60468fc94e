"""Laws of token files: equal to those of memory, whole or absent, and the same after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from conftest import make_text
from tokenizers import models, pre_tokenizers

from slm.config import UserError
from slm.data import encoding, shards, sources
from slm.data import prepare as prepare_module
from slm.data import tokenizer as tokenizer_module
from slm.data.manifest import MANIFEST, PROGRESS, TOKENIZER
from slm.data.prepare import Job, prepare
from slm.data.shards import Prepared, open_prepared
from slm.data.tokenizer import Tokenizer
from slm.settings import as_settings, layered
from slm.storage import files

ONLY_IN_FILES = {"format", "format_version", "shards", "dtype", "prepared_at"}
SMALL_SIZES = [
    (tokenizer_module, "_PIECE_CHARS", 50),
    (encoding, "_BATCH_CHARS", 200),
    (encoding, "_BATCH_PIECES", 7),
    (shards, "SHARD_TOKENS", 250),
    (shards, "SAME_LENGTH", 2),
    (sources, "PART_CHARS", 100),
    (prepare_module, "EVALUATED_TOKENS", 2000),
]
CASES = ["cut", "hash", "val_data", "several", "stories"]


@pytest.fixture(autouse=True)
def small_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "flush", lambda path: None)  # waits for the disk, here in vain
    for module, name, value in SMALL_SIZES:
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The settings of a case."""
    text = make_text(800)
    for name, part in {
        "text": text,
        "lines": text,
        "a": text[:1500],
        "b": text[1500:2300],
        "val": text[-1000:],
    }.items():
        (tmp_path / f"{name}.txt").write_text(part)
    path = {name: str(tmp_path / f"{name}.txt") for name in ("text", "lines", "a", "b", "val")}
    cases: dict[str, dict[str, Any]] = {
        "cut": {"data": path["text"], "tokenizer": "bpe", "vocab_size": 300},
        "hash": {"data": path["lines"], "split_documents_on": "\n", "tokenizer": "char", "val_fraction": 0.3},
        "val_data": {"data": path["a"], "val_data": [Path(path["val"]), Path(path["b"])], "tokenizer": "byte"},
        "several": {"data": [Path(path[name]) for name in ("a", "b", "val")], "tokenizer": "byte", "val_fraction": 0.4},
        "stories": {"data": "stories:3KB", "tokenizer": "bpe", "vocab_size": 300, "val_fraction": 0.4},
    }
    return cases[request.param]


def in_memory(keys: dict[str, Any]) -> Prepared:
    rest = {name: value for name, value in keys.items() if name != "data"}
    settings = layered(as_settings(keys["data"], rest)[0], "keyword")
    return Job(settings.data, None, vocab_size=settings.model.vocab_size, on_progress=lambda *_: None).run()


def contents(folder: str | Path) -> dict[str, str]:
    """The files of a prepared folder by name, without the time of their making."""
    told = {}
    for path in sorted(Path(folder).iterdir()):
        data = path.read_bytes()
        if path.name == MANIFEST:
            manifest = json.loads(data)
            data = repr({name: manifest[name] for name in sorted(manifest) if name != "prepared_at"}).encode()
        told[path.name] = hashlib.sha256(data).hexdigest()
    return told


def killing(number: int) -> Callable[[str, int, int | None], None]:
    """An on_progress that ends the process, as it were, when it is told of tokenizing for the n-th time."""
    left = number

    def on_progress(what: str, done: int, total: int | None) -> None:
        nonlocal left
        left -= what == "tokenizing"
        if left == 0:
            raise KeyboardInterrupt

    return on_progress


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by every piece that is encoded."""
    seen: list[str] = []
    encode = Tokenizer.encode_pieces

    def spy(self: Tokenizer, pieces: list[str]) -> list[np.ndarray]:
        seen.extend(pieces)
        return encode(self, pieces)

    monkeypatch.setattr(Tokenizer, "encode_pieces", spy)
    return seen


def batches_of(keys: dict[str, Any], out: Path) -> int:
    """How often an unbroken preparation tells of its progress."""
    told: list[str] = []
    prepare(**keys, out=out, on_progress=lambda what, done, total: told.append(what))
    return told.count("tokenizing")


@pytest.mark.parametrize("keys", CASES, indirect=True)
def test_in_files_and_in_memory_the_tokens_are_equal(keys: dict[str, Any], tmp_path: Path) -> None:
    memory = in_memory(keys)
    file = open_prepared(prepare(**keys, out=tmp_path / "out"))
    assert file.train[:].tolist() == memory.train[:].tolist()
    assert file.val[:].tolist() == memory.val[:].tolist()
    assert file.fingerprint == memory.fingerprint
    assert {name: value for name, value in file.about.items() if name not in ONLY_IN_FILES} == {
        name: value for name, value in memory.about.items() if name not in ONLY_IN_FILES
    }
    assert len(file.about["shards"]) > 3


@pytest.mark.parametrize("keys", CASES, indirect=True)
def test_the_manifest_tells_the_truth_of_every_shard(keys: dict[str, Any], tmp_path: Path) -> None:
    out = Path(prepare(**keys, out=tmp_path / "out"))
    manifest = json.loads((out / MANIFEST).read_text())
    assert {path.name for path in out.iterdir()} == {MANIFEST, TOKENIZER, *(one["name"] for one in manifest["shards"])}
    tokens = {"train": 0, "val": 0}
    for shard in manifest["shards"]:
        data = (out / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
        tokens[shard["split"]] += len(data) // 2
    assert list(tokens.values()) == manifest["tokens"]
    assert manifest["shards"][0]["name"] == "train-00000.bin"


@pytest.mark.parametrize(("size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_two_bytes_up_to_65536_tokens_and_four_above(tmp_path: Path, size: int, dtype: str) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({f"w{id}": id for id in range(size)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    ids = [size - 1, 0, 1, 65_535, size - 2] * 4
    text = "".join(f"w{id} " for id in ids)
    folder = prepare([text], tokenizer=str(tmp_path / "tokenizer.json"), out=tmp_path / "out", val_fraction=0.2)
    prepared = open_prepared(folder)
    assert prepared.about["dtype"] == dtype
    assert prepared.train[:].tolist()[:15] == ids[:15]
    assert os.path.getsize(f"{folder}/train-00000.bin") == len(prepared.train) * np.dtype(dtype).itemsize


@pytest.mark.parametrize("keys", CASES, indirect=True)
def test_a_preparation_killed_anywhere_goes_on_and_equals_the_unbroken_one(
    keys: dict[str, Any], tmp_path: Path, encoded: list[str]
) -> None:
    batches = batches_of(keys, tmp_path / "unbroken")
    expected, all_chars = contents(tmp_path / "unbroken"), sum(map(len, encoded))
    went_on = 0
    numbers = {*range(1, batches, max(1, batches // 7)), batches}
    for number in numbers:
        out = tmp_path / f"killed {number}"
        with pytest.raises(KeyboardInterrupt):
            prepare(**keys, out=out, on_progress=killing(number))
        state = json.loads((out / PROGRESS).read_text())
        assert {path.name for path in out.iterdir()} == {PROGRESS, TOKENIZER, *(one["name"] for one in state["shards"])}
        went_on += state["chars"] > 0
        encoded.clear()
        prepare(**keys, out=out)
        assert sum(map(len, encoded)) == all_chars - state["chars"]
        assert contents(out) == expected
    assert went_on > len(numbers) // 2


@pytest.mark.parametrize("keys", ["cut", "stories", "val_data"], indirect=True)
def test_killed_again_and_again_it_comes_to_its_end(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SAME_LENGTH", 1000)  # a kill in each shard costs that shard
    prepare(**keys, out=tmp_path / "unbroken")
    for _ in range(100):
        try:
            prepare(**keys, out=tmp_path / "out", on_progress=killing(6))
        except KeyboardInterrupt:
            continue
        break
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("keys", CASES, indirect=True)
def test_killed_before_the_manifest_it_has_nothing_to_encode_again(
    keys: dict[str, Any], tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(**keys, out=tmp_path / "unbroken")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_manifest", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(**keys, out=tmp_path / "out")
    encoded.clear()
    prepare(**keys, out=tmp_path / "out")
    assert encoded == []
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("name", [TOKENIZER, PROGRESS, "train-00001.bin", MANIFEST])
@pytest.mark.parametrize("keys", ["cut"], indirect=True)
def test_killed_when_a_file_gets_its_name_it_goes_on(
    keys: dict[str, Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(**keys, out=tmp_path / "unbroken")
    replace = os.replace

    def die(source: str, target: str) -> None:
        replace(source, target)
        if os.path.basename(target) == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(**keys, out=tmp_path / "out")
    prepare(**keys, out=tmp_path / "out")
    assert contents(tmp_path / "out").items() >= contents(tmp_path / "unbroken").items()


@pytest.mark.parametrize("keys", ["cut"], indirect=True)
def test_what_a_killed_process_left_is_swept(keys: dict[str, Any], tmp_path: Path) -> None:
    prepare(**keys, out=tmp_path / "unbroken")
    script = f"""
import os, sys
from slm.data import encoding, shards, sources, tokenizer
import slm.data.prepare
for module, name, value in {[(module.__name__, name, value) for module, name, value in SMALL_SIZES]!r}:
    setattr(sys.modules[module], name, value)
told = []
def on_progress(what, done, total):
    told.append(what)
    if told.count("tokenizing") == 7:
        os._exit(9)
slm.data.prepare.prepare(**{keys!r}, out={str(tmp_path / "out")!r}, on_progress=on_progress)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    left = files.list_names(str(tmp_path / "out"))
    assert any(name.endswith(files.TEMPORARY_SUFFIX) for name in left)
    assert any(name.startswith("train-") for name in left)
    prepare(**keys, out=tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("keys", ["cut", "val_data"], indirect=True)
def test_a_source_that_changed_in_between_is_begun_anew(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(**keys, out=tmp_path / "out", on_progress=killing(6))
    name = keys["val_data"][0] if "val_data" in keys else keys["data"]
    before = os.stat(name)
    Path(name).write_text(Path(name).read_text().replace("cat", "cow"))
    os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))
    prepare(**keys, out=tmp_path / "out")
    prepare(**keys, out=tmp_path / "unbroken")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("change", [{"tokenizer": "byte"}, {"val_fraction": 0.5}, {"vocab_size": 270}], ids=str)
@pytest.mark.parametrize("keys", ["cut"], indirect=True)
def test_settings_that_changed_in_between_begin_anew(
    keys: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(**keys, out=tmp_path / "out", on_progress=killing(6))
    prepare(**{**keys, **change}, out=tmp_path / "out")
    prepare(**{**keys, **change}, out=tmp_path / "unbroken")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("damage", ["shorter", "longer", "missing"])
@pytest.mark.parametrize("keys", ["cut"], indirect=True)
def test_with_a_shard_of_another_size_nothing_trains_and_preparing_again_mends_it(
    keys: dict[str, Any], damage: str, tmp_path: Path
) -> None:
    out = prepare(**keys, out=tmp_path / "out")
    shard = tmp_path / "out" / "train-00001.bin"
    data = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(data[:-2] if damage == "shorter" else data + b"\0\0")
    with pytest.raises(UserError, match=r"train-00001\.bin.* same slm-prepare with --recheck"):
        open_prepared(out)
    prepare(**keys, out=out)
    assert shard.read_bytes() == data
    open_prepared(out)


@pytest.mark.parametrize("keys", ["cut"], indirect=True)
def test_one_flipped_bit_is_found_when_it_is_looked_for(keys: dict[str, Any], tmp_path: Path) -> None:
    out = prepare(**keys, out=tmp_path / "out")
    shard = tmp_path / "out" / "val-00000.bin"
    shard = shard if shard.exists() else next((tmp_path / "out").glob("val-*.bin"))
    good = shard.read_bytes()
    data = bytearray(good)
    data[10] ^= 1
    shard.write_bytes(data)
    prepare(**keys, out=out)
    assert shard.read_bytes() == data
    with pytest.raises(UserError, match=rf"{shard.name} is damaged.* same slm-prepare with --recheck"):
        open_prepared(out, recheck=True)
    prepare(**keys, out=out, recheck=True)
    assert shard.read_bytes() == good


def test_a_manifest_is_not_written_without_its_shards(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a" * 400)
    out = prepare(tmp_path / "text.txt", tokenizer="byte", out=tmp_path / "out")
    about = json.loads((tmp_path / "out" / MANIFEST).read_text())
    for name in (MANIFEST, "train-00000.bin"):
        (tmp_path / "out" / name).unlink()
    with pytest.raises(UserError, match="is missing"):
        shards.write_manifest(out, about)
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_of_texts_that_differ_in_the_second_reading_nothing_is_kept(tmp_path: Path) -> None:
    class Growing:
        """A text that is longer in each reading but the first two."""

        readings = 0

        def __iter__(self) -> Iterator[str]:
            self.readings += 1
            yield from ["a text. " * 100, "more. " * 50 * max(self.readings - 1, 1)]

    growing = Growing()
    keys = {"tokenizer": "byte", "out": tmp_path / "out"}
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(growing, **keys)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert prepare(["a text. " * 100, "more. " * 50], **keys)


def test_shards_double_in_length_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    monkeypatch.setattr(encoding, "_BATCH_CHARS", 50)
    (tmp_path / "text.txt").write_text("a" * 4000)
    manifest = shards.read_manifest(prepare(tmp_path / "text.txt", tokenizer="byte", out=tmp_path / "out"))
    assert manifest
    lengths = [shard["bytes"] // 2 for shard in manifest["shards"] if shard["split"] == "train"]
    assert lengths[:8] == [100, 100, 200, 200, 400, 400, 800, 800]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "another"}'], ids=repr)
def test_what_is_no_manifest_of_ours_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    assert shards.read_manifest(str(tmp_path)) is None
    with pytest.raises(UserError, match="slm-prepare"):
        open_prepared(str(tmp_path))


def test_a_newer_format_asks_for_a_newer_slm(tmp_path: Path) -> None:
    newer = {"format": shards.FORMAT, "format_version": shards.FORMAT_VERSION + 1}
    (tmp_path / MANIFEST).write_text(json.dumps(newer))
    with pytest.raises(UserError, match="Upgrade slm"):
        open_prepared(str(tmp_path))
