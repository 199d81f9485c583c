"""What goes wrong with halves, and what went wrong in Plex: each of its bugs, not here."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trionet
from tests.mux.wires import Exchange, Wire
from trionet import BorrowedStream, LeaseError, Multiplexer, PoolTimeoutError


def set_of(count: int) -> tuple[Exchange, list[Wire]]:
    exchange = Exchange()
    return exchange, [exchange.make() for _ in range(count)]


# Plex's own


async def test_close_closes_everything_once_also_what_is_in_use() -> None:
    # Plex left 1657 of 2000 open.
    exchange, wires = set_of(2000)
    async with Multiplexer(streams=wires) as plex:
        loans: list[Any] = [plex.reader() for _ in range(100)]
        loans += [plex.writer() for _ in range(50)]
        loans += [plex.borrow() for _ in range(50)]
        for loan in loans:
            await loan.__aenter__()

    assert exchange.open == []
    assert {wire.closes for wire in wires} == {1}


async def test_a_reader_closed_twice_is_handed_out_once() -> None:
    # Plex queued it twice: two users, one connection.
    exchange, wires = set_of(1)
    async with Multiplexer(exchange.connect, streams=wires, capacity=1) as plex:
        loan = plex.reader()
        reader = await loan.__aenter__()
        await loan.__aexit__(None, None, None)
        await loan.__aexit__(None, None, None)
        await reader.aclose()
        await reader.aclose()

        async with plex.reader() as other:
            assert other is not reader
            with pytest.raises(PoolTimeoutError):
                async with plex.reader(timeout=0):
                    pass
        # Nor did closing what was given back take the connection from who had it next.
        assert plex.statistics().lost == 0


async def test_a_half_closed_twice_inside_the_block_closes_the_connection_once() -> None:
    exchange, wires = set_of(1)
    async with Multiplexer(exchange.connect, streams=wires, capacity=1) as plex:
        async with plex.reader() as reader:
            await reader.aclose()
            await reader.aclose()
            with pytest.raises(LeaseError, match="given back already"):
                plex.discard(reader)
        assert wires[0].closes == 1
        assert plex.statistics().lost == 1


@pytest.mark.parametrize("how", ["close", "discard", "raise", "cancel"])
async def test_the_sibling_of_a_killed_half_leaves_too_idle_or_lent(how: str) -> None:
    # In Plex it stayed queued, was handed out dead, and the capacity shrank for good.
    exchange, wires = set_of(2)
    said: list[str] = []

    async def read_on() -> None:
        with pytest.raises(trio.BrokenResourceError, match="the other half took") as caught:
            await reader.receive_some()
        said.append(str(caught.value))
        with pytest.raises(trio.BrokenResourceError):
            await reader.receive_some()

    async with Multiplexer(exchange.connect, streams=wires) as plex, trio.open_nursery() as nursery:
        # Both on the connection that was used last.
        async with plex.reader() as reader:
            nursery.start_soon(read_on)
            await wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                try:
                    async with plex.writer() as writer:
                        assert writer._duplex is reader._duplex
                        if how == "close":
                            await writer.aclose()
                        elif how == "discard":
                            plex.discard(writer)
                        elif how == "raise":
                            raise KeyError
                        else:
                            scope.cancel()
                            await trio.sleep_forever()
                except KeyError:
                    pass
            await wait_all_tasks_blocked()
            assert len(said) == 1
            wire = writer._duplex.stream
            assert isinstance(wire, Wire)
            assert wire.closes == 1
        # The set is as strong as before, with another one in its place.
        assert plex.statistics().strength == 2
        assert plex.statistics().idle == 2

        async with plex.reader() as one, plex.reader() as two, plex.writer(), plex.writer():
            assert wire not in {one._duplex.stream, two._duplex.stream}


async def test_using_a_half_after_its_block_or_its_end_is_refused() -> None:
    # In Plex a write after Kill succeeded.
    _, wires = set_of(2)
    async with Multiplexer(streams=wires) as plex:
        async with plex.writer() as writer, plex.reader() as reader:
            pass
        async with plex.borrow() as borrowed:
            pass
        assert isinstance(borrowed, trionet.HalfCloseableBorrowedStream)
        for operation in (
            lambda: writer.send_all(b"x"),
            writer.wait_send_all_might_not_block,
            reader.receive_some,
            borrowed.receive_some,
            borrowed.send_eof,
        ):
            with pytest.raises(trio.ClosedResourceError, match="its block is over"):
                await operation()
        for nowait in (lambda: borrowed.send_nowait(b"x"), borrowed.receive_nowait):
            with pytest.raises(trio.ClosedResourceError):
                nowait()
        assert writer.closed
        assert reader.closed
        assert borrowed.closed
        assert not reader.is_readable()
        borrowed.interrupt_receive()
        borrowed.resume_receive()
        async with plex.writer() as writer:
            await writer.aclose()
            with pytest.raises(trio.ClosedResourceError, match="closed here"):
                await writer.send_all(b"x")
        assert plex.statistics().idle == 1


async def test_connections_may_lead_to_different_hosts() -> None:
    # In Plex the error about it could not even be printed.
    network = trionet.Network()
    async with trio.open_nursery() as nursery:
        streams = []
        for name in ("one", "two"):
            (listener,) = await network.listen("memb", name)
            nursery.start_soon(listener.accept)
            streams.append(await network.dial("memb", name))
        async with (
            Multiplexer(streams=streams) as plex,
            plex.writer() as one,
            plex.writer() as two,
        ):
            assert {str(half.remote_address) for half in (one, two)} == {"one", "two"}


async def test_add_returns_exactly_what_did_not_fit_in_order_and_untouched() -> None:
    # Plex reported one of three.
    _, wires = set_of(4)
    async with Multiplexer(capacity=1) as plex:
        assert plex.add(*wires) == wires[1:]
        assert plex.add(*wires[1:]) == wires[1:]
        assert plex.add() == []
        assert [wire.closes for wire in wires] == [0, 0, 0, 0]
        await wires[1].send_all(b"still mine")
        with pytest.raises(ValueError, match="one of this multiplexer's connections already"):
            plex.add(wires[0])
        with pytest.raises(ValueError, match="add takes each stream once"):
            plex.add(wires[1], wires[1])
        with pytest.raises(TypeError, match=r"add takes trio\.abc\.Streams, got 5"):
            plex.add(wires[1], 5)  # type: ignore[arg-type]
        now = plex.statistics()
        assert (now.added, now.size, now.strength) == (1, 1, 1)


async def test_nothing_is_added_while_its_place_is_not_free_yet(autojump_clock: MockClock) -> None:
    _, wires = set_of(2)
    wires[0].close_time = 2
    async with Multiplexer(streams=wires[:1], capacity=1) as plex:
        async with plex.borrow() as stream:
            await stream.aclose()
        await trio.sleep(1)
        assert plex.add(wires[1]) == [wires[1]]
        await trio.sleep(1.5)
        assert plex.add(wires[1]) == []


async def test_what_comes_back_is_kept_or_closed_never_dropped() -> None:
    # Plex dropped what came back to a full queue, without closing it.
    exchange = Exchange()
    async with Multiplexer(exchange.connect, capacity=5, scale_after=0) as plex:

        async def use() -> None:
            async with plex.borrow():
                await trio.lowlevel.checkpoint()

        for _ in range(20):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(use)
        now = plex.statistics()
        assert now.idle == now.size == len(exchange.open)
    assert exchange.most <= 5
    assert exchange.open == []


async def test_a_cancelled_send_is_no_dead_producer_and_no_lost_buffer() -> None:
    # In Plex the producer blocked for ever, the buffer was dropped, and write errors were ignored.
    exchange, wires = set_of(1)
    async with Multiplexer(exchange.connect, streams=wires, capacity=1) as plex:
        async with plex.writer() as writer:
            with trio.move_on_after(0.001) as scope:
                await writer.send_all(bytes(5000))
            assert scope.cancelled_caught
            # Out of the set at once: the peer may have a part of it.
            assert plex.statistics().leaving == 1
        async with plex.writer() as writer:
            assert wires[0].closes == 1
            exchange.wires[1].far.close()
            with pytest.raises(trio.BrokenResourceError):
                await writer.send_all(b"x")
        assert plex.statistics().reasons == {"discarded": 1, "dead": 1}


async def test_a_mux_whose_arguments_are_wrong_takes_no_connection() -> None:
    _, wires = set_of(1)
    with pytest.raises(ValueError, match="capacity"):
        Multiplexer(streams=wires, capacity=0)
    assert wires[0].closes == 0
    plex = Multiplexer(streams=wires)
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()
        await plex.__aenter__()
    assert wires[0].closes == 0


async def test_no_task_is_left_when_a_read_is_cancelled() -> None:
    _, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex:
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.move_on_after(0.001):
            async with plex.reader() as reader:
                await reader.receive_some()
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before
    gc.collect()


# What ends a connection


async def test_reading_to_the_end_uses_a_connection_up_but_not_its_writer() -> None:
    exchange, wires = set_of(1)
    async with Multiplexer(exchange.connect, streams=wires, capacity=2) as plex:
        async with plex.writer() as writer:
            async with plex.reader() as reader:
                assert writer._duplex is reader._duplex
                await wires[0].far.send_eof()
                assert await reader.receive_some() == b""
                assert plex.statistics().leaving == 1
            # Half of it is still of use to who has it; and the replacement is there already.
            assert wires[0].closes == 0
            await writer.send_all(b"the answer")
            assert await wires[0].far.receive_some() == b"the answer"
            await wait_all_tasks_blocked()
            assert plex.statistics().idle == 1
        await wait_all_tasks_blocked()
        assert wires[0].closes == 1
        assert plex.statistics().reasons == {"used up": 1}


async def test_ending_a_direction_uses_a_connection_up_after_the_block() -> None:
    exchange, wires = set_of(1)
    async with Multiplexer(exchange.connect, streams=wires, capacity=2) as plex:
        async with plex.borrow() as stream:
            assert isinstance(stream, trionet.HalfCloseableBorrowedStream)
            await stream.send_all(b"request")
            await stream.send_eof()
            await wires[0].far.send_all(b"reply")
            assert await stream.receive_some() == b"reply"
        await wait_all_tasks_blocked()
        assert wires[0].closes == 1
        assert plex.statistics().healed == 1


async def test_a_failed_operation_takes_a_connection_out_even_if_nobody_minds() -> None:
    exchange, wires = set_of(2)
    async with Multiplexer(exchange.connect, streams=wires) as plex:
        for _ in wires:
            async with plex.borrow() as stream:
                wire = stream._duplex.stream
                assert isinstance(wire, Wire)
                wire.far.reset()
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
                with pytest.raises(trio.BrokenResourceError):
                    await stream.send_all(b"x")
                assert plex.statistics().leaving == 1
            await wait_all_tasks_blocked()
            assert wire.closes == 1
        assert plex.statistics().reasons == {"dead": 2}


@asynccontextmanager
async def tcp() -> AsyncIterator[tuple[trionet.SocketStream, trionet.SocketStream]]:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    near: Any = await trionet.dial("tcp", str(listener.address))
    far: Any = await listener.accept()
    async with listener, near, far:
        yield near, far


async def test_what_is_received_or_sent_without_waiting_is_watched_too() -> None:
    async with (
        tcp() as (one, far_one),
        tcp() as (two, far_two),
        Multiplexer(streams=[one], capacity=2) as plex,
    ):
        async with plex.borrow() as stream:
            with pytest.raises(trio.WouldBlock):
                stream.receive_nowait()
            await far_one.send_eof()
            while not stream.is_readable():
                await trio.sleep(0.001)
            assert stream.receive_nowait() == b""
        assert plex.add(two) == []
        async with plex.borrow() as stream:
            far_two.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await far_two.aclose()
            while not stream.is_readable():
                await trio.sleep(0.001)
            with pytest.raises(trio.BrokenResourceError):
                stream.receive_nowait()
            with pytest.raises(trio.BrokenResourceError):
                stream.send_nowait(b"x")
        assert plex.statistics().closed == 2
        assert plex.statistics().lost == 2


async def test_a_block_that_leaves_a_task_behind_loses_its_connection() -> None:
    exchange, wires = set_of(1)

    async def straggle() -> None:
        with pytest.raises(trio.ClosedResourceError, match="its block is over"):
            await reader.receive_some()

    async with Multiplexer(exchange.connect, streams=wires) as plex, trio.open_nursery() as nursery:
        async with plex.reader() as reader:
            nursery.start_soon(straggle)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert wires[0].closes == 1


async def test_a_connection_closed_behind_its_back_is_not_kept() -> None:
    exchange, wires = set_of(1)
    async with Multiplexer(exchange.connect, streams=wires) as plex:
        async with plex.reader():
            wires[0].near.close()
        await wait_all_tasks_blocked()
        assert plex.statistics().reasons == {"discarded": 1}
        assert plex.statistics().healed == 1


async def test_a_discard_of_what_was_not_lent_here_is_refused() -> None:
    _, wires = set_of(2)
    async with Multiplexer(streams=wires[:1]) as plex, Multiplexer(streams=wires[1:]) as other:
        async with other.reader() as theirs:
            with pytest.raises(LeaseError, match="another multiplexer's"):
                plex.discard(theirs)
        with pytest.raises(LeaseError, match="was not lent"):
            plex.discard(wires[0])  # type: ignore[arg-type]
        assert plex.statistics().idle == other.statistics().idle == 1


async def test_one_whose_connection_goes_on_the_way_to_him_gets_the_next_and_keeps_his_turn() -> (
    None
):
    exchange, wires = set_of(1)
    served: list[str] = []

    async def use(name: str, call: Any) -> None:
        async with call() as half:
            served.append(name)
            assert half._duplex.stream is not wires[0]
            await trio.lowlevel.checkpoint()

    async with Multiplexer(exchange.connect, streams=wires) as plex, trio.open_nursery() as nursery:
        loan = plex.borrow()
        stream = await loan.__aenter__()
        for name, call in (("writer", plex.writer), ("reader", plex.reader), ("both", plex.borrow)):
            nursery.start_soon(use, name, call)
            await wait_all_tasks_blocked()
        # The hand-over and the loss, before anybody can run.
        await loan.__aexit__(None, None, None)
        duplex = stream._duplex
        assert duplex.writer is not None
        plex.discard(duplex.writer)  # type: ignore[arg-type]
        await wait_all_tasks_blocked()
        assert sorted(served) == ["both", "reader", "writer"]
        assert served[-1] == "both"
        now = plex.statistics()
        assert now.acquired == 4
        assert now.lost == 1


@pytest.mark.parametrize("how", ["killed", "used up", "hung up"])
async def test_one_who_loses_what_is_kept_for_him_has_another_half_kept(how: str) -> None:
    _, wires = set_of(2)
    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        loans = [plex.reader(), plex.reader()]
        halves = {half._duplex.stream: half for half in [await one.__aenter__() for one in loans]}
        served: list[Wire] = []

        async def wait() -> None:
            async with plex.borrow() as stream:
                served.append(stream._duplex.stream)  # type: ignore[arg-type]

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        assert plex._board is not None
        (kept,) = [duplex.stream for duplex in plex._board.claimed.values()]
        assert isinstance(kept, Wire)
        if how == "killed":
            plex.discard(halves[kept])
        else:
            kept.far.close()
            if how == "used up":
                assert await halves[kept].receive_some() == b""
            else:
                plex._fleet.hung_up(halves[kept]._duplex.entry)
        # A younger one gets nothing of the other.
        with pytest.raises(PoolTimeoutError):
            async with plex.writer(timeout=0):
                pass
        for loan in loans:
            await loan.__aexit__(None, None, None)
        await wait_all_tasks_blocked()
        (other,) = [wire for wire in wires if wire is not kept]
        assert served == [other]


# Which of the two runs first is chance.
@pytest.mark.parametrize("attempt", range(6))
async def test_two_who_are_turned_back_together_keep_their_order(attempt: int) -> None:
    _, wires = set_of(3)
    served: list[str] = []

    async def use(name: str) -> None:
        async with plex.borrow():
            served.append(name)
            await trio.lowlevel.checkpoint()

    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        loans = [plex.borrow() for _ in wires]
        lent = [await loan.__aenter__() for loan in loans]
        for name in "ABC":
            nursery.start_soon(use, name)
            await wait_all_tasks_blocked()
        # A and B get these, and both go before anybody can run.
        for loan, stream in zip(loans[:2], lent[:2], strict=True):
            await loan.__aexit__(None, None, None)
            discard_what_was_handed_over(plex, stream)
        await wait_all_tasks_blocked()
        assert served == []
        await loans[2].__aexit__(None, None, None)

    assert served == ["A", "B", "C"]


async def test_one_who_is_turned_back_and_served_again_at_once_may_be_cancelled_meanwhile() -> None:
    _, wires = set_of(2)
    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        loans = [plex.borrow() for _ in wires]
        lent = [await loan.__aenter__() for loan in loans]
        scope = trio.CancelScope()
        got: list[BorrowedStream] = []

        async def use() -> None:
            with scope:
                async with plex.borrow() as stream:
                    got.append(stream)
                    await trio.sleep_forever()

        nursery.start_soon(use)
        await wait_all_tasks_blocked()
        # All before it can run: it is served, that is lost, something else is free, and the cancel.
        await loans[0].__aexit__(None, None, None)
        discard_what_was_handed_over(plex, lent[0])
        await loans[1].__aexit__(None, None, None)
        scope.cancel()
        await wait_all_tasks_blocked()

        assert len(got) == 1
        now = plex.statistics()
        assert (now.acquired, now.waiting, now.lent, now.size) == (3, 0, 0, 0)


def discard_what_was_handed_over(plex: Multiplexer, stream: BorrowedStream) -> None:
    """Discard what has just gone from ``stream``'s holder to a task that does not know it yet."""
    taken = stream._duplex.reader
    assert taken is not None
    assert taken is not stream
    plex.discard(taken)  # type: ignore[arg-type]


async def test_one_who_is_turned_back_waits_no_longer_than_his_timeout_in_all(
    autojump_clock: MockClock,
) -> None:
    _, wires = set_of(2)
    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        loans = [plex.borrow(), plex.borrow()]
        first, _ = [await loan.__aenter__() for loan in loans]

        async def wait() -> None:
            with pytest.raises(PoolTimeoutError, match="within 10 s"):
                async with plex.borrow(timeout=10):
                    pass
            assert trio.current_time() == 10

        nursery.start_soon(wait)
        await trio.sleep(6)
        await loans[0].__aexit__(None, None, None)
        discard_what_was_handed_over(plex, first)
        await trio.sleep(10)
        await loans[1].__aexit__(None, None, None)


# A peer that has gone


async def test_a_connection_whose_peer_has_gone_goes_to_readers_alone_while_bytes_wait() -> None:
    exchange, wires = set_of(1)
    await wires[0].far.send_all(b"last words")
    wires[0].far.close()
    async with Multiplexer(exchange.connect, streams=wires, capacity=2) as plex:
        await wait_all_tasks_blocked()
        # Replaced at once, and read all the same.
        assert plex.statistics().leaving == 1
        async with plex.borrow() as stream, plex.reader() as reader:
            assert stream._duplex.stream is exchange.wires[1]
            assert reader._duplex.stream is wires[0]
            assert await reader.receive_some(4) == b"last"
        async with plex.reader() as reader:
            assert reader._duplex.stream is wires[0]
            assert await reader.receive_some() == b" words"
        # Without a look at the end of file.
        await wait_all_tasks_blocked()
        assert wires[0].closes == 1
        async with plex.reader() as reader:
            assert reader._duplex.stream is exchange.wires[1]


async def test_last_words_that_nobody_reads_are_dropped_with_time(
    autojump_clock: MockClock,
) -> None:
    exchange, wires = set_of(1)
    await wires[0].far.send_all(b"x")
    wires[0].far.close()
    async with Multiplexer(exchange.connect, streams=wires, idle_timeout=10):
        await trio.sleep(9)
        assert wires[0].closes == 0
        await trio.sleep(1.5)
        assert wires[0].closes == 1


async def test_a_dead_memory_connection_is_found_out_before_it_is_lent() -> None:
    exchange, wires = set_of(3)
    async with Multiplexer(exchange.connect, streams=wires) as plex:
        for wire in wires:
            wire.far.close()
        for call in (plex.reader, plex.writer, plex.borrow):
            loan: Any = call()
            async with loan as half:
                assert half._duplex.stream not in wires
        await wait_all_tasks_blocked()
        assert all(wire.closes == 1 for wire in wires)
        assert plex.statistics().reasons == {"dead": 3}


async def test_a_dead_socket_is_replaced_while_nobody_looks() -> None:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    far: list[Any] = []

    async def accept() -> None:
        while True:
            far.append(await listener.accept())

    async def connect() -> trio.abc.Stream:
        return await trionet.dial("tcp", str(listener.address))

    healed = trio.Event()

    def on_event(event: trionet.MultiplexerEvent) -> None:
        if event.kind == "healed":
            healed.set()

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        async with Multiplexer(connect, on_event=on_event) as plex:
            async with plex.borrow():
                while not far:
                    await trio.sleep(0.001)
            await far[0].aclose()
            with trio.fail_after(5):
                await healed.wait()
            now = plex.statistics()
            assert (now.idle, now.lost, now.healed) == (1, 1, 1)
        nursery.cancel_scope.cancel()
    for stream in far:
        await trio.aclose_forcefully(stream)


async def test_a_foreign_socket_is_watched_while_it_is_idle() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    lost = trio.Event()

    async def connect() -> trio.SocketStream:
        return await trio.open_tcp_stream(*listeners[0].socket.getsockname())

    async with listeners[0]:
        near = await connect()
        far = await listeners[0].accept()
        async with Multiplexer(streams=[near], on_event=lambda _: lost.set()) as plex:
            async with plex.writer() as writer:
                await writer.send_all(b"x")
                assert await far.receive_some() == b"x"
            # Its peer goes while it is lent.
            async with plex.reader():
                await far.aclose()
                while not near.socket.is_readable():
                    await trio.sleep(0.001)
            with trio.fail_after(5):
                while plex.statistics().reasons != {"dead": 1}:
                    await trio.sleep(0.001)
        await far.aclose()
