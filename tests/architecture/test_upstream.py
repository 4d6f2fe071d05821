"""Private names of Celery, kombu and billiard have one seam, which says what is missing."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from routing import upstream
from routing.errors import IncompatibleVersion

ROOT = Path(__file__).parents[2]
PACKAGES = ("routing", "batching")
FILES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
UPSTREAM = ("amqp", "billiard", "celery", "kombu", "redis", "vine")

#: What stands for the object itself, where its class is one of ours over one of theirs.
ITSELF = ("self", "cls", "this", "kept", "stock", "send", "super()")


def own_names() -> set[str]:
    """Return every name that our own code gives to something."""
    names: set[str] = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names |= {node.attr} if ast.unparse(node.value) in ITSELF else set()
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign(path: Path, own: set[str]) -> Iterator[str]:
    """Yield the private names of others that a file uses."""
    seam = {private.name for private in upstream.names()}
    inherited = {name for names in upstream.INHERITED.values() for name in names}
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UPSTREAM:
            yield from (
                f"{where} imports {alias.name}"
                for alias in node.names
                if is_private(alias.name)
                if alias.name != "_state"  # the module, which `TASK_STACK` asks
            )
        if isinstance(node, ast.Call) and _reads_by_name(node):
            yield from (
                f"{where} reads {argument.value!r}"
                for argument in node.args
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                if is_private(argument.value) and not argument.value.startswith("_celeriac")
            )
        if not isinstance(node, ast.Attribute) or not is_private(node.attr):
            continue
        base = ast.unparse(node.value)
        if base in ITSELF:
            if node.attr not in own | inherited:
                yield f"{where} inherits {base}.{node.attr}"
        elif (node.attr in seam or node.attr not in own) and not node.attr.startswith("_celeriac"):
            yield f"{where} uses {base}.{node.attr}"


def _reads_by_name(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    return name in ("getattr", "hasattr", "setattr", "get", "pop", "startswith", "endswith")


def test_private_names_are_used_through_one_seam() -> None:
    own = own_names()
    found = [one for path in FILES if path.name != "upstream.py" for one in foreign(path, own)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "private", list(upstream.names()), ids=lambda one: f"{one.owner}.{one.name}"
)
def test_a_private_name_is_there_and_has_a_reason(private: upstream.Private) -> None:
    assert not private.is_missing()
    assert private.why
    if private.is_set_later:
        module = importlib.import_module(private.owner.partition(":")[0])
        assert re.search(rf"\b{private.name}\b", inspect.getsource(module)), "nobody sets it"


@pytest.mark.parametrize("package", ["celery", "kombu"])
def test_an_older_version_is_refused_in_one_sentence(package: str, tmp_path: Path) -> None:
    """It is found before anything of Celery is imported: here, nothing could be."""
    (tmp_path / "celery.py").write_text("")
    metadata = tmp_path / f"{package}-5.6.3.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 5.6.3\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    for name in PACKAGES:
        found = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert found.stderr.splitlines()[-1] == (
            "routing.errors.IncompatibleVersion: "
            f"celeriac needs {package.capitalize()} 5.7 or later, this is 5.6.3"
        )


def test_a_name_that_has_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = upstream.Private("celery.app.base:Celery", "_no_such_name", "a test")
    monkeypatch.setattr(upstream, "GONE", gone, raising=False)
    with pytest.raises(IncompatibleVersion, match=r"celery\.app\.base:Celery\._no_such_name"):
        upstream.check()


def test_a_producer_imports_neither_pools_nor_billiards_pool() -> None:
    code = "import sys, routing; print(*sys.modules)"
    imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert "routing.publish.amqp" in imported
    pools = {"celery.concurrency.asynpool", "celery.concurrency.prefork", "billiard.pool"}
    assert pools.isdisjoint(imported)
    assert "routing.worker.dispatcher" not in imported
