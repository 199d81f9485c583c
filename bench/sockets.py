"""Connected sockets, and trio's own stream over one."""

from __future__ import annotations

import socket

import trio

__all__ = ("tcp_sockets", "trio_stream")


def tcp_sockets() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a TCP connection without Nagle's delay."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def trio_stream(sock: socket.socket) -> trio.SocketStream:
    """Wrap ``sock`` as trio does."""
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
