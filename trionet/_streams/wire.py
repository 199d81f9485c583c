"""Between two hosts: a send buffer, a line, a receive buffer, each way; as TCP does it.

How this works. An `End` is what a kernel keeps of one end of a connection. Bytes that are sent go
into its buffer, leave it as segments as far as the receiver's window allows, and stay counted in
the buffer until they are acknowledged. The other end puts segments in order, whatever order they
come in, and acknowledges each. Nothing here waits but a sender for room and, in the inbox, a
receiver for bytes; all else happens where a segment arrives or is lost.

No segment has a timer. A line tells the sender what it lost, and only then is the moment
scheduled at which TCP would have noticed and sent it again: 0.2, 0.6, 1.4 ... seconds after the
first time (RFC 6298, with Linux's least timeout and no estimate of the round trip), until 15 such
attempts were lost, 924.6 s after the first (Linux's tcp_retries2). So a link that loses nothing
costs nothing, and a program that waits for ever is seen to.

A memory name's link and a virtual network's sockets are faces of this one thing. It is one file,
and a long one, because it is one state machine: what is sent, acknowledged, lost and sent again
are the same few fields.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

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

from .inbox import Inbox
from .line import Receiver
from .segment import Endpoint, Segment

if TYPE_CHECKING:
    from .line import Line

__all__ = ("BACKOFF", "End", "Opposite", "join")

# Linux: TCP_RTO_MIN and TCP_RTO_MAX; the timeout doubles in between.
RTO_FIRST: Final = 0.2
RTO_MAX: Final = 120.0
# net.ipv4.tcp_retries2, and what tcp_orphan_retries stands for once nobody holds the socket.
RETRIES: Final = 15
RETRIES_ORPHAN: Final = 8

BACKOFF: Final[tuple[float, ...]] = tuple(
    min(RTO_FIRST * 2.0**attempt, RTO_MAX) for attempt in range(RETRIES + 1)
)

SENT_AGAIN: Final = frozenset({"SYN", "SYN-ACK", "DATA", "FIN", "STOP"})

# More than any window.
WHOLE: Final = 1 << 62

# What stands in for a sequence number where something other than bytes is sent again.
PROBE: Final = -1
STOP: Final = -2


class Opposite(Receiver, Protocol):
    """What is at the other end: an `End`, or what stands there before there is one."""

    def suspect(self, acknowledgement: int, edge: int = 0, /) -> None:
        """Hear that an acknowledgement for it, or word of how much there is room for, was lost."""


class End:
    """One end of a connection; it is also the sending half a stream is made of.

    Attributes:
      inbox: the receiving half.
      peer: the other end, once there is one.
      line: the way there.
      capacity: how many bytes sent and not acknowledged `put` leaves behind.
      not_sent_limit: how many of them may not have left; None is without limit.
      sent: how many bytes were taken to be sent.
      send_closed: no more can be sent: end of file was said, or this end closed.
      receive_closed: the other end has said that it takes nothing any more.
      broken: the connection is over, and not by both ends' closing.
      error: the reason as an errno, until it was told; 0 after that.
      orphaned: nobody holds this end any more; what is left to send is still sent.
    """

    __slots__ = (
        "_acked",
        "_counts",
        "_edge",
        "_fin",
        "_flying",
        "_hidden",
        "_offset",
        "_probes",
        "_promised",
        "_queue",
        "_send_busy",
        "_sender",
        "_sending_again",
        "_since",
        "_stale",
        "_unacked",
        "_unsent",
        "capacity",
        "cause",
        "connection",
        "error",
        "inbox",
        "latest",
        "line",
        "local",
        "next",
        "not_sent_limit",
        "orphaned",
        "peer",
        "protocol",
        "receive_closed",
        "remote",
        "send_closed",
        "sent",
    )

    def __init__(
        self,
        line: Line,
        local: Endpoint,
        remote: Endpoint,
        *,
        protocol: str,
        connection: int = 0,
        send_size: int,
        receive_size: int,
    ) -> None:
        self.line: Line = line
        self.local: Endpoint = local
        self.remote: Endpoint = remote
        self.protocol: str = protocol
        self.connection: int = connection
        self.peer: Opposite | None = None
        self.latest: float = 0.0
        self.inbox: Inbox = Inbox(self, receive_size)
        self.capacity: int = send_size
        self.not_sent_limit: int | None = None
        self.sent: int = 0
        self.send_closed: bool = False
        self.receive_closed: bool = False
        self.orphaned: bool = False
        self.error: int = 0
        # Why it broke, for as long as anybody may ask.
        self.cause: int = 0
        # The next sequence number to send, the next the other end expects, and what it has room
        # for. 0 was the SYN's.
        self.next: int = 1
        self._acked = 1
        self._edge = 1
        # What we have told it to have room for.
        self._promised = 1 + receive_size
        # Not sent yet, oldest first; so many bytes of the first have left already.
        self._queue: deque[bytes] = deque()
        self._offset = 0
        self._unsent = 0
        # Sent and not acknowledged, by sequence number, in order; with the time of sending.
        self._flying: dict[int, tuple[Segment, float]] = {}
        self._unacked = 0
        # Known to be lost, by sequence number; with the number of the event that sends it again.
        self._sending_again: dict[int, int] = {}
        # Word from the other end was lost, so what it has room for may be more than we know.
        self._stale = False
        # How far the lost words said that there is room: what was sent before them and arrives
        # after tells nothing of it.
        self._hidden = 0
        # When something first went unanswered, since the last progress; for those with a timeout.
        self._since: float | None = None
        # How often the window was asked for since the last word.
        self._probes = 0
        # 0: none; 1: to be sent behind everything; 2: sent; 3: acknowledged.
        self._fin = 0
        self._counts: dict[str, int] = {}
        self._send_busy = False
        self._sender: trio.lowlevel.Task | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.protocol} {self.local} > {self.remote}>"

    # What a stream sees

    @property
    def broken(self) -> bool:
        """Whether the connection is over, and not by both ends' closing."""
        return self.inbox.broken

    @property
    def sending(self) -> bool:
        """Whether a send is under way."""
        return self._send_busy

    @property
    def parked(self) -> bool:
        """Whether a task waits in `park_sender`."""
        return self._sender is not None

    @property
    def finished(self) -> bool:
        """Whether both ends have closed and know it of each other."""
        return self._fin == 3 and self.inbox.send_closed

    @property
    def fin_state(self) -> str:
        """What became of this end's FIN: ``none``, ``sent``, ``acknowledged``."""
        return ("none", "sent", "sent", "acknowledged")[self._fin]

    @property
    def buffered(self) -> int:
        """How many bytes stand in the send buffer, those on their way included."""
        return self._unsent + self._unacked

    @property
    def in_flight(self) -> int:
        """How many bytes were sent and not acknowledged."""
        return self._unacked

    @property
    def writable(self) -> bool:
        """Whether there is room enough that a waiting sender is woken.

        Linux's rule (sk_stream_is_writeable): a third of the buffer, so that it does not wake for
        every segment.
        """
        if self.not_sent_limit is not None and self._unsent >= self.not_sent_limit:
            return False
        buffered = self._unsent + self._unacked
        return 2 * (self.capacity - buffered) >= buffered

    def put(self, data: bytes | memoryview, start: int = 0, stop: int | None = None) -> int:
        """Take a first part of ``data[start:stop]`` to be sent; return how many bytes that is.

        A memoryview must be one of bytes.
        """
        stop = len(data) if stop is None else stop
        at = start
        while at < stop:
            room = self.capacity - self._unsent - self._unacked
            if self.not_sent_limit is not None:
                room = min(room, self.not_sent_limit - self._unsent)
            if room <= 0:
                break
            size = min(room, stop - at)
            # No copy where a whole bytes object is taken: bytes() of one is itself.
            self._queue.append(bytes(data if size == len(data) else data[at : at + size]))
            self._unsent += size
            self.sent += size
            at += size
            # Over a link that takes no time this makes room again.
            self._transmit()
        return at - start

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Pass ``data`` on, and return once the send buffer has taken all of it.

        If cancelled, what the buffer has taken is sent, and nothing else: `sent` tells.
        """
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        if type(data) is not bytes:
            # memoryview() first: bytes(5) would send five zero bytes.
            data = bytes(memoryview(data))
        self._send_busy = True
        try:
            await checkpoint_if_cancelled()
            self.check_sendable()
            done = self.put(data)
            if done == len(data):
                await cancel_shielded_checkpoint()
            while done < len(data):
                await self.park_sender()
                # It may have been closed, or broken, since this was woken.
                self.check_sendable()
                done += self.put(data, done)
        finally:
            self._send_busy = False

    async def wait_room(self) -> None:
        """Wait until the send buffer has room."""
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        if self.send_closed or self.broken:
            self.check_sendable()
        if self.writable or self.receive_closed:
            await checkpoint()
            return
        self._send_busy = True
        try:
            await self.park_sender()
        finally:
            self._send_busy = False

    async def park_sender(self) -> None:
        """Wait until this is `writable`, or raise what keeps it from ever being so."""
        assert self._sender is None
        self._sender = current_task()

        def abort(_: object) -> Abort:
            self._sender = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def end(self) -> None:
        """Say end of file behind all that was sent."""
        if self._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        self.close_send()

    def close_send(self) -> None:
        """Close the sending half; a task that waits in it gets Closed."""
        if self.send_closed:
            return
        self.send_closed = True
        self._fail_sender(trio.ClosedResourceError("this stream was closed by another task"))
        if not (self.broken or self.receive_closed):
            self._fin = 1
            self._transmit()

    def cut(self) -> None:
        """Reset the connection, at both ends."""
        self.reset(errno.ECONNRESET)

    def check_sendable(self) -> None:
        """Raise what a send would."""
        if self.send_closed:
            raise trio.ClosedResourceError("this stream is closed for sending")
        if self.broken:
            raise self.broken_error()
        if self.receive_closed:
            raise trio.BrokenResourceError("the peer has closed the connection")

    def broken_error(self) -> trio.BrokenResourceError:
        """Return what a stream raises once the connection is over."""
        code = self.cause or errno.ECONNRESET
        words = "was reset" if code == errno.ECONNRESET else f"broke: {os.strerror(code)}"
        error = trio.BrokenResourceError(f"the connection {words}")
        error.__cause__ = OSError(code, os.strerror(code))
        return error

    def receiving_closed(self) -> None:
        """Hear from the inbox that nobody receives from it any more."""
        if self.protocol != "tcp" and not (self.broken or self.finished):
            self._emit("STOP")

    def room_opened(self) -> None:
        """Hear from the inbox that bytes were received: tell the other end if it needs to know."""
        inbox = self.inbox
        # RFC 9293 section 3.8.6.2.2, receiver's silly window avoidance. Whoever reads all that
        # there is opens at least this much to a sender whose window is closed.
        if inbox.edge - self._promised >= min(inbox.capacity // 2 or 1, 2 * 16384) and not (
            inbox.broken or inbox.send_closed
        ):
            self._emit("ACK")

    # What the line sees

    def arrive(self, segment: Segment) -> None:
        """Take a segment from the other end."""
        kind = segment.kind
        if kind == "RST":
            self.fail(errno.EPIPE if self.inbox.send_closed else errno.ECONNRESET)
        elif self.broken:
            # Nobody here knows this connection.
            self._emit("RST")
        elif kind == "STOP":
            self._stop()
        else:
            self._acknowledge(segment)
            if kind != "ACK":
                self._receive(segment)

    def lost(self, segment: Segment, sent_at: float) -> None:
        """Hear that a segment of this end was lost."""
        if segment.kind == "RST" and self.peer is not None:
            # It is not sent again; but what the other end has sent will stay without an answer.
            self.peer.suspect(self.inbox.expected + WHOLE, WHOLE)
        if self.broken:
            return
        if self.peer is not None:
            acknowledged = segment.acknowledgement if segment.kind == "ACK" else 0
            self.peer.suspect(acknowledged, segment.acknowledgement + segment.window)
        if segment.kind in SENT_AGAIN:
            self._schedule(segment, sent_at)
        elif segment.kind == "PROBE":
            self._stale = True
            self._probe()

    def suspect(self, acknowledgement: int, edge: int = 0) -> None:
        """Hear that the other end's word was lost that it has all up to ``acknowledgement``.

        TCP would hear nothing, and send the last of it again; and where the window is closed it
        would ask whether it is open again. 0: there is no such word, but none would come through.
        What was lost said that there is room up to ``edge``.
        """
        if self.broken:
            return
        self._stale = True
        self._hidden = max(self._hidden, edge)
        last: tuple[Segment, float] | None = None
        for sequence, flying in self._flying.items():
            if sequence >= acknowledgement:
                break
            last = flying
        if last is not None:
            self._schedule(*last)
        self._probe()

    def due(self, item: Segment | None) -> None:
        """Send a segment again that was lost, or for None ask for the window."""
        if item is None:
            del self._sending_again[PROBE]
            if self._unsent and self._edge <= self.next and not self._given_up(self._probes):
                self._probes += 1
                self._emit("PROBE")
            return
        key = STOP if item.kind == "STOP" else item.sequence
        del self._sending_again[key]
        if (key == STOP or key in self._flying) and not self._given_up(item.attempt):
            again = self._make(item.kind, item.payload, item.sequence, item)
            if key != STOP:
                self._flying[key] = (again, trio.current_time())
            self._carry(again)

    def _given_up(self, attempts: int) -> bool:
        """Whether so many attempts were the last; then the connection is over."""
        if attempts < (RETRIES_ORPHAN if self.orphaned else RETRIES):
            return False
        self.fail(errno.ETIMEDOUT)
        return True

    def fail(self, code: int) -> None:
        """Let the connection be over: nothing is sent any more, what was received stays."""
        if self.broken or self.finished:
            return
        self.error = self.cause = code
        self._forget()
        self.inbox.fail()
        self._fail_sender(self.broken_error())
        self.over()

    def release(self, *, abort: bool = False) -> None:
        """Let go of this end, as close(2) does: it goes on alone until all is sent, or is reset.

        It is reset if ``abort`` says so, or where bytes were not received (RFC 2525 section 2.17).
        """
        abort = abort or self.inbox.unread > 0
        self.orphaned = True
        if abort:
            # Closed for whoever waits here, then broken for the other end.
            self.send_closed = True
            self._fail_sender(trio.ClosedResourceError("this stream was closed by another task"))
        else:
            self.close_send()
        self.inbox.close_receive()
        if abort:
            self.reset(errno.ECONNRESET)

    def reset(self, code: int) -> None:
        """Tell the other end that the connection is over, and let it be over here."""
        if not (self.broken or self.finished):
            self._emit("RST")
            self.fail(code)

    def over(self) -> None:
        """Hear that this end has nothing to do any more; for those that keep a list of them."""

    # Inside

    def _make(
        self,
        kind: str,
        payload: bytes = b"",
        sequence: int | None = None,
        before: Segment | None = None,
    ) -> Segment:
        inbox = self.inbox
        expected = inbox.expected
        window = max(0, inbox.capacity - inbox.unread)
        self._promised = expected + window
        if before is None:
            index = self._counts.get(kind, 0)
            self._counts[kind] = index + 1
            attempt = 0
        else:
            index, attempt = before.index, before.attempt + 1
        return Segment(
            self.protocol,
            kind,
            self.local,
            self.remote,
            self.connection,
            index,
            self.next if sequence is None else sequence,
            # A SYN has nothing to acknowledge yet.
            expected if kind != "SYN" else 0,
            window,
            payload,
            attempt,
        )

    def _emit(self, kind: str) -> None:
        self._carry(self._make(kind))

    def _carry(self, segment: Segment) -> None:
        assert self.peer is not None
        self.line.carry(segment, self, self.peer)

    def _transmit(self) -> None:
        """Send what the window allows. Each turn leaves nothing half done: see `Timeline.post`."""
        while self._unsent and self._edge > self.next and not self.broken:
            payload = self._cut(min(self._edge - self.next, self.line.link.segment_size))
            self._unsent -= len(payload)
            self._unacked += len(payload)
            self._fly(self._make("DATA", payload), len(payload))
        if self._unsent and self._stale:
            self._probe()
        if self._fin == 1 and not self._unsent and not self.broken:
            self._fin = 2
            self._fly(self._make("FIN"), 1)

    def _fly(self, segment: Segment, length: int) -> None:
        self._flying[segment.sequence] = (segment, self.line.timeline.time())
        self.next += length
        self._carry(segment)

    def _cut(self, limit: int) -> bytes:
        """Remove the next bytes from the queue: as many as fit into one segment."""
        queue = self._queue
        first = queue[0]
        size = len(first) - self._offset
        if size > limit:
            self._offset += limit
            return first[self._offset - limit : self._offset]
        queue.popleft()
        if self._offset:
            first = first[self._offset :]
            self._offset = 0
        if not queue or size + len(queue[0]) > limit:
            return first
        parts = [first]
        while queue and size + len(queue[0]) <= limit:
            size += len(queue[0])
            parts.append(queue.popleft())
        return b"".join(parts)

    def _acknowledge(self, segment: Segment) -> None:
        """Learn what arrived, and what there is room for."""
        ack = segment.acknowledgement
        if ack > self._acked:
            self._acked = ack
            self._since = None
            flying = self._flying
            while flying:
                sequence = next(iter(flying))
                if sequence >= ack:
                    break
                done, _ = flying.pop(sequence)
                self._unacked -= len(done.payload)
                if self._sending_again:
                    self._cancel(sequence)
                if done.kind == "FIN":
                    self._fin = 3
                    if self.inbox.send_closed:
                        self.over()
        if not self._flying:
            # What asked for the window was answered.
            self._since = None
        self._probes = 0
        if ack + segment.window > self._edge:
            self._edge = ack + segment.window
        self._stale = self._hidden > self._edge
        if self._unsent or self._fin == 1:
            self._transmit()
        if self._sender is not None and self.writable:
            self._wake_sender(outcome.Value(None))

    def _receive(self, segment: Segment) -> None:
        inbox = self.inbox
        if inbox.receive_closed and segment.kind == "DATA" and segment.sequence >= inbox.expected:
            if self.protocol != "tcp":
                self._emit("STOP")
            else:
                # RFC 2525 section 2.17: nobody will ever read it, and the sender is told.
                self.reset(errno.ECONNRESET)
            return
        if segment.kind != "PROBE":
            ended = inbox.send_closed
            inbox.take_segment(segment)
            if inbox.send_closed and not ended and self._fin == 3:
                self.over()
        self._emit("ACK")

    def _stop(self) -> None:
        """The other end is closed, and reads nothing any more; what it sent stays readable."""
        if self.receive_closed:
            return
        self.receive_closed = True
        self._forget()
        if self._fin:
            self._fin = 3
        self._fail_sender(trio.BrokenResourceError("the peer has closed the connection"))

    def _forget(self) -> None:
        """Drop all that was to be sent."""
        for sequence in list(self._sending_again):
            self._cancel(sequence)
        self._queue.clear()
        self._flying.clear()
        self._offset = self._unsent = self._unacked = 0

    def _schedule(self, segment: Segment, sent_at: float) -> None:
        key = STOP if segment.kind == "STOP" else segment.sequence
        self._come_back(key, sent_at + self._patience(segment), segment)

    def _probe(self) -> None:
        """Ask for the window, if it is closed and the word of its opening may have been lost."""
        if self._unsent and self._edge <= self.next:
            self._come_back(PROBE, trio.current_time() + self._patience(None), None)

    def _patience(self, segment: Segment | None) -> float:
        """How long TCP waits for the answer to a segment, or to the last probe."""
        return BACKOFF[min(self._probes if segment is None else segment.attempt, RETRIES)]

    def _come_back(self, key: int, time: float, item: Segment | None) -> None:
        if key not in self._sending_again:
            time = max(time, trio.current_time())
            self._sending_again[key] = self.line.timeline.at(time, self, item)

    def _cancel(self, sequence: int) -> None:
        number = self._sending_again.pop(sequence, None)
        if number is not None:
            self.line.timeline.cancel(number)

    def _fail_sender(self, error: Exception) -> None:
        if self._sender is not None:
            self._wake_sender(outcome.Error(error))

    def _wake_sender(self, result: outcome.Outcome[None]) -> None:
        assert self._sender is not None
        task, self._sender = self._sender, None
        reschedule(task, result)


def join(near: End, far: End) -> None:
    """Make two ends one connection that is established."""
    near.peer, far.peer = far, near
    near._edge, far._edge = far.inbox.edge, near.inbox.edge
