"""Several peers within one limit: who gets the room, and whose connection makes it."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
from trionet import (
    Backoff,
    KeyedPool,
    LeaseError,
    Pool,
    PoolClosedError,
    PoolConnectError,
    PoolFullError,
    PoolTimeoutError,
)
from trionet._pool.lender import Lender


class Peers:
    """A fake peer for each key, and what they see together."""

    def __init__(self, **options: float) -> None:
        self.peers: defaultdict[str, FakePeer] = defaultdict(partial(FakePeer, **options))
        self.most = 0

    async def connect(self, key: str) -> FakeConnection:
        """Connect to the peer of ``key``."""
        self.peers[key].on_connect = self.count
        return await self.peers[key].connect()

    def count(self, _: object) -> None:
        """See how many connections all peers have at once."""
        self.most = max(self.most, self.open)

    @property
    def open(self) -> int:
        """How many connections all peers have now."""
        return sum(len(peer.open) for peer in self.peers.values())


async def hold(
    pool: KeyedPool[str, FakeConnection], key: str, seconds: float, log: list[Any] | None = None
) -> None:
    """Acquire, and hold for some time."""
    async with pool.acquire(key) as connection:
        if log is not None:
            log.append((key, trio.current_time()))
        await trio.sleep(seconds)
    assert connection.peer.made


async def test_each_key_has_connections_of_its_own() -> None:
    peers = Peers()
    async with KeyedPool(peers.connect, max_total=4, max_per_key=2) as pool:
        async with pool.acquire("a") as first, pool.acquire("b") as second:
            assert first.peer is peers.peers["a"]
            assert second.peer is peers.peers["b"]
        async with pool.acquire("a") as again:
            assert again is first
        assert pool.keys == ("a", "b")
        assert pool.statistics("a").acquired == 2
        assert pool.statistics().acquired == 3
        assert pool.statistics().idle == 2
        assert repr(pool) == "<KeyedPool: 2 of 4 for 2 keys, 0 waiting>"


async def test_no_key_gets_more_than_its_share(autojump_clock: MockClock) -> None:
    peers = Peers()
    pool = KeyedPool(peers.connect, max_total=10, max_per_key=2)
    async with pool, trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(hold, pool, "a", 1)

    assert trio.current_time() == 3
    assert peers.peers["a"].most == 2


async def test_room_is_made_by_closing_what_was_idle_longest_at_another_key(
    autojump_clock: MockClock,
) -> None:
    peers = Peers()
    async with KeyedPool(peers.connect, max_total=3, max_per_key=2) as pool:
        for key in ("a", "b", "c"):
            await hold(pool, key, 1)
        await hold(pool, "a", 1)
        await hold(pool, "d", 1)

        assert set(pool.keys) == {"a", "c", "d"}
        assert peers.peers["b"].made[0].closed
        assert pool.statistics().reasons == {"evicted": 1}
        assert peers.most == 3


async def test_room_is_there_only_once_the_other_connection_is_closed(
    autojump_clock: MockClock,
) -> None:
    peers = Peers(close_time=3)
    async with KeyedPool(peers.connect, max_total=1, max_per_key=1) as pool:
        await hold(pool, "a", 1)
        await hold(pool, "b", 1)

        assert trio.current_time() == 5
        assert peers.most == 1


async def test_what_comes_free_goes_to_who_has_waited_longest_whatever_the_key(
    autojump_clock: MockClock,
) -> None:
    log: list[Any] = []
    pool = KeyedPool(Peers().connect, max_total=1, max_per_key=1)
    async with pool, trio.open_nursery() as nursery:
        for number, key in enumerate("abacab"):
            nursery.start_soon(hold, pool, key, 1, log)
            await trio.sleep(0.1)
            assert pool.statistics().waiting == number

    assert [key for key, _ in log] == list("abacab")
    assert [round(time) for _, time in log] == [0, 1, 2, 3, 4, 5]


async def test_who_could_not_use_the_room_does_not_keep_it_from_others(
    autojump_clock: MockClock,
) -> None:
    log: list[Any] = []
    pool = KeyedPool(Peers().connect, max_total=3, max_per_key=1)
    async with pool, trio.open_nursery() as nursery:
        nursery.start_soon(hold, pool, "a", 5, log)
        await wait_all_tasks_blocked()
        nursery.start_soon(hold, pool, "a", 1, log)
        await wait_all_tasks_blocked()
        nursery.start_soon(hold, pool, "b", 1, log)

    assert log == [("a", 0), ("b", 0), ("a", 5)]


async def test_a_connection_is_not_closed_for_somebody_whose_dial_is_under_way(
    autojump_clock: MockClock,
) -> None:
    peers = Peers(connect_time=5)
    pool = KeyedPool(peers.connect, max_total=2, max_per_key=2)
    async with pool, trio.open_nursery() as nursery:
        await hold(pool, "a", 0)
        nursery.start_soon(hold, pool, "b", 0)
        await wait_all_tasks_blocked()
        await hold(pool, "a", 0)

        assert pool.statistics("a").idle == 1


async def test_a_cancelled_waiter_gives_its_claim_up(autojump_clock: MockClock) -> None:
    peers = Peers()
    pool = KeyedPool(peers.connect, max_total=1, max_per_key=1)
    async with pool:
        async with pool.acquire("a") as connection:
            with trio.move_on_after(1):
                await hold(pool, "b", 0)
            assert pool.keys == ("a",)
        assert not connection.closed
        await hold(pool, "a", 0)

        assert pool.statistics().connected == 1
        assert pool.statistics().cancelled == 1


async def test_keys_that_are_not_used_are_forgotten_but_counted(
    autojump_clock: MockClock,
) -> None:
    async with KeyedPool(Peers().connect, max_total=9, max_per_key=1, idle_timeout=10) as pool:
        for key in ("a", "b"):
            await hold(pool, key, 0)
        lease = pool.acquire("a")
        await trio.sleep(11)

        assert not pool.keys
        assert pool.statistics().acquired == 2
        assert pool.statistics().reasons == {"idle": 2}
        assert pool.statistics("a").acquired == 0
        # A lease made before works all the same, and only once.
        async with lease:
            assert pool.keys == ("a",)
            with pytest.raises(LeaseError):
                await lease.__aenter__()


async def test_a_timeout_that_leaves_its_key_to_be_forgotten_still_counts(
    autojump_clock: MockClock,
) -> None:
    async with KeyedPool(Peers().connect, max_total=1, max_per_key=1) as pool:
        async with pool.acquire("a"):
            with pytest.raises(PoolTimeoutError):
                await pool.acquire("b", timeout=1).__aenter__()

        assert pool.keys == ("a",)
        assert pool.statistics().timed_out == 1
        assert pool.statistics().cancelled == 0


async def test_two_leases_of_a_forgotten_key_share_its_limit(autojump_clock: MockClock) -> None:
    async with KeyedPool(Peers().connect, max_total=9, max_per_key=1) as pool:
        first, second = pool.acquire("a"), pool.acquire("a", timeout=1)
        assert not pool.keys
        async with first:
            with pytest.raises(PoolTimeoutError, match=r"1 of 1 slots.*1 of 9 for all keys"):
                await second.__aenter__()


async def test_a_crowd_of_keys_is_not_looked_through_whenever_one_comes_free(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = Lender.wanted_dials

    def count(lender: Lender[Any]) -> int:
        nonlocal looks
        looks += 1
        return look(lender)

    served: list[Any] = []
    async with (
        KeyedPool(Peers().connect, max_total=1, max_per_key=1) as pool,
        trio.open_nursery() as nursery,
    ):
        async with pool.acquire("first"):
            for number in range(300):
                nursery.start_soon(hold, pool, str(number), 1, served)
                await wait_all_tasks_blocked()
            monkeypatch.setattr(Lender, "wanted_dials", count)
        await wait_all_tasks_blocked()
        assert [key for key, _ in served] == ["0"]
        assert looks < 20

    assert [key for key, _ in served] == [str(number) for number in range(300)]


async def test_keys_that_were_given_up_are_forgotten_by_the_group_too(
    autojump_clock: MockClock,
) -> None:
    async with KeyedPool(Peers().connect, max_total=1, max_per_key=1) as pool:
        async with pool.acquire("held"), trio.open_nursery() as nursery:
            nursery.start_soon(hold, pool, "waiting", 1)
            await wait_all_tasks_blocked()
            for number in range(1000):
                with trio.move_on_after(1):
                    await hold(pool, str(number), 1)

            assert pool.keys == ("held", "waiting")
            assert len(pool._group._hungry) < 100
            nursery.cancel_scope.cancel()
        assert pool.statistics().cancelled == 1001


async def test_each_key_has_a_pause_of_its_own(autojump_clock: MockClock) -> None:
    peers = Peers()
    peers.peers["bad"].fail = OSError("refused")
    backoff = Backoff(first=1, factor=1, jitter=0)
    async with KeyedPool(peers.connect, max_total=2, max_per_key=1, backoff=backoff) as pool:
        for _ in range(3):
            with pytest.raises(PoolConnectError):
                await hold(pool, "bad", 0)
            await hold(pool, "good", 0)
            assert "bad" in pool.keys

        assert peers.peers["bad"].dialled_at == [0, 1, 2]
        await trio.sleep(2)
        assert pool.keys == ("good",)


async def test_max_waiting_counts_all_keys(autojump_clock: MockClock) -> None:
    pool = KeyedPool(Peers().connect, max_total=1, max_per_key=1, max_waiting=2)
    async with pool, trio.open_nursery() as nursery:
        for key in ("a", "b", "c"):
            nursery.start_soon(hold, pool, key, 1)
            await wait_all_tasks_blocked()
        with pytest.raises(PoolFullError, match="2 tasks wait"):
            await hold(pool, "d", 0)


@pytest.mark.parametrize(("total", "per_key"), [(2, 2), (9, 1)])
async def test_tasks_that_wait_in_each_other_s_way_are_warned_of(
    total: int, per_key: int, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    # With room for two, each waits for the other's; with one for each key, for its own.
    pool = KeyedPool(Peers().connect, max_total=total, max_per_key=per_key)

    async def nest(first: str, second: str) -> None:
        async with pool.acquire(first):
            await trio.sleep(1)
            with pytest.raises(PoolTimeoutError):
                await pool.acquire(second, timeout=5).__aenter__()

    async with pool, trio.open_nursery() as nursery:
        if total == 2:
            nursery.start_soon(nest, "a", "b")
            nursery.start_soon(nest, "b", "a")
        else:
            nursery.start_soon(nest, "a", "a")

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"all {min(total, per_key)} connections are lent to tasks that wait" in caplog.text


async def test_keys_that_are_busy_are_not_mistaken_for_a_deadlock(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    pool = KeyedPool(Peers().connect, max_total=2, max_per_key=2)
    async with pool, trio.open_nursery() as nursery:
        for key in "abcabc":
            nursery.start_soon(hold, pool, key, 1)

    assert not caplog.records


async def test_a_leak_is_reported_whatever_its_key(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "report_leaks", True)
    async with KeyedPool(Peers().connect, max_total=2, max_per_key=2) as pool:
        for key in ("a", "b"):
            await pool.acquire(key).__aenter__()
        await pool.drain(0)

    assert caplog.text.count("was never given back") == 2
    assert caplog.text.count("await pool.acquire(key).__aenter__()") == 2


async def test_expire_is_for_one_key_or_for_all(autojump_clock: MockClock) -> None:
    async with KeyedPool(Peers().connect, max_total=9, max_per_key=1) as pool:
        for key in ("a", "b", "c"):
            await hold(pool, key, 0)
        pool.expire("a")
        pool.expire("unknown")
        await wait_all_tasks_blocked()
        assert pool.keys == ("b", "c")
        pool.expire()
        await wait_all_tasks_blocked()
        assert not pool.keys


async def test_the_end_is_the_end_for_all_keys(autojump_clock: MockClock) -> None:
    peers = Peers()
    refused: list[str] = []

    async def wait(key: str) -> None:
        with pytest.raises(PoolClosedError):
            await hold(pool, key, 0)
        refused.append(key)

    async with trio.open_nursery() as nursery:
        async with KeyedPool(peers.connect, max_total=2, max_per_key=1) as pool:
            nursery.start_soon(hold, pool, "a", 3)
            nursery.start_soon(hold, pool, "b", 4)
            await wait_all_tasks_blocked()
            for key in ("a", "b", "c"):
                nursery.start_soon(wait, key)
            await wait_all_tasks_blocked()
        assert trio.current_time() == 4
        assert sorted(refused) == ["a", "b", "c"]
        await wait("d")
    assert not peers.open


async def test_an_exception_in_the_block_leaves_as_itself() -> None:
    with pytest.raises(KeyError):
        async with KeyedPool(Peers().connect, max_total=2, max_per_key=1):
            raise KeyError


async def test_before_its_block_nothing_is_lent() -> None:
    pool = KeyedPool(Peers().connect, max_total=2, max_per_key=1)
    with pytest.raises(RuntimeError, match="inside its block"):
        await hold(pool, "a", 0)


@pytest.mark.parametrize("name", ["max_total", "max_per_key"])
def test_limits_that_make_no_sense_are_refused(name: str) -> None:
    arguments: dict[str, Any] = {"max_total": 1, "max_per_key": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        KeyedPool(Peers().connect, **arguments)


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_over_many_keys_leaks_nothing_and_starves_nobody(seed: int) -> None:
    trio.run(storm, random.Random(seed), clock=MockClock(autojump_threshold=0))


async def storm(chance: random.Random) -> None:
    """Use random keys for random times, cancel at random; then nobody is left waiting."""
    peers = Peers(connect_time=0.01, close_time=0.01)
    keys = [f"key {number}" for number in range(chance.randint(2, 12))]
    total, per_key = chance.randint(1, 6), chance.randint(1, 4)
    pool = KeyedPool(
        peers.connect,
        max_total=total,
        max_per_key=per_key,
        idle_timeout=chance.choice([None, 0.05]),
        backoff=Backoff(attempts=None, first=0.01),
    )
    done: Counter[str] = Counter()

    async def user(patience: float) -> None:
        for _ in range(30):
            key = chance.choice(keys)
            with trio.move_on_after(patience):
                async with pool.acquire(key) as connection:
                    connection.holders += 1
                    assert connection.holders == 1
                    assert connection.peer is peers.peers[key]
                    try:
                        await trio.sleep(chance.choice([0, 0.001, 0.02]))
                    finally:
                        connection.holders -= 1
                done[key] += 1

    async with pool:
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    # Half of them wait as long as it takes: if one starves, so does the test.
                    nursery.start_soon(user, chance.choice([0.03, 10_000]))
        await trio.sleep(1)
        now = pool.statistics()
        assert now.lent == now.waiting == now.connecting == now.closing == 0
        assert now.size == now.idle == peers.open
        assert now.connected - now.closed == now.size
        assert set(pool.keys) == {key for key in keys if pool.statistics(key).idle}
        assert done
    assert peers.open == 0
    assert peers.most <= total
    assert all(peer.most <= per_key for peer in peers.peers.values())
