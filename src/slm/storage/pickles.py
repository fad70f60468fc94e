"""The content of a .pt file, read by a reader that knows nothing but tensors and plain values.

A .pt file is a zip archive with one top folder. In it `data.pkl` is a pickle, a program for a machine with a stack that
builds the content, and `data/0`, `data/1`, ... are the bytes of the tensors, which the program names by number. A
pickle can call any function that it names; the machine here knows two dozen instructions and three functions, and what
it cannot do no file can ask of it. Nothing is made that is larger than what is there of it in the file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

SCALARS = (str, int, float, bool, type(None))
MAX_DEPTH = 100  # of dicts and lists in each other
MOST_REPEATED = 2**20  # values that are met again where one list or tuple stands at several places
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
# Types younger than torch's storage classes: the bytes are untyped, and the tensor names its type.
_NEWER = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_DTYPES = {
    **{f"torch {name}": dtype for name, dtype in _STORAGES.items()},
    **{f"torch {name}": getattr(torch, name) for name in _NEWER},
    "torch.storage UntypedStorage": torch.uint8,
}
_TENSOR, _NEWER_TENSOR = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"
_NO_HOOKS = "collections OrderedDict"
_GLOBALS = {*_DTYPES, _TENSOR, _NEWER_TENSOR, _NO_HOOKS}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")


class _Global(NamedTuple):
    """The name of a function or type, not the thing itself."""

    name: str


class _Storage(NamedTuple):
    """The bytes of tensors, uint8, and the type of their elements."""

    data: torch.Tensor
    dtype: torch.dtype


def read(file: BinaryIO) -> Any:
    """The content of an open .pt file: tensors on the CPU, and plain values.

    Raises pickle.UnpicklingError where it is made of anything else, and another error where it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        folder = _check_archive(archive, file.seek(0, io.SEEK_END))
        program = archive.read(f"{folder}/data.pkl")
        try:
            content = _Machine(archive, folder).run(program)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:  # values of other types
            raise ValueError("its instructions make no sense") from error
    try:
        check_plain(content)
    except TypeError as error:
        raise pickle.UnpicklingError(str(error)) from error
    return content


def _check_archive(archive: zipfile.ZipFile, num_bytes: int) -> str:
    """The one top folder of an archive whose entries hold, uncompressed and unbroken, no more bytes than the file."""
    entries = archive.infolist()
    names = {entry.filename for entry in entries}
    folders = {name.partition("/")[0] for name in names}
    if len(folders) != 1 or len(names) < len(entries):
        raise zipfile.BadZipFile("its entries are not those of one folder")
    packed = any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries)
    outside = any(not 0 <= entry.header_offset < num_bytes for entry in entries)
    if packed or outside or sum(entry.file_size for entry in entries) > num_bytes:
        raise zipfile.BadZipFile("its entries are larger than the file")
    if damaged := archive.testzip():
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
    (folder,) = folders
    if f"{folder}/byteorder" in names and archive.read(f"{folder}/byteorder") != sys.byteorder.encode():
        raise zipfile.BadZipFile(f"its numbers are not {sys.byteorder}-endian, as those of this machine are")
    return folder


class _Machine:
    """Carries out the instructions of a pickle, https://docs.python.org/3/library/pickletools.html."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._data: dict[str, torch.Tensor] = {}  # read once, so that tensors that shared their memory still do

    def run(self, program: bytes) -> Any:
        """What is left on the stack when all is done."""
        for code, value, _ in pickletools.genops(program):
            if code.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[code.name])
            elif code.name in _VALUES:
                self._stack.append(value)
            elif code.name not in ("PROTO", "STOP"):
                self._step(code.name, value)
        (content,) = self._stack
        return content

    def _step(self, code: str, value: Any) -> None:
        stack = self._stack
        match code:
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                self._marked.append(stack)
                self._stack = []
            case "TUPLE":
                values = self._to_mark()
                self._stack.append(tuple(values))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(code[-1]))))
            case "SETITEM" | "APPEND":
                self._fill(self._pop(2 if code == "SETITEM" else 1))
            case "SETITEMS" | "APPENDS":
                self._fill(self._to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[value])
            case "GLOBAL" if value in _GLOBALS:
                stack.append(_Global(value))
            case "BINPERSID":
                stack.append(self._storage(*stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self._call(stack.pop(), arguments))
            case _:
                raise pickle.UnpicklingError(f"it asks for {code} {value!r:.100}")

    def _pop(self, count: int) -> list[Any]:
        """The topmost values, which go."""
        return [self._stack.pop() for _ in range(count)][::-1]

    def _to_mark(self) -> list[Any]:
        """The values above the last mark, which goes with them."""
        values, self._stack = self._stack, self._marked.pop()
        return values

    def _fill(self, values: list[Any]) -> None:
        """Adds values to the list, or keys and values to the dict, on top of the stack."""
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is dict and all(type(key) in SCALARS for key in values[::2]):
            target.update(zip(values[::2], values[1::2], strict=True))
        else:
            raise pickle.UnpicklingError(f"it fills a {type(target)}, or one with keys that are no plain values")

    def _storage(self, kind: Any, dtype: Any, number: Any, device: Any, count: Any) -> _Storage:
        """The bytes of a tensor, wherever it was."""
        storage = _Storage(self._read(f"{self._folder}/data/{number}"), _DTYPES[dtype.name])
        if kind != "storage" or count * storage.dtype.itemsize != len(storage.data):
            raise ValueError(f"its tensor {number} has not the size that it tells")
        return storage

    def _read(self, name: str) -> torch.Tensor:
        if name not in self._data:
            data = np.empty(self._archive.getinfo(name).file_size, np.uint8)
            data[:] = np.frombuffer(self._archive.read(name), np.uint8)
            self._data[name] = torch.from_numpy(data)
        return self._data[name]

    def _call(self, function: Any, arguments: Any) -> Any:
        """What one of the three functions returns that a file may call."""
        name = function.name if type(function) is _Global else None
        if name == _NO_HOOKS and arguments == ():
            return {}
        if name == _TENSOR:
            storage, *layout, _ = arguments
            return _tensor(storage, storage.dtype, *layout)
        if name == _NEWER_TENSOR:
            storage, *layout, _, dtype = arguments
            return _tensor(storage, _DTYPES[dtype.name], *layout)
        raise pickle.UnpicklingError(f"it calls {function!r:.100}")


def _tensor(
    storage: Any, dtype: torch.dtype, offset: int, size: tuple[int, ...], stride: tuple[int, ...], grad: bool
) -> torch.Tensor:
    """A tensor in some bytes; ValueError where it would reach beyond them."""
    if type(storage) is not _Storage or not _fits(offset, size, stride, len(storage.data) // dtype.itemsize):
        raise ValueError("one of its tensors is larger than the bytes that are there of it")
    tensor = torch.empty(0, dtype=dtype).set_(storage.data.untyped_storage(), offset, size, stride)
    return tensor.requires_grad_(grad)


def _fits(offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int) -> bool:
    """True where each number of a tensor has its own place among the `count` of its storage."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        return False
    if 0 in size:
        return offset <= count
    last, apart = offset, 1  # the largest index so far, and how far apart the next dimension must put its numbers
    for step, length in sorted(zip(stride, size, strict=True)):
        if length > 1 and step < apart:
            return False
        last += step * (length - 1)
        apart = max(apart, step * length)
    return last < count


def check_plain(content: object) -> None:
    """Returns None for tensors, numbers, strings and None in dicts, lists and tuples; raises TypeError for the rest.

    The rest is also what no program could walk: deeper than MAX_DEPTH, or made of parts that hold the same parts again
    and again, so that a kilobyte would print as a terabyte.
    """
    measured: dict[int, tuple[int, int]] = {}
    looked = 0

    def measure(value: Any, above: int) -> tuple[int, int]:
        """The size of a value, with all that is in it as often as it is met, and its levels of dicts and lists."""
        nonlocal looked
        looked += 1
        if id(value) in measured:
            return measured[id(value)]
        size, levels = 1, 0
        if type(value) is str:
            size += len(value) // 100
            looked += len(value) // 100
        elif type(value) in (dict, list, tuple):
            if type(value) is dict and (odd := [key for key in value if type(key) not in SCALARS]):
                raise TypeError(f"a file of tensors and plain values cannot hold the key {odd[0]!r:.100}")
            inside = [*value, *value.values()] if type(value) is dict else value
            sizes = [measure(one, above + 1) for one in inside] if above < MAX_DEPTH else []
            size, levels = 1 + sum(each[0] for each in sizes), 1 + max((each[1] for each in sizes), default=0)
        elif type(value) not in SCALARS and not _is_plain_tensor(value):
            raise TypeError(f"a file of tensors and plain values cannot hold {value!r:.100}, a {type(value)}")
        if above + levels > MAX_DEPTH:
            raise TypeError(f"a file of tensors and plain values cannot nest deeper than {MAX_DEPTH} levels")
        measured[id(value)] = size, levels
        return size, levels

    if measure(content, 0)[0] > MOST_REPEATED + 4 * looked:
        raise TypeError("a file of tensors and plain values cannot hold the same values that often")


def _is_plain_tensor(value: object) -> bool:
    """True for a tensor that its bytes, type, size and strides tell all of."""
    if type(value) is not torch.Tensor or value.layout is not torch.strided or value.dtype not in _DTYPES.values():
        return False
    if value.is_meta or value.is_conj() or value.is_neg() or vars(value):
        return False
    count = value.untyped_storage().nbytes() // value.dtype.itemsize
    return _fits(int(value.storage_offset()), tuple(value.shape), value.stride(), count)
