"""The access log, in the common log format, written without holding up the event loop."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("AccessLog", "escape")

# Lines that may wait for a slow disk or terminal; more are counted and dropped.
MAX_WAITING: Final = 65536

# Seconds a line may wait for others, since each write costs a hop to a thread and back.
DELAY: Final = 0.1

# Not printable ASCII, or a character that would end the field or fake an escape.
UNSAFE: Final = re.compile(r"[^ !#-\[\]-~]")


def escape(text: bytes) -> str:
    """Make what a client sent safe for a log and a terminal: the rest becomes ``\\xhh``."""
    return UNSAFE.sub(lambda m: f"\\x{ord(m[0]):02x}", text.decode("latin-1"))


@final
class AccessLog:
    """Collects lines and writes them, many at a time, in a thread.

    Once writing has failed, because who read the lines has gone, say, standard error is told, and
    nothing is logged any more: serving goes on.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        """Write through ``write``, which is called with whole lines, one call at a time."""
        self._write = write
        self._failed = False
        self._lines: list[str] = []
        self._dropped = 0
        self._filled = trio.Event()
        self._date: tuple[int, str] = (0, "")

    def add(self, client: str, request: str, status: int, size: int | None) -> None:
        """Note one answer.

        Args:
          client: who asked, escaped.
          request: the request line, escaped.
          size: bytes of the body that were sent; None for an answer that has none.
        """
        if self._failed:
            return
        if len(self._lines) >= MAX_WAITING:
            self._dropped += 1
            return
        second = int(time.time())
        if self._date[0] != second:
            stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(second))
            self._date = (second, stamp)
        sent = "-" if size is None else size
        self._lines.append(f'{client} - - [{self._date[1]}] "{request}" {status} {sent}\n')
        if not self._filled.is_set():
            self._filled.set()

    async def run(self) -> None:
        """Write what comes, for ever. If cancelled, what waits is still there for `flush`."""
        while True:
            await self._filled.wait()
            await trio.sleep(DELAY)
            # Taken here and not in the thread, where `add` could be in the middle of its work.
            text = self._take()
            try:
                await trio.to_thread.run_sync(self._try, text)
            except trio.Cancelled:
                # That is raised before the thread begins, never after.
                self._lines.insert(0, text)
                raise

    def flush(self) -> None:
        """Write what waits, here and now."""
        text = self._take()
        if text:
            self._try(text)

    def _try(self, text: str) -> None:
        """Write ``text``, unless that failed before."""
        if self._failed:
            return
        try:
            self._write(text)
        except OSError as exc:
            self._failed = True
            # Who reads that may have gone, too.
            with contextlib.suppress(OSError):
                print(f"httpd: the access log ends here: {exc}", file=sys.stderr, flush=True)

    def _take(self) -> str:
        self._filled = trio.Event()
        lines, self._lines = self._lines, []
        if self._dropped:
            lines.append(f"# {self._dropped} lines were dropped: the log is too slow\n")
            self._dropped = 0
        return "".join(lines)
