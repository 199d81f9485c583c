"""The block in which something is lent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, final

from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled, enable_ki_protection

from .._errors import LeaseError
from .halves import Half

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from types import TracebackType

    from .duplex import Duplex

__all__ = ("Lends", "Loan")

HalfT_co = TypeVar("HalfT_co", bound=Half, covariant=True)


class Lends(Protocol):
    """Who lends, as far as a loan has to do with it; see `trionet._mux.lending.Switchboard`."""

    def take(self, loan: Loan[Any], /) -> Half | None:
        """Lend what is free; None if nothing is."""

    def queue_up(self, loan: Loan[Any], /, *, first: bool = False) -> Awaitable[Half]:
        """Wait for what ``loan`` wants."""

    def unfit(self, half: Half, /) -> bool:
        """Whether ``half`` has become useless on its way; then it was taken back."""

    def give_back(self, half: Half, /) -> None:
        """Take ``half`` back."""

    def throw_away(self, half: Half, /) -> None:
        """Take ``half`` back, and close its connection."""


@final
class Loan(Generic[HalfT_co]):
    """One half of a connection, or both, for as long as an ``async with`` block lasts.

    Made by ``reader``, ``writer`` and ``borrow`` of a `trionet.Multiplexer`; the block's value is
    the stream to use. A normal end of the block gives it back. An exception, a cancellation too,
    closes the connection, since nobody knows what it left half done. Leaving the block is no
    checkpoint.
    """

    __slots__ = ("_entered", "_half", "_lender", "claim", "number", "since", "timeout", "wants")

    def __init__(self, lender: Lends, wants: int, timeout: float | None) -> None:
        self._lender = lender
        self._half: Half | None = None
        self._entered = False
        self.wants: int = wants
        self.timeout: float | None = timeout
        # Its place among those who wait, since when, and the connection of which a half is kept.
        self.number: int = 0
        self.since: float = 0.0
        self.claim: Duplex | None = None

    def __repr__(self) -> str:
        if self._half is not None:
            return f"<Loan of {self._half!r}>"
        return "<Loan given back>" if self._entered else "<Loan not entered>"

    @enable_ki_protection
    async def __aenter__(self) -> HalfT_co:
        """Wait for what is to be lent.

        Raises:
          PoolClosedError: the multiplexer is closed or gets closed.
          PoolTimeoutError: ``timeout`` seconds have passed; its cause is why connecting failed.
          trio.BrokenResourceError: the last connection is gone, and there is no ``connect``.
          LeaseError: this loan was entered before.

        If cancelled, nothing is lent; a dial on its behalf goes on, for the next one.
        """
        if self._entered:
            raise LeaseError(f"{self!r} cannot be entered again")
        self._entered = True
        await checkpoint_if_cancelled()
        lender = self._lender
        half = lender.take(self)
        if half is not None:
            self._half = half
            await cancel_shielded_checkpoint()
        else:
            self._half = half = await lender.queue_up(self)
        while lender.unfit(half):
            # Its connection went between the hand-over and this task's turn.
            self._half = None
            self._half = half = await lender.queue_up(self, first=True)
        return cast("HalfT_co", half)

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give back what was lent, or close its connection after an exception. No checkpoint."""
        half, self._half = self._half, None
        if half is None or half._stream is None:
            # It was closed inside the block, or taken away.
            return
        if exception is None:
            self._lender.give_back(half)
        else:
            self._lender.throw_away(half)
