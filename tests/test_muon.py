"""Laws of Muon: torch's numbers, for all matrices of one shape at once, beside AdamW for everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slm.config import ModelConfig, TrainConfig
from slm.model.transformer import LanguageModel
from slm.training.adamw import AdamW
from slm.training.device import Machine
from slm.training.muon import COEFFICIENTS, STEPS, Muon, orthogonalize
from slm.training.optimizer import hidden_matrices, make_optimizer

MACHINE = Machine(torch.device("cpu"), "fp32", 1, "")
SHAPES = {"square": (12, 12), "wide": (8, 20), "tall": (20, 8), "row": (1, 9)}
LR, DECAY, BETAS = 0.05, 0.3, (0.9, 0.99)

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
both_kinds = pytest.mark.parametrize("kind", ["adamw", "muon"])
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])


def make(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_model(**options: Any) -> LanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "hidden_dim": 16, "max_seq_len": 4}
    return LanguageModel(ModelConfig(**sizes, **options))


def optimizer_of(model: nn.Module, optimizer: str = "muon", machine: Machine = MACHINE) -> AdamW:
    config = TrainConfig(optimizer=optimizer, learning_rate=LR, weight_decay=DECAY, beta1=BETAS[0], beta2=BETAS[1])
    return make_optimizer(model, config, machine)


def muon_alone(matrices: list[nn.Parameter], dtype: torch.dtype, decay: float = DECAY) -> Muon:
    others = [{"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.0}]
    return Muon(matrices, others, lr=LR, betas=BETAS, weight_decay=decay, dtype=dtype)


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    for number, parameter in enumerate(parameters):
        parameter.grad = make(*parameter.shape, seed=100 * step + number).to(parameter.dtype)


def take_steps(model: nn.Module, optimizer: AdamW, steps: range, lr: float | None = None) -> None:
    for step in steps:
        set_gradients(list(model.parameters()), step)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        optimizer.step()


def copies(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def all_equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def tensors_of_state(optimizer: AdamW) -> dict[tuple[int, str], Tensor]:
    return {(i, name): x.clone() for i, kept in optimizer.state_dict()["state"].items() for name, x in kept.items()}


def polynomial_iteration(matrix: Tensor) -> Tensor:
    """What orthogonalize is meant to compute, by the singular values: p(x) = a x + b x^3 + c x^5 applied to each."""
    u, singular, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    a, b, c = COEFFICIENTS
    singular = singular / singular.norm()
    for _ in range(STEPS):
        singular = a * singular + b * singular**3 + c * singular**5
    return u @ torch.diag(singular) @ v


# orthogonalize


@every_shape
def test_float32_iteration_is_the_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrices = make(3, *shape)
    expected = torch.stack([polynomial_iteration(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices, torch.float32).double(), expected, rtol=0, atol=1e-3)


@every_shape
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_float32_iteration_is_exact_from_the_largest_singular_value_to_ten_thousandths_of_it(
    shape: tuple[int, int], scale: float
) -> None:
    u, _, v = torch.linalg.svd(make(*shape).double(), full_matrices=False)
    matrix = scale * (u @ torch.diag(torch.logspace(0, -4, min(shape), dtype=torch.float64)) @ v)
    result = orthogonalize(matrix.float()[None], torch.float32)[0]
    torch.testing.assert_close(result.double(), polynomial_iteration(matrix), rtol=0, atol=1e-3)


@every_shape
@both_types
def test_singular_values_become_nearly_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for seed in range(10):
        result = orthogonalize(make(1, *shape, seed=seed), dtype)[0]
        assert result.dtype == dtype
        assert result.shape == shape
        singular = torch.linalg.svdvals(result.float())
        # The smallest of a square matrix may be below the 0.01 from which five steps are enough.
        lifted = singular[:-1] if shape == SHAPES["square"] else singular
        assert lifted.min() > 0.5
        assert singular.max() < 1.3


@every_shape
@both_types
def test_directions_stay_those_of_the_matrix(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = make(*shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalize(matrix[None], dtype)[0].float() @ v.T
    assert (inside - torch.diag(inside.diagonal())).abs().max() < (0.001 if dtype == torch.float32 else 0.1)
    assert inside.diagonal().min() > 0


@every_shape
@both_types
def test_a_transposed_matrix_gives_the_transposed_result(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrices = make(2, *shape)
    one, other = orthogonalize(matrices, dtype), orthogonalize(matrices.mT, dtype).mT
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@every_shape
@both_types
def test_matrices_worked_on_together_do_not_mix(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrices = make(3, *shape) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    together = orthogonalize(matrices, dtype)
    alone = torch.cat([orthogonalize(matrix[None], dtype) for matrix in matrices])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)


@both_types
def test_a_matrix_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    assert not orthogonalize(torch.zeros(2, 4, 6), dtype).any()


# The steps


@every_shape
@both_types
def test_steps_are_torchs_muon(shape: tuple[int, int], dtype: torch.dtype) -> None:
    mine, its = ([nn.Parameter(make(*shape, seed=seed)) for seed in range(3)] for _ in range(2))
    optimizer = muon_alone(mine, dtype)
    reference = torch.optim.Muon(its, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        before = [x.detach().clone() for x in its]
        set_gradients(mine, step)
        set_gradients(its, step)
        optimizer.step()
        reference.step()
        for a, b, old in zip(mine, its, before, strict=True):
            # torch iterates in bf16, so that its updates have two or three digits; the differences add up.
            difference = (a - b).norm() / (b - old).norm()
            assert difference < (step + 1) * (0.03 if dtype == torch.float32 else 0.01)


@every_shape
def test_steps_of_bf16_weights_are_torchs_muon(shape: tuple[int, int]) -> None:
    mine, its = ([nn.Parameter(make(*shape, seed=seed).bfloat16()) for seed in range(2)] for _ in range(2))
    optimizer = muon_alone(mine, torch.bfloat16)
    reference = torch.optim.Muon(its, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        set_gradients(mine, step)
        set_gradients(its, step)
        optimizer.step()
        reference.step()
        for a, b in zip(mine, its, strict=True):
            assert a.dtype == torch.bfloat16
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


def test_a_step_is_decay_and_an_orthogonal_matrix_of_the_size_of_adamws_updates() -> None:
    weight = nn.Parameter(make(16, 40))
    before, weight.grad = weight.detach().clone(), make(16, 40, seed=1)
    muon_alone([weight], torch.float32).step()
    update = weight.detach() - before * (1 - LR * DECAY)
    torch.testing.assert_close(
        update.double(), -LR * 0.2 * 40**0.5 * polynomial_iteration(weight.grad), rtol=0, atol=1e-4
    )
    assert update.square().mean().sqrt().item() == pytest.approx(0.2 * LR, rel=0.2)


def test_matrices_of_several_shapes_take_the_steps_that_each_takes_alone() -> None:
    together = [nn.Parameter(make(*shape)) for shape in SHAPES.values()]
    alone = [nn.Parameter(make(*shape)) for shape in SHAPES.values()]
    optimizers = [muon_alone([matrix], torch.float32) for matrix in alone]
    whole = muon_alone(together, torch.float32)
    for step in range(3):
        set_gradients(together, step)
        set_gradients(alone, step)
        for optimizer in (whole, *optimizers):
            optimizer.step()
    assert all_equal(list(together), list(alone))


def test_a_matrix_without_a_gradient_stays_as_it_is() -> None:
    used, unused = nn.Parameter(make(4, 6)), nn.Parameter(make(4, 6))
    optimizer = muon_alone([used, unused], torch.float32)
    used.grad = make(4, 6, seed=1)
    optimizer.step()
    assert torch.equal(unused, make(4, 6))
    assert not torch.equal(used, make(4, 6))
    assert unused not in optimizer.state


def make_others() -> list[dict[str, Any]]:
    return [
        {"params": [nn.Parameter(make(5, 4)), nn.Parameter(make(3, 2))], "weight_decay": DECAY},
        {"params": [nn.Parameter(make(7))], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("kind", [Muon, AdamW])
def test_all_else_takes_exactly_the_steps_of_torchs_adamw(kind: type[AdamW]) -> None:
    mine, its, matrix = make_others(), make_others(), nn.Parameter(make(4, 4))
    if kind is Muon:
        optimizer = Muon([matrix], mine, lr=LR, betas=BETAS, weight_decay=DECAY, dtype=torch.float32)
    else:
        optimizer = AdamW(mine, lr=LR, betas=BETAS)
    reference = torch.optim.AdamW(its, lr=LR, betas=BETAS, fused=True)
    parameters, others = ([p for group in groups for p in group["params"]] for groups in (mine, its))
    for step in range(4):
        set_gradients([matrix], step)
        set_gradients(parameters, step)
        set_gradients(others, step)
        if step == 2:
            parameters[1].grad = others[1].grad = None
        optimizer.step()
        reference.step()
        assert all_equal(parameters, others)
    for a, b in zip(parameters, others, strict=True):
        assert all_equal(list(optimizer.state[a].values()), [reference.state[b][name] for name in optimizer.state[a]])


@both_kinds
def test_zero_grad_forgets_the_gradients(kind: str) -> None:
    model = make_model()
    optimizer = optimizer_of(model, kind)
    set_gradients(list(model.parameters()), 0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_learning_rate_of_the_groups_holds_for_both_kinds() -> None:
    model = make_model()
    optimizer, before = optimizer_of(model), copies(model)
    take_steps(model, optimizer, range(2), lr=0.0)
    assert all_equal(copies(model), before)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    moved = []
    for lr in (1e-3, 2e-3):
        other = make_model()
        take_steps(other, optimizer_of(other), range(1), lr=lr)
        moved.append([(p - old).norm().item() for p, old in zip(other.parameters(), before, strict=True)])
    assert moved[1] == pytest.approx([2 * length for length in moved[0]], rel=1e-2)


# A step that was no number


@both_kinds
def test_a_step_with_found_inf_changes_no_weight_and_no_momentum(kind: str) -> None:
    model = make_model()
    optimizer = optimizer_of(model, kind)
    take_steps(model, optimizer, range(2))
    before, state = copies(model), tensors_of_state(optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    set_gradients(list(model.parameters()), 2)
    for parameter in model.parameters():
        parameter.grad[0] = torch.nan  # type: ignore[index]
    optimizer.step()
    assert all_equal(copies(model), before)
    after = tensors_of_state(optimizer)
    assert after.keys() == state.keys()
    assert len(state) > len(before)
    assert all(torch.equal(after[key], state[key]) for key in state)


@both_kinds
def test_a_first_step_with_found_inf_changes_no_weight(kind: str) -> None:
    model = make_model()
    optimizer = optimizer_of(model, kind)
    before = copies(model)
    optimizer.found_inf = torch.tensor(1.0)
    take_steps(model, optimizer, range(1))
    assert all_equal(copies(model), before)
    assert not any(x.any() for x in tensors_of_state(optimizer).values())


@both_kinds
def test_found_inf_of_zero_is_none(kind: str) -> None:
    one, other = make_model(), make_model()
    optimizers = [optimizer_of(one, kind), optimizer_of(other, kind)]
    optimizers[0].found_inf = torch.tensor(0.0)
    for model, optimizer in zip((one, other), optimizers, strict=True):
        take_steps(model, optimizer, range(3))
    assert not all_equal(copies(one), copies(make_model()))
    for a, b in zip(copies(one), copies(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@both_kinds
def test_after_found_inf_the_steps_go_on_as_if_that_one_had_not_been(kind: str) -> None:
    one, other = make_model(), make_model()
    with_bad, without = optimizer_of(one, kind), optimizer_of(other, kind)
    for step, is_bad in enumerate([0.0, 1.0, 0.0]):
        with_bad.found_inf = torch.tensor(is_bad)
        take_steps(one, with_bad, range(step, step + 1))
        if not is_bad:
            take_steps(other, without, range(step, step + 1))
    for a, b in zip(copies(one), copies(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# State


@both_kinds
def test_a_loaded_optimizer_goes_on_like_the_one_that_was_saved(kind: str) -> None:
    model = make_model()
    optimizer = optimizer_of(model, kind)
    take_steps(model, optimizer, range(3), lr=0.01)
    saved = copy.deepcopy(optimizer.state_dict())
    twin = copy.deepcopy(model)
    loaded = optimizer_of(twin, kind)
    loaded.load_state_dict(saved)
    assert [group["lr"] for group in loaded.param_groups] == [0.01] * len(optimizer.param_groups)
    take_steps(model, optimizer, range(3, 6))
    take_steps(twin, loaded, range(3, 6))
    assert all_equal(copies(twin), copies(model))
    ours, theirs = tensors_of_state(loaded), tensors_of_state(optimizer)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    take_steps(twin, loaded, range(6, 8), lr=0.0)  # the groups that were loaded are those that count
    assert all_equal(copies(twin), copies(model))


def test_a_loaded_state_is_a_copy() -> None:
    model, twin = make_model(), make_model()
    optimizer, loaded = optimizer_of(model), optimizer_of(twin)
    take_steps(model, optimizer, range(2))
    before = tensors_of_state(optimizer)
    loaded.load_state_dict(optimizer.state_dict())
    take_steps(twin, loaded, range(2))
    after = tensors_of_state(optimizer)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_every_weight_has_its_place_in_the_state() -> None:
    model = make_model()
    optimizer = optimizer_of(model)
    take_steps(model, optimizer, range(1))
    groups = optimizer.param_groups
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    assert [group["weight_decay"] for group in groups] == [DECAY, DECAY, 0.0]
    assert set(optimizer.state) == set(model.parameters())
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            names = {"momentum_buffer"} if number == 0 else {"step", "exp_avg", "exp_avg_sq"}
            assert set(optimizer.state[parameter]) == names


# Which weights


def names_of_hidden(model: nn.Module) -> set[str]:
    hidden = {id(weight) for weight in hidden_matrices(model)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in hidden}


@pytest.mark.parametrize(
    "options", [{}, {"tie_embeddings": True}, {"positions": "rope", "mlp": "swiglu", "num_kv_heads": 1}], ids=str
)
def test_hidden_matrices_are_those_inside_the_blocks(options: dict[str, Any]) -> None:
    model = make_model(**options)
    expected = {name for name, p in model.named_parameters() if name.startswith("blocks.") and p.dim() == 2}
    assert names_of_hidden(model) == expected
    assert len(expected) == 2 * (7 if "mlp" in options else 6)
    optimizer = optimizer_of(model)
    assert isinstance(optimizer, Muon)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in hidden_matrices(model)]


def test_frozen_weights_are_nobodys() -> None:
    model = make_model()
    frozen = [model.blocks[0].mlp.up_proj.weight, model.embedding.weight, model.norm.weight]  # type: ignore[union-attr]
    for parameter in frozen:
        parameter.requires_grad_(False)  # type: ignore[operator]
    assert len(hidden_matrices(model)) == 11
    taken = {id(p) for group in optimizer_of(model).param_groups for p in group["params"]}
    assert taken == {id(p) for p in model.parameters() if p.requires_grad}
    assert not taken & {id(p) for p in frozen}


def test_a_weight_that_is_also_an_embedding_or_shared_by_layers_counts_as_what_it_is() -> None:
    embedding, shared = nn.Embedding(6, 6), nn.Linear(6, 6)
    inverse = nn.Linear(6, 6)
    inverse.weight = embedding.weight
    model = nn.Sequential(embedding, shared, inverse, shared, nn.Linear(6, 6))
    twin = nn.Linear(6, 6)
    twin.weight = shared.weight
    model.insert(2, twin)
    assert [id(weight) for weight in hidden_matrices(model)] == [id(shared.weight)]


@pytest.mark.parametrize("make_any", [lambda: nn.Linear(4, 4), lambda: nn.Embedding(4, 4), lambda: nn.Conv1d(4, 4, 3)])
def test_a_model_without_hidden_matrices_gets_adamw(make_any: Callable[[], nn.Module]) -> None:
    assert hidden_matrices(make_any()) == []
    assert type(optimizer_of(make_any())) is AdamW


def test_muon_is_for_those_who_ask_for_it() -> None:
    assert type(optimizer_of(make_model(), "adamw")) is AdamW
    assert type(optimizer_of(make_model())) is Muon


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [
        ("cpu", "fp32", torch.float32),
        ("cpu", "bf16", torch.bfloat16),
        ("mps", "fp32", torch.float32),
        ("cuda", "fp32", torch.float32),
    ],
)
def test_the_iteration_is_in_bf16_where_that_is_fast(device: str, precision: str, dtype: torch.dtype) -> None:
    optimizer = optimizer_of(make_model(), machine=Machine(torch.device(device), precision, 1, ""))
    assert isinstance(optimizer, Muon)
    assert optimizer.dtype == dtype
