"""Laws of speed: operations are counted as torch counts them, and a peak is what the fastest product reaches."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import every_combination
from torch.utils.flop_counter import FlopCounterMode

from slm.config import ModelConfig
from slm.metrics import speed
from slm.metrics.speed import flops_per_token, matrix_parameters, measured_peak, peak_flops
from slm.model import LanguageModel, WithLoss
from slm.training import budget

CPU = torch.device("cpu")
SIZES = {"vocab_size": 23, "embed_dim": 16, "num_heads": 4, "num_layers": 2, "hidden_dim": 12, "max_seq_len": 8}


@every_combination
def test_operations_of_a_token_are_those_that_torch_counts_in_a_step(options: dict[str, Any]) -> None:
    config = ModelConfig(**SIZES, **options, bias=False)
    model = LanguageModel(config)
    tokens = torch.arange(4 * 8).view(4, 8) % 23
    with FlopCounterMode(display=False) as counter:
        WithLoss(model)(tokens, tokens).backward()
    # torch counts matrix products alone, and not those inside the fused attention that shared keys need.
    scales = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    inside = 12 * config.num_layers * config.max_seq_len * config.embed_dim if config.num_kv_heads else 0
    assert counter.get_total_flops() / tokens.numel() == flops_per_token(config) - 6 * scales - inside


def test_the_plan_counts_with_the_same_functions() -> None:
    assert budget.flops_per_token is flops_per_token
    assert budget.matrix_parameters is matrix_parameters


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second whenever it is looked at."""
    seconds = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(seconds)))


@pytest.mark.usefixtures("ticking")
def test_a_product_of_n_k_m_is_2nkm_operations_and_the_fastest_counts() -> None:
    assert peak_flops(CPU, "fp32", [(3, 4, 5)]) == 2 * 3 * 4 * 5
    assert peak_flops(CPU, "fp32", [(3, 4, 5), (6, 7, 8), (2, 2, 2)]) == 2 * 6 * 7 * 8


@pytest.mark.usefixtures("ticking")
def test_a_slow_machine_is_measured_at_the_smallest_shape_alone() -> None:
    assert peak_flops(CPU, "fp32") == 2 * 256**3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_peak_is_measured_at_once_and_leaves_the_random_streams_alone(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    products = speed._products
    monkeypatch.setattr(
        speed, "_products", lambda a, b, calls: (seen.update((a.dtype, b.dtype)), products(a, b, calls))
    )
    before = torch.get_rng_state()
    start = time.perf_counter()
    assert 1e6 < peak_flops(CPU, precision) < 1e16
    assert time.perf_counter() - start < 5  # on a busy machine; else 0.1
    assert torch.equal(torch.get_rng_state(), before)
    assert seen == {speed.DTYPES[precision]}


@pytest.fixture
def forgotten() -> Iterator[None]:
    measured_peak.cache_clear()
    yield
    measured_peak.cache_clear()


@pytest.mark.usefixtures("forgotten")
def test_a_peak_is_measured_once_for_each_precision_and_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(device: torch.device, precision: str) -> float:
        asked.append((str(device), precision, torch.get_num_threads()))
        return 100.0 * len(asked)

    monkeypatch.setattr(speed, "peak_flops", measure)
    before = torch.get_num_threads()
    assert [measured_peak("cpu", "fp32", 2), measured_peak("cpu", "bf16", 2), measured_peak("cpu", "fp32", 1)] == [
        100, 200, 300,
    ]  # fmt: skip
    assert measured_peak("cpu", "fp32", 2) == 100
    assert asked == [("cpu", "fp32", 2), ("cpu", "bf16", 2), ("cpu", "fp32", 1)]
    assert torch.get_num_threads() == before
