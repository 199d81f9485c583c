"""Memory over a link: the times things take, what loss does, and that no byte is ever missing."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

import trionet
from trionet import Link, MemoryOptions

Pair = tuple[trionet.MemoryStream, trionet.MemoryStream]

LINKS = {
    "null": Link(),
    "latency": Link(latency=0.01),
    "jitter": Link(latency=0.01, jitter=0.05),
    "bandwidth": Link(bandwidth=1e6, latency=0.001),
    "loss": Link(loss=0.2),
    "everything": Link(latency=0.01, jitter=0.02, bandwidth=1e6, loss=0.1, segment_size=500),
}


@asynccontextmanager
async def connected(link: Link, buffer_size: int = 65536) -> AsyncIterator[Pair]:
    network = trionet.Network()
    options = MemoryOptions(link=link, buffer_size=buffer_size)
    (listener,) = await network.listen("memb", "db", options=options)
    async with listener:
        near = await network.dial("memb", "db")
        far = await listener.accept()
        async with near, far:
            yield near, far


async def timed(operation: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    start = trio.current_time()
    result = await operation()
    return round(trio.current_time() - start, 9), result


async def test_a_dial_takes_a_round_trip_and_a_byte_half_of_one(autojump_clock: object) -> None:
    network = trionet.Network()
    options = MemoryOptions(link=Link(latency=0.25))
    (listener,) = await network.listen("memb", "db", options=options)

    took, near = await timed(lambda: network.dial("memb", "db"))
    far = await listener.accept()
    await near.send_all(b"x")
    crossing, data = await timed(far.receive_some)

    assert (took, crossing, data) == (0.5, 0.25, b"x")


async def test_a_name_that_nobody_listens_on_is_refused(autojump_clock: object) -> None:
    with pytest.raises(ConnectionRefusedError):
        await trionet.Network().dial("memb", "db")


async def test_a_listener_that_closes_meanwhile_refuses_after_a_round_trip(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    network = trionet.Network()
    options = MemoryOptions(link=Link(latency=0.25))
    (listener,) = await network.listen("memb", "db", options=options)

    async def refused() -> None:
        with pytest.raises(ConnectionRefusedError):
            await network.dial("memb", "db")

    nursery.start_soon(listener.aclose)
    took, _ = await timed(refused)

    assert took == 0.5


async def test_a_dial_cancelled_on_the_way_back_resets_what_was_accepted(
    autojump_clock: object,
) -> None:
    network = trionet.Network()
    options = MemoryOptions(link=Link(latency=0.25))
    (listener,) = await network.listen("memb", "db", options=options)

    with trio.move_on_after(0.4):
        await network.dial("memb", "db")
    far = await listener.accept()

    with pytest.raises(trio.BrokenResourceError):
        await far.receive_some()


async def test_a_link_that_loses_everything_times_out_as_a_syn_does(
    autojump_clock: object,
) -> None:
    network = trionet.Network()
    await network.listen("memb", "db", options=MemoryOptions(link=Link(loss=1)))

    async def times_out() -> None:
        with pytest.raises(TimeoutError) as caught:
            await network.dial("memb", "db")
        assert caught.value.errno == errno.ETIMEDOUT

    took, _ = await timed(times_out)

    assert took == 127


async def test_bytes_leave_at_the_bandwidth_shared_by_all_connections(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    network = trionet.Network()
    options = MemoryOptions(link=Link(bandwidth=1000, latency=1))
    (listener,) = await network.listen("memb", "db", options=options)
    one, two = [await network.dial("memb", "db") for _ in range(2)]
    far_one, far_two = [await listener.accept() for _ in range(2)]
    start = trio.current_time()

    await one.send_all(bytes(3000))
    await two.send_all(bytes(2000))
    assert len(await far_one.receive_some()) == 3000
    assert trio.current_time() - start == pytest.approx(4)
    assert len(await far_two.receive_some()) == 2000
    assert trio.current_time() - start == pytest.approx(6)


async def test_a_sender_waits_when_the_buffers_at_both_ends_are_full(
    autojump_clock: object,
) -> None:
    async with connected(Link(latency=0.1), buffer_size=1000) as (near, far):
        with trio.move_on_after(60) as scope:
            await near.send_all(bytes(5000))

        assert scope.cancelled_caught
        # One buffer full at either end: what arrived is acknowledged and makes room.
        assert near.bytes_sent == 2000
        assert far.unread_size() == 1000
        received = 0
        while received < 2000:
            received += len(await far.receive_some(100))
        with trio.move_on_after(60) as scope:
            await far.receive_some()
        assert scope.cancelled_caught


async def test_lost_bytes_come_after_one_retransmission_timeout_or_more(
    autojump_clock: object,
) -> None:
    times = set()
    async with connected(Link(loss=0.3)) as (near, far):
        for _ in range(200):
            await near.send_all(b"x")
            took, data = await timed(far.receive_some)
            assert data == b"x"
            times.add(round(took, 6))

    assert {0, 0.2, 0.6, 1.4} <= times
    assert times <= {0, 0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4}


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
@pytest.mark.parametrize("buffer_size", [1, 1000, 65536])
async def test_every_byte_arrives_once_and_in_order_both_ways(
    link: Link, buffer_size: int, autojump_clock: object
) -> None:
    size = 400 if buffer_size == 1 else 60_000
    data = bytes(range(256)) * (size // 256 + 1)

    async def send(stream: trionet.MemoryStream) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def receive(stream: trionet.MemoryStream) -> None:
        got = bytearray()
        while chunk := await stream.receive_some():
            got += chunk
        assert got == data

    async with connected(link, buffer_size) as (near, far), trio.open_nursery() as nursery:
        for stream in (near, far):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
async def test_what_was_sent_before_a_close_is_readable_although_nothing_was_received(
    link: Link, autojump_clock: object
) -> None:
    async with connected(link) as (near, far):
        await far.send_all(b"unread")
        await near.send_all(b"last words")
        await trio.sleep(5)
        await near.aclose()

        assert await far.receive_some() == b"last words"
        assert await far.receive_some() == b""
        await trio.sleep(200)
        assert far.peer_closed()
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"anybody?")


async def test_a_peer_that_closes_wakes_a_sender_that_waits(autojump_clock: object) -> None:
    async with connected(Link(latency=0.1), buffer_size=10) as (near, far):

        async def blocked() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await near.send_all(bytes(1000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked)
            await trio.sleep(1)
            await far.aclose()


async def test_a_reset_crosses_the_link_behind_the_data(autojump_clock: object) -> None:
    async with connected(Link(latency=0.5)) as (near, far):
        await near.send_all(b"data")
        near.reset()

        assert await timed(far.receive_some) == (0.5, b"data")
        with pytest.raises(trio.BrokenResourceError, match="was reset"):
            await far.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"x")


async def test_silence_for_a_quarter_of_an_hour_breaks_the_connection(
    autojump_clock: object,
) -> None:
    async with connected(Link(latency=0.5)) as (near, _far):
        outgoing: Any = near._outgoing
        outgoing.line.link = Link(loss=1)

        await near.send_all(b"lost")
        start = trio.current_time()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await near.receive_some()

        assert trio.current_time() - start == pytest.approx(924.6)
        assert isinstance(caught.value.__cause__, TimeoutError)


async def test_an_opened_window_is_found_although_the_word_of_it_was_lost(
    autojump_clock: object,
) -> None:
    async with connected(Link(latency=0.1), buffer_size=1000) as (near, far):
        back: Any = far._outgoing
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, bytes(3000))
            await trio.sleep(1)
            back.line.link = Link(loss=1)
            for _ in range(10):
                await far.receive_some(100)
            await trio.sleep(10)
            assert far.unread_size() == 0
            back.line.link = Link(latency=0.1)
            received = 1000
            while received < 3000:
                received += len(await far.receive_some())
        # The probe 12.6 s after the window opened is the first that is answered.
        assert 13 < trio.current_time() < 16


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())
async def test_a_stream_over_a_link_passes_trios_checks(link: Link, autojump_clock: object) -> None:
    async def make(buffer_size: int) -> Pair:
        network = trionet.Network()
        options = MemoryOptions(link=link, buffer_size=buffer_size)
        (listener,) = await network.listen("memb", "db", options=options)
        near = await network.dial("memb", "db")
        far = await listener.accept()
        await listener.aclose()
        return near, far

    async def clogged() -> Pair:
        near, far = await make(1000)
        for stream in (near, far):
            with trio.move_on_after(100):
                await stream.send_all(bytes(3000))
        return near, far

    async def plain() -> Pair:
        return await make(65536)

    await trio.testing.check_half_closeable_stream(plain, clogged)


async def test_links_are_reproducible_and_independent_of_each_other(
    autojump_clock: object,
) -> None:
    async def crossings(*names: str) -> list[float]:
        network = trionet.Network()
        for name in names:
            options = MemoryOptions(link=Link(jitter=1))
            await network.listen("memb", name, options=options)
        return [(await timed(lambda: network.dial("memb", names[0])))[0] for _ in range(3)]

    first = await crossings("a")

    assert await crossings("a", "b") == first
    assert await crossings("c") != first


def test_options_refuse_a_link_that_is_none() -> None:
    wrong: Any = 0.01

    with pytest.raises(TypeError, match=r"MemoryOptions\.link"):
        MemoryOptions(link=wrong)


async def test_a_sender_whose_window_is_closed_hears_of_a_reset_that_was_lost(
    autojump_clock: object,
) -> None:
    async with connected(Link(latency=0.01), buffer_size=1000) as (near, far):

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await far.send_all(bytes(10_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(1)
            start = trio.current_time()
            line = near._outgoing.line  # type: ignore[union-attr]
            line.link = Link(loss=1)
            near.reset()
            line.link = Link(latency=0.01)
        # It asked for the window after the first timeout, and was told there and then.
        assert round(trio.current_time() - start, 9) == 0.22


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
@pytest.mark.parametrize("buffer_size", [1, 7])
async def test_an_opened_window_is_found_although_an_older_word_comes_after_the_lost_one(
    name: str, buffer_size: int, autojump_clock: object, nursery: trio.Nursery
) -> None:
    # The name decides what is lost.
    network = trionet.Network()
    link = Link(latency=0.01, jitter=0.1, loss=0.3)
    options = MemoryOptions(link=link, buffer_size=buffer_size)
    (listener,) = await network.listen("memb", name, options=options)
    near = await network.dial("memb", name)
    chance = random.Random(name)
    data = bytes(range(100))
    received = b""

    async def send() -> None:
        while near.bytes_sent < len(data):
            with trio.move_on_after(chance.random()):
                await near.send_all(data[near.bytes_sent :])
        await near.send_eof()

    async with await listener.accept() as far, near:
        nursery.start_soon(send)
        with trio.fail_after(3600):
            while part := await far.receive_some(chance.randint(1, 400)):
                received += part
                await trio.sleep(chance.random() * 0.1)
    await listener.aclose()

    assert received == data
