"""Peers that hang up at once or speak first, things that raise, and misuse told at its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
from trionet import (
    Backoff,
    KeyedPool,
    LeaseError,
    Pool,
    PoolClosedError,
    PoolConnectError,
    PoolFullError,
)

if TYPE_CHECKING:
    from trio.testing import MockClock


async def connect_to(_: object) -> FakeConnection:
    return await FakePeer().connect()


async def test_what_dies_unused_is_a_failed_dial_and_pauses_grow(autojump_clock: MockClock) -> None:
    peer = FakePeer()
    backoff = Backoff(first=1, factor=2, maximum=8, jitter=0)
    async with Pool(peer.connect, max_size=2, min_size=1, backoff=backoff) as pool:
        for _ in range(4):
            await wait_all_tasks_blocked()
            entry = next(iter(pool._lender.idle.values()))
            pool._lender.supply._hung_up(entry)
            await trio.sleep(pool._lender.supply.retry.resume_at - trio.current_time())
        await wait_all_tasks_blocked()

    assert peer.dialled_at == [0, 1, 3, 7, 15]


async def test_a_peer_that_speaks_first_can_be_pooled() -> None:
    peer = FakePeer()
    peer.on_connect = lambda connection: setattr(connection, "dead", True)
    async with Pool(peer.connect, max_size=1) as pool, pool.acquire() as connection:
        assert connection.number == 0


async def test_ready_ends_when_the_pool_is_drained_in_a_pause(autojump_clock: MockClock) -> None:
    peer = FakePeer()
    peer.fail = OSError("refused")
    backoff = Backoff(first=10, attempts=None)
    async with (
        Pool(peer.connect, max_size=1, min_size=1, backoff=backoff) as pool,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(pool.drain)
        with trio.fail_after(5), pytest.raises(PoolClosedError):
            await pool.ready()


async def test_nothing_is_dialled_before_the_block() -> None:
    pool = Pool(FakePeer().connect, max_size=4, min_size=2)

    pool.resize(5)
    pool.expire()
    with pytest.raises(RuntimeError, match="inside its block"):
        await pool.ready()

    assert pool.statistics().size == 0
    async with pool:
        await pool.ready()


async def test_refused_keys_are_forgotten() -> None:
    async with (
        KeyedPool(connect_to, max_total=1, max_per_key=1, max_waiting=1) as pool,
        trio.open_nursery() as nursery,
        pool.acquire("a"),
    ):
        nursery.start_soon(pool.acquire("w").__aenter__)
        await wait_all_tasks_blocked()
        for key in range(9):
            with pytest.raises(PoolFullError):
                await pool.acquire(key).__aenter__()
        assert pool.keys == ("a", "w")
        nursery.cancel_scope.cancel()


async def test_putting_twice_is_told_to_who_does_it() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        pool.put(connection)

        async def hold() -> None:
            async with pool.acquire():
                await told.wait()

        told = trio.Event()
        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        with pytest.raises(LeaseError, match="another task"):
            pool.put(connection)
        told.set()


async def test_what_was_expired_after_the_hand_over_is_not_lent() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        first = await pool.get()
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                async with pool.acquire() as second:
                    assert second is not first

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            pool.put(first)
            pool.expire()


async def test_a_property_that_raises_costs_a_connection_and_not_the_pool() -> None:
    closed = []

    class Odd:
        @property
        def closed(self) -> bool:
            raise RuntimeError("not ready")

        async def aclose(self) -> None:
            closed.append(self)
            await trio.lowlevel.checkpoint()

    async def connect() -> Odd:
        return Odd()

    async with Pool(connect, max_size=1) as pool:
        with pytest.raises(PoolConnectError, match="not ready"):
            await pool.get()
        assert len(closed) == 1
        assert pool.statistics().size == 0


async def test_a_repr_that_raises_costs_no_slot(autojump_clock: MockClock) -> None:
    class Odd(FakeConnection):
        def __repr__(self) -> str:
            raise RuntimeError("not ready")

    peer = FakePeer()

    async def connect() -> FakeConnection:
        return Odd(peer, (await peer.connect()).number)

    async with Pool(connect, max_size=1, min_size=1, backoff=Backoff(attempts=2)) as pool:
        await pool.ready()
        await wait_all_tasks_blocked()
        next(iter(pool._lender.idle.values())).resource.dead = True

        with trio.fail_after(5):
            async with pool.acquire() as connection:
                assert connection.number == 1


@pytest.mark.parametrize("how", ["lease", "put"])
async def test_a_property_that_raises_when_it_comes_back_closes_that_one(how: str) -> None:
    class Moody(FakeConnection):
        mood = 0

        @property
        def closed(self) -> bool:
            if self.mood == 1:
                self.mood = 0
                raise RuntimeError("not now")
            return self.mood == 2

        @closed.setter
        def closed(self, value: bool) -> None:
            self.mood = 2 if value else 0

    peer = FakePeer()

    async def moody() -> Moody:
        return Moody(peer, (await peer.connect()).number)

    async with Pool(moody, max_size=1) as pool:
        if how == "lease":
            async with pool.acquire() as first:
                first.mood = 1
        else:
            first = await pool.get()
            first.mood = 1
            pool.put(first)
        async with pool.acquire() as second:
            assert second is not first
        assert first.mood == 2
        assert pool.statistics().reasons == {"discarded": 1}
        assert pool.statistics().size == 1


async def test_slots_go_to_the_first_not_provided_for(autojump_clock: MockClock) -> None:
    served = []

    async def connect(key: str) -> FakeConnection:
        await trio.sleep(20 if key == "a" else 0.1)
        return await FakePeer().connect()

    async with (
        KeyedPool(connect, max_total=2, max_per_key=2, connect_timeout=None) as pool,
        trio.open_nursery() as nursery,
    ):

        async def use(key: str, name: str) -> None:
            async with pool.acquire(key):
                served.append(name)

        async with pool.acquire("c"), pool.acquire("c"):
            for key, name in (("a", "A1"), ("b", "B1"), ("a", "A2")):
                nursery.start_soon(use, key, name)
                await wait_all_tasks_blocked()

    assert served == ["B1", "A1", "A2"]


@pytest.mark.parametrize("name", ["idle_timeout", "lifetime"])
def test_no_time_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Pool(FakePeer().connect, max_size=1, **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_group_raised_in_the_block_leaves_as_itself(keyed: bool) -> None:
    class Own(ExceptionGroup[KeyError]):
        pass

    group = Own("mine", [KeyError("x")])
    pool: Pool[FakeConnection] | KeyedPool[object, FakeConnection] = (
        KeyedPool(connect_to, max_total=1, max_per_key=1)
        if keyed
        else Pool(FakePeer().connect, max_size=1)
    )
    with pytest.raises(Own) as caught:
        async with pool:
            raise group

    assert caught.value is group
