"""Flow control: the arithmetic of one direction, which checks itself.

Each end keeps one number of the other's: a `SendWindow` here is the ``remaining`` of a
`ReceiveWindow` there, less what travels between them. Every byte the receiver ever promised is in
one of three places, and this holds after each step::

    remaining + buffered + consumed == size

      remaining    the peer may still send it
      buffered     it arrived and waits to be read
      consumed     it was read and not granted again

An assertion says so, for our own bugs; a `ProtocolError` answers for the peer's.
"""

from __future__ import annotations

from typing import Final, final

from .frames import WINDOW, ProtocolError

__all__ = ("ReceiveWindow", "SendWindow", "WindowBudget")

CREDIT_MAX: Final = (1 << 32) - 1

# The window doubles when half of it was read within this many round trips: then the peer, which
# can send one window a round trip, was held up by it. At four times what the path holds, half
# takes longer, and growth ends by itself.
GROWTH_ROUND_TRIPS: Final = 2.0

# Half a window that took longer than this: the traffic is gone, and the budget may serve others.
SHRINK_AFTER: Final = 10.0


@final
class SendWindow:
    """What we may send on a stream.

    Attributes:
      credit: bytes the peer will still take.
    """

    __slots__ = ("credit",)

    def __init__(self) -> None:
        self.credit: int = WINDOW

    def grant(self, delta: int) -> None:
        """Add what a window update brought.

        Raises:
          ProtocolError: the sum does not fit 32 bits. An end that wraps or traps here is what
            CVE-2026-31814 was about.
        """
        credit = self.credit + delta
        if credit > CREDIT_MAX:
            raise ProtocolError(f"a window update of {delta} takes the window to {credit} bytes")
        self.credit = credit

    def spend(self, size: int) -> None:
        """Take off what goes into a frame."""
        assert 0 < size <= self.credit, (size, self.credit)
        self.credit -= size


@final
class WindowBudget:
    """What the windows of one session may grow by together.

    Attributes:
      left: bytes nobody holds.
    """

    __slots__ = ("left", "total")

    def __init__(self, total: int) -> None:
        self.total: int = total
        self.left: int = total

    @property
    def used(self) -> int:
        """Bytes by which windows have grown."""
        return self.total - self.left

    def take(self, wanted: int) -> int:
        """Take up to ``wanted`` bytes, and return how many."""
        taken = min(wanted, self.left)
        self.left -= taken
        return taken

    def give_back(self, size: int) -> None:
        """Return what was taken."""
        self.left += size
        assert self.left <= self.total, (self.left, self.total)


@final
class ReceiveWindow:
    """What the peer may send us on a stream.

    Attributes:
      size: the most it may have sent that we have not read.
      remaining: bytes it may still send.
      consumed: bytes read that it was not granted again.
      extra: by how much ``size`` has grown, out of the session's budget.
      granted_at: when a grant last became due.
    """

    __slots__ = ("consumed", "extra", "granted_at", "remaining", "size")

    def __init__(self, size: int, now: float) -> None:
        # What exceeds the protocol's own is granted with the first frame, SYN or ACK.
        self.size: int = size
        self.remaining: int = WINDOW
        self.consumed: int = size - WINDOW
        self.extra: int = 0
        self.granted_at: float = now

    @property
    def buffered(self) -> int:
        """Bytes that arrived and were not read."""
        return self.size - self.remaining - self.consumed

    def arrive(self, size: int) -> None:
        """Account for the announced body of a frame, before a byte of it is taken.

        Raises:
          ProtocolError: the peer had no credit for it.
        """
        if size > self.remaining:
            raise ProtocolError(f"{size} bytes sent with a window of {self.remaining}")
        self.remaining -= size

    @property
    def due(self) -> bool:
        """Whether half the window, or more, is to be granted anew."""
        return self.consumed * 2 >= self.size

    def consume(self, size: int) -> bool:
        """Account for bytes that were read; return whether a grant is due.

        It is at half the window: one update for many reads, and a peer whose round trip fits
        into the other half never waits.
        """
        self.consumed += size
        assert self.remaining + self.consumed <= self.size, (self.remaining, self.consumed)
        return self.consumed * 2 >= self.size

    def adapt(self, now: float, round_trip: float | None, limit: int, budget: WindowBudget) -> None:
        """Grow or shrink the window; called when a grant becomes due, so half of it was read."""
        took = now - self.granted_at
        self.granted_at = now
        if took > SHRINK_AFTER and self.extra:
            # Only what the peer does not hold can be taken back; that is half of it, at least.
            cut = min(self.extra, self.consumed)
            self.size -= cut
            self.consumed -= cut
            self.extra -= cut
            budget.give_back(cut)
        elif round_trip is not None and took < GROWTH_ROUND_TRIPS * round_trip:
            growth = budget.take(min(self.size, limit - self.size))
            self.size += growth
            self.consumed += growth
            self.extra += growth
        assert self.buffered >= 0, self.buffered

    def grant(self) -> int:
        """Give the peer all that was read; return how much, for the window update."""
        delta = self.consumed
        self.consumed = 0
        self.remaining += delta
        assert self.remaining <= self.size, (self.remaining, self.size)
        return delta

    def release(self, budget: WindowBudget) -> None:
        """Return what was taken from the budget; the stream is over, nothing can arrive on it."""
        budget.give_back(self.extra)
        self.extra = 0
