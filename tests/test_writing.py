"""Laws of slm.writing: what text comes out, piece by piece or whole, where it ends, and how it can be had again."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import small_model

import slm
from slm import writing
from slm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe
from slm.model.generation import NewTokens, generate_tokens
from slm.run import Run
from slm.sampling import NAMES, Sampling
from slm.writing import Sample, samples, stream

CHAR = char_tokenizer(["abcdefgh ."])
BYTE = byte_tokenizer()
BPE = train_bpe(["ab aab ba abba cab. é ab." * 9], 300)
TOKENIZERS = {"char": CHAR, "byte": BYTE, "bpe": BPE}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
HOT: dict[str, Any] = {"max_new_tokens": 30, "temperature": 2.0, "top_k": None, "seed": 5}


def make_run(tokenizer: Tokenizer | None = CHAR, *, many_documents: bool = False, **options: Any) -> Run:
    """An untrained model of large weights, which writes all sorts of things."""
    sizes = {"vocab_size": tokenizer.vocab_size if tokenizer else 7, "max_seq_len": 12}
    return Run(small_model(**(sizes | options)), tokenizer, {}, made_with={"many_documents": many_documents})


def script(
    patch: pytest.MonkeyPatch, *rows: Sequence[int], prompts: list[Any] | None = None, endless: bool = False
) -> list[list[int]]:
    """Makes every model write these ids; returns a list of the steps taken so far."""
    taken: list[list[int]] = []

    def tokens(model: Any, given: Any, sampling: Sampling, **_: Any) -> Iterator[NewTokens]:
        if prompts is not None:
            prompts.extend(given)
        for ids in zip(*rows, strict=True):
            taken.append(list(ids))
            yield NewTokens(list(ids))
        assert not endless, "nobody asks beyond the end"

    patch.setattr(writing, "stream_tokens", tokens)
    return taken


# The stream, the samples and run.generate


@each_tokenizer
@pytest.mark.parametrize("many_documents", [False, True])
def test_pieces_samples_and_generate_are_one_text(tokenizer: Tokenizer, many_documents: bool) -> None:
    run = make_run(tokenizer, many_documents=many_documents)
    for prompt in ("", "ab. "):
        for settings_ in ({}, {"stop": ("ab", "c")}, {"temperature": 0.0}, {"top_p": 0.5}, {"repetition_penalty": 1.5}):
            sampling = HOT | settings_
            pieces = list(stream(run, prompt, **sampling))
            assert "" not in pieces
            assert run.generate(prompt, **sampling) == prompt + "".join(pieces)
            (sample,) = samples(run, prompt, **sampling)
            assert (sample.prompt, sample.text) == (prompt, "".join(pieces))
            assert (sample.seed, sample.row) == (5, 0)


@each_tokenizer
def test_the_text_is_that_of_the_tokens(tokenizer: Tokenizer) -> None:
    run = make_run(tokenizer)
    ids = tokenizer.encode("ab ")
    for row, sample in enumerate(samples(run, "ab ", num_samples=8, **HOT)):
        (expected,) = generate_tokens(run.model, [ids], **HOT, first_row=row).tolist()
        end = expected.index(tokenizer.end_id) if tokenizer.end_id in expected else None
        assert sample.tokens == expected[:end]
        whole = tokenizer.decode(ids + sample.tokens)[len("ab ") :]
        assert whole.startswith(sample.text)
        assert set(whole[len(sample.text) :]) <= {"\ufffd"}  # the beginning of a character, or no character at all


def test_a_stream_gives_each_piece_as_soon_as_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = script(monkeypatch, BYTE.encode("aé😀b"))
    assert [(piece, len(taken)) for piece in stream(make_run(BYTE), "")] == [("a", 1), ("é", 3), ("😀", 7), ("b", 8)]


def test_a_prompt_begins_a_document_where_the_model_has_seen_many_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[Any] = []
    script(monkeypatch, prompts=prompts)
    for many_documents, begin in ((True, [BYTE.end_id]), (False, [])):
        run = make_run(BYTE, many_documents=many_documents)
        for prompt in ("", "the"):
            prompts.clear()
            assert run.generate(prompt) == prompt
            list(samples(run, prompt))
            assert prompts == [begin + BYTE.encode(prompt) or [BYTE.end_id]] * 2


def test_without_a_seed_each_text_is_another_and_a_sample_tells_how_to_have_it_again() -> None:
    run, hot = make_run(), HOT | {"seed": None}
    texts = [samples(run, "a", **hot)[0] for _ in range(3)]
    assert len({sample.text for sample in texts}) == 3
    for sample in texts:
        assert samples(run, "a", **(HOT | {"seed": sample.seed})) == [sample]


# Where a text ends


def plain_text(tokenizer: Tokenizer, ids: list[int], stop: Sequence[str]) -> tuple[str, str, list[int]]:
    """The text of ids up to the first stop text or the end, what ended it, and the ids that were read for it."""
    text = ""
    for number, id in enumerate(ids):
        if id == tokenizer.end_id:
            return text, "end", ids[:number]
        text = tokenizer.decode(ids[: number + 1]).rstrip("\ufffd")
        if found := [text.find(one) for one in stop if one in text]:
            return text[: min(found)], "stop", ids[: number + 1]
    return text, "length", ids


def sure_part(text: str, stop: Sequence[str]) -> str:
    """What no stop text can take back, whatever comes next."""
    open_from = [place for place in range(len(text)) if any(one.startswith(text[place:]) for one in stop)]
    return text[: min(open_from, default=len(text))]


def joined(lists: list[list[int]]) -> list[int]:
    return [id for ids in lists for id in ids]


UNITS = [BPE.encode(unit) for unit in ("a", "b", "c", ".", "ab", " ab", " aab", "ba", " abba", "é", " ")]
STOPS = ["a", "ab", "aab", "abab", "ba.", "é", "bé", ". ", "  ", "abc", "cab.", "bab", "aaa"]


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    ids=st.lists(st.sampled_from([*UNITS * 4, [BPE.end_id]]), max_size=12).map(joined),
    stop=st.lists(st.sampled_from(STOPS), max_size=3, unique=True),
)
def test_a_text_ends_before_the_first_stop_text_wherever_tokens_and_pieces_end(ids: list[int], stop: list[str]) -> None:
    expected, ended_by, read = plain_text(BPE, ids, stop)
    run, settings_ = make_run(BPE), {"stop": stop or None}
    with pytest.MonkeyPatch.context() as patch:
        taken = script(patch, ids)
        text, last = "", 0
        for piece in stream(run, "ba", **settings_):
            text, last = text + piece, len(taken)
            if last < len(read):
                assert text == sure_part(plain_text(BPE, ids[:last], ())[0], stop)  # no later, and no sooner
        assert text == expected
        assert len(taken) == len(read) + (ended_by == "end")  # nothing is computed beyond the end
        (sample,) = samples(run, "ba", **settings_)
    assert (sample.text, sample.ended_by, sample.tokens) == (expected, ended_by, read)


def test_what_is_held_back_is_given_when_no_stop_text_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for ending in ([], [BYTE.end_id]):
        script(monkeypatch, [*BYTE.encode("one two thre"), *ending])
        run = make_run(BYTE)
        assert run.generate("", stop="three") == "one two thre"
        assert samples(run, "", stop=["three", "two four"])[0].text == "one two thre"


def test_a_stop_text_of_the_prompt_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, BYTE.encode("two three"))
    assert make_run(BYTE).generate("one, ", stop=["one", ", two"]) == "one, two three"


def test_stop_may_be_one_text_or_several() -> None:
    run = make_run()
    assert (
        run.generate("", stop="c", **HOT) == run.generate("", stop=["c"], **HOT) == run.generate("", stop=("c",), **HOT)
    )


def test_a_row_that_has_ended_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, end = *BYTE.encode("ab"), BYTE.end_id
    taken = script(monkeypatch, [a, end, a, a, a], [a, b, b, end, a], [a, a, b, b, a], endless=True)
    made = samples(make_run(BYTE), ["x", "y", "z"], stop="bb")
    assert [(one.text, one.ended_by, one.tokens) for one in made] == [
        ("a", "end", [a]), ("a", "stop", [a, b, b]), ("aa", "stop", [a, a, b, b])
    ]  # fmt: skip
    assert len(taken) == 4


@pytest.mark.parametrize("ending", [{"stop": "c"}, {"max_new_tokens": 4}, {"stop": "a"}], ids=str)
def test_a_model_in_training_goes_on_to_be(ending: dict[str, Any]) -> None:
    run = make_run(dropout=0.5)
    expected = run.generate("a", **(HOT | ending))
    run.model.train()
    pieces = stream(run, "a", **(HOT | ending))
    assert "a" + "".join(pieces) == expected
    assert run.model.training  # also while somebody still holds the stream
    samples(run, ["a", "b"], **(HOT | ending))
    assert run.model.training


# Several samples


def test_every_sample_is_named_by_its_seed_and_row() -> None:
    run, prompts = make_run(), ["", "ab", "ab. ab. ab. "]
    for log_probabilities in (False, True):
        made = samples(run, prompts, num_samples=3, log_probabilities=log_probabilities, **HOT)
        assert [(one.prompt, one.row) for one in made] == [(prompts[row // 3], row) for row in range(9)]
        for one in made:
            again = HOT | {"seed": one.seed, "first_row": one.row}
            (alone,) = samples(run, one.prompt, log_probabilities=log_probabilities, **again)
            assert dataclasses.replace(alone, log_probabilities=None) == dataclasses.replace(
                one, log_probabilities=None
            )
            assert (alone.log_probabilities or []) == pytest.approx(one.log_probabilities or [], abs=1e-5)
    assert len({one.text for one in made}) > 5


def test_many_samples_are_made_some_at_a_time_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    at_once = samples(run, ["a", "b"], num_samples=20, **HOT)
    assert len(at_once) == 40 > writing._ROWS_AT_ONCE
    monkeypatch.setattr(writing, "_ROWS_AT_ONCE", 3)
    assert samples(run, ["a", "b"], num_samples=20, **HOT) == at_once
    assert samples(run, ["a", "b"], num_samples=20, first_row=7, **HOT)[0].row == 7
    assert samples(run, [], **HOT) == []


def test_log_probabilities_are_those_that_the_model_gives_the_whole_text() -> None:
    run, filters = make_run(max_seq_len=60), {"top_k": 5, "repetition_penalty": 1.3, "min_p": 0.1, "stop": "ab"}
    model = run.model.double()
    for sample in samples(run, ["", "ab. "], num_samples=4, log_probabilities=True, **(HOT | filters)):
        prompt = CHAR.encode(sample.prompt) or [CHAR.end_id]
        logits = model(torch.tensor([prompt + sample.tokens]))[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(1)[range(len(sample.tokens)), sample.tokens]
        assert sample.log_probabilities == pytest.approx(expected.tolist(), abs=1e-9)
        assert sum(sample.log_probabilities or []) == pytest.approx(expected.sum().item(), abs=1e-8)
    assert samples(run, "", **HOT)[0].log_probabilities is None


def test_a_sample_is_a_line_of_json() -> None:
    (sample,) = samples(make_run(), "ab", log_probabilities=True, **HOT)
    assert Sample(**json.loads(json.dumps(dataclasses.asdict(sample)))) == sample


# What is told, and what is refused


@pytest.mark.parametrize("many_documents", [False, True])
def test_a_prompt_that_is_longer_than_the_window_is_told(many_documents: bool) -> None:
    run = make_run(many_documents=many_documents)
    whole, seen = "abcdefgh" * 2, "efghabcdefgh"
    words = f"the prompt has {16 + many_documents} tokens, and this model looks at 12 at most: it goes on from the last"
    with pytest.warns(UserWarning, match=words):
        text = run.generate(whole, **HOT)
    with pytest.warns(UserWarning, match=words) as caught:
        made = samples(run, whole, num_samples=40, **HOT)
    assert len(caught) == 1  # not for each sample
    assert text == whole + made[0].text
    if not many_documents:  # where the beginning of a document would be a token more
        with warnings.catch_warnings(action="error"):
            assert run.generate(seen, **HOT) == seen + made[0].text


@pytest.mark.parametrize("call", [Run.generate, stream, samples])
def test_a_model_without_a_tokenizer_writes_no_text(call: Callable[..., Any]) -> None:
    with pytest.raises(slm.UserError, match="has no tokenizer"):
        call(make_run(None), "a")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ["a"]}, r"prompt = \['a'\]: must be a str. slm.samples takes several"),
        ({"prompt": None}, "prompt = None: must be a str"),
        ({"prompt": b"a"}, "must be a str"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"stop": ""}, "stop = '': an empty text ends everything at once. Leave it out"),
        ({"stop": ["a", ""]}, "stop = ''"),
        ({"stop": []}, r"stop = \[\]: must be a text, or a list of them"),
        ({"stop": 3}, "stop = 3: must be a text"),
        ({"temperature": math.nan}, "temperature = nan: must be a finite number"),
        ({"top_k": 0}, "top_k = 0: must be at least 1"),
        ({"temprature": 1}, "temprature is not a setting of generation: max_new_tokens, "),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_is_refused_at_the_call(arguments: dict[str, Any], words: str) -> None:
    for call in (stream, Run.generate):
        with pytest.raises(slm.UserError, match=words):
            call(make_run(), **arguments)
    if "prompt" not in arguments:
        with pytest.raises(slm.UserError, match=words):
            samples(make_run(), "a", **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_samples": 0}, "num_samples = 0: must be at least 1"),
        ({"first_row": -1}, "first_row = -1: must be 0 or above"),
        ({"prompts": [3]}, "prompt = 3: must be a str"),
        ({"prompts": [["a"]]}, r"prompt = \['a'\]: must be a str"),
    ],
    ids=str,
)
def test_samples_that_make_no_sense_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(slm.UserError, match=words):
        samples(make_run(), **({"prompts": "a"} | arguments))


def test_top_k_may_be_all() -> None:
    run = make_run()
    assert run.generate("a", **(HOT | {"top_k": "all"})) == run.generate("a", **HOT)


@pytest.mark.parametrize("call", [stream, samples])
def test_the_signature_shows_every_setting_with_its_default(call: Callable[..., Any]) -> None:
    parameters = inspect.signature(call).parameters
    assert {name: parameters[name].default for name in NAMES} == dataclasses.asdict(Sampling())
    assert not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
