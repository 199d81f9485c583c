"""Cancelled at each step it takes, whatever it does: the multiplexer is whole afterwards."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

import trionet
from tests.mux.wires import Exchange, Wire
from tests.pool.steps import CancelAtStep
from trionet import Backoff, Loan, Multiplexer, MuxConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# No scenario takes more steps than this; one that does would make the sweep end too early.
MOST_STEPS = 250


async def use(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.borrow() as stream:
        await stream.send_all(b"x")
        await trio.sleep(1)


async def use_halves(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.reader(), plex.writer() as writer:
        await writer.send_all(b"x")
        await trio.sleep(1)


async def use_and_fail(plex: Multiplexer, exchange: Exchange) -> None:
    try:
        async with plex.writer():
            await trio.sleep(1)
            raise KeyError
    except KeyError:
        pass


async def use_one_half(call: Callable[[], Loan[Any]]) -> None:
    async with call():
        await trio.sleep(1)


async def wait_in_line(plex: Multiplexer, exchange: Exchange) -> None:
    async with trio.open_nursery() as nursery:
        for call in (plex.borrow, plex.reader, plex.borrow, plex.writer, plex.reader, plex.writer):
            nursery.start_soon(use_one_half, call)


async def wait_with_a_timeout(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.borrow(timeout=10), plex.reader(timeout=10), plex.writer(timeout=10):
        await trio.sleep(1)


async def send_more_than_fits(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.writer() as writer:
        with trio.move_on_after(1):
            await writer.send_all(bytes(5000))


async def use_up(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.borrow() as stream:
        wire = stream._duplex.stream
        assert isinstance(wire, Wire)
        await wire.far.send_eof()
        assert await stream.receive_some() == b""


async def close_inside(plex: Multiplexer, exchange: Exchange) -> None:
    async with plex.reader() as reader, plex.writer():
        await reader.aclose()
        await trio.sleep(1)


async def meet_dead_ones(plex: Multiplexer, exchange: Exchange) -> None:
    for _ in range(2):
        for wire in exchange.open:
            wire.far.close()
        async with plex.borrow():
            await trio.sleep(0.1)


async def add_some(plex: Multiplexer, exchange: Exchange) -> None:
    wire = exchange.make()
    if plex.add(wire):
        wire.near.close()
    async with plex.borrow():
        await trio.sleep(0.1)


@pytest.mark.parametrize("kind", ["plain", "slow to close", "flaky"])
@pytest.mark.parametrize(
    "scenario",
    [
        use,
        use_halves,
        use_and_fail,
        wait_in_line,
        wait_with_a_timeout,
        send_more_than_fits,
        use_up,
        close_inside,
        meet_dead_ones,
        add_some,
    ],
)
def test_a_cancel_at_any_step_leaves_the_set_whole(
    scenario: Callable[[Multiplexer, Exchange], Awaitable[None]], kind: str
) -> None:
    for n in range(1, MOST_STEPS + 1):
        if trio.run(cancelled_at, n, scenario, kind, clock=MockClock(autojump_threshold=0)):
            return
    pytest.fail(f"{scenario.__name__} takes more than {MOST_STEPS} steps")


async def cancelled_at(
    n: int, scenario: Callable[[Multiplexer, Exchange], Awaitable[None]], kind: str
) -> bool:
    """Cancel the scenario after its n-th step; return whether it was over before."""
    exchange = Exchange(connect_time=0.5)
    dials = 0

    async def connect() -> Wire:
        nonlocal dials
        dials += 1
        if kind == "flaky" and dials % 2:
            await trio.sleep(0.1)
            raise OSError("refused")
        wire = await exchange.connect()
        wire.close_time = 2 if kind == "slow to close" else 0
        return wire

    plex = Multiplexer(
        connect, capacity=2, scale_after=0.2, idle_timeout=50, backoff=Backoff(jitter=0)
    )
    async with plex:
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, n))
            try:
                await scenario(plex, exchange)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await require_whole(plex, exchange)
    assert not exchange.open
    assert all(wire.closes == 1 for wire in exchange.wires if wire.closes)
    return not scope.cancelled_caught and not scope.cancel_called


async def require_whole(plex: Multiplexer, exchange: Exchange) -> None:
    """Everybody is still served, at once as many as may be, and nothing has leaked."""
    await trio.sleep(20)
    now = plex.statistics()
    assert now.lent == now.waiting == now.connecting == now.closing == now.leaving == 0
    assert now.size == now.idle == now.strength == len(exchange.open)
    assert now.connected + now.added - now.closed == now.size
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(now.capacity):
            await stack.enter_async_context(plex.borrow(timeout=10))
        assert plex.statistics().borrowed == now.capacity
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(now.capacity):
            await stack.enter_async_context(plex.reader(timeout=10))
            await stack.enter_async_context(plex.writer(timeout=10))
    # What is offered is open already.
    assert exchange.most <= now.capacity + (exchange.made_by_hand > 0)


def test_a_cancel_at_any_step_of_opening_a_stream_leaves_no_stream() -> None:
    for n in range(1, MOST_STEPS + 1):
        if trio.run(opening_cancelled_at, n, clock=MockClock(autojump_threshold=0)):
            return
    pytest.fail(f"it takes more than {MOST_STEPS} steps")


async def opening_cancelled_at(n: int) -> bool:
    """Cancel four who ask after their n-th step; return whether they were done before."""
    quiet = MuxConfig(keepalive=None, max_outbound_streams=2)

    async def serve(far: trio.abc.Stream) -> None:
        async with trionet.open_mux(far, role="server", config=quiet) as session:
            while True:
                try:
                    stream = await session.listener().accept()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                async with stream:
                    await stream.send_all(await stream.receive_some())

    async def connect() -> trio.abc.Stream:
        await trio.sleep(0.5)
        near, far = trionet.memory_stream_pair(1000)
        nursery.start_soon(serve, far)
        return near

    async def ask() -> None:
        async with await plex.open_stream(timeout=10) as stream:
            await stream.send_all(b"x")
            await stream.receive_some()

    async with trio.open_nursery() as nursery, Multiplexer(connect, mux=quiet) as plex:
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, n))
            try:
                async with trio.open_nursery() as crowd:
                    for _ in range(4):
                        crowd.start_soon(ask)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await trio.sleep(20)
        now = plex.statistics()
        assert now.streams == now.waiting == now.lent == now.connecting == 0
        assert now.idle == now.size <= 1
        await ask()
        assert plex.statistics().size == 1
    return not scope.cancelled_caught and not scope.cancel_called
