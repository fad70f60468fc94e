"""Laws of prepared folders: they train as their text does, are never used by halves, and never replace anything."""

from __future__ import annotations

import importlib
import json
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, loaded, make_text

import slm
from slm.config import IGNORE_INDEX, DataConfig, UserError
from slm.data import prepare as prepare_module
from slm.data import splits, survey
from slm.data.manifest import MANIFEST, PROGRESS, TOKENIZER
from slm.data.prepare import prepare
from slm.data.prepared import PreparedData
from slm.data.shards import Prepared, open_prepared
from slm.data.stories import stories
from slm.settings import as_settings, layered
from slm.storage import files

pytestmark = pytest.mark.filterwarnings("ignore:only . step", "ignore:the plan reads", "ignore:the vocabulary of")
SIZES = {**SMALL, "max_steps": 3}
SIZES_ALONE = {name: value for name, value in SIZES.items() if name != "tokenizer"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(make_text(800))
    return tmp_path


def states(folder: str | Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in Path(folder).iterdir()}


def but_for_names(made_with: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in made_with.items() if name not in ("data_name", "found")}


def test_training_on_a_prepared_folder_is_training_on_its_text(here: Path) -> None:
    folder = prepare("text.txt", tokenizer="char", out="out")
    (here / "text.txt").rename(here / "gone.txt")
    one, two = slm.train(folder, **SIZES_ALONE), slm.train("gone.txt", **SIZES)
    assert one.metrics["val_loss"] == two.metrics["val_loss"]
    assert but_for_names(one.made_with) == but_for_names(two.made_with)
    assert one.generate("the", seed=1) == two.generate("the", seed=1)


def test_a_run_on_a_prepared_folder_can_be_repeated(here: Path) -> None:
    prepare("text.txt", tokenizer="char", val_fraction=0.2, out="out")
    first = slm.train("out", **SIZES_ALONE, model_dir="first")
    assert first.resolved["tokenizer"] == "char"
    second = slm.train(repeat="first", model_dir="second", quiet=True)
    assert second.metrics["val_loss"] == first.metrics["val_loss"]


def test_a_fingerprint_is_that_of_text_split_and_tokenizer(here: Path) -> None:
    for name in ("val.txt", "other.txt"):
        (here / name).write_text("the cat sees a dog\n" * 5)

    def fingerprint(data: Any = "text.txt", **keys: Any) -> str:
        return loaded(data, **{"tokenizer": "char", **keys}).fingerprint

    same = {fingerprint(), fingerprint(Path("text.txt")), fingerprint([(here / "text.txt").read_text()])}
    same |= {fingerprint(prepare("text.txt", tokenizer="char", out="out"), tokenizer="char")}
    assert len(same) == 1
    with_val = {fingerprint(val_data=name) for name in ("val.txt", "other.txt", str(here / "val.txt"))}
    assert len(with_val) == 1
    others = [fingerprint(val_fraction=0.2), fingerprint(tokenizer="byte"), fingerprint("val.txt")]
    assert len({*same, *with_val, *others}) == 5


def test_an_out_that_is_there_and_the_same_is_left_as_it_is(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepare("text.txt", tokenizer="char", out="out") == "out"
    before = states("out")
    monkeypatch.setattr(prepare_module, "take_survey", None)
    assert prepare(str(here / "text.txt"), tokenizer="char", out=here / "out") == str(here / "out")
    assert states("out") == before


@pytest.mark.parametrize("data", ["text.txt", ["a text from Python. " * 40]], ids=["file", "Python"])
@pytest.mark.parametrize("recheck", [False, True])
def test_an_out_that_was_prepared_otherwise_is_refused(data: Any, recheck: bool) -> None:
    prepare(data, tokenizer="char", out="out")
    before = states("out")
    for change in ({"tokenizer": "byte"}, {"tokenizer": "char", "val_fraction": 0.3}):
        with pytest.raises(UserError, match=r"out holds data that was prepared .* nothing was changed"):
            prepare(data, **change, out="out", recheck=recheck)
    with pytest.raises(UserError, match="nothing was changed"):
        prepare(["another text. " * 40], tokenizer="char", out="out", recheck=recheck)
    assert states("out") == before


@pytest.mark.parametrize("name", ["thesis.txt", TOKENIZER, ".hidden", "train-00000.bin"])
def test_an_out_that_holds_anything_else_is_refused_before_the_text_is_read(
    here: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "out").mkdir()
    (here / "out" / name).write_text("mine")
    before = states("out")
    monkeypatch.setattr(prepare_module, "take_survey", None)
    with pytest.raises(files.ExistsError, match="out is not empty"):
        prepare("text.txt", out="out")
    assert states("out") == before


def test_an_empty_out_is_as_good_as_a_new_one_and_a_file_is_none(here: Path) -> None:
    (here / "out").mkdir()
    prepare("text.txt", tokenizer="char", out=here / "out")
    assert MANIFEST in states("out")
    with pytest.raises(files.StorageError, match=r"text\.txt"):
        prepare("text.txt", tokenizer="char", out="text.txt")
    assert (here / "text.txt").read_text() == make_text(800)


def test_no_public_name_of_the_data_turns_into_a_module_once_that_is_loaded() -> None:
    for name in slm.data.__all__:
        importlib.import_module(f"slm.data.{slm.data._HOMES[name]}")
        assert not isinstance(getattr(slm.data, name), types.ModuleType), name
    assert slm.prepare is prepare


def test_texts_that_cannot_be_prepared_are_refused() -> None:
    for data in (None, "dummy"):
        with pytest.raises(UserError, match="dummy"):
            prepare(data)
    with pytest.raises(UserError, match="text 0 of data is a int"):
        prepare([1, 2, 3])


def _die_when_tokenizing(what: str, done: int, total: int | None) -> None:
    if what == "tokenizing":
        raise KeyboardInterrupt


def _unfinished(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare("text.txt", tokenizer="char", out=folder, on_progress=_die_when_tokenizing)


def _without_manifest(folder: Path) -> None:
    prepare("text.txt", tokenizer="char", out=folder)
    (folder / MANIFEST).unlink()


def _broken_manifest(folder: Path) -> None:
    prepare("text.txt", tokenizer="char", out=folder)
    (folder / MANIFEST).write_text("{")


@pytest.mark.parametrize("leave", [_unfinished, _without_manifest, _broken_manifest])
def test_half_a_preparation_is_never_trained_on(here: Path, leave: Callable[[Path], None]) -> None:
    leave(here / "out")
    for data in ("out", str(here / "out"), "out/"):
        with pytest.raises(UserError, match="slm-prepare"):
            slm.train(data, **SIZES_ALONE)
    with pytest.raises(UserError, match="slm-prepare"):
        open_prepared("out")


CONTRADICTIONS = {
    "tokenizer": "char",
    "vocab_size": 290,
    "val_fraction": 0.2,
    "text_field": "content",
    "split_documents_on": "\n",
    "val_data": "text.txt",
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_setting_that_contradicts_a_prepared_folder_is_refused_with_both(here: Path, name: str) -> None:
    prepare("text.txt", vocab_size=270, out="out")
    with pytest.raises(UserError, match=f"{name} = .*prepared with {name} = "):
        slm.train("out", **{**SIZES_ALONE, name: CONTRADICTIONS[name]})


def test_a_setting_that_meets_nothing_is_told(here: Path) -> None:
    (here / "posts.jsonl").write_text('{"body": "a|b"}\n' * 40)
    cases: list[tuple[Any, dict[str, Any], bool]] = [
        ("text.txt", {"text_field": "body"}, True),
        ("posts.jsonl", {"text_field": "body"}, False),
        ([Path("text.txt"), Path("posts.jsonl")], {"text_field": "body"}, False),
        (["a text. " * 20], {"text_field": "body"}, True),
        ("text.txt", {"split_documents_on": "zzzz"}, True),
        ("text.txt", {"split_documents_on": "\\n"}, False),
        ("posts.jsonl", {"text_field": "body", "split_documents_on": "|"}, True),
        ("text.txt", {}, False),
    ]
    for data, keys, expected in cases:
        told = loaded(data, tokenizer="byte", **keys).found
        assert any("has no effect" in line for line in told) == expected
    found = loaded("text.txt", val_data="posts.jsonl", text_field="body").found
    assert [line.startswith("validation: ") for line in found] == [False, True]


@pytest.mark.parametrize("name", ["out/train-00000.bin", "out/*.bin"])
def test_a_shard_is_no_file_of_token_ids(here: Path, name: str) -> None:
    prepare("text.txt", tokenizer="char", out="out")
    for keys in ({"data": name}, {"data": [1, 2] * 50, "val_data": name}):
        with pytest.raises(UserError, match=r"is a part of prepared data: name its folder, --data \S*out"):
            loaded(**keys)
    (here / "mine").mkdir()
    (here / "mine" / "train-00000.bin").write_bytes(b"\1\0" * 50)
    assert loaded("mine/train-00000.bin").vocab_size == 2


def test_a_prepared_folder_without_its_tokenizer_says_so(here: Path) -> None:
    prepare("text.txt", tokenizer="char", out="out")
    (here / "out" / TOKENIZER).unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing, .* The same slm-prepare"):
        slm.train("out", **SIZES_ALONE)
    prepare("text.txt", tokenizer="char", out="out")
    assert slm.train("out", **SIZES_ALONE).tokenizer


def test_a_text_given_as_a_path_is_no_folder() -> None:
    for text in ("To be,\nor not to be", "word " * 500):
        with pytest.raises(UserError, match="literal text goes in a list"):
            loaded(text)
    with pytest.raises(files.MissingError, match="literal text goes in a list"):
        loaded("Who goes there?")


def test_settings_that_agree_with_a_prepared_folder_are_welcome(here: Path) -> None:
    (here / "val.txt").write_text(make_text(100))
    keys: dict[str, Any] = {"vocab_size": 270, "val_data": "val.txt", "tokenizer": "bpe", "text_field": "text"}
    prepare("text.txt", **keys, out="out")
    data = loaded("out", **{**keys, "val_data": str(here / "val.txt")}, recheck=True)
    assert data.vocab_size == 270
    assert data.folder == "out"
    prepare("text.txt", tokenizer="char", out="letters")
    assert loaded("letters", vocab_size=300).vocab_size < 300  # a bound for bpe alone
    assert data.name == "text.txt"


def _by_hash() -> list[str]:
    """Documents of which those for training have another word than those for validation."""
    words = {False: "wonderful", True: "extraordinary"}
    texts = [(f"{number} {word}", held_out) for number in range(400) for held_out, word in words.items()]
    return [text for text, held_out in texts if (survey.share(text) < 0.3) == held_out]


@pytest.mark.parametrize("case", ["hash", "cut", "val_data"])
def test_a_vocabulary_is_learned_from_training_text_alone(here: Path, case: str) -> None:
    (here / "val.txt").write_text("an extraordinary day\n" * 50)
    cases: dict[str, tuple[list[str], dict[str, Any]]] = {
        "hash": (_by_hash(), {"val_fraction": 0.3}),
        "cut": (["a wonderful day\n" * 70 + "an extraordinary day\n" * 60], {"val_fraction": 0.53}),
        "val_data": (["a wonderful day\n" * 100], {"val_data": "val.txt"}),
    }
    data, keys = cases[case]
    loaded_data = loaded(data, tokenizer="bpe", vocab_size=300, **keys)
    assert loaded_data.tokenizer
    texts = [
        loaded_data.tokenizer.decode(dataset.tokens[:].tolist())
        for dataset in (loaded_data.train_dataset, loaded_data.val_dataset)
    ]
    assert ["extraordinary" in text for text in texts] == [False, True]
    assert len(loaded_data.tokenizer.encode(" wonderful")) < 4
    assert len(loaded_data.tokenizer.encode(" extraordinary")) > 8


def test_val_data_is_all_that_is_validated_on_and_none_of_it_is_trained_on(here: Path) -> None:
    for name, text in {"val.txt": "abc", "more.txt": "cab"}.items():
        (here / name).write_text(text)
    data = loaded("text.txt", val_data=[Path("val.txt"), Path("more.txt")], tokenizer="byte")
    assert data.tokenizer
    end = data.tokenizer.end_id
    assert data.val_dataset.tokens[:].tolist() == [*data.tokenizer.encode("abc"), end, *data.tokenizer.encode("cab")]
    assert data.train_dataset.tokens[:].tolist() == data.tokenizer.encode(make_text(800))
    assert data.split == "all of 2 sources: val.txt, more.txt"


def evaluated_stories(data: PreparedData) -> list[str]:
    """The texts between the end tokens of what evaluations read; each must be whole."""
    assert data.tokenizer
    targets = [id for _, row in data.val_dataset for id in row.tolist() if id != IGNORE_INDEX]
    texts: list[str] = []
    held: list[int] = []
    for id in targets:
        if id == data.tokenizer.end_id:
            texts.append(data.tokenizer.decode(held))
            held = []
        else:
            held.append(id)
    assert held == []
    return texts


@pytest.mark.parametrize("most", [500, 700, 1111, 10**6])
@pytest.mark.parametrize("size", ["4KB", "150KB"])
def test_the_yardstick_is_that_of_the_stories_that_are_evaluated(
    monkeypatch: pytest.MonkeyPatch, most: int, size: str
) -> None:
    for module in (prepare_module, splits):
        monkeypatch.setattr(module, "EVALUATED_TOKENS", most)
    check_yardstick(loaded(f"stories:{size}", tokenizer="bpe", vocab_size=400, val_fraction=0.5), size == "4KB")


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_story_counts_when_its_end_is_just_evaluated(monkeypatch: pytest.MonkeyPatch, beyond: int) -> None:
    keys = {"data": "stories:60KB", "tokenizer": "char", "val_fraction": 0.3}
    tokens = loaded(**keys).val_dataset.tokens
    border = int(tokens.positions(tokens[:1][0], len(tokens))[3])
    for module in (prepare_module, splits):
        monkeypatch.setattr(module, "EVALUATED_TOKENS", border + beyond)
    data = loaded(**keys)
    assert len(evaluated_stories(data)) == (2 if beyond < 0 else 3)
    check_yardstick(data, one_is_cut=False)


def check_yardstick(data: PreparedData, one_is_cut: bool) -> None:
    """The bits per byte are those of the whole stories among the targets."""
    texts = evaluated_stories(data)
    bits = {story.text: story.bits for story in stories(0, 160_000)}
    whole = [text for text in texts if text in bits]
    assert len(texts) - len(whole) <= one_is_cut  # of few stories the cut goes through one
    expected = sum(bits[text] for text in whole) / sum(map(len, whole)) if whole else None
    assert data.source_bits_per_byte == (pytest.approx(expected, rel=1e-12) if expected else None)


def test_only_stories_have_a_yardstick(here: Path) -> None:
    assert loaded("text.txt").source_bits_per_byte is None
    assert loaded("text.txt", val_data="stories:2KB").source_bits_per_byte
    assert loaded("stories:20KB", val_data="text.txt").source_bits_per_byte is None
    mixed = DataConfig(data=("stories:20KB", "text.txt"), val_fraction=0.5)
    about = prepare_module.Job(mixed, None, vocab_size=300, on_progress=lambda *_: None).run().about
    assert sum(about["documents"]) > 30
    assert about["source_bits_per_byte"] is None


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("url", ["memory://prepared/one", "gs://bucket/prepared/one"])
def test_a_url_takes_the_tokens_and_gives_them_back(here: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if url.startswith("memory"):
        url += f"-{here.name}"
    uploaded: list[str] = []
    upload = files.upload

    def spy(local_path: str, target: str, *, overwrite: bool = False) -> None:
        uploaded.append(target.rpartition("/")[2])
        upload(local_path, target, overwrite=overwrite)

    monkeypatch.setattr(files, "upload", spy)
    assert prepare("text.txt", tokenizer="char", out=url) == url
    assert (uploaded[0], uploaded[-1]) == (TOKENIZER, MANIFEST)
    assert set(files.list_names(url)) == set(uploaded)
    local = slm.train("text.txt", **SIZES)
    monkeypatch.setenv("SLM_CACHE", str(here / "another machine"))
    remote = slm.train(url, **SIZES_ALONE)
    assert remote.metrics["val_loss"] == local.metrics["val_loss"]
    assert but_for_names(remote.made_with) == but_for_names(local.made_with)
    assert prepare("text.txt", tokenizer="char", out=url) == url
    with pytest.raises(UserError, match=f"{url} holds data .*: nothing was changed"):
        prepare("text.txt", tokenizer="byte", out=url)
    assert slm.train(url, **SIZES_ALONE).metrics["val_loss"] == local.metrics["val_loss"]


def test_a_url_that_holds_anything_else_is_refused_before_the_text_is_read(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://foreign/{here.name}"
    files.write_bytes(files.join(url, TOKENIZER), b"mine")
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "take_survey", None)
        with pytest.raises(files.ExistsError, match="is not empty"):
            prepare("text.txt", tokenizer="char", out=url)
    assert files.read_bytes(files.join(url, TOKENIZER)) == b"mine"
    assert files.list_names(url) == [TOKENIZER]


def test_recheck_mends_what_was_fetched_from_a_url(here: Path) -> None:
    url = f"memory://recheck/{here.name}"
    prepare("text.txt", tokenizer="char", out=url)
    first = loaded(url)
    shard = Path(str(first.folder), "train-00000.bin")
    shard.write_bytes(bytes(shard.stat().st_size))
    assert set(loaded(url).train_dataset.tokens[:].tolist()) == {0}
    again = loaded(url, recheck=True)
    assert again.tokenizer
    assert (here / "text.txt").read_text().startswith(again.tokenizer.decode(again.train_dataset.tokens[:].tolist()))


def test_what_a_url_holds_already_is_neither_made_nor_uploaded_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://again/{here.name}"
    prepare("text.txt", tokenizer="char", out=url)
    monkeypatch.setenv("SLM_CACHE", str(here / "another machine"))
    monkeypatch.setattr(files, "upload", None)
    assert prepare(["text " * 99], tokenizer="byte", out=here / "elsewhere")
    monkeypatch.setattr(prepare_module, "take_survey", None)
    assert prepare("text.txt", tokenizer="char", out=url) == url


def test_files_that_somebody_put_beside_the_tokens_stay(here: Path) -> None:
    _unfinished(here / "out")
    (here / "out" / "README").write_text("mine")
    prepare("text.txt", tokenizer="byte", out="out")
    assert (here / "out" / "README").read_text() == "mine"
    assert open_prepared("out").tokenizer.vocab_size == 257


def test_a_folder_with_somebody_elses_progress_is_not_ours(here: Path) -> None:
    (here / "out").mkdir()
    for name in (PROGRESS, TOKENIZER, "train-00000.bin"):
        (here / "out" / name).write_text("{}")
    before = states("out")
    with pytest.raises(files.ExistsError, match="out is not empty"):
        prepare("text.txt", tokenizer="char", out="out")
    assert states("out") == before


@pytest.mark.parametrize("data", ["notes", "notes/**"])
def test_an_out_within_a_source_is_no_part_of_it(here: Path, data: str) -> None:
    (here / "notes").mkdir()
    (here / "notes" / "a.txt").write_text(make_text(300))
    out = here / "notes" / "prepared"
    with pytest.raises(KeyboardInterrupt):
        prepare(data, tokenizer="char", out=out, on_progress=_die_when_tokenizing)
    assert prepare(data, tokenizer="char", out=out) == str(out)
    before = states(out)
    assert prepare(data, tokenizer="char", out=out) == str(out)
    assert states(out) == before
    assert open_prepared(str(out)).about["num_bytes"] == len(make_text(300))


def test_a_shard_that_was_damaged_at_its_url_is_mended_on_request(here: Path) -> None:
    url = f"memory://mended/{here.name}"
    prepare("text.txt", tokenizer="char", out=url)
    shard = files.join(url, "train-00000.bin")
    data = files.read_bytes(shard)
    files.write_bytes(shard, b"\2" + data[1:])
    prepare("text.txt", tokenizer="char", out=url, recheck=True)
    assert files.read_bytes(shard) == data
    assert slm.train(url, **SIZES_ALONE).tokenizer


@contextmanager
def failing_upload(name: str) -> Iterator[None]:
    """A context in which the upload of that file fails."""
    upload = files.upload

    def fail(local_path: str, target: str, *, overwrite: bool = False) -> None:
        if target.endswith(name):
            raise files.StorageError("the line is dead")
        upload(local_path, target, overwrite=overwrite)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "upload", fail)
        yield


def test_an_unfinished_upload_of_other_text_leaves_nothing(here: Path) -> None:
    (here / "other.txt").write_text("other text " * 80)
    url = f"memory://other/{here.name}"
    with failing_upload(MANIFEST), pytest.raises(files.StorageError, match="the line is dead"):
        prepare("text.txt", tokenizer="char", out=url)
    files.write_bytes(files.join(url, "train-00007.bin"), b"of another text")
    prepare("other.txt", tokenizer="char", out=url)
    assert set(files.list_names(url)) == {MANIFEST, TOKENIZER, "train-00000.bin", "val-00000.bin"}


@pytest.mark.parametrize("out", ["", "text.txt", "text.txt/out", "memory://early"])
def test_an_out_that_cannot_be_is_refused_before_the_text_is_read(
    here: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if out.startswith("memory"):
        prepare("text.txt", tokenizer="byte", out=out)
    monkeypatch.setattr(prepare_module, "take_survey", None)
    with pytest.raises((UserError, files.StorageError)):
        prepare("text.txt", tokenizer="char", out=out)
    assert (here / "text.txt").read_text() == make_text(800)


def test_a_folder_of_text_may_hold_files_of_the_same_names(here: Path) -> None:
    (here / "notes").mkdir()
    for name in (PROGRESS, MANIFEST, TOKENIZER):
        (here / "notes" / name).write_text('{"chapter": 3}' * 9)
    assert loaded("notes", tokenizer="byte").num_bytes == 3 * 9 * 14


def test_what_is_given_in_python_wins_over_a_config_file(here: Path) -> None:
    (here / "c.toml").write_text('data = "text.txt"\nval_data = "text.txt"\ntokenizer = "byte"\n')
    data = loaded(["my own text. " * 9], val_data=["and mine. " * 9], config="c.toml")
    assert data.split == "all of val_data given in Python"
    assert data.name == "text given in Python"
    with pytest.raises(UserError, match="drop val_data"):
        layered(as_settings(None, {"repeat": "run", "val_data": ["text"]})[0], "keyword")


def test_a_kill_after_the_manifest_hides_no_damage(here: Path) -> None:
    prepare("text.txt", tokenizer="char", out="out")
    good = (here / "out" / "train-00000.bin").read_bytes()
    about = json.loads((here / "out" / MANIFEST).read_text())
    left = {"format": about["format"], "made_from": f"{about['key']} {about['content']}", "place": [1, 0]}
    state = {"chars": about["num_bytes"], "finished": True, "counted": [0, 0]}
    rest = {name: about[name] for name in ("shards", "documents", "tokens")}
    (here / "out" / PROGRESS).write_text(json.dumps({**left, **state, **rest}))
    (here / "out" / "train-00000.bin").write_bytes(b"\2" + good[1:])
    prepare("text.txt", tokenizer="char", out="out", recheck=True)
    assert (here / "out" / "train-00000.bin").read_bytes() == good


def test_an_upload_that_was_cut_off_is_not_trained_on(here: Path) -> None:
    url = f"memory://cut-off/{here.name}"
    with failing_upload("val-00000.bin"), pytest.raises(files.StorageError, match="the line is dead"):
        prepare("text.txt", tokenizer="char", out=url)
    with pytest.raises(UserError, match="slm-prepare"):
        slm.train(url, **SIZES_ALONE)
    prepare("text.txt", tokenizer="char", out=url)
    assert slm.train(url, **SIZES_ALONE).tokenizer


def test_a_shard_that_was_damaged_at_its_url_is_not_trained_on(here: Path) -> None:
    url = f"memory://damaged/{here.name}"
    prepare("text.txt", tokenizer="char", out=url)
    shard = files.join(url, "train-00000.bin")
    data = files.read_bytes(shard)
    files.write_bytes(shard, b"\2" + data[1:])
    for _ in range(2):
        with pytest.raises(UserError, match="is damaged"):
            slm.train(url, **SIZES_ALONE)
    files.write_bytes(shard, data)
    assert slm.train(url, **SIZES_ALONE).tokenizer


def test_the_manifest_tells_what_was_read_and_with_which_settings(here: Path) -> None:
    prepare("text.txt", tokenizer="char", out="out")
    manifest = json.loads((here / "out" / MANIFEST).read_text())
    text = make_text(800)
    assert manifest["num_bytes"] == len(text)
    assert manifest["found"] == [f"1 file, 1 document, {len(text) / 1000:.1f} KB"]
    assert sum(manifest["tokens"]) == len(text)
    assert manifest["split"] == "the last 10 % of the text"
    assert manifest["settings"]["tokenizer"] == "char"
    assert not (here / "out" / PROGRESS).exists()
    prepared = open_prepared("out")
    assert isinstance(prepared, Prepared)
    assert prepared.tokenizer.decode([*prepared.train[:].tolist(), *prepared.val[:].tolist()]) == text
