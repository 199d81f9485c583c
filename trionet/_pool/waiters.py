"""A FIFO of waiting tasks: direct hand-off, and leaving it costs O(1).

How this works. What a task waits for is passed to it as the value of ``reschedule``: once that is
called, the wait can no longer be cancelled, so nothing is ever on its way to a task that has
stopped waiting for it. A cancel either finds the task in the queue and takes it out, or comes too
late and is delivered at the task's next checkpoint, when it already owns what it got.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

import outcome
from trio.lowlevel import Abort, reschedule, wait_task_rescheduled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Task

__all__ = ("WaitQueue",)

WantT = TypeVar("WantT")


@final
class WaitQueue(Generic[WantT]):
    """Tasks that wait, oldest first, each with what it wants.

    Attributes:
      tasks: who waits; to be read, and changed only by the methods here. An `OrderedDict`, since
        taking the first of a plain dict again and again costs what was taken before.
      everyone: the same waiters among those of other queues, in one order of arrival.
      gave_up: how many were cancelled while they waited.
    """

    __slots__ = ("_left", "_turn", "everyone", "gave_up", "tasks")

    def __init__(
        self,
        *,
        everyone: OrderedDict[Task, WantT] | None = None,
        left: Callable[[WantT], object] | None = None,
        turn: Callable[[WantT], int] | None = None,
    ) -> None:
        """Make an empty queue.

        Args:
          everyone: one dictionary shared by several queues, which lists all their waiters.
          left: called with what a waiter wanted once it has been cancelled and is out of the queue.
          turn: tells from what a waiter wants when it first came. Without it, who joins ``first``
            goes before others who did so.
        """
        self.tasks: OrderedDict[Task, WantT] = OrderedDict()
        self.everyone: Final = everyone
        self.gave_up = 0
        self._left = left
        self._turn = turn

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def oldest(self) -> Task:
        """The task that has waited longest.

        Raises:
          StopIteration: nobody waits.
        """
        return next(iter(self.tasks))

    def join(self, task: Task, want: WantT, *, first: bool = False) -> None:
        """Line the current task up; `wait` has to follow with no checkpoint in between.

        What comes for it until then, `wait` brings at once.

        Args:
          first: in front of everybody, for a task whose turn it already was; but not of those who
            came earlier and are back already, which they are in no order.
        """
        self.tasks[task] = want
        if self.everyone is not None:
            self.everyone[task] = want
        if first:
            self._advance(task, want, self.tasks)
            if self.everyone is not None:
                self._advance(task, want, self.everyone)

    def _advance(self, task: Task, want: WantT, line: OrderedDict[Task, WantT]) -> None:
        """Move ``task`` to the front of ``line``, behind those there who came before it."""
        turn = self._turn
        ahead: list[Task] = []
        if turn is not None:
            mine = turn(want)
            ahead.extend(takewhile(lambda other: turn(line[other]) < mine, line))
        line.move_to_end(task, last=False)
        for other in reversed(ahead):
            line.move_to_end(other, last=False)

    def wait(self, task: Task) -> Awaitable[Any]:
        """Wait for what `hand_over` or `fail` brings the current task, which has joined.

        A plain function that returns trio's own awaitable: one coroutine less in the way.

        If cancelled, the task is out of the queue and has been given nothing.
        """

        def abort(_: object) -> Abort:
            if task not in self.tasks:
                # It was served before it got as far as waiting, and trio could not know.
                return Abort.FAILED
            want = self._remove(task)
            self.gave_up += 1
            if self._left is not None:
                self._left(want)
            return Abort.SUCCEEDED

        return wait_task_rescheduled(abort)  # noqa: ASYNC105 - whoever called awaits it

    def hand_over(self, task: Task, value: object) -> None:
        """Take ``task`` out of the queue and let its `wait` return ``value``."""
        self._remove(task)
        reschedule(task, outcome.Value(value))

    def fail(self, task: Task, error: BaseException) -> None:
        """Take ``task`` out of the queue and let its `wait` raise ``error``."""
        self._remove(task)
        reschedule(task, outcome.Error(error))

    def fail_all(self, make_error: Callable[[], BaseException]) -> None:
        """Let every `wait` raise an exception of its own, made by ``make_error``."""
        while self.tasks:
            self.fail(self.oldest, make_error())

    def _remove(self, task: Task) -> WantT:
        if self.everyone is not None:
            del self.everyone[task]
        return self.tasks.pop(task)
