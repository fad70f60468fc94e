"""Laws of the reader of .pt files: it reads all that is written, and nothing else, within the file's own size."""

from __future__ import annotations

import io
import math
import pickle
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm.config import UserError
from slm.storage import load_file, pickles, save_file

TYPES = sorted(set(pickles._DTYPES.values()), key=str)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
tensors = st.builds(
    lambda size, dtype: torch.arange(math.prod(size)).reshape(size).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(TYPES),
)
contents = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        scalars | tensors,
        lambda inner: (
            st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(scalars, inner, max_size=4)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def same(one: Any, other: Any) -> bool:
    """True for values of equal types that hold the same; NaN is the same as NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        bits = [tensor.flatten().view(torch.uint8) for tensor in (one, other)]
        told = [(tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad) for tensor in (one, other)]
        return told[0] == told[1] and bits[0].tolist() == bits[1].tolist()
    if isinstance(one, dict):
        return len(one) == len(other) and all(map(same, [*one, *one.values()], [*other, *other.values()]))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or one != one


def packed(content: Any) -> bytes:
    """What torch writes of any value."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def archive_of(program: bytes, **entries: bytes) -> bytes:
    """A .pt file of a pickle and other entries."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in entries.items():
            archive.writestr(f"archive/{name.replace('_', '/')}", content)
    return file.getvalue()


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def many(values: list[int]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor_of(offset: int, size: list[int], stride: list[int], *, count: int = 4, kind: str = "Float") -> bytes:
    """A file with one tensor in a storage of 4 floats, which tells of itself what is given."""
    storage = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"Storage\n" + text("0") + text("cpu")
    layout = integer(offset) + many(size) + many(stride) + b"\x89ccollections\nOrderedDict\n)R"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(count) + b"tQ" + layout + b"tR."
    return archive_of(b"\x80\x02" + call, data_0=bytes(16))


@given(contents)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    path = str(tmp_path_factory.getbasetemp() / "any.pt")
    content = {f"_{key}": value for key, value in content.items()}
    save_file(path, content)
    found = load_file(path)
    assert same({"format": "slm", "format_version": 1, **content}, found)


@given(contents)
def test_torch_reads_the_same(content: dict[str, Any]) -> None:
    data = packed(content)
    assert same(torch.load(io.BytesIO(data), weights_only=True), pickles.read(io.BytesIO(data)))


def test_tensors_that_share_memory_still_do_and_keep_their_strides(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    path = str(tmp_path / "x.pt")
    save_file(path, {"whole": whole, "column": whole[:, 1], "turned": whole.t(), "again": whole})
    found = load_file(path)
    assert found["turned"].stride() == (1, 4)
    found["whole"][1, 1] = 100.0
    assert found["column"][1] == found["turned"][1, 1] == found["again"][1, 1] == 100.0


def test_what_asked_for_a_gradient_still_does(tmp_path: Path) -> None:
    save_file(str(tmp_path / "x.pt"), {"yes": torch.ones(2, requires_grad=True), "no": torch.ones(2)})
    found = load_file(str(tmp_path / "x.pt"))
    assert (found["yes"].requires_grad, found["no"].requires_grad) == (True, False)


def test_a_tensor_in_its_storage_is_read() -> None:
    assert pickles.read(io.BytesIO(tensor_of(1, [3], [1]))).tolist() == [0.0] * 3


@pytest.mark.parametrize(
    "data",
    [
        tensor_of(0, [5], [1]),
        tensor_of(2, [3], [1]),
        tensor_of(-1, [3], [1]),
        tensor_of(0, [2, 2], [-1, 1]),
        tensor_of(0, [2**40], [0]),
        tensor_of(0, [2**40, 2**40], [1, 1]),
        tensor_of(0, [2, 2], [1, 1]),
        tensor_of(2**62, [0], [1]),
        tensor_of(0, [2], [2**62]),
        tensor_of(0, [3], [1, 1]),
        tensor_of(0, [4], [1], count=2**40),
        tensor_of(0, [4], [1], count=-4),
        tensor_of(0, [4], [1], kind="Double"),
        tensor_of(0, [4], [1]).replace(b"\x89", b"K"),
    ],
    ids=range(14),
)
def test_a_tensor_that_is_not_within_its_storage_is_damage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.pt is damaged.*Copy it again"):
        load_file(str(tmp_path / "x.pt"))


REFUSED = {
    "a call": b"cposix\nsystem\n" + text("touch canary") + b"\x85R.",
    "evaluation": b"cbuiltins\neval\n" + text("1") + b"\x85R.",
    "an allocation": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "a tensor of any size": b"ctorch\nempty\nJ\xff\xff\xff\x7f\x85R.",
    "a call of a type": b"ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.",
    "a call of text": text("collections OrderedDict") + b")R.",
    "a type alone": b"ctorch\nFloatStorage\n.",
    "an object": b"ccollections\nOrderedDict\n)\x81.",
    "a state": b"}}b.",
    "bytes": b"C\x01x.",
    "a set": b"\x8f.",
    "a long integer": b"\x8b\x00\x01\x00\x00" + b"\x01" * 256 + b".",
    "a key that is a list": b"}](K\x01eK\x02s.",
    "a key that is deep": b"})" + b"\x85" * 100_000 + b"K\x01s.",
    "deep tuples": b")" + b"\x85" * 100_000 + b".",
    "deep lists": b"]" * 300 + b"a" * 299 + b".",
    "a list in itself": b"]q\x00(h\x00h\x00e.",
    "a dict in itself": b"}q\x00K\x01h\x00s.",
    "tuples doubled again and again": b"K\x01\x85" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b".",
    "a long text again and again": b"(" + text("x" * 10_000) + b"q\x00" + b"h\x00" * 200_000 + b"t.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_pickle_that_asks_for_more_than_plain_values_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = archive_of(b"\x80\x02" + REFUSED[name])
    tracemalloc.start()
    try:
        with pytest.raises(pickle.UnpicklingError):
            pickles.read(io.BytesIO(data))
        assert tracemalloc.get_traced_memory()[1] < 200_000 + 200 * len(data)
    finally:
        tracemalloc.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", [b"", b".", b"K\x01", b"t.", b"e.", b"s.", b"h\x07.", b"K\x01K\x01."])
def test_a_pickle_that_makes_no_sense_is_damage(program: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        pickles.read(io.BytesIO(archive_of(program)))


@pytest.mark.parametrize("index", [0, 2**31 - 1, 2**32 - 1])
def test_a_memo_of_any_number_takes_no_more_memory(index: int) -> None:
    assert pickles.read(io.BytesIO(archive_of(b"K\x05r" + index.to_bytes(4, "little") + b"."))) == 5


def test_values_that_stand_at_several_places_are_written_and_read(tmp_path: Path) -> None:
    betas, names = (0.9, 0.95), ["x" * 500] * 1000
    save_file(str(tmp_path / "x.pt"), {"groups": [{"betas": betas, "names": names}] * 50, "zeros": [0] * 100_000})
    assert load_file(str(tmp_path / "x.pt"))["groups"][49] == {"betas": betas, "names": names}


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**12),
        torch.arange(5).unfold(0, 2, 1),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.zeros(2, dtype=torch.complex64).conj(),
        torch.nn.Parameter(torch.zeros(2)),
        torch.Size([1]),
        {(1, 2): 3},
        b"bytes",
        {1, 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="a file of tensors and plain values cannot"):
        save_file(str(tmp_path / "x.pt"), {"x": [value]})
    assert list(tmp_path.iterdir()) == []


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_as_deep_as_can_be_written_can_be_read(tmp_path: Path) -> None:
    path, content = str(tmp_path / "x.pt"), nested(pickles.MAX_DEPTH)
    save_file(path, {"x": content[0]})
    assert load_file(path)["x"] == content[0]
    for deeper in ({"x": content}, {"a": content[0], "b": [content[0]]}):  # also where a part was met before
        with pytest.raises(TypeError, match="nest deeper"):
            save_file(path, deeper)


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"K\x01.")
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(UserError, match="larger than the file"):
        load_file(str(path))


def test_entries_that_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    """A directory that names the same megabyte again and again."""
    good = archive_of(b"K\x01.", data_0=bytes(10**5))
    start = good.index(b"PK\x01\x02", 10**5)
    end = good.index(b"PK\x05\x06")
    entry = good[good.index(b"PK\x01\x02", start + 1) : end]
    entries = b"".join(entry.replace(b"data/0", b"data/%c" % (65 + i)) for i in range(20))
    told = len(entries) + end - start
    record = good[end : end + 8] + (22).to_bytes(2, "little") * 2 + told.to_bytes(4, "little") + good[end + 16 :]
    (tmp_path / "x.pt").write_bytes(good[:end] + entries + record)
    with pytest.raises(UserError, match="larger than the file"):
        load_file(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("name", ["../canary", "/canary", "other/data/0", "archive/data.pkl"])
def test_an_archive_of_other_names_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(archive_of(b"K\x01."))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        archive.writestr(name, b"x")
    with pytest.raises(UserError, match="not those of one folder"):
        load_file(str(path))
    assert list(tmp_path.parent.glob("canary")) == []


def test_numbers_of_another_kind_of_machine_are_refused() -> None:
    with pytest.raises(zipfile.BadZipFile, match="endian"):
        pickles.read(io.BytesIO(archive_of(b"K\x01.", byteorder=b"middle")))


def test_every_flipped_bit_of_a_small_file_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_file(str(path), {"weights": torch.arange(8.0), "settings": {"lr": 0.1, "names": ["a", "b"]}})
    good, content = path.read_bytes(), load_file(str(path))
    for place in range(0, 8 * len(good), 11):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        try:
            found = load_file(str(path))
        except (UserError, OSError):
            continue
        assert same(found, content)
