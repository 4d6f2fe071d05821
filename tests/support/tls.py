"""TLS in front of a server: the embedded Valkey has none."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import trustme


class Terminator:
    """Listens with TLS and passes everything on to a port of the loopback.

    Arguments:
        port: where the server listens.
        directory: where the certificates go.
    """

    def __init__(self, port: int, directory: Path) -> None:
        self._target = port
        authority = trustme.CA()
        self.authority = directory / "authority.pem"
        authority.cert_pem.write_to_path(self.authority)
        self.stranger = directory / "stranger.pem"
        trustme.CA().cert_pem.write_to_path(self.stranger)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.handshakes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def close(self) -> None:
        """Stop listening and cut what is open."""
        self._listener.close()
        for connection in self._sockets:
            _cut(connection)

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            secure = self._context.wrap_socket(plain, server_side=True)
        except (OSError, ssl.SSLError):
            plain.close()
            return
        self.handshakes += 1
        server = socket.create_connection(("127.0.0.1", self._target))
        self._sockets += [secure, server]
        threading.Thread(target=_pump, args=(server, secure), daemon=True).start()
        _pump(secure, server)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except (OSError, ValueError):
        pass
    finally:
        _cut(source)
        _cut(sink)


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
