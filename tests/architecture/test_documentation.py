"""What is public is named in its package's tour, and examples are true."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from routing.redis.permissions import COMMANDS

ROOT = Path(__file__).parents[2]

PACKAGES = ["routing", "batching"]


def module_names(package: str) -> Iterator[str]:
    found = importlib.import_module(package)
    yield package
    for module in pkgutil.walk_packages(found.__path__, f"{package}."):
        yield module.name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_tour_of_its_package(package: str) -> None:
    module = importlib.import_module(package)
    documented = (module.__doc__ or "") + (
        importlib.import_module(f"{package}.errors").__doc__ or ""
    )
    words = set(re.findall(r"\w+", documented))
    assert set(module.__all__) - words == set(), "name them in the package's docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_says_what_it_is(package: str) -> None:
    module = importlib.import_module(package)
    silent = [name for name in module.__all__ if not (getattr(module, name).__doc__ or "").strip()]
    assert silent == []
    assert module.__all__ == sorted(module.__all__)


@pytest.mark.parametrize("name", [name for package in PACKAGES for name in module_names(package)])
def test_examples_are_true(name: str) -> None:
    outcome = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    assert outcome.failed == 0


def test_the_documented_permissions_are_those_that_the_engine_asks_for() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    assert re.findall(r"\+([a-z|]+)\b", text) == list(COMMANDS)
