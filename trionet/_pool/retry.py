"""When to dial again after a failure, and when somebody is told of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from .._options import Backoff

__all__ = ("Retry",)


@final
class Retry:
    """How the dials of one supply have failed, and the pause that follows from it.

    Attributes:
      resting: whether a pause runs; nobody dials in it.
      resume_at: when the latest pause ends or ended.
      tries: dials that failed in a row, since somebody was told of it.
      last_error: why the last dial failed; None if it did not.
    """

    __slots__ = ("_backoff", "_failures", "last_error", "resting", "resume_at", "tries")

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        # In a row, whoever was told: what the pauses grow with.
        self._failures = 0
        self.tries = 0
        self.resting = False
        self.resume_at = -math.inf
        self.last_error: Exception | None = None

    def failed(self, error: Exception, tries: int, now: float) -> bool:
        """Take notice of a failure, and begin a pause.

        Dials that started together and fail together are one failure: one pause, one try.

        Args:
          tries: which one of a row the dial was when it started, from 1.

        Returns:
          Whether it was the last of its row: it is time to tell somebody.
        """
        self.last_error = error
        if now >= self.resume_at:
            self._failures += 1
            self.resting = True
            self.resume_at = now + self._backoff.delay(self._failures)
        attempts = self._backoff.attempts
        if attempts is not None and tries >= attempts:
            self.tries = 0
            return True
        self.tries = max(self.tries, tries)
        return False

    def connected(self) -> None:
        """End the pause; what failed is forgotten only once the connection has `proved` of use."""
        self.resting = False
        self.resume_at = -math.inf

    def proved(self) -> None:
        """Take notice that connections are good for something."""
        self.forget()
        self.last_error = None

    def forget(self) -> None:
        """Let the next failure be the first one of a row."""
        self._failures = self.tries = 0
