"""Frozen settings: what is decided once, named, and then shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ("MemoryOptions", "SocketOptions")


def _require_int(owner: object, name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(owner).__name__}.{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{type(owner).__name__}.{name} must be at least {minimum}, got {value!r}")


def _require_bool(owner: object, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{type(owner).__name__}.{name} must be a bool, got {value!r}")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """How a TCP or Unix socket is set up.

    Attributes:
      no_delay: send small segments at once (TCP_NODELAY). On by default: a program that hands
        whole messages to ``send_all`` only loses by waiting for more. Ignored on Unix sockets,
        which have no such delay.
      reuse_port: let several listeners share one TCP port (SO_REUSEPORT), the kernel spreading
        connections over them. Off by default: with it on, a second server started by mistake
        silently takes half of the traffic.
    """

    no_delay: bool = True
    reuse_port: bool = False

    def __post_init__(self) -> None:
        _require_bool(self, "no_delay", self.no_delay)
        _require_bool(self, "reuse_port", self.reuse_port)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """How a ``memb`` connection behaves; the listener's options decide for both ends.

    Attributes:
      buffer_size: bytes each direction holds before ``send_all`` waits. 65 536 by default, which
        is about what a kernel socket buffer starts with.
    """

    buffer_size: int = 65536

    def __post_init__(self) -> None:
        _require_int(self, "buffer_size", self.buffer_size, minimum=1)
