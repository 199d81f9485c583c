"""Sessions to test with: pairs over memory, TCP and TLS, and carriers that misbehave."""

from __future__ import annotations

import math
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import trio
import trustme

import trionet
from trionet._mux.session import MuxConfig, MuxSession, open_mux
from trionet._streams.memory import memory_stream_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trionet._mux.stream import MuxStream

DEFAULTS = MuxConfig()
QUIET = MuxConfig(keepalive=None)

# What arrives at once.
SEGMENT = 4096

HOST = "mux.example"

StreamPair = tuple[trio.abc.Stream, trio.abc.Stream]


@dataclass
class Pair:
    """Both ends of a session."""

    client: MuxSession
    server: MuxSession

    async def streams(self, opener: str = "client") -> tuple[MuxStream, MuxStream]:
        """Open a stream; return the opener's end and the acceptor's."""
        near, far = (self.client, self.server) if opener == "client" else (self.server, self.client)
        stream = await near.open_stream()
        return stream, await far.listener().accept()


async def memory() -> StreamPair:
    return memory_stream_pair()


async def buffered() -> StreamPair:
    return memory_stream_pair(65536)


async def trios() -> StreamPair:
    return trio.testing.memory_stream_pair()


async def tcp() -> StreamPair:
    return await dialled()


async def tls() -> StreamPair:
    return await dialled(*certificates())


async def dialled(
    client: ssl.SSLContext | None = None, server: ssl.SSLContext | None = None
) -> StreamPair:
    """Dial and accept with trionet's own calls."""
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0", ssl_context=server)
    async with listener:
        near = await trionet.dial(
            "tcp",
            str(listener.address),
            ssl_context=client,
            server_hostname=HOST if client else None,
        )
        return near, await listener.accept()


async def trios_tcp() -> StreamPair:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        return near, await listener.accept()


async def trios_tls() -> StreamPair:
    near, far = await trios_tcp()
    client, server = certificates()
    return (
        trio.SSLStream(near, client, server_hostname=HOST),
        trio.SSLStream(far, server, server_side=True),
    )


@cache
def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return client, server


CARRIERS: dict[str, Callable[[], Awaitable[StreamPair]]] = {
    "memu": memory,
    "memb": buffered,
    "trio's memory": trios,
    "tcp": tcp,
    "tls": tls,
    "trio's tcp": trios_tcp,
    "trio's tls": trios_tls,
}


@asynccontextmanager
async def sessions(
    carrier: Callable[[], Awaitable[StreamPair]] = memory,
    config: MuxConfig = DEFAULTS,
    server_config: MuxConfig | None = None,
) -> AsyncIterator[Pair]:
    """Open both ends of a session, and close them together."""
    near, far = await carrier()
    async with (
        open_mux(near, role="client", config=config) as client,
        open_mux(far, role="server", config=server_config or config) as server,
    ):
        yield Pair(client, server)


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Receive until end of file."""
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)


async def echo(stream: trio.abc.HalfCloseableStream) -> None:
    """Send back what comes, then end of file."""
    async with stream:
        while piece := await stream.receive_some():
            await stream.send_all(piece)
        await stream.send_eof()


async def serve(session: MuxSession, handler: Callable[[Any], Awaitable[object]]) -> None:
    """Accept streams for ever, each in a task of its own."""
    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(handler, await session.listener().accept())


async def clog(stream: MuxStream) -> None:
    """Send until nothing more fits: no credit, and no room for a small piece either."""
    while True:
        with trio.move_on_after(0.02) as scope:
            await stream.send_all(bytes(4096))
        if scope.cancelled_caught:
            return


class Line:
    """One direction of a link: latency for every byte, and so many bytes a second.

    Attributes:
      cut: what is sent from now on arrives nowhere, and nobody is told.
      buffer: how many bytes the sender's system takes ahead of the line.
    """

    def __init__(self, latency: float, rate: float, buffer: int = 0) -> None:
        self._latency = latency
        self._rate = rate
        self.buffer = buffer
        self.cut = False
        self._ended = False
        self._free_at = 0.0
        self._in, self._out = trio.open_memory_channel[tuple[float, bytes]](math.inf)

    async def send(self, data: bytes) -> None:
        now = trio.current_time()
        self._free_at = max(now, self._free_at)
        for start in range(0, len(data), SEGMENT):
            segment = data[start : start + SEGMENT]
            self._free_at += len(segment) / self._rate
            if not self.cut:
                self._in.send_nowait((self._free_at + self._latency, segment))
        # The line takes as fast as it carries; what is under way is under way.
        await trio.sleep_until(max(now, self._free_at - self.buffer / self._rate))

    async def receive(self) -> bytes:
        try:
            arrival, data = await self._out.receive()
        except trio.EndOfChannel:
            return b""
        await trio.sleep_until(arrival)
        return data

    def end(self) -> None:
        if not self.cut and not self._ended:
            self._ended = True
            self._free_at = max(trio.current_time(), self._free_at)
            with suppress(trio.BrokenResourceError):
                self._in.send_nowait((self._free_at + self._latency, b""))
            self._in.close()


class LinkStream(trio.abc.HalfCloseableStream):
    """An end of a link with latency and bandwidth, for virtual time."""

    def __init__(self, incoming: Line, outgoing: Line) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        try:
            await self._outgoing.send(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise trio.BrokenResourceError from exc

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self._incoming.receive()

    def cut(self) -> None:
        """Lose whatever either end sends from now on."""
        self._incoming.cut = self._outgoing.cut = True

    async def send_eof(self) -> None:
        self._outgoing.end()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True
        self._outgoing.end()
        self._incoming._out.close()
        await trio.lowlevel.checkpoint()


def link(latency: float, rate: float, buffer: int = 0) -> Callable[[], Awaitable[StreamPair]]:
    """Make a carrier with ``latency`` each way, ``rate`` bytes a second and buffers before it."""

    async def make() -> StreamPair:
        there, back = Line(latency, rate, buffer), Line(latency, rate, buffer)
        return LinkStream(back, there), LinkStream(there, back)

    return make


class Peer:
    """A peer that speaks frames by hand, for what no well-behaved one would say."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.rest = b""

    async def send(self, *frames: Any) -> None:
        await self.stream.send_all(b"".join(frame.encode() for frame in frames))

    async def frames(self, seconds: float = 1.0) -> tuple[list[str], bool]:
        """Return the frames that come within ``seconds``, and whether the carrier ended."""
        from trionet.yamux import split_frames

        found: list[str] = []
        with trio.move_on_after(seconds):
            while True:
                try:
                    data = await self.stream.receive_some()
                except trio.BrokenResourceError:
                    return found, True
                if not data:
                    return found, True
                frames, self.rest = split_frames(self.rest + data)
                found += map(str, frames)
        return found, False


@asynccontextmanager
async def against_peer(
    config: MuxConfig = QUIET,
    buffer_size: int = 1 << 22,
    wrap: Callable[[trio.abc.Stream], trio.abc.Stream] | None = None,
) -> AsyncIterator[tuple[MuxSession, Peer]]:
    """Open a server whose client is a `Peer`, over a carrier that ``wrap`` may change."""
    near, far = memory_stream_pair(buffer_size)
    async with open_mux(wrap(far) if wrap else far, role="server", config=config) as session:
        try:
            yield session, Peer(near)
        finally:
            near.close()


__all__ = (
    "CARRIERS",
    "Pair",
    "Peer",
    "against_peer",
    "clog",
    "echo",
    "link",
    "partial",
    "receive_all",
    "serve",
    "sessions",
)
