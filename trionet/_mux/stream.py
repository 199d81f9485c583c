"""One stream of a session, as trio knows streams.

Over 400 lines, since it is one class with all that `trionet.abc.Stream` asks of it, documented;
its state is in `trionet.yamux.Stream`, and here is who waits for what of it.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from operator import index
from typing import TYPE_CHECKING, Final, final

import outcome
import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from .._errors import ReceiveInterrupted, StreamResetError
from ..abc import Stream
from ..yamux import State
from ..yamux.config import check_weight

if TYPE_CHECKING:
    from .. import yamux
    from .._address import Address
    from .driver import Driver

__all__ = ("MuxStream",)

# Up to this a send is copied and returns at once, while less than OUTBOX_SIZE waits on its stream.
# A larger one lends its buffer and returns when the last of it is on its way.
COPY_SIZE: Final = 4096
OUTBOX_SIZE: Final = 64 * 1024


@final
class MuxStream(Stream, trio.abc.HalfCloseableStream):
    """A stream of a `MuxSession`; made by its ``open_stream`` and its listener.

    ``send_all`` returns once the data is on its way, or, of small pieces, up to 64 KiB are kept to
    be sent; it waits while the peer gives no credit. Cancelled, it leaves the stream usable.
    """

    __slots__ = (
        "_driver",
        "_interrupted",
        "_limit",
        "_receive_busy",
        "_received",
        "_receiver",
        "_record",
        "_send_busy",
        "_sender",
        "_wants_room",
    )

    def __init__(self, driver: Driver, record: yamux.Stream) -> None:
        self._driver = driver
        self._record = record
        self._send_busy = False
        self._receive_busy = False
        self._interrupted = False
        self._wants_room = False
        self._received = 0
        # The tasks parked here; `record.reader` and `record.writer` are this object meanwhile.
        self._sender: trio.lowlevel.Task | None = None
        self._receiver: trio.lowlevel.Task | None = None
        self._limit: int | None = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else self._record.state.name.lower().replace("_", " ")
        return f"<MuxStream {self.local_address} -> {self._driver.remote_address} {state}>"

    def __del__(self) -> None:
        driver, record = self._driver, self._record
        if record.closed or driver.core.streams.get(record.id) is not record:
            return
        with suppress(trio.RunFinishedError):
            # Not here: the garbage collector runs anywhere, in the middle of the protocol too.
            driver.token.run_sync_soon(driver.abandon, record)
        warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=1)

    @property
    def stream_id(self) -> int:
        """The number that both ends know this stream by; odd ones were opened by the client."""
        return self._record.id

    @property
    def weight(self) -> int:
        """This stream's share of what the session sends, among those that have data; settable."""
        return self._record.weight

    @weight.setter
    def weight(self, weight: int) -> None:
        self._record.weight = check_weight(weight)

    @property
    def local_address(self) -> Address:
        """The carrier's own end, named with the stream's id: ``127.0.0.1:4000#3``."""
        return self._driver.numbered(self._driver.local_address, self._record.id)

    @property
    def remote_address(self) -> Address:
        """The carrier's other end, named with the stream's id."""
        return self._driver.numbered(self._driver.remote_address, self._record.id)

    @property
    def closed(self) -> bool:
        """Whether this stream, or its session, was closed here."""
        return self._record.closed or self._driver.closed

    @property
    def bytes_sent(self) -> int:
        """How many bytes are on their way or kept to be sent, also after a cancelled send."""
        return self._record.sent + self._record.outbox_size

    @property
    def bytes_received(self) -> int:
        """How many bytes ``receive_some`` has returned."""
        return self._received

    # Sending

    @property
    def sending(self) -> bool:
        """Whether a `send_all` is under way."""
        return self._send_busy and not self._wants_room

    @enable_ki_protection
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, all of it. The buffer may be reused once this returns or raises.

        Raises:
          trio.BusyResourceError: another task is sending.
          StreamResetError: the stream was reset.
          SessionBrokenError: the session is gone.
          trio.ClosedResourceError: this end, or the session, was closed here, or end of file sent.

        If cancelled, the peer gets a first part of ``data``, as much as `bytes_sent` has grown.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._send_busy = True
        try:
            await checkpoint_if_cancelled()
            driver, record = self._driver, self._record
            core = driver.core
            if not record.state.sends or core.failure is not None:
                raise self._send_error()
            size = len(data) if type(data) is bytes else memoryview(data).nbytes
            outbox = record.outbox
            if size <= COPY_SIZE and (outbox is None or len(outbox) < OUTBOX_SIZE or not size):
                if size:
                    core.put(record, data)
                    if driver.writer is not None:
                        driver.kick()
                await cancel_shielded_checkpoint()
                return
            with _flat(data) as view:
                core.lend(record, view)
                driver.kick()
                self._sender = current_task()
                record.writer = self
                await wait_task_rescheduled(self._abort_send)
        finally:
            self._send_busy = False

    @enable_ki_protection
    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """See `trionet.abc.Stream.send_nowait`; of a stream's data 64 KiB are kept to be sent."""
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        if not self._may_send():
            raise self._send_error()
        record = self._record
        with _flat(data) as view:
            size = min(len(view), max(0, OUTBOX_SIZE - record.outbox_size))
            if size:
                self._driver.core.put(record, view[:size])
                self._driver.kick()
        return size

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is credit, and room for a small piece.

        Raises and leaves behind what `send_all` does, but sends nothing.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        if not self._may_send():
            raise self._send_error()
        if self._has_room():
            await checkpoint()
            return
        self._send_busy = self._wants_room = True
        try:
            self._sender = current_task()
            self._record.writer = self
            await wait_task_rescheduled(self._abort_send)
        finally:
            self._send_busy = self._wants_room = False

    @enable_ki_protection
    async def send_eof(self) -> None:
        """Send end of file, behind all data. A second call does nothing.

        Raises:
          trio.BusyResourceError: another task is sending.
          StreamResetError: the stream was reset.
          SessionBrokenError: the session is gone.
          trio.ClosedResourceError: this end, or the session, was closed here.

        If cancelled, nothing was sent.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        await checkpoint_if_cancelled()
        record = self._record
        if self.closed or record.state.cut_short or self._driver.core.failure is not None:
            raise self._send_error()
        self._driver.core.finish(record)
        self._driver.kick()
        await cancel_shielded_checkpoint()

    # Receiving

    @enable_ki_protection
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte and at most ``max_bytes``; ``b""`` is end of file.

        What arrived before the session broke, or before the peer reset a stream it had ended, is
        still received. Without an end of file of the peer's there is none here: a carrier that
        ends too early is an error.

        Raises:
          trio.BusyResourceError: another task is receiving.
          StreamResetError: the stream was reset.
          SessionBrokenError: the session is gone.
          trio.ClosedResourceError: this end, or the session, was closed here.

        If cancelled, nothing was received.
        """
        if max_bytes is not None:
            max_bytes = index(max_bytes)
            if max_bytes < 1:
                raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        if self._receive_busy:
            raise trio.BusyResourceError("another task is receiving on this stream")
        record = self._record
        self._receive_busy = True
        try:
            if record.inbox is None and record.state.receives and not self._ended():
                if not self._interrupted:
                    self._limit = max_bytes
                    self._receiver = current_task()
                    record.reader = self
                    received: bytes = await wait_task_rescheduled(self._abort_receive)
                    return received
                # A checkpoint as every way out is: whoever tries again and again lets others run.
                await checkpoint()
                if not self.is_readable():
                    raise ReceiveInterrupted
            await checkpoint_if_cancelled()
            data = self._take(max_bytes)
            driver = self._driver
            if driver.core.news:
                driver.wake()
            elif driver.writer is not None:
                driver.kick()
            await cancel_shielded_checkpoint()
            return data
        finally:
            self._receive_busy = False

    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received."""
        return self._record.inbox is not None or not self._record.state.receives or self._ended()

    def unread_size(self) -> int:
        """How many bytes wait to be received."""
        return self._record.unread

    def peer_closed(self) -> bool:
        """Whether the peer has ended its direction or reset the stream, or the session is gone."""
        return not self._record.state.receives or self._driver.core.failure is not None

    def interrupt_receive(self) -> None:
        """See `trionet.abc.Stream.interrupt_receive`."""
        self._interrupted = True
        if self._receiver is not None:
            self._wake_receiver(outcome.Error(ReceiveInterrupted()))

    def resume_receive(self) -> None:
        """See `trionet.abc.Stream.resume_receive`."""
        self._interrupted = False

    # Closing

    @enable_ki_protection
    async def aclose(self) -> None:
        """Send what is kept to be sent, then end of file; receive nothing more.

        It waits for none of that: the session sees to it, and for a while drops what the peer
        still sends, so that the peer is not reset before it has read everything.

        Cancelled or not, the stream is closed afterwards.
        """
        self.close()
        await checkpoint()

    @enable_ki_protection
    def close(self) -> None:
        """Close without a checkpoint; ``aclose`` is this and one."""
        self._driver.core.close(self._record)
        self._after_close()

    @enable_ki_protection
    def reset(self) -> None:
        """Give the stream up at once, as a RST does: what is kept to be sent is lost."""
        self._driver.core.reset(self._record)
        self._after_close()

    # Called by the driver

    def wake_reader(self) -> None:
        """Look whether the receiver can go on."""
        if self._receiver is None:
            return
        record = self._record
        if record.inbox is not None and not record.closed:
            data = self._driver.core.read(record, self._limit)
            self._received += len(data)
            self._wake_receiver(outcome.Value(data))
        elif self.is_readable():
            self._wake_receiver(outcome.capture(self._take, self._limit))

    def wake_writer(self) -> None:
        """Look whether the sender can go on."""
        if self._sender is None:
            return
        if self._record.lent is None and self._may_send():
            if self._wants_room and not self._has_room():
                return
            self._wake_sender(outcome.Value(None))
        elif not self._may_send():
            # A reset may come when the last byte was on its way already; it is lost all the same.
            self._driver.core.withdraw(self._record)
            self._wake_sender(outcome.Error(self._send_error()))

    # Inside

    def _ended(self) -> bool:
        """Whether nothing arrives any more, whatever the peer does."""
        return self._record.closed or self._driver.core.failure is not None

    def _may_send(self) -> bool:
        return self._record.state.sends and self._driver.core.failure is None

    def _has_room(self) -> bool:
        record = self._record
        return record.outgoing.credit > record.outbox_size and record.outbox_size < OUTBOX_SIZE

    def _send_error(self) -> Exception:
        record = self._record
        if self.closed:
            return trio.ClosedResourceError("this stream is closed")
        if record.state.cut_short:
            return StreamResetError(f"stream {record.id} was reset: {record.why}")
        if not record.state.sends:
            return trio.ClosedResourceError("this stream is closed for sending")
        return self._driver.ending()

    def _take(self, limit: int | None) -> bytes:
        """Return what there is to receive, bytes, end of file or an error raised."""
        record = self._record
        if self.closed:
            raise trio.ClosedResourceError("this stream is closed")
        if record.inbox is not None:
            data = self._driver.core.read(record, limit)
            self._received += len(data)
            return data
        if not record.state.receives:
            if record.state is State.RESET:
                raise StreamResetError(f"stream {record.id} was reset: {record.why}")
            return b""
        raise self._driver.ending()

    def _after_close(self) -> None:
        self.wake_reader()
        self.wake_writer()
        self._driver.wake()

    def _abort_send(self, _: object) -> Abort:
        self._driver.core.withdraw(self._record)
        self._sender = self._record.writer = None
        return Abort.SUCCEEDED

    def _abort_receive(self, _: object) -> Abort:
        self._receiver = self._record.reader = None
        return Abort.SUCCEEDED

    def _wake_sender(self, result: outcome.Outcome[None]) -> None:
        assert self._sender is not None
        task, self._sender = self._sender, None
        self._record.writer = None
        reschedule(task, result)

    def _wake_receiver(self, result: outcome.Outcome[bytes]) -> None:
        assert self._receiver is not None
        task, self._receiver = self._receiver, None
        self._record.reader = None
        reschedule(task, result)


def _flat(data: bytes | bytearray | memoryview) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.c_contiguous else memoryview(bytes(view))
