"""One direction of bytes, by itself: what a send and a receive leave behind."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import cancelled_at
from trionet._streams.pipe import JOIN_SIZE, Pipe
from trionet.abc import ReceiveInterrupted

CAPACITIES = pytest.mark.parametrize("capacity", [0, 1, 10, 65536])


async def drain(pipe: Pipe) -> bytes:
    received = bytearray()
    while data := await pipe.receive():
        received += data
    return bytes(received)


async def test_a_rendezvous_send_returns_only_once_all_was_read(
    nursery: trio.Nursery,
) -> None:
    pipe = Pipe(0)
    returned = trio.Event()

    async def send() -> None:
        await pipe.send(b"abc")
        returned.set()

    nursery.start_soon(send)
    await trio.testing.wait_all_tasks_blocked()
    assert await pipe.receive(2) == b"ab"
    await trio.testing.wait_all_tasks_blocked()
    assert not returned.is_set()

    assert await pipe.receive(2) == b"c"
    await returned.wait()


async def test_a_buffered_send_returns_at_once_while_there_is_room(nursery: trio.Nursery) -> None:
    pipe = Pipe(4)

    await pipe.send(b"ab")
    await pipe.send(b"cd")
    assert pipe.unread == 4
    nursery.start_soon(pipe.send, b"e")
    await trio.testing.wait_all_tasks_blocked()

    assert (pipe.unread, pipe.sent) == (5, 4)
    assert await pipe.receive(1) == b"a"
    await trio.testing.wait_all_tasks_blocked()
    assert (pipe.unread, pipe.sent) == (4, 5)


async def test_a_big_piece_is_the_very_object_that_was_sent(nursery: trio.Nursery) -> None:
    pipe = Pipe(0)
    data = bytes(JOIN_SIZE)

    nursery.start_soon(pipe.send, data)
    await trio.testing.wait_all_tasks_blocked()
    assert await pipe.receive() is data

    nursery.start_soon(pipe.send, data)
    assert await pipe.receive() is data


async def test_small_pieces_are_joined_up_to_64_kib() -> None:
    pipe = Pipe(10 * JOIN_SIZE)
    for _ in range(10):
        await pipe.send(bytes(10_000))

    assert len(await pipe.receive()) == 60_000
    assert len(await pipe.receive(25_000)) == 20_000
    assert len(await pipe.receive(5_000)) == 5_000
    assert len(await pipe.receive()) == 15_000


@pytest.mark.parametrize("make", [bytearray, lambda data: memoryview(bytearray(data))])
async def test_a_callers_buffer_may_be_reused(make: Any) -> None:
    pipe = Pipe(10)
    buffer = make(b"abc")

    await pipe.send(buffer)
    buffer[0:3] = b"xyz"

    assert await pipe.receive() == b"abc"


@pytest.mark.parametrize("wrong", [5, "text", None])
async def test_only_bytes_are_sent(wrong: Any) -> None:
    pipe = Pipe(10)
    with pytest.raises(TypeError):
        await pipe.send(wrong)
    assert pipe.unread == 0


@CAPACITIES
async def test_what_was_sent_before_the_end_stays_readable(
    capacity: int, nursery: trio.Nursery
) -> None:
    pipe = Pipe(capacity)

    async def send() -> None:
        await pipe.send(b"abc")
        pipe.close_send()

    nursery.start_soon(send)
    await trio.testing.wait_all_tasks_blocked()
    assert await drain(pipe) == b"abc"
    assert await pipe.receive() == b""


@CAPACITIES
@pytest.mark.parametrize("read", [0, 1, 5, 20])
async def test_a_cancelled_send_takes_back_only_its_own_tail(capacity: int, read: int) -> None:
    pipe = Pipe(capacity)
    before = b"0123456789"[: min(capacity, 10)]
    if before:
        await pipe.send(before)

    received = bytearray()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await pipe.send(b"abcdefghijklmnopqrst" * 10_000)

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            while len(received) < read:
                received += await pipe.receive(min(3, read - len(received)))
            scope.cancel()

    assert scope.cancelled_caught
    # Within its capacity again, so a second send that is cancelled cannot pile up.
    assert pipe.unread <= capacity
    assert pipe.sent == pipe.received + pipe.unread
    pipe.close_send()
    everything = bytes(received) + await drain(pipe)
    assert (before + b"abcdefghijklmnopqrst" * 10_000).startswith(everything)
    assert len(everything) == read + capacity


@CAPACITIES
async def test_a_send_cancelled_at_any_checkpoint_loses_nothing_of_the_next(capacity: int) -> None:
    for n in itertools.count(1):
        pipe = Pipe(capacity)

        attempt = await cancelled_at(n, partial(pipe.send, b"abcdefghijkl"))

        kept = pipe.unread
        assert kept == (12 if attempt.finished else min(capacity, 12) if n > 1 else kept)
        assert kept <= capacity
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.send, b"next")
            received = b""
            while not received.endswith(b"next"):
                received += await pipe.receive()
        assert received == b"abcdefghijkl"[:kept] + b"next"
        if attempt.last:
            return


async def test_a_receive_cancelled_at_any_checkpoint_loses_nothing() -> None:
    for n in itertools.count(1):
        pipe = Pipe(10)
        await pipe.send(b"abc")

        attempt = await cancelled_at(n, pipe.receive)

        rest = b"" if attempt.finished else await pipe.receive()
        assert (attempt.result or b"") + rest == b"abc"
        if attempt.last:
            return


async def test_a_hand_off_wins_over_a_cancel_right_behind_it() -> None:
    pipe = Pipe(10)
    received = []
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            received.append(await pipe.receive())

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await pipe.send(b"abc")
        nursery.cancel_scope.cancel()
    assert received == [b"abc"]

    # And the other way round: a receive that was cancelled first gets nothing.
    with trio.move_on_after(0):
        await pipe.receive()
    await pipe.send(b"def")
    assert await pipe.receive() == b"def"


@CAPACITIES
async def test_two_senders_or_two_receivers_are_busy(capacity: int, nursery: trio.Nursery) -> None:
    pipe = Pipe(capacity)
    nursery.start_soon(pipe.send, bytes(100_000))
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await pipe.send(b"x")
    with pytest.raises(trio.BusyResourceError):
        await pipe.wait_room()
    with pytest.raises(trio.BusyResourceError):
        pipe.end()

    other = Pipe(capacity)
    nursery.start_soon(other.receive)
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(trio.BusyResourceError):
        await other.receive()
    nursery.cancel_scope.cancel()


async def test_busy_ends_with_the_cancelled_call() -> None:
    pipe = Pipe(0)
    with trio.move_on_after(0):
        await pipe.send(b"lost")
    with trio.move_on_after(0):
        await pipe.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.send, b"x")
        assert await pipe.receive() == b"x"


async def test_a_cut_pipe_is_broken_at_both_ends(nursery: trio.Nursery) -> None:
    pipe = Pipe(3)
    await pipe.send(b"abc")
    failures = []

    async def expect_broken(operation: Any, *args: Any) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await operation(*args)
        failures.append(operation)

    nursery.start_soon(expect_broken, pipe.send, b"more")
    await trio.testing.wait_all_tasks_blocked()
    pipe.cut()
    pipe.cut()
    await trio.testing.wait_all_tasks_blocked()

    assert len(failures) == 1
    await expect_broken(pipe.receive)
    await expect_broken(pipe.send, b"x")
    await expect_broken(pipe.wait_room)
    assert pipe.unread == 0

    other = Pipe(0)
    nursery.start_soon(expect_broken, other.receive)
    await trio.testing.wait_all_tasks_blocked()
    other.cut()


async def test_an_interrupted_receive_wakes_and_none_waits_until_it_is_taken_back(
    nursery: trio.Nursery,
) -> None:
    pipe = Pipe(10)
    woken = trio.Event()

    async def receive() -> None:
        with pytest.raises(ReceiveInterrupted):
            await pipe.receive()
        woken.set()

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked()
    pipe.interrupt()
    await woken.wait()
    with pytest.raises(ReceiveInterrupted):
        await pipe.receive()

    await pipe.send(b"here")
    assert await pipe.receive() == b"here"
    pipe.interrupted = False
    nursery.start_soon(pipe.send, b"again")
    assert await pipe.receive() == b"again"


async def test_small_reads_of_a_huge_piece_stay_linear(nursery: trio.Nursery) -> None:
    pipe = Pipe(0)
    data = bytes(range(256)) * 4096
    nursery.start_soon(pipe.send, data)

    pieces: list[bytes] = []
    while sum(map(len, pieces)) < len(data):
        pieces.append(await pipe.receive(1000))

    assert b"".join(pieces) == data
    # The piece itself stayed whole in the queue: only slices of it were copied.
    assert all(len(piece) == 1000 for piece in pieces[:-1])


@given(
    capacity=st.sampled_from([0, 1, 7, 100]),
    sends=st.lists(st.binary(min_size=0, max_size=50), max_size=20),
    limits=st.lists(st.none() | st.integers(1, 60), min_size=1, max_size=10),
)
def test_any_pieces_arrive_in_order_whatever_the_reads(
    capacity: int, sends: list[bytes], limits: list[int | None]
) -> None:
    async def main() -> bytes:
        pipe = Pipe(capacity)

        async def send() -> None:
            for data in sends:
                await pipe.send(data)
                assert pipe.unread <= capacity
            pipe.close_send()

        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            turn = 0
            while data := await pipe.receive(limits[turn % len(limits)]):
                limit = limits[turn % len(limits)]
                assert limit is None or len(data) <= limit
                received += data
                turn += 1
        assert pipe.sent == pipe.received == len(received)
        return bytes(received)

    assert trio.run(main) == b"".join(sends)


async def test_a_receiver_may_wait_again_before_the_sender_it_woke_has_run() -> None:
    # Which of the two runs first is trio's coin: thirty tosses.
    for _ in range(30):
        pipe = Pipe(1)
        await pipe.send(b"x")

        async def receive_twice(pipe: Pipe = pipe) -> None:
            assert await pipe.receive() == b"x"
            assert await pipe.receive() == b"y"

        async def wait_then_send(pipe: Pipe = pipe) -> None:
            await pipe.wait_room()
            await pipe.send(b"y")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_then_send)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(receive_twice)
