"""What is read before the handler's first byte: the header a proxy sends.

How this works. `ProxyListener` accepts streams whose header is still to come. `do_handshake`, or
the first operation, reads it: exactly it, so that what follows, TLS say, finds its own first byte.
On a socket the bytes that surely belong to the header are received, and where that is not sure
they are looked at first and only the header's are taken, all of them, so that half a header never
makes the wait for more return at once. On any other transport a `BufferedStream` keeps what came
too much.

From then on the stream hands every call straight on, to the transport itself or to that buffer.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import IO, TYPE_CHECKING, Any, final

import trio
from trio.lowlevel import checkpoint

from .._address import printable
from .._options import ProxyProtocol
from ..abc import Stream
from . import readiness
from .buffered import BufferedStream
from .files import check_file, send_by_reading
from .proxy_protocol import ProxyHeader, ProxyReader
from .sockets import SocketStream
from .wrapping import WrappingListener

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .._address import Address
    from ..abc import Listener

__all__ = (
    "HalfCloseableProxyStream",
    "ProxyListener",
    "ProxyStream",
    "check_proxy_protocol",
    "is_proxied",
)


class ProxyStream(Stream):
    """A stream that a proxy forwards, ahead of it a header that tells whose it is.

    The header is read by `do_handshake`, or by whatever sends or receives first. Before that the
    addresses are the transport's, which are the proxy's; afterwards the client's, unless the
    header names none.

    Attributes:
      transport: the stream underneath.
      proxy_header: the header; None before it was read.
    """

    __slots__ = (
        "_failure",
        "_inner",
        "_reader",
        "_reading",
        "_received_before",
        "_settings",
        "proxy_header",
        "transport",
    )

    def __init__(self, transport: Stream, settings: ProxyProtocol) -> None:
        self.transport: Stream = transport
        self.proxy_header: ProxyHeader | None = None
        self._settings = settings
        self._reader = ProxyReader(settings.versions)
        # Where the bytes come from once the header was read: the transport, or the buffer over it.
        self._inner: Stream | None = None
        # The task that reads the header holds this; whoever comes meanwhile waits for it.
        self._reading: trio.Event | None = None
        self._failure: Exception | None = None
        self._received_before = 0

    def __repr__(self) -> str:
        header = self.proxy_header
        state = "no header yet" if header is None else f"for {printable(self.remote_address)}"
        return f"<{type(self).__name__} over {self.transport!r}, {state}>"

    @property
    def local_address(self) -> Address:
        """What the client dialled, as the header says."""
        header = self.proxy_header
        named = header.destination if header is not None else None
        return named or self.transport.local_address

    @property
    def remote_address(self) -> Address:
        """The client, as the header says."""
        header = self.proxy_header
        named = header.source if header is not None else None
        return named or self.transport.remote_address

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self.transport.closed

    @property
    def bytes_sent(self) -> int:
        """How many bytes `send_all` has handed on."""
        return self.transport.bytes_sent

    @property
    def bytes_received(self) -> int:
        """How many bytes `receive_some` has returned; the header is none of them."""
        return 0 if self._inner is None else self._inner.bytes_received - self._received_before

    @property
    def transport_socket(self) -> socket.socket | None:
        """The transport's socket, once its bytes are this stream's: after the header."""
        return None if self._inner is None else self._inner.transport_socket

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self.transport.sending

    async def do_handshake(self) -> None:
        """Read the header, unless that is done already.

        Two tasks may meet here: one does it, the other waits for the outcome.

        Raises:
          trio.BrokenResourceError: the peer is not trusted to send one, or sent something else;
            every later call raises it, too.
          trio.ClosedResourceError: this stream is closed.

        If cancelled, the next call goes on where this one was.
        """
        while True:
            if self.closed:
                raise trio.ClosedResourceError("this stream is closed")
            if self._failure is not None:
                raise trio.BrokenResourceError("there was no PROXY header") from self._failure
            if self._inner is not None:
                await checkpoint()
                return
            if self._reading is None:
                break
            await self._reading.wait()
        self._reading = trio.Event()
        try:
            await self._read_preface()
        except ValueError as exc:
            self._failure = exc
            raise trio.BrokenResourceError(str(exc)) from exc
        finally:
            self._reading.set()
            self._reading = None

    # Once the header was read, each is the inner stream's own coroutine.

    def send_all(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        """Send ``data`` as the transport does, after the header was read.

        Raises what the transport does, and what `do_handshake` does; if cancelled, part of
        ``data`` may have been sent.
        """
        inner = self._inner
        return self._send_after(data) if inner is None else inner.send_all(data)

    async def send_file(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send part of a file as the transport does, after the header was read.

        See `SocketStream.send_file`; over a transport that has none, the file is read in a thread,
        piece by piece. If cancelled, the peer gets a first part; `bytes_sent` tells how much.
        """
        offset, count = check_file(file, offset, count)
        if self._inner is None:
            await self.do_handshake()
        if isinstance(self.transport, SocketStream):
            return await self.transport.send_file(file, offset, count)
        return await send_by_reading(self.transport, file, offset, count)

    def wait_send_all_might_not_block(self) -> Coroutine[Any, Any, None]:
        """Wait as the transport does. If cancelled, nothing was sent."""
        return self.transport.wait_send_all_might_not_block()

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes | bytearray]:
        """Receive as the transport does, what comes after the header.

        Raises what the transport does, and what `do_handshake` does; if cancelled, nothing was
        received.
        """
        inner = self._inner
        return self._receive_after(max_bytes) if inner is None else inner.receive_some(max_bytes)

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Hand on what the transport takes without waiting; before the header was read nothing."""
        return 0 if self._inner is None else self.transport.send_nowait(data)

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what is there already, as the transport does, once the header was read."""
        if self._inner is None:
            raise trio.WouldBlock
        return self._inner.receive_nowait(max_bytes)

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Close the transport. Cancelled or not, it is closed afterwards."""
        return (self._inner or self.transport).aclose()

    def is_readable(self) -> bool:
        """Whether bytes, those of a header included, end of file or an error wait."""
        return (self._inner or self.transport).is_readable()

    def unread_size(self) -> int:
        """How many bytes wait to be received, those of a header included."""
        return (self._inner or self.transport).unread_size()

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

    async def _send_after(self, data: bytes | bytearray | memoryview) -> None:
        await self.do_handshake()
        await self.transport.send_all(data)

    async def _receive_after(self, max_bytes: int | None) -> bytes | bytearray:
        await self.do_handshake()
        assert self._inner is not None
        return await self._inner.receive_some(max_bytes)

    async def _read_preface(self) -> None:
        try:
            peer = self.transport.remote_address
        except OSError as exc:
            # The peer was gone before anyone asked for its name.
            raise trio.BrokenResourceError(f"the connection broke: {exc}") from exc
        if not _is_trusted(self._settings, peer):
            await checkpoint()
            raise ValueError(f"{str(peer)!r} is not trusted to send a PROXY header")
        inner = getattr(self.transport, "do_handshake", None)
        if inner is not None:
            await inner()
        sock = self.transport.transport_socket
        if sock is None:
            self._inner = await self._read_from_stream()
        else:
            await self._read_from_socket(sock)
            self._inner = self.transport
        self.proxy_header = self._reader.header

    async def _read_from_socket(self, sock: socket.socket) -> None:
        reader = self._reader
        # One for all: a header that is there already is taken without waiting.
        await checkpoint()
        while reader.header is None:
            try:
                data = sock.recv(reader.want, 0 if reader.exact else socket.MSG_PEEK)
                if reader.exact or not data:
                    self._feed(data)
                else:
                    # Taken before anything waits again, all of it unless the header ends in it:
                    # else the wait for the rest of a half would be over at once, again and again.
                    sock.recv(self._feed(data))
            except BlockingIOError:
                await readiness.park_readable(sock)
            except OSError as exc:
                if self.closed:
                    raise trio.ClosedResourceError("this stream is closed") from None
                raise trio.BrokenResourceError(f"the connection broke: {exc}") from exc

    async def _read_from_stream(self) -> Stream:
        reader = self._reader
        buffered = BufferedStream(self.transport)
        while reader.header is None:
            if reader.exact:
                self._feed(await self.transport.receive_some(reader.want))
                continue
            data = await buffered.peek()
            taken = self._feed(data)
            buffered.receive_nowait(taken)
        self._received_before = reader.size
        return buffered if buffered.buffered else self.transport

    def _feed(self, data: bytes | bytearray) -> int:
        if not data:
            raise ValueError(f"the connection ended after {self._reader.size} bytes of header")
        return self._reader.feed(bytes(data))


@final
class HalfCloseableProxyStream(ProxyStream, trio.abc.HalfCloseableStream):
    """A `ProxyStream` over a transport that can end one direction."""

    __slots__ = ()

    async def send_eof(self) -> None:
        """Send end of file as the transport does, after the header was read.

        If cancelled, nothing was sent.
        """
        if self._inner is None:
            await self.do_handshake()
        transport = self.transport
        assert isinstance(transport, trio.abc.HalfCloseableStream)
        await transport.send_eof()


@final
class ProxyListener(WrappingListener[ProxyStream]):
    """Accepts connections that a proxy forwards, their headers still to be read.

    Attributes:
      proxy_protocol: who may send a header, and which.
    """

    __slots__ = ("proxy_protocol",)

    def __init__(self, transport: Listener[Stream], proxy_protocol: ProxyProtocol) -> None:
        check_proxy_protocol(proxy_protocol)
        super().__init__(transport)
        self.proxy_protocol: ProxyProtocol = proxy_protocol

    def _wrap(self, stream: Stream) -> ProxyStream:
        half = isinstance(stream, trio.abc.HalfCloseableStream)
        kind = HalfCloseableProxyStream if half else ProxyStream
        return kind(stream, self.proxy_protocol)


def check_proxy_protocol(proxy_protocol: object) -> None:
    """Raise what `ProxyListener` raises for settings that are none."""
    if not isinstance(proxy_protocol, ProxyProtocol):
        raise TypeError(f"proxy_protocol must be a ProxyProtocol, got {proxy_protocol!r}")


def is_proxied(stream: Stream) -> bool:
    """Whether a header tells, or is to tell, whose connection ``stream`` is."""
    layer: object = stream
    while layer is not None and not isinstance(layer, ProxyStream):
        layer = getattr(layer, "transport", None)
    return layer is not None


def _is_trusted(settings: ProxyProtocol, peer: Address) -> bool:
    if peer.host is None:
        return peer.network in settings.trusted
    try:
        ip = ipaddress.ip_address(peer.host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        # An IPv4 peer of a listener for both families.
        ip = ip.ipv4_mapped
    return any(not isinstance(one, str) and ip in one for one in settings.trusted)
