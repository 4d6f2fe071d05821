"""The link between workers and broker: a proxy that can fall silent.

``python -m benchmarks.life.proxy PORT TARGET_PORT DIRECTORY`` passes bytes on. At SIGUSR1 it
swallows, from then on, whatever comes on the connections that are open; new ones are served. So do
a NAT that forgot them, or a mesh that was restarted: nobody is told anything. How many connections
were swallowed, and how many of those were used afterwards, is written to the folder.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
COUNTS_FILE = "proxy.json"

#: How often the counts are written: they are looked at when the run is over.
COUNT_SECONDS = 0.2


class Proxy:
    """All links, and what was swallowed."""

    def __init__(self, target_port: int, directory: Path) -> None:
        self.target_port = target_port
        self.links: set[Link] = set()
        self.swallowed = 0
        self.used_afterwards = 0
        self._path = directory / COUNTS_FILE

    def fall_silent(self) -> None:
        """Swallow everything on the links that are open."""
        for link in self.links:
            if not link.is_silent:
                link.is_silent = True
                self.swallowed += 1

    async def count(self) -> None:
        """Write the counts for as long as the proxy runs."""
        while True:
            counts = {"swallowed": self.swallowed, "used_afterwards": self.used_afterwards}
            self._path.write_text(json.dumps(counts))
            await asyncio.sleep(COUNT_SECONDS)


class Link:
    """One connection of a worker, and the one to the broker that it stands for."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.is_silent = False
        self.was_used = False
        proxy.links.add(self)

    def passes(self) -> bool:
        """Return whether bytes are passed on; what is swallowed is counted once."""
        if self.is_silent and not self.was_used:
            self.was_used = True
            self.proxy.used_afterwards += 1
        return not self.is_silent


class End(asyncio.Protocol):
    """One end of a link."""

    def __init__(self, link: Link, other: End | None = None) -> None:
        self.link = link
        self.other = other
        self.transport: Any = None
        self._early = bytearray()
        if other is not None:
            other.other = self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to the broker for a worker; send what has come before that was done."""
        self.transport = transport
        if self.other is None:
            self._connecting = asyncio.ensure_future(self._connect())
            return
        transport.write(bytes(self.other._early))  # type: ignore[attr-defined]
        self.other._early.clear()
        if self.other.transport.is_closing():
            transport.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(
                lambda: End(self.link, self), HOST, self.link.proxy.target_port
            )
        except OSError:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass bytes on, or swallow them."""
        if not self.link.passes():
            return
        if self.other is None or self.other.transport is None:
            self._early += data
        else:
            self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the other end, unless the link is silent: then nobody learns of it."""
        self.link.proxy.links.discard(self.link)
        if not self.link.is_silent and self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        """Take no more from the other end than this one can pass on."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()


async def serve(port: int, target_port: int, directory: Path) -> None:
    """Run until the process is ended."""
    proxy = Proxy(target_port, directory)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, proxy.fall_silent)
    await loop.create_server(lambda: End(Link(proxy)), HOST, port)
    await proxy.count()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
