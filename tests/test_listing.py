"""Laws of slm.storage.listing: every kind of storage gives the same files for the same names."""

from __future__ import annotations

import functools
import http.server
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from slm.config import UserError
from slm.storage import files, listing
from slm.storage.files import DeniedError, MissingError, StorageError

NAMES = ["a.txt", "b.md", "d/b.txt", "d/e/f.txt", "d/e/g.md", "dd/x[1].txt", "dd/x1.txt"]
HIDDEN = [".hidden.txt", "d/.git/x.txt", "d/__pycache__/y.txt", "d/e/.z.txt"]
NOT_ON_WINDOWS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such link or permission")


@pytest.fixture(params=["local", "file", "memory", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with NAMES and HIDDEN in each kind of storage."""
    if request.param == "gs":
        request.getfixturevalue("fake")
    place = {
        "local": str(tmp_path / "root"),
        "file": (tmp_path / "root").as_uri(),
        "memory": f"memory://{uuid.uuid4().hex}",
        "gs": "gs://bucket/root",
    }[request.param]
    for name in NAMES + HIDDEN:
        write(files.join(place, name), name.encode())
    return place


def write(path: str, data: bytes) -> None:
    """files.write_bytes moves by fsspec, which takes the `[` of a name for a wildcard."""
    if path.startswith("memory://"):
        fsspec.filesystem("memory").pipe(path, data)
    else:
        files.write_bytes(path, data)


def below(root: str, source: str) -> list[str]:
    """What is found, as names below the root."""
    return [file.path[len(root) + 1 :].replace(os.sep, "/") for file in listing.find(source)]


def test_a_folder_means_all_files_below_it_that_are_not_hidden(root: str) -> None:
    assert below(root, root) == below(root, f"{root}/") == sorted(NAMES)


def test_a_file_means_itself_even_where_a_folder_would_leave_it_out(root: str) -> None:
    for name in ("a.txt", "dd/x[1].txt", *HIDDEN):
        path = files.join(root, name)
        (found,) = listing.find(path)
        assert (found.path, found.size, found.name) == (path, len(name), name.rpartition("/")[2])
        assert listing.is_single(path, [found])


def test_what_is_found_can_be_opened(root: str) -> None:
    for found in listing.find(f"{root}/d"):
        with files.open_read(found.path) as file:
            assert found.path.endswith(file.read().decode())


PATTERNS = {
    "*.txt": ["a.txt"],
    "?.*": ["a.txt", "b.md"],
    "[ab].*": ["a.txt", "b.md"],
    "*/*.txt": ["d/b.txt", "dd/x1.txt", "dd/x[1].txt"],
    "**/*.txt": ["a.txt", "d/b.txt", "d/e/f.txt", "dd/x1.txt", "dd/x[1].txt"],
    "**/*": sorted(NAMES),
    "d/**/g.md": ["d/e/g.md"],
    "d/**": ["d/b.txt", "d/e/f.txt", "d/e/g.md"],
    "**/e": ["d/e/f.txt", "d/e/g.md"],
    "d*/": ["d/b.txt", "d/e/f.txt", "d/e/g.md", "dd/x1.txt", "dd/x[1].txt"],
    "dd/x[1].txt": ["dd/x[1].txt"],
    "dd/x[12].txt": ["dd/x1.txt"],
    "**/**/*.md": ["b.md", "d/e/g.md"],
}


def test_a_glob_means_its_matches_and_all_below_a_folder_that_matches(root: str) -> None:
    assert {pattern: below(root, f"{root}/{pattern}") for pattern in PATTERNS} == PATTERNS


def test_where_nothing_is_found_the_error_names_what_was_looked_for(root: str) -> None:
    for name in ("nothing", "nothing/*.txt", "*.nothing", "a.txt/b", "d/.git/*/x"):
        with pytest.raises(MissingError, match=r"nothing|a.txt/b|d/.git"):
            listing.find(f"{root}/{name}")


def test_a_glob_or_folder_of_one_file_is_not_that_file_named_itself(root: str) -> None:
    for source in (f"{root}/*.md", files.join(root, "d/.git")):
        assert not listing.is_single(source, listing.find(files.join(root, "a.txt")))


def test_the_stamp_changes_with_the_content_and_only_then(root: str) -> None:
    path = files.join(root, "a.txt")
    (old,) = listing.find(path)
    assert [old] == [file for file in listing.find(root) if file.path == path]
    write(path, b"other")
    if not files.is_remote(path):
        os.utime(path, (1, 1))
    elif root.startswith("file"):
        os.utime(path.removeprefix("file://"), (1, 1))
    (new,) = listing.find(path)
    assert old.stamp
    assert new.stamp != old.stamp


def test_a_relative_glob_gives_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    assert [file.path for file in listing.find("**/*.txt")] == ["b.txt", os.path.join("d", "a.txt")]


@NOT_ON_WINDOWS
@pytest.mark.parametrize("pattern", ["", "/**", "/**/*.txt", "/**/**/a.txt"])
def test_links_are_followed_and_lead_round_in_no_circle(tmp_path: Path, pattern: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.txt").touch()
    folder = tmp_path / "folder"
    (folder / "d").mkdir(parents=True)
    (folder / "a.txt").touch()
    for name, target in (("up", folder), ("d/upper", folder), ("linked", other), ("nowhere", "missing"), ("o", "o")):
        (folder / name).symlink_to(target)
    (other / "back").symlink_to(folder)
    (folder / "c.txt").symlink_to(folder / "a.txt")
    found = [Path(file.path).name for file in listing.find(f"{folder}{pattern}")]
    assert sorted(set(found)) == (["a.txt"] if "a.txt" in pattern else ["a.txt", "b.txt", "c.txt"])
    assert len(found) == len(set(found))


@NOT_ON_WINDOWS
def test_a_pipe_is_refused_by_name_and_left_out_of_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.txt").touch()
    assert [file.name for file in listing.find(str(tmp_path))] == ["a.txt"]
    with pytest.raises(UserError, match="pipe"):
        listing.find(str(tmp_path / "pipe"))


def test_a_folder_that_may_not_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: str) -> list[str]:
        raise PermissionError

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(DeniedError, match="permission"):
        listing.find(str(tmp_path))


def test_a_malformed_path_is_refused() -> None:
    for path in ("", "gs:/bucket/x", "gs://UPPER/x", "nosuch://x"):
        with pytest.raises(UserError):
            listing.find(path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def do_HEAD(self) -> None:
        if self.path.startswith("/secret"):
            self.send_error(403)
        else:
            super().do_HEAD()

    def do_GET(self) -> None:
        if self.path.startswith("/secret"):
            self.send_error(403)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "a.txt").write_text("abc")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_web_address_means_one_file_and_its_query_is_no_wildcard(web: str) -> None:
    for address in (f"{web}/a.txt", f"{web}/a.txt?download=*.csv#x.md"):
        (found,) = listing.find(address)
        assert (found.path, found.size, found.name) == (address, 3, "a.txt")
        assert found.stamp
        assert listing.is_single(address, [found])


@pytest.mark.parametrize(
    "rest",
    ["", "/", "/?id=7", "/d/", "/d/#top", "/*.txt", "/d/**", "/x[1].txt", "/[ab].txt?x=1", "?x", "//"],
)
def test_a_web_address_that_names_no_file_is_refused_without_asking(rest: str) -> None:
    for host in ("http://127.0.0.1:9", "https://nosuch.invalid", "http://[0:0:0:0:0:0:0:1]:9"):
        with pytest.raises(UserError, match="means one file: there are no folders or globs on the web") as error:
            listing.find(host + rest)
        assert repr(host + rest) in str(error.value)
        assert not listing.is_folder(host + rest)


def test_brackets_of_a_host_and_wildcards_of_a_query_are_none_of_a_path(web: str, tmp_path: Path) -> None:
    for address in ("http://[0:0:0:0:0:0:0:1]:9/a.txt", "http://user:pa*s@127.0.0.1:9/a.txt"):
        with pytest.raises(StorageError, match="no answer"):
            listing.find(address)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "index.html").write_text("abc")
    (found,) = listing.find(f"{web}/d/?file=[7]*")
    assert found.size == 3


def test_a_server_that_sends_files_only_whole_will_do(web: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 30_000  # more than fsspec asks for at once
    (tmp_path / "large.bin").write_bytes(content)
    with files.open_read(f"{web}/large.bin") as stream:
        assert b"".join(iter(lambda: stream.read(2**20), b"")) == content


def test_what_a_server_says_is_told_apart_from_no_answer(web: str) -> None:
    with pytest.raises(MissingError, match="nothing"):
        listing.find(f"{web}/nothing")
    with pytest.raises(StorageError, match="answered 403") as refused:
        listing.find(f"{web}/secret")
    with pytest.raises(StorageError, match="no answer") as silent:
        listing.find("http://127.0.0.1:9/a.txt")
    assert not isinstance(refused.value, MissingError)
    assert not isinstance(silent.value, MissingError)


def test_only_a_folder_is_one_and_a_web_page_is_not_fetched_to_find_out(root: str, web: str) -> None:
    assert listing.is_folder(root)
    found = listing.find(root)[0].path
    assert not listing.is_folder(found)
    assert not listing.is_folder(f"{root}/nothing")
    assert not listing.is_folder(f"{web}/page")


def test_a_bucket_means_its_objects_on_both_servers(service: None) -> None:
    files.write_bytes("gs://bucket/a.txt", b"abc")
    files.write_bytes("gs://bucket/d/b.txt", b"b")
    found = listing.find("gs://bucket")
    assert [(file.path, file.size) for file in found] == [("gs://bucket/a.txt", 3), ("gs://bucket/d/b.txt", 1)]
    assert found == listing.find("gs://bucket/**")
    assert found[1:] == listing.find("gs://bucket/d/")
    assert found[:1] == listing.find("gs://bucket/a.txt") == listing.find("gs://bucket/*.txt")
