"""TCP between virtual hosts: how connections begin, and the timeouts that programs can set.

`Connection` adds to a wire's end what needs a host; `Backlog` is where they wait to be accepted.
One file, since each tells the other when it ends.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final, final

import outcome
import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from .._streams.line import RETRIES_SYN, RTO_FIRST_SYN
from .._streams.wire import End

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._streams.line import Receiver
    from .._streams.segment import Endpoint, Segment
    from .routes import Route

__all__ = ("Backlog", "Connection")

# net.ipv4.tcp_synack_retries.
RETRIES_SYN_ACK: Final = 5

# Something that comes due and is no segment.
KEEPALIVE: Final = "keepalive"


@final
class Connection(End):
    """One end of a TCP or Unix connection.

    Attributes:
      state: ``"SYN-SENT"``, ``"SYN-RECEIVED"`` or ``"OPEN"``.
      backlog: where it waits to be accepted, until it is.
      user_timeout: seconds that something sent may stay unanswered (RFC 5482), or None.
      keepalive: (idle, interval, count), or None; see `watch`.
      on_over: called once, when there is nothing left to do here.
      door: where the SYN came in that this end answers.
      deaf: shut down for receiving.
    """

    __slots__ = (
        "_asked",
        "_heard",
        "_keeping",
        "_opener",
        "_over",
        "backlog",
        "deaf",
        "door",
        "keepalive",
        "on_over",
        "state",
        "user_timeout",
    )

    line: Route
    error: int

    def __init__(
        self,
        line: Route,
        local: Endpoint,
        remote: Endpoint,
        *,
        protocol: str,
        connection: int,
        sizes: tuple[int, int],
        state: str,
        on_over: Callable[[Connection], None],
    ) -> None:
        send_size, receive_size = sizes
        super().__init__(
            line,
            local,
            remote,
            protocol=protocol,
            connection=connection,
            send_size=send_size,
            receive_size=receive_size,
        )
        self.state: str = state
        self.backlog: Backlog | None = None
        self.door: Receiver | None = None
        self.user_timeout: float | None = None
        self.keepalive: tuple[float, float, int] | None = None
        self.on_over: Callable[[Connection], None] = on_over
        self.deaf: bool = False
        self._over = False
        self._opener: trio.lowlevel.Task | None = None
        self._heard = 0.0
        self._asked = 0
        self._keeping: int | None = None
        # The SYN is to be acknowledged.
        self._acked = 0

    @property
    def is_open(self) -> bool:
        """Whether the other end has answered."""
        return self.state == "OPEN"

    # How it begins

    def knock(self, segment_kind: str) -> None:
        """Send the first segment: a SYN, or the SYN-ACK that answers one."""
        segment = self._make(segment_kind, sequence=0)
        self._flying[0] = (segment, trio.current_time())
        self._carry(segment)

    def allow(self, segment: Segment) -> None:
        """Learn from a SYN how much the other end has room for."""
        self._edge = 1 + segment.window

    def sent_at(self, segment: Segment) -> float:
        """Return when a segment was sent that is not acknowledged."""
        return self._flying[segment.sequence][1]

    async def wait_open(self) -> None:
        """Wait until the other end has answered.

        Raises:
          OSError: it refused, or never will answer.
          trio.BusyResourceError: another task waits.

        If cancelled, the connection is still being opened.
        """
        if self._opener is not None:
            raise trio.BusyResourceError("another task is connecting this socket")
        if self.is_open or self.broken:
            await trio.lowlevel.checkpoint()
        else:
            self._opener = current_task()

            def abort(_: object) -> Abort:
                self._opener = None
                return Abort.SUCCEEDED

            await wait_task_rescheduled(abort)
        if self.broken:
            code = self.take_error()
            # OSError() picks the subclass: ConnectionRefusedError, TimeoutError, ...
            raise OSError(code, f"{os.strerror(code)}: {self.remote}")

    def _receive(self, segment: Segment) -> None:
        if segment.kind == "DATA" and self.deaf and self.send_closed and self.protocol == "tcp":
            # Linux, once both directions are shut down (tcp_rcv_state_process).
            self.reset(errno.ECONNRESET)
        else:
            super()._receive(segment)

    def arrive(self, segment: Segment) -> None:
        """Take a segment from the other end."""
        if self.keepalive is not None:
            self._heard = trio.current_time()
            self._asked = 0
        if self.broken and self.door is not None and segment.kind == "SYN":
            # This end gave up, or its host was off meanwhile; whoever listens now may take it.
            self.door.arrive(segment)
            return
        if self.state != "OPEN" and not self.broken and not self._answered(segment):
            return
        super().arrive(segment)

    def lost(self, segment: Segment, sent_at: float) -> None:
        """Hear that a segment of this end was lost."""
        if segment.kind == "SYN-ACK" and self.peer is not None:
            # The SYN comes again, too: nothing has answered it, and this end may give up first.
            self.peer.suspect(1)
        super().lost(segment, sent_at)

    def _answered(self, segment: Segment) -> bool:
        """Take what arrives before both ends are open; whether it is to be taken further."""
        kind = segment.kind
        if kind == "RST":
            self.fail(errno.ECONNREFUSED)
            return False
        if self.state == "SYN-SENT":
            if kind != "SYN-ACK":
                return False
            self._acknowledge(segment)
            self.state = "OPEN"
            self.watch()
            self._emit("ACK")
            self._transmit()
            if self._opener is not None:
                task, self._opener = self._opener, None
                reschedule(task)
            return False
        if kind == "SYN":
            # Our answer was lost, so it comes again.
            self._emit_again()
            return False
        self.state = "OPEN"
        if self.backlog is not None:
            self.backlog.add(self)
        return True

    def _emit_again(self) -> None:
        before, sent_at = self._flying[0]
        if sent_at == trio.current_time():
            return
        self._cancel(0)
        again = self._make(before.kind, b"", 0, before)
        self._flying[0] = (again, trio.current_time())
        self._carry(again)

    # How it ends

    def take_error(self) -> int:
        """Return why it is over, once; 0 after that, or if it is not."""
        code, self.error = self.error, 0
        return code

    def unreachable(self, code: int) -> None:
        """Hear from the network that the other host cannot be reached."""
        if not self.is_open:
            # Once open, Linux takes it for a passing trouble.
            self.fail(code)

    def reset_both(self) -> None:
        """Be reset from outside, and the other end with it."""
        peer = self.peer
        self.fail(errno.ECONNRESET if self.is_open else errno.ECONNREFUSED)
        if isinstance(peer, Connection):
            peer.fail(errno.ECONNRESET)

    def vanish(self) -> None:
        """Be gone without a word, as when the power goes."""
        self.fail(errno.ENETDOWN)

    def fail(self, code: int) -> None:
        """Let the connection be over."""
        if self.broken or self.finished:
            return
        super().fail(code)
        if self._opener is not None:
            task, self._opener = self._opener, None
            reschedule(task)

    def over(self) -> None:
        """Tell the host that this is over."""
        if not self._over:
            self._over = True
            if self._keeping is not None:
                self.line.timeline.cancel(self._keeping)
                self._keeping = None
            if self.backlog is not None and self.state == "SYN-RECEIVED":
                self.backlog.pending -= 1
            self.on_over(self)

    # Timeouts

    def keep_alive(self, times: tuple[float, float, int] | None) -> None:
        """Switch keepalive on or off; the time of silence starts now."""
        if times is not None and self.keepalive is None:
            self._heard = trio.current_time()
        self.keepalive = times
        self.watch()

    def watch(self) -> None:
        """Begin to send keepalive probes, if they are wanted and could go unanswered.

        On a way that loses nothing all would be answered, so none is sent; the host calls this
        when a fault begins, and a program when it switches keepalive on.
        """
        if self.keepalive is None or self._keeping is not None or not self.is_open:
            return
        if self.broken or self.finished or self.reliable:
            return
        self._keep(self._heard + self.keepalive[0])

    def due(self, item: Any) -> None:
        """Do what was put off."""
        if item is not KEEPALIVE:
            super().due(item)
            return
        self._keeping = None
        if self.keepalive is None or self.reliable:
            return
        idle, interval, count = self.keepalive
        now = trio.current_time()
        if self._flying or self._unsent:
            # What is sent again asks the same (tcp_keepalive_timer).
            self._keep(now + idle)
        elif not self._asked and now < self._heard + idle:
            self._keep(self._heard + idle)
        elif self._asked and self._silent_too_long(now, count):
            self.reset(errno.ETIMEDOUT)
        else:
            self._asked += 1
            self._keep(now + interval)
            self._emit("PROBE")

    def _silent_too_long(self, now: float, count: int) -> bool:
        if self.user_timeout is not None:
            return now - self._heard >= self.user_timeout
        return self._asked >= count

    def _keep(self, time: float) -> None:
        time = max(time, trio.current_time())
        self._keeping = self.line.timeline.at(time, self, KEEPALIVE)

    @property
    def reliable(self) -> bool:
        """Whether all that is sent, either way, will arrive at an end that knows of this one."""
        peer = self.peer
        return (
            self.line.reliable
            and isinstance(peer, Connection)
            and not peer.broken
            and peer.line.reliable
        )

    def _patience(self, segment: Segment | None) -> float:
        if segment is not None and segment.sequence == 0:
            return RTO_FIRST_SYN * 2.0**segment.attempt
        return super()._patience(segment)

    def _come_back(self, key: int, time: float, item: Segment | None) -> None:
        if self.user_timeout is not None:
            if self._since is None:
                self._since = time - self._patience(item)
            # As tcp_clamp_rto_to_user_timeout does, so that it ends on time.
            time = min(time, self._since + self.user_timeout)
        super()._come_back(key, time, item)

    def _given_up(self, attempts: int) -> bool:
        if self.user_timeout is not None and self._since is not None:
            # The clock may have come to a hair before it.
            if trio.current_time() < self._since + self.user_timeout - 1e-9:
                return False
            self.fail(errno.ETIMEDOUT)
            return True
        limits = {"SYN-SENT": RETRIES_SYN, "SYN-RECEIVED": RETRIES_SYN_ACK}
        if attempts >= limits.get(self.state, attempts + 1):
            self.fail(errno.ETIMEDOUT)
            return True
        return super()._given_up(attempts)


@final
class Backlog:
    """The connections of a listening socket that nobody accepted yet.

    Attributes:
      limit: how many may wait, those whose handshake is under way included.
      sizes: the send and receive buffers its connections get.
      pending: how many handshakes are under way.
      closed: it listens no more.
    """

    __slots__ = ("_acceptor", "_queue", "closed", "limit", "pending", "sizes")

    def __init__(self, limit: int, sizes: tuple[int, int]) -> None:
        self.limit: int = limit
        self.sizes: tuple[int, int] = sizes
        self.pending: int = 0
        self.closed: bool = False
        self._queue: deque[Connection] = deque()
        self._acceptor: trio.lowlevel.Task | None = None

    def __len__(self) -> int:
        """How many connections wait to be accepted."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether another SYN is ignored; Linux has room for one more than was asked for."""
        return len(self._queue) + self.pending > self.limit

    def add(self, connection: Connection) -> None:
        """Queue a connection whose handshake is done."""
        self.pending -= 1
        if self.closed:
            connection.backlog = None
            connection.release(abort=True)
            return
        self._queue.append(connection)
        self.wake()

    def take(self) -> Connection | None:
        """Take the oldest connection, or None."""
        if not self._queue:
            return None
        connection = self._queue.popleft()
        connection.backlog = None
        return connection

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._acceptor is not None:
            task, self._acceptor = self._acceptor, None
            reschedule(task)

    async def wait(self) -> None:
        """Wait until `take` will probably find something.

        Raises:
          trio.BusyResourceError: another task waits.
          trio.ClosedResourceError: the socket was closed.

        If cancelled, nothing was taken.
        """
        if self._acceptor is not None:
            raise trio.BusyResourceError("another task is accepting on this listener")
        self._acceptor = current_task()

        def abort(_: object) -> Abort:
            self._acceptor = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def close(self) -> None:
        """Reset what nobody accepted; whoever waits gets Closed."""
        self.closed = True
        queue, self._queue = self._queue, deque()
        for connection in queue:
            connection.backlog = None
            connection.release(abort=True)
        if self._acceptor is not None:
            task, self._acceptor = self._acceptor, None
            error = trio.ClosedResourceError("this listener was closed by another task")
            reschedule(task, outcome.Error(error))
