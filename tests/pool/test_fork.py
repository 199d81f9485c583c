"""In a forked child every connection is the parent's: nothing is lent, closed or waited for."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.pool.peer import FakeConnection, FakePeer
from trionet import KeyedPool, Pool, PoolClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")

# Seconds until a child that hangs is ended.
PATIENCE = 5


def fork() -> int:
    """Fork; the child dies by itself if it hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
    return child


def end_of(child: int) -> int:
    """Wait for a child; return its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def connect_to(_: str) -> FakeConnection:
    return await FakePeer().connect()


async def turned_away(attempt: Callable[[], Awaitable[object]]) -> bool:
    try:
        await attempt()
    except PoolClosedError:
        return True
    return False


async def test_every_pool_of_a_run_is_disowned() -> None:
    async with (
        Pool(FakePeer().connect, max_size=2) as one,
        Pool(FakePeer().connect, max_size=2) as two,
        KeyedPool(connect_to, max_total=4, max_per_key=2) as keyed,
    ):
        for pool in (one, two):
            pool.put(await pool.get())
        for key in ("a", "b"):
            async with keyed.acquire(key):
                pass

        child = fork()
        if child == 0:
            refused = [
                await turned_away(one.get),
                await turned_away(two.get),
                await turned_away(keyed.acquire("a").__aenter__),
                await turned_away(keyed.acquire("b").__aenter__),
                await turned_away(keyed.acquire("new").__aenter__),
            ]
            sizes = [pool.statistics().size for pool in (one, two, keyed)]
            os._exit(0 if all(refused) and sizes == [0, 0, 0] else 1)

        assert end_of(child) == 0
        assert one.statistics().idle == two.statistics().idle == 1
        assert keyed.statistics().idle == 2


@pytest.mark.parametrize("busy", ["idle", "dialling", "closing"])
async def test_a_child_leaves_the_block_although_the_parent_s_work_is_under_way(busy: str) -> None:
    peer = FakePeer()
    async with trio.open_nursery() as nursery:
        async with Pool(peer.connect, max_size=2) as pool:
            pool.put(await pool.get())
            if busy == "closing":
                peer.close_time = 0.1
                pool.expire()
            elif busy == "dialling":
                pool.expire()
                peer.connect_time = 0.1
                nursery.start_soon(turned_away, pool.get)
                await trio.sleep(0.01)
            child = fork()
        if child == 0:
            # Not to the end of the run: it would end the parent's too, which shares its epoll.
            os._exit(0)

        assert end_of(child) == 0


async def test_a_forked_child_has_no_part_in_the_parent_s_connections() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        lent = await pool.get()
        pool.put(await pool.get())
        child = fork()
        if child == 0:
            try:
                pool.put(lent)
                pool.get_nowait()
            except PoolClosedError:
                os._exit(0 if not pool.statistics().idle else 2)
            finally:
                os._exit(1)

        assert end_of(child) == 0
        assert pool.statistics().idle == 1
        pool.put(lent)
