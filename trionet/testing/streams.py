"""Virtual connections as trionet's own streams and listeners."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from .._address import Address, printable
from .._streams.sockets import RECEIVE_SIZE, address_of
from ..abc import Listener, Stream
from .sockets import plain_bytes

if TYPE_CHECKING:
    from .stream_sockets import StreamSocket
    from .tcp import Connection

__all__ = ("VirtualListener", "VirtualStream")


@final
class VirtualStream(Stream, trio.abc.HalfCloseableStream):
    """A TCP or Unix connection of a virtual host; from `trionet.dial` and a `VirtualListener`.

    If ``send_all`` is cancelled, the stream stays usable, and the peer gets a first part of the
    data, maybe all or none of it.

    Attributes:
      socket: the virtual socket, for its options; it is one of `trio.socket`'s.
    """

    __slots__ = ("_end", "_local", "_remote", "_send_busy", "socket")

    def __init__(self, sock: StreamSocket, remote: Address | None = None) -> None:
        """Take over a connected virtual socket."""
        assert sock.end is not None
        self.socket: StreamSocket = sock
        self._end: Connection = sock.end
        family = sock.family
        self._local = address_of(family, sock.getsockname())
        self._remote = remote or address_of(family, sock.peer_as_accepted())
        self._send_busy = False

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        local, peer = self._local, printable(self._remote)
        return f"<VirtualStream {local.network} {printable(local)} -> {peer}{state}>"

    @property
    def local_address(self) -> Address:
        """This end."""
        return self._local

    @property
    def remote_address(self) -> Address:
        """The other end."""
        return self._remote

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self.socket.fileno() == -1

    @property
    def bytes_sent(self) -> int:
        """How many bytes the virtual kernel has taken."""
        return self._end.sent

    @property
    def bytes_received(self) -> int:
        """How many bytes ``receive_some`` has returned."""
        return self._end.inbox.received

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self._send_busy or self._end.sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; return once the virtual kernel has taken all of it.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the connection is gone; the system's error is its cause.
          trio.ClosedResourceError: this end was closed, or has sent end of file.

        If cancelled, the peer gets a first part of ``data``; `bytes_sent` tells how much.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        stack = self.socket.stack
        if not stack.short_writes or not data:
            await self._end.send(data)
            return
        view = plain_bytes(bytes(memoryview(data)))
        at = 0
        self._send_busy = True
        try:
            while at < len(view):
                size = stack.short(len(view) - at, stack.short_writes)
                await self._end.send(view[at : at + size])
                at += size
        finally:
            self._send_busy = False

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """See `trionet.abc.Stream.send_nowait`."""
        if self.sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._end.check_sendable()
        return self._end.put(data if type(data) is bytes else plain_bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the virtual kernel takes bytes again.

        Raises and leaves behind what `send_all` does, but sends nothing.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        await self._end.wait_room()

    async def send_eof(self) -> None:
        """Send end of file; what the peer sends can still be received. A second call does nothing.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the connection is gone.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was sent.
        """
        end = self._end
        if self.sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await checkpoint_if_cancelled()
        if self.closed:
            raise trio.ClosedResourceError("this stream is closed")
        if not end.send_closed:
            if end.broken:
                raise end.broken_error()
            end.end()
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
        size = RECEIVE_SIZE if max_bytes is None else index(max_bytes)
        stack = self.socket.stack
        if size > 0:
            size = stack.short(size, stack.short_reads)
        return await self._end.inbox.receive(size)

    async def aclose(self) -> None:
        """Close the connection. Nothing waits for the peer; what was sent is still delivered.

        Where bytes were not received the connection is reset, as TCP does.

        Cancelled or not, the stream is closed afterwards.
        """
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close the connection at once; ``aclose`` is this and a checkpoint."""
        self.socket.close()

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received."""
        return not self.closed and self.socket.is_readable()

    def unread_size(self) -> int:
        """How many bytes wait to be received."""
        return self._end.inbox.unread

    def peer_closed(self) -> bool:
        """Whether the peer has sent end of file, even behind bytes that wait, or a reset."""
        end = self._end
        return not self.closed and (end.inbox.send_closed or end.inbox.broken or end.receive_closed)

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self._end.inbox.interrupt()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._end.inbox.interrupted = False


@final
class VirtualListener(Listener[VirtualStream]):
    """Accepts connections on a virtual host; made by `trionet.listen`.

    Attributes:
      socket: the listening virtual socket.
    """

    __slots__ = ("_address", "socket")

    def __init__(self, sock: StreamSocket) -> None:
        """Take over a listening virtual socket."""
        self.socket: StreamSocket = sock
        self._address = address_of(sock.family, sock.getsockname())

    def __repr__(self) -> str:
        state = " closed" if self.socket.fileno() == -1 else ""
        return f"<VirtualListener {self._address.network} {printable(self._address)}{state}>"

    @property
    def address(self) -> Address:
        """Where this listener listens."""
        return self._address

    async def accept(self) -> VirtualStream:
        """Take the oldest connection, or wait for one.

        Raises:
          trio.BusyResourceError: another task is accepting.
          trio.ClosedResourceError: this listener is, or gets, closed.
          OSError: a test wants it so (`VirtualNetwork.failing`); the connection stays in the
            backlog.

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

    def accept_nowait(self) -> VirtualStream:
        """Take the oldest connection.

        Raises:
          trio.WouldBlock: there is none.
          trio.ClosedResourceError: this listener is closed.
          OSError: as `accept`.
        """
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("this listener is closed")
        accepted = self.socket.accept_now()
        if accepted is None:
            raise trio.WouldBlock
        return VirtualStream(accepted)

    async def wait_acceptable(self) -> None:
        """Wait until `accept_nowait` finds a connection, unless another task takes it first.

        Raises:
          trio.BusyResourceError: another task is in here or in `accept`.
          trio.ClosedResourceError: this listener is, or gets, closed.

        If cancelled, nothing was taken.
        """
        backlog = self.socket.backlog
        if backlog is not None and len(backlog):
            await checkpoint()
        else:
            await self._park()

    async def aclose(self) -> None:
        """Close, then let others run. Cancelled or not, the listener is closed afterwards."""
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close at once: what nobody accepted is reset, and a Unix path of ours goes."""
        self.socket.unlink()
        self.socket.close()

    def abandon(self) -> None:
        """Close a listener that nobody has used yet."""
        self.close()

    async def _park(self) -> None:
        if self.socket.backlog is None:
            raise trio.ClosedResourceError("this listener is closed")
        await self.socket.backlog.wait()
