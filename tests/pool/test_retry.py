"""Dials that fail: who is told, when it is tried again, and how pauses grow."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import trio

from tests.pool.peer import FakePeer
from trionet import (
    Backoff,
    Pool,
    PoolConnectError,
    PoolTimeoutError,
)

STEADY = Backoff(first=0.5, maximum=2.0, jitter=0)


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
