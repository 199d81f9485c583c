"""The connection pool: one supply, one queue."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, ClassVar, Generic, Self, TypeVar, final

import trio
from trio.lowlevel import current_task, enable_ki_protection

from .._errors import LeaseError, PoolClosedError
from .lease import Lease
from .lender import Lender
from .lifecycle import Lifecycle
from .report import PoolStatistics, connect_error
from .settings import DEFAULT_BACKOFF, make_settings, require_count, require_seconds
from .supply import Supply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from .._options import Backoff

__all__ = ("Lease", "Pool", "PoolStatistics")

T = TypeVar("T")


@final
class Pool(Generic[T]):
    """Keeps connections, or anything that has an ``aclose``, to lend them again and again.

    ::

        async with trionet.Pool(connect, max_size=10) as pool:
            async with pool.acquire() as stream:
                ...

    Tasks are served in the order in which they came. What is given back goes straight to the one
    that has waited longest, or is kept and lent next, so that connections which are not needed
    grow old and are closed. Connections are made in tasks of the pool: whoever is cancelled while
    it waits leaves the queue, and what was on its way goes to the next.

    The block owns every task of the pool. Leaving it normally is ``drain()``; by an exception or
    a cancellation, ``drain(0)``.

    Attributes:
      report_leaks: whether pools that are entered from now on log each connection that was never
        given back, with the stack on which it was acquired. Off, since a stack costs more than a
        connection, unless Python runs in its development mode (``-X dev``).
    """

    report_leaks: ClassVar[bool] = sys.flags.dev_mode

    __slots__ = ("_lender", "_lifecycle")

    def __init__(
        self,
        connect: Callable[[], Awaitable[T]],
        *,
        max_size: int,
        min_size: int = 0,
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
          connect: makes a connection, a new one at each call.
          max_size: connections at most, those that are being made or closed included.
          min_size: connections to keep open, used or not.
          max_waiting: tasks that may wait; the next one gets `PoolFullError`. No limit unless
            given: a caller that must not wait says so itself, by ``timeout`` or a cancel scope.
          connect_timeout: seconds ``connect`` may take.
          backoff: pauses after failures, and when to tell; ``Backoff()`` unless given.
          idle_timeout: seconds after which a connection that nobody uses is closed, if more than
            ``min_size`` are open.
          lifetime: seconds after which a connection is closed anyway, when it is not in use. Each
            lives for 95 to 100 % of it.
          check: looks whether a connection still works, before it is lent: one for which it
            raises, or returns False, is closed. It gets 5 s.
          check_after: seconds that a connection has to lie idle before it is checked, and before
            a socket is looked at for bytes that nobody asked for. A check is a round trip, and
            hardly anything dies within half a second of working.
          reset: brings a connection that was given back into the state of a new one, before
            anybody else gets it; if it raises, the connection is closed. It gets 5 s.
          close: closes a connection instead of its ``aclose``. It gets 5 s; then ``aclose``, if
            there is one, is called with no time to wait.

        Raises:
          ValueError, TypeError: an argument makes no sense.
        """
        require_count("max_size", max_size, minimum=1)
        require_count("min_size", min_size, minimum=0)
        if min_size > max_size:
            raise ValueError(f"min_size must not exceed max_size {max_size}, got {min_size}")
        supply_settings, lender_settings = make_settings(
            connect=connect,
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
        self._lifecycle = Lifecycle(lambda: (self._lender,))
        supply = Supply(
            connect, supply_settings, limit=max_size, floor=min_size, alarm=self._lifecycle.alarm
        )
        self._lender = Lender(supply, lender_settings)

    def __repr__(self) -> str:
        now = self.statistics()
        state = " closed" if self._lifecycle.closed else ""
        return (
            f"<Pool{state}: {now.size} of {now.max_size} "
            f"({now.idle} idle, {now.lent} lent), {now.waiting} waiting>"
        )

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Open the pool and begin to make ``min_size`` connections, without waiting for them.

        Raises:
          RuntimeError: the pool was entered before.

        If cancelled, nothing is open.
        """
        nursery = await self._lifecycle.enter()
        self._lender.open(nursery, report_leaks=Pool.report_leaks)
        self._lender.grow()
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
        await self._lifecycle.leave(kind, exception, traceback)

    def acquire(self, *, timeout: float | None = None) -> Lease[T]:
        """Return a lease, to be entered: ``async with pool.acquire() as connection``.

        Args:
          timeout: seconds that entering it may take; no limit unless given.

        Raises:
          ValueError, TypeError: ``timeout`` is not a number of seconds.

        Entering it raises and leaves behind what `Lease.__aenter__` says.
        """
        if timeout is not None:
            require_seconds("timeout", timeout)
        return Lease(self._lender, timeout)

    @enable_ki_protection
    async def get(self, *, timeout: float | None = None) -> T:
        """Return a connection, which has to be `put` back or `discard`-ed.

        ``acquire`` does that by itself, and never forgets. Raises what entering a `Lease` raises.

        If cancelled, this task has no connection; a dial on its behalf goes on, for the next one.
        """
        lease = self.acquire(timeout=timeout)
        connection = await lease.__aenter__()
        lease.detach()
        return connection

    @enable_ki_protection
    def get_nowait(self) -> T:
        """Return an idle connection, which has to be `put` back or `discard`-ed.

        Raises:
          trio.WouldBlock: none is idle, or ``check`` would have to look at it first.
          PoolClosedError: the pool is closed.
        """
        return self._lender.take_nowait().resource

    @enable_ki_protection
    def put(self, connection: T) -> None:
        """Give back what `get` or `get_nowait` returned. One that is closed is not kept.

        Raises:
          LeaseError: it is not lent; maybe it was given back already. Or it is lent again, to a
            block of another task: ``put`` twice. If that one used `get` too, nobody can tell.
        """
        lender = self._lender
        entry = lender.lent.get(id(connection))
        if entry is None:
            entry = lender.find(connection)
        elif entry.holder is not None and entry.task is not current_task():
            raise LeaseError(
                f"{connection!r} is lent to another task now; it was given back before"
            )
        lender.give_back(entry)

    @enable_ki_protection
    def discard(self, connection: T) -> None:
        """Give back a connection that is not to be used again: it is closed.

        Inside the block of `acquire` too, which then ends as if there were nothing to give back.

        Raises:
          LeaseError: it is not lent; maybe it was given back already.
        """
        self._lender.discard(connection)

    def statistics(self) -> PoolStatistics:
        """Return what the pool has and has done."""
        return self._lender.statistics()

    @enable_ki_protection
    def resize(self, max_size: int) -> None:
        """Change how many connections there may be at most.

        If there are more, idle ones are closed now, and others when they are given back. While
        it is below ``min_size``, it counts as that too.

        Raises:
          ValueError, TypeError: ``max_size`` is not 1 or more.
        """
        require_count("max_size", max_size, minimum=1)
        self._lender.supply.limit = max_size
        self._lender.supply.trim()
        if not self._lifecycle.closed:
            self._lender.grow()

    @enable_ki_protection
    def expire(self) -> None:
        """Close all connections of today: the idle ones now, the others when they come back."""
        self._lender.supply.expire()
        if not self._lifecycle.closed:
            self._lender.grow()

    async def ready(self) -> None:
        """Wait until ``min_size`` connections are open.

        Raises:
          PoolConnectError: connecting failed meanwhile, as often as the backoff allows.
          PoolClosedError: the pool is closed or gets closed.
          RuntimeError: the pool's block has not begun.

        If cancelled, the pool goes on to connect.
        """
        await trio.lowlevel.checkpoint()
        lender, supply = self._lender, self._lender.supply
        supply.require_open()
        failures = lender.give_ups

        def decided() -> bool:
            enough = len(supply.live) >= min(supply.floor, supply.limit)
            return enough or supply.closed or lender.give_ups > failures

        await supply.wait_until(decided)
        if supply.closed:
            raise PoolClosedError("this pool is closed")
        if lender.give_ups > failures and len(supply.live) < min(supply.floor, supply.limit):
            assert lender.last_give_up is not None
            raise connect_error(*lender.last_give_up)

    @enable_ki_protection
    async def drain(self, grace: float | None = None) -> None:
        """Lend nothing any more, wait for what is lent, and close everything, for good.

        Tasks that wait get `PoolClosedError` now, as those that come later do. A task that holds
        a connection itself waits for itself here, unless ``grace`` is given.

        Args:
          grace: seconds to wait; what is lent longer is closed under its holder, who gets
            `trio.ClosedResourceError` and may still give it back. No limit unless given.

        Raises:
          ValueError, TypeError: ``grace`` is not a number of seconds.

        If cancelled, nothing is lent any more, and what comes back is closed.
        """
        await self._lifecycle.drain(grace)
