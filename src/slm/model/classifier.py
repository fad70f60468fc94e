"""The same Transformer under a class head: which label a text has, judged anew after each of its tokens.

Shapes: B batch, T positions, D embed_dim, C labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slm.config import ModelConfig
from slm.model.kv_cache import KVCache
from slm.model.transformer import LanguageModel


class Classifier(LanguageModel):
    """Scores for each label at every position, of the text up to there: (B, T) token ids -> (B, T, C).

    The answer for a text is that at its last token; what fills a batch up behind it is never looked at. Since it maps
    tokens to logits as a language model does, the same loop trains it.
    """

    class_weights: Tensor | None

    def __init__(self, config: ModelConfig, num_labels: int, class_weights: Tensor | None = None) -> None:
        """class_weights (C,): what each label counts in the loss while it is trained, 1 on average over the texts."""
        super().__init__(config)
        del self.lm_head
        self.class_head = nn.Linear(2 * config.embed_dim, num_labels)
        nn.init.zeros_(self.class_head.weight)
        nn.init.zeros_(self.class_head.bias)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.token_dropout = 0.0  # share of the tokens that are replaced by random ones while training

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T) -> (B, T, C): logits from the mean and the maximum of the features of all tokens so far."""
        if self.training and self.token_dropout:
            others = torch.randint_like(tokens, self.config.vocab_size)
            tokens = torch.where(torch.rand(tokens.shape, device=tokens.device) < self.token_dropout, others, tokens)
        x = self.features(tokens, cache)  # (B, T, D)
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # sums need more digits than bf16 has
        counts = torch.arange(1, tokens.size(1) + 1, device=x.device)[:, None]
        so_far = torch.cat((x.cumsum(dim=1) / counts, running_max(x)), dim=-1)  # (B, T, 2D)
        logits: Tensor = self.class_head(so_far)
        return logits


def running_max(x: Tensor) -> Tensor:
    """The maximum of all positions so far: (B, T, D) -> (B, T, D)."""
    if x.device.type == "cpu":
        return x.cummax(dim=1).values
    return max_by_doubling(x)


def max_by_doubling(x: Tensor) -> Tensor:
    """`running_max` in the manner of Hillis and Steele 1986: (B, T, D) -> (B, T, D).

    Slower than torch.cummax; but the gradient of that one is added up in any order on a GPU, and no training is the
    same twice.
    """
    reach = 1
    while reach < x.size(1):  # each position knows the maximum of so many, itself included
        x = torch.cat((x[:, :reach], torch.maximum(x[:, reach:], x[:, :-reach])), dim=1)
        reach *= 2
    return x
