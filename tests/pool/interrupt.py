"""Ctrl-C at a chosen line of chosen files."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType


class InterruptAtLine:
    """Sends this process a SIGINT when the n-th line of some files is about to run.

    Attributes:
      left: lines to come before that; 0 once it was sent.
    """

    def __init__(self, n: int, where: Sequence[str]) -> None:
        self.left = n
        self.where = tuple(where)

    def __enter__(self) -> Self:
        self.before = sys.gettrace()
        sys.settrace(self.call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def call(self, frame: FrameType, event: str, arg: object) -> Any:
        """Follow a function of these files, and no other."""
        return self.line if frame.f_code.co_filename.startswith(self.where) else None

    def line(self, frame: FrameType, event: str, arg: object) -> Any:
        """Count a line."""
        if event == "line" and self.left > 0:
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(signal.SIGINT)
        return self.line
