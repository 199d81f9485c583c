"""What is to be sent, as state rather than as a queue of frames.

How this works. Nothing the peer does makes this grow beyond a few bits a stream and two short
bounded queues: an acknowledgement, a window update, a FIN or a reset is a bit on its stream, and
the frame comes to be only when it is pulled. So a peer that stops reading while it asks for answers
(CVE-2024-32984) costs nothing.

Control frames go first, since they unblock the peer and are small; then the streams with data take
turns by deficit round robin: in its turn a stream sends `QUANTUM` bytes times its weight.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, final

from .frames import ACK, DATA, FIN, GO_AWAY, HEADER, PING, RST, SYN, WINDOW_UPDATE
from .stream import GRANT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stream import Stream

__all__ = ("Output",)

# What a stream of weight 1 sends in its turn. Small enough that a hundred streams come round
# within some milliseconds on a slow link, large enough that a header is a thousandth of it.
QUANTUM: Final = 16 * 1024

# Up to so much data goes with a SYN.
RIDE_SIZE: Final = 4096

# Somebody waits for a message as short as this, and for its answer; what is sent meanwhile, before
# it in its batch or in those between the two, is what that takes. So for some batches after one, as
# many as a round trip within a process has, a batch is one turn for each stream. Not always: the
# more a batch carries, the less each byte costs.
SHORT: Final = 4096
SHARED_FOR: Final = 16


@final
class Output:
    """Everything one session has to say.

    Attributes:
      pongs: values of pings to be answered.
      pings: values of pings to be sent.
      refused: ids of streams to be reset that no state is kept for.
      control: streams with bits due.
      ring: streams with data and credit, the one whose turn it is first.
      go_away: a code to be sent among the control frames.
      last_words: a code to be sent when nothing else is left; then this is `silent` for ever.
      silent: nothing will be sent any more, but answers to pings where `answering` is set.
      answering: whether pings are answered after the last words.
      writable: streams whose data moved and whose writer waits, for the caller to empty.
      bytes_out: how many bytes were pulled.
    """

    __slots__ = (
        "_bulk",
        "_max_frame_size",
        "_settle",
        "_shared",
        "answering",
        "bytes_out",
        "control",
        "go_away",
        "last_words",
        "pings",
        "pongs",
        "refused",
        "ring",
        "silent",
        "writable",
    )

    def __init__(self, max_frame_size: int, settle: Callable[[Stream], None]) -> None:
        """Start with nothing to say.

        Args:
          max_frame_size: the largest body of a frame.
          settle: called with a stream whose last frame, FIN or RST, has just been pulled.
        """
        self._max_frame_size = max_frame_size
        self._settle = settle
        # Who last sent more than a short message, and for how many batches more it is beside others
        # that send such.
        self._bulk: Stream | None = None
        self._shared = 0
        self.pongs: deque[int] = deque()
        self.pings: deque[int] = deque()
        self.refused: deque[int] = deque()
        # Dictionaries for their order and because a stream that is over leaves from the middle.
        self.control: dict[Stream, None] = {}
        self.ring: OrderedDict[Stream, None] = OrderedDict()
        self.go_away: int | None = None
        self.last_words: int | None = None
        self.silent: bool = False
        self.answering: bool = False
        self.writable: list[Stream] = []
        self.bytes_out: int = 0

    @property
    def waiting(self) -> bool:
        """Whether `pull` has something to give."""
        if self.silent:
            return self.answering and bool(self.pongs)
        if self.ring or self.control:
            return True
        return bool(
            self.pongs
            or self.pings
            or self.refused
            or self.go_away is not None
            or self.last_words is not None
        )

    @property
    def urgent(self) -> bool:
        """Whether there is more than flags and window updates, which may wait a moment."""
        return bool(self.ring or not self.control or self.pongs or self.pings)

    def schedule(self, stream: Stream) -> None:
        """Queue ``stream`` wherever it has something to send. Idempotent."""
        due = stream.due
        # A FIN waits behind the data and is sent with the last of it.
        if due and (due != FIN or not stream.pending):
            self.control[stream] = None
        if not stream.in_ring and stream.outgoing.credit:
            pending = stream.pending
            if pending:
                stream.in_ring = True
                self.ring[stream] = None
                if pending <= SHORT and stream is not self._bulk:
                    self._shared = SHARED_FOR

    def forget(self, stream: Stream) -> None:
        """Drop a stream that has nothing to send any more."""
        self.control.pop(stream, None)
        if stream.in_ring:
            stream.in_ring = False
            del self.ring[stream]
        if stream is self._bulk:
            self._bulk = None

    def end(self, code: int | None) -> None:
        """Forget everything; say ``code``, unless it is None, and then nothing more."""
        for queue in (self.pongs, self.pings, self.refused):
            queue.clear()
        for stream in self.ring:
            stream.in_ring = False
        self.control.clear()
        self.ring.clear()
        self._bulk = None
        self.answering = False
        self.go_away = None
        self.last_words = None if self.silent else code
        self.silent = self.silent or code is None

    def pull(self, budget: int) -> bytes:
        """Return the next bytes for the carrier: control in full, data up to about ``budget``."""
        parts: list[bytes | bytearray | memoryview] = []
        if self.silent:
            if self.answering:
                self._pull_pongs(parts)
            data = b"".join(parts)
            self.bytes_out += len(data)
            return data
        largest = self._max_frame_size
        if self._shared:
            self._shared -= 1
            if largest > QUANTUM:
                largest = QUANTUM
            turns = QUANTUM * len(self.ring)
            if turns < budget:
                budget = turns
        self._pull_session(parts)
        if self.control:
            control, self.control = self.control, {}
            # Data that rides on a SYN is ahead of its turn: half of the batch is for the others.
            others = budget // 2
            for stream in control:
                budget -= self._pull_control(stream, parts, budget - others)
        if self.ring:
            self._pull_data(parts, budget, largest)
        if self.last_words is not None and not self.ring and not self.control:
            parts.append(HEADER.pack(0, GO_AWAY, 0, 0, self.last_words))
            self.last_words = None
            self.silent = True
        data = b"".join(parts)
        self.bytes_out += len(data)
        return data

    def _pull_session(self, parts: list[bytes | bytearray | memoryview]) -> None:
        pack = HEADER.pack
        if self.pings:
            parts += [pack(0, PING, SYN, 0, value) for value in self.pings]
            self.pings.clear()
        self._pull_pongs(parts)
        if self.go_away is not None:
            parts.append(pack(0, GO_AWAY, 0, 0, self.go_away))
            self.go_away = None
        if self.refused:
            parts += [pack(0, WINDOW_UPDATE, RST, stream_id, 0) for stream_id in self.refused]
            self.refused.clear()

    def _pull_pongs(self, parts: list[bytes | bytearray | memoryview]) -> None:
        if self.pongs:
            pack = HEADER.pack
            parts += [pack(0, PING, ACK, 0, value) for value in self.pongs]
            self.pongs.clear()

    def _pull_control(
        self, stream: Stream, parts: list[bytes | bytearray | memoryview], budget: int
    ) -> int:
        """Say what is due on ``stream``; return how many bytes of data went with it."""
        due = stream.due
        if due & RST:
            stream.due = 0
            # With the SYN still here the peer has never heard of the stream.
            if not due & SYN:
                parts.append(HEADER.pack(0, WINDOW_UPDATE, RST, stream.id, 0))
            self._settle(stream)
            return 0
        flags = due & (SYN | ACK)
        pending = stream.pending
        if flags == SYN and not due & GRANT and 0 < pending <= RIDE_SIZE and budget > 0:
            # The SYN rides on the data. Here and not in a turn of the ring, since the peer expects
            # new ids in their order.
            stream.due = due & FIN
            parts.append(HEADER.pack(0, DATA, SYN, stream.id, pending))
            self._move_data(stream, pending, parts)
            if not stream.due:
                return pending
            flags = 0
        else:
            pending = 0
        if due & FIN and not stream.pending:
            flags |= FIN
        delta = stream.incoming.grant() if due & GRANT else 0
        stream.due = due & FIN & ~flags
        if flags or delta:
            parts.append(HEADER.pack(0, WINDOW_UPDATE, flags, stream.id, delta))
        if flags & FIN:
            self._settle(stream)
        return pending

    def _move_data(
        self, stream: Stream, size: int, parts: list[bytes | bytearray | memoryview]
    ) -> None:
        stream.take(size, parts)
        stream.outgoing.spend(size)
        if stream.writer is not None:
            self.writable.append(stream)

    def _pull_data(
        self, parts: list[bytes | bytearray | memoryview], budget: int, largest: int
    ) -> None:
        ring = self.ring
        pack = HEADER.pack
        while ring and budget > 0:
            stream = next(iter(ring))
            pending = stream.pending
            window = stream.outgoing
            size = pending
            if size > window.credit:
                size = window.credit
            if size > largest:
                size = largest
            if size:
                if size > SHORT:
                    self._bulk = stream
                if len(ring) > 1:
                    # Alone on the line, nobody counts.
                    if not stream.deficit:
                        stream.deficit = QUANTUM * stream.weight
                    size = min(size, stream.deficit)
                    stream.deficit -= size
                parts.append(pack(0, DATA, 0, stream.id, size))
                self._move_data(stream, size, parts)
                budget -= size
            if size == pending or not window.credit:
                del ring[stream]
                stream.in_ring = False
                stream.deficit = 0
                # The FIN that waited for the data. By itself, and never on the data: some receivers
                # see the end before the bytes that came with it.
                if stream.due and size == pending:
                    self._pull_control(stream, parts, 0)
            elif not stream.deficit and len(ring) > 1:
                ring.move_to_end(stream)
