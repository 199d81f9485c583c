"""The desk where connections are lent: one supply, one queue, and the rules between them.

How this works. Tasks that want a connection come to `Desk.obtain`; tasks that bring one back, to
`Desk.give_back`; dials and timers come from the supply. Whoever comes changes the state at once,
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

import logging
import math
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, final

import outcome
import trio
from trio.lowlevel import cancel_shielded_checkpoint, current_task, enable_ki_protection

from .._errors import (
    LeaseError,
    PoolClosedError,
    PoolConnectError,
    PoolFullError,
    PoolTimeoutError,
)
from .lease import Lease, PoolStatistics
from .terms import EXCHANGE_LIMIT, attempt
from .waiters import WaitQueue

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from trio.lowlevel import Task

    from .entry import Entry
    from .supply import Supply
    from .terms import Budget, Rules

__all__ = ("Desk", "Hall", "connect_error")

T = TypeVar("T")

# Frames of the stack that a report of a leak shows: enough to leave this package and trio's.
STACK_LIMIT: Final = 12

_logger = logging.getLogger("trionet.pool")


class Hall(Protocol):
    """Several desks that share a budget, seen from one of them."""

    everyone: OrderedDict[Task, Lease[Any]]
    budget: Budget

    def lent(self) -> Iterable[Entry[Any]]:
        """Go through what is lent at all desks."""

    def joined(self, desk: Desk[Any], lease: Lease[Any], /, *, first: bool) -> None:
        """Take notice that somebody waits at ``desk`` from now on."""

    def grow(self, desk: Desk[Any], /) -> None:
        """Start the dials that are wanted and possible, after something changed at ``desk``."""

    def outbids(self, desk: Desk[Any], /) -> bool:
        """Whether what comes free at ``desk`` is to be closed for somebody who waits elsewhere."""

    def current(self, desk: Desk[Any], /) -> Desk[Any]:
        """Return the desk to ask instead of ``desk``, which may have been forgotten."""

    def left(self, desk: Desk[Any], /) -> None:
        """Take notice that somebody was cancelled while waiting at ``desk``."""


@final
class Desk(Generic[T]):
    """Lends the connections of one supply to the tasks of one queue.

    Attributes:
      idle, lent, waiting: the supply's and the queue's, nearer by one step.
      name: which of several desks this is.
      crowd: those whose waiting concerns whoever comes: this queue's, or all of the hall.
      plain: whether a connection can be lent without looking at it first.
      acquired, timed_out: see `PoolStatistics`.
      give_ups, last_give_up: how often `failed` was called, and with what the last time.
    """

    def __init__(
        self, supply: Supply[T], rules: Rules[T], hall: Hall | None = None, name: object = None
    ) -> None:
        self.supply = supply
        self.rules = rules
        self.hall = hall
        self.name = name
        everyone = None if hall is None else hall.everyone
        left = None if hall is None else partial(hall.left, self)
        self.queue: WaitQueue[Lease[T]] = WaitQueue(everyone=everyone, left=left)
        self.idle = supply.idle
        self.lent = supply.lent
        self.waiting = self.queue.tasks
        self.crowd: Collection[Task] = self.waiting if everyone is None else everyone
        self.report_leaks = False
        self.plain = rules.check is None
        self.acquired = self.timed_out = 0
        self.give_ups = 0
        self.last_give_up: tuple[Exception, int] | None = None
        self._checks: dict[Entry[T], trio.CancelScope] = {}
        self._resets: dict[Entry[T], trio.CancelScope] = {}
        self._warned = False
        # What `give_back` does with the clock, it does only where somebody asks for it later.
        self._timed = not (supply.terms.idle_timeout is None and self.plain and hall is None)
        timeout = supply.terms.idle_timeout
        self._idle_timeout = math.inf if timeout is None else timeout
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
        if self.hall is not None:
            desk = self.hall.current(self)
            if desk is not self:
                lease.moved(desk)
                return desk.obtain(lease, first=first)
        if self.report_leaks:
            lease.where = traceback.format_stack(limit=STACK_LIMIT)[:-1]
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
            self.lent[key] = entry
            self.acquired += 1
            entry.task = None
            entry.used = True
            return entry
        self.supply.require_open()
        taken = None if self.waiting else self._take()
        if taken is None:
            self.pump()
            raise trio.WouldBlock
        self._lend(taken, None, None)
        if self.report_leaks:
            taken.where = traceback.format_stack(limit=STACK_LIMIT)[:-1]
        return taken

    def _take(self) -> Entry[T] | None:
        entry = self.supply.unshelve()
        if entry is None or self.rules.check is None:
            return entry
        if trio.current_time() - entry.idle_since < self.rules.check_after:
            return entry
        self._start_check(entry)
        return None

    def _lend(self, entry: Entry[T], lease: Lease[T] | None, task: Task | None) -> None:
        self.lent[entry.key] = entry
        self.acquired += 1
        entry.holder = lease
        entry.task = task
        entry.used = True
        entry.where = None if lease is None else lease.where

    def _queue_up(self, lease: Lease[T], *, first: bool) -> Awaitable[Entry[T]]:
        limit = self.rules.max_waiting
        if limit is not None and len(self.crowd) >= limit and not first:
            if self.hall is not None:
                self.hall.left(self)
            raise PoolFullError(f"{len(self.crowd)} tasks wait already; max_waiting is {limit}")
        task = current_task()
        if not self._warned:
            self._warn_of_nesting(task)
        self.queue.join(task, lease, first=first)
        if self.hall is not None:
            self.hall.joined(self, lease, first=first)
        self.pump()
        if lease.timeout is None:
            return self.queue.wait(task)
        return self._wait_no_longer_than(lease.timeout, task)

    async def _wait_no_longer_than(self, timeout: float, task: Task) -> Entry[T]:
        with trio.move_on_after(timeout):
            entry: Entry[T] = await self.queue.wait(task)
            return entry
        self.timed_out += 1
        raise self._timeout_error(timeout) from self.supply.last_error

    # Taking back

    @enable_ki_protection
    def give_back(self, entry: Entry[T]) -> None:
        """Take back ``entry``, which is lent, and lend it again or keep it."""
        teller = entry.teller
        try:
            detour = entry.detour or (teller is not None and teller.closed)
        except Exception:  # noqa: BLE001 - see Entry.is_closed
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
            if now + self._idle_timeout < self._alarm.at:
                self._alarm.set(now + self._idle_timeout)
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
        reset = self.rules.reset
        if entry.doomed:
            self.supply.retire(entry, entry.doomed)
        elif entry.is_closed():
            self.supply.retire(entry, "discarded")
        elif self.supply.surplus() > 0:
            self.supply.retire(entry, "surplus")
        elif reset is not None:
            self._start(self._resets, reset, entry, "reset")
        else:
            entry.detour = entry.watched_idle
            self._place(entry)
        self.grow()

    def _place(self, entry: Entry[T]) -> None:
        if entry.probe is not None and entry.is_dead():
            self.supply.retire(entry, "dead")
        else:
            self._offer(entry)

    def _offer(self, entry: Entry[T]) -> None:
        if self.hall is not None and self.hall.outbids(self):
            self.supply.retire(entry, "evicted")
        elif self.waiting:
            task = self.queue.oldest
            self._lend(entry, self.waiting[task], task)
            self.queue.hand_over(task, entry)
        else:
            self.supply.shelve(entry)

    # Checking and resetting

    def _start_check(self, entry: Entry[T]) -> None:
        check = self.rules.check
        assert check is not None
        self._start(self._checks, check, entry, "check")

    def _start(
        self,
        running: dict[Entry[T], trio.CancelScope],
        function: Callable[[T], Awaitable[object]],
        entry: Entry[T],
        what: str,
    ) -> None:
        scope = trio.CancelScope(deadline=trio.current_time() + EXCHANGE_LIMIT)
        running[entry] = scope
        self.supply.start(self._run, running, function, entry, what)

    @enable_ki_protection
    async def _run(
        self,
        running: dict[Entry[T], trio.CancelScope],
        function: Callable[[T], Awaitable[object]],
        entry: Entry[T],
        what: str,
    ) -> None:
        passed = False
        try:
            result = await attempt(function, entry.resource, scope=running[entry], what=what)
            passed = isinstance(result, outcome.Value) and result.value is not False
        finally:
            if running.pop(entry, None) is None:
                passed = False  # Disowned by a fork: somebody else's business.
            elif entry.doomed or not passed or self.supply.surplus() > 0:
                self.supply.retire(entry, "surplus" if passed else what)
            else:
                self._place(entry)
            self.pump()

    # Supply and demand

    def unserved(self) -> int:
        """How many wait for whom nothing but a dial can be on its way."""
        return len(self.waiting) - len(self._checks) - len(self._resets)

    def pump(self) -> None:
        """Have as many idle connections checked as wait for one, and dial what is missing."""
        while self.rules.check is not None and self.unserved() > 0:
            # Whatever lies idle while somebody waits has lain there too long to go unchecked.
            entry = self.supply.unshelve()
            if entry is None:
                break
            self._start_check(entry)
        self.grow()

    def wanted_dials(self) -> int:
        """How many more dials should run now, whatever other desks want.

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
        if self.hall is not None:
            self.hall.grow(self)
            return
        # Where nothing is free, which is when there is most to do, it ends here.
        if self.supply.size < self.supply.limit:
            for _ in range(self.wanted_dials()):
                self.supply.dial()

    def arrived(self, entry: Entry[T]) -> None:
        """Lend or shelve a new connection."""
        if entry.probe is not None or entry.watched_idle:
            self.plain = False
        entry.detour = entry.watched_idle or self.rules.reset is not None
        # Not asked whether it is readable: where the peer speaks first it may well be.
        self._offer(entry)

    def failed(self, error: Exception, attempts: int) -> None:
        """Tell the task that has waited longest, and only it, that dialling fails."""
        self.give_ups += 1
        self.last_give_up = (error, attempts)
        if self.waiting:
            self.queue.fail(self.queue.oldest, connect_error(error, attempts))

    # The end

    def stop(self) -> None:
        """Lend nothing any more; close what is not lent."""
        self.supply.end()
        for scope in (*self._checks.values(), *self._resets.values()):
            scope.cancel()
        self.queue.fail_all(lambda: PoolClosedError("this pool was closed"))

    def disown(self) -> None:
        """Be closed, in a forked child, where everything belongs to the parent."""
        self.supply.disown()
        self._checks.clear()
        self._resets.clear()
        if self.hall is not None:
            self.hall.budget.taken = self.hall.budget.closing = 0
        # A fork from a thread of its own leaves no run behind in which anybody could be woken.
        if trio.lowlevel.in_trio_run():
            self.supply.changed()
            self.queue.fail_all(lambda: PoolClosedError("this pool is the parent process's"))

    def report_lent(self, what: str = "was never given back") -> None:
        """Log who has not given back a connection, if that is asked for."""
        for entry in self.lent.values() if self.report_leaks else ():
            _logger.warning(
                "%r %s; it was acquired at\n%s",
                entry.resource,
                what,
                "".join(entry.where or ()),
            )

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
            checking=len(self._checks),
            resetting=len(self._resets),
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

    def _timeout_error(self, timeout: float) -> PoolTimeoutError:
        now = self.statistics()
        text = (
            f"no connection came within {timeout:g} s: {now.size} of {now.max_size} slots taken "
            f"({now.idle} idle, {now.lent} lent, {now.connecting} connecting, "
            f"{now.checking} checked, {now.resetting} reset, {now.closing} closing), "
            f"{now.waiting} waiting"
        )
        if self.hall is not None:
            text += f", and {self.hall.budget.taken} of {self.hall.budget.limit} for all keys"
        if self.supply.last_error is not None:
            text += f"; connecting failed last with {self.supply.last_error!r}"
        error = PoolTimeoutError(text)
        for entry in self.lent.values():
            if entry.where is not None:
                error.add_note(f"{entry.resource!r} is lent, since\n{''.join(entry.where)}")
        return error

    def _warn_of_nesting(self, here: Task) -> None:
        """Log, once, that everything is lent to tasks that wait here for more, as ``here`` does."""
        supply, hall = self.supply, self.hall
        own = len(self.lent) >= supply.limit
        limit = supply.limit if own or hall is None else hall.budget.limit
        if not own and (hall is None or hall.budget.taken < limit):
            return
        count = 0
        for entry in self.lent.values() if own or hall is None else hall.lent():
            count += 1
            if entry.task is not here and entry.task not in self.crowd:
                return
        if count < limit:
            return
        self._warned = True
        _logger.warning(
            "all %d connections are lent to tasks that wait for another one here: "
            "unless one of them is cancelled, none will ever be given back",
            limit,
        )


def connect_error(error: Exception, attempts: int) -> PoolConnectError:
    """Make the exception that says what kept connecting from succeeding."""
    times = "" if attempts == 1 else f", {attempts} times in a row"
    problem = PoolConnectError(f"could not connect{times}: {error!r}")
    problem.__cause__ = error
    return problem
