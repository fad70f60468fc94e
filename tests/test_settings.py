"""Laws of the layers of settings and of config.toml."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as law
from hypothesis import strategies as st

from slm.config import CONFIGS, FIELDS, PRESETS, RECIPES, RunOptions, UserError, kind_of
from slm.recipes import TASK_PRESETS
from slm.settings import (
    MARKER,
    Settings,
    as_settings,
    flat,
    layered,
    merge,
    nearest,
    read_config,
    read_table,
    read_toml,
    write_config,
)

OPTIONS = {field.name for field in dataclasses.fields(RunOptions)}
COUNTS = st.integers(1, 2**62)
# Quotes, backslashes, line breaks, control characters and letters outside ASCII come often.
TEXTS = st.text(st.one_of(st.sampled_from("\"'\\\n\r\t\x00\x7f#=[]é漢😀\u2028"), st.characters(codec="utf-8")))
SHARES = st.floats(0, 1, exclude_min=True, exclude_max=True)
OPTIONAL_COUNTS = st.none() | COUNTS
ONE_OR_SEVERAL = TEXTS | st.lists(TEXTS, min_size=1, max_size=3)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "vocab_size": st.integers(2, 2**40),
    "num_layers": COUNTS,
    "hidden_dim": COUNTS,
    "max_seq_len": COUNTS,
    "dropout": SHARES,
    "bias": st.booleans(),
    "tie_embeddings": st.booleans(),
    "qk_norm": st.booleans(),
    "norm": st.sampled_from(["layernorm", "rmsnorm"]),
    "mlp": st.sampled_from(["gelu", "relu2", "swiglu"]),
    "positions": st.sampled_from(["learned", "rope"]),
    "norm_eps": st.floats(5e-324, 1e308),
    "document_start": st.none() | st.integers(0, 1),
    "data": st.none() | ONE_OR_SEVERAL,
    "val_data": st.none() | ONE_OR_SEVERAL,
    "text_field": TEXTS,
    "split_documents_on": st.none() | TEXTS,
    "mask_documents": st.booleans(),
    "tokenizer": TEXTS,
    "val_fraction": SHARES,
    "batch_size": COUNTS,
    "micro_batch_size": OPTIONAL_COUNTS,
    "learning_rate": st.floats(1e-3, 1e300) | st.integers(1, 9),
    "min_learning_rate": st.floats(0, 1e-3),
    "epochs": COUNTS,
    "max_steps": OPTIONAL_COUNTS,
    "seed": st.integers(0, 2**63 - 1),
    "warmup_steps": st.none() | st.integers(0, 10**9),
    "device": TEXTS,
    "schedule": st.sampled_from(["linear", "cosine", "constant"]),
    "eval_every": OPTIONAL_COUNTS,
    "threads": st.none() | st.integers(1, 1024),
}
SETTINGS = st.fixed_dictionaries({}, optional=VALUES)
INVOCATION = st.fixed_dictionaries(
    {},
    optional={"model_dir": st.none() | TEXTS, **dict.fromkeys(("overwrite", "recheck", "quiet"), st.booleans())},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


def write(folder: Path, content: str | bytes, name: str = "config.toml") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def meant(values: dict[str, Any]) -> dict[str, Any]:
    """The values as a configuration holds them: one or several strings are a tuple."""
    several = {name for name in values if kind_of(FIELDS[name]) == "strs" and values[name] is not None}
    tuples = {name: (values[name],) if isinstance(values[name], str) else tuple(values[name]) for name in several}
    return values | tuples


def asked_of(settings: Settings) -> tuple[Any, ...]:
    """The configurations that a run remembers."""
    return settings.data, settings.task, settings.model, settings.train


def test_no_layers_give_the_defaults() -> None:
    settings = merge({})
    assert (*asked_of(settings), settings.options) == tuple(config() for config in CONFIGS)
    assert settings.origins == {}
    assert settings.asked() == {}


@law(deadline=None, max_examples=60)
@given(layers=st.lists(st.tuples(SETTINGS, INVOCATION).map(lambda pair: pair[0] | pair[1]), max_size=4))
def test_later_layers_win_and_origins_name_the_last_that_set_each(layers: list[dict[str, Any]]) -> None:
    settings = merge({f"layer {index}": keys for index, keys in enumerate(layers)})
    expected = {name: field.default for name, field in FIELDS.items()}
    origins = {}
    for index, keys in enumerate(layers):
        expected.update(keys)
        origins.update(dict.fromkeys(keys, f"layer {index}"))
    assert flat(*asked_of(settings), settings.options) == meant(expected)
    assert settings.origins == origins


@pytest.mark.parametrize(
    ("name", "suggestion"), [("learning_rat", "learning_rate"), ("embed_dims", "embed_dim"), ("Seed", "seed")]
)
def test_an_unknown_name_is_refused_with_the_nearest_and_its_layer(name: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=rf"{name} is not a setting \(my layer\)\. Did you mean {suggestion}\?"):
        merge({"first": {"epochs": 1}, "my layer": {name: 1}})


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert nearest("zzzzqqqq", FIELDS) == ""
    with pytest.raises(UserError, match=r"zzzzqqqq is not a setting \(flag\)\.$"):
        merge({"flag": {"zzzzqqqq": 1}})


def test_a_bad_value_is_refused_in_whichever_layer_it_stays() -> None:
    with pytest.raises(UserError, match="epochs = 0"):
        merge({"file": {"epochs": 0}})
    assert merge({"file": {"epochs": 0}, "flag": {"epochs": 1}}).train.epochs == 1


@law(deadline=None, max_examples=100)
@given(asked=SETTINGS, resolved=SETTINGS, versions=st.dictionaries(st.text(min_size=1), TEXTS, max_size=3))
def test_what_is_written_to_config_toml_is_read_back(
    folder: Path, asked: dict[str, Any], resolved: dict[str, Any], versions: dict[str, str]
) -> None:
    path = write(folder, write_config(asked, resolved, versions))
    assert read_config(path) == present(asked)
    assert read_table(str(folder), "resolved") == present(resolved)
    assert read_table(str(folder), "made_with") == versions
    kinds = {name: type(value) for name, value in present(asked).items()}
    assert {name: type(value) for name, value in read_config(path).items()} == kinds


@law(deadline=None, max_examples=60)
@given(keys=SETTINGS)
def test_a_run_of_its_own_config_toml_asks_for_the_same(folder: Path, keys: dict[str, Any]) -> None:
    settings = merge({"keyword": keys})
    path = write(folder, write_config(settings.asked(), flat(*asked_of(settings)), {}))
    again = layered({"config": path}, "flag")
    assert asked_of(again) == asked_of(settings)
    assert again.asked() == settings.asked()


@law(deadline=None, max_examples=60)
@given(keys=SETTINGS)
def test_a_repeated_run_has_the_resolved_settings(folder: Path, keys: dict[str, Any]) -> None:
    settings = merge({"keyword": keys})
    write(folder, write_config({"epochs": 77}, flat(*asked_of(settings)), {}))
    again = layered({"repeat": str(folder)}, "flag")
    assert asked_of(again) == asked_of(settings)


def test_config_toml_begins_with_the_marker_of_a_run() -> None:
    assert write_config({"epochs": 1}, {}, {}).decode().startswith(MARKER)


def test_none_is_left_out_of_config_toml() -> None:
    written = write_config({"max_steps": None, "epochs": 3}, {"threads": None}, {"torch": None}).decode()
    assert "epochs = 3" in written
    assert not any(name in written for name in ("max_steps", "threads", "torch"))


@pytest.mark.parametrize("content", [b"epochs = ", b"epochs = 1\nepochs = 2\n", b"= 3", b'data = "caf\xe9"\n'])
def test_a_file_that_is_not_toml_is_a_user_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content, "mine.toml")
    with pytest.raises(UserError, match=r"mine\.toml is not a valid TOML file"):
        read_toml(path)
    with pytest.raises(UserError, match=r"mine\.toml"):
        layered({"config": path}, "flag")


def test_a_missing_config_file_is_named(tmp_path: Path) -> None:
    for keys in ({"config": str(tmp_path / "nowhere.toml")}, {"repeat": str(tmp_path / "nowhere")}):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            layered(keys, "flag")


@pytest.mark.parametrize("table", ["model", "data", "train", "training"])
def test_a_table_of_the_users_own_is_refused_not_ignored(tmp_path: Path, table: str) -> None:
    path = write(tmp_path, f"epochs = 2\n[{table}]\nembed_dim = 64\n")
    with pytest.raises(UserError, match=table):
        layered({"config": path}, "flag")


def test_an_unknown_name_in_a_file_is_refused_with_the_path(tmp_path: Path) -> None:
    path = write(tmp_path, "epoch = 2\n", "mine.toml")
    with pytest.raises(UserError, match=r"epoch is not a setting \(.*mine\.toml\)\. Did you mean epochs\?"):
        layered({"config": path}, "flag")


@law(deadline=None, max_examples=60)
@given(inside=SETTINGS, flags=SETTINGS)
def test_flags_win_over_the_file(folder: Path, inside: dict[str, Any], flags: dict[str, Any]) -> None:
    path = write(folder, write_config(inside, {"epochs": 99}, {}))
    settings = layered({**flags, "config": path}, "flag")
    defaults = {name: FIELDS[name].default for name in FIELDS}
    expected = {**defaults, **present(inside), **flags, "config": path}
    assert flat(*asked_of(settings), settings.options) == meant(expected)
    expected_origins = dict.fromkeys(present(inside), path) | dict.fromkeys([*flags, "config"], "flag")
    assert settings.origins == expected_origins


def a_run(folder: Path) -> str:
    write(folder, write_config({"epochs": 3}, {"epochs": 3, "num_layers": 1}, {}))
    return str(folder)


@pytest.mark.parametrize("others", [{"epochs": 4}, {"data": "x"}, {"embed_dim": 8, "seed": 1}, {"config": "c.toml"}])
def test_repeat_refuses_other_settings_by_name(tmp_path: Path, others: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"drop {', '.join(sorted(others))}"):
        layered({"repeat": a_run(tmp_path), **others}, "flag")


@pytest.mark.parametrize(
    "kept", [(), ("model_dir",), ("overwrite",), ("recheck",), ("model_dir", "overwrite", "quiet")]
)
def test_repeat_takes_what_concerns_the_invocation(tmp_path: Path, kept: tuple[str, ...]) -> None:
    values = {"model_dir": "elsewhere", "overwrite": True, "recheck": True, "quiet": True}
    settings = layered({"repeat": a_run(tmp_path), **{name: values[name] for name in kept}}, "flag")
    assert settings.train.epochs == 3
    assert settings.model.num_layers == 1
    for name in kept:
        assert getattr(settings.options, name) == values[name]


def test_repeat_needs_the_table_that_a_run_leaves(tmp_path: Path) -> None:
    write(tmp_path, "epochs = 3\n")
    with pytest.raises(UserError, match=r"config\.toml has no \[resolved\] table"):
        layered({"repeat": str(tmp_path)}, "flag")


@law(deadline=None, max_examples=60)
@given(keys=SETTINGS, options=INVOCATION)
def test_asked_holds_what_was_set_and_nothing_of_the_invocation(keys: dict[str, Any], options: dict[str, Any]) -> None:
    asked = merge({"flag": keys | options}).asked()
    assert asked == meant(present(keys))
    assert not OPTIONS & set(asked)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        merge({}).origins = {}  # type: ignore[misc]


@pytest.mark.parametrize("name", ["config", "repeat"])
def test_a_config_file_cannot_set_what_then_has_no_effect(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f'{name} = "elsewhere"\n')
    with pytest.raises((UserError, OSError)):
        layered({"config": path}, "flag")


PRESET = {"num_layers": 5, "epochs": 3, "vocab_size": 700}


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in corpus 'stories' brings PRESET along."""
    monkeypatch.setitem(PRESETS, "stories", PRESET)


def test_a_preset_belongs_to_a_built_in_corpus_and_sets_what_there_is() -> None:
    tasks = {"pairs", "classification"}
    assert set(PRESETS) <= {"dummy", "python", "stories"}
    assert tasks <= set(TASK_PRESETS) <= tasks | {f"stories {task}" for task in tasks}
    for preset in TASK_PRESETS.values():
        merge({"preset": preset})
    for preset in PRESETS.values():
        assert not set(preset) & {"data", *OPTIONS}
        merge({"preset": preset})


@pytest.mark.usefixtures("preset")
@pytest.mark.parametrize("data", ["stories", ["stories"], ("stories",), "stories:5MB", ["stories:1KB"]], ids=str)
def test_what_the_corpus_presets_is_taken_and_is_not_asked_for(data: Any) -> None:
    settings = layered({"data": data, "embed_dim": 64}, "flag")
    values = flat(*asked_of(settings))
    assert values == meant({**flat(*(config() for config in CONFIGS[:4])), **PRESET, "data": data, "embed_dim": 64})
    assert settings.asked() == meant({"data": data, "embed_dim": 64})


def test_a_share_for_validation_suits_the_preset_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "stories", {"val_fraction": 0.25, "epochs": 3})
    for data, share in (("stories", 0.25), ("stories:5MB", 0.1)):
        settings = layered({"data": data}, "flag")
        assert (settings.data.val_fraction, settings.train.epochs) == (share, 3)
    assert layered({"data": "stories:5MB", "val_fraction": 0.4}, "flag").data.val_fraction == 0.4


@pytest.mark.usefixtures("preset")
@pytest.mark.parametrize(
    "data",
    [None, "python", "./stories", "storiesX", "Stories", "", ["stories", "a.txt"], ["a.txt", "stories"]],
    ids=str,
)
def test_any_other_data_has_no_preset(data: Any) -> None:
    for keys in ({}, {"data": data}):
        settings = layered(keys, "flag")
        assert (settings.model, settings.train) == tuple(config() for config in CONFIGS[2:4])
        assert set(settings.origins) == set(keys)


@pytest.mark.usefixtures("preset")
@law(deadline=None, max_examples=60)
@given(inside=SETTINGS, flags=SETTINGS, named_in_file=st.booleans())
def test_flags_and_files_win_over_a_preset(
    folder: Path, inside: dict[str, Any], flags: dict[str, Any], named_in_file: bool
) -> None:
    named, unnamed = (inside, flags) if named_in_file else (flags, inside)
    named["data"] = "stories"
    unnamed.pop("data", None)
    path = write(folder, write_config(inside, {}, {}))
    settings = layered({**flags, "config": path}, "flag")
    asked = present(inside) | flags
    expected = {**flat(*(config() for config in CONFIGS[:4])), **PRESET, **asked}
    assert flat(*asked_of(settings)) == meant(expected)
    assert settings.asked() == meant(present(asked))


@pytest.mark.usefixtures("preset")
def test_the_preset_is_that_of_the_data_that_wins(tmp_path: Path) -> None:
    path = write(tmp_path, 'data = "stories"\n')
    assert layered({"config": path}, "flag").train.epochs == 3
    assert layered({"config": path, "data": "mine.txt"}, "flag").train.epochs == 5
    path = write(tmp_path, 'data = ["mine.txt"]\n')
    assert layered({"config": path, "data": "stories"}, "flag").train.epochs == 3
    assert layered({"data": "stories"}, "keyword", defaults={"model_dir": None}).options.model_dir is None


def test_a_repeated_run_takes_nothing_from_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = layered({"data": "stories"}, "flag")
    write(tmp_path, write_config(settings.asked(), flat(*asked_of(settings)), {}))
    monkeypatch.setitem(PRESETS, "stories", PRESET)
    again = layered({"repeat": str(tmp_path)}, "flag")
    assert asked_of(again) == asked_of(settings)


def test_paths_from_python_name_files() -> None:
    for data in ("a.txt", Path("a.txt")):
        assert as_settings(data, {}) == ({"data": "a.txt"}, None, None)
    for several in ([Path("a.txt"), Path("b")], (Path("a.txt"), Path("b"))):
        assert as_settings(several, {"epochs": 2}) == ({"epochs": 2, "data": ["a.txt", "b"]}, None, None)


@pytest.mark.parametrize("data", [["a.txt"], ["a.txt", "b"], ("a",), [], [1, 2], {"text": ["a"]}, b"a", 7], ids=repr)
def test_anything_else_from_python_is_the_data_itself(data: Any) -> None:
    keys, given_data, given_val_data = as_settings(data, {"epochs": 2, "val_data": data})
    assert keys == {"epochs": 2, "data": None, "val_data": None}
    assert given_data is given_val_data is data


def test_texts_that_come_once_are_not_used_up() -> None:
    texts = iter(["a", "b"])
    keys, given_data, _ = as_settings(texts, {})
    assert keys == {"data": None}
    assert list(given_data) == ["a", "b"]


def test_without_data_nothing_is_named() -> None:
    assert as_settings(None, {"seed": 1}) == ({"seed": 1}, None, None)


def test_settings_from_python_may_be_paths() -> None:
    keys, *_ = as_settings(None, {"tokenizer": Path("t.json"), "val_data": Path("v.txt"), "config": Path("c.toml")})
    assert keys == {"tokenizer": "t.json", "val_data": "v.txt", "config": "c.toml"}
    for several in ([Path("v.txt"), Path("w.txt")], (Path("v.txt"), Path("w.txt"))):
        keys, *_ = as_settings(None, {"val_data": several})
        assert merge({"keyword": keys}).data.val_data == ("v.txt", "w.txt")


def test_a_recipe_is_taken_and_is_not_asked_for() -> None:
    settings = layered({"recipe": "modern"}, "flag")
    for name, value in RECIPES["modern"].items():
        assert flat(*asked_of(settings))[name] == value
    assert settings.asked() == {"recipe": "modern"}
    assert flat(layered({}, "flag").train)["optimizer"] == "adamw"


@pytest.mark.usefixtures("preset")
def test_a_preset_wins_over_a_recipe_and_what_is_asked_for_over_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "modern", {"num_layers": 7, "embed_dim": 64, "dropout": 0.3})
    keys = {"recipe": "modern", "data": "stories", "dropout": 0.2}
    settings = layered(keys, "keyword")
    assert (settings.model.num_layers, settings.model.embed_dim, settings.model.dropout) == (5, 64, 0.2)
    planned = settings.planned({"num_layers": 9, "dropout": 0.0, "batch_size": 3})
    assert (planned.model.num_layers, planned.train.batch_size, planned.model.dropout) == (9, 3, 0.2)
    assert planned.asked() == settings.asked()


def test_minutes_bring_the_modern_recipe_unless_another_is_asked_for() -> None:
    assert layered({"max_minutes": 1.0}, "flag").train.recipe == "modern"
    assert layered({"max_minutes": 1.0, "recipe": "classic"}, "flag").train.optimizer == "adamw"


def test_threads_may_be_left_to_measurement_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('threads = "auto"\n')
    assert layered({"config": str(tmp_path / "config.toml")}, "flag").train.threads is None
    assert layered({"threads": "auto"}, "flag").train.threads is None
    with pytest.raises(UserError, match="threads = 'many': must be a number"):
        layered({"threads": "many"}, "flag")
