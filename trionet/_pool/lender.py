"""Where connections are lent: one supply, one queue, and the rules between them.

How this works. Tasks that want a connection come to `Lender.obtain`; tasks that bring one back, to
`Lender.give_back`; dials and timers come from the supply. Whoever comes changes the state at once,
in one synchronous step that leaves the rules intact:

- Nobody waits while a connection lies idle, unless that connection is being checked for them.
- A newcomer never overtakes: if anybody waits, it queues. What comes free goes to the oldest.
- While somebody waits for whom nothing is on its way, either a dial runs, or a pause after a
  failed one, or all slots are taken.

`check` and `reset` run in tasks beside the dials, never in the task of a caller: a caller that is
cancelled just leaves the queue, and the connection goes to the next one.

Longer than most files here: these rules hold together only if they can be read together.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, current_task, enable_ki_protection

from .._errors import (
    LeaseError,
    PoolClosedError,
    PoolFullError,
)
from .lease import Lease
from .report import (
    PoolStatistics,
    connect_error,
    log_leaks,
    log_nesting,
    stack_here,
    timeout_error,
)
from .upkeep import Upkeep
from .waiters import WaitQueue

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Awaitable, Collection, Iterable, Iterator

    from trio.lowlevel import Task

    from .entry import Entry
    from .settings import LenderSettings
    from .supply import Budget, Supply

__all__ = ("Group", "Lender")

T = TypeVar("T")


class Group(Protocol):
    """Several lenders that share a budget, seen from one of them."""

    everyone: OrderedDict[Task, Lease[Any]]
    arrivals: Iterator[int]
    budget: Budget

    def lent(self) -> Iterable[Entry[Any]]:
        """Go through what is lent at all lenders."""

    def joined(self, lender: Lender[Any], /) -> None:
        """Take notice that somebody waits at ``lender`` from now on."""

    def grow(self, lender: Lender[Any], /) -> None:
        """Start the dials that are wanted and possible, after something changed at ``lender``."""

    def outbids(self, lender: Lender[Any], /) -> bool:
        """Whether what comes free at ``lender`` is to be closed for one who waits elsewhere."""

    def current(self, lender: Lender[Any], /) -> Lender[Any]:
        """Return the lender to ask instead of ``lender``, which may have been forgotten."""

    def left(self, lender: Lender[Any], lease: Lease[Any], /) -> None:
        """Take notice that ``lease`` is not waited for any more at ``lender``: a cancellation."""

    def timed_out(self, lender: Lender[Any], /) -> None:
        """Take notice that it was for their ``timeout``: they say so once they run again."""


@final
class Lender(Generic[T]):
    """Lends the connections of one supply to the tasks of one queue.

    Attributes:
      idle, lent, waiting: the supply's and the queue's, nearer by one step.
      name: which of several lenders this is.
      crowd: those whose waiting concerns whoever comes: this queue's, or all of the group.
      plain: whether a connection can be lent without looking at it first.
      acquired, timed_out: see `PoolStatistics`.
      give_ups, last_give_up: how often `failed` was called, and with what the last time.
    """

    def __init__(
        self,
        supply: Supply[T],
        settings: LenderSettings[T],
        group: Group | None = None,
        name: object = None,
    ) -> None:
        self.supply = supply
        self.settings = settings
        self.group = group
        self.name = name
        everyone = None if group is None else group.everyone
        left = None if group is None else partial(group.left, self)
        self._arrivals: Iterator[int] = count(1) if group is None else group.arrivals
        self.queue: WaitQueue[Lease[T]] = WaitQueue(
            everyone=everyone, left=left, turn=lambda lease: lease.arrived
        )
        self.idle = supply.idle
        self.lent = supply.lent
        self.waiting = self.queue.tasks
        self.crowd: Collection[Task] = self.waiting if everyone is None else everyone
        self.report_leaks = False
        self.plain = settings.check is None
        self.acquired = self.timed_out = 0
        self.give_ups = 0
        self.last_give_up: tuple[Exception, int] | None = None
        self._checks = Upkeep(
            settings.check, "check", supply=supply, passed=self._place, ended=self.pump
        )
        self._resets = Upkeep(
            settings.reset, "reset", supply=supply, passed=self._place, ended=self.pump
        )
        self._warned = False
        # What `give_back` does with the clock, it does only where somebody asks for it later.
        self._timed = not (supply.settings.idle_timeout is None and self.plain and group is None)
        timeout = supply.settings.idle_timeout
        # How long what is idle may be let alone.
        self._patience = math.inf if timeout is None else timeout
        self._alarm = supply.alarm

    def open(self, nursery: trio.Nursery, *, report_leaks: bool) -> None:
        """Open for business, with all tasks in ``nursery``."""
        self.report_leaks = report_leaks
        self.plain = self.plain and not report_leaks
        self.supply.open(nursery, self)

    # Lending

    @enable_ki_protection
    def obtain(self, lease: Lease[T], *, first: bool = False) -> Awaitable[Entry[T]]:
        """Lend ``lease`` a connection, after `trio.lowlevel.checkpoint_if_cancelled`.

        All that changes is done when this returns, and what it returns is only waiting: to be
        awaited at once. With one coroutine less for each step, a crowd is served that much faster.

        Args:
          first: it was this task's turn already, so that nobody who waits comes before it.

        If cancelled, nothing was lent.
        """
        if self.group is not None:
            lender = self.group.current(self)
            if lender is not self:
                lease.moved(lender)
                return lender.obtain(lease, first=first)
        if self.report_leaks:
            lease.where = stack_here()
        self.supply.require_open()
        if first or not self.waiting:
            entry = self._take()
            if entry is not None:
                self._lend(entry, lease, current_task())
                return self._confirm(entry)
        return self._queue_up(lease, first=first)

    async def _confirm(self, entry: Entry[T]) -> Entry[T]:
        await cancel_shielded_checkpoint()
        return entry

    def obtain_another(self, entry: Entry[T], lease: Lease[T]) -> Awaitable[Entry[T]]:
        """As `obtain`, after ``entry`` has died on its way to ``lease``.

        If cancelled, nothing was lent.
        """
        self.acquired -= 1
        self.throw_away(entry)
        return self.obtain(lease, first=True)

    def take_nowait(self) -> Entry[T]:
        """Lend a connection to nobody in particular.

        Raises:
          trio.WouldBlock: none is idle, or the next one has to be checked first.
          PoolClosedError: the pool is closed.
        """
        if self.plain and not self.crowd and self.idle:
            key, entry = self.idle.popitem()
            if not entry.stale:
                self.lent[key] = entry
                self.acquired += 1
                entry.task = None
                entry.used = True
                return entry
            self.idle[key] = entry
        self.supply.require_open()
        taken = None if self.waiting else self._take()
        if taken is None:
            self.pump()
            raise trio.WouldBlock
        self._lend(taken, None, None)
        if self.report_leaks:
            taken.where = stack_here()
        return taken

    def _take(self) -> Entry[T] | None:
        entry = self.supply.unshelve()
        if entry is None or self.settings.check is None:
            return entry
        if trio.current_time() - entry.idle_since < self.supply.settings.check_after:
            return entry
        self._checks.start(entry)
        return None

    def _lend(self, entry: Entry[T], lease: Lease[T] | None, task: Task | None) -> None:
        self.lent[entry.key] = entry
        self.acquired += 1
        entry.holder = lease
        entry.task = task
        entry.used = True
        entry.where = None if lease is None else lease.where

    def _queue_up(self, lease: Lease[T], *, first: bool) -> Awaitable[Entry[T]]:
        limit = self.settings.max_waiting
        if limit is not None and len(self.crowd) >= limit and not first:
            if self.group is not None:
                self.group.left(self, lease)
            raise PoolFullError(f"{len(self.crowd)} tasks wait already; max_waiting is {limit}")
        task = current_task()
        if not self._warned:
            self._warn_of_nesting(task)
        if not first:
            lease.arrived = next(self._arrivals)
        self.queue.join(task, lease, first=first)
        if self.group is not None:
            self.group.joined(self)
        self.pump()
        if lease.timeout is None:
            return self.queue.wait(task)
        if lease.deadline is None:
            lease.deadline = trio.current_time() + lease.timeout
        return self._wait_until(lease.deadline, lease.timeout, task)

    async def _wait_until(self, deadline: float, timeout: float, task: Task) -> Entry[T]:
        with trio.move_on_at(deadline):
            entry: Entry[T] = await self.queue.wait(task)
            return entry
        self.timed_out += 1
        if self.group is not None:
            self.group.timed_out(self)
        raise timeout_error(
            timeout,
            self.statistics(),
            self.supply.retry.last_error,
            self.lent.values(),
            None if self.group is None else self.group.budget,
        )

    # Taking back

    @enable_ki_protection
    def give_back(self, entry: Entry[T]) -> None:
        """Take back ``entry``, which is lent, and lend it again or keep it."""
        reporter = entry.reporter
        try:
            detour = entry.detour or (reporter is not None and reporter.closed)
        except Exception:  # noqa: BLE001 - see Entry.is_closed
            entry.doom("discarded")
            detour = True
        if self.lent.pop(entry.key, None) is None:
            # Closed while it was lent, and its holder has done nothing wrong.
            del self.supply.seized[entry.key]
            return
        entry.holder = None
        if detour:
            self._sort(entry)
            return
        if self.crowd:
            self._place(entry)
            self.grow()
            return
        if self._timed:
            entry.idle_since = now = trio.current_time()
            if now + self._patience < self._alarm.at:
                self._alarm.set(now + self._patience)
        self.idle[entry.key] = entry

    def throw_away(self, entry: Entry[T]) -> None:
        """Take back ``entry``, which is lent, and close it."""
        entry.holder = None
        if self.lent.pop(entry.key, None) is None:
            del self.supply.seized[entry.key]
            return
        self.supply.retire(entry, "discarded")
        self.grow()

    def discard(self, resource: T) -> None:
        """Close a connection by its identity; see `Pool.discard`."""
        entry = self.find(resource)
        if isinstance(entry.holder, Lease):
            entry.holder.dropped()
        self.throw_away(entry)

    def find(self, resource: T) -> Entry[T]:
        """Return what is known of a connection that is lent.

        Raises:
          LeaseError: it is not.
        """
        key = id(resource)
        entry = self.lent.get(key) or self.supply.seized.get(key)
        if entry is not None:
            return entry
        if key in self.supply.live or key in self.supply.closing:
            raise LeaseError(f"{resource!r} was given back already")
        raise LeaseError(f"{resource!r} was not lent by this pool")

    def _sort(self, entry: Entry[T]) -> None:
        if entry.doomed:
            self.supply.retire(entry, entry.doomed)
        elif entry.is_closed():
            self.supply.retire(entry, "discarded")
        elif self.supply.surplus() > 0:
            self.supply.retire(entry, "surplus")
        elif self._resets.function is not None:
            self._resets.start(entry)
        else:
            entry.detour = entry.watched_idle
            self._place(entry)
        self.grow()

    def _place(self, entry: Entry[T]) -> None:
        if entry.doubtful and entry.is_dead():
            self.supply.retire(entry, "dead")
        else:
            self._offer(entry)

    def _offer(self, entry: Entry[T]) -> None:
        if self.group is not None and self.group.outbids(self):
            self.supply.retire(entry, "evicted")
        elif self.waiting:
            task = self.queue.oldest
            self._lend(entry, self.waiting[task], task)
            self.queue.hand_over(task, entry)
        else:
            self.supply.shelve(entry)

    # Supply and demand

    def unserved(self) -> int:
        """How many wait for whom nothing but a dial can be on its way."""
        return len(self.waiting) - len(self._checks.running) - len(self._resets.running)

    def pump(self) -> None:
        """Have as many idle connections checked as wait for one, and dial what is missing."""
        while self.settings.check is not None and self.unserved() > 0:
            # Whatever lies idle while somebody waits has lain there too long to go unchecked.
            entry = self.supply.unshelve()
            if entry is None:
                break
            self._checks.start(entry)
        self.grow()

    def wanted_dials(self) -> int:
        """How many more dials should run now, whatever other lenders want.

        One at a time while connections are about: they come back sooner than a dial ends, and a
        crowd that comes and goes would leave as many behind as it was. With none about, as many
        as there are waiters, since nothing else can serve them.
        """
        supply = self.supply
        unserved = self.unserved()
        dialling = len(supply.dials)
        missing = min(supply.floor, supply.limit) - (supply.size - len(supply.closing))
        wanted = max(unserved - dialling, missing)
        allowed = 1 if supply.live else max(1, unserved)
        return max(0, min(wanted, allowed - dialling, supply.room()))

    def grow(self) -> None:
        """Start the dials that are wanted and possible now."""
        if self.group is not None:
            self.group.grow(self)
            return
        # Where nothing is free, which is when there is most to do, it ends here.
        if self.supply.size < self.supply.limit:
            for _ in range(self.wanted_dials()):
                self.supply.dial()

    def arrived(self, entry: Entry[T]) -> None:
        """Lend or shelve a new connection."""
        if entry.doubtful or entry.watched_idle:
            self.plain = False
        elif entry.aging:
            self._timed = True
            self._patience = min(self._patience, self.supply.settings.check_after)
        entry.detour = entry.watched_idle or self.settings.reset is not None
        # Not asked whether it is readable: where the peer speaks first it may well be.
        self._offer(entry)

    def failed(self, error: Exception, attempts: int) -> None:
        """Tell the task that has waited longest, and only it, that dialling fails."""
        self.give_ups += 1
        self.last_give_up = (error, attempts)
        if self.waiting:
            self.queue.fail(self.queue.oldest, connect_error(error, attempts))

    def hung_up(self, entry: Entry[T]) -> None:
        """Close a connection whose peer has gone: now, or when it comes back."""
        if entry.key in self.idle:
            self.supply.retire(entry, "dead")
            self.grow()
        else:
            entry.doom("dead")

    def retired(self, entry: Entry[T], reason: str) -> None:
        """Do nothing: the supply counts for both."""

    # The end

    def sweep(self, now: float) -> float:
        """Do what is due at ``now``; return when something is due next."""
        return self.supply.sweep(now)

    def stop(self) -> None:
        """Lend nothing any more; close what is not lent."""
        self.supply.end()
        self._checks.cancel()
        self._resets.cancel()
        self.queue.fail_all(lambda: PoolClosedError("this pool was closed"))

    def disown(self) -> None:
        """Be closed, in a forked child, where everything belongs to the parent."""
        self.supply.disown()
        self._checks.running.clear()
        self._resets.running.clear()
        if self.group is not None:
            self.group.budget.taken = self.group.budget.closing = 0
        # A fork from a thread of its own leaves no run behind in which anybody could be woken.
        if trio.lowlevel.in_trio_run():
            self.supply.changed()
            self.queue.fail_all(lambda: PoolClosedError("this pool is the parent process's"))

    def report_lent(self, what: str = "was never given back") -> None:
        """Log who has not given back a connection, if that is asked for."""
        if self.report_leaks:
            log_leaks(self.lent.values(), what)

    # Telling

    def statistics(self) -> PoolStatistics:
        """Return what there is and was; see `PoolStatistics`."""
        supply = self.supply
        return PoolStatistics(
            max_size=supply.limit,
            min_size=supply.floor,
            size=supply.size,
            idle=len(self.idle),
            lent=len(self.lent),
            connecting=len(supply.dials),
            checking=len(self._checks.running),
            resetting=len(self._resets.running),
            closing=len(supply.closing),
            waiting=len(self.waiting),
            acquired=self.acquired,
            cancelled=self.queue.gave_up - self.timed_out,
            timed_out=self.timed_out,
            connected=supply.connected,
            connect_failures=supply.connect_failures,
            closed=supply.ended.total(),
            reasons=dict(supply.ended),
        )

    def _warn_of_nesting(self, here: Task) -> None:
        """Log, once, that everything is lent to tasks that wait here for more, as ``here`` does."""
        supply, group = self.supply, self.group
        own = len(self.lent) >= supply.limit
        limit = supply.limit if own or group is None else group.budget.limit
        if not own and (group is None or group.budget.taken < limit):
            return
        lent = self.lent.values() if own or group is None else group.lent()
        self._warned = log_nesting(lent, limit, self.crowd, here)
