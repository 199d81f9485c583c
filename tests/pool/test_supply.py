"""Where connections come from, how long they stay, and what is done to them in between."""

from __future__ import annotations

import contextvars
import logging
import math
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
from trionet import (
    Backoff,
    Pool,
    PoolClosedError,
    PoolConnectError,
    PoolTimeoutError,
)

STEADY = Backoff(first=0.5, maximum=2.0, jitter=0)


async def hold(pool: Pool[FakeConnection], seconds: float, log: list[Any] | None = None) -> None:
    """Acquire, and hold for some time."""
    async with pool.acquire() as connection:
        if log is not None:
            log.append((trio.current_time(), connection.number))
        await trio.sleep(seconds)


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


async def test_only_the_oldest_waiter_hears_of_a_failure_and_pauses_grow(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    peer.fail = OSError("refused")
    told: list[float] = []

    async def wait() -> None:
        with pytest.raises(PoolConnectError) as caught:
            await pool.get()
        assert caught.value.__cause__ is peer.fail
        told.append(trio.current_time())

    pool = Pool(peer.connect, max_size=1, backoff=STEADY)
    async with pool, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(wait)

    assert told == [0, 0.5, 1.5, 3.5, 5.5]
    assert peer.dialled_at == told


async def test_a_waiter_is_told_after_as_many_attempts_as_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    peer.fail = OSError("refused")
    backoff = Backoff(first=1, factor=2, maximum=10, jitter=0, attempts=3)
    async with Pool(peer.connect, max_size=3, backoff=backoff) as pool:
        with pytest.raises(PoolConnectError, match="3 times in a row: OSError"):
            await pool.get()

        assert peer.dialled_at == [0, 1, 3]


async def test_whoever_comes_after_a_failure_has_all_attempts_before_it_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    peer.fail = OSError("refused")
    backoff = Backoff(first=1, factor=2, maximum=10, jitter=0, attempts=3)
    async with Pool(peer.connect, max_size=3, backoff=backoff) as pool:
        with pytest.raises(PoolTimeoutError):
            await pool.get(timeout=1.5)
        # The pause after the second failure ends at 3 with nobody there.
        await trio.sleep_until(5)
        with pytest.raises(PoolConnectError, match="3 times in a row"):
            await pool.get()

        assert peer.dialled_at == [0, 1, 5, 6, 8]


async def test_without_a_limit_it_tries_until_it_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    peer.fail = OSError("refused")
    backoff = Backoff(first=1, factor=1, jitter=0, attempts=None)

    async def heal() -> None:
        await trio.sleep(99.5)
        peer.fail = None

    pool = Pool(peer.connect, max_size=3, backoff=backoff)
    async with pool, trio.open_nursery() as nursery:
        nursery.start_soon(heal)
        pool.put(await pool.get())

    assert trio.current_time() == 100
    assert peer.dials == 101


async def test_nobody_dials_in_a_pause_and_a_success_ends_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    peer.fail = OSError("refused")
    async with Pool(peer.connect, max_size=3, backoff=STEADY) as pool:
        with pytest.raises(PoolConnectError):
            await pool.get()
        peer.fail = None
        connection = await pool.get()

        assert trio.current_time() == 0.5
        assert pool.statistics().connect_failures == 1
        pool.put(connection)


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


# Check, reset, close


class Checked:
    """A check that remembers whom it looked at."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.bad: set[int] = set()
        self.takes = 0.0
        self.answer: object = None

    async def __call__(self, connection: FakeConnection) -> object:
        self.seen.append(connection.number)
        await trio.sleep(self.takes)
        if connection.number in self.bad:
            raise OSError("broken")
        return self.answer


async def test_a_connection_is_checked_unless_it_was_used_just_now(
    autojump_clock: trio.testing.MockClock,
) -> None:
    check = Checked()
    async with Pool(FakePeer().connect, max_size=1, check=check) as pool:
        for pause in (0.4, 0.5, 0.4):
            await hold(pool, 0)
            await trio.sleep(pause)
        await hold(pool, 0)

    assert check.seen == [0]


@pytest.mark.parametrize("how", ["raises", "says no"])
async def test_what_fails_its_check_is_closed_and_the_next_one_tried(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    check = Checked()
    async with Pool(FakePeer().connect, max_size=3, check=check) as pool:
        connections = [await pool.get() for _ in range(3)]
        for connection in connections:
            pool.put(connection)
        await trio.sleep(1)
        if how == "raises":
            check.bad = {2, 1}
        else:
            check.answer = False
        got = await pool.get()

        assert check.seen == [2, 1, 0]
        assert (got is connections[0]) == (how == "raises")
        assert connections[1].closed
        assert connections[2].closed
        pool.put(got)


async def test_a_check_that_hangs_gets_five_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    check = Checked()
    check.takes = math.inf
    async with Pool(FakePeer().connect, max_size=1, check=check) as pool:
        await hold(pool, 0)
        await trio.sleep(1)
        await hold(pool, 0)

        assert trio.current_time() == 6
        assert pool.statistics().reasons == {"check": 1}


async def test_cancelling_who_waits_for_a_check_harms_neither_check_nor_connection(
    autojump_clock: trio.testing.MockClock,
) -> None:
    check = Checked()
    async with Pool(FakePeer().connect, max_size=1, check=check) as pool:
        await hold(pool, 0)
        await trio.sleep(1)
        check.takes = 2
        with trio.move_on_after(1):
            await pool.get()
        await trio.sleep(1.2)

        assert pool.statistics().idle == 1
        assert pool.statistics().connected == 1


async def test_get_nowait_does_not_lend_what_it_would_have_to_check(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Pool(FakePeer().connect, max_size=1, check=Checked()) as pool:
        await hold(pool, 0)
        await trio.sleep(1)
        with pytest.raises(trio.WouldBlock):
            pool.get_nowait()
        await wait_all_tasks_blocked()

        pool.put(pool.get_nowait())


async def test_reset_is_not_the_business_of_who_gives_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    reset = Checked()
    reset.takes = 2
    async with Pool(FakePeer().connect, max_size=1, reset=reset) as pool:
        await hold(pool, 0)
        assert trio.current_time() == 0
        assert pool.statistics().resetting == 1
        await hold(pool, 0)

        assert trio.current_time() == 2
        assert pool.statistics().connected == 1


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_what_cannot_be_reset_is_closed(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    reset = Checked()
    reset.bad = {0}
    reset.takes = math.inf if how == "hangs" else 0
    async with Pool(FakePeer().connect, max_size=1, reset=reset) as pool:
        await hold(pool, 0)
        reset.takes = 0 if how == "fails" else math.inf
        async with pool.acquire() as connection:
            assert connection.number == 1
            assert trio.current_time() == (5 if how == "hangs" else 0)
        reset.takes = 0


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
