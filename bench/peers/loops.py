"""The same handlers under trionet's server and without one: ``loops KIND PORT``.

``bare``, ``served``: 1 KiB for every receive, on a `SocketStream` in a nursery, and in a
`trionet.Server` with every limit set. ``trionet``, ``trio``: echo, under `trionet.Server` and
under `trio.serve_tcp`. ``asyncio``, ``uvloop``: echo by an `asyncio.Protocol`, and by asyncio's
streams with ``-streams`` after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

import trionet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionet.abc import Stream

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n" + b"x" * 1024

LIMITS = trionet.Limits(
    max_connections=10_000, idle_timeout=60.0, send_timeout=60.0, lifetime=3600.0
)


async def answer(stream: Stream) -> None:
    """Take whatever comes for one request. If cancelled, midway."""
    while await stream.receive_some(65536):
        await stream.send_all(ANSWER)


async def answer_when_idle(connection: trionet.Connection) -> None:
    """Answer as `answer` does, with each wait marked for a drain. If cancelled, midway."""
    while True:
        with connection.idle():
            data = await connection.receive_some(65536)
        if not data:
            return
        await connection.send_all(ANSWER)


async def echo(stream: trio.abc.Stream) -> None:
    """Send back what comes. If cancelled, midway."""
    async for data in stream:
        await stream.send_all(data)


async def keep_no_books(stream: Stream) -> None:
    """Answer until the client goes, and close. If cancelled, it is closed at once."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await answer(stream)


async def bare(address: str) -> None:
    """Accept and start, and keep no books. If cancelled, every connection ends."""
    (listener,) = await trionet.listen("tcp", address)
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(keep_no_books, await listener.accept())


class Echo(asyncio.Protocol):
    """Sends back what comes, however much the client leaves unread."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        """Send it back."""
        self._transport.write(data)


async def echo_streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, and wait for slow readers. If cancelled, midway."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve_asyncio(port: str, *, streams: bool) -> None:
    """Echo until cancelled."""
    if streams:
        server = await asyncio.start_server(echo_streams, "127.0.0.1", int(port))
    else:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", int(port))
    await server.serve_forever()


def main(kind: str, port: str) -> None:
    """Serve one kind until killed."""
    loop, _, style = kind.partition("-")
    if loop in {"asyncio", "uvloop"}:
        import uvloop

        run = asyncio.run if loop == "asyncio" else uvloop.run
        run(serve_asyncio(port, streams=style == "streams"))
        return
    address = f"127.0.0.1:{port}"
    serve: dict[str, Callable[[], Awaitable[Any]]] = {
        "bare": partial(bare, address),
        "served": partial(trionet.serve, answer_when_idle, "tcp", address, limits=LIMITS),
        "trionet": partial(trionet.serve, echo, "tcp", address),
        "trio": partial(trio.serve_tcp, echo, int(port), host="127.0.0.1"),
    }
    trio.run(serve[kind])


if __name__ == "__main__":
    main(*sys.argv[1:])
