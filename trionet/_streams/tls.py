"""TLS over any stream, from the client's or the server's side."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import trio
from trio.lowlevel import checkpoint

from ..abc import Listener, Stream
from .foreign import adopt

if TYPE_CHECKING:
    from .._address import Address

__all__ = ("TLSInfo", "TLSListener", "TLSStream", "check_tls_arguments", "start_tls")


@final
@dataclass(frozen=True, slots=True)
class TLSInfo:
    """What a handshake agreed on.

    Attributes:
      version: the protocol, ``"TLSv1.3"`` say.
      cipher: the cipher suite's name.
      alpn_protocol: the application protocol both sides chose (RFC 7301), or None.
      peer_certificate: the peer's certificate in DER, or None if it showed none.
    """

    version: str
    cipher: str
    alpn_protocol: str | None
    peer_certificate: bytes | None


@final
class TLSStream(Stream):
    """A TLS connection over another stream.

    It is handshaken by `do_handshake`, or by whatever sends or receives first.

    Attributes:
      transport: the stream underneath.
    """

    __slots__ = (
        "_closed",
        "_failure",
        "_handshaken",
        "_handshaking",
        "_received",
        "_sent",
        "_ssl",
        "transport",
    )

    def __init__(
        self,
        transport: trio.abc.Stream,
        ssl_context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        """Put TLS over ``transport``, which is this stream's from now on. Sends nothing yet.

        Args:
          server_hostname: the name to ask for (SNI, RFC 6066 section 3) and to find in the
            certificate; for clients only.

        Raises:
          TypeError: ``ssl_context`` is not an `ssl.SSLContext`.
          ValueError: ``server_hostname`` is missing where the context checks it, or given on the
            server's side.
        """
        check_tls_arguments(ssl_context, server_side, server_hostname)
        self.transport: Stream = adopt(transport)
        self._ssl: trio.SSLStream[Stream] = trio.SSLStream(
            self.transport, ssl_context, server_hostname=server_hostname, server_side=server_side
        )
        self._handshaken = False
        # The task in the handshake holds this; whoever comes meanwhile waits for it.
        self._handshaking: trio.Event | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._sent = 0
        self._received = 0

    def __repr__(self) -> str:
        state = " closed" if self._closed else "" if self._handshaken else " not handshaken"
        return f"<TLSStream over {self.transport!r}{state}>"

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
        return self._closed

    @property
    def bytes_sent(self) -> int:
        """How many plaintext bytes `send_all` has handed on."""
        return self._sent

    @property
    def bytes_received(self) -> int:
        """How many plaintext bytes `receive_some` has returned."""
        return self._received

    @property
    def tls(self) -> TLSInfo | None:
        """What the handshake agreed on; None before it."""
        if not self._handshaken:
            return None
        inner: Any = self._ssl
        cipher = inner.cipher()
        return TLSInfo(
            version=inner.version(),
            cipher=cipher[0] if cipher else "",
            alpn_protocol=inner.selected_alpn_protocol(),
            peer_certificate=inner.getpeercert(binary_form=True),
        )

    async def do_handshake(self) -> None:
        """Agree on keys with the peer, unless that is done already.

        Two tasks may meet here: one does it, the other waits for the outcome.

        Raises:
          trio.BrokenResourceError: the handshake failed, now or earlier; its cause says why.
          trio.ClosedResourceError: this stream is closed.

        If cancelled, the stream is of no use any more and every later call raises Broken.
        """
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this stream is closed")
            if self._failure is not None:
                raise trio.BrokenResourceError("the TLS handshake failed") from self._failure
            if self._handshaken:
                await checkpoint()
                return
            if self._handshaking is None:
                break
            await self._handshaking.wait()
        self._handshaking = trio.Event()
        try:
            inner = getattr(self.transport, "do_handshake", None)
            if inner is not None:
                await inner()
            await self._ssl.do_handshake()
            self._handshaken = True
        except trio.BrokenResourceError as exc:
            self._failure = exc.__cause__ or exc
            raise trio.BrokenResourceError(
                f"the TLS handshake failed: {self._failure}"
            ) from self._failure
        except BaseException as exc:
            self._failure = exc
            raise
        finally:
            self._handshaking.set()
            self._handshaking = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` encrypted, after the handshake if need be.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the connection is gone, or the handshake failed.
          trio.ClosedResourceError: this stream is closed.

        If cancelled, part of ``data`` may have been sent.
        """
        if not self._handshaken:
            await self.do_handshake()
        await self._ssl.send_all(data)
        self._sent += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes bytes. Raises and leaves behind what `send_all` does."""
        if not self._handshaken:
            await self.do_handshake()
        await self._ssl.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive at least one decrypted byte, at most ``max_bytes``; ``b""`` is a proper end.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the connection is gone, was cut without a close_notify (RFC
            8446 section 6.1), or the handshake failed.
          trio.ClosedResourceError: this stream is closed.

        If cancelled, nothing was received.
        """
        if not self._handshaken:
            await self.do_handshake()
        data = await self._ssl.receive_some(max_bytes)
        self._received += len(data)
        return data

    async def aclose(self) -> None:
        """Say close_notify, if a handshake was done, and close the transport.

        Does not wait for the peer's close_notify, but for the transport to take ours. Cancelled or
        not, everything is closed afterwards.
        """
        if self._closed:
            await checkpoint()
            return
        self._closed = True
        if self._handshaken:
            with contextlib.suppress(trio.BrokenResourceError):
                await self._ssl.aclose()
        else:
            await self.transport.aclose()

    def is_readable(self) -> bool:
        """Whether something to receive, or to decrypt, waits."""
        if self._closed:
            return False
        inner: Any = self._ssl
        return (self._handshaken and inner.pending() > 0) or self.transport.is_readable()

    def unread_size(self) -> int:
        """How many bytes wait in the transport, still encrypted."""
        return 0 if self._closed else self.transport.unread_size()

    def peer_closed(self) -> bool:
        """Whether the transport's peer is gone."""
        return self.transport.peer_closed()

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self.transport.interrupt_receive()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self.transport.resume_receive()


@final
class TLSListener(Listener[TLSStream]):
    """Accepts TLS connections, not yet handshaken, from another listener.

    Attributes:
      transport: the listener underneath.
      ssl_context: what new connections are made with; it may be replaced at any time, to renew a
        certificate say, and connections already made keep theirs.
    """

    __slots__ = ("ssl_context", "transport")

    def __init__(self, transport: Listener[Stream], ssl_context: ssl.SSLContext) -> None:
        check_tls_arguments(ssl_context, True, None)
        self.transport = transport
        self.ssl_context = ssl_context

    def __repr__(self) -> str:
        return f"<TLSListener over {self.transport!r}>"

    @property
    def address(self) -> Address:
        """Where the transport listens."""
        return self.transport.address

    async def accept(self) -> TLSStream:
        """Take a connection, as the transport's ``accept`` does; the handshake is to come.

        If cancelled, no connection is lost.
        """
        return self._wrap(await self.transport.accept())

    def accept_nowait(self) -> TLSStream:
        """Take a connection, as the transport's ``accept_nowait`` does."""
        return self._wrap(self.transport.accept_nowait())

    async def wait_acceptable(self) -> None:
        """Wait as the transport does. If cancelled, nothing was taken."""
        await self.transport.wait_acceptable()

    async def aclose(self) -> None:
        """Close the transport. Cancelled or not, it is closed afterwards."""
        await self.transport.aclose()

    def close(self) -> None:
        """Close the transport at once."""
        self.transport.close()

    def _wrap(self, stream: Stream) -> TLSStream:
        return TLSStream(stream, self.ssl_context, server_side=True)


async def start_tls(
    stream: trio.abc.Stream,
    ssl_context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
) -> TLSStream:
    """Put TLS over a connection in use, and do the handshake.

    Raises:
      TypeError, ValueError: as `TLSStream`.
      trio.BrokenResourceError: the handshake failed; the connection is closed.

    If cancelled, the connection is closed.
    """
    tls = TLSStream(stream, ssl_context, server_side=server_side, server_hostname=server_hostname)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


def check_tls_arguments(
    ssl_context: object, server_side: bool, server_hostname: str | None
) -> None:
    """Raise what `TLSStream` raises for arguments that cannot work, before anything is opened."""
    if not isinstance(ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, got {ssl_context!r}")
    if server_side:
        if server_hostname is not None:
            raise ValueError(f"server_hostname is for clients, got {server_hostname!r}")
    elif ssl_context.check_hostname and not server_hostname:
        raise ValueError(
            "server_hostname is needed: this ssl_context compares it with the certificate"
        )
