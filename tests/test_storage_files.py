"""Laws of slm.storage.files: local paths, file:// and memory:// behave alike; a write is whole or absent."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.registry import known_implementations

from slm.storage import files
from slm.storage.files import DeniedError, MissingError, StorageError

NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit or link")


@pytest.fixture(params=["local", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place in each kind of storage that needs no server."""
    if request.param == "local":
        return str(tmp_path / "root")
    if request.param == "file":
        return (tmp_path / "root").as_uri()
    return f"memory://{request.node.name}".translate({ord(c): "-" for c in "[]"})


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "source.bin"
    path.write_bytes(b"source")
    return str(path)


def litter(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.name.endswith(files.TEMPORARY_SUFFIX)]


# Paths.


@pytest.mark.parametrize("path", ["gs://b/x", "file:///x", "memory://x", "s3://b", "GS://b"])
def test_a_scheme_makes_a_path_remote(path: str) -> None:
    assert files.is_remote(path)


@pytest.mark.parametrize("path", ["x", "/x/y", "C:\\data", "C:/data", "c://data", "./gs", "a:b", "~/x"])
def test_anything_else_is_local(path: str) -> None:
    assert not files.is_remote(path)


MALFORMED = [
    "", "  ", "gs:/bucket/x", "gs:bucket", "gs:", "GS:/bucket", "s3:/bucket/x", "https:/x.org/a", "file:/x",
    " gs:/bucket", "./gs:/bucket/x", "/home/me/gs:/bucket", "runs\\gs:\\bucket", "gs:\\\\bucket\\x",
    "gs://", "gs:///x", "gs:////", "gs://B/x", "gs://ab/x", "gs://-abc", "gs://abc-", "gs://a_b c/x",
    "gs://" + "a" * 64,
    "gs://bucket//x", "gs://bucket/a//x", "gs://bucket//", "gs://bucket/a//", "gs://bucket/./x", "gs://bucket/a/..",
    "gs://bucket/a\nb", "gs://bucket/\x7f", "a\0b", "a\tb", "\x85", "gs://bucket/" + "a" * 1025, "gs://bucket/\udc80",
    " gs://bucket/x", "://bucket", "1x://bucket", "GS://bucket/x", "gcs://bucket/x", "simplecache::gs://bucket/x",
    "zip://a::gs://bucket/b.zip", "nosuch://bucket/x", "s4://bucket/x", "file://x/y", "file://", "https://", "s3:///",
]  # fmt: skip


@pytest.mark.parametrize("path", MALFORMED)
def test_a_malformed_path_is_refused_by_every_function_and_makes_no_folder(
    path: str, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    calls = [
        lambda: files.check_path(path),
        lambda: files.exists(path),
        lambda: files.is_folder(path),
        lambda: files.list_names(path),
        lambda: files.read_bytes(path),
        lambda: files.open_read(path).__enter__(),
        lambda: files.write_bytes(path, b"x"),
        lambda: files.replace_file(path).__enter__(),
        lambda: files.upload(source, path),
        lambda: files.download(path, "copy"),
        lambda: files.move(path, "x"),
        lambda: files.move(source, path),
        lambda: files.remove(path),
        lambda: files.check_writable(path),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"The (path|URL)|unknown"):
            call()
    assert os.listdir(tmp_path) == ["source.bin"]


@pytest.mark.parametrize(
    "path",
    ["x", "/a/b", "C:\\data\\x", "a:b", "notes: one.txt", "gsx:/a", "gs://bucket_name", "gs://bucket_name/",
     "gs://my.bucket-1/a b/ü/x.pt", "gs://bucket/a/", "gs://bucket/a#1?[x]*", "gs://bucket/a::b", "gs://" + "a" * 63, "memory://",
     "memory://a", "file:///a/b", "https://example.org/a//b?c=d//e"],
)  # fmt: skip
def test_a_well_formed_path_passes(path: str) -> None:
    files.check_path(path)


def test_a_protocol_whose_package_is_missing_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"class": "no_such_package.Files", "err": "Install no-such-package to use it"}
    monkeypatch.setitem(known_implementations, "absent", wanted)
    with pytest.raises(ValueError, match="Install no-such-package"):
        files.check_path("absent://a/b")


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("gs://bucket", "a", "gs://bucket/a"),
        ("gs://bucket/", "a/b", "gs://bucket/a/b"),
        ("memory://", "a", "memory:///a"),
        ("file:///", "a", "file:///a"),
        ("x", "a", os.path.join("x", "a")),
        ("", "a", "a"),
    ],
)
def test_join_adds_one_slash(folder: str, name: str, joined: str) -> None:
    assert files.join(folder, name) == joined


@pytest.mark.parametrize("folder", ["/run", "gs://bucket/run", "memory://run"])
@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", ".", "a/"])
def test_a_joined_name_stays_inside_its_folder(folder: str, name: str) -> None:
    with pytest.raises(ValueError, match="must stay inside"):
        files.join(folder, name)


def test_the_import_brings_no_heavy_module() -> None:
    heavy = "{'fsspec', 'gcsfs', 'google', 'torch', 'numpy', 'tempfile', 'requests'}"
    code = f"import slm.storage.files, slm.storage.gcs, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# One behaviour for every storage.


def test_what_is_written_is_read_back(root: str, tmp_path: Path) -> None:
    path = files.join(root, "deep/er/x.bin")
    for data in (b"first", b"", b"x" * 100_000):
        files.write_bytes(path, data)
        assert files.read_bytes(path) == data
        with files.open_read(path) as stream:
            assert stream.read() == data
    assert files.list_names(files.join(root, "deep/er")) == ["x.bin"]
    assert litter(tmp_path) == []


def test_an_upload_does_not_replace_unless_allowed(root: str, source: str) -> None:
    path = files.join(root, "x")
    files.upload(source, path)
    assert files.read_bytes(path) == b"source"
    files.write_bytes(path, b"theirs")
    with pytest.raises(FileExistsError, match="choose another name"):
        files.upload(source, path)
    assert files.read_bytes(path) == b"theirs"
    files.upload(source, path, overwrite=True)
    assert files.read_bytes(path) == b"source"


def test_a_download_replaces_the_whole_file(root: str, source: str, tmp_path: Path) -> None:
    files.write_bytes(files.join(root, "x"), b"new")
    files.download(files.join(root, "x"), source)
    assert Path(source).read_bytes() == b"new"
    files.download(files.join(root, "x"), str(tmp_path / "new folder" / "y"))
    assert (tmp_path / "new folder" / "y").read_bytes() == b"new"
    assert litter(tmp_path) == []


def test_a_failed_download_leaves_the_old_file(root: str, source: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        files.download(files.join(root, "absent"), source)
    assert Path(source).read_bytes() == b"source"
    assert litter(tmp_path) == []


def test_a_moved_file_has_one_name_and_replaces_nothing(root: str) -> None:
    a, b, c = (files.join(root, name) for name in ("a", "new/b", "c"))
    files.write_bytes(a, b"x")
    files.move(a, b)
    assert files.read_bytes(b) == b"x"
    assert not files.exists(a)
    files.write_bytes(c, b"y")
    with pytest.raises(FileExistsError, match="choose another name"):
        files.move(b, c)
    assert files.read_bytes(c) == b"y"
    with pytest.raises(FileNotFoundError):
        files.move(a, files.join(root, "d"))


def test_names_are_listed_sorted_and_one_level_deep(root: str) -> None:
    for name in ("b", "a", "sub/c"):
        files.write_bytes(files.join(root, name), b"x")
    assert files.list_names(root) == files.list_names(root + "/") == ["a", "b", "sub"]
    assert files.list_names(files.join(root, "absent")) == files.list_names(files.join(root, "a")) == []
    assert files.exists(root) and files.exists(files.join(root, "a"))
    assert files.is_folder(root) and files.is_folder(files.join(root, "sub"))
    assert not files.exists(files.join(root, "absent"))
    assert not files.is_folder(files.join(root, "a")) and not files.is_folder(files.join(root, "absent"))


@pytest.mark.parametrize(
    "name", ["a[1]", "[ab]", "a{b,c}", "x #1 é", *(() if os.name == "nt" else ("a*", "a?b", "**"))]
)
def test_no_letter_of_a_name_is_a_wildcard(root: str, source: str, name: str) -> None:
    path = files.join(files.join(root, f"in {name}"), name)
    for other in ("a1", "a", "b", "axb"):
        files.write_bytes(files.join(files.join(root, f"in {name}"), other), b"other")
    files.upload(source, path)
    files.upload(source, path, overwrite=True)
    files.write_bytes(path, b"x")
    assert files.read_bytes(path) == b"x"
    files.download(path, source)
    assert Path(source).read_bytes() == b"x"
    assert name in files.list_names(files.join(root, f"in {name}"))
    assert files.look(path) == (1, None, None)
    files.move(path, path + "2")
    files.remove(path + "2")
    assert files.list_names(files.join(root, f"in {name}")) == ["a", "a1", "axb", "b"]


def test_a_look_tells_the_size_of_a_file_and_nothing_of_a_folder(root: str) -> None:
    files.write_bytes(files.join(root, "sub/a"), b"123")
    assert files.look(files.join(root, "sub/a")) == (3, None, None)
    assert files.look(files.join(root, "sub")) is None
    assert files.look(files.join(root, "absent")) is None


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_removing_takes_an_empty_folder_and_no_other(scheme: str, tmp_path: Path) -> None:
    root = tmp_path.as_uri() if scheme == "file" else "memory://empty-folder"
    files.write_bytes(files.join(root, "sub/a"), b"x")
    with pytest.raises(StorageError):
        files.remove(files.join(root, "sub"))
    files.remove(files.join(root, "sub/a"))
    files.remove(files.join(root, "sub"))
    assert files.list_names(root) == []


def test_removing_twice_is_no_error(root: str) -> None:
    path = files.join(root, "a")
    files.write_bytes(path, b"x")
    files.remove(path)
    files.remove(path)
    assert not files.exists(path)


def test_a_missing_file_is_a_file_not_found_error(root: str, source: str) -> None:
    path = files.join(root, "absent")
    with pytest.raises(FileNotFoundError, match="check the spelling"):
        files.read_bytes(path)
    with pytest.raises(MissingError, match="check the spelling"), files.open_read(path):
        pass
    with pytest.raises(MissingError, match="no local file"):
        files.upload(source + ".absent", path)


def test_the_writable_check_leaves_nothing_behind(root: str, tmp_path: Path) -> None:
    folder = files.join(root, "runs/first")
    assert files.check_writable(folder) == []
    assert files.list_names(folder) == []
    assert litter(tmp_path) == []


def test_the_writable_check_refuses_a_file(root: str) -> None:
    files.write_bytes(files.join(root, "a"), b"x")
    with pytest.raises(StorageError, match="it is a file, not a folder"):
        files.check_writable(files.join(root, "a"))


def test_a_refused_delete_is_a_note_that_names_the_file(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise DeniedError("retention policy")

    monkeypatch.setattr(files, "remove", refuse)
    (note,) = files.check_writable(root)
    (name,) = files.list_names(root)
    assert name in note
    assert "retention policy" in note


def test_files_do_not_move_between_storages(source: str) -> None:
    with pytest.raises(ValueError, match="upload or download"):
        files.move(source, "memory://x")


def test_an_error_in_the_reader_of_a_stream_is_its_own(root: str) -> None:
    files.write_bytes(files.join(root, "a"), b"\xff")
    with pytest.raises(UnicodeDecodeError), files.open_read(files.join(root, "a")) as stream:
        stream.read().decode()


# Local errors.


def test_a_folder_in_place_of_a_file_is_told_as_such(tmp_path: Path, source: str) -> None:
    folder = str(tmp_path)
    calls = [lambda: files.read_bytes(folder), lambda: files.write_bytes(folder, b"x")]
    calls += [lambda: files.download(source, folder), lambda: files.move(folder, folder + "2")]
    for call in calls:
        with pytest.raises(StorageError, match="it is a folder, not a file"):
            call()


def test_a_file_in_place_of_a_folder_is_told_as_such(source: str) -> None:
    assert not files.exists(source + "/x")
    for call in (lambda: files.write_bytes(source + "/x", b"x"), lambda: files.check_writable(source + "/x/y")):
        with pytest.raises(StorageError, match=r"not a folder|name is taken"):
            call()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, StorageError, "disk is full"),
        (errno.EDQUOT, StorageError, "quota is used up"),
        (errno.EROFS, PermissionError, "read-only"),
        (errno.EACCES, PermissionError, "permission denied"),
        (errno.EPERM, DeniedError, "permission denied"),
        (errno.EIO, StorageError, "check the place"),
    ],
)
def test_a_failure_of_the_disk_leaves_the_old_file_and_no_litter(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], words: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(kind, match=words) as caught:
                files.write_bytes(source, b"new")
            assert isinstance(caught.value, StorageError)
            assert source in str(caught.value)
            with pytest.raises(kind, match=words):
                files.check_writable(str(tmp_path))
        assert Path(source).read_bytes() == b"source"
        assert os.listdir(tmp_path) == ["source.bin"]


def test_a_folder_that_may_not_be_looked_at_is_not_taken_for_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", deny)
        with pytest.raises(PermissionError, match="permission denied"):
            files.exists("locked/x")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_exception_in_the_block_passes_and_the_old_file_stays(
    source: str, tmp_path: Path, error: type[BaseException]
) -> None:
    def fail_halfway() -> None:
        with files.replace_file(source) as temporary:
            Path(temporary).write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    assert Path(source).read_bytes() == b"source"
    assert os.listdir(tmp_path) == ["source.bin"]


def test_the_target_changes_only_at_the_end_of_the_block(source: str) -> None:
    with files.replace_file(source) as temporary:
        Path(temporary).write_bytes(b"new")
        assert Path(source).read_bytes() == b"source"
    assert Path(source).read_bytes() == b"new"


def test_bytes_and_name_are_flushed_in_order(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is all a test can show: what a power cut leaves is the disk's affair."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    kinds = {True: "fsync folder", False: "fsync file"}
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(kinds[os.path.isdir(f"/proc/self/fd/{fd}")]) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append("rename") or replace(a, b))
    files.write_bytes(source, b"new")
    if sys.platform == "linux":
        assert done == ["fsync file", "rename", "fsync folder"]
    else:
        assert done.index("rename") == 1


def test_a_file_system_that_cannot_flush_a_folder_is_accepted(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, []

    def only_files(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    files.write_bytes(source, b"new")
    assert Path(source).read_bytes() == b"new"


@NOT_ON_WINDOWS
def test_a_link_stays_a_link(source: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    files.write_bytes(str(link), b"new")
    assert link.is_symlink()
    assert Path(source).read_bytes() == b"new"


@NOT_ON_WINDOWS
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_disk_that_fills_up_in_the_middle_leaves_the_old_file(source: str, tmp_path: Path, scheme: str) -> None:
    """A limit of the system, not a mock: the file may not grow past 4096 bytes, also for root."""
    code = (
        "import resource, signal, sys\n"
        "from slm.storage import files\n"
        "import tempfile, fsspec.implementations.local\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "big = sys.argv[2]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    files.upload(big, sys.argv[1], overwrite=True)\n"
        "except files.StorageError as error:\n"
        "    print(error)\n"
    )
    big = tmp_path / "big"
    big.write_bytes(b"x" * 100_000)
    command = [sys.executable, "-c", code, scheme + source, str(big)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert source in done.stdout
    assert Path(source).read_bytes() == b"source"
    assert sorted(os.listdir(tmp_path)) == ["big", "source.bin"]


# Remote systems that fail.


def test_a_cut_upload_shows_no_file_under_the_final_name(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")

    def cut(local_path: str, path: str) -> None:
        system.pipe_file(path, b"sou")

    monkeypatch.setattr(system, "put_file", cut)
    with pytest.raises(StorageError, match="3 bytes"):
        files.upload(source, "memory://cut/x")
    assert files.list_names("memory://cut") == []


def test_a_cut_download_is_an_error(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_bytes("memory://short/x", b"whole")
    monkeypatch.setattr(fsspec.filesystem("memory"), "get_file", lambda _, local: Path(local).write_bytes(b"who"))
    with pytest.raises(StorageError, match="5 bytes"):
        files.download("memory://short/x", source)
    assert Path(source).read_bytes() == b"source"
    assert litter(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("token expired")])
def test_a_storage_that_does_not_answer_is_not_taken_for_empty(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fsspec.filesystem("memory"), "info", fail)
    for call in (files.exists, files.is_folder, files.list_names, files.look, files.remove):
        with pytest.raises(StorageError, match=r"memory://x.*(no route|token expired)"):
            call("memory://x")


def test_an_exception_of_a_foreign_family_becomes_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class BotoError(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise BotoError("signature does not match")

    monkeypatch.setattr(fsspec.filesystem("memory"), "open", fail)
    with pytest.raises(StorageError, match=r"memory://x.*BotoError: signature"):
        files.read_bytes("memory://x")


def test_a_web_server_that_does_not_answer_is_no_absence() -> None:
    url = "http://127.0.0.1:9/run/config.toml"  # where nobody listens
    for look in (files.exists, files.is_folder, files.look, files.read_bytes):
        with pytest.raises(files.StorageError, match=r"127\.0\.0\.1:9") as caught:
            look(url)
        assert not isinstance(caught.value, files.MissingError)
