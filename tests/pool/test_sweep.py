"""Cancelled at each step it takes, whatever it does: the pool is whole afterwards."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import trio

from tests.pool.peer import FakeConnection, FakePeer
from tests.pool.steps import cancelled_at, sweep
from trionet import Backoff, KeyedPool, Pool, PoolClosedError, PoolTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionet import Lease

    Keyed: TypeAlias = KeyedPool[str, FakeConnection]
    Either: TypeAlias = Pool[FakeConnection] | Keyed


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


KINDS = ["plain", "checked", "reset", "slow to close", "flaky"]


class World:
    """A peer that is of some kind, and how to make a pool of connections to it."""

    def __init__(self, kind: str) -> None:
        self.peer = FakePeer(connect_time=0.5, close_time=2 if kind == "slow to close" else 0)
        self.options: dict[str, Any] = {
            "backoff": Backoff(attempts=None, jitter=0),
            "check": exchange if kind == "checked" else None,
            "reset": exchange if kind == "reset" else None,
        }
        self.kind = kind
        self.dials = 0

    async def connect(self, _: object = None) -> FakeConnection:
        """Connect, if the peer feels like it."""
        self.dials += 1
        if self.kind == "flaky" and self.dials % 2:
            await trio.sleep(0.1)
            raise OSError("refused")
        return await self.peer.connect()


@pytest.mark.parametrize("kind", KINDS)
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
    async def once(n: int) -> trio.CancelScope:
        world = World(kind)
        async with Pool(world.connect, max_size=2, min_size=1, **world.options) as pool:
            scope = await cancelled_at(n, partial(scenario, pool))
            await require_whole(pool, world.peer)
        assert not world.peer.open
        return scope

    sweep(once)


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


# Several keys


async def use_key(pool: Keyed, key: str, seconds: float = 1) -> None:
    async with pool.acquire(key):
        await trio.sleep(seconds)


async def use_one_key_after_the_other(pool: Keyed) -> None:
    for key in ("a", "b", "c", "a"):
        await use_key(pool, key)


async def wait_for_room(pool: Keyed) -> None:
    async with trio.open_nursery() as nursery:
        for key in ("a", "b", "c", "a", "c"):
            nursery.start_soon(use_key, pool, key)


async def wait_for_each_other(pool: Keyed) -> None:
    async with pool.acquire("a"), trio.open_nursery() as nursery:
        nursery.start_soon(use_key, pool, "b")
        nursery.start_soon(use_key, pool, "c")
        with contextlib.suppress(PoolTimeoutError):
            async with pool.acquire("d", timeout=0.7):
                await trio.sleep(1)


async def expire_keys(pool: Keyed) -> None:
    async with pool.acquire("a"):
        pool.expire("a")
    async with pool.acquire("b"):
        pool.expire()
    await use_key(pool, "a")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "scenario",
    [use_one_key_after_the_other, wait_for_room, wait_for_each_other, expire_keys],
)
def test_a_cancel_at_any_step_leaves_a_keyed_pool_whole(
    scenario: Callable[[Keyed], Awaitable[None]], kind: str
) -> None:
    async def once(n: int) -> trio.CancelScope:
        world = World(kind)
        pool: Keyed = KeyedPool(world.connect, max_total=2, max_per_key=2, **world.options)
        async with pool:
            scope = await cancelled_at(n, partial(scenario, pool))
            await trio.sleep(20)
            now = pool.statistics()
            assert now.lent == now.waiting == now.connecting == now.closing == 0
            assert now.size == now.idle == len(world.peer.open)
            assert set(pool.keys) == {k for k in pool.keys if pool.statistics(k).idle}
            with trio.fail_after(60):
                for key in ("a", "b", "c", "d"):
                    async with pool.acquire(key), pool.acquire(key):
                        assert pool.statistics().lent == 2
            assert world.peer.most <= 2
        assert not world.peer.open
        return scope

    sweep(once)


# The block itself


async def open_and_leave(pool: Either, _: trio.Nursery) -> None:
    async with pool:
        pass


async def leave_after_use(pool: Either, _: trio.Nursery) -> None:
    async with pool:
        async with acquire(pool):
            await trio.sleep(0)
        await trio.sleep(0.2)


async def leave_while_dialling(pool: Either, outside: trio.Nursery) -> None:
    async with pool:
        outside.start_soon(hold_on, pool, 1)
        await trio.sleep(0.2)


async def leave_while_somebody_holds(pool: Either, outside: trio.Nursery) -> None:
    async with pool:
        for seconds in (2, 3, 4):
            outside.start_soon(hold_on, pool, seconds)
        await trio.sleep(1.5)


async def leave_with_a_grace(pool: Either, outside: trio.Nursery) -> None:
    async with pool:
        for seconds in (2, 9, 9):
            outside.start_soon(hold_on, pool, seconds)
        await trio.sleep(1.5)
        await pool.drain(3)


async def leave_by_an_exception(pool: Either, outside: trio.Nursery) -> None:
    with pytest.raises(KeyError):
        async with pool:
            outside.start_soon(hold_on, pool, 3)
            await trio.sleep(0.7)
            raise KeyError


def acquire(pool: Either) -> Lease[FakeConnection]:
    return pool.acquire() if isinstance(pool, Pool) else pool.acquire("a")


async def hold_on(pool: Either, seconds: float) -> None:
    """Be a user who knows nothing of the pool's end."""
    with contextlib.suppress(PoolClosedError):
        async with acquire(pool):
            await trio.sleep(seconds)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize(
    "scenario",
    [
        open_and_leave,
        leave_after_use,
        leave_while_dialling,
        leave_while_somebody_holds,
        leave_with_a_grace,
        leave_by_an_exception,
    ],
)
def test_a_cancel_at_any_step_leaves_nothing_of_the_block(
    scenario: Callable[[Either, trio.Nursery], Awaitable[None]], keyed: bool, kind: str
) -> None:
    async def once(n: int) -> trio.CancelScope:
        world = World(kind)
        pool: Either = (
            KeyedPool(world.connect, max_total=2, max_per_key=2, **world.options)
            if keyed
            else Pool(world.connect, max_size=2, min_size=1, **world.options)
        )
        async with trio.open_nursery() as outside:
            scope = await cancelled_at(n, partial(scenario, pool, outside))
            # Not only at the end of time: those who still hold one do not matter.
            now = pool.statistics()
            assert now.size == now.waiting == now.lent == len(world.peer.open) == 0
            with pytest.raises(PoolClosedError):
                await acquire(pool).__aenter__()
        assert all(connection.closed for connection in world.peer.made)
        now = pool.statistics()
        assert now.connected == now.closed == len(world.peer.made)
        return scope

    sweep(once)
