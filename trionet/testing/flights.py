"""What became of each thing that was sent: the events of a trace, put together."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .trace import Event

__all__ = ("Flight", "flights")


@final
@dataclass(slots=True)
class Flight:
    """Something on its way.

    Attributes:
      event: its ``"sent"`` event; where that was forgotten, the first that is left of it.
      arrived: when it reached its destination, None if it did not.
      lost: why it never will, in words; None if it did, or still may.
      remarks: what faults did to it.
    """

    event: Event
    arrived: float | None = None
    lost: str | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """All that is to be said about it."""
        return self.remarks if self.lost is None else [*self.remarks, f"dropped: {self.lost}"]


def flights(events: Iterable[Event]) -> list[Flight | Event]:
    """Return a flight for each thing sent, in order; faults stand between them as they are."""
    found: list[Flight | Event] = []
    # Datagrams need not differ in anything: the first to leave is taken for the first to arrive.
    flying: dict[tuple[object, ...], deque[Flight]] = {}
    for event in events:
        if event.what == "fault":
            found.append(event)
            continue
        key = _key(event)
        if event.what == "sent" or not flying.get(key):
            flight = Flight(event)
            found.append(flight)
            if event.protocol == "dns":
                # It crosses no link: its delay is the resolver's.
                flight.arrived = event.time
                continue
            flying.setdefault(key, deque()).append(flight)
        _learn(event, flying[key])
    return found


def _learn(event: Event, waiting: deque[Flight]) -> None:
    match event.what:
        case "delivered":
            waiting.popleft().arrived = event.time
        case "dropped":
            waiting.popleft().lost = event.note or "lost"
        case "delayed" | "held" | "released":
            waiting[0].remarks.append(f"{event.what} {event.note}".rstrip())


def _key(event: Event) -> tuple[object, ...]:
    return (
        event.protocol,
        event.kind,
        event.source,
        event.destination,
        event.connection,
        event.index,
        event.attempt,
    )
