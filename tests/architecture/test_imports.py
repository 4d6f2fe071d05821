"""Imports run one way, between the packages and between the rooms; type-only ones count."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

#: package -> packages that it must not import
FORBIDDEN = {
    "routing": {"batching", "tasks", "benchmarks", "tests"},
    "batching": {"tasks", "benchmarks", "tests"},
    "tasks": {"benchmarks", "tests"},
}

_VALUES = {"topology", "message"}
_SERVER = {"redis", "inflight", *_VALUES}
_BELOW = {"transport", *_SERVER}

#: room of `routing` -> the rooms that it may import; `errors` and `upstream` are for everybody.
ROOMS: dict[str, set[str]] = {
    "topology": set(),
    "message": set(),
    "redis": _VALUES,
    "inflight": {"redis.values", "redis.clocks", *_VALUES},
    "transport": _SERVER,
    "publish": _BELOW,
    "worker": _BELOW,
    "maintenance": _BELOW,
    "deadletters": _BELOW,
    "doctor": _BELOW,
    "cli": {"settings", "doctor", "deadletters", "publish", *_BELOW},
}

#: What `batching` may import of `routing`, besides its public names.
OF_ROUTING = {
    "worker",
    "publish",
    "message",
    "inflight.held",
    "transport.gathering",
    "transport.message",
    "transport.outage",
    "redis.faults",
    "topology.problems",
}

EVERYBODYS = {"errors", "upstream"}

#: Lines of a file: above, a second noun mostly hides.
LINES = 350

#: Files that lie at the top of `routing`.
TOP_FILES = 8


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and module name of every import, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            files = [name for name in inner if is_module(name)]
            yield from ((node.lineno, name) for name in (files or [module]))


def is_module(name: str) -> bool:
    path = ROOT / Path(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(path: Path, line: int, name: str) -> str:
    return f"{path.relative_to(ROOT)}:{line} imports {name}"


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_packages_below_it(package: str) -> None:
    upward = [
        place(path, line, name)
        for path in modules(package)
        for line, name in imported(path)
        if name.partition(".")[0] in FORBIDDEN[package]
    ]
    assert upward == []


def is_allowed(name: str, rooms: set[str]) -> bool:
    """Return whether a module of `routing` lies in one of these rooms, or is one of these files."""
    inner = name.removeprefix("routing.")
    return inner in rooms or inner.split(".")[0] in rooms


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    wrong = [
        place(path, line, name)
        for path in sorted((ROOT / "routing" / room).rglob("*.py"))
        for line, name in imported(path)
        if name.partition(".")[0] == "routing"
        if not is_allowed(name, ROOMS[room] | EVERYBODYS | {room})
    ]
    assert not wrong, "\n".join(wrong)


def test_batching_imports_public_names_and_what_is_made_for_it() -> None:
    wrong = [
        place(path, line, name)
        for path in modules("batching")
        for line, name in imported(path)
        if name.startswith("routing.") and not is_allowed(name, OF_ROUTING | EVERYBODYS)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_its_place() -> None:
    folders = {
        path.name for path in (ROOT / "routing").iterdir() if (path / "__init__.py").exists()
    }
    assert folders == set(ROOMS)
    assert len(list((ROOT / "routing").glob("*.py"))) <= TOP_FILES


@pytest.mark.parametrize("package", ["routing", "batching", "tasks", "benchmarks"])
def test_no_imports_go_in_a_circle(package: str) -> None:
    graph = {
        name_of(path): {name for _, name in imported(path) if name.partition(".")[0] == package}
        for path in modules(package)
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", ["routing", "batching"])
def test_no_file_is_long(package: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in modules(package)}
    assert [f"{path}: {n} lines" for path, n in lengths.items() if n > LINES] == []


def test_only_the_rooms_of_the_server_and_the_transport_import_the_redis_client() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in modules("routing")
        for _, name in imported(path)
        if name.partition(".")[0] == "redis"
    }
    allowed = ("routing/redis/", "routing/transport/")
    assert {user for user in users if not user.startswith(allowed)} == set()


@pytest.mark.parametrize("package", ["routing", "batching"])
def test_no_module_is_named_after_nothing(package: str) -> None:
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [path for path in modules(package) if path.stem in vague]


@pytest.mark.parametrize("package", ["routing", "batching", "tasks"])
def test_every_module_says_what_it_is(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules(package)
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_tests_wait_for_events_and_never_sleep() -> None:
    sleepers = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep")
        if "apps" not in path.parts
    ]
    assert sleepers == []
