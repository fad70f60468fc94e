"""Laws of files that are broken or made to do harm: one clear error, little memory, no code run, nothing changed."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import slm
from slm.config import UserError
from slm.data.manifest import read_manifest
from slm.data.shards import open_prepared
from slm.data.tokenizer import MOST_IDS, Tokenizer, byte_tokenizer
from slm.settings import read_config, read_table
from slm.storage import checkpoint_folder, load_file, save_file
from slm.training.packing import pack_model, unpack_model

SIZES = {"vocab_size": 257, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "hidden_dim": 16, "max_seq_len": 16}
HUGE = 10**9


def content_of(**options: Any) -> dict[str, Any]:
    """What a model.pt holds."""
    model = slm.LanguageModel(slm.ModelConfig(**SIZES, **options))
    packed = pack_model(model, model.state_dict(), byte_tokenizer(), {"step": 3, "val_loss": 2.5})
    return {**packed, "asked": {}, "resolved": {}, "made_with": {}}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_what_is_packed_is_unpacked(tmp_path: Path, positions: str, tied: bool) -> None:
    content = content_of(positions=positions, tie_embeddings=tied)
    save_file(str(tmp_path / "model.pt"), content)
    run = slm.load(tmp_path)
    assert all(torch.equal(content["model"][name], weight) for name, weight in run.model.state_dict().items())
    assert run.metrics == {"step": 3, "val_loss": 2.5}
    assert (run.model.lm_head.weight is run.model.embedding.weight) == tied


@pytest.mark.parametrize(
    ("options", "lie"),
    [
        ({}, {"num_layers": HUGE}),
        ({}, {"num_layers": 50}),
        ({}, {"embed_dim": HUGE}),
        ({}, {"hidden_dim": HUGE}),
        ({}, {"vocab_size": 2**62}),
        ({}, {"max_seq_len": HUGE}),
        ({"positions": "rope"}, {"max_seq_len": HUGE}),
        ({}, {"embed_dim": 16}),
        ({}, {"num_heads": 3}),
        ({}, {"vocab_size": "many"}),
        ({}, {"unknown": 1}),
        ({}, {3: 4}),
        ({"tie_embeddings": True}, {"num_layers": 1}),
    ],
)
def test_a_configuration_that_its_weights_do_not_fit_is_refused_before_memory_is_taken(
    options: dict[str, Any], lie: dict[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(**options)
    content["model_config"].update(lie)
    taken: list[int] = []
    empty = torch.empty

    def counted(*size: Any, **keys: Any) -> torch.Tensor:
        made = empty(*size, **keys, device="meta")
        taken.append(made.numel())
        return empty(*size, **keys)

    monkeypatch.setattr(torch, "empty", counted)
    with pytest.raises(UserError, match=r"^model\.pt is damaged.*Copy it again"):
        unpack_model(content, "model.pt")
    assert sum(taken) < 100_000


def test_tables_that_no_weights_tell_of_are_bounded_too() -> None:
    content = content_of(positions="rope")
    content["model_config"]["max_seq_len"] = 10**8
    with pytest.raises(UserError, match="more than a model of that size can look at"):
        unpack_model(content, "model.pt")


def test_one_large_weight_under_many_names_makes_no_larger_model() -> None:
    content = content_of()
    whole = torch.zeros(1000, 1000)
    content["model"] = {f"{name}{i}": whole[:9] for name in content["model"] for i in range(100)}
    content["model_config"].update(num_layers=1000, embed_dim=1000, num_heads=1)
    with pytest.raises(UserError, match="parameters are told of"):
        unpack_model(content, "model.pt")


WRONG: dict[str, tuple[Any, ...]] = {
    "model": (None, 3, [], {"weight": 3}, {3: torch.ones(1)}, {"embedding.weight": torch.ones(257, 8)}),
    "model_config": (3, [], "x", {}),
    "tokenizer": (3, ["x"], "x", "{}", "[" * 100_000, {"version": "1.0"}),
    "metrics": (None, [], 3, {"step": "x"}, {"step": 1.5}, {"val_loss": "x"}, {"val_loss": None}, {3: 4}),
    "asked": (None, 3, []),
    "resolved": (None, "x"),
    "made_with": (None, torch.ones(3)),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_of_another_type_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    save_file(str(tmp_path / "model.pt"), content_of() | {name: value})
    with pytest.raises(UserError, match=r"model\.pt (is damaged|is not a Hugging Face)") as error:
        slm.load(tmp_path)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("change", [torch.Tensor.int, torch.Tensor.cfloat, torch.Tensor.bool, torch.ravel])
def test_weights_of_another_type_or_shape_are_refused(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    content = content_of()
    content["model"]["embedding.weight"] = change(content["model"]["embedding.weight"])
    with pytest.raises(UserError, match="do not fit"):
        unpack_model(content, "model.pt")


def test_a_tokenizer_of_more_tokens_than_its_model_is_refused() -> None:
    content = content_of()
    described = json.loads(content["tokenizer"])
    described["model"]["vocab"]["more"] = 257
    with pytest.raises(UserError, match="has 258 tokens, and its model 257"):
        unpack_model(content | {"tokenizer": json.dumps(described)}, "model.pt")


@pytest.mark.parametrize("version", [None, "1", 0, -1, 1.0, True, [1], 3])
def test_a_file_of_no_version_is_refused(tmp_path: Path, version: Any) -> None:
    torch.save({"format": "slm", "format_version": version}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="upgrade slm" if version == 3 else "format_version"):
        load_file(str(tmp_path / "x.pt"))


TOKENIZERS: dict[str, tuple[str, Any]] = {
    "a normalizer that panics": ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "a pattern that is none": ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
    "no vocabulary": ("model", {"type": "BPE", "vocab": {}, "merges": []}),
    "a huge id": ("model", {"type": "BPE", "vocab": {"a": 0, "b": MOST_IDS}, "merges": []}),
    "the hugest id": ("model", {"type": "WordLevel", "vocab": {"a": 2**32 - 1}, "unk_token": "a"}),
    "merges of nothing": ("model", {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
    "no model": ("model", None),
    "half a pair": ("added_tokens", ["\ud800"]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_is_none_is_refused(name: str) -> None:
    part, value = TOKENIZERS[name]
    described = json.loads(byte_tokenizer().to_json()) | {"added_tokens": [], part: value}
    with pytest.raises(UserError, match=r"^file is not a Hugging Face tokenizer\.json"):
        Tokenizer.from_json(json.dumps(described), "file")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text("a text of some words\n" * 200)
    return Path(slm.prepare(folder / "text.txt", tokenizer="byte", out=folder / "out"))


LIES: list[tuple[tuple[str | int, ...], Any]] = [
    (("shards", 0, "name"), "../../train-00000.bin"),
    (("shards", 0, "name"), "/train-00000.bin"),
    (("shards", 0, "name"), "val-00000.bin"),
    (("shards", 0, "name"), "train-x.bin"),
    (("shards", 0, "name"), 3),
    (("shards", 0, "split"), "test"),
    (("shards", 0, "bytes"), -1),
    (("shards", 0, "bytes"), 0),
    (("shards", 0, "bytes"), 2**70),
    (("shards", 0, "bytes"), "9"),
    (("shards", 0), None),
    (("shards",), {}),
    (("shards",), [[]]),
    (("shards",), []),
    (("dtype",), "object"),
    (("dtype",), "uint8"),
    (("dtype",), "uint32"),
    (("dtype",), ["uint16"]),
    (("vocab_size",), 0),
    (("vocab_size",), 2**40),
    (("vocab_size",), 100),
    (("vocab_size",), True),
    (("start_id",), 257),
    (("start_id",), -1),
    (("tokens",), [1, 1]),
    (("tokens",), None),
    (("documents",), [1]),
    (("documents",), 1),
    (("documents",), [1, -1]),
    (("settings",), {}),
    (("settings",), None),
    (("found",), 3),
    (("num_bytes",), float("nan")),
    (("source_bits_per_byte",), float("inf")),
    (("source_bits_per_byte",), "x"),
    (("held_out",), 0),
    (("key",), None),
    (("format_version",), "1"),
    (("format_version",), None),
]


@pytest.mark.parametrize(("place", "lie"), LIES)
def test_a_manifest_that_lies_is_refused(prepared: Path, tmp_path: Path, place: tuple[Any, ...], lie: Any) -> None:
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((prepared / "manifest.json").read_text())
    where = manifest
    for key in place[:-1]:
        where = where[key]
    gone = copy.deepcopy(manifest) if len(place) == 1 else None
    where[place[-1]] = lie
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"{tmp_path}.*(prepare the data anew|--recheck)"):
        open_prepared(str(tmp_path))
    if gone:
        del gone[place[0]]
        (tmp_path / "manifest.json").write_text(json.dumps(gone))
        if place[0] not in ("start_id", "source_bits_per_byte"):  # for which None is as good
            with pytest.raises(UserError, match="prepare the data anew"):
                read_manifest(str(tmp_path))


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"9" * 5000, b"NaN"])
def test_json_that_cannot_be_read_is_no_manifest(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    assert read_manifest(str(tmp_path)) is None
    with pytest.raises(UserError, match="missing or damaged"):
        open_prepared(str(tmp_path))
    with pytest.raises(UserError, match=r"damaged|not the manifest"):
        checkpoint_folder.read_manifest(data, "manifest.json")


def test_another_tokenizer_than_that_of_the_data_is_refused(prepared: Path, tmp_path: Path) -> None:
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    described = json.loads((prepared / "tokenizer.json").read_text())
    described["model"]["vocab"]["more"] = 257
    for text in (json.dumps(described), "\ufffd", ""):
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-16")
        with pytest.raises(UserError, match=r"tokenizer\.json is not"):
            open_prepared(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json has 258 tokens, and 257 when"):
        open_prepared(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 100_000,
        "x = " + "{a=" * 100_000,
        ".".join("a" * 100_000) + " = 1",
        "x = {" + ".".join("'a'" for _ in range(100_000)) + " = 1}",
        "x = " + "9" * 5000,
        'x = "' + '\\"' * 100_000,
        "\ufffd",
        "x = 1979-13-01",
    ],
    ids=range(8),
)
def test_toml_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.toml is not a valid TOML file") as error:
        read_config(str(path))
    assert len(str(error.value)) < 1000
    with pytest.raises(UserError, match=r"config\.toml"):
        read_table(str(tmp_path), "resolved")


def test_dots_in_texts_and_comments_are_no_names(tmp_path: Path) -> None:
    names = [f"{'../' * 20}folder.{i}/file.txt" for i in range(50)]
    text = f'# {"." * 500}\ndata = {names}  # "{"." * 200}\nsplit_documents_on = "\\"{"." * 200}"\n'
    (tmp_path / "config.toml").write_text(text)
    assert read_config(str(tmp_path / "config.toml")) == {"data": names, "split_documents_on": '"' + "." * 200}


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """benchmarks/fuzz.py, which damages files."""
    pytest.importorskip("resource")
    path = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


def test_damaged_files_are_loaded_or_refused(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A few of those that the benchmark tries by the ten thousand."""
    good, folder = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    folder.mkdir()
    monkeypatch.chdir(folder)
    fuzz.make_files(good)
    outcomes = {number: fuzz.try_one(number, 1, good, folder) for number in range(400)}
    wrong = {number: told for number, told in outcomes.items() if told.split(": ", 1)[1] not in fuzz.FINE}
    assert wrong == {}
    assert {told.split(": ")[1] for told in outcomes.values()} >= {"loaded", "UserError"}
    assert list(tmp_path.rglob("canary")) == []
