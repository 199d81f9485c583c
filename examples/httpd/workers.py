"""Several processes behind the same addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trionet
from trionet.abc import Address

if TYPE_CHECKING:
    import argparse
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

    from trionet.abc import Listener, Stream

__all__ = ("adopt", "serve_with_workers", "why_not_shared")


def why_not_shared(options: argparse.Namespace) -> str | None:
    """Return why these binds cannot be served by several processes, or None if they can."""
    seen: set[int | None] = set()
    for network, text in (*options.bind, *options.tls_bind):
        port = Address.parse(network, text).port
        if port is None:
            return f"--workers shares tcp addresses only, got {network}:{text}"
        # A worker is handed sockets, and their ports tell it which of them are for TLS.
        if options.tls_bind and (port == 0 or port in seen):
            return f"--workers and --tls-bind need a port for each bind, got {network}:{text} too"
        seen.add(port)
    return None


def serve_with_workers(
    options: argparse.Namespace, serve: Callable[[list[socket.socket]], Awaitable[object]]
) -> None:
    """Bind, fork, and run ``serve`` in each worker, until SIGTERM or SIGINT."""
    binds = [*options.bind, *options.tls_bind]
    trionet.run_workers(serve, options.workers, binds=binds)


def adopt(
    sockets: Sequence[socket.socket],
    tls_binds: Sequence[tuple[str, str]],
    context: ssl.SSLContext | None,
    proxies: trionet.ProxyProtocol | None,
) -> list[Listener[Stream]]:
    """Make the listeners of one worker from the sockets it was handed."""
    secure = {Address.parse(network, text).port for network, text in tls_binds}
    listeners: list[Listener[Stream]] = []
    for sock in sockets:
        listener: Listener[Stream] = trionet.SocketListener(sock)
        is_secure = listener.address.port in secure
        if proxies is not None:
            listener = trionet.ProxyListener(listener, proxies)
        if context is not None and is_secure:
            listener = trionet.TLSListener(listener, context)
        listeners.append(listener)
    return listeners
