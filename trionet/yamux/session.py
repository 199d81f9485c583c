"""One end of a yamux session, without a byte of input or output of its own.

How this works. Bytes from the carrier go into `Session.receive_data`; bytes for it come out of
`Session.data_to_send`, when the carrier can take them and not before. In between the caller opens,
accepts, writes, reads and closes streams, all of it synchronous. Whoever waits is the caller's
affair: it puts an object into `Stream.reader` or `Stream.writer`, and finds the stream in
``readable`` or ``writable`` once there is a reason to look. ``news`` is set by all that is rare:
a stream to accept, a slot to open one, a ping's answer, the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, Literal, final

from .config import MuxConfig
from .decoder import Decoder
from .frames import ACK, FIN, NORMAL, PROTOCOL_ERROR, SYN, WINDOW, ProtocolError
from .inbound import Inbound, PeerGaveUp
from .stream import GRANT, Event, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("BATCH_SIZE", "Failure", "Session")

# What one send on the carrier takes: enough that its cost is spread, little enough that a ping
# behind it does not wait long.
BATCH_SIZE: Final = 64 * 1024

# A peer that answers no ping, while all else goes on, makes us remember so many at most; no path is
# long enough for as many that will be answered.
MAX_UNANSWERED: Final = 1024

# A carrier that takes a batch as late as this was full before, and somebody takes from it: the
# peer's system, if not the peer. A ping may be somewhere in what it holds.
HELD_UP: Final = 0.1

LAST_ID: Final = (1 << 32) - 1


@final
@dataclass(frozen=True, slots=True)
class Failure:
    """Why a session ended without having been asked to.

    Attributes:
      reason: what happened, in words.
      code: the go-away code sent or received, or None where there was none.
      by_peer: the peer said so.
    """

    reason: str
    code: int | None = None
    by_peer: bool = False


@final
class Session(Inbound):
    """One end of a session. Its methods raise `AssertionError` for calls that make no sense.

    Attributes:
      failure: why it broke, or None.
      closing: it was closed here; what is pending is being sent.
      bytes_in: how many bytes were received.
    """

    def __init__(
        self,
        role: Literal["client", "server"],
        config: MuxConfig | None = None,
        *,
        clock: Callable[[], float],
    ) -> None:
        """Begin a session.

        Args:
          role: ``"client"`` opens odd streams, ``"server"`` even ones; each end is one of them.
          clock: the time in seconds, from wherever it counts.
        """
        if role not in ("client", "server"):
            raise ValueError(f"the role must be 'client' or 'server', got {role!r}")
        super().__init__(config or MuxConfig(), client=role == "client", clock=clock)
        self.failure: Failure | None = None
        self.closing: bool = False
        self.bytes_in: int = 0
        # The ping whose answer tells that the peer has read everything.
        self._wants_barrier = False
        self._barrier: int | None = None
        self._decoder = Decoder(self)
        # Since when the carrier has been taking a batch.
        self._sending_since: float | None = None

    # The carrier

    def receive_data(self, data: bytes) -> None:
        """Take the next bytes from the peer, cut anywhere."""
        if self.failure is not None:
            return
        self.keepalive.heard_at = self.clock()
        self.keepalive.asked = False
        self.bytes_in += len(data)
        try:
            self._decoder.feed(data)
        except ProtocolError as exc:
            self.fail(Failure(f"protocol error: {exc}", PROTOCOL_ERROR), say=PROTOCOL_ERROR)
        except PeerGaveUp as exc:
            self.fail(Failure(f"the peer went away with code {exc.code}", exc.code, by_peer=True))

    def receive_eof(self) -> None:
        """Take note that the carrier has ended."""
        torn = self._decoder.inside
        if torn:
            self.fail(Failure(f"the carrier ended inside {torn}", by_peer=True))
        elif self.peer_going_away:
            self.fail(Failure("the peer closed the session", NORMAL, by_peer=True))
        else:
            self.fail(Failure("the carrier ended", by_peer=True))

    def data_to_send(self, budget: int = BATCH_SIZE) -> bytes:
        """Give the next bytes for the peer: all control frames, and about ``budget`` of data.

        Call it when the carrier can take them: data is chosen at the last moment.
        """
        output = self.output
        if output.pings and not output.silent:
            now = self.clock()
            for value in output.pings:
                self._pings[value] = now
            while len(self._pings) > MAX_UNANSWERED:
                del self._pings[next(iter(self._pings))]
            self.keepalive.sent(now)
            self._announce()
        if self.closing and not output.waiting and not output.silent and self._all_said():
            output.last_words = NORMAL
            if self._wants_barrier:
                self._wants_barrier = False
                self._barrier = self._ask()
                return self.data_to_send(budget)
        return output.pull(budget)

    def sending(self) -> float:
        """Note that the carrier was given a batch; return when it counts as stalled."""
        now = self._sending_since = self.clock()
        stall = self.config.write_stall
        return inf if stall is None else now + stall

    def sent(self) -> None:
        """Note that the carrier has taken the batch."""
        if self.keepalive.asked and self._held_up(self.clock()):
            self.keepalive.restart(self.clock())
        self._sending_since = None

    @property
    def has_output(self) -> bool:
        """Whether `data_to_send` has something."""
        output = self.output
        return output.waiting or (self.closing and not output.silent and self._all_said())

    @property
    def silent(self) -> bool:
        """Whether the last byte was given out, and there will be no other."""
        return self.output.silent and not self.output.answering

    @property
    def heard_out(self) -> bool:
        """Whether the peer has shown that it got everything."""
        return self._barrier is not None and self._barrier not in self._pings

    # Streams

    @property
    def can_open(self) -> bool:
        """Whether `open` has a slot now."""
        config = self.config
        return (
            self.outbound < config.max_outbound_streams
            and self.unacknowledged < config.max_unacknowledged
        )

    @property
    def ids_left(self) -> bool:
        """Whether any stream can be opened ever again."""
        return self.next_id <= LAST_ID

    def open(self, weight: int = 1) -> Stream:
        """Open a stream; data may be written at once."""
        assert self.can_open
        assert self.ids_left
        assert self.failure is None
        stream = self._open_outbound(weight)
        stream.due = SYN
        self._grant_more(stream)
        return stream

    def accept(self) -> Stream | None:
        """Take the oldest stream of the peer's that nobody took, or None.

        Those that came before the session failed can be taken after it: a peer that sends and goes
        has sent.
        """
        if not self.backlog:
            return None
        stream = self.backlog.pop(next(iter(self.backlog)))
        if self.failure is None:
            # Also where the peer has ended already: it may count on the answer.
            stream.due |= ACK
            self._grant_more(stream)
        return stream

    def refuse(self) -> None:
        """Accept no stream of the peer's any more; reset those that wait to be."""
        self.refusing = True
        for stream in list(self.backlog.values()):
            self.reset(stream)
        # Of a session that has failed, they are still there.
        self.backlog.clear()

    def put(self, stream: Stream, data: bytes | bytearray | memoryview) -> None:
        """Have a copy of ``data`` sent."""
        assert stream.state.sends
        stream.put(data)
        if not stream.in_ring:
            self.output.schedule(stream)

    def lend(self, stream: Stream, data: memoryview) -> None:
        """Have ``data`` sent without keeping a copy: it must not change until it was taken."""
        assert stream.state.sends
        assert stream.lent is None
        stream.lent = data
        self.output.schedule(stream)

    def withdraw(self, stream: Stream) -> int:
        """Take back what was lent and is not on its way; return how many bytes that is."""
        lent, at = stream.lent, stream.lent_at
        stream.lent = None
        stream.lent_at = 0
        self.output.schedule(stream)
        return 0 if lent is None else len(lent) - at

    def read(self, stream: Stream, limit: int | None = None) -> bytes:
        """Take what has arrived, at least a byte, and let the peer send as much again."""
        data = stream.read(limit)
        if self.failure is None and (
            stream.incoming.consume(len(data)) or not stream.state.receives
        ):
            self._after_reading(stream)
        return data

    def finish(self, stream: Stream) -> None:
        """End our direction, behind what is still to be sent. Idempotent."""
        if stream.move(Event.FIN_OUT) and self.failure is None:
            stream.due |= FIN
            self.output.schedule(stream)

    def close(self, stream: Stream) -> None:
        """End our direction, and drop what the peer still sends until it ends its own.

        A reset at once would destroy what it has not read yet; it comes when the peer takes too
        long or sends too much.
        """
        if stream.closed:
            return
        stream.closed = True
        self.backlog.pop(stream.id, None)
        if self.failure is not None:
            stream.drop_input()
            return
        self.withdraw(stream)
        self.finish(stream)
        if stream.due & FIN:
            self.tails.start(stream, self.clock())
            self._announce()
        self._read_off(stream, stream.drop_input())
        self._settle(stream)

    def reset(self, stream: Stream) -> None:
        """Give a stream up at once, in both directions."""
        stream.closed = True
        if self.streams.get(stream.id) is not stream:
            stream.drop_input()
            return
        if not stream.state.over or stream.due & FIN:
            self._give_up(stream)
        self._read_off(stream, stream.drop_input())

    # The session

    def ping(self) -> int:
        """Ask the peer for an answer; ``answered`` gets (the value returned, the round trip)."""
        return self._ask()

    def go_away(self) -> None:
        """Tell the peer to open no more streams; those there are live on."""
        self.refuse()
        self.output.go_away = NORMAL

    def shut(self, *, barrier: bool = False) -> None:
        """Close all streams, have the rest of their data sent, and go away after that.

        Args:
          barrier: send a ping before the go-away. With its answer `heard_out` gets true; the
            carrier may have no other way to tell. Pings of the peer's, which may be closing at
            the same time and ask the same, are answered after the go-away, too.
        """
        if self.closing:
            return
        self.refuse()
        if self.failure is not None:
            return
        self.closing = True
        self._wants_barrier = self.output.answering = barrier
        for stream in list(self.streams.values()):
            self.close(stream)
            self._wake(stream)
        self._announce()

    def fail(self, failure: Failure, *, say: int | None = None) -> None:
        """End the session at once: nothing is sent any more, but the code ``say``, if it is given.

        What arrived stays readable.
        """
        if self.failure is not None:
            return
        self.failure = failure
        self.output.end(say)
        for stream in self.streams.values():
            stream.due = 0
            stream.drop_output()
            stream.incoming.release(self.budget)
            self._wake(stream)
        self._forget_all()

    @property
    def next_timeout(self) -> float:
        """When `tick` is to be called at the latest."""
        if self.failure is not None or self.output.silent:
            return inf
        stall = self.config.write_stall
        at = self.keepalive.next
        if self.tails:
            at = min(at, self.tails.next)
        if self.lingering:
            at = min(at, self.lingering.next)
        if stall is not None and self._sending_since is not None:
            at = min(at, self._sending_since + stall)
        return at

    def tick(self) -> None:
        """Do what is due by now."""
        now = self.clock()
        if self.failure is not None or self.output.silent:
            return
        stall, since = self.config.write_stall, self._sending_since
        if stall is not None and since is not None and now >= since + stall:
            self.fail(Failure(f"the carrier took nothing for {stall:g} seconds"))
            return
        verdict = self.keepalive.tick(now)
        if verdict == "ask":
            self._ask()
        elif verdict == "dead" and self._held_up(now):
            # The limit on a stalled carrier is what counts now.
            self.keepalive.restart(now)
        elif verdict == "dead":
            silence = now - self.keepalive.heard_at
            self.fail(Failure(f"the peer has been silent for {silence:g} seconds"))
            return
        for deadlines in (self.tails, self.lingering):
            for stream in deadlines.expired(now):
                self._give_up(stream)

    # Inside

    def _held_up(self, now: float) -> bool:
        since = self._sending_since
        return since is not None and now - since >= HELD_UP

    def _grant_more(self, stream: Stream) -> None:
        """Announce the window with the first frame, where it is more than the protocol's own."""
        if self.config.window > WINDOW and stream.state.receives:
            stream.due |= GRANT
        self.output.schedule(stream)

    def _wake(self, stream: Stream) -> None:
        if stream.reader is not None:
            self.readable.append(stream)
        if stream.writer is not None:
            self.writable.append(stream)

    def _all_said(self) -> bool:
        return not any(stream.pending or stream.due for stream in self.streams.values())
