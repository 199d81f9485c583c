"""The place where one task waits for one socket that the readiness hub tells of its edges."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final, final

import outcome
import trio
from trio.lowlevel import current_task, reschedule, wait_task_rescheduled

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine

__all__ = ("WOKEN", "Entry")


@final
class _Woken(outcome.Outcome[None]):
    """What who was parked is woken with: nothing.

    As `outcome.Value` of None, but for any number of wake-ups; making one for each, and marking it
    as used, would be a third of what a wake-up costs.
    """

    def unwrap(self) -> None:
        """Return None."""

    def send(self, gen: Any) -> Any:
        """Go on with ``gen``."""
        return gen.send(None)

    async def asend(self, agen: Any) -> Any:
        """Go on with ``agen``; if cancelled, as that is."""
        return await agen.asend(None)


WOKEN: Final = _Woken()


@final
class Entry:
    """One registered socket: who is parked on it, and what was seen while nobody was.

    A stream may keep the entry of its socket, and park on it as long as it is registered.

    Attributes:
      registered: whether the hub still tells it of edges.
    """

    __slots__ = ("hung_up", "ready", "registered", "sock", "task")

    def __init__(self, sock: socket.socket) -> None:
        # Weakly: a socket that is dropped unclosed must still be collected, and its number may
        # then belong to another.
        self.sock = weakref.ref(sock)
        self.task: trio.lowlevel.Task | None = None
        self.ready = False
        self.hung_up = False
        self.registered = True

    def park(self) -> Coroutine[Any, Any, None]:
        """Wait as `park_readable` does. A plain function, so that a wait is one coroutine."""
        if self.ready or self.hung_up:
            return self._look_again()
        if self.task is not None:
            raise trio.BusyResourceError("another task is waiting for this socket")
        self.task = current_task()
        return wait_task_rescheduled(self._abort)  # noqa: ASYNC105

    async def _look_again(self) -> None:
        # In this order: a cancelled wait must not use the edge up. What comes meanwhile is found
        # by the caller, who looks right after this.
        await trio.lowlevel.checkpoint()
        self.ready = False

    def wake(self) -> None:
        """Let whoever is parked here try again."""
        task, self.task = self.task, None
        if task is not None:
            reschedule(task, WOKEN)

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        """Let a cancelled task go."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED
