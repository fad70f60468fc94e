"""Laws of slm.storage on gs:// URLs: the real clients against our fake service and against gcp-storage-emulator."""

from __future__ import annotations

import gzip
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gcs_fake import FakeGCS
from google.auth import exceptions as auth
from google.cloud.storage import blob as client_blob

from slm.storage import files, gcs
from slm.storage.files import ExistsError, MissingError, StorageError, TakenError

BIG = bytes(range(256)) * 4096  # 1 MiB: four chunks of the shortened resumable upload


@pytest.fixture
def local(tmp_path: Path) -> str:
    path = tmp_path / "local.bin"
    path.write_bytes(b"our bytes")
    return str(path)


# Both servers agree.


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("data", [b"", b"x", BIG], ids=["empty", "small", "resumable"])
def test_what_is_written_is_read_back(data: bytes, tmp_path: Path) -> None:
    url, copy = "gs://bucket/a/b.bin", tmp_path / "copy"
    files.write_bytes(url, data)
    assert files.read_bytes(url) == data
    files.download(url, str(copy))
    assert copy.read_bytes() == data
    assert os.listdir(tmp_path) == ["copy"]
    files.write_bytes(url, b"second")
    assert files.read_bytes(url) == b"second"


@pytest.mark.usefixtures("service")
def test_a_stream_reads_the_same_bytes() -> None:
    files.write_bytes("gs://bucket/a.bin", BIG)
    with files.open_read("gs://bucket/a.bin") as stream:
        assert stream.read(10) == BIG[:10]
        stream.seek(-5, os.SEEK_END)
        assert stream.read() == BIG[-5:]


@pytest.mark.usefixtures("service")
def test_names_are_listed_one_level_deep() -> None:
    for name in ("run/model.pt", "run/checkpoints/1/m", "run/checkpoints/2/m", "run-2/model.pt", "top"):
        files.write_bytes(f"gs://bucket/{name}", b"x")
    assert files.list_names("gs://bucket/run") == files.list_names("gs://bucket/run/") == ["checkpoints", "model.pt"]
    assert files.list_names("gs://bucket") == ["run", "run-2", "top"]
    assert files.list_names("gs://bucket/absent") == files.list_names("gs://no-such-bucket") == []
    assert files.exists("gs://bucket/run") and files.exists("gs://bucket/run/model.pt")
    assert not files.exists("gs://bucket/ru") and not files.exists("gs://bucket/run/model.p")
    assert files.is_folder("gs://bucket/run") and files.is_folder("gs://bucket")
    assert not files.is_folder("gs://bucket/top") and not files.is_folder("gs://no-such-bucket")


@pytest.mark.usefixtures("service")
def test_a_moved_object_has_one_name() -> None:
    files.write_bytes("gs://bucket/a", b"x")
    files.move("gs://bucket/a", "gs://bucket/b c/d")
    assert files.read_bytes("gs://bucket/b c/d") == b"x"
    assert not files.exists("gs://bucket/a")
    files.write_bytes("gs://bucket/a", b"y")
    with pytest.raises(ExistsError, match="gs://bucket/a"):
        files.move("gs://bucket/b c/d", "gs://bucket/a")
    assert files.read_bytes("gs://bucket/a") == b"y"


@pytest.mark.usefixtures("service")
def test_removing_twice_is_no_error() -> None:
    files.write_bytes("gs://bucket/a", b"x")
    files.remove("gs://bucket/a")
    files.remove("gs://bucket/a")
    assert not files.exists("gs://bucket/a")


@pytest.mark.usefixtures("service")
def test_a_missing_object_is_a_file_not_found_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gs://bucket/absent"):
        files.download("gs://bucket/absent", str(tmp_path / "x"))
    with pytest.raises(MissingError, match="gs://bucket/absent"):
        files.read_bytes("gs://bucket/absent")
    with pytest.raises(MissingError, match="gs://bucket/absent"), files.open_read("gs://bucket/absent"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("url", ["gs://bucket", "gs://bucket/", "gs://bucket/runs/first"])
def test_the_start_up_check_leaves_nothing_behind(url: str) -> None:
    assert files.check_writable(url) == []
    assert files.list_names("gs://bucket") == []


# Preconditions.


def test_other_content_is_not_replaced_unless_allowed(fake: FakeGCS, local: str) -> None:
    fake.put("bucket", "a", b"theirs")
    with pytest.raises(FileExistsError, match="gs://bucket/a"):
        files.upload(local, "gs://bucket/a")
    assert fake.data("bucket") == {"a": b"theirs"}
    files.upload(local, "gs://bucket/a", overwrite=True)
    assert fake.data("bucket") == {"a": b"our bytes"}


def test_the_same_bytes_are_not_sent_twice(fake: FakeGCS, local: str) -> None:
    files.upload(local, "gs://bucket/a")
    before = fake.generation
    files.upload(local, "gs://bucket/a")
    assert fake.generation == before


def test_a_look_tells_size_checksum_and_version(fake: FakeGCS, local: str) -> None:
    assert files.look("gs://bucket/a") is None
    version = files.upload(local, "gs://bucket/a")
    assert files.look("gs://bucket/a") == (*files.fingerprint(local), version)
    fake.put("bucket", "packed", b"x", contentEncoding="gzip")
    assert files.look("gs://bucket/packed")[:2] == (None, None), "those of the packed bytes are of no use"


def test_a_missing_bucket_is_not_an_absent_object(fake: FakeGCS) -> None:
    with pytest.raises(StorageError, match="gcloud storage buckets create"):
        files.look("gs://no-such-bucket/a")


@pytest.mark.parametrize("size", [9, len(BIG)], ids=["small", "resumable"])
def test_a_file_is_replaced_only_in_the_version_that_was_seen(fake: FakeGCS, tmp_path: Path, size: int) -> None:
    path, url = tmp_path / "x", "gs://bucket/a"
    versions = [0]
    for fill in (b"1", b"2"):
        path.write_bytes(fill * size)
        versions.append(files.upload(str(path), url, overwrite=True, version=versions[-1]))
        assert files.upload(str(path), url, overwrite=True, version=versions[-2]) == versions[-1], "our bytes are there"
    path.write_bytes(b"3" * size)
    for old in versions[:-1]:
        with pytest.raises(TakenError, match=r"gs://bucket/a: another process .* one folder per run"):
            files.upload(str(path), url, overwrite=True, version=old)
    files.remove(url)
    with pytest.raises(TakenError):
        files.upload(str(path), url, overwrite=True, version=versions[-1])
    assert fake.data("bucket") == {}


@pytest.mark.parametrize("existing", [None, b"old"])
def test_an_object_that_another_process_writes_meanwhile_is_kept(
    fake: FakeGCS, local: str, monkeypatch: pytest.MonkeyPatch, existing: bytes | None
) -> None:
    if existing is not None:
        fake.put("bucket", "a", existing)
    look = gcs._look
    looks = []

    def then_they_write(*args: object, **options: object) -> object:
        found = look(*args, **options)
        if not looks:
            fake.put("bucket", "a", b"theirs")
        looks.append(found)
        return found

    monkeypatch.setattr(gcs, "_look", then_they_write)
    with pytest.raises(TakenError, match="another process wrote this object"):
        files.upload(local, "gs://bucket/a", overwrite=True)
    assert fake.data("bucket") == {"a": b"theirs"}


# Faults.


@pytest.mark.parametrize("size", [9, len(BIG)], ids=["small", "resumable"])
def test_a_lost_answer_is_not_an_error_when_the_bytes_arrived(fake: FakeGCS, tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(BIG[:size])
    fake.fail("lost", "POST" if size == 9 else "PUT")
    files.upload(str(path), "gs://bucket/a")
    assert fake.data("bucket") == {"a": BIG[:size]}


@pytest.mark.parametrize("times", [1, 200], ids=["once", "always"])
def test_a_lost_last_answer_of_a_resumable_upload_is_no_error(
    fake: FakeGCS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(gcs, "CHUNK_BYTES", 2**20)  # all in one chunk, so that the first PUT is the last
    monkeypatch.setattr(gcs, "RETRY_SECONDS", 0.2)
    path = tmp_path / "x"
    path.write_bytes(BIG)
    fake.fail("lost", "PUT", times=times)
    files.upload(str(path), "gs://bucket/a")
    assert fake.data("bucket") == {"a": BIG}


@pytest.mark.parametrize("kind", [503, 429, 500, 502, 504, 408, "reset"])
@pytest.mark.parametrize("size", [9, len(BIG)], ids=["small", "resumable"])
def test_a_passing_fault_is_not_noticed(fake: FakeGCS, tmp_path: Path, kind: int | str, size: int) -> None:
    path, url = tmp_path / "x", "gs://bucket/a"
    path.write_bytes(BIG[:size])
    for method in ("GET", "POST", "PUT"):
        fake.fail(kind, method)
    files.upload(str(path), url)
    fake.faults.clear()
    for text in ("/storage/v1/b/bucket/o/a", "alt=media"):
        fake.fail(kind, "GET", text)
    assert files.read_bytes(url) == BIG[:size]
    fake.fail(kind, "GET", "prefix")
    assert files.list_names("gs://bucket") == ["a"]
    fake.fail(kind, "POST", "rewriteTo")
    fake.fail(kind, "DELETE")
    files.move(url, "gs://other/b")
    assert fake.faults == []
    assert fake.data("bucket") == {}
    assert fake.data("other") == {"b": BIG[:size]}


@pytest.mark.parametrize("kind", ["cut_up", "short_up", "lost", "damage_up", 404, 410])
@pytest.mark.parametrize("chunk", ["first", "last"])
def test_an_upload_that_breaks_off_in_a_chunk_is_gone_on_with_or_begun_anew(
    fake: FakeGCS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int | str, chunk: str
) -> None:
    """The server may keep a part of a chunk, or none, or forget the whole upload."""
    monkeypatch.setattr(gcs, "CHUNK_BYTES", 2**19)
    path = tmp_path / "x"
    path.write_bytes(BIG)
    if chunk == "last":
        fake.fail("", "PUT")
    fake.fail(kind, "PUT")
    files.upload(str(path), "gs://bucket/a")
    assert fake.data("bucket") == {"a": BIG}
    assert fake.faults == []


@pytest.mark.parametrize("kind", ["short_up", 410])
def test_an_upload_that_breaks_off_every_time_is_one_error(
    fake: FakeGCS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int | str
) -> None:
    monkeypatch.setattr(gcs, "CHUNK_BYTES", 2**19)
    path = tmp_path / "x"
    path.write_bytes(BIG)
    fake.fail(kind, "PUT", times=3)
    with pytest.raises(StorageError, match=r"gs://bucket/a.*410"):
        files.upload(str(path), "gs://bucket/a")
    assert fake.data("bucket") == {}
    assert fake.faults == []


@pytest.mark.parametrize("size", [9, len(BIG)], ids=["small", "resumable"])
def test_a_server_that_falls_silent_is_asked_again(
    fake: FakeGCS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(gcs, "ANSWER_SECONDS", 0.1)
    path = tmp_path / "x"
    path.write_bytes(BIG[:size])
    for method in ("GET", "POST", "PUT"):
        fake.fail("stall", method)
    files.upload(str(path), "gs://bucket/a")
    fake.faults.clear()
    fake.fail("stall_down", "GET", "alt=media")
    assert files.read_bytes("gs://bucket/a") == BIG[:size]
    assert fake.faults == []


@pytest.mark.parametrize("kind", ["stall", "stall_down", "cut_up", "lost", "reset", "cut_down", 503])
def test_an_outage_ends_within_the_limits_in_one_error(
    fake: FakeGCS, local: str, monkeypatch: pytest.MonkeyPatch, kind: int | str
) -> None:
    for name in ("ANSWER", "RETRY", "CHECK_ANSWER", "CHECK_RETRY"):
        monkeypatch.setattr(gcs, f"{name}_SECONDS", 0.1)
    fake.put("bucket", "a", b"theirs")
    fake.fail(kind, times=1000)
    calls = [lambda: files.upload(local, "gs://bucket/a", overwrite=True), lambda: files.read_bytes("gs://bucket/a")]
    calls += [lambda: files.look("gs://bucket/a"), lambda: files.list_names("gs://bucket")]
    began = time.monotonic()
    for call in calls:
        with pytest.raises(StorageError, match=r"gs://bucket.*(network|failing)"):
            call()
    assert time.monotonic() - began < 10
    assert fake.data("bucket") == {"a": b"theirs"}


def test_a_move_whose_answers_are_lost_is_done_once(fake: FakeGCS) -> None:
    fake.put("bucket", "a", b"x")
    fake.fail("lost", "POST", "rewriteTo")
    fake.fail("lost", "DELETE")
    files.move("gs://bucket/a", "gs://bucket/b")
    assert fake.data("bucket") == {"b": b"x"}


def test_a_move_does_not_delete_a_source_that_changed(fake: FakeGCS, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.put("bucket", "a", b"old")
    look = gcs._look

    def then_they_write(*args: object, **options: object) -> object:
        found = look(*args, **options)
        fake.put("bucket", "a", b"new")
        return found

    monkeypatch.setattr(gcs, "_look", then_they_write)
    with pytest.raises(StorageError, match=r"gs://bucket/a.*412"):
        gcs.move("gs://bucket/a", "gs://bucket/b")
    assert fake.data("bucket") == {"a": b"new"}


def test_a_move_does_not_delete_a_source_written_after_the_copy(fake: FakeGCS, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.put("bucket", "a", b"old")
    rewrite = client_blob.Blob.rewrite

    def then_they_write(*args: Any, **options: Any) -> Any:
        answer = rewrite(*args, **options)
        fake.put("bucket", "a", b"new")
        return answer

    monkeypatch.setattr(client_blob.Blob, "rewrite", then_they_write)
    with pytest.raises(StorageError, match=r"gs://bucket/a.*412"):
        gcs.move("gs://bucket/a", "gs://bucket/b")
    assert fake.data("bucket") == {"a": b"new", "b": b"old"}


def test_a_move_onto_a_name_taken_meanwhile_is_refused_by_the_server(fake: FakeGCS) -> None:
    """What files.move sees beforehand can change before the copy."""
    fake.put("bucket", "a", b"x")
    fake.put("bucket", "b", b"theirs")
    with pytest.raises(ExistsError, match="gs://bucket/b exists"):
        gcs.move("gs://bucket/a", "gs://bucket/b")
    assert fake.data("bucket") == {"a": b"x", "b": b"theirs"}


def test_a_listing_of_many_pages_is_whole_and_hides_folder_marks(fake: FakeGCS) -> None:
    fake.page_size = 2
    fake.put("bucket", "run/", b"")
    for name in ("run/a", "run/b", "run/c/d", "run/e/", "run/f"):
        fake.put("bucket", name, b"x")
    assert files.list_names("gs://bucket/run") == ["a", "b", "c", "e", "f"]


@pytest.mark.parametrize("size", [900, len(BIG)], ids=["small", "resumable"])
def test_bytes_damaged_on_the_way_up_are_sent_again(fake: FakeGCS, tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(BIG[:size])
    fake.fail("damage_up", "PUT" if size > 900 else "POST", "upload", times=2)
    files.upload(str(path), "gs://bucket/a")
    assert fake.data("bucket") == {"a": BIG[:size]}
    assert fake.faults == []


def test_bytes_damaged_every_time_never_appear(fake: FakeGCS, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(BIG[:900])
    fake.fail("damage_up", "POST", times=3)
    with pytest.raises(StorageError, match="gs://bucket/a"):
        files.upload(str(path), "gs://bucket/a")
    assert fake.data("bucket") == {}
    assert fake.faults == []


def test_bytes_damaged_on_the_way_down_are_fetched_again(fake: FakeGCS, tmp_path: Path) -> None:
    fake.put("bucket", "a", BIG)
    fake.fail("damage_down", "GET", "alt=media", times=2)
    files.download("gs://bucket/a", str(tmp_path / "x"))
    assert (tmp_path / "x").read_bytes() == BIG
    fake.fail("damage_down", "GET", "alt=media", times=3)
    with pytest.raises(StorageError, match=r"gs://bucket/a.*damaged"):
        files.download("gs://bucket/a", str(tmp_path / "y"))
    assert os.listdir(tmp_path) == ["x"]


def test_a_resumed_download_is_verified_too(fake: FakeGCS) -> None:
    """The client checks no checksum once it had to resume, so ours must see the damaged second half."""
    fake.put("bucket", "a", BIG)
    fake.fail("cut_down", "GET", "alt=media")
    assert files.read_bytes("gs://bucket/a") == BIG
    fake.fail("cut_down", "GET", "alt=media")
    fake.fail("damage_down", "GET", "alt=media")
    before = len(fake.requests)
    assert files.read_bytes("gs://bucket/a") == BIG
    assert sum("alt=media" in request for request in fake.requests[before:]) == 3


def test_an_object_replaced_during_a_download_is_read_whole(fake: FakeGCS, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.put("bucket", "a", b"old")
    look = gcs._look
    looks = []

    def then_they_write(*args: object, **options: object) -> object:
        found = look(*args, **options)
        if not looks:
            fake.put("bucket", "a", b"new")
        looks.append(found)
        return found

    monkeypatch.setattr(gcs, "_look", then_they_write)
    assert files.read_bytes("gs://bucket/a") == b"new"


def test_a_gzip_encoded_object_is_read_unpacked(fake: FakeGCS) -> None:
    fake.put("bucket", "a", gzip.compress(b"text"), contentEncoding="gzip")
    assert files.read_bytes("gs://bucket/a") == b"text"


def test_a_failed_download_leaves_the_old_file(fake: FakeGCS, local: str) -> None:
    fake.put("bucket", "a", BIG)
    fake.fail(403, "GET", "alt=media")
    with pytest.raises(StorageError, match="403"):
        files.download("gs://bucket/a", local)
    assert Path(local).read_bytes() == b"our bytes"
    assert os.listdir(os.path.dirname(local)) == ["local.bin"]


def test_a_full_local_disk_is_told_as_such(fake: FakeGCS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.put("bucket", "a", b"x")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(client_blob.Blob, "download_to_filename", full)
    with pytest.raises(StorageError, match="disk is full"):
        files.download("gs://bucket/a", str(tmp_path / "x"))
    assert os.listdir(tmp_path) == []


# The start-up check tells the causes apart, each with its cure, in seconds.


@pytest.mark.parametrize(
    ("kind", "method", "words"),
    [
        (401, "GET", "gcloud auth application-default login"),
        (401, "POST", "gcloud auth application-default login"),
        (403, "GET", "roles/storage.objectAdmin"),
        (403, "POST", "roles/storage.objectAdmin"),
        (503, "GET", "503"),
        (429, "POST", "429"),
        ("reset", "GET", "network"),
        ("stall", "GET", "network"),
        ("stall", "POST", "network"),
    ],
)
def test_the_start_up_check_names_the_cure(fake: FakeGCS, kind: int | str, method: str, words: str) -> None:
    fake.fail(kind, method, times=200)
    began = time.monotonic()
    with pytest.raises(StorageError, match=f"gs://bucket/runs.*{words}"):
        files.check_writable("gs://bucket/runs")
    assert time.monotonic() - began < 5
    assert fake.data("bucket") == {}


def test_the_start_up_check_names_a_missing_bucket(fake: FakeGCS) -> None:
    with pytest.raises(StorageError, match="gcloud storage buckets create gs://no-such-bucket"):
        files.check_writable("gs://no-such-bucket/runs")


def test_an_upload_into_a_missing_bucket_names_the_bucket(fake: FakeGCS, local: str) -> None:
    with pytest.raises(StorageError, match="gcloud storage buckets create gs://no-such-bucket"):
        files.upload(local, "gs://no-such-bucket/a")


@pytest.mark.parametrize("kind", [403, 503])
def test_a_refused_delete_is_a_note_that_names_the_object(fake: FakeGCS, kind: int) -> None:
    fake.fail(kind, "DELETE", times=200)
    (note,) = files.check_writable("gs://bucket/runs")
    (name,) = fake.data("bucket")
    assert f"gs://bucket/{name}" in note


def test_lost_answers_do_not_disturb_the_start_up_check(fake: FakeGCS) -> None:
    for method in ("GET", "POST", "DELETE"):
        fake.fail("lost", method)
    assert files.check_writable("gs://bucket/runs") == []
    assert fake.data("bucket") == {}


def test_no_network_is_told_as_such(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}")
        for call in (files.check_writable, files.exists, files.list_names):
            with pytest.raises(StorageError, match=r"gs://bucket/runs.*network"):
                call("gs://bucket/runs")


@pytest.fixture
def no_emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    gcs._credentials.cache_clear()
    yield
    gcs._credentials.cache_clear()


@pytest.mark.usefixtures("no_emulator")
def test_missing_credentials_are_told_before_any_request(monkeypatch: pytest.MonkeyPatch, local: str) -> None:
    def none(**_: object) -> None:
        raise auth.DefaultCredentialsError("nothing found")

    monkeypatch.setattr("google.auth.default", none)
    url = "gs://bucket/runs"
    calls = [
        lambda: files.check_writable(url),
        lambda: files.read_bytes(url),
        lambda: files.upload(local, url),
    ]
    calls.append(lambda: files.open_read(url).__enter__())
    for call in calls:
        with pytest.raises(StorageError, match=f"{url}.*gcloud auth application-default login"):
            call()


@pytest.mark.usefixtures("no_emulator")
def test_a_new_login_counts_without_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr("google.auth.default", lambda **_: found.append(1) or ("credentials", None))
    gcs._credentials()
    gcs._credentials()
    assert len(found) == 1
    with (
        pytest.raises(StorageError, match="gcloud auth application-default login"),
        gcs._explaining_network("gs://bucket/a"),
    ):
        raise auth.RefreshError("Reauthentication is needed.")
    gcs._credentials()
    assert len(found) == 2


def test_a_mistake_of_ours_is_not_dressed_up_as_a_storage_error(fake: FakeGCS) -> None:
    assert gcs.explain(TypeError("ours"), "gs://bucket/a") is None
    with pytest.raises(ZeroDivisionError), gcs._bucket("gs://bucket/a"):
        raise ZeroDivisionError


def test_an_error_in_the_reader_of_a_stream_is_its_own(fake: FakeGCS) -> None:
    fake.put("bucket", "a", b"\xff")
    with pytest.raises(UnicodeDecodeError), files.open_read("gs://bucket/a") as stream:
        stream.read().decode()


def test_a_stream_that_is_refused_names_the_url(fake: FakeGCS) -> None:
    fake.put("bucket", "a", b"x")
    fake.fail(403, "GET", times=9)
    with pytest.raises(StorageError, match="gs://bucket/a"), files.open_read("gs://bucket/a"):
        pass


@pytest.mark.parametrize("url", ["gs://bucket", "gs://bucket/", "gs://bucket/a/"])
def test_a_folder_is_not_a_file_name(fake: FakeGCS, local: str, url: str) -> None:
    for call in (lambda: files.upload(local, url), lambda: files.read_bytes(url), lambda: files.remove(url)):
        with pytest.raises(ValueError, match="names a folder"):
            call()
