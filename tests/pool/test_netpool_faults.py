"""What goes wrong in the Go package this pool comes from, and must not here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
from trionet import Backoff, LeaseError, Pool, PoolClosedError, PoolConnectError


async def test_putting_twice_does_not_give_one_connection_to_two_users() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        connection = await pool.get()
        pool.put(connection)
        with pytest.raises(LeaseError):
            pool.put(connection)

        first, second = await pool.get(), await pool.get()

        assert first is not second
        pool.put(first)
        pool.put(second)


async def test_discarding_twice_does_not_make_a_slot_out_of_nothing() -> None:
    peer = FakePeer()
    async with Pool(peer.connect, max_size=2) as pool:
        first, second = await pool.get(), await pool.get()
        pool.discard(first)
        for give_back in (pool.discard, pool.put):
            with pytest.raises(LeaseError):
                give_back(first)
        third = await pool.get()
        with pytest.raises(trio.WouldBlock):
            pool.get_nowait()

        assert peer.most == 2
        pool.put(second)
        pool.put(third)


async def test_a_stranger_changes_no_count_and_blocks_nobody() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        for number in range(3):
            with pytest.raises(LeaseError):
                pool.put(FakeConnection(FakePeer(), number))

        now = pool.statistics()
        assert (now.lent, now.idle, now.size) == (0, 0, 0)


async def test_a_connection_that_was_closed_is_not_kept() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        connection = await pool.get()
        connection.closed = True
        pool.put(connection)
        connection.closed = False

        assert await pool.get() is not connection
        pool.discard(pool._lender.lent[next(iter(pool._lender.lent))].resource)


async def test_a_check_ends_with_the_patience_of_who_waits_for_it(
    autojump_clock: MockClock,
) -> None:
    async def check(_: FakeConnection) -> None:
        await trio.sleep(0.4)

    async with Pool(FakePeer().connect, max_size=1, check=check) as pool:
        pool.put(await pool.get())
        await trio.sleep(1)
        start = trio.current_time()
        with trio.move_on_after(0.02) as scope:
            await pool.get()

        assert scope.cancelled_caught
        assert trio.current_time() == start + 0.02


async def test_after_an_outage_nobody_walks_through_dead_connections_one_by_one(
    autojump_clock: MockClock,
) -> None:
    async def check(_: FakeConnection) -> None:
        await trio.sleep(1)

    peer = FakePeer()
    async with Pool(peer.connect, max_size=20, check=check) as pool:
        for connection in [await pool.get() for _ in range(20)]:
            pool.put(connection)
        await trio.sleep(10)
        peer.die()
        start = trio.current_time()
        pool.put(await pool.get())

        assert trio.current_time() == start


async def test_who_is_cancelled_already_gets_nothing_and_starts_no_dial() -> None:
    peer = FakePeer()
    async with Pool(peer.connect, max_size=2) as pool:
        for idle in (False, True):
            for _ in range(20):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await pool.get()
                assert scope.cancelled_caught
            assert peer.dials == idle
            pool.put(await pool.get())


async def test_min_size_is_not_defeated_by_the_idle_timeout(autojump_clock: MockClock) -> None:
    peer = FakePeer(connect_time=1)
    async with Pool(peer.connect, max_size=5, min_size=2, idle_timeout=3) as pool:
        await pool.ready()
        await trio.sleep(100)
        start = trio.current_time()
        pool.put(await pool.get())

        assert trio.current_time() == start
        assert pool.statistics().idle == 2
        assert peer.dials == 2


@pytest.mark.parametrize("delay", [0, 1])
async def test_what_comes_back_as_the_pool_closes_is_closed(
    delay: float, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    peer = FakePeer()

    async def give_back() -> None:
        await trio.sleep(delay)
        for connection in connections:
            pool.put(connection)

    async with Pool(peer.connect, max_size=5) as pool:
        connections = [await pool.get() for _ in range(5)]
        nursery.start_soon(give_back)

    assert not peer.open


async def test_a_dial_in_flight_when_the_pool_closes_leaves_nothing_open(
    autojump_clock: MockClock,
) -> None:
    peer = FakePeer(connect_time=1)
    async with Pool(peer.connect, max_size=5, min_size=5):
        await trio.sleep(1.5)

    assert len(peer.made) == 1
    assert not peer.open


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ZeroDivisionError()])
async def test_connect_may_raise_whatever_it_likes_without_losing_its_slot(
    error: Exception, autojump_clock: MockClock
) -> None:
    peer = FakePeer()
    peer.fail = error
    async with Pool(peer.connect, max_size=1, backoff=Backoff(jitter=0)) as pool:
        for _ in range(3):
            with pytest.raises(PoolConnectError):
                await pool.get()
        peer.fail = None
        pool.put(await pool.get())


def test_a_pool_that_cannot_connect_is_refused() -> None:
    nothing: Any = None
    with pytest.raises(TypeError, match="connect"):
        Pool(nothing, max_size=1)


async def test_the_pool_shrinks_under_light_load(autojump_clock: MockClock) -> None:
    async with Pool(FakePeer().connect, max_size=10, idle_timeout=5) as pool:
        for connection in [await pool.get() for _ in range(10)]:
            pool.put(connection)
        for _ in range(20):
            async with pool.acquire():
                await trio.sleep(0.5)

        assert pool.statistics().size == 1


@pytest.mark.parametrize("seconds", [1e-9, math.inf])
async def test_an_odd_idle_timeout_harms_nothing(seconds: float, autojump_clock: MockClock) -> None:
    async with Pool(FakePeer().connect, max_size=2, idle_timeout=seconds) as pool:
        for _ in range(3):
            async with pool.acquire():
                await trio.sleep(1)
            await trio.sleep(1)


async def test_closing_waits_for_what_is_in_use_and_tells_those_who_wait(
    autojump_clock: MockClock,
) -> None:
    peer = FakePeer()
    async with trio.open_nursery() as nursery:

        async def hold(pool: Pool[FakeConnection]) -> None:
            async with pool.acquire():
                await trio.sleep(2)

        async def wait(pool: Pool[FakeConnection]) -> None:
            with pytest.raises(PoolClosedError):
                await pool.get()
            assert trio.current_time() == 0

        async with Pool(peer.connect, max_size=1) as pool:
            nursery.start_soon(hold, pool)
            await wait_all_tasks_blocked()
            nursery.start_soon(wait, pool)
            await wait_all_tasks_blocked()
        assert trio.current_time() == 2
        assert not peer.open
