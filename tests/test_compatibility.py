"""What users and stored data know stays as it is: a snapshot says what that is.

``python -m tests.test_compatibility`` writes it anew, for a change that is meant.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest
import redis
from celery.worker.control import Panel

import batching.errors
import routing.errors
from routing import Topology
from tests.apps.basic import close, create
from tests.support.broker import Broker
from tests.support.servers import Server
from tests.support.wait import eventually

ROOT = Path(__file__).parents[1]
SNAPSHOT = Path(__file__).with_name("compatibility.json")

#: A queue table whose queue has a bound of every kind.
TABLE: Mapping[str, Any] = {
    "queues": {
        "kept": {"max_length": 2, "max_delayed": 2, "overflow": "dead_letter"},
        "dropped": {"max_length": 1, "max_bytes": 100_000, "overflow": "drop_oldest"},
        "free": {},
    }
}


# -- what is known without a server


def events() -> dict[str, list[str]]:
    """Return every log event, with its levels."""
    found: dict[str, set[str]] = {}
    for package in ("routing", "batching"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    for name in _events_of(node):
                        found.setdefault(name, set()).add(ast.unparse(node.func).split(".")[-1])
    return {name: sorted(levels) for name, levels in sorted(found.items())}


def _events_of(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "event":
                    yield ast.literal_eval(value)


def commands() -> dict[str, Any]:
    """Return every command of the command line with its options, and the remote control's."""
    lines: dict[str, Any] = {}
    for point in entry_points(group="celery.commands"):
        if point.dist is not None and point.dist.name == "celeriac":
            lines |= _described(point.name, point.load())
    ours = {name for name, kind in Panel.data.items() if kind.__module__.startswith("routing")}
    lines |= {
        f"remote control: {name}": {
            "type": meta.type,
            "args": [arg[0] for arg in meta.args or ()],
            "signature": meta.signature,
            "help": meta.help,
        }
        for name, meta in Panel.meta.items()
        if name in ours
    }
    return dict(sorted(lines.items()))


def _described(name: str, command: click.Command) -> dict[str, Any]:
    lines = {
        name: {
            "help": command.help,
            "params": [
                {
                    "names": [*param.opts, *param.secondary_opts],
                    "type": param.type.name,
                    "default": _default(param.default),
                    "required": param.required,
                    "help": getattr(param, "help", None),
                }
                for param in command.params
            ],
        }
    }
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            lines |= _described(f"{name} {sub.name}", sub)
    return lines


def _default(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else None


def errors() -> dict[str, list[str]]:
    """Return the path of each error class, with those of the classes that it is made of."""
    return {
        f"{module.__name__}.{name}": [f"{base.__module__}.{base.__qualname__}" for base in bases]
        for module in (routing.errors, batching.errors)
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__ == module.__name__
        for bases in [kind.__bases__]
    }


FRAME = '  File "{}", line {}, in {}\n    pass\n'


def fingerprints() -> dict[str, str]:
    """Return the fingerprints of failures whose tracebacks go through our code and others'."""
    fingerprint_of = _find("fingerprint_of")
    app = FRAME.format("/srv/shop/tasks.py", 7, "export")
    ours = "".join(
        FRAME.format(path, 3, "run")
        for path in sorted((ROOT / package / "any.py") for package in ("routing", "batching"))
    )
    deep = FRAME.format(ROOT / "routing" / "worker" / "any.py", 3, "run")
    library = FRAME.format("/venv/site-packages/celery/app/trace.py", 9, "trace_task")
    return {
        "app": fingerprint_of("ValueError", "no 7", app),
        "app, then ours": fingerprint_of("ValueError", "no 7", app + ours + deep + library),
        "ours": fingerprint_of("ValueError", "no 7", library + ours + deep),
        "none": fingerprint_of("shop.Error", "no 8 of 12", ""),
    }


def _find(name: str) -> Any:
    """Return a function by its name, wherever its module lies."""
    for module in list(sys.modules.values()):
        found = vars(module).get(name)
        if getattr(found, "__module__", "").startswith("routing"):
            return found
    raise AssertionError(f"nobody has {name}")


def messages() -> dict[str, Any]:
    """Return the strings that name things of ours in messages and in an app's settings."""
    return {
        "entry points": sorted(point.name for point in entry_points(group="celery.commands")),
        "public names": {
            package: importlib.import_module(package).__all__ for package in ("routing", "batching")
        },
    }


# -- what a server holds


@contextmanager
def scenario(broker: Broker) -> Iterator[None]:
    """Leave something of every kind in a broker database."""
    app = create(broker.url, table=TABLE, options={"global_keyprefix": broker.prefix})
    far = {"countdown": 3600}
    try:
        with app.connection_for_read() as connection:
            for number in range(4):
                app.send_task("basic.add", (number, 1), task_id=f"k{number}", queue="kept")
                app.send_task("basic.add", (number, 1), task_id=f"d{number}", queue="dropped")
                app.send_task("basic.add", (number, 1), task_id=f"l{number}", queue="kept", **far)
            for number in range(6):
                app.send_task("basic.add", (number, 1), task_id=f"f{number}", queue="free")
            app.send_task("basic.add", (9, 1), task_id="p", queue="free", priority=3)
            app.send_task("basic.add", (9, 1), task_id="r", queue="kept", retries=1)
            channel = connection.channel()
            channel.keep_leases("worker@host")
            taken = [channel.basic_get("free") for _ in range(4)]
            taken[0].ack()
            taken[1].reject()
            taken[2].reject(requeue=True)
            channel.basic_recover(requeue=True)
            held = channel.basic_get("free")
            assert held is not None
            channel.link.holdings.doubt()  # the thread that renews notes whose they are
            eventually(lambda: broker.client.exists(f"{broker.prefix}celeriac:workers"))
            yield
    finally:
        close(app)


def stored(broker: Broker) -> dict[str, Any]:
    """Return the keys of a broker database, with what they hold as far as it is a form."""
    client = broker.client
    return {_general(key.decode()): _form(client, key) for key in sorted(client.keys("*"))}


def _general(key: str) -> str:
    return re.sub(r"own:[0-9a-f]{16}", "own:<name>", key)


def _form(client: redis.Redis, key: bytes) -> Any:
    any_client: Any = client
    kind = any_client.type(key).decode()
    if kind == "hash" and b"ledger" in key:
        counters = any_client.hgetall(key).items()
        return {n.decode(): None if n == b"bytes" else int(v) for n, v in sorted(counters)}
    if kind == "hash":
        fields = any_client.hgetall(key)
        return [kind, len(fields), sorted({_text(value) for value in fields.values()})]
    if kind == "list":
        return [kind, sorted({_text(text) for text in any_client.lrange(key, 0, -1)})]
    if kind == "zset":
        members = any_client.zrange(key, 0, -1)
        return [kind, sorted({re.sub(r"^[0-9a-f]{16}:.*", "<tag>", m.decode()) for m in members})]
    return [kind]


def _text(text: bytes) -> str:
    """Return the form of a text: what is an object has its keys in it, and no values."""
    found = text.decode()
    head = re.match(r"\d+:[^{\[]*(?=\{)", found)
    try:
        body = json.loads(found[head.end() :] if head else found)
    except ValueError:
        return re.sub(r"\d{3,}", "<number>", found)
    return (head.group() if head else "") + json.dumps(_keys(body))


#: What Celery and kombu put into a message.
_KOMBUS = frozenset({"body", "headers", "properties"})


def _keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _keys(inner) for key, inner in sorted(value.items()) if key not in _KOMBUS}
    if isinstance(value, list):
        return [_keys(inner) for inner in value]
    return type(value).__name__


PARTS = {
    "events": events,
    "commands": commands,
    "errors": errors,
    "fingerprints": fingerprints,
    "names": messages,
    "table": lambda: Topology.model_json_schema(),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_users_know_is_what_it_was(part: str) -> None:
    assert json.loads(json.dumps(PARTS[part]())) == json.loads(SNAPSHOT.read_text())[part]


@pytest.mark.parametrize("prefix", ["", "shop:"])
def test_what_is_stored_is_what_it_was(prefix: str, valkey: Server) -> None:
    with Broker(valkey.fresh_url(), prefix=prefix) as broker, scenario(broker):
        found = json.loads(json.dumps(stored(broker)))
    assert found == json.loads(SNAPSHOT.read_text())[f"stored {prefix}"]


def main() -> None:
    """Write the snapshot."""
    from tempfile import TemporaryDirectory

    from tests.support.servers import valkey_binary

    known: dict[str, Any] = {part: make() for part, make in PARTS.items()}
    with TemporaryDirectory() as folder:
        server = Server(valkey_binary(), Path(folder))
        server.start()
        for prefix in ("", "shop:"):
            with Broker(server.fresh_url(), prefix=prefix) as broker, scenario(broker):
                known[f"stored {prefix}"] = stored(broker)
        server.close()
    kept = {part: dict(sorted(found.items())) for part, found in known.items()}
    SNAPSHOT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
