"""The receiving half of one end of a wire: a pipe that segments fill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

import outcome
from trio.lowlevel import reschedule

from .pipe import Pipe

if TYPE_CHECKING:
    import trio

    from .segment import Segment

__all__ = ("Inbox", "Owner")


class Owner(Protocol):
    """The end whose receiving half an inbox is."""

    def receiving_closed(self) -> None:
        """Hear that nobody receives any more."""

    def room_opened(self) -> None:
        """Hear that bytes were received."""

    def cut(self) -> None:
        """Reset the connection."""

    def broken_error(self) -> trio.BrokenResourceError:
        """Return what a receive raises once the connection is over."""


@final
class Inbox(Pipe):
    """What arrived in order and was not received; what came too early waits beside it.

    Attributes:
      expected: the next sequence number that is taken.
      parked: segments from beyond a gap, by sequence number.
    """

    __slots__ = ("_end", "expected", "parked")

    # A Pipe's own, which are changed here too.
    received: int
    unread: int

    def __init__(self, end: Owner, capacity: int) -> None:
        super().__init__(capacity)
        self._end = end
        self.expected: int = 1
        self.parked: dict[int, Segment] = {}

    @property
    def edge(self) -> int:
        """The sequence number up to which there is room."""
        return self.expected + max(0, self.capacity - self.unread)

    @property
    def held(self) -> int:
        """How many bytes this holds, in order or not."""
        return self.unread + sum(len(segment.payload) for segment in self.parked.values())

    def take_segment(self, segment: Segment) -> None:
        """Take what a segment brings: bytes or end of file, in order, or parked until they are."""
        sequence = segment.sequence
        if sequence != self.expected:
            if sequence > self.expected:
                self.parked[sequence] = segment
            return
        self._push(segment)
        while self.parked and self.expected in self.parked:
            self._push(self.parked.pop(self.expected))

    def fail(self) -> None:
        """Let the connection be over: what came in order stays readable, then this is broken."""
        self.broken = True
        self.parked.clear()
        if self._receiver is not None:
            self._wake_receiver(outcome.Error(self._broken_error()))

    def take_more(self, limit: int) -> bytes:
        """Return more of what is unread, at most ``limit`` bytes of it."""
        parts = []
        while limit and self.unread:
            parts.append(self._take(limit))
            limit -= len(parts[-1])
        return b"".join(parts)

    def put_back(self, data: bytes) -> None:
        """Take ``data``, received last, for unread again."""
        if self._offset:
            self._chunks[0] = self._chunks[0][self._offset :]
            self._offset = 0
        self._chunks.appendleft(data)
        self.unread += len(data)
        self.received -= len(data)

    def end_wait(self) -> None:
        """Give end of file to whoever waits now, though there is none."""
        if self._receiver is not None:
            self._wake_receiver(outcome.Value(b""))

    def close_receive(self) -> None:
        """Close this half and drop what is unread."""
        if not self.receive_closed:
            super().close_receive()
            self.parked.clear()
            self._end.receiving_closed()

    def cut(self) -> None:
        """Break the connection, as a reset does, and drop what is unread."""
        self._drop()
        self._end.cut()

    def _push(self, segment: Segment) -> None:
        # As in Pipe.send, from where no task waits.
        if segment.kind == "FIN":
            self.expected += 1
            self.close_send()
            return
        data = segment.payload
        self.expected += len(data)
        if self.receive_closed:
            return
        receiver = self._receiver
        if receiver is None:
            self._chunks.append(data)
            self.unread += len(data)
            return
        self._receiver = None
        limit = self._receive_limit
        if limit is None or len(data) <= limit:
            self.received += len(data)
            reschedule(receiver, outcome.Value(data))
        else:
            self._chunks.append(data)
            self.unread += len(data)
            reschedule(receiver, outcome.Value(super()._take(limit)))

    def _take(self, limit: int | None) -> bytes:
        data = super()._take(limit)
        self._end.room_opened()
        return data

    def _broken_error(self) -> trio.BrokenResourceError:
        return self._end.broken_error()
