"""What happens later: one heap of times, and one task that sleeps until the first of them.

How this works. Whoever schedules something puts it on the heap and, if it is now the first, moves
the deadline the task sleeps under; no task wakes for that. What happens now goes through a queue
instead, which the one who posts empties on the spot: everything it leads to happens before the
post returns, in order, however long the chain, without recursion.

The task is a system task, kept in a RunVar with its timeline: a link on a memory name has no
nursery. Nothing that comes due may raise.
"""

from __future__ import annotations

import heapq
from collections import deque
from math import inf
from typing import Any, Final, Protocol, final

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

__all__ = ("Target", "Timeline", "current_timeline", "existing_timeline", "random_root")

# Entries that were taken back stay until they come to the top, or until they are so many.
VOID_LIMIT: Final = 64


class Target(Protocol):
    """Something that can come due."""

    def due(self, item: Any, /) -> None:
        """Let happen what ``item`` stands for."""


@final
class Timeline:
    """Things to happen, by time and then in the order they were scheduled in."""

    __slots__ = ("_draining", "_heap", "_now", "_number", "_ready", "_scope", "_started", "_void")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Target, Any]] = []
        self._ready: deque[tuple[Target, Any]] = deque()
        self._draining = False
        # The time, while what is due happens: it asks for it again and again.
        self._now: float | None = None
        self._number = 0
        self._void: set[int] = set()
        self._scope: trio.CancelScope | None = None
        self._started = False

    def __len__(self) -> int:
        """How many things are to happen."""
        return len(self._heap) - len(self._void) + len(self._ready)

    def time(self) -> float:
        """Return trio's time; one and the same for all that comes due at once."""
        return trio.current_time() if self._now is None else self._now

    def post(self, target: Target, item: Any) -> None:
        """Let ``target.due(item)`` happen now, after what was posted before."""
        self._ready.append((target, item))
        if not self._draining:
            self._draining = True
            try:
                self._drain()
            finally:
                self._draining = False

    def at(self, time: float, target: Target, item: Any) -> int:
        """Let ``target.due(item)`` happen at ``time``; return a number to `cancel` it by."""
        self._number = number = self._number + 1
        heap = self._heap
        heapq.heappush(heap, (time, number, target, item))
        if heap[0][1] == number:
            if self._scope is not None:
                self._scope.deadline = time
            elif not self._started:
                self._started = True
                trio.lowlevel.spawn_system_task(self._pump, name="trionet.timeline")
        return number

    def catch_up(self) -> None:
        """Let happen what is due, without waiting for trio to find that the deadline is past.

        For whoever wants it to happen before anything else of the same moment: where several
        deadlines pass at once, trio takes them in the order of memory addresses.
        """
        heap = self._heap
        if self._scope is not None and heap and heap[0][0] <= trio.current_time():
            self._scope.cancel()

    def cancel(self, number: int) -> None:
        """Take back what `at` scheduled and what has not happened yet."""
        void = self._void
        void.add(number)
        heap = self._heap
        if heap[0][1] == number:
            self._clear_top()
            if self._scope is not None:
                self._scope.deadline = heap[0][0] if heap else inf
        elif len(void) > VOID_LIMIT and 2 * len(void) > len(heap):
            heap[:] = [entry for entry in heap if entry[1] not in void]
            heapq.heapify(heap)
            void.clear()

    def scheduled(self, target: Target) -> list[tuple[float, int, Any]]:
        """Return (time, number, item) for all that is to happen to ``target``, in order."""
        return [
            (time, number, item)
            for time, number, whose, item in sorted(self._heap, key=lambda entry: entry[:2])
            if whose is target and number not in self._void
        ]

    def _clear_top(self) -> None:
        heap, void = self._heap, self._void
        while heap and heap[0][1] in void:
            void.remove(heapq.heappop(heap)[1])

    def _drain(self) -> None:
        ready = self._ready
        while ready:
            target, item = ready.popleft()
            target.due(item)

    def _run_due(self) -> None:
        self._now = now = trio.current_time()
        heap, void, ready = self._heap, self._void, self._ready
        self._draining = True
        try:
            while heap and heap[0][0] <= now:
                _, number, target, item = heapq.heappop(heap)
                if void and number in void:
                    void.remove(number)
                    continue
                target.due(item)
                if ready:
                    self._drain()
        finally:
            self._draining = False
            self._now = None

    async def _pump(self) -> None:
        task = current_task()

        def abort(_: object) -> Abort:
            assert self._scope is not None
            if not self._scope.cancel_called:
                return Abort.SUCCEEDED
            # Time has come. All happens right here, where trio has found that the deadline is
            # past: whoever is woken by it runs in the same pass of the scheduler, and this task
            # only to set the next deadline; plainly, for raising Cancelled costs more than that.
            self._scope = None
            self._run_due()
            reschedule(task)
            return Abort.FAILED

        heap = self._heap
        while True:
            self._clear_top()
            with trio.CancelScope(deadline=heap[0][0] if heap else inf) as self._scope:
                await wait_task_rescheduled(abort)


_current: Final[trio.lowlevel.RunVar[Timeline | None]] = trio.lowlevel.RunVar(
    "trionet.timeline", None
)

# What every named stream of random numbers of this run starts from; `simulate` sets it.
random_root: Final[trio.lowlevel.RunVar[int]] = trio.lowlevel.RunVar("trionet.random_root", 0)


def existing_timeline() -> Timeline | None:
    """Return this run's timeline, or None as long as nobody has asked for one."""
    return _current.get()


def current_timeline() -> Timeline:
    """Return this run's timeline."""
    timeline = _current.get()
    if timeline is None:
        timeline = Timeline()
        _current.set(timeline)
    return timeline
