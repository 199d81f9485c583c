"""What tests of the virtual network need again and again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from trionet.testing import Host, Link, VirtualNetwork

__all__ = ("Pair", "connected", "drain", "echo", "pair", "socket_pair", "timed", "two_hosts")

Pair = tuple[trio.SocketStream, trio.SocketStream]


async def echo(stream: trio.abc.Stream) -> None:
    """Answer with what comes."""
    async for data in stream:
        await stream.send_all(data)


async def drain(stream: trio.abc.ReceiveStream) -> bytes:
    """Receive until end of file."""
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


async def timed(operation: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    """Return how long it took, in virtual seconds, and what it returned or raised."""
    start = trio.current_time()
    result: Any
    try:
        result = await operation()
    except (OSError, trio.BrokenResourceError) as exc:
        result = exc
    return round(trio.current_time() - start, 6), result


@asynccontextmanager
async def two_hosts(
    link: Link | None = None, seed: int = 0
) -> AsyncIterator[tuple[VirtualNetwork, Host, Host]]:
    """Give a network with a server and a client host."""
    async with VirtualNetwork(seed=seed, link=link) as net:
        yield net, net.host("server"), net.host("client")


async def socket_pair(
    server: Host, client: Host, *, sizes: tuple[int, int] | None = None, port: int = 0
) -> tuple[Any, Any]:
    """Return a connected socket of the client's and one of the server's."""
    with server.context():
        listening = trio.socket.socket()
        listening.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        if sizes is not None:
            listening.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, sizes[0])
            listening.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, sizes[1])
        await listening.bind(("0.0.0.0", port))
        listening.listen()
    with client.context():
        near = trio.socket.socket()
        if sizes is not None:
            near.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, sizes[0])
            near.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, sizes[1])
        await near.connect((server.name, listening.getsockname()[1]))
    far, _ = await listening.accept()
    listening.close()
    return near, far


async def pair(server: Host, client: Host, *, sizes: tuple[int, int] | None = None) -> Pair:
    """Return two connected streams, the client's first."""
    near, far = await socket_pair(server, client, sizes=sizes)
    return trio.SocketStream(near), trio.SocketStream(far)


@asynccontextmanager
async def connected(
    link: Link | None = None, *, sizes: tuple[int, int] | None = None
) -> AsyncIterator[tuple[VirtualNetwork, trio.SocketStream, trio.SocketStream]]:
    """Give a network and two connected streams, the client's first."""
    async with two_hosts(link) as (net, server, client):
        near, far = await pair(server, client, sizes=sizes)
        async with near, far:
            yield net, near, far
