"""Laws of slm.model.generation: streams, batches of rows, what they leave alone, and what they may cost.

That every way of writing gives the same text is in test_same_text.py. Shapes: B rows, T positions, V vocab_size.
"""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import every_combination, small_model
from plain_generation import assert_same_text, plain_stream
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from slm.config import UserError
from slm.model import LanguageModel, generate_tokens, generation, stream_tokens
from slm.model.choice import random_stream
from slm.model.decoder import Decoder
from slm.sampling import NAMES, Sampling

V, WINDOW = 23, 8
SAMPLING: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "top_k": None, "seed": 3}


def make_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def written(model: LanguageModel, prompts: Any, **keywords: Any) -> list[list[int]]:
    """The new ids of each row."""
    return generate_tokens(model, prompts, **(SAMPLING | keywords)).tolist()  # type: ignore[no-any-return]


# One row


@every_combination
def test_greedy_text_equals_an_uncached_argmax_loop(options: dict[str, Any]) -> None:
    model = small_model(**options)
    for prompt_length in (1, 4):
        tokens = make_tokens(1, prompt_length)
        greedy = generate_tokens(model, tokens, max_new_tokens=WINDOW - prompt_length, temperature=0)
        for _ in range(WINDOW - prompt_length):
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
        assert torch.equal(greedy, tokens[:, prompt_length:])


@pytest.mark.parametrize("prompt_length", [1, WINDOW, 3 * WINDOW])
@pytest.mark.parametrize("window", [1, 2, 3, WINDOW])
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_past_the_window_the_text_goes_on_from_its_last_half(positions: str, window: int, prompt_length: int) -> None:
    model, prompt = small_model(max_seq_len=window, positions=positions), make_tokens(1, prompt_length)
    for temperature, top_k in ((0.0, None), (3.0, None), (5.0, 9)):
        sampling = SAMPLING | {"max_new_tokens": 3 * WINDOW, "temperature": temperature, "top_k": top_k}
        (ids,) = written(model, prompt, **sampling)
        assert_same_text(ids, list(plain_stream(model, prompt[0].tolist(), Sampling(**sampling), random_stream(3, 0))))
        assert temperature == 0 or len(set(ids)) > 5


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize("excess", [1, 5, 3 * WINDOW])
def test_a_prompt_longer_than_the_window_counts_by_its_last_tokens(positions: str, excess: int) -> None:
    model, prompt = small_model(positions=positions), make_tokens(1, WINDOW + excess)
    assert written(model, prompt) == written(model, prompt[:, -WINDOW:])


def test_a_penalty_remembers_also_what_the_model_can_no_longer_see() -> None:
    model, ends = small_model(), torch.full((1, WINDOW), 5)
    all_seen = torch.cat((torch.arange(V)[None], ends), dim=1)
    assert written(model, all_seen) == written(model, ends)
    assert written(model, all_seen, repetition_penalty=1.5) != written(model, ends, repetition_penalty=1.5)


def test_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    model, prompt = small_model(), make_tokens(1, 3)
    assert written(model, prompt, seed=0) == written(model, prompt, seed=0)
    assert written(model, prompt, seed=0) != written(model, prompt, seed=1)
    assert written(model, prompt, seed=None) != written(model, prompt, seed=None)  # equal once in many millions of runs


def test_a_longer_text_begins_with_the_shorter_one() -> None:
    model, prompts = small_model(), make_tokens(2, 3)
    texts = [generate_tokens(model, prompts, **(SAMPLING | {"max_new_tokens": n})) for n in (0, 1, 7, 25)]
    assert [text.shape for text in texts] == [(2, 0), (2, 1), (2, 7), (2, 25)]
    assert {text.dtype for text in texts} == {torch.long}
    assert all(torch.equal(texts[-1][:, : text.size(1)], text) for text in texts)


def test_a_stream_computes_only_the_tokens_that_are_asked_for(reads: list[Any]) -> None:
    stream = stream_tokens(small_model(), make_tokens(1, 3), Sampling(max_new_tokens=10**9))
    assert reads == []
    assert len(list(itertools.islice(stream, 4))) == 4
    assert reads == [("read", 1, 2), *[("decode", 1, 1)] * 4]


def test_top_k_of_one_writes_what_temperature_zero_writes() -> None:
    model, prompt = small_model(), make_tokens(1, 3)
    assert written(model, prompt, temperature=5.0, top_k=1) == written(model, prompt, temperature=0)


def test_every_token_is_among_the_k_likeliest() -> None:
    model, tokens = small_model(), make_tokens(1, 1)
    for id in written(model, tokens, max_new_tokens=WINDOW - 1, temperature=50.0, top_k=3)[0]:
        assert id in model(tokens)[0, -1].topk(3).indices
        tokens = torch.cat((tokens, torch.tensor([[id]])), dim=1)


def test_log_probabilities_are_those_of_the_model_whatever_filters_there_are() -> None:
    model, prompts = small_model(), [[1, 2], [3, 4, 5, 6]]
    filters = Sampling(max_new_tokens=4, temperature=3.0, top_k=4, repetition_penalty=1.5, seed=0)
    texts = [list(prompt) for prompt in prompts]
    for new in stream_tokens(model, prompts, filters, log_probabilities=True):
        assert new.log_probabilities is not None
        for text, id, log_probability in zip(texts, new.ids, new.log_probabilities, strict=True):
            expected = model(torch.tensor([text]))[0, -1].double().log_softmax(0)[id].item()
            assert log_probability == pytest.approx(expected, abs=1e-5)
            text.append(id)
    assert all(new.log_probabilities is None for new in stream_tokens(model, prompts, filters))


# Several rows


def test_prompts_may_be_a_tensor_or_rows_of_any_kind() -> None:
    model, tokens = small_model(), make_tokens(2, 3)
    texts = [written(model, rows) for rows in (tokens, tokens.int(), tokens.tolist(), list(tokens), tuple(tokens))]
    assert texts == [texts[0]] * 5
    assert written(model, []) == []


def test_a_row_is_what_it_is_alone_and_no_other_changes_it() -> None:
    model, prompts = small_model(), [[1], [2, 3, 4, 5, 6, 7, 8, 9, 10], [1], [0, 0, 0]]
    texts = written(model, prompts)
    assert texts[0] != texts[2]  # the same prompt in another row draws otherwise
    for row, prompt in enumerate(prompts):
        assert written(model, [prompt], first_row=row) == [texts[row]]
        others = [[7, 7], [8], [9] * 20, [5]]
        others[row] = prompt
        assert written(model, others)[row] == texts[row]
    assert written(model, prompts[1:], first_row=1) == texts[1:]


def test_a_row_that_has_ended_goes_on_with_its_end_and_the_last_end_stops_all() -> None:
    model, prompts, count = small_model(), [[1], [2, 3, 4], [5, 6]], 60
    texts = written(model, prompts, max_new_tokens=count)
    for end_id in range(0, V, 2):
        lengths = [(text.index(end_id) + 1 if end_id in text else count) for text in texts]
        ended = written(model, prompts, max_new_tokens=count, end_id=end_id)
        for text, length, row in zip(texts, lengths, ended, strict=True):
            assert row == text[:length] + [end_id] * (max(lengths) - length)
    assert written(model, prompts, max_new_tokens=count, end_id=V) == texts


# What generation leaves alone


@pytest.mark.parametrize("seed", [None, 0])
def test_generation_does_not_touch_the_global_random_numbers(seed: int | None) -> None:
    model = small_model(dropout=0.5).train()
    before = torch.get_rng_state()
    written(model, make_tokens(2, 3), seed=seed)
    assert torch.equal(torch.get_rng_state(), before)


def test_generation_does_not_hear_the_global_random_numbers() -> None:
    model, texts = small_model(), []
    for global_seed in range(2):
        torch.manual_seed(global_seed)
        texts.append(written(model, make_tokens(1, 3)))
    assert texts[0] == texts[1]


def test_generation_drops_nothing_even_in_the_middle_of_training() -> None:
    dropping, plain = small_model(dropout=0.5).train(), small_model()
    for use_cache in (True, False):
        texts = [written(model, make_tokens(2, 3), use_cache=use_cache) for model in (dropping, plain)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_however_a_stream_ends(training: bool) -> None:
    model, prompt = small_model().train(training), make_tokens(1, 3)
    for count in (0, 3):
        list(stream_tokens(model, prompt, Sampling(max_new_tokens=count)))
        assert model.training == training
    stream = stream_tokens(model, prompt, Sampling())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert model.training == training
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(UserError, match="no finite numbers"):
        written(model, prompt)
    assert model.training == training


def test_generation_leaves_prompt_weights_and_gradients_alone() -> None:
    model, prompts, rows = small_model(positions="rope"), make_tokens(2, 3), [[1, 2, 3], [4]]
    kept, weights = prompts.clone(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for rows_or_tensor in (prompts, rows):
        for _ in stream_tokens(model, rows_or_tensor, Sampling(max_new_tokens=2 * WINDOW)):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
    assert torch.equal(prompts, kept)
    assert rows == [[1, 2, 3], [4]]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    model(prompts).sum().backward()  # trains on as before
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_keeps_no_graph_for_gradients(use_cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []
    choose = generation.choose_tokens

    def watched(logits: Tensor, *rest: Any) -> list[int]:
        graphs.append(logits.grad_fn)
        return choose(logits, *rest)

    monkeypatch.setattr(generation, "choose_tokens", watched)
    written(small_model(), make_tokens(1, 3), max_new_tokens=5, use_cache=use_cache, repetition_penalty=2.0)
    assert graphs == [None] * 5


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tokens": [[1], []]}, "prompt 1 has no token"),
        ({"tokens": torch.zeros(1, 0, dtype=torch.long)}, "prompt 0 has no token"),
        ({"tokens": [[1], [2, V]]}, f"prompt 1 holds the id {V}: must be at least 0 and below {V}"),
        ({"tokens": [[1], [2, -1]]}, "prompt 1 holds the id -1"),
        ({"tokens": torch.tensor([1, 2])}, r"tokens\[None\]"),
        ({"tokens": torch.ones(1, 2)}, "integers"),
        ({"tokens": [1, 2]}, "must be a row of token ids"),
        ({"tokens": [[1.0]]}, "must be a row of token ids"),
        ({"tokens": ["text"]}, "must be a row of token ids"),
        ({"first_row": -1}, "first_row = -1: must be 0 or above"),
        ({"stop": "x"}, r"stop = \('x',\).*end_id"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1: must be 0 or above"),
        ({"temperature": -0.1}, "temperature = -0.1: must be 0 or above"),
        ({"temperature": math.nan}, "temperature = nan: must be a finite number"),
        ({"temperature": math.inf}, "temperature = inf: must be a finite number"),
        ({"temperature": "hot"}, "temperature = 'hot': must be a number"),
        ({"top_k": 0}, "top_k = 0: must be at least 1"),
        ({"top_k": -3, "temperature": 0.0}, "top_k"),
        ({"top_k": 0, "max_new_tokens": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, "top_p = 0.0: must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p = -0.1: must be 0 to 1"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0: must be above 0"),
        ({"seed": -1}, "seed = -1: must be 0 or above"),
        ({"seed": 2**63}, "63 bits"),
        ({"temprature": 1.0}, "temprature is not a setting of generation: max_new_tokens, "),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_is_a_user_error_naming_it(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate_tokens(small_model(), **({"tokens": make_tokens(1, 3), "max_new_tokens": 3} | arguments))


def test_a_stream_is_refused_before_it_is_begun() -> None:
    with pytest.raises(UserError, match="has no token"):
        stream_tokens(small_model(), [[]], Sampling())


def test_the_signature_shows_every_setting_with_its_default() -> None:
    parameters = inspect.signature(generate_tokens).parameters
    for name in NAMES:
        if name != "stop":  # which needs text
            assert parameters[name].default == getattr(Sampling(), name)
    assert set(parameters) == {"model", "tokens", "end_id", "first_row", "use_cache", *NAMES} - {"stop"}
    assert list(parameters)[:2] == ["model", "tokens"]


# What it costs


def watch_reads(patch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What models read from now on: ("read" by the whole model or "decode"d, rows, positions of each)."""
    seen: list[tuple[str, int, int]] = []
    compared: list[Tensor] = []
    features, decode = LanguageModel.features, Decoder.__call__

    def watched_features(self: LanguageModel, tokens: Tensor, *rest: Any) -> Tensor:
        # The first token alone is read both ways, to compare them.
        if [kind for kind, *_ in seen].count("decode") == 1 and not compared:
            compared.append(tokens)
        else:
            seen.append(("read", *tokens.shape))
        return features(self, tokens, *rest)

    def watched_decode(self: Decoder, tokens: Tensor, *rest: Any) -> Tensor:
        seen.append(("decode", *tokens.shape))
        return decode(self, tokens, *rest)

    patch.setattr(LanguageModel, "features", watched_features)
    patch.setattr(Decoder, "__call__", watched_decode)
    return seen


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    return watch_reads(monkeypatch)


def test_prompts_of_unequal_lengths_are_read_in_one_pass_and_then_a_position_a_row(reads: list[Any]) -> None:
    written(small_model(max_seq_len=40), [[1], list(range(10)), [2, 3]])
    assert reads == [("read", 3, 9), *[("decode", 3, 1)] * 20]


def test_of_prompts_of_one_token_nothing_is_read_before(reads: list[Any]) -> None:
    written(small_model(max_seq_len=40), [[1], [2]])
    assert reads == [("decode", 2, 1)] * 20


def test_no_more_than_half_a_window_is_ever_read_again(reads: list[Any]) -> None:
    model, half = small_model(), WINDOW // 2
    written(model, make_tokens(1, 3), max_new_tokens=15)
    begin, again = [("read", 1, 2), *[("decode", 1, 1)] * 6], [("read", 1, half - 1), *[("decode", 1, 1)] * (half + 1)]
    assert reads == [*begin, *again, *again][: len(reads)]
    assert sum(kind == "decode" for kind, *_ in reads) == 15


@settings(derandomize=True, database=None, deadline=None, max_examples=30)
@given(window=st.integers(1, 12), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_only_the_rows_that_are_full_are_read_again(window: int, lengths: list[int]) -> None:
    model, count, half = small_model(max_seq_len=window), 3 * window, max(window // 2, 1)
    with pytest.MonkeyPatch.context() as patch:
        seen = watch_reads(patch)
        written(model, [[1] * length for length in lengths], max_new_tokens=count)
    expected, held = [], [min(length, window) for length in lengths]
    changed = list(range(len(held)))
    for _ in range(count):
        if changed and max(held[row] for row in changed) > 1:
            expected.append(("read", len(changed), max(held[row] for row in changed) - 1))
        expected.append(("decode", len(held), 1))
        changed = [row for row, length in enumerate(held) if length == window]
        held = [half if row in changed else length + 1 for row, length in enumerate(held)]
    assert seen == expected
    assert all(positions < half for kind, _, positions in seen[1:] if kind == "read")


class Work(TorchDispatchMode):
    """Counts the numbers that operations write, but for attention, and notes which operations there are."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.names.add(function.__name__)
        if "dot_product" not in function.__name__ and not function.is_view:
            tensors = made if isinstance(made, tuple | list) else (made,)
            self.numbers += sum(one.numel() for one in tensors if isinstance(one, Tensor))
        return made


@pytest.mark.parametrize(("max_seq_len", "first", "second"), [(64, 5, 50), (16, 19, 19 + 5 * 8)])
def test_a_token_costs_no_more_after_many_than_after_few(max_seq_len: int, first: int, second: int) -> None:
    model = small_model(max_seq_len=max_seq_len, positions="rope")
    sampling = Sampling(max_new_tokens=second + 1, repetition_penalty=1.2, seed=0)
    stream, costs = stream_tokens(model, make_tokens(2, 1), sampling, log_probabilities=True), []
    work = Work()
    for _ in range(second + 1):
        before = work.numbers
        with work:
            next(stream)
        costs.append(work.numbers - before)
    assert costs[first] == costs[second] > 1000
    assert not any("sort" in name or "topk" in name for name in work.names)
