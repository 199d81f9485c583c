"""A server under attack, and what must hold of it afterwards."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import ssl
import struct
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

import trionet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import pytest

    from tests.conftest import Certificates
    from trionet import Connection, Server

# More tasks than trio's own wait is used for: the readiness hub's descriptors are open after that.
WARM = 8


# How long trio sees nothing happen before a virtual clock jumps: what the kernel needs to carry
# bytes from one of our sockets to another.
KERNEL = 0.05


async def echo(connection: Connection) -> None:
    """Send back whatever comes."""
    async for data in connection:
        await connection.send_all(data)


def descriptors() -> int:
    """Count the open descriptors of this process."""
    return len(os.listdir("/dev/fd"))


def reset(sock: socket.socket) -> None:
    """Close so that the peer gets a reset, and no end of file."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def contexts(certificates: Certificates, secure: bool) -> dict[str, Any]:
    """Give what `under_attack` takes for TLS, or nothing."""
    if not secure:
        return {}
    return {"ssl_context": certificates.server, "client_context": certificates.client}


def loud(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Give what was logged for people to read."""
    return [one for one in caplog.records if one.levelno > logging.DEBUG]


def hello_of(context: ssl.SSLContext) -> bytes:
    """Return what a client says first."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(received, sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


class Site:
    """A server on a real TCP port, and the client that behaves well."""

    def __init__(self, server: Server, client_context: ssl.SSLContext | None) -> None:
        self.server = server
        self.port = server.addresses[0].port or 0
        self._context = client_context
        self.served = 0

    def connect(self) -> socket.socket:
        """Connect a plain socket; no task of the server runs meanwhile."""
        return socket.create_connection(("127.0.0.1", self.port))

    def connect_many(self, count: int) -> list[socket.socket]:
        """Connect several."""
        return [self.connect() for _ in range(count)]

    async def dial(self) -> trionet.abc.Stream:
        """Connect as the well-behaved client does, TLS included."""
        address = f"localhost:{self.port}"
        return await trionet.dial("tcp4", address, ssl_context=self._context)

    async def serves(self) -> None:
        """Prove that a well-behaved client is served: with its echo, and promptly."""
        with trio.fail_after(5):
            async with await self.dial() as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
        self.served += 1

    async def quiet(self) -> None:
        """Wait until no connection is open."""
        # A virtual clock pays for each jump with a real moment in which nothing happens.
        virtual = isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
        while self.server.statistics().active:
            await trio.sleep(0.25 if virtual else 0.001)

    async def ended(self, sockets: Iterable[socket.socket]) -> None:
        """Wait for the end of each socket, whatever comes before it, and close it."""
        for sock in sockets:
            async with trionet.SocketStream(sock) as stream:
                try:
                    while await stream.receive_some():
                        pass
                except trio.BrokenResourceError:
                    continue


async def warm_up() -> None:
    """Have so many wait at once that nothing will be opened for waiting any more."""
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            for _ in range(WARM):
                near, far = socket.socketpair()
                stack.callback(far.close)
                stream = trionet.SocketStream(near)
                stack.callback(stream.close)
                nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def under_attack(
    handler: Any = echo,
    *,
    ssl_context: ssl.SSLContext | None = None,
    client_context: ssl.SSLContext | None = None,
    **settings: Any,
) -> AsyncIterator[Site]:
    """Serve on TCP for an attack in the block.

    Afterwards a well-behaved client must have been served, within the block and after it; no
    descriptor is left of anything; the counts add up.
    """
    listeners = await trionet.listen("tcp", "127.0.0.1:0", ssl_context=ssl_context)
    server = trionet.Server(handler, **settings)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        site = Site(server, client_context)
        await warm_up()
        await site.serves()
        await site.quiet()
        # Other tests' garbage must not go meanwhile, and make up for what is left here.
        gc.collect()
        base = descriptors()
        site.served = 0

        yield site

        assert site.served, "no well-behaved client was served within the attack"
        await site.serves()
        with trio.fail_after(20):
            await site.quiet()
        left = descriptors()
        assert left == base, f"{left} descriptors, {base} before"
        counts = server.statistics()
        assert counts.accepted == counts.completed + counts.failed + counts.rejected
        server.shutdown(0)
