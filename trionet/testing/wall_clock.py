"""The clocks of the ``time`` module, showing virtual time.

For libraries that do not ask trio what time it is: ``httpcore`` ages its connections by
``time.monotonic``, HTTP servers date their responses by ``time.time``. Only for the thread that is
in the block. Out of reach: ``datetime.now()``, ``time.clock_gettime``, the processor's
time, and a function that was imported by its name before.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from .entropy import patched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio.testing import MockClock

__all__ = ("EPOCH", "virtual_wall_clock")

# 1 January 2030, 00:00 UTC: long after anything that a test's certificates may start at, and
# recognisable in a log.
EPOCH: Final = 1_893_456_000


@contextlib.contextmanager
def virtual_wall_clock(clock: MockClock) -> Iterator[None]:
    """Show this thread what ``clock`` says, and `EPOCH` plus that where the date is asked for.

    ``time.sleep`` moves ``clock`` on, since it holds up every task as it would really. The
    ``clock`` must have been made outside the block: it keeps the real clock that it found.
    """
    real: dict[str, Callable[..., Any]] = {
        name: getattr(time, name)
        for name in ("gmtime", "localtime", "asctime", "ctime", "strftime")
    }

    def now() -> float:
        return EPOCH + clock.current_time()

    def nanoseconds(seconds: float) -> int:
        return round(seconds * 1_000_000_000)

    def sleep(seconds: float, /) -> None:
        if not seconds >= 0:
            raise ValueError(f"sleep length must be non-negative, got {seconds!r}")
        clock.jump(seconds)

    def of_now(name: str) -> Callable[..., Any]:
        def answer(seconds: float | None = None, /) -> Any:
            return real[name](now() if seconds is None else seconds)

        return answer

    def asctime(moment: Any = None, /) -> str:
        shown: str = real["asctime"](real["localtime"](now()) if moment is None else moment)
        return shown

    def strftime(template: str, moment: Any = None, /) -> str:
        shown: str = real["strftime"](
            template, real["localtime"](now()) if moment is None else moment
        )
        return shown

    replacements: dict[str, Callable[..., Any]] = {
        "time": now,
        "time_ns": lambda: EPOCH * 1_000_000_000 + nanoseconds(clock.current_time()),
        "monotonic": clock.current_time,
        "monotonic_ns": lambda: nanoseconds(clock.current_time()),
        "perf_counter": clock.current_time,
        "perf_counter_ns": lambda: nanoseconds(clock.current_time()),
        "sleep": sleep,
        "gmtime": of_now("gmtime"),
        "localtime": of_now("localtime"),
        "asctime": asctime,
        "ctime": of_now("ctime"),
        "strftime": strftime,
    }
    with patched(time, replacements):
        yield
