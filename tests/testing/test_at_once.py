"""What happens between the moment a task is woken and the moment it runs."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

import trionet
from tests.streams.test_wire import connected as over_memory
from tests.testing.virtual import connected, two_hosts
from trionet._streams.timeline import current_timeline
from trionet.testing import Link

# A power of two: sums of it are exact, so that "at the same time" is.
LINK = Link(latency=0.125)


class Moment:
    """Does something when it comes due, before any task that is woken then runs."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def due(self, _: object) -> None:
        self.action()


def at(time: float, action: Callable[[], object]) -> None:
    current_timeline().at(time, Moment(action), None)


async def fails(operation: Callable[..., Any], *args: Any, error: type[Exception]) -> None:
    with pytest.raises(error), trio.fail_after(2000):
        await operation(*args)


async def test_a_sender_that_has_room_when_its_connection_breaks_is_told(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with over_memory(LINK, 1000) as (near, far):
        nursery.start_soon(
            lambda: fails(near.send_all, bytes(5000), error=trio.BrokenResourceError)
        )
        await trio.sleep(1)
        start = trio.current_time()
        await far.receive_some(1000)
        # The word of the second thousand's arrival, and the reset, come at once.
        await trio.sleep(0.1875)
        at(start + 0.25, far.reset)
        await trio.sleep(1)

        assert not near.sending


async def test_a_sender_that_has_room_when_its_stream_is_closed_sends_nothing_behind_the_end(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with over_memory(LINK, 1000) as (near, far):
        nursery.start_soon(
            lambda: fails(near.send_all, bytes(5000), error=trio.ClosedResourceError)
        )
        await trio.sleep(1)
        start = trio.current_time()
        received = len(await far.receive_some(1000))
        await trio.sleep(0.3125)
        at(start + 0.375, near.close)
        await trio.sleep(1)

        assert not near.sending
        while data := await far.receive_some():
            received += len(data)
        assert received == near.bytes_sent == 2000


async def test_a_socket_that_can_send_when_it_is_closed_says_closed(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with connected(LINK, sizes=(1000, 1000)) as (_net, near, far):
        nursery.start_soon(
            lambda: fails(near.send_all, bytes(5000), error=trio.ClosedResourceError)
        )
        await trio.sleep(1)
        start = trio.current_time()
        await far.receive_some(1000)
        await trio.sleep(0.3125)
        at(start + 0.375, near.socket.close)
        await trio.sleep(1)


async def test_a_listener_closed_as_a_connection_comes_says_closed(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(LINK) as (_net, server, client):
        with server.context():
            listening = trio.socket.socket()
            await listening.bind(("0.0.0.0", 80))
            listening.listen()
        nursery.start_soon(lambda: fails(listening.accept, error=trio.ClosedResourceError))
        with client.context(), trio.socket.socket() as sock:
            start = trio.current_time()
            await sock.connect(("server", 80))
            # The handshake's third segment is there after one more way.
            at(start + 0.375, listening.close)
            await trio.sleep(1)


async def test_a_datagram_socket_closed_as_a_datagram_comes_says_closed(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(LINK) as (_net, server, client):
        with server.context():
            far = trio.socket.socket(type=socket.SOCK_DGRAM)
            await far.bind(("0.0.0.0", 53))
        nursery.start_soon(lambda: fails(far.recvfrom, 10, error=OSError))
        with client.context(), trio.socket.socket(type=socket.SOCK_DGRAM) as near:
            await near.sendto(b"x", ("server", 53))
            at(trio.current_time() + 0.125, far.close)
            await trio.sleep(1)


async def test_two_tasks_that_find_one_datagram_get_one_each(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    received = []
    async with two_hosts(LINK) as (_net, server, client):
        with server.context():
            far = trio.socket.socket(type=socket.SOCK_DGRAM)
            await far.bind(("0.0.0.0", 53))

        async def receive() -> None:
            received.append((await far.recvfrom(10))[0])

        with far, client.context(), trio.socket.socket(type=socket.SOCK_DGRAM) as near:
            await near.sendto(b"first", ("server", 53))
            await trio.sleep(1)
            nursery.start_soon(receive)
            nursery.start_soon(receive)
            await trio.sleep(1)
            assert received == [b"first"]
            await near.sendto(b"second", ("server", 53))
            await trio.sleep(1)

        assert received == [b"first", b"second"]


async def test_a_second_connect_on_one_socket_is_busy_and_the_first_goes_on(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(LINK) as (_net, server, client):
        (listener,) = await server.listen("tcp4", ":80")
        with client.context(), trio.socket.socket() as sock:
            nursery.start_soon(sock.connect, ("server", 80))
            await trio.sleep(0.0625)
            with pytest.raises(trio.BusyResourceError):
                await sock.connect(("server", 80))
            await (await listener.accept()).aclose()
            await trio.sleep(1)

            assert sock.getpeername()[1] == 80
        await listener.aclose()


async def test_a_syn_that_finds_a_full_backlog_after_its_socket_was_closed_is_dropped(
    autojump_clock: object,
) -> None:
    async with two_hosts(LINK) as (net, server, client):
        (listener,) = await server.listen("tcp4", ":80", backlog=1)
        waiting = [await client.dial("tcp", "server:80") for _ in range(2)]
        with trio.move_on_after(0.0625):
            await client.dial("tcp", "server:80")
        await trio.sleep(10)

        assert "the backlog is full" in [event.note for event in net.trace]
        assert [line.state for line in net.netstat()].count("SYN-SENT") == 0
        await listener.aclose()
        for stream in waiting:
            await stream.aclose()


async def test_short_writes_that_end_in_the_midst_of_a_send_let_it_go_on(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(LINK) as (net, server, client):
        (listener,) = await server.listen("tcp4", ":80")
        async with (
            listener,
            await client.dial("tcp", "server:80") as near,
            await listener.accept() as far,
        ):
            fault = net.short_writes(10)
            nursery.start_soon(near.send_all, bytes(10_000))
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            assert isinstance(near, trionet.testing.VirtualStream)
            assert 0 < near.bytes_sent < 100
            fault.heal()

            received = 0
            while received < 10_000:
                received += len(await far.receive_some())
