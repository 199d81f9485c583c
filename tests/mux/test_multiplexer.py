"""The multiplexer lends halves: to whom, in which order, and what becomes of them."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trionet
from tests.mux.wires import Exchange, Wire
from trionet import LeaseError, Multiplexer, MuxConfig, PoolClosedError, PoolTimeoutError


def set_of(count: int) -> tuple[Exchange, list[Wire]]:
    exchange = Exchange()
    return exchange, [exchange.make() for _ in range(count)]


# What is lent


async def test_reader_and_writer_are_halves_of_whatever_is_free() -> None:
    exchange, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex:
        async with plex.writer() as writer, plex.reader() as reader:
            assert isinstance(writer, trionet.SendHalf)
            assert isinstance(reader, trionet.ReceiveHalf)
            await writer.send_all(b"request")
            assert await wires[0].far.receive_some() == b"request"
            await wires[0].far.send_all(b"reply")
            assert await reader.receive_some() == b"reply"
            assert writer.remote_address == reader.remote_address == wires[0].remote_address
            assert writer.local_address == reader.local_address == wires[0].local_address

        now = plex.statistics()
        assert (now.idle, now.lent, now.readers, now.writers) == (1, 0, 0, 0)
    assert wires[0].closes == 1
    assert exchange.open == []


async def test_a_reader_is_iterated_in_chunks_not_bytes() -> None:
    _, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex:
        await wires[0].far.send_all(b"one")
        async with plex.reader() as reader:
            chunks = []
            async for chunk in reader:
                chunks.append(bytes(chunk))
                if len(chunks) == 1:
                    await wires[0].far.send_all(b"two")
                    await wires[0].far.send_eof()

    assert chunks == [b"one", b"two"]


async def test_borrow_lends_both_halves_of_one_connection() -> None:
    _, wires = set_of(2)
    async with Multiplexer(streams=wires) as plex, plex.borrow() as one, plex.borrow() as two:
        assert {one._duplex.stream, two._duplex.stream} == set(wires)
        now = plex.statistics()
        assert (now.borrowed, now.readers, now.writers, now.lent) == (2, 0, 0, 2)
        with pytest.raises(PoolTimeoutError):
            async with plex.writer(timeout=0):
                pass


async def test_a_borrowed_stream_can_do_what_its_connection_can() -> None:
    tcp = await trionet.listen("tcp", "127.0.0.1:0")
    wire = Wire()
    near = await trionet.dial("tcp", str(tcp[0].address))
    far = await tcp[0].accept()

    class Whole(trio.abc.Stream):
        """One that cannot end a direction."""

        async def send_all(self, data: Any) -> None:
            await wire.send_all(data)

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await wire.receive_some(max_bytes)

        async def wait_send_all_might_not_block(self) -> None:
            await wire.wait_send_all_might_not_block()

        async def aclose(self) -> None:
            await wire.aclose()

    async with Multiplexer(streams=[near, Whole()]) as plex:
        async with plex.borrow() as whole, plex.borrow() as stream:
            assert not isinstance(whole, trio.abc.HalfCloseableStream)
            assert whole.remote_address.network == "unknown"
            assert isinstance(stream, trionet.HalfCloseableBorrowedStream)
            assert stream.remote_address == near.remote_address
            assert stream.local_address == near.local_address
            assert stream.send_nowait(b"12345") == 5
            assert await far.receive_some() == b"12345"
            await far.send_all(b"678")
            while not stream.unread_size():
                await trio.sleep(0.001)
            assert stream.unread_size() == 3
            assert stream.is_readable()
            assert not stream.peer_closed()
            assert not stream.sending
            # What the kernel would move, nobody would see.
            assert stream.transport_socket is None
            assert await stream.receive_some(2) == b"67"
            assert (stream.bytes_sent, stream.bytes_received) == (5, 2)
            await stream.wait_send_all_might_not_block()
            await stream.send_eof()
            assert await stream.receive_some() == b"8"
        assert not whole.is_readable()
        assert not stream.peer_closed()
        assert stream.unread_size() == 0
        assert plex.statistics().reasons == {"used up": 1}
    await far.aclose()
    await tcp[0].aclose()


async def test_the_halves_pass_trios_checks_of_a_stream() -> None:
    async with Multiplexer(capacity=1000) as left, Multiplexer(capacity=1000) as right:

        async def make() -> tuple[Any, Any]:
            ends = []
            for plex, stream in zip(
                (left, right), trionet.memory_stream_pair(1 << 16), strict=True
            ):
                # What was used last, or has just come, is lent first.
                assert plex.add(stream) == []
                ends.append(await plex.borrow().__aenter__())
            return ends[0], ends[1]

        await trio.testing.check_half_closeable_stream(make, None)


async def test_what_was_interrupted_inside_the_block_is_not_afterwards() -> None:
    _, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex:
        async with plex.borrow() as stream:
            stream.interrupt_receive()
            with pytest.raises(trionet.abc.ReceiveInterrupted):
                await stream.receive_some()
        async with plex.borrow() as stream:
            stream.interrupt_receive()
            stream.resume_receive()
        await wires[0].far.send_all(b"x")
        async with plex.reader() as reader:
            assert reader.is_readable()
            assert await reader.receive_some() == b"x"


async def test_what_came_is_there_for_the_next_reader() -> None:
    _, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex:
        await wires[0].far.send_all(b"abcdef")
        async with plex.reader() as reader:
            assert await reader.receive_some(2) == b"ab"
        async with plex.reader() as reader:
            assert await reader.receive_some() == b"cdef"


async def test_a_cancelled_receive_harms_nothing() -> None:
    _, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex:
        async with plex.borrow() as stream:
            with trio.move_on_after(0.001):
                await stream.receive_some()
        async with plex.writer() as writer:
            with trio.CancelScope() as scope:
                scope.cancel()
                await writer.send_all(b"never begun")
            with trio.CancelScope() as scope:
                scope.cancel()
                await writer.wait_send_all_might_not_block()

        assert plex.statistics().idle == 1


async def test_two_tasks_may_not_do_the_same_with_one_half() -> None:
    _, wires = set_of(1)
    async with (
        Multiplexer(streams=wires) as plex,
        trio.open_nursery() as nursery,
        plex.borrow() as stream,
    ):
        nursery.start_soon(stream.receive_some)
        nursery.start_soon(stream.send_all, bytes(4096))
        await wait_all_tasks_blocked()
        for again in (
            stream.receive_some,
            lambda: stream.send_all(b"x"),
            stream.wait_send_all_might_not_block,
            stream.send_eof,  # type: ignore[attr-defined]
        ):
            with pytest.raises(trio.BusyResourceError):
                await again()
        with pytest.raises(trio.BusyResourceError):
            stream.send_nowait(b"x")
        assert stream.sending
        nursery.cancel_scope.cancel()


async def test_misuse_of_a_stream_does_no_harm() -> None:
    _, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex:
        async with plex.borrow() as stream:
            with pytest.raises(TypeError):
                await stream.send_all("text")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="max_bytes"):
                await stream.receive_some(0)

        assert plex.statistics().idle == 1


# In which order


async def test_each_free_half_goes_to_the_oldest_who_can_use_it() -> None:
    _exchange, wires = set_of(1)
    served: list[str] = []

    async def use(what: str, call: Any) -> None:
        async with call():
            served.append(what)
            await trio.sleep_forever()

    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        async with plex.writer():
            async with plex.reader():
                for what in ("writer 1", "reader 1", "writer 2"):
                    nursery.start_soon(use, what, getattr(plex, what.split()[0]))
                    await wait_all_tasks_blocked()
            await wait_all_tasks_blocked()
            assert served == ["reader 1"]
        await wait_all_tasks_blocked()
        assert served == ["reader 1", "writer 1"]
        nursery.cancel_scope.cancel()


async def test_one_who_waits_for_both_has_the_first_free_half_kept() -> None:
    _, wires = set_of(1)
    served: list[str] = []

    async def use(what: str, call: Any) -> None:
        async with call():
            served.append(what)

    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        async with plex.reader():
            nursery.start_soon(use, "borrow", plex.borrow)
            await wait_all_tasks_blocked()
            nursery.start_soon(use, "writer", plex.writer)
            await wait_all_tasks_blocked()
            # The send half is free, and kept for the older one.
            assert served == []
        await wait_all_tasks_blocked()
        assert served == ["borrow", "writer"]


async def test_a_half_that_was_kept_is_free_again_when_who_waits_for_it_is_cancelled() -> None:
    _, wires = set_of(1)
    served: list[str] = []

    async def write() -> None:
        async with plex.writer():
            served.append("writer")

    scope = trio.CancelScope()

    async def borrow() -> None:
        with scope:
            async with plex.borrow():
                raise AssertionError

    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        reader = plex.reader()
        async with reader:
            nursery.start_soon(borrow)
            await wait_all_tasks_blocked()
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            assert served == []
            scope.cancel()
            await wait_all_tasks_blocked()
            assert served == ["writer"]


async def test_an_older_reader_comes_before_one_who_waits_for_both() -> None:
    _, wires = set_of(1)
    served: list[str] = []

    async def use(what: str, call: Any, hold: trio.Event) -> None:
        async with call():
            served.append(what)
            await hold.wait()

    hold = trio.Event()
    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        async with plex.reader():
            nursery.start_soon(use, "reader", plex.reader, hold)
            await wait_all_tasks_blocked()
            nursery.start_soon(use, "borrow", plex.borrow, hold)
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert served == ["reader"]
        hold.set()
        await wait_all_tasks_blocked()
        assert served == ["reader", "borrow"]


async def test_the_oldest_takes_what_comes_free_whole_and_passes_his_claim_on() -> None:
    _, wires = set_of(2)
    served: list[str] = []
    hold = trio.Event()

    async def borrow(what: str) -> None:
        async with plex.borrow():
            served.append(what)
            await hold.wait()

    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        first, second = plex.reader(), plex.reader()
        one = await first.__aenter__()
        await second.__aenter__()
        for what in ("1", "2", "3"):
            nursery.start_soon(borrow, what)
            await wait_all_tasks_blocked()
        # The one for whom the first connection's send half is kept is not the first to come here.
        last = second if one._duplex.claim.number < 2 else first  # type: ignore[union-attr]
        await last.__aexit__(None, None, None)
        await wait_all_tasks_blocked()
        assert served == ["1"]
        await (first if last is second else second).__aexit__(None, None, None)
        await wait_all_tasks_blocked()
        assert served == ["1", "2"]
        hold.set()
        await wait_all_tasks_blocked()
        assert served == ["1", "2", "3"]


async def test_a_thousand_waiters_are_served_in_the_order_in_which_they_came() -> None:
    _, wires = set_of(1)
    came: list[int] = []
    served: list[int] = []

    async def use(number: int) -> None:
        came.append(number)
        async with plex.borrow():
            served.append(number)

    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        held = [plex.borrow() for _ in wires]
        for loan in held:
            await loan.__aenter__()
        for number in range(1000):
            nursery.start_soon(use, number)
        await wait_all_tasks_blocked()
        for loan in held:
            await loan.__aexit__(None, None, None)

    assert served == came


# Timeouts and the end


async def test_a_timeout_says_what_there_is_and_why_connecting_failed(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    exchange.fail = OSError("refused")
    async with Multiplexer(exchange.connect, capacity=2) as plex:
        calls: list[Any] = [plex.reader, plex.writer, plex.borrow]
        for call in calls:
            start = trio.current_time()
            with pytest.raises(PoolTimeoutError, match="0 of 2 connections") as caught:
                async with call(timeout=3):
                    pass
            assert trio.current_time() == start + 3
            assert caught.value.__cause__ is exchange.fail
            assert isinstance(caught.value, trio.TooSlowError)

        now = plex.statistics()
        assert (now.timed_out, now.cancelled, now.waiting) == (3, 0, 0)
        assert now.last_error is exchange.fail


async def test_what_is_free_is_lent_even_with_no_time_to_wait() -> None:
    _, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex, plex.borrow(timeout=0):
        pass


async def test_leaving_the_block_closes_what_others_hold_and_turns_those_who_wait_away() -> None:
    exchange, wires = set_of(2)
    ends: list[object] = []

    async def hold(call: Any) -> None:
        try:
            async with call() as half:
                await half.receive_some()
        except (trio.ClosedResourceError, PoolClosedError) as exc:
            ends.append(type(exc))

    async with trio.open_nursery() as nursery:
        async with Multiplexer(streams=wires) as plex:
            for call in (plex.reader, plex.borrow, plex.borrow):
                nursery.start_soon(hold, call)
                await wait_all_tasks_blocked()
        assert exchange.open == []
        assert [wire.closes for wire in wires] == [1, 1]

    assert sorted(map(str, ends)) == sorted(
        map(str, [trio.ClosedResourceError, trio.ClosedResourceError, PoolClosedError])
    )
    after: list[Any] = [plex.reader(), plex.writer(), plex.borrow()]
    for loan in after:
        with pytest.raises(PoolClosedError):
            await loan.__aenter__()
    with pytest.raises(PoolClosedError):
        plex.add(Wire())
    assert "closed" in repr(plex)


async def test_half_used_after_the_end_says_so() -> None:
    _, wires = set_of(1)
    async with Multiplexer(streams=wires) as plex:
        loan = plex.borrow()
        stream = await loan.__aenter__()
    with pytest.raises(trio.ClosedResourceError, match="the multiplexer was closed"):
        await stream.send_all(b"x")
    await loan.__aexit__(None, None, None)


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_an_exception_in_the_block_leaves_as_itself(count: int) -> None:
    exchange, wires = set_of(count)
    with pytest.raises(KeyError) as caught:
        async with (
            Multiplexer(exchange.connect, streams=wires, capacity=4) as plex,
            plex.reader(),
        ):
            raise KeyError("mine")
    assert caught.value.args == ("mine",)
    assert caught.value.__context__ is None
    assert exchange.open == []


async def test_a_group_raised_in_the_block_leaves_as_itself() -> None:
    mine = ExceptionGroup("mine", [KeyError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with Multiplexer(capacity=1):
            raise mine
    assert caught.value is mine


async def test_cancelling_the_block_closes_everything_forcefully(
    autojump_clock: MockClock,
) -> None:
    exchange, wires = set_of(2)
    for wire in wires:
        wire.close_time = 100
    with trio.move_on_after(1) as scope:
        async with Multiplexer(streams=wires) as plex, plex.reader():
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert trio.current_time() == 1
    assert exchange.open == []


async def test_closing_idle_connections_takes_five_seconds_at_most(
    autojump_clock: MockClock,
) -> None:
    exchange, wires = set_of(2)
    for wire in wires:
        wire.close_time = 100
    async with Multiplexer(streams=wires):
        pass

    assert trio.current_time() == 5
    assert exchange.open == []


# The set


async def test_without_a_connect_a_set_waits_for_what_is_added() -> None:
    got: list[Any] = []

    async def read() -> None:
        async with plex.reader() as reader:
            got.append(await reader.receive_some())

    wire = Wire()
    await wire.far.send_all(b"x")
    async with Multiplexer(capacity=2) as plex, trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        assert plex.add(wire) == []
        await wait_all_tasks_blocked()
        assert got == [b"x"]


async def test_without_a_connect_the_loss_of_the_last_one_is_told_to_all_until_one_is_added() -> (
    None
):
    _, wires = set_of(1)
    told: list[object] = []

    async def wait() -> None:
        with pytest.raises(trio.BrokenResourceError, match="no `connect`") as caught:
            async with plex.borrow():
                pass
        told.append(caught.value)

    async with Multiplexer(streams=wires) as plex, trio.open_nursery() as nursery:
        async with plex.borrow() as stream:
            for _ in range(2):
                nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            await stream.aclose()
            await wait_all_tasks_blocked()
            assert len(told) == 2
        await wait()
        assert plex.add(Wire()) == []
        async with plex.borrow():
            pass


async def test_a_set_without_connect_does_not_shrink(autojump_clock: MockClock) -> None:
    _, wires = set_of(3)
    async with Multiplexer(streams=wires, idle_timeout=1) as plex:
        await trio.sleep(100)
        assert plex.statistics().idle == 3


def test_arguments_that_make_no_sense_are_refused() -> None:
    for arguments, error, text in (
        ({"capacity": 0}, ValueError, "capacity must be at least 1, got 0"),
        ({"capacity": "2"}, TypeError, "capacity must be an int, got '2'"),
        ({"streams": [1]}, TypeError, "streams takes trio.abc.Streams, got 1"),
        ({"scale_after": -1, "connect": print}, ValueError, "scale_after must be at least 0"),
        ({"scale_after": 1}, ValueError, "scale_after needs a `connect`"),
        ({"idle_timeout": 0}, ValueError, "idle_timeout must be more than 0"),
        ({"connect": 1}, TypeError, "connect must be an async function or None, got 1"),
        ({"backoff": 1}, TypeError, "backoff must be a Backoff, got 1"),
        ({"mux": 1}, TypeError, "mux must be a MuxConfig or None, got 1"),
        ({"on_event": 1}, TypeError, "on_event must be a function or None, got 1"),
    ):
        with pytest.raises(error, match=text):
            Multiplexer(**arguments)


async def test_more_misuse_is_refused() -> None:
    _, wires = set_of(2)
    with pytest.raises(ValueError, match="each stream once"):
        Multiplexer(streams=[wires[0], wires[0]])
    with pytest.raises(ValueError, match="at least the 2 streams given, got 1"):
        Multiplexer(streams=wires, capacity=1)
    plex = Multiplexer(streams=wires)
    with pytest.raises(RuntimeError, match="only inside its block"):
        plex.add()
    with pytest.raises(RuntimeError, match="only inside its block"):
        async with plex.reader():
            pass
    with pytest.raises(ValueError, match="timeout must be at least 0"):
        plex.reader(timeout=-1)
    with pytest.raises(RuntimeError, match="give it mux"):
        await plex.open_stream()
    async with plex:
        with pytest.raises(RuntimeError, match="a second time"):
            await plex.__aenter__()
        loan = plex.reader()
        assert "not entered" in repr(loan)
        async with loan as half:
            assert "ReceiveHalf" in repr(loan)
            with pytest.raises(LeaseError, match="cannot be entered again"):
                await loan.__aenter__()
        assert "given back" in repr(loan)
        assert "returned" in repr(half)
        assert repr(plex) == "<Multiplexer: 2 of 2 connections, 0 waiting>"


class Hostile(Wire):
    """One whose properties raise."""

    @property
    def closed(self) -> bool:
        raise KeyError("closed")

    @property
    def local_address(self) -> trionet.Address:
        raise KeyError("local_address")


@pytest.mark.parametrize("mux", [None, MuxConfig()], ids=["halves", "sessions"])
async def test_a_stream_whose_own_properties_raise_takes_no_other_with_it(
    mux: MuxConfig | None,
) -> None:
    wires = [Wire(), Hostile()]
    with pytest.raises(KeyError):
        async with Multiplexer(streams=wires, mux=mux):
            pytest.fail("it was entered")
    async with Multiplexer(capacity=2, mux=mux) as plex:
        with pytest.raises(KeyError):
            plex.add(*wires)
        assert plex.statistics().size == 0
        # It is the caller's, untouched: it may be given again.
        assert plex.add(wires[0]) == []
        assert plex.statistics().size == 1
    assert wires[0].closes == 1
    assert wires[1].closes == 0


async def test_a_connect_that_returns_no_stream_has_failed(autojump_clock: MockClock) -> None:
    async def connect() -> Any:
        return 5

    async with Multiplexer(connect) as plex:
        with pytest.raises(PoolTimeoutError, match="got 5") as caught:
            async with plex.reader(timeout=1):
                pass
        assert isinstance(caught.value.__cause__, TypeError)


# Plex's own test of many at once


@pytest.mark.parametrize("size", [10, 100, 1000])
async def test_as_many_readers_as_connections_each_read_their_own(size: int) -> None:
    chance = random.Random(size)
    exchange = Exchange(buffer_size=256)
    wires = [exchange.make() for _ in range(size)]
    sent: dict[str, int] = {}
    read: dict[str, int] = {}

    async def write(wire: Wire) -> None:
        data = chance.randbytes(chance.randrange(1, 4096))
        digest = hashlib.sha256(data).hexdigest()
        sent[digest] = wire.number
        await wire.far.send_all(data)
        await wire.far.send_eof()

    async def receive() -> None:
        async with plex.reader() as reader:
            digest = hashlib.sha256()
            async for chunk in reader:
                digest.update(chunk)
            wire = reader._duplex.stream
            assert isinstance(wire, Wire)
            read[digest.hexdigest()] = wire.number

    async with Multiplexer(streams=wires) as plex:
        async with trio.open_nursery() as nursery:
            for _ in range(size):
                nursery.start_soon(receive)
            await wait_all_tasks_blocked()
            assert plex.statistics().readers == size
            # All are busy: one more has to wait.
            with pytest.raises(PoolTimeoutError):
                async with plex.reader(timeout=0):
                    pass
            for wire in wires:
                nursery.start_soon(write, wire)

        assert plex.statistics().reasons == {"used up": size}
    assert read == sent
    assert len(read) == size
    assert exchange.open == []
