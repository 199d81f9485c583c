"""How a connection that nobody uses is seen to have died."""

from __future__ import annotations

import select
import socket as stdlib_socket
from typing import TYPE_CHECKING, Any, cast

import trio

from .._streams.readiness import unwatch_hangup, watch_hangup

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    AnySocket: TypeAlias = stdlib_socket.socket | trio.socket.SocketType

__all__ = ("find_hangup_probe", "find_probe", "find_socket", "is_gone", "stop_watching", "watch")

# How many streams may be stacked on a socket; no real stack comes near, and a cycle ends.
MAX_LAYERS = 8


def find_socket(resource: Any) -> tuple[AnySocket | None, bool]:
    """Find the socket under ``resource``, through streams stacked on one another.

    Returns:
      The socket, and whether its stream tells the readiness hub before it closes it. Other
      sockets may be watched only while nobody but the pool can close them: after a close behind
      the hub's back the descriptor's number may belong to anyone.
    """
    own = getattr(resource, "transport_socket", None)
    if isinstance(own, stdlib_socket.socket):
        return own, True
    layer = resource
    for _ in range(MAX_LAYERS):
        below = getattr(layer, "socket", None)
        if isinstance(below, stdlib_socket.socket | trio.socket.SocketType):
            return below, False
        layer = getattr(layer, "transport_stream", None)
        if layer is None:
            break
    return None, False


def find_probe(resource: Any) -> Callable[[], bool] | None:
    """Return how to ask ``resource`` whether it has become readable, which no idle one should."""
    if isinstance(resource, trio.SocketStream):
        resource = resource.socket
    probe = getattr(resource, "is_readable", None)
    return probe if callable(probe) else None


def find_hangup_probe(sock: AnySocket) -> Callable[[], bool] | None:
    """Return how to ask whether the peer of ``sock`` has gone, whatever bytes it left behind."""
    if not hasattr(select, "POLLRDHUP"):
        return None

    def hung_up() -> bool:
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLRDHUP)
        # Errors and a full hang-up are always told.
        return bool(poll.poll(0))

    return hung_up


def watch(sock: AnySocket, callback: Callable[[], object]) -> bool:
    """Have ``callback()`` called once the peer of ``sock`` is gone; false if that is not possible.

    Not possible are sockets that only look like one, a virtual network's for example, one that
    is watched for somebody else already, and platforms that cannot tell.
    """
    try:
        # trio's sockets have the one method that is used: fileno().
        return watch_hangup(cast("stdlib_socket.socket", sock), callback)
    except (OSError, ValueError):
        return False


def stop_watching(sock: AnySocket) -> None:
    """Take `watch` back."""
    if not is_gone(sock):
        unwatch_hangup(cast("stdlib_socket.socket", sock))


def is_gone(sock: AnySocket) -> bool:
    """Whether ``sock`` was closed here."""
    return sock.fileno() == -1
