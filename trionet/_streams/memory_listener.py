"""Names in memory: a queue of connections each, and who waits at which end of it."""

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
from ..abc import Listener
from .line import RETRIES_SYN, RTO_FIRST_SYN, Line
from .memory import End, MemoryStream, connect, connect_over
from .timeline import current_timeline, random_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._options import Link, MemoryOptions

__all__ = ("BACKLOG", "MemoryListener", "refused")

# Dials that wait to be accepted before the next dialler has to wait itself; listen(2)'s usual 128.
BACKLOG: Final = 128


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
        stream, far = connect(near, self._address, self._buffer_size)
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
        stream, far = connect_over(lines, near, self._address, self._buffer_size)
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
