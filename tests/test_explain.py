"""Laws of looking inside: the numbers are those of the model itself, and hooks leave no trace."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, make_text
from models import every_combination, small_model, with_large_weights

import slm
from slm.config import ModelConfig
from slm.data.tokenizer import Tokenizer, byte_tokenizer, char_tokenizer, train_bpe
from slm.metrics.explain import MOST_TOKENS, MOST_WEIGHTS, Explanation, explain_tokens, most_tokens
from slm.metrics.pages.explanation import explanation_page
from slm.model import LanguageModel
from slm.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:only 12 steps", "ignore:the vocabulary of")
TOKENIZER = byte_tokenizer()
TOKENS = [3, 0, 20, 7, 0, 7, 11]


def explained(model: LanguageModel, tokens: list[int] = TOKENS) -> Explanation:
    return explain_tokens(model, tokens, TOKENIZER)


class PlainModel:
    """Attention weights of every layer from the weights of a model, in numpy and one head at a time."""

    def __init__(self, model: LanguageModel) -> None:
        self.config = model.config
        self.weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def linear(self, name: str, x: Any) -> Any:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Any) -> Any:
        if self.config.norm == "layernorm":
            x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.config.norm_eps)
        return x * self.weights[f"{name}.weight"] + self.weights.get(f"{name}.bias", 0.0)

    def rotated(self, x: Any) -> Any:
        """x (T, d): the pair of numbers i and i + d/2 turned as one complex number."""
        T, d = x.shape
        half = x[:, : d // 2] + 1j * x[:, d // 2 :]
        half = half * np.exp(1j * np.arange(T)[:, None] * self.config.rope_base ** (-np.arange(0, d, 2) / d))
        return np.concatenate((half.real, half.imag), axis=1)

    def mlp(self, name: str, x: Any) -> Any:
        up = self.linear(f"{name}.up_proj", x)
        if self.config.mlp == "swiglu":
            gate = self.linear(f"{name}.gate_proj", x)
            up = up * gate / (1 + np.exp(-gate))
        elif self.config.mlp == "relu2":
            up = np.maximum(up, 0) ** 2
        else:
            up = up * (1 + np.vectorize(math.erf)(up / math.sqrt(2))) / 2
        return self.linear(f"{name}.down_proj", up)

    def head(self, name: str, kind: str, x: Any, head: int) -> Any:
        """One head's queries or keys, (T, d)."""
        d = self.config.head_dim
        x = self.linear(f"{name}.{kind}_proj", x)[:, head * d : (head + 1) * d]
        x = self.norm(f"{name}.{kind}_norm", x) if self.config.qk_norm else x
        return self.rotated(x) if self.config.positions == "rope" else x

    def attention(self, tokens: list[int]) -> Any:
        """(L, H, T, T)."""
        config, ids = self.config, np.array(tokens)
        T, d = len(ids), config.head_dim
        document = np.cumsum(ids == config.document_start) if config.document_start is not None else np.zeros(T)
        seen = np.tril(np.ones((T, T), bool)) & (document[:, None] == document)
        x = self.weights["embedding.weight"][ids]
        x = self.norm("embedding_norm", x) if config.embedding_norm else x
        x = x + self.weights["positions.embedding.weight"][:T] if config.positions == "learned" else x
        every = np.zeros((config.num_layers, config.num_heads, T, T))
        for layer in range(config.num_layers):
            name, normed = f"blocks.{layer}.attention", self.norm(f"blocks.{layer}.attention_norm", x)
            values, gathered = self.linear(f"{name}.v_proj", normed), []
            for head in range(config.num_heads):
                shared = head // (config.num_heads // config.kv_heads)
                scores = self.head(name, "q", normed, head) @ self.head(name, "k", normed, shared).T / math.sqrt(d)
                shares = np.where(seen, np.exp(scores - scores.max()), 0)
                every[layer, head] = shares / shares.sum(axis=1, keepdims=True)
                gathered.append(every[layer, head] @ values[:, shared * d : (shared + 1) * d])
            x = x + self.linear(f"{name}.o_proj", np.concatenate(gathered, axis=1))
            x = x + self.mlp(f"blocks.{layer}.mlp", self.norm(f"blocks.{layer}.mlp_norm", x))
        return every


@every_combination
@pytest.mark.parametrize("document_start", [None, 0])
def test_attention_is_that_of_the_weights(options: dict[str, Any], document_start: int | None) -> None:
    model = small_model(**options, document_start=document_start, embedding_norm=options["qk_norm"])
    found = explained(model).attention
    assert found.shape == (2, 4, 7, 7)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, PlainModel(model).attention(TOKENS), atol=2e-4)


@every_combination
def test_shares_sum_to_one_and_the_future_has_none(options: dict[str, Any]) -> None:
    found = explained(small_model(**options)).attention
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
    assert (found[..., ~np.tril(np.ones((7, 7), bool))] == 0).all()
    assert (found >= 0).all()


def test_attention_stays_in_its_document() -> None:
    found = explained(small_model(document_start=0)).attention
    assert (found[:, :, 1:, 0] == 0).all()  # token 1 begins a document, and so does token 4
    assert (found[:, :, 4:, :4] == 0).all()
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


@every_combination
def test_the_lens_ends_with_what_the_model_says_exactly(options: dict[str, Any]) -> None:
    model = small_model(**options, tie_embeddings=options["qk_norm"])
    lens = explained(model).lens
    with torch.no_grad():
        said = model(torch.tensor([TOKENS]))[0].double().log_softmax(dim=-1).exp()
    best, ids = said.max(dim=-1)
    assert lens.ids[-1] == tuple(ids.tolist())
    assert (lens.probability[-1] == best.numpy()).all()
    assert (lens.true_probability[-1, :-1] == said[torch.arange(6), TOKENS[1:]].numpy()).all()
    assert np.isnan(lens.true_probability[:, -1]).all()
    assert lens.probability.shape == lens.true_probability.shape == (3, 7)


def test_the_lens_begins_with_the_embeddings_and_goes_through_the_layers() -> None:
    model = small_model(dropout=0.5)
    lens = explained(model).lens
    with torch.no_grad():
        x = model.positions(model.embedding(torch.tensor([TOKENS])), slice(0, 7))
        for layer in range(3):
            said = model.lm_head(model.norm(x))[0].softmax(dim=-1)
            np.testing.assert_allclose(lens.probability[layer], said.max(dim=-1).values, rtol=1e-4)
            x = model.blocks[layer](x, slice(0, 7), None) if layer < 2 else x


def test_probability_surprisal_and_rank_are_those_of_the_token_that_came() -> None:
    model = small_model()
    found = explained(model)
    with torch.no_grad():
        said = model(torch.tensor([TOKENS]))[0].double().softmax(dim=-1)
    assert (found.probability[0], found.surprisal[0], found.rank[0], found.alternatives[0]) == (None, None, None, ())
    pieces = list(map(piece_of, range(23)))
    for place, id in enumerate(TOKENS[1:], start=1):
        row = said[place - 1]
        assert found.probability[place] == pytest.approx(row[id].item())
        assert found.surprisal[place] == pytest.approx(-row[id].log().item())
        assert found.rank[place] == (row > row[id]).sum() + 1
        order = row.argsort(descending=True)[:5].tolist()
        assert [piece for piece, _ in found.alternatives[place]] == [pieces[id] for id in order]
        assert [value for _, value in found.alternatives[place]] == pytest.approx(row[order].tolist())
    assert [value for _, value in found.following] == pytest.approx(said[-1].topk(5).values.tolist())
    assert found.total == pytest.approx(sum(value for value in found.surprisal if value is not None))
    assert found.loss == pytest.approx(found.total / 6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.ids == tuple(TOKENS)


def piece_of(id: int) -> str:
    return "<|endoftext|>" if id == TOKENIZER.end_id else TOKENIZER.decode([id])


def hooks_of(model: LanguageModel) -> list[Any]:
    """What hangs on every module."""
    return [(dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()]


@pytest.mark.parametrize("fails_at", [None, "lm_head", "blocks.1.attention.rotate", "mask", "norm"])
def test_hooks_and_modes_are_as_before_also_after_an_error(fails_at: str | None) -> None:
    model = small_model(dropout=0.5)
    model.train()
    model.blocks[1].eval()
    model.norm.register_forward_hook(lambda module, args, x: None)  # somebody else's
    before = hooks_of(model), [module.training for module in model.modules()]
    if fails_at is None:
        explained(model)
    else:
        handle = model.get_submodule(fails_at).register_forward_pre_hook(lambda module, args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            explained(model)
        handle.remove()
    assert (hooks_of(model), [module.training for module in model.modules()]) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_plays_no_part_and_no_random_number_is_drawn() -> None:
    model = small_model(dropout=0.5)
    state = torch.get_rng_state()
    still = explained(model)
    moving = explained(model.train())
    assert still.surprisal == moving.surprisal
    assert (still.attention == moving.attention).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_weights_give_shares_that_sum_to_one() -> None:
    model = small_model(positions="rope", num_kv_heads=2, qk_norm=True)
    exact = explained(model)
    rough = explained(model.bfloat16())
    np.testing.assert_allclose(rough.attention.sum(axis=-1), 1, atol=1e-5)
    assert rough.attention.dtype == np.float32
    assert rough.loss == pytest.approx(exact.loss, rel=0.2)


def test_a_single_token_has_no_number_but_a_continuation() -> None:
    found = explained(small_model(), [5])
    assert (found.num_predicted, found.probability, found.total) == (0, (None,), 0)
    assert math.isnan(found.loss)
    assert len(found.following) == 5
    assert found.attention.tolist() == [[[[1.0]]] * 4] * 2
    assert "<h2>" in found._repr_html_()


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ({"max_seq_len": 300}, MOST_TOKENS),
        ({"max_seq_len": 255}, 255),
        ({"max_seq_len": 300, "num_layers": 5, "num_heads": 8, "embed_dim": 8}, 223),  # 40 x 223 x 223 = 1,989,160
    ],
)
def test_limits_hold_at_the_border(sizes: dict[str, int], most: int) -> None:
    config = ModelConfig(
        **({"vocab_size": 23, "embed_dim": 4, "num_heads": 1, "num_layers": 1, "hidden_dim": 4} | sizes)
    )
    assert most_tokens(config) == most
    assert config.num_layers * config.num_heads * most**2 <= MOST_WEIGHTS
    model = LanguageModel(config)
    assert len(explained(model, [1] * most).tokens) == most
    with pytest.raises(slm.UserError, match=rf"has {most + 1} tokens: must be at most {most} .* shorter text"):
        explained(model, [1] * (most + 1))
    with pytest.raises(slm.UserError, match="empty"):
        explained(model, [])


@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), train_bpe(["naïve 日本 the cat the cat"] * 9, 290)])
def test_pieces_are_the_text_and_half_characters_are_their_bytes(tokenizer: Tokenizer) -> None:
    model = with_large_weights(LanguageModel(ModelConfig(vocab_size=300, max_seq_len=64)))  # some more than its own
    text = "the cat 😀 naïve\n"
    found = explain_tokens(model, [0, *tokenizer.encode(text), 299], tokenizer, begins=True)
    assert found.tokens[0] == "<|endoftext|>"
    assert found.tokens[-1] == "<299>"
    told = "".join(found.tokens[1:-1])
    assert "<0xF0><0x9F><0x98><0x80>" in told  # of an emoji the tokenizer knows the bytes alone
    for character in "😀ï":
        told = told.replace("".join(f"<0x{byte:02X}>" for byte in character.encode()), character)
    assert told == text


def test_pieces_of_a_character_tokenizer_are_its_characters() -> None:
    tokenizer = char_tokenizer(["ab <é"])
    model = with_large_weights(LanguageModel(ModelConfig(vocab_size=tokenizer.vocab_size, max_seq_len=64)))
    assert explain_tokens(model, tokenizer.encode("é <az"), tokenizer).tokens == ("é", " ", "<", "a", "\ufffd")


@pytest.fixture(scope="module")
def one_text() -> Run:
    return slm.train([make_text(1000)], **SMALL)


@pytest.fixture(scope="module")
def many_texts() -> Run:
    return slm.train(make_text(2000).splitlines(), **SMALL)


def test_surprisals_add_up_to_the_loss_of_an_evaluation(one_text: Run, many_texts: Run) -> None:
    text = "the old dog"
    found, known = slm.explain(one_text, text), slm.evaluate(one_text, [text], with_yardsticks=False)
    assert found.begins is False
    assert found.num_predicted == known.num_tokens == len(text) - 1
    assert found.total == pytest.approx(known.loss.value * known.num_tokens, rel=1e-6)

    found = slm.explain(many_texts, text)
    assert found.begins is True
    assert found.num_predicted == len(text)
    assert many_texts.tokenizer is not None
    ids = torch.tensor([[many_texts.start_id, *many_texts.tokenizer.encode(text)]])
    with torch.no_grad():
        loss = slm.next_token_loss(many_texts.model(ids[:, :-1]), ids[:, 1:])
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)


def test_a_source_is_explained_with_the_target_that_the_model_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(word, word[::-1]) for word in make_text(600).split()]
    word, run = pairs[0][0], slm.train(pairs, task="pairs", **{**SMALL, "max_seq_len": 32, "max_steps": 250})
    found, target = slm.explain(run, word), run.complete(word)
    assert found.begins is True
    assert "".join(found.tokens) == f"<|endoftext|>{word}<|target|>{target}<|endoftext|>"
    assert run.tokenizer is not None
    tokens = run.tokenizer.encode(target)
    assert found.num_predicted == len(tokens) + 1 and found.num_given == len(word) + 2
    ids = torch.tensor([found.ids])
    with torch.no_grad():
        log_probabilities = run.model(ids)[0].log_softmax(dim=-1)
    for place, p in enumerate(found.probability):
        if place < found.num_given:
            assert p is None and found.surprisal[place] is None and found.rank[place] is None
            assert found.alternatives[place] == ()
        else:
            assert p == pytest.approx(log_probabilities[place - 1, found.ids[place]].exp().item(), rel=1e-5)
            assert len(found.alternatives[place]) > 1
    assert f"The first {found.num_given} tokens are the source" in explanation_page(found, "a title")
    # One that it never ended fills the window, and has no end.
    monkeypatch.setattr("slm.looking.complete", lambda run, source, max_new_tokens: ["e" * 100])
    assert slm.explain(run, word).tokens[-1] == "e"
    assert len(slm.explain(run, word).tokens) == run.model.config.max_seq_len
    with pytest.raises(slm.UserError, match="the text is empty: give a source"):
        slm.explain(run, " ")


def test_the_first_token_has_a_probability_where_texts_have_a_beginning(one_text: Run, many_texts: Run) -> None:
    assert slm.explain(one_text, "the").probability[0] is None
    found = slm.explain(many_texts, "the")
    assert found.tokens == ("<|endoftext|>", "t", "h", "e")
    assert found.probability[0] is None
    assert all(found.probability[1:])


def test_a_folder_and_a_file_are_explained_like_the_run(one_text: Run, tmp_path: Path) -> None:
    one_text.save(tmp_path / "run")
    expected = slm.explain(one_text, "the old dog")
    for place in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / "model.pt"):
        assert slm.explain(place, "the old dog").surprisal == expected.surprisal


def test_what_cannot_be_explained_is_refused(one_text: Run, many_texts: Run) -> None:
    with pytest.raises(slm.UserError, match="empty"):
        slm.explain(one_text, "")
    with pytest.raises(slm.UserError, match="must be a str"):
        slm.explain(one_text, 5)  # type: ignore[arg-type]
    with pytest.raises(slm.UserError, match="no tokenizer"):
        slm.explain(dataclasses.replace(one_text, tokenizer=None), "the")
    assert len(slm.explain(one_text, "t" * 16).tokens) == 16
    with pytest.raises(slm.UserError, match=r"17 tokens: must be at most 16 .* max_seq_len = 16"):
        slm.explain(one_text, "t" * 17)
    assert len(slm.explain(many_texts, "t" * 15).tokens) == 16
    with pytest.raises(slm.UserError, match="17 tokens with the one that begins a document: must be at most 16"):
        slm.explain(many_texts, "t" * 16)


def test_it_tells_itself_in_few_words(one_text: Run) -> None:
    found = slm.explain(one_text, "the old dog")
    assert repr(found) == (
        f"<slm.Explanation: 10 predicted tokens, loss {found.loss:.4f}, perplexity {found.perplexity:.2f}>"
    )


@pytest.mark.filterwarnings("ignore:only 1 step")
def test_what_is_no_run_or_tells_labels_is_not_explained(many_texts: Run, one_text: Run) -> None:
    with pytest.raises(slm.UserError, match=r"5 is no run: give a slm\.Run, or the folder or URL of one"):
        slm.explain(5, "the")  # type: ignore[arg-type]
    labelled = [(text, text[0]) for text in make_text(600).splitlines()[:60] * 2]
    labels = slm.train(labelled, task="classification", **{**SMALL, "max_seq_len": 64, "max_steps": 1})
    with pytest.raises(slm.UserError, match="this model tells labels, and expects no next token"):
        slm.explain(labels, "the")
    with pytest.raises(slm.UserError, match="the text has one token, and nothing stands before it"):
        slm.explain(one_text, "t")
    assert slm.explain(many_texts, "t").num_predicted == 1
