"""Where connections come from, how long they stay, and what is done to them in between."""

from __future__ import annotations

import contextvars
import logging
import math
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer, hold
from trionet import (
    Backoff,
    Pool,
    PoolClosedError,
    PoolConnectError,
    PoolTimeoutError,
)

STEADY = Backoff(first=0.5, maximum=2.0, jitter=0)


# Connecting


async def test_a_dial_outlives_an_impatient_caller(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(connect_time=3)
    async with Pool(peer.connect, max_size=1) as pool:
        for _ in range(2):
            with pytest.raises(PoolTimeoutError):
                await pool.get(timeout=1)
        connection = await pool.get(timeout=1.5)

        assert trio.current_time() == 3
        assert peer.dials == 1
        pool.put(connection)


async def test_connecting_sees_the_context_of_who_asked() -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")
    seen = []
    peer = FakePeer()
    peer.on_connect = lambda _: seen.append(who.get())
    async with Pool(peer.connect, max_size=1) as pool:
        who.set("me")
        pool.put(await pool.get())

    assert seen == ["me"]


async def test_a_dial_that_hangs_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    peer = FakePeer(connect_time=math.inf)
    async with Pool(peer.connect, max_size=1, connect_timeout=4) as pool:
        with pytest.raises(PoolConnectError, match="connecting took too long") as caught:
            await pool.get()

        assert isinstance(caught.value.__cause__, trio.TooSlowError)
        assert trio.current_time() == 4
        assert not peer.open


async def test_what_cannot_be_closed_is_not_pooled() -> None:
    async def connect() -> object:
        return object()

    async with Pool(connect, max_size=1) as pool:
        with pytest.raises(PoolConnectError, match="something with an aclose"):
            await pool.get()


async def test_a_connection_that_is_returned_twice_is_refused() -> None:
    only = FakeConnection(FakePeer(), 0)

    async def connect() -> FakeConnection:
        return only

    async with Pool(connect, max_size=2) as pool, pool.acquire():
        with pytest.raises(PoolConnectError, match="a second time"):
            await pool.get()


async def test_a_spike_does_not_leave_as_many_connections_behind_as_it_had_requests(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(connect_time=0.15)
    async with Pool(peer.connect, max_size=50, min_size=5) as pool:
        await pool.ready()
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(hold, pool, 0.002)

        # Ten rounds of five; the dial that the sixth request started is still under way.
        assert trio.current_time() - start == pytest.approx(0.02)
        await trio.sleep(1)
        assert pool.statistics().size == 6
        assert peer.most == 6


async def test_an_empty_pool_dials_for_everybody_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(connect_time=0.15)
    async with Pool(peer.connect, max_size=20) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(hold, pool, 0.002)

        assert trio.current_time() == pytest.approx(0.156)
        assert peer.most == 20


# Size and age


async def test_min_size_is_filled_at_once_and_kept_when_connections_die(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(connect_time=1)
    async with Pool(peer.connect, max_size=5, min_size=3) as pool:
        await pool.ready()
        assert trio.current_time() == 3
        pool.discard(await pool.get())
        await pool.ready()

        assert pool.statistics().idle == 3
        assert pool.statistics().connected == 4


async def test_ready_tells_of_a_failure_and_of_the_end() -> None:
    peer = FakePeer()
    peer.fail = OSError("refused")
    async with Pool(peer.connect, max_size=5, min_size=3) as pool:
        with pytest.raises(PoolConnectError, match="refused"):
            await pool.ready()
        await pool.drain()
        with pytest.raises(PoolClosedError):
            await pool.ready()


async def test_what_is_not_needed_goes_after_the_idle_timeout_the_longest_idle_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    async with Pool(peer.connect, max_size=5, min_size=1, idle_timeout=10) as pool:
        connections = [await pool.get() for _ in range(3)]
        for connection in connections:
            await trio.sleep(1)
            pool.put(connection)

        seen = []
        for _ in range(14):
            await trio.sleep(0.99)
            seen.append(pool.statistics().idle)
            await trio.sleep(0.01)

        assert seen == [3] * 8 + [2] + [1] * 5
        assert pool.get_nowait() is connections[2]
        pool.put(connections[2])


async def test_a_connection_is_closed_between_95_and_100_per_cent_of_its_lifetime(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    ends: list[float] = []
    async with Pool(
        peer.connect, max_size=20, min_size=20, lifetime=100, idle_timeout=None
    ) as pool:
        await pool.ready()
        first = list(peer.made)
        while any(not connection.closed for connection in first):
            ends += [trio.current_time()] * sum(c.closed for c in first[len(ends) :])
            await trio.sleep(0.1)

        assert trio.current_time() <= 100.2
        assert not any(c.closed for c in peer.made[20:])
        assert pool.statistics().reasons == {"lifetime": 20}
    assert min(ends) >= 95


async def test_what_is_lent_outlives_its_lifetime_and_goes_when_it_comes_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Pool(FakePeer().connect, max_size=1, lifetime=10) as pool:
        async with pool.acquire() as connection:
            await trio.sleep(20)
            assert not connection.closed
        await wait_all_tasks_blocked()

        assert connection.closed


async def test_resize_closes_idle_ones_now_and_lent_ones_when_they_come_back() -> None:
    async with Pool(FakePeer().connect, max_size=4) as pool:
        lent = [await pool.get() for _ in range(2)]
        idle = [await pool.get() for _ in range(2)]
        for connection in idle:
            pool.put(connection)
        pool.resize(1)
        await wait_all_tasks_blocked()

        assert all(connection.closed for connection in idle)
        assert pool.statistics().size == 2
        pool.put(lent[0])
        await wait_all_tasks_blocked()
        assert lent[0].closed
        pool.put(lent[1])
        assert pool.statistics().idle == 1
        with pytest.raises(ValueError, match="got 0"):
            pool.resize(0)


async def test_a_dial_under_way_does_not_cost_a_connection_that_is_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    async with Pool(peer.connect, max_size=2) as pool:
        connection = await pool.get()
        peer.connect_time = 5
        served: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, 1, served)
            await trio.sleep(1)
            # One of the two is to go: not the one that works.
            pool.resize(1)
            pool.put(connection)
        await trio.sleep(5)

        assert served == [(1, 0)]
        assert pool.statistics().reasons == {"surplus": 1}
        assert pool.statistics().idle == 1


async def test_resize_serves_those_who_wait() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        nursery.start_soon(hold, pool, 0)
        await wait_all_tasks_blocked()
        assert pool.statistics().waiting == 1

        pool.resize(2)
        await wait_all_tasks_blocked()

        assert pool.statistics().waiting == 0
        pool.put(connection)


async def test_expire_closes_idle_ones_now_the_others_when_they_come_back_or_arrive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(connect_time=1)
    async with Pool(peer.connect, max_size=3) as pool, trio.open_nursery() as nursery:
        lent, idle = await pool.get(), await pool.get()
        pool.put(idle)
        borrowed = await pool.get()
        log: list[Any] = []
        nursery.start_soon(hold, pool, 0, log)
        await trio.sleep(0.5)
        pool.put(borrowed)
        start = trio.current_time()
        await wait_all_tasks_blocked()
        pool.expire()
        await wait_all_tasks_blocked()

        assert idle.closed
        pool.put(lent)
        await wait_all_tasks_blocked()
        assert lent.closed
        assert pool.statistics().waiting == 0
        await trio.sleep(2)
        # The dial that began before the call brought what had expired.
        assert peer.made[2].closed
        assert trio.current_time() - start == 2


# Closing


async def test_a_slot_is_free_only_once_its_connection_is_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(close_time=3)
    async with Pool(peer.connect, max_size=1) as pool:
        pool.discard(await pool.get())
        pool.put(await pool.get())

        assert trio.current_time() == 3
        assert peer.most == 1


async def test_a_close_that_hangs_gets_five_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(close_time=math.inf)
    async with Pool(peer.connect, max_size=1) as pool:
        connection = await pool.get()
        pool.discard(connection)
        await hold(pool, 0)

        assert trio.current_time() == 5
        assert connection.forced
        assert connection.closed
        peer.close_time = 0


async def test_close_may_be_something_else_than_aclose(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    said = []

    async def close(connection: FakeConnection) -> None:
        said.append(connection.number)
        if connection.number == 1:
            raise OSError("no")
        if connection.number == 2:
            await trio.sleep(math.inf)

    caplog.set_level(logging.DEBUG, "trionet.pool")
    async with Pool(FakePeer().connect, max_size=3, close=close) as pool:
        connections = [await pool.get() for _ in range(3)]
        for connection in connections:
            pool.discard(connection)

    assert sorted(said) == [0, 1, 2]
    # Where it failed or took too long, aclose does it, with no time to wait.
    assert [connection.closed for connection in connections] == [False, True, True]
    assert trio.current_time() == 5
    assert "OSError('no')" in caplog.text
