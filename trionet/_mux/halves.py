"""What a multiplexer lends: one direction of a connection, or both, each to one task at a time.

How this works. What a block gets is a stream of its own, made for that block and good for nothing
after it: `ReceiveHalf`, `SendHalf` or `BorrowedStream`. It passes everything on to the connection,
and watches what passes. What uses the connection up (end of file, either way) or harms it (a
failure, a send cancelled midway) it tells the `Keeper` at once, so that nobody else is lent the
other half; the connection is closed when the block ends, or at once if it was closed here. A half
whose connection is closed for what happened to the other one is *cut*: it says so in a
`trio.BrokenResourceError`, since its holder closed nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, final

import trio
from trio.lowlevel import checkpoint, checkpoint_if_cancelled

from ..abc import Stream

if TYPE_CHECKING:
    from .._address import Address
    from .duplex import Duplex, Fate

__all__ = (
    "BorrowedStream",
    "Half",
    "HalfCloseableBorrowedStream",
    "Keeper",
    "ReceiveHalf",
    "SendHalf",
)

# A call that makes no sense, by its type or by its moment, has done nothing to the connection.
HARMLESS: Final = (TypeError, ValueError, trio.BusyResourceError)


class Keeper(Protocol):
    """Who lends the halves, as far as a half has to do with it."""

    def use_up(self, half: Half, /) -> None:
        """Lend nothing of the half's connection any more, and close it once all is returned."""

    def harm(self, half: Half, reason: str, /) -> None:
        """Lend nothing of it any more, and close it when the block of ``half`` ends."""

    def kill(self, half: Half, /) -> None:
        """Close it now."""


class Half:
    """What is common to all that is lent."""

    __slots__ = (
        "_duplex",
        "_fate",
        "_interrupted",
        "_keeper",
        "_receiving",
        "_sending",
        "_stream",
        "_wants",
    )

    def __init__(self, keeper: Keeper, duplex: Duplex, wants: int) -> None:
        self._keeper = keeper
        # None once it is not lent any more; `_fate` says why.
        self._stream: Any = duplex.stream
        self._fate: Fate = "lent"
        self._receiving = self._sending = self._interrupted = False
        self._duplex = duplex
        self._wants: int = wants

    def __repr__(self) -> str:
        state = "" if self._stream is not None else f" {self._fate}"
        return f"<{type(self).__name__} of {self._duplex.stream!r}{state}>"

    # For the one who lends

    def _finish(self, fate: Fate) -> None:
        """Be of no use any more."""
        if self._stream is not None:
            if self._interrupted:
                self._stream.resume_receive()
            self._stream = None
            self._fate = fate

    def _over(self) -> Exception:
        """Return what an operation raises now that it is not lent any more."""
        if self._fate == "cut":
            return trio.BrokenResourceError(f"{self!r}: the other half took the connection with it")
        if self._fate == "ended":
            return trio.ClosedResourceError(f"{self!r}: the multiplexer was closed")
        if self._fate == "returned":
            return trio.ClosedResourceError(f"{self!r}: its block is over")
        return trio.ClosedResourceError(f"{self!r}: it was closed here")

    # The operations

    async def _receive(self, max_bytes: int | None) -> bytes | bytearray:
        stream = self._stream
        if stream is None:
            await checkpoint()
            raise self._over()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            data: bytes | bytearray = await stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            if self._stream is None:
                raise self._over() from None
            self._keeper.harm(self, "dead")
            raise
        finally:
            self._receiving = False
        if not data and self._stream is not None:
            self._keeper.use_up(self)
        return data

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        stream = self._stream
        if stream is None:
            await checkpoint()
            raise self._over()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        # Nothing is sent, and no harm done, by one that was cancelled before.
        await checkpoint_if_cancelled()
        self._sending = True
        try:
            await stream.send_all(data)
        except HARMLESS:
            raise
        except BaseException as exc:
            if self._stream is not None:
                broken = isinstance(exc, trio.BrokenResourceError | OSError)
                self._keeper.harm(self, "dead" if broken else "discarded")
            elif isinstance(exc, trio.ClosedResourceError):
                raise self._over() from None
            raise
        finally:
            self._sending = False

    async def _wait_to_send(self) -> None:
        stream = self._stream
        if stream is None:
            await checkpoint()
            raise self._over()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await stream.wait_send_all_might_not_block()
        except trio.ClosedResourceError:
            if self._stream is None:
                raise self._over() from None
            raise
        finally:
            self._sending = False

    async def _close(self) -> None:
        if self._stream is not None:
            self._keeper.kill(self)
        await checkpoint()


@final
class ReceiveHalf(Half, trio.abc.ReceiveStream):
    """The receiving direction of a connection, for the length of a ``plex.reader()`` block.

    ``async for data in half`` works, as with every stream. Reading to end of file uses the
    connection up; so does an error, or closing this half.
    """

    __slots__ = ()

    @property
    def local_address(self) -> Address:
        """This end of the connection."""
        return self._duplex.stream.local_address

    @property
    def remote_address(self) -> Address:
        """The other end of the connection."""
        return self._duplex.stream.remote_address

    @property
    def closed(self) -> bool:
        """Whether this half is closed, or its block over."""
        return self._stream is None

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received; see `trionet.abc.Stream`."""
        return self._stream is not None and bool(self._stream.is_readable())

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what is there, at least a byte, or ``b""`` at end of file.

        Raises:
          trio.BrokenResourceError: the connection is gone, or whoever had its other half took it.
          trio.ClosedResourceError: this half was closed, or its block is over.
          trio.BusyResourceError: another task is receiving.

        If cancelled, nothing was received, and the connection is as good as before.
        """
        return await self._receive(max_bytes)

    async def aclose(self) -> None:
        """Close the whole connection, now, then let others run. Cancelled or not, it is closed."""
        await self._close()


@final
class SendHalf(Half, trio.abc.SendStream):
    """The sending direction of a connection, for the length of a ``plex.writer()`` block."""

    __slots__ = ()

    @property
    def local_address(self) -> Address:
        """This end of the connection."""
        return self._duplex.stream.local_address

    @property
    def remote_address(self) -> Address:
        """The other end of the connection."""
        return self._duplex.stream.remote_address

    @property
    def closed(self) -> bool:
        """Whether this half is closed, or its block over."""
        return self._stream is None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, all of it.

        Raises:
          trio.BrokenResourceError: the connection is gone, or whoever had its other half took it.
          trio.ClosedResourceError: this half was closed, or its block is over.
          trio.BusyResourceError: another task is sending.

        If cancelled, a part of ``data`` may have been sent: the connection is closed when the
        block ends, unless the cancellation came before the call.
        """
        await self._send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` might return at once. If cancelled, nothing was sent."""
        await self._wait_to_send()

    async def aclose(self) -> None:
        """Close the whole connection, now, then let others run. Cancelled or not, it is closed."""
        await self._close()


class BorrowedStream(Half, Stream):
    """Both directions of one connection, for the length of a ``plex.borrow()`` block.

    Over a connection that can end one direction it is a `HalfCloseableBorrowedStream`. The byte
    counts are the connection's own, from before the block too.
    """

    __slots__ = ()

    @property
    def local_address(self) -> Address:
        """This end of the connection."""
        return self._duplex.stream.local_address

    @property
    def remote_address(self) -> Address:
        """The other end of the connection."""
        return self._duplex.stream.remote_address

    @property
    def closed(self) -> bool:
        """Whether this stream is closed, or its block over."""
        return self._stream is None

    @property
    def bytes_sent(self) -> int:
        """How many bytes the connection has sent so far."""
        return self._duplex.stream.bytes_sent

    @property
    def bytes_received(self) -> int:
        """How many bytes the connection has received so far."""
        return self._duplex.stream.bytes_received

    @property
    def sending(self) -> bool:
        """Whether a ``send_all`` is under way."""
        return self._sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; raises what `SendHalf.send_all` does.

        If cancelled, a part of ``data`` may have been sent: the connection is closed when the
        block ends, unless the cancellation came before the call.
        """
        await self._send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` might return at once. If cancelled, nothing was sent."""
        await self._wait_to_send()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what is there, or ``b""`` at end of file; see `ReceiveHalf.receive_some`.

        If cancelled, nothing was received, and the connection is as good as before.
        """
        return await self._receive(max_bytes)

    async def aclose(self) -> None:
        """Close the connection, now, then let others run. Cancelled or not, it is closed."""
        await self._close()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Hand on a first part of ``data``; see `trionet.abc.Stream.send_nowait`."""
        if self._stream is None:
            raise self._over()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        try:
            return int(self._stream.send_nowait(data))
        except trio.BrokenResourceError:
            self._keeper.harm(self, "dead")
            raise

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what is there; see `trionet.abc.Stream.receive_nowait`."""
        if self._stream is None:
            raise self._over()
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        try:
            data: bytes | bytearray = self._stream.receive_nowait(max_bytes)
        except trio.BrokenResourceError:
            self._keeper.harm(self, "dead")
            raise
        if not data:
            self._keeper.use_up(self)
        return data

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received."""
        return self._stream is not None and bool(self._stream.is_readable())

    def unread_size(self) -> int:
        """How many bytes wait to be received."""
        return 0 if self._stream is None else int(self._stream.unread_size())

    def peer_closed(self) -> bool:
        """Whether end of file or a reset is known, or comes right after the bytes waiting."""
        return self._stream is not None and bool(self._stream.peer_closed())

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`. The end of the block takes it back."""
        if self._stream is not None:
            self._interrupted = True
            self._stream.interrupt_receive()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        if self._stream is not None and self._interrupted:
            self._interrupted = False
            self._stream.resume_receive()


@final
class HalfCloseableBorrowedStream(BorrowedStream, trio.abc.HalfCloseableStream):
    """A `BorrowedStream` over a connection that can end one direction."""

    __slots__ = ()

    async def send_eof(self) -> None:
        """Send end of file, which uses the connection up: it is closed after the block.

        Raises what `SendHalf.send_all` does. If cancelled, it may have been sent.
        """
        stream = self._stream
        if stream is None:
            await checkpoint()
            raise self._over()
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._keeper.use_up(self)
        try:
            await stream.send_eof()
        except trio.ClosedResourceError:
            if self._stream is None:
                raise self._over() from None
            raise
