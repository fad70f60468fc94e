"""Laws of what training gets: token ids as they are, little text with a word about it, bounded evaluations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, loaded, make_text

import slm
from slm.config import UserError
from slm.data import prepare as prepare_module
from slm.data import splits
from slm.data.prepared import PreparedData
from slm.data.tokenizer import byte_tokenizer, char_tokenizer
from slm.storage import files

pytestmark = pytest.mark.filterwarnings("ignore:only . step", "ignore:the plan reads", "ignore:the vocabulary of")
SIZES = {name: value for name, value in SMALL.items() if name != "tokenizer"} | {"max_steps": 2}
IDS = [int(id) for id in np.random.default_rng(0).integers(0, 50, 400)] + [49, 0]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def rows(data: PreparedData) -> tuple[list[int], list[int]]:
    return data.train_dataset.tokens[:].tolist(), data.val_dataset.tokens[:].tolist()


def written(name: str, ids: list[int]) -> str:
    """A file of token ids of the kind that its name says."""
    if name.endswith(".npy"):
        np.save(name, np.array(ids, np.int32))
    else:
        np.array(ids, "<u4" if name.endswith("u32.bin") else "<u2").tofile(name)
    return name


KINDS: dict[str, Callable[[], Any]] = {
    "list": lambda: IDS,
    "tuple": lambda: tuple(IDS),
    "numpy ints in a list": lambda: list(np.array(IDS)),
    "uint16": lambda: np.array(IDS, np.uint16),
    "int64": lambda: np.array(IDS),
    "uint8 view": lambda: np.array([IDS, IDS], np.uint8).T[:, 0],
    "tensor": lambda: torch.tensor(IDS),
    "short tensor": lambda: torch.tensor(IDS, dtype=torch.int16),
    "generator": lambda: (id for id in IDS),
    "iterator": lambda: iter(IDS),
    ".npy": lambda: written("ids.npy", IDS),
    ".bin": lambda: written("ids.bin", IDS),
    ".u32.bin": lambda: written("ids.u32.bin", IDS),
    "Path": lambda: Path(written("ids.bin", IDS)),
    "several": lambda: [Path(written("a.bin", IDS[:100])), Path(written("b.npy", IDS[100:]))],
    "glob": lambda: (written("a.bin", IDS[:100]), written("b.bin", IDS[100:]), "*.bin")[-1],
    "folder": lambda: (Path("ids").mkdir(), written("ids/a.bin", IDS[:100]), written("ids/b.npy", IDS[100:]), "ids")[
        -1
    ],
    "URL": lambda: (files.write_bytes("memory://ids/ids.bin", np.array(IDS, "<u2").tobytes()), "memory://ids/ids.bin")[
        1
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_of_any_kind_are_taken_as_they_are(kind: str) -> None:
    data = loaded(KINDS[kind]())
    cut = int(len(IDS) * 0.9)
    assert rows(data) == (IDS[:cut], IDS[cut:])
    assert (data.vocab_size, data.tokenizer) == (50, None)
    assert data.fingerprint == loaded(IDS).fingerprint != loaded([*IDS[:-1], 1]).fingerprint
    assert data.split == "the last 10 %"


def test_a_model_learns_from_token_ids() -> None:
    run = slm.train(np.array(IDS), **SIZES)
    assert run.model.config.vocab_size == 50
    assert run.tokenizer is None
    assert run.metrics["val_loss"] == slm.train(written("ids.bin", IDS), **SIZES).metrics["val_loss"]


@pytest.mark.parametrize("given", [False, True])
def test_val_data_of_token_ids_is_all_that_is_validated_on(given: bool) -> None:
    names = [Path(written("val.bin", IDS[:30])), Path(written("more.npy", [70, 71]))]
    data = loaded(IDS if given else written("train.bin", IDS), val_data=names)
    assert rows(data) == (IDS, [*IDS[:30], 70, 71])
    assert data.vocab_size == 72
    assert data.split == "all of val.bin, more.npy"


@pytest.mark.parametrize("given", [False, True])
def test_token_ids_and_text_do_not_mix(here: Path, given: bool) -> None:
    (here / "text.txt").write_text("a text " * 50)
    written("ids.bin", IDS)
    with pytest.raises(UserError, match=r"val_data = text\.txt: the data is token ids"):
        loaded(IDS if given else "ids.bin", val_data="text.txt")
    for data, keys in (
        ([Path("text.txt"), Path("ids.bin")], {}),
        ("text.txt", {"val_data": "ids.bin"}),
        (["a text"] * 10, {"val_data": "ids.bin"}),
        (["a text", 1], {}),
        ([1, "a text"], {}),
        ((one for one in [1, 2, "a text"]), {}),
    ):
        with pytest.raises(UserError, match=r"ids|text 1 of data is a int"):
            loaded(data, **keys)


TEXTS = ["a text for training. " * 9, "and another one. " * 9]
VAL_TEXTS = ["what validates. " * 9, "and this. " * 9]


@pytest.mark.parametrize("once", [False, True])
def test_validation_texts_from_python_are_all_that_is_validated_on(here: Path, once: bool) -> None:
    for name, texts in (("train.txt", TEXTS[:1]), ("val.txt", VAL_TEXTS[:1])):
        (here / name).write_text(texts[0])
    given = (text for text in VAL_TEXTS) if once else VAL_TEXTS
    data = loaded(TEXTS, val_data=given, tokenizer="byte")
    assert data.tokenizer
    end = [data.tokenizer.end_id]
    expected = [data.tokenizer.encode(text) for text in (*TEXTS, *VAL_TEXTS)]
    assert rows(data) == (expected[0] + end + expected[1], expected[2] + end + expected[3])
    assert data.split == "all of val_data given in Python"
    mixed = loaded("train.txt", val_data=VAL_TEXTS[:1], tokenizer="byte")
    assert mixed.fingerprint == loaded("train.txt", val_data="val.txt", tokenizer="byte").fingerprint
    assert rows(mixed) == (expected[0], expected[2])
    assert rows(loaded(TEXTS[:1], val_data="val.txt", tokenizer="byte")) == rows(mixed)
    assert rows(loaded(slm.prepare(TEXTS[:1], val_data=VAL_TEXTS[:1], tokenizer="byte"))) == rows(mixed)


def test_validation_ids_from_python_are_all_that_is_validated_on() -> None:
    for ids in ([3, 2, 1], np.array([3, 2, 1]), (id for id in [3, 2, 1])):
        assert rows(loaded(IDS, val_data=ids))[1] == [3, 2, 1]
    assert rows(loaded(written("ids.bin", IDS), val_data=[3, 2, 1])) == (IDS, [3, 2, 1])


def test_validation_data_that_does_not_fit_the_data_is_refused_by_name(here: Path) -> None:
    (here / "text.txt").write_text("a text " * 50)
    prepared = slm.prepare("text.txt", tokenizer="byte", out="prepared")
    mistakes: list[tuple[Any, Any]] = [
        (None, ["text"]), ("dummy", [1, 2]), (prepared, ["text"]), ("text.txt", [1, 2]), (["text"], [1, 2]),
        ([1, 2], ["text"]), (IDS, []), (["text"], []), (["text"], 3), (["text"], b"text"), (["text"], [b"text"]),
        (["text"], [None]), (["text"], ["text", 3]), (IDS, ["text.txt"]), (["text"], ["text.txt"]),
    ]  # fmt: skip
    for data, val_data in mistakes:
        with pytest.raises(UserError, match="val_data"):
            loaded(data, val_data=val_data)


def test_an_id_that_no_vocabulary_holds_is_named() -> None:
    for ids, told in (([0, 10**20] * 50, 10**20), ([0, -(10**20)] * 50, -(10**20)), ([0, 4 * 10**11] * 50, 4 * 10**11)):
        with pytest.raises(UserError, match=f"data.* holds the id {told}|Python holds the id {told}"):
            loaded(ids)


def test_an_id_beyond_the_vocabulary_that_was_asked_for_is_refused() -> None:
    assert loaded(IDS, vocab_size=50).vocab_size == 50
    assert loaded(IDS, vocab_size=60).vocab_size == 60
    with pytest.raises(UserError, match=r"holds the id 49, but the vocabulary has 49 tokens.*--vocab_size"):
        slm.train(IDS, vocab_size=49, **SIZES)
    with pytest.raises(UserError, match="holds the id 50, but the vocabulary has 50 tokens"):
        loaded(IDS, vocab_size=50, val_data=written("val.bin", [50, 1]))


def test_a_tokenizer_json_reads_and_writes_ids_that_fit_it(here: Path) -> None:
    (here / "tokenizer.json").write_text(byte_tokenizer().to_json())
    data = loaded(IDS, tokenizer="tokenizer.json")
    assert data.vocab_size == 257
    run = slm.train(IDS, tokenizer="tokenizer.json", **SIZES)
    assert run.tokenizer
    assert isinstance(run.generate("a", max_new_tokens=3), str)
    (here / "tokenizer.json").write_text(char_tokenizer(["abc"]).to_json())
    with pytest.raises(UserError, match=r"holds the id 49, but the vocabulary has 5 tokens.*tokenizer\.json"):
        slm.train(IDS, tokenizer="tokenizer.json", **SIZES)


@pytest.mark.parametrize("name", ["bpe", "char", "byte"])
def test_a_tokenizer_of_ours_means_nothing_to_token_ids(name: str) -> None:
    with pytest.raises(UserError, match=f"tokenizer = '{name}', but the data is token ids"):
        loaded(IDS, tokenizer=name)


WRONG: dict[str, Any] = {
    "bools": np.array([True, False] * 50),
    "floats": np.ones(50),
    "float tensor": torch.ones(50),
    "bfloat16 tensor": torch.ones(50, dtype=torch.bfloat16),
    "learning tensor": torch.ones(50, requires_grad=True),
    "bool tensor": torch.ones(50, dtype=torch.bool),
    "two rows": np.ones((2, 50), np.int64),
    "a number": np.array(3),
    "list of bools": [True, False] * 50,
    "list of floats": [1.0, 2.0],
    "floats behind ids": [1, 2, 3.5],
    "bools behind ids": [1, 2, True],
    "no ids": np.array([], np.int64),
    "empty list": [],
    "bytearray": bytearray(b"a text " * 50),
    "negative": [*IDS, -1],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_row_of_ids_is_a_user_error(kind: str) -> None:
    with pytest.raises(UserError):
        slm.train(WRONG[kind], **SIZES)


@pytest.mark.parametrize("name", ["empty.bin", "odd.bin", "floats.npy", "text.npy"])
def test_a_file_that_holds_no_ids_is_a_user_error(here: Path, name: str) -> None:
    np.save("floats.npy", np.ones(9))
    for file, data in {"empty.bin": b"", "odd.bin": b"abc", "text.npy": b"a text"}.items():
        (here / file).write_bytes(data)
    with pytest.raises(UserError, match=name):
        loaded(name)


TOKENIZERS = ["bpe", "char", "byte"]
FEW: dict[str, list[str]] = {
    "no text": [],
    "no letter": ["", ""],
    "one letter": ["a"],
    "10 bytes": ["0123456789"],
    "only one split": ["the same text"] * 100,
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("kind", FEW)
def test_too_little_text_is_refused_with_the_minimum_and_the_way_out(kind: str, tokenizer: str) -> None:
    words = (
        "there is no text to learn from"
        if kind.startswith("no ")
        else "at least 2 are needed.*--val_fraction.*--val_data"
    )
    with pytest.raises(UserError, match=words):
        slm.train(FEW[kind], **SIZES, tokenizer=tokenizer, vocab_size=300)


ENOUGH: dict[str, list[str]] = {
    "one sentence": ["The small cat sees an old house by the river."],
    "one document": [make_text(60)],
    "two documents": ["The small cat sees a house. ", "A dog finds the red bird by a tree."],
    "99 documents": [f"The cat sees {number} birds." for number in range(99)],
    "100 documents": [f"The cat sees {number} birds." for number in range(100)],
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("kind", ENOUGH)
@pytest.mark.filterwarnings("ignore:the .* part has only")
def test_little_text_is_trained_on(kind: str, tokenizer: str) -> None:
    run = slm.train(ENOUGH[kind], **SIZES, tokenizer=tokenizer, vocab_size=300, val_fraction=0.2)
    assert run.metrics["val_loss"] > 0


def test_windows_that_had_to_be_shortened_are_warned_of() -> None:
    with pytest.warns(
        UserWarning, match="the validation part has only 5 tokens: its windows are shortened from 16 to 4"
    ):
        slm.train([make_text(60)[:50]], **SIZES, tokenizer="char")


@pytest.mark.filterwarnings("ignore:the .* part has only")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_folder_of_few_files(here: Path, count: int) -> None:
    (here / "texts").mkdir()
    for number in range(count):
        (here / "texts" / f"{number}.txt").write_text(make_text(60))
    if count:
        data = loaded("texts", tokenizer="char")
        assert len(data.train_dataset.tokens) + len(data.val_dataset.tokens) == count * len(make_text(60)) + (count - 1)
        assert slm.train("texts", **SIZES, tokenizer="char").metrics["val_loss"] > 0
    else:
        with pytest.raises((UserError, files.StorageError), match="texts"):
            loaded("texts")


@pytest.mark.parametrize("source", ["text", "ids"])
def test_evaluations_read_a_bounded_number_of_tokens_and_always_the_same(
    monkeypatch: pytest.MonkeyPatch, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (prepare_module, splits):
        monkeypatch.setattr(module, "EVALUATED_TOKENS", 100)
    keys = {"tokenizer": "char"} if source == "text" else {}
    data = [make_text(400)] if source == "text" else IDS * 10
    dataset = loaded(data, **keys).val_dataset
    assert len(dataset.tokens) > 150
    assert len(dataset) == 100 // 16
    windows = [(tokens.tolist(), targets.tolist()) for tokens, targets in dataset]
    again = loaded(data, **keys).val_dataset
    assert [(tokens.tolist(), targets.tolist()) for tokens, targets in again] == windows
    assert len(loaded(data, **keys).train_dataset) > 100
    slm.train(data, **{**SIZES, **keys, "quiet": False})
    assert "of which evaluations always read the same 100" in capsys.readouterr().out


def test_a_short_validation_text_is_evaluated_whole_and_the_header_says_nothing_of_a_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slm.train([make_text(400)], **{**SIZES, "tokenizer": "char", "quiet": False})
    told = capsys.readouterr().out
    assert "the last 10 % of the text" in told
    assert "evaluations always read" not in told


def test_the_dummy_data_takes_no_val_data(here: Path) -> None:
    assert loaded(None).name == "dummy"
    with pytest.raises(UserError, match="dummy data has its own validation part"):
        loaded("dummy", val_data="text.txt")


def test_a_negative_id_is_refused() -> None:
    with pytest.raises(UserError, match="holds the id -1: token ids are 0 or above"):
        loaded([1, 2, -1] * 200)


def test_a_run_on_token_ids_is_repeated(here: Path) -> None:
    written("ids.npy", IDS)
    run = slm.train("ids.npy", model_dir="run", **SIZES)
    again = slm.train(repeat="run", quiet=True)
    assert again.metrics["val_loss"] == run.metrics["val_loss"]


def test_prepared_data_is_neither_validation_text_nor_one_of_several(here: Path) -> None:
    Path("a.txt").write_text(make_text(200))
    slm.prepare("a.txt", out="prep", tokenizer="byte")
    for data, keys in ((["prep", "a.txt"], {}), (["a.txt"], {"val_data": "prep"})):
        with pytest.raises(UserError, match="slm-prepare made"):
            slm.train([Path(name) for name in data], tokenizer="byte", **keys, **SIZES)


def test_masks_begin_documents_where_they_are_told_to() -> None:
    texts = [make_text(40)] * 3
    for keys, start in (({}, 0), ({"document_start": 7}, 7)):
        run = slm.train(texts, tokenizer="byte", mask_documents=True, **keys, **SIZES)
        assert run.model.config.document_start == start
