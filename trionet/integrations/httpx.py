"""httpx over any trionet network: ``httpx.AsyncClient(transport=Transport("memu", "site"))``.

Needs the extra ``trionet[httpx]``. httpcore keeps the connections, as it does for httpx itself;
what is here dials, moves bytes and speaks both libraries' exceptions.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import httpcore
import httpx
import trio

from .. import abc
from .._address import NETWORKS, Address
from .._streams.network import dial as default_dial
from .._streams.tls import TLSStream
from .._streams.tls_listener import start_tls

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
    from types import TracebackType

    from .._streams.tls import TLSInfo

__all__ = ("Dial", "Transport")

# What httpx itself allows where nothing is said.
DEFAULT_LIMITS: Final = httpx.Limits(max_connections=100, max_keepalive_connections=20)

# Seconds for saying goodbye to a server that does not listen: httpcore closes connections shielded
# from cancellation, so whatever waits in there must end by itself.
CLOSE_TIMEOUT: Final = 1.0


class Dial(Protocol):
    """What `trionet.dial` looks like to this module."""

    async def __call__(
        self, network: str, address: str, *, local_address: str | None = None
    ) -> trio.abc.Stream:
        """Connect. If cancelled, no connection is left behind."""


@final
class Transport(httpx.AsyncBaseTransport):
    """Sends an httpx client's requests over a trionet network, and keeps connections alive.

    Two things are httpcore's: idle connections expire by the wall clock, whatever clock trio has;
    and it sets the protocols to offer (ALPN) on the ``ssl_context`` it is given. Over TLS an end
    of the connection without close_notify is a `httpx.ReadError`, where httpx alone lets it pass
    for the end of a body without a length.

    A server in memory without buffers (``memu``) that answers before it has read a whole body
    waits for this client, which sends the whole body before it reads; use ``memb`` there.
    """

    def __init__(
        self,
        network: str = "tcp",
        address: str | None = None,
        *,
        dial: Dial | abc.Network | None = None,
        ssl_context: ssl.SSLContext | None = None,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = DEFAULT_LIMITS,
        retries: int = 0,
    ) -> None:
        """Prepare to dial; nothing is opened yet.

        Args:
          network: as for `trionet.dial`.
          address: where every request goes, whatever its URL says. If it is None, TCP dials the
            URL's host and port, and memory the URL's host as a name.
          dial: what to dial with; `trionet.dial` unless given. A network takes the place of it.
          ssl_context: for https URLs; the certificate is compared with the URL's host. Unless
            given, one that trusts certifi's authorities.
          http2: offer HTTP/2 in the TLS handshake; needs httpx's extra ``http2``.
          limits: how many connections, and how long idle ones are kept.
          retries: how often a connection that could not be made is tried again.

        Raises:
          ValueError: ``address`` is not one of ``network``, or missing for ``unix``.
          TypeError: an argument is of the wrong kind.
        """
        if address is not None and network in NETWORKS:
            Address.parse(network, address)
        elif network == "unix":
            raise ValueError("network 'unix' needs an address: a URL names no path")
        if isinstance(dial, abc.Network):
            dial = dial.dial
        elif dial is None:
            dial = default_dial
        elif not callable(dial):
            raise TypeError(f"dial must be an async function or a Network, got {dial!r}")
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=_Backend(network, address, dial),
        )

    async def __aenter__(self) -> Transport:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        with _httpx_exceptions():
            await self._pool.__aexit__(exc_type, exc_value, traceback)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send ``request`` and return its response, whose body is still to be read.

        Raises:
          httpx.TransportError: in its many kinds; the trio or system error is its cause's cause.

        If cancelled, the connection in use is closed.
        """
        assert isinstance(request.stream, httpx.AsyncByteStream)
        url = request.url
        sent = httpcore.Request(
            method=request.method,
            url=httpcore.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _httpx_exceptions():
            response = await self._pool.handle_async_request(sent)
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_ResponseStream(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close every connection. If cancelled, some may be left to the garbage collector."""
        with _httpx_exceptions():
            await self._pool.aclose()


@final
class _ResponseStream(httpx.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream: AsyncIterable[bytes] = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _httpx_exceptions():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            with _httpx_exceptions():
                await close()


@final
class _Backend(httpcore.AsyncNetworkBackend):
    """How httpcore gets its connections."""

    def __init__(self, network: str, address: str | None, dial: Dial) -> None:
        self._network = network
        self._address = address
        self._dial = dial

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Dial, whatever httpcore's name for it. If cancelled, no connection is left behind."""
        assert local_address is None
        assert socket_options is None
        network, address = self._network, self._address
        if address is None:
            address = host if network in {"memu", "memb"} else _host_port(host, port)
        with _bounded(
            timeout,
            httpcore.ConnectTimeout,
            httpcore.ConnectError,
            f"connecting to {network} {address}",
        ):
            return await _deliver(await self._dial(network, address))

    async def sleep(self, seconds: float) -> None:
        """Wait between two tries. If cancelled, there is no second."""
        await trio.sleep(seconds)


@final
class _NetworkStream(httpcore.AsyncNetworkStream):
    """A trio stream as httpcore sees one."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Receive. If cancelled, nothing was received."""
        with _bounded(timeout, httpcore.ReadTimeout, httpcore.ReadError, "reading"):
            return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send. If cancelled, a first part was sent."""
        if not buffer:
            return
        with _bounded(timeout, httpcore.WriteTimeout, httpcore.WriteError, "writing"):
            await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        """Close, within a second. Cancelled or not, the stream is closed afterwards."""
        with trio.move_on_after(CLOSE_TIMEOUT):
            await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Put TLS on this stream. If cancelled, the stream is closed."""
        with _bounded(timeout, httpcore.ConnectTimeout, httpcore.ConnectError, "the handshake"):
            return await _deliver(
                await start_tls(self._stream, ssl_context, server_hostname=server_hostname)
            )

    def get_extra_info(self, info: str) -> Any:
        """Answer what httpcore asks for (``is_readable``, ``ssl_object``) and httpx documents."""
        stream = self._stream
        if not isinstance(stream, abc.Stream):
            return None
        if info == "is_readable":
            return stream.is_readable()
        if info == "ssl_object":
            tls = stream.tls if isinstance(stream, TLSStream) else None
            return None if tls is None else _SSLFacts(tls)
        if info == "socket":
            return stream.transport_socket
        if info == "client_addr":
            return _name_of(stream.local_address)
        if info == "server_addr":
            return _name_of(stream.remote_address)
        return None


@final
class _SSLFacts:
    """What a handshake agreed on, asked for as of an `ssl.SSLObject`."""

    def __init__(self, tls: TLSInfo) -> None:
        self._tls = tls

    def selected_alpn_protocol(self) -> str | None:
        return self._tls.alpn_protocol

    def version(self) -> str:
        return self._tls.version

    def cipher(self) -> tuple[str, str, None]:
        return self._tls.cipher, self._tls.version, None

    def getpeercert(self, binary_form: bool = False) -> bytes | None:
        if not binary_form:
            raise ValueError("only the DER form is kept: getpeercert(binary_form=True)")
        return self._tls.peer_certificate


async def _deliver(stream: trio.abc.Stream) -> _NetworkStream:
    """Hand a new connection to httpcore, unless the request was cancelled while it was made.

    httpcore 1.0 keeps a connection that is cancelled between its making and its first request in
    the pool for ever (encode/httpcore issue 1093). Nothing else runs between this look and that
    request, so a cancellation comes before, and is seen here, or after, where httpcore copes.
    """
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return _NetworkStream(stream)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _name_of(address: Address) -> Any:
    """Return an address in the form a socket gives it."""
    return str(address) if address.port is None else (address.host, address.port)


@contextlib.contextmanager
def _bounded(
    seconds: float | None,
    timeout: type[httpcore.TimeoutException],
    failure: type[httpcore.NetworkError],
    what: str,
) -> Iterator[None]:
    """Give the block ``seconds``, and turn its errors into httpcore's."""
    try:
        with trio.fail_after(math.inf if seconds is None else seconds):
            yield
    except trio.TooSlowError as exc:
        raise timeout(f"{what} took more than {seconds} s") from exc
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
        raise failure(f"{what} failed: {exc}") from exc


@contextlib.contextmanager
def _httpx_exceptions() -> Iterator[None]:
    """Raise httpx's exception of the same name where httpcore raises one."""
    try:
        yield
    except Exception as exc:
        for kind in type(exc).__mro__:
            mapped = getattr(httpx, kind.__name__, None)
            if mapped is not None and kind.__module__.startswith("httpcore"):
                # The pool raises it "from None" once more, which hides why it happened.
                exc.__cause__ = exc.__cause__ or exc.__context__
                raise mapped(str(exc)) from exc
        raise
