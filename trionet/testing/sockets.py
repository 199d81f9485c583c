"""Virtual sockets: what ``trio.socket.socket`` gives on a virtual host.

This file holds what all of them have; `StreamSocket` and `DatagramSocket` move the bytes. Whatever
a socket can be asked stands here as one short method, most of them for their errors' sake: each is
what Linux says.
"""

from __future__ import annotations

import errno
import os
import socket
import warnings
from operator import index
from typing import TYPE_CHECKING, Any, NoReturn, cast

import trio
from trio.socket import SocketType

from .sockopts import Options
from .stack import Binding, Stack, failure, is_wildcard

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ("UNIX", "VirtualSocket", "checked_size", "plain_bytes")

UNIX = getattr(socket, "AF_UNIX", None)
# Far above every real descriptor: whoever hands one to epoll gets an error at once.
FIRST_FILENO = 1 << 30


def checked_size(size: object) -> int:
    """Return how much to receive, as ``socket.recv`` takes it."""
    number = index(cast("Any", size))
    if number < 0:
        raise ValueError("negative buffersize in recv")
    return number


def plain_bytes(data: Any) -> memoryview:
    """Return a view of ``data`` that counts bytes."""
    return memoryview(data).cast("B")


class VirtualSocket(SocketType):
    """A socket of a virtual host.

    Attributes:
      stack: the host's.
      number: which socket of its network this is, from 1.
    """

    kind: socket.SocketKind
    protocol: str

    def __init__(self, stack: Stack, family: int, proto: int) -> None:
        super().__init__()
        self.stack: Stack = stack
        self.number: int = stack.world.next_socket()
        self._family = socket.AddressFamily(family)
        self._proto = proto
        self.options: Options = Options()
        self.binding: Binding | None = None
        self._closed = False
        self._sent_eof = False
        stack.sockets[self.number] = self

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._state()
        return f"<virtual {self.protocol} socket {self.number} of {self.stack.name}, {state}>"

    # Sets of sockets come in the same order in every run.

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            # As the standard library's sockets do.
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.stack.world.abandoned.append(repr(self))
            if trio.lowlevel.in_trio_run():
                self.close()

    @property
    def _sock(self) -> VirtualSocket:
        """Itself: anyio looks here for what it reports about a connection."""
        return self

    def fileno(self) -> int:
        """Return a number that is no descriptor, or -1 once closed."""
        return -1 if self._closed else FIRST_FILENO + self.number

    @property
    def family(self) -> socket.AddressFamily:
        """The address family."""
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        """SOCK_STREAM or SOCK_DGRAM."""
        return self.kind

    @property
    def proto(self) -> int:
        """The protocol it was made with."""
        return self._proto

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802 - trio's name
        """Whether end of file was sent."""
        return self._sent_eof

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        """Return an option; see socket(7)."""
        self.check_open()
        return self.options.get(level, optname, buflen, self._fact)

    def setsockopt(
        self, level: int, optname: int, value: Any = None, optlen: int | None = None
    ) -> None:
        """Set an option; what has no meaning here is remembered."""
        self.check_open()
        self.options.set(level, optname, value, optlen)
        self.apply_options()

    def get_inheritable(self) -> bool:
        """Return False: there is nothing to inherit."""
        return False

    def set_inheritable(self, inheritable: bool) -> None:
        """Do nothing."""

    def detach(self) -> NoReturn:
        """Not possible.

        Raises:
          NotImplementedError: there is no descriptor.
        """
        raise NotImplementedError("a virtual socket has no descriptor to detach")

    def dup(self) -> NoReturn:
        """Not possible.

        Raises:
          NotImplementedError: there is no descriptor.
        """
        raise NotImplementedError("a virtual socket has no descriptor to duplicate")

    def share(self, process_id: int) -> NoReturn:
        """Not possible.

        Raises:
          NotImplementedError: there is no descriptor.
        """
        raise NotImplementedError("a virtual socket cannot go to another process")

    def close(self) -> None:
        """Close it, at once."""
        if not self._closed:
            self._closed = True
            self.stack.sockets.pop(self.number, None)
            self.let_go()

    def getsockname(self) -> Any:
        """Return the local address."""
        self.check_open()
        if self.family == UNIX:
            return ""
        if self.binding is None:
            return self.named("::" if self.family == socket.AF_INET6 else "0.0.0.0", 0)  # noqa: S104
        return self.named(self.binding.ip, self.binding.port)

    async def bind(self, address: Any) -> None:
        """Take a local address; see bind(2)."""
        self.check_open()
        await trio.lowlevel.checkpoint()
        if self.family == UNIX:
            self.bind_path(self.path_of(address))
            return
        ip, port = await self.resolve(address, local=True)
        # In the order in which Linux looks.
        self.stack.check_owns(ip)
        if self._is_bound():
            raise failure(errno.EINVAL, "the socket is bound already")
        self.take_address(ip, port)

    def take_address(self, ip: str, port: int) -> None:
        """Bind to an address, port 0 to a free one."""
        options = self.options
        binding = Binding(
            self.protocol,
            ip,
            port,
            dual=ip == "::" and not options.only_ipv6,
            reuse_address=options.reuse_address,
            reuse_port=options.reuse_port,
        )
        self.stack.bind(binding)
        self.binding = binding

    # For those below

    def _is_bound(self) -> bool:
        return self.binding is not None

    def _state(self) -> str:
        return "open"

    def _fact(self, name: int) -> int | None:
        if name == socket.SO_TYPE:
            return int(self.kind)
        if name == getattr(socket, "SO_DOMAIN", -1):
            return int(self.family)
        if name == getattr(socket, "SO_PROTOCOL", -1):
            return self.proto or {"tcp": 6, "udp": 17}.get(self.protocol, 0)
        return 0

    def apply_options(self) -> None:
        """Act on options that were set."""

    def let_go(self) -> None:
        """Do what closing does."""

    def bind_path(self, path: str) -> None:
        """Bind a Unix socket."""
        raise failure(errno.EOPNOTSUPP, f"{path}: only streams have Unix addresses here")

    def vanish(self) -> None:
        """Be closed as the power goes."""
        self.close()

    def check_open(self) -> None:
        """Raise EBADF if this is closed."""
        if self._closed:
            raise failure(errno.EBADF)

    def named(self, ip: str, port: int) -> Any:
        """Return an address in the form of this family."""
        if self.family != socket.AF_INET6:
            return (ip, port)
        return (f"::ffff:{ip}" if ":" not in ip else ip, port, 0, 0)

    def path_of(self, address: Any) -> str:
        """Return a Unix address as text; an abstract one begins with an ``@``."""
        path = os.fsdecode(address)
        if not path:
            raise failure(errno.EINVAL, "an empty Unix path")
        return "@" + path[1:] if path.startswith("\0") else path

    async def resolve(self, address: Any, *, local: bool = False) -> tuple[str, int]:
        """Return (ip, port) of an address in Python's form; no checkpoint if it is numeric."""
        if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
            raise TypeError(f"the address should be a (host, port) tuple, got {address!r}")
        if self.family == socket.AF_INET and len(address) != 2:
            raise TypeError(f"the address should be a (host, port) tuple, got {address!r}")
        host, port = address[0], address[1]
        try:
            socket.inet_pton(self.family, host)
        except (OSError, TypeError):
            infos = await trio.socket.getaddrinfo(
                host or None,
                port,
                self.family,
                self.kind,
                flags=socket.AI_PASSIVE if local else 0,
            )
            host, port = infos[0][4][0], infos[0][4][1]
        port = index(port)
        if not 0 <= port <= 65535:
            raise OverflowError(f"the port must be 0 to 65535, got {port}")
        if isinstance(host, bytes):
            host = host.decode("ascii")
        host = host.partition("%")[0]
        if host.startswith("::ffff:") and "." in host:
            # An IPv4 address in IPv6's clothes (RFC 4291 section 2.5.5.2).
            host = host[7:]
        if not local and is_wildcard(host):
            host = "::1" if ":" in host else "127.0.0.1"
        return host, port
