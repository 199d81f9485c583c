"""trionet's streams, listeners and `dial` as anyio's."""

from __future__ import annotations

import contextlib
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import anyio
import anyio.abc
import trio
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

from .._streams.foreign import adopt
from .._streams.network import dial
from .._streams.tls import TLSStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    from .._address import Address
    from .._options import MemoryOptions, SocketOptions

__all__ = ("RECEIVE_SIZE", "ByteStream", "Connectable", "Dial", "Listener")

# What anyio's own streams receive at once, and its documentation promises to be the most.
RECEIVE_SIZE: Final = 65536

FAMILIES: Final = {
    "tcp4": socket.AF_INET,
    "tcp6": socket.AF_INET6,
    "unix": socket.AF_UNIX,
}


@contextlib.contextmanager
def _anyio_exceptions(action: str) -> Iterator[None]:
    """Raise anyio's exception of the same name where trio's is raised."""
    try:
        yield
    except trio.BusyResourceError as exc:
        raise anyio.BusyResourceError(action) from exc
    except trio.ClosedResourceError as exc:
        raise anyio.ClosedResourceError(str(exc)) from exc
    except trio.BrokenResourceError as exc:
        raise anyio.BrokenResourceError(str(exc)) from exc


@final
class ByteStream(anyio.abc.ByteStream):
    """A trio stream as an `anyio.abc.ByteStream`.

    Its extra attributes are anyio's: of `anyio.abc.SocketAttribute` the addresses, a name where
    there is no port, and the family and socket where there are any; after a handshake those of
    ``TLSAttribute``, whose ``ssl_object`` is an `ssl.SSLSocket` where OpenSSL works on the socket
    itself: to be asked, not to be read from.

    Attributes:
      stream: the stream inside.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        """Wrap ``stream``, which is this object's from now on."""
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"stream must be a trio.abc.Stream, got {stream!r}")
        self.stream: Final = adopt(stream)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.stream!r}>"

    async def receive(self, max_bytes: int = RECEIVE_SIZE) -> bytes:
        """Receive at least one byte and at most ``max_bytes``.

        Raises:
          anyio.EndOfStream: the peer has ended its side.
          anyio.BrokenResourceError: the connection is gone.
          anyio.ClosedResourceError: this stream is closed.
          anyio.BusyResourceError: another task is receiving.

        If cancelled, nothing was received.
        """
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be a positive integer, got {max_bytes}")
        with _anyio_exceptions("reading from"):
            data = await self.stream.receive_some(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        """Send ``item``. If cancelled, a first part of it was sent.

        Raises:
          anyio.BrokenResourceError: the connection is gone.
          anyio.ClosedResourceError: this stream is closed, or has sent end of file.
          anyio.BusyResourceError: another task is sending.
        """
        with _anyio_exceptions("writing to"):
            await self.stream.send_all(item)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent. If cancelled, nothing was said.

        Raises:
          NotImplementedError: the stream cannot end one direction, as with TLS; anyio's own
            TLS streams raise the same.
          As `send`.
        """
        if not isinstance(self.stream, trio.abc.HalfCloseableStream):
            raise NotImplementedError(f"{self.stream!r} cannot end one direction alone")
        with _anyio_exceptions("writing to"):
            await self.stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream. Cancelled or not, it is closed afterwards."""
        await self.stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """What anyio's ``extra()`` looks into."""
        stream = self.stream
        attributes = _end("local", stream.local_address)
        attributes |= _end("remote", stream.remote_address)
        layer: Any = stream
        while layer is not None:
            if isinstance(layer, TLSStream) and layer.tls is not None:
                attributes |= _tls_attributes(layer)
            if getattr(layer, "transport_socket", None) is not None:
                attributes[SocketAttribute.raw_socket] = partial(getattr, layer, "transport_socket")
                break
            layer = getattr(layer, "transport", None)
        return attributes


def _end(which: str, address: Address) -> dict[Any, Callable[[], Any]]:
    """Return what an address tells, in the form in which a socket gives it."""
    value = str(address) if address.port is None else (address.host, address.port)
    attributes: dict[Any, Callable[[], Any]] = {
        getattr(SocketAttribute, f"{which}_address"): lambda: value
    }
    if address.port is not None:
        attributes[getattr(SocketAttribute, f"{which}_port")] = lambda: address.port
    if which == "local" and address.network in FAMILIES:
        attributes[SocketAttribute.family] = lambda: FAMILIES[address.network]
    return attributes


def _tls_attributes(stream: TLSStream) -> dict[Any, Callable[[], Any]]:
    assert stream._engine is not None
    tls = stream._engine.tls
    return {
        TLSAttribute.alpn_protocol: tls.selected_alpn_protocol,
        TLSAttribute.channel_binding_tls_unique: tls.get_channel_binding,
        TLSAttribute.cipher: tls.cipher,
        TLSAttribute.peer_certificate: lambda: tls.getpeercert(False),
        TLSAttribute.peer_certificate_binary: lambda: tls.getpeercert(True),
        TLSAttribute.server_side: lambda: tls.server_side,
        TLSAttribute.shared_ciphers: lambda: tls.shared_ciphers() if tls.server_side else None,
        # A connection that ends without close_notify is broken, never "at its end".
        TLSAttribute.standard_compatible: lambda: True,
        TLSAttribute.ssl_object: lambda: tls,
        TLSAttribute.tls_version: tls.version,
    }


@final
class Listener(anyio.abc.Listener[ByteStream]):
    """A trio listener as an anyio one; its streams are `ByteStream` objects.

    Over TLS the handshake happens in the handler's task, with its first send or receive.

    Attributes:
      listener: the listener inside.
    """

    def __init__(self, listener: trio.abc.Listener[Any]) -> None:
        """Wrap ``listener``, which is this object's from now on."""
        if not isinstance(listener, trio.abc.Listener):
            raise TypeError(f"listener must be a trio.abc.Listener, got {listener!r}")
        self.listener: Final = listener

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.listener!r}>"

    async def accept(self) -> ByteStream:
        """Take one connection. If cancelled, none is lost.

        Raises:
          anyio.ClosedResourceError: this listener is, or gets, closed.
          anyio.BusyResourceError: another task is accepting.
          OSError: as the listener inside.
        """
        with _anyio_exceptions("accepting connections from"):
            return ByteStream(await self.listener.accept())

    async def serve(
        self,
        handler: Callable[[ByteStream], Any],
        task_group: anyio.abc.TaskGroup | None = None,
    ) -> None:
        """Accept connections for ever, and start ``handler`` for each of them.

        As with anyio's listeners the handler closes the stream, and an exception that it lets go
        ends the task group. If cancelled, nobody is accepted any more; handlers in a task group
        that was given go on.
        """
        async with contextlib.AsyncExitStack() as stack:
            if task_group is None:
                task_group = await stack.enter_async_context(anyio.create_task_group())
            while True:
                task_group.start_soon(handler, await self.accept())

    async def aclose(self) -> None:
        """Close the listener. Cancelled or not, it is closed afterwards."""
        await self.listener.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """What anyio's ``extra()`` looks into: where it listens."""
        address = getattr(self.listener, "address", None)
        return {} if address is None else _end("local", address)


class Dial(Protocol):
    """What `trionet.dial` looks like to this module."""

    async def __call__(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        options: SocketOptions | MemoryOptions | None = None,
    ) -> trio.abc.Stream:
        """Connect. If cancelled, no connection is left behind."""


@final
class Connectable(anyio.abc.ByteStreamConnectable):
    """`trionet.dial` with its arguments, for what takes anyio's "connectables".

    Nothing is dialled before `connect`, which may be called again and again.
    """

    def __init__(
        self,
        network: str,
        address: str,
        *,
        dial: Dial = dial,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        options: SocketOptions | MemoryOptions | None = None,
    ) -> None:
        """Keep the arguments of `trionet.dial`; ``dial`` is another one, a network's say."""
        self._network = network
        self._address = address
        self._dial = dial
        self._ssl_context = ssl_context
        self._server_hostname = server_hostname
        self._options = options

    async def connect(self) -> ByteStream:
        """Dial, and do the handshake where there is TLS.

        Raises:
          anyio.ConnectionFailed: nothing could be dialled, or the handshake failed; its cause
            says why.

        If cancelled, no connection is left behind.
        """
        try:
            stream = await self._dial(
                self._network,
                self._address,
                ssl_context=self._ssl_context,
                server_hostname=self._server_hostname,
                options=self._options,
            )
            try:
                if isinstance(stream, TLSStream):
                    await stream.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
        except (OSError, trio.BrokenResourceError) as exc:
            raise anyio.ConnectionFailed(
                f"cannot connect to {self._network} {self._address}: {exc}"
            ) from exc
        return ByteStream(stream)
