"""The queue by itself, and what a pool's waiters see of it at its edges."""

from __future__ import annotations

import pytest
import trio
from trio.lowlevel import current_task
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
from trionet import Pool, PoolConnectError, PoolTimeoutError
from trionet._pool.waiters import WaitQueue


@pytest.mark.parametrize("how", ["value", "error"])
async def test_what_comes_before_the_wait_begins_outruns_a_cancel(how: str) -> None:
    queue: WaitQueue[str] = WaitQueue()
    task = current_task()
    with trio.CancelScope() as scope:
        queue.join(task, "anything")
        if how == "value":
            queue.hand_over(task, 7)
        else:
            queue.fail(task, OSError("none"))
        scope.cancel()
        if how == "value":
            assert await queue.wait(task) == 7
        else:
            with pytest.raises(OSError, match="none"):
                await queue.wait(task)
        await trio.lowlevel.checkpoint()

    assert scope.cancelled_caught
    assert not queue.gave_up


async def test_those_whose_turn_it_was_come_back_in_the_order_in_which_they_came() -> None:
    served: list[int] = []
    queue: WaitQueue[int] = WaitQueue(turn=lambda number: number)

    async def wait(number: int, first: bool) -> None:
        task = current_task()
        queue.join(task, number, first=first)
        await queue.wait(task)
        served.append(number)

    async with trio.open_nursery() as nursery:
        for number, first in ((5, False), (3, True), (1, True), (4, True), (2, True)):
            nursery.start_soon(wait, number, first)
            await wait_all_tasks_blocked()
        while queue:
            queue.hand_over(queue.oldest, None)
            await wait_all_tasks_blocked()

    assert served == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("_round", range(6))
async def test_what_expired_on_its_way_costs_nobody_their_place(
    _round: int, autojump_clock: MockClock
) -> None:
    peer = FakePeer()
    first_served: dict[int, int] = {}

    async def use(number: int) -> None:
        async with pool.acquire() as connection:
            first_served.setdefault(connection.number, number)
            await trio.sleep(1)

    async with Pool(peer.connect, max_size=3) as pool:
        lent = [await pool.get() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(use, number)
                await wait_all_tasks_blocked()
            for connection in lent:
                pool.put(connection)
            # Three tasks have something, and none of them has run yet.
            pool.expire()

    assert first_served == {3: 0, 4: 1, 5: 2}


async def test_a_timeout_is_not_begun_again_for_what_died_on_its_way(
    autojump_clock: MockClock,
) -> None:
    peer = FakePeer()

    async def wait() -> None:
        with pytest.raises(PoolTimeoutError):
            await pool.get(timeout=10)
        assert trio.current_time() == 10

    async with Pool(peer.connect, max_size=1) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        nursery.start_soon(wait)
        await trio.sleep(9)
        peer.connect_time = 1000
        pool.put(connection)
        pool.expire()
        await trio.sleep(2)
        await pool.drain(0)


# A cancel comes before or after the waiter's turn, by chance.
@pytest.mark.parametrize("_round", range(8))
async def test_a_newcomer_may_hear_of_a_failure_before_it_waits(
    _round: int, autojump_clock: MockClock
) -> None:
    peer = FakePeer()
    scope, about_to_wait = trio.CancelScope(), trio.Event()
    told: list[str] = []

    async def check(_: FakeConnection) -> None:
        await trio.sleep(1)

    async def wait() -> None:
        with pytest.raises(PoolConnectError, match="hung up before any use"):
            await pool.get()
        told.append("first")

    async def come() -> None:
        with scope:
            about_to_wait.set()
            with pytest.raises(PoolConnectError, match="hung up before any use"):
                await pool.get()
            told.append("second")

    async def cancel() -> None:
        await about_to_wait.wait()
        scope.cancel()

    async with Pool(peer.connect, max_size=3, min_size=3, check=check, check_after=0) as pool:
        await pool.ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(cancel)
            await wait_all_tasks_blocked()
            peer.made[0].dead = peer.made[1].dead = True
            # Finds both dead, which are dials that failed: one for each of the two.
            nursery.start_soon(come)

    assert sorted(told) == ["first", "second"]
