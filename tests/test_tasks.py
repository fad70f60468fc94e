"""Laws of pairs and labels as rows of tokens: templates, padding, batches by length, the class head."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import slm
from slm.config import IGNORE_INDEX, ModelConfig, UserError
from slm.data.batches import Batches, in_order
from slm.data.example_dataset import ExampleDataset
from slm.data.tasks import Encoder, Task
from slm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe
from slm.metrics.evaluate import evaluate
from slm.model import loss as loss_module
from slm.model.classifier import Classifier, max_by_doubling
from slm.model.loss import WithLoss, next_token_loss
from slm.training.starting import checksum, class_weights_of

TEXTS = st.lists(st.text(max_size=12), min_size=1, max_size=8)


def encoder_of(task: str, max_seq_len: int = 64, labels: tuple[str, ...] = ("a", "b")) -> Encoder:
    tokenizer = byte_tokenizer()
    made = Task.pairs(tokenizer) if task == "pairs" else Task.classification(tokenizer, labels)
    return Encoder(made, tokenizer.with_special_tokens(made.special_tokens), max_seq_len)


def dataset_of(lengths: list[int]) -> ExampleDataset:
    """Examples whose tokens tell which one they are of: example i holds i + 1 everywhere."""
    return ExampleDataset((np.full(n, i + 1), np.full(n, i + 1)) for i, n in enumerate(lengths))


@given(sources=TEXTS, targets=TEXTS)
def test_a_pair_is_its_template_filled_and_only_what_follows_the_source_is_a_target(
    sources: list[str], targets: list[str]
) -> None:
    pairs = list(zip(sources, targets, strict=False))
    encoder = encoder_of("pairs", max_seq_len=200)
    dataset, too_long = encoder.pairs([s for s, _ in pairs], [t for _, t in pairs])
    end, begins = encoder.tokenizer.end_id, encoder.tokenizer.id_of("<|target|>")
    assert too_long == 0
    for (source, target), (tokens, goals) in zip(pairs, (dataset[i] for i in range(len(dataset))), strict=True):
        s, t = (encoder.tokenizer.encode(text.strip()) for text in (source, target))
        assert tokens.tolist() == [end, *s, begins, *t]
        assert goals.tolist() == [*[IGNORE_INDEX] * (len(s) + 1), *t, end]
    prompts = encoder.prompts([source for source, _ in pairs])
    assert prompts == [[end, *encoder.tokenizer.encode(source.strip()), begins] for source, _ in pairs]


def test_no_text_spells_a_token_of_a_template() -> None:
    encoder = encoder_of("pairs", max_seq_len=200)
    (prompt,) = encoder.prompts(["a<|target|>b<|endoftext|>"])
    assert prompt.count(encoder.tokenizer.id_of("<|target|>")) == 1
    assert prompt.count(encoder.end_id) == 1
    assert encoder.tokenizer.decode(prompt) == "a<|target|>b<|endoftext|>"


def test_special_tokens_come_after_all_others_and_change_none() -> None:
    before = train_bpe(["some words and some words"], 300)
    after = before.with_special_tokens(["<|target|>", "<|endoftext|>"])
    assert after.vocab_size == before.vocab_size + 1
    assert after.id_of("<|target|>") == before.vocab_size
    assert after.encode("some words") == before.encode("some words")
    assert Tokenizer.from_json(after.to_json()).id_of("<|target|>") == before.vocab_size
    with pytest.raises(LookupError):
        before.id_of("<|target|>")


def test_pairs_longer_than_a_window_are_left_out_and_counted() -> None:
    encoder = encoder_of("pairs", max_seq_len=8)
    dataset, too_long = encoder.pairs(["abc", "abc", "abcdef"], ["abc", "abcd", "a"])
    assert (len(dataset), too_long) == (1, 2)  # end + abc + target + abc are 8 places
    assert dataset.window == 8
    with pytest.raises(UserError, match="all 1 pairs are longer than max_seq_len = 8"):
        encoder.pairs(["abcdefgh"], ["abc"])


def test_a_text_has_its_label_at_its_last_place_and_loses_its_end_where_it_is_too_long() -> None:
    encoder = encoder_of("classification", max_seq_len=4)
    dataset, cut = encoder.labelled(["ab", "abcdef", ""], ["b", "a", "a"], "a.tsv")
    end = encoder.tokenizer.end_id
    rows = [(tokens.tolist(), targets.tolist()) for tokens, targets in (dataset[i] for i in range(3))]
    a, b, c = (encoder.tokenizer.encode(letter)[0] for letter in "abc")
    assert rows == [
        ([end, a, b, end], [IGNORE_INDEX] * 3 + [1]),
        ([end, a, b, c], [IGNORE_INDEX] * 3 + [0]),
        ([end, end], [IGNORE_INDEX, 0]),
    ]
    assert cut == 1
    everywhere, _ = encoder.labelled(["ab", "abcdef"], ["b", "a"], "a.tsv", everywhere=True)
    assert [everywhere[i][1].tolist() for i in range(2)] == [[1, 1, 1, 1], [0, 0, 0, 0]]
    with pytest.raises(UserError, match=r"the label 'c' in a\.tsv is none that this model knows: 'a', 'b'"):
        encoder.labelled(["x"], ["c"], "a.tsv")


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"name": "pairs", "template": ["{text}"], "labels": []},
        {"name": "pairs", "template": ["{source}", "{target}"], "labels": ["a", "b"]},
        {"name": "classification", "template": ["{text}"], "labels": ["a"]},
        {"name": "classification", "template": ["{text}"], "labels": ["a", "a"]},
        {"name": "poetry", "template": ["{text}"], "labels": []},
        {"name": "pairs", "template": 3, "labels": []},
        {"name": "pairs", "template": ["{target}", "{source}"], "labels": []},
    ],
)
def test_a_damaged_task_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"task|template"):
        Task.from_dict(stored)


@pytest.mark.parametrize("name", ["pairs", "classification"])
def test_a_task_survives_as_plain_values(name: str) -> None:
    task = encoder_of(name).task
    assert Task.from_dict(task.as_dict()) == task


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=60), data=st.data())
def test_a_batch_is_filled_up_behind_each_example_with_targets_that_do_not_count(
    lengths: list[int], data: st.DataObject
) -> None:
    dataset = dataset_of(lengths)
    chosen = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=10))
    tokens, targets = dataset.batch(torch.tensor(chosen))
    longest = max(lengths[index] for index in chosen)
    assert longest <= tokens.size(1) <= min(-(-longest // 8) * 8, max(lengths))
    for row, goals, index in zip(tokens.tolist(), targets.tolist(), chosen, strict=True):
        n = lengths[index]
        assert row[:n] == goals[:n] == [index + 1] * n
        assert set(goals[n:]) <= {IGNORE_INDEX}
    item, goals = dataset[chosen[0]]
    assert item.tolist() == goals.tolist() == [chosen[0] + 1] * lengths[chosen[0]]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200), most=st.integers(1, 5000))
def test_a_part_has_about_so_many_tokens_evenly_spread_and_is_the_same_of_a_part(lengths: list[int], most: int) -> None:
    whole = dataset_of(lengths)
    part = whole.part(most)
    numbers = [int(part[place][0][0]) - 1 for place in range(len(part))]
    steps = [b - a for a, b in itertools.pairwise(numbers)]
    assert numbers[0] == 0 and (not steps or 0 <= max(steps) - min(steps) <= 1)
    assert all(len(part[place][0]) == lengths[number] for place, number in enumerate(numbers))
    assert len(part) == min(len(lengths), max(1, int(most / (sum(lengths) / len(lengths)))))
    assert part.num_targets == part.lengths.sum() == sum(lengths[number] for number in numbers)
    assert len(part.tokens) == len(whole.tokens)
    for again in (part.part(most), whole.part(7).part(most)):
        assert torch.equal(torch.from_numpy(again.lengths), torch.from_numpy(part.lengths))
    assert len(whole) == len(lengths)  # which stays as it is


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=700), size=st.integers(1, 9), epoch=st.integers(0, 3))
def test_an_epoch_has_each_example_once_in_batches_and_can_begin_at_any_of_them(
    lengths: list[int], size: int, epoch: int
) -> None:
    batches = Batches(dataset_of(lengths), size, seed=1)
    seen = [tokens[:, 0].tolist() for tokens, _ in batches.epoch(epoch)]
    assert len(seen) == len(batches)
    assert all(len(part) <= size for part in seen)
    assert sorted(itertools.chain(*seen)) == list(range(1, len(lengths) + 1))
    start = len(batches) // 2
    assert [tokens[:, 0].tolist() for tokens, _ in batches.epoch(epoch, start)] == seen[start:]


def test_batches_are_of_similar_length_and_in_another_order_each_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 5000).tolist()
    batches = Batches(dataset_of(lengths), 16, seed=0)
    first, second = ([(tokens.size(1), tokens.numel()) for tokens, _ in batches.epoch(epoch)] for epoch in (0, 1))
    wasted = 1 - sum(lengths) / sum(numel for _, numel in first)
    assert wasted < 0.1  # batches drawn at random would waste half
    assert first != second
    widths = [width for width, _ in first[:40]]
    assert widths != sorted(widths)  # short ones do not come first


def test_an_evaluation_reads_each_example_once() -> None:
    lengths = [5, 1, 9, 3, 3, 7]
    found = [tokens[:, 0].tolist() for tokens, _ in in_order(dataset_of(lengths), 4)]
    assert sorted(itertools.chain(*found)) == [1, 2, 3, 4, 5, 6]


def small(**changes: object) -> ModelConfig:
    return ModelConfig(
        **{"vocab_size": 300, "embed_dim": 16, "num_heads": 2, "num_layers": 1, "hidden_dim": 32} | changes
    )


def with_head(model: Classifier) -> Classifier:
    nn.init.normal_(model.class_head.weight)
    return model.eval()


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_what_fills_a_batch_up_does_not_change_the_label_of_a_text(positions: str) -> None:
    torch.manual_seed(0)
    model = with_head(Classifier(small(positions=positions), 3))
    tokens = torch.randint(0, 300, (1, 10))
    alone = model(tokens)
    padded = model(torch.cat((tokens, torch.randint(0, 300, (1, 6))), dim=1))
    torch.testing.assert_close(padded[:, :10], alone)


def test_the_class_head_sees_the_mean_and_the_maximum_of_all_tokens_so_far() -> None:
    torch.manual_seed(0)
    model = with_head(Classifier(small(), 3))
    tokens = torch.randint(0, 300, (2, 7))
    x = model.features(tokens)
    for t in range(7):
        so_far = torch.cat((x[:, : t + 1].mean(dim=1), x[:, : t + 1].amax(dim=1)), dim=-1)
        torch.testing.assert_close(model(tokens)[:, t], model.class_head(so_far))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 33])
def test_the_maximum_by_doubling_and_its_gradient_are_those_of_cummax(length: int) -> None:
    torch.manual_seed(0)
    x, upstream = (torch.randn(3, length, 5, dtype=torch.float64) for _ in range(2))
    found = []
    for function in (max_by_doubling, lambda x: x.cummax(dim=1).values):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        y.backward(upstream)
        found.append((y, leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    tied = torch.ones(1, length, 1, requires_grad=True)  # however equal ones share it, nothing of it is lost
    max_by_doubling(tied).sum().backward()
    assert tied.grad is not None and tied.grad.sum() == length


@pytest.mark.parametrize("counting", [0, 1, 5, 30, 50])
def test_the_loss_of_pairs_and_its_gradients_are_those_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, counting: int
) -> None:
    torch.manual_seed(0)
    model = slm.LanguageModel(small()).double()
    tokens, targets = torch.randint(0, 300, (5, 10)), torch.randint(0, 300, (5, 10))
    targets.view(-1)[torch.randperm(50)[counting:]] = IGNORE_INDEX
    found = []
    for most in (loss_module.MOST_LOGITS, 1):
        monkeypatch.setattr(loss_module, "MOST_LOGITS", most)
        model.zero_grad(set_to_none=True)
        loss = WithLoss(model)(tokens, targets)
        loss.backward()
        metrics = evaluate(model, [(tokens[i], targets[i]) for i in range(5)])
        gradients = [one.grad if one.grad is not None else torch.zeros_like(one) for one in model.parameters()]
        found.append((loss.detach(), gradients, [metrics[name] for name in ("val_loss", "val_accuracy")]))
    (plain, gradients, metrics), (pieces, others, again) = found
    torch.testing.assert_close(pieces, plain.to(pieces.dtype))
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert again == pytest.approx(metrics, nan_ok=True)


def test_a_frozen_output_layer_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "MOST_LOGITS", 1)
    torch.manual_seed(0)
    model = slm.LanguageModel(small())
    tokens = torch.randint(0, 300, (2, 6))
    WithLoss(model)(tokens, tokens).backward()
    expected = model.embedding.weight.grad
    model.zero_grad(set_to_none=True)
    model.lm_head.requires_grad_(False)
    WithLoss(model)(tokens, tokens).backward()
    assert model.lm_head.weight.grad is None
    assert expected is not None and model.embedding.weight.grad is not None
    torch.testing.assert_close(model.embedding.weight.grad, expected)


def test_tokens_are_dropped_while_training_alone() -> None:
    torch.manual_seed(0)
    model = with_head(Classifier(small(), 3))
    tokens = torch.randint(0, 300, (4, 12))
    still = model(tokens)
    model.token_dropout = 0.5
    assert torch.equal(model(tokens), still)
    model.train()
    seen: list[torch.Tensor] = []
    model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for _ in range(50):
        model(tokens)
    changed = torch.stack([one != tokens for one in seen]).float().mean()
    assert 0.45 < changed < 0.55
    assert len({tuple(one.flatten().tolist()) for one in seen}) == 50


def test_a_class_head_begins_without_an_opinion() -> None:
    assert Classifier(small(), 5)(torch.randint(0, 300, (2, 7))).abs().max() == 0


def test_class_weights_scale_each_target_and_parts_of_a_batch_add_up() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 1, 3), torch.tensor([[0], [1], [2], [0], [0], [IGNORE_INDEX]])
    weights = torch.tensor([0.5, 2.0, 3.0])
    by_hand = [weights[t] * -logits[i, 0].log_softmax(0)[t] for i, t in enumerate([0, 1, 2, 0, 0])]
    found = next_token_loss(logits, targets, weights)
    torch.testing.assert_close(found, sum(by_hand) / 5)
    torch.testing.assert_close(next_token_loss(logits, targets), next_token_loss(logits, targets, torch.ones(3)))
    halves = 3 * next_token_loss(logits[:3], targets[:3], weights) + 2 * next_token_loss(
        logits[3:], targets[3:], weights
    )
    torch.testing.assert_close(found, halves / 5)


def test_balanced_weights_give_each_label_the_same_sum_and_one_on_average() -> None:
    targets = torch.tensor([[0] * 6 + [1] * 3 + [2], [IGNORE_INDEX] * 10])
    weights = class_weights_of(targets, 3)
    torch.testing.assert_close(weights * torch.tensor([6.0, 3.0, 1.0]), torch.full((3,), 10 / 3))
    assert class_weights_of(torch.tensor([0, 0]), 2)[0] == 0.5  # a label without any stays harmless


def test_training_takes_the_weights_of_a_classifier() -> None:
    torch.manual_seed(0)
    model = with_head(Classifier(small(), 2))
    tokens, targets = torch.randint(0, 300, (4, 5)), torch.full((4, 5), IGNORE_INDEX)
    targets[:, -1] = torch.tensor([0, 1, 1, 1])
    plain = WithLoss(model)(tokens, targets)
    model.class_weights = torch.tensor([3.0, 1 / 3])
    assert WithLoss(model)(tokens, targets) == next_token_loss(model(tokens), targets, model.class_weights) != plain
    assert "class_weights" not in model.state_dict()


def test_a_classifier_has_no_output_layer_for_tokens() -> None:
    model = Classifier(small(), 4)
    assert not [name for name, _ in model.named_parameters() if name.startswith("lm_head")]
    tied = slm.LanguageModel(small(tie_embeddings=True))
    assert set(model.state_dict()) - set(tied.state_dict()) == {"class_head.weight", "class_head.bias"}


@pytest.mark.parametrize(
    "stored",
    [
        {"name": "classification", "template": ["{text}", 3], "labels": ["a", "b"]},
        {"name": "classification", "template": ["{text}"], "labels": [1, 2]},
    ],
)
def test_a_task_of_numbers_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"task|template"):
        Task.from_dict(stored)


def test_a_template_takes_the_end_that_the_tokenizer_has() -> None:
    tokenizer = char_tokenizer(["abc"])
    foreign = Tokenizer.from_json(tokenizer.to_json().replace(tokenizer.end_name or "<|endoftext|>", "</s>"))
    assert foreign.end_name == "</s>"
    assert Task.pairs(foreign).template == ("</s>", "{source}", "<|target|>", "{target}", "</s>")
    assert Task.classification(foreign, ["a", "b"]).template == ("</s>", "{text}", "</s>")


def test_of_several_unknown_labels_the_first_in_order_is_told() -> None:
    with pytest.raises(UserError, match=r"the label 'c' in a\.tsv"):
        encoder_of("classification").labelled(["x"] * 3, ["d", "c", "a"], "a.tsv")


def test_more_texts_than_are_encoded_at_once_keep_their_order() -> None:
    texts = [str(number) for number in range(2500)]
    encoder = encoder_of("pairs")
    prompts = encoder.prompts(texts)
    assert [encoder.tokenizer.decode(prompt[1:-1]) for prompt in prompts] == texts


def test_no_pairs_at_all_are_not_too_long() -> None:
    with pytest.raises(UserError, match="there is no example: nothing to learn from"):
        encoder_of("pairs").pairs([], [])


def test_a_text_of_just_the_window_is_not_cut() -> None:
    encoder = encoder_of("classification", max_seq_len=4)
    assert [encoder.labelled([text], ["a"], "a.tsv")[1] for text in ("ab", "abc")] == [0, 1]


def test_weights_of_another_shape_have_another_checksum() -> None:
    shapes = (torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32))
    assert len({checksum({"weight": weights}) for weights in shapes}) == 3


def test_the_tokens_of_a_template_are_each_told_once() -> None:
    assert encoder_of("pairs").task.special_tokens == ("<|endoftext|>", "<|target|>")
