"""What a handler gets: one client's stream, and what the server knows of it."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Literal, final

import trio

from .._errors import ReceiveInterrupted
from .._streams.files import check_file, send_by_reading
from .._streams.tls_listener import start_tls
from ..abc import Stream

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Coroutine
    from types import TracebackType

    from .._address import Address
    from .._streams.proxy_protocol import ProxyHeader
    from .._streams.tls import TLSInfo
    from .facts import Serving, State, Watched

Phase = Literal["handshaking", "active", "closing", "forced", "rejected"]

__all__ = ("Connection", "HalfCloseableConnection", "IdleScope")


class Connection(Stream):
    """One client's connection, as its handler sees it.

    It is a stream: what it sends and receives is what its transport does. Made by `Server`, one
    for each client, and never used again for another.

    Attributes:
      server: the server it belongs to.
      started_at: when it was accepted, by `trio.current_time`.
    """

    __slots__ = (
        "_context",
        "_draining",
        "_host",
        "_idle",
        "_phase",
        "_scope",
        "_transport",
        "_watched",
        "server",
        "started_at",
    )

    def __init__(self, transport: Stream, server: Serving, started_at: float) -> None:
        self._transport = transport
        self.server: Serving = server
        self.started_at: float = started_at
        self._context: dict[Any, Any] | None = None
        # These are the server's: where in its life the connection is; the one cancel scope around
        # it, if a handshake or a limit needs one; what the timekeeper saw; the IP address it counts
        # for; and whether a drain has come to it.
        self._phase: Phase = "active"
        self._scope: trio.CancelScope | None = None
        self._watched: Watched | None = None
        self._host: str | None = None
        self._draining = False
        self._idle: IdleScope | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport!r}>"

    @property
    def local_address(self) -> Address:
        """The address the client dialled, also where it dialled a proxy."""
        return self._transport.local_address

    @property
    def remote_address(self) -> Address:
        """The client's own address, also behind a proxy."""
        return self._transport.remote_address

    @property
    def context(self) -> dict[Any, Any]:
        """The handler's own facts; trionet does not look inside."""
        if self._context is None:
            self._context = {}
        return self._context

    @property
    def state(self) -> State:
        """Where in its life the connection is."""
        return "idle" if self._phase == "active" and self._idle is not None else self._phase

    @property
    def tls(self) -> TLSInfo | None:
        """What the TLS handshake agreed on; None without TLS."""
        tls: TLSInfo | None = getattr(self._transport, "tls", None)
        return tls

    @property
    def proxy_header(self) -> ProxyHeader | None:
        """What a proxy in front of the server said of the client; None if none may speak."""
        header: ProxyHeader | None = getattr(self._transport, "proxy_header", None)
        return header

    @property
    def draining(self) -> trio.Event:
        """Set once the server drains; the same event for all connections of a server."""
        return self.server.draining

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self._transport.closed

    @property
    def bytes_sent(self) -> int:
        """How many bytes `send_all` has handed on."""
        return self._transport.bytes_sent

    @property
    def bytes_received(self) -> int:
        """How many bytes `receive_some` has returned."""
        return self._transport.bytes_received

    @property
    def transport_socket(self) -> socket.socket | None:
        """The socket whose bytes are exactly this connection's, or None."""
        return self._transport.transport_socket

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self._transport.sending

    @property
    def transport(self) -> Stream:
        """The stream underneath, which `start_tls` replaces."""
        return self._transport

    # Plain functions returning the transport's own coroutine: the server adds none per operation.

    def send_all(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        """Send ``data`` as the transport does, with its errors; if cancelled, part of it."""
        return self._transport.send_all(data)

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Hand on what the transport takes without waiting; return how many bytes that is."""
        return self._transport.send_nowait(data)

    async def send_file(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send part of a file: by the kernel alone over a plain socket, else read in a thread.

        On a plain socket a page of the file that is not in memory is read from the disk then and
        there, and the event loop waits for it: see `SocketStream.send_file`. Over TLS and in
        memory nothing but the thread waits for the disk.

        Args:
          file: a file open for reading in binary mode.
          offset: the file's byte to start with.
          count: how many bytes; to the end of the file unless given.

        Returns:
          How many bytes were sent: fewer than ``count`` where the file ends before.

        Raises:
          TypeError, ValueError: an argument is wrong; nothing was sent.
          OSError: the file cannot be read.
          As `send_all`.

        If cancelled, the client gets a first part; `bytes_sent` tells how much.
        """
        offset, count = check_file(file, offset, count)
        by_kernel = getattr(self._transport, "send_file", None)
        if by_kernel is None:
            return await send_by_reading(self._transport, file, offset, count)
        sent: int = await by_kernel(file, offset, count)
        return sent

    def wait_send_all_might_not_block(self) -> Coroutine[Any, Any, None]:
        """Wait as the transport does. If cancelled, nothing was sent."""
        return self._transport.wait_send_all_might_not_block()

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes | bytearray]:
        """Receive as the transport does, with its errors. If cancelled, nothing was received."""
        return self._transport.receive_some(max_bytes)

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what is there already; see `trionet.abc.Stream.receive_nowait`."""
        return self._transport.receive_nowait(max_bytes)

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Close the transport. Cancelled or not, it is closed afterwards."""
        return self._transport.aclose()

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received."""
        return self._transport.is_readable()

    def unread_size(self) -> int:
        """How many bytes wait to be received, as the transport counts them."""
        return self._transport.unread_size()

    def peer_closed(self) -> bool:
        """Whether end of file or a reset is known, or comes right after the bytes waiting."""
        return self._transport.peer_closed()

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self._transport.interrupt_receive()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._transport.resume_receive()

    def idle(self) -> IdleScope:
        """Mark a wait for the client that a drain may end: ``with connection.idle() as scope:``.

        When the server drains, a ``receive_some`` of this connection that waits inside the block
        ends it; the block is left quietly, ``scope.cancelled_caught`` is true, and the handler
        goes on, with `draining` set. Bytes that are there are returned and can be served. In a
        block entered while draining, the first wait that would block ends at once. Nothing else
        in the block is interrupted: around other waits, wait for `draining`.
        """
        return IdleScope(self)

    async def start_tls(self, ssl_context: ssl.SSLContext) -> None:
        """Do the server's side of a TLS handshake; this connection is encrypted from then on.

        Raises:
          TypeError: ``ssl_context`` is not one.
          trio.BrokenResourceError: the handshake failed; the connection is closed.

        If cancelled, the connection is closed.
        """
        self._transport = await start_tls(self._transport, ssl_context, server_side=True)


@final
class HalfCloseableConnection(Connection, trio.abc.HalfCloseableStream):
    """A `Connection` over a transport that can end one direction."""

    __slots__ = ()

    async def send_eof(self) -> None:
        """Send end of file as the transport does. If cancelled, nothing was sent.

        Raises:
          trio.ClosedResourceError: the connection is closed.
          RuntimeError: `start_tls` has put TLS on it, which has no half-close.
        """
        if not isinstance(self._transport, trio.abc.HalfCloseableStream):
            raise RuntimeError("TLS cannot end one direction alone")
        await self._transport.send_eof()


@final
class IdleScope:
    """The block of `Connection.idle`.

    Attributes:
      cancelled_caught: whether a drain ended the block.
    """

    __slots__ = ("_connection", "cancelled_caught")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.cancelled_caught: bool = False

    def __enter__(self) -> IdleScope:
        connection = self._connection
        if connection._idle is not None:
            raise RuntimeError("connection.idle() is entered already")
        connection._idle = self
        if connection._draining:
            connection._transport.interrupt_receive()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        connection = self._connection
        connection._idle = None
        if connection._draining:
            connection._transport.resume_receive()
        if kind is ReceiveInterrupted:
            self.cancelled_caught = True
        elif isinstance(exception, BaseExceptionGroup):
            # A nursery inside the block wraps it, maybe beside other failures.
            caught, others = exception.split(ReceiveInterrupted)
            self.cancelled_caught = caught is not None
            if caught is not None and others is not None:
                raise others
        return self.cancelled_caught
