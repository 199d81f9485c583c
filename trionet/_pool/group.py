"""The lenders of a pool of several peers, and the limit that they share.

How this works. Each key has a lender, with a supply and a queue of its own; all lenders share one
budget of slots and form one `KeyGroup`, which knows everybody who waits in order of arrival.
Whenever something changes at one lender, the group gives what slots are free to those who have
waited longest among those who may use them. If no slot is free, it closes what has been idle
longest at another lender, and the slot is given away when that is closed.

A lender that has nothing and for which nobody waits is forgotten. A lease may still refer to it: it
asks the group for the present one when it is entered.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from contextlib import closing
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

from trio.lowlevel import current_task

from .lender import Lender
from .lifecycle import Lifecycle
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

    import trio
    from trio.lowlevel import Task

    from .entry import Entry
    from .lease import Lease
    from .settings import LenderSettings, SupplySettings

__all__ = ("KeyGroup",)

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")

# Notes of who waits that have lost their meaning, beyond as many as there are keys, before they are
# cleared away.
SLACK: Final = 64

# What goes on counting after a key is forgotten.
COUNTS: Final = ("acquired", "cancelled", "timed_out", "connected", "connect_failures", "closed")


@final
class KeyGroup(Generic[K, T]):
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
        self._report_leaks = False
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

    def open(self, nursery: trio.Nursery, *, report_leaks: bool) -> None:
        """Run the tasks of all lenders in ``nursery``."""
        self._nursery = nursery
        self._report_leaks = report_leaks

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
            present.open(self._nursery, report_leaks=self._report_leaks)
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
