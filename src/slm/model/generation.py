"""Choosing the next token, and streaming one after the other.

Shapes: T prompt tokens, V vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from slm.config import UserError
from slm.model.kv_cache import KVCache
from slm.model.transformer import LanguageModel


def choose_next_token(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """A token id drawn from logits (V,): the likeliest at temperature 0, else one of the top_k likeliest.

    top_k None or above V means all. Drawn on the CPU, so that a seed gives the same text on every device.
    """
    logits = logits.cpu().double()
    if not logits.isfinite().all():
        raise UserError("the model's scores are no finite numbers: its training went wrong. Lower its learning_rate.")
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits, tokens = logits.topk(top_k)
    else:
        tokens = torch.arange(len(logits))
    # Less the largest: a tiny temperature must not make them infinite.
    probabilities = torch.softmax((logits - logits.max()) / temperature, dim=-1)
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


def stream_tokens(
    model: LanguageModel,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    seed: int | None = None,
) -> Iterator[int]:
    """The ids of new tokens, one by one, after a prompt (T,) of at least one token.

    seed None draws anew each time. Once max_seq_len positions are filled, the last half of them is read again as a
    new prompt, so that the text can go on for ever. Raises UserError where an argument makes no sense.
    """
    check_sampling(max_new_tokens, temperature, top_k, seed)
    if len(prompt) == 0:
        raise UserError("the prompt has no token: at least one is needed to predict from.")
    generator = torch.Generator()
    generator.manual_seed(seed) if seed is not None else generator.seed()
    return _stream(model, prompt.tolist(), max_new_tokens, temperature, top_k, generator)


@torch.inference_mode()
def _stream(
    model: LanguageModel,
    tokens: list[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> Iterator[int]:
    device = next(model.parameters()).device
    window = model.config.max_seq_len
    fresh = tokens = tokens[-window:]
    cache = KVCache(model.config.num_layers)
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            logits = model(torch.tensor([fresh], device=device), cache)[0, -1]  # (V,)
            token = choose_next_token(logits, temperature, top_k, generator)
            yield token
            tokens.append(token)
            fresh = [token]
            if cache.length() == window:
                fresh = tokens = tokens[-max(window // 2, 1) :]
                cache = KVCache(model.config.num_layers)
    finally:
        model.train(was_training)


def check_sampling(max_new_tokens: int, temperature: float, top_k: int | None, seed: int | None) -> None:
    """Raises UserError for a setting of generation that breaks its rule."""
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens = {max_new_tokens}: must be 0 or above.")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature = {temperature}: must be 0 (always the likeliest token) or above, and finite.")
    if seed is not None and not 0 <= seed < 2**63:
        raise UserError(f"seed = {seed}: must be 0 or above and fit in 63 bits.")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k = {top_k}: must be at least 1.")
