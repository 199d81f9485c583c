"""The pool under a machine that does everything to it that can be done, in any order.

`PoolMachine` runs trio in a thread, under a clock that stands still, and makes one move at a time.
After each move it lets every task run until all are blocked and compares the pool with a model.
The invariants are numbered; `tests/pool/mutants.py` breaks them one by one.

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

Longer than most files here: one machine and the one model it is compared with.
"""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from trionet import Backoff, LeaseError, Pool, PoolClosedError, PoolError, PoolTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionet._pool.supply import Supply

CONNECT_TIMEOUT = 7.0
BACKOFF_FIRST = 0.5
BACKOFF_MAXIMUM = 2.0


class BodyError(Exception):
    """What a body raises."""


class Connection:
    """A connection of the model: what the pool ought to know of it."""

    def __init__(self, model: PoolMachine, number: int, generation: int) -> None:
        self.model = model
        self.number = number
        self.generation = generation
        self.born = trio.current_time()
        self.idle_since = self.born
        self.shelved = model.next_stamp()
        self.holders = 0
        self.tainted = False
        self.dead = False
        self.mood = "well"
        self.failed = False
        self.closing = False
        self.gone = False

    def __repr__(self) -> str:
        return f"<connection {self.number}>"

    def is_readable(self) -> bool:
        """Whether the peer has gone."""
        return self.dead

    async def aclose(self) -> None:
        """Close, in the time the peer takes for it."""
        self.model.closes(self)
        try:
            await trio.sleep(self.model.close_time)
        finally:
            self.gone = True

    async def exchange(self) -> None:
        """Answer a check or a reset."""
        await trio.lowlevel.checkpoint()
        self.failed = self.mood != "well"
        if self.mood == "mute":
            await trio.sleep_forever()
        if self.mood == "ill":
            raise OSError("not well")
        self.shelved = self.model.next_stamp()


class Dial:
    """One attempt to connect, until the machine decides how it ends."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.decided = trio.Event()
        self.error: Exception | None = None


class Client:
    """A task that acquires, holds, and lets go as it is told."""

    def __init__(self, timeout: float | None) -> None:
        self.number = 0
        self.timeout = timeout
        self.scope = trio.CancelScope()
        self.state = "waiting"
        self.connection: Connection | None = None
        self.error: Exception | None = None
        self.order = trio.Event()
        self.what = "release"

    def tell(self, what: str) -> None:
        """End the body: release, raise, discard, or put (once too often)."""
        self.what = what
        self.order.set()


class PoolMachine(RuleBasedStateMachine):
    """See the note on top."""

    # The run

    def __init__(self) -> None:
        super().__init__()
        self.failed_move = True
        self.ending = False
        self.pause_seen = -math.inf
        self.clock = MockClock()
        started = threading.Event()
        self.thread = threading.Thread(
            target=partial(trio.run, self.main, started, clock=self.clock)
        )
        self.thread.start()
        started.wait()

    async def main(self, started: threading.Event) -> None:
        """Keep trio running until the machine is torn down."""
        self.over = trio.Event()
        self.token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self.nursery:
            started.set()
            await self.over.wait()
            self.nursery.cancel_scope.cancel()

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

    def jump(self, seconds: float) -> None:
        """Let time pass, and all that should happen in it happen at its end."""
        self.jumping = True
        self.clock.jump(seconds)

    def move(self, action: Callable[[], object], *, single: bool = True) -> None:
        """Do ``action`` at once, let all tasks run, and look at everything.

        Args:
          single: at most one connection changes hands, so that the order of events is known.
        """

        async def in_trio() -> None:
            self.single, self.jumping = single, False
            self.size_before = self.supply.size
            self.idle_before = self.idle() if single else []
            action()
            await wait_all_tasks_blocked()
            self.look()

        self.failed_move = True
        trio.from_thread.run(in_trio, trio_token=self.token)
        self.failed_move = False

    def next_stamp(self) -> int:
        """Return a number greater than the last one."""
        self.stamp += 1
        return self.stamp

    def wrong(self, text: str) -> None:
        """Remember a violation found where an exception would not get out."""
        self.violations.append(text)

    # The peer

    async def connect(self) -> Connection:
        """Connect when the machine says so."""
        now = trio.current_time()
        if self.pending and self.supply.live and self.single:
            self.wrong("4: a second dial while connections are about")
        # While time jumps, the end of one pause and the failure that starts the next may coincide.
        if now < self.resume_at and not self.jumping:
            self.wrong(f"4: dialling at {now}, in a pause until {self.resume_at}")
        dial = Dial(self.generation)
        self.pending.append(dial)
        self.count_open()
        try:
            await dial.decided.wait()
        except trio.Cancelled:
            if not self.ending:
                self.failed()
            raise
        finally:
            self.pending.remove(dial)
        if dial.error is not None:
            self.failed()
            raise dial.error
        connection = Connection(self, len(self.made), dial.generation)
        self.made.append(connection)
        self.count_open()
        return connection

    def failed(self) -> None:
        """Count a failure."""
        self.connect_failures += 1

    def count_open(self) -> None:
        """See how many connections are open, as the peer does."""
        seen = len(self.pending) + sum(not c.gone for c in self.made)
        if seen > self.most_allowed:
            self.wrong(f"2: the peer sees {seen} connections, {self.most_allowed} are allowed")

    def closes(self, connection: Connection) -> None:
        """Take notice that the pool closes ``connection``, and look for a reason."""
        if connection.closing:
            self.wrong(f"10: {connection} is closed twice")
        spare = sum(not c.closing for c in self.made) > self.floor
        connection.closing = True
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
        self.acquired += 1
        connection.holders += 1
        now = trio.current_time()
        lifetime = self.options["lifetime"]
        if connection.holders != 1:
            self.wrong(f"6: {connection} has {connection.holders} holders")
        if connection.closing or connection.tainted or connection.dead:
            self.wrong(f"9: {connection} is no good")
        if connection.generation != self.generation:
            self.wrong(f"9: {connection} is of a generation that has expired")
        if lifetime is not None and now > connection.born + lifetime:
            self.wrong(f"9: {connection} has outlived its lifetime")
        idle = self.idle_before
        if connection in idle and not self.options["check"]:
            younger = [c for c in idle if c.shelved > connection.shelved and not c.dead]
            if any(c.holders == 0 and not c.closing for c in younger):
                self.wrong(f"8: {connection} was lent before one that was used later")

    def gives(self, connection: Connection, *, good: bool) -> None:
        """Take notice that a holder lets go."""
        connection.holders -= 1
        connection.idle_since = trio.current_time()
        connection.shelved = self.next_stamp()
        connection.tainted = not good

    async def client(self, client: Client) -> None:
        """Be one user of the pool."""
        try:
            with client.scope:
                await self.hold(client)
        except (BodyError, LeaseError, PoolError) as exc:
            client.error = exc
        except Exception as exc:  # noqa: BLE001 - it would end the run, and hide what was wrong
            self.wrong(f"12: a user of the pool got {exc!r}")
        client.state = "done"

    async def hold(self, client: Client) -> None:
        """Acquire, wait for the order, and end the body as it says."""
        client.number = self.next_stamp()
        lease = self.pool.acquire(timeout=client.timeout)
        async with lease as connection:
            client.state = "holding"
            client.connection = connection
            self.gets(connection)
            good = False
            try:
                await client.order.wait()
                if client.what == "raise":
                    raise BodyError
                if client.what == "discard":
                    lease.discard()
                elif client.what == "put":
                    good = True
                    self.pool.put(connection)
                else:
                    good = True
            finally:
                self.gives(connection, good=good)

    def acquire_task(self, timeout: float | None = None) -> Client:
        """Start a client."""
        client = Client(timeout)
        self.clients.append(client)
        self.nursery.start_soon(self.client, client)
        return client

    def in_state(self, state: str) -> list[Client]:
        """List the clients that wait, hold, or are done."""
        return [client for client in self.clients if client.state == state]

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
        self.stamp = 0
        self.served_before: set[Client] = set()
        self.limit = self.most_allowed = max_size
        self.floor = min_size
        self.generation = 0
        self.pause_seen = -math.inf
        self.pending: list[Dial] = []
        self.made: list[Connection] = []
        self.clients: list[Client] = []
        self.taken: list[Connection] = []
        self.violations: list[str] = []
        self.acquired = self.connect_failures = 0
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
        self.leave = trio.Event()
        self.block_scope = trio.CancelScope()
        self.left = False
        self.move(lambda: self.nursery.start_soon(self.block))

    async def block(self) -> None:
        """Be the block that owns the pool."""
        try:
            with self.block_scope:
                async with self.pool:
                    await self.leave.wait()
                    if self.end == "drain":
                        await self.pool.drain(3)
                    if self.end == "exception":
                        raise BodyError
        except BodyError:
            pass
        self.left = True

    @precondition(lambda self: len(self.in_state("waiting")) < 6)
    @rule(timeout=st.sampled_from([None, None, None, 3.0]))
    def acquire(self, timeout: float | None) -> None:
        """Somebody comes."""
        self.move(lambda: self.acquire_task(timeout))

    @precondition(lambda self: self.in_state("waiting") or self.in_state("holding"))
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        """Somebody who waits or holds is cancelled."""
        active = self.in_state("waiting") + self.in_state("holding")
        self.move(active[which % len(active)].scope.cancel)

    @precondition(lambda self: self.in_state("holding"))
    @rule(which=st.integers(0, 9), what=st.sampled_from(["release"] * 3 + ["raise", "discard"]))
    def let_go(self, which: int, what: str) -> None:
        """A body ends."""
        holding = self.in_state("holding")
        self.move(lambda: holding[which % len(holding)].tell(what))

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
                self.gets(connection)
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
            for what in (object(), *self.idle()):
                for give in (self.pool.put, self.pool.discard):
                    try:
                        give(what)
                    except LeaseError:
                        continue
                    self.wrong(f"6: the pool took {what!r}, which nobody had")

        self.move(action)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 3), well=st.sampled_from([True, True, True, False]))
    def answer(self, which: int, well: bool) -> None:
        """The peer answers a dial, or refuses it."""
        dial = self.pending[which % len(self.pending)]
        dial.error = None if well else OSError("refused")
        self.move(dial.decided.set)

    @precondition(lambda self: self.idle())
    @rule(which=st.integers(0, 3))
    def die(self, which: int) -> None:
        """The peer of a connection goes away."""
        idle = self.idle()

        def action() -> None:
            idle[which % len(idle)].dead = True

        self.move(action)

    @precondition(lambda self: any(not c.closing for c in self.made))
    @rule(which=st.integers(0, 3), mood=st.sampled_from(["well", "ill", "mute"]))
    def sicken(self, which: int, mood: str) -> None:
        """The peer of a connection will answer badly, or not at all."""
        alive = [c for c in self.made if not c.closing]

        def action() -> None:
            alive[which % len(alive)].mood = mood

        self.move(action)

    @rule(seconds=st.sampled_from([0.01, 0.5, 0.6, 2.0, 3.0, 5.0, 9.5, 10.0, 28.0, 40.0]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.move(lambda: self.jump(seconds))

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
        assert not self.violations, self.violations
        now = self.pool.statistics()
        self.look_at_slots()
        self.look_at_waiters()
        holding = {id(c.connection) for c in self.in_state("holding")}
        lent = holding | {id(c) for c in self.taken}
        if not self.ending:
            assert set(self.supply.lent) == lent, "5: lent is what somebody holds"
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
        states = [set(supply.idle), set(supply.lent)]
        states += [{e.key for e in self.lender._checks.running}]
        states += [{e.key for e in self.lender._resets.running}]
        states += [set(supply.closing)]
        together = set().union(*states)
        assert sum(map(len, states)) == len(together), "5: something is in two states"
        assert set(supply.live) | set(supply.closing) == together, "5: something is in no state"
        assert now.connecting == len(self.pending), "5: connecting"
        total = now.idle + now.lent + now.connecting
        total += now.checking + now.resetting + now.closing
        assert now.size == total, "5: the counts do not add up"
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
            if client.scope.cancel_called and client.state == "done":
                caught = client.scope.cancelled_caught
                assert caught or client.error is not None or client.order.is_set(), "11: swallowed"
            if client.scope.cancel_called:
                assert client.state == "done", "11: ignored"
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

    @property
    def lender(self) -> Any:
        """The pool's lender."""
        return self.pool._lender

    # The end

    def teardown(self) -> None:
        """Let everybody have a turn, then end the pool in one of the four ways."""
        try:
            if not self.failed_move:
                self.everybody_gets_a_turn()
                self.the_end()
        finally:
            trio.from_thread.run_sync(self.over.set, trio_token=self.token)
            self.thread.join()

    def everybody_gets_a_turn(self) -> None:
        """Invariant 15."""

        def generous() -> None:
            for connection in self.made:
                connection.mood = "well"
            for dial in self.pending:
                dial.decided.set()
            for client in self.in_state("holding"):
                client.tell("release")
            for connection in self.taken:
                self.gives(connection, good=True)
                self.pool.put(connection)
            self.taken.clear()
            self.jump(1.0)

        for _ in range(30):
            self.move(generous, single=False)
            if not self.in_state("waiting"):
                break
        assert not self.in_state("waiting"), "15: somebody waits for ever"
        self.move(self.acquire_task)
        last = self.clients[-1]
        for _ in range(12):
            self.move(generous, single=False)
        assert last.state == "done"
        assert last.connection is not None, "15: nobody can be served any more"

    def the_end(self) -> None:
        """Invariant 12."""

        def crowd() -> None:
            for _ in range(self.limit + 2):
                self.acquire_task()
            for dial in self.pending:
                dial.decided.set()

        self.move(crowd, single=False)

        def leave() -> None:
            self.ending = True
            self.leave.set()
            if self.end == "cancel":
                self.block_scope.cancel()

        self.move(leave, single=False)
        assert not self.in_state("waiting"), "12: somebody waits in a closed pool"
        if self.end == "normal":
            for client in self.in_state("holding"):
                self.move(partial(client.tell, "release"))
        for _ in range(8):
            self.move(lambda: self.jump(1.0))
        assert self.left, "12: the block does not end"
        assert all(connection.gone for connection in self.made), "12: something is open"
        assert not self.pool.statistics().size, "12: a slot is taken"
        for client in self.in_state("holding"):
            self.move(partial(client.tell, "release"))
        self.move(self.acquire_task)
        assert isinstance(self.clients[-1].error, PoolClosedError), "12: it lends after the end"
        assert not any(client.state != "done" for client in self.clients)
        assert not self.nursery.child_tasks, "12: a task is left"
