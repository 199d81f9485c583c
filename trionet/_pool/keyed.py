"""Pools of several peers that share one limit.

How this works. Each key has a lender, with a supply and a queue of its own; all lenders share one
budget of slots and form one `_Group`, which knows everybody who waits in order of arrival. Whenever
something changes at one lender, the group gives what slots are free to those who have waited
longest among those who may use them. If no slot is free, it closes what has been idle longest at
another lender, and the slot is given away when that is closed.

A lender that has nothing and for which nobody waits is forgotten. A lease may still refer to it: it
asks the group for the present one when it is entered.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from contextlib import closing
from dataclasses import fields
from enum import Enum
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, final

from trio.lowlevel import current_task, enable_ki_protection

from .lease import Lease
from .lender import Lender
from .lifecycle import Lifecycle
from .pool import Pool
from .report import PoolStatistics
from .settings import (
    DEFAULT_BACKOFF,
    LenderSettings,
    SupplySettings,
    make_settings,
    require_count,
    require_seconds,
)
from .supply import Budget, Supply

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Generator,
        Hashable,
        Iterable,
        Iterator,
        Sequence,
    )
    from types import TracebackType

    import trio
    from trio.lowlevel import Task

    from .._options import Backoff
    from .entry import Entry

__all__ = ("KeyedPool",)

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")

# Notes of who waits that have lost their meaning, beyond as many as there are keys, before they are
# cleared away.
SLACK: Final = 64

# What goes on counting after a key is forgotten.
COUNTS: Final = ("acquired", "cancelled", "timed_out", "connected", "connect_failures", "closed")


@final
class _All(Enum):
    """What stands for all keys, since None may be one of them."""

    KEYS = "all keys"


@final
class _Group(Generic[K, T]):
    """All lenders of one `KeyedPool`, and what they share; see the note on top."""

    def __init__(
        self,
        connect_to: Callable[[K], Awaitable[T]],
        supply_settings: SupplySettings[T],
        lender_settings: LenderSettings[T],
        *,
        max_total: int,
        max_per_key: int,
    ) -> None:
        self._connect_to = connect_to
        self._supply_settings = supply_settings
        self._lender_settings = lender_settings
        self._max_per_key = max_per_key
        self._nursery: trio.Nursery | None = None
        # Lenders where somebody waits, by when their oldest came or earlier, as a heap. Where
        # nobody does, and what is listed twice, is dropped on sight.
        self._hungry: list[tuple[int, int, Lender[T]]] = []
        self._notes = count()
        self.budget = Budget(max_total)
        self.everyone: OrderedDict[Task, Lease[Any]] = OrderedDict()
        self.arrivals: Iterator[int] = count(1)
        self.lenders: dict[K, Lender[T]] = {}
        self.past: Counter[str] = Counter()
        self.past_reasons: Counter[str] = Counter()
        self.lifecycle = Lifecycle(self._open_lenders)

    def _open_lenders(self) -> Sequence[Lender[T]]:
        return list(self.lenders.values())

    def open(self, nursery: trio.Nursery) -> None:
        """Run the tasks of all lenders in ``nursery``."""
        self._nursery = nursery

    def make(self, key: K) -> Lender[T]:
        """Make a lender that is not there yet, as far as others are concerned."""
        supply = Supply(
            partial(self._connect_to, key),
            self._supply_settings,
            limit=self._max_per_key,
            alarm=self.lifecycle.alarm,
            budget=self.budget,
        )
        return Lender(supply, self._lender_settings, self, key)

    def current(self, lender: Lender[Any], /) -> Lender[Any]:
        """Return the lender to ask for the key of ``lender``; maybe itself, which is then there."""
        key: Any = lender.name
        present = self.lenders.get(key)
        if present is None and self._nursery is not None and not self.lifecycle.closed:
            present = self.make(key) if lender.supply.closed else lender
            present.open(self._nursery, report_leaks=Pool.report_leaks)
            self.lenders[key] = present
        if present is None:
            # Says for itself that it is closed, or not open yet.
            lender.supply.closed = self.lifecycle.closed
            return lender
        return present

    def lent(self) -> Iterable[Entry[T]]:
        """Go through what is lent, whatever the key."""
        for lender in self.lenders.values():
            yield from lender.lent.values()

    def joined(self, lender: Lender[Any], /) -> None:
        """Remember where somebody waits."""
        if len(self._hungry) > 2 * len(self.lenders) + SLACK:
            self._hungry.clear()
            for other in self.lenders.values():
                self._note(other)
        elif lender.queue.oldest is current_task():
            # Otherwise it is known where, and that somebody was there before.
            self._note(lender)

    def left(self, lender: Lender[Any], _lease: Lease[Any], /) -> None:
        """Forget the lender if nobody else waits and nothing is there."""
        self._tidy(lender)

    def timed_out(self, lender: Lender[Any], /) -> None:
        """Count it for a lender that was forgotten as they left."""
        key: Any = lender.name
        if self.lenders.get(key) is not lender:
            self.past["timed_out"] += 1
            self.past["cancelled"] -= 1

    def grow(self, lender: Lender[Any], /) -> None:
        """Give slots to those who have waited longest, and make room for them."""
        self._tidy(lender)
        budget = self.budget
        coming = budget.closing
        with closing(self._claims()) as claims:
            for _, hungry in claims:
                if budget.taken < budget.limit:
                    hungry.supply.dial()
                elif coming > 0:
                    coming -= 1
                elif not self._make_room(hungry):
                    return

    def outbids(self, lender: Lender[Any], /) -> bool:
        """Whether a slot is needed more elsewhere than what comes free at ``lender`` is here."""
        budget = self.budget
        if budget.taken < budget.limit or not self.everyone:
            return False
        coming = budget.closing
        # What comes free here serves the first in line, whatever is on its way for them.
        here = lender.waiting[lender.queue.oldest].arrived if lender.waiting else None
        with closing(self._claims()) as claims:
            for arrived, _ in claims:
                if here is not None and here <= arrived:
                    return False
                coming -= 1
                if coming < 0:
                    return True
        return False

    def _claims(self) -> Generator[tuple[int, Lender[T]], None, None]:
        """Go through those who wait for a slot, in the order in which they came; to be closed.

        One for each dial that is wanted: the first in line for whom nothing is on its way are
        meant, so that a lender whose first one is provided for does not go before older ones
        elsewhere. Yields when each came, and where.

        Looks no further than its caller does: with as many keys as tasks, and each of them
        waiting, to look at all of them whenever anything happens would be most of the work.
        """
        hungry = self._hungry
        seen: dict[Lender[T], None] = {}
        claims: list[tuple[int, int, Lender[T], Iterator[Lease[T]]]] = []
        try:
            while hungry or claims:
                # Nobody at a lender came before its oldest, so this is what has to be known.
                if claims and (not hungry or claims[0][0] <= hungry[0][0]):
                    arrived, number, lender, line = claims[0]
                    yield arrived, lender
                    following = next(line, None)
                    if following is None:
                        heapq.heappop(claims)
                    else:
                        heapq.heapreplace(claims, (following.arrived, number, lender, line))
                    continue
                _, number, lender = heapq.heappop(hungry)
                if lender in seen or not lender.waiting:
                    continue
                seen[lender] = None
                wanted = lender.wanted_dials()
                covered = len(lender.waiting) - lender.unserved() + len(lender.supply.dials)
                # A list: dials do not change who waits, but what is closed for them may.
                line = iter(list(islice(lender.waiting.values(), covered, covered + wanted)))
                first = next(line, None)
                if first is not None:
                    heapq.heappush(claims, (first.arrived, number, lender, line))
        finally:
            for lender in seen:
                self._note(lender)

    def _note(self, lender: Lender[T]) -> None:
        """Have `_claims` look at ``lender`` when it is the turn of its oldest waiter."""
        if lender.waiting:
            oldest = lender.waiting[lender.queue.oldest]
            heapq.heappush(self._hungry, (oldest.arrived, next(self._notes), lender))

    def _make_room(self, lender: Lender[T]) -> bool:
        """Close what has been idle longest at any other lender; false if nothing is."""
        oldest = min(
            (
                next(iter(other.idle.values()))
                for other in self.lenders.values()
                if other.idle and other is not lender
            ),
            key=lambda entry: entry.idle_since,
            default=None,
        )
        if oldest is None:
            return False
        for other in self.lenders.values():
            if other.idle.get(oldest.key) is oldest:
                other.supply.retire(oldest, "evicted")
                break
        return True

    def _tidy(self, lender: Lender[Any]) -> None:
        key: Any = lender.name
        supply = lender.supply
        if self.lenders.get(key) is not lender or self.lifecycle.closed:
            return
        if supply.size or supply.retry.resting or lender.waiting:
            return
        del self.lenders[key]
        supply.shut()
        now = lender.statistics()
        self.past.update({name: getattr(now, name) for name in COUNTS})
        self.past_reasons.update(now.reasons)


@final
class KeyedPool(Generic[K, T]):
    """Keeps connections to several peers within one limit, to lend them again and again.

    ::

        async with trionet.KeyedPool(connect_to, max_total=100, max_per_key=10) as pool:
            async with pool.acquire("api.example:443") as stream:
                ...

    For each key it does what a `Pool` does. If ``max_total`` is reached, somebody who has no
    connection to their peer yet gets one by closing the one that has been idle longest elsewhere;
    and what is given back while somebody else has waited longer for room is closed to make it.
    """

    __slots__ = ("_group",)

    def __init__(
        self,
        connect_to: Callable[[K], Awaitable[T]],
        *,
        max_total: int,
        max_per_key: int,
        max_waiting: int | None = None,
        connect_timeout: float | None = 10.0,
        backoff: Backoff = DEFAULT_BACKOFF,
        idle_timeout: float | None = 600.0,
        lifetime: float | None = 3600.0,
        check: Callable[[T], Awaitable[object]] | None = None,
        check_after: float = 0.5,
        reset: Callable[[T], Awaitable[object]] | None = None,
        close: Callable[[T], Awaitable[object]] | None = None,
    ) -> None:
        """Make a pool; nothing is opened before its block is entered.

        Args:
          connect_to: makes a connection to the peer that its one argument, the key, stands for.
          max_total: connections at most, to all peers together.
          max_per_key: connections at most to any one of them.
          max_waiting: tasks that may wait, for whatever key; the next one gets `PoolFullError`.
          backoff: as for `Pool`, each key for itself. The others are as for `Pool` too.

        Raises:
          ValueError, TypeError: an argument makes no sense.
        """
        require_count("max_total", max_total, minimum=1)
        require_count("max_per_key", max_per_key, minimum=1)
        supply_settings, lender_settings = make_settings(
            connect_to,
            max_waiting=max_waiting,
            connect_timeout=connect_timeout,
            backoff=backoff,
            idle_timeout=idle_timeout,
            lifetime=lifetime,
            check=check,
            check_after=check_after,
            reset=reset,
            close=close,
        )
        self._group = _Group(
            connect_to,
            supply_settings,
            lender_settings,
            max_total=max_total,
            max_per_key=max_per_key,
        )

    def __repr__(self) -> str:
        budget = self._group.budget
        state = " closed" if self._group.lifecycle.closed else ""
        return (
            f"<KeyedPool{state}: {budget.taken} of {budget.limit} "
            f"for {len(self._group.lenders)} keys, {len(self._group.everyone)} waiting>"
        )

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Open the pool.

        Raises:
          RuntimeError: the pool was entered before.

        If cancelled, nothing is open.
        """
        self._group.open(await self._group.lifecycle.enter())
        return self

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain the pool, without grace after an exception.

        If cancelled, everything is closed at once, also what is lent.
        """
        await self._group.lifecycle.leave(kind, exception, traceback)

    def acquire(self, key: K, *, timeout: float | None = None) -> Lease[T]:
        """Return a lease on a connection to the peer of ``key``, to be entered.

        Args:
          timeout: seconds that entering it may take; no limit unless given.

        Raises:
          ValueError, TypeError: ``timeout`` is not a number of seconds.
          TypeError: ``key`` is not hashable.

        Entering it raises and leaves behind what `Lease.__aenter__` says.
        """
        require_seconds("timeout", timeout)
        lender = self._group.lenders.get(key)
        return Lease(self._group.make(key) if lender is None else lender, timeout)

    @property
    def keys(self) -> tuple[K, ...]:
        """The keys for which there is a connection, or somebody waits, or a pause runs."""
        return tuple(self._group.lenders)

    def statistics(self, key: K | _All = _All.KEYS) -> PoolStatistics:
        """Return what the pool has and has done, for all keys or for one.

        What it did for a key counts for that key until the key is forgotten.
        """
        if not isinstance(key, _All):
            lender = self._group.lenders.get(key)
            return (self._group.make(key) if lender is None else lender).statistics()
        total = Counter(self._group.past)
        reasons = Counter(self._group.past_reasons)
        for lender in self._group.lenders.values():
            now = lender.statistics()
            reasons.update(now.reasons)
            total.update({f.name: getattr(now, f.name) for f in fields(now) if f.name != "reasons"})
        counts = {f.name: total[f.name] for f in fields(PoolStatistics) if f.name != "reasons"}
        counts["max_size"] = self._group.budget.limit
        return PoolStatistics(**counts, reasons=dict(reasons))

    @enable_ki_protection
    def expire(self, key: K | _All = _All.KEYS) -> None:
        """Close all connections of today, or those of one key, as `Pool.expire` does."""
        lenders = self._group.lenders
        chosen = lenders.values() if isinstance(key, _All) else filter(None, [lenders.get(key)])
        for lender in list(chosen):
            lender.supply.expire()
            lender.grow()

    @enable_ki_protection
    async def drain(self, grace: float | None = None) -> None:
        """Lend nothing any more, wait for what is lent, and close everything, for good.

        As `Pool.drain`; raises what that raises.

        If cancelled, nothing is lent any more, and what comes back is closed.
        """
        await self._group.lifecycle.drain(grace)
