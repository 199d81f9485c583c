"""Ctrl-C at each line of the multiplexer that runs: nothing is lost between two of its states."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

import trionet
from tests.mux.wires import Exchange
from tests.pool.interrupt import InterruptAtLine
from trionet import Loan, Multiplexer, MuxConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HERE = Path(trionet.__file__).parent
# What a multiplexer is made of, without what runs one session.
LENDING = [
    str(HERE / "_pool"),
    *(
        str(HERE / "_mux" / name)
        for name in ("multiplexer.py", "fleet.py", "lending.py", "claims.py", "loan.py")
    ),
    str(HERE / "_mux" / "sessions.py"),
]
# No scenario runs more lines than this.
MOST_LINES = 5000
QUIET = MuxConfig(keepalive=None, close_timeout=1)


async def borrow(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.borrow() as stream:
        await stream.send_all(b"x")


async def use_halves(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.reader(), plex.writer(timeout=5) as writer:
        await writer.send_all(b"x")


async def fail(plex: Multiplexer, exchange: Exchange) -> None:
    try:
        async with plex.reader():
            raise KeyError
    except KeyError:
        pass


async def wait_in_line(plex: Multiplexer, exchange: Exchange) -> None:
    async def use(call: Callable[[], Loan[Any]]) -> None:
        async with call():
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for call in (plex.borrow, plex.reader, plex.borrow, plex.writer, plex.borrow):
            nursery.start_soon(use, call)


async def discard_and_close(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.borrow() as stream:
        plex.discard(stream)
    async with plex.reader() as reader:
        await reader.aclose()


async def add_one(plex: Multiplexer, exchange: Exchange) -> None:
    wire = exchange.make()
    try:
        left = plex.add(wire)
    except BaseException:
        # Taken or not, it is clear which.
        if wire not in [entry.resource for entry in plex._fleet.supply.live.values()]:
            wire.near.close()
            wire.closes += 1
        raise
    for one in left:
        await one.aclose()


@pytest.mark.parametrize(
    "scenario", [borrow, use_halves, fail, wait_in_line, discard_and_close, add_one]
)
def test_an_interrupt_at_any_line_leaves_the_set_whole(
    scenario: Callable[[Multiplexer, Exchange], Awaitable[None]],
) -> None:
    for n in range(1, MOST_LINES):
        if not trio.run(interrupted_at, n, scenario, clock=MockClock(autojump_threshold=0)):
            return
    pytest.fail(f"it runs more than {MOST_LINES} lines")


async def interrupted_at(
    n: int, scenario: Callable[[Multiplexer, Exchange], Awaitable[None]]
) -> bool:
    """Interrupt the scenario, and return whether it was long enough for that."""
    exchange = Exchange(connect_time=0.5)
    interrupted = False
    async with Multiplexer(
        exchange.connect, streams=[exchange.make()], capacity=2, scale_after=0.2
    ) as plex:
        interrupt = InterruptAtLine(n, LENDING)
        try:
            with interrupt:
                await scenario(plex, exchange)
            await trio.lowlevel.checkpoint()
        except* KeyboardInterrupt:
            interrupted = True
        await trio.sleep(20)
        now = plex.statistics()
        assert now.lent == now.waiting == now.connecting == now.closing == 0, f"line {n}: {now}"
        assert now.size == now.idle == now.strength == len(exchange.open), f"line {n}: {now}"
        with trio.fail_after(10):
            async with plex.borrow(), plex.borrow():
                assert plex.statistics().borrowed == 2
    assert not exchange.open
    assert all(wire.closes == 1 for wire in exchange.wires), f"line {n}"
    assert interrupted == (interrupt.left == 0)
    return interrupted


def test_an_interrupt_at_any_line_of_opening_a_stream_leaves_none() -> None:
    for n in range(1, MOST_LINES):
        if not trio.run(opening_interrupted_at, n, clock=MockClock(autojump_threshold=0)):
            return
    pytest.fail(f"it runs more than {MOST_LINES} lines")


async def serve(far: trio.abc.Stream) -> None:
    async with trionet.open_mux(far, role="server", config=QUIET) as session:
        while True:
            try:
                stream = await session.listener().accept()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            async with stream:
                async for _ in stream:
                    pass


async def opening_interrupted_at(n: int) -> bool:
    """Interrupt two openings, one of which waits; return whether they took so long."""
    interrupted = False

    async def connect() -> trio.abc.Stream:
        near, far = trionet.memory_stream_pair(1000)
        servers.start_soon(serve, far)
        return near

    async def scenario() -> None:
        for _ in range(2):
            async with await plex.open_stream(timeout=10):
                pass

    async with trio.open_nursery() as servers, Multiplexer(connect, mux=QUIET) as plex:
        interrupt = InterruptAtLine(n, LENDING)
        try:
            with interrupt:
                await scenario()
            await trio.lowlevel.checkpoint()
        except* KeyboardInterrupt:
            interrupted = True
        await trio.sleep(20)
        now = plex.statistics()
        assert now.lent == now.waiting == now.connecting == now.streams == 0, f"{n}: {now}"
        assert now.size == now.idle, f"line {n}: {now}"
        with trio.fail_after(10):
            async with await plex.open_stream():
                pass
    assert interrupted == (interrupt.left == 0)
    return interrupted


@pytest.mark.parametrize("mux", [None, QUIET])
def test_an_interrupt_at_any_line_of_the_end_leaves_nothing_open(mux: MuxConfig | None) -> None:
    for n in range(1, MOST_LINES):
        exchange = Exchange()
        interrupt = InterruptAtLine(n, LENDING)
        run = partial(trio.run, open_and_leave, exchange, interrupt, mux)
        try:
            run(clock=MockClock(autojump_threshold=0))
            assert interrupt.left > 0, f"line {n}: the interrupt was swallowed"
            return
        except KeyboardInterrupt:
            assert not exchange.open, f"line {n}"
    pytest.fail(f"it runs more than {MOST_LINES} lines")


async def open_and_leave(
    exchange: Exchange, interrupt: InterruptAtLine, mux: MuxConfig | None
) -> None:
    """Do both, with something idle and something lent."""
    given = [exchange.make()]
    plex = Multiplexer(exchange.connect, streams=given, capacity=2, scale_after=0, mux=mux)
    with interrupt:
        try:
            async with plex:
                if mux is None:
                    async with plex.borrow(), plex.reader():
                        pass
                else:
                    async with await plex.open_stream():
                        pass
        except BaseException:
            if plex._fleet.lifecycle._nursery is None and not plex._fleet.lifecycle.closed:
                # It had not begun.
                given[0].near.close()
            raise


def test_an_interrupt_at_any_line_of_a_session_closes_its_carrier_and_loses_no_stream() -> None:
    for n in range(1, MOST_LINES):
        near, far = trionet.memory_stream_pair(1000)
        interrupt = InterruptAtLine(n, [str(HERE / "_mux")])
        run = partial(trio.run, talk, near, far, interrupt)
        interrupted = False
        try:
            run(clock=MockClock(autojump_threshold=0))
        except* KeyboardInterrupt:
            interrupted = True
        except* trio.BrokenResourceError:
            # It struck the peer, whose session was over before ours.
            assert interrupt.left == 0, f"line {n}"
        assert near.closed, f"line {n}"
        assert interrupted == (interrupt.left == 0), f"line {n}: the interrupt was swallowed"
        if not interrupted:
            return
    pytest.fail(f"it runs more than {MOST_LINES} lines")


async def talk(near: trio.abc.Stream, far: trio.abc.Stream, interrupt: InterruptAtLine) -> None:
    """Open a session, exchange something with the peer on two streams, and close everything."""
    async with trio.open_nursery() as servers:
        servers.start_soon(serve, far)
        await trio.testing.wait_all_tasks_blocked()
        with interrupt:
            async with trionet.open_mux(near, role="client", config=QUIET) as session:
                for _ in range(2):
                    async with await session.open_stream() as stream:
                        await stream.send_all(b"x")
                        await stream.send_eof()
                        assert await stream.receive_some() == b""
                await session.ping()
