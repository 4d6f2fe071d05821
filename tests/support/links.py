"""A link between clients and a server that can fall silent: a proxy on the loopback.

What is silent swallows everything and closes nothing, as a NAT box does that forgot a connection, a
mesh, or a server that is frozen.
"""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType

_CHUNK = 65536


class Link:
    """A TCP proxy to a port of this machine, driven by one thread.

    Arguments:
        port: the server's port.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._silent: set[socket.socket] = set()
        #: Those that were sent to although they are silent.
        self._unheard: set[socket.socket] = set()
        self._swallows_new = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Link:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped = True
        self._thread.join()
        for sock in [self._listener, *self._peers]:
            sock.close()
        self._selector.close()

    def url(self, url: str, port: int) -> str:
        """Return the URL of a server of that port, through this link."""
        return url.replace(f":{port}/", f":{self.port}/")

    def silence(self, *, new_ones: bool = False) -> int:
        """Swallow everything on the connections that are open; returns how many.

        Arguments:
            new_ones: also on those that are opened from now on.
        """
        with self._lock:
            self._swallows_new = new_ones
            fallen = [sock for sock in self._peers if sock not in self._silent]
            self._silent.update(fallen)
            return len(fallen) // 2

    def heal(self) -> None:
        """Serve new connections again; the silent ones stay silent."""
        self._swallows_new = False

    @property
    def unheard(self) -> int:
        """On how many connections something was sent in vain so far."""
        return len(self._unheard)

    def _run(self) -> None:
        while not self._stopped:
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._pass_on(key.fileobj)  # type: ignore[arg-type]

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        with self._lock:
            self._peers.update({client: server, server: client})
            if self._swallows_new:
                self._silent.update((client, server))
        for sock in (client, server):
            self._selector.register(sock, selectors.EVENT_READ)

    def _pass_on(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_CHUNK)
        except OSError:
            data = b""
        with self._lock:
            peer, is_silent = self._peers.get(sock), sock in self._silent
        if not data:
            self._close(sock)
            if peer is not None and not is_silent:
                self._close(peer)
        elif is_silent:
            self._unheard.add(sock)
        elif peer is not None:
            try:
                peer.sendall(data)
            except OSError:
                return  # its own end is read next

    def _close(self, sock: socket.socket) -> None:
        with self._lock:
            if self._peers.pop(sock, None) is None:
                return
            self._silent.discard(sock)
        self._selector.unregister(sock)
        sock.close()
