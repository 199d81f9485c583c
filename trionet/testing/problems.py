"""What makes a simulated run end early: the exceptions."""

from __future__ import annotations

from typing import final

import trio

__all__ = ("Deadlock", "EscapeError", "OutrunError", "SimulationError", "TimeLimitError")


class SimulationError(Exception):
    """A simulated run could not go on; the message draws the tree of its tasks."""


@final
class Deadlock(SimulationError):  # noqa: N818 - a word of its own
    """Every task waits, and nothing is left that could wake one.

    Not by the passing of time either, since no deadline is pending. Outside of a simulation the
    program would hang.
    """


@final
class EscapeError(SimulationError):
    """A task waits for a socket, a pipe or a process of the real operating system.

    Virtual time would pass it by, and no seed decides what arrives there. Usually somebody made a
    socket of the standard library's, or there is no `VirtualNetwork` around.
    """


@final
class OutrunError(SimulationError):
    """A thread takes long, and virtual time would pass it by.

    Virtual time stands still while a thread of ``trio.to_thread`` runs, for at most five seconds
    of real time.
    """


@final
class TimeLimitError(SimulationError, trio.TooSlowError):
    """The run reached its limit of virtual time."""
