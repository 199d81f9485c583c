"""anyio and trionet: a stream or a listener of either, used as the other's.

Needs the extra ``trionet[anyio]``, and anyio running on trio. `ByteStream`, `Listener` and
`Connectable` make anyio's of trionet's; `from_anyio` and `open_listener` lead back.
"""

from __future__ import annotations

import contextlib
from operator import index
from typing import TYPE_CHECKING, Any, Final, final

import anyio
import anyio.abc
import trio
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSStream
from trio.lowlevel import checkpoint

from .. import abc
from .._errors import Ungrouped
from .._streams.foreign import adopt
from ._to_anyio import RECEIVE_SIZE, ByteStream, Connectable, Dial, Listener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ("ByteStream", "Connectable", "Dial", "Listener", "from_anyio", "open_listener")

# Accepted by anyio, and not yet by us; what `trionet.listen` has as its backlog.
BACKLOG: Final = 128

# Seconds for closing a listener, which in anyio is asynchronous and need not wait for anything.
CLOSE_TIMEOUT: Final = 1.0


@contextlib.contextmanager
def _trio_exceptions() -> Iterator[None]:
    """Raise trio's exception of the same name where anyio's is raised."""
    try:
        yield
    except anyio.ClosedResourceError as exc:
        raise trio.ClosedResourceError(str(exc)) from exc
    except anyio.BrokenResourceError as exc:
        raise trio.BrokenResourceError(str(exc)) from exc
    except anyio.BusyResourceError as exc:
        raise trio.BusyResourceError(str(exc)) from exc


class _Inside(trio.abc.Stream):
    """An anyio stream as a trio stream, and nothing more; `adopt` adds what trionet's have."""

    def __init__(self, stream: anyio.abc.AnyByteStream) -> None:
        self._stream = stream
        self._rest = b""
        self._ended = False
        self._closed = False
        self._sending = False
        self._receiving = False
        raw = stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610 - anyio's
        # Looked for by `adopt`, which asks it for addresses and whether it is readable.
        self.socket = None if raw is None else trio.socket.from_stdlib_socket(raw)

    def __repr__(self) -> str:
        return f"<anyio {self._stream!r}>"

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._check(self._sending, self._ended)
        if not data:
            await checkpoint()
            return
        self._sending = True
        try:
            with _trio_exceptions():
                await self._stream.send(bytes(data))
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        # anyio has no such call; it might not.
        self._check(self._sending, self._ended)
        self._sending = True
        try:
            await checkpoint()
            self._check(False)
        finally:
            self._sending = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        most = RECEIVE_SIZE if max_bytes is None else index(max_bytes)
        if most < 1:
            raise ValueError(f"max_bytes must be at least 1, got {most}")
        self._check(self._receiving)
        self._receiving = True
        try:
            if self._rest:
                await checkpoint()
                self._check(False)
                data = self._rest
            else:
                with _trio_exceptions():
                    data = await self._receive(most)
            # Streams of objects hand over what was sent, however much that is.
            data, self._rest = data[:most], data[most:]
            return data
        finally:
            self._receiving = False

    async def _receive(self, most: int) -> bytes:
        while True:
            try:
                if isinstance(self._stream, anyio.abc.ByteReceiveStream):
                    data = await self._stream.receive(most)
                else:
                    data = await self._stream.receive()
            except anyio.EndOfStream:
                return b""
            if data:  # b"" may be an object like any other, and is no end here
                return data

    async def send_eof(self) -> None:
        self._check(self._sending)
        # anyio's may raise nothing and wait for nothing.
        await checkpoint()
        self._check(self._sending)
        if not self._ended:
            self._ended = True
            with _trio_exceptions():
                await self._stream.send_eof()

    async def aclose(self) -> None:
        self._closed = True
        self._rest = b""
        await self._stream.aclose()

    def _check(self, busy: bool, ended: bool = False) -> None:
        if busy:
            raise trio.BusyResourceError("another task is already at it on this stream")
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")
        if ended:
            raise trio.ClosedResourceError("this stream has sent end of file")


@final
class _HalfCloseableInside(_Inside, trio.abc.HalfCloseableStream):
    pass


def from_anyio(stream: anyio.abc.AnyByteStream) -> abc.Stream:
    """Return an anyio stream of bytes as a `trionet.abc.Stream`, which owns it from then on.

    A `ByteStream` gives back the stream inside. Any other is wrapped: addresses and readability
    come from its socket if it has one. It can be half closed unless it is anyio's TLS.

    Raises:
      TypeError: ``stream`` is no stream of anyio's that both sends and receives.
    """
    if isinstance(stream, ByteStream):
        return stream.stream
    if not isinstance(stream, anyio.abc.ByteStream | anyio.abc.ObjectStream):
        raise TypeError(f"stream must be an anyio ByteStream or ObjectStream, got {stream!r}")
    whole = isinstance(stream, TLSStream)
    return adopt(_Inside(stream) if whole else _HalfCloseableInside(stream))


@final
class _Served(trio.abc.Listener[abc.Stream]):
    """The near end of `open_listener`."""

    def __init__(self, listener: anyio.abc.Listener[Any]) -> None:
        self._listener = listener
        self._hand_over, self._take = trio.open_memory_channel[abc.Stream](BACKLOG)
        self._serving = trio.CancelScope()
        self._closed = trio.Event()
        self.failure: OSError | None = None
        self.told = False

    def __repr__(self) -> str:
        return f"<anyio {self._listener!r}>"

    async def run(self) -> None:
        try:
            # Listeners of listeners have a task group each, which shows in what it raises.
            with self._serving, Ungrouped(), Ungrouped():
                await self._listener.serve(self._arrived)
        except OSError as exc:
            self.failure = exc
        finally:
            # Only now, since anyio's accept() raises when its listener is closed under it. And
            # shielded, since closing a list of listeners stops at the first if cancelled.
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await self._listener.aclose()
        self._hand_over.close()
        self._closed.set()

    async def _arrived(self, stream: anyio.abc.AnyByteStream) -> None:
        try:
            self._hand_over.send_nowait(from_anyio(stream))
        except (trio.WouldBlock, trio.BrokenResourceError):
            await anyio.aclose_forcefully(stream)

    async def accept(self) -> abc.Stream:
        try:
            return await self._take.receive()
        except trio.EndOfChannel:
            if self.failure is not None:
                self.told = True
                raise self.failure from None
            raise trio.ClosedResourceError("this listener is closed") from None

    async def aclose(self) -> None:
        self._serving.cancel()
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await self._discard()
        self._take.close()
        await self._closed.wait()

    async def _discard(self) -> None:
        while True:
            try:
                stream = self._take.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                return
            await trio.aclose_forcefully(stream)


@contextlib.asynccontextmanager
async def open_listener(
    listener: anyio.abc.Listener[Any],
) -> AsyncIterator[trio.abc.Listener[abc.Stream]]:
    """Run an anyio listener as a trio one, which `trionet.Server` serves: an ``async with`` block.

    anyio's listeners cannot be asked for one connection, so this accepts what comes. Up to 128
    connections wait to be accepted here; further ones are closed.

    Raises:
      TypeError: ``listener`` is no anyio listener.
      OSError: the listener failed; ``accept`` raises it, else the end of the block.

    The end of the block closes the listener; if cancelled, too.
    """
    if not isinstance(listener, anyio.abc.Listener):
        raise TypeError(f"listener must be an anyio.abc.Listener, got {listener!r}")
    served = _Served(listener)
    with Ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.run)
            try:
                yield served
            finally:
                await served.aclose()
    if served.failure is not None and not served.told:
        raise served.failure
