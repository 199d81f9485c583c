"""Where connections come from and how they end: dialling, backoff, slots, expiry, closing.

How this works. A supply has ``limit`` slots. A slot is taken the moment a dial starts and is free
again once that dial has failed or its connection has been *closed*, so the peer never sees more
than ``limit``. In between a connection is an `Entry` in `live`: it is idle (`idle`), lent
(`lent`), or in the hands of its owner for a moment (checked, reset). What is to be done with it
then is not decided here but by the owner, a queue in front of this supply:

- ``owner.arrived(entry)``: a new connection is there; lend or `shelve` it.
- ``owner.grow()``: a slot, a pause or a connection has gone; start the dials that are wanted.
- ``owner.failed(error, attempts)``: dialling failed as often as the backoff allows.
- ``owner.hung_up(entry)``: the peer of a connection that is watched has gone.
- ``owner.retired(entry, reason)``: a connection is being closed.

Three kinds of task run, all in the owner's nursery: one for each dial, one for each close, and
the one of the `Alarm`, which calls `sweep`. Everything else is synchronous.

Longer than most files here: a connection's whole life, from the slot it takes to the slot it frees.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar, final

import outcome
import trio
from trio.lowlevel import enable_ki_protection

from .._errors import PoolClosedError
from .attempt import EXCHANGE_LIMIT, attempt, close_resource
from .entry import Entry
from .retry import Retry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .alarm import Alarm
    from .settings import SupplySettings

__all__ = ("Budget", "Owner", "Supply")

T = TypeVar("T")

# A connection lives for 95 to 100 % of its lifetime, so that those dialled together, after a
# restart of the peer say, do not all expire together.
LIFETIME_JITTER: Final = 0.05

# Seconds that an unused connection has to live for its dial to count as a success: peers that
# accept and then hang up, overloaded ones say, do that sooner.
PROBATION: Final = 1.0


class Owner(Protocol[T]):
    """The queue in front of a supply; see the note on top."""

    def arrived(self, entry: Entry[T], /) -> None:
        """Lend or shelve a new connection."""

    def failed(self, error: Exception, attempts: int, /) -> None:
        """Tell somebody that dialling failed ``attempts`` times in a row."""

    def grow(self) -> None:
        """Start the dials that are wanted and possible now."""

    def wanted_dials(self) -> int:
        """How many dials should run now that do not."""

    def hung_up(self, entry: Entry[T], /) -> None:
        """Take notice that the peer of ``entry`` has gone; may come more than once."""

    def retired(self, entry: Entry[T], reason: str, /) -> None:
        """Take notice that ``entry`` is open no more."""


@final
class Budget:
    """Slots that several supplies share.

    Attributes:
      limit: how many there are.
      taken: how many of them are not free; `closing` of these soon will be.
    """

    __slots__ = ("closing", "limit", "taken")

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self.taken = self.closing = 0


@final
class Supply(Generic[T]):
    """Connections of one kind, and the slots they take.

    Attributes:
      limit: slots there are; may be lowered below `size`, which then only shrinks.
      floor: connections to keep, used or not.
      size: slots taken: dials, open connections, and those not closed yet.
      live: all open connections by identity; `idle` (longest idle first) and `lent` among them.
      seized: those that were closed while somebody had them, until they are given back.
      dials: connections being made, by what cancels them; `closing` those being closed.
      retry: whether a pause after a failure runs, and why the last dial failed.
      closed: whether it is over: nothing is dialled, and what comes back is closed.
      connected, connect_failures: how many dials went well, and how many did not.
      ended: how many connections were closed, by reason.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[T]] | None,
        settings: SupplySettings[T],
        *,
        limit: int,
        floor: int = 0,
        alarm: Alarm,
        budget: Budget | None = None,
    ) -> None:
        """Make a supply that has nothing yet; `open` it before anything else.

        Args:
          connect: makes a connection; None: there are those only that it is made to `adopt`.
          alarm: rings `sweep`.
          budget: slots that all of this supply's are taken from as well.
        """
        self._connect = connect
        self.settings = settings
        self.limit = limit
        self.floor = floor
        self.alarm = alarm
        self.budget = budget
        self.size = 0
        self.live: dict[int, Entry[T]] = {}
        self.idle: dict[int, Entry[T]] = {}
        self.lent: dict[int, Entry[T]] = {}
        self.seized: dict[int, Entry[T]] = {}
        self.dials: set[trio.CancelScope] = set()
        self.closing: dict[int, trio.CancelScope] = {}
        self.closed = False
        self.connected = self.connect_failures = 0
        self.ended: Counter[str] = Counter()
        self.retry = Retry(settings.backoff)
        self._generation = 0
        self._hurried = False
        self._nursery: trio.Nursery | None = None
        self._owner: Owner[T]
        self._change: trio.Event | None = None

    def open(self, nursery: trio.Nursery, owner: Owner[T]) -> None:
        """Have the tasks run in ``nursery``, and tell ``owner`` what happens."""
        self._nursery = nursery
        self._owner = owner

    def shut(self) -> None:
        """Let go of the nursery, which is about to end; nothing is open any more."""
        self.closed = True
        self._nursery = None

    def disown(self) -> None:
        """Forget all connections, without closing them: in a forked child they are the parent's."""
        self.shut()
        self.idle.clear()
        self.live.clear()
        for entry in self.lent.values():
            entry.doom("forked")
        # The tasks of dials and closes were copied too; they find nothing left to account for.
        self.dials.clear()
        self.closing.clear()
        self.retry.resting = False
        self.size = 0

    # Dialling

    def room(self) -> int:
        """How many dials may start now: the free slots, but none in a pause.

        None either before the block, or after the end. What is left of the budget is not looked at.
        """
        if self.retry.resting or self.closed or self._nursery is None or self._connect is None:
            return 0
        return self.limit - self.size

    def adopt(self, entry: Entry[T]) -> None:
        """Take a slot for a connection that somebody else has made, and which is no one's yet."""
        self._take_slot()
        self._welcome(entry)

    def dial(self) -> None:
        """Take a slot and start connecting, in the context of whoever calls."""
        self._take_slot()
        timeout = self.settings.connect_timeout
        scope = trio.CancelScope()
        if timeout is not None:
            scope.deadline = trio.current_time() + timeout
        self.dials.add(scope)
        self.start(self._dial, scope, self._generation, self.retry.tries + 1)

    def start(self, function: Callable[..., Awaitable[None]], *args: object) -> None:
        """Start a task beside the dials."""
        assert self._nursery is not None
        self._nursery.start_soon(function, *args)

    def require_open(self) -> None:
        """Raise unless connections can be had.

        Raises:
          PoolClosedError: not any more.
          RuntimeError: not yet.
        """
        if self.closed:
            raise PoolClosedError("this pool is closed")
        if self._nursery is None:
            raise RuntimeError("a pool is open only inside its block: async with pool: ...")

    @enable_ki_protection
    async def _dial(self, scope: trio.CancelScope, generation: int, tries: int) -> None:
        assert self._connect is not None
        connected = False
        try:
            made = await attempt(self._connect, scope=scope, what="connecting")
            if isinstance(made, outcome.Value):
                made = await self._inspect(made.value)
            connected = not isinstance(made, outcome.Error)
        finally:
            disowned = scope not in self.dials
            self.dials.discard(scope)
            if not (connected or disowned):
                self._free_slot()
        if disowned:
            return
        if isinstance(made, outcome.Error):
            self._dial_failed(made.error, tries)
        else:
            self._dial_succeeded(made.unwrap(), generation)
        self._owner.grow()

    def knows(self, resource: T) -> bool:
        """Whether ``resource`` is a connection of this supply, or was and is not closed yet."""
        key = id(resource)
        return key in self.live or key in self.closing or key in self.seized

    async def _inspect(self, resource: T) -> outcome.Outcome[Entry[T]]:
        if self.knows(resource):
            return outcome.Error(ValueError(f"connect returned {resource!r} a second time"))
        try:
            if self.settings.close is None and not callable(getattr(resource, "aclose", None)):
                return outcome.Error(
                    TypeError(f"connect must return something with an aclose, got {resource!r}")
                )
            entry = Entry(resource, trio.current_time())
        except Exception as exc:  # noqa: BLE001 - properties of a thing that is not ours
            scope = trio.CancelScope(shield=True, deadline=trio.current_time() + EXCHANGE_LIMIT)
            await close_resource(resource, self.settings.close, scope)
            return outcome.Error(exc)
        return outcome.Value(entry)

    def _dial_failed(self, error: BaseException, tries: int) -> None:
        if self.closed:
            return
        assert isinstance(error, Exception)
        self.connect_failures += 1
        self._in_vain(error, tries)

    def _in_vain(self, error: Exception, tries: int) -> None:
        now = trio.current_time()
        if any(self._has_worked(entry, now) for entry in self.live.values()):
            self.retry.forget()
        last = self.retry.failed(error, tries, now)
        self.alarm.set(self.retry.resume_at)
        if last:
            self._owner.failed(error, tries)
        self.changed()

    def _dial_succeeded(self, entry: Entry[T], generation: int) -> None:
        self.connected += 1
        self.retry.connected()
        lifetime = self.settings.lifetime
        if lifetime is not None:
            part = 1 - random.uniform(0, LIFETIME_JITTER)  # noqa: S311 - not a secret
            entry.expires_at = trio.current_time() + lifetime * part
        if not self.closed and generation == self._generation and self.surplus() < 0:
            self._welcome(entry)
            return
        self.live[entry.key] = entry
        if self.closed:
            self.retire(entry, "closed")
        else:
            self.retire(entry, "surplus" if generation == self._generation else "expired")

    def _welcome(self, entry: Entry[T]) -> None:
        self.live[entry.key] = entry
        entry.watch(partial(self._hung_up, entry))
        if entry.aging and not self.settings.check_after:
            # Always, that is: it need not be found out by the clock.
            entry.aging, entry.stale = False, True
        # Now so many are open that one which has been idle for too long may go: look at once.
        self.alarm.set(-math.inf if 0 < self.floor < len(self.live) else entry.expires_at)
        self._owner.arrived(entry)
        self.changed()

    # The shelf

    def shelve(self, entry: Entry[T]) -> None:
        """Make ``entry``, which nobody has now, the first to be lent again."""
        now = trio.current_time()
        entry.idle_since = now
        self.idle[entry.key] = entry
        if self.settings.idle_timeout is not None:
            self.alarm.set(now + self.settings.idle_timeout)
        if entry.aging:
            self.alarm.set(now + self.settings.check_after)
        if entry.watched_idle:
            entry.resume_watch(partial(self._hung_up, entry))

    def unshelve(self) -> Entry[T] | None:
        """Take the connection that was used last; None if there is none.

        One that turns out to be dead is closed instead, and the next one taken.
        """
        while self.idle:
            entry = next(reversed(self.idle.values()))
            if entry.doubtful and entry.is_dead():
                self.retire(entry, "dead")
                continue
            self.take(entry)
            return entry
        return None

    def take(self, entry: Entry[T]) -> None:
        """Take one connection off the shelf."""
        if entry.aging:
            entry.stale = False
        del self.idle[entry.key]
        if entry.watched_idle:
            entry.stop_watch()

    def _hung_up(self, entry: Entry[T]) -> None:
        if entry.key in self.live:
            self._owner.hung_up(entry)

    # Ends

    def surplus(self) -> int:
        """How many open connections there are above the limit; below it, if negative.

        Dials do not count: they may fail. What they bring is closed if it is too much.
        """
        return len(self.live) - self.limit

    def retire(self, entry: Entry[T], reason: str) -> trio.CancelScope | None:
        """Close ``entry``, which nobody has now; its slot is free when that is done.

        Returns:
          What makes the closing forceful if cancelled; None if there is no task to close it.
        """
        self.idle.pop(entry.key, None)
        if self.live.pop(entry.key, None) is None or self._nursery is None:
            return None
        entry.stop_watch()
        reason = entry.doomed or reason
        self.ended[reason] += 1
        # Shielded, so that the end of everything else does not turn a clean close into a cut.
        scope = trio.CancelScope(shield=True, deadline=trio.current_time() + EXCHANGE_LIMIT)
        if self._hurried:
            scope.cancel()
        self.closing[entry.key] = scope
        if self.budget is not None:
            self.budget.closing += 1
        self.start(self._close, entry, scope)
        self._learn_from(entry, reason)
        self._owner.retired(entry, reason)
        self.changed()
        return scope

    def _has_worked(self, entry: Entry[T], now: float) -> bool:
        if entry.used:
            return entry.key not in self.lent
        return now - entry.born >= PROBATION

    def _learn_from(self, entry: Entry[T], reason: str) -> None:
        """Take what became of a connection for the true outcome of its dial."""
        now = trio.current_time()
        if now - entry.born >= PROBATION or (entry.used and reason not in ("dead", "discarded")):
            self.retry.proved()
        elif reason == "dead" and not entry.used and not self.closed:
            # Not told by its repr, which may be of any length and run any code.
            kind = type(entry.resource).__name__
            gone = trio.BrokenResourceError(f"a new {kind}: the peer hung up before any use")
            self._in_vain(gone, self.retry.tries + 1)

    @enable_ki_protection
    async def _close(self, entry: Entry[T], scope: trio.CancelScope) -> None:
        try:
            await close_resource(entry.resource, self.settings.close, scope)
        finally:
            disowned = self.closing.pop(entry.key, None) is None
            if not disowned:
                if self.budget is not None:
                    self.budget.closing -= 1
                self._free_slot()
        if not disowned:
            self._owner.grow()

    def _take_slot(self) -> None:
        self.size += 1
        if self.budget is not None:
            self.budget.taken += 1

    def _free_slot(self) -> None:
        self.size -= 1
        if self.budget is not None:
            self.budget.taken -= 1
        self.changed()

    def end(self) -> None:
        """Dial no more, close what is idle, and what is lent as soon as it comes back."""
        self.closed = True
        for scope in self.dials:
            scope.cancel()
        self._retire_generation("closed")
        self.changed()

    def seize(self) -> None:
        """Close what somebody still has, at once and without grace."""
        for entry in list(self.lent.values()):
            del self.lent[entry.key]
            self.seized[entry.key] = entry
            entry.doomed = "seized"
            scope = self.retire(entry, "seized")
            if scope is not None:
                scope.cancel()

    def cut_short(self) -> None:
        """Take the grace from everything that is being closed, now or from now on."""
        self._hurried = True
        for scope in self.closing.values():
            scope.cancel()

    # Time

    def expire(self) -> None:
        """Close idle connections now and all others of today's when they come back."""
        self._generation += 1
        self._retire_generation("expired")

    def _retire_generation(self, reason: str) -> None:
        for entry in list(self.live.values()):
            if entry.key in self.idle:
                self.retire(entry, reason)
            else:
                entry.doom(reason)

    def trim(self) -> None:
        """Close what is idle above the limit, the longest idle first."""
        while self.idle and self.surplus() > 0:
            self.retire(next(iter(self.idle.values())), "surplus")
        for entry in self.lent.values():
            # Whether they are too many is decided when they come back.
            entry.detour = True

    def sweep(self, now: float) -> float:
        """Do what is due at ``now``; return when something is due next."""
        retry = self.retry
        if retry.resting and retry.resume_at <= now:
            retry.resting = False
            if not self.dials and not self._owner.wanted_dials():
                # Whoever comes next was not there, and has a row of attempts of its own.
                retry.forget()
        due = retry.resume_at if retry.resting else math.inf
        for entry in list(self.live.values()):
            if entry.expires_at > now:
                due = min(due, entry.expires_at)
            elif entry.key in self.idle:
                self.retire(entry, "lifetime")
            else:
                entry.doom("lifetime")
        due = min(due, self._age(now))
        timeout = self.settings.idle_timeout
        while timeout is not None and self.idle and len(self.live) > self.floor:
            oldest = next(iter(self.idle.values()))
            if oldest.idle_since + timeout > now:
                due = min(due, oldest.idle_since + timeout)
                break
            self.retire(oldest, "idle")
        self._owner.grow()
        return due

    def _age(self, now: float) -> float:
        """Find what has become stale; return when the next one does."""
        for entry in self.idle.values():
            if entry.aging and not entry.stale:
                at = entry.idle_since + self.settings.check_after
                if at > now:
                    return at
                entry.stale = True
        return math.inf

    # Waiting for a change

    def changed(self) -> None:
        """Let every `wait_until` look again."""
        if self._change is not None:
            self._change.set()
            self._change = None

    async def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait until ``done()``, which is asked after each change of what there is.

        If cancelled, nothing has changed.
        """
        while not done():
            if self._change is None:
                self._change = trio.Event()
            await self._change.wait()

    async def wait_nothing_lent(self) -> None:
        """Wait until everything lent has come back. If cancelled, it has not."""
        await self.wait_until(lambda: not self.lent)

    async def wait_empty(self) -> None:
        """Wait until no slot is taken. If cancelled, some are."""
        await self.wait_until(lambda: self.size == 0)
