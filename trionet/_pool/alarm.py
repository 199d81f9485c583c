"""One task for everything in a pool that happens at a moment: expiry, and the end of a pause."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import trio
from trio.lowlevel import enable_ki_protection

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Alarm",)


@final
class Alarm:
    """One task that sleeps until the earliest of many moments, and never ticks.

    Attributes:
      at: the moment it rings; `math.inf` if there is nothing to ring for.
    """

    __slots__ = ("_ring", "_scope", "at")

    def __init__(self, ring: Callable[[float], float]) -> None:
        """Make an alarm for `run`.

        Args:
          ring: does, synchronously, what is due at the time it is given, and returns when it
            next wants to be called.
        """
        self.at = math.inf
        self._ring = ring
        self._scope: trio.CancelScope | None = None

    def set(self, at: float) -> None:
        """Ring at ``at`` at the latest."""
        if at < self.at:
            self.at = at
            if self._scope is not None:
                self._scope.deadline = at

    @enable_ki_protection
    async def run(self) -> None:
        """Ring whenever it is time, until cancelled."""
        while True:
            with trio.CancelScope(deadline=self.at) as self._scope:
                await trio.sleep_forever()
            self.at = math.inf
            self.set(self._ring(trio.current_time()))
