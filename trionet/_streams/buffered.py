"""A stream one can look ahead in: exact sizes, delimiters, and a peek.

How this works. What was received and not asked for yet lies in one `bytearray`, whose front is
cheap to cut off. Whatever waits, waits for the transport to fill that buffer, and takes bytes out
of it in one step without a checkpoint; so a cancelled call has taken nothing, and the next one
finds all that came.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any, Final, Self, final

import trio
from trio.lowlevel import checkpoint

from .._errors import TooLongError
from ..abc import Stream
from .foreign import adopt

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine

    from .._address import Address

__all__ = ("BufferedStream", "HalfCloseableBufferedStream")

# How much is received ahead at the most: a piece sent in memory may be of any size.
RECEIVE_SIZE: Final = 65536


class BufferedStream(Stream):
    """A stream over another one, with a buffer to receive exact pieces from.

    It is a `HalfCloseableBufferedStream` if its transport can end one direction.

    Attributes:
      transport: the stream underneath. Do not receive from it while bytes are `buffered` here.
    """

    __slots__ = ("_buffer", "_receive_busy", "_searched", "_searched_for", "transport")

    def __new__(cls, transport: trio.abc.Stream) -> Self:
        """Choose the class that can do what ``transport`` can."""
        chosen: Any = cls
        # A foreign stream's adapter may not be able to, even where the stream is.
        if isinstance(adopt(transport), trio.abc.HalfCloseableStream):
            chosen = HalfCloseableBufferedStream
        made: Self = super().__new__(chosen)
        return made

    def __init__(self, transport: trio.abc.Stream) -> None:
        """Put a buffer over ``transport``, which is this stream's from now on."""
        self.transport: Stream = adopt(transport)
        self._buffer = bytearray()
        self._receive_busy = False
        # How far the buffer was searched for which delimiter, so that a search goes on where the
        # last one stopped: bytes that trickle in, or a caller that gives up and comes back, would
        # else make it quadratic.
        self._searched_for = b""
        self._searched = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.transport!r}, {len(self._buffer)} bytes ahead>"

    @property
    def local_address(self) -> Address:
        """This end of the transport."""
        return self.transport.local_address

    @property
    def remote_address(self) -> Address:
        """The other end of the transport."""
        return self.transport.remote_address

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self.transport.closed

    @property
    def bytes_sent(self) -> int:
        """How many bytes the transport has sent."""
        return self.transport.bytes_sent

    @property
    def bytes_received(self) -> int:
        """How many bytes were received, those still `buffered` not counted."""
        return self.transport.bytes_received - len(self._buffer)

    @property
    def transport_socket(self) -> socket.socket | None:
        """The transport's socket while nothing is `buffered`, else None."""
        return None if self._buffer else self.transport.transport_socket

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self.transport.sending

    @property
    def buffered(self) -> bytes:
        """The bytes received from the transport that nobody has asked for yet."""
        return bytes(self._buffer)

    # Receiving

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes | bytearray]:
        """Receive what is buffered, or else as the transport does; ``b""`` is end of file.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the connection is gone.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was received.
        """
        if self._buffer or self._receive_busy:
            return self._receive_buffered(max_bytes)
        return self.transport.receive_some(max_bytes)

    def receive_nowait(self, max_bytes: int | None = None) -> bytes:
        """Take bytes that are buffered, at most ``max_bytes``.

        Raises:
          trio.WouldBlock: none are; the transport is not asked.
          trio.BusyResourceError: another task is receiving.
        """
        limit = len(self._buffer) if max_bytes is None else _at_least("max_bytes", max_bytes, 1)
        self._begin()
        self._receive_busy = False
        if not self._buffer:
            raise trio.WouldBlock
        return self._take(limit)

    async def receive_exactly(self, size: int) -> bytes:
        """Receive ``size`` bytes, no fewer and no more.

        To tell a proper end from a broken-off piece, `peek` first: it returns ``b""`` at the end.

        Args:
          size: 0 or more; all of it is held in memory, so check what a peer announces.

        Raises:
          trio.BrokenResourceError: the connection is gone, or ended before the last byte; what
            came stays buffered.
          trio.BusyResourceError, trio.ClosedResourceError: as `receive_some`.

        If cancelled, nothing was received: what came stays buffered.
        """
        size = _at_least("size", size, 0)
        self._begin()
        try:
            if not await self._fill(size):
                raise trio.BrokenResourceError(
                    f"the connection ended after {len(self._buffer)} of {size} bytes"
                )
            return self._take(size)
        finally:
            self._receive_busy = False

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        r"""Receive up to and including ``delimiter``, ``b"\r\n"`` say.

        Args:
          max_bytes: the most that may be, the delimiter included.

        Raises:
          TooLongError: the delimiter is not within ``max_bytes``; what came stays buffered.
          trio.BrokenResourceError: the connection is gone, or ended before the delimiter; what
            came stays buffered.
          trio.BusyResourceError, trio.ClosedResourceError: as `receive_some`.

        If cancelled, nothing was received: what came stays buffered.
        """
        delimiter = bytes(memoryview(delimiter))
        if not delimiter:
            raise ValueError(f"delimiter must not be empty, got {delimiter!r}")
        max_bytes = _at_least("max_bytes", max_bytes, len(delimiter))
        self._begin()
        try:
            waited = False
            while not (end := self._find(delimiter, max_bytes)):
                have = len(self._buffer)
                if have >= max_bytes:
                    break
                if not await self._fill(have + 1):
                    raise trio.BrokenResourceError(
                        f"the connection ended after {have} bytes without {delimiter!r}"
                    )
                waited = True
            if not waited:
                await checkpoint()
            if not end:
                raise TooLongError(f"no {delimiter!r} within {max_bytes} bytes")
            return self._take(end)
        finally:
            self._receive_busy = False

    async def peek(self, min_bytes: int = 1) -> bytes:
        """Return what is buffered without taking it, once it is ``min_bytes`` or more.

        Returns:
          Fewer than ``min_bytes`` only at end of file, so ``b""`` says that nothing will come.

        Raises:
          As `receive_some`.

        If cancelled, nothing was received: what came stays buffered.
        """
        min_bytes = _at_least("min_bytes", min_bytes, 0)
        self._begin()
        try:
            await self._fill(min_bytes)
            return bytes(self._buffer)
        finally:
            self._receive_busy = False

    # The rest is the transport's

    def send_all(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        """Send ``data`` as the transport does, with its errors; if cancelled, part of it."""
        return self.transport.send_all(data)

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Hand on what the transport takes without waiting; return how many bytes that is."""
        return self.transport.send_nowait(data)

    def wait_send_all_might_not_block(self) -> Coroutine[Any, Any, None]:
        """Wait as the transport does. If cancelled, nothing was sent."""
        return self.transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Drop what is buffered and close the transport; cancelled or not, it is closed then."""
        self._consume(len(self._buffer))
        await self.transport.aclose()

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received."""
        return bool(self._buffer) or self.transport.is_readable()

    def unread_size(self) -> int:
        """How many bytes wait to be received, buffered ones included."""
        return len(self._buffer) + self.transport.unread_size()

    def peer_closed(self) -> bool:
        """Whether end of file or a reset is known, or comes right after the bytes waiting."""
        return self.transport.peer_closed()

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self.transport.interrupt_receive()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self.transport.resume_receive()

    # Inside

    async def _receive_buffered(self, max_bytes: int | None) -> bytes:
        limit = len(self._buffer) if max_bytes is None else _at_least("max_bytes", max_bytes, 1)
        self._begin()
        try:
            await checkpoint()
            return self._take(limit)
        finally:
            self._receive_busy = False

    async def _fill(self, size: int) -> bool:
        """Receive until ``size`` bytes are buffered; a checkpoint. False: the end came before."""
        if len(self._buffer) >= size:
            await checkpoint()
            return True
        while len(self._buffer) < size:
            data = await self.transport.receive_some(RECEIVE_SIZE)
            if not data:
                return False
            self._buffer += data
        return True

    def _find(self, delimiter: bytes, max_bytes: int) -> int:
        """Return how many bytes end with the first ``delimiter``, or 0."""
        if self._searched_for != delimiter:
            self._searched_for = delimiter
            self._searched = 0
        # The delimiter may have begun in what was searched.
        start = max(0, self._searched - len(delimiter) + 1)
        found = self._buffer.find(delimiter, start, max_bytes)
        if found < 0:
            self._searched = min(len(self._buffer), max_bytes)
            return 0
        return found + len(delimiter)

    def _take(self, size: int) -> bytes:
        if size >= len(self._buffer):
            data = bytes(self._buffer)
        else:
            with memoryview(self._buffer) as view:
                data = bytes(view[:size])
        self._consume(size)
        return data

    def _consume(self, size: int) -> None:
        del self._buffer[:size]
        self._searched = 0

    def _begin(self) -> None:
        """Start to receive: whoever does holds the buffer until it is done."""
        if self._receive_busy:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if self.closed:
            raise trio.ClosedResourceError("this stream is closed")
        self._receive_busy = True


@final
class HalfCloseableBufferedStream(BufferedStream, trio.abc.HalfCloseableStream):
    """A `BufferedStream` over a transport that can end one direction."""

    __slots__ = ()

    async def send_eof(self) -> None:
        """Send end of file as the transport does. If cancelled, nothing was sent."""
        transport = self.transport
        assert isinstance(transport, trio.abc.HalfCloseableStream)
        await transport.send_eof()


def _at_least(what: str, value: int, minimum: int) -> int:
    value = index(value)
    if value < minimum:
        raise ValueError(f"{what} must be at least {minimum}, got {value}")
    return value
