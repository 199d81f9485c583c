"""Many connections under one API: halves of them lent, or streams opened on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast, final

import trio
from trio.lowlevel import enable_ki_protection

from .._options import Backoff
from .._pool.entry import Entry
from .._pool.settings import DEFAULT_BACKOFF, require_count, require_duration, require_seconds
from ..yamux import MuxConfig
from ..yamux.config import check_weight
from .duplex import BOTH, READ, WRITE
from .fleet import Fleet
from .lending import Switchboard
from .loan import Loan
from .plan import MultiplexerEvent, Plan
from .sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from .halves import BorrowedStream, Half, ReceiveHalf, SendHalf
    from .stream import MuxStream

__all__ = ("Multiplexer", "MultiplexerStatistics")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MultiplexerStatistics:
    """What a multiplexer has and has done, at one moment.

    Attributes:
      capacity: how many connections there may be.
      strength: how many there should be: what was lost since is being brought back.
      size: slots taken: connections, those being made, and those not closed yet.
      idle: connections with nothing lent, or no stream on them.
      lent: connections of which something is lent, or that carry streams.
      leaving: connections taken out, and still used by somebody or being read up.
      connecting, closing: being made; not yet closed.
      readers, writers, borrowed: receive halves, send halves, and both halves of one, lent now.
      streams: open on the sessions now.
      waiting: tasks that wait.
      acquired: how often something was lent, or a stream opened.
      cancelled, timed_out: how often a task stopped waiting, for its ``timeout`` or otherwise.
      connected, connect_failures: how many dials went well, and how many did not.
      added: connections given, when it was made or later.
      lost, healed, scaled_up, scaled_down: how often it happened; see `MultiplexerEvent`.
      closed: connections that were closed or are closing: ``connected + added`` less those open.
      reasons: the same, by reason: ``"discarded"``, ``"used up"``, ``"dead"``, ``"going away"``,
        ``"idle"``, ``"closed"``, ``"surplus"``.
      last_error: why connecting failed last, if it has not succeeded since.
    """

    capacity: int
    strength: int
    size: int
    idle: int
    lent: int
    leaving: int
    connecting: int
    closing: int
    readers: int
    writers: int
    borrowed: int
    streams: int
    waiting: int
    acquired: int
    cancelled: int
    timed_out: int
    connected: int
    connect_failures: int
    added: int
    lost: int
    healed: int
    scaled_up: int
    scaled_down: int
    closed: int
    reasons: dict[str, int]
    last_error: Exception | None


@final
class Multiplexer:
    """Keeps a set of connections, and lends their halves, or opens streams on them.

    ::

        async with trionet.Multiplexer(connect, capacity=8, scale_after=0.05) as plex:
            async with plex.writer() as half:
                await half.send_all(request)
            async with plex.borrow() as stream:
                ...

    Tasks are served in the order in which they came, each with the first half that it can use. A
    connection that was used up or has failed leaves the set whole, and with ``connect`` the set is
    brought back to the strength it had; it grows when tasks have to wait, and shrinks when nobody
    needs it. The block owns every task and every connection of it: leaving the block closes them
    all, those too that are lent to others at that moment.
    """

    __slots__ = ("_board", "_fleet", "_sessions", "_streams")

    def __init__(
        self,
        connect: Callable[[], Awaitable[trio.abc.Stream]] | None = None,
        *,
        streams: Sequence[trio.abc.Stream] = (),
        capacity: int | None = None,
        scale_after: float | None = None,
        idle_timeout: float | None = 60.0,
        backoff: Backoff = DEFAULT_BACKOFF,
        mux: MuxConfig | None = None,
        on_event: Callable[[MultiplexerEvent], object] | None = None,
    ) -> None:
        """Make a multiplexer; nothing is opened, and no stream taken over, before its block.

        Args:
          connect: makes a connection, a new one at each call, to wherever it likes. It gets 10 s.
            None: there are only the connections that are given.
          streams: connections to begin with. They are the multiplexer's from the moment its block
            begins, and closed in the end.
          capacity: connections at most, those that are being made or closed included; as many as
            ``streams``, but at least 1, unless given. A session whose peer goes away does not
            count while its last streams end.
          scale_after: seconds a task waits before it calls for one more connection. None: the set
            does not grow beyond one, or beyond the given streams.
          idle_timeout: seconds after which a connection of which nothing is lent is closed, down
            to as many as ``streams``. Only with ``connect``. None: never.
          backoff: pauses after failures. Its ``attempts`` do not matter here: connecting goes on
            while something is missing, and who waits is told by his own ``timeout``.
          mux: make each connection a yamux session, as its client, for `open_stream`. None: lend
            halves. With it, connections are no streams any more that could be lent.
          on_event: called with everything that happens to the set, from a task of the block, when
            all is in order again. What it raises ends the block, and leaves it.

        Raises:
          ValueError, TypeError: an argument makes no sense.
        """
        self._streams = _check_streams("streams", streams)
        if connect is not None and not callable(connect):
            raise TypeError(f"connect must be an async function or None, got {connect!r}")
        if capacity is None:
            capacity = max(1, len(self._streams))
        require_count("capacity", capacity, minimum=1)
        if len(self._streams) > capacity:
            raise ValueError(
                f"capacity must be at least the {len(self._streams)} streams given, got {capacity}"
            )
        require_seconds("scale_after", scale_after)
        if scale_after is not None and connect is None:
            raise ValueError("scale_after needs a `connect` to grow by")
        require_duration("idle_timeout", idle_timeout)
        if not isinstance(backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, got {backoff!r}")
        if mux is not None and not isinstance(mux, MuxConfig):
            raise TypeError(f"mux must be a MuxConfig or None, got {mux!r}")
        if on_event is not None and not callable(on_event):
            raise TypeError(f"on_event must be a function or None, got {on_event!r}")
        plan = Plan(
            capacity=capacity,
            scale_after=scale_after,
            idle_timeout=idle_timeout,
            backoff=backoff,
            on_event=on_event,
        )
        self._board: Switchboard | None = None
        self._sessions: Sessions | None = None
        self._fleet: Fleet[Any]
        if mux is None:
            self._fleet = Fleet(connect and _checked(connect), plan)
            self._board = self._fleet.usage = Switchboard(self._fleet)
        else:
            self._sessions = Sessions(connect, mux)
            self._fleet = Fleet(connect and self._sessions.connect, plan, self._sessions.close)
            self._sessions.attach(self._fleet)

    def __repr__(self) -> str:
        fleet = self._fleet
        state = " closed" if fleet.lifecycle.closed else ""
        return (
            f"<Multiplexer{state}: {fleet.size} of {fleet.plan.capacity} connections, "
            f"{fleet.usage.waiting()} waiting>"
        )

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        """Open it, and take over the given streams.

        Raises:
          RuntimeError: it was entered before.

        Whatever a stream's own properties raise leaves nothing open, as a cancellation does: then
        the streams are the caller's.
        """
        await self._fleet.enter([self._prepare(stream) for stream in self._streams])
        return self

    @enable_ki_protection
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection, what is lent of it included, and wait until that is done.

        Idle connections and sessions are closed in order, which takes 5 s at most; what is lent,
        forcefully: its holder gets `trio.ClosedResourceError`. If cancelled, everything is closed
        forcefully.
        """
        await self._fleet.lifecycle.leave(kind, exception, traceback)

    # Lending

    def reader(self, *, timeout: float | None = None) -> Loan[ReceiveHalf]:
        """Return a loan, to be entered: ``async with plex.reader() as half``.

        The half receives from some connection that nobody else receives from meanwhile.

        Args:
          timeout: seconds that entering it may take; no limit unless given.

        Raises:
          ValueError, TypeError: ``timeout`` is not a number of seconds.
          RuntimeError: this multiplexer opens streams, and lends nothing.

        Entering it raises and leaves behind what `Loan.__aenter__` says.
        """
        return self._loan(READ, timeout)

    def writer(self, *, timeout: float | None = None) -> Loan[SendHalf]:
        """Return a loan, as `reader`: the half sends on some connection, maybe another one."""
        return self._loan(WRITE, timeout)

    def borrow(self, *, timeout: float | None = None) -> Loan[BorrowedStream]:
        """Return a loan, as `reader`, of both halves of one connection."""
        return self._loan(BOTH, timeout)

    def _loan(self, wants: int, timeout: float | None) -> Loan[Any]:
        board = self._board
        if board is None:
            raise RuntimeError("this multiplexer's connections are sessions: use open_stream()")
        if timeout is not None:
            require_seconds("timeout", timeout)
        return Loan(board, wants, timeout)

    @enable_ki_protection
    async def open_stream(self, *, weight: int = 1, timeout: float | None = None) -> MuxStream:
        """Open a stream on the session that carries the fewest, without a round trip.

        Args:
          weight: its share of what its session sends, from 1 to 256; see `MuxSession.open_stream`.
          timeout: seconds to wait while there is no session, or all are full; no limit unless
            given.

        Raises:
          PoolClosedError: the multiplexer is closed or gets closed.
          PoolTimeoutError: ``timeout`` seconds have passed; its cause is why connecting failed.
          trio.BrokenResourceError: the last session is gone, and there is no ``connect``.
          ValueError, TypeError: an argument makes no sense.
          RuntimeError: this multiplexer lends halves, and has no sessions.

        If cancelled, no stream is open; a dial on its behalf goes on, for the next one.
        """
        if self._sessions is None:
            raise RuntimeError("this multiplexer lends halves: give it mux=MuxConfig() for streams")
        check_weight(weight)
        if timeout is not None:
            require_seconds("timeout", timeout)
        return await self._sessions.open_stream(weight, timeout)

    # The set

    @enable_ki_protection
    def add(self, *streams: trio.abc.Stream) -> list[trio.abc.Stream]:
        """Take connections over, as many as there is room for, the first ones first.

        Returns:
          Those for which there is no room. They remain the caller's, untouched.

        Raises:
          TypeError: one is no stream.
          ValueError: one is given twice, or is here already. As with the others, none was taken.
          PoolClosedError: the multiplexer is closed.
          RuntimeError: its block has not begun.

        Whatever a stream's own properties raise leaves all of them the caller's, too.
        """
        given = _check_streams("add", streams)
        fleet = self._fleet
        fleet.require_open()
        for stream in given:
            if self._knows(stream):
                raise ValueError(f"{stream!r} is one of this multiplexer's connections already")
        room = max(0, fleet.supply.limit - fleet.supply.size)
        for entry in [self._prepare(stream) for stream in given[:room]]:
            fleet.adopt(entry)
        return given[room:]

    def _knows(self, stream: trio.abc.Stream) -> bool:
        if self._sessions is not None:
            return self._sessions.knows(stream)
        return self._fleet.supply.knows(stream)

    def _prepare(self, stream: trio.abc.Stream) -> Entry[Any]:
        """Look at a stream, and leave it as it is; what its properties raise, this raises."""
        resource = stream if self._sessions is None else self._sessions.prepare(stream)
        return Entry(resource, trio.current_time())

    def discard(self, half: ReceiveHalf | SendHalf | BorrowedStream) -> None:
        """Close the connection of something lent, now, whoever has its other half.

        The block it is lent to may go on without it.

        Raises:
          LeaseError: it was given back already, or was not lent by this multiplexer.
        """
        if self._board is None:
            raise RuntimeError("this multiplexer's connections are sessions: close their streams")
        self._board.discard(cast("Half", half))

    def statistics(self) -> MultiplexerStatistics:
        """Return what the multiplexer has and has done."""
        fleet, supply = self._fleet, self._fleet.supply
        board, sessions = self._board, self._sessions
        usage: Switchboard | Sessions | None = board or sessions
        assert usage is not None
        return MultiplexerStatistics(
            capacity=fleet.plan.capacity,
            strength=fleet.strength,
            size=supply.size,
            idle=len(supply.idle),
            lent=len(supply.lent),
            leaving=len(fleet.leaving),
            connecting=len(supply.dials),
            closing=len(supply.closing),
            readers=0 if board is None else board.lent(READ),
            writers=0 if board is None else board.lent(WRITE),
            borrowed=0 if board is None else board.lent(BOTH),
            streams=0 if sessions is None else sessions.streams(),
            waiting=usage.waiting(),
            acquired=usage.acquired,
            cancelled=usage.gave_up() - usage.timed_out,
            timed_out=usage.timed_out,
            connected=supply.connected,
            connect_failures=supply.connect_failures,
            added=fleet.added,
            lost=fleet.lost,
            healed=fleet.healed,
            scaled_up=fleet.scaled_up,
            scaled_down=fleet.scaled_down,
            closed=supply.ended.total(),
            reasons=dict(supply.ended),
            last_error=supply.retry.last_error,
        )


def _check_streams(name: str, streams: Sequence[trio.abc.Stream]) -> list[trio.abc.Stream]:
    """Return ``streams`` as a list, or raise what is wrong with them."""
    given = list(streams)
    for stream in given:
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"{name} takes trio.abc.Streams, got {stream!r}")
    if len({id(stream) for stream in given}) < len(given):
        raise ValueError(f"{name} takes each stream once, got {given!r}")
    return given


def _checked(
    connect: Callable[[], Awaitable[trio.abc.Stream]],
) -> Callable[[], Awaitable[trio.abc.Stream]]:
    async def checked() -> trio.abc.Stream:
        stream = await connect()
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"connect must return a trio.abc.Stream, got {stream!r}")
        return stream

    return checked
