"""What is lent, and what is told about lending."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, final

from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
)

from .._errors import LeaseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection
    from types import TracebackType

    from trio.lowlevel import Task

    from .entry import Entry

__all__ = ("Lease", "Origin")

T = TypeVar("T")


class Origin(Protocol[T]):
    """Where a lease comes from: as much of a `trionet._pool.lender.Lender` as concerns it."""

    plain: bool
    idle: dict[int, Entry[T]]
    lent: dict[int, Entry[T]]
    crowd: Collection[Task]
    acquired: int

    def obtain(self, lease: Lease[T], /) -> Awaitable[Entry[T]]:
        """Lend a connection, after a wait if need be."""

    def obtain_another(self, entry: Entry[T], lease: Lease[T], /) -> Awaitable[Entry[T]]:
        """Lend a connection instead of ``entry``, which has died on its way."""

    def give_back(self, entry: Entry[T], /) -> None:
        """Take a connection back."""

    def throw_away(self, entry: Entry[T], /) -> None:
        """Take a connection back and close it."""

    def discard(self, resource: T, /) -> None:
        """Close a connection by its identity."""


@final
class Lease(Generic[T]):
    """One connection, for as long as an ``async with`` block lasts.

    Made by ``acquire`` of a pool; the block's value is the connection itself::

        lease = pool.acquire()
        async with lease as stream:
            ...
            lease.discard()         # it is not to be used again, whatever else happens

    An exception in the block, a cancellation too, closes the connection, since nobody knows what
    it left half done; a normal end gives it back. Leaving the block is no checkpoint.
    """

    __slots__ = ("_entered", "_entry", "_origin", "arrived", "deadline", "timeout", "where")

    def __init__(self, origin: Origin[T], timeout: float | None) -> None:
        self._origin = origin
        self._entry: Entry[T] | None = None
        self._entered = False
        self.timeout: float | None = timeout
        # When that ends, once it has begun to wait.
        self.deadline: float | None = None
        self.where: list[str] | None = None
        # When it began to wait, compared with others; 0 before all that ever did.
        self.arrived: int = 0

    def __repr__(self) -> str:
        if self._entry is not None:
            return f"<Lease of {self._entry.resource!r}>"
        return "<Lease given back>" if self._entered else "<Lease not entered>"

    @property
    def resource(self) -> T:
        """The connection.

        Raises:
          LeaseError: the block has not begun, or is over, or the connection was discarded.
        """
        if self._entry is None or self._entry.holder is not self:
            raise LeaseError(f"{self!r} has no connection now")
        return self._entry.resource

    @enable_ki_protection
    def discard(self) -> None:
        """Close the connection instead of giving it back; the block may go on without it.

        Raises:
          LeaseError: this lease has no connection, not yet or not any more.
        """
        self._origin.discard(self.resource)

    @enable_ki_protection
    async def __aenter__(self) -> T:
        """Wait for a connection.

        Raises:
          PoolClosedError: the pool is closed or gets closed.
          PoolConnectError: connecting failed, and this task has waited longest.
          PoolFullError: ``max_waiting`` tasks wait already.
          PoolTimeoutError: ``timeout`` seconds have passed.
          LeaseError: this lease was entered before.

        If cancelled, this task has no connection; a dial on its behalf goes on, for the next one.
        """
        if self._entered:
            raise LeaseError(f"{self!r} cannot be entered again")
        self._entered = True
        await checkpoint_if_cancelled()
        origin = self._origin
        entry = None
        if origin.plain and origin.idle and not origin.crowd:
            key, entry = origin.idle.popitem()
            if entry.stale:
                origin.idle[key] = entry
                entry = None
        if entry is not None:
            origin.lent[key] = entry
            origin.acquired += 1
            entry.holder = self
            entry.task = current_task()
            entry.used = True
            self._entry = entry
            await cancel_shielded_checkpoint()
        else:
            self._entry = entry = await origin.obtain(self)
        while entry.doomed:
            # It died, or was expired, between the hand-over and this task's turn.
            self._entry = entry = await self._origin.obtain_another(entry, self)
        return entry.resource

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the connection back, or close it after an exception. No checkpoint.

        Raises:
          LeaseError: it was ``put`` back inside the block already.
        """
        entry, self._entry = self._entry, None
        if entry is None:
            return
        if entry.holder is not self:
            if exception is None:
                raise LeaseError(f"{entry.resource!r} was put back before its block ended")
        elif exception is None:
            self._origin.give_back(entry)
        else:
            self._origin.throw_away(entry)

    def detach(self) -> None:
        """Leave the connection to the caller, who gives it back by its identity."""
        entry, self._entry = self._entry, None
        assert entry is not None
        entry.holder = None
        # It may be another task that gives it back.
        entry.task = None

    def moved(self, origin: Origin[T]) -> None:
        """Wait at another lender, the one that took the first one's place."""
        self._origin = origin

    def dropped(self) -> None:
        """Take notice that the connection was discarded inside the block."""
        self._entry = None
