"""The streams that the peer of a session opens, as trio knows listeners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import outcome
import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from .._errors import SessionBrokenError
from ..abc import Listener
from .stream import MuxStream

if TYPE_CHECKING:
    from .._address import Address
    from .driver import Driver

__all__ = ("MuxListener",)


@final
class MuxListener(Listener[MuxStream]):
    """Accepts the streams the peer opens; made by ``MuxSession.listener``.

    At most ``MuxConfig.accept_backlog`` wait to be accepted; the peer's next is reset.
    """

    __slots__ = ("_acceptor", "_closed", "_driver", "_takes")

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._closed = False
        self._acceptor: trio.lowlevel.Task | None = None
        # Whether the acceptor takes a stream with it, or only wants to know of one.
        self._takes = False

    def __repr__(self) -> str:
        state = " closed" if self._closed else ""
        return f"<MuxListener on {self.address}{state}>"

    @property
    def address(self) -> Address:
        """The carrier's own end."""
        return self._driver.local_address

    @enable_ki_protection
    async def accept(self) -> MuxStream:
        """Take the oldest stream, or wait for one; it is acknowledged to the peer by that.

        Raises:
          trio.BusyResourceError: another task is accepting.
          trio.ClosedResourceError: this listener, or the session, is or gets closed here.
          SessionBrokenError: the session is gone, and all that came before its end was accepted.

        If cancelled, no stream is lost.
        """
        self._check(self._error())
        if not self._driver.core.backlog:
            taken: MuxStream = await self._park(takes=True)
            return taken
        await checkpoint_if_cancelled()
        stream = self.accept_nowait()
        await cancel_shielded_checkpoint()
        return stream

    @enable_ki_protection
    def accept_nowait(self) -> MuxStream:
        """Take the oldest stream.

        Raises:
          trio.WouldBlock: there is none.
          trio.ClosedResourceError: this listener, or the session, is closed here, or the session is
            gone, which is then the cause.
        """
        error = self._end()
        if error is not None:
            raise error
        record = self._driver.core.accept()
        if record is None:
            raise trio.WouldBlock
        self._driver.kick()
        return MuxStream(self._driver, record)

    async def wait_acceptable(self) -> None:
        """Wait until `accept_nowait` finds a stream, unless it is reset or taken before.

        Raises:
          trio.BusyResourceError: another task is accepting.
          trio.ClosedResourceError: this listener, or the session, is or gets closed here, or the
            session is gone, which is then the cause.

        If cancelled, nothing was taken.
        """
        self._check(self._end())
        if self._driver.core.backlog:
            await checkpoint()
        else:
            await self._park(takes=False)

    async def aclose(self) -> None:
        """Close, then let others run. Cancelled or not, the listener is closed afterwards."""
        self.close()
        await checkpoint()

    @enable_ki_protection
    def close(self) -> None:
        """Refuse new streams, and reset those that nobody accepted. The session lives on."""
        if self._closed:
            return
        self._closed = True
        self._driver.core.refuse()
        self.wake()
        self._driver.wake()

    def wake(self) -> None:
        """Look whether the acceptor can go on."""
        if self._acceptor is None:
            return
        error = self._error() if self._takes else self._end()
        if error is not None:
            self._wake_acceptor(outcome.Error(error))
        elif self._driver.core.backlog:
            task_gets = outcome.capture(self.accept_nowait) if self._takes else outcome.Value(None)
            self._wake_acceptor(task_gets)

    def _error(self) -> Exception | None:
        if self._closed:
            return trio.ClosedResourceError("this listener is closed")
        # What came before the end of the session is accepted after it, as with TCP.
        return None if self._driver.core.backlog else self._driver.error()

    def _end(self) -> Exception | None:
        """Return why nothing can be accepted, as a `Server` takes it: it drains.

        The session's end is no failure of the server's, whose handlers may still have to do with
        what arrived before; to whom it matters, `accept` says more.
        """
        error = self._error()
        if isinstance(error, SessionBrokenError):
            closed = trio.ClosedResourceError("the session of this listener is gone")
            closed.__cause__ = error
            return closed
        return error

    def _check(self, error: Exception | None) -> None:
        if error is not None:
            raise error
        if self._acceptor is not None:
            raise trio.BusyResourceError("another task is accepting on this listener")

    async def _park(self, *, takes: bool) -> Any:
        self._acceptor = current_task()
        self._takes = takes

        def abort(_: object) -> Abort:
            self._acceptor = None
            return Abort.SUCCEEDED

        return await wait_task_rescheduled(abort)

    def _wake_acceptor(self, result: outcome.Outcome[MuxStream] | outcome.Outcome[None]) -> None:
        assert self._acceptor is not None
        task, self._acceptor = self._acceptor, None
        reschedule(task, result)
