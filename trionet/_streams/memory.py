"""Streams in memory: a pipe each way, or a wire where a link lies between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
)

from .._address import Address, printable
from ..abc import Stream
from .pipe import Pipe
from .segment import Endpoint
from .wire import End as WireEnd
from .wire import join

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .line import Line


__all__ = ("End", "MemoryStream", "connect", "connect_over", "memory_stream_pair")

# One end: its address, or for an unnamed one the listener's and the number of the dial, from which
# the address is made when somebody asks.
End = Address | tuple[Address, int]


@final
class MemoryStream(Stream, trio.abc.HalfCloseableStream):
    """A stream between two tasks of one process; made by `trionet.dial` and a `MemoryListener`.

    With a buffer (``memb``) ``send_all`` returns once all that is unread fits into it; without one
    (``memu``) once the peer has received everything. ``bytes`` objects are handed over as they
    are; other buffers are copied first, so that they may be reused once ``send_all`` returns.

    Over a link (`MemoryOptions`) bytes take their time, and ``send_all`` returns once the near
    end's buffer holds the rest of them.

    If ``send_all`` is cancelled, the stream stays usable, and the peer gets a first part of the
    data, maybe all or none of it: what it has received by then and what fits the buffer.
    """

    __slots__ = ("_closed", "_incoming", "_local", "_outgoing", "_remote")

    def __init__(self, incoming: Pipe, outgoing: Pipe | WireEnd, local: End, remote: End) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._local = local
        self._remote = remote
        self._closed = False

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        local = self.local_address
        peer = printable(self.remote_address)
        return f"<MemoryStream {local.network} {printable(local)} -> {peer}{state}>"

    @property
    def local_address(self) -> Address:
        """This end: the listener's name, or ``<name>#<n>`` for a dialler that gave none."""
        return _named(self._local)

    @property
    def remote_address(self) -> Address:
        """The other end."""
        return _named(self._remote)

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self._closed

    @property
    def bytes_sent(self) -> int:
        """How many bytes were sent: received by the peer, or in the buffer."""
        return self._outgoing.sent

    @property
    def bytes_received(self) -> int:
        """How many bytes ``receive_some`` has returned."""
        return self._incoming.received

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self._outgoing.sending

    # The four that move bytes are plain functions: they return the pipe's own coroutine, so that
    # no second one stands between the caller and the scheduler at every step.

    def send_all(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        """Send ``data``, all of it.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the peer has closed its end.
          trio.ClosedResourceError: this end was closed, or has sent end of file.

        If cancelled, the peer may get a first part of ``data``; the stream stays usable.
        """
        return self._outgoing.send(data)

    def wait_send_all_might_not_block(self) -> Coroutine[Any, Any, None]:
        """Wait until a byte sent would fit the buffer or find a receiver.

        Raises and leaves behind what `send_all` does, but sends nothing.
        """
        return self._outgoing.wait_room()

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes]:
        """Receive at least one byte and at most ``max_bytes``; ``b""`` is end of file.

        Without ``max_bytes`` a piece comes as it was sent, however big it is, and small ones
        joined up to 64 KiB.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the connection was reset.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was received.
        """
        return self._incoming.receive(max_bytes)

    async def send_eof(self) -> None:
        """Send end of file; what the peer sends can still be received. A second call does nothing.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was sent.
        """
        await checkpoint_if_cancelled()
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")
        self._outgoing.end()
        await cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """Close both directions. What was sent stays readable for the peer; nothing waits for it.

        Cancelled or not, the stream is closed afterwards.
        """
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close both directions at once; ``aclose`` is this and a checkpoint."""
        self._closed = True
        self._outgoing.close_send()
        self._incoming.close_receive()

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received."""
        pipe = self._incoming
        return pipe.unread > 0 or pipe.send_closed or pipe.broken

    def unread_size(self) -> int:
        """How many bytes wait to be received, those of a sender that waits included."""
        return self._incoming.unread

    def peer_closed(self) -> bool:
        """Whether the peer has closed its end or sent end of file, or the connection was reset."""
        return self._incoming.send_closed or self._outgoing.receive_closed or self._incoming.broken

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self._incoming.interrupt()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._incoming.interrupted = False

    def reset(self) -> None:
        """Cut the connection, as a RST does: operations on both ends raise Broken."""
        self._closed = True
        self._incoming.cut()
        self._outgoing.cut()


def _named(end: End) -> Address:
    if isinstance(end, Address):
        return end
    listener, number = end
    return Address(listener.network, name=f"{listener.name}#{number}")


def connect(near: End, far: End, buffer_size: int) -> tuple[MemoryStream, MemoryStream]:
    """Make both ends of a connection with nothing in between."""
    out, back = Pipe(buffer_size), Pipe(buffer_size)
    return MemoryStream(back, out, near, far), MemoryStream(out, back, far, near)


def connect_over(
    lines: tuple[Line, Line], near: End, far: End, buffer_size: int
) -> tuple[MemoryStream, MemoryStream]:
    """Make both ends of a connection, ``lines`` leading there and back."""
    ends = [
        WireEnd(
            line,
            Endpoint(here, "", 0),
            Endpoint(there, "", 0),
            protocol="memory",
            send_size=buffer_size,
            receive_size=buffer_size,
        )
        for line, here, there in (
            (lines[0], "dialler", "listener"),
            (lines[1], "listener", "dialler"),
        )
    ]
    join(*ends)
    one, other = ends
    return MemoryStream(one.inbox, one, near, far), MemoryStream(other.inbox, other, far, near)


def memory_stream_pair(buffer_size: int = 0) -> tuple[MemoryStream, MemoryStream]:
    """Make two connected streams that need no name and no listener.

    Args:
      buffer_size: bytes each direction holds; 0, the default, is a rendezvous, as ``memu``.

    Raises:
      ValueError: ``buffer_size`` is negative.
      TypeError: it is not an int.
    """
    if isinstance(buffer_size, bool) or not isinstance(buffer_size, int):
        raise TypeError(f"buffer_size must be an int, got {buffer_size!r}")
    if buffer_size < 0:
        raise ValueError(f"buffer_size must not be negative, got {buffer_size}")
    network = "memb" if buffer_size else "memu"
    return connect(Address(network, name="pair#1"), Address(network, name="pair#2"), buffer_size)
