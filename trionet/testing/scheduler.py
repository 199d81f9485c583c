"""The order in which trio runs the tasks of one pass, drawn from a seed.

This is the one file that knows private names of trio's, two of them: the generator that
shuffles the tasks which are runnable at the same moment, and the switch that has it shuffle a
sorted list, so that the outcome depends on the generator alone. trio's Hypothesis plugin and
pytest-trio use the same two. ``tests/testing/test_scheduler.py`` tells when trio has changed
them; a run goes on without them then, in an order that no seed decides.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING, Final

import trio
import trio._core._run as _trio_run

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("GENERATOR", "SWITCH", "reseed_scheduler", "seeded_scheduler", "why_unseeded")

GENERATOR: Final = "_r"
SWITCH: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"


def why_unseeded() -> str | None:
    """Return why this trio's scheduler cannot be seeded, or None where it can."""
    for name, kind in ((GENERATOR, random.Random), (SWITCH, bool)):
        found = getattr(_trio_run, name, None)
        if not isinstance(found, kind):
            return (
                f"trio {trio.__version__} has no {kind.__name__} trio._core._run.{name} "
                f"(found {found!r}), so the order of its tasks cannot be seeded"
            )
    return None


@contextlib.contextmanager
def seeded_scheduler(generator: random.Random) -> Iterator[bool]:
    """Have ``generator`` decide the order of tasks in the runs of this block.

    Yields:
      Whether it does; false where `why_unseeded` has something to say.

    The state of trio's own generator is put back afterwards: Hypothesis may have seeded it.
    """
    if why_unseeded() is not None:
        yield False
        return
    ours: random.Random = getattr(_trio_run, GENERATOR)
    switch = getattr(_trio_run, SWITCH)
    state = ours.getstate()
    setattr(_trio_run, SWITCH, True)
    ours.setstate(generator.getstate())
    try:
        yield True
    finally:
        ours.setstate(state)
        setattr(_trio_run, SWITCH, switch)


def reseed_scheduler(generator: random.Random) -> None:
    """Start over with ``generator``, inside the block of a `seeded_scheduler` that yielded true."""
    getattr(_trio_run, GENERATOR).setstate(generator.getstate())
