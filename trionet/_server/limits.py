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
      max_accepts: connections accepted in all; the server drains after the last one.
      overload: what happens beyond ``max_connections``. ``"pause"``, the default, accepts no more,
        so that clients wait in the kernel's backlog; ``"reject"`` accepts and closes at once, so
        that they can go elsewhere.
      handshake_timeout: seconds for everything before the handler, TLS included, from the accept
        on; an absolute limit, whatever trickles in. 10 by default: a handshake is a few round
        trips.
      linger: seconds that closing may take: to send close_notify, and to read and drop what the
        client still sends, so that the last reply is not lost to a reset. 1 by default.
    """

    max_connections: int | None = None
    max_accepts: int | None = None
    overload: Literal["pause", "reject"] = "pause"
    handshake_timeout: float | None = 10.0
    linger: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_connections", "max_accepts"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Limits.{name} must be an int or None, got {value!r}")
            if value < 1:
                raise ValueError(f"Limits.{name} must be at least 1, got {value}")
        if self.overload not in {"pause", "reject"}:
            raise ValueError(f'Limits.overload must be "pause" or "reject", got {self.overload!r}')
        if self.handshake_timeout is not None:
            check_seconds("Limits.handshake_timeout", self.handshake_timeout)
        check_seconds("Limits.linger", self.linger)
