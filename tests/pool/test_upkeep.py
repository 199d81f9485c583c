"""`check` before a connection is lent, and `reset` after."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer, hold
from trionet import (
    Pool,
)


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
