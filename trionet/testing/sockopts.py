"""Socket options: those that a virtual socket acts on, and those it only remembers."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Any, Final, final

from .stack import failure

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Options",)

Key = tuple[int, int]

# What Linux has by default, where a program could notice: (level, name): value.
BUFFER_SIZE: Final = 262_144
# SOCK_MIN_SNDBUF and SOCK_MIN_RCVBUF: what getsockopt says at least, doubled as it is.
LEAST: Final = {socket.SO_SNDBUF: 4608, socket.SO_RCVBUF: 2304}

KEEPIDLE: Final = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", 4))
KEEPINTVL: Final = getattr(socket, "TCP_KEEPINTVL", 5)
KEEPCNT: Final = getattr(socket, "TCP_KEEPCNT", 6)
USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", 18)
NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
REUSEPORT: Final = getattr(socket, "SO_REUSEPORT", 15)

DEFAULTS: Final[dict[Key, int]] = {
    (socket.SOL_SOCKET, socket.SO_SNDBUF): BUFFER_SIZE,
    (socket.SOL_SOCKET, socket.SO_RCVBUF): BUFFER_SIZE,
    # net.ipv4.tcp_keepalive_time, _intvl and _probes.
    (socket.IPPROTO_TCP, KEEPIDLE): 7200,
    (socket.IPPROTO_TCP, KEEPINTVL): 75,
    (socket.IPPROTO_TCP, KEEPCNT): 9,
}
READ_ONLY: Final = frozenset(
    {socket.SO_TYPE, socket.SO_ERROR, socket.SO_ACCEPTCONN}
    | {getattr(socket, name, -1) for name in ("SO_DOMAIN", "SO_PROTOCOL")}
)


@final
class Options:
    """The options of one socket.

    What has no meaning here, TCP_NODELAY for one, can be set and is read back.
    """

    __slots__ = ("_linger", "_values")

    def __init__(self) -> None:
        """Begin with what a new socket has."""
        self._values: dict[Key, int] = {}
        self._linger: bytes = struct.pack("ii", 0, 0)

    def inherit(self, other: Options) -> None:
        """Take over what an accepted socket has from the listening one."""
        self._values = dict(other._values)
        self._linger = other._linger

    def get(
        self, level: int, name: int, size: int | None, fact: Callable[[int], int | None]
    ) -> int | bytes:
        """Return an option, as bytes if ``size`` is given.

        Args:
          fact: tells what SO_ERROR and its like are.
        """
        value: int | bytes | None
        if level == socket.SOL_SOCKET and name == socket.SO_LINGER:
            value = self._linger if size is not None else struct.unpack("ii", self._linger)[0]
        elif level == socket.SOL_SOCKET and name in READ_ONLY:
            value = fact(name)
            if value is None:
                raise failure(errno.ENOPROTOOPT, f"socket option {name}")
        else:
            value = self.number(level, name)
            if level == socket.SOL_SOCKET and name in LEAST:
                value = max(2 * value, LEAST[name])
        if size is None or isinstance(value, bytes):
            return value[:size] if isinstance(value, bytes) else value
        if size < 1 or size > 1024:
            raise OSError("getsockopt buflen out of range")
        return struct.pack("i", value)[:size]

    def number(self, level: int, name: int) -> int:
        """Return an option as it was set."""
        return self._values.get((level, name), DEFAULTS.get((level, name), 0))

    def set(self, level: int, name: int, value: Any, size: int | None = None) -> None:
        """Set an option, as ``socket.setsockopt`` takes it."""
        if level == socket.SOL_SOCKET and name in READ_ONLY:
            raise failure(errno.ENOPROTOOPT, f"socket option {name} cannot be set")
        if value is None:
            if size is None:
                raise TypeError("a socket option of None needs a length")
            value = bytes(size)
        elif size is not None:
            raise TypeError(f"a length goes with a socket option of None, got {value!r}")
        data = struct.pack("i", value) if isinstance(value, int) else bytes(memoryview(value))
        if level == socket.SOL_SOCKET and name == socket.SO_LINGER:
            if len(data) < 8:
                raise failure(errno.EINVAL, "SO_LINGER takes a struct linger")
            self._linger = data[:8]
            return
        if len(data) < 4:
            raise failure(errno.EINVAL, f"socket option {name} takes an int")
        number = struct.unpack("i", data[:4])[0]
        if level == socket.IPPROTO_TCP and name in {KEEPIDLE, KEEPINTVL, KEEPCNT} and number < 1:
            raise failure(errno.EINVAL, f"socket option {name} must be positive, got {number}")
        if level == socket.IPPROTO_TCP and name == USER_TIMEOUT and number < 0:
            raise failure(errno.EINVAL, f"TCP_USER_TIMEOUT must not be negative, got {number}")
        if level == socket.SOL_SOCKET and name in LEAST:
            # So that what get() doubles is never less than the least.
            number = max(number, 1)
        self._values[level, name] = number

    # What the options mean

    @property
    def reuse_address(self) -> bool:
        """SO_REUSEADDR."""
        return bool(self.number(socket.SOL_SOCKET, socket.SO_REUSEADDR))

    @property
    def reuse_port(self) -> bool:
        """SO_REUSEPORT."""
        return bool(self.number(socket.SOL_SOCKET, REUSEPORT))

    @property
    def only_ipv6(self) -> bool:
        """IPV6_V6ONLY."""
        return bool(self.number(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))

    @property
    def sizes(self) -> tuple[int, int]:
        """The sizes of the send and the receive buffer."""
        return (
            self.number(socket.SOL_SOCKET, socket.SO_SNDBUF),
            self.number(socket.SOL_SOCKET, socket.SO_RCVBUF),
        )

    @property
    def aborts(self) -> bool:
        """Whether closing resets: SO_LINGER, on, with no time."""
        on, seconds = struct.unpack("ii", self._linger)
        return bool(on) and seconds == 0

    @property
    def keepalive(self) -> tuple[float, float, int] | None:
        """SO_KEEPALIVE with its times."""
        if not self.number(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
            return None
        idle, interval, count = (
            self.number(socket.IPPROTO_TCP, name) for name in (KEEPIDLE, KEEPINTVL, KEEPCNT)
        )
        return float(idle), float(interval), count

    @property
    def user_timeout(self) -> float | None:
        """TCP_USER_TIMEOUT, in seconds."""
        return self.number(socket.IPPROTO_TCP, USER_TIMEOUT) / 1000 or None

    @property
    def not_sent_limit(self) -> int | None:
        """TCP_NOTSENT_LOWAT."""
        return self.number(socket.IPPROTO_TCP, NOTSENT_LOWAT) or None
