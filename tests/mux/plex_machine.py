"""The multiplexer under a machine that does everything to it that can be done, in any order.

`PlexMachine` runs trio in a thread, under a clock that stands still, and makes one move at a time.
After each move it lets every task run until all are blocked, and looks:

 1. Never more connections made, being made or not yet closed than ``capacity``, as the peer sees.
 2. A half is lent to one at most; each connection is in one place.
 3. Nobody waits while a half is free that he could use, unless it is kept for somebody older.
 4. Of those who want the same, nobody is overtaken; a half that was kept goes to who waits for it.
 5. Each who waits is served, timed out, turned away or cancelled, once; no cancel is swallowed.
 6. Nothing is lent that was harmed, used up, or whose peer is known to have gone.
 7. With a ``connect`` something is done for those who wait, and for what was lost.
 8. If the peer answers and holders give back, everybody is served, and the set has its strength.
 9. After the end nothing is open, nobody waits, no task is left; what was opened was closed, once.
10. The statistics say what the model says.

Longer than most files here: one machine and the one model it is compared with.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.mux.wires import Wire
from trionet import Backoff, Multiplexer, PoolClosedError, PoolTimeoutError
from trionet._mux.duplex import BOTH, READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionet import MultiplexerEvent
    from trionet._mux.duplex import Duplex

SCALE_AFTER = 1.0
BACKOFF = Backoff(first=0.5, maximum=2.0, jitter=0)


class BodyError(Exception):
    """What a body raises."""


class Dial:
    """One attempt to connect, until the machine decides how it ends."""

    def __init__(self) -> None:
        self.decided = trio.Event()
        self.error: Exception | None = None


class Client:
    """A task that borrows, holds, and lets go as it is told."""

    def __init__(self, wants: int, timeout: float | None) -> None:
        self.number = 0
        self.wants = wants
        self.timeout = timeout
        self.scope = trio.CancelScope()
        self.state = "waiting"
        self.wire: Wire | None = None
        self.loan: Any = None
        self.half: Any = None
        self.error: Exception | None = None
        self.order = trio.Event()
        self.what = "release"

    def tell(self, what: str) -> None:
        """End the body: release, raise, discard, close, stall (a send cancelled midway) or eof."""
        self.what = what
        self.order.set()


class PlexMachine(RuleBasedStateMachine):
    """See the note on top."""

    # The run

    def __init__(self) -> None:
        super().__init__()
        self.failed_move = True
        self.ending = False
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

    def move(self, action: Callable[[], object]) -> None:
        """Do ``action`` at once, let all tasks run, and look at everything."""

        async def in_trio() -> None:
            retry = self.plex._fleet.supply.retry
            self.pause = retry.resume_at if retry.resting else None
            action()
            await wait_all_tasks_blocked()
            self.look()

        self.failed_move = True
        trio.from_thread.run(in_trio, trio_token=self.token)
        self.failed_move = False

    def wrong(self, text: str) -> None:
        """Remember a violation found where an exception would not get out."""
        self.violations.append(text)

    # The peer

    async def connect(self) -> Wire:
        """Connect when the machine says so."""
        retry = self.plex._fleet.supply.retry
        # One step may begin a dial and then find out what is a reason for a pause.
        if retry.resting and retry.resume_at == self.pause:
            self.wrong("7: dialling in a pause")
        dial = Dial()
        self.pending.append(dial)
        self.count_open()
        try:
            await dial.decided.wait()
        finally:
            self.pending.remove(dial)
        if dial.error is not None:
            raise dial.error
        return self.make()

    def make(self) -> Wire:
        """Make a connection."""
        wire = Wire(len(self.wires), buffer_size=16)
        wire.close_time = self.close_time
        self.wires.append(wire)
        self.count_open()
        return wire

    def count_open(self) -> None:
        """See how many connections are open, as the peer does."""
        seen = len(self.pending) + sum(not wire.gone for wire in self.wires)
        if seen > self.capacity + self.offered:
            self.wrong(f"1: the peer sees {seen} connections, {self.capacity} are allowed")

    # Clients

    def gets(self, client: Client) -> None:
        """Look at what is lent, at the moment it is."""
        wire = client.wire
        assert wire is not None
        self.acquired += 1
        if client.wants & READ:
            wire.readers += 1
        if client.wants & WRITE:
            wire.writers += 1
        if wire.readers > 1 or wire.writers > 1:
            self.wrong(f"2: {wire} has {wire.readers} readers, {wire.writers} writers")
        if wire.tainted or wire.closed:
            self.wrong(f"6: {wire} is no good")
        if wire.peer_closed() and (client.wants != READ or not wire.unread_size()):
            self.wrong(f"6: the peer of {wire} has gone")

    def gives(self, client: Client) -> None:
        """Take notice that a holder lets go."""
        assert client.wire is not None
        client.wire.readers -= bool(client.wants & READ)
        client.wire.writers -= bool(client.wants & WRITE)

    async def client(self, client: Client) -> None:
        """Be one user of the multiplexer."""
        try:
            with client.scope:
                await self.hold(client)
        except (BodyError, PoolClosedError, PoolTimeoutError, trio.BrokenResourceError) as exc:
            client.error = exc
        except Exception as exc:  # noqa: BLE001 - it would end the run, and hide what was wrong
            self.wrong(f"9: a user of the multiplexer got {exc!r}")
        told = client.error is not None or client.scope.cancelled_caught
        if client.state == "waiting" and not told:
            self.wrong("5: nobody said why")
        client.state = "done"

    async def hold(self, client: Client) -> None:
        """Borrow, wait for the order, and end the body as it says."""
        self.stamp += 1
        client.number = self.stamp
        call: dict[int, Any] = {
            READ: self.plex.reader,
            WRITE: self.plex.writer,
            BOTH: self.plex.borrow,
        }
        client.loan = call[client.wants](timeout=client.timeout)
        async with client.loan as half:
            client.half = half
            client.wire = half._duplex.entry.resource
            client.state = "holding"
            self.gets(client)
            done = False
            try:
                await client.order.wait()
                await self.obey(client)
                done = True
            finally:
                if not done:
                    client.wire.tainted = True
                self.gives(client)

    async def obey(self, client: Client) -> None:
        """Do what was ordered."""
        half, wire, what = client.half, client.wire, client.what
        assert wire is not None
        if what == "raise":
            raise BodyError
        if half._stream is None:
            return
        if what == "discard":
            wire.tainted = True
            self.plex.discard(half)
        elif what == "close":
            wire.tainted = True
            await half.aclose()
        elif what == "stall" and client.wants & WRITE:
            wire.tainted = True
            with trio.CancelScope() as scope:
                self.nursery.start_soon(self.soon, scope.cancel)
                await half.send_all(bytes(100))
            assert scope.cancelled_caught or wire.peer_closed()
        elif what == "eof" and client.wants & READ and not wire.peer_closed():
            wire.tainted = True
            await wire.far.send_eof()
            while await half.receive_some():
                pass
        elif what == "read" and client.wants & READ and wire.unread_size():
            await half.receive_some()

    async def soon(self, action: Callable[[], object]) -> None:
        """Do something a few steps from now, before all tasks are blocked."""
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        action()

    async def snatch(self) -> None:
        """Discard what is handed over to somebody before he has it."""
        for _ in range(5):
            await trio.lowlevel.checkpoint()
            held = [client.half for client in self.in_state("holding")]
            for duplex in self.duplexes():
                halves: tuple[Any, ...] = (duplex.reader, duplex.writer)
                for half in halves:
                    if half is not None and half not in held and half._stream is not None:
                        wire = duplex.entry.resource
                        assert isinstance(wire, Wire)
                        wire.tainted = True
                        self.plex.discard(half)

    def come(self, wants: int, timeout: float | None = None) -> Client:
        """Start a client."""
        client = Client(wants, timeout)
        self.clients.append(client)
        self.nursery.start_soon(self.client, client)
        return client

    def in_state(self, state: str) -> list[Client]:
        """List the clients that wait, hold, or are done, in the order in which they came."""
        found = [client for client in self.clients if client.state == state]
        # Tasks that start together run in any order.
        return sorted(found, key=lambda client: client.number)

    # Moves

    @initialize(
        capacity=st.integers(1, 4),
        given=st.integers(0, 2),
        dialling=st.sampled_from([True, True, True, False]),
        scaling=st.booleans(),
        idle_timeout=st.sampled_from([None, 10.0]),
        close_time=st.sampled_from([0.0, 0.0, 1.0]),
        end=st.sampled_from(["normal", "exception", "cancel"]),
    )
    def open(
        self,
        capacity: int,
        given: int,
        dialling: bool,
        scaling: bool,
        idle_timeout: float | None,
        close_time: float,
        end: str,
    ) -> None:
        """Make the multiplexer and enter its block."""
        self.capacity = capacity
        self.offered = 0
        self.dialling = dialling
        self.scaling = scaling and dialling
        self.close_time = close_time
        self.end = end
        self.stamp = self.acquired = 0
        self.pending: list[Dial] = []
        self.wires: list[Wire] = []
        self.clients: list[Client] = []
        self.violations: list[str] = []
        self.events: list[str] = []
        self.given = min(given, capacity)
        self.plex = Multiplexer(
            self.connect if dialling else None,
            streams=[self.make() for _ in range(self.given)],
            capacity=capacity,
            scale_after=SCALE_AFTER if self.scaling else None,
            idle_timeout=idle_timeout,
            backoff=BACKOFF,
            on_event=self.on_event,
        )
        self.idle_timeout = idle_timeout
        self.most = 0
        self.leave = trio.Event()
        self.block_scope = trio.CancelScope()
        self.left = False
        self.move(lambda: self.nursery.start_soon(self.block))

    def on_event(self, event: MultiplexerEvent) -> None:
        """Take notice of what is told."""
        self.events.append(event.kind)
        self.most = max(self.most, event.size)

    async def block(self) -> None:
        """Be the block that owns the multiplexer."""
        try:
            with self.block_scope:
                async with self.plex:
                    await self.leave.wait()
                    if self.end == "exception":
                        raise BodyError
        except BodyError:
            pass
        self.left = True

    @precondition(lambda self: len(self.in_state("waiting")) < 7)
    @rule(
        wants=st.sampled_from([READ, WRITE, BOTH]), timeout=st.sampled_from([None, None, None, 3.0])
    )
    def borrow(self, wants: int, timeout: float | None) -> None:
        """Somebody comes."""
        self.move(lambda: self.come(wants, timeout))

    @precondition(lambda self: self.in_state("waiting") or self.in_state("holding"))
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        """Somebody who waits or holds is cancelled."""
        active = self.in_state("waiting") + self.in_state("holding")
        self.move(active[which % len(active)].scope.cancel)

    @precondition(lambda self: self.in_state("holding"))
    @rule(
        which=st.integers(0, 9),
        what=st.sampled_from(
            ["release"] * 4 + ["raise", "discard", "close", "stall", "eof", "read"]
        ),
        cancel=st.sampled_from([False, False, True]),
        snatch=st.sampled_from([False, False, True]),
    )
    def let_go(self, which: int, what: str, cancel: bool, snatch: bool) -> None:
        """A body ends; maybe whoever comes next is cancelled, or loses it, at that moment."""
        holding, waiting = self.in_state("holding"), self.in_state("waiting")

        def action() -> None:
            holding[which % len(holding)].tell(what)
            if cancel and waiting:
                waiting[0].scope.cancel()
            if snatch:
                self.nursery.start_soon(self.snatch)

        self.move(action)

    @precondition(lambda self: self.in_state("holding"))
    @rule(which=st.integers(0, 9))
    def kill_from_outside(self, which: int) -> None:
        """Something lent is discarded by somebody else."""
        holding = self.in_state("holding")
        client = holding[which % len(holding)]

        def action() -> None:
            if client.half._stream is not None:
                assert client.wire is not None
                client.wire.tainted = True
                self.plex.discard(client.half)

        self.move(action)

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 3), well=st.sampled_from([True, True, True, False]))
    def answer(self, which: int, well: bool) -> None:
        """The peer answers a dial, or refuses it."""
        dial = self.pending[which % len(self.pending)]
        dial.error = None if well else OSError("refused")
        self.move(dial.decided.set)

    @precondition(lambda self: any(not wire.gone for wire in self.wires))
    @rule(which=st.integers(0, 3), how=st.sampled_from(["close", "reset", "say", "say and close"]))
    def hear(self, which: int, how: str) -> None:
        """The peer of a connection speaks, goes away, or both."""
        alive = [wire for wire in self.wires if not wire.gone]
        wire = alive[which % len(alive)]

        def action() -> None:
            if "say" in how and not wire.far.closed:
                wire.far.send_nowait(b"x")
            if "close" in how:
                wire.far.close()
            if how == "reset":
                wire.far.reset()

        self.move(action)

    @rule(seconds=st.sampled_from([0.01, 0.5, 0.6, 1.0, 2.0, 3.0, 9.5, 10.0, 28.0]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.move(lambda: self.clock.jump(seconds))

    @rule(count=st.integers(1, 3))
    def add(self, count: int) -> None:
        """Connections are given."""

        def action() -> None:
            room = self.capacity - self.plex.statistics().size
            self.offered = count
            offered = [self.make() for _ in range(count)]
            left = self.plex.add(*offered)
            if left != offered[max(0, room) :]:
                self.wrong(f"10: of {count} {left} were left, with room for {room}")
            for wire in left:
                assert isinstance(wire, Wire)
                wire.near.close()
                wire.closes = 1
            self.offered = 0

        self.move(action)

    # What must hold whenever nothing moves

    def duplexes(self) -> list[Duplex]:
        """List all connections that are there."""
        return list(self.plex._board.duplexes.values()) if self.plex._board else []

    def look(self) -> None:
        """Compare the multiplexer with the model."""
        assert not self.violations, self.violations
        self.look_at_connections()
        self.look_at_waiters()
        now = self.plex.statistics()
        assert now.waiting == len(self.in_state("waiting")), "10: waiting"
        assert now.closed == sum(wire.closes for wire in self.wires) - self.refused(), "10: closed"
        timeouts = sum(isinstance(client.error, PoolTimeoutError) for client in self.clients)
        assert now.timed_out == timeouts, "10: timed_out"
        if not self.ending:
            assert now.acquired == self.acquired, "10: acquired"
            assert now.connected + now.added - now.closed == len(self.duplexes()), "10: open"
            for kind in ("lost", "healed", "scaled_up", "scaled_down"):
                assert self.events.count(kind) == getattr(now, kind), f"10: {kind}"
            assert self.events.count("connected") == now.connected + now.added
            if self.idle_timeout is None:
                assert now.strength == self.most, "7: it is what there once were"

    def refused(self) -> int:
        """How many were offered and not taken."""
        now = self.plex.statistics()
        return len(self.wires) - now.connected - now.added

    def look_at_connections(self) -> None:
        """Invariants 1 and 2."""
        now = self.plex.statistics()
        board, supply = self.plex._board, self.plex._fleet.supply
        assert board is not None
        assert now.size <= self.capacity, "1"
        assert now.size == len(self.duplexes()) + now.connecting + now.closing, "2: size"
        places = (board.idle, board.receive_free, board.send_free, board.ending, board.claimed)
        for duplex in self.duplexes():
            key, wire = duplex.entry.key, duplex.entry.resource
            assert isinstance(wire, Wire)
            found = sum(key in place for place in places)
            assert found <= 1, "2: in two places"
            free = (duplex.reader is None) + (duplex.writer is None)
            assert (key in board.idle or key in board.ending) == (
                free == 2 or key in board.ending
            ), "2: idle"
            assert (key in supply.lent) == (free < 2), "2: lent"
            assert duplex.out <= (free < 2), "6: what is out and in nobody's hands is closed"
            if duplex.out or (duplex.ended and duplex.reader is not None):
                assert not found, "6: what is out is not to be found"
            if key in board.claimed:
                assert duplex.claim is not None
                assert duplex.claim.claim is duplex, "4: whose claim"
                assert free == 1, "4: nothing is kept"
            if not self.ending:
                assert wire.readers == (duplex.reader is not None), "2: reader"
                assert wire.writers == (duplex.writer is not None), "2: writer"

    def look_at_waiters(self) -> None:
        """Invariants 3, 4, 5 and 7."""
        waiting = self.in_state("waiting")
        board, fleet = self.plex._board, self.plex._fleet
        assert board is not None
        assert list(board.everyone.values()) == [client.loan for client in waiting], "4: order"
        for queue in board.queues.values():
            numbers = [loan.number for loan in queue.tasks.values()]
            assert numbers == sorted(numbers), "4: order"
        for client in self.clients:
            if client.scope.cancel_called:
                assert client.state == "done", "5: a cancel was ignored"
        usable = [duplex for duplex in self.duplexes() if not duplex.out]
        for loan in board.everyone.values():
            for duplex in usable:
                readable = duplex.reader is None and (not duplex.ended or duplex.has_unread())
                writable = duplex.writer is None and not duplex.ended
                kept = duplex.claim is not None and duplex.claim.number <= loan.number
                if loan.wants == BOTH:
                    assert not (readable and writable), "3: a whole connection is free"
                    unclaimed = (readable or writable) and not duplex.ended and not duplex.claim
                    assert loan.claim or not unclaimed, "4: nothing is kept for who waits for both"
                elif not kept:
                    free = readable if loan.wants == READ else writable
                    assert not free or duplex.looks_ended(), "3: somebody waits for what is free"
        if not self.dialling or self.ending:
            return
        now, size = self.plex.statistics(), fleet.size
        paused, full = fleet.supply.retry.resting, now.size >= self.capacity
        if not (paused or full or now.connecting):
            assert size or not waiting, "7: nobody dials for who waits"
            assert size >= now.strength, "7: nobody heals"
            overdue = [
                loan
                for loan in board.everyone.values()
                if loan.since + SCALE_AFTER <= trio.current_time()
            ]
            assert not self.scaling or not overdue, "7: nobody dials for who waits too long"

    # The end

    def teardown(self) -> None:
        """Let everybody have a turn, then end the multiplexer in one of three ways."""
        try:
            if not self.failed_move:
                if self.dialling:
                    self.everybody_gets_a_turn()
                self.the_end()
        finally:
            trio.from_thread.run_sync(self.over.set, trio_token=self.token)
            self.thread.join()

    def everybody_gets_a_turn(self) -> None:
        """Invariant 8."""

        def generous() -> None:
            for dial in self.pending:
                dial.decided.set()
            for client in self.in_state("holding"):
                client.tell("release")
            self.clock.jump(0.5)

        for _ in range(40):
            self.move(generous)
            if not self.in_state("waiting"):
                break
        assert not self.in_state("waiting"), "8: somebody waits for ever"
        for wants in (READ, WRITE, BOTH):
            self.move(partial(self.come, wants))
        last = self.clients[-3:]
        for _ in range(12):
            self.move(generous)
        assert all(client.wire is not None for client in last), "8: nobody can be served any more"
        now = self.plex.statistics()
        assert self.plex._fleet.size == now.strength, "8: it has not healed"
        assert now.strength >= min(self.given, self.capacity)

    def the_end(self) -> None:
        """Invariant 9."""

        def crowd() -> None:
            for wants in (BOTH, READ, WRITE) * 3:
                self.come(wants)

        self.move(crowd)

        def leave() -> None:
            self.ending = True
            self.leave.set()
            if self.end == "cancel":
                self.block_scope.cancel()

        self.move(leave)
        assert not self.in_state("waiting"), "9: somebody waits when all is over"
        for _ in range(6):
            self.move(lambda: self.clock.jump(1.0))
        assert self.left, "9: the block does not end"
        assert all(wire.gone and wire.closes == 1 for wire in self.wires), "9: something is open"
        assert not self.plex.statistics().size, "9: a slot is taken"
        for client in self.in_state("holding"):
            self.move(partial(client.tell, "release"))
        self.move(lambda: self.come(BOTH))
        assert isinstance(self.clients[-1].error, PoolClosedError), "9: it lends after the end"
        assert all(client.state == "done" for client in self.clients)
        assert not self.nursery.child_tasks, "9: a task is left"
