"""The connections of a multiplexer as a set: its strength, how it heals, grows and shrinks.

How this works. A `Supply` of the pool's dials, closes, paces and counts. The fleet stands in front
of it and decides how many there should be; what each is used for is up to a `Usage`, which stands
in front of the fleet: halves lent to tasks, or sessions with streams on them.

``strength`` is what the set *had*: it rises with each connection that joins, stays when one is
lost, and falls when one is closed for idleness. Whatever is missing to it is dialled: that is
healing. Whoever has waited for ``scale_after`` makes it dial more than that: that is growing.
A connection that is used up or broken is taken out at once, though it may take until its holder
lets go of it before it is closed; in between it is `leaving`.

What happened is told to ``on_event`` from a task of its own, when everything is in order again.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, Literal, Protocol, TypeVar, final

import trio

from .._errors import PoolClosedError
from .._pool.lifecycle import Lifecycle
from .._pool.settings import SupplySettings
from .._pool.supply import Supply
from .plan import MultiplexerEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio.lowlevel import Task

    from .._pool.entry import Entry
    from .plan import Plan

__all__ = ("Fleet", "Usage")

T = TypeVar("T")

# Seconds that ``connect`` gets, as in the pool unless told otherwise: a dial that hangs holds a
# slot, and what is lost is brought back one at a time.
CONNECT_LIMIT: Final = 10.0

# Why a connection ends without having been lost.
NO_LOSS: Final = frozenset({"closed", "seized", "surplus", "expired"})


class Usage(Protocol[T]):
    """What is done with the connections of a fleet."""

    def waiting(self) -> int:
        """How many tasks wait."""

    def needed(self, now: float, scale_after: float, most: int, /) -> int:
        """How many more connections those call for who have waited for ``scale_after``.

        Args:
          most: a greater number makes no difference.
        """

    def settle(self, entry: Entry[T], /) -> None:
        """Use a connection that has just joined."""

    def hung_up(self, entry: Entry[T], /) -> None:
        """Take notice that its peer has gone."""

    def gone(self, entry: Entry[T], /) -> None:
        """Forget a connection that is being closed."""

    def sweep(self, now: float, /) -> float:
        """Do what is due at ``now``; return when something is due next."""

    def disown(self) -> None:
        """Forget all connections."""

    def is_waiting(self, task: Task, since: float, /) -> bool:
        """Whether ``task`` still waits, as it does since then."""

    def fail_waiters(self, make_error: Callable[[], BaseException], /) -> None:
        """Let everybody who waits hear why it is in vain."""

    def stop(self) -> None:
        """Close everything that somebody uses."""


@final
class Fleet(Generic[T]):
    """See the note on top.

    Attributes:
      supply: where connections come from and go to.
      usage: what is done with them.
      strength: how many there should be.
      base: how many of them do not go for idleness.
      leaving: those taken out that are not closed yet.
      aside: how many of those leave room for a replacement beyond the capacity.
      added, lost, healed, scaled_up, scaled_down: counts, as in `MultiplexerStatistics`.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[T]] | None,
        plan: Plan,
        close: Callable[[T], Awaitable[object]] | None = None,
    ) -> None:
        self.plan = plan
        self.lifecycle = Lifecycle(lambda: (self,), what="a multiplexer", grace=0)
        settings: SupplySettings[T] = SupplySettings(
            connect_timeout=CONNECT_LIMIT,
            backoff=plan.backoff,
            # What cannot be replaced is not closed for being idle.
            idle_timeout=None if connect is None else plan.idle_timeout,
            lifetime=None,
            check_after=0.0,
            close=close,
        )
        self.supply: Supply[T] = Supply(
            connect, settings, limit=plan.capacity, alarm=self.lifecycle.alarm
        )
        self.usage: Usage[T]
        self.replaceable = connect is not None
        self.strength = self.base = 0
        self.leaving: dict[int, Entry[T]] = {}
        self.aside = False
        self.added = self.lost = self.healed = self.scaled_up = self.scaled_down = 0
        self._adopting = False
        self._short_since: float | None = None
        # Who waits, and since when, until it has been for ``scale_after``.
        self._patient: deque[tuple[Task, float]] = deque()
        self._news: deque[MultiplexerEvent] = deque()

    # Beginning and end

    async def enter(self, given: Sequence[Entry[T]]) -> None:
        """Open, and take over what is ``given``.

        If cancelled, nothing is open or taken.
        """
        nursery = await self.lifecycle.enter()
        self.supply.open(nursery, self)
        self.base = self.supply.floor = len(given)
        for entry in given:
            self.adopt(entry)

    def require_open(self) -> None:
        """Raise unless connections can be had.

        Raises:
          PoolClosedError: not any more.
          RuntimeError: not yet.
        """
        if self.lifecycle.closed:
            raise PoolClosedError("this multiplexer is closed")
        try:
            self.supply.require_open()
        except RuntimeError:
            raise RuntimeError(
                "a multiplexer is open only inside its block: async with plex: ..."
            ) from None

    @property
    def exhausted(self) -> bool:
        """Whether the last connection is gone, and no other will come by itself."""
        return not self.replaceable and self.lost > 0 and self.size == 0

    def nothing_left(self) -> trio.BrokenResourceError:
        """Make the exception that says so."""
        return trio.BrokenResourceError(
            "every connection of this multiplexer is gone, and it has no `connect` to make another"
        )

    def stop(self) -> None:
        """Lend nothing any more, and close everything."""
        self.supply.end()
        self.usage.fail_waiters(lambda: PoolClosedError("this multiplexer was closed"))
        self.usage.stop()

    def disown(self) -> None:
        """Be closed, in a forked child, where everything belongs to the parent."""
        self.supply.disown()
        self.usage.disown()
        self.leaving.clear()
        # A fork from a thread of its own leaves no run behind in which anybody could be woken.
        if trio.lowlevel.in_trio_run():
            self.supply.changed()
            self.usage.fail_waiters(
                lambda: PoolClosedError("this multiplexer is the parent process's")
            )

    def report_lent(self, what: str = "") -> None:
        """Say nothing: whatever is lent is lent to a block."""

    # The set

    @property
    def size(self) -> int:
        """How many connections there are, without those that are on their way out."""
        return len(self.supply.live) - len(self.leaving)

    def adopt(self, entry: Entry[T]) -> None:
        """Take over a connection; there is room for it."""
        self._adopting = True
        try:
            self.supply.adopt(entry)
        finally:
            self._adopting = False
        self.added += 1

    def arrived(self, entry: Entry[T]) -> None:
        """Use a connection that was dialled or given."""
        before, self.strength = self.strength, max(self.strength, self.size)
        self.tell("connected")
        if self.strength > before > 0 and not self._adopting:
            self.scaled_up += 1
            self.tell("scaled_up")
        if self._short_since is not None and self.size >= self.strength:
            self._short_since = None
            self.healed += 1
            self.tell("healed")
        self.usage.settle(entry)

    def take_out(self, entry: Entry[T], reason: str) -> None:
        """Count ``entry`` out; whoever uses it may go on until it is retired."""
        if entry.key not in self.leaving and entry.key in self.supply.live:
            entry.doom(reason)
            self.leaving[entry.key] = entry
            self._make_room()
            self._lose(reason)

    def retired(self, entry: Entry[T], reason: str) -> None:
        """Take notice that a connection is being closed."""
        known = self.leaving.pop(entry.key, None) is not None
        self.usage.gone(entry)
        self._make_room()
        if known or reason in NO_LOSS:
            return
        if reason == "idle":
            self.strength = max(self.base, self.strength - 1)
            self.scaled_down += 1
            self.tell("scaled_down")
        else:
            self._lose(reason)

    def hung_up(self, entry: Entry[T]) -> None:
        """Take notice that a peer has gone."""
        self.usage.hung_up(entry)
        self.grow()

    def failed(self, error: Exception, attempts: int) -> None:
        """Do nothing: who waits is told by its own timeout, whatever `Backoff.attempts` says."""

    def _make_room(self) -> None:
        leaving = len(self.leaving)
        self.supply.floor = self.base + leaving
        if self.aside:
            self.supply.limit = self.plan.capacity + leaving

    def _lose(self, reason: str) -> None:
        self.lost += 1
        self.tell("lost", reason)
        if self.replaceable:
            if self._short_since is None and self.size < self.strength:
                self._short_since = trio.current_time()
                self._arm()
        elif not self.size:
            self.usage.fail_waiters(self.nothing_left)

    # Supply and demand

    def wanted_dials(self) -> int:
        """How many more dials should run now.

        What was lost is brought back one at a time while anything is there, since that serves in
        the meantime; all at once when nothing is. Growth is tempered by the waiting before it.
        """
        supply = self.supply
        room = supply.room()
        if room <= 0:
            return 0
        size, dialling, waiting = self.size, len(supply.dials), self.usage.waiting()
        missing = self.strength - size
        if not size and waiting:
            missing = max(missing, 1)
        wanted = min(missing, 1 if size else max(1, waiting))
        scale_after = self.plan.scale_after
        if scale_after is not None:
            now = trio.current_time()
            wanted = max(wanted, self.usage.needed(now, scale_after, room + dialling))
        return max(0, min(wanted - dialling, room))

    def grow(self) -> None:
        """Start the dials that are wanted and possible now."""
        if self.supply.size < self.supply.limit:
            for _ in range(self.wanted_dials()):
                self.supply.dial()

    def joined(self, task: Task, since: float) -> None:
        """Take notice that ``task`` waits, and has since then."""
        now = trio.current_time()
        if self._short_since is not None:
            # Somebody wants what is missing.
            self._short_since = now
        if self.plan.scale_after is not None:
            insort(self._patient, (task, since), key=_since)
            self.supply.alarm.set(self._impatient_at(now))
        self.grow()

    def _impatient_at(self, now: float) -> float:
        """Return when the next of those who wait will have waited for ``scale_after``."""
        patient, scale_after = self._patient, self.plan.scale_after
        if scale_after is None:
            return math.inf
        while patient:
            task, since = patient[0]
            if since + scale_after > now and self.usage.is_waiting(task, since):
                return since + scale_after
            # Counted from now on, or served.
            patient.popleft()
        return math.inf

    def sweep(self, now: float) -> float:
        """Do what is due at ``now``; return when something is due next."""
        self._give_in(now)
        due = min(self._impatient_at(now), self.usage.sweep(now), self.supply.sweep(now))
        if self._short_since is not None and self.plan.idle_timeout is not None:
            due = min(due, self._short_since + self.plan.idle_timeout)
        return due

    def _give_in(self, now: float) -> None:
        """Be content with less, if nobody has missed for ``idle_timeout`` what could not be had."""
        timeout = self.plan.idle_timeout
        if timeout is None or self._short_since is None or self._short_since + timeout > now:
            return
        if self.usage.waiting():
            self._short_since = now
            return
        self._short_since = None
        self.strength = max(self.base, self.size)
        if self.strength > self.size:
            self._short_since = now

    def _arm(self) -> None:
        if self._short_since is not None and self.plan.idle_timeout is not None:
            self.supply.alarm.set(self._short_since + self.plan.idle_timeout)

    # Telling

    def tell(
        self,
        kind: Literal["connected", "lost", "healed", "scaled_up", "scaled_down"],
        reason: str = "",
    ) -> None:
        """Have ``on_event`` called."""
        if self.plan.on_event is None or self.lifecycle.closed:
            return
        if not self._news:
            self.supply.start(self._deliver)
        self._news.append(
            MultiplexerEvent(
                kind=kind,
                at=trio.current_time(),
                size=self.size,
                reason=reason,
                error=self.supply.retry.last_error,
            )
        )

    async def _deliver(self) -> None:
        on_event = self.plan.on_event
        assert on_event is not None
        while self._news:
            on_event(self._news[0])
            self._news.popleft()


def _since(patient: tuple[Task, float]) -> float:
    return patient[1]
