"""Virtual TCP and Unix stream sockets.

The file is long because the socket API is: each call is a short method, with Linux's errors.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, Final, final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from .._streams.segment import Endpoint
from .sockets import UNIX, VirtualSocket, checked_size, plain_bytes
from .stack import Binding, Stack, failure, is_wildcard
from .tcp import Backlog, Connection

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("StreamSocket",)

# Plain numbers, for the module's are an enum's, whose every & costs a microsecond.
PEEK: Final = int(socket.MSG_PEEK)
# No-ops on a non-blocking socket, and on one that raises no signals.
HARMLESS: Final = int(
    getattr(socket, "MSG_DONTWAIT", 0)
    | getattr(socket, "MSG_NOSIGNAL", 0)
    | getattr(socket, "MSG_WAITALL", 0)
    | getattr(socket, "MSG_MORE", 0)
)


@final
class StreamSocket(VirtualSocket):
    """A TCP socket, or a Unix one."""

    kind = socket.SOCK_STREAM
    binding: Binding | None

    def __init__(self, stack: Stack, family: int, proto: int) -> None:
        self.protocol: str = "unix" if family == UNIX else "tcp"
        self.backlog: Backlog | None = None
        self.end: Connection | None = None
        self._path: str | None = None
        self._is_accepted = False
        self._shut_read = False
        # Linux has how a connect() that did not wait ended told by the next one: until then a
        # connection is not made, nor a failed one over. trio asks another way.
        self._unasked = False
        # The last attempt to connect failed, from this address.
        self._failed_from: tuple[str, int] | None = None
        # For who waits until a listening socket can be written to: when it does not listen.
        self._deaf = trio.Event()
        super().__init__(stack, family, proto)

    def _is_bound(self) -> bool:
        return self.end is not None or super()._is_bound()

    def _state(self) -> str:
        if self.backlog is not None:
            return "listening"
        return "unconnected" if self.end is None else repr(self.end)

    def _fact(self, name: int) -> int | None:
        if name == socket.SO_ACCEPTCONN:
            return int(self.backlog is not None)
        if name == socket.SO_ERROR:
            return 0 if self.end is None else self.end.take_error()
        return super()._fact(name)

    def apply_options(self) -> None:
        """Act on options that were set."""
        end = self.end
        if self.backlog is not None:
            self.backlog.sizes = self.options.sizes
        if end is None:
            return
        end.capacity, end.inbox.capacity = self.options.sizes
        end.not_sent_limit = self.options.not_sent_limit
        end.user_timeout = self.options.user_timeout
        end.keep_alive(self.options.keepalive)

    # Names

    def getsockname(self) -> Any:
        """Return the local address."""
        self.check_open()
        if self.family == UNIX:
            return self._unix_name(self._path or "")
        if self.end is not None:
            return self.named(self.end.local.ip, self.end.local.port)
        if self._failed_from is not None and self.binding is None:
            return self.named(*self._failed_from)
        return super().getsockname()

    def getpeername(self) -> Any:
        """Return the other end's address."""
        end = self._connected()
        if self.family == UNIX:
            return self._unix_name(end.remote.host)
        return self.named(end.remote.ip, end.remote.port)

    def _unix_name(self, path: str) -> str | bytes:
        return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path

    def bind_path(self, path: str) -> None:
        """Bind a Unix socket to a path of this host."""
        if self._path is not None:
            raise failure(errno.EINVAL, "the socket is bound already")
        if path in self.stack.paths:
            raise failure(errno.EADDRINUSE, f"{path} on {self.stack.name}")
        self.stack.paths[path] = None
        self._path = path

    # Connecting

    async def connect(self, address: Any) -> None:
        """Connect to an address; see connect(2).

        If cancelled, the socket is closed, as trio's own is.
        """
        self.check_open()
        try:
            if self.family == UNIX:
                await checkpoint_if_cancelled()
                self.end = self._connect_path(self.path_of(address))
            else:
                ip, port = await self.resolve(address)
                await checkpoint_if_cancelled()
                self.end = self._connect_tcp(ip, port)
            self.apply_options()
            end = self.end
            await end.wait_open()
        except trio.Cancelled:
            self.close()
            raise
        except OSError:
            # Another attempt may follow, once connect() has told of this one.
            if self.end is not None and self.end.broken:
                self._failed_from = self.end.local.ip, self.end.local.port
                self.end = self.binding = None
            raise

    def _connect_tcp(self, ip: str, port: int) -> Connection:
        self.check_open()
        self.stack.check("connect")
        if self._unasked:
            self._unasked = False
            if self.end is not None and not (self.end.broken or self.end.finished):
                return self.end
            code = 0 if self.end is None else self.end.take_error()
            self.end = None
            self.binding = None
            raise failure(code or errno.ECONNABORTED)
        if self.backlog is not None or self.end is not None:
            raise failure(errno.EISCONN)
        if port == 0:
            raise failure(errno.ECONNREFUSED, f"{ip} port 0")
        if self.family == socket.AF_INET6 and ":" not in ip and self.options.only_ipv6:
            raise failure(errno.ENETUNREACH, f"{ip} by a socket for IPv6 only")
        stack = self.stack
        target = stack.locate(ip)
        source = stack.source_for(ip)
        if self.binding is None:
            self.take_address(source, 0)
        binding = self.binding
        assert binding is not None
        if not is_wildcard(binding.ip):
            source = binding.ip
        connection = stack.open(
            Endpoint(stack.name, source, binding.port),
            Endpoint(target.name, ip, port),
            target,
            self.options.sizes,
            binding,
        )
        self._unasked = True
        return connection

    def _connect_path(self, path: str) -> Connection:
        stack = self.stack
        stack.check("connect")
        if self.backlog is not None or self.end is not None:
            raise failure(errno.EISCONN)
        if path not in stack.paths:
            raise failure(errno.ECONNREFUSED if path.startswith("@") else errno.ENOENT, path)
        backlog = stack.paths[path]
        if backlog is None:
            raise failure(errno.ECONNREFUSED, path)
        if backlog.full:
            raise BlockingIOError(errno.EAGAIN, f"{path}: the listener's backlog is full")
        return stack.open_path(self._path or "", path, backlog, self.options.sizes)

    # Listening

    def listen(self, backlog: int = 128) -> None:
        """Begin to accept connections, or change how many may wait."""
        self.check_open()
        self.stack.check("listen")
        limit = max(0, backlog)
        if self.backlog is not None:
            self.backlog.limit = limit
            return
        if self.end is not None or self._unasked:
            raise failure(errno.EINVAL, "the socket is connected, or was to be")
        made = Backlog(limit, self.options.sizes)
        if self.family == UNIX:
            if self._path is None:
                raise failure(errno.EINVAL, "the socket is not bound")
            self.stack.paths[self._path] = made
        else:
            if self.binding is None:
                self.take_address("::" if self.family == socket.AF_INET6 else "0.0.0.0", 0)  # noqa: S104
            assert self.binding is not None
            self.stack.check_listen(self.binding)
            self.binding.backlog = made
        self.backlog = made

    async def accept(self) -> tuple[StreamSocket, Any]:
        """Take the oldest connection, or wait for one; see accept(2).

        If cancelled, no connection is lost.
        """
        await checkpoint_if_cancelled()
        self.check_open()
        if self.backlog is None:
            raise failure(errno.EINVAL, "the socket is not listening")
        backlog = self.backlog
        parked = False
        while True:
            self.stack.check("accept")
            end = backlog.take()
            if end is not None:
                break
            await backlog.wait()
            parked = True
            if backlog.closed:
                # Between being woken and running.
                raise trio.ClosedResourceError("another task closed this socket")
        accepted = self._accepted(end)
        if not parked:
            await cancel_shielded_checkpoint()
        return accepted, accepted.peer_as_accepted()

    def accept_now(self) -> StreamSocket | None:
        """Take the oldest connection, or None."""
        if self.backlog is None:
            return None
        self.stack.check("accept")
        end = self.backlog.take()
        return None if end is None else self._accepted(end)

    def _accepted(self, end: Connection) -> StreamSocket:
        accepted = StreamSocket(self.stack, self.family, self.proto)
        accepted.options.inherit(self.options)
        accepted.end = end
        accepted._path = self._path
        accepted._is_accepted = True
        accepted.apply_options()
        return accepted

    def peer_as_accepted(self) -> Any:
        """Return the other end's address, even of one that is gone."""
        assert self.end is not None
        remote = self.end.remote
        if self.family == UNIX:
            return self._unix_name(remote.host)
        return self.named(remote.ip, remote.port)

    # Receiving

    def is_readable(self) -> bool:
        """Whether a receive or accept would not wait."""
        if self._closed:
            # As trio's own, which asks poll().
            raise ValueError("file descriptor cannot be a negative integer (-1)")
        if self.backlog is not None:
            return len(self.backlog) > 0
        if self.end is None:
            # Linux: POLLHUP.
            return True
        inbox = self.end.inbox
        return inbox.unread > 0 or inbox.send_closed or inbox.broken or self._shut_read

    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        """Receive at most so many bytes; ``b""`` is end of file; see recv(2).

        If cancelled, nothing was received.
        """
        size = checked_size(buflen)
        if flags & ~(PEEK | HARMLESS):
            raise failure(errno.EOPNOTSUPP, f"flags {flags:#x}")
        # Python does not ask the kernel for nothing. A connection that failed has ended, and so has
        # one that was shut down before it was made.
        ended = self._shut_read or self._failed_from is not None
        if size == 0 or (ended and self.end is None and self.backlog is None and not self._closed):
            await checkpoint()
            return b""
        end = self._receiving()
        inbox = end.inbox
        if self._shut_read and not inbox.unread and not end.error:
            await checkpoint()
            return b""
        size = self.stack.short(size, self.stack.short_reads)
        try:
            data = await inbox.receive(size)
        except trio.BrokenResourceError:
            # Linux: after end of file, the error is for who sends.
            code = 0 if inbox.send_closed else end.take_error()
            if code:
                raise failure(code) from None
            await cancel_shielded_checkpoint()
            return b""
        if inbox.unread and len(data) < size:
            data += inbox.take_more(size - len(data))
        if flags & PEEK and data:
            inbox.put_back(data)
        return data

    async def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer."""
        view = plain_bytes(buffer)
        data = await self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    async def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """Receive; a stream does not say from whom."""
        return await self.recv(bufsize, flags), None

    async def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive into a buffer."""
        return await self.recv_into(buffer, nbytes, flags), None

    async def recvmsg(
        self,
        bufsize: int,
        ancbufsize: int = 0,  # noqa: ARG002 - the socket module's
        flags: int = 0,
        /,
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        """Receive; there are no ancillary data."""
        return await self.recv(bufsize, flags), [], 0, None

    async def recvmsg_into(
        self,
        buffers: Iterable[Any],
        ancbufsize: int = 0,  # noqa: ARG002 - the socket module's
        flags: int = 0,
        /,
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        """Receive into buffers, one after the other."""
        views = [plain_bytes(buffer) for buffer in buffers]
        data = await self.recv(sum(map(len, views)), flags)
        at = 0
        for view in views:
            part = data[at : at + len(view)]
            view[: len(part)] = part
            at += len(part)
        return len(data), [], 0, None

    # Sending

    async def send(self, data: Any, flags: int = 0, /) -> int:
        """Send a first part of ``data``, as much as there is room for; see send(2).

        If cancelled, nothing was sent.
        """
        if flags & ~HARMLESS:
            raise failure(errno.EOPNOTSUPP, f"flags {flags:#x}")
        await checkpoint_if_cancelled()
        self.check_open()
        if self.end is None or not self.end.is_open:
            raise failure(errno.EPIPE)
        end = self.end
        view = data if type(data) is bytes else plain_bytes(data)
        stop = self.stack.short(len(view), self.stack.short_writes)
        parked = False
        while True:
            self._check_sendable(end)
            sent = end.put(view, 0, stop)
            if sent or not stop:
                break
            await self._park(end)
            self.check_open()
            parked = True
        if not parked:
            await cancel_shielded_checkpoint()
        return sent

    async def sendto(self, *args: Any) -> int:
        """Send; the address is not looked at, as on Linux."""
        data, *rest = args
        return await self.send(data, rest[0] if len(rest) == 2 else 0)

    async def sendmsg(
        self,
        buffers: Iterable[Any],
        ancdata: Any = (),
        flags: int = 0,
        address: Any = None,  # noqa: ARG002 - the socket module's
        /,
    ) -> int:
        """Send a first part of several buffers."""
        if list(ancdata):
            raise failure(errno.EOPNOTSUPP, "a virtual socket has no ancillary data")
        return await self.send(b"".join(buffers), flags)

    async def wait_writable(self) -> None:
        """Wait until a send would not wait."""
        self.check_open()
        if self.backlog is not None:
            # Linux: it never can be.
            await self._deaf.wait()
            if self._closed:
                raise trio.ClosedResourceError("another task closed this socket")
            return
        end = self.end
        if end is None or end.broken or end.send_closed or end.receive_closed or end.writable:
            await checkpoint()
        else:
            await self._park(end)

    async def _park(self, end: Connection) -> None:
        if end.parked:
            raise trio.BusyResourceError("another task is sending on this socket")
        try:
            await end.park_sender()
        except trio.BrokenResourceError:
            # The loop that called finds the reason.
            pass
        except trio.ClosedResourceError:
            if self._closed:
                raise

    def _check_sendable(self, end: Connection) -> None:
        if end.error:
            raise failure(end.take_error())
        if end.broken or end.send_closed or end.receive_closed:
            raise failure(errno.EPIPE)

    # Ending

    def shutdown(self, flag: int) -> None:
        """End one direction, or both; see shutdown(2)."""
        self.check_open()
        if flag not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise failure(errno.EINVAL, f"how to shut down: {flag}")
        if self.backlog is not None:
            # Linux: it stops listening.
            if flag != socket.SHUT_WR:
                self._stop_listening()
            return
        self._unasked = False
        if self.end is None and flag != socket.SHUT_WR:
            self._shut_read = True
        end = self._connected()
        if flag != socket.SHUT_RD:
            self._sent_eof = True
            end.close_send()
        if flag != socket.SHUT_WR:
            self._shut_read = end.deaf = True
            end.inbox.end_wait()

    def let_go(self) -> None:
        """Do what close(2) does."""
        if self.backlog is not None:
            self._stop_listening()
        else:
            self._give_up_path()
        end = self.end
        if end is None:
            if self.binding is not None:
                self.stack.unbind(self.binding)
        elif end.is_open:
            end.release(abort=self.options.aborts)
        else:
            end.fail(errno.ECONNABORTED)

    def vanish(self) -> None:
        """Be closed as the power goes: without a word."""
        if self._closed:
            return
        self._closed = True
        self.stack.sockets.pop(self.number, None)
        if self.end is not None:
            self.end.send_closed = True
            self.end.vanish()
        if self.backlog is not None:
            self.backlog.close()

    def _stop_listening(self) -> None:
        assert self.backlog is not None
        self._give_up_path()
        self.backlog.close()
        self.backlog = None
        self._deaf.set()
        self._deaf = trio.Event()
        if self.binding is not None:
            self.binding.backlog = None

    def listen_path(self, path: str, backlog: int) -> None:
        """Listen on a Unix path, in place of whoever does now; an abstract name must be free."""
        self.stack.check("listen")
        if path.startswith("@") and path in self.stack.paths:
            raise failure(errno.EADDRINUSE, path)
        self._path = path
        self.backlog = self.stack.paths[path] = Backlog(backlog, self.options.sizes)

    def unlink(self) -> None:
        """Remove the path this listens on, if it is still its own."""
        if self.backlog is not None and self.stack.paths.get(self._path or "") is self.backlog:
            del self.stack.paths[self._path or ""]

    def _give_up_path(self) -> None:
        path, paths = self._path, self.stack.paths
        if path is None or self._is_accepted or paths.get(path, self) is not self.backlog:
            return
        # A file stays until somebody unlinks it, an abstract name goes with its socket (unix(7)).
        if path.startswith("@"):
            del paths[path]
        else:
            paths[path] = None

    # Inside

    def _connected(self) -> Connection:
        self.check_open()
        end = self.end
        if end is None or not end.is_open or end.broken:
            raise failure(errno.ENOTCONN)
        if end.finished and self.family != UNIX:
            # Linux: nothing is left of it but the socket.
            raise failure(errno.ENOTCONN)
        return end

    def _receiving(self) -> Connection:
        self.check_open()
        if self.end is None or self.backlog is not None or not self.end.is_open:
            raise failure(errno.ENOTCONN)
        return self.end
