"""What programs draw from the operating system's randomness, drawn from a seed instead.

``os.urandom``, ``os.getrandom``, and with them ``uuid.uuid4`` and ``secrets``; and the functions
of the ``random`` module. Only for the thread that is in the block: the others keep the real ones.
Out of reach: OpenSSL's generator (its outputs have constant sizes, so a trace does not show it),
``random.Random()`` without a seed, which asks the kernel itself, and ``hash()`` of a string.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("patched", "seeded_entropy")


@contextlib.contextmanager
def patched(module: Any, replacements: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace functions of ``module`` for this thread; others keep the functions it had.

    What the module lacks is left out. Code that imported a function by its name before the block
    keeps the real one.
    """
    thread = threading.get_ident()
    real = {name: getattr(module, name) for name in replacements if hasattr(module, name)}

    def stand_in(name: str) -> Callable[..., Any]:
        original, replacement = real[name], replacements[name]

        def call(*args: Any, **kwargs: Any) -> Any:
            here = threading.get_ident() == thread
            return (replacement if here else original)(*args, **kwargs)

        return call

    for name in real:
        setattr(module, name, stand_in(name))
    try:
        yield
    finally:
        for name, original in real.items():
            setattr(module, name, original)


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

    state = random.getstate()
    random.setstate(module.getstate())
    try:
        # `secrets` reaches the kernel by the name that `random` imported it under.
        with (
            patched(os, {"urandom": urandom, "getrandom": getrandom}),
            patched(random, {"_urandom": urandom}),
        ):
            yield
    finally:
        random.setstate(state)
