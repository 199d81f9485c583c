"""What a server allows its clients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

__all__ = ("Limits", "check_seconds")


def check_seconds(what: str, value: object) -> None:
    """Raise for ``value`` if it is no duration: a number of seconds, not negative, not NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be a number of seconds, got {value!r}")
    if math.isnan(value) or value < 0:
        raise ValueError(f"{what} must be zero or more seconds, got {value!r}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many connections a server holds, and how long it waits for them.

    None means no limit.

    Attributes:
      max_connections: connections open at once, those in a handshake included.
      max_connections_per_host: connections open at once from one IP address; one more is closed at
        once, whatever ``overload`` says. Behind a proxy the client's own address counts, once
        the proxy has told it. Clients without an IP address are not limited.
      max_accepts: connections accepted in all; the server drains after the last one.
      overload: what happens beyond ``max_connections``. ``"pause"``, the default, accepts no more,
        so that clients wait in the kernel's backlog; ``"reject"`` accepts and closes at once, so
        that they can go elsewhere.
      handshake_timeout: seconds for everything before the handler, TLS included, from the accept
        on; an absolute limit, whatever trickles in. 10 by default: a handshake is a few round
        trips.
      idle_timeout: seconds without a byte in either direction after which a connection ends.
      send_timeout: seconds that one ``send_all`` may go without a byte leaving: a client that does
        not read.
      lifetime: seconds after which a connection ends in any case.
      linger: seconds that closing may take: to send close_notify, and to read and drop what the
        client still sends, so that the last reply is not lost to a reset. Also how long a
        handler that was cancelled has before its stream is closed from outside. 1 by default.

    ``idle_timeout`` and ``send_timeout`` are never early, and at most a tenth late; over TLS on a
    socket progress is seen record by record, each up to 16 KiB. A connection
    that any of them ends has its handler cancelled.
    """

    max_connections: int | None = None
    max_connections_per_host: int | None = None
    max_accepts: int | None = None
    overload: Literal["pause", "reject"] = "pause"
    handshake_timeout: float | None = 10.0
    idle_timeout: float | None = None
    send_timeout: float | None = None
    lifetime: float | None = None
    linger: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_connections", "max_connections_per_host", "max_accepts"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Limits.{name} must be an int or None, got {value!r}")
            if value < 1:
                raise ValueError(f"Limits.{name} must be at least 1, got {value}")
        if self.overload not in {"pause", "reject"}:
            raise ValueError(f'Limits.overload must be "pause" or "reject", got {self.overload!r}')
        for name in ("handshake_timeout", "idle_timeout", "send_timeout", "lifetime"):
            if getattr(self, name) is not None:
                check_seconds(f"Limits.{name}", getattr(self, name))
        for name in ("idle_timeout", "send_timeout"):
            if getattr(self, name) == 0:
                raise ValueError(f"Limits.{name} must be more than zero seconds, got 0")
        check_seconds("Limits.linger", self.linger)
