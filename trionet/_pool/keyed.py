"""Pools of several peers that share one limit: what is seen of a `KeyGroup`."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Generic, Self, TypeVar, final

from trio.lowlevel import enable_ki_protection

from .group import KeyGroup
from .lease import Lease
from .pool import Pool
from .report import PoolStatistics
from .settings import DEFAULT_BACKOFF, make_settings, require_count, require_seconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from types import TracebackType

    from .._options import Backoff

__all__ = ("KeyedPool",)

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


@final
class _All(Enum):
    """What stands for all keys, since None may be one of them."""

    KEYS = "all keys"


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
        self._group = KeyGroup(
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
        nursery = await self._group.lifecycle.enter()
        self._group.open(nursery, report_leaks=Pool.report_leaks)
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
