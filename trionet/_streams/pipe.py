"""One direction of bytes between two tasks, with one number for how much it holds.

How this works. Everything sent and not yet received stands in one queue, the data of a sender
that still waits included: ``send`` appends its bytes and then waits until at most ``capacity``
bytes are left unread. So capacity 0 is a rendezvous (``send`` returns once all of it was read) and
capacity n a bounded buffer, with the same few lines; nothing is copied, and there is never more in
the queue than the capacity and what one sender, who waits, owns anyway.

A sender that gives up takes back what exceeds the capacity, from the end of the queue, where its
own bytes are. A receiver that waits on an empty queue is handed the bytes as the value its task is
rescheduled with; from then on trio cannot cancel that wait any more, so nothing is ever lost.
"""

from __future__ import annotations

from collections import deque
from operator import index
from typing import Final

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

from .._errors import ReceiveInterrupted

__all__ = ("Pipe",)

# Up to this many bytes one receive joins what many small sends left: copying them is cheaper than
# a scheduler pass each. A bigger piece is handed over as the object it is.
JOIN_SIZE: Final = 65536


class Pipe:
    """Bytes from one task to another.

    Attributes:
      capacity: how many unread bytes ``send`` may leave behind.
      unread: how many bytes were sent and not received, a waiting sender's included.
      received: how many bytes were received.
      send_closed: the sending end was closed, or said end of file.
      receive_closed: the receiving end was closed.
      broken: the pipe was cut; both ends raise Broken.
      interrupted: a receive that would wait raises `ReceiveInterrupted` instead.
    """

    __slots__ = (
        "_chunks",
        "_offset",
        "_receive_busy",
        "_receive_limit",
        "_receiver",
        "_send_busy",
        "_sender",
        "_sent",
        "_wants_room",
        "broken",
        "capacity",
        "interrupted",
        "receive_closed",
        "received",
        "send_closed",
        "unread",
    )

    def __init__(self, capacity: int) -> None:
        self.capacity: int = capacity
        self.unread: int = 0
        self.received: int = 0
        self.send_closed: bool = False
        self.receive_closed: bool = False
        self.broken: bool = False
        self.interrupted: bool = False
        # Unread pieces, oldest first; so many bytes of the first were received already.
        self._chunks: deque[bytes] = deque()
        self._offset = 0
        self._sent = 0
        self._send_busy = False
        self._receive_busy = False
        # The task parked on either end. At most one each: the busy flags see to it.
        self._sender: trio.lowlevel.Task | None = None
        self._wants_room = False
        self._receiver: trio.lowlevel.Task | None = None
        self._receive_limit: int | None = None

    @property
    def sent(self) -> int:
        """How many bytes the sender is rid of: received by the peer, or within the capacity."""
        return self._sent - max(0, self.unread - self.capacity)

    @property
    def sending(self) -> bool:
        """Whether a send is under way."""
        return self._send_busy

    # The sending end

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Pass ``data`` on, and return once at most ``capacity`` unread bytes are left.

        If cancelled, the peer may get the first part of ``data``, and nothing after it is lost or
        out of order: what exceeds the capacity is taken back.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        if type(data) is not bytes:
            # memoryview() first: bytes(5) would send five zero bytes.
            data = bytes(memoryview(data))
        self._send_busy = True
        try:
            await checkpoint_if_cancelled()
            if self.send_closed or self.receive_closed or self.broken:
                raise self._send_error()
            if data:
                self._sent += len(data)
                receiver = self._receiver
                if receiver is None:
                    self._chunks.append(data)
                    self.unread += len(data)
                else:
                    # It found nothing to receive, so there is nothing before this.
                    self._receiver = None
                    limit = self._receive_limit
                    if limit is None or len(data) <= limit:
                        self.received += len(data)
                        reschedule(receiver, outcome.Value(data))
                    else:
                        self._chunks.append(data)
                        self.unread += len(data)
                        reschedule(receiver, outcome.Value(self._take(limit)))
                if self.unread > self.capacity:
                    self._sender = current_task()
                    await wait_task_rescheduled(self._abort_send)
                    return
            await cancel_shielded_checkpoint()
        finally:
            self._send_busy = False

    async def wait_room(self) -> None:
        """Wait until a byte sent would be received or fit."""
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self.send_closed or self.broken:
            raise self._send_error()
        if self.unread < self.capacity or self._receiver is not None or self.receive_closed:
            await checkpoint()
            return
        self._send_busy = self._wants_room = True
        try:
            self._sender = current_task()
            await wait_task_rescheduled(self._abort_send)
        finally:
            self._send_busy = self._wants_room = False

    def end(self) -> None:
        """Say end of file: what was sent stays readable, nothing more can be sent.

        Raises:
          trio.BusyResourceError: another task is sending.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self.close_send()

    def close_send(self) -> None:
        """Close the sending end; a task waiting in it gets Closed, and its tail is taken back."""
        if self.send_closed:
            return
        self.send_closed = True
        self._fail_sender(trio.ClosedResourceError("this stream was closed by another task"))
        if self._receiver is not None:
            # It is parked, so nothing is unread.
            self._wake_receiver(outcome.Value(b""))

    # The receiving end

    async def receive(self, max_bytes: int | None = None) -> bytes:
        """Return what is there, at most ``max_bytes``, or wait for it; ``b""`` is end of file.

        If cancelled, nothing was received.
        """
        if max_bytes is not None:
            max_bytes = index(max_bytes)
            if max_bytes < 1:
                raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
        if self._receive_busy:
            raise trio.BusyResourceError("another task is receiving on this stream")
        if self.receive_closed:
            raise trio.ClosedResourceError("this stream is closed")
        self._receive_busy = True
        try:
            if self.interrupted and not (self.unread or self.send_closed or self.broken):
                # A checkpoint as every way out is: whoever tries again and again lets others run.
                await checkpoint()
                if not (self.unread or self.send_closed or self.broken):
                    raise ReceiveInterrupted
            if self.unread or self.send_closed or self.broken:
                await checkpoint_if_cancelled()
                if self.unread:
                    data = self._take(max_bytes)
                elif self.broken:
                    raise self._broken_error()
                else:
                    data = b""
                await cancel_shielded_checkpoint()
                return data
            self._receiver = current_task()
            self._receive_limit = max_bytes
            if self._wants_room and self._sender is not None:
                # It may have been woken already, and not have run since.
                self._wake_sender()
            received: bytes = await wait_task_rescheduled(self._abort_receive)
            return received
        finally:
            self._receive_busy = False

    def interrupt(self) -> None:
        """Let no receive wait: one that does gets `ReceiveInterrupted`, and so will the next."""
        self.interrupted = True
        if self._receiver is not None:
            self._wake_receiver(outcome.Error(ReceiveInterrupted()))

    def close_receive(self) -> None:
        """Close the receiving end and drop what is unread; a waiting sender gets Broken."""
        if self.receive_closed:
            return
        self.receive_closed = True
        self._drop()
        self._fail_sender(trio.BrokenResourceError("the peer has closed the connection"))
        if self._receiver is not None:
            closed = trio.ClosedResourceError("this stream was closed by another task")
            self._wake_receiver(outcome.Error(closed))

    # Both ends

    def cut(self) -> None:
        """Break the pipe, as a reset does: what is unread is lost, and both ends raise Broken."""
        if self.broken:
            return
        self.broken = True
        self._drop()
        self._fail_sender(self._broken_error())
        if self._receiver is not None:
            self._wake_receiver(outcome.Error(self._broken_error()))

    # Inside

    def _broken_error(self) -> trio.BrokenResourceError:
        return trio.BrokenResourceError("the connection was reset")

    def _send_error(self) -> Exception:
        if self.send_closed:
            return trio.ClosedResourceError("this stream is closed for sending")
        if self.broken:
            return self._broken_error()
        return trio.BrokenResourceError("the peer has closed the connection")

    def _take(self, limit: int | None) -> bytes:
        """Remove and return the next bytes, at most ``limit``, and wake the sender if it may go."""
        chunks = self._chunks
        offset = self._offset
        data = chunks[0]
        size = len(data) - offset
        if limit is not None and size > limit:
            # Only the slice is copied, however big the piece: small reads stay linear.
            data = data[offset : offset + limit]
            self._offset = offset + limit
            size = limit
        else:
            chunks.popleft()
            if offset:
                data = data[offset:]
                self._offset = 0
            if chunks and size < JOIN_SIZE:
                data, size = self._join(data, JOIN_SIZE if limit is None else min(limit, JOIN_SIZE))
        self.unread -= size
        self.received += size
        if self._sender is not None and (
            self.unread < self.capacity if self._wants_room else self.unread <= self.capacity
        ):
            self._wake_sender()
        return data

    def _join(self, data: bytes, limit: int) -> tuple[bytes, int]:
        chunks = self._chunks
        parts = [data]
        size = len(data)
        while chunks and size + len(chunks[0]) <= limit:
            size += len(chunks[0])
            parts.append(chunks.popleft())
        return (b"".join(parts) if len(parts) > 1 else data), size

    def _take_back(self) -> None:
        """Remove what exceeds the capacity from the end of the queue: the waiting sender's own."""
        excess = self.unread - self.capacity
        if excess <= 0:
            return
        # One send is one piece, and before it the pipe was within its capacity.
        piece = self._chunks.pop()
        start = 0 if self._chunks else self._offset
        keep = piece[start : len(piece) - excess]
        if keep:
            self._chunks.append(keep)
        if not self._chunks or start:
            self._offset = 0
        self.unread -= excess
        self._sent -= excess

    def _drop(self) -> None:
        self._chunks.clear()
        self._offset = 0
        self._sent -= max(0, self.unread - self.capacity)
        self.unread = 0

    def _fail_sender(self, error: Exception) -> None:
        if self._sender is not None:
            self._take_back()
            task, self._sender = self._sender, None
            reschedule(task, outcome.Error(error))

    def _wake_sender(self) -> None:
        assert self._sender is not None
        task, self._sender = self._sender, None
        reschedule(task)

    def _wake_receiver(self, result: outcome.Outcome[bytes]) -> None:
        assert self._receiver is not None
        task, self._receiver = self._receiver, None
        reschedule(task, result)

    def _abort_send(self, _: object) -> Abort:
        self._take_back()
        self._sender = None
        return Abort.SUCCEEDED

    def _abort_receive(self, _: object) -> Abort:
        self._receiver = None
        return Abort.SUCCEEDED
