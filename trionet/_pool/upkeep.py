"""What is done to connections between leases: `check` and `reset`, in tasks beside the dials."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar, final

import outcome
import trio
from trio.lowlevel import enable_ki_protection

from .attempt import EXCHANGE_LIMIT, attempt

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .entry import Entry
    from .supply import Supply

__all__ = ("Upkeep",)

T = TypeVar("T")


@final
class Upkeep(Generic[T]):
    """Runs one function on connections that nobody has, and closes those for which it fails.

    Attributes:
      running: the connections it runs on, by what cancels it.
    """

    def __init__(
        self,
        function: Callable[[T], Awaitable[object]] | None,
        name: str,
        *,
        supply: Supply[T],
        passed: Callable[[Entry[T]], object],
        ended: Callable[[], object],
    ) -> None:
        """Prepare to run ``function``; with None there is nothing to `start`.

        Args:
          name: what it is called, also as a reason for closing.
          passed: takes a connection with which all is well.
          ended: called after each run, whatever came of it.
        """
        self.function: Final = function
        self._name = name
        self._supply = supply
        self._passed = passed
        self._ended = ended
        self.running: dict[Entry[T], trio.CancelScope] = {}

    def start(self, entry: Entry[T]) -> None:
        """Run the function on ``entry``, which nobody has, for 5 s at most."""
        assert self.function is not None
        scope = trio.CancelScope(deadline=trio.current_time() + EXCHANGE_LIMIT)
        self.running[entry] = scope
        self._supply.start(self._run, self.function, entry, scope)

    def cancel(self) -> None:
        """Have everything that runs fail now."""
        for scope in self.running.values():
            scope.cancel()

    @enable_ki_protection
    async def _run(
        self,
        function: Callable[[T], Awaitable[object]],
        entry: Entry[T],
        scope: trio.CancelScope,
    ) -> None:
        passed = False
        try:
            result = await attempt(function, entry.resource, scope=scope, what=self._name)
            passed = isinstance(result, outcome.Value) and result.value is not False
        finally:
            disowned = self.running.pop(entry, None) is None
            if disowned:
                pass  # By a fork: it is somebody else's business.
            elif entry.doomed or not passed or self._supply.surplus() > 0:
                self._supply.retire(entry, "surplus" if passed else self._name)
            else:
                self._passed(entry)
            self._ended()
