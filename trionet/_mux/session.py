"""Many streams on one: what a program sees of a multiplexed session."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

import outcome
import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from .._errors import RemoteGoAwayError, Ungrouped
from ..yamux import MuxConfig
from ..yamux.config import check_weight
from .driver import Driver
from .listener import MuxListener
from .stream import MuxStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ("MuxConfig", "MuxSession", "MuxStatistics", "open_mux")


@final
@dataclass(frozen=True, slots=True)
class MuxStatistics:
    """One session at one moment.

    Attributes:
      opened_here: live streams that were opened here.
      opened_there: live streams that the peer opened, accepted or not.
      unaccepted: those of them that nobody accepted yet.
      unacknowledged: those opened here that the peer has not answered yet.
      unread: bytes that arrived and were not received.
      unsent: bytes that wait for credit or for the carrier.
      window_budget_used: bytes by which windows have grown.
      max_receive_memory: the most that `unread` can ever be.
      resets: streams the peer has reset, been refused, or made us reset.
      bytes_sent, bytes_received: what went over the carrier, headers included.
      round_trip: the last one measured, in seconds, or None.
    """

    opened_here: int
    opened_there: int
    unaccepted: int
    unacknowledged: int
    unread: int
    unsent: int
    window_budget_used: int
    max_receive_memory: int
    resets: int
    bytes_sent: int
    bytes_received: int
    round_trip: float | None


@final
class MuxSession:
    """Streams in both directions over one carrier; made by `open_mux`."""

    __slots__ = (
        "_drained",
        "_draining",
        "_driver",
        "_listener",
        "_on_change",
        "_openers",
        "_pingers",
    )

    def __init__(
        self,
        carrier: trio.abc.Stream,
        role: Literal["client", "server"],
        config: MuxConfig,
        on_change: Callable[[MuxSession], object] | None = None,
    ) -> None:
        # Told, synchronously, after a stream ended or was acknowledged, a go-away, the end.
        self._on_change = on_change
        self._driver = Driver(carrier, role, config, self._on_news)
        self._listener = MuxListener(self._driver)
        self._draining = False
        self._drained = trio.Event()
        # Who waits to open a stream, with the weight it shall have, oldest first.
        self._openers: OrderedDict[trio.lowlevel.Task, int] = OrderedDict()
        # Who waits for the answer to a ping, by its value.
        self._pingers: dict[int, set[trio.lowlevel.Task]] = {}

    def __repr__(self) -> str:
        driver = self._driver
        role = "client" if driver.core.client else "server"
        state = "closed" if driver.closed else f"{len(driver.core.streams)} streams"
        return f"<MuxSession {role} {driver.local_address} -> {driver.remote_address} {state}>"

    @property
    def closed(self) -> bool:
        """Whether the session was closed here."""
        return self._driver.closed

    @enable_ki_protection
    async def open_stream(self, *, weight: int = 1) -> MuxStream:
        """Open a stream without waiting for the peer's acknowledgement.

        It waits only while too many streams are open, or unacknowledged (see `MuxConfig`); those
        who wait are served in order. A peer that refuses resets the stream later.

        Args:
          weight: the stream's share of what the session sends, among those that have data, from
            1 to 256.

        Returns:
          A stream with 262 144 bytes of send credit.

        Raises:
          trio.ClosedResourceError: the session was closed here, or is being drained.
          RemoteGoAwayError: the peer takes no new streams.
          SessionBrokenError: the session is gone.
          trio.BrokenResourceError: the session has used up its stream ids.

        If cancelled, no stream id is used up and nothing is sent.
        """
        check_weight(weight)
        await checkpoint_if_cancelled()
        error = self._open_error()
        if error is not None:
            raise error
        if self._openers or not self._driver.core.can_open:
            stream: MuxStream = await self._wait_to_open(weight)
            return stream
        stream = MuxStream(self._driver, self._driver.core.open(weight))
        await cancel_shielded_checkpoint()
        # Only now: what the caller sends first, before it waits again, goes with the SYN.
        self._driver.kick()
        return stream

    def listener(self) -> MuxListener:
        """Return the listener that accepts the streams the peer opens; always the same one.

        Closing it refuses further streams; the session and its streams live on.
        """
        return self._listener

    @enable_ki_protection
    async def ping(self) -> float:
        """Measure the round trip, in seconds.

        Raises:
          trio.ClosedResourceError: the session was closed here.
          SessionBrokenError: the session is gone.

        If cancelled, the answer is ignored when it comes.
        """
        await checkpoint_if_cancelled()
        error = self._driver.error()
        if error is not None:
            raise error
        task = current_task()
        value = self._driver.core.ping()
        waiting = self._pingers.setdefault(value, set())
        waiting.add(task)
        self._driver.wake()

        def abort(_: object) -> Abort:
            waiting.discard(task)
            if not waiting:
                del self._pingers[value]
            return Abort.SUCCEEDED

        round_trip: float = await wait_task_rescheduled(abort)
        return round_trip

    @enable_ki_protection
    async def drain(self) -> None:
        """Let streams end: take and open no new ones, and wait until the last has gone.

        The peer is told so first. hashicorp/yamux and trionet understand; rust-yamux and
        py-libp2p take any go-away for the end and close the connection.

        Raises:
          trio.ClosedResourceError: the session was closed here.
          SessionBrokenError: the session broke before its streams had ended.

        If cancelled, the session stays as it is: streams live on, and no new ones come.
        """
        await checkpoint_if_cancelled()
        error = self._driver.error()
        if error is not None:
            raise error
        if not self._draining:
            self._draining = True
            self._driver.core.go_away()
            self._driver.core.news = True
            self._driver.wake()
        await self._drained.wait()
        error = self._driver.error()
        if error is not None:
            raise error

    async def aclose(self) -> None:
        """Close the session, as the end of `open_mux`'s block does.

        Streams are closed here at once; what they have kept is sent as far as the peer gives
        credit, then a go-away, for ``MuxConfig.close_timeout`` seconds at most. Then the carrier
        is closed.

        If cancelled, the carrier is closed forcefully.
        """
        await self._driver.aclose()

    def statistics(self) -> MuxStatistics:
        """Return how the session stands."""
        core = self._driver.core
        streams = core.streams.values()
        return MuxStatistics(
            opened_here=core.outbound,
            opened_there=core.inbound,
            unaccepted=len(core.backlog),
            unacknowledged=core.unacknowledged,
            unread=sum(stream.unread for stream in streams),
            unsent=sum(stream.pending for stream in streams),
            window_budget_used=core.budget.used,
            max_receive_memory=core.config.max_receive_memory,
            resets=core.resets,
            bytes_sent=core.output.bytes_out,
            bytes_received=core.bytes_in,
            round_trip=core.round_trip.latest,
        )

    # Inside

    def _open_error(self) -> Exception | None:
        error = self._driver.error()
        if error is not None:
            return error
        if self._draining:
            return trio.ClosedResourceError("this session is being drained")
        core = self._driver.core
        if core.peer_going_away:
            return RemoteGoAwayError("the peer takes no new streams")
        if not core.ids_left:
            return trio.BrokenResourceError("this session has used up its stream ids")
        return None

    async def _wait_to_open(self, weight: int) -> MuxStream:
        task = current_task()
        self._openers[task] = weight

        def abort(_: object) -> Abort:
            del self._openers[task]
            return Abort.SUCCEEDED

        stream: MuxStream = await wait_task_rescheduled(abort)
        return stream

    @enable_ki_protection
    def _on_news(self) -> None:
        """Look after those who wait for the session itself."""
        core = self._driver.core
        self._listener.wake()
        for value, round_trip in core.answered:
            for task in self._pingers.pop(value, ()):
                reschedule(task, outcome.Value(round_trip))
        core.answered.clear()
        while self._openers:
            error = self._open_error()
            if error is None and not core.can_open:
                break
            task, weight = self._openers.popitem(last=False)
            if error is not None:
                reschedule(task, outcome.Error(error))
            else:
                stream = MuxStream(self._driver, core.open(weight))
                reschedule(task, outcome.Value(stream))
        if self._driver.error() is not None:
            pingers, self._pingers = self._pingers, {}
            for task in (task for tasks in pingers.values() for task in tasks):
                reschedule(task, outcome.Error(self._driver.ending()))
        if self._draining and not core.streams:
            self._drained.set()
        if self._on_change is not None:
            self._on_change(self)


@asynccontextmanager
@enable_ki_protection
async def open_mux(
    stream: trio.abc.Stream,
    *,
    role: Literal["client", "server"],
    config: MuxConfig = MuxConfig(),  # noqa: B008 - frozen
) -> AsyncIterator[MuxSession]:
    """Run a multiplexed session over ``stream`` for as long as the block lasts.

    The protocol is yamux. The session owns ``stream`` from now on, and closes it in the end.

    Args:
      stream: the carrier, any trio stream that keeps bytes in order.
      role: each end is one of both; the side that dialled is the client by custom. It decides who
        uses which ids, nothing else: streams may be opened from either end.
      config: limits and times.

    Raises:
      ValueError: the role is no role.
      TypeError: the carrier is no stream, or the configuration none.

    Leaving the block closes the session: see `MuxSession.aclose`. Leaving it by an exception, or
    cancelled, closes the carrier forcefully. A peer or a carrier that fails cancels nothing: it
    breaks the session, whose operations then raise `SessionBrokenError`.
    """
    if not isinstance(stream, trio.abc.Stream):
        raise TypeError(f"open_mux needs a trio.abc.Stream, got {stream!r}")
    if not isinstance(config, MuxConfig):
        raise TypeError(f"the config must be a MuxConfig, got {config!r}")
    session = MuxSession(stream, role, config)
    driver = session._driver
    with Ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.run)
            try:
                yield session
                await driver.aclose()
            except BaseException:
                driver.abort()
                raise
