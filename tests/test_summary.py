"""Laws of the summary: parameters and operations add up exactly, and many layers make no long table."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import every_combination, small_model
from torch import nn

import slm
from slm.config import ModelConfig
from slm.metrics.speed import flops_per_token
from slm.metrics.summary import HEADER, summary
from slm.model import LanguageModel, WithLoss


@st.composite
def configurations(draw: st.DrawFn) -> ModelConfig:
    """Any model, also one far too large for this machine."""
    heads, head_dim, groups = draw(st.integers(1, 6)), 2 * draw(st.integers(1, 40)), draw(st.integers(1, 3))
    options = {
        "positions": draw(st.sampled_from(("learned", "rope"))),
        "norm": draw(st.sampled_from(("layernorm", "rmsnorm"))),
        "mlp": draw(st.sampled_from(("gelu", "relu2", "swiglu"))),
        **{name: draw(st.booleans()) for name in ("bias", "tie_embeddings", "qk_norm", "embedding_norm", "zero_init")},
    }
    return ModelConfig(
        vocab_size=draw(st.integers(2, 10**6)),
        embed_dim=heads * groups * head_dim,
        num_heads=heads * groups,
        num_kv_heads=draw(st.sampled_from((None, heads))),
        num_layers=draw(st.integers(1, 5)),
        hidden_dim=draw(st.integers(1, 10**5)),
        max_seq_len=draw(st.integers(1, 1000)),
        **options,
    )


@settings(max_examples=60, deadline=None)
@given(configurations())
def test_the_rows_add_up_to_the_model(config: ModelConfig) -> None:
    found = summary(config)
    assert sum(row.parameters for row in found.rows) == found.num_parameters == config.num_parameters
    assert sum(row.flops for row in found.rows) == found.flops_per_token == flops_per_token(config)
    attention = [row for row in found.rows if row.kind == "product"]
    assert sum(row.flops for row in attention) == 12 * config.num_layers * config.max_seq_len * config.embed_dim


@every_combination
def test_each_row_tells_of_its_module(options: dict[str, Any]) -> None:
    model = small_model(**options)
    modules = dict(model.named_modules())
    found = summary(model)
    for row in found.rows:
        if row.kind == "product":
            assert (row.parameters, row.times) == (0, 2)
            continue
        module = modules[row.name]
        assert row.kind == type(module).__name__
        own = list(module.parameters(recurse=False))
        assert row.weights == tuple(" x ".join(map(str, p.shape)) for p in own)
        assert row.times == (2 if row.name.startswith("blocks.0.") else 1)
        assert row.parameters == row.times * sum(p.numel() for p in own)
    told = {row.name for row in found.rows}
    for name, module in modules.items():
        if list(module.parameters(recurse=False)):
            assert re.sub(r"blocks\.\d", "blocks.0", name) in told


def test_a_configuration_needs_no_memory_and_draws_no_number() -> None:
    before = torch.get_rng_state()
    config = ModelConfig(vocab_size=10**7, embed_dim=2**16, num_heads=2**8, num_layers=3, hidden_dim=2**18)
    assert summary(config).num_parameters == config.num_parameters > 10**12
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_and_its_configuration_have_the_same_summary() -> None:
    model = small_model(num_kv_heads=2, positions="rope", tie_embeddings=True)
    assert str(summary(model)) == str(summary(model.config))


def test_more_layers_make_no_longer_table() -> None:
    one, many = (summary(ModelConfig(num_layers=layers)) for layers in (1, 12))
    assert [row.name for row in one.rows] == [row.name for row in many.rows]
    assert {row.times for row in many.rows if row.name.startswith("blocks.")} == {12}
    assert "x 12" in str(many)


def test_tied_embeddings_count_once_and_the_table_says_so() -> None:
    config = ModelConfig(tie_embeddings=True)
    found = summary(config)
    head = next(row for row in found.rows if row.name == "lm_head")
    assert head.parameters == 0
    assert head.weights == ("= embedding.weight",)
    assert head.flops == 6 * config.vocab_size * config.embed_dim
    assert "= NAME" in str(found)
    assert "= NAME" not in str(summary(ModelConfig()))


def test_the_table_is_aligned_and_ends_with_the_totals() -> None:
    config = ModelConfig(num_layers=3)
    lines = str(summary(config)).splitlines()
    assert f"{config.num_parameters:,}" in lines[0]
    rules = [number for number, line in enumerate(lines) if set(line) == {"-"}]
    table = [lines[1], *lines[3 : rules[1]], lines[rules[1] + 1]]
    assert table[0].split("  ")[0] == HEADER[0]
    assert {len(line) for line in table} == {len(lines[2])}  # the last column is flush right
    assert table[-1].split() == [
        "total", f"{config.num_parameters:,}", f"{int(flops_per_token(config)):,}", "100.0", "%",
    ]  # fmt: skip
    assert "12 x window x width" in lines[-1]


def test_any_module_will_do_and_shared_weights_count_once() -> None:
    shared = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(nn.Linear(2, 3), shared, nn.ReLU(), shared, nn.Conv1d(1, 1, 2), nn.LayerNorm(3))
    found = summary(model)
    assert found.num_parameters == sum(p.numel() for p in model.parameters())
    assert [(row.name, row.weights, row.flops) for row in found.rows] == [
        ("0", ("3 x 2", "3"), 6 * 9),
        ("1", ("3 x 3",), 6 * 9),
        ("3", ("= 1.weight",), 6 * 9),
        ("4", ("1 x 1 x 2", "1"), 0),
        ("5", ("3", "3"), 0),
    ]
    assert "nn.Linear alone" in str(found)


def test_only_blocks_that_are_alike_and_neighbours_are_one_group() -> None:
    model = nn.Sequential(*(nn.Linear(size, size) for size in (2, 2, 3, 2)))
    assert [(row.name, row.times) for row in summary(model).rows] == [("0", 2), ("2", 1), ("3", 1)]
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in "ab"})  # names of their own say what they are
    assert [row.name for row in summary(model).rows] == ["a", "b"]


def test_a_module_around_a_model_is_not_called_a_language_model() -> None:
    model = LanguageModel(ModelConfig())
    found = summary(WithLoss(model))
    assert found.num_parameters == model.config.num_parameters
    assert found.title.startswith("WithLoss of")


def test_names_are_escaped_in_a_notebook() -> None:
    found = summary(nn.ModuleDict({"<b>&": nn.Linear(1, 1)}))._repr_html_()
    assert "<b>" not in found
    assert "&lt;b&gt;&amp;" in found
    html = summary(ModelConfig())._repr_html_()
    for cells in summary(ModelConfig()).cells():
        assert all(cell in html for cell in cells)


@pytest.mark.parametrize("what", [5, "run", None, LanguageModel])
def test_what_is_no_model_is_refused(what: Any) -> None:
    with pytest.raises(slm.UserError, match=r"run\.model"):
        slm.summary(what)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_module_without_sizes_is_refused() -> None:
    with pytest.raises(slm.UserError, match=r"0\.weight"):
        summary(nn.Sequential(nn.LazyLinear(3)))


def test_an_empty_module_has_an_empty_table() -> None:
    assert str(summary(nn.ReLU())).splitlines()[0] == "ReLU of 0 parameters"


def test_the_summary_of_a_configuration_loads_no_compiler_and_draws_nothing() -> None:
    script = """
import sys, torch
from slm.config import ModelConfig
from slm.metrics.summary import summary
state = torch.get_rng_state()
for positions in ("learned", "rope"):
    summary(ModelConfig(positions=positions, norm="rmsnorm", mlp="swiglu", qk_norm=True))
print("torch._dynamo" in sys.modules, torch.equal(state, torch.get_rng_state()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
