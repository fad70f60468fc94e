"""A language model for one new token in each row: the numbers of `model(tokens, cache)` in fewer, larger operations.

Of a single position, little is to be computed. What takes the time is to begin each operation and to fetch each weight
from memory, and both depend on how the same mathematics is written down.

Shapes: B rows, D embed_dim, H query heads, K key and value heads, d head_dim, V vocab_size; N, M of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.config import ModelConfig
from slm.model import transformer
from slm.model.functions import rotate
from slm.model.kv_cache import KVCache
from slm.model.transformer import Attention, Block, LanguageModel

Function = Callable[[Tensor], Tensor]
_MOST_ROWS, _ROWS_PER_THREAD = 16, 8
_CACHE_BYTES = 2**24  # of a processor, about: weights of more come from memory for every token


class Decoder:
    """(B, 1) newest tokens and the cache of those before -> the logits (B, V) of what comes next."""

    def __init__(self, model: LanguageModel) -> None:
        """The weights are those of the model now; those that are read together are copied.

        These are the matrices of queries, keys and values, and of SwiGLU's gate and input.
        """
        self.mask = model.mask.forward
        weights = list(model.parameters())
        self.num_bytes = sum(w.numel() * w.element_size() for w in weights)
        self.is_plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
        slow = self.is_plain and self.num_bytes > _CACHE_BYTES
        self.layers = [_layer(block, slow) for block in model.blocks if isinstance(block, Block)]
        self.embed = _embedding(model)
        self.norm, self.head = _norm(model.norm), _product([model.lm_head], slow)
        self.rotation = next((m for m in model.modules() if isinstance(m, transformer.Rotation)), None)

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """True for a LanguageModel of which no part was replaced, wrapped, patched or hooked."""
        if type(model) is not LanguageModel:
            return False
        parts, has_bias = _parts(model.config), model.config.bias
        return all(
            type(m) is parts.get(word := name.rpartition(".")[2])
            and not ("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks)
            and (not word.endswith("_proj") or (m.bias is not None) == has_bias)
            for name, m in model.named_modules()
        )

    def __call__(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """The cache grows by one position."""
        # So little work is not done sooner by several threads, and on a busy machine they wait for each other.
        threads = torch.get_num_threads()
        if self.is_plain and self.num_bytes * len(tokens) <= _CACHE_BYTES:
            torch.set_num_threads(1)
        try:
            positions = cache.extend(tokens)
            mask = self.mask(tokens, positions, cache)
            x = self.embed(tokens, positions)
            angles = (self.rotation.cos[positions], self.rotation.sin[positions]) if self.rotation else None
            for layer in self.layers:
                x = layer(x, positions, angles, mask, cache)
            return self.head(self.norm(x))
        finally:
            torch.set_num_threads(threads)


def _parts(config: ModelConfig) -> dict[str, type[nn.Module]]:
    """The class of each module of a LanguageModel, by the last word of its name."""
    norm = transformer.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
    positions, rotate = transformer.POSITIONS[config.positions]
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
    return {
        "": LanguageModel,
        "embedding": nn.Embedding,
        "embedding_norm": norm if config.embedding_norm else nn.Identity,
        "positions": positions,
        "dropout": nn.Dropout,
        "mask": transformer.CausalMask if config.document_start is None else transformer.DocumentMask,
        "blocks": nn.ModuleList,
        **{str(layer): Block for layer in range(config.num_layers)},
        **dict.fromkeys(("norm", "attention_norm", "mlp_norm"), norm),
        "attention": Attention,
        **dict.fromkeys(("q_norm", "k_norm"), norm if config.qk_norm else nn.Identity),
        "rotate": rotate,
        "mlp": transformer.MLPS[config.mlp],
        **dict.fromkeys(linears, nn.Linear),
    }


Angles = tuple[Tensor, Tensor] | None
Layer = Callable[[Tensor, slice | Tensor, Angles, Tensor | None, KVCache], Tensor]


def _embedding(model: LanguageModel) -> Callable[[Tensor, slice | Tensor], Tensor]:
    """tokens (B, 1) and their positions -> x (B, D)."""
    weight, norm = model.embedding.weight, model.embedding_norm
    has_norm = not isinstance(norm, nn.Identity)
    positions = model.positions
    vectors = positions.embedding.weight if isinstance(positions, transformer.LearnedPositions) else None

    def embed(tokens: Tensor, positions: slice | Tensor) -> Tensor:
        x = F.embedding(tokens[:, 0], weight)
        if has_norm:
            x = norm(x)
        if vectors is None:
            return x
        return x + (vectors[positions] if isinstance(positions, slice) else vectors[positions[:, 0]])

    return embed


def _layer(block: Block, slow: bool) -> Layer:
    """Block.forward for x (B, D)."""
    attention, mlp = block.attention, _mlp(block.mlp, slow)  # type: ignore[arg-type]
    attention_norm, mlp_norm = _norm(block.attention_norm), _norm(block.mlp_norm)
    heads, output = _heads(attention, slow), _product([attention.o_proj], slow)
    number, is_grouped = attention.layer, attention.k_proj.out_features < attention.q_proj.out_features

    def layer(x: Tensor, positions: slice | Tensor, angles: Angles, mask: Tensor | None, cache: KVCache) -> Tensor:
        q, k, v = heads(attention_norm(x), angles)
        k, v = cache.append(number, k, v, positions)
        heads_out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=is_grouped)  # (B, H, 1, d)
        x = output(heads_out.reshape(x.shape)).add_(x)
        return mlp(mlp_norm(x)).add_(x)

    return layer


def _heads(attention: Attention, slow: bool) -> Callable[[Tensor, Angles], tuple[Tensor, ...]]:
    """x (B, D) -> q (B, H, 1, d), k and v (B, K, 1, d), by one product with all three matrices in one."""
    product = _product([attention.q_proj, attention.k_proj, attention.v_proj], slow)
    d = attention.head_dim
    H, K = (linear.out_features // d for linear in (attention.q_proj, attention.k_proj))
    q_norm, k_norm = _norm(attention.q_norm), _norm(attention.k_norm)
    has_norms = not isinstance(attention.q_norm, nn.Identity)

    def heads(x: Tensor, angles: Angles) -> tuple[Tensor, ...]:
        qkv = product(x).view(len(x), H + 2 * K, 1, d)
        if has_norms:
            q, k, v = torch.split_with_sizes(qkv, (H, K, K), dim=1)
            qkv = torch.cat((q_norm(q), k_norm(k), v), dim=1)
        if angles:
            qkv[:, : H + K] = rotate(qkv[:, : H + K], *angles)
        return torch.split_with_sizes(qkv, (H, K, K), dim=1)

    return heads


def _mlp(mlp: transformer.MLP | transformer.SwiGLU, slow: bool) -> Function:
    """The module's forward."""
    down = _product([mlp.down_proj], slow)
    if isinstance(mlp, transformer.SwiGLU):
        gate_and_up = _product([mlp.gate_proj, mlp.up_proj], slow)

        def swiglu(x: Tensor) -> Tensor:
            gate, up = gate_and_up(x).chunk(2, dim=1)
            return down(F.silu(gate) * up)

        return swiglu
    up, activate = _product([mlp.up_proj], slow), _gelu if mlp.activate is F.gelu else mlp.activate
    return lambda x: down(activate(up(x)))


def _gelu(x: Tensor) -> Tensor:
    """GELU of x (B, N)."""
    if len(x) > 1 or x.device.type != "cpu":
        return F.gelu(x)
    # For one row, torch takes longer to hand it to oneDNN than to compute it; two, of which one is a view, it computes.
    return F.gelu(x.expand(2, -1))[:1]


def _norm(norm: nn.Module) -> Function:
    """The module itself, or the function that LayerNorm is."""
    if type(norm) is not nn.LayerNorm:
        return norm
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _product(linears: list[nn.Linear], slow: bool) -> Function:
    """x (B, M) -> (B, N), the outputs of several linear layers side by side.

    slow: the weights are to be fetched from memory each time.
    """
    weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else linears[0].weight
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if len(biases) > 1 else biases[0] if biases else None
    few = _few_rows(weight, bias)
    # Of more rows, to compute takes longer than to fetch, and F.linear computes faster.
    most_rows = min(_MOST_ROWS, _ROWS_PER_THREAD * torch.get_num_threads())

    def product(x: Tensor) -> Tensor:
        return few(x) if slow and len(x) <= most_rows else F.linear(x, weight, bias)

    return product


def _few_rows(weight: Tensor, bias: Tensor | None) -> Function:
    """x (B, M) -> x W^T + b, for few rows of a large W (N, M).

    As W x^T, a tall matrix times a narrow one, a CPU's BLAS reads W two to five times as fast as for x W^T, on all
    cores. Not so for a single column, which therefore gets a twin.
    """
    column = None if bias is None else bias[:, None]

    def product(x: Tensor) -> Tensor:
        columns = (x if len(x) > 1 else x.expand(2, -1).contiguous()).t()
        y = torch.mm(weight, columns) if column is None else torch.addmm(column, weight, columns)
        return y[:, : len(x)].t().contiguous()

    return product
