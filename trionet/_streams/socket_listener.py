"""Listeners straight on the operating system's non-blocking sockets."""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import TYPE_CHECKING, Final, final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from .._address import printable
from ..abc import Listener
from . import readiness
from .sockets import UNIX, SocketStream, address_of

if TYPE_CHECKING:
    from .._address import Address

__all__ = ("SocketListener", "inode_of")

_logger = logging.getLogger("trionet.sockets")

# accept(2): errors of the one connection that died in the backlog, not of the listener.
DEAD_ON_ARRIVAL: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETUNREACH",
        "ENONET",
        "ENOPROTOOPT",
        "ENOSR",
        "EOPNOTSUPP",
        "EPERM",
        "EPROTO",
        "EPROTONOSUPPORT",
        "ESOCKTNOSUPPORT",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)


def inode_of(path: str) -> tuple[int, int] | None:
    """Return what tells the file at ``path`` from every other, or None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@final
class SocketListener(Listener[SocketStream]):
    """Accepts TCP or Unix connections.

    Attributes:
      socket: the non-blocking listening socket itself.
      name: what the service manager calls it, where it comes from `trionet.inherited_listeners`.
    """

    __slots__ = ("_accept_busy", "_address", "_inode", "_local", "name", "socket")

    def __init__(
        self,
        sock: socket.socket,
        *,
        address: Address | None = None,
        inode: tuple[int, int] | None = None,
        name: str | None = None,
    ) -> None:
        """Take over a listening stream socket, and make it non-blocking.

        Args:
          address: the address to report where the socket itself does not know it.
          inode: what `inode_of` said of the Unix path in ``address``; closing unlinks the path if
            it is still that very file, and never without this.
          name: what a service manager calls it.

        Raises:
          TypeError: it is not a stream socket of the standard library.
          ValueError: it is not listening.
        """
        if not isinstance(sock, socket.socket) or sock.type != socket.SOCK_STREAM:
            raise TypeError(f"SocketListener needs a stream socket, got {sock!r}")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"SocketListener needs a listening socket, got {sock!r}")
        sock.setblocking(False)
        self.socket: socket.socket = sock
        self._address = address or address_of(sock.family, sock.getsockname())
        # A Unix connection's near end is the listener's; a TCP one's may be any of this machine's.
        self._local = self._address if sock.family == UNIX else None
        self._accept_busy = False
        self._inode = inode
        self.name: str | None = name

    def __repr__(self) -> str:
        state = " closed" if self.socket.fileno() == -1 else ""
        return f"<SocketListener {self._address.network} {printable(self._address)}{state}>"

    @property
    def address(self) -> Address:
        """Where this listener listens."""
        return self._address

    async def accept(self) -> SocketStream:
        """Take the oldest connection, or wait for one.

        Raises:
          trio.BusyResourceError: another task is accepting.
          trio.ClosedResourceError: this listener is, or gets, closed.
          OSError: the system has no descriptor or no memory for it (EMFILE, ENFILE, ENOBUFS,
            ENOMEM); the connection stays in the backlog.

        If cancelled, no connection is lost.
        """
        await checkpoint_if_cancelled()
        while True:
            try:
                stream = self.accept_nowait()
            except trio.WouldBlock:
                await self._park()
            else:
                await cancel_shielded_checkpoint()
                return stream

    def accept_nowait(self) -> SocketStream:
        """Take the oldest connection.

        Raises:
          trio.WouldBlock: there is none.
          trio.ClosedResourceError: this listener is closed.
          OSError: as `accept`.
        """
        while True:
            try:
                sock, name = self.socket.accept()
            except BlockingIOError:
                raise trio.WouldBlock from None
            except OSError as exc:
                if self.socket.fileno() == -1:
                    raise trio.ClosedResourceError("this listener is closed") from None
                if exc.errno not in DEAD_ON_ARRIVAL:
                    raise
            else:
                # The name as accept() gave it: a peer that is gone has none to ask for later.
                return SocketStream(sock, local=self._local, peername=name)

    async def wait_acceptable(self) -> None:
        """Wait until `accept_nowait` will probably find a connection.

        Raises:
          trio.BusyResourceError: another task is in here or in `accept`.
          trio.ClosedResourceError: this listener is, or gets, closed.

        If cancelled, nothing was taken.
        """
        await self._park()

    async def aclose(self) -> None:
        """Close, then let others run. Cancelled or not, the listener is closed afterwards."""
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close at once. The kernel resets what nobody accepted; a Unix path of ours goes."""
        if self.socket.fileno() == -1:
            return
        # Asked before the socket goes: until then the kernel cannot give its inode to another.
        path = self._address.path or ""
        try:
            if self._inode is not None and inode_of(path) == self._inode:
                os.unlink(path)
        except OSError as exc:
            # Privileges were dropped, say. The path refuses whoever dials it, and a successor
            # replaces it.
            _logger.warning("cannot remove %r: %s", path, exc)
        finally:
            readiness.forget(self.socket)
            self.socket.close()

    def abandon(self) -> None:
        """Close the socket of a listener that nobody has used yet, in trio or not."""
        self.socket.close()

    async def _park(self) -> None:
        if self._accept_busy:
            raise trio.BusyResourceError("another task is accepting on this listener")
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("this listener is closed")
        self._accept_busy = True
        try:
            await trio.lowlevel.wait_readable(self.socket)
        finally:
            self._accept_busy = False
