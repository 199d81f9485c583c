"""Cancelled at each step it takes, whatever it does: the pool is whole afterwards."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

from tests.pool.peer import FakeConnection, FakePeer
from trionet import Backoff, Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# No scenario takes more steps than this; one that does would make the sweep end too early.
MOST_STEPS = 60


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope once the tasks in it have taken ``n`` steps together."""

    def __init__(self, scope: trio.CancelScope, n: int) -> None:
        self.scope = scope
        self.left = n
        self.root = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the steps of the root and of the tasks below it."""
        above: trio.lowlevel.Task | None = task
        while above is not None and above is not self.root:
            nursery = above.parent_nursery
            above = None if nursery is None else nursery.parent_task
        if above is self.root:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def use(pool: Pool[FakeConnection]) -> None:
    async with pool.acquire():
        await trio.sleep(1)


async def use_and_fail(pool: Pool[FakeConnection]) -> None:
    try:
        async with pool.acquire():
            await trio.sleep(1)
            raise KeyError
    except KeyError:
        pass


async def get_and_put(pool: Pool[FakeConnection]) -> None:
    connection = await pool.get()
    try:
        await trio.sleep(1)
    finally:
        pool.put(connection)


async def use_after_a_pause(pool: Pool[FakeConnection]) -> None:
    for pause in (0, 1, 1):
        await trio.sleep(pause)
        await use(pool)


async def wait_in_line(pool: Pool[FakeConnection]) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(use, pool)


async def wait_with_a_timeout(pool: Pool[FakeConnection]) -> None:
    async with pool.acquire(timeout=10):
        await trio.sleep(1)


async def meet_a_dead_one(pool: Pool[FakeConnection]) -> None:
    for _ in range(3):
        async with pool.acquire() as connection:
            await trio.sleep(0.1)
        connection.dead = True


async def expire_and_resize(pool: Pool[FakeConnection]) -> None:
    async with pool.acquire():
        pool.expire()
        pool.resize(1)
    async with pool.acquire():
        pool.resize(2)


async def wait_until_ready(pool: Pool[FakeConnection]) -> None:
    await pool.ready()


async def exchange(_: FakeConnection) -> None:
    await trio.sleep(0.1)


@pytest.mark.parametrize("kind", ["plain", "checked", "reset", "slow to close", "flaky"])
@pytest.mark.parametrize(
    "scenario",
    [
        use,
        use_and_fail,
        get_and_put,
        use_after_a_pause,
        wait_in_line,
        wait_with_a_timeout,
        meet_a_dead_one,
        expire_and_resize,
        wait_until_ready,
    ],
)
def test_a_cancel_at_any_step_leaves_the_pool_whole(
    scenario: Callable[[Pool[FakeConnection]], Awaitable[None]], kind: str
) -> None:
    for n in range(1, MOST_STEPS + 1):
        if trio.run(cancelled_at, n, scenario, kind, clock=MockClock(autojump_threshold=0)):
            return
    pytest.fail(f"{scenario.__name__} takes more than {MOST_STEPS} steps")


async def cancelled_at(
    n: int, scenario: Callable[[Pool[FakeConnection]], Awaitable[None]], kind: str
) -> bool:
    """Cancel the scenario after its n-th step; return whether it was over before."""
    peer = FakePeer(connect_time=0.5, close_time=2 if kind == "slow to close" else 0)
    dials = 0

    async def connect() -> FakeConnection:
        nonlocal dials
        dials += 1
        if kind == "flaky" and dials % 2:
            await trio.sleep(0.1)
            raise OSError("refused")
        return await peer.connect()

    pool = Pool(
        connect,
        max_size=2,
        min_size=1,
        backoff=Backoff(attempts=None, jitter=0),
        check=exchange if kind == "checked" else None,
        reset=exchange if kind == "reset" else None,
    )
    async with pool:
        with trio.CancelScope() as scope:
            trio.lowlevel.add_instrument(instrument := CancelAtStep(scope, n))
            try:
                await scenario(pool)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await require_whole(pool, peer)
    assert not peer.open
    return not scope.cancelled_caught and not scope.cancel_called


async def require_whole(pool: Pool[FakeConnection], peer: FakePeer) -> None:
    """Everybody is still served, at once as many as before, and nothing has leaked."""
    await trio.sleep(20)
    now = pool.statistics()
    assert now.lent == now.waiting == now.connecting == now.closing == 0
    assert now.size == now.idle == len(peer.open)
    assert now.connected - now.closed == now.size
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(now.max_size):
            await stack.enter_async_context(pool.acquire(timeout=10))
        assert pool.statistics().lent == now.max_size
    assert peer.most <= 2
