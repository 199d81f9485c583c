"""Frozen settings: what is decided once, named, and then shared."""

from __future__ import annotations

import ipaddress
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("Backoff", "MemoryOptions", "ProxyProtocol", "SocketOptions")


def _require_int(owner: object, name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(owner).__name__}.{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{type(owner).__name__}.{name} must be at least {minimum}, got {value!r}")


def _require_bool(owner: object, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{type(owner).__name__}.{name} must be a bool, got {value!r}")


def _require_number(owner: object, name: str, value: object, minimum: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(owner).__name__}.{name} must be a number, got {value!r}")
    # Written so that a NaN fails it too.
    if not minimum <= value < math.inf:
        raise ValueError(
            f"{type(owner).__name__}.{name} must be finite and at least {minimum:g}, got {value!r}"
        )


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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to leave a peer alone that did not answer, and how often to try.

    Attributes:
      first: seconds after the first failure. Short, since most failures are a peer restarting.
      factor: how much longer each further pause is.
      maximum: seconds no pause exceeds, jitter apart.
      jitter: the part of a pause that is left to chance, so that many clients of one peer do not
        come back together: 0.1 makes it up to a tenth shorter or longer.
      attempts: failures in a row after which somebody is told; None never tells and tries for
        ever. 1 by default: the caller, who knows whether it matters, hears of it at once.
    """

    first: float = 0.05
    factor: float = 2.0
    maximum: float = 5.0
    jitter: float = 0.1
    attempts: int | None = 1

    def __post_init__(self) -> None:
        _require_number(self, "first", self.first, minimum=0)
        _require_number(self, "factor", self.factor, minimum=1)
        _require_number(self, "maximum", self.maximum, minimum=0)
        _require_number(self, "jitter", self.jitter, minimum=0)
        if self.jitter > 1:
            raise ValueError(f"Backoff.jitter must be at most 1, got {self.jitter!r}")
        if self.attempts is not None:
            _require_int(self, "attempts", self.attempts, minimum=1)

    def delay(self, failures: int) -> float:
        """Return the pause in seconds after this many failures in a row, the first being 1."""
        try:
            pause = self.first * self.factor ** (failures - 1)
        except OverflowError:
            pause = self.maximum
        spread = random.uniform(-self.jitter, self.jitter)  # noqa: S311 - not a secret
        return min(pause, self.maximum) * (1 + spread)


IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyProtocol:
    """That every connection starts with a PROXY protocol header, and who may send one.

    A header says who the client is, so whoever may send it may be anybody. That is why nobody is
    trusted unless named, and why a connection without a header is refused, not served.

    Attributes:
      trusted: the proxies: networks such as ``"10.0.0.0/8"`` or ``"2001:db8::/32"``, single
        addresses, and for peers that have none ``"unix"``, ``"memu"`` or ``"memb"``. Kept as
        `ipaddress` networks and these words.
      versions: the formats that are taken, of ``"v1"`` (text) and ``"v2"`` (binary); both unless
        given.
    """

    trusted: Sequence[str | IPNetwork]
    versions: Sequence[Literal["v1", "v2"]] = ("v1", "v2")

    def __post_init__(self) -> None:
        for name in ("trusted", "versions"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"ProxyProtocol.{name} must be a list, got {value!r}")
        versions = tuple(self.versions)
        if not versions or not {"v1", "v2"}.issuperset(versions):
            raise ValueError(f'ProxyProtocol.versions must be of "v1" and "v2", got {versions!r}')
        trusted = tuple(_trusted(one) for one in self.trusted)
        if not trusted:
            raise ValueError("ProxyProtocol.trusted must name at least one network, got none")
        object.__setattr__(self, "versions", versions)
        object.__setattr__(self, "trusted", trusted)


def _trusted(one: object) -> str | IPNetwork:
    if isinstance(one, IPNetwork):
        return one
    if not isinstance(one, str):
        raise TypeError(f"ProxyProtocol.trusted takes networks as str, got {one!r}")
    if one in {"unix", "memu", "memb"}:
        return one
    try:
        return ipaddress.ip_network(one)
    except ValueError as exc:
        raise ValueError(f"ProxyProtocol.trusted: {exc}") from exc
