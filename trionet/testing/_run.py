"""Where a virtual network finds the run of `simulate` that it is part of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from .trace import Trace

__all__ = ("CurrentRun", "current_run", "current_seed")


class CurrentRun(Protocol):
    """What `simulate` puts into `current_run`."""

    @property
    def seed(self) -> int:
        """The root of everything random in this run."""

    def register(self, trace: Trace) -> None:
        """Make ``trace`` part of what the run's digest and its failure report cover.

        Called once by each network, when its block is entered.
        """


# None outside of simulate(). A RunVar: two runs never meet.
current_run: Final[trio.lowlevel.RunVar[CurrentRun | None]] = trio.lowlevel.RunVar(
    "trionet.current_run", None
)


def current_seed(seed: int | None) -> int:
    """Return ``seed``, or for None the seed of the run, or 0 where there is none."""
    if seed is not None:
        return seed
    run = current_run.get()
    return 0 if run is None else run.seed
