"""What the machines of this room stand on: a run of trio, connections that count, and users.

A `Stage` runs trio in a thread, under a clock that stands still, and makes one move at a time.
After each move it lets every task run until all are blocked, and then looks at everything.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from hypothesis.stateful import RuleBasedStateMachine
from trio.testing import MockClock, wait_all_tasks_blocked

from trionet import LeaseError, PoolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionet import KeyedPool, Lease, Pool

CONNECT_TIMEOUT = 7.0
BACKOFF_FIRST = 0.5
BACKOFF_MAXIMUM = 2.0


class BodyError(Exception):
    """What a body raises."""


class Connection:
    """A connection of the model: what the pool ought to know of it."""

    def __init__(self, stage: Stage, number: int, generation: int, key: str = "") -> None:
        self.stage = stage
        self.number = number
        self.generation = generation
        self.key = key
        self.born = trio.current_time()
        self.idle_since = self.born
        self.shelved = stage.next_stamp()
        self.holders = 0
        self.tainted = False
        self.dead = False
        self.mood = "well"
        self.failed = False
        self.closing = False
        self.gone = False

    def __repr__(self) -> str:
        return f"<connection {self.number}{self.key and f' to {self.key}'}>"

    def is_readable(self) -> bool:
        """Whether the peer has gone."""
        return self.dead

    async def aclose(self) -> None:
        """Close, in the time the peer takes for it."""
        if self.closing:
            self.stage.wrong(f"10: {self} is closed twice")
        self.stage.closes(self)
        self.closing = True
        try:
            await trio.sleep(self.stage.close_time)
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
        self.shelved = self.stage.next_stamp()


class Dial:
    """One attempt to connect, until the machine decides how it ends."""

    def __init__(self, generation: int, key: str = "") -> None:
        self.generation = generation
        self.key = key
        self.decided = trio.Event()
        self.error: Exception | None = None


class Client:
    """A task that acquires, holds, and lets go as it is told."""

    def __init__(self, timeout: float | None, key: str = "") -> None:
        self.number = 0
        self.key = key
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


class Stage(RuleBasedStateMachine):
    """See the note on top; what is moved, and what is looked at, the machines say."""

    pool: Pool[Connection] | KeyedPool[str, Connection]
    close_time: float
    end: str

    def __init__(self) -> None:
        super().__init__()
        self.failed_move = True
        self.ending = self.left = False
        self.single = self.jumping = False
        self.stamp = 0
        self.acquired = self.connect_failures = 0
        self.pending: list[Dial] = []
        self.made: list[Connection] = []
        self.clients: list[Client] = []
        self.served_before: set[Client] = set()
        self.violations: list[str] = []
        self.block_scope = trio.CancelScope()
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
        self.leave = trio.Event()
        self.token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self.nursery:
            started.set()
            await self.over.wait()
            self.nursery.cancel_scope.cancel()

    # For the machines to say

    def about_to_move(self) -> None:
        """Remember how things are."""

    def look(self) -> None:
        """Compare the pool with the model, when nothing moves."""

    def closes(self, connection: Connection) -> None:
        """Take notice that the pool closes ``connection``, and look for a reason."""

    def gets(self, connection: Connection) -> None:
        """Look at what is lent, at the moment it is."""

    def lease(self, client: Client) -> Lease[Connection]:
        """Return what a client is to enter."""
        raise NotImplementedError

    def idle(self) -> list[Connection]:
        """List what lies idle."""
        raise NotImplementedError

    def put_back(self) -> None:
        """Give back what nobody in particular holds."""

    def crowd(self) -> None:
        """Start more clients than can be served."""

    # Moves

    def start(self) -> None:
        """Enter the pool's block."""
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
            self.about_to_move()
            action()
            await wait_all_tasks_blocked()
            assert not self.violations, self.violations
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

    async def answer_to(self, dial: Dial) -> Connection:
        """Connect when the machine says so."""
        self.pending.append(dial)
        try:
            await dial.decided.wait()
        except trio.Cancelled:
            if not self.ending:
                self.connect_failures += 1
            raise
        finally:
            self.pending.remove(dial)
        if dial.error is not None:
            self.connect_failures += 1
            raise dial.error
        connection = Connection(self, len(self.made), dial.generation, dial.key)
        self.made.append(connection)
        return connection

    # Clients

    def obtained(self, connection: Connection) -> None:
        """Take notice that a connection is lent."""
        self.acquired += 1
        connection.holders += 1
        if connection.holders != 1:
            self.wrong(f"6: {connection} has {connection.holders} holders")
        if connection.closing or connection.tainted or connection.dead:
            self.wrong(f"9: {connection} is no good")
        self.gets(connection)

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
        lease = self.lease(client)
        async with lease as connection:
            client.state = "holding"
            client.connection = connection
            self.obtained(connection)
            good = False
            try:
                await client.order.wait()
                if client.what == "raise":
                    raise BodyError
                if client.what == "discard":
                    lease.discard()
                elif client.what == "put":
                    good = True
                    self.pool.put(connection)  # type: ignore[union-attr]
                else:
                    good = True
            finally:
                self.gives(connection, good=good)

    def acquire_task(self, timeout: float | None = None, key: str = "") -> Client:
        """Start a client."""
        client = Client(timeout, key)
        self.clients.append(client)
        self.nursery.start_soon(self.client, client)
        return client

    def in_state(self, state: str) -> list[Client]:
        """List the clients that wait, hold, or are done."""
        return [client for client in self.clients if client.state == state]

    def look_at_cancels(self) -> None:
        """Invariant 11."""
        for client in self.clients:
            if client.scope.cancel_called:
                assert client.state == "done", "11: ignored"
                caught = client.scope.cancelled_caught
                assert caught or client.error is not None or client.order.is_set(), "11: swallowed"


def lent_by(lender: Any) -> set[Connection]:
    """List what a lender of the pool counts as lent."""
    return {entry.resource for entry in lender.lent.values()}


def look_at_states(lender: Any) -> None:
    """Invariant 5, at one lender: every connection is in one state, and the counts add up."""
    supply, now = lender.supply, lender.statistics()
    states = [set(supply.idle), set(supply.lent)]
    states += [{e.key for e in lender._checks.running}]
    states += [{e.key for e in lender._resets.running}]
    states += [set(supply.closing)]
    together = set().union(*states)
    assert sum(map(len, states)) == len(together), "5: something is in two states"
    assert set(supply.live) | set(supply.closing) == together, "5: something is in no state"
    total = now.idle + now.lent + now.connecting
    total += now.checking + now.resetting + now.closing
    assert now.size == total, "5: the counts do not add up"
