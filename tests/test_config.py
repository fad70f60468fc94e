"""Laws of the settings: names, defaults, rules, and what importing them may load."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config import (
    CONFIGS,
    FIELDS,
    DataConfig,
    ModelConfig,
    RunOptions,
    TaskConfig,
    TrainConfig,
    UserError,
    kind_of,
)

ORIGINAL = {
    "vocab_size": ("int", 10000),
    "embed_dim": ("int", 128),
    "num_heads": ("int", 4),
    "num_layers": ("int", 2),
    "hidden_dim": ("int", 512),
    "max_seq_len": ("int", 128),
    "batch_size": ("int", 32),
    "learning_rate": ("float", 1e-3),
    "epochs": ("int", 5),
    "seed": ("int", 42),
    "model_dir": ("str | None", "."),
}
ARCHITECTURE = {
    "dropout": ("float", 0.0),
    "bias": ("bool", True),
    "tie_embeddings": ("bool", False),
    "positions": ("str", "learned"),
    "norm": ("str", "layernorm"),
    "mlp": ("str", "gelu"),
    "num_kv_heads": ("int | None", None),
    "qk_norm": ("bool", False),
    "embedding_norm": ("bool", False),
    "zero_init": ("bool", False),
}
# For each numeric field: values at the edge that it takes, and values that it refuses.
AT_LEAST_1 = ((1, 3), (0, -1))
AT_LEAST_0 = ((0, 3), (-1,))
ABOVE_0 = ((1e-9, 2.5), (0.0, -1e-9))
NOT_NEGATIVE = ((0.0, 2.5), (-1e-9, -1.0))
SHARE = ((0.0, 0.999), (-1e-9, 1.0, 1.5))
INSIDE = ((1e-9, 0.999), (0.0, 1.0, -0.1))
NUMERIC: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "vocab_size": ((2, 3), (1, 0, -1)),
    "embed_dim": AT_LEAST_1,
    "num_heads": AT_LEAST_1,
    "num_layers": AT_LEAST_1,
    "hidden_dim": AT_LEAST_1,
    "max_seq_len": AT_LEAST_1,
    "num_kv_heads": AT_LEAST_1,
    "dropout": SHARE,
    "rope_base": ABOVE_0,
    "norm_eps": ABOVE_0,
    "val_fraction": INSIDE,
    "batch_size": AT_LEAST_1,
    "micro_batch_size": AT_LEAST_1,
    "learning_rate": ABOVE_0,
    "epochs": AT_LEAST_1,
    "max_steps": AT_LEAST_1,
    "seed": AT_LEAST_0,
    "warmup_steps": AT_LEAST_0,
    "decay_steps": AT_LEAST_1,
    "val_tokens": AT_LEAST_1,
    "max_minutes": ((0.5, 1440.0), (0.0, -1.0, 1440.5)),
    "min_learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "beta1": SHARE,
    "beta2": SHARE,
    "max_grad_norm": NOT_NEGATIVE,
    "eval_every": AT_LEAST_1,
    "log_every": AT_LEAST_1,
    "sample_every": AT_LEAST_0,
    "threads": AT_LEAST_1,
    "document_start": AT_LEAST_0,
    "patience": AT_LEAST_1,
    "save_every": AT_LEAST_1,
    "keep_last": AT_LEAST_1,
    "lora_rank": AT_LEAST_1,
    "token_dropout": SHARE,
    "num_beams": AT_LEAST_1,
    "length_penalty": ((0.0, 10.0), (-1e-9, 10.5)),
}
# What else must be set, so that only the field in question can be refused.
COMPANIONS: dict[str, dict[str, Any]] = {
    "embed_dim": {"num_heads": 1},
    "num_heads": {"embed_dim": 6},
    "num_kv_heads": {"embed_dim": 6, "num_heads": 3},
    "min_learning_rate": {"learning_rate": 10.0},
    "also_evaluate": {"init_from": "run"},
    "trainable": {"init_from": "run", "task": "classification"},
}
REFUSED = [(name, value) for name, (_, refused) in NUMERIC.items() for value in refused]
ACCEPTED = [(name, value) for name, (accepted, _) in NUMERIC.items() for value in accepted]


def make(name: str, value: Any) -> Any:
    """The value that a configuration holds after one field was set to `value`."""
    config = next(c for c in CONFIGS if name in {f.name for f in dataclasses.fields(c)})
    return getattr(config(**{**COMPANIONS.get(name, {}), name: value}), name)


@pytest.mark.parametrize("name", ORIGINAL | ARCHITECTURE)
def test_flags_of_the_original_program_keep_name_type_and_default(name: str) -> None:
    field = FIELDS[name]
    kind, default = (ORIGINAL | ARCHITECTURE)[name]
    assert str(field.type) == kind
    assert field.default == default
    assert type(field.default) is type(default)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_default_obeys_its_own_rule(config: Any) -> None:
    for name, value in dataclasses.asdict(config()).items():
        assert value == FIELDS[name].default


def test_every_numeric_field_has_a_law_here() -> None:
    assert {name for name, field in FIELDS.items() if kind_of(field) in ("int", "float")} == set(NUMERIC)


def test_every_numeric_field_states_a_rule() -> None:
    assert [name for name in NUMERIC if FIELDS[name].metadata["rule"] is None] == []


@pytest.mark.parametrize(("name", "value"), ACCEPTED)
def test_values_on_the_right_side_of_the_rule_are_taken(name: str, value: Any) -> None:
    assert make(name, value) == value


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_values_on_the_wrong_side_of_the_rule_are_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name} = {re.escape(repr(value))}: must be .+\.$"):
        make(name, value)


@pytest.mark.parametrize("name", NUMERIC)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "7", "", True, False, [7], 7j, b"7"], ids=repr)
def test_numeric_fields_refuse_what_is_no_finite_number(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name} = {re.escape(repr(value))}: must be .+\.$"):
        make(name, value)


@pytest.mark.parametrize("name", [name for name in NUMERIC if kind_of(FIELDS[name]) == "int"])
def test_int_fields_refuse_floats_even_whole_ones(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} = 4\.0: "):
        make(name, 4.0)


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_taken_exactly_where_the_type_says_so(name: str) -> None:
    if str(FIELDS[name].type).endswith("| None"):
        assert make(name, None) is None
    else:
        with pytest.raises(UserError, match=rf"^{name} = None: must be "):
            make(name, None)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if kind_of(field) == "bool"])
@pytest.mark.parametrize("value", [0, 1, "true", "", 1.0], ids=repr)
def test_bool_fields_take_only_bools(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name} = {re.escape(repr(value))}: must be a bool"):
        make(name, value)


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if kind_of(field) == "str"])
@pytest.mark.parametrize("value", [0, True, b"x", ["x"]], ids=repr)
def test_str_fields_take_only_str(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name} = {re.escape(repr(value))}: must be a str"):
        make(name, value)


SEVERAL = [name for name, field in FIELDS.items() if kind_of(field) == "strs"]


@pytest.mark.parametrize("name", SEVERAL)
@settings(deadline=None)
@given(values=st.lists(st.text(), min_size=1))
def test_one_str_is_a_tuple_of_one_and_a_list_is_a_tuple(name: str, values: list[str]) -> None:
    assert make(name, values[0]) == (values[0],)
    assert make(name, values) == make(name, tuple(values)) == tuple(values)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("value", [[], (), 0, True, b"x", ["x", 3], [None], [["x"]], {"x": 1}, {"x"}], ids=repr)
def test_fields_of_several_strs_refuse_all_else(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^{name} = {re.escape(repr(value))}: must be a path, .* or a list of them"):
        make(name, value)


def test_sources_are_the_settings_that_take_several() -> None:
    assert SEVERAL == ["data", "val_data", "also_evaluate", "target_file"]


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.metadata["choices"]])
def test_choices_are_the_only_values_and_the_message_lists_them(name: str) -> None:
    choices = FIELDS[name].metadata["choices"]
    assert [make(name, choice) for choice in choices] == list(choices)
    with pytest.raises(UserError, match=re.escape(f"{name} = 'nothing': must be one of {', '.join(choices)}.")):
        make(name, "nothing")


@pytest.mark.parametrize("name", [name for name in NUMERIC if kind_of(FIELDS[name]) == "float"])
def test_whole_numbers_are_floats_in_float_fields(name: str) -> None:
    accepted = 0 if NUMERIC[name] in (SHARE, NOT_NEGATIVE) else 1
    if NUMERIC[name] is INSIDE:
        return
    value = make(name, accepted)
    assert type(value) is float
    assert value == accepted


@pytest.mark.parametrize("make_number", [np.int64, np.int32, np.uint16])
@pytest.mark.parametrize("name", [name for name in NUMERIC if kind_of(FIELDS[name]) == "int"])
def test_numpy_integers_become_ints(name: str, make_number: type[np.integer[Any]]) -> None:
    value = make(name, make_number(3))
    assert type(value) is int
    assert value == 3


def test_numpy_floats_become_floats() -> None:
    value = TrainConfig(learning_rate=np.float64(0.25)).learning_rate  # type: ignore[arg-type]
    assert type(value) is float
    assert value == 0.25


def test_an_int_too_large_for_a_float_is_a_user_error() -> None:
    with pytest.raises(UserError, match="learning_rate"):
        TrainConfig(learning_rate=10**400)


@pytest.mark.parametrize("config", CONFIGS)
def test_configurations_are_frozen(config: Any) -> None:
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config(), name, 1)


@pytest.mark.parametrize("config", CONFIGS)
def test_configurations_are_keyword_only(config: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        config(dataclasses.fields(config)[0].default)


@pytest.mark.parametrize("config", CONFIGS)
def test_equal_settings_are_equal_configurations(config: Any) -> None:
    assert config() == config()
    assert dataclasses.replace(config()) == config()


@settings(deadline=None, max_examples=200)
@given(embed_dim=st.integers(1, 4096), num_heads=st.integers(1, 64))
def test_every_width_that_the_message_proposes_works(embed_dim: int, num_heads: int) -> None:
    if embed_dim % num_heads == 0:
        assert ModelConfig(embed_dim=embed_dim, num_heads=num_heads).head_dim * num_heads == embed_dim
        return
    with pytest.raises(UserError, match=f"embed_dim = {embed_dim} .* num_heads = {num_heads}") as caught:
        ModelConfig(embed_dim=embed_dim, num_heads=num_heads)
    proposed = [int(number) for number in re.findall(r"\d+", str(caught.value).partition("Try embed_dim = ")[2])]
    assert proposed
    for width in proposed:
        assert abs(width - embed_dim) < num_heads
        ModelConfig(embed_dim=width, num_heads=num_heads)


@settings(deadline=None)
@given(num_heads=st.integers(1, 24), num_kv_heads=st.integers(1, 24))
def test_key_heads_must_divide_query_heads(num_heads: int, num_kv_heads: int) -> None:
    keys = {"embed_dim": 2 * num_heads, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
    if num_heads % num_kv_heads:
        with pytest.raises(UserError, match=f"num_heads = {num_heads} .* num_kv_heads = {num_kv_heads}"):
            ModelConfig(**keys)
    else:
        assert ModelConfig(**keys).kv_heads == num_kv_heads


def test_key_heads_default_to_query_heads() -> None:
    assert ModelConfig(num_heads=8).kv_heads == 8


def test_rotation_refuses_an_odd_head_dim() -> None:
    ModelConfig(embed_dim=6, num_heads=2, positions="learned")
    with pytest.raises(UserError, match=r"head_dim .* 3 is odd"):
        ModelConfig(embed_dim=6, num_heads=2, positions="rope")


def test_learning_rate_cannot_end_above_its_peak() -> None:
    TrainConfig(learning_rate=1e-3, min_learning_rate=1e-3)
    with pytest.raises(UserError, match=r"min_learning_rate = 0\.01 is above learning_rate = 0\.001"):
        TrainConfig(learning_rate=1e-3, min_learning_rate=0.01)


@settings(deadline=None)
@given(vocab_size=st.integers(2, 100), document_start=st.integers(0, 200))
def test_a_document_starts_with_a_token_of_the_vocabulary(vocab_size: int, document_start: int) -> None:
    keys = {"vocab_size": vocab_size, "document_start": document_start}
    if document_start < vocab_size:
        assert ModelConfig(**keys).document_start == document_start
    else:
        with pytest.raises(UserError, match=f"document_start = {document_start}: .* vocab_size = {vocab_size}"):
            ModelConfig(**keys)


def test_user_error_is_a_value_error() -> None:
    assert issubclass(UserError, ValueError)


def test_no_field_name_appears_twice() -> None:
    names = [field.name for config in CONFIGS for field in dataclasses.fields(config)]
    assert len(names) == len(set(names))
    assert list(FIELDS) == names
    assert set(CONFIGS) == {ModelConfig, DataConfig, TrainConfig, TaskConfig, RunOptions}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_help_and_a_group(name: str) -> None:
    metadata = FIELDS[name].metadata
    assert len(metadata["help"].strip()) > 10
    assert metadata["group"]


def test_every_field_is_of_a_kind_that_flags_can_carry() -> None:
    assert {kind_of(field) for field in FIELDS.values()} <= {"int", "float", "bool", "str", "strs"}


def test_training_settings_stay_within_their_budget() -> None:
    assert sum(len(dataclasses.fields(config)) for config in (DataConfig, ModelConfig, TrainConfig)) <= 60


@pytest.mark.parametrize(
    "module",
    [
        *("slm", "slm.config", "slm.settings", "slm.storage.files", "slm.storage.listing"),
        *("slm.cli.train", "slm.cli.generate", "slm.cli.prepare"),
    ],
)
def test_importing_loads_no_heavy_library(module: str) -> None:
    heavy = ("torch", "numpy", "fsspec", "tokenizers", "rich", "google.cloud.storage")
    program = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["slm.data.tokenizer", "slm.data.prepare", "slm.cli.prepare"])
def test_importing_what_makes_tokens_loads_no_torch(module: str) -> None:
    program = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_preparing_data_loads_no_torch(tmp_path: Path, text_file: str) -> None:
    program = (
        "import sys; from slm.cli.prepare import main;"
        f"code = main(['--quiet', '--data', {text_file!r}, '--vocab_size', '300', '--out', {str(tmp_path / 'out')!r}]);"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 False"
    assert (tmp_path / "out" / "manifest.json").exists()


def test_making_the_flags_loads_no_torch() -> None:
    program = (
        "import sys; from slm.cli.train import make_parser; make_parser(everything=True).format_help();"
        "from slm.settings import layered; layered({'epochs': 3}, 'flag'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
