"""hashicorp/yamux itself on the other end: both roles, both ways of connecting, TCP and TLS.

The peer's program is in ``peer/main.go``; what it does on a stream the stream's first line says.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

import trionet
from tests.mux.support import receive_all, serve
from trionet._errors import RemoteGoAwayError, SessionBrokenError, StreamResetError
from trionet._mux.session import MuxConfig, MuxSession, open_mux

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import Certificates
    from tests.interop.conftest import GoPeer, StartPeer
    from trionet._mux.stream import MuxStream

DEFAULTS = MuxConfig()
PATTERN = bytes(range(251))

pytestmark = pytest.mark.parametrize(
    "way", ["go listens", "go connects", "go listens, tls", "go connects, tls"]
)


def pattern(size: int) -> bytes:
    return (PATTERN * (size // 251 + 1))[:size]


class Meeting:
    """How a session with the Go peer comes about."""

    def __init__(
        self, start: StartPeer, way: str, certificates: Certificates, folder: Path
    ) -> None:
        self.start = start
        self.way = way
        self.certificates = certificates
        self.folder = folder

    @asynccontextmanager
    async def session(
        self, *arguments: str, config: MuxConfig = DEFAULTS, role: str = "client"
    ) -> AsyncIterator[tuple[MuxSession, GoPeer]]:
        """Open a session in ``role``; the peer takes the other."""
        other = "server" if role == "client" else "client"
        async with AsyncExitStack() as stack:
            carrier, peer = await self._carrier(stack, [*arguments, "-role", other])
            with trio.fail_after(30):
                async with open_mux(carrier, role=role, config=config) as session:  # type: ignore[arg-type]
                    yield session, peer

    async def _carrier(
        self, stack: AsyncExitStack, arguments: list[str]
    ) -> tuple[trio.abc.Stream, GoPeer]:
        tls = "tls" in self.way
        if "listens" in self.way:
            if tls:
                arguments += ["-cert", str(self._certificate())]
            peer = await stack.enter_async_context(self.start("-listen", "127.0.0.1:0", *arguments))
            carrier = await trionet.dial(
                "tcp",
                f"127.0.0.1:{peer.port}",
                ssl_context=self.certificates.client if tls else None,
            )
            return carrier, peer
        (listener,) = await trionet.listen(
            "tcp", "127.0.0.1:0", ssl_context=self.certificates.server if tls else None
        )
        if tls:
            trust = self.folder / "trust.pem"
            self.certificates.authority.cert_pem.write_to_path(str(trust))
            arguments += ["-trust", str(trust)]
        async with listener:
            peer = await stack.enter_async_context(
                self.start("-connect", str(listener.address), *arguments)
            )
            return await listener.accept(), peer

    def _certificate(self) -> Path:
        path = self.folder / "server.pem"
        issued = self.certificates.authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path


@pytest.fixture
def meeting(start_peer: StartPeer, way: str, certificates: Certificates, tmp_path: Path) -> Meeting:
    return Meeting(start_peer, way, certificates, tmp_path)


async def command(session: MuxSession, line: str) -> MuxStream:
    stream = await session.open_stream()
    await stream.send_all(line.encode() + b"\n")
    return stream


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("size", [1, 5000, 3_000_000])
async def test_echo(meeting: Meeting, role: str, size: int) -> None:
    async with meeting.session(role=role) as (session, _), trio.open_nursery() as nursery:
        stream = await command(session, "echo")

        async def send() -> None:
            await stream.send_all(pattern(size))
            await stream.send_eof()

        nursery.start_soon(send)
        assert await receive_all(stream) == pattern(size)
        await stream.aclose()


async def test_sink(meeting: Meeting) -> None:
    async with meeting.session() as (session, _), await command(session, "sink") as stream:
        await stream.send_all(bytes(2_000_000))
        await stream.send_eof()

        assert await receive_all(stream) == b"2000000 <nil>"


async def test_source(meeting: Meeting) -> None:
    async with (
        meeting.session() as (session, _),
        await command(session, "source 2000000") as stream,
    ):
        assert await receive_all(stream) == pattern(2_000_000)


@pytest.mark.parametrize("window", ["262144", "4194304"])
async def test_big_windows_on_either_end(meeting: Meeting, window: str) -> None:
    config = MuxConfig(window=1 << 22)
    async with meeting.session("-window", window, config=config) as (session, _):
        async with await command(session, "source 9000000") as stream:
            assert await receive_all(stream) == pattern(9_000_000)
        async with await command(session, "sink") as stream:
            await stream.send_all(bytes(9_000_000))
            await stream.send_eof()
            assert await receive_all(stream) == b"9000000 <nil>"


async def test_end_of_file_from_the_peer_leaves_our_direction_open(meeting: Meeting) -> None:
    async with meeting.session() as (session, peer):
        async with await command(session, "early") as stream:
            assert await receive_all(stream) == b"bye"
            await peer.line("RESULT")
            await stream.send_all(bytes(100_000))
            await stream.send_eof()
            await session.ping()
        await session.ping()

        assert session.statistics().opened_here == 0


async def test_a_reset_of_ours_is_a_reset_there(meeting: Meeting) -> None:
    async with meeting.session() as (session, peer):
        stream = await command(session, "watch")
        await session.ping()
        stream.reset()

        assert "connection reset" in await peer.line("RESULT")
        # The session lives on.
        async with await command(session, "echo") as other:
            await other.send_all(b"alive")
            assert await other.receive_some() == b"alive"


async def test_a_reset_of_the_peers_is_a_reset_here(meeting: Meeting) -> None:
    async with meeting.session("-noaccept", "-backlog", "1") as (session, _):
        kept = await session.open_stream()
        refused = await session.open_stream()

        with pytest.raises(StreamResetError):
            await refused.receive_some()
        await kept.aclose()


async def test_closing_early_tells_a_peer_that_writes(meeting: Meeting) -> None:
    config = MuxConfig(linger_size=1 << 20)
    async with meeting.session(config=config) as (session, peer):
        stream = await command(session, "write")
        await stream.receive_some()
        await stream.aclose()

        assert "write:" in await peer.line("RESULT")


async def test_a_reply_sent_before_an_early_close_is_read(meeting: Meeting) -> None:
    """Go drops what was not read when a reset comes, so the close must not be one."""
    async with meeting.session(role="server") as (session, _), trio.open_nursery() as nursery:

        async def answer_and_close(stream: MuxStream) -> None:
            await stream.send_all(pattern(100))
            await stream.aclose()

        nursery.start_soon(serve, session, answer_and_close)
        async with await command(session, "open 10 100") as stream:
            assert await receive_all(stream) == b"<nil>"
        nursery.cancel_scope.cancel()


async def test_go_away_of_the_peers_keeps_old_streams(meeting: Meeting) -> None:
    async with meeting.session() as (session, _), await command(session, "goaway") as stream:
        await stream.send_all(b"still")
        assert await stream.receive_some() == b"still"
        with pytest.raises(RemoteGoAwayError):
            await session.open_stream()


async def test_drain_of_ours_keeps_old_streams(meeting: Meeting) -> None:
    async with meeting.session() as (session, _), trio.open_nursery() as nursery:
        stream = await command(session, "echo")
        nursery.start_soon(session.drain)
        await stream.send_all(b"still")
        assert await stream.receive_some() == b"still"
        await stream.send_eof()
        assert await receive_all(stream) == b""
        await stream.aclose()


async def test_many_streams_from_here(meeting: Meeting) -> None:
    async with meeting.session() as (session, _), trio.open_nursery() as nursery:

        async def one(number: int) -> None:
            async with await command(session, "echo") as stream:
                message = b"%d," % number * 3000
                await stream.send_all(message)
                await stream.send_eof()
                assert await receive_all(stream) == message

        for number in range(300):
            nursery.start_soon(one, number)


async def test_many_streams_from_there(meeting: Meeting) -> None:
    async def echo(stream: MuxStream) -> None:
        async with stream:
            while piece := await stream.receive_some():
                await stream.send_all(piece)

    async with meeting.session(role="server") as (session, _), trio.open_nursery() as nursery:
        nursery.start_soon(serve, session, echo)
        async with await command(session, "open 200 70000") as stream:
            assert await receive_all(stream) == b"<nil>"
        nursery.cancel_scope.cancel()


async def test_pings(meeting: Meeting) -> None:
    async with meeting.session() as (session, _):
        assert 0 < await session.ping() < 5


async def test_the_end_of_our_session_is_a_clean_end_there(meeting: Meeting) -> None:
    async with AsyncExitStack() as stack:
        session, peer = await stack.enter_async_context(meeting.session())
        stream = await command(session, "watch")
        await stream.send_all(bytes(50_000))
        # Go forgets streams that were not accepted when the session ended.
        while session.statistics().unacknowledged:
            await session.ping()
        await session.aclose()

        assert (await peer.line("RESULT")).endswith("watch: 50000 <nil>")
        await peer.line("END")


async def test_a_peer_that_hangs_up_breaks_the_session(meeting: Meeting) -> None:
    async with meeting.session() as (session, _):
        stream = await command(session, "hangup")

        with pytest.raises(SessionBrokenError):
            await stream.receive_some()
