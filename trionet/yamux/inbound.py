"""The state of a session, and what the peer's frames do to it.

The rules that are not obvious from the protocol's description:

- A stream is kept while something can still happen to it: until both its directions have ended on
  the wire and what arrived was read, or a reset went either way.
- Any frame of the peer's acknowledges a stream of ours: one that was closed before it was accepted
  may never see an ACK.
- What comes for a stream that is over, or was never known, is dropped without an answer: it was
  sent before the peer knew. Only its length is checked.
- A FIN after a FIN, or data after it, resets that stream; all else that is wrong ends the session.
- Whoever refuses or resets at the peer's provocation counts it, and has an end of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .frames import ACK, DATA, FIN, NORMAL, RST, SYN, WINDOW, ProtocolError
from .output import Output
from .stream import GRANT, Event, State, Stream
from .timers import Deadlines, Keepalive, RoundTrip, TokenBucket
from .window import WindowBudget

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import MuxConfig

__all__ = ("Inbound", "PeerGaveUp")

# Refusals to be told to a peer that does not read what it is told. The bucket of resets empties
# before, unless it was made larger.
MAX_REFUSED: Final = 4096

# How many ids may be late: a peer opens so many streams at most before one is acknowledged.
MAX_SKIPPED: Final = 256


class PeerGaveUp(Exception):  # noqa: N818 - no error of ours, and caught one floor up
    """The peer ended the session for a reason."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code: int = code


class Inbound:
    """A session as the peer's frames see it; `Session` adds what the caller asks for."""

    def __init__(self, config: MuxConfig, *, client: bool, clock: Callable[[], float]) -> None:
        now = clock()
        self.config: MuxConfig = config
        self.clock: Callable[[], float] = clock
        self.client: bool = client
        self.output: Output = Output(config.max_frame_size, self._settle)
        self.budget: WindowBudget = WindowBudget(config.window_budget)
        self.streams: dict[int, Stream] = {}
        # Streams of the peer's that nobody accepted yet, oldest first.
        self.backlog: dict[int, Stream] = {}
        self.inbound: int = 0
        self.outbound: int = 0
        self.unacknowledged: int = 0
        self.resets: int = 0
        self.next_id: int = 1 if client else 2
        self.last_peer_id: int = 0
        self._skipped_ids: dict[int, None] = {}
        self.refusing: bool = False
        self.peer_going_away: bool = False
        # What the caller is to look at.
        self.readable: list[Stream] = []
        self.writable: list[Stream] = self.output.writable
        self.answered: list[tuple[int, float]] = []
        self.news: bool = False
        # Closed streams: until their last bytes are sent, then until the peer ends too.
        self.tails: Deadlines[Stream] = Deadlines(config.tail_timeout)
        self.lingering: Deadlines[Stream] = Deadlines(config.linger)
        self.keepalive: Keepalive = Keepalive(config.keepalive, config.keepalive_timeout, now)
        self.round_trip: RoundTrip = RoundTrip()
        self._bucket = TokenBucket(config.reset_rate, config.reset_burst, now)
        # Values of pings on their way, and when they left.
        self._pings: dict[int, float] = {}
        self._last_ping = 0

    # Frames

    def on_data(self, flags: int, stream_id: int, length: int) -> Stream | None:
        """Meet the header of a DATA frame."""
        stream = self.streams.get(stream_id)
        if stream is None or flags & (SYN | RST):
            stream = self._meet(stream, flags, stream_id, DATA, length)
        elif not stream.acknowledged:
            self._acknowledge(stream)
        if stream is None:
            if length > self.config.max_window:
                # Nobody was ever granted so much; and nothing is made ready for it here.
                raise ProtocolError(f"stream {stream_id}: {length} bytes announced for nobody")
            return None
        state = stream.state
        if not state.receives:
            if state is State.REMOTE_EOF and (length or flags & FIN):
                self._violate(stream, "the peer sent on after its end of file")
            if length > self.config.max_window:
                raise ProtocolError(f"stream {stream_id}: {length} bytes announced for nobody")
            return None
        try:
            stream.incoming.arrive(length)
        except ProtocolError as exc:
            raise ProtocolError(f"stream {stream_id}: {exc}") from None
        return stream

    def on_body(self, stream: Stream, piece: bytes) -> None:
        """Take a piece of a body."""
        if stream.closed or not stream.state.receives:
            self._drop(stream, len(piece))
            return
        stream.arrive(piece)
        if stream.reader is not None:
            self.readable.append(stream)

    def on_fin(self, stream: Stream) -> None:
        """Meet the end of the peer's direction."""
        if not stream.move(Event.FIN_IN):
            if stream.state is State.REMOTE_EOF:
                self._violate(stream, "the peer sent end of file twice")
            return
        if stream.reader is not None:
            self.readable.append(stream)
        # Nothing more is to be granted.
        stream.due &= ~GRANT
        self._after_reading(stream)

    def on_window_update(self, flags: int, stream_id: int, delta: int) -> None:
        """Meet a window update, or the flags it carries."""
        stream = self.streams.get(stream_id)
        if stream is None or flags & (SYN | RST):
            stream = self._meet(stream, flags, stream_id, None, 0)
        elif not stream.acknowledged:
            self._acknowledge(stream)
        if stream is None:
            return
        if delta and not stream.state.cut_short:
            try:
                stream.outgoing.grant(delta)
            except ProtocolError as exc:
                raise ProtocolError(f"stream {stream_id}: {exc}") from None
            self.output.schedule(stream)
            if stream in self.lingering:
                # It reads what we sent last.
                self.lingering.start(stream, self.clock())
            if stream.writer is not None:
                self.writable.append(stream)
        if flags & FIN:
            self.on_fin(stream)

    def on_ping(self, flags: int, value: int) -> None:
        """Answer a ping, or take the answer to one of ours. An answer to nothing is ignored."""
        if flags & SYN:
            if self.output.silent and not self.output.answering:
                return
            if len(self.output.pongs) >= self.config.max_pongs:
                raise ProtocolError(f"{self.config.max_pongs} pings without reading an answer")
            self.output.pongs.append(value)
        elif flags & ACK:
            sent_at = self._pings.pop(value, None)
            if sent_at is not None:
                now = self.clock()
                self.round_trip.add(now - sent_at, now)
                self.answered.append((value, now - sent_at))
                self.news = True

    def on_go_away(self, code: int) -> None:
        """Meet a go-away; one that is not the normal end is a protocol error told by the peer."""
        if code != NORMAL:
            raise PeerGaveUp(code)
        self.peer_going_away = True
        self.news = True

    # Streams

    def _meet(
        self, stream: Stream | None, flags: int, stream_id: int, kind: int | None, length: int
    ) -> Stream | None:
        """Meet SYN, RST, or a stream that is not there."""
        if stream_id == 0:
            raise ProtocolError("a frame for stream 0, which is the session itself")
        if flags & SYN:
            if kind == DATA and length > WINDOW:
                # Before there is any state of it (CVE-2026-32314).
                raise ProtocolError(f"stream {stream_id}: {length} bytes sent with a new stream")
            stream = self._open_inbound(stream, stream_id)
        if stream is None:
            return None
        if not stream.acknowledged:
            self._acknowledge(stream)
        if flags & RST:
            self._reset_by_peer(stream)
        return stream

    def _open_inbound(self, stream: Stream | None, stream_id: int) -> Stream | None:
        if stream is not None:
            raise ProtocolError(f"stream {stream_id}: opened twice")
        if stream_id % 2 == self.client:
            raise ProtocolError(f"stream {stream_id}: not an id for the peer to use")
        if self.config.strict_ids:
            self._use_id(stream_id)
        if (
            self.refusing
            or len(self.backlog) >= self.config.accept_backlog
            or self.inbound >= self.config.max_inbound_streams
        ):
            self._count_reset()
            if len(self.output.refused) >= MAX_REFUSED:
                raise ProtocolError(f"{MAX_REFUSED} streams refused, and no answer read")
            self.output.refused.append(stream_id)
            return None
        stream = Stream(stream_id, 1, self.config.window, self.clock())
        stream.acknowledged = True
        self.inbound += 1
        self.streams[stream_id] = self.backlog[stream_id] = stream
        self.news = True
        return stream

    def _open_outbound(self, weight: int) -> Stream:
        stream = Stream(self.next_id, weight, self.config.window, self.clock())
        self.next_id += 2
        self.outbound += 1
        self.unacknowledged += 1
        self.streams[stream.id] = stream
        return stream

    def _use_id(self, stream_id: int) -> None:
        """See that no id is used twice; those skipped a moment ago may still come.

        hashicorp/yamux takes an id and sends its SYN in two steps, and tasks that open streams at
        once overtake each other in between.
        """
        skipped = self._skipped_ids
        last = self.last_peer_id
        if stream_id > last:
            self.last_peer_id = stream_id
            first = last + 2 if last else (2 if self.client else 1)
            for missing in range(max(first, stream_id - 2 * MAX_SKIPPED), stream_id, 2):
                skipped[missing] = None
            while len(skipped) > MAX_SKIPPED:
                del skipped[next(iter(skipped))]
        elif skipped.pop(stream_id, stream_id) is not None:
            raise ProtocolError(f"stream {stream_id}: an id that was used or is long past")

    def _acknowledge(self, stream: Stream) -> None:
        stream.acknowledged = True
        self.unacknowledged -= 1
        self.news = True

    def _reset_by_peer(self, stream: Stream) -> None:
        if stream.state.cut_short:
            return
        self._count_reset()
        self._cut(stream, "the peer reset it", due=0)
        self._settle(stream)

    def _violate(self, stream: Stream, what: str) -> None:
        self._count_reset()
        self._cut(stream, what, due=RST)

    def _count_reset(self) -> None:
        self.resets += 1
        if not self._bucket.take(self.clock()):
            raise ProtocolError(
                f"more resets than {self.config.reset_rate:g} a second"
                f" and {self.config.reset_burst} at once"
            )

    def _cut(self, stream: Stream, why: str | None, *, due: int) -> None:
        """End both directions, but for what the peer had already ended by itself."""
        stream.move(Event.RESET)
        stream.why = why
        # Before anything looks whether the stream is over: a reset still to be sent keeps its
        # slot, or a peer that reads nothing could make us owe it any number of them.
        stream.due = due
        stream.drop_output()
        self.output.schedule(stream)
        # Nobody will ever see a stream that was not accepted yet: it leaves the backlog at once.
        unseen = self.backlog.pop(stream.id, None) is not None
        if unseen or stream.state is State.RESET:
            self._read_off(stream, stream.drop_input())
        if stream.reader is not None:
            self.readable.append(stream)
        if stream.writer is not None:
            self.writable.append(stream)

    def _drop(self, stream: Stream, size: int) -> None:
        """Take bytes that nobody will read, up to a point."""
        if not stream.state.receives:
            return
        stream.dropped += size
        if stream.dropped > self.config.linger_size:
            self._give_up(stream)
        else:
            self._read_off(stream, size)

    def _give_up(self, stream: Stream) -> None:
        """Reset a stream of our own accord."""
        self._cut(stream, None, due=(stream.due & SYN) | RST)

    def _read_off(self, stream: Stream, size: int) -> None:
        """Account for bytes that were read or dropped, and grant them anew when it is time."""
        if size:
            stream.incoming.consume(size)
        self._after_reading(stream)

    def _after_reading(self, stream: Stream) -> None:
        if stream.incoming.due and stream.state.receives and not stream.due & GRANT:
            if not stream.closed:
                self._adapt(stream)
            stream.due |= GRANT
            self.output.schedule(stream)
        if stream.inbox is None and not stream.state.receives:
            # Nothing can come any more, however long the other direction goes on.
            stream.incoming.release(self.budget)
            if stream.state.over:
                self._settle(stream)

    def _adapt(self, stream: Stream) -> None:
        now = self.clock()
        config = self.config
        stream.incoming.adapt(now, self.round_trip.best, config.max_window, self.budget)
        # Only bulk data needs the round trip, so only bulk data has it measured.
        if (
            stream.incoming.size < config.max_window
            and self.round_trip.stale(now)
            and not self._pings
        ):
            self._ask()

    def _ask(self) -> int:
        """Have a ping sent, unless one is about to be; return its value."""
        if not self.output.pings:
            self._last_ping = (self._last_ping + 1) & 0xFFFFFFFF
            self.output.pings.append(self._last_ping)
            self.news = True
        return self._last_ping

    def _settle(self, stream: Stream) -> None:
        """Look whether ``stream`` is over, or only waits for the peer; called when that may be."""
        state = stream.state
        if not state.over:
            if stream.closed and not stream.due & FIN:
                self.tails.cancel(stream)
                self.lingering.start(stream, self.clock())
                self.news = True
            return
        if stream.due & (FIN | RST) or stream.inbox is not None:
            return
        if self.streams.get(stream.id) is stream:
            self._remove(stream)

    def _remove(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self.output.forget(stream)
        self.backlog.pop(stream.id, None)
        self.tails.cancel(stream)
        self.lingering.cancel(stream)
        stream.incoming.release(self.budget)
        if stream.id % 2 == self.client:
            self.outbound -= 1
            if not stream.acknowledged:
                self.unacknowledged -= 1
                stream.acknowledged = True
        else:
            self.inbound -= 1
        self.news = True

    def _forget_all(self) -> None:
        """Empty the tables: the session has failed. What nobody accepted yet may still be."""
        self.streams.clear()
        self.tails.clear()
        self.lingering.clear()
        self._pings.clear()
        self.inbound = self.outbound = self.unacknowledged = 0
        self.news = True

    def _announce(self) -> None:
        self.news = True
