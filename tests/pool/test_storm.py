"""A storm of cancellations at random moments; the benchmark has a longer one."""

from __future__ import annotations

import random

import trio
from trio.testing import MockClock

from tests.pool.peer import FakeConnection, FakePeer
from trionet import Backoff, Pool

CANCELLATIONS = 20_000
CREW = 20
SIZE = 4


def test_a_cancel_storm_leaks_nothing_and_everybody_is_served_after_it() -> None:
    trio.run(storm, clock=MockClock(autojump_threshold=0))


async def storm() -> None:
    chance = random.Random(20_000)
    peer = FakePeer(connect_time=0.01)
    pool = Pool(peer.connect, max_size=SIZE, backoff=Backoff(attempts=None))
    cancelled = 0

    async def suffer() -> None:
        nonlocal cancelled
        while cancelled < CANCELLATIONS:
            with trio.move_on_after(chance.choice([0, 0.001, 0.005, 0.02, 0.1])) as scope:
                async with pool.acquire():
                    await trio.sleep(chance.choice([0, 0.001, 0.01]))
            cancelled += scope.cancelled_caught

    async with pool:
        async with trio.open_nursery() as nursery:
            for _ in range(CREW):
                nursery.start_soon(suffer)
        await trio.sleep(1)

        now = pool.statistics()
        assert cancelled >= CANCELLATIONS
        assert now.lent == now.waiting == now.connecting == now.closing == 0
        assert now.size == now.idle == len(peer.open)
        assert peer.most <= SIZE
        await everybody_is_served(pool)
    assert not peer.open
    assert all(connection.closed for connection in peer.made)


async def everybody_is_served(pool: Pool[FakeConnection]) -> None:
    """All slots can be had at once, and those who wait for one get it."""

    async def use() -> None:
        async with pool.acquire(timeout=10):
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        for _ in range(3 * SIZE):
            nursery.start_soon(use)
        await trio.sleep(0.05)
        assert pool.statistics().lent == SIZE
