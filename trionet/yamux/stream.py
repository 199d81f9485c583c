"""One stream: the table of its states, and what it holds in either direction.

A stream is two directions that end separately, each by a FIN, and a reset that ends both. The
table is all there is: what is not in it is the peer's violation or our bug.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, final

from .window import ReceiveWindow, SendWindow

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("GRANT", "TRANSITIONS", "Event", "State", "Stream")


class State(Enum):
    """Where a stream stands: (we may send, the peer may send)."""

    OPEN = (True, True)
    LOCAL_EOF = (False, True)
    REMOTE_EOF = (True, False)
    FINISHED = (False, False)
    # Both directions were cut short.
    RESET = (False, False, "reset")
    # Ours was cut short after the peer had ended its own: what it sent stays readable, as a whole.
    CUT = (False, False, "cut")

    def __init__(self, sends: bool, receives: bool, how: str = "") -> None:
        self.sends: bool = sends
        self.receives: bool = receives
        self.over: bool = not sends and not receives
        self.cut_short: bool = bool(how)


class Event(Enum):
    """What moves a stream on."""

    FIN_OUT = "we end our direction"
    FIN_IN = "the peer ends its own"
    RESET = "one side gives the stream up"


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (State.OPEN, Event.FIN_OUT): State.LOCAL_EOF,
    (State.OPEN, Event.FIN_IN): State.REMOTE_EOF,
    (State.OPEN, Event.RESET): State.RESET,
    (State.LOCAL_EOF, Event.FIN_IN): State.FINISHED,
    (State.LOCAL_EOF, Event.RESET): State.RESET,
    (State.REMOTE_EOF, Event.FIN_OUT): State.FINISHED,
    (State.REMOTE_EOF, Event.RESET): State.CUT,
    # Our FIN may still wait behind data; a reset drops both.
    (State.FINISHED, Event.RESET): State.CUT,
}

# A bit among the wire's flags in `Stream.due`: a window update is.
GRANT: Final = 1 << 16

# Received pieces below this are joined into one of up to JOIN_MAX, so that a peer that sends a
# byte a frame cannot make us spend an object on each.
SMALL: Final = 2048
JOIN_MAX: Final = 64 * 1024


@final
class Stream:
    """What one end of a stream knows.

    Attributes:
      id: odd where the client opened it, even where the server did.
      weight: its share of the session's output among the streams that have some.
      state: see `State`.
      why: what to tell the user of a stream that was cut short; None where it asked for it.
      due: flags to be sent, and `GRANT`.
      in_ring: whether this stream takes turns in sending data.
      deficit: bytes it may send in its turn.
      acknowledged: the peer has answered a stream of ours, in whatever way.
      closed: nobody here reads or writes any more; what arrives is dropped.
      dropped: how many bytes were.
      outgoing, incoming: the windows.
      inbox: unread pieces, oldest first, or None. Of the first, `offset` bytes were read.
      outbox: bytes to be sent, ours to keep, or None.
      lent: bytes to be sent after those, the caller's own; it waits until they are taken.
      lent_at: how many of them were.
      sent: bytes that went into frames.
      reader, writer: who waits to receive or send: the caller's objects, opaque to us.
    """

    __slots__ = (
        "acknowledged",
        "closed",
        "deficit",
        "dropped",
        "due",
        "id",
        "in_ring",
        "inbox",
        "incoming",
        "lent",
        "lent_at",
        "offset",
        "outbox",
        "outgoing",
        "reader",
        "sent",
        "state",
        "weight",
        "why",
        "writer",
    )

    def __init__(self, stream_id: int, weight: int, window: int, now: float) -> None:
        self.id: int = stream_id
        self.weight: int = weight
        self.state: State = State.OPEN
        self.why: str | None = None
        self.due: int = 0
        self.in_ring: bool = False
        self.deficit: int = 0
        self.acknowledged: bool = False
        self.closed: bool = False
        self.dropped: int = 0
        self.outgoing: SendWindow = SendWindow()
        self.incoming: ReceiveWindow = ReceiveWindow(window, now)
        self.inbox: deque[bytes | bytearray] | None = None
        self.offset: int = 0
        self.outbox: bytes | bytearray | None = None
        self.lent: memoryview | None = None
        self.lent_at: int = 0
        self.sent: int = 0
        self.reader: Any = None
        self.writer: Any = None

    def __repr__(self) -> str:
        return f"<yamux stream {self.id} {self.state.name}>"

    def move(self, event: Event) -> bool:
        """Go where the table says; return False if it says nothing."""
        target = TRANSITIONS.get((self.state, event))
        if target is None:
            return False
        self.state = target
        return True

    # What we send

    @property
    def outbox_size(self) -> int:
        """Bytes of ours that wait to be sent."""
        return 0 if self.outbox is None else len(self.outbox)

    @property
    def pending(self) -> int:
        """Bytes that wait to be sent, lent ones included."""
        size = 0 if self.outbox is None else len(self.outbox)
        return size if self.lent is None else size + len(self.lent) - self.lent_at

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Keep a copy of ``data`` to be sent."""
        if type(data) is not bytes:
            # Of a view with gaps, too, which a bytearray does not take.
            data = bytes(data)
        outbox = self.outbox
        if outbox is None:
            self.outbox = data
        elif type(outbox) is bytearray:
            outbox += data
        else:
            joined = bytearray(outbox)
            joined += data
            self.outbox = joined

    def take(self, size: int, parts: list[bytes | bytearray | memoryview]) -> None:
        """Move the next ``size`` bytes, of those `pending`, to ``parts``."""
        self.sent += size
        outbox = self.outbox
        if outbox is not None:
            have = len(outbox)
            if have <= size:
                parts.append(outbox)
                self.outbox = None
                size -= have
                if not size:
                    return
            else:
                parts.append(outbox[:size])
                self.outbox = outbox[size:]
                return
        assert self.lent is not None
        at = self.lent_at
        parts.append(self.lent[at : at + size])
        self.lent_at = at + size
        if self.lent_at == len(self.lent):
            self.lent = None
            self.lent_at = 0

    def drop_output(self) -> None:
        """Forget what waits to be sent."""
        self.outbox = None
        self.lent = None
        self.lent_at = 0

    # What we receive

    def arrive(self, piece: bytes) -> None:
        """Keep a piece of a body."""
        inbox = self.inbox
        if inbox is None:
            self.inbox = deque((piece,))
            return
        if len(piece) < SMALL:
            last = inbox[-1]
            if type(last) is bytearray:
                if len(last) < JOIN_MAX:
                    last += piece
                    return
            elif len(last) < SMALL:
                joined = bytearray(last)
                joined += piece
                inbox[-1] = joined
                return
        inbox.append(piece)

    def read(self, limit: int | None) -> bytes:
        """Remove and return the next bytes, at least one, at most ``limit``."""
        inbox = self.inbox
        assert inbox is not None
        piece = inbox[0]
        offset = self.offset
        if limit is not None and len(piece) - offset > limit:
            # Only the slice is copied, however big the piece: small reads stay linear.
            self.offset = offset + limit
            part = piece[offset : offset + limit]
            return part if type(part) is bytes else bytes(part)
        inbox.popleft()
        if not inbox:
            self.inbox = None
        if offset:
            self.offset = 0
            piece = piece[offset:]
        return piece if type(piece) is bytes else bytes(piece)

    @property
    def unread(self) -> int:
        """Bytes that arrived and were not read."""
        return 0 if self.inbox is None else sum(map(len, self.inbox)) - self.offset

    def drop_input(self) -> int:
        """Forget what was not read, and return how many bytes it was."""
        size = self.unread
        self.inbox = None
        self.offset = 0
        return size
