"""What a model made of a text: how likely it held each token, where it looked, and what each layer would have said.

Shapes: L layers, H query heads, K key heads, d head_dim, T positions, D embed_dim, V vocab_size.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import decoders, pre_tokenizers
from torch import Tensor, nn

from slm.config import ModelConfig, UserError
from slm.data.tokenizer import Tokenizer
from slm.model.transformer import Attention, LanguageModel, causal_mask

Floats = NDArray[np.float64]
Piece = tuple[str, float]  # the text of a token and its probability

MOST_TOKENS = 256
MOST_WEIGHTS = 2_000_000  # of attention in all layers and heads, so that a page stays below 3 MB
_NUM_ALTERNATIVES = 5


@dataclass(frozen=True, eq=False)
class Lens:
    """What each layer would have said next, had it been the last: row 0 is the embeddings, row L what the model says.

    Rows are L + 1, columns the T positions: column t is about the token after position t (nostalgebraist 2020).
    """

    tokens: tuple[tuple[str, ...], ...]  # the likeliest next token
    ids: tuple[tuple[int, ...], ...]
    probability: Floats  # (L+1, T), of that token
    true_probability: Floats  # (L+1, T), of the token that does come next; not a number for the last position


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The numbers of a text of T tokens, token by token; those of the first one are None, for nothing stands before it.

    Where a model begins each document with a token of its own, that is the first one. Of a pair the source has none
    either: no model learned to expect it.
    """

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    begins: bool  # the first token is the one that begins a document, and none of the text
    probability: tuple[float | None, ...]  # that the model gave the token before it saw it
    surprisal: tuple[float | None, ...]  # -ln of that, in nats
    rank: tuple[int | None, ...]  # 1: it was the likeliest
    alternatives: tuple[tuple[Piece, ...], ...]  # the likeliest tokens in its place
    following: tuple[Piece, ...]  # the likeliest tokens after the last one
    attention: NDArray[np.float32]  # (L, H, T, T): how much query t looks at key s; each row sums to 1
    lens: Lens

    @property
    def total(self) -> float:
        """The surprisal of the whole text, in nats."""
        return math.fsum(value for value in self.surprisal if value is not None)

    @property
    def num_given(self) -> int:
        """How many tokens, the first ones, have no probability."""
        return sum(value is None for value in self.probability)

    @property
    def num_predicted(self) -> int:
        """How many tokens have a probability."""
        return len(self.tokens) - self.num_given

    @property
    def loss(self) -> float:
        """The mean surprisal, nats per token: what training makes small. Not a number for a single token."""
        return self.total / self.num_predicted if self.num_predicted else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss): the model was as unsure as if it had to choose among so many tokens that are equally likely."""
        return math.exp(min(self.loss, 700.0))

    def __repr__(self) -> str:
        told = f"loss {self.loss:.4f}, perplexity {self.perplexity:.2f}"
        return f"<slm.Explanation: {self.num_predicted:,} predicted tokens, {told}>"

    def __str__(self) -> str:
        from slm.metrics.pages.explanation import plain_table

        return plain_table(self)

    def _repr_html_(self) -> str:
        """The page for a notebook's cell, without its script."""
        from slm.metrics.pages.explanation import explanation_fragment

        return explanation_fragment(self)


def most_tokens(config: ModelConfig) -> int:
    """The most tokens that a text may have for `explain_tokens`, the one that begins it included."""
    by_weights = math.isqrt(MOST_WEIGHTS // (config.num_layers * config.num_heads))
    return min(MOST_TOKENS, config.max_seq_len, by_weights)


@torch.no_grad()
def explain_tokens(
    model: LanguageModel, tokens: Sequence[int], tokenizer: Tokenizer, *, begins: bool = False, given: int = 1
) -> Explanation:
    """What the model made of token ids. begins: the first one begins a document, and is none of the text.

    given: so many at the beginning were not to be expected, and get no numbers, as the first one never does.
    A text has at most 256 tokens, at most max_seq_len, and few enough that attention has 2,000,000 weights in all
    layers and heads. The model runs once, as it is, and hooks listen; it is left in the mode it was in. Raises
    UserError for no token, and for more than it allows.
    """
    _check(model.config, tokens, begins)
    heard = _Heard()
    batch = torch.tensor([list(tokens)], device=next(model.parameters()).device)  # (1, T)
    with _evaluating(model), heard.listening(model):
        logits = model(batch)
    log_probabilities = _log_softmax(logits)  # (T, V)
    targets = batch[0, 1:].cpu()
    truth = log_probabilities[:-1].gather(1, targets[:, None])  # (T-1, 1)
    ranks = 1 + (log_probabilities[:-1] > truth).sum(dim=1)
    likeliest = log_probabilities.topk(min(_NUM_ALTERNATIVES, log_probabilities.size(1)), dim=1)
    text_of = _Pieces(tokenizer)
    best = tuple(
        tuple((text_of(id), math.exp(value)) for id, value in zip(ids, values, strict=True))
        for ids, values in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    )
    return Explanation(
        tokens=tuple(map(text_of, tokens)),
        ids=tuple(tokens),
        begins=begins,
        probability=(*[None] * given, *truth[given - 1 :, 0].exp().tolist()),
        surprisal=(*[None] * given, *(-truth[given - 1 :, 0]).tolist()),
        rank=(*[None] * given, *ranks[given - 1 :].tolist()),
        alternatives=(*[()] * given, *best[given - 1 : -1]),
        following=best[-1],
        attention=np.stack([_weights(q, k, heard.mask) for q, k in heard.queries_and_keys()]),
        lens=_lens(model, heard.streams, targets, text_of),
    )


def _check(config: ModelConfig, tokens: Sequence[int], begins: bool) -> None:
    if len(tokens) == 0:
        raise UserError("the text is empty: give one of at least one token.")
    most = most_tokens(config)
    if len(tokens) > most:
        with_start = " with the one that begins a document" if begins else ""
        raise UserError(
            f"the text has {len(tokens):,} tokens{with_start}: must be at most {most:,} for this model, which has "
            f"max_seq_len = {config.max_seq_len:,} and {config.num_layers:,} layers of {config.num_heads:,} heads (at "
            f"most {MOST_TOKENS} tokens, and layers x heads x tokens x tokens at most {MOST_WEIGHTS:,}). Give a "
            "shorter text, or explain it part by part."
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """A context without dropout; afterwards each module is in its mode of before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Heard:
    """What hooks hear while a model runs: the mask, queries and keys of each layer, and what passes between layers."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.rotated: list[Tensor] = []  # queries (1, T, H, d) and keys (1, T, K, d) of each layer in turn
        self.streams: list[Tensor] = []  # (1, T, D) before the first layer and after each

    @contextmanager
    def listening(self, model: LanguageModel) -> Iterator[None]:
        """A context with hooks in the model; they are gone after it, also after an error."""
        with ExitStack() as stack:

            def hook(handle: torch.utils.hooks.RemovableHandle) -> None:
                stack.callback(handle.remove)

            hook(model.mask.register_forward_hook(lambda module, args, mask: setattr(self, "mask", mask)))
            hook(model.blocks[0].register_forward_pre_hook(lambda module, args: self.streams.append(args[0])))
            for block in model.blocks:
                hook(block.register_forward_hook(lambda module, args, x: self.streams.append(x)))
                assert isinstance(block.attention, Attention)
                hook(block.attention.rotate.register_forward_hook(lambda module, args, x: self.rotated.append(x)))
            yield

    def queries_and_keys(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(1, T, H, d) and (1, T, K, d) of each layer."""
        return zip(self.rotated[::2], self.rotated[1::2], strict=True)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> NDArray[np.float32]:
    """softmax(q k^T / sqrt(d)) (Vaswani et al. 2017, equation 1): (H, T, T), computed in fp32.

    mask: True where a query may look at a key; None means itself and all before it.
    """
    q, k = (heads[0].transpose(0, 1).float().cpu() for heads in (q, k))  # (H or K, T, d)
    k = k.repeat_interleave(q.size(0) // k.size(0), dim=0)  # (H, T, d)
    allowed = causal_mask(torch.arange(q.size(1)), q.size(1)) if mask is None else mask.cpu().view(mask.shape[-2:])
    scores = (q @ k.mT / math.sqrt(q.size(2))).masked_fill(~allowed, -math.inf)
    weights: NDArray[np.float32] = scores.softmax(dim=-1).numpy()
    return weights


def _log_softmax(logits: Tensor) -> Tensor:
    """(1, T, V) -> (T, V) in fp64, which not every device has."""
    return logits[0].cpu().double().log_softmax(dim=-1)


def _lens(model: LanguageModel, streams: list[Tensor], targets: Tensor, text_of: _Pieces) -> Lens:
    """What the model's norm and output layer make of x before and after each layer. targets: (T-1,)."""
    best, best_ids, of_truth = [], [], []
    for x in streams:
        log_probabilities = _log_softmax(model.lm_head(model.norm(x)))  # (T, V)
        value, ids = log_probabilities.max(dim=1)
        truth = log_probabilities[:-1].gather(1, targets[:, None])[:, 0].exp()
        best.append(value.exp().numpy())
        best_ids.append(tuple(ids.tolist()))
        of_truth.append(np.append(truth.numpy(), math.nan))
    tokens = tuple(tuple(map(text_of, ids)) for ids in best_ids)
    return Lens(tokens, tuple(best_ids), np.stack(best), np.stack(of_truth))


class _Pieces:
    """From ids to the text of each; a byte that is no whole character by itself becomes <0xE2>."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes: dict[str, int] = {}  # what a byte-level token spells each byte as
        if isinstance(tokenizer.backend.decoder, decoders.ByteLevel):
            self._bytes = _byte_alphabet()
        self._special = {id: token.content for id, token in tokenizer.backend.get_added_tokens_decoder().items()}
        # Many decoders drop the space before a text's first token, so each is read behind another one.
        self._first = [] if self._bytes else tokenizer.encode("a")[:1]
        self._known: dict[int, str] = {}

    def __call__(self, id: int) -> str:
        if id not in self._known:
            self._known[id] = self._text(id)
        return self._known[id]

    def _text(self, id: int) -> str:
        name = self._special.get(id) or self._tokenizer.backend.id_to_token(id)
        if name is None:  # a model may have more rows than its tokenizer has tokens
            return f"<{id}>"
        if id in self._special:
            return str(name)
        if self._bytes and all(letter in self._bytes for letter in name):
            text = bytes(self._bytes[letter] for letter in name).decode("utf-8", "surrogateescape")
            return re.sub("[\udc80-\udcff]", lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", text)
        before = self._tokenizer.decode(self._first)
        text = self._tokenizer.decode([*self._first, id])
        return (text.removeprefix(before) if text.startswith(before) else self._tokenizer.decode([id])) or str(name)


def _byte_alphabet() -> dict[str, int]:
    """The letter of each byte in byte-level tokens: itself where it can be printed, else one from 256 on (GPT-2)."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    printed = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    return printed | dict(zip(map(chr, itertools.count(256)), others, strict=False))
