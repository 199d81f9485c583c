"""Lending: who gets what, when, and what misuse is told."""

from __future__ import annotations

import contextvars
import logging
import math
import os
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
from trionet import (
    Backoff,
    LeaseError,
    Pool,
    PoolClosedError,
    PoolConnectError,
    PoolError,
    PoolFullError,
    PoolTimeoutError,
)

STEADY = Backoff(first=0.5, maximum=2.0, jitter=0)


async def hold(pool: Pool[FakeConnection], seconds: float, log: list[Any] | None = None) -> None:
    """Acquire, and hold for some time."""
    async with pool.acquire() as connection:
        if log is not None:
            log.append((trio.current_time(), connection.number))
        await trio.sleep(seconds)


# The block


async def test_a_normal_end_gives_back_and_the_next_one_gets_the_same() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        async with pool.acquire() as first:
            pass
        async with pool.acquire() as second:
            pass

        assert second is first
        assert pool.statistics().idle == 1


@pytest.mark.parametrize("leave", ["exception", "cancel"])
async def test_what_an_exception_or_a_cancel_left_half_done_is_closed(leave: str) -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        with trio.CancelScope() as scope:
            try:
                async with pool.acquire() as first:
                    if leave == "cancel":
                        scope.cancel()
                    await trio.lowlevel.checkpoint()
                    raise KeyError
            except KeyError:
                assert leave == "exception"
        await wait_all_tasks_blocked()

        assert first.closed
        assert pool.statistics().reasons == {"discarded": 1}
        async with pool.acquire() as second:
            assert second is not first


async def test_leaving_the_block_is_no_checkpoint() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        with trio.CancelScope() as scope:
            async with pool.acquire():
                scope.cancel()
            left = True

        assert left
        assert pool.statistics().idle == 1


async def test_acquiring_is_a_checkpoint_whether_it_waits_or_not() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        for _ in range(2):
            with assert_checkpoints():
                pool.put(await pool.get())
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.get()

        assert scope.cancelled_caught
        assert pool.statistics().idle == 1


async def test_an_exception_in_the_pool_s_block_leaves_as_itself() -> None:
    peer = FakePeer()
    with pytest.raises(KeyError, match="mine"):
        async with Pool(peer.connect, max_size=1, min_size=1) as pool:
            await pool.ready()
            raise KeyError("mine")

    assert not peer.open


async def test_what_crashes_the_pool_leaves_as_itself() -> None:
    class Crash(BaseException):
        pass

    peer = FakePeer()
    peer.fail = Crash()
    with pytest.raises(Crash):
        async with Pool(peer.connect, max_size=1) as pool:
            await pool.get()


async def test_a_pool_is_open_only_inside_its_block_and_has_only_one() -> None:
    pool = Pool(FakePeer().connect, max_size=1)
    with pytest.raises(RuntimeError, match="inside its block"):
        await pool.get()
    async with pool:
        pass
    with pytest.raises(PoolClosedError):
        await pool.get()
    with pytest.raises(RuntimeError, match="second time"):
        await pool.__aenter__()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_size": 0}, ValueError),
        ({"max_size": True}, TypeError),
        ({"max_size": 2, "min_size": 3}, ValueError),
        ({"max_size": 2, "min_size": -1}, ValueError),
        ({"max_size": 2, "max_waiting": 0}, ValueError),
        ({"max_size": 2, "connect_timeout": -1}, ValueError),
        ({"max_size": 2, "idle_timeout": math.nan}, ValueError),
        ({"max_size": 2, "lifetime": "1"}, TypeError),
        ({"max_size": 2, "check_after": None}, TypeError),
        ({"max_size": 2, "check": 1}, TypeError),
        ({"max_size": 2, "backoff": 1}, TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    (name,) = [n for n in arguments if n != "max_size"] or ["max_size"]
    with pytest.raises(error, match=f"{name} must.*got {arguments[name]!r}"):
        Pool(FakePeer().connect, **arguments)


def test_connect_has_to_be_callable() -> None:
    with pytest.raises(TypeError, match=r"connect must be .* got None"):
        Pool(None, max_size=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_timeout_that_makes_no_sense_is_refused_before_anything_is_opened(
    timeout: float,
) -> None:
    peer = FakePeer()
    async with Pool(peer.connect, max_size=1) as pool:
        with pytest.raises(ValueError, match="timeout"):
            pool.acquire(timeout=timeout)

    assert not peer.dials


# The lease and its misuse


async def test_discarding_inside_the_block_closes_and_the_block_ends_quietly() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        async with pool.acquire() as connection:
            pool.discard(connection)
        lease = pool.acquire()
        async with lease as other:
            lease.discard()
            with pytest.raises(LeaseError):
                lease.discard()

        assert connection.closed
        assert other is not connection


async def test_putting_inside_the_block_is_giving_back_twice() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        with pytest.raises(LeaseError, match="before its block ended"):
            async with pool.acquire() as connection:
                pool.put(connection)

        assert pool.statistics().idle == 1


async def test_the_end_of_a_block_does_not_take_from_who_has_it_now() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        with pytest.raises(LeaseError):
            async with pool.acquire() as connection:
                pool.put(connection)
                again = await pool.get()

        assert again is connection
        assert pool.statistics().lent == 1
        pool.put(again)


async def test_a_lease_is_entered_once_and_knows_its_connection_only_inside() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        lease = pool.acquire()
        with pytest.raises(LeaseError, match="no connection"):
            _ = lease.resource
        async with lease as connection:
            assert lease.resource is connection
        with pytest.raises(LeaseError, match="no connection"):
            _ = lease.resource
        with pytest.raises(LeaseError, match="again"):
            await lease.__aenter__()


async def test_what_is_not_lent_cannot_be_given_back() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        connection = await pool.get()
        pool.put(connection)
        with pytest.raises(LeaseError, match="given back already"):
            pool.put(connection)
        with pytest.raises(LeaseError, match="given back already"):
            pool.discard(connection)
        with pytest.raises(LeaseError, match="not lent by this pool"):
            pool.put(FakeConnection(FakePeer(), 7))

        assert pool.statistics().size == 1


async def test_what_its_user_closed_is_not_kept() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        connection = await pool.get()
        connection.closed = True
        pool.put(connection)

        assert pool.statistics().idle == 0
        connection.closed = False


async def test_get_nowait_takes_what_is_idle_and_never_waits() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        with pytest.raises(trio.WouldBlock):
            pool.get_nowait()
        pool.put(await pool.get())

        connection = pool.get_nowait()

        with pytest.raises(trio.WouldBlock):
            pool.get_nowait()
        pool.put(connection)


# Waiting


async def test_waiters_are_served_in_order(autojump_clock: trio.testing.MockClock) -> None:
    order: list[int] = []

    async def wait(number: int) -> None:
        await trio.sleep(number / 100)
        async with pool.acquire():
            order.append(number)
            await trio.sleep(1)

    async with Pool(FakePeer().connect, max_size=2) as pool, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(wait, number)

    assert order == list(range(10))


async def test_a_cancel_that_comes_after_the_hand_over_loses_nothing() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        nursery.start_soon(hold, pool, math.inf)
        await wait_all_tasks_blocked()

        pool.put(connection)
        nursery.cancel_scope.cancel()

    assert pool.statistics().reasons["discarded"] == 1
    assert connection.closed


async def test_a_timeout_says_what_is_going_on(autojump_clock: trio.testing.MockClock) -> None:
    peer = FakePeer(connect_time=0.1)
    async with Pool(peer.connect, max_size=2, backoff=Backoff(attempts=None, jitter=0)) as pool:
        connection = await pool.get()
        peer.fail = OSError("refused")
        start = trio.current_time()
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.get(timeout=2)

        assert trio.current_time() - start == 2
        assert caught.value.__cause__ is peer.fail
        assert isinstance(caught.value, trio.TooSlowError)
        text = "within 2 s: 1 of 2 slots taken (0 idle, 1 lent, 0 connecting, 0 closing), 0 waiting"
        assert text in str(caught.value)
        assert "refused" in str(caught.value)
        assert pool.statistics().timed_out == 1
        assert pool.statistics().cancelled == 0
        pool.put(connection)
        pool.put(await pool.get(timeout=0))


async def test_more_than_max_waiting_are_turned_away() -> None:
    connect = FakePeer().connect
    async with Pool(connect, max_size=1, max_waiting=2) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        for _ in range(2):
            nursery.start_soon(hold, pool, 0)
        await wait_all_tasks_blocked()
        with pytest.raises(PoolFullError, match="2 tasks wait already; max_waiting is 2"):
            await pool.get()
        pool.put(connection)


async def test_a_task_that_waits_for_what_it_holds_itself_is_warned_of(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        for _ in range(2):
            async with pool.acquire():
                with pytest.raises(PoolTimeoutError):
                    await pool.get(timeout=1)

    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "none will ever be given back" in caplog.text


async def test_a_busy_pool_is_not_mistaken_for_a_deadlock(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hold, pool, 1)

    assert not caplog.records


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


# The end


async def test_a_normal_end_waits_for_what_is_lent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()
    async with trio.open_nursery() as nursery:
        async with Pool(peer.connect, max_size=2) as pool:
            await hold(pool, 0)
            nursery.start_soon(hold, pool, 7)
            await wait_all_tasks_blocked()
        assert trio.current_time() == 7

    assert not peer.open
    assert not any(connection.forced for connection in peer.made)


async def test_drain_tells_waiters_and_newcomers_now_and_ends_with_the_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refused: list[float] = []

    async def wait() -> None:
        with pytest.raises(PoolClosedError) as caught:
            await pool.get()
        assert isinstance(caught.value, trio.ClosedResourceError)
        refused.append(trio.current_time())

    peer = FakePeer()
    async with Pool(peer.connect, max_size=1) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await pool.drain(3)
        await wait()

        assert refused == [0, 3]
        assert connection.forced
        with pytest.raises(PoolClosedError):
            pool.get_nowait()
        # Its holder has done nothing wrong.
        pool.put(connection)


async def test_a_second_drain_may_shorten_the_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        nursery.start_soon(pool.drain, 100)
        await trio.sleep(1)
        await pool.drain(1)
        await wait_all_tasks_blocked()

        assert not nursery.child_tasks
        assert trio.current_time() == 2
        pool.discard(connection)


async def test_cancelling_the_block_closes_everything_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(close_time=4)
    with trio.move_on_after(2):
        async with Pool(peer.connect, max_size=3) as pool:
            lent, idle = await pool.get(), await pool.get()
            pool.put(idle)
            await trio.sleep_forever()

    assert trio.current_time() == 2
    assert lent.forced
    assert idle.forced
    assert not peer.open
    pool.put(lent)


async def test_cancelling_a_normal_end_that_waits_is_not_swallowed(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    peer = FakePeer()
    went_on = False
    with trio.move_on_after(2) as scope:
        async with Pool(peer.connect, max_size=3) as pool:
            lent = await pool.get()
        went_on = True

    assert scope.cancelled_caught
    assert not went_on
    assert lent.forced
    assert not peer.open


async def test_what_the_body_raised_outranks_a_cancel_of_the_work_after_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(close_time=4)
    with trio.move_on_after(2), pytest.raises(KeyError):
        async with Pool(peer.connect, max_size=3) as pool:
            pool.put(await pool.get())
            raise KeyError

    assert trio.current_time() == 2
    assert peer.made[0].forced


async def test_an_exception_closes_what_is_lent_at_once_and_what_is_idle_properly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(close_time=4)
    with pytest.raises(KeyError):
        async with Pool(peer.connect, max_size=3) as pool:
            lent, idle = await pool.get(), await pool.get()
            pool.put(idle)
            raise KeyError

    assert trio.current_time() == 4
    assert lent.forced
    assert not idle.forced


async def test_a_dial_that_is_under_way_at_the_end_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer(connect_time=8)
    async with Pool(peer.connect, max_size=3) as pool:
        with trio.move_on_after(1):
            await pool.get()

    assert trio.current_time() == 1
    assert not peer.open


async def test_what_a_dial_brings_after_the_end_is_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = FakePeer()

    async def connect() -> FakeConnection:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
            connection = await peer.connect()
        # Outside the shield a cancel may be due; there is nothing left to wait for.
        return connection  # noqa: RET504

    async with Pool(connect, max_size=3) as pool:
        with trio.move_on_after(1):
            await pool.get()

    assert trio.current_time() == 2
    assert peer.made[0].closed


# Reports


async def test_what_was_never_given_back_is_reported_with_where_it_was_acquired(
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pool, "report_leaks", True)
    async with Pool(FakePeer().connect, max_size=2) as pool:
        await pool.get()
        connection = await pool.get()
        pool.put(connection)
        assert pool.get_nowait() is connection
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.get(timeout=1)
        await pool.drain(0)

    assert len(caplog.records) == 2
    assert caplog.text.count("test_what_was_never_given_back") == 2
    assert len(caught.value.__notes__) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
async def test_a_forked_child_has_no_part_in_the_parent_s_connections() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        lent = await pool.get()
        pool.put(await pool.get())
        child = os.fork()
        if child == 0:
            try:
                pool.put(lent)
                pool.get_nowait()
            except PoolClosedError:
                os._exit(0 if not pool.statistics().idle else 2)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert pool.statistics().idle == 1
        pool.put(lent)


def test_the_errors_are_what_their_handlers_expect() -> None:
    for error in (PoolClosedError, PoolFullError, PoolTimeoutError, PoolConnectError):
        assert issubclass(error, PoolError)
    assert issubclass(LeaseError, RuntimeError)
    assert not issubclass(LeaseError, PoolError)


async def test_its_repr_says_what_matters() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        lease = pool.acquire()
        assert repr(lease) == "<Lease not entered>"
        async with lease:
            assert repr(pool) == "<Pool: 1 of 2 (0 idle, 1 lent), 0 waiting>"
            assert repr(lease) == "<Lease of <connection 0>>"
        assert repr(lease) == "<Lease given back>"
    assert repr(pool) == "<Pool closed: 0 of 2 (0 idle, 0 lent), 0 waiting>"


def test_a_pause_never_overflows_and_stays_within_its_jitter() -> None:
    backoff = Backoff(first=0.05, maximum=5, jitter=0.1)
    delays = [partial(backoff.delay, failures)() for failures in (1, 2, 10, 10_000)]

    assert delays == [pytest.approx(ideal, rel=0.1001) for ideal in (0.05, 0.1, 5, 5)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": -1},
        {"factor": 0.5},
        {"maximum": math.inf},
        {"jitter": 2},
        {"attempts": 0},
        {"first": math.nan},
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Backoff.{next(iter(wrong))} must"):
        Backoff(**wrong)
