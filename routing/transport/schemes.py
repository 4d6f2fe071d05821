"""URL schemes under which kombu finds the engine's transport.

A ``broker_transport`` setting is lost on failover URLs and unix sockets, and drops TLS; a scheme
survives ``Connection.switch``, clones and failover. Each scheme maps back for display, so that URIs
print as ``redis://`` and Flower picks its Redis broker page.
"""

from __future__ import annotations

from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

_MODULE = "routing.transport.transport"

#: stock scheme -> (our scheme, transport class)
_SCHEMES = {
    "redis": ("celeriac", "EngineTransport"),
    "rediss": ("celeriacs", "EngineTLSTransport"),
    "sentinel": ("celeriacsentinel", "EngineSentinelTransport"),
}
_SOCKET = ("redis+socket://", "celeriac+socket://")


def register_aliases() -> None:
    """Make kombu know the engine's schemes; calling it again changes nothing."""
    for stock, (ours, transport) in _SCHEMES.items():
        TRANSPORT_ALIASES[ours] = f"{_MODULE}:{transport}"
        Connection.resolve_aliases[ours] = stock


def engine_url(url: str) -> str:
    """Return the URL with the engine's scheme, for each of a ``;``-joined list.

    >>> engine_url("redis://localhost:6379/0;rediss://backup:6380/0")
    'celeriac://localhost:6379/0;celeriacs://backup:6380/0'
    >>> engine_url("amqp://localhost//")
    'amqp://localhost//'
    """
    return ";".join(_one(part) for part in url.split(";"))


def is_engine_url(url: str) -> bool:
    """Return whether a URL leads to the engine.

    >>> is_engine_url("celeriacs://localhost:6380/0"), is_engine_url("redis://localhost/0")
    (True, False)
    """
    return url.startswith((*(f"{ours}://" for ours, _ in _SCHEMES.values()), _SOCKET[1]))


def stock_url(url: str) -> str:
    """Return the URL with the stock scheme, as users wrote it.

    >>> stock_url("celeriacs://localhost:6380/0")
    'rediss://localhost:6380/0'
    """
    for stock, (ours, _) in _SCHEMES.items():
        if url.startswith(f"{ours}://"):
            return stock + url[len(ours) :]
    return url.replace(_SOCKET[1], _SOCKET[0], 1)


def _one(url: str) -> str:
    if url.startswith(_SOCKET[0]):
        return url.replace(*_SOCKET, 1)
    scheme, separator, rest = url.partition("://")
    if separator and scheme in _SCHEMES:
        return f"{_SCHEMES[scheme][0]}://{rest}"
    return url
