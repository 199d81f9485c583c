"""What a server tells of itself: counts and facts, and what it saw itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, final

if TYPE_CHECKING:
    import trio

    from .._address import Address

__all__ = ("ConnectionInfo", "ServerStatistics", "Serving", "ShutdownReport", "Watched")

State = Literal["handshaking", "active", "idle", "closing", "forced", "rejected"]


class Serving(Protocol):
    """A server as its handlers see it; `trionet.Server` is one."""

    draining: trio.Event

    @property
    def addresses(self) -> list[Address]:
        """Where it listens."""

    @property
    def connections(self) -> list[ConnectionInfo]:
        """Facts of each open connection."""

    def statistics(self) -> ServerStatistics:
        """Return the counts as they are now."""

    def shutdown(self, grace: float | None = None) -> None:
        """Start to drain."""


@final
@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What became of the connections that were open at ``shutdown``, handshakes not counted.

    Attributes:
      completed: their handlers returned or raised by themselves.
      cancelled: their handlers were cancelled at the deadline.
      forced: their handlers did not even heed that, and their streams were closed from outside.
    """

    completed: int = 0
    cancelled: int = 0
    forced: int = 0


@final
@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """Counts since the server was made; accepted = active + completed + failed + rejected.

    Attributes:
      accepted: connections taken from the listeners.
      active: those open now, handshaking ones included.
      completed: those whose handler returned.
      failed: those whose handshake failed, or whose handler raised or was cancelled.
      rejected: those closed at once, for want of room or because the server drains.
    """

    accepted: int
    active: int
    completed: int
    failed: int
    rejected: int


@final
@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """Facts of one open connection, taken at one moment.

    Attributes:
      remote_address: the client.
      local_address: what it dialled.
      age: seconds since it was accepted.
      bytes_received: bytes its handler has received.
      bytes_sent: bytes its handler has sent.
      state: ``"handshaking"``, ``"active"``, ``"idle"`` (in ``connection.idle()``), ``"closing"``,
        ``"forced"`` (closed from outside) or ``"rejected"`` (its host has too many).
    """

    remote_address: Address
    local_address: Address
    age: float
    bytes_received: int
    bytes_sent: int
    state: State


@final
class Watched:
    """What the timekeeper saw of one connection.

    Attributes:
      moved: the sum of its byte counts at the last look.
      moved_at: when that was seen to have changed, or the connection began.
      sent: its count of sent bytes at the last look.
      sent_at: when a send was seen to begin or to go on; infinity while none was seen.
      ended_at: when its time was up, or infinity.
    """

    __slots__ = ("ended_at", "moved", "moved_at", "sent", "sent_at")

    def __init__(self, now: float) -> None:
        self.moved = 0
        self.moved_at = now
        self.sent = 0
        self.sent_at = math.inf
        self.ended_at = math.inf
