"""What drives OpenSSL: over a socket it reads and writes itself, else over two memory buffers.

How this works. An engine does one thing at a time without waiting, and raises what OpenSSL does:
``SSLWantReadError`` and ``SSLWantWriteError`` where it has to wait, ``OSError`` where it failed.
Whoever called it then awaits ``readable()`` or ``writable()``, and tries again. OpenSSL may want to
read in order to write and the other way round (a KeyUpdate, RFC 8446 section 4.6.3), so the task
that sends and the one that receives may both wait for the same thing: they share one wait.

Over a socket OpenSSL works on the descriptor: no byte is copied through Python twice. Over another
stream ciphertext passes two ``ssl.MemoryBIO``; what was encrypted and could not be handed on, since
a send was cancelled, is kept and goes first the next time, so that the records stay whole.
"""

from __future__ import annotations

import os
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, final

import trio

from . import readiness
from .foreign import ForeignStream
from .sockets import SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..abc import Stream

__all__ = ("BufferEngine", "DescriptorEngine", "Engine", "SharedWait", "socket_below")

# How much ciphertext is asked of the transport at once; four records of full size.
FEED_SIZE: Final = 65536

TLSObject = ssl.SSLSocket | ssl.SSLObject


class Engine(Protocol):
    """One TLS connection's ciphertext side."""

    # How much is encrypted between two looks at the transport.
    write_size: int

    @property
    def tls(self) -> TLSObject:
        """The object that encrypts: ``read``, ``write``, ``do_handshake``, ``pending``."""

    async def readable(self) -> None:
        """Wait until a read may find more. If cancelled, nothing is lost."""

    async def writable(self) -> None:
        """Wait until a write may find room. If cancelled, nothing is lost."""

    async def flush(self) -> None:
        """Hand on what was encrypted. If cancelled, the rest goes first next time."""

    def after_handshake(self) -> None:
        """Note that the handshake is done."""

    def is_readable(self) -> bool:
        """Whether a read may find something, without waiting."""


def socket_below(stream: Stream) -> SocketStream | None:
    """Return the stream whose socket carries exactly the bytes of ``stream``, if there is one."""
    if stream.transport_socket is None:
        return None
    below: object = stream
    while below is not None and not isinstance(below, SocketStream):
        below = getattr(below, "transport", None)
    return below


@final
class SharedWait:
    """One wait that several tasks may be in: the first one waits, the others wait for it."""

    __slots__ = ("_followers", "_wait", "_waiting")

    def __init__(self, wait: Callable[[], Awaitable[object]]) -> None:
        self._wait = wait
        self._waiting = False
        self._followers: trio.Event | None = None

    async def __call__(self) -> None:
        """Wait; the caller looks again afterwards, whoever it was that waited, and why it ended."""
        if self._waiting:
            if self._followers is None:
                self._followers = trio.Event()
            await self._followers.wait()
            return
        self._waiting = True
        try:
            await self._wait()
        finally:
            self._waiting = False
            if self._followers is not None:
                self._followers.set()
                self._followers = None


@final
class DescriptorEngine:
    """OpenSSL on the descriptor itself, which it takes over from a `SocketStream`."""

    # A record that met a full socket has to be written again, the same bytes; one record is what
    # is kept for that (RFC 8446 section 5.1).
    write_size = 16384

    def __init__(
        self,
        owner: SocketStream,
        ssl_context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
    ) -> None:
        # wrap_socket() finds a reset, too, but only once it has taken over the descriptor, which it
        # then forgets to close.
        error = owner.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
        # What waits for the descriptor from now on is another object.
        readiness.forget(owner.socket)
        sock = ssl_context.wrap_socket(
            owner.socket,
            server_side=server_side,
            do_handshake_on_connect=False,
            # Else a cut connection would look like a proper end.
            suppress_ragged_eofs=False,
            server_hostname=server_hostname,
        )
        # Wrapping detached the plain socket; the stream below goes on with the one that has the
        # descriptor now: it still knows its addresses, and closes it.
        owner._sock = sock
        self.tls = sock
        self.readable = SharedWait(partial(readiness.park_readable, sock))
        self.writable = SharedWait(partial(readiness.park_writable, sock))

    async def flush(self) -> None:
        """Do nothing: OpenSSL has written it to the socket."""

    def after_handshake(self) -> None:
        """Do nothing: a server's session tickets went into the socket's buffer."""

    def is_readable(self) -> bool:
        """Whether the socket has something for OpenSSL."""
        return self.tls.fileno() != -1 and self.tls.pending() > 0


@final
class BufferEngine:
    """OpenSSL between two memory buffers, over any stream."""

    write_size = FEED_SIZE

    def __init__(
        self,
        transport: Stream,
        ssl_context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
    ) -> None:
        self._transport = transport
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = ssl_context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_hostname,
        )
        # Ciphertext that left OpenSSL and was not handed on.
        self._unsent = b""
        self._cut = False
        # A server's session tickets wait for its first send. Sent at once they would deadlock an
        # unbuffered transport: its client sends its request, and does not receive.
        self._held = b""
        self.readable = SharedWait(self._readable)
        self._flushing = SharedWait(self._flush)

    async def _readable(self) -> None:
        # Without a flush: what OpenSSL answers here, a KeyUpdate say, may wait for the next send
        # (RFC 8446 section 4.6.3). A receive that waited for room to send would deadlock with a
        # peer that did the same.
        data = await self._transport.receive_some(FEED_SIZE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def writable(self) -> None:
        """Never called: a memory buffer has room for everything."""
        raise AssertionError("a memory buffer is never full")

    async def flush(self) -> None:
        """Hand on what was encrypted, the pieces of two tasks in turn.

        If cancelled, the rest goes first next time.
        """
        while self._unsent or self._outgoing.pending:
            await self._flushing()

    async def _flush(self) -> None:
        if self._cut:
            raise trio.BrokenResourceError("a cancelled send has cut a TLS record in half")
        self._unsent = self._unsent or self._held + self._outgoing.read()
        self._held = b""
        transport = self._transport
        before = transport.bytes_sent
        try:
            await transport.send_all(self._unsent)
        except trio.Cancelled:
            if isinstance(transport, ForeignStream):
                # It does not say how much went: the records are past mending.
                self._cut = True
            else:
                self._unsent = self._unsent[transport.bytes_sent - before :]
            raise
        self._unsent = b""

    def after_handshake(self) -> None:
        """Hold a server's session tickets back until it sends something."""
        if self.tls.server_side and self.tls.version() == "TLSv1.3":
            self._held += self._outgoing.read()

    def is_readable(self) -> bool:
        """Whether ciphertext waits, here or in the transport."""
        return self.tls.pending() > 0 or self._incoming.pending > 0 or self._transport.is_readable()
