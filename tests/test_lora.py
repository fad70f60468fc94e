"""Laws of slm.model.lora: a wrapped model begins as it was, trains only its adapters, and merges into a plain one.

Shapes: B batch, T positions, V vocab_size; N inputs, M outputs of a layer, r rank.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from models import every_pair, small_model
from torch import Tensor, nn

import slm
from slm.config import ModelConfig, TrainConfig, UserError
from slm.model import LanguageModel, WithLoss
from slm.model import loss as loss_module
from slm.model.decoder import Decoder
from slm.model.lora import LoRALinear, add_lora, is_lora, load_trainable, merge_lora, trainable_weights
from slm.training.adamw import AdamW
from slm.training.device import Machine
from slm.training.optimizer import hidden_matrices, make_optimizer

V, WINDOW, NUM_LAYERS, RANK = 23, 8, 2, 3
ALPHA = 16  # of slm.model.lora; files of adapters count on it
SWIGLU = {"mlp": "swiglu", "bias": True, "num_kv_heads": 2}
WRAPPED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


class Classifier(nn.Module):
    """A model of somebody else's around ours."""

    def __init__(self, body: LanguageModel) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(body.config.embed_dim, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, 3)."""
        scores: Tensor = self.head(self.body.features(tokens)[:, -1])
        return scores


class Stack(nn.Module):
    """Layers in a row, which are its blocks."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def make_tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


def fill(model: nn.Module, seed: int = 0) -> None:
    """Gives adapters numbers as large as if they had been trained for long, in both of their matrices."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_a, std=0.3, generator=generator)
            nn.init.normal_(module.lora_b, std=0.1, generator=generator)


def wrapped_model(*, double: bool = False, **options: Any) -> LanguageModel:
    """A small model with adapters that change what it says."""
    model = small_model(**options)
    model = model.double() if double else model
    torch.manual_seed(0)
    add_lora(model, RANK)
    fill(model)
    return model


def merged(model: nn.Module) -> Any:
    """A merged copy."""
    other = copy.deepcopy(model)
    merge_lora(other)
    return other


def bits(model: nn.Module) -> dict[str, list[int]]:
    """All float32 weights as the integers that their bits are, by the names that they have without LoRA."""
    return {
        name.replace(".base.", "."): tensor.view(torch.int32).flatten().tolist()
        for name, tensor in model.state_dict().items()
        if "lora_" not in name
    }


def is_adapter(name: str) -> bool:
    return name.endswith(("lora_a", "lora_b"))


def test_the_output_is_the_base_and_a_scaled_product_of_low_rank() -> None:
    base = nn.Linear(7, 5).double()
    layer = LoRALinear(base, 2)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(3, 4, 7, dtype=torch.float64)
    a, b = layer.lora_a, layer.lora_b
    expected = torch.stack([base.weight @ v + base.bias + ALPHA / 2 * (b @ (a @ v)) for v in x.reshape(-1, 7)]).view(
        3, 4, 5
    )
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    assert (a.shape, b.shape) == ((2, 7), (5, 2))
    assert [name for name, parameter in layer.named_parameters() if parameter.requires_grad] == ["lora_a", "lora_b"]
    assert "rank=2, scale=8" in repr(layer)


@every_pair
def test_a_model_that_was_just_wrapped_gives_the_logits_of_before(options: dict[str, Any]) -> None:
    model, tokens = small_model(**options), make_tokens(3, WINDOW)
    with torch.no_grad():
        before = model(tokens)
        add_lora(model, RANK)
        assert torch.equal(model(tokens), before)
    assert not any(module.training for module in model.modules())


@every_pair
def test_every_linear_layer_of_the_blocks_is_wrapped_and_nothing_else(options: dict[str, Any]) -> None:
    model = small_model(**options)
    linears = {name for name, module in model.named_modules() if name.rpartition(".")[2] in WRAPPED}
    before = dict(model.named_parameters())
    add_lora(model, RANK)
    assert {name for name, module in model.named_modules() if isinstance(module, LoRALinear)} == linears
    assert len(linears) == NUM_LAYERS * (7 if options["mlp"] == "swiglu" else 6)
    assert type(model.lm_head) is nn.Linear
    # The weights of before are the same objects, frozen; beside them stand two adapters for each layer.
    after = dict(model.named_parameters())
    assert all(after[name.replace("_proj.", "_proj.base.")] is before[name] for name in before)
    assert {name for name, parameter in after.items() if parameter.requires_grad} == {
        f"{name}.{part}" for name in linears for part in ("lora_a", "lora_b")
    }
    assert len(after) == len(before) + 2 * len(linears)


def test_the_blocks_of_a_model_inside_another_are_wrapped_too() -> None:
    model = Classifier(small_model())
    add_lora(model, RANK)
    names = {name for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    assert len(names) == NUM_LAYERS * 6
    assert all(name.startswith("body.blocks.") for name in names)
    assert type(model.head) is nn.Linear
    assert not model.head.weight.requires_grad
    fill(model)
    tokens = make_tokens(3, WINDOW)
    torch.testing.assert_close(merged(model)(tokens), model(tokens), rtol=1e-5, atol=1e-5)
    assert not is_lora(merged(model))


def test_what_only_inherits_from_a_linear_layer_is_left_alone() -> None:
    # nn.MultiheadAttention reads the weight of its output layer, and never calls it.
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model, x = Stack(layer), torch.randn(2, 3, 8)
    before = model(x)
    add_lora(model, RANK)
    assert [name for name, module in model.named_modules() if isinstance(module, LoRALinear)] == [
        "blocks.0.linear1",
        "blocks.0.linear2",
    ]
    torch.testing.assert_close(model(x), before)


def test_a_layer_in_two_places_is_wrapped_and_merged_once_in_both() -> None:
    linear = nn.Linear(6, 6)
    model, x = Stack(linear, nn.Tanh(), linear), torch.randn(2, 6)
    add_lora(model, RANK)
    assert model.blocks[0] is model.blocks[2]
    assert isinstance(model.blocks[0], LoRALinear)
    fill(model)
    expected = model(x)
    merge_lora(model)
    assert model.blocks[0] is model.blocks[2] is linear
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_layers_that_share_a_weight_each_get_their_own_update() -> None:
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    model, x = Stack(first, nn.Tanh(), second).double(), torch.randn(2, 6, dtype=torch.float64)
    add_lora(model, RANK)
    fill(model)
    torch.testing.assert_close(merged(model)(x), model(x), rtol=0, atol=1e-12)


def test_the_update_starts_as_a_gaussian_times_zero() -> None:
    torch.manual_seed(3)
    layer = LoRALinear(nn.Linear(400, 30), 25)
    assert not layer.lora_b.any()
    assert layer.lora_a.mean().item() == pytest.approx(0, abs=4 * 0.05 / 100)  # of 10,000 numbers
    assert layer.lora_a.std().item() == pytest.approx(1 / math.sqrt(400), rel=0.03)


def test_the_same_seed_gives_the_same_start_and_each_layer_another() -> None:
    starts = []
    for seed in (1, 1, 2):
        model = small_model()
        torch.manual_seed(seed)
        add_lora(model, RANK)
        starts.append({name: tensor.tolist() for name, tensor in trainable_weights(model).items()})
    assert starts[0] == starts[1]
    drawn = [str(values) for start in (starts[0], starts[2]) for name, values in start.items() if "lora_a" in name]
    assert len(set(drawn)) == len(drawn) == 2 * NUM_LAYERS * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_adapters_have_the_type_of_the_weights(dtype: torch.dtype) -> None:
    model = small_model().to(dtype)
    add_lora(model, RANK)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    fill(model)
    assert {parameter.dtype for parameter in merged(model).parameters()} == {dtype}


@every_pair
def test_merged_lora_equals_wrapped(options: dict[str, Any]) -> None:
    model, tokens = wrapped_model(**options), make_tokens(3, WINDOW)
    with torch.no_grad():
        logits, plain = model(tokens), merged(model)(tokens)
        assert (logits - small_model(**options)(tokens)).abs().max() > 0.5  # the adapters do something
    torch.testing.assert_close(plain, logits, rtol=0, atol=1e-5 * logits.abs().max().item())


@every_pair
def test_merged_lora_equals_wrapped_in_float64_to_its_last_digits(options: dict[str, Any]) -> None:
    model, tokens = wrapped_model(double=True, **options), make_tokens(3, WINDOW)
    torch.testing.assert_close(merged(model)(tokens), model(tokens), rtol=0, atol=1e-12)


def test_a_merged_weight_is_the_exact_sum_rounded_once() -> None:
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(11, 9), 5)
    nn.init.normal_(layer.lora_b)
    weight, a, b = (tensor.tolist() for tensor in (layer.base.weight, layer.lora_a, layer.lora_b))
    result = copy.deepcopy(layer).merged().weight
    # Half of the distance to the next number, and a little for the digits that float64 cannot hold.
    half = (result.abs().nextafter(torch.tensor(math.inf)) - result.abs()).double() / 2
    for i in range(9):
        for j in range(11):
            update = sum(Fraction(b[i][k]) * Fraction(a[k][j]) for k in range(5))
            exact = Fraction(weight[i][j]) + Fraction(ALPHA, 5) * update
            assert abs(Fraction(result[i, j].item()) - exact) <= Fraction(half[i, j].item()) * Fraction("1.000001")


def test_merging_adapters_of_zero_changes_not_a_bit() -> None:
    model = small_model(**SWIGLU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.flatten()[:3] = torch.tensor([-0.0, 0.0, 1e-40])  # a sign and a tiny number are easily lost
    before = bits(model)
    add_lora(model, RANK)
    assert bits(model) == before
    merge_lora(model)
    assert bits(model) == before


@every_pair
def test_a_merged_model_is_a_plain_model(options: dict[str, Any]) -> None:
    model, plain = wrapped_model(**options), small_model(**options)
    tokens = make_tokens(2, WINDOW)
    merge_lora(model)
    assert not is_lora(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert Decoder.fits(model)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(tokens), model(tokens))


def test_merging_changes_no_weight_that_somebody_else_holds() -> None:
    model = wrapped_model()
    held = model.state_dict()
    before = {name: tensor.clone() for name, tensor in held.items()}
    merge_lora(model)
    assert all(torch.equal(held[name], before[name]) for name in held)


def test_tied_embeddings_stay_tied() -> None:
    model = wrapped_model(tie_embeddings=True)
    assert model.lm_head.weight is model.embedding.weight
    merge_lora(model)
    assert model.lm_head.weight is model.embedding.weight


@pytest.mark.parametrize("rank", [0, -1, 1.5, "8", True, None, 9])
def test_a_rank_that_makes_no_sense_is_told_with_the_limit(rank: Any) -> None:
    model = small_model(num_kv_heads=2)  # keys of 2 heads with 4 numbers each are the smallest side: 8
    before = bits(model)
    layer = "blocks.0.attention.k_proj (8 x 16)"
    message = f"lora_rank = {rank!r}: must be a whole number from 1 to 8, the smaller side of {layer}"
    with pytest.raises(UserError, match=re.escape(message)):
        add_lora(model, rank)
    assert not is_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert bits(model) == before
    add_lora(model, 8)


def test_a_model_is_wrapped_only_once() -> None:
    model = Classifier(small_model())
    assert not is_lora(model)
    add_lora(model, RANK)
    assert is_lora(model)
    names = list(model.state_dict())
    with pytest.raises(UserError, match=r"has LoRA already.*merge_lora"):
        add_lora(model, RANK)
    assert list(model.state_dict()) == names
    merge_lora(model)
    add_lora(model, 2)  # after merging, another one may come
    assert list(model.state_dict()) == names
    with pytest.raises(UserError, match="no LoRA to merge"):
        merge_lora(small_model())


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(4, 4),
        nn.Sequential(nn.Linear(4, 4)),
        Stack(nn.Tanh()),
        nn.ModuleDict({"blocks": nn.Linear(4, 4)}),
        nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])}),
    ],
    ids=["linear", "sequential", "blocks without", "blocks of another kind", "layers"],
)
def test_a_model_with_nothing_to_wrap_is_refused_and_left_trainable(model: nn.Module) -> None:
    with pytest.raises(
        UserError, match=rf"{type(model).__name__} has no nn\.Linear in an nn\.ModuleList called blocks"
    ):
        add_lora(model, RANK)
    assert all(parameter.requires_grad for parameter in model.parameters())


def gradients(model: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """The gradients of the loss of a language model, by name, of all parameters that got one."""
    model.zero_grad(set_to_none=True)
    WithLoss(model)(tokens, tokens.roll(-1, dims=1)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@every_pair
def test_gradients_exist_for_the_adapters_only_and_are_those_of_the_merged_weights(options: dict[str, Any]) -> None:
    model, tokens = wrapped_model(double=True, **options), make_tokens(4, WINDOW)
    ours, of_merged = gradients(model, tokens), gradients(merged(model), tokens)
    wrapped = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    assert set(ours) == {f"{name}.{part}" for name in wrapped for part in ("lora_a", "lora_b")}
    for name, layer in wrapped.items():  # W = base + scale B A, hence the chain rule
        of_weight = of_merged[f"{name}.weight"] * ALPHA / RANK
        torch.testing.assert_close(ours[f"{name}.lora_a"], layer.lora_b.T @ of_weight, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours[f"{name}.lora_b"], of_weight @ layer.lora_a.T, rtol=1e-9, atol=1e-12)
        assert ours[f"{name}.lora_a"].abs().max() > 1e-6


def test_gradients_are_the_same_where_the_logits_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = wrapped_model(double=True), make_tokens(4, WINDOW)
    whole = gradients(model, tokens)
    monkeypatch.setattr(loss_module, "MOST_LOGITS", 0)
    assert loss_module.has_many_logits(model, tokens)
    pieces = gradients(model, tokens)
    assert set(pieces) == set(whole)
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast_a_wrapped_layer_behaves_like_a_linear_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(16, 12), RANK)
    nn.init.normal_(layer.lora_b, std=0.1)
    x = torch.randn(5, 16)
    exact = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        output, of_base = layer(x), layer.base(x)
        assert output.dtype == of_base.dtype == dtype
        output.square().mean().backward()
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    assert layer.lora_a.grad is not None
    assert layer.lora_b.grad is not None
    assert layer.lora_a.grad.dtype == layer.lora_b.grad.dtype == torch.float32


def test_trainable_weights_carry_all_that_training_changed() -> None:
    model, tokens = wrapped_model(), make_tokens(2, WINDOW)
    weights = {name: tensor.clone() for name, tensor in trainable_weights(model).items()}
    state = model.state_dict()
    assert set(weights) == {name for name in state if is_adapter(name)}
    assert all(torch.equal(weights[name], state[name]) for name in weights)
    assert not any(tensor.requires_grad for tensor in weights.values())
    other = small_model()
    add_lora(other, RANK)
    assert not torch.equal(other(tokens), model(tokens))
    load_trainable(other, weights)
    assert torch.equal(other(tokens), model(tokens))
    fill(other, seed=1)  # what was loaded is a copy
    assert all(torch.equal(weights[name], state[name]) for name in weights)
    assert all(parameter.requires_grad == is_adapter(name) for name, parameter in other.named_parameters())


def test_trainable_weights_hold_a_head_and_embeddings_that_are_trained_beside_the_adapters() -> None:
    model = Classifier(small_model(tie_embeddings=True))
    add_lora(model, RANK)
    adapters = set(trainable_weights(model))
    model.head.requires_grad_(True)
    model.body.embedding.requires_grad_(True)
    weights = trainable_weights(model)
    assert set(weights) - adapters == {"head.weight", "head.bias", "body.embedding.weight"}  # tied ones once
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    load_trainable(model, changed)
    assert all(torch.equal(tensor, changed[name]) for name, tensor in trainable_weights(model).items())
    assert torch.equal(model.body.lm_head.weight, changed["body.embedding.weight"])


def test_all_weights_of_a_model_without_lora_are_trainable_weights() -> None:
    model = small_model(tie_embeddings=False)
    assert set(trainable_weights(model)) == set(model.state_dict())


def without(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if key != name}


FIRST = "blocks.0.attention.q_proj.lora_a"
UNFIT: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "missing": (lambda w: without(w, FIRST), f"(missing: {FIRST})"),
    "unexpected": (lambda w: {**w, "blocks.0.strange": torch.zeros(1)}, "(unexpected: blocks.0.strange)"),
    "frozen": (lambda w: {**w, "lm_head.weight": torch.zeros(V, 16)}, "(unexpected: lm_head.weight)"),
    "misshapen": (lambda w: {**w, FIRST: torch.zeros(4, 16)}, f"(of another shape: {FIRST} (4, 16), here (3, 16))"),
    "broadcastable": (lambda w: {**w, FIRST: torch.zeros(1, 16)}, f"(of another shape: {FIRST} (1, 16)"),
    "all of it": (
        lambda w: {"one": torch.zeros(1), **{name: tensor.T for name, tensor in w.items() if name != FIRST}},
        f"(missing: {FIRST}; unexpected: one; of another shape: blocks.0.attention.q_proj.lora_b (3, 16), here (16, 3)",
    ),
    "none": (lambda w: {}, " and 21 more)"),
}


@pytest.mark.parametrize(("change", "told"), UNFIT.values(), ids=UNFIT)
def test_weights_that_do_not_fit_are_told_and_change_nothing(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], told: str
) -> None:
    model, other = wrapped_model(), wrapped_model()
    fill(other, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(told)):
        load_trainable(model, change(trainable_weights(other)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_pair
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generation_from_a_wrapped_model_equals_that_from_the_merged_one(
    options: dict[str, Any], temperature: float
) -> None:
    model = wrapped_model(double=True, **options)
    plain = merged(model)
    assert (Decoder.fits(model), Decoder.fits(plain)) == (False, True)  # the two go different ways
    prompts = [[1, 2, 3], [7], [4, 4, 9, 0, 22]]
    sampling = {"max_new_tokens": 2 * WINDOW, "temperature": temperature, "seed": 5}
    expected = slm.generate_tokens(plain, prompts, **sampling)
    assert torch.equal(slm.generate_tokens(model, prompts, **sampling), expected)
    assert torch.equal(slm.generate_tokens(model, prompts, use_cache=False, **sampling), expected)
    base = small_model(**options).double()
    assert not torch.equal(slm.generate_tokens(base, prompts, **sampling), expected)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_optimizer_of_a_wrapped_model_is_adamw_of_exactly_the_adapters(kind: str) -> None:
    model = wrapped_model()
    machine = Machine(torch.device("cpu"), "fp32", 1, "")
    optimizer = make_optimizer(model, TrainConfig(optimizer=kind), machine)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    adapters = [parameter for name, parameter in model.named_parameters() if is_adapter(name)]
    assert hidden_matrices(model) == []
    assert type(optimizer) is AdamW
    assert len(held) == len({id(parameter) for parameter in held}) == len(adapters)
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in adapters}


WORDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
FORWARDS, BACKWARDS = (slm.TextDataset(order.repeat(40), 8) for order in (WORDS, WORDS.flip(0)))


def train(model: nn.Module, data: slm.TextDataset, **settings: Any) -> slm.History:
    base = {"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 4, "learning_rate": 1e-2}
    return slm.train_and_evaluate(model, data, data, TrainConfig(**(base | {"max_steps": 30} | settings)))


@pytest.fixture(scope="module")
def pretrained() -> LanguageModel:
    """A model that knows a row of words forwards."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "embed_dim": 16, "num_heads": 2, "num_layers": 2, "hidden_dim": 32, "max_seq_len": 8}
    model = LanguageModel(ModelConfig(**sizes))
    assert train(model, FORWARDS, max_steps=60).best["val_loss"] < 0.9
    return model


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon"}, {"precision": "bf16"}], ids=str)
def test_training_lowers_the_loss_and_changes_nothing_but_the_adapters(
    pretrained: LanguageModel, settings: dict[str, Any], machine: Callable[[str], Path]
) -> None:
    model = copy.deepcopy(pretrained)
    torch.manual_seed(1)
    add_lora(model, RANK)
    frozen, adapters = bits(model), {name: tensor.clone() for name, tensor in trainable_weights(model).items()}
    history = train(model, BACKWARDS, **settings)
    assert history.best["val_loss"] < 0.5 * history.records[0]["train_loss"]
    assert bits(model) == frozen
    assert all(not torch.equal(tensor, adapters[name]) for name, tensor in trainable_weights(model).items())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert all(parameter.requires_grad == is_adapter(name) for name, parameter in model.named_parameters())
    tokens = BACKWARDS[0][0][None]
    torch.testing.assert_close(merged(model)(tokens), model(tokens), rtol=1e-5, atol=1e-5)


def test_what_a_wrapped_model_learned_goes_along_in_its_trainable_weights(pretrained: LanguageModel) -> None:
    model, other = copy.deepcopy(pretrained), copy.deepcopy(pretrained)
    add_lora(model, RANK)
    train(model, BACKWARDS)
    add_lora(other, RANK)
    load_trainable(other, trainable_weights(model))
    tokens = BACKWARDS[0][0][None]
    assert torch.equal(other(tokens), model(tokens))


def test_a_wrapped_model_that_was_interrupted_trains_on_as_if_it_had_not_been(
    pretrained: LanguageModel, tmp_path: Path, machine: Callable[[str], Path]
) -> None:
    results = []
    for stops in (False, True):
        for part in range(1 + stops):
            model = copy.deepcopy(pretrained)
            torch.manual_seed(1)
            add_lora(model, RANK)
            steps = iter(range(1000))
            config = TrainConfig(
                device="cpu", precision="fp32", threads=1, batch_size=4, max_steps=12, learning_rate=1e-2
            )
            history = slm.train_and_evaluate(
                model,
                BACKWARDS,
                BACKWARDS,
                config,
                model_dir=tmp_path / str(stops),
                should_stop=lambda steps=steps, ends=stops and part == 0: ends and next(steps) >= 5,
            )
        assert history.status == "finished"
        results.append({name: tensor.tolist() for name, tensor in model.state_dict().items()})
    assert results[0] == results[1]
