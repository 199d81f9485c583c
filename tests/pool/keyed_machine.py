"""The keyed pool under a machine: several keys, one limit, and everything done to it in any order.

What holds for a pool holds for each key, by the same numbers as in `tests.pool.machine`; and

16. Never more slots are taken than `max_total`, nor by one key than `max_per_key`; nor does any
    peer, or all of them together, see more.
17. While somebody waits who could use a slot, no slot is free, and nothing lies idle anywhere that
    is not being closed to make room.
18. Room is given to those who have waited longest among those who may use it: nobody younger is
    served while they go without.
19. What is closed to make room is what has been idle longest at another key, and no more is
    closed than those who wait need.
20. There are those keys that have a connection, somebody waiting, or a pause, and no others; what
    was done for the forgotten ones still counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from tests.pool.moves import Moves
from tests.pool.stage import (
    BACKOFF_FIRST,
    BACKOFF_MAXIMUM,
    CONNECT_TIMEOUT,
    Client,
    Connection,
    Dial,
    lent_by,
    look_at_states,
)
from trionet import Backoff, KeyedPool, PoolTimeoutError

if TYPE_CHECKING:
    from trionet import Lease

KEYS = "abc"
keys = st.sampled_from(KEYS)


@dataclass(frozen=True)
class Claim:
    """Somebody who waits, whom nothing but a new connection can serve, and who may have one."""

    number: int
    key: str


class KeyedPoolMachine(Moves):
    """See the note on top."""

    pool: KeyedPool[str, Connection]

    @initialize(
        max_total=st.integers(1, 4),
        max_per_key=st.integers(1, 3),
        max_waiting=st.sampled_from([None, None, 3]),
        idle_timeout=st.sampled_from([None, 10.0]),
        lifetime=st.sampled_from([None, 30.0]),
        attempts=st.sampled_from([1, 2, None]),
        check=st.booleans(),
        reset=st.booleans(),
        close_time=st.sampled_from([0.0, 0.0, 1.0]),
        end=st.sampled_from(["normal", "drain", "exception", "cancel"]),
    )
    def open(
        self,
        max_total: int,
        max_per_key: int,
        attempts: int | None,
        check: bool,
        reset: bool,
        close_time: float,
        end: str,
        **options: Any,
    ) -> None:
        """Make the pool and enter its block."""
        self.options = options
        self.max_total, self.max_per_key = max_total, max_per_key
        self.close_time = close_time
        self.end = end
        self.generations = dict.fromkeys(KEYS, 0)
        self.claims_before: list[Claim] = []
        self.pool = KeyedPool(
            self.connect,
            max_total=max_total,
            max_per_key=max_per_key,
            connect_timeout=CONNECT_TIMEOUT,
            backoff=Backoff(
                first=BACKOFF_FIRST, maximum=BACKOFF_MAXIMUM, jitter=0, attempts=attempts
            ),
            check=Connection.exchange if check else None,
            reset=Connection.exchange if reset else None,
            **options,
        )
        self.start()

    # What the stage asks for

    def about_to_move(self) -> None:
        """Remember how things are."""
        self.idle_before = self.idle()
        self.evicted = 0
        self.waiting_before = set(self.in_state("waiting"))

    def acquire_task(self, timeout: float | None = None, key: str = KEYS[0]) -> Client:
        """Start a client."""
        return super().acquire_task(timeout, key)

    def lease(self, client: Client) -> Lease[Connection]:
        """Return what a client is to enter."""
        return self.pool.acquire(client.key, timeout=client.timeout)

    def crowd(self) -> None:
        """Start more clients than can be served."""
        for number in range(self.max_total + 3):
            self.acquire_task(key=KEYS[number % len(KEYS)])

    async def connect(self, key: str) -> Connection:
        """Connect when the machine says so."""
        if trio.current_time() < self.lenders[key].supply.retry.resume_at and not self.jumping:
            self.wrong("4: dialling in a pause")
        self.count_open(1, key)
        return await self.answer_to(Dial(self.generations[key], key))

    def count_open(self, more: int, key: str) -> None:
        """See how many connections are open, as the peers do."""
        if self.seen(key) + more > self.max_per_key:
            self.wrong(f"16: {key} sees more than {self.max_per_key} connections")
        if sum(map(self.seen, KEYS)) + more > self.max_total:
            self.wrong(f"16: all peers see more than {self.max_total} connections")

    def seen(self, key: str) -> int:
        """Count the connections that the peer of ``key`` sees."""
        dials = sum(dial.key == key for dial in self.pending)
        return dials + sum(not c.gone and c.key == key for c in self.made)

    def gets(self, connection: Connection) -> None:
        """Look at what is lent, at the moment it is."""
        lifetime = self.options["lifetime"]
        if connection.generation != self.generations[connection.key]:
            self.wrong(f"9: {connection} is of a generation that has expired")
        if lifetime is not None and trio.current_time() > connection.born + lifetime:
            self.wrong(f"9: {connection} has outlived its lifetime")

    def closes(self, connection: Connection) -> None:
        """Take notice that the pool closes ``connection``, and look for a reason."""
        now = trio.current_time()
        idle, lifetime = self.options["idle_timeout"], self.options["lifetime"]
        reasons = (
            self.ending,
            connection.tainted,
            connection.dead,
            connection.failed,
            connection.generation != self.generations[connection.key],
            lifetime is not None and now >= connection.born + 0.95 * lifetime,
            idle is not None and now >= connection.idle_since + idle,
        )
        if any(reasons):
            return
        # But one more reason is left: to make room.
        waiting = self.waiting_before.union(self.in_state("waiting"))
        if not any(client.key != connection.key for client in waiting):
            self.wrong(f"19: {connection} is closed, and nobody else waits for room")
        older = [c for c in self.idle() if c.idle_since < connection.idle_since]
        if older and connection in self.idle_before and self.single and not self.jumping:
            self.wrong(f"19: {connection} is closed before {older}, idle for longer")
        self.evicted += connection in self.idle_before

    # Moves

    @precondition(lambda self: len(self.in_state("waiting")) < 7)
    @rule(key=keys, timeout=st.sampled_from([None, None, None, 3.0]))
    def acquire(self, key: str, timeout: float | None) -> None:
        """Somebody comes."""
        self.move(lambda: self.acquire_task(timeout, key))

    @precondition(lambda self: self.in_state("holding") and self.in_state("waiting"))
    @rule(which=st.integers(0, 9))
    def let_go_as_the_next_is_cancelled(self, which: int) -> None:
        """A body ends, and the one that gets its connection is cancelled at that moment."""
        holding, waiting = self.in_state("holding"), self.in_state("waiting")

        def action() -> None:
            holding[which % len(holding)].tell("release")
            waiting[0].scope.cancel()

        self.move(action, single=False)

    @rule(key=st.sampled_from([*KEYS, None]))
    def expire(self, key: str | None) -> None:
        """All connections of today are to go, or those of one key."""

        def action() -> None:
            for one in KEYS if key is None else key:
                self.generations[one] += 1
            if key is None:
                self.pool.expire()
            else:
                self.pool.expire(key)

        self.move(action, single=False)

    # What must hold whenever nothing moves

    @property
    def lenders(self) -> dict[str, Any]:
        """What there is of each key."""
        return self.pool._group.lenders

    def idle(self) -> list[Connection]:
        """List what lies idle, whatever the key."""
        return [e.resource for one in self.lenders.values() for e in one.idle.values()]

    def waiting_at(self, key: str) -> list[Client]:
        """List those who wait for ``key``, in the order in which they came."""
        waiting = [client for client in self.in_state("waiting") if client.key == key]
        return sorted(waiting, key=lambda client: client.number)

    def claims(self) -> list[Claim]:
        """List those who may have a slot and for whom nothing is on its way, the oldest first."""
        found = []
        for key, lender in self.lenders.items():
            now, waiting = lender.statistics(), self.waiting_at(key)
            paused = trio.current_time() < lender.supply.retry.resume_at
            unserved = len(waiting) - now.checking - now.resetting
            allowed = 1 if lender.supply.live else max(1, unserved)
            dials = min(unserved, allowed) - now.connecting
            wanted = 0 if paused else min(dials, self.max_per_key - now.size)
            covered = len(waiting) - unserved + now.connecting
            found += [
                Claim(client.number, key) for client in waiting[covered : covered + max(0, wanted)]
            ]
        return sorted(found, key=lambda claim: claim.number)

    def look(self) -> None:
        """Compare the pool with the model."""
        assert set(self.lenders) <= set(KEYS)
        for key, lender in self.lenders.items():
            look_at_states(lender)
            self.look_at_key(key, lender)
        self.look_at_total()
        self.look_at_cancels()
        if not self.ending:
            self.look_at_room()
        self.served_before = set(self.in_state("holding"))

    def look_at_key(self, key: str, lender: Any) -> None:
        """Invariants 3, 5, 7, 9, 14 and 16, at one key."""
        now, clock = self.pool.statistics(key), trio.current_time()
        waiting = self.waiting_at(key)
        assert now.waiting == len(waiting), "13: waiting"
        assert now.size == self.seen(key) <= self.max_per_key, "16: more than max_per_key"
        assert now.connecting == sum(dial.key == key for dial in self.pending), "5: connecting"
        assert now.size or waiting or lender.supply.retry.resting or self.ending, (
            "20: not forgotten"
        )
        holding = [client for client in self.in_state("holding") if client.key == key]
        if not self.ending:
            assert lent_by(lender) == {c.connection for c in holding}, "5: lent"
        assert all(c.key == key for c in lent_by(lender)), "6: lent to another key"
        if len(waiting) > now.checking + now.resetting:
            assert not now.idle, "3: somebody waits while a connection lies idle"
        for client in holding:
            if waiting and client not in self.served_before:
                assert client.number < waiting[0].number, "7: overtaken"
        idle_timeout, lifetime = self.options["idle_timeout"], self.options["lifetime"]
        for entry in lender.idle.values():
            connection = entry.resource
            assert not connection.closing, "9: what is closed lies idle"
            assert connection.generation == self.generations[key], "9: what has expired lies idle"
            assert not connection.tainted, "9: what went wrong lies idle"
            if lifetime is not None:
                assert clock < connection.born + lifetime, "14: beyond its lifetime"
            if idle_timeout is not None:
                assert clock < connection.idle_since + idle_timeout, "14: idle for too long"

    def look_at_total(self) -> None:
        """Invariants 10, 13, 16 and 20, over all keys."""
        now, budget = self.pool.statistics(), self.pool._group.budget
        each = [self.pool.statistics(key) for key in self.lenders]
        assert budget.taken == now.size == sum(one.size for one in each), "16: the budget"
        assert budget.closing == now.closing, "16: the budget, closing"
        assert now.size <= now.max_size == self.max_total, "16: more than max_total"
        assert now.connected == len(self.made), "10: connected"
        assert now.closed == sum(c.closing for c in self.made), "10: closed"
        assert now.acquired == self.acquired, "13: acquired"
        assert now.connect_failures == self.connect_failures, "13: connect_failures"
        timeouts = sum(isinstance(c.error, PoolTimeoutError) for c in self.clients)
        assert now.timed_out == timeouts, "13: timed_out"
        assert now.waiting == len(self.in_state("waiting")), "13: waiting"
        for client in self.in_state("waiting"):
            assert client.key in self.lenders, "20: forgotten while somebody waits"

    def look_at_room(self) -> None:
        """Invariants 17, 18 and 19."""
        claims, budget = self.claims(), self.pool._group.budget
        if self.evicted and self.single and not self.jumping:
            assert budget.closing <= len(claims), f"19: more is closed than {claims} need"
        if claims:
            assert budget.taken == self.max_total, f"17: a slot is free, and {claims} wait for it"
        if len(claims) > budget.closing:
            assert not self.idle(), f"17: {self.idle()} are idle, and {claims} wait for room"
        # Those for whom nothing is being closed have been passed over by nobody who came later.
        passed = [c for c in claims[budget.closing :] if c in self.claims_before]
        for client in self.in_state("holding"):
            if passed and self.single and not self.jumping and client not in self.served_before:
                assert client.number < passed[0].number, f"18: {client.number} before {passed}"
        self.claims_before = claims
