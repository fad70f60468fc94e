"""Laws of slm.model.beam: what the search finds, that no other way of computing it finds another, and what it reads.

Models compute in float64 where ids are compared: no two scores are so near that rounding could tell them apart.
Shapes: B rows, V vocab_size.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import every_pair, small_model
from torch import Tensor

from slm.config import UserError
from slm.model import KVCache, LanguageModel, beam, generate_tokens
from slm.model.beam import Hypothesis, beam_search
from slm.model.decoder import Decoder

V, WINDOW, START, END = 7, 12, 3, 0
PROMPTS = [[1, 2], [4], [6, START, 5, 1, 2, 2], [START], [5, 5, 1], [1, 2, 4]]
PENALTIES = (-0.5, 0.0, 0.6, 1.0, 2.0)


def exact_model(vocab_size: int = V, **options: Any) -> LanguageModel:
    """A model that leaves several tokens likely; the end is, by turns, one of these or not."""
    model = small_model(**({"vocab_size": vocab_size, "max_seq_len": WINDOW} | options)).double()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.4)
        model.lm_head.weight[END].mul_(3)
    return model


def search(model: LanguageModel, prompts: Any, **options: Any) -> list[list[Hypothesis]]:
    return beam_search(model, prompts, **({"end_id": END, "max_new_tokens": 5} | options))


def log_probabilities(model: LanguageModel, prompt: Sequence[int], texts: Sequence[Sequence[int]]) -> Tensor:
    """(texts, V): of what comes after prompt and text, for texts of one length; everything is read anew."""
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *text] for text in texts]))[:, -1].double().log_softmax(dim=1)


def plain_search(
    model: LanguageModel,
    prompt: Sequence[int],
    num_beams: int,
    length_penalty: float,
    max_new_tokens: int = 5,
    patient: bool = False,
) -> list[Hypothesis]:
    """The search as its docstring defines it, for one prompt; patient: up to the last step, whatever is finished."""
    steps = min(max_new_tokens, model.config.max_seq_len - len(prompt))
    live: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[Hypothesis] = []
    for length in range(1, steps + 1):
        table = log_probabilities(model, prompt, [ids for ids, _ in live]).tolist()
        candidates = [(beam, id) for beam in range(len(live)) for id in range(len(table[0]))]
        total = {(beam, id): live[beam][1] + table[beam][id] for beam, id in candidates}
        candidates = sorted(candidates, key=lambda pair: (-total[pair], pair[1], pair[0]))[: 2 * num_beams]
        going_on: list[tuple[list[int], float]] = []
        for number, id in candidates:
            if len(going_on) < num_beams:
                ids, log_probability = live[number][0], total[number, id]
                if id == END:
                    finished.append(Hypothesis(ids, log_probability, log_probability / length**length_penalty, True))
                else:
                    going_on.append(([*ids, id], log_probability))
        live = going_on
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:num_beams]
        scores = [log_probability / length**length_penalty for _, log_probability in live]
        if not patient and len(finished) == num_beams and max(scores) <= finished[-1].score:
            return finished
        if length == steps:
            finished += [Hypothesis(*cut, score, False) for cut, score in zip(live, scores, strict=True)]
    return sorted(finished, key=lambda hypothesis: -hypothesis.score)[:num_beams]


def all_completions(model: LanguageModel, prompt: list[int], length_penalty: float, steps: int) -> list[Hypothesis]:
    """Every completion that there is, the best score first."""
    found = []
    for length in range(1, steps + 1):
        others = [id for id in range(model.config.vocab_size) if id != END]
        texts = [list(ids) for ids in itertools.product(others, repeat=length - 1)]
        sums = [0.0] * len(texts)
        for place in range(length - 1):
            now = log_probabilities(model, prompt, [ids[:place] for ids in texts])
            sums = [total + float(row[ids[place]]) for total, row, ids in zip(sums, now, texts, strict=True)]
        for ids, total, row in zip(texts, sums, log_probabilities(model, prompt, texts).tolist(), strict=True):
            found.append((ids, total + row[END], length, True))
            if length == steps:
                found += [([*ids, id], total + row[id], length, False) for id in others]
    hypotheses = [Hypothesis(ids, total, total / length**length_penalty, end) for ids, total, length, end in found]
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)


def assert_same(actual: Sequence[Hypothesis], expected: Sequence[Hypothesis], tolerance: float = 1e-9) -> None:
    assert [(one.ids, one.ended) for one in actual] == [(one.ids, one.ended) for one in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=tolerance, abs=tolerance)
        assert one.score == pytest.approx(other.score, rel=tolerance, abs=tolerance)


# What is found


@every_pair
@pytest.mark.parametrize("document_start", [None, START])
def test_the_search_finds_what_a_plain_one_without_cache_finds(
    options: dict[str, Any], document_start: int | None
) -> None:
    model = exact_model(**options, document_start=document_start)
    for num_beams, penalty in zip((3, 2, 8, 4, 1), PENALTIES, strict=True):
        found = search(model, PROMPTS, num_beams=num_beams, length_penalty=penalty)
        for prompt, hypotheses in zip(PROMPTS, found, strict=True):
            assert_same(hypotheses, plain_search(model, prompt, num_beams, penalty))


@settings(derandomize=True, database=None, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(2, 9),
    lengths=st.lists(st.integers(1, WINDOW - 1), min_size=1, max_size=5),
    num_beams=st.integers(1, 6),
    length_penalty=st.floats(-2, 3),
    max_new_tokens=st.integers(1, 2 * WINDOW),
    positions=st.sampled_from(["rope", "learned"]),
    starts=st.booleans(),
)
def test_any_search_finds_what_a_plain_one_finds(
    seed: int,
    vocab_size: int,
    lengths: list[int],
    num_beams: int,
    length_penalty: float,
    max_new_tokens: int,
    positions: str,
    starts: bool,
) -> None:
    draw = random.Random(seed)
    model = exact_model(vocab_size, positions=positions, document_start=1 if starts else None)
    prompts = [[draw.randrange(vocab_size) for _ in range(length)] for length in lengths]
    found = search(model, prompts, num_beams=num_beams, length_penalty=length_penalty, max_new_tokens=max_new_tokens)
    for prompt, hypotheses in zip(prompts, found, strict=True):
        assert_same(hypotheses, plain_search(model, prompt, num_beams, length_penalty, max_new_tokens))


@every_pair
def test_one_beam_is_greedy_decoding(options: dict[str, Any]) -> None:
    model, steps, reached = exact_model(**options), WINDOW - max(map(len, PROMPTS)), set()
    texts = generate_tokens(model, PROMPTS, max_new_tokens=steps, temperature=0).tolist()
    for end in range(V):
        penalty = PENALTIES[end % len(PENALTIES)]
        found = search(model, PROMPTS, num_beams=1, length_penalty=penalty, end_id=end, max_new_tokens=steps)
        for text, (hypothesis,) in zip(texts, found, strict=True):
            assert hypothesis.ended == (end in text)
            assert hypothesis.ids == (text[: text.index(end)] if end in text else text)
            reached.add(hypothesis.ended)
    assert reached == {True, False}


@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_with_beams_enough_for_all_completions_all_are_found(positions: str, length_penalty: float) -> None:
    model, steps = exact_model(4, positions=positions), 4
    number = sum(3**length for length in range(steps)) + 3**steps
    prompts = [[1, 2], [3], [2, 2, 1]]
    wide, narrow = (
        search(model, prompts, num_beams=n, length_penalty=length_penalty, max_new_tokens=steps) for n in (number, 2)
    )
    for prompt, every, few in zip(prompts, wide, narrow, strict=True):
        expected = all_completions(model, prompt, length_penalty, steps)
        assert len(expected) == number
        assert_same(every, expected)
        assert math.isclose(sum(math.exp(one.log_probability) for one in every), 1)
        assert every[0].score >= few[0].score - 1e-9


def test_what_a_narrow_search_misses_a_wide_one_finds() -> None:
    model, better = exact_model(5), 0
    prompts = [[1, 2], [3], [2, 2, 1], [4, 4]]
    narrow, wide, widest = (
        search(model, prompts, num_beams=n, length_penalty=0, max_new_tokens=4) for n in (1, 4, 5**4)
    )
    for one, few, every in zip(narrow, wide, widest, strict=True):
        assert every[0].log_probability >= max(one[0].log_probability, few[0].log_probability) - 1e-9
        better += every[0].log_probability > one[0].log_probability + 1e-9
    assert better


def test_without_a_reward_for_length_waiting_longer_changes_nothing() -> None:
    lost = {}
    for penalty, num_beams in itertools.product((-1.0, -0.3, 0.0, 2.0), (1, 2, 4)):
        lost[penalty, num_beams] = 0
        for seed in range(4):
            model = exact_model(positions=("rope", "learned")[seed % 2], mlp=("gelu", "relu2", "swiglu")[seed % 3])
            prompt = [1 + seed, 2, 3]
            (hypotheses,) = search(model, [prompt], num_beams=num_beams, length_penalty=penalty, max_new_tokens=8)
            patient = plain_search(model, prompt, num_beams, penalty, max_new_tokens=8, patient=True)
            if penalty <= 0:
                assert_same(hypotheses, patient)
            lost[penalty, num_beams] += hypotheses[0].score < patient[0].score - 1e-9
    assert any(lost.values())  # above 0, something may be


# What a hypothesis says of itself


@pytest.mark.parametrize("document_start", [None, START])
@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_a_hypothesis_says_how_likely_and_how_good_it_is(length_penalty: float, document_start: int | None) -> None:
    model, ends = exact_model(document_start=document_start).float(), set()
    for prompt, hypotheses in zip(PROMPTS, search(model, PROMPTS, length_penalty=length_penalty), strict=True):
        assert len(hypotheses) == 4
        scores = [one.score for one in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({(tuple(one.ids), one.ended) for one in hypotheses}) == 4
        for one in hypotheses:
            new = [*one.ids, END] if one.ended else one.ids
            total = sum(float(log_probabilities(model, prompt, [new[:n]])[0, id]) for n, id in enumerate(new))
            assert one.log_probability == pytest.approx(total, abs=1e-4)
            assert one.score == pytest.approx(one.log_probability / len(new) ** length_penalty)
            assert END not in one.ids
            ends.add(one.ended)
    assert True in ends


@pytest.mark.parametrize("num_beams", [1, 4])
def test_only_what_the_length_cuts_has_not_ended(num_beams: int) -> None:
    model, cuts = exact_model(), 0
    for max_new_tokens in (1, 3, 100):
        for prompt, hypotheses in zip(
            PROMPTS, search(model, PROMPTS, num_beams=num_beams, max_new_tokens=max_new_tokens), strict=True
        ):
            room = min(max_new_tokens, WINDOW - len(prompt))
            for one in hypotheses:
                assert len(one.ids) < room if one.ended else len(one.ids) == room
                cuts += not one.ended
    assert cuts


def test_a_prompt_may_leave_room_for_a_single_token() -> None:
    model, prompt = exact_model(), [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5]
    assert len(prompt) == WINDOW - 1
    (hypotheses,) = search(model, [prompt], num_beams=V)
    (row,) = log_probabilities(model, prompt, [[]]).tolist()
    best = sorted(range(V), key=lambda id: -row[id])
    assert [one.ids for one in hypotheses] == [[] if id == END else [id] for id in best]
    assert [one.ended for one in hypotheses] == [id == END for id in best]


# Equal log-probabilities


def undecided_model(vocab_size: int = V) -> LanguageModel:
    """A model to which all tokens are equally likely."""
    model = exact_model(vocab_size)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


def test_of_equal_hypotheses_the_one_that_was_found_first_comes_first() -> None:
    (hypotheses,) = search(undecided_model(2), [[1]], num_beams=3, max_new_tokens=2)
    assert len({one.score for one in hypotheses}) == 1
    assert [(one.ids, one.ended) for one in hypotheses] == [([], True), ([1], True), ([1, 1], False)]


def test_of_equal_candidates_the_lower_id_comes_first_then_the_better_beam() -> None:
    model = undecided_model()
    (hypotheses,) = search(model, [[1, 2]], num_beams=3, max_new_tokens=2, end_id=5)
    assert [one.ids for one in hypotheses] == [[0, 0], [1, 0], [2, 0]]
    (hypotheses,) = search(model, [[1, 2]], num_beams=3, max_new_tokens=2, end_id=0, length_penalty=0)
    assert [one.ids for one in hypotheses] == [[], [1], [2]]  # the shorter is the likelier
    assert [one.ended for one in hypotheses] == [True, True, True]
    for end in (0, 1):
        (hypotheses,) = search(model, [[1, 2]], num_beams=1, max_new_tokens=2, end_id=end, length_penalty=2)
        assert [(one.ids, one.ended) for one in hypotheses] == ([([], True)] if end == 0 else [([0, 0], False)])


@settings(derandomize=True, database=None, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.0]), min_size=9, max_size=9), min_size=1),
    count=st.integers(1, 12),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_the_likeliest_tokens_are_those_that_a_full_sort_puts_first(
    rows: list[list[float]], count: int, dtype: torch.dtype
) -> None:
    for row in rows:
        row[4] = max(row[4], 0.0)  # one, at least, is possible
    for row, candidates in zip(rows, beam._likeliest(torch.tensor(rows, dtype=dtype), count), strict=True):
        total = math.log(sum(map(math.exp, row)))
        expected = sorted((total - score, id) for id, score in enumerate(row) if score > -math.inf)[:count]
        ours = sorted((-log_probability, id) for log_probability, id in candidates)
        assert sorted(id for _, id in ours) == sorted(id for _, id in expected)
        assert [cost for cost, _ in ours] == pytest.approx([cost for cost, _ in expected], abs=1e-6)


def test_an_impossible_token_is_in_no_hypothesis() -> None:
    model, allowed = exact_model(), [END, 2, 5]

    def forbid(_: Any, __: Any, logits: Tensor) -> Tensor:
        kept = torch.full_like(logits, -math.inf)
        kept[..., allowed] = logits[..., allowed]
        return kept

    model.lm_head.register_forward_hook(forbid)
    number = 2**4 + 2**3 + 2**3 - 1
    for prompt, hypotheses in zip(
        PROMPTS, search(model, PROMPTS, num_beams=100, max_new_tokens=4, length_penalty=0), strict=True
    ):
        assert len(hypotheses) == number
        assert {id for one in hypotheses for id in one.ids} == {2, 5}
        assert all(math.isfinite(one.score) for one in hypotheses)
        assert_same(hypotheses[:1], plain_search(model, prompt, 100, 0, max_new_tokens=4)[:1])


# Many prompts


@pytest.mark.parametrize("most_rows", [1, 5, 8, 64])
@pytest.mark.parametrize("document_start", [None, START])
def test_a_prompt_gets_the_same_alone_and_among_others(
    document_start: int | None, most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, draw = exact_model(document_start=document_start), random.Random(most_rows)
    prompts = [[draw.randrange(V) for _ in range(draw.randint(1, WINDOW - 1))] for _ in range(30)]
    alone = [search(model, [prompt], num_beams=3)[0] for prompt in prompts]
    monkeypatch.setattr(beam, "_MOST_ROWS", most_rows)
    for hypotheses, expected in zip(search(model, prompts, num_beams=3), alone, strict=True):
        assert_same(hypotheses, expected)
    again = search(model.float(), prompts, num_beams=3)
    assert [[one.ids for one in few] for few in again] == [[one.ids for one in few] for few in alone]
    for few, expected in zip(again, alone, strict=True):
        assert_same(few, expected, tolerance=1e-4)


def test_no_prompts_get_no_hypotheses() -> None:
    assert search(exact_model(), []) == []


def test_tensors_are_prompts_too() -> None:
    model = exact_model()
    assert search(model, torch.tensor([[1, 2], [3, 4]])) == search(model, [[1, 2], [3, 4]])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What is read of rows and positions at each call, by the model or, of a single position, by the decoder."""
    calls: list[tuple[str, int, int]] = []

    def watched(name: str, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(self: Any, tokens: Tensor, *rest: Any) -> Tensor:
            calls.append((name, *tokens.shape))
            return method(self, tokens, *rest)

        return call

    monkeypatch.setattr(LanguageModel, "features", watched("read", LanguageModel.features))
    monkeypatch.setattr(Decoder, "__call__", watched("decode", Decoder.__call__))
    return calls


def test_a_prompt_is_read_once_and_then_a_position_for_each_live_beam(reads: list[Any]) -> None:
    model = exact_model(mlp="swiglu")
    search(model, [[1, 2, 3], [4, 5, 6]], num_beams=3, end_id=6, max_new_tokens=4, length_penalty=9)
    # What chooses between decoder and model asks both, once.
    assert reads[:3] == [("read", 2, 2), ("decode", 2, 1), ("read", 2, 1)]
    assert reads[3:] == [("decode", 6, 1)] * 3


def test_a_prompt_that_is_done_is_read_no_more(reads: list[Any]) -> None:
    model = exact_model()
    prompts = [[1, 2, 3], [4, 5, 6], [1, 1, 1], [2, 2, 4]]
    alone = []
    for prompt in prompts:
        reads.clear()
        search(model, [prompt], num_beams=2, length_penalty=0, max_new_tokens=9)
        alone.append([rows for kind, rows, _ in reads if kind == "decode"])
    reads.clear()
    search(model, prompts, num_beams=2, length_penalty=0, max_new_tokens=9)
    together = [rows for kind, rows, _ in reads if kind == "decode"]
    assert together == [sum(rows) for rows in itertools.zip_longest(*alone, fillvalue=0)]
    assert len({len(rows) for rows in alone}) > 1


def test_a_prompt_is_copied_to_its_beams_and_then_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    selected, select = [], KVCache.select

    def watched(self: KVCache, rows: Sequence[int], start: int = 0) -> None:
        selected.append((len(rows), start))
        select(self, rows, start)

    monkeypatch.setattr(KVCache, "select", watched)
    model = exact_model()
    never_ends = torch.zeros(V).index_fill(0, torch.tensor(END), -math.inf)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + never_ends)
    search(model, [[1, 2, 3], [4, 5, 6, 1]], num_beams=2)
    assert selected == [(4, 0), (4, 3), (4, 3), (4, 3), (0, 0)]


def test_the_rows_that_are_held_at_once_are_bounded(reads: list[Any]) -> None:
    search(exact_model(max_seq_len=60), [[1] * length for length in (3, 40, 4) * 20], num_beams=4, max_new_tokens=3)
    # Those of one length are together, but for one group, and a prompt's last token is read with the beams' tokens.
    assert [call[1:] for call in reads if call[0] == "read" and call[2] > 1] == [(16, 2), (16, 3), (16, 39), (12, 39)]
    assert max(rows for _, rows, _ in reads) == 64


def test_long_prompts_are_searched_after_in_small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam, "_MOST_POSITIONS", 100)
    searches = [beam._Search([1] * length, END, 2, 1.0, 10) for length in (5, 15, 50, 2, 90, 8, 5)]
    groups = [[len(search.prompt) for search in group] for group in beam._groups(searches, 2)]
    assert groups == [[2, 5, 5], [8, 15], [50], [90]]


# What it leaves alone, and what it refuses


def test_a_search_leaves_the_model_as_it_was() -> None:
    model, modes = exact_model(dropout=0.5), list[tuple[bool, bool]]()
    expected = search(model, PROMPTS)
    model.train()
    model.norm.register_forward_hook(lambda *_: modes.append((torch.is_inference_mode_enabled(), model.training)))
    for hypotheses, same in zip(search(model, PROMPTS), expected, strict=True):
        assert_same(hypotheses, same)  # without dropout
    assert set(modes) == {(True, False)}
    assert model.training and all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_whose_code_was_changed_is_searched_as_it_is() -> None:
    model = exact_model()
    before = search(model, PROMPTS)
    model.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: -output)
    after = search(model, PROMPTS)
    assert after != before
    for prompt, hypotheses in zip(PROMPTS, after, strict=True):
        assert_same(hypotheses, plain_search(model, prompt, 4, 1.0))


def test_a_model_in_half_precision_is_searched_as_well() -> None:
    for hypotheses in search(exact_model().bfloat16(), PROMPTS):
        assert len(hypotheses) == 4
        assert all(math.isfinite(one.score) for one in hypotheses)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 has no token: at least one"),
        ([[1], [V]], {}, f"prompt 1 holds the id {V}: must be at least 0 and below {V}"),
        ([[-1]], {}, "prompt 0 holds the id -1: must"),
        ([[1.5]], {}, r"a prompt is \[1.5\].*must be a row of token ids"),
        ([[1], [1] * WINDOW], {}, f"prompt 1 has {WINDOW} tokens: must have at most {WINDOW - 1}.*{WINDOW}. Shorten"),
        ([[1]], {"num_beams": 0}, "num_beams = 0: must be a whole number .*at least 1"),
        ([[1]], {"num_beams": 2.0}, "num_beams = 2.0: must be a whole number"),
        ([[1]], {"num_beams": True}, "num_beams = True: must be a whole number"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens = 0: must be a whole number .*at least 1"),
        ([], {"end_id": V}, f"end_id = {V}: must be a token id .*at least 0 and below {V}"),
        ([[1]], {"end_id": -1}, "end_id = -1: must be a token id"),
        ([[1]], {"end_id": None}, "end_id = None: must be a token id"),
        ([[1]], {"length_penalty": math.nan}, "length_penalty = nan: must be a number from -10 to 10"),
        ([[1]], {"length_penalty": 11}, "length_penalty = 11: must be a number from -10 to 10"),
        ([[1]], {"length_penalty": "1"}, "length_penalty = '1': must be a number from -10 to 10"),
    ],
)
def test_what_makes_no_sense_is_refused(prompts: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        search(exact_model(), prompts, **options)


def test_scores_that_are_no_numbers_are_told() -> None:
    model = exact_model().train()
    with torch.no_grad():
        model.lm_head.weight[2] = math.nan
    with pytest.raises(UserError, match="no finite numbers: its training went wrong"):
        search(model, PROMPTS)
    assert model.training
