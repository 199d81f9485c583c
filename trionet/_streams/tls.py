"""TLS over any stream, from the client's or the server's side.

How this works. A task that sends and one that receives drive the same OpenSSL object, each with a
busy flag of its own; what they may meet in, the handshake and the waits, is made for it: the
handshake belongs to one task at a time and goes on where a cancelled one was, and `tls_engine`
shares the waits. A record that was encrypted is never given up: if its send is cancelled it goes
out before anything else, so a cancelled ``send_all`` leaves the stream in order. All of that is one
state, and so one class; half of the file are the contracts of its methods.
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, final

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from .._errors import ReceiveInterrupted
from ..abc import Stream
from . import readiness
from .foreign import adopt
from .tls_engine import BufferEngine, DescriptorEngine, Engine, socket_below

if TYPE_CHECKING:
    from .._address import Address
    from .proxy_protocol import ProxyHeader

__all__ = ("TLSInfo", "TLSStream", "check_tls_arguments")

# One record's worth (RFC 8446 section 5.1), which is the most that OpenSSL returns at once.
RECEIVE_SIZE = 16384


@final
@dataclass(frozen=True, slots=True)
class TLSInfo:
    """What a handshake agreed on.

    Attributes:
      version: the protocol, ``"TLSv1.3"`` say.
      cipher: the cipher suite's name.
      alpn_protocol: the application protocol both sides chose (RFC 7301), or None.
      peer_certificate: the peer's certificate in DER, or None if it showed none.
      session_reused: whether an earlier session was resumed (RFC 8446 section 2.2).
    """

    version: str
    cipher: str
    alpn_protocol: str | None
    peer_certificate: bytes | None
    session_reused: bool


@final
class TLSStream(Stream):
    """A TLS connection over another stream.

    It is handshaken by `do_handshake`, or by whatever sends or receives first. Over a socket
    OpenSSL works on the descriptor itself; then the stream underneath must not be used any more.

    Attributes:
      transport: the stream underneath.
    """

    __slots__ = (
        "_ahead",
        "_broken",
        "_closed",
        "_context",
        "_engine",
        "_failure",
        "_handshaken",
        "_handshaking",
        "_hostname",
        "_info",
        "_interrupted",
        "_receive_busy",
        "_received",
        "_record",
        "_send_busy",
        "_sent",
        "_server_side",
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
        self._context = ssl_context
        self._server_side = server_side
        self._hostname = server_hostname
        # Made when the handshake begins: what comes before it, a PROXY header, is the transport's.
        self._engine: Engine | None = None
        self._handshaken = False
        self._info: TLSInfo | None = None
        # The task in the handshake holds this; whoever comes meanwhile waits for it.
        self._handshaking: trio.Event | None = None
        self._failure: BaseException | None = None
        self._broken = False
        self._closed = False
        self._interrupted = False
        self._send_busy = False
        self._receive_busy = False
        self._sent = 0
        self._received = 0
        # A record that met a full socket: OpenSSL wants the same bytes again before any others.
        self._record: bytes | memoryview = b""
        # What `is_readable` had to decrypt to know, and nobody received yet.
        self._ahead = b""

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
        """How many plaintext bytes were sent: encrypted, and to be delivered in order."""
        return self._sent

    @property
    def bytes_received(self) -> int:
        """How many plaintext bytes `receive_some` has returned."""
        return self._received

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self._send_busy

    @property
    def server_hostname(self) -> str | None:
        """The name a client asks for."""
        return self._hostname

    @property
    def tls(self) -> TLSInfo | None:
        """What the handshake agreed on; None before it."""
        return self._info

    @property
    def proxy_header(self) -> ProxyHeader | None:
        """The PROXY header that came ahead of the handshake, if there was one."""
        header: ProxyHeader | None = getattr(self.transport, "proxy_header", None)
        return header

    async def do_handshake(self) -> None:
        """Agree on keys with the peer, unless that is done already.

        Two tasks may meet here: one does it, the other waits for the outcome.

        Raises:
          trio.BrokenResourceError: the handshake failed, now or earlier; its cause says why, the
            message which side said so.
          trio.ClosedResourceError: this stream is closed.

        If cancelled, the next caller goes on where this one was.
        """
        while True:
            self._check_open()
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
            await self._shake_hands()
        except OSError as exc:
            self._check_open()
            self._failure = exc
            raise trio.BrokenResourceError(_why_failed(exc)) from exc
        except trio.BrokenResourceError as exc:
            self._failure = exc.__cause__ or exc
            raise trio.BrokenResourceError(_why_failed(self._failure)) from self._failure
        finally:
            self._handshaking.set()
            self._handshaking = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` encrypted, after the handshake if need be.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the connection is gone, or the handshake failed.
          trio.ClosedResourceError: this stream is closed.

        If cancelled, the peer gets a first part of ``data``; `bytes_sent` tells how much. The
        stream stays usable, except over a stream that is not trionet's.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._send_busy = True
        try:
            if not self._handshaken:
                await self.do_handshake()
            await checkpoint_if_cancelled()
            self._check_open()
            yielded = await self._write_record() if self._record else False
            engine = self._engine
            assert engine is not None
            if type(data) is bytes and 0 < len(data) <= engine.write_size:
                # The common case, one record that nobody can change, needs no view.
                self._record = data
                self._sent += len(data)
                yielded |= await self._write_record()
            else:
                yielded |= await self._write_records(data, engine.write_size)
            if not yielded:
                await cancel_shielded_checkpoint()
        finally:
            self._send_busy = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes bytes. Raises and leaves behind what `send_all` does."""
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._send_busy = True
        try:
            if not self._handshaken:
                await self.do_handshake()
            self._check_open()
            if isinstance(self._engine, DescriptorEngine):
                # Shared with a receive that has to write first, in a KeyUpdate.
                await self._engine.writable()
            else:
                await self.transport.wait_send_all_might_not_block()
        finally:
            self._send_busy = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one decrypted byte, at most ``max_bytes``; ``b""`` is a proper end.

        Args:
          max_bytes: 16 384 unless given; never more than that comes at once.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the connection is gone, was cut without a close_notify (RFC
            8446 section 6.1), or the handshake failed.
          trio.ClosedResourceError: this stream is closed.

        If cancelled, nothing was received.
        """
        if max_bytes is not None:
            max_bytes = index(max_bytes)
            if max_bytes < 1:
                raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        if self._receive_busy:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receive_busy = True
        try:
            if not self._handshaken:
                await self.do_handshake()
            await checkpoint_if_cancelled()
            data = await self._read(RECEIVE_SIZE if max_bytes is None else max_bytes)
            self._received += len(data)
            return data
        finally:
            self._receive_busy = False

    async def aclose(self) -> None:
        """Say close_notify, if a handshake was done, and close the transport.

        Does not wait for the peer's close_notify, but for the transport to take ours; a second
        call meanwhile cuts that short. Cancelled or not, everything is closed afterwards.
        """
        if self._closed:
            await self.transport.aclose()
            return
        self._closed = True
        try:
            if self._handshaken and self._failure is None:
                # A transport that is gone takes no farewell, and needs none.
                gone = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
                with contextlib.suppress(*gone):
                    await self._say_farewell()
        finally:
            await self.transport.aclose()

    def is_readable(self) -> bool:
        """Whether plaintext, the end or an error waits to be received."""
        if self._closed:
            return False
        if self._ahead or self.transport.peer_closed():
            return True
        engine = self._engine
        if engine is None or not self._handshaken:
            return self.transport.is_readable()
        if engine.is_readable():
            return True
        return self._socket_is_readable(engine)

    def unread_size(self) -> int:
        """How many bytes wait in the transport, still encrypted."""
        return 0 if self._closed else self.transport.unread_size() + len(self._ahead)

    def peer_closed(self) -> bool:
        """Whether the transport's peer is gone, or TLS with it failed."""
        return self._broken or self._failure is not None or self.transport.peer_closed()

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`. A handshake under way is not interrupted."""
        self._interrupted = True
        if not self._handshaken:
            # A send may be the one that leads it.
            return
        self.transport.interrupt_receive()
        if isinstance(self._engine, DescriptorEngine) and not self._closed:
            readiness.wake(self._engine.tls)

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._interrupted = False
        self.transport.resume_receive()

    # Inside

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")

    async def _shake_hands(self) -> None:
        if self._engine is None:
            inner = getattr(self.transport, "do_handshake", None)
            if inner is not None:
                await inner()
            self._engine = self._make_engine()
        engine = self._engine
        await checkpoint_if_cancelled()
        yielded = False
        while True:
            self._check_open()
            try:
                engine.tls.do_handshake()
            except ssl.SSLWantReadError:
                await engine.flush()
                await engine.readable()
                yielded = True
            except ssl.SSLWantWriteError:
                await engine.writable()
                yielded = True
            except OSError:
                # OpenSSL has an alert for the peer; it tells more than a cut connection.
                with contextlib.suppress(trio.BrokenResourceError):
                    await engine.flush()
                raise
            else:
                break
        engine.after_handshake()
        await engine.flush()
        # Taken now: closing forgets it, and a log line may come after that.
        self._info = _info_of(engine.tls)
        self._handshaken = True
        if not yielded:
            await cancel_shielded_checkpoint()

    def _make_engine(self) -> Engine:
        below = socket_below(self.transport)
        settings = {"server_side": self._server_side, "server_hostname": self._hostname}
        if below is not None:
            return DescriptorEngine(below, self._context, **settings)  # type: ignore[arg-type]
        return BufferEngine(self.transport, self._context, **settings)  # type: ignore[arg-type]

    async def _write_records(self, data: bytes | bytearray | memoryview, size: int) -> bool:
        """Send ``data`` in records of ``size``; return whether other tasks ran meanwhile."""
        yielded = False
        with memoryview(data) as whole, whole.cast("B") as view:
            for start in range(0, len(view), size):
                record = view[start : start + size]
                if type(data) is bytes:
                    self._record = record
                else:
                    # The caller may reuse its buffer, or resize it, once this was cancelled.
                    with record:
                        self._record = bytes(record)
                # Counted now: whatever becomes of this call, the record will go out.
                self._sent += len(self._record)
                yielded |= await self._write_record()
        return yielded

    async def _write_record(self) -> bool:
        """Encrypt and hand on ``_record``; return whether other tasks ran meanwhile."""
        engine = self._engine
        assert engine is not None
        yielded = False
        while self._record:
            try:
                engine.tls.write(self._record)
            except ssl.SSLWantWriteError:
                await engine.writable()
                yielded = True
            except ssl.SSLWantReadError:
                await engine.readable()
                yielded = True
            except OSError as exc:
                self._check_open()
                self._record = b""
                self._broken = True
                raise trio.BrokenResourceError(f"the TLS connection broke: {exc}") from exc
            else:
                self._record = b""
            self._check_open()
        if isinstance(engine, BufferEngine):
            await engine.flush()
            return True
        return yielded

    async def _read(self, size: int) -> bytes:
        engine = self._engine
        assert engine is not None
        yielded = False
        while True:
            self._check_open()
            try:
                data = self._take_ahead(size) or engine.tls.read(size)
            except ssl.SSLWantReadError:
                if self._interrupted and not engine.is_readable():
                    # A checkpoint as every way out is, and then a last look.
                    if yielded:
                        raise ReceiveInterrupted from None
                    await checkpoint()
                else:
                    await engine.readable()
                yielded = True
            except ssl.SSLWantWriteError:
                await engine.writable()
                yielded = True
            except OSError as exc:
                self._check_open()
                self._broken = True
                raise trio.BrokenResourceError(f"the TLS connection broke: {exc}") from exc
            else:
                if not yielded:
                    await cancel_shielded_checkpoint()
                return data

    def _take_ahead(self, size: int) -> bytes:
        data = self._ahead[:size]
        if data:
            self._ahead = self._ahead[size:]
        return data

    def _socket_is_readable(self, engine: Engine) -> bool:
        """Look whether what the socket has is more than session tickets (RFC 8446 section 4.6.1).

        They come right after a handshake, and a connection at rest is none the worse for them.
        """
        if self._receive_busy or not self.transport.is_readable():
            return self.transport.is_readable()
        try:
            self._ahead = engine.tls.read(RECEIVE_SIZE)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            # The next receive meets it again.
            return True
        return True

    async def _say_farewell(self) -> None:
        engine = self._engine
        assert engine is not None
        while True:
            try:
                if self._record:
                    engine.tls.write(self._record)
                    self._record = b""
                # Asks for the peer's close_notify next, which is not waited for.
                engine.tls.unwrap()
            except ssl.SSLWantWriteError:
                await engine.writable()
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                # The peer is still sending: ours is out all the same.
                break
            else:
                break
        await engine.flush()


def _info_of(tls: ssl.SSLSocket | ssl.SSLObject) -> TLSInfo:
    cipher = tls.cipher()
    return TLSInfo(
        version=tls.version() or "",
        cipher=cipher[0] if cipher else "",
        alpn_protocol=tls.selected_alpn_protocol(),
        peer_certificate=tls.getpeercert(binary_form=True),
        session_reused=bool(tls.session_reused),
    )


def _why_failed(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or ""
    # OpenSSL names an alert that it received after the protocol: TLSV1_ALERT_UNKNOWN_CA.
    by_peer = "ALERT" in reason
    return f"the TLS handshake failed, {'the peer says' if by_peer else 'on this side'}: {error}"


def check_tls_arguments(
    ssl_context: object, server_side: bool, server_hostname: str | None
) -> None:
    """Raise what `TLSStream` raises for arguments that cannot work, before anything is opened."""
    if not isinstance(ssl_context, ssl.SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, got {ssl_context!r}")
    if server_hostname is not None and not isinstance(server_hostname, str):
        raise TypeError(f"server_hostname must be a str, got {server_hostname!r}")
    if server_side:
        if server_hostname is not None:
            raise ValueError(f"server_hostname is for clients, got {server_hostname!r}")
        if ssl_context.protocol == ssl.PROTOCOL_TLS_CLIENT:
            raise ValueError("this ssl_context is a client's: a server needs one of its own")
    elif ssl_context.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise ValueError("this ssl_context is a server's: a client needs one of its own")
    elif ssl_context.check_hostname and not server_hostname:
        raise ValueError(
            "server_hostname is needed: this ssl_context compares it with the certificate"
        )
    elif server_hostname:
        try:
            server_hostname.encode("idna")
        except UnicodeError as exc:
            raise ValueError(f"server_hostname {server_hostname!r} is not a host name") from exc
