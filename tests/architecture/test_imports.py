"""The three packages import in one direction only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

#: package -> packages that it must not import
FORBIDDEN = {
    "routing": {"batching", "tasks", "benchmarks", "tests"},
    "batching": {"tasks", "benchmarks", "tests"},
    "tasks": {"benchmarks", "tests"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and module name of every import, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_packages_below_it(package: str) -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for line, name in imported(path)
        if name.partition(".")[0] in FORBIDDEN[package]
    ]
    assert upward == []


def test_only_the_redis_engine_imports_the_redis_client() -> None:
    users = {
        str(path.relative_to(ROOT))
        for path in modules("routing")
        for _, name in imported(path)
        if name.partition(".")[0] == "redis"
    }
    outside = {
        user for user in users if not user.startswith(("routing/redis/", "routing/transport/"))
    }
    assert outside == set()


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
