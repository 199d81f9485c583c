"""The connections of a multiplexer as yamux sessions, and the streams opened on them.

How this works. Each connection carries a `MuxSession`, whose driver runs as a task beside the
dials. A stream is opened on the session that has the fewest; who finds all of them full, or none,
waits in one queue. Whenever a session has news (a stream ended or was acknowledged, the peer goes
away, the end) it calls `_changed`, which is where everything else happens: waiting tasks get their
streams, a session without any goes on the shelf, one whose peer goes away is taken out and closed
once its last stream has ended, one that broke is taken out at once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, final

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
)

from .._errors import PoolTimeoutError
from .._pool.attempt import EXCHANGE_LIMIT, close_resource
from .._pool.waiters import WaitQueue
from .session import MuxSession
from .stream import MuxStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Task

    from .. import yamux
    from .._pool.entry import Entry
    from ..yamux import MuxConfig
    from .fleet import Fleet

__all__ = ("Opening", "Sessions")


@final
class Opening:
    """A stream that somebody waits for."""

    __slots__ = ("since", "weight")

    def __init__(self, weight: int, since: float) -> None:
        self.weight: int = weight
        self.since: float = since


@final
class Sessions:
    """Opens streams; see the note on top.

    Attributes:
      acquired, timed_out: as in `MultiplexerStatistics`.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[trio.abc.Stream]] | None, config: MuxConfig
    ) -> None:
        self._dial = connect
        self._config = config
        self._fleet: Fleet[MuxSession]
        self._entries: dict[MuxSession, Entry[MuxSession]] = {}
        # What sessions run on, from their beginning to the end of their closing.
        self._carriers: dict[MuxSession, trio.abc.Stream] = {}
        # Those on which streams can be opened, by their protocols.
        self._usable: dict[yamux.Session, Entry[MuxSession]] = {}
        self.everyone: OrderedDict[Task, Opening] = OrderedDict()
        self.queue: WaitQueue[Opening] = WaitQueue(everyone=self.everyone)
        self.acquired = self.timed_out = 0
        # How many streams a session carries at once, as long as the peer answers; and how many
        # are so many that it is time for another session: a dial takes longer than an opening.
        self._most = min(config.max_outbound_streams, config.max_unacknowledged)
        self._near = math.ceil(0.8 * config.max_outbound_streams)
        self._near_unacknowledged = math.ceil(0.8 * config.max_unacknowledged)

    def attach(self, fleet: Fleet[MuxSession]) -> None:
        """Work for ``fleet``, whose replacements need not wait for those that drain."""
        self._fleet = fleet
        fleet.usage = self
        fleet.aside = True

    # Making sessions

    async def connect(self) -> MuxSession:
        """Dial, and begin a session on what that brings; for the supply."""
        assert self._dial is not None
        stream = await self._dial()
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"connect must return a trio.abc.Stream, got {stream!r}")
        if self.knows(stream):
            raise ValueError(f"connect returned {stream!r} a second time")
        try:
            session = self.prepare(stream)
        except BaseException:
            scope = trio.CancelScope(shield=True, deadline=trio.current_time() + EXCHANGE_LIMIT)
            await close_resource(stream, None, scope)
            raise
        self._begin(session)
        return session

    def prepare(self, stream: trio.abc.Stream) -> MuxSession:
        """Make a session on ``stream``; nothing happens to that yet.

        Raises whatever its properties raise.
        """
        session = MuxSession(stream, "client", self._config, self._changed)
        # Nobody is here to accept what the peer might open.
        session.listener().close()
        return session

    def _begin(self, session: MuxSession) -> None:
        """Run a session, in a task beside the dials."""
        self._carriers[session] = session._driver.carrier
        self._fleet.supply.start(session._driver.run)

    async def close(self, session: MuxSession) -> None:
        """Close a session. One that broke ends by itself, and its streams go on saying why.

        If cancelled, its carrier is closed forcefully.
        """
        try:
            if session._driver.core.failure is None:
                await session.aclose()
            else:
                await session._driver.done.wait()
        finally:
            self._carriers.pop(session, None)

    def knows(self, stream: trio.abc.Stream) -> bool:
        """Whether a session runs on ``stream``, or did and is not closed yet."""
        return any(carrier is stream for carrier in self._carriers.values())

    # Opening

    @enable_ki_protection
    async def open_stream(self, weight: int, timeout: float | None) -> MuxStream:
        """Open a stream on the least loaded session; see `trionet.Multiplexer.open_stream`.

        If cancelled, none is open.
        """
        await checkpoint_if_cancelled()
        core = None if self.everyone else self._least_loaded()
        if core is not None:
            entry = self._usable[core]
            stream = self._open(core, entry, weight)
            await cancel_shielded_checkpoint()
            # Only now: what the caller sends first, before it waits again, goes with the SYN.
            entry.resource._driver.kick()
            return stream
        return await self._queue_up(weight, timeout)

    async def _queue_up(self, weight: int, timeout: float | None) -> MuxStream:
        fleet = self._fleet
        fleet.require_open()
        if fleet.exhausted:
            raise fleet.nothing_left()
        task, now = current_task(), trio.current_time()
        self.queue.join(task, Opening(weight, now))
        fleet.joined(task, now)
        with trio.move_on_after(math.inf if timeout is None else timeout):
            stream: MuxStream = await self.queue.wait(task)
            return stream
        self.timed_out += 1
        error = fleet.supply.retry.last_error
        text = (
            f"no stream could be opened within {timeout:g} s: {fleet.size} of "
            f"{fleet.plan.capacity} sessions, {len(fleet.supply.dials)} connecting, "
            f"{len(self.everyone)} waiting"
        )
        if error is not None:
            text += f"; connecting failed last with {error!r}"
        raise PoolTimeoutError(text) from error

    def _least_loaded(self) -> yamux.Session | None:
        best: yamux.Session | None = None
        least: float = math.inf
        for core in self._usable:
            # Those that were closed here, and only wait for the peer to end them, are no load: what
            # is asked one after the other stays on one session, and the others may go.
            load = core.outbound - len(core.tails) - len(core.lingering)
            better = load < least or (load == least and _is_closer(core, best))
            if better and core.can_open:
                best, least = core, load
        return best

    def _open(self, core: yamux.Session, entry: Entry[MuxSession], weight: int) -> MuxStream:
        supply = self._fleet.supply
        if entry.key in supply.idle:
            supply.take(entry)
            supply.lent[entry.key] = entry
        entry.used = True
        self.acquired += 1
        stream = MuxStream(entry.resource._driver, core.open(weight))
        if core.outbound >= self._near or core.unacknowledged >= self._near_unacknowledged:
            self._fleet.grow()
        return stream

    # Sessions

    def settle(self, entry: Entry[MuxSession]) -> None:
        """Open streams on a new session, for those who wait."""
        session = entry.resource
        if session not in self._carriers:
            # It was given, not dialled.
            self._begin(session)
        entry.detour = False
        self._entries[session] = self._usable[session._driver.core] = entry
        self._fleet.supply.shelve(entry)
        self._changed(session)

    @enable_ki_protection
    def _changed(self, session: MuxSession) -> None:
        entry = self._entries.get(session)
        if entry is None or self._fleet.lifecycle.closed:
            return
        core = session._driver.core
        if core.failure is not None or session.closed:
            self._retire(entry, "dead")
            return
        if core in self._usable:
            if not (core.peer_going_away or not core.ids_left):
                if self.everyone:
                    self._serve(core, entry)
                if not core.outbound and entry.key in self._fleet.supply.lent:
                    del self._fleet.supply.lent[entry.key]
                    self._fleet.supply.shelve(entry)
                return
            del self._usable[core]
            self._fleet.take_out(entry, "going away")
            self._fleet.grow()
        if not core.outbound:
            self._retire(entry, "going away")

    def _serve(self, core: yamux.Session, entry: Entry[MuxSession]) -> None:
        while self.everyone and core.can_open:
            task = self.queue.oldest
            self.queue.hand_over(task, self._open(core, entry, self.everyone[task].weight))
        entry.resource._driver.kick()

    def _retire(self, entry: Entry[MuxSession], reason: str) -> None:
        if self._entries.get(entry.resource) is not entry:
            return
        self._usable.pop(entry.resource._driver.core, None)
        self._fleet.supply.lent.pop(entry.key, None)
        self._fleet.supply.retire(entry, reason)
        self._fleet.grow()

    # For the fleet

    def waiting(self) -> int:
        """How many tasks wait."""
        return len(self.everyone)

    def needed(self, now: float, scale_after: float, most: int) -> int:
        """How many more sessions those call for who have waited for ``scale_after``.

        Also one that is needed soon: when all that there are come near their limits.
        """
        overdue = sum(
            one.since + scale_after <= now
            for one in islice(self.everyone.values(), most * self._most)
        )
        return max(math.ceil(overdue / max(1, self._most)), int(self._all_near()))

    def _all_near(self) -> bool:
        return bool(self._usable) and all(
            core.outbound >= self._near or core.unacknowledged >= self._near_unacknowledged
            for core in self._usable
        )

    def is_waiting(self, task: Task, since: float) -> bool:
        """Whether ``task`` still waits, as it does since then."""
        opening = self.everyone.get(task)
        return opening is not None and opening.since == since

    def hung_up(self, entry: Entry[MuxSession]) -> None:
        """Do nothing: a session reads, and sees the end by itself."""

    def gone(self, entry: Entry[MuxSession]) -> None:
        """Forget a session that is being closed."""
        self._entries.pop(entry.resource, None)
        self._usable.pop(entry.resource._driver.core, None)

    def sweep(self, _now: float) -> float:
        """Do nothing: nothing is due."""
        return math.inf

    def fail_waiters(self, make_error: Callable[[], BaseException]) -> None:
        """Let everybody who waits hear why it is in vain."""
        self.queue.fail_all(make_error)

    def disown(self) -> None:
        """Forget all sessions."""
        self._entries.clear()
        self._carriers.clear()
        self._usable.clear()

    def stop(self) -> None:
        """Close all sessions, and the streams on them."""
        for entry in list(self._entries.values()):
            self._fleet.supply.lent.pop(entry.key, None)
            self._fleet.supply.retire(entry, "closed")

    def gave_up(self) -> int:
        """How many stopped waiting."""
        return self.queue.gave_up

    # Telling

    def streams(self) -> int:
        """How many streams are open on all sessions, those that drain included."""
        return sum(session._driver.core.outbound for session in self._entries)


def _is_closer(core: yamux.Session, other: yamux.Session | None) -> bool:
    """Whether the peer of ``core`` answered faster the last time than that of ``other`` did."""
    assert other is not None
    ours, theirs = core.round_trip.latest, other.round_trip.latest
    return ours is not None and (theirs is None or ours < theirs)
