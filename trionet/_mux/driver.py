"""What moves a session: the tasks between a carrier and the protocol.

How this works. User tasks never touch the carrier. One task reads it and awaits nothing else; one
task writes to it, and asks the protocol what to send only when the carrier can take it; one sleeps
to the next deadline. User tasks change the protocol's state synchronously, `Driver.kick` the
writer, and wait for their own stream at most. So a cancelled send cannot tear a frame, and the
reader, which never waits for a writer, cannot deadlock with the peer's.

Who waits for what: the writer in `_write` for `kick`; the reader in the carrier; the timer in a
cancel scope whose deadline moves; everybody else on a stream, a listener or the session, and
`Driver.wake` looks after them. It runs after everything that may have changed their lot.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Final, Literal, final

import trio
from trio.lowlevel import (
    Abort,
    checkpoint,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from .._address import Address
from .._errors import SessionBrokenError, Ungrouped
from .._streams.foreign import adopt
from ..yamux import Failure, MuxConfig, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from .. import yamux
    from ..abc import Stream

__all__ = ("Driver",)

# After a protocol error was told the peer is read, and what it says dropped, for so long: closing a
# socket with input unread makes a reset of it, which destroys what the peer has not read yet. A
# session that was closed waits in the same way, for as long as its configuration says.
FAREWELL: Final = 1.0

# What one receive on the carrier asks for: more than a batch of the peer's, so that its frames are
# not cut into a large and a tiny piece each time.
READ_SIZE: Final = 256 * 1024

# A timer that fires so much too late does so since the program was busy. As long again is given to
# the reader: what it needs may pass through several tasks, a hub's or those of a session below.
BUSY: Final = 0.05

# How many passes of the scheduler an acknowledgement, a window update or an end of file waits for
# data to go with it: as many as a task needs that was just woken, receives, and answers.
PATIENCE: Final = 3

# What a carrier raises when it has gone. Anything else is a bug, and leaves the block.
CARRIER_ERRORS: Final = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@final
class Driver:
    """Drives one session over one carrier.

    Attributes:
      carrier: what the session runs over.
      core: the protocol.
      closed: the session was closed here.
      done: the carrier is closed, and nothing will happen any more.
      token: where to call back from other threads.
      writer: the writer's task while it waits for `kick`.
    """

    __slots__ = (
        "_armed",
        "_cause",
        "_goodbye",
        "_scope",
        "_timer",
        "carrier",
        "closed",
        "core",
        "done",
        "local_address",
        "on_news",
        "remote_address",
        "token",
        "writer",
    )

    def __init__(
        self,
        carrier: trio.abc.Stream,
        role: Literal["client", "server"],
        config: MuxConfig,
        on_news: Callable[[], None],
    ) -> None:
        """Prepare to drive; `run` does it.

        Args:
          on_news: called by `wake` when something rare has happened.
        """
        self.carrier: trio.abc.Stream = carrier
        # The clock itself, which `trio.current_time` looks up each time: it is asked twice a batch.
        clock = trio.lowlevel.current_clock().current_time
        self.core: Session = Session(role, config, clock=clock)
        self.on_news: Callable[[], None] = on_news
        self.closed: bool = False
        self.done: trio.Event = trio.Event()
        self.token: trio.lowlevel.TrioToken = trio.lowlevel.current_trio_token()
        named = adopt(carrier)
        self.local_address: Address = _address(named, "local_address")
        self.remote_address: Address = _address(named, "remote_address")
        # Around the tasks, and around the closing of the carrier after them.
        self._scope = trio.CancelScope()
        self._goodbye = trio.CancelScope()
        self._timer = trio.CancelScope()
        # The timer's deadline: asking the scope costs more.
        self._armed = inf
        self.writer: trio.lowlevel.Task | None = None
        self._cause: BaseException | None = None

    # For those who change the protocol's state

    @enable_ki_protection
    def kick(self) -> None:
        """Let the writer look, if it waits and there is something to send."""
        task = self.writer
        if task is not None and (self.core.output.ring or self.core.has_output):
            self.writer = None
            reschedule(task)

    @enable_ki_protection
    def wake(self) -> None:
        """Look after everybody whose lot the protocol may have changed."""
        core = self.core
        if core.readable:
            for stream in core.readable:
                if stream.reader is not None:
                    stream.reader.wake_reader()
            core.readable.clear()
        if core.writable:
            self._wake_writers()
        if core.news:
            core.news = False
            self.on_news()
            self._arm(core.next_timeout)
            if core.failure is not None:
                self._arm_farewell()
        if self.writer is not None:
            self.kick()

    @enable_ki_protection
    def abandon(self, stream: yamux.Stream) -> None:
        """Reset a stream that nobody holds any more."""
        self.core.reset(stream)
        self.wake()

    def error(self) -> Exception | None:
        """Return what a call on the session raises now, or None while it lives."""
        over = self.closed or self.core.failure is not None
        return self.ending() if over else None

    def ending(self) -> Exception:
        """Return what a call raises now that the session is over."""
        if self.closed:
            return trio.ClosedResourceError("this session was closed")
        failure = self.core.failure
        assert failure is not None
        error = SessionBrokenError(failure.reason, code=failure.code)
        error.__cause__ = self._cause
        return error

    def numbered(self, address: Address, stream_id: int) -> Address:
        """Name a stream's end by the carrier's and its id.

        Host, port and path stay: who limits connections by host goes on doing so.
        """
        return replace(address, name=f"{address}#{stream_id}")

    # Beginning and end

    @enable_ki_protection
    async def run(self) -> None:
        """Drive the session until it is over, then close the carrier.

        If cancelled, the carrier is closed forcefully, maybe in the middle of a frame.
        """
        try:
            with self._scope, Ungrouped():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_time)
                    nursery.start_soon(self._write)
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self.core.fail(self._last_failure())
            self.wake()
            try:
                # For what the carrier itself may have to say, TLS's close_notify say.
                self._goodbye.deadline = trio.current_time() + FAREWELL
                with self._goodbye, suppress(*CARRIER_ERRORS):
                    await self.carrier.aclose()
            finally:
                self.done.set()

    @enable_ki_protection
    async def aclose(self) -> None:
        """Close all streams, send what is left of them, go away, close the carrier.

        If cancelled, or once the time allowed is over, the carrier is closed forcefully.
        """
        self.closed = True
        self.core.shut(barrier=not isinstance(self.carrier, trio.abc.HalfCloseableStream))
        self.wake()
        try:
            with trio.move_on_after(self.core.config.close_timeout):
                await self.done.wait()
        finally:
            if not self.done.is_set():
                self._end_forcefully()
        await self.done.wait()

    @enable_ki_protection
    def abort(self) -> None:
        """Close everything now, and the carrier forcefully."""
        self.closed = True
        self.core.shut()
        self.core.fail(Failure("it was closed"))
        self.wake()
        self._end_forcefully()

    def _end_forcefully(self) -> None:
        self._scope.cancel()
        self._goodbye.cancel()

    # The tasks

    @enable_ki_protection
    async def _read(self) -> None:
        core = self.core
        receive_some = self.carrier.receive_some
        try:
            while True:
                data = await receive_some(READ_SIZE)
                if not data:
                    break
                core.receive_data(data if type(data) is bytes else bytes(data))
                self.wake()
                if core.heard_out or (core.failure is not None and core.failure.by_peer):
                    return
        except CARRIER_ERRORS as exc:
            if self._cause is None:
                self._cause = exc
            return
        core.receive_eof()

    @enable_ki_protection
    async def _write(self) -> None:
        core = self.core
        output = core.output
        send_all = self.carrier.send_all
        patience = 0
        try:
            while not (output.silent and core.silent):
                if not (output.ring or core.has_output):
                    patience = PATIENCE
                    self.writer = current_task()
                    await wait_task_rescheduled(self._abort_writer)
                while patience and not (output.ring or output.urgent):
                    patience -= 1
                    await checkpoint()
                data = core.data_to_send()
                if core.writable:
                    self._wake_writers()
                if core.news:
                    self.wake()
                if not data:
                    # What was due has been withdrawn meanwhile.
                    continue
                stalled_at = core.sending()
                if stalled_at < self._armed:
                    self._arm(stalled_at)
                await send_all(data)
                core.sent()
            if core.failure is None or core.failure.code is not None:
                await self._say_eof()
        except CARRIER_ERRORS as exc:
            # The peer's own last words may still wait to be read; the reader meets the end.
            self._cause = exc
            self._arm_farewell()

    async def _say_eof(self) -> None:
        if isinstance(self.carrier, trio.abc.HalfCloseableStream):
            await self.carrier.send_eof()

    @enable_ki_protection
    async def _keep_time(self) -> None:
        core = self.core
        while True:
            # A scope whose deadline has passed is used up.
            with trio.CancelScope() as self._timer:
                self._armed = inf
                self._arm(core.next_timeout)
                await trio.sleep_forever()
            # What came while the program was busy is read first.
            if trio.current_time() - self._armed >= BUSY:
                await trio.sleep(BUSY)
            else:
                await checkpoint()
            core.tick()
            self.wake()
            if core.failure is not None and core.silent:
                self._scope.cancel()

    def _abort_writer(self, _: object) -> Abort:
        self.writer = None
        return Abort.SUCCEEDED

    # Inside

    def _wake_writers(self) -> None:
        writable = self.core.writable
        for stream in writable:
            if stream.writer is not None:
                stream.writer.wake_writer()
        writable.clear()

    def _arm(self, deadline: float) -> None:
        if deadline < self._armed:
            self._armed = self._timer.deadline = deadline

    def _arm_farewell(self) -> None:
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + FAREWELL)

    def _last_failure(self) -> Failure:
        if self.closed:
            return Failure("it was closed")
        if self._cause is not None:
            return Failure(f"the carrier broke: {self._cause!r}")
        return Failure("its task was cancelled")


def _address(carrier: Stream, which: str) -> Address:
    try:
        address: Address = getattr(carrier, which)
    except OSError:
        # A socket whose peer is gone does not know it any more.
        return Address("unknown", name="gone")
    return address
