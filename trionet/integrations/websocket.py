"""trio-websocket over any trionet network: clients by `dial`, servers by `Server`.

Needs the extra ``trionet[websocket]``. The protocol and its objects are trio-websocket's; what is
here makes its connections, and ends them when a server drains::

    server = trionet.Server(websocket_handler(talk))

    async with open_websocket("ws://chat/", "memb") as websocket:
        await websocket.send_message("hello")

How this works. trio-websocket waits without an end for peers that leave in a handshake, or never
close the stream; so each stream it gets is watched, and each of its waits ends with the stream.
Both sides do that the same way, which is why they are one file, somewhat longer than most.
"""

from __future__ import annotations

import contextlib
import math
import ssl
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, final

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionTimeout,
    DisconnectionTimeout,
    HandshakeError,
    wrap_client_stream,
    wrap_server_stream,
)

from .. import abc
from .._address import MEMORY_NETWORKS, NETWORKS, Address
from .._errors import Ungrouped
from .._streams.network import dial as default_dial
from .._streams.tls_listener import start_tls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from trio_websocket import WebSocketConnection, WebSocketRequest

    from .._server.connection import Connection

__all__ = ("Dial", "WebSocketOptions", "open_websocket", "websocket_handler")

T = TypeVar("T")

# RFC 6455 section 7.4.1: a server that goes down; a condition that the server did not expect.
GOING_AWAY: Final = 1001
INTERNAL_ERROR: Final = 1011

# What no close frame of the peer's is waited for: a stream that broke or a handshake that was
# rejected; a message that was too large.
UNANSWERED: Final = (1006, 1009)

# What ends a connection without anything being wrong: its purpose is fulfilled, somebody leaves.
PROPER_ENDS: Final = (1000, GOING_AWAY)


class Dial(Protocol):
    """What `trionet.dial` looks like to this module."""

    async def __call__(self, network: str, address: str) -> trio.abc.Stream:
        """Connect. If cancelled, no connection is left behind."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketOptions:
    """How a websocket behaves, on either side; the defaults are trio-websocket's.

    Attributes:
      message_queue_size: messages that may wait to be taken by ``get_message``; when they are
        that many, nothing more is read from the peer.
      max_message_size: bytes, or characters, of the largest message that is taken; a larger one
        ends the connection with code 1009.
      receive_buffer_size: bytes asked of the stream at once.
      connect_timeout: seconds for the opening handshake; for a client with dialling and TLS.
      disconnect_timeout: seconds for the closing handshake.
    """

    message_queue_size: int = 1
    max_message_size: int = 1 << 20
    receive_buffer_size: int = 4096
    connect_timeout: float = 60.0
    disconnect_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (
            ("message_queue_size", 0),
            ("max_message_size", 1),
            ("receive_buffer_size", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"WebSocketOptions.{name} must be an int, got {value!r}")
            if value < least:
                raise ValueError(f"WebSocketOptions.{name} must be at least {least}, got {value}")
        for name in ("connect_timeout", "disconnect_timeout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"WebSocketOptions.{name} must be a number, got {value!r}")
            if not 0 < value <= math.inf:
                raise ValueError(f"WebSocketOptions.{name} must be more than 0, got {value!r}")


DEFAULTS: Final = WebSocketOptions()


@final
class _Watched(trio.abc.Stream):
    """A stream that tells when nothing more will be received from it.

    trio-websocket's wait for a handshake does not end by itself when the peer leaves.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.ended = trio.Event()

    def __repr__(self) -> str:
        # What ``request.remote`` and ``websocket.local`` show.
        return repr(self._stream)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.ended.set()
            raise
        if not data:
            self.ended.set()
        return data

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self.ended.set()


async def _unless(event: trio.Event, wait: Callable[[], Awaitable[T]]) -> T | None:
    """Return what ``wait`` does, or None if ``event`` is set first."""
    result: list[T] = []
    with Ungrouped():
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                result.append(await wait())
                nursery.cancel_scope.cancel()

            nursery.start_soon(run)
            await event.wait()
            # What became ready in the same moment is taken first.
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    return result[0] if result else None


async def _say_goodbye(
    websocket: WebSocketConnection, stream: _Watched, seconds: float, code: int = 1000
) -> bool:
    """Do the closing handshake; return whether the peer did its part of it in time."""
    with trio.move_on_after(seconds) as scope:
        # If the stream ends on the way, after an error in the protocol say, trio-websocket would
        # wait for an answer nevertheless.
        await _unless(stream.ended, lambda: websocket.aclose(code))
        # Where the peer closed first, trio-websocket does not wait for the end of the stream, or
        # for another task that is closing. Nobody reads up to it where a message was too large.
        if websocket.closed is None or websocket.closed.code not in UNANSWERED:
            await stream.ended.wait()
    return not scope.cancelled_caught


# Clients


@contextlib.asynccontextmanager
async def open_websocket(
    url: str,
    network: str = "tcp",
    address: str | None = None,
    *,
    dial: Dial | abc.Network | None = None,
    ssl_context: ssl.SSLContext | None = None,
    subprotocols: Iterable[str] = (),
    extra_headers: Iterable[tuple[bytes, bytes]] = (),
    options: WebSocketOptions = DEFAULTS,
) -> AsyncIterator[WebSocketConnection]:
    """Open a websocket for an ``async with`` block, as trio-websocket's ``open_websocket_url``.

    Args:
      url: ``ws:`` or ``wss:``, with the host and the path that the server is told.
      network: as for `trionet.dial`.
      address: where to dial, whatever the URL says. If it is None, TCP dials the URL's host and
        port, and memory the URL's host as a name.
      dial: what to dial with; `trionet.dial` unless given. A network takes the place of it.
      ssl_context: for ``wss:``; `ssl.create_default_context` makes one unless given.
      subprotocols: in the order of preference.
      extra_headers: sent with the handshake.

    Raises:
      ValueError, TypeError: an argument is wrong; nothing was opened.
      trio_websocket.HandshakeError: the connection could not be made; its cause says why. Among
        its subclasses are ``ConnectionTimeout``, ``ConnectionRejected`` and, from the end of the
        block, ``DisconnectionTimeout``.

    An exception in the block leaves it as itself. If cancelled, the connection is closed without
    a closing handshake.
    """
    target = _Target.parse(url, network, address)
    if ssl_context is not None and not target.secure:
        raise ValueError(f"an ssl_context is for wss: URLs, got {url!r}")
    connect = dial.dial if isinstance(dial, abc.Network) else dial or default_dial
    request = (tuple(subprotocols), tuple(extra_headers))
    with Ungrouped():
        async with trio.open_nursery() as nursery:
            try:
                with trio.fail_after(options.connect_timeout):
                    stream = await _connect(target, connect, ssl_context)
                    websocket = await _shake_hands(nursery, stream, target, request, options)
            except trio.TooSlowError as exc:
                raise ConnectionTimeout from exc
            except (OSError, trio.BrokenResourceError) as exc:
                raise HandshakeError(f"cannot connect to {target}: {exc}") from exc
            async with _closing(websocket, stream, options.disconnect_timeout):
                yield websocket


@contextlib.asynccontextmanager
async def _closing(
    websocket: WebSocketConnection, stream: _Watched, seconds: float
) -> AsyncIterator[None]:
    """Close the websocket at the end of the block, and its stream in any case."""
    in_time = True
    try:
        try:
            yield
        finally:
            in_time = await _say_goodbye(websocket, stream, seconds)
    finally:
        await trio.aclose_forcefully(stream)
    # Not if the block raised, which says more.
    if not in_time:
        raise DisconnectionTimeout


@final
@dataclass(frozen=True, slots=True)
class _Target:
    """What a URL and the arguments beside it come to.

    Attributes:
      host: what the server is told, with the port where it is not the usual one.
      hostname: what its certificate is compared with.
    """

    network: str
    address: str
    host: str
    hostname: str
    resource: str
    secure: bool

    def __str__(self) -> str:
        return f"{self.network} {self.address}"

    @classmethod
    def parse(cls, url: str, network: str, address: str | None) -> _Target:
        parts = urllib.parse.urlsplit(url)
        name = parts.hostname
        if parts.scheme not in {"ws", "wss"} or not name:
            raise ValueError(f"expected a ws: or wss: URL with a host, got {url!r}")
        secure = parts.scheme == "wss"
        usual = 443 if secure else 80
        port = parts.port or usual
        host = f"[{name}]" if ":" in name else name
        if address is None:
            if network == "unix":
                raise ValueError("network 'unix' needs an address: a URL names no path")
            address = name if network in MEMORY_NETWORKS else f"{host}:{port}"
        if network in NETWORKS:
            Address.parse(network, address)
        resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        told = host if port == usual else f"{host}:{port}"
        return cls(network, address, told, name, resource, secure)


async def _connect(target: _Target, dial: Dial, ssl_context: ssl.SSLContext | None) -> _Watched:
    """Dial, and put TLS on it for wss. If cancelled, no connection is left behind."""
    stream = await dial(target.network, target.address)
    if target.secure:
        context = ssl_context or ssl.create_default_context()
        stream = await start_tls(stream, context, server_hostname=target.hostname)
    return _Watched(stream)


async def _shake_hands(
    nursery: trio.Nursery,
    stream: _Watched,
    target: _Target,
    request: tuple[Iterable[str], Iterable[tuple[bytes, bytes]]],
    options: WebSocketOptions,
) -> WebSocketConnection:
    """Do the opening handshake. If it fails, or is cancelled, the stream is closed.

    A rejection comes from the reader, whose task ``nursery`` has.
    """
    subprotocols, headers = request
    try:
        websocket = await _unless(
            stream.ended,
            lambda: wrap_client_stream(
                nursery,
                stream,  # type: ignore[arg-type]
                target.host,
                target.resource,
                subprotocols=list(subprotocols),
                extra_headers=list(headers),
                message_queue_size=options.message_queue_size,
                max_message_size=options.max_message_size,
                receive_buffer_size=options.receive_buffer_size,
            ),
        )
        if websocket is None:
            raise HandshakeError(f"{target} ended the connection in the handshake")
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return websocket


# Servers


def websocket_handler(
    handler: Callable[[WebSocketRequest], Awaitable[object]],
    *,
    options: WebSocketOptions = DEFAULTS,
    drain_code: int | None = GOING_AWAY,
) -> Callable[[Connection], Awaitable[None]]:
    """Make a handler for `Server` out of one for trio-websocket's requests.

    When ``handler`` returns, the websocket is closed with code 1000; when it raises, with 1011,
    and the server hears of it. A ``ConnectionClosed`` that it lets go is the end of the
    connection and no fault of its own.

    Args:
      handler: gets a ``trio_websocket.WebSocketRequest``, to be accepted or rejected. A client
        that sends none, or another kind of request, never reaches it.
      drain_code: what clients are told when the server drains: their websockets are closed with
        this code, so that ``get_message`` raises ``ConnectionClosed`` in their handlers. None
        leaves websockets open for as long as the server's grace allows.
    """

    async def serve(connection: Connection) -> None:
        stream = _Watched(connection)
        try:
            with Ungrouped():
                async with trio.open_nursery() as nursery:
                    request = await _receive_request(nursery, connection, stream, options)
                    if request is not None:
                        # trio-websocket has no public way from a request to its connection.
                        websocket = request._connection
                        if drain_code is not None:
                            nursery.start_soon(_follow, connection, websocket, drain_code)
                        await _run(handler, request, websocket, stream, options)
                    # The server closes the stream, which it does politely.
                    nursery.cancel_scope.cancel()
        except ConnectionClosed as exc:
            reason = exc.reason
            if reason is None or reason.code not in PROPER_ENDS:
                raise trio.BrokenResourceError(f"the websocket broke: {reason}") from exc

    return serve


async def _receive_request(
    nursery: trio.Nursery, connection: Connection, stream: _Watched, options: WebSocketOptions
) -> WebSocketRequest | None:
    """Wait for the client's handshake, unless it leaves, takes too long, or the server drains."""

    async def receive() -> WebSocketRequest | None:
        return await _unless(
            stream.ended,
            lambda: wrap_server_stream(
                nursery,
                stream,
                message_queue_size=options.message_queue_size,
                max_message_size=options.max_message_size,
                receive_buffer_size=options.receive_buffer_size,
            ),
        )

    with trio.move_on_after(options.connect_timeout):
        return await _unless(connection.draining, receive)
    return None


async def _follow(connection: Connection, websocket: WebSocketConnection, code: int) -> None:
    """Close the websocket when the server drains."""
    await connection.draining.wait()
    await websocket.aclose(code, "the server drains")


async def _run(
    handler: Callable[[WebSocketRequest], Awaitable[object]],
    request: WebSocketRequest,
    websocket: WebSocketConnection,
    stream: _Watched,
    options: WebSocketOptions,
) -> None:
    """Run the handler and close the websocket after it, whatever came of it."""
    code = 1000
    try:
        await handler(request)
    except Exception:
        code = INTERNAL_ERROR
        raise
    finally:
        await _say_goodbye(websocket, stream, options.disconnect_timeout, code)
