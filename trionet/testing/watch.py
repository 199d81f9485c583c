"""What watches a simulated run: its steps, and whether anything can still happen.

How this works. An instrument counts how often a task became runnable and how often one was
stepped: where both are equal before a wait for I/O, nobody is runnable, and the clock is about to
jump. That is the moment to look, before it does. Then:

- a task that waits for a real descriptor can only be passed by: `EscapeError`;
- while a thread works, the jump is put off. By then trio has decided on it for this pass, unless
  a task is runnable; so the guard, a system task, is woken, and has the clock jump only after
  some real seconds of waiting: `OutrunError` if they pass;
- with no deadline pending and no thread at work, some passes more and it is a `Deadlock`. More,
  because a callback may be on its way in from a thread that trio does not count; the guard gives
  those some real seconds, too, if any were started.

An instrument must not raise. It cancels the run's main scope instead, and whoever runs the run
asks for `problem` afterwards. A task may be shielded from that cancellation: if nothing can happen
even then, the tasks at the ends of the tree are woken with the problem itself, until all are gone.
"""

from __future__ import annotations

import hashlib
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final, final

import outcome
import trio
import trio.testing

from .._streams import readiness
from .._streams.timeline import existing_timeline
from .problems import Deadlock, EscapeError, OutrunError, SimulationError, TimeLimitError
from .task_tree import children_of, task_tree, walk_tasks
from .threads import busy_threads, keeps_threads, other_threads, thread_at_work

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import NoReturn

    from .._streams.timeline import Timeline

__all__ = ("PATIENCE", "Watch")

# Real seconds that virtual time stands still for a thread. Files and name lookups take less.
PATIENCE: Final = 5.0
# Passes without a step after which nothing is expected to come: about a millisecond.
IDLE_PASSES: Final = 50
# Real seconds in which a thread that was given work has begun with it, and one that is done has
# gone to sleep, on a busy machine.
START: Final = 0.1
# Virtual seconds that shielded clean-up may take once the run is over: more than any timeout in it.
CLEAN_UP: Final = 3600.0
# Steps, and moments between them, are hashed that many at a time.
_BATCH: Final = 4096
# trio's own task for callbacks from threads and signal handlers, which come when they like.
_CALLBACKS: Final = "<TrioToken.run_sync_soon task>"
_GUARD: Final = "<trionet.testing.simulate guard>"
_DEADLOCK: Final = "nothing can happen any more: every task waits, and no deadline is pending"
_WAITING: Final[CodeType] = trio.lowlevel.wait_task_rescheduled.__code__
INFINITY: Final = float("inf")


@final
class Watch(trio.abc.Instrument):
    """Watches one run."""

    def __init__(
        self,
        clock: trio.testing.MockClock,
        *,
        time_limit: float | None,
        at_problem: Callable[[], None] | None,
    ) -> None:
        self.problem: SimulationError | None = None
        self.steps: int = 0
        self.time: float = 0.0
        self._clock = clock
        self._time_limit = time_limit
        self._at_problem = at_problem
        self._scope: trio.CancelScope | None = None
        self._main: trio.lowlevel.Task | None = None
        self._name = ""
        # Without the callbacks and the guard, whose steps depend on the real world.
        self._numbers: dict[trio.lowlevel.Task, int] = {}
        self._spawned = 0
        self._hash = hashlib.sha256()
        self._batch: list[float] = []
        self._scheduled = 0
        self._stepped = 0
        self._looked = -1
        self._idle = 0
        self._idle_since = 0.0
        # The guard while it is parked, and None while it is runnable.
        self._guard: trio.lowlevel.Task | None = None
        self._holding = False
        self._since = 0.0
        self._ends = INFINITY
        self._threads = frozenset(other_threads())
        self._timeline: Timeline | None = None
        # Those that would not be woken when it was tried.
        self._stubborn: set[trio.lowlevel.Task] = set()

    # For whoever runs the run

    def begin(self, scope: trio.CancelScope, name: str) -> None:
        """Watch over the calling task, which is in ``scope``; call it ``name`` in reports."""
        self._scope = scope
        self._name = name
        self._main = trio.lowlevel.current_task()
        trio.lowlevel.spawn_system_task(self._guard_clock, name=_GUARD)

    def restart(self) -> None:
        """Count and hash steps from here on only."""
        self._hash = hashlib.sha256()
        self._batch.clear()
        self.steps = 0

    def digest(self) -> str:
        """Return what two runs have in common if the same tasks ran in the same order."""
        so_far = self._hash.copy()
        so_far.update(self._pending())
        return so_far.hexdigest()

    def _pending(self) -> bytes:
        return "".join([f"{one!r} " for one in self._batch]).encode()

    def _flush(self) -> None:
        self._hash.update(self._pending())
        self._batch.clear()

    # trio calls these

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Give ``task`` a number."""
        if task.name not in {_CALLBACKS, _GUARD}:
            self._spawned += 1
            self._numbers[task] = self._spawned

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Forget ``task``."""
        self._numbers.pop(task, None)

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - trio's signature
        """Count."""
        self._scheduled += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Take the step down."""
        self._stepped += 1
        number = self._numbers.get(task)
        if number is not None:
            self._idle = 0
            self.steps += 1
            self._batch.append(number)
            if len(self._batch) >= _BATCH:
                self._flush()
        elif task.name == _CALLBACKS:
            self._idle = 0

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
        """See whether the clock is about to jump, and whether it may."""
        if self._scheduled == self._stepped and self._scope is not None:
            self._look()

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's signature
        """Let the clock go on once the threads have, or end the run if they do not."""
        # What comes due now, before trio ends the scopes of this moment: in which order it would
        # take the two, no seed decides.
        if self._timeline is None:
            self._timeline = existing_timeline()
        if self._timeline is not None:
            self._timeline.catch_up()
        if not self._holding:
            return
        if self._scheduled - self._stepped > (self._guard is None):
            self._let_go()
        elif perf_counter() - self._since >= PATIENCE:
            self._lose_patience()

    # Judging

    def _look(self) -> None:
        now = self._clock.current_time()
        if now != self.time:
            self.time = now
            # repr() of a float tells every one from every other, and from the number of a task.
            self._batch.append(now)
            jumped = self._stepped == self._looked
            late = self._time_limit is not None and now > self._time_limit
            if jumped and not late and now <= self._ends:
                # Right after a jump, before trio wakes those it was for: seen before it already.
                return
        self._looked = self._stepped
        statistics = trio.lowlevel.current_statistics()
        if self.problem is None and _escapes(statistics.io_statistics):
            self._stop(
                EscapeError,
                "a task waits for a socket, a pipe or a process of the real operating system, "
                "which virtual time would pass by",
            )
        elif self.problem is None and self._time_limit is not None and now > self._time_limit:
            self._stop(
                TimeLimitError, f"the run takes more than {self._time_limit:g} virtual seconds"
            )
        elif thread_at_work():
            self._hold_on()
        elif statistics.seconds_to_next_deadline == INFINITY:
            self._idle += 1
            if self._idle == 1:
                self._idle_since = perf_counter()
            elif self._idle > IDLE_PASSES:
                self._judge_idleness()
        elif now > self._ends:
            self._insist()

    def _judge_idleness(self) -> None:
        if self.problem is None:
            patient = not self._threads.issuperset(busy_threads())
            if self._may_settle(patient):
                return
        else:
            # Clean-up may have to see a process end, or a real socket.
            patient = _escapes(trio.lowlevel.current_statistics().io_statistics)
        if patient:
            self._hold_on()
        else:
            self._end_idleness()

    def _may_settle(self, busy: bool) -> bool:
        """Give threads a moment: they may be just done, or have been given work just now.

        Args:
          busy: whether one seems to be at work that trio does not count.
        """
        waits = (busy or keeps_threads()) and perf_counter() - self._idle_since < START
        if waits:
            sleep(START / 100)
        return waits

    def _end_idleness(self) -> None:
        if self.problem is None:
            self._stop(Deadlock, _DEADLOCK)
        else:
            self._idle = 0
            self._insist()

    def _lose_patience(self) -> None:
        timers = trio.lowlevel.current_statistics().seconds_to_next_deadline < INFINITY
        if not thread_at_work():
            self._let_go()
            if not timers:
                self._end_idleness()
        elif timers and self.problem is None:
            self._stop(
                OutrunError,
                f"a thread has been running for {PATIENCE:g} real seconds, and virtual time would "
                "pass it by",
            )

    # Putting the jump off

    async def _guard_clock(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            self._guard = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(abort)
            if self._holding:
                self._clock.autojump_threshold = PATIENCE

    def _hold_on(self) -> None:
        self._since = perf_counter()
        if not self._holding and self._guard is not None:
            self._holding = True
            guard, self._guard = self._guard, None
            trio.lowlevel.reschedule(guard)

    def _let_go(self) -> None:
        self._holding = False
        self._clock.autojump_threshold = 0

    # Ending the run

    def _stop(self, kind: type[SimulationError], text: str) -> None:
        assert self._scope is not None
        assert self._main is not None
        numbers = self._numbers
        parts = [
            f"{text} (virtual time {self.time:g} s)",
            task_tree(self._main, self._name, order=lambda task: numbers.get(task, 0)),
        ]
        strange = ", ".join(one.name for one in busy_threads() if one not in self._threads)
        if strange:
            parts.append(f"Threads started meanwhile, which trio may not know of: {strange}")
        self.problem = kind("\n".join(parts))
        self._ends = self.time + CLEAN_UP
        try:
            if self._at_problem is not None:
                self._at_problem()
        finally:
            self._scope.cancel()

    def _insist(self) -> None:
        assert self._main is not None
        assert self.problem is not None
        for task in list(walk_tasks(self._main)):
            if children_of(task):
                continue
            # Its own: a traceback belongs to one place.
            again = type(self.problem)(str(self.problem))
            if task in self._stubborn:
                self._stubborn.remove(task)
            elif not _take_back(task, again):
                # It says that it will be woken otherwise. It has time for that until the next try.
                self._stubborn.add(task)
                continue
            trio.lowlevel.reschedule(task, outcome.Error(again))


def _take_back(task: trio.lowlevel.Task, problem: SimulationError) -> bool:
    """Let what ``task`` waits for forget it, as trio does to cancel it; say whether it did.

    Whatever it waits for would wake it a second time otherwise, perhaps when it is gone.
    """

    def raise_it() -> NoReturn:
        raise problem

    abort = next(
        (
            frame.f_locals.get("abort_func")
            for frame, _ in task.iter_await_frames()
            if frame.f_code is _WAITING
        ),
        None,
    )
    return abort is None or abort(raise_it) is not trio.lowlevel.Abort.FAILED


def _escapes(io_statistics: Any) -> bool:
    # The first is kqueue's, the other two are of epoll and Windows.
    waiting: int = (
        getattr(io_statistics, "tasks_waiting", 0)
        + getattr(io_statistics, "tasks_waiting_read", 0)
        + getattr(io_statistics, "tasks_waiting_write", 0)
    )
    # One is trio's own: the task for callbacks, which is not runnable, waits for its pipe.
    if waiting <= 1:
        return False
    hubs, through_hubs = readiness.waits()
    return waiting - 1 - hubs + through_hubs > 0
