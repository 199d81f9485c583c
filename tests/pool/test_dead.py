"""Connections that die while nobody uses them are gone before anybody is handed one."""

from __future__ import annotations

import math
import socket
import ssl
from typing import TYPE_CHECKING, Any, Self

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
from trionet import BufferedStream, MemoryStream, Pool, SocketStream, memory_stream_pair
from trionet._pool.watch import find_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

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


@pytest.mark.parametrize("wrap", [trio_stream, trio_tls, Session])
@pytest.mark.parametrize("take", ["acquire", "get_nowait"])
async def test_a_foreign_one_that_just_died_is_not_handed_out(
    wrap: Callable[[socket.socket], Any], take: str
) -> None:
    with Far(wrap) as far:
        async with Pool(far.connect, max_size=2) as pool:
            connections = [await pool.get() for _ in range(2)]
            for connection in connections:
                pool.put(connection)
            await settle()

            # Nobody has had a chance to tell of it, and it must be seen all the same.
            far.ends[1].close()
            if take == "acquire":
                async with pool.acquire() as taken:
                    assert taken is connections[0]
            else:
                taken = pool.get_nowait()
                assert taken is connections[0]
                pool.put(taken)

            assert pool.statistics().reasons == {"dead": 1}
            far.restart()
            await pool.drain()


@hub_only
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("take", ["acquire", "get_nowait"])
async def test_stray_bytes_are_noticed_once_a_connection_has_lain_idle(
    take: str, buffered: bool, autojump_clock: MockClock
) -> None:
    wrap = (lambda sock: BufferedStream(SocketStream(sock))) if buffered else SocketStream
    with Far(wrap) as far:
        async with Pool(far.connect, max_size=2) as pool:
            first, second = [await pool.get() for _ in range(2)]
            pool.put(first)
            pool.put(second)
            far.ends[1].send(b"a late answer")

            # A moment after its use it is not asked: hardly anything happens so soon.
            await trio.sleep(0.4)
            async with pool.acquire() as stream:
                assert stream is second
            await trio.sleep(0.6)
            if take == "acquire":
                async with pool.acquire() as stream:
                    assert stream is first
            else:
                stream = pool.get_nowait()
                pool.put(stream)
                assert stream is first

            assert pool.statistics().reasons == {"dead": 1}
            # It can be lent at once again, without a look.
            assert not next(iter(pool._lender.idle.values())).stale
            async with pool.acquire() as stream:
                assert stream is first


@hub_only
async def test_with_check_after_0_stray_bytes_are_always_noticed() -> None:
    with Far(SocketStream) as far:
        async with Pool(far.connect, max_size=1, check_after=0) as pool:
            for number in range(3):
                async with pool.acquire():
                    pass
                async with pool.acquire() as stream:
                    assert len(far.ends) == number + 1
                far.ends[-1].send(b"unasked")
            assert await pool.get() is not stream
            assert pool.statistics().reasons == {"dead": 3}
            await pool.drain(0)


@hub_only
async def test_a_greeting_is_not_taken_for_stray_bytes(autojump_clock: MockClock) -> None:
    with Far(SocketStream) as far:
        async with Pool(far.connect, max_size=1, min_size=1) as pool:
            await pool.ready()
            far.ends[0].send(b"220 ready")
            await trio.sleep(60)

            async with pool.acquire() as stream:
                assert await stream.receive_some() == b"220 ready"
            assert pool.statistics().connected == 1


class Client:
    """A client that leaves it to its stream to know about its peer, but for one thing."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = SocketStream(sock)
        self.transport_socket = self._stream.transport_socket
        self.is_readable = self._stream.is_readable
        self.receive_some = self._stream.receive_some
        self.aclose = self._stream.aclose


@hub_only
@pytest.mark.parametrize("wrap", [trio_stream, Client])
async def test_a_greeting_on_a_foreign_stream_is_none_either(
    wrap: Any, autojump_clock: MockClock
) -> None:
    with Far(wrap) as far:
        async with Pool(far.connect, max_size=2, min_size=2) as pool:
            await pool.ready()
            await wait_all_tasks_blocked()
            for end in far.ends:
                end.send(b"220 ready")
            await settle()
            await trio.sleep(1)

            async with pool.acquire() as stream:
                assert await stream.receive_some() == b"220 ready"
            assert pool.statistics().connected == 2
            assert not pool.statistics().closed


async def test_a_greeting_in_memory_is_none_either_and_a_hang_up_is_a_hang_up() -> None:
    ends: list[MemoryStream] = []

    async def connect() -> MemoryStream:
        near, far = memory_stream_pair(100)
        ends.append(far)
        await far.send_all(b"220 ready")
        return near

    async with Pool(connect, max_size=2, min_size=2) as pool:
        await pool.ready()
        await wait_all_tasks_blocked()
        await ends[1].aclose()

        async with pool.acquire() as stream:
            assert await stream.receive_some() == b"220 ready"
        assert pool.statistics().reasons == {"dead": 1}


@hub_only
async def test_an_idle_pool_does_not_tick(autojump_clock: MockClock) -> None:
    with Far(SocketStream) as far:
        async with Pool(far.connect, max_size=1, idle_timeout=None, lifetime=None) as pool:
            async with pool.acquire():
                pass
            assert pool._lifecycle.alarm.at == 0.5
            await trio.sleep(1)

            assert pool._lifecycle.alarm.at == math.inf


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
