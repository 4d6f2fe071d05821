"""Every script states its keys, arguments and reply, and is called that way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from routing.message.eta import Delay
from routing.message.letter import Letter
from routing.redis import ledger as books
from routing.redis import settings
from routing.redis.commands import Commands
from routing.redis.keys import Keys
from routing.redis.ledger import QueueLedger
from routing.redis.letters import Move, StoredLetters
from routing.redis.scripts import SCRIPTS, Script, run_script
from routing.redis.settings import LoggedChange
from routing.redis.values import Burial, Ending, Fetch, Return, Settlement
from routing.topology.model import Topology

LUA = Path(__file__).parent.parent.parent / "routing" / "redis" / "lua"

WRITES = {"HDEL", "HINCRBY", "HSET", "LPUSH", "RPUSH", "RPOP", "LPOP", "ZADD", "ZREM", "DEL", "SET"}
WRITES |= {"PEXPIRE", "EXPIRE", "ZINCRBY", "INCRBY", "RPOPLPUSH", "LMOVE", "LTRIM", "SADD", "SREM"}
WRITES |= {"LREM", "LSET"}
REMOVES = {"LREM", "HDEL", "RPOP", "LPOP", "ZREM", "DEL", "SREM", "LTRIM"}

#: What a key of the header is called -> what its name contains.
KINDS = {
    "unacked hash": "unacked",
    "unacked index": "unacked_index",
    "leases": "celeriac:leases",
    "origins": "celeriac:origins",
    "started": "celeriac:started",
    "workers": "celeriac:workers",
    "reclaim": "celeriac:reclaim",
    "bell": "celeriac:bell:q",
    "settings hash": "celeriac:settings",
    "settings version": "celeriac:settings:version",
    "settings log": "celeriac:settings:log",
    "draining flag": "celeriac:draining:q",
    "consumers set": "celeriac:consumers:q",
    "pace hash": "celeriac:pace:q",
    "blocked set": "celeriac:blocked:q",
    "delayed set": "celeriac:delayed:q",
    "delayed count": "celeriac:delayed_count",
    "delayed messages": "celeriac:delayed_messages:q",
    "ledger": "celeriac:ledger:q",
    "dead letters": "q.dead",
    "dropped list": "q.dropped",
    "claim of the queue": "celeriac:claim:q",
    "claim of delayed room": "celeriac:claim_delayed:q",
    "ready list": "q",
}


class Recorder:
    """Notes the call that a script makes."""

    def __init__(self, reply: Any) -> None:
        self.reply = reply
        self.keys: Sequence[str] = ()
        self.args: Sequence[Any] = ()

    def execute_command(self, name: str, sha: str, count: int, *rest: Any) -> Any:
        assert name == "EVALSHA"
        self.keys, self.args = rest[:count], rest[count:]
        return self.reply


def commands() -> Commands:
    table = Topology.load({"queues": {"q": {"max_length": 10, "overflow": "drop_oldest"}}})
    return Commands(keys=Keys(), topology=table)


def change_settings(client: Any) -> Any:
    client.hget, client.time = (lambda *_: None), (lambda: (0, 0))
    entry = LoggedChange(queue="q", field="weight", value=2, before=1, by="me", at_ms=0)
    return settings.change(client, Keys(), "q", lambda stored, now_ms: (stored, [entry]))


#: script -> (a call of it, the number of keys and of arguments after the numbered ones)
CALLS: dict[str, tuple[Callable[[Any], Any], Any, int, int]] = {
    "push": (lambda client: commands().push(client, "q", ["{}", "{}"]), [2, 0, 0, 0, 0, ""], 4, 2),
    "delay": (
        lambda client: commands().delay(client, "q", [Delay(datetime.now(UTC), "an-id", "{}")] * 2),
        [2, 0, 0, ""],
        0,
        # wait, id and text of two messages
        2 * 3,
    ),
    "postpone": (
        lambda client: commands().postpone(client, "q", "t", message_id="an-id", due_ms=5),
        1,
        0,
        0,
    ),
    "exchange": (
        lambda client: commands().exchange(
            client,
            Settlement([Ending("q", "done", "t")]),
            Fetch("prefix:", (("q", 5),)),
        ),
        [0, [], [0, 0]],
        # one ledger; ledger, bell, delayed set and messages, four lists
        1 + 8,
        # ending, count and tag; name, credit, messages a slot, bytes, number of lists and gate
        3 + 6,
    ),
    "bury": (
        lambda client: commands().bury(client, "q", [Burial("t", '"reason":"failed"}')]),
        [1, 0, 0, 0],
        0,
        3,
    ),
    # the four lists; index and two payloads
    "revive": (
        lambda client: StoredLetters(client, commands()).move(
            [Move(Letter(queue="q", payload=b"{}"))], to="q"
        ),
        [1],
        4,
        3,
    ),
    # ledger, delayed set, dead letters, dropped messages, consumers, slots, rate, blocked set and
    # four lists
    "ledger": (
        lambda client: books.read(client, commands()),
        [0, [0, 0, 0, 0, b"", 0, 0, 0, 0, 0, 0]],
        12,
        0,
    ),
    # an entry of the log
    "change": (change_settings, 1, 0, 1),
    # consumers, ledger and pace of one queue
    "announce": (
        lambda client: commands().announce(client, "bell:2:w@host", ["q"], seconds=1),
        0,
        3,
        0,
    ),
    "rebase": (
        lambda client: books.rebase(client, commands(), QueueLedger(queue="q", waiting=1)),
        1,
        0,
        0,
    ),
    "requeue": (
        lambda client: commands().requeue(client, "q", [Return("t"), Return("u")]),
        [2, 0],
        0,
        8,
    ),
    "renew": (
        lambda client: commands().renew(client, "host", [("t", ""), ("u", "an-id")]),
        [],
        0,
        4,
    ),
    # ledger and bell of the table's one queue; its name
    "reclaim": (lambda client: commands().reclaim(client), 0, 0, 0),
    "claim": (
        lambda client: commands().claim(client, "q", "who", messages=2, kept_ms=1000),
        1,
        0,
        0,
    ),
    # a key; text, seconds, whether final, and what it may replace
    "store": (
        lambda client: run_script(client, "store", ["key"], ["{}", 0, "1", ""]),
        [[], []],
        1,
        4,
    ),
    "purge": (lambda client: commands().purge(client, "q"), [0, 0], 4, 0),
}


def script_names() -> list[str]:
    return sorted(path.stem for path in LUA.glob("*.lua"))


def numbered(section: str) -> dict[int, str]:
    """Return the numbered entries of a header section: position -> description."""
    fixed = re.split(r"^\s*then\b", section, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"(?:^|\s{2,})(\d+)\s(?!\.)(.*?)(?=\s{2,}\d+\s|$)", fixed, re.MULTILINE)
    return {int(number): text for number, text in found}


def code(script: Script) -> str:
    return re.sub(r"--.*", "", script.text)


def test_every_script_file_is_a_verb() -> None:
    assert script_names() == sorted(SCRIPTS)
    assert sorted(CALLS) == sorted(SCRIPTS), "a new script needs a call in this test"


@pytest.mark.parametrize("name", script_names())
def test_a_script_has_no_shebang(name: str) -> None:
    assert not SCRIPTS[name].text.startswith("#!"), "it would be refused on a full server"


@pytest.mark.parametrize("name", script_names())
def test_a_header_has_keys_arguments_and_reply(name: str) -> None:
    header = SCRIPTS[name].header
    assert all(header[section].strip() for section in ("KEYS", "ARGV", "Reply"))


@pytest.mark.parametrize("name", script_names())
def test_a_body_uses_only_numbered_keys_and_arguments_of_its_header(name: str) -> None:
    script = SCRIPTS[name]
    for section in ("KEYS", "ARGV"):
        used = {int(n) for n in re.findall(rf"{section}\[(\d+)\]", code(script))}
        described = set(numbered(script.header[section]))
        assert used <= described, f"{name}.lua uses {section} {used - described} undescribed"


@pytest.mark.parametrize("name", script_names())
def test_a_call_sends_the_keys_and_arguments_of_the_header(name: str) -> None:
    command, reply, more_keys, more_args = CALLS[name]
    client = Recorder(reply)
    command(client)
    keys, args = (numbered(SCRIPTS[name].header[part]) for part in ("KEYS", "ARGV"))
    assert len(client.keys) == len(keys) + more_keys
    assert len(client.args) == len(args) + more_args
    for position, description in keys.items():
        kind = next(kind for kind in KINDS if description.startswith(kind))
        assert client.keys[position - 1] == KINDS[kind], description


#: A full server refuses these: the first two add, the others change no message.
ADDING = {"push", "delay", "ledger", "rebase", "claim", "store"}


def without_comments(path: Path) -> str:
    return re.sub(r"--.*", "", path.read_text())


def included_functions() -> dict[str, str]:
    """Return the text of each function that an include defines, by name."""
    functions: dict[str, str] = {}
    for path in (LUA / "includes").glob("*.lua"):
        for text in re.split(r"(?m)^local function ", without_comments(path))[1:]:
            functions[re.match(r"\w+", text)[0]] = text  # type: ignore[index]
    return functions


def writes(text: str, functions: dict[str, str]) -> Iterator[str]:
    """Yield the writing commands of a text in order, those of a function where it is called."""
    for command, name in re.findall(r"'([A-Z]+)'|\b([a-z_]+)\(", text):
        if command in WRITES:
            yield command
        elif name in functions:
            inner = {other: body for other, body in functions.items() if other != name}
            yield from writes(functions[name].partition(")")[2], inner)


@pytest.mark.parametrize("name", sorted(set(script_names()) - ADDING))
def test_the_first_write_of_a_script_removes(name: str) -> None:
    first = next(writes(without_comments(LUA / f"{name}.lua"), included_functions()))
    assert first in REMOVES, "a full server would refuse it"


@pytest.mark.parametrize("name", ["push", "delay", "exchange"])
def test_a_script_can_be_read_in_one_go(name: str) -> None:
    assert len((LUA / f"{name}.lua").read_text().splitlines()) < 120


def test_every_include_is_used_and_included_once() -> None:
    names = {path.stem for path in (LUA / "includes").glob("*.lua")}
    used = [re.findall(r"-- include: (\w+)", path.read_text()) for path in LUA.glob("*.lua")]
    assert {name for one in used for name in one} == names
    assert all(len(one) == len(set(one)) for one in used)


@pytest.mark.parametrize("name", script_names())
def test_messages_are_never_decoded_by_a_script(name: str) -> None:
    assert "cjson" not in code(SCRIPTS[name]), "it turns [] into {} and rounds big integers"
