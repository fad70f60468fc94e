"""A decoder-only Transformer language model: the whole model on one page.

Shapes: B batch, T positions, S positions with the cached ones, D embed_dim, H query heads, K key and value heads,
d head_dim, V vocab_size. `x` is the residual stream, (B, T, D): every layer reads it and adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config import ModelConfig
from slm.model.functions import attend, relu2, rotate
from slm.model.kv_cache import KVCache


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """A normalisation over the last `size` numbers: LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019)."""
    if config.norm == "rmsnorm":
        return RMSNorm(size, eps=config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps, bias=config.bias)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in the precision of its weight where autocast brings half-precision input."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size), of the input's type."""
        return super().forward(x.to(self.weight.dtype)).type_as(x)


class LearnedPositions(nn.Module):
    """Adds a learned vector for each position (Gehring et al. 2017; GPT-2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.max_seq_len, config.embed_dim)

    def forward(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """x (B, T, D) plus the vectors of its positions: a slice of T, or (B, T)."""
        return x + self.embedding.weight[positions]


class NoPositions(nn.Module):
    """Adds nothing: with rotary positions, attention itself knows the order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        return x


class Rotation(nn.Module):
    """Rotates queries and keys by an angle that grows with their position (Su et al. 2021, RoPE, equation 34).

    Number i of a head is paired with number i + d/2, as Llama's published weights are. The product of a rotated
    query and key then depends only on the distance between their positions.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        frequencies = config.rope_base ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)  # (d/2,)
        angles = torch.outer(torch.arange(config.max_seq_len), frequencies)
        # Derived from the configuration, hence not part of a saved model.
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", torch.cat((cos, cos), dim=1)[:, None], persistent=False)  # (max_seq_len, 1, d)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=1)[:, None], persistent=False)

    def forward(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """x (B, T, heads, d), each of its positions, a slice of T or (B, T), rotated by its own angle."""
        return rotate(x, self.cos[positions], self.sin[positions])


class NoRotation(nn.Module):
    """Leaves queries and keys as they are: learned positions were added to the embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        return x


POSITIONS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "learned": (LearnedPositions, NoRotation),
    "rope": (NoPositions, Rotation),
}


def causal_mask(positions: Tensor, S: int) -> Tensor:
    """(..., T, S), True where a query at one of the positions (..., T) may look at key s."""
    return torch.arange(S, device=positions.device) <= positions[..., None]


class CausalMask(nn.Module):
    """Lets every position look at itself and all before it."""

    def forward(self, tokens: Tensor, positions: slice | Tensor, cache: KVCache | None = None) -> Tensor | None:
        """True where query t may look at key s: (T, S), or (B, 1, T, S) where the rows have positions of their own.

        None where that needs no mask: from the first position on is_causal=True is faster, and one query sees all.
        """
        if not isinstance(positions, slice):
            assert cache is not None
            return causal_mask(positions, cache.length())[:, None]
        start, end = positions.start, positions.stop
        if start == 0 or tokens.size(1) == 1:
            return None
        return causal_mask(torch.arange(start, end, device=tokens.device), end)


class DocumentMask(nn.Module):
    """Lets every position look at itself and those before it in its own document, which document_start begins."""

    def __init__(self, document_start: int) -> None:
        super().__init__()
        self.document_start = document_start

    def forward(self, tokens: Tensor, positions: slice | Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, 1, T, S), True where query t may look at key s, the same for every head."""
        begins = tokens == self.document_start  # (B, T)
        if cache:
            begins = cache.append_begins(begins, positions)  # (B, S)
        B, S = begins.shape
        if isinstance(positions, slice):
            positions = torch.arange(positions.start, positions.stop, device=tokens.device).expand(B, -1)
        documents = begins.cumsum(dim=1)  # (B, S), which document each position belongs to
        same = documents.gather(1, positions)[..., None] == documents[:, None]  # (B, T, S)
        return (same & causal_mask(positions, S))[:, None]


class Attention(nn.Module):
    """Causal self-attention (Vaswani et al. 2017, section 3.2), with K <= H key heads (Ainslie et al. 2023, GQA)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        kv_dim = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.embed_dim, config.embed_dim, bias=config.bias)
        self.k_proj = nn.Linear(config.embed_dim, kv_dim, bias=config.bias)
        self.v_proj = nn.Linear(config.embed_dim, kv_dim, bias=config.bias)
        self.o_proj = nn.Linear(config.embed_dim, config.embed_dim, bias=config.bias)
        # Normalised queries and keys keep the softmax from saturating (Henry et al. 2020).
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.rotate = POSITIONS[config.positions][1](config)

    def forward(
        self, x: Tensor, positions: slice | Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """What each position gathers from those that it may look at: (B, T, D) -> (B, T, D).

        positions: of x in its text, a slice of T or (B, T). mask: True where a query may look at a key; None means
        itself and all before it.
        """
        B, T, D = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim)  # (B, T, H, d)
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, K, d)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)  # (B, T, K, d)
        q, k = self.rotate(self.q_norm(q), positions), self.rotate(self.k_norm(k), positions)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))  # (B, H or K, T, d)
        if cache:
            k, v = cache.append(self.layer, k, v, positions)  # (B, K, S, d)
        x = attend(q, k, v, mask)  # (B, H, T, d)
        output: Tensor = self.o_proj(x.transpose(1, 2).reshape(B, T, D))
        return output


# GELU: Hendrycks & Gimpel 2016. Its tanh form, as in GPT-2, costs a CPU three times as much.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu2": relu2}


class MLP(nn.Module):
    """The feed-forward network: two linear layers around an activation (Vaswani et al. 2017, equation 2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.mlp]
        self.up_proj = nn.Linear(config.embed_dim, config.hidden_dim, bias=config.bias)
        self.down_proj = nn.Linear(config.hidden_dim, config.embed_dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), each position by itself."""
        output: Tensor = self.down_proj(self.activate(self.up_proj(x)))
        return output


class SwiGLU(nn.Module):
    """A feed-forward network with a gate: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.embed_dim, config.hidden_dim, bias=config.bias)
        self.up_proj = nn.Linear(config.embed_dim, config.hidden_dim, bias=config.bias)
        self.down_proj = nn.Linear(config.hidden_dim, config.embed_dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), each position by itself."""
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


MLPS: dict[str, type[nn.Module]] = {"gelu": MLP, "relu2": MLP, "swiglu": SwiGLU}


class Block(nn.Module):
    """One layer: attention, then the feed-forward network, each normalised first and added to x."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config, config.embed_dim)
        self.attention = Attention(config, layer)
        self.mlp_norm = make_norm(config, config.embed_dim)
        self.mlp = MLPS[config.mlp](config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, positions: slice | Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), positions, mask, cache))
        output: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return output


class LanguageModel(nn.Module):
    """A Transformer that gives, at each position, a score for every token that could come next."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.embedding_norm = make_norm(config, config.embed_dim) if config.embedding_norm else nn.Identity()
        self.positions = POSITIONS[config.positions][0](config)
        self.dropout = nn.Dropout(config.dropout)
        self.mask = CausalMask() if config.document_start is None else DocumentMask(config.document_start)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = make_norm(config, config.embed_dim)
        self.lm_head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        self.initialize()
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def initialize(self) -> None:
        """Draws the weights of linear and embedding layers from torch's global generator, as GPT-2 did.

        Radford et al. 2019, section 2.3. Norms keep their initial ones and zeros.
        """
        # 2 * num_layers branches add up in the residual stream; scaling each by 1/sqrt of that keeps its size.
        residual_std = 0.0 if self.config.zero_init else 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                is_branch_end = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(module.weight, std=residual_std if is_branch_end else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def features(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """What comes before the output layer: (B, T) token ids -> (B, T, D).

        With a cache, `tokens` continue those that the cache has seen, and the cache grows by T positions.
        Raises ValueError for another shape, and where the sequence would be longer than max_seq_len.
        """
        if tokens.dim() != 2:
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}: must be (B, T). tokens[None] makes a batch of one sequence."
            )
        start = cache.length() if cache else 0
        if start + tokens.size(1) > self.config.max_seq_len:
            raise ValueError(
                f"{start + tokens.size(1)} tokens are more than max_seq_len = {self.config.max_seq_len}, "
                "the most this model can look at. Pass only the last ones."
            )
        positions = cache.extend(tokens) if cache else slice(0, tokens.size(1))
        x = self.dropout(self.positions(self.embedding_norm(self.embedding(tokens)), positions))
        mask = self.mask(tokens, positions, cache)
        for block in self.blocks:
            x = block(x, positions, mask, cache)
        output: Tensor = self.norm(x)
        return output

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits for the next token at every position: (B, T) -> (B, T, V)."""
        logits: Tensor = self.lm_head(self.features(tokens, cache))
        return logits
