"""Cancelling whatever is done at each step it takes, for the sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

# No scenario takes more steps than this; one that does would make a sweep end too early.
MOST_STEPS = 120


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope once the tasks in it have taken ``n`` steps together."""

    def __init__(self, scope: trio.CancelScope, n: int) -> None:
        self.scope = scope
        self.left = n
        self.root = trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the steps of the root and of the tasks below it."""
        above: trio.lowlevel.Task | None = task
        while above is not None and above is not self.root:
            nursery = above.parent_nursery
            above = None if nursery is None else nursery.parent_task
        if above is self.root:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def cancelled_at(n: int, scenario: Callable[[], Awaitable[object]]) -> trio.CancelScope:
    """Run ``scenario`` and cancel it after the n-th step that it and its children take."""
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, n)
        trio.lowlevel.add_instrument(instrument)
        try:
            await scenario()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope


def sweep(once: Callable[[int], Awaitable[trio.CancelScope]]) -> None:
    """Call ``once(n)`` in a run of its own for n = 1, 2, 3, ..., until nothing is cancelled."""
    for n in range(1, MOST_STEPS + 1):
        scope = trio.run(once, n, clock=MockClock(autojump_threshold=0))
        if not scope.cancelled_caught and not scope.cancel_called:
            assert n > 1, "nothing was done"
            return
    pytest.fail(f"it takes more than {MOST_STEPS} steps")
