"""The pool under a machine that does everything to it that can be done, in any order.

After each move of the `Stage`, `PoolMachine` compares the pool with a model. The invariants are
numbered; `tests/pool/mutants.py` breaks them one by one.

 1. Never more slots taken than `max_size`, or ever fewer after a resize.
 2. The peer never sees more connections than that either.
 3. Nobody waits while a connection lies idle, unless one is being checked for them.
 4. While somebody waits for whom nothing is on its way, a dial runs, or a pause, or all is taken.
 5. Every connection is in exactly one state, and the counts add up.
 6. A connection has one holder at most.
 7. Waiters are served in the order in which they came.
 8. Of the idle connections the one used last is lent first.
 9. None is lent whose last lease went wrong, that has expired, or that is known to be dead.
10. What was connected is open or was closed, and was closed once.
11. A cancel is never swallowed.
12. After the end nothing is open, nobody waits, no task is left, and acquiring says so.
13. The statistics say what the model says.
14. Nothing idle stays longer than it may, and nothing is closed before its time.
15. If the peer answers and holders give back, every waiter gets a connection.
"""

from __future__ import annotations

import math
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
from trionet import Backoff, LeaseError, Pool, PoolTimeoutError

if TYPE_CHECKING:
    from trionet import Lease
    from trionet._pool.supply import Supply


class PoolMachine(Moves):
    """See the note on top."""

    pool: Pool[Connection]
    pause_seen: float

    def about_to_move(self) -> None:
        """Remember how things are."""
        self.size_before = self.supply.size
        self.idle_before = self.idle() if self.single else []

    def lease(self, client: Client) -> Lease[Connection]:
        """Return what a client is to enter."""
        return self.pool.acquire(timeout=client.timeout)

    @property
    def resume_at(self) -> float:
        """When the pause ends, by the pool's word, as long as that makes sense.

        How a pause grows is tested elsewhere: a connection that dies unused is a failure too.
        """
        at = self.supply.retry.resume_at
        if at != self.pause_seen and at < math.inf:
            assert at <= trio.current_time() + BACKOFF_MAXIMUM, "4: a pause too long"
            self.pause_seen = at
        return self.pause_seen

    # The peer

    async def connect(self) -> Connection:
        """Connect when the machine says so."""
        now = trio.current_time()
        if self.pending and self.supply.live and self.single:
            self.wrong("4: a second dial while connections are about")
        # While time jumps, the end of one pause and the failure that starts the next may coincide.
        if now < self.resume_at and not self.jumping:
            self.wrong(f"4: dialling at {now}, in a pause until {self.resume_at}")
        self.count_open(1)
        connection = await self.answer_to(Dial(self.generation))
        self.count_open(0)
        return connection

    def count_open(self, more: int) -> None:
        """See how many connections are open, as the peer does."""
        seen = len(self.pending) + sum(not c.gone for c in self.made) + more
        if seen > self.most_allowed:
            self.wrong(f"2: the peer sees {seen} connections, {self.most_allowed} are allowed")

    def closes(self, connection: Connection) -> None:
        """Take notice that the pool closes ``connection``, and look for a reason."""
        spare = sum(not c.closing for c in self.made) > self.floor
        now = trio.current_time()
        idle = self.options["idle_timeout"]
        lifetime = self.options["lifetime"]
        reasons = (
            self.ending,
            connection.tainted,
            connection.dead,
            connection.failed,
            connection.generation != self.generation,
            lifetime is not None and now >= connection.born + 0.95 * lifetime,
            idle is not None and now >= connection.idle_since + idle and spare,
            self.was_shrunk,
        )
        if not any(reasons):
            self.wrong(f"14: {connection} is closed for no reason")

    # Clients

    def gets(self, connection: Connection) -> None:
        """Look at what is lent, at the moment it is."""
        now = trio.current_time()
        lifetime = self.options["lifetime"]
        if connection.generation != self.generation:
            self.wrong(f"9: {connection} is of a generation that has expired")
        if lifetime is not None and now > connection.born + lifetime:
            self.wrong(f"9: {connection} has outlived its lifetime")
        idle = self.idle_before
        if connection in idle and not self.options["check"]:
            younger = [c for c in idle if c.shelved > connection.shelved and not c.dead]
            if any(c.holders == 0 and not c.closing for c in younger):
                self.wrong(f"8: {connection} was lent before one that was used later")

    # Moves

    @initialize(
        max_size=st.integers(1, 4),
        min_size=st.integers(0, 2),
        max_waiting=st.sampled_from([None, None, 2]),
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
        max_size: int,
        min_size: int,
        attempts: int | None,
        check: bool,
        reset: bool,
        close_time: float,
        end: str,
        **options: Any,
    ) -> None:
        """Make the pool and enter its block."""
        min_size = min(min_size, max_size)
        self.options = {**options, "check": check}
        self.close_time = close_time
        self.end = end
        self.limit = self.most_allowed = max_size
        self.floor = min_size
        self.generation = 0
        self.pause_seen = -math.inf
        self.taken: list[Connection] = []
        self.was_shrunk = False
        self.pool = Pool(
            self.connect,
            max_size=max_size,
            min_size=min_size,
            connect_timeout=CONNECT_TIMEOUT,
            backoff=Backoff(
                first=BACKOFF_FIRST, maximum=BACKOFF_MAXIMUM, jitter=0, attempts=attempts
            ),
            check=Connection.exchange if check else None,
            reset=Connection.exchange if reset else None,
            **options,
        )
        self.supply: Supply[Connection] = self.pool._lender.supply
        self.start()

    @precondition(lambda self: len(self.in_state("waiting")) < 6)
    @rule(timeout=st.sampled_from([None, None, None, 3.0]))
    def acquire(self, timeout: float | None) -> None:
        """Somebody comes."""
        self.move(lambda: self.acquire_task(timeout))

    @precondition(lambda self: self.in_state("holding"))
    @rule()
    def put_inside(self) -> None:
        """A body gives back what its end gives back again."""
        client = self.in_state("holding")[0]
        self.move(lambda: client.tell("put"))
        assert client.state == "done"
        assert isinstance(client.error, LeaseError)

    @rule()
    def get_nowait(self) -> None:
        """Somebody takes what is there."""

        def action() -> None:
            try:
                connection = self.pool.get_nowait()
            except trio.WouldBlock:
                if not self.options["check"] and any(not c.dead for c in self.idle()):
                    self.wrong("3: nothing to be had while a connection lies idle")
            else:
                self.obtained(connection)
                self.taken.append(connection)

        self.move(action)

    @precondition(lambda self: self.taken)
    @rule(good=st.booleans(), cancel=st.booleans())
    def put(self, good: bool, cancel: bool) -> None:
        """What was taken comes back; maybe the one that gets it is cancelled at that moment."""

        def action() -> None:
            connection = self.taken.pop(0)
            self.gives(connection, good=good)
            (self.pool.put if good else self.pool.discard)(connection)
            waiting = self.in_state("waiting")
            if cancel and waiting:
                waiting[0].scope.cancel()

        self.move(action)

    @rule()
    def misuse(self) -> None:
        """Somebody gives back what it does not have."""

        def action() -> None:
            strangers: list[Any] = [object(), *self.idle()]
            for what in strangers:
                for give in (self.pool.put, self.pool.discard):
                    try:
                        give(what)
                    except LeaseError:
                        continue
                    self.wrong(f"6: the pool took {what!r}, which nobody had")

        self.move(action)

    @rule(max_size=st.integers(1, 5))
    def resize(self, max_size: int) -> None:
        """The pool is made larger or smaller."""

        def action() -> None:
            self.was_shrunk = self.was_shrunk or max_size < self.limit
            self.limit = max_size
            self.most_allowed = max(max_size, self.supply.size)
            self.pool.resize(max_size)

        self.move(action)

    @rule()
    def expire(self) -> None:
        """All connections of today are to go."""

        def action() -> None:
            self.generation += 1
            self.pool.expire()

        self.move(action)

    # What must hold whenever nothing moves

    def idle(self) -> list[Connection]:
        """List what lies idle."""
        return [entry.resource for entry in self.supply.idle.values()]

    def look(self) -> None:
        """Compare the pool with the model."""
        now = self.pool.statistics()
        self.look_at_slots()
        self.look_at_waiters()
        lent = {c.connection for c in self.in_state("holding")} | set(self.taken)
        if not self.ending:
            assert lent_by(self.pool._lender) == lent, "5: lent is what somebody holds"
        assert now.connected == len(self.made), "10"
        assert now.closed == sum(c.closing for c in self.made), "10"
        self.look_at_time()
        assert now.waiting == len(self.in_state("waiting")), "13: waiting"
        assert now.acquired == self.acquired, "13: acquired"
        assert now.max_size == self.limit, "13: max_size"
        assert now.connect_failures == self.connect_failures, "13: connect_failures"
        timeouts = sum(isinstance(c.error, PoolTimeoutError) for c in self.clients)
        assert now.timed_out == timeouts, "13: timed_out"

    def look_at_slots(self) -> None:
        """Invariants 1 and 5."""
        supply, now = self.supply, self.pool.statistics()
        self.most_allowed = max(self.limit, min(self.most_allowed, supply.size))
        assert now.size <= max(self.limit, self.size_before), "1: more slots than there may be"
        look_at_states(self.pool._lender)
        assert now.connecting == len(self.pending), "5: connecting"
        seen = len(self.pending) + sum(not c.gone for c in self.made)
        assert seen == now.size, "2: the peer sees other connections than the pool"

    def look_at_waiters(self) -> None:
        """Invariants 3, 4, 7 and 11."""
        now = self.pool.statistics()
        unserved = now.waiting - now.checking - now.resetting
        if unserved > 0:
            assert not now.idle, "3: somebody waits while a connection lies idle"
            wanted = 1 if self.supply.live else unserved
            paused = trio.current_time() < self.resume_at
            full = now.size >= now.max_size
            assert full or paused or now.connecting >= wanted, "4: nobody dials for a waiter"
        waiting = [client.number for client in self.in_state("waiting")]
        for client in self.clients:
            if client.connection is not None and client.state == "holding" and waiting:
                assert client.number < min(waiting) or client in self.served_before, "7: overtaken"
        self.look_at_cancels()
        self.served_before = set(self.in_state("holding"))

    def look_at_time(self) -> None:
        """Invariants 9 and 14."""
        now = trio.current_time()
        supply = self.supply
        idle_timeout, lifetime = self.options["idle_timeout"], self.options["lifetime"]
        surplus = len(supply.live) > self.floor
        for connection in self.idle():
            assert not connection.closing, "9: what is closed lies idle"
            assert connection.generation == self.generation, "9: what has expired lies idle"
            assert not connection.tainted, "9: what went wrong lies idle"
            if lifetime is not None:
                assert now < connection.born + lifetime, "14: beyond its lifetime"
            if idle_timeout is not None and surplus:
                assert now < connection.idle_since + idle_timeout, "14: idle for too long"
        if not (self.ending or supply.retry.resting):
            enough = supply.size >= min(self.floor, self.limit)
            assert enough or supply.closing or supply.dials, "14: fewer than min_size"

    # The end

    def put_back(self) -> None:
        """Give back what was taken."""
        for connection in self.taken:
            self.gives(connection, good=True)
            self.pool.put(connection)
        self.taken.clear()

    def crowd(self) -> None:
        """Start more clients than can be served."""
        for _ in range(self.limit + 2):
            self.acquire_task()
