"""Lending: who gets what, when, and what misuse is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer, hold
from trionet import (
    LeaseError,
    Pool,
    PoolClosedError,
    PoolFullError,
)

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


async def test_its_repr_says_what_matters() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        lease = pool.acquire()
        assert repr(lease) == "<Lease not entered>"
        async with lease:
            assert repr(pool) == "<Pool: 1 of 2 (0 idle, 1 lent), 0 waiting>"
            assert repr(lease) == "<Lease of <connection 0>>"
        assert repr(lease) == "<Lease given back>"
    assert repr(pool) == "<Pool closed: 0 of 2 (0 idle, 0 lent), 0 waiting>"
