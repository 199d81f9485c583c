"""What programs draw from the operating system's randomness, drawn from a seed instead.

``os.urandom``, ``os.getrandom``, and with them ``uuid.uuid4`` and ``secrets``; and the functions
of the ``random`` module. Only for the thread that is in the block: the others keep the real ones,
but for the functions of ``random``, whose one generator all threads share. Out of reach: OpenSSL's
generator (its outputs have constant sizes, so a trace does not show it), ``random.Random()``
without a seed, which asks the kernel itself, and ``hash()`` of a string.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import threading
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("patched", "seeded_entropy")


@final
class _Answer:
    """What one block has a function replaced with, in its thread."""

    __slots__ = ("busy", "replacement", "thread")

    def __init__(self, replacement: Callable[..., Any]) -> None:
        self.thread = threading.get_ident()
        self.replacement = replacement
        # A replacement that calls what it replaces means what was there before.
        self.busy = False


@final
class _Place:
    """A function of a module's, and what stands there instead of it while a block needs it.

    That may be kept by somebody, for instance by a module that is imported for the first time
    within a block: it is the original again after the block, and has its part in the next one.
    """

    __slots__ = ("answers", "name", "original", "stand_in")

    def __init__(self, name: str, original: Callable[..., Any]) -> None:
        self.name = name
        self.original = original
        # Replaced, not changed: other threads may be going through it.
        self.answers: tuple[_Answer, ...] = ()
        self.stand_in = self._make_stand_in()

    def _make_stand_in(self) -> Callable[..., Any]:
        @functools.wraps(self.original)
        def call(*args: Any, **kwargs: Any) -> Any:
            here = threading.get_ident()
            for answer in reversed(self.answers):
                if answer.thread == here and not answer.busy:
                    answer.busy = True
                    try:
                        return answer.replacement(*args, **kwargs)
                    finally:
                        answer.busy = False
            return self.original(*args, **kwargs)

        return call


_places: Final[dict[tuple[str, str], _Place]] = {}
_moving: Final = threading.Lock()


def _place_of(module: Any, name: str) -> _Place:
    there = getattr(module, name)
    place = _places.get((module.__name__, name))
    if place is None or there not in (place.stand_in, place.original):
        place = _places[module.__name__, name] = _Place(name, there)
    return place


@contextlib.contextmanager
def patched(module: Any, replacements: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace functions of ``module`` for this thread; others keep the functions it had.

    What the module lacks is left out. Code that imported a function by its name before the first
    block keeps the real one.
    """
    added: list[tuple[_Place, _Answer]] = []
    with _moving:
        for name, replacement in replacements.items():
            if hasattr(module, name):
                place, answer = _place_of(module, name), _Answer(replacement)
                place.answers = (*place.answers, answer)
                setattr(module, name, place.stand_in)
                added.append((place, answer))
    try:
        yield
    finally:
        with _moving:
            for place, answer in added:
                place.answers = tuple(one for one in place.answers if one is not answer)
                # Another thread may need it still, or somebody else have patched it since.
                if not place.answers and getattr(module, place.name) is place.stand_in:
                    setattr(module, place.name, place.original)


@contextlib.contextmanager
def seeded_entropy(system: random.Random, module: random.Random) -> Iterator[None]:
    """Answer this thread from two generators.

    Args:
      system: for ``os.urandom`` and its kin.
      module: where the functions of the ``random`` module start; they go back to where they
        were afterwards.
    """

    def urandom(size: int, /) -> bytes:
        if size < 0:
            raise ValueError("negative argument not allowed")
        return system.randbytes(size)

    def getrandom(size: int, flags: int = 0) -> bytes:  # noqa: ARG001
        return urandom(size)

    def seed(a: Any = None, version: int = 2) -> None:
        random.seed(system.getrandbits(256) if a is None else a, version)

    state = random.getstate()
    random.setstate(module.getstate())
    try:
        # `secrets` reaches the kernel by the name that `random` imported it under.
        with (
            patched(os, {"urandom": urandom, "getrandom": getrandom}),
            patched(random, {"_urandom": urandom, "seed": seed}),
        ):
            yield
    finally:
        random.setstate(state)
