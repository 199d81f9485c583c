"""What happened on a virtual network, event by event."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, final, overload

from .._streams.segment import Endpoint, Segment

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("Endpoint", "Event", "Segment", "Trace")

# About a hundred bytes of memory an event, payload apart.
EVENT_LIMIT: Final = 1_000_000
PAYLOAD_LIMIT: Final = 128 * 1024 * 1024


@final
@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
      time: trio's clock then, in seconds.
      what: ``"sent"``: it left its source. ``"delivered"``: it reached its destination.
        ``"dropped"``: it was lost; ``note`` says to what. ``"delayed"``, ``"held"``,
        ``"released"``: what a fault did to it. ``"fault"``: no segment, but a fault that began or
        ended, told in ``note``.
      protocol: as in `Segment`; ``""`` for a fault.
      kind, source, destination, connection, index, sequence, acknowledgement, window, payload,
        attempt: as in `Segment`.
      note: why, in words; ``""`` when there is nothing to add.
    """

    time: float
    what: str
    protocol: str
    kind: str
    source: Endpoint
    destination: Endpoint
    connection: int
    index: int
    sequence: int
    acknowledgement: int
    window: int
    payload: bytes
    attempt: int
    note: str

    def __str__(self) -> str:
        if self.what == "fault":
            return f"{self.time:12.6f} fault {self.note}"
        number = f"#{self.connection}" if self.connection else ""
        size = f" {len(self.payload)} bytes" if self.payload else ""
        numbers = (
            f" seq={self.sequence} ack={self.acknowledgement}" if self.protocol == "tcp" else ""
        )
        again = f" (attempt {self.attempt + 1})" if self.attempt else ""
        note = f": {self.note}" if self.note else ""
        return (
            f"{self.time:12.6f} {self.what} {self.protocol}{number} {self.kind} "
            f"{self.source} > {self.destination}{numbers}{size}{again}{note}"
        )


_Raw = tuple[float, str, Segment, str]

_NOWHERE: Final = Endpoint("", "", 0)
_NO_SEGMENT: Final = Segment("", "", _NOWHERE, _NOWHERE)


@final
class Trace:
    """The events of a network, oldest first: iterate it, index it, or take its `tail`.

    Nothing is formatted until somebody looks, so that it costs little. The oldest events are
    forgotten beyond a million, or beyond 128 MiB of payload (a segment's counts each time it
    appears); `forgotten` tells how many, and `digest` still covers them.

    Attributes:
      forgotten: how many events are no longer there.
    """

    __slots__ = ("_events", "_hash", "_payload", "forgotten")

    def __init__(self) -> None:
        self._events: deque[_Raw] = deque()
        self._payload = 0
        self._hash = hashlib.sha256()
        self.forgotten: int = 0

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} events>"

    def __len__(self) -> int:
        """How many events there are, without the forgotten ones."""
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        """Go through the events, oldest first."""
        for raw in self._events:
            yield _event(raw)

    @overload
    def __getitem__(self, place: int) -> Event: ...

    @overload
    def __getitem__(self, place: slice) -> list[Event]: ...

    def __getitem__(self, place: int | slice) -> Event | list[Event]:
        """Return one event, or a list of some."""
        if isinstance(place, slice):
            return [_event(raw) for raw in list(self._events)[place]]
        return _event(self._events[place])

    def tail(self, count: int) -> list[Event]:
        """Return the last ``count`` events, or all if there are fewer."""
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        return [_event(raw) for raw in islice(self._events, max(0, len(self) - count), None)]

    def digest(self) -> str:
        """Return what two runs have in common if the same happened at the same times.

        SHA-256, in hexadecimal, of everything but the payloads, whose sizes count and whose bytes
        do not: TLS has random ones.
        """
        digest = self._hash.copy()
        for raw in self._events:
            digest.update(_line(raw))
        return digest.hexdigest()

    def record(self, time: float, what: str, segment: Segment, note: str = "") -> None:
        """Add an event about a segment."""
        self._events.append((time, what, segment, note))
        self._payload += len(segment.payload)
        if len(self._events) > EVENT_LIMIT or self._payload > PAYLOAD_LIMIT:
            self._forget()

    def fault(self, time: float, note: str) -> None:
        """Add an event about a fault that began or ended."""
        self._events.append((time, "fault", _NO_SEGMENT, note))

    def _forget(self) -> None:
        # A tenth at a time, so that it is not done for every event.
        events = self._events
        while events and (len(events) > EVENT_LIMIT * 0.9 or self._payload > PAYLOAD_LIMIT * 0.9):
            raw = events.popleft()
            self._payload -= len(raw[2].payload)
            self.forgotten += 1
            self._hash.update(_line(raw))


def _event(raw: _Raw) -> Event:
    time, what, one, note = raw
    return Event(
        time,
        what,
        one.protocol,
        one.kind,
        one.source,
        one.destination,
        one.connection,
        one.index,
        one.sequence,
        one.acknowledgement,
        one.window,
        one.payload,
        one.attempt,
        note,
    )


def _line(raw: _Raw) -> bytes:
    time, what, one, note = raw
    # repr() of a float tells every one from every other.
    fields = (
        time,
        what,
        one.protocol,
        one.kind,
        tuple(one.source),
        tuple(one.destination),
        one.connection,
        one.index,
        one.sequence,
        one.acknowledgement,
        one.window,
        len(one.payload),
        one.attempt,
        note,
    )
    return f"{fields!r}\n".encode()
