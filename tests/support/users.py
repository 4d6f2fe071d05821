"""Users of a server that may not do everything, and commands that are run as them."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

from routing.redis.permissions import COMMANDS
from tests.support.servers import Server
from tests.support.worker import ROOT

#: ACL rules of a user that may do what the engine needs, and nothing else.
NEEDED = ("-@all", *(f"+{name}" for name in COMMANDS))

#: ACL rules of the keys that the basic app works with: the engine's, kombu's, its queues'.
KEYS = (
    "resetkeys",
    *("~celeriac:*", "~unacked*", "~_kombu.*"),
    *(f"~{queue}*" for queue in ("default", "low", "high", "slow", "fast", "small", "bulk")),
    *("~*.pidbox*", "~celery-task-meta-*"),
)

#: What is asked for without needing the answer, the queue that stock Celery begins with among it.
SPARED = {"info", "config", "client", "celery"}


class User:
    """A user of a server that may run certain commands.

    Arguments:
        server: the server.
        commands: ACL rules of the commands.
        database: the number of the database in its URL; a fresh one by default.
    """

    def __init__(self, server: Server, *commands: str) -> None:
        self.name = f"user-{secrets.token_hex(4)}"
        self.admin_url = server.fresh_url()
        address = urlsplit(self.admin_url)
        self.url = f"redis://{self.name}:secret@{address.hostname}:{address.port}{address.path}"
        self.admin: Any = server.client()
        rules = ["reset", "on", ">secret", "~*", "&*", *commands]
        self.admin.execute_command("ACL", "SETUSER", self.name, *rules)

    def refused(self) -> set[str]:
        """Return the commands that the server refused to this user."""
        entries = self.admin.acl_log()
        objects = [e["object"] for e in entries if e["username"] == self.name]
        # A list of each priority, and commands with a second word.
        return {re.split(r"[|\x06]", text)[0] for text in objects}


def celery(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the basic app on a broker."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CELERIAC_TEST_BROKER": url}
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.basic", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
