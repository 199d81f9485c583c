"""Streams straight on the operating system's non-blocking sockets.

How this works. ``trio.SocketStream`` calls ``trio.socket``, which calls the socket: three
coroutines an operation. These classes call the socket themselves and only wait through
`readiness`, so an operation that need not wait costs its system call and one checkpoint. The file
is long because a socket can do much, each thing in a method with its contract above it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import socket
import sys
import termios
from operator import index
from typing import IO, TYPE_CHECKING, Any, Final, final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from .._address import Address, printable
from .._errors import ReceiveInterrupted
from ..abc import Stream
from . import readiness
from .files import check_file, kernel_file, send_by_reading

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from socket import socket as Socket  # noqa: N812 - the class has a property of that name

__all__ = ("RECEIVE_SIZE", "SocketStream", "address_of")

_logger = logging.getLogger("trionet.sockets")

# What a receive without max_bytes asks for; trio's own default.
RECEIVE_SIZE: Final = 65536

UNIX: Final = getattr(socket, "AF_UNIX", None)

# At most so many bytes in one sendfile(2): other tasks run in between.
SENDFILE_SIZE: Final = 1 << 20


def address_of(family: int, name: Any) -> Address:
    """Turn what getsockname() and its kin give into an `Address`."""
    if family == socket.AF_INET:
        return Address("tcp4", host=name[0], port=name[1])
    if family == socket.AF_INET6:
        host, port, _, scope = name
        if scope and "%" not in host:
            host = f"{host}%{_interface(scope)}"
        return Address("tcp6", host=host, port=port)
    if isinstance(name, bytes):
        # Linux's abstract names start with a NUL.
        name = "@" + os.fsdecode(name[1:]) if name else ""
    return Address("unix", path=name or "")


def _checked(max_bytes: int) -> int:
    max_bytes = index(max_bytes)
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
    return max_bytes


def _interface(scope: int) -> str:
    try:
        return socket.if_indextoname(scope)
    except OSError:
        return str(scope)


@final
class SocketStream(Stream, trio.abc.HalfCloseableStream):
    """A TCP or Unix connection.

    If ``send_all`` is cancelled, the stream stays usable, and the peer gets a first part of the
    data, maybe all or none of it.

    """

    __slots__ = (
        "_drained",
        "_entry",
        "_interrupted",
        "_local",
        "_peername",
        "_receive_busy",
        "_received",
        "_remote",
        "_send_busy",
        "_sent",
        "_sent_eof",
        "_short_is_all",
        "_sock",
        "_waited",
    )

    def __init__(
        self,
        sock: socket.socket,
        *,
        local: Address | None = None,
        remote: Address | None = None,
        peername: Any = None,
    ) -> None:
        """Take over a connected stream socket, and make it non-blocking.

        Args:
          local, remote: the addresses to report where the socket itself does not know them.
          peername: the remote address in the form getpeername() has, where it was learnt earlier.

        Raises:
          TypeError: it is not a stream socket of the standard library.
        """
        if not isinstance(sock, socket.socket) or sock.type != socket.SOCK_STREAM:
            raise TypeError(f"SocketStream needs a stream socket, got {sock!r}")
        sock.setblocking(False)
        self._sock = sock
        # Whether any task may ever have waited for the socket by trio's own means.
        self._waited = False
        self._local: Address | None = local
        self._remote: Address | None = remote
        self._peername = peername
        self._send_busy = False
        self._receive_busy = False
        self._sent_eof = False
        self._interrupted = False
        # The socket's place in the readiness hub, once it has one.
        self._entry: readiness.Entry | None = None
        # The last receive emptied the socket: waiting at once saves a call that would find nothing.
        # Only a short read proves it; on a guess the hub would wait for an edge that is past.
        self._drained = False
        # Whether a short read proves it: a Unix socket's also stops behind bytes that a descriptor
        # came with (unix(7)). TCP's stops in front of urgent data, too; that the hub is told.
        self._short_is_all = sock.family != UNIX
        self._sent = 0
        self._received = 0

    def __repr__(self) -> str:
        if self.closed:
            return "<SocketStream closed>"
        local = self.local_address
        peer = printable(self.remote_address)
        return f"<SocketStream {local.network} {printable(local)} -> {peer}>"

    @property
    def local_address(self) -> Address:
        """This end, as the socket names it."""
        if self._local is None:
            self._local = address_of(self._sock.family, self._sock.getsockname())
        return self._local

    @property
    def remote_address(self) -> Address:
        """The other end.

        Raises:
          OSError: the peer was gone before anyone asked, so the socket does not know it.
        """
        if self._remote is None:
            name = self._sock.getpeername() if self._peername is None else self._peername
            self._remote = address_of(self._sock.family, name)
        return self._remote

    @property
    def socket(self) -> Socket:
        """The non-blocking socket itself."""
        # Who has it may wait for it, and is to be woken when it closes.
        self._waited = True
        return self._sock

    @property
    def transport_socket(self) -> Socket:
        """The socket itself: its bytes are this stream's."""
        return self.socket

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self._sock.fileno() == -1

    @property
    def bytes_sent(self) -> int:
        """How many bytes the kernel has taken."""
        return self._sent

    @property
    def bytes_received(self) -> int:
        """How many bytes ``receive_some`` has returned."""
        return self._received

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self._send_busy

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; return once the kernel has taken all of it.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the connection is gone; the system's error is its cause.
          trio.ClosedResourceError: this end was closed, or has sent end of file.

        If cancelled, the peer gets a first part of ``data``; `bytes_sent` tells how much.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._send_busy = True
        try:
            await checkpoint_if_cancelled()
            sock = self._sock
            sent = self._send_some(data)
            # A memoryview's len() counts items, not bytes.
            size = data.nbytes if isinstance(data, memoryview) else len(data)
            if sent == size:
                await cancel_shielded_checkpoint()
                return
            with memoryview(data).cast("B") as view:
                while sent < size:
                    await self._park_writable()
                    try:
                        count = sock.send(view[sent:])
                    except BlockingIOError:
                        continue
                    sent += count
                    self._sent += count
        except OSError as exc:
            raise self._translated(exc) from exc
        finally:
            self._send_busy = False

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """See `trionet.abc.Stream.send_nowait`."""
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        try:
            return self._send_some(data)
        except OSError as exc:
            raise self._translated(exc) from exc

    async def send_file(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send part of a file, by the kernel alone where it can (sendfile(2)).

        A page of the file that is not in memory is read from the disk then and there, and the
        event loop waits for it, as in nginx without threads; a file that the kernel cannot send
        by itself is read in a thread, piece by piece.

        Args:
          file: a file open for reading in binary mode; its position stays where it is, unless it
            has to be sought, being no regular file.
          offset: the file's byte to start with.
          count: how many bytes; to the end of the file unless given.

        Returns:
          How many bytes were sent: fewer than ``count`` where the file ends before.

        Raises:
          TypeError, ValueError: an argument is wrong; nothing was sent.
          trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError: as `send_all`.
          OSError: the file cannot be read.

        If cancelled, the peer gets a first part; `bytes_sent` tells how much.
        """
        offset, count = check_file(file, offset, count)
        found = kernel_file(file) if hasattr(os, "sendfile") else None
        if found is None:
            return await send_by_reading(self, file, offset, count)
        fd, size = found
        end = size if count is None else min(size, offset + count)
        sent = await self._sendfile(fd, offset, end)
        return await send_by_reading(self, file, offset, count) if sent is None else sent

    async def _sendfile(self, fd: int, offset: int, end: int) -> int | None:
        """Send the file's bytes up to ``end``; None, and nothing, if the kernel cannot do it."""
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._send_busy = True
        at = offset
        try:
            await checkpoint_if_cancelled()
            self._check_sendable()
            while at < end:
                try:
                    moved = os.sendfile(self._sock.fileno(), fd, at, min(end - at, SENDFILE_SIZE))
                except BlockingIOError:
                    pass
                else:
                    if not moved:
                        # The file was cut meanwhile.
                        break
                    at += moved
                    self._sent += moved
                if at < end:
                    # Also after a success: a reader that keeps up must not keep the loop.
                    await self._park_writable()
            await cancel_shielded_checkpoint()
            return at - offset
        except OSError as exc:
            if at == offset and exc.errno in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                return None
            if exc.errno in {errno.EIO, errno.EBADF, errno.ESTALE} and not self.closed:
                raise
            raise self._translated(exc) from exc
        finally:
            self._send_busy = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes bytes again.

        Raises and leaves behind what `send_all` does, but sends nothing.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sendable()
        self._send_busy = True
        try:
            await self._park_writable()
        finally:
            self._send_busy = False

    async def send_eof(self) -> None:
        """Send end of file; what the peer sends can still be received. A second call does nothing.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the connection is gone.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was sent.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        await checkpoint_if_cancelled()
        if self.closed:
            raise trio.ClosedResourceError("this stream is closed")
        if not self._sent_eof:
            self._sent_eof = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as exc:
                raise self._translated(exc) from exc
        await cancel_shielded_checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte and at most ``max_bytes``; ``b""`` is end of file.

        Args:
          max_bytes: 65 536 unless given.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the connection is gone; the system's error is its cause.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was received.
        """
        max_bytes = RECEIVE_SIZE if max_bytes is None else _checked(max_bytes)
        if self._receive_busy:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receive_busy = True
        sock = self._sock
        try:
            if not self._drained:
                await checkpoint_if_cancelled()
                try:
                    data = sock.recv(max_bytes)
                except BlockingIOError:
                    pass
                else:
                    self._drained = self._short_is_all and 0 < len(data) < max_bytes
                    self._received += len(data)
                    await cancel_shielded_checkpoint()
                    return data
            while True:
                if self._interrupted and not self.is_readable():
                    # A checkpoint as every way out is: who tries again and again lets others run.
                    await checkpoint()
                    if not self.is_readable():
                        raise ReceiveInterrupted
                entry = self._entry
                # Closed past this object, by its `socket`, it is still registered.
                if entry is not None and entry.registered and sock.fileno() != -1:
                    await entry.park()
                else:
                    self._waited = True
                    await readiness.park_readable(sock)
                    self._entry = readiness.entry_of(sock)
                try:
                    data = sock.recv(max_bytes)
                except BlockingIOError:
                    continue
                # End of file comes again and again without a wait, so go and look next time too.
                self._drained = self._short_is_all and 0 < len(data) < max_bytes
                self._received += len(data)
                return data
        except OSError as exc:
            raise self._translated(exc) from exc
        finally:
            self._receive_busy = False

    def receive_nowait(self, max_bytes: int | None = None) -> bytes:
        """See `trionet.abc.Stream.receive_nowait`."""
        max_bytes = RECEIVE_SIZE if max_bytes is None else _checked(max_bytes)
        if self._receive_busy:
            raise trio.BusyResourceError("another task is receiving on this stream")
        try:
            data = self._sock.recv(max_bytes)
        except BlockingIOError:
            raise trio.WouldBlock from None
        except OSError as exc:
            raise self._translated(exc) from exc
        self._drained = self._short_is_all and 0 < len(data) < max_bytes
        self._received += len(data)
        return data

    async def aclose(self) -> None:
        """Close the connection. Nothing waits for the peer; the kernel still sends what it took.

        Cancelled or not, the stream is closed afterwards.
        """
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close the connection at once; ``aclose`` is this and a checkpoint."""
        sock = self._sock
        if sock.fileno() != -1:
            if self._waited:
                readiness.forget(sock)
            sock.close()

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received."""
        return not self.closed and bool(self._poll(select.POLLIN))

    def unread_size(self) -> int:
        """How many bytes wait to be received."""
        fd = self._sock.fileno()
        if fd == -1:
            return 0
        return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)

    def peer_closed(self) -> bool:
        """Whether the peer has sent end of file, even behind bytes that wait, or a reset."""
        if self.closed:
            return False
        gone = select.POLLHUP | select.POLLERR
        if hasattr(select, "POLLRDHUP"):
            gone |= select.POLLRDHUP
            return bool(self._poll(select.POLLRDHUP) & gone)
        if self._poll(select.POLLIN) & gone:
            return True
        # Without POLLRDHUP only an end of file with nothing before it can be seen.
        try:
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self._interrupted = True
        if self._receive_busy and not self.closed:
            readiness.wake(self._sock)

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._interrupted = False

    def _poll(self, events: int) -> int:
        poll = select.poll()
        poll.register(self._sock, events)
        ready = poll.poll(0)
        return ready[0][1] if ready else 0

    def _send_some(self, data: bytes | bytearray | memoryview) -> int:
        # A closed socket says so itself, but not where there is nothing to send.
        if self._sent_eof or not data:
            self._check_sendable()
            return 0
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            return 0
        self._sent += sent
        return sent

    def _park_writable(self) -> Coroutine[Any, Any, None]:
        self._waited = True
        return readiness.park_writable(self._sock)

    def _check_sendable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this stream is closed")
        if self._sent_eof:
            raise trio.ClosedResourceError("this stream is closed for sending: it sent end of file")

    def _translated(self, error: OSError) -> Exception:
        if self.closed:
            return trio.ClosedResourceError("this stream is closed")
        return trio.BrokenResourceError(f"the connection broke: {error}")
