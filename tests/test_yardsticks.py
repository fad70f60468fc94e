"""Laws of slm.metrics.yardsticks: on the targets that evaluations read, within bounds, over the same bytes for all."""

from __future__ import annotations

import functools
import itertools
import lzma
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_text
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slm.config import IGNORE_INDEX
from slm.data.batches import in_order
from slm.data.dataset import TextDataset
from slm.data.stories import stories
from slm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe
from slm.data.tokens import Tokens
from slm.metrics import yardsticks as module
from slm.metrics.kneser_ney import KneserNey
from slm.metrics.yardsticks import Yardstick, _positions, _spread, _with_context, ngram_order, yardsticks

laws = settings(derandomize=True, database=None, deadline=None, max_examples=60)
BOUNDS = st.integers(1, 60)


class Counted(Tokens):
    """Tokens that count how many ids were read of them."""

    def __init__(self, ids: NDArray[Any]) -> None:
        super().__init__([ids])
        self.read = 0

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        self.read += len(starts) * length
        return super().windows(starts, length)


@functools.cache
def story_texts() -> tuple[str, str]:
    text = "\n\n".join(story.text for story in stories(0, 150_000))
    return text[:120_000], text[120_000:]


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    train, _ = story_texts()
    if name == "byte":
        return byte_tokenizer()
    return char_tokenizer([train]) if name == "char" else train_bpe([train], 400)


@functools.cache
def story_ids(name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    train, val = (np.array(tokenizer_of(name).encode(text)) for text in story_texts())
    return train, val


def measured(name: str = "bpe", seconds: float = 5, window: int = 64, **keys: Any) -> dict[str, Yardstick]:
    """The yardsticks of stories by name, "n-gram" whatever its length."""
    train, val = story_ids(name)
    tokenizer = tokenizer_of(name)
    dataset = TextDataset(val, window, **keys)
    return named(yardsticks(Tokens([train]), dataset, tokenizer, tokenizer.vocab_size, seconds=seconds))


def named(found: list[Yardstick]) -> dict[str, Yardstick]:
    assert [yardstick.name for yardstick in found] == list(dict.fromkeys(yardstick.name for yardstick in found))
    return {"n-gram" if "-gram" in one.name else one.name: one for one in found}


def targets_of(dataset: TextDataset) -> NDArray[np.int64]:
    """All targets that evaluations read."""
    targets = torch.cat([targets.flatten() for _, targets in in_order(dataset, 7)])
    return targets[targets != IGNORE_INDEX].numpy()


@st.composite
def datasets(draw: st.DrawFn) -> TextDataset:
    """A dataset with or without documents and a bound. Each id but 0, which begins a document, is its own position."""
    ids = np.arange(draw(st.integers(2, 200)))
    has_documents = draw(st.booleans())
    if has_documents:
        ids[draw(st.lists(st.integers(0, len(ids) - 1), max_size=20))] = 0
    bound = draw(st.none() | BOUNDS)
    return TextDataset(ids, draw(st.integers(1, 40)), start_id=0 if has_documents else None, max_targets=bound)


@laws
@given(dataset=datasets())
def test_positions_are_those_of_exactly_the_targets_that_the_dataset_gives(dataset: TextDataset) -> None:
    positions, num_targets = _positions(dataset, 10**6)
    targets = targets_of(dataset)
    assert num_targets == len(targets)
    row = dataset.tokens[:]
    assert row[positions].tolist() == targets.tolist()
    assert (positions[targets > 0] == targets[targets > 0]).all()
    assert (np.diff(positions) > 0).all()


@laws
@given(dataset=datasets(), most=BOUNDS)
def test_a_sample_is_of_whole_windows_within_its_bound_from_all_over_the_text(dataset: TextDataset, most: int) -> None:
    everything, num_targets = _positions(dataset, 10**6)
    positions, told = _positions(dataset, most)
    assert told == num_targets
    assert 1 <= len(positions) <= most
    windows = [window[window != IGNORE_INDEX] for _, window in dataset]
    places = np.split(everything, np.cumsum([len(window) for window in windows])[:-1])
    taken = [index for index, place in enumerate(places) if np.isin(place, positions).any()]
    if num_targets <= most:
        assert positions.tolist() == everything.tolist()
    elif dataset.window > most:
        assert positions.tolist() == places[0][:most].tolist()
    else:
        assert positions.tolist() == [place for index in taken for place in places[index].tolist()]
        steps = np.diff([*taken, len(places)])  # from each one taken to the next, and from the last to the end
        assert taken[0] == 0 and steps.max() - steps[:-1].min(initial=steps.max()) <= 1


@laws
@given(places=st.sets(st.integers(1, 99), min_size=1, max_size=30), context=st.integers(0, 12))
def test_every_target_follows_the_tokens_that_precede_it_in_the_text(places: set[int], context: int) -> None:
    positions = np.array(sorted(places))
    ids, found, runs = _with_context(Tokens([np.arange(100)]), positions, context)
    assert ids[found].tolist() == np.concatenate(runs).tolist() == positions.tolist()
    for place, position in zip(found.tolist(), positions.tolist(), strict=True):
        before = min(context, position)
        assert ids[place - before : place].tolist() == list(range(position - before, position))
        assert before == context or place == position  # fewer only where the text begins


@laws
@given(length=st.integers(1, 500), most=st.integers(1, 600))
def test_pieces_of_the_training_text_are_within_the_bound_and_reach_from_end_to_end(length: int, most: int) -> None:
    pieces = _spread(Tokens([np.arange(length)]), most)
    sample = np.concatenate(pieces)
    assert (np.diff(sample) > 0).all()  # no token twice
    assert len(sample) <= most
    assert len(sample) == length or len(sample) > most - 16
    if len(pieces) > 1:
        assert sample[0] == 0 and sample[-1] == length - 1
        gaps = np.diff([piece[0] for piece in pieces])
        assert gaps.max() - gaps.min() <= 1
    else:
        assert len(sample) == length or most == 1


KINDS: list[dict[str, Any]] = [{}, {"max_targets": 1000}, {"start_id": "\n"}, {"start_id": "\n", "max_targets": 1000}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", ["char", "bpe"])
def test_losses_and_bits_per_byte_are_the_means_over_the_targets_of_the_dataset(
    name: str, kind: dict[str, Any]
) -> None:
    train, val = story_ids(name)
    tokenizer = tokenizer_of(name)
    if "start_id" in kind:
        kind = kind | {"start_id": tokenizer.encode(kind["start_id"])[0]}
    dataset = TextDataset(val, 64, **kind)
    found = named(yardsticks(Tokens([train]), dataset, tokenizer, tokenizer.vocab_size, seconds=5))
    positions, _ = _positions(dataset, 10**6)
    targets = targets_of(dataset).tolist()
    V, counts = tokenizer.vocab_size, Counter(train.tolist())
    order = ngram_order(np.bincount(train, minlength=V))
    expected = {
        "uniform": math.log(V),
        "unigram": math.fsum(-math.log((counts[id] + 1) / (len(train) + V)) for id in targets) / len(targets),
        # The whole text before a target is there to be seen, whatever the window.
        "n-gram": KneserNey(train, V, order).nats(val)[positions].mean(),
    }
    num_bytes = sum(tokenizer.bytes_per_token()[targets].tolist())
    for key, loss in expected.items():
        one = found[key]
        assert one.loss == pytest.approx(loss, rel=1e-12), key
        assert one.bits_per_byte == pytest.approx(loss / math.log(2) * len(targets) / num_bytes, rel=1e-12), key
        assert one.told == "", key
    assert found["n-gram"].name == f"Kneser-Ney {order}-gram"


@pytest.mark.parametrize("name", ["char", "bpe", "byte"])
def test_xz_is_what_the_validation_text_adds_to_the_packed_training_text(name: str) -> None:
    train, val = story_texts()
    tokenizer = tokenizer_of(name)
    first = tokenizer.decode(story_ids(name)[1][:1].tolist())  # no target: nothing precedes it
    rest = val.removeprefix(first)
    assert len(rest) == len(val) - len(first)
    added = len(lzma.compress((train + rest).encode())) - len(lzma.compress(train.encode()))
    found = measured(name)["xz"]
    assert found == Yardstick("xz", pytest.approx(8 * added / len(rest.encode()), rel=1e-12), None, "")


def test_xz_packs_the_text_without_the_tokens_that_end_documents() -> None:
    train, val = story_texts()
    tokenizer = tokenizer_of("bpe")
    assert tokenizer.end_id is not None
    rows = []
    for text in (train, val):
        documents = [tokenizer.encode(document) for document in text.split("\n\n")]
        rows.append(np.array([id for document in documents for id in (tokenizer.end_id, *document)]))
    dataset = TextDataset(rows[1], 64, start_id=tokenizer.end_id)
    found = named(yardsticks(Tokens([rows[0]]), dataset, tokenizer, tokenizer.vocab_size, seconds=5))
    train, val = (text.replace("\n\n", "") for text in (train, val))
    added = len(lzma.compress((train + val).encode())) - len(lzma.compress(train.encode()))
    assert found["xz"].bits_per_byte == pytest.approx(8 * added / len(val), rel=1e-12)


def test_a_character_that_a_window_cuts_in_two_does_not_matter() -> None:
    text = "äöü€ß" * 400  # no window of 7 bytes ends where all characters do
    row = np.array(byte_tokenizer().encode(text))
    found = named(yardsticks(Tokens([row]), TextDataset(row[1:], 7), byte_tokenizer(), 257, seconds=5))
    assert 0 <= found["xz"].bits_per_byte < 0.1  # it is a copy of what came before; each cut would cost bytes


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_each_yardstick_beats_the_one_before_it_on_stories(name: str) -> None:
    found = measured(name)
    assert list(found) == ["uniform", "unigram", "n-gram", "xz"]
    assert found["uniform"].loss > 1.2 * found["unigram"].loss > 2.5 * found["n-gram"].loss > 0
    assert found["uniform"].bits_per_byte > found["unigram"].bits_per_byte > 2 * found["n-gram"].bits_per_byte
    assert found["unigram"].bits_per_byte > found["xz"].bits_per_byte > found["n-gram"].bits_per_byte


def test_the_entropy_of_the_source_is_passed_through_and_comes_last() -> None:
    train, val = story_ids("bpe")
    given = {"seconds": 1, "source_bits_per_byte": 0.25}
    for tokenizer in (tokenizer_of("bpe"), None):
        found = yardsticks(Tokens([train]), TextDataset(val, 64), tokenizer, 400, **given)
        assert found[-1] == Yardstick("entropy of the source", 0.25, None, "")


def test_without_a_tokenizer_no_bytes_are_known_and_xz_is_left_out() -> None:
    train, val = story_ids("bpe")
    found = named(yardsticks(Tokens([train]), TextDataset(val, 64), None, 400, seconds=5))
    assert list(found) == ["uniform", "unigram", "n-gram"]
    assert all(one.bits_per_byte is None for one in found.values())
    with_tokenizer = measured("bpe")
    assert {name: one.loss for name, one in found.items()} == {name: with_tokenizer[name].loss for name in found}


def test_the_same_text_and_seconds_give_the_same_numbers() -> None:
    for seconds in (5, 0.05):
        assert measured("bpe", seconds) == measured("bpe", seconds)
    assert measured("bpe", 5) == measured("bpe", 500)


SMALLER = {"TRAIN_TOKENS": 3000, "TRAIN_BYTES": 8000, "TARGETS": 1600, "FEWEST_TARGETS": 64, "FEWEST_TRAINED": 1}


@pytest.mark.parametrize("window", [1, 5, 64, 10**5])
def test_no_more_is_read_than_the_bounds_allow(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    train_ids, val_ids = story_ids("bpe")
    tokenizer = tokenizer_of("bpe")
    for seconds, share in ((5.0, 1.0), (2.5, 0.5), (0.05, 0.01), (0.0, 0.0)):
        for name, bound in SMALLER.items():
            monkeypatch.setattr(module, name, bound)
        train, val = Counted(train_ids), Counted(val_ids)
        found = named(yardsticks(train, TextDataset(val, window), tokenizer, tokenizer.vocab_size, seconds=seconds))
        # The unigram's tokens, and xz's, each of which has a byte or more, though fewer than 8000 make 8000 bytes.
        assert train.read <= max(1, 3000 * share) + max(1, 8000 * share)
        most = max(64, int(1600 * share))
        windows = -(-most // window)
        assert val.read <= most + 9 * windows  # the longest context before each window
        tokens = [int(one.told.split(" ")[1].replace(",", "")) for one in (found["unigram"], found["n-gram"])]
        assert 0 < tokens[0] == tokens[1] <= max(1, 3000 * share)
        assert found["unigram"].told.startswith(f"of {tokens[0]:,} training tokens, on ")
        for one in found.values():
            on, of = (int(word.replace(",", "")) for word in one.told.split("on ")[-1].split(" ")[:3:2])
            assert 0 < on <= most
            assert of == len(val_ids) - 1
            assert one.bits_per_byte is not None and math.isfinite(one.bits_per_byte)
        if "xz" in found:
            assert int(found["xz"].told.split(" ")[1].replace(",", "")) <= 8000 * share
            assert "bytes of training text, on " in found["xz"].told


def test_xz_gets_no_more_text_than_its_bound_where_the_bytes_of_tokens_were_taken_for_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = tokenizer_of("bpe")
    sizes = tokenizer.bytes_per_token().numpy()
    row = np.full(10_000, sizes.argmax())
    row[np.linspace(0, 9_999, 16).astype(int)] = np.flatnonzero(sizes == 1)[0]  # of them the bytes are reckoned
    monkeypatch.setattr(module, "TRAIN_TOKENS", 16)
    monkeypatch.setattr(module, "TRAIN_BYTES", 2000)
    packed: list[int] = []
    compress = lzma.compress
    monkeypatch.setattr(lzma, "compress", lambda text: packed.append(len(text)) or compress(text))
    dataset = TextDataset(row, 64)
    found = named(yardsticks(Tokens([row]), dataset, tokenizer, tokenizer.vocab_size, seconds=5))
    assert sorted(packed) == [2000, 2000 + sizes[row[1:]].sum()]
    assert found["xz"].told == "of 2,000 bytes of training text"


def test_fewer_seconds_make_smaller_samples_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEWEST_TARGETS", 1000)
    monkeypatch.setattr(module, "FEWEST_TRAINED", 1000)
    train = np.tile(story_ids("bpe")[0], 3)
    tokenizer = tokenizer_of("bpe")
    found = {}
    for seconds in (5, 0.2, 0.05):
        dataset = TextDataset(story_ids("bpe")[1], 64)
        found[seconds] = named(yardsticks(Tokens([train]), dataset, tokenizer, tokenizer.vocab_size, seconds=seconds))
    assert all(one.told == "" for one in found[5].values())
    sizes = {0.2: (80_000, 4000), 0.05: (20_000, 1000)}
    for seconds, (tokens, most) in sizes.items():
        targets = most // 64 * 64
        on = f"on {targets:,} of {len(story_ids('bpe')[1]) - 1:,} targets"
        told = {name: one.told for name, one in found[seconds].items()}
        assert told.pop("xz").endswith(f" bytes of training text, {on}")
        assert told == {"uniform": on, **dict.fromkeys(("unigram", "n-gram"), f"of {tokens:,} training tokens, {on}")}


def test_a_text_that_changes_is_known_from_its_beginning_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRAIN_TOKENS", 4000)
    train = np.repeat([0, 1, 2, 3], 10_000)
    for id in range(4):
        found = named(yardsticks(Tokens([train]), TextDataset(np.full(300, id), 50), None, 4, seconds=5))
        assert found["unigram"].loss == pytest.approx(math.log(4), rel=0.01)
        assert found["n-gram"].loss < 0.05


@pytest.mark.parametrize("length", [2, 3, 20])
@pytest.mark.parametrize("start_id", [None, 5])
def test_tiny_texts_have_yardsticks_but_for_xz(length: int, start_id: int | None) -> None:
    tokenizer = byte_tokenizer()
    row = np.full(length, 5)
    found = named(yardsticks(Tokens([row]), TextDataset(row, 64, start_id=start_id), tokenizer, 257, seconds=5))
    assert list(found) == ["uniform", "unigram", "n-gram"]  # .xz files grow in steps: nothing to tell of a few bytes
    assert found["uniform"].bits_per_byte == pytest.approx(math.log2(257))
    assert all(0 <= one.bits_per_byte < 9 and one.loss >= 0 and one.told == "" for one in found.values())


def test_targets_that_stand_for_no_bytes_have_a_loss_alone() -> None:
    tokenizer = byte_tokenizer()
    row = np.full(2000, tokenizer.end_id)
    found = yardsticks(Tokens([row]), TextDataset(row, 64), tokenizer, 257, seconds=5)
    assert len(found) == 3
    assert all(one.bits_per_byte is None and one.loss is not None and one.loss >= 0 for one in found)


def test_text_that_was_read_before_adds_little_and_noise_all_of_it() -> None:
    tokenizer = byte_tokenizer()
    letters = np.array(tokenizer.encode("".join(map(chr, range(48, 48 + 64)))))
    noise = letters[np.random.default_rng(0).integers(0, 64, 40_000)]  # 6 bits each
    train = noise[:20_000]
    for val, low, high in ((train, 0, 0.1), (noise[20_000:], 6, 6.5)):
        found = named(yardsticks(Tokens([train]), TextDataset(val, 64), tokenizer, 257, seconds=5))
        assert low <= found["xz"].bits_per_byte < high


def test_the_order_is_longer_for_characters_than_for_tokens_of_words() -> None:
    assert ngram_order(np.bincount(story_ids("char")[0])) == 10
    assert ngram_order(np.bincount(story_ids("bpe")[0])) == 6
    assert ngram_order(np.ones(50_000, np.int64)) == 6
    assert ngram_order(np.array([7, 0])) == ngram_order(np.zeros(3, np.int64)) == 10


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_no_other_order_is_much_better_than_the_one_taken(name: str) -> None:
    train, val = story_ids(name)
    V = tokenizer_of(name).vocab_size
    losses = {order: KneserNey(train, V, order).nats(val)[1:].mean() for order in range(2, 12)}
    assert losses[ngram_order(np.bincount(train, minlength=V))] < 1.05 * min(losses.values())


def test_nothing_predicts_better_than_the_entropy_of_the_source() -> None:
    text = make_text(30_000)
    tokenizer = char_tokenizer([text])
    ids = np.array(tokenizer.encode(text))
    cut = len(ids) * 4 // 5
    dataset = TextDataset(ids[cut:], 100)
    found = named(yardsticks(Tokens([ids[:cut]]), dataset, tokenizer, tokenizer.vocab_size, seconds=5))
    entropy = len(text[cut:].split()) * math.log2(16) / len(text[cut:])  # words drawn from 16, each as likely
    assert entropy < found["n-gram"].bits_per_byte < found["xz"].bits_per_byte < 2 * entropy


def test_no_size_of_window_or_sample_gives_negative_or_absurd_numbers() -> None:
    for name, window, seconds in itertools.product(("char", "bpe"), (1, 17, 1000), (0.0, 0.01, 0.5)):
        for one in measured(name, seconds, window).values():
            assert one.bits_per_byte is not None and 0 <= one.bits_per_byte < 10
            assert one.loss is None or 0 <= one.loss < 10


def test_accuracies_are_those_of_equal_chances_and_of_always_naming_the_most_frequent_tokens() -> None:
    train, val = np.repeat([4, 2, 7, 1, 0, 5], [60, 50, 40, 30, 20, 10]), np.array([0, 4, 4, 2, 5, 9, 1, 7, 4])
    found = named(yardsticks(Tokens([train]), TextDataset(val, 4), None, 10, seconds=5))
    assert (found["uniform"].accuracy, found["uniform"].top5_accuracy) == (0.1, 0.5)
    # Targets: 4 4 2 5 9 1 7 4, of which 3 are the most frequent token, and all but 5 and 9 among the five.
    assert (found["unigram"].accuracy, found["unigram"].top5_accuracy) == (3 / 8, 6 / 8)
    small = named(yardsticks(Tokens([np.array([0, 1, 2])]), TextDataset(np.array([1, 2, 0]), 2), None, 3, seconds=5))
    assert (small["uniform"].top5_accuracy, small["unigram"].top5_accuracy) == (1, 1)
