"""What a block owns: a nursery, the one task that keeps time, and the end of it all."""

from __future__ import annotations

import math
import os
import weakref
from typing import TYPE_CHECKING, Any, Protocol, final

import trio

from .._errors import Ungrouped
from .alarm import Alarm
from .settings import require_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from .supply import Supply

__all__ = ("Lifecycle", "Tenant")

_open: weakref.WeakSet[Lifecycle] = weakref.WeakSet()


def _after_fork() -> None:
    # A list: whoever is disowned leaves the set.
    for lifecycle in list(_open):
        lifecycle.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Tenant(Protocol):
    """Whoever lends the connections of one supply, as far as the block has to do with it."""

    supply: Supply[Any]

    def sweep(self, now: float, /) -> float:
        """Do what is due at ``now``; return when something is due next."""

    def stop(self) -> None:
        """Lend nothing any more; close what is not lent."""

    def disown(self) -> None:
        """Be closed, in a forked child, where everything belongs to the parent."""

    def report_lent(self, what: str = ..., /) -> None:
        """Say what has not been given back, if that is asked for."""


@final
class Lifecycle:
    """The lifetime of one lender, or of several.

    Attributes:
      alarm: for the supplies of these lenders.
      closed: whether `drain` was called, or the block was left.
    """

    def __init__(
        self,
        lenders: Callable[[], Collection[Tenant]],
        *,
        what: str = "a pool",
        grace: float | None = None,
    ) -> None:
        """Prepare, for the lenders that ``lenders()`` lists at any time.

        Args:
          what: whose block it is, for an error.
          grace: seconds that the normal end of the block waits for what is lent; None: no limit.
        """
        self._lenders = lenders
        self._what = what
        self._grace = grace
        self._manager: Any = None
        self._nursery: trio.Nursery | None = None
        self._entered = False
        self.closed = False
        self.alarm = Alarm(self._sweep)

    def _sweep(self, now: float) -> float:
        return min((lender.sweep(now) for lender in list(self._lenders())), default=math.inf)

    async def enter(self) -> trio.Nursery:
        """Open the nursery and start keeping time.

        Raises:
          RuntimeError: this was done before.

        If cancelled, nothing is open.
        """
        if self._entered:
            raise RuntimeError(f"{self._what} cannot be entered a second time")
        self._entered = True
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self.alarm.run)
        _open.add(self)
        return self._nursery

    def disown(self) -> None:
        """Be closed, and leave all connections alone: in a forked child they are the parent's."""
        _open.discard(self)
        self.closed = True
        for lender in list(self._lenders()):
            lender.disown()

    async def leave(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Drain, without grace after an exception, and close the nursery.

        Raises:
          BaseException: what a task of the pool died of, together with ``exception``.

        If cancelled, everything is closed forcefully.
        """
        assert self._nursery is not None
        interrupted: BaseException | None = None
        try:
            await self.drain(self._grace if exception is None else 0)
        except BaseException as interruption:  # noqa: BLE001 - passed on to the nursery, below
            for lender in list(self._lenders()):
                lender.report_lent()
                lender.supply.seize()
                lender.supply.cut_short()
            # What the body raised outranks the cancellation of the work after it, as it does in a
            # nursery; the cancellation stays in force outside.
            if exception is None or not isinstance(interruption, trio.Cancelled):
                kind, exception = type(interruption), interruption
                traceback = interruption.__traceback__
                interrupted = interruption
        # A group of the body's own is raised by the block itself: a nursery would take it apart.
        # One with a cancellation in it is the nursery's business all the same.
        own = exception if isinstance(exception, BaseExceptionGroup) else None
        if own is not None and own.split(trio.Cancelled)[0] is None and interrupted is None:
            kind = exception = traceback = None
        # What still closes is shielded from this; only the alarm is not.
        self._nursery.cancel_scope.cancel()
        try:
            with Ungrouped():
                await self._manager.__aexit__(kind, exception, traceback)
                if interrupted is not None:
                    # The nursery leaves it to the block to raise it, which knows of none.
                    raise interrupted
        except BaseExceptionGroup as group:
            # A cancel that struck while the nursery closed is in force outside as well, and no
            # reason to wrap what the body raised.
            _, others = group.split(trio.Cancelled)
            if others is None or exception is None or others.exceptions != (exception,):
                raise
            if interrupted is not None:
                raise exception from None
        finally:
            _open.discard(self)
            self._nursery = None
            for lender in self._lenders():
                lender.supply.shut()

    async def drain(self, grace: float | None) -> None:
        """See `trionet.Pool.drain`."""
        require_seconds("grace", grace)
        self.closed = True
        lenders = list(self._lenders())
        for lender in lenders:
            lender.stop()
        if grace is None:
            for lender in lenders:
                # Said before the wait, which may never end.
                lender.report_lent("is still lent, and the end of the pool waits for it")
        with trio.move_on_after(math.inf if grace is None else grace):
            for lender in lenders:
                await lender.supply.wait_nothing_lent()
        for lender in lenders:
            lender.report_lent()
            lender.supply.seize()
        for lender in lenders:
            await lender.supply.wait_empty()
        await trio.lowlevel.checkpoint()
