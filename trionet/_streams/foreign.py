"""Other libraries' streams, made to look like ours."""

from __future__ import annotations

import socket
from typing import Any, final

import trio
from trio.lowlevel import checkpoint

from .._address import Address
from .._errors import ReceiveInterrupted
from ..abc import Stream
from .sockets import address_of

__all__ = ("ForeignStream", "HalfCloseableForeignStream", "adopt")


def adopt(stream: trio.abc.Stream) -> Stream:
    """Return ``stream`` itself if it is a `trionet.abc.Stream`, else an adapter around it."""
    if isinstance(stream, Stream):
        return stream
    half = isinstance(stream, trio.abc.HalfCloseableStream)
    return HalfCloseableForeignStream(stream) if half else ForeignStream(stream)


class ForeignStream(Stream):
    """Any `trio.abc.Stream` with what `trionet.abc.Stream` adds, as far as it can be known.

    Addresses and readability come from the stream's ``socket``, or that of the transport it runs
    over, if there is one.

    Attributes:
      stream: the stream inside.
    """

    __slots__ = ("_closed", "_interrupted", "_receiving", "_recv", "_sent", "stream")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._closed = False
        self._interrupted = False
        self._receiving: trio.CancelScope | None = None
        self._sent = 0
        self._recv = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.stream!r}>"

    @property
    def local_address(self) -> Address:
        """This end's address, or an ``unknown`` one that names the stream."""
        return self._address("getsockname")

    @property
    def remote_address(self) -> Address:
        """The other end's address, or an ``unknown`` one that names the stream."""
        return self._address("getpeername")

    @property
    def closed(self) -> bool:
        """Whether this adapter was closed."""
        return self._closed

    @property
    def bytes_sent(self) -> int:
        """How many bytes passed `send_all`."""
        return self._sent

    @property
    def bytes_received(self) -> int:
        """How many bytes passed `receive_some`."""
        return self._recv

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` as the stream inside does; if cancelled, so much of it as that sends."""
        await self.stream.send_all(data)
        self._sent += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait as the stream inside does. If cancelled, nothing was sent."""
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive as the stream inside does. If cancelled, nothing was received."""
        if self._interrupted and not self.is_readable():
            await checkpoint()
            raise ReceiveInterrupted
        with trio.CancelScope() as scope:
            self._receiving = scope
            try:
                data = await self.stream.receive_some(max_bytes)
            finally:
                self._receiving = None
            self._recv += len(data)
            return data
        raise ReceiveInterrupted

    async def aclose(self) -> None:
        """Close the stream inside. Cancelled or not, it is closed afterwards."""
        self._closed = True
        await self.stream.aclose()

    def is_readable(self) -> bool:
        """Whether the socket below, if there is one, has something to read."""
        sock = self._socket()
        readable = getattr(sock, "is_readable", None)
        return bool(readable()) if readable is not None else False

    def unread_size(self) -> int:
        """Return 0: a foreign stream does not tell."""
        return 0

    def peer_closed(self) -> bool:
        """Return False: a foreign stream does not tell."""
        return False

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self._interrupted = True
        if self._receiving is not None:
            self._receiving.cancel()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._interrupted = False

    def _socket(self) -> Any:
        stream: Any = self.stream
        while stream is not None:
            sock = getattr(stream, "socket", None)
            if sock is not None:
                return sock
            stream = getattr(stream, "transport_stream", None)
        return None

    def _address(self, method: str) -> Address:
        sock = self._socket()
        if sock is not None:
            try:
                name = getattr(sock, method)()
            except OSError:
                pass
            else:
                if sock.family in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}:
                    return address_of(sock.family, name)
        return Address("unknown", name=repr(self.stream))


@final
class HalfCloseableForeignStream(ForeignStream, trio.abc.HalfCloseableStream):
    """A `ForeignStream` around one that can end one direction."""

    __slots__ = ()

    async def send_eof(self) -> None:
        """Send end of file as the stream inside does. If cancelled, nothing was sent."""
        assert isinstance(self.stream, trio.abc.HalfCloseableStream)
        await self.stream.send_eof()
