"""One direction of a link: when what goes in comes out, or that it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    import random

    from .._options import Link
    from .segment import Segment
    from .timeline import Timeline

__all__ = ("RETRIES_SYN", "RTO_FIRST_SYN", "Flight", "Line", "Receiver", "Sender")

# RFC 6298 section 2.1, and Linux's net.ipv4.tcp_syn_retries: 1, 2, 4 ... seconds between the
# attempts to connect, of which the seventh is the last; 127 s in all.
RTO_FIRST_SYN: Final = 1.0
RETRIES_SYN: Final = 6


class Sender(Protocol):
    """Who is told that what it sent was lost."""

    def lost(self, segment: Segment, sent_at: float, /) -> None:
        """Do what a sender does who hears nothing of it."""


class Receiver(Protocol):
    """Who gets what was sent.

    Attributes:
      latest: when the last segment that is on its way arrives.
    """

    latest: float

    def arrive(self, segment: Segment, /) -> None:
        """Take it."""


Flight = tuple["Segment", Sender, Receiver, float]


class Line:
    """One direction of a link, which all connections that go this way share.

    Attributes:
      link: how it behaves; may be replaced at any time, for what is sent from then on.
    """

    __slots__ = ("_free_at", "_random", "link", "timeline")

    def __init__(self, timeline: Timeline, link: Link, source: random.Random) -> None:
        self.timeline: Timeline = timeline
        self.link: Link = link
        self._random = source
        # When the last byte of what was sent has left.
        self._free_at = 0.0

    def carry(self, segment: Segment, sender: Sender, receiver: Receiver) -> None:
        """Send ``segment``: ``receiver`` gets it, or ``sender`` is told that it was lost."""
        now = self.timeline.time()
        if self.link.loss and self._random.random() < self.link.loss:
            sender.lost(segment, now)
        else:
            self._launch((segment, sender, receiver, now), 0.0)

    def due(self, flight: Flight) -> None:
        """Let a segment arrive."""
        flight[2].arrive(flight[0])

    def crossing(self) -> float | None:
        """Return how long a message without a payload takes, or None if it never gets through.

        One that is lost is sent again, as a SYN is.
        """
        link = self.link
        delay = link.latency + (self._random.random() * link.jitter if link.jitter else 0.0)
        for attempt in range(RETRIES_SYN + 1):
            if not link.loss or self._random.random() >= link.loss:
                return delay + max(0.0, self._free_at - trio.current_time())
            delay += RTO_FIRST_SYN * 2**attempt
        return None

    def _launch(self, flight: Flight, extra: float) -> None:
        """Let a segment fly, ``extra`` seconds longer than the link makes it."""
        segment, _, receiver, now = flight
        link = self.link
        arrival = now
        if link.bandwidth is not None:
            arrival = max(now, self._free_at) + len(segment.payload) / link.bandwidth
            self._free_at = arrival
        arrival += link.latency + extra
        if link.jitter:
            arrival += self._random.random() * link.jitter
        # Whatever the jitter, and when a link gets faster: what was sent first arrives first.
        if receiver.latest > arrival:
            arrival = receiver.latest
        if arrival > now:
            receiver.latest = arrival
            self.timeline.at(arrival, self, flight)
        else:
            self.timeline.post(self, flight)
