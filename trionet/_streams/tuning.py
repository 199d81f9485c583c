"""What `SocketOptions` asks of a socket, in the system's own words."""

from __future__ import annotations

import errno
import os
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._options import SocketOptions

__all__ = ("Setting", "Tunable", "Tuning", "tuning")

Phase = Literal["dialling", "listening"]

# <linux/tcp.h>; the socket module has no name for it before Python 3.14.
FASTOPEN_CONNECT: Final = "TCP_FASTOPEN_CONNECT"
LINUX_FASTOPEN_CONNECT: Final = 30

# What macOS calls the first of the three.
KEEPALIVE_IDLE: Final = "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE"

# Options of TCP alone, and what each is unless somebody asks for it.
TCP_ONLY: Final = {
    "keepalive": None,
    "user_timeout": None,
    "fast_open": None,
    "defer_accept": None,
    "not_sent_low_water": None,
    "reuse_port": False,
}


class Tunable(Protocol):
    """A socket, as far as its options go."""

    def setsockopt(self, level: int, optname: int, value: int, /) -> None:
        """Set an option."""


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """One call of setsockopt(2), and the option it is made for."""

    option: str
    constant: str
    level: int
    number: int
    value: int

    def apply(self, sock: Tunable) -> None:
        """Make the call; an OSError of the system names the option."""
        try:
            sock.setsockopt(self.level, self.number, self.value)
        except OSError as exc:
            raise OSError(
                exc.errno,
                f"SocketOptions.{self.option}: the system refuses {self.constant}={self.value}: "
                f"{os.strerror(exc.errno or 0)}",
            ) from exc


@final
@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings of a socket that is to be made.

    Attributes:
      before: for the new socket. The size of the receive buffer decides on the window scale, which
        is told with the first segment, so nothing may wait for connect(2) or listen(2); and what
        a listening socket has, those it accepts inherit.
      listening: for the socket once it listens; macOS takes the queue of TCP Fast Open only then.
    """

    before: tuple[Setting, ...]
    listening: tuple[Setting, ...] = ()


def tuning(options: SocketOptions, phase: Phase, *, unix: bool) -> Tuning:
    """Translate ``options``, before anything is opened.

    Raises:
      ValueError: an option makes no sense for such a socket.
      OSError: this platform has no such option (ENOPROTOOPT).
    """
    if unix:
        for name, absent in TCP_ONLY.items():
            value = getattr(options, name)
            if value != absent:
                raise ValueError(f"SocketOptions.{name} is for TCP, got {value!r} for unix")
        return Tuning(tuple(_buffers(options)))
    before = [*_buffers(options), *_everywhere(options)]
    if phase == "dialling":
        return Tuning((*before, *_dialling(options)))
    if options.defer_accept is not None:
        before.append(
            _setting("defer_accept", socket.IPPROTO_TCP, "TCP_DEFER_ACCEPT", options.defer_accept)
        )
    queue: tuple[Setting, ...] = ()
    if options.fast_open is not None:
        if options.fast_open is True:
            raise ValueError(
                "SocketOptions.fast_open is the length of a queue when listening, got True"
            )
        queue = (_setting("fast_open", socket.IPPROTO_TCP, "TCP_FASTOPEN", options.fast_open),)
    return Tuning(tuple(before), queue)


def _buffers(options: SocketOptions) -> Iterator[Setting]:
    for name, constant in (("send_buffer", "SO_SNDBUF"), ("receive_buffer", "SO_RCVBUF")):
        size = getattr(options, name)
        if size is not None:
            yield _setting(name, socket.SOL_SOCKET, constant, size)


def _everywhere(options: SocketOptions) -> Iterator[Setting]:
    """Give what dialling and listening TCP sockets have in common."""
    tcp = socket.IPPROTO_TCP
    yield _setting("no_delay", tcp, "TCP_NODELAY", int(options.no_delay))
    if options.reuse_port:
        yield _setting("reuse_port", socket.SOL_SOCKET, "SO_REUSEPORT", 1)
    if options.keepalive is not None:
        yield _setting("keepalive", socket.SOL_SOCKET, "SO_KEEPALIVE", 1)
        if options.keepalive is not True:
            constants = (KEEPALIVE_IDLE, "TCP_KEEPINTVL", "TCP_KEEPCNT")
            for constant, value in zip(constants, options.keepalive, strict=True):
                yield _setting("keepalive", tcp, constant, value)
    if options.user_timeout is not None:
        # In milliseconds, and never zero, which would be the system's own.
        value = max(1, round(options.user_timeout * 1000))
        yield _setting("user_timeout", tcp, "TCP_USER_TIMEOUT", value)
    if options.not_sent_low_water is not None:
        yield _setting("not_sent_low_water", tcp, "TCP_NOTSENT_LOWAT", options.not_sent_low_water)


def _dialling(options: SocketOptions) -> Iterator[Setting]:
    if options.defer_accept is not None:
        raise ValueError(
            f"SocketOptions.defer_accept is for listening, got {options.defer_accept!r}"
        )
    if options.fast_open is not None:
        if options.fast_open is not True:
            raise ValueError(
                f"SocketOptions.fast_open is True when dialling, got {options.fast_open!r}"
            )
        yield _setting("fast_open", socket.IPPROTO_TCP, FASTOPEN_CONNECT, 1)


def _setting(option: str, level: int, constant: str, value: int) -> Setting:
    number = getattr(socket, constant, None)
    if number is None and constant == FASTOPEN_CONNECT and sys.platform == "linux":
        number = LINUX_FASTOPEN_CONNECT
    if number is None:
        raise OSError(errno.ENOPROTOOPT, f"SocketOptions.{option}: this platform has no {constant}")
    return Setting(option, constant, level, number, value)
