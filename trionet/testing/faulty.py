"""A link on a real stream: what a proxy with toxics does, inside the process.

How this works. A `FaultyStream` is one end of a connection over two lines, as a memory stream with
a link is. At its other end a system task per stream moves bytes between that connection and the
stream below, in both directions, as a proxy would: so all that a link does, and what TCP makes of
it, is the same here as there, in whatever time trio's clock tells.

The task ends, and closes the stream below, when this end was closed and all that was sent has gone
through, or when the connection is reset from either side. It has no nursery, since a stream has
none; a run that ends takes it along. Nothing may leave it: whatever the stream below raises is what
broke the connection.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
from typing import TYPE_CHECKING, Final, final

import trio

from .._address import Address
from .._errors import ReceiveInterrupted
from .._options import Link
from .._streams.foreign import ForeignStream, adopt
from .._streams.line import Line
from .._streams.memory import MemoryStream
from .._streams.segment import Endpoint
from .._streams.timeline import current_timeline, random_root
from .._streams.wire import End, join
from ..abc import Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any

__all__ = ("FaultyStream", "HalfCloseableFaultyStream")

# More than a round trip's worth at 10 Mbit/s and 100 ms, and still soon full where nobody reads.
BUFFER_SIZE: Final = 262144

# SO_LINGER: on, zero seconds. Closing then resets the connection (socket(7)).
ABORT: Final = struct.pack("ii", 1, 0)

# Not asked for: a stream over a link has its transport's.
NOWHERE: Final = Address("memb", name="link")
NO_ENDPOINT: Final = Endpoint("", "", 0)

_numbers: Final[trio.lowlevel.RunVar[itertools.count[int]]] = trio.lowlevel.RunVar(
    "trionet.faulty_streams"
)


class FaultyStream(Stream):
    """Any `trio.abc.Stream`, as it would be at the far end of a link.

    What is sent here reaches the stream below, and what that receives arrives here, as late, as
    slowly and in such pieces as the link has it. ``send_all`` returns once the bytes are on their
    way: when the stream below turns out to be broken, later operations raise Broken, with that as
    the cause.

    It reads ahead: the stream below is this one's alone from now on, and is closed with it.
    Whatever is still on its way when it is closed is delivered first, as a kernel does; and as
    there, bytes that come from the peer after the close reset the connection. With the run all
    ends, delivered or not.

    If ``send_all`` is cancelled, the stream stays usable, and the peer gets a first part of the
    data; `bytes_sent` tells how much.

    Attributes:
      transport: the stream below.
    """

    __slots__ = ("_lines", "_near", "_relay", "transport")

    def __init__(
        self, stream: trio.abc.Stream, link: Link, *, buffer_size: int = BUFFER_SIZE
    ) -> None:
        """Put a link over ``stream``, within a run of trio.

        Args:
          stream: what to send to and receive from.
          link: how what lies between behaves, each way.
          buffer_size: bytes that either end of the link holds, each way, before who sends waits;
            that is also the most that is under way at a time, as a TCP window is.

        Raises:
          TypeError, ValueError: an argument is wrong.
          RuntimeError: there is no run.
        """
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"{type(self).__name__} needs a trio.abc.Stream, got {stream!r}")
        _check_link(link)
        if isinstance(buffer_size, bool) or not isinstance(buffer_size, int):
            raise TypeError(f"buffer_size must be an int, got {buffer_size!r}")
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, got {buffer_size}")
        timeline = current_timeline()
        # A stream of random numbers of its own: another link does not shift this one's.
        name = f"{random_root.get()}/faulty/{next(_this_runs_numbers())}"
        self._lines = [
            Line(timeline, link, random.Random(f"{name}/{way}"))  # noqa: S311 - not a secret
            for way in ("there", "back")
        ]
        near, far = (_End(line, buffer_size) for line in self._lines)
        join(near, far)
        self.transport: Stream = adopt(stream)
        self._near = MemoryStream(near.inbox, near, NOWHERE, NOWHERE)
        self._relay = _Relay(self.transport, near, far)
        trio.lowlevel.spawn_system_task(self._relay.run, name=f"link over {stream!r}")

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<{type(self).__name__} over {self.transport!r}{state}>"

    @property
    def link(self) -> Link:
        """What lies between; a new one holds for what is sent from then on."""
        return self._lines[0].link

    @link.setter
    def link(self, link: Link) -> None:
        _check_link(link)
        for line in self._lines:
            line.link = link

    @property
    def local_address(self) -> Address:
        """The transport's."""
        return self.transport.local_address

    @property
    def remote_address(self) -> Address:
        """The transport's."""
        return self.transport.remote_address

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self._near.closed

    @property
    def bytes_sent(self) -> int:
        """How many bytes were taken to be sent."""
        return self._near.bytes_sent

    @property
    def bytes_received(self) -> int:
        """How many bytes `receive_some` has returned."""
        return self._near.bytes_received

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self._near.sending

    def send_all(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        """Send ``data``; return once the link has taken all of it.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the connection is gone; what the transport raised is the cause.
          trio.ClosedResourceError: this end was closed, or has sent end of file.

        If cancelled, the peer gets a first part of ``data``; `bytes_sent` tells how much.
        """
        return self._near.send_all(data)

    def wait_send_all_might_not_block(self) -> Coroutine[Any, Any, None]:
        """Wait until the link takes bytes again.

        Raises and leaves behind what `send_all` does, but sends nothing.
        """
        return self._near.wait_send_all_might_not_block()

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes]:
        """Receive at least one byte and at most ``max_bytes``; ``b""`` is end of file.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the connection is gone; what the transport raised is the cause.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was received.
        """
        return self._near.receive_some(max_bytes)

    async def aclose(self) -> None:
        """Close this end. Nothing waits for what is on its way, which is delivered all the same.

        Cancelled or not, the stream is closed afterwards.
        """
        self._near.close()
        self._relay.near_closed()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """Cut the connection: operations here raise Broken, and the peer's soon, too.

        A socket below is reset; another trionet stream of memory as well; any other is closed
        forcefully.
        """
        self._near.reset()

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error have arrived."""
        return self._near.is_readable()

    def unread_size(self) -> int:
        """How many bytes have arrived and were not received."""
        return self._near.unread_size()

    def peer_closed(self) -> bool:
        """Whether the peer's end of file or a reset has arrived."""
        return self._near.peer_closed()

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self._near.interrupt_receive()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._near.resume_receive()


@final
class HalfCloseableFaultyStream(FaultyStream, trio.abc.HalfCloseableStream):
    """A `FaultyStream` over one that can end one direction."""

    __slots__ = ()

    def __init__(
        self, stream: trio.abc.HalfCloseableStream, link: Link, *, buffer_size: int = BUFFER_SIZE
    ) -> None:
        """Put a link over ``stream``, as `FaultyStream` does.

        Raises:
          TypeError: ``stream`` cannot end one direction, or as `FaultyStream`.
        """
        if not isinstance(stream, trio.abc.HalfCloseableStream):
            raise TypeError(
                f"HalfCloseableFaultyStream needs a trio.abc.HalfCloseableStream, got {stream!r}"
            )
        super().__init__(stream, link, buffer_size=buffer_size)

    async def send_eof(self) -> None:
        """Send end of file; what the peer sends can still be received. A second call does nothing.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was sent.
        """
        await self._near.send_eof()


@final
class _End(End):
    """One end of the link.

    Attributes:
      ended: nothing more is to be relayed.
      origin: what the transport raised, if that is why.
    """

    __slots__ = ("ended", "origin")

    def __init__(self, line: Line, buffer_size: int) -> None:
        super().__init__(
            line,
            NO_ENDPOINT,
            NO_ENDPOINT,
            protocol="memory",
            send_size=buffer_size,
            receive_size=buffer_size,
        )
        self.ended = trio.Event()
        self.origin: BaseException | None = None

    def over(self) -> None:
        # Closed both ways, it may still have bytes that were not handed on.
        if self.broken:
            self.ended.set()

    def broken_error(self) -> trio.BrokenResourceError:
        error = super().broken_error()
        if self.origin is not None:
            error.__cause__ = self.origin
        return error


@final
class _Relay:
    """What moves bytes between the far end of the link and the transport."""

    def __init__(self, transport: Stream, near: _End, far: _End) -> None:
        self._transport = transport
        self._near = near
        self._far = far
        self._stream = MemoryStream(far.inbox, far, NOWHERE, NOWHERE)
        self._closing = trio.Event()

    def near_closed(self) -> None:
        """Hear that the near end was closed: the transport is closed once all has gone out."""
        self._closing.set()
        if self._near.broken:
            # The far end may never hear of it: a reset that the link lost comes only once.
            self._far.ended.set()

    async def run(self) -> None:
        """Relay until there is nothing left to do, and close the transport."""
        done = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guarded, self._there)
                nursery.start_soon(self._guarded, self._back)
                nursery.start_soon(self._watch, nursery.cancel_scope)
            done = not (self._far.broken or self._near.broken)
        finally:
            await self._guarded(self._transport.aclose if done else self._abort)

    async def _there(self) -> None:
        """Hand on what was sent here; then close, if that is what was last."""
        async for data in self._stream:
            await self._transport.send_all(data)
        if isinstance(self._transport, trio.abc.HalfCloseableStream):
            await self._transport.send_eof()
        await self._closing.wait()
        self._far.ended.set()

    async def _back(self) -> None:
        """Send on to here what the transport receives."""
        while data := await self._transport.receive_some():
            try:
                await self._stream.send_all(data)
            except trio.BrokenResourceError:
                # Bytes for an end that was closed: a kernel resets the connection (RFC 2525
                # section 2.17), and a peer that only sends would never hear of the close else.
                self._stream.reset()
        await self._stream.send_eof()

    async def _watch(self, scope: trio.CancelScope) -> None:
        await self._far.ended.wait()
        scope.cancel()

    async def _guarded(self, operation: Callable[[], Awaitable[object]]) -> None:
        """Let whatever the transport raises be what breaks the connection."""
        try:
            await operation()
        except (Exception, ReceiveInterrupted) as exc:  # noqa: BLE001 - and what is not ours
            if not self._far.broken:
                self._near.origin = exc
                self._stream.reset()

    async def _abort(self) -> None:
        transport = self._transport
        reset = getattr(transport, "reset", None)
        below = transport.stream if isinstance(transport, ForeignStream) else transport
        sock = getattr(below, "socket", None)
        if reset is not None:
            reset()
        elif sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        await trio.aclose_forcefully(transport)


def _check_link(link: object) -> None:
    if not isinstance(link, Link):
        raise TypeError(f"link must be a Link, got {link!r}")


def _this_runs_numbers() -> itertools.count[int]:
    try:
        return _numbers.get()
    except LookupError:
        numbers = itertools.count(1)
        _numbers.set(numbers)
        return numbers
