"""Connections that die while nobody uses them are gone before anybody is handed one."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
from trionet import MemoryStream, Pool, SocketStream, memory_stream_pair
from trionet._pool.watch import find_socket

if TYPE_CHECKING:
    from collections.abc import Callable

hub_only = pytest.mark.skipif(
    not hasattr(__import__("select"), "epoll"), reason="there is no epoll to tell of a hang-up"
)


class Far:
    """The far ends of socket pairs, and a pool's ``connect`` for the near ones."""

    def __init__(self, wrap: Callable[[socket.socket], Any]) -> None:
        self.wrap = wrap
        self.ends: list[socket.socket] = []

    async def connect(self) -> Any:
        """Make a pair and return the near end."""
        near, far = socket.socketpair()
        self.ends.append(far)
        return self.wrap(near)

    def restart(self) -> None:
        """Close all far ends."""
        for end in self.ends:
            end.close()
        self.ends.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restart()


def trio_stream(sock: socket.socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def trio_tls(sock: socket.socket) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.create_default_context()
    return trio.SSLStream(trio_stream(sock), context, server_hostname="site")


class Session:
    """A client of some database, as far as a pool is concerned."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setblocking(False)

    async def aclose(self) -> None:
        """Close the socket."""
        self.socket.close()
        await trio.lowlevel.checkpoint()


async def settle() -> None:
    """Let the kernel's news reach the hub, and the hub's the pool."""
    for _ in range(3):
        await trio.sleep(0)
        await wait_all_tasks_blocked(0.001)


@hub_only
@pytest.mark.parametrize("wrap", [SocketStream, trio_stream, trio_tls, Session])
async def test_a_peer_s_restart_empties_the_shelf_by_itself(
    wrap: Callable[[socket.socket], Any],
) -> None:
    with Far(wrap) as far:
        async with Pool(far.connect, max_size=5, min_size=2) as pool:
            connections = [await pool.get() for _ in range(5)]
            for connection in connections:
                pool.put(connection)
            await settle()
            assert pool.statistics().idle == 5

            far.restart()
            await settle()

            now = pool.statistics()
            assert now.reasons == {"dead": 5}
            # And what has to be kept is there again, alive.
            assert now.idle == 2
            fresh = pool.get_nowait()
            assert fresh not in connections
            pool.put(fresh)
            far.restart()
            await pool.drain()


@hub_only
@pytest.mark.parametrize("wrap", [SocketStream, trio_stream, Session])
async def test_one_that_dies_while_it_is_lent_does_not_come_back(
    wrap: Callable[[socket.socket], Any],
) -> None:
    with Far(wrap) as far:
        async with Pool(far.connect, max_size=1) as pool:
            for _ in range(3):
                async with pool.acquire():
                    far.restart()
                    await settle()
                await settle()

            assert pool.statistics().idle == 0
            assert pool.statistics().reasons == {"dead": 3}


@hub_only
async def test_lending_takes_nothing_from_the_watch() -> None:
    with Far(SocketStream) as far:
        async with Pool(far.connect, max_size=1) as pool:
            for _ in range(10):
                async with pool.acquire() as stream:
                    await far_echo(far, stream)
            far.restart()
            await settle()

            assert pool.statistics().idle == 0


async def far_echo(far: Far, stream: SocketStream) -> None:
    """Exchange a byte, as a user would."""
    await stream.send_all(b"?")
    far.ends[-1].recv(1)
    far.ends[-1].send(b"!")
    assert await stream.receive_some() == b"!"


@hub_only
@pytest.mark.parametrize("wrap", [SocketStream, trio_stream])
async def test_a_stream_its_user_closed_leaves_nothing_behind_for_its_descriptor(
    wrap: Callable[[socket.socket], Any],
) -> None:
    with Far(wrap) as far:
        async with Pool(far.connect, max_size=2) as pool:
            async with pool.acquire() as stream:
                number = stream.socket.fileno()
                await stream.aclose()
            # The next one gets the same descriptor, and is not taken for the old one.
            near, end = socket.socketpair()
            assert number in (near.fileno(), end.fileno())
            other = SocketStream(near)
            await settle()
            await other.aclose()
            end.close()

            assert pool.statistics().idle == 0
            async with pool.acquire():
                pass
            assert pool.statistics().idle == 1


async def test_what_has_no_socket_is_asked_when_it_is_handed_out() -> None:
    ends: list[MemoryStream] = []

    async def connect() -> MemoryStream:
        near, far = memory_stream_pair(100)
        ends.append(far)
        return near

    async with Pool(connect, max_size=3) as pool:
        streams = [await pool.get() for _ in range(3)]
        for stream in streams:
            pool.put(stream)
        # One peer goes, another speaks out of turn.
        await ends[2].aclose()
        await ends[1].send_all(b"unasked")

        assert await pool.get() is streams[0]
        assert pool.statistics().reasons == {"dead": 2}
        pool.put(streams[0])


async def test_one_that_cannot_be_asked_is_dead() -> None:
    peer = FakePeer()

    def broken() -> bool:
        raise OSError("no such thing")

    async with Pool(peer.connect, max_size=1) as pool:
        async with pool.acquire() as first:
            first.is_readable = broken  # type: ignore[method-assign]
        # Asked when it comes free, through the name it had when it arrived.
        async with pool.acquire() as second:
            assert second is first

    async def connect() -> FakeConnection:
        connection = await peer.connect()
        if len(peer.made) == 2:
            connection.is_readable = broken  # type: ignore[method-assign]
        return connection

    async with Pool(connect, max_size=1) as pool:
        # Not on arrival, since its peer may have spoken first; but when it comes back.
        async with pool.acquire() as third:
            assert third.number == 1
        async with pool.acquire() as fourth:
            assert fourth.number == 2


def test_a_socket_is_found_below_other_streams() -> None:
    near, far = socket.socketpair()
    with near, far:
        assert find_socket(trio_tls(near))[1] is False
        assert find_socket(object()) == (None, False)
        cycle = type("Cycle", (), {})()
        cycle.transport_stream = cycle
        assert find_socket(cycle) == (None, False)


@hub_only
async def test_two_connections_over_one_socket_are_pooled_all_the_same() -> None:
    near, far = socket.socketpair()
    sessions = iter([Session(near), Session(near)])

    async def connect() -> Session:
        return next(sessions)

    async with Pool(connect, max_size=2) as pool:
        async with pool.acquire(), pool.acquire():
            pass
        await settle()
        assert pool.statistics().idle == 2
    far.close()
