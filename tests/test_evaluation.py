"""Laws of slm.evaluate and slm.compare: on the run's own text and on any other, from memory, disk and URL."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, make_text

import slm
from slm import evaluation, metrics
from slm.config import DataConfig
from slm.data import prepare as prepare_module
from slm.data.prepare import Job
from slm.data.survey import share
from slm.data.tokenizer import byte_tokenizer, make_tokenizer
from slm.metrics.yardsticks import FULL_SECONDS, yardsticks

pytestmark = pytest.mark.filterwarnings("ignore:only 12 steps", "ignore:the vocabulary of")
TEXT = make_text(4000)
DOCUMENTS = [f"{line} é" for line in TEXT.splitlines()][:400]
TOKENIZERS = ("char", "byte", "bpe")
IDS = {name: value for name, value in SMALL.items() if name != "tokenizer"}


def trained(data: Any, **settings: Any) -> slm.Run:
    return slm.train(data, **(SMALL | settings))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, documents and the runs that were trained on them; nobody changes it."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "text.txt").write_text(TEXT)
    (folder / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    for name in TOKENIZERS:
        trained(folder / "text.txt", tokenizer=name, vocab_size=300, model_dir=folder / name)
        trained(folder / "documents.jsonl", tokenizer=name, vocab_size=300, model_dir=folder / f"{name} documents")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return tmp_path


def same(a: slm.Evaluation, b: slm.Evaluation) -> bool:
    """True where all numbers are equal; a number that is none equals another such."""
    sums = all((a.units[name] == b.units[name]).all() for name in a.units)
    return sums and repr(replace(a, text="")) == repr(replace(b, text=""))


@pytest.mark.parametrize("data", ["text.txt", "documents.jsonl"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_own_text_gives_the_numbers_of_training_in_memory_on_disk_and_loaded(
    home: Path, tmp_path: Path, name: str, data: str
) -> None:
    run = trained(home / data, tokenizer=name, vocab_size=300, val_tokens=350)
    run.save(tmp_path / "run")
    found = slm.evaluate(run)
    assert found.loss.value == pytest.approx(run.metrics["val_loss"], rel=1e-6)
    assert found.accuracy.value == run.metrics["val_accuracy"]
    assert found.bits_per_byte is not None
    assert found.bits_per_byte.value == pytest.approx(run.metrics["val_bits_per_byte"], rel=1e-6)
    assert found.num_tokens <= 350
    assert re.match(rf"the validation part of .*{data} \(", found.text)
    for again in (tmp_path / "run", str(tmp_path / "run" / "model.pt"), slm.load(tmp_path / "run")):
        assert same(slm.evaluate(again), found)
    assert [one.name for one in found.yardsticks][:2] == ["uniform", "unigram"]


def test_bits_per_byte_are_over_the_bytes_of_the_text_itself(home: Path) -> None:
    held_out = TEXT[int(len(TEXT) * 0.9) :]
    for name in ("char", "byte"):
        found = slm.evaluate(home / name)
        assert found.bits_per_byte is not None
        assert found.num_bytes == found.num_tokens == len(held_out.encode()) - 1
        assert found.bits_per_byte.value == pytest.approx(found.loss.value / math.log(2))
    for name in TOKENIZERS:
        texts = [text for text in DOCUMENTS if share(text) < 0.1]
        found = slm.evaluate(home / f"{name} documents")
        tokenizer = slm.load(home / f"{name} documents").tokenizer
        assert tokenizer is not None
        first = tokenizer.decode(tokenizer.encode(texts[0])[:1])  # which nothing predicts
        assert found.num_bytes == sum(len(text.encode()) for text in texts) - len(first)
        assert found.num_tokens == sum(len(tokenizer.encode(text)) for text in texts) + len(texts) - 2
        assert found.units_told == f"{len(texts)} documents"


def test_a_text_is_the_same_by_whichever_door_it_comes(home: Path, here: Path) -> None:
    run = slm.load(home / "char")
    assert run.tokenizer is not None
    ids = np.array(run.tokenizer.encode(TEXT))
    np.save("ids.npy", ids)
    expected = slm.evaluate(run, "text.txt")
    assert expected.num_tokens == len(ids) - 1
    assert expected.num_bytes == len(TEXT.encode()) - 1
    doors: list[Any] = [Path("text.txt"), [Path("text.txt")], [TEXT], iter([TEXT]), "ids.npy", ids, torch.tensor(ids)]
    for door in [*doors, ids.tolist(), f"file://{here}/text.txt"]:
        assert same(slm.evaluate(run, door), expected)


def test_documents_are_joined_by_the_token_that_ends_them_and_settings_tell_what_one_is(home: Path, here: Path) -> None:
    run = slm.load(home / "char documents")
    assert run.tokenizer is not None
    expected = slm.evaluate(run, DOCUMENTS[:40])
    assert expected.units_told == "40 documents"
    assert expected.num_tokens == sum(len(text) + 1 for text in DOCUMENTS[:40]) - 2
    Path("one.txt").write_text("<end>".join(DOCUMENTS[:40]))
    assert same(slm.evaluate(run, "one.txt", split_documents_on="<end>"), expected)
    Path("other.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in DOCUMENTS[:40]))
    assert same(slm.evaluate(run, "other.jsonl", text_field="body"), expected)


def test_what_was_prepared_is_evaluated_on_its_validation_part(home: Path, here: Path) -> None:
    expected = slm.evaluate(home / "char")
    for out in ("prepared", f"memory://{here.name}/prepared"):
        slm.prepare("text.txt", tokenizer="char", out=out)
        found = slm.evaluate(home / "char", out)
        assert found.text == f"the validation part of {out}"
        assert same(found, expected)
        with pytest.raises(slm.UserError, match=rf"{out} was prepared with another tokenizer.*name the text itself"):
            slm.evaluate(home / "byte", out)
        run = trained(out)
        assert slm.evaluate(run).loss.value == pytest.approx(run.metrics["val_loss"], rel=1e-6)
    trained("prepared", model_dir="run")
    assert same(slm.evaluate("run"), expected)
    (here / "prepared" / "manifest.json").rename("manifest.json")
    with pytest.raises(slm.UserError, match=r"manifest.json is missing or damaged"):
        slm.evaluate(home / "char", "prepared")


def test_a_run_on_texts_from_python_knows_them_while_it_is_in_memory(here: Path) -> None:
    Path("val.txt").write_text(make_text(500))
    for settings in ({}, {"val_data": "val.txt"}, {"val_data": [make_text(500)]}):
        run = trained([TEXT], **settings)
        assert slm.evaluate(run).loss.value == pytest.approx(run.metrics["val_loss"], rel=1e-6)
        run.save("run", overwrite=True)
        with pytest.raises(slm.UserError, match=r"on data given in Python, which a run does not store.*\(--data\)"):
            slm.evaluate("run")
        found = slm.evaluate("run", "text.txt")
        assert found.yardsticks == []
        assert "data given in Python" in found.yardsticks_missing
        assert repr(found.loss) == repr(slm.evaluate(run, "text.txt").loss)


def test_a_text_that_is_not_what_it_was_costs_the_yardsticks_or_all(here: Path) -> None:
    trained("text.txt", model_dir="run")
    expected = slm.evaluate("run", [TEXT])
    assert expected.yardsticks
    for change in (lambda: Path("text.txt").write_text(TEXT + "more"), lambda: Path("text.txt").unlink()):
        change()
        with pytest.raises(slm.UserError, match=r"text\.txt.* (has changed|is not there any more).*\(--data\)"):
            slm.evaluate("run")
        found = slm.evaluate("run", [TEXT])
        assert re.search(r"text\.txt.* (has changed since|is not there any more)", found.yardsticks_missing)
        assert "--data" not in found.yardsticks_missing  # which was given
        assert found.yardsticks == []
        assert found.loss == expected.loss
    Path("text.txt").write_text(TEXT)
    assert same(slm.evaluate("run", [TEXT]), expected)


def test_a_model_alone_evaluates_on_what_is_named(home: Path) -> None:
    run = replace(slm.load(home / "char"), resolved={}, made_with={})
    with pytest.raises(slm.UserError, match=r"does not say what it was trained on.*\(--data\)"):
        slm.evaluate(run)
    assert slm.evaluate(run, home / "text.txt").loss == slm.evaluate(home / "char", home / "text.txt").loss


def test_characters_that_the_tokenizer_does_not_know_are_told(home: Path) -> None:
    found = slm.evaluate(home / "char", [TEXT, "É" * 1234])
    assert found.text.endswith("(1,234 pieces of it are unknown to the tokenizer, and count as one token)")
    assert "unknown" not in slm.evaluate(home / "byte", [TEXT, "É" * 1234]).text


def test_token_ids_are_evaluated_in_nats(here: Path) -> None:
    np.save("ids.npy", byte_tokenizer().encode(TEXT))
    slm.train("ids.npy", model_dir="run", **IDS)
    found = slm.evaluate("run")
    assert found.bits_per_byte is None and found.num_bytes is None
    assert found.loss.value == pytest.approx(slm.load("run").metrics["val_loss"], rel=1e-6)
    assert [one.bits_per_byte for one in found.yardsticks] == [None] * 3
    assert slm.evaluate("run", "ids.npy").units_told.endswith(" tokens")
    with pytest.raises(slm.UserError, match=r"no tokenizer: it can be evaluated on token ids only"):
        slm.evaluate("run", "text.txt")
    with pytest.raises(slm.UserError, match=r"holds ids from 1 to 300, and the model's vocabulary has \d+, from 0 on"):
        slm.evaluate("run", [1, 300])


def test_the_dummy_data_is_made_again() -> None:
    run = slm.train(**(IDS | {"vocab_size": 50}))
    expected = slm.evaluate(run)
    assert expected.loss.value == pytest.approx(run.metrics["val_loss"], rel=1e-6)
    assert same(slm.evaluate(replace(run, data=None)), expected)


def test_a_source_of_known_entropy_is_told_beside_a_model(home: Path) -> None:
    run = trained("stories:100KB", tokenizer="byte")
    assert run.data is not None and run.data.source_bits_per_byte is not None
    found = {one.name: one.bits_per_byte for one in slm.evaluate(run).yardsticks}
    assert found["entropy of the source"] == run.data.source_bits_per_byte
    other = slm.evaluate(run, "stories:100KB")
    known = made(None, DataConfig(data=("stories:100KB",)), tokenizer=run.tokenizer, only_validation=True)
    assert {one.name: one.bits_per_byte for one in other.yardsticks}["entropy of the source"] == pytest.approx(
        known.about["source_bits_per_byte"]
    )
    windows = slm.TextDataset(known.val, 16, start_id=0)  # they begin where documents do, as in training
    assert other.loss.value == pytest.approx(metrics.evaluate(run.model, windows)["val_loss"], rel=1e-6)
    assert "entropy of the source" not in {one.name for one in slm.evaluate(home / "byte").yardsticks}


def test_yardsticks_are_those_of_the_training_text_on_the_same_targets(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def spy(*arguments: Any, seconds: float, **keys: Any) -> Any:
        asked.append(seconds)
        return yardsticks(*arguments, seconds=seconds, **keys)

    monkeypatch.setattr(evaluation, "yardsticks", spy)
    run = trained(home / "text.txt")
    data, tokenizer = run.data, run.tokenizer
    assert data is not None and tokenizer is not None
    for text in (None, [TEXT[:5000]]):
        dataset = data.val_dataset if text is None else slm.TextDataset(tokenizer.encode(TEXT[:5000]), 16)
        expected = yardsticks(data.train_dataset.tokens, dataset, tokenizer, data.vocab_size, seconds=FULL_SECONDS)
        assert slm.evaluate(run, text).yardsticks == slm.evaluate(run, text, stride=4).yardsticks == expected
    assert set(asked) == {FULL_SECONDS}


@pytest.mark.parametrize("stride", [0, -1, 17, 2.5, "4", True])
@pytest.mark.parametrize("paths", [["char"], ["byte", "char"]])
def test_a_bad_stride_is_refused(home: Path, stride: Any, paths: list[str]) -> None:
    with pytest.raises(slm.UserError, match=rf"stride = {stride!r}: must be .*max_seq_len"):
        evaluation.evaluate_all(
            [home / path for path in paths], DataConfig(), stride=stride, device="cpu", on_progress=print
        )


def test_the_model_comes_back_from_the_device_that_was_named_also_after_a_failure(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, moves = slm.load(home / "char"), list[str]()
    monkeypatch.setattr(run.model, "to", lambda device: moves.append(device.type))
    monkeypatch.setattr(evaluation, "choose_device", lambda name: (torch.device("meta"), name))
    slm.evaluate(run, [TEXT[:100]], device="meta")
    monkeypatch.setattr(evaluation, "evaluate_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        slm.evaluate(run, [TEXT[:100]], device="meta")
    assert moves == ["meta", "cpu", "meta", "cpu"]


def test_other_mistakes_name_what_is_allowed(home: Path) -> None:
    with pytest.raises(slm.UserError, match=r"tokenizer is not a setting of an evaluation: text_field, split_doc"):
        slm.evaluate(home / "char", tokenizer="byte")
    for data, told in ((5, "data = 5"), ([], "no text"), (["a"], r"fewer than two tokens \(1\)"), ("dummy", "random")):
        with pytest.raises(slm.UserError, match=told):
            slm.evaluate(home / "char", data)
        with pytest.raises(slm.UserError, match=told):
            slm.compare(home / "char", home / "byte", data)


def test_a_run_compared_with_itself_differs_by_nothing(home: Path) -> None:
    found = slm.compare(home / "char", home / "char", home / "text.txt")
    assert found.difference == (0, 0)
    assert found.verdict("A", "B").startswith("No difference between A and B can be told")


@pytest.mark.parametrize("documents", ["", " documents"])
@pytest.mark.parametrize(("first", "second"), [("char", "byte"), ("byte", "bpe"), ("bpe", "char")])
def test_runs_of_two_tokenizers_compare_on_the_same_text(home: Path, first: str, second: str, documents: str) -> None:
    paths = home / f"{first}{documents}", home / f"{second}{documents}"
    text: Any = DOCUMENTS[:100] if documents else [TEXT]
    values = [slm.evaluate(path, text).bits_per_byte for path in paths]
    found, back = slm.compare(*paths, iter(text)), slm.compare(paths[1], paths[0], text)
    assert values[0] is not None and values[1] is not None
    assert found.difference.value == pytest.approx(values[1].value - values[0].value)
    assert found.difference == pytest.approx((-back.difference.value, back.difference.standard_error))
    assert found.unit == "bits/byte"
    assert found.verdict("A", "B").startswith("B is better" if found.difference.value < 0 else "A is better")
    own = slm.compare(*paths)
    assert own.first.text == own.second.text
    assert own.first.num_bytes == pytest.approx(own.second.num_bytes, abs=8)
    assert len(own.first.units["bytes"]) == len(own.second.units["bytes"])


def test_stories_in_the_tokens_of_another_run_begin_their_windows_as_its_own_do(here: Path) -> None:
    runs = [trained("stories:30KB", tokenizer=name, max_seq_len=64) for name in ("char", "byte")]
    found, back = slm.compare(*runs), slm.compare(*reversed(runs))
    alone = [slm.evaluate(run) for run in runs]
    for one, same_one, own in ((found.first, back.second, alone[0]), (found.second, back.first, alone[1])):
        assert one.loss == pytest.approx(same_one.loss)
        assert one.loss == pytest.approx(own.loss)
        assert one.units_told == own.units_told
    assert found.difference == pytest.approx((-back.difference.value, back.difference.standard_error))
    assert str(found) == found.verdict("the first run", "the second run")


def test_texts_of_different_sizes_are_not_compared(home: Path) -> None:
    text = ["the cat sat. " * 40] * 40
    first, second = (slm.evaluate(home / name, text) for name in ("char", "byte"))
    half = replace(second, num_bytes=first.num_bytes and first.num_bytes // 2)
    with pytest.raises(slm.UserError, match="bits per byte do not compare"):
        metrics.scoring.compare_evaluations(first, half)


def test_without_yardsticks_the_training_text_is_not_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "read_again", lambda *_, **__: pytest.fail("it was read"))
    found = slm.evaluate(home / "char", home / "text.txt", with_yardsticks=False)
    assert (found.yardsticks, found.yardsticks_missing) == ([], "")
    with pytest.raises(OSError, match="no file or folder 'nowhere"):  # nor before a mistake is told
        slm.evaluate(home / "char", "nowhere.txt")


def test_a_tokenizer_without_an_end_of_documents_compares_over_stretches(home: Path, here: Path) -> None:
    content = json.loads(byte_tokenizer().to_json())
    content["added_tokens"] = []
    content["model"]["vocab"] = {token: id - 1 for token, id in content["model"]["vocab"].items() if id}
    Path("endless.json").write_text(json.dumps(content))
    run = trained(home / "documents.jsonl", tokenizer="endless.json")
    assert run.tokenizer is not None and run.tokenizer.end_id is None
    for first, second, text in (
        (home / "byte", run, DOCUMENTS),
        (home / "byte documents", run, None),
        (run, run, None),
    ):
        found = slm.compare(first, second, text)
        assert "documents" not in found.first.units_told
        assert found.first.units_told == found.second.units_told
        assert found.first.num_bytes == found.second.num_bytes


def test_a_comparison_reads_all_of_the_first_ones_validation_text_whatever_the_windows_are(home: Path) -> None:
    run, longer = trained(home / "text.txt", val_tokens=50), trained(home / "text.txt", max_seq_len=32)
    found = slm.compare(run, longer)
    assert found.first.num_tokens == found.second.num_tokens == slm.evaluate(home / "char").num_tokens
    assert found.second.loss.value == pytest.approx(slm.evaluate(longer).loss.value)
    assert (found.first.units["tokens"] == found.second.units["tokens"]).all()


def test_what_cannot_be_compared_is_refused(home: Path, here: Path) -> None:
    np.save("ids.npy", byte_tokenizer().encode(TEXT))
    ids = slm.train("ids.npy", **IDS)
    assert slm.compare(ids, ids).unit == "nats/token"
    with pytest.raises(slm.UserError, match="trained on token ids"):
        slm.compare(ids, home / "char")
    with pytest.raises(slm.UserError, match="does not know many characters"):
        slm.compare(home / "char", home / "byte", [TEXT + "é" * 5000])


def made(texts: list[str] | None, config: DataConfig | None = None, **keys: Any) -> Any:
    return Job(config or DataConfig(), texts, vocab_size=300, on_progress=lambda *_: None, **keys).run()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("in_files", [False, True])
def test_with_a_tokenizer_all_text_is_for_validation_in_its_tokens(name: str, in_files: bool) -> None:
    tokenizer = make_tokenizer(name, DOCUMENTS[:50], 280)
    prepared = made(DOCUMENTS, tokenizer=tokenizer, only_validation=True, in_files=in_files)
    joined = [id for text in DOCUMENTS for id in (tokenizer.end_id, *tokenizer.encode(text))][1:]
    assert prepared.val[:].tolist() == joined
    assert len(prepared.train) == 0
    assert prepared.tokenizer.to_json() == tokenizer.to_json()


def test_tokens_for_evaluation_and_for_training_do_not_meet_in_the_cache(here: Path, home: Path) -> None:
    (here / "tokenizer.json").write_text(byte_tokenizer().to_json())
    keys = set()
    for config, tokenizer in (("byte", None), ("tokenizer.json", None), ("byte", byte_tokenizer()), ("bpe", None)):
        settings = DataConfig(data=("text.txt",), tokenizer=config)
        only = tokenizer is not None
        job = Job(
            settings, None, vocab_size=257, tokenizer=tokenizer, only_validation=only, on_progress=lambda *_: None
        )
        keys.add(job.key)
    assert len(keys) == 4 and None not in keys


def test_the_tokens_of_a_large_text_are_kept_for_the_next_evaluation(
    home: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "IN_MEMORY_BYTES", 1000)
    told: list[str] = []
    first, second = (
        slm.evaluate(home / "byte", "text.txt", on_progress=lambda what, done, total: told.append(what))
        for _ in range(2)
    )
    assert told.index("evaluating") > told.index("tokenizing")
    assert "tokenizing" not in told[told.index("evaluating") :]
    assert same(first, second)
    assert same(first, slm.evaluate(home / "byte", [TEXT]))


@pytest.fixture(autouse=True)
def nothing_is_left_on_screen(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    assert capsys.readouterr() == ("", "")
