"""Ctrl-C at each line of the pool that runs: nothing is lost between two of its states."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

import trionet
from tests.pool.interrupt import InterruptAtLine
from tests.pool.peer import FakeConnection, FakePeer
from trionet import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POOL = [str(Path(trionet.__file__).parent / "_pool")]
# No scenario runs more lines than this.
MOST_LINES = 3000


async def acquire(pool: Pool[FakeConnection]) -> None:
    async with pool.acquire():
        await trio.lowlevel.checkpoint()


async def acquire_and_fail(pool: Pool[FakeConnection]) -> None:
    try:
        async with pool.acquire():
            raise KeyError
    except KeyError:
        pass


async def discard_a_lease(pool: Pool[FakeConnection]) -> None:
    lease = pool.acquire()
    async with lease:
        lease.discard()


async def wait_in_line(pool: Pool[FakeConnection]) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(acquire, pool)
        await acquire(pool)


async def get_and_give_back(pool: Pool[FakeConnection]) -> None:
    for give_back in (pool.put, pool.discard):
        connection = await pool.get()
        try:
            await trio.lowlevel.checkpoint()
        finally:
            give_back(connection)
    try:
        connection = pool.get_nowait()
    except trio.WouldBlock:
        pass
    else:
        pool.put(connection)


async def change_its_mind(pool: Pool[FakeConnection]) -> None:
    await acquire(pool)
    pool.expire()
    pool.resize(1)
    await acquire(pool)
    pool.resize(2)
    await pool.ready()


@pytest.mark.parametrize(
    "scenario",
    [acquire, acquire_and_fail, discard_a_lease, wait_in_line, get_and_give_back, change_its_mind],
)
def test_an_interrupt_at_any_line_leaves_the_pool_whole(
    scenario: Callable[[Pool[FakeConnection]], Awaitable[None]],
) -> None:
    for n in range(1, MOST_LINES):
        if not trio.run(interrupted_at, n, scenario, clock=MockClock(autojump_threshold=0)):
            return
    pytest.fail(f"it runs more than {MOST_LINES} lines")


async def interrupted_at(
    n: int, scenario: Callable[[Pool[FakeConnection]], Awaitable[None]]
) -> bool:
    """Interrupt the scenario, and return whether it was long enough for that."""
    peer = FakePeer()
    interrupted = False
    async with Pool(peer.connect, max_size=2, min_size=1) as pool:
        await pool.ready()
        interrupt = InterruptAtLine(n, POOL)
        try:
            with interrupt:
                await scenario(pool)
            await trio.lowlevel.checkpoint()
        except* KeyboardInterrupt:
            interrupted = True
        await trio.sleep(20)
        now = pool.statistics()
        assert now.waiting == now.connecting == now.closing == now.lent == 0, f"line {n}: {now}"
        assert now.size == now.idle == len(peer.open), f"line {n}: {now}"
        with trio.fail_after(10):
            async with pool.acquire():
                assert pool.statistics().lent == 1
    assert not peer.open
    assert interrupted == (interrupt.left == 0)
    return interrupted


@pytest.mark.parametrize("keyed", [False, True])
def test_an_interrupt_at_any_line_of_the_end_leaves_nothing_open(keyed: bool) -> None:
    for n in range(1, MOST_LINES):
        peer = FakePeer(close_time=1)
        interrupt = InterruptAtLine(n, POOL)
        run = partial(trio.run, open_and_leave, peer, interrupt, keyed)
        try:
            run(clock=MockClock(autojump_threshold=0))
            assert interrupt.left > 0, f"line {n}: the interrupt was swallowed"
            return
        except KeyboardInterrupt:
            assert not peer.open, f"line {n}"
    pytest.fail(f"it runs more than {MOST_LINES} lines")


async def open_and_leave(peer: FakePeer, interrupt: InterruptAtLine, keyed: bool) -> None:
    """Do both, with something idle and something being dialled."""

    async def connect(_: object) -> FakeConnection:
        return await peer.connect()

    keyed_pool = trionet.KeyedPool(connect, max_total=3, max_per_key=2)
    single = Pool(peer.connect, max_size=3, min_size=2)
    with interrupt:
        if keyed:
            async with keyed_pool, keyed_pool.acquire("a"), keyed_pool.acquire("b"):
                pass
        else:
            async with single, single.acquire(), single.acquire():
                pass
