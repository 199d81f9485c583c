"""The end of a pool, in all the ways it may come."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer, hold
from trionet import (
    Pool,
    PoolClosedError,
)

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


# Which of the two hears of the cancel first, the block or the task of the pool, is chance.
@pytest.mark.parametrize("_round", range(8))
async def test_cancelling_the_block_leaves_no_time_for_what_is_being_reset(
    _round: int, autojump_clock: trio.testing.MockClock
) -> None:
    peer = FakePeer(close_time=4)

    async def for_ever(_: FakeConnection) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with Pool(peer.connect, max_size=1, reset=for_ever) as pool:
            pool.put(await pool.get())
            await wait_all_tasks_blocked()
            scope.cancel()

    assert trio.current_time() == 0
    assert peer.made[0].forced
    assert not peer.open


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
