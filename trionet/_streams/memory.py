"""Streams and listeners in memory: two pipes a connection, a queue a name."""

from __future__ import annotations

import errno
import random
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, final

import outcome
import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from .._address import Address, printable
from ..abc import Listener, Stream
from .line import RETRIES_SYN, RTO_FIRST_SYN, Line
from .pipe import Pipe
from .segment import Endpoint
from .timeline import current_timeline, random_root
from .wire import End as WireEnd
from .wire import join

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from .._options import Link, MemoryOptions

__all__ = ("BACKLOG", "MemoryListener", "MemoryStream", "memory_stream_pair", "refused")

# Dials that wait to be accepted before the next dialler has to wait itself; listen(2)'s usual 128.
BACKLOG: Final = 128


# One end: its address, or for an unnamed one the listener's and the number of the dial, from which
# the address is made when somebody asks.
End = Address | tuple[Address, int]


@final
class MemoryStream(Stream, trio.abc.HalfCloseableStream):
    """A stream between two tasks of one process; made by `trionet.dial` and a `MemoryListener`.

    With a buffer (``memb``) ``send_all`` returns once all that is unread fits into it; without one
    (``memu``) once the peer has received everything. ``bytes`` objects are handed over as they
    are; other buffers are copied first, so that they may be reused once ``send_all`` returns.

    Over a link (`MemoryOptions`) bytes take their time, and ``send_all`` returns once the near
    end's buffer holds the rest of them.

    If ``send_all`` is cancelled, the stream stays usable, and the peer gets a first part of the
    data, maybe all or none of it: what it has received by then and what fits the buffer.
    """

    __slots__ = ("_closed", "_incoming", "_local", "_outgoing", "_remote")

    def __init__(self, incoming: Pipe, outgoing: Pipe | WireEnd, local: End, remote: End) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._local = local
        self._remote = remote
        self._closed = False

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        local = self.local_address
        peer = printable(self.remote_address)
        return f"<MemoryStream {local.network} {printable(local)} -> {peer}{state}>"

    @property
    def local_address(self) -> Address:
        """This end: the listener's name, or ``<name>#<n>`` for a dialler that gave none."""
        return _named(self._local)

    @property
    def remote_address(self) -> Address:
        """The other end."""
        return _named(self._remote)

    @property
    def closed(self) -> bool:
        """Whether this end was closed here."""
        return self._closed

    @property
    def bytes_sent(self) -> int:
        """How many bytes were sent: received by the peer, or in the buffer."""
        return self._outgoing.sent

    @property
    def bytes_received(self) -> int:
        """How many bytes ``receive_some`` has returned."""
        return self._incoming.received

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self._outgoing.sending

    # The four that move bytes are plain functions: they return the pipe's own coroutine, so that
    # no second one stands between the caller and the scheduler at every step.

    def send_all(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        """Send ``data``, all of it.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.BrokenResourceError: the peer has closed its end.
          trio.ClosedResourceError: this end was closed, or has sent end of file.

        If cancelled, the peer may get a first part of ``data``; the stream stays usable.
        """
        return self._outgoing.send(data)

    def wait_send_all_might_not_block(self) -> Coroutine[Any, Any, None]:
        """Wait until a byte sent would fit the buffer or find a receiver.

        Raises and leaves behind what `send_all` does, but sends nothing.
        """
        return self._outgoing.wait_room()

    def receive_some(self, max_bytes: int | None = None) -> Coroutine[Any, Any, bytes]:
        """Receive at least one byte and at most ``max_bytes``; ``b""`` is end of file.

        Without ``max_bytes`` a piece comes as it was sent, however big it is, and small ones
        joined up to 64 KiB.

        Raises:
          trio.BusyResourceError: another task is receiving.
          trio.BrokenResourceError: the connection was reset.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was received.
        """
        return self._incoming.receive(max_bytes)

    async def send_eof(self) -> None:
        """Send end of file; what the peer sends can still be received. A second call does nothing.

        Raises:
          trio.BusyResourceError: another task is sending.
          trio.ClosedResourceError: this end was closed.

        If cancelled, nothing was sent.
        """
        await checkpoint_if_cancelled()
        if self._closed:
            raise trio.ClosedResourceError("this stream is closed")
        self._outgoing.end()
        await cancel_shielded_checkpoint()

    async def aclose(self) -> None:
        """Close both directions. What was sent stays readable for the peer; nothing waits for it.

        Cancelled or not, the stream is closed afterwards.
        """
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Close both directions at once; ``aclose`` is this and a checkpoint."""
        self._closed = True
        self._outgoing.close_send()
        self._incoming.close_receive()

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received."""
        pipe = self._incoming
        return pipe.unread > 0 or pipe.send_closed or pipe.broken

    def unread_size(self) -> int:
        """How many bytes wait to be received, those of a sender that waits included."""
        return self._incoming.unread

    def peer_closed(self) -> bool:
        """Whether the peer has closed its end or sent end of file, or the connection was reset."""
        return self._incoming.send_closed or self._outgoing.receive_closed or self._incoming.broken

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self._incoming.interrupt()

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._incoming.interrupted = False

    def reset(self) -> None:
        """Cut the connection, as a RST does: operations on both ends raise Broken."""
        self._closed = True
        self._incoming.cut()
        self._outgoing.cut()


def _named(end: End) -> Address:
    if isinstance(end, Address):
        return end
    listener, number = end
    return Address(listener.network, name=f"{listener.name}#{number}")


def _connect(near: End, far: End, buffer_size: int) -> tuple[MemoryStream, MemoryStream]:
    out, back = Pipe(buffer_size), Pipe(buffer_size)
    return MemoryStream(back, out, near, far), MemoryStream(out, back, far, near)


def _connect_over(
    lines: tuple[Line, Line], near: End, far: End, buffer_size: int
) -> tuple[MemoryStream, MemoryStream]:
    ends = [
        WireEnd(
            line,
            Endpoint(here, "", 0),
            Endpoint(there, "", 0),
            protocol="memory",
            send_size=buffer_size,
            receive_size=buffer_size,
        )
        for line, here, there in (
            (lines[0], "dialler", "listener"),
            (lines[1], "listener", "dialler"),
        )
    ]
    join(*ends)
    one, other = ends
    return MemoryStream(one.inbox, one, near, far), MemoryStream(other.inbox, other, far, near)


def memory_stream_pair(buffer_size: int = 0) -> tuple[MemoryStream, MemoryStream]:
    """Make two connected streams that need no name and no listener.

    Args:
      buffer_size: bytes each direction holds; 0, the default, is a rendezvous, as ``memu``.

    Raises:
      ValueError: ``buffer_size`` is negative.
      TypeError: it is not an int.
    """
    if isinstance(buffer_size, bool) or not isinstance(buffer_size, int):
        raise TypeError(f"buffer_size must be an int, got {buffer_size!r}")
    if buffer_size < 0:
        raise ValueError(f"buffer_size must not be negative, got {buffer_size}")
    network = "memb" if buffer_size else "memu"
    return _connect(Address(network, name="pair#1"), Address(network, name="pair#2"), buffer_size)


@final
class MemoryListener(Listener[MemoryStream]):
    """Accepts what dials its name; made by `trionet.listen`.

    State: the queue of connections that nobody accepted yet, at most ``backlog``; behind a full
    one the diallers that wait, in order; and the one task that waits to accept. A dialler waits
    only while the queue is full, an acceptor only while it is empty, so never both.
    """

    __slots__ = (
        "_acceptor",
        "_address",
        "_backlog",
        "_buffer_size",
        "_closed",
        "_dials",
        "_forget",
        "_lines",
        "_queue",
        "_takes",
        "_waiting",
    )

    def __init__(
        self,
        address: Address,
        options: MemoryOptions | None,
        backlog: int,
        forget: Callable[[], object],
    ) -> None:
        self._address = address
        self._buffer_size = 0 if options is None else options.buffer_size
        # There and back, shared by all connections; None where nothing lies between.
        self._lines: tuple[Line, Line] | None = None
        if options is not None and options.link is not None and not options.link.null:
            self._lines = _lines_to(address, options.link)
        self._backlog = backlog
        self._forget = forget
        self._closed = False
        self._dials = 0
        self._queue: deque[MemoryStream] = deque()
        self._waiting: OrderedDict[trio.lowlevel.Task, MemoryStream] = OrderedDict()
        self._acceptor: trio.lowlevel.Task | None = None
        # Whether the acceptor takes a connection with it, or only wants to know of one.
        self._takes = False

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<MemoryListener {self._address.network} {printable(self._address)}{state}>"

    @property
    def address(self) -> Address:
        """The name this listener goes by."""
        return self._address

    async def accept(self) -> MemoryStream:
        """Take the oldest connection, or wait for one.

        Raises:
          trio.BusyResourceError: another task is accepting.
          trio.ClosedResourceError: this listener is, or gets, closed.

        If cancelled, no connection is lost.
        """
        self._check()
        if self._queue:
            await checkpoint_if_cancelled()
            stream = self.accept_nowait()
            await cancel_shielded_checkpoint()
            return stream
        taken: MemoryStream = await self._park(takes=True)
        return taken

    def accept_nowait(self) -> MemoryStream:
        """Take the oldest connection.

        Raises:
          trio.WouldBlock: there is none.
          trio.ClosedResourceError: this listener is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError("this listener is closed")
        if not self._queue:
            raise trio.WouldBlock
        stream = self._queue.popleft()
        if self._waiting:
            task, waiting = self._waiting.popitem(last=False)
            self._queue.append(waiting)
            reschedule(task)
        return stream

    async def wait_acceptable(self) -> None:
        """Wait until `accept_nowait` finds a connection, unless another task takes it first.

        Raises:
          trio.BusyResourceError: another task is in here or in `accept`.
          trio.ClosedResourceError: this listener is, or gets, closed.

        If cancelled, nothing was taken.
        """
        self._check()
        if self._queue:
            await checkpoint()
        else:
            await self._park(takes=False)

    async def aclose(self) -> None:
        """Close, then let others run. Cancelled or not, the listener is closed afterwards."""
        self.close()
        await checkpoint()

    def close(self) -> None:
        """Give the name back; refuse the diallers that wait, reset the queued connections.

        Connections that were accepted live on.
        """
        if self._closed:
            return
        self._closed = True
        self._forget()
        waiting, self._waiting = self._waiting, OrderedDict()
        for task in waiting:
            reschedule(task, outcome.Error(refused(self._address)))
        queue, self._queue = self._queue, deque()
        for stream in queue:
            stream.reset()
        if self._acceptor is not None:
            task, self._acceptor = self._acceptor, None
            closed = trio.ClosedResourceError("this listener was closed by another task")
            reschedule(task, outcome.Error(closed))

    async def dial(self, local: Address | None) -> MemoryStream:
        """Connect to this listener: at once if the backlog has room, else when it has.

        If cancelled, nobody will accept anything of it; over a link, what was accepted meanwhile
        is reset.
        """
        await checkpoint_if_cancelled()
        self._dials += 1
        near = (self._address, self._dials) if local is None else local
        if self._lines is not None:
            return await self._dial_over(self._lines, near)
        stream, far = _connect(near, self._address, self._buffer_size)
        if len(self._queue) >= self._backlog:
            await self._wait_in_line(far)
        else:
            self._hand_on(far)
            await cancel_shielded_checkpoint()
        return stream

    async def _dial_over(self, lines: tuple[Line, Line], near: End) -> MemoryStream:
        there, back = lines
        await self._cross(there)
        if self._closed:
            await self._cross(back)
            raise refused(self._address)
        stream, far = _connect_over(lines, near, self._address, self._buffer_size)
        try:
            if len(self._queue) >= self._backlog:
                await self._wait_in_line(far)
            else:
                self._hand_on(far)
            await self._cross(back)
        except BaseException:
            stream.reset()
            raise
        return stream

    async def _cross(self, line: Line) -> None:
        delay = line.crossing()
        if delay is None:
            await trio.sleep(RTO_FIRST_SYN * (2 ** (RETRIES_SYN + 1) - 1))
            raise TimeoutError(errno.ETIMEDOUT, f"nothing comes through to {self._address}")
        await trio.sleep(delay)

    async def _wait_in_line(self, far: MemoryStream) -> None:
        task = current_task()
        self._waiting[task] = far

        def abort(_: object) -> Abort:
            del self._waiting[task]
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def _hand_on(self, far: MemoryStream) -> None:
        """Queue a connection, or give it to the task that waits for one."""
        acceptor = self._acceptor
        if acceptor is None:
            self._queue.append(far)
            return
        self._acceptor = None
        if self._takes:
            reschedule(acceptor, outcome.Value(far))
        else:
            self._queue.append(far)
            reschedule(acceptor)

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this listener is closed")
        if self._acceptor is not None:
            raise trio.BusyResourceError("another task is accepting on this listener")

    async def _park(self, *, takes: bool) -> Any:
        self._acceptor = current_task()
        self._takes = takes

        def abort(_: object) -> Abort:
            self._acceptor = None
            return Abort.SUCCEEDED

        return await wait_task_rescheduled(abort)


def _lines_to(address: Address, link: Link) -> tuple[Line, Line]:
    timeline = current_timeline()
    # Streams of random numbers by name: another link does not shift this one's.
    name = f"{random_root.get()}/memory/{address.name}"
    return (
        Line(timeline, link, random.Random(f"{name}/there")),  # noqa: S311 - not a secret
        Line(timeline, link, random.Random(f"{name}/back")),  # noqa: S311
    )


def refused(address: Address) -> ConnectionRefusedError:
    """Return what a dialler of ``address`` gets when nobody listens there."""
    return ConnectionRefusedError(
        errno.ECONNREFUSED, f"nobody listens on {address.network} {str(address)!r}"
    )
