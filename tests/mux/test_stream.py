"""Streams of a session: what `trionet.abc.Stream` asks beyond trio's contract."""

from __future__ import annotations

import pytest
import trio
from trio.lowlevel import checkpoint
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trionet
from tests.mux.support import clog, receive_all, sessions
from trionet.yamux import MuxConfig


async def test_nothing_is_sent_at_once_also_where_no_room_is_left() -> None:
    async with sessions() as pair:
        near, _far = await pair.streams()
        await clog(near)

        with trio.fail_after(1):
            await near.send_all(b"")


@pytest.mark.parametrize("kept", [b"", b"a", bytearray(b"abc")])
async def test_any_buffer_is_sent_though_others_wait(kept: bytes) -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()
        await near.send_all(bytes(262144))

        for piece in (kept, kept, memoryview(b"a-b-c-")[::2], memoryview(b"d-")[::2]):
            await near.send_all(piece)
        await near.send_eof()
        nursery.start_soon(near.receive_some)
        await wait_all_tasks_blocked()

        assert (await receive_all(far))[262144:] == bytes(kept) * 2 + b"abcd"
        await far.aclose()


async def test_sending_tells_of_a_send_under_way_and_not_of_a_wait() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()
        told = [near.sending]

        nursery.start_soon(near.send_all, bytes(300_000))
        await wait_all_tasks_blocked()
        told += [near.sending, far.sending]

        while near.bytes_sent < 300_000:
            await far.receive_some()
        await wait_all_tasks_blocked()
        told.append(near.sending)

        await clog(near)
        nursery.start_soon(near.wait_send_all_might_not_block)
        await wait_all_tasks_blocked()
        told.append(near.sending)

        assert told == [False, True, False, False, False]
        nursery.cancel_scope.cancel()


async def test_a_send_timeout_ends_who_sends_to_a_peer_that_reads_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ended: list[float] = []

    async def handler(connection: trionet.Connection) -> None:
        try:
            await connection.send_all(bytes(1 << 20))
        finally:
            ended.append(trio.current_time())

    config = MuxConfig(keepalive=None)
    limits = trionet.Limits(send_timeout=5, linger=1)
    async with sessions(config=config) as pair, trio.open_nursery() as nursery:
        server = trionet.Server(handler, limits=limits)
        await nursery.start(server.serve, [pair.server.listener()])
        begun = trio.current_time()
        stream = await pair.client.open_stream()

        await trio.sleep(3)
        # A byte that moves begins the time anew.
        moved = len(await stream.receive_some())
        while moved < 131072:
            moved += len(await stream.receive_some())
        await trio.sleep(30)

        assert 8 <= ended[0] - begun < 10
        server.shutdown(0)


async def test_an_interrupted_receive_lets_others_run_before_it_says_so() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()
        far.interrupt_receive()

        with assert_checkpoints(), pytest.raises(trionet.abc.ReceiveInterrupted):
            await far.receive_some()
        with trio.CancelScope() as scope:
            scope.cancel()
            await far.receive_some()
        assert scope.cancelled_caught

        # Whoever tries again and again gets what comes meanwhile, and then the rest.
        received = b""

        async def insist() -> None:
            nonlocal received
            while len(received) < 8:
                try:
                    received += await far.receive_some(3)
                except trionet.abc.ReceiveInterrupted:
                    continue

        nursery.start_soon(insist)
        with trio.fail_after(1):
            await near.send_all(b"abcd")
            await near.send_all(b"efgh")
            while len(received) < 8:
                await checkpoint()
        assert received == b"abcdefgh"
        assert far.bytes_received == 8


async def test_send_nowait_keeps_what_there_is_room_for() -> None:
    async with sessions() as pair:
        near, far = await pair.streams()

        assert near.send_nowait(b"") == 0
        assert near.send_nowait(b"hello ") == 6
        assert near.send_nowait(memoryview(b"w-o-r-l-d-")[::2]) == 5
        buffer = bytearray(70_000)
        # Nothing has left yet: nobody else ran.
        assert near.send_nowait(buffer) == 65536 - 11
        buffer[:] = b"x" * len(buffer)
        assert near.send_nowait(b"no room") == 0
        assert near.bytes_sent == 65536

        await near.send_eof()
        assert await receive_all(far) == b"hello world" + bytes(65536 - 11)
        await near.aclose()
        await far.aclose()


async def test_send_nowait_without_credit_fills_the_room_and_no_more() -> None:
    async with sessions(config=MuxConfig(keepalive=None)) as pair:
        near, far = await pair.streams()
        sent = 0
        while count := near.send_nowait(bytes(10_000)):
            sent += count
            await wait_all_tasks_blocked()

        assert sent == near.bytes_sent == 262144 + 65536
        while far.bytes_received < 262144:
            await far.receive_some()
        await wait_all_tasks_blocked()
        assert near.send_nowait(b"room again") == 10
        near.reset()
        far.reset()


async def test_send_nowait_has_the_errors_of_send_all() -> None:
    async with sessions(config=MuxConfig(keepalive=None)) as pair, trio.open_nursery() as nursery:
        near, _far = await pair.streams()
        await clog(near)
        nursery.start_soon(near.send_all, bytes(10_000))
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            near.send_nowait(b"")
        nursery.cancel_scope.cancel()

    async with sessions() as pair:
        ended, reset, closed, cut = [await pair.streams() for _ in range(4)]
        with pytest.raises(TypeError):
            cut[0].send_nowait("text")  # type: ignore[arg-type]
        await ended[0].send_eof()
        reset[1].reset()
        await closed[0].aclose()
        await wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError, match="closed for sending"):
            ended[0].send_nowait(b"x")
        with pytest.raises(trionet.StreamResetError):
            reset[0].send_nowait(b"")
        with pytest.raises(trio.ClosedResourceError):
            closed[0].send_nowait(b"x")
        pair.server._driver.carrier.reset()  # type: ignore[attr-defined]
        await wait_all_tasks_blocked()
        with pytest.raises(trionet.SessionBrokenError):
            cut[0].send_nowait(b"x")
