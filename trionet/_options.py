"""Frozen settings: what is decided once, named, and then shared."""

from __future__ import annotations

import ipaddress
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("Backoff", "Link", "MemoryOptions", "ProxyProtocol", "SocketOptions")

# What setsockopt(2) takes.
C_INT_MAX = 2**31 - 1
# What an IPv4 packet carries beside its own header and a TCP header with no options (RFC 791).
SEGMENT_MAX = 65535 - 20 - 20


def _require_int(owner: object, name: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{type(owner).__name__}.{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{type(owner).__name__}.{name} must be at least {minimum}, got {value!r}")


def _require_c_int(owner: object, name: str, value: object) -> None:
    _require_int(owner, name, value, minimum=1)
    if value > C_INT_MAX:  # type: ignore[operator]
        raise ValueError(f"{type(owner).__name__}.{name} must be at most {C_INT_MAX}, got {value}")


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

    None leaves to the system what it does anyway. What a listener has, the connections it accepts
    have too. An option that this platform lacks, or that makes no sense for a socket, is an error
    of the call that gets it, never ignored; ``no_delay`` alone may be given for Unix sockets,
    which have no such delay.

    Attributes:
      no_delay: send small segments at once (TCP_NODELAY). On by default: a program that hands
        whole messages to ``send_all`` only loses by waiting for more.
      keepalive: find out that a silent peer is gone (SO_KEEPALIVE): ``True`` with the system's
        times, on Linux two hours; or (idle, interval, count): seconds of silence before the first
        probe, seconds between probes, and how many go unanswered before the connection breaks.
      user_timeout: seconds that sent data may stay unacknowledged before the connection breaks
        (TCP_USER_TIMEOUT, RFC 5482). The system's own is some 15 minutes on Linux.
      fast_open: carry the first data in the first segment (RFC 7413). When listening, how many
        such connections may be waiting; Linux serves them where bit 2 of net.ipv4.tcp_fastopen is
        set. When dialling, ``True``: the connection is then made by the first send, and its
        failure shows there, so this is for protocols in which the client speaks first.
      defer_accept: seconds that the kernel waits for a client's first byte before the connection
        is accepted (TCP_DEFER_ACCEPT); for listening, and for protocols in which the client speaks
        first.
      reuse_port: let several sockets share one TCP port (SO_REUSEPORT), the kernel spreading
        connections over the listening ones. Off by default: with it on, a second server started
        by mistake silently takes half of the traffic.
      send_buffer: bytes that the kernel takes before ``send_all`` waits (SO_SNDBUF). It has bounds
        of its own, and Linux doubles the number for its bookkeeping.
      receive_buffer: bytes that the kernel holds for a slow reader (SO_RCVBUF), likewise.
      not_sent_low_water: bytes not yet sent below which the kernel asks for more
        (TCP_NOTSENT_LOWAT): what waits in the kernel can no longer be overtaken.
    """

    no_delay: bool = True
    keepalive: Literal[True] | tuple[int, int, int] | None = None
    user_timeout: float | None = None
    fast_open: bool | int | None = None
    defer_accept: int | None = None
    reuse_port: bool = False
    send_buffer: int | None = None
    receive_buffer: int | None = None
    not_sent_low_water: int | None = None

    def __post_init__(self) -> None:
        _require_bool(self, "no_delay", self.no_delay)
        _require_bool(self, "reuse_port", self.reuse_port)
        for name in ("defer_accept", "send_buffer", "receive_buffer", "not_sent_low_water"):
            if getattr(self, name) is not None:
                _require_c_int(self, name, getattr(self, name))
        if self.fast_open is not None and self.fast_open is not True:
            _require_c_int(self, "fast_open", self.fast_open)
        if self.user_timeout is not None:
            # To the millisecond, in an unsigned int of C.
            _require_number(self, "user_timeout", self.user_timeout, minimum=0.001)
            if self.user_timeout > C_INT_MAX / 1000:
                raise ValueError(
                    f"SocketOptions.user_timeout must be at most {C_INT_MAX // 1000}, "
                    f"got {self.user_timeout!r}"
                )
        if self.keepalive is not None and self.keepalive is not True:
            if not isinstance(self.keepalive, tuple) or len(self.keepalive) != 3:
                raise TypeError(
                    "SocketOptions.keepalive must be True or (idle, interval, count), "
                    f"got {self.keepalive!r}"
                )
            for value in self.keepalive:
                _require_c_int(self, "keepalive", value)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What lies between two ends that are not in one place: one direction of it.

    The one given to a memory name, to `trionet.testing.VirtualNetwork` or to
    `trionet.testing.FaultyStream` holds for both directions, each on its own. The default has
    nothing of anything, and costs nothing.

    Attributes:
      latency: seconds from one end to the other.
      jitter: up to so many seconds more, drawn evenly for each segment. Never puts the bytes of a
        connection out of order, but datagrams overtake each other.
      bandwidth: bytes a second, shared by all that goes this way, first come first served; None
        is without limit. Payload alone counts, headers do not.
      loss: the probability, from 0 to 1, that a segment is lost. A stream's is sent again 0.2,
        0.6, 1.4 ... seconds after the first time, as TCP does, so no byte is ever missing; a
        datagram is gone.
      segment_size: the most bytes that travel in one piece. A small one makes a slow link's
        receiver see bytes earlier, and costs an event each; 16 384, about ten Ethernet frames,
        is what a kernel hands a network card at once.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float | None = None
    loss: float = 0.0
    segment_size: int = 16384

    def __post_init__(self) -> None:
        _require_number(self, "latency", self.latency, minimum=0)
        _require_number(self, "jitter", self.jitter, minimum=0)
        _require_number(self, "loss", self.loss, minimum=0)
        if self.loss > 1:
            raise ValueError(f"Link.loss must be at most 1, got {self.loss!r}")
        if self.bandwidth is not None:
            _require_number(self, "bandwidth", self.bandwidth, minimum=0)
            if self.bandwidth == 0:
                # A link that moves nothing is a partition, and says so.
                raise ValueError("Link.bandwidth must be more than 0, got 0")
        _require_int(self, "segment_size", self.segment_size, minimum=1)
        if self.segment_size > SEGMENT_MAX:
            raise ValueError(
                f"Link.segment_size must be at most {SEGMENT_MAX}, got {self.segment_size}"
            )

    @property
    def null(self) -> bool:
        """Whether everything arrives at once: no latency, jitter, loss or limit."""
        return not (self.latency or self.jitter or self.loss) and self.bandwidth is None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """How a ``memb`` connection behaves; the listener's options decide for both ends.

    Attributes:
      buffer_size: bytes each direction holds before ``send_all`` waits. 65 536 by default, which
        is about what a kernel socket buffer starts with.
      link: what lies between the two ends, a test's slow network say. None, as by default, is
        nothing at all. With one, ``buffer_size`` holds at each end: what the sender's does is
        counted until the receiver's end has acknowledged it; and a connection takes a round trip.
    """

    buffer_size: int = 65536
    link: Link | None = None

    def __post_init__(self) -> None:
        _require_int(self, "buffer_size", self.buffer_size, minimum=1)
        if self.link is not None and not isinstance(self.link, Link):
            raise TypeError(f"MemoryOptions.link must be a Link, got {self.link!r}")


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
