"""A small text with something to learn, sizes that train in a second, and two servers that speak for a bucket."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from gcs_fake import FakeGCS
from google.cloud.storage import blob as client_blob

from slm.data.prepared import PreparedData
from slm.data.splits import load_data
from slm.settings import as_settings, layered
from slm.storage import gcs

hypothesis.settings.register_profile("same each time", derandomize=True)
hypothesis.settings.load_profile("same each time")

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sees",
    "likes",
    "finds",
    "red",
    "small",
    "old",
    "house",
    "tree",
    "river",
    "and",
    "then",
]
SMALL = {
    "tokenizer": "char",
    "embed_dim": 16,
    "num_heads": 2,
    "num_layers": 1,
    "hidden_dim": 32,
    "max_seq_len": 16,
    "batch_size": 8,
    "max_steps": 12,
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "quiet": True,
}


def make_text(num_words: int = 2000) -> str:
    """Lines of six words from a small vocabulary."""
    draw = random.Random(0)
    words = [draw.choice(WORDS) for _ in range(num_words)]
    return "\n".join(" ".join(words[i : i + 6]) for i in range(0, num_words, 6)) + "\n"


def loaded(data: Any, **keys: Any) -> PreparedData:
    """What training gets of data and keywords, in windows of 16."""
    keys, given, val_given = as_settings(data, keys)
    settings = layered(keys, "keyword")
    return load_data(
        settings.data,
        given,
        val_given,
        vocab_size=settings.model.vocab_size,
        max_seq_len=16,
        seed=0,
        recheck=settings.options.recheck,
        asked=settings.origins,
        on_progress=lambda *_: None,
    )


@pytest.fixture(autouse=True, scope="session")
def temporary_files_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs whose upload fails on purpose keep their files; they go where pytest tidies up."""
    tempfile.tempdir = str(tmp_path_factory.mktemp("temporary"))


@pytest.fixture(autouse=True, scope="session")
def cache_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data goes where pytest tidies up, never into the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """At these sizes a second thread only waits, and on a busy machine for long."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def text() -> str:
    return make_text()


@pytest.fixture
def text_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Goes to a machine, which is known by its cache."""

    def go(name: str) -> Path:
        monkeypatch.setenv("SLM_CACHE", str(tmp_path / name))
        return tmp_path / name

    go("first machine")
    return go


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of milliseconds, and resumable uploads from 256 KiB on."""
    for name, seconds in {"FIRST_WAIT": 0.01, "ANSWER": 2.0, "RETRY": 2.0, "CHECK_ANSWER": 2.0}.items():
        monkeypatch.setattr(gcs, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(gcs, "CHECK_RETRY_SECONDS", 2.0)
    monkeypatch.setattr(gcs, "CHUNK_BYTES", 256 * 1024)
    monkeypatch.setattr(client_blob, "_MAX_MULTIPART_SIZE", 256 * 1024)


@pytest.fixture
def fake(impatient: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGCS]:
    with FakeGCS("bucket", "other") as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture(scope="module")
def emulator() -> Iterator[Any]:
    """gcp-storage-emulator, once for all tests since it takes half a second to stop."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["fake", "emulator"])
def service(request: pytest.FixtureRequest, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two independent servers in turn; both hold the empty bucket `bucket`."""
    server = request.getfixturevalue(request.param)
    if request.param == "emulator":
        server.wipe(keep_buckets=True)
        host, port = server._api._httpd.socket.getsockname()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{host}:{port}")
