"""Laws of the house: which floor imports which, how long things may be, who may print."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import slm

ROOT = Path(slm.__file__).parent
FLOORS = {
    "config": 0,
    "fields": 0,
    "recipes": 0,
    "sampling": 0,
    "settings": 0,
    "task_config": 0,
    "showing": 0,
    "_version": 0,
    "storage": 0,
    "model": 1,
    "data": 1,
    "metrics": 2,
    "formats": 2,
    "training": 3,
    "run": 4,
    "reporting": 4,
    "display": 4,
    "header": 4,
    "dial": 4,
    "evaluation": 4,
    "looking": 4,
    "verify": 4,
    "writing": 4,
    "reading": 4,
    "ending": 4,
    "answering": 4,
    "task_scores": 4,
    "cli": 5,
    "__init__": 5,
}
# (package or module, what it imports on the same floor): why that is right.
SAME_FLOOR = {
    ("settings", "storage"): "a config.toml is read from wherever a run may lie",
    ("run", "display"): "a run is shown while it goes on",
    ("dial", "display"): "reading and planning are shown while they go on",
    ("ending", "display"): "what comes after the last step is shown",
    ("storage", "config"): "a file that is no model is told as a UserError",
}
MAX_FILE, MAX_FUNCTION, MAX_FORWARD = 400, 60, 30

Function = ast.FunctionDef | ast.AsyncFunctionDef
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
every_file = pytest.mark.parametrize("name", TREES)


def room_of(name: str) -> str:
    """The package, or the top-level module, that a file such as "data/sources.py" belongs to."""
    return name.split("/")[0].removesuffix(".py")


def home_of(room: str) -> str:
    """What counts as one package: a folder, or all top-level modules of a floor together."""
    return room if (ROOT / room).is_dir() else f"modules of floor {FLOORS[room]}"


def imported_rooms(name: str) -> Iterator[tuple[str, int]]:
    """The rooms of slm that a file imports, with line numbers; also imports inside functions and for types."""
    package = ["slm", *name.split("/")[:-1]]
    for node in ast.walk(TREES[name]):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            modules = [f"{base}.{alias.name}" for alias in node.names] if base == "slm" else [base]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "slm":
                # `import slm` and `from slm import train` are the public face, the top floor.
                room = parts[1] if len(parts) > 1 and parts[1] in FLOORS else "__init__"
                yield room, node.lineno


def functions(name: str) -> Iterator[Function]:
    """Every function and method of a file, nested ones too."""
    return (node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length(node: Function) -> int:
    """Lines of a function from `def` to its end."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_the_source_is_found() -> None:
    assert {"config.py", "model/transformer.py", "cli/train.py"} <= set(TREES)


@every_file
def test_every_file_has_a_floor(name: str) -> None:
    assert room_of(name) in FLOORS


@every_file
def test_a_file_imports_only_from_lower_floors_or_its_own_package(name: str) -> None:
    room = room_of(name)
    wrong = []
    for other, line in imported_rooms(name):
        lower = FLOORS[other] < FLOORS[room]
        allowed = home_of(other) == home_of(room) or (room, other) in SAME_FLOOR
        if not lower and not (FLOORS[other] == FLOORS[room] and allowed):
            wrong.append(f"{name}:{line} imports {other}, floor {FLOORS[other]}, from floor {FLOORS[room]}")
    assert wrong == []


def test_every_import_between_rooms_of_a_floor_that_is_allowed_is_needed() -> None:
    found = {(room_of(name), other) for name in TREES for other, _ in imported_rooms(name)}
    assert set(SAME_FLOOR) <= found
    assert all(FLOORS[room] == FLOORS[other] for room, other in SAME_FLOOR)


@every_file
def test_no_file_is_longer_than_a_sitting(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MAX_FILE


@every_file
def test_no_function_is_longer_than_a_screen(name: str) -> None:
    assert {node.name: length(node) for node in functions(name) if length(node) > MAX_FUNCTION} == {}


@every_file
def test_no_forward_is_longer_than_a_glance(name: str) -> None:
    forwards = {f"{node.name}:{node.lineno}": length(node) for node in functions(name) if node.name == "forward"}
    assert {place: lines for place, lines in forwards.items() if lines > MAX_FORWARD} == {}


def writes_to_the_screen(node: ast.AST) -> bool:
    """True for `print(...)` and for sys.stdout or sys.stderr with .write or .writelines."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id == "print"
    return (
        isinstance(node.func, ast.Attribute)
        and node.func.attr in ("write", "writelines")
        and ast.unparse(node.func.value) in ("sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__")
    )


@every_file
def test_only_display_and_commands_write_to_the_screen(name: str) -> None:
    if room_of(name) not in ("display", "cli"):
        assert [node.lineno for node in ast.walk(TREES[name]) if writes_to_the_screen(node)] == []


@every_file
def test_only_commands_install_signal_handlers(name: str) -> None:
    if room_of(name) == "cli":
        return
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            assert "signal" not in [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "signal"


@every_file
def test_only_storage_looks_at_the_scheme_of_a_path(name: str) -> None:
    if room_of(name) == "storage":
        return
    for node in ast.walk(TREES[name]):
        looks = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and (node.func.attr in ("startswith", "removeprefix", "partition", "split"))
        )
        if looks or isinstance(node, ast.Compare):
            constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            assert not any(isinstance(value, str) and "://" in value for value in constants), node.lineno


def undocumented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """Public functions, classes and methods without a docstring; what a function holds is its own affair."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            # `forward` is what its class does: the class's docstring tells it.
            if ast.get_docstring(node) is None and node.name != "forward":
                yield f"{prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{prefix}{node.name}.")


@every_file
def test_everything_public_has_a_docstring(name: str) -> None:
    assert ast.get_docstring(TREES[name])
    assert list(undocumented(TREES[name].body, f"{name}: ")) == []


@every_file
def test_no_module_body_does_more_than_define(name: str) -> None:
    """Importing sets nothing: a module's statements define names, and call nothing for its effect."""
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.ClassDef, Function, ast.If, ast.Try)
    for node in TREES[name].body:
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert constant or isinstance(node, allowed), f"{name}:{node.lineno}"


def test_every_public_name_can_be_loaded_and_is_listed() -> None:
    assert set(slm.__all__) <= set(dir(slm))
    for name in slm.__all__:
        assert getattr(slm, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        slm.no_such_name  # noqa: B018
