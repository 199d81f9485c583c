"""What a rule may say about a segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from .._streams.segment import Segment

__all__ = ("Delay", "Deliver", "Drop", "Reset", "Rule", "Verdict", "is_verdict")


@final
@dataclass(frozen=True, slots=True)
class Deliver:
    """Let it pass: over the link as ever, but no other rule or fault is asked, and no loss."""


@final
@dataclass(frozen=True, slots=True)
class Delay:
    """Let it pass, so many seconds later than the link alone would.

    What follows on the same connection waits behind it.
    """

    seconds: float

    def __post_init__(self) -> None:
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float):
            raise TypeError(f"Delay.seconds must be a number, got {self.seconds!r}")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"Delay.seconds must be finite, not negative, got {self.seconds!r}")


@final
@dataclass(frozen=True, slots=True)
class Drop:
    """Lose it. TCP sends it again when it would have noticed; a datagram is gone."""


@final
@dataclass(frozen=True, slots=True)
class Reset:
    """Lose it, and reset its connection at both ends at once. A datagram is just lost."""


Verdict = Deliver | Delay | Drop | Reset
Rule = Callable[[Segment], Verdict | None]


def is_verdict(thing: object) -> bool:
    """Whether a rule may have returned this."""
    return thing is None or isinstance(thing, Verdict)
