"""Laws of slm.model.transformer: every option equals plain tensor operations, and what all models keep to.

Shapes: B batch, T positions, D embed_dim, H query heads, K key and value heads, d head_dim, V vocab_size.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import CHOICES, every_combination, every_pair, with_large_weights
from torch import Tensor

from slm.config import ModelConfig
from slm.model.kv_cache import KVCache
from slm.model.transformer import LanguageModel, Rotation

V, D, H, T = 11, 16, 4, 8
# norm_eps and rope_base are so large that a misplaced one shows in the logits.
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "embed_dim": D,
    "num_heads": H,
    "num_layers": 2,
    "hidden_dim": 12,
    "max_seq_len": T,
    "norm_eps": 0.05,
    "rope_base": 20.0,
}


def make_model(seed: int = 0, **options: Any) -> LanguageModel:
    return with_large_weights(LanguageModel(ModelConfig(**(SMALL | options))), seed)


def make_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


# The reference: one sequence, float64, a state_dict and no module. It is written from the papers, not from our code.


class Reference:
    """The forward of one sequence, (T,) -> (T, V), from a state_dict and a configuration."""

    def __init__(self, model: LanguageModel) -> None:
        self.config = model.config
        self.state = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def linear(self, x: Tensor, name: str) -> Tensor:
        output = torch.einsum("ti,oi->to", x, self.state[f"{name}.weight"])
        return output + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else output

    def norm(self, x: Tensor, name: str) -> Tensor:
        if self.config.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        x = x / ((x * x).mean(-1, keepdim=True) + self.config.norm_eps).sqrt() * self.state[f"{name}.weight"]
        return x + self.state[f"{name}.bias"] if f"{name}.bias" in self.state else x

    def rotated(self, x: Tensor) -> Tensor:
        """x (T, d): numbers i and i + d/2 are one complex number, turned by position * base^(-2i/d)."""
        half = x.size(1) // 2
        frequencies = self.config.rope_base ** (-2 * torch.arange(half, dtype=torch.float64) / x.size(1))
        angles = torch.arange(len(x), dtype=torch.float64)[:, None] * frequencies
        turned = torch.complex(x[:, :half], x[:, half:]) * torch.exp(1j * angles)
        return torch.cat((turned.real, turned.imag), dim=1)

    def one_head(self, q: Tensor, k: Tensor, v: Tensor, name: str) -> Tensor:
        """The attention of one head over (T, d), position by position."""
        if self.config.qk_norm:
            q, k = self.norm(q, f"{name}.q_norm"), self.norm(k, f"{name}.k_norm")
        if self.config.positions == "rope":
            q, k = self.rotated(q), self.rotated(k)
        output = []
        for t in range(len(q)):
            weights = torch.exp((k[: t + 1] * q[t]).sum(1) / math.sqrt(q.size(1)))
            output.append((weights[:, None] / weights.sum() * v[: t + 1]).sum(0))
        return torch.stack(output)

    def attention(self, x: Tensor, name: str) -> Tensor:
        d = self.config.embed_dim // self.config.num_heads
        q, k, v = (self.linear(x, f"{name}.{part}_proj").split(d, dim=1) for part in "qkv")  # heads of (T, d)
        group = len(q) // len(k)
        heads = [self.one_head(q[h], k[h // group], v[h // group], name) for h in range(len(q))]
        return self.linear(torch.cat(heads, dim=1), f"{name}.o_proj")

    def mlp(self, x: Tensor, name: str) -> Tensor:
        up = self.linear(x, f"{name}.up_proj")
        if self.config.mlp == "gelu":
            inner = 0.5 * up * (1 + torch.erf(up / math.sqrt(2)))
        elif self.config.mlp == "relu2":
            inner = torch.where(up > 0, up * up, 0.0)
        else:
            gate = self.linear(x, f"{name}.gate_proj")
            inner = gate / (1 + torch.exp(-gate)) * up
        return self.linear(inner, f"{name}.down_proj")

    def logits(self, tokens: Tensor) -> Tensor:
        x = torch.stack([self.state["embedding.weight"][token] for token in tokens.tolist()])
        if self.config.positions == "learned":
            x = x + torch.stack([self.state["positions.embedding.weight"][t] for t in range(len(tokens))])
        for layer in range(self.config.num_layers):
            block = f"blocks.{layer}"
            x = x + self.attention(self.norm(x, f"{block}.attention_norm"), f"{block}.attention")
            x = x + self.mlp(self.norm(x, f"{block}.mlp_norm"), f"{block}.mlp")
        return self.linear(self.norm(x, "norm"), "lm_head")


@pytest.mark.parametrize(("bias", "tie_embeddings"), [(False, True), (True, False)], ids=["tied", "bias"])
@every_combination
def test_logits_equal_a_reference_in_plain_tensor_operations(
    options: dict[str, Any], bias: bool, tie_embeddings: bool
) -> None:
    model = make_model(**options, bias=bias, tie_embeddings=tie_embeddings)
    tokens = make_tokens(2, T)
    assert_close(model(tokens), torch.stack([Reference(model).logits(row) for row in tokens]))


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_kv_heads": 1},
        {"num_heads": 1},
        {"num_heads": 8, "num_kv_heads": 4},
        {"num_layers": 1, "hidden_dim": 1},
        {"num_layers": 5},
        {"norm_eps": 1e-5, "rope_base": 10000.0},
        {"rope_base": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_logits_equal_the_reference_at_other_sizes(sizes: dict[str, Any], norm: str) -> None:
    model = make_model(**sizes, positions="rope", qk_norm=True, norm=norm)
    tokens = make_tokens(T)
    assert_close(model(tokens[None])[0], Reference(model).logits(tokens))


# What a position may know


@every_combination
def test_future_tokens_do_not_change_past_logits(options: dict[str, Any]) -> None:
    model, tokens = make_model(**options), make_tokens(1, T)
    logits = model(tokens)
    # Row t keeps tokens 0 .. t and changes all that follow.
    changed = torch.where(torch.ones(T, T, dtype=torch.bool).tril(), tokens, (tokens + 1) % V)
    others = model(changed)
    for t in range(T):
        assert_close(others[t, : t + 1], logits[0, : t + 1], 1e-6)
        assert t == T - 1 or (others[t, t + 1] - logits[0, t + 1]).abs().max() > 1e-3


@every_pair
def test_logits_of_a_prefix_are_a_prefix_of_the_logits(options: dict[str, Any]) -> None:
    model, tokens = make_model(**options), make_tokens(2, T)
    logits = model(tokens)
    for length in range(1, T):
        assert_close(model(tokens[:, :length]), logits[:, :length])


@every_pair
def test_every_past_token_changes_the_last_logits(options: dict[str, Any]) -> None:
    model, tokens = make_model(**options), make_tokens(1, T)
    changed = torch.where(torch.eye(T, dtype=torch.bool), (tokens + 1) % V, tokens)  # row t changes token t
    differences = (model(changed) - model(tokens))[:, -1].abs().amax(1)
    assert differences.min() > 1e-4


@every_pair
def test_order_of_past_tokens_changes_the_last_logits(options: dict[str, Any]) -> None:
    # One layer: with more, even a model without positions learns of the order through the causal mask.
    model = make_model(**options, num_layers=1)
    tokens = torch.arange(T)[None]
    swapped = tokens[:, [1, 0, *range(2, T)]]
    assert (model(swapped) - model(tokens))[0, -1].abs().max() > 1e-4


def test_sequences_of_a_batch_do_not_see_each_other() -> None:
    model, tokens = make_model(), make_tokens(3, T)
    logits = model(tokens)
    for row in range(3):
        assert_close(model(tokens[row : row + 1])[0], logits[row])


# Options in terms of each other


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_as_many_key_heads_as_query_heads_is_multi_head_attention(positions: str) -> None:
    grouped, plain = make_model(positions=positions, num_kv_heads=H), make_model(positions=positions)
    plain.load_state_dict(grouped.state_dict())
    tokens = make_tokens(2, T)
    assert torch.equal(grouped(tokens), plain(tokens))


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_grouped_attention_is_multi_head_attention_with_repeated_key_heads(
    positions: str, qk_norm: bool, K: int
) -> None:
    grouped = make_model(positions=positions, qk_norm=qk_norm, num_kv_heads=K)
    plain = make_model(positions=positions, qk_norm=qk_norm)
    state = grouped.state_dict()
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name:
            state[name] = tensor.unflatten(0, (K, D // H)).repeat_interleave(H // K, dim=0).flatten(0, 1)
    plain.load_state_dict(state)
    tokens = make_tokens(2, T)
    assert_close(grouped(tokens), plain(tokens))


@settings(derandomize=True, database=None, deadline=None, max_examples=20)
@given(half=st.integers(1, 4), base=st.floats(1.0, 1e6), seed=st.integers(0, 2**32))
def test_product_of_rotated_query_and_key_depends_only_on_their_distance(half: int, base: float, seed: int) -> None:
    config = ModelConfig(embed_dim=2 * half, num_heads=1, positions="rope", rope_base=base, max_seq_len=12)
    q, k = torch.randn(2, 2 * half, generator=torch.Generator().manual_seed(seed)).double()
    rotate = Rotation(config)
    every_q, every_k = (
        rotate(x.expand(1, 12, 1, -1), slice(0, 12))[0, :, 0] for x in (q, k)
    )  # the same vector at 12 positions
    products = every_q @ every_k.T
    for distance in range(-11, 12):
        along = products.diagonal(distance)
        assert_close(along, along[:1].expand_as(along))
    assert_close(products.diagonal(), (q @ k).expand(12))
    assert_close(every_q.norm(dim=1), q.norm().expand(12))


def test_rotation_tells_distances_apart() -> None:
    rotate = Rotation(ModelConfig(embed_dim=8, num_heads=1, positions="rope", max_seq_len=12))
    rotated = rotate(torch.ones(1, 12, 1, 8), slice(0, 12))[0, :, 0]
    products = (rotated @ rotated[0]).tolist()
    assert len({round(product, 3) for product in products}) == 12


def test_rotation_may_start_anywhere() -> None:
    rotate = Rotation(ModelConfig(embed_dim=8, num_heads=1, positions="rope", max_seq_len=12))
    x = torch.randn(2, 12, 3, 8, generator=torch.Generator().manual_seed(0))
    whole = rotate(x, slice(0, 12))
    assert torch.equal(rotate(x[:, 5:9], slice(5, 9)), whole[:, 5:9])
    positions = torch.tensor([[3, 4], [7, 0]])  # and in each row elsewhere
    rows = torch.arange(2)[:, None]
    assert torch.equal(rotate(x[rows, positions], positions), whole[rows, positions])


# Shapes and errors


@every_pair
def test_forward_gives_a_score_per_position_and_token(options: dict[str, Any]) -> None:
    model = make_model(**options)
    for B, length in ((1, 1), (3, 5), (2, T)):
        for mode in (True, False):
            logits = model.train(mode)(make_tokens(B, length))
            assert type(logits) is Tensor
            assert logits.shape == (B, length, V)
            assert logits.dtype == torch.float32


@every_pair
def test_output_layer_over_features_is_forward(options: dict[str, Any]) -> None:
    model, tokens = make_model(**options), make_tokens(2, T)
    features = model.features(tokens)
    assert features.shape == (2, T, D)
    assert torch.equal(F.linear(features, model.lm_head.weight), model(tokens))


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_too_long_input_is_refused_by_the_name_of_its_limit(positions: str) -> None:
    model = make_model(positions=positions)
    assert model(make_tokens(1, T)).shape == (1, T, V)
    for call in (model, model.features):
        with pytest.raises(ValueError, match=rf"{T + 1} tokens .*max_seq_len = {T}\b"):
            call(make_tokens(1, T + 1))


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_too_long_continuation_is_refused_and_leaves_the_cache_alone(positions: str) -> None:
    model, cache = make_model(positions=positions), KVCache(SMALL["num_layers"])
    model(make_tokens(1, T - 2), cache)
    with pytest.raises(ValueError, match=rf"{T + 1} tokens .*max_seq_len = {T}\b"):
        model(make_tokens(1, 3), cache)
    assert (cache.length(), cache.lengths) == (T - 2, [T - 2])
    assert_close(
        model(make_tokens(1, 2), cache), model(torch.cat((make_tokens(1, T - 2), make_tokens(1, 2)), dim=1))[:, -2:]
    )


# Parameters


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    num_heads = draw(st.integers(1, 6))
    return ModelConfig(
        vocab_size=draw(st.integers(2, 40)),
        embed_dim=num_heads * 2 * draw(st.integers(1, 4)),
        num_heads=num_heads,
        num_kv_heads=draw(st.sampled_from([None, *(K for K in range(1, num_heads + 1) if num_heads % K == 0)])),
        num_layers=draw(st.integers(1, 3)),
        hidden_dim=draw(st.integers(1, 30)),
        max_seq_len=draw(st.integers(1, 20)),
        bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        positions=draw(st.sampled_from(CHOICES["positions"])),
        norm=draw(st.sampled_from(CHOICES["norm"])),
        mlp=draw(st.sampled_from(CHOICES["mlp"])),
        qk_norm=draw(st.booleans()),
    )


@settings(derandomize=True, database=None, deadline=None, max_examples=80)
@given(config=model_configs())
def test_num_parameters_is_what_the_built_model_has(config: ModelConfig) -> None:
    model = LanguageModel(config)
    assert config.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def glossary_names(config: ModelConfig) -> set[str]:
    """The keys of a state_dict, by the glossary."""
    linear = ("weight", "bias") if config.bias else ("weight",)
    norm = linear if config.norm == "layernorm" else ("weight",)
    linears = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"]
    linears += ["mlp.up_proj", "mlp.down_proj"] + ["mlp.gate_proj"] * (config.mlp == "swiglu")
    norms = ["attention_norm", "mlp_norm"] + ["attention.q_norm", "attention.k_norm"] * config.qk_norm
    names = {"embedding.weight", "lm_head.weight"} | {f"norm.{part}" for part in norm}
    if config.positions == "learned":
        names.add("positions.embedding.weight")
    for layer in range(config.num_layers):
        names |= {f"blocks.{layer}.{module}.{part}" for module in linears for part in linear}
        names |= {f"blocks.{layer}.{module}.{part}" for module in norms for part in norm}
    return names


@pytest.mark.parametrize("tie_embeddings", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@every_pair
def test_state_dict_speaks_the_glossary(options: dict[str, Any], bias: bool, tie_embeddings: bool) -> None:
    model = make_model(**options, bias=bias, tie_embeddings=tie_embeddings)
    assert set(model.state_dict()) == glossary_names(model.config)


@every_pair
def test_without_bias_no_module_has_one(options: dict[str, Any]) -> None:
    model = make_model(**options, bias=False)
    assert not [name for name in model.state_dict() if "bias" in name]
    assert all(getattr(module, "bias", None) is None for module in model.modules())


@every_combination
def test_gradient_reaches_every_parameter(options: dict[str, Any]) -> None:
    model = make_model(**options, vocab_size=T).train()
    tokens = torch.arange(T)[None]  # every token and every position occurs
    F.cross_entropy(model(tokens)[0], tokens[0].roll(-1)).backward()
    # Without rotation, what is added to all keys adds the same to all scores of a query, and the softmax removes it.
    key_bias = "k_norm.bias" if options["qk_norm"] else "k_proj.bias"
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not (options["positions"] == "learned" and name.endswith(key_bias)):
            assert parameter.grad.abs().max() > 1e-5, name


# Tied embeddings and copies


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_tied_output_layer_is_the_embedding_itself(positions: str) -> None:
    model = make_model(positions=positions, tie_embeddings=True)
    assert model.lm_head.weight is model.embedding.weight
    before = model(make_tokens(1, T))
    with torch.no_grad():
        model.embedding.weight[3] += 1
    assert not torch.equal(model(make_tokens(1, T)), before)
    assert model.lm_head.weight[3].equal(model.embedding.weight[3])


def test_untied_output_layer_shares_nothing_with_the_embedding() -> None:
    model = LanguageModel(ModelConfig(**SMALL))
    assert model.lm_head.weight.data_ptr() != model.embedding.weight.data_ptr()
    assert not torch.equal(model.lm_head.weight, model.embedding.weight)


def through_state_dict(model: LanguageModel) -> LanguageModel:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    copied = LanguageModel(model.config)
    copied.load_state_dict(torch.load(file, weights_only=True))
    return copied.eval()


def through_pickle(model: LanguageModel) -> LanguageModel:
    copied: LanguageModel = pickle.loads(pickle.dumps(model))
    return copied


@pytest.mark.parametrize("copy_of", [copy.deepcopy, through_pickle, through_state_dict])
@pytest.mark.parametrize("tie_embeddings", [False, True], ids=["untied", "tied"])
@every_pair
def test_a_copy_gives_the_same_logits_and_shares_no_memory(
    options: dict[str, Any], tie_embeddings: bool, copy_of: Any
) -> None:
    model, tokens = make_model(**options, tie_embeddings=tie_embeddings), make_tokens(2, T)
    logits, copied = model(tokens), copy_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(copied(tokens), logits)
    assert (copied.lm_head.weight is copied.embedding.weight) == tie_embeddings


# Initial weights


def test_same_seed_gives_the_same_weights() -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return LanguageModel(ModelConfig(**SMALL)).state_dict()

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if first[name].dim() == 2)


@pytest.mark.parametrize("num_layers", [1, 8])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("tie_embeddings", [False, True], ids=["untied", "tied"])
def test_initial_weights_are_normal_and_smaller_where_a_branch_ends(
    num_layers: int, mlp: str, tie_embeddings: bool
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "embed_dim": 96, "num_heads": 2, "hidden_dim": 128, "max_seq_len": 100}
    config = ModelConfig(**sizes, num_layers=num_layers, mlp=mlp, tie_embeddings=tie_embeddings, qk_norm=True)
    for name, parameter in LanguageModel(config).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            ends_branch = "o_proj" in name or "down_proj" in name
            std = 0.02 / math.sqrt(2 * num_layers) if ends_branch else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name
            kurtosis = (parameter / std).pow(4).mean().item()  # 3 for a normal distribution, 1.8 for a uniform one
            assert kurtosis == pytest.approx(3, rel=0.15), name


@every_pair
def test_a_new_model_knows_nothing(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logits = LanguageModel(ModelConfig(**(SMALL | options)))(make_tokens(2, T))
    assert_close(logits.softmax(-1), torch.full_like(logits, 1 / V), 0.05)


# Dropout


def silence(model: LanguageModel, *branch_ends: str) -> None:
    """Makes these layers of each block give zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(end in name for end in branch_ends):
                parameter.zero_()


@every_pair
def test_dropout_changes_nothing_outside_training(options: dict[str, Any]) -> None:
    tokens = make_tokens(2, T)
    dropping, plain = make_model(**options, dropout=0.5), make_model(**options)
    assert torch.equal(dropping(tokens), plain(tokens))
    assert not torch.equal(dropping.train()(tokens), dropping(tokens))
    assert torch.equal(plain.train()(tokens), plain.eval()(tokens))


@pytest.mark.parametrize("place", ["dropout", "blocks.0.dropout", "blocks.1.dropout"])
def test_dropout_acts_on_embeddings_and_branches(place: str) -> None:
    model, tokens = make_model(dropout=0.5), make_tokens(2, T)
    logits = model(tokens)
    model.get_submodule(place).train()
    torch.manual_seed(0)
    dropped = model(tokens)
    assert not torch.equal(dropped, logits)
    torch.manual_seed(0)
    assert torch.equal(model(tokens), dropped)


@pytest.mark.parametrize("silent", ["attention.o_proj", "mlp.down_proj"])
def test_dropout_acts_on_either_branch_of_a_block(silent: str) -> None:
    model, tokens = make_model(dropout=0.5), make_tokens(2, T)
    silence(model, silent)
    logits = model(tokens)
    model.get_submodule("blocks.0.dropout").train()
    assert not torch.equal(model(tokens), logits)


def test_dropped_features_keep_their_mean() -> None:
    # With all branches silent, the features are the dropped embeddings, normalised by an almost idle RMSNorm.
    model = make_model(dropout=0.3, norm="rmsnorm", norm_eps=1e6, positions="rope")
    silence(model, "attention.o_proj", "mlp.down_proj")
    tokens = make_tokens(1, 1).expand(4000, 1)
    expected = model.features(tokens[:1])[0, 0]
    torch.manual_seed(0)
    assert_close(model.train().features(tokens).mean(0)[0] / expected, torch.ones(D), 0.1)


# Precision


@every_combination
def test_bf16_autocast_gives_close_logits(options: dict[str, Any]) -> None:
    model, tokens = make_model(**options), make_tokens(2, T)
    logits = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(tokens)
    assert rounded.shape == logits.shape
    assert (rounded - logits).pow(2).mean().sqrt() < 0.03 * logits.std()


@every_pair
def test_bf16_autocast_warns_of_nothing(options: dict[str, Any]) -> None:
    torch.set_warn_always(True)  # torch would warn once per process, in whichever test comes first
    try:
        with torch.autocast("cpu", torch.bfloat16):
            make_model(**options)(make_tokens(2, T))
    finally:
        torch.set_warn_always(False)


@every_pair
def test_a_double_precision_model_stays_double(options: dict[str, Any]) -> None:
    model, tokens = make_model(**options), make_tokens(2, T)
    logits = model(tokens)
    double = model.double()(tokens)
    assert double.dtype == torch.float64
    assert_close(logits, double)
