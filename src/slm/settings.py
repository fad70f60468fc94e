"""Layers of settings merged into one resolved configuration that knows where each value came from."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slm.config import CONFIGS, FIELDS, PRESETS, RECIPES, DataConfig, ModelConfig, RunOptions, TaskConfig, TrainConfig
from slm.fields import Checked, UserError
from slm.recipes import TASK_PRESETS
from slm.storage import files
from slm.task_config import TASKS

# Begins every config.toml that a run writes; a folder whose config.toml begins so belongs to a run.
MARKER = "# A run of slm."
# Layers below everything that anybody asks for, each over those before it.
DEFAULT, RECIPE, PRESET, PLAN = "default", "recipe", "preset of the corpus", "plan"
TASK, TUNING, BASE = "preset of the task", "fine-tuning preset", "the model in init_from"
_NOT_ASKED = (DEFAULT, RECIPE, PRESET, TASK, TUNING, PLAN, BASE)
_STRING_OR_COMMENT = re.compile(r"""'[^']*'?|"(?:[^"\\]|\\.)*"?|#.*""")
_MOST_DOTS = 100  # of a line, outside strings and comments
_EXPLANATION = "`slm-train --config FILE` asks for the same; `slm-train --repeat FOLDER` replays [resolved]."


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configurations of a run, and for each name the layer that set it ("default" if none did)."""

    data: DataConfig
    task: TaskConfig
    model: ModelConfig
    train: TrainConfig
    options: RunOptions
    origins: Mapping[str, str]
    layers: Mapping[str, Mapping[str, Any]]

    def fixed(self) -> dict[str, Any]:
        """What no plan may decide: what somebody set, and what comes with a task or a trained model to start from."""
        layers = (*(self.layers.get(name, {}) for name in (TASK, TUNING, BASE)), self.asked())
        return {name: value for keys in layers for name, value in keys.items()}

    def planned(self, plan: Mapping[str, Any]) -> Settings:
        """These settings with a plan as a layer: what somebody asked for, and a trained model, win over it."""
        return self._with_layers({PLAN: {**self.layers.get(PLAN, {}), **plan}})

    def based_on(self, model: Mapping[str, Any], tuning: Mapping[str, Any]) -> Settings:
        """These settings with what a trained model that they start from brings along, and how it is best trained on."""
        return self._with_layers({BASE: model, TUNING: tuning})

    def _with_layers(self, others: Mapping[str, Mapping[str, Any]]) -> Settings:
        layers = {**self.layers, **others}
        below = {layer: layers[layer] for layer in _NOT_ASKED if layer in layers}
        return merge({**below, **{layer: keys for layer, keys in layers.items() if layer not in _NOT_ASKED}})

    @property
    def origins_below(self) -> dict[str, str]:
        """For each setting that nobody asked for and that is not at its default, the layer that set it."""
        return {name: layer for name, layer in self.origins.items() if layer in _NOT_ASKED[1:]}

    def asked(self) -> dict[str, Any]:
        """What somebody set, by name, without what concerns one invocation only."""
        options = {field.name for field in dataclasses.fields(RunOptions)}
        values = flat(self.data, self.task, self.model, self.train)
        asked = (name for name, layer in self.origins.items() if layer not in _NOT_ASKED and name not in options)
        return {name: values[name] for name in asked if values[name] is not None}


def flat(*configs: Checked) -> dict[str, Any]:
    """The fields of several configurations as one dict."""
    return {name: value for config in configs for name, value in dataclasses.asdict(config).items()}


def nearest(name: str, known: Iterable[str]) -> str:
    """ " Did you mean x?", or nothing when no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def as_settings(data: Any, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Any, Any]:
    """Keywords from Python as keys of a layer, and data and val_data themselves where they are no names of files.

    A str, a path object or a list of path objects names files; any other value is the texts or token ids it holds, and
    the key is None, so that it wins over what a config file names.
    """
    keys = {name: _without_path_objects(value) for name, value in settings.items() if name != "val_data"}
    given = {"data": data, "val_data": settings.get("val_data")}
    for name, value in given.items():
        paths = _without_path_objects(value)
        if isinstance(paths, str) or paths is not value:
            keys[name], given[name] = paths, None
        elif value is not None:
            keys[name] = None
    return keys, given["data"], given["val_data"]


def _without_path_objects(value: Any) -> Any:
    """A path object, or each of a list of them, as a str; anything else as it is."""
    if isinstance(value, list | tuple) and value and all(isinstance(one, os.PathLike) for one in value):
        return [os.fspath(one) for one in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def merge(layers: Mapping[str, Mapping[str, Any]]) -> Settings:
    """The settings that result when each layer, in order, overrides those before it.

    `layers` maps a layer's name ("config.toml", "flag", "keyword") to the keys that it sets. Raises UserError
    for an unknown name or a value that breaks its rule.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, keys in layers.items():
        for name, value in keys.items():
            if name not in FIELDS:
                raise UserError(f"{name} is not a setting ({layer}).{nearest(name, FIELDS)}")
            values[name], origins[name] = value, layer

    def build(config: type[Any]) -> Any:
        return config(**{f.name: values[f.name] for f in dataclasses.fields(config) if f.name in values})

    data, task, model, train, options = (build(config) for config in CONFIGS)
    return Settings(
        data=data, task=task, model=model, train=train, options=options, origins=origins, layers=dict(layers)
    )


def check_asked(settings: Settings, *, has_data: bool) -> None:
    """Raises UserError for settings of another task than that of the run, and for what cannot go with init_from.

    has_data: whether texts, examples or ids were given in Python.
    """
    asked, task = settings.asked(), settings.task
    for name, value in asked.items():
        group = FIELDS[name].metadata["group"]
        if group in TASKS and group != task.task and _plain(value) != _plain(FIELDS[name].default):
            raise UserError(
                f"{name} = {value!r} is for task = {group!r}, and this is {task.task!r}. Leave out one of them."
            )
    if task.task != TaskConfig().task:
        for name in ("split_documents_on", "mask_documents"):
            if asked.get(name):
                raise UserError(f"{name} is for running text: the examples of task = {task.task!r} are apart already.")
    if task.init_from is None:
        return
    if not has_data and settings.data.data in (None, ("dummy",)):
        raise UserError(f"init_from = {task.init_from!r} goes on learning from a text: name it with data (--data).")
    if settings.data.mask_documents:
        raise UserError("mask_documents: with init_from attention looks as far as it did in that model. Leave it out.")
    places = [
        os.path.abspath(place) if not files.is_remote(place) else place.rstrip("/") for place in _folders(settings)
    ]
    if len(set(places)) < len(places):
        raise UserError(
            f"init_from = {task.init_from!r} lies in model_dir: the model to start from stays as it is. Choose another "
            "model_dir."
        )


def _folders(settings: Settings) -> list[str]:
    """The folders of the model to start from and of the run."""
    base = settings.task.init_from or ""
    base = os.path.dirname(base) if base.endswith(".pt") else base
    return [base] + ([settings.options.model_dir] if settings.options.model_dir else [])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_toml(path: str) -> dict[str, Any]:
    """The tables of a TOML file, local or URL. Raises UserError where it is not valid TOML."""
    try:
        text = files.read_bytes(path).decode("utf-8-sig")
        # For a name of many parts tomllib needs time and memory of their square, and no table nests that deeply.
        if any(_STRING_OR_COMMENT.sub("", line).count(".") > _MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line has more than {_MOST_DOTS} dots")
        return tomllib.loads(text)
    except RecursionError as error:
        raise UserError(f"{path} is not a valid TOML file: its lists nest too deeply.") from error
    except ValueError as error:  # also what is no UTF-8, and numbers of thousands of digits
        raise UserError(f"{path} is not a valid TOML file: {error!s:.300}.") from error


def layered(keys: Mapping[str, Any], layer: str, defaults: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a run: `keys` as one layer, over the config file or the repeated run that they name.

    `defaults` is a layer below all, for a door that starts from others than the flags do. Raises UserError where
    `repeat` comes with anything that would make the run another one.
    """
    repeat, config = keys.get("repeat"), keys.get("config")
    if repeat is not None:
        options = {field.name for field in dataclasses.fields(RunOptions)} - {"config"}
        if others := sorted(set(keys) - options):
            raise UserError(
                f"repeat replays a run exactly and takes no other settings; drop {', '.join(others)}, or use "
                f"config = {files.join(repeat, 'config.toml')!r} to change some."
            )
        return merge({DEFAULT: defaults or {}, f"repeat {repeat}": _resolved(repeat), layer: keys})
    asked = {config: read_config(config)} if config is not None else {}
    layers = {DEFAULT: defaults or {}, **asked, layer: keys}
    preset = _preset(_topmost(layers, "data"), _topmost(layers, "task"))
    is_modern = _topmost(layers, "max_minutes") or TASK in preset
    recipe = _topmost(layers, "recipe") or ("modern" if is_modern else None)
    named = {"recipe": recipe, **RECIPES[recipe]} if isinstance(recipe, str) and recipe in RECIPES else {}
    provisional = {**_provisional(layers), "schedule": "wsd"} if _topmost(layers, "max_minutes") else {}
    below = {DEFAULT: layers.pop(DEFAULT), RECIPE: named, **preset, PLAN: provisional}
    return merge({**below, **layers})


def _topmost(layers: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    """The value that the last of the layers gives a setting, None where none does."""
    return next((keys[name] for keys in reversed(list(layers.values())) if name in keys), None)


def _provisional(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Sizes and a peak that go with what is asked for, until there is a plan: the defaults need not."""
    names = ("embed_dim", "num_heads", "num_kv_heads", "learning_rate", "min_learning_rate")
    width, heads, kv_heads, peak, lowest = (_topmost(layers, name) for name in names)
    rate = {"learning_rate": lowest} if peak is None and isinstance(lowest, float) and lowest > 0 else {}
    if width is not None:
        return rate if heads is not None else {"num_heads": kv_heads or 1, **rate}
    heads_known = heads or kv_heads
    if not isinstance(heads_known, int) or heads_known < 1:
        return rate
    return {"embed_dim": 32 * heads_known, "num_heads": heads_known, **rate}


def _preset(data: Any, task: Any) -> dict[str, dict[str, Any]]:
    """What a task, and a built-in corpus for it, bring along, by layer."""
    name = data[0] if isinstance(data, list | tuple) and len(data) == 1 else data
    corpus, _, size = name.partition(":") if isinstance(name, str) else ("", "", "")
    if task not in (None, TaskConfig().task):
        return {TASK: {**TASK_PRESETS.get(str(task), {}), **TASK_PRESETS.get(f"{corpus} {task}", {})}}
    preset = dict(PRESETS.get(corpus, {}))
    if size:
        preset.pop("val_fraction", None)  # a share that suits the corpus's own size alone
    return {PRESET: preset}


def read_config(path: str) -> dict[str, Any]:
    """The settings that a config.toml asks for: its top level, without what a run adds to it."""
    settings = {name: value for name, value in read_toml(path).items() if name not in ("resolved", "made_with")}
    for name in ("config", "repeat"):
        if name in settings:
            raise UserError(f"{path} sets {name}, which can only be a flag or keyword: a file names no other file.")
    return settings


def read_table(folder: str, table: str) -> dict[str, Any]:
    """A table of a run's config.toml: "resolved", what each setting became, or "made_with", versions and data."""
    path = files.join(folder, "config.toml")
    found = read_toml(path).get(table)
    if not isinstance(found, dict):
        raise UserError(f"{path} has no [{table}] table, so there is no run to repeat in {folder}.")
    return found


def _resolved(folder: str) -> dict[str, Any]:
    """What each setting of a run became; where minutes were asked for, the steps that they became.

    Raises UserError where that run was stopped before its end was decided, or cut off by its time.
    """
    resolved = read_table(folder, "resolved")
    if "max_minutes" not in resolved or "max_steps" in resolved:
        return resolved
    try:
        lines = files.read_bytes(files.join(folder, "metrics.jsonl")).decode().splitlines()
    except FileNotFoundError:  # stopped before its first record
        lines = []
    decisions = [record for record in map(json.loads, lines) if "max_steps" in record]
    if len(decisions) > 1:
        raise UserError(
            f"the run in {folder} was cut off at step {decisions[-1]['max_steps']} of {decisions[0]['max_steps']}, "
            "when its time was up: it cannot be repeated."
        )
    if not decisions:
        raise UserError(f"the run in {folder} was stopped before it was decided when it ends: go on with it first.")
    return {**resolved, **{name: decisions[-1][name] for name in ("max_steps", "decay_steps")}}


def write_config(asked: Mapping[str, Any], resolved: Mapping[str, Any], made_with: Mapping[str, Any]) -> bytes:
    """The bytes of a run's config.toml; settings that are None are left out."""
    import tomli_w

    tables = {"resolved": _present(resolved), "made_with": _present(made_with)}
    return f"{MARKER} {_EXPLANATION}\n{tomli_w.dumps({**_present(asked), **tables})}".encode()


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
