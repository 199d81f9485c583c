"""One connection as two halves, and who has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from .._pool.entry import Entry
    from ..abc import Stream

__all__ = ("BOTH", "READ", "WRITE", "Claimant", "Duplex", "Fate", "Holder")

# What is lent, or waited for.
READ: Final = 1
WRITE: Final = 2
BOTH: Final = 3

# What became of a half: it is lent, was given back, was closed by its holder, was cut because of
# the other half, or ended with the multiplexer.
Fate = Literal["lent", "returned", "closed", "cut", "ended"]


class Holder(Protocol):
    """What has a half; see `trionet._mux.halves.Half`."""

    def _finish(self, fate: Fate, /) -> None:
        """Be of no use any more."""


class Claimant(Protocol):
    """Who waits for both halves; see `trionet._mux.loan.Loan`."""

    number: int
    claim: Duplex | None


@final
class Duplex:
    """One connection as two halves.

    Attributes:
      entry: what the supply knows of it.
      stream: the connection, with all that `trionet.abc.Stream` tells.
      whole: what is lent of it to who borrows both halves.
      probe: tells whether its peer has gone, where that has to be asked.
      reader, writer: who has the half; the same if both are lent to one. None: it is free.
      claim: who waits for both halves, and has one kept.
      ended: the peer has closed, reset, or ended its direction: there is nothing more to come than
        what waits to be received.
      ended_at: when that was noticed.
      hung_up: so says whoever watches its socket.
      out: nothing of it is lent any more.
      harmed: it is to be closed as soon as one of those who have it lets go.
    """

    __slots__ = (
        "claim",
        "ended",
        "ended_at",
        "entry",
        "harmed",
        "hung_up",
        "out",
        "probe",
        "reader",
        "stream",
        "whole",
        "writer",
    )

    def __init__(
        self,
        entry: Entry[trio.abc.Stream],
        stream: Stream,
        whole: type[Holder],
        probe: Callable[[], bool] | None,
    ) -> None:
        self.entry: Entry[trio.abc.Stream] = entry
        self.stream: Stream = stream
        self.whole: type[Holder] = whole
        self.probe: Callable[[], bool] | None = probe
        self.reader: Holder | None = None
        self.writer: Holder | None = None
        self.claim: Claimant | None = None
        self.ended: bool = False
        self.ended_at: float = 0.0
        self.hung_up: bool = False
        self.out: bool = False
        self.harmed: bool = False

    def __repr__(self) -> str:
        reader = "free" if self.reader is None else "lent"
        writer = "free" if self.writer is None else "lent"
        return f"<Duplex {self.stream!r}: reader {reader}, writer {writer}>"

    def looks_ended(self) -> bool:
        """Whether the peer has gone, by what we were told and what `probe` says."""
        if self.probe is None or self.hung_up:
            return self.hung_up
        try:
            return self.probe()
        except Exception:  # noqa: BLE001 - what cannot even say whether it works does not
            return True

    def has_unread(self) -> bool:
        """Whether bytes wait to be received."""
        try:
            return self.stream.unread_size() > 0
        except Exception:  # noqa: BLE001 - as above
            return False
