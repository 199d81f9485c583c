"""What a pool tells: its statistics, and the errors and warnings that say what is the matter."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

from .._errors import PoolConnectError, PoolTimeoutError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from trio.lowlevel import Task

    from .entry import Entry
    from .supply import Budget

__all__ = (
    "PoolStatistics",
    "connect_error",
    "log_leaks",
    "log_nesting",
    "stack_here",
    "timeout_error",
)

# Frames of the stack that a report of a leak shows: enough to leave this package and trio's.
STACK_LIMIT: Final = 12

_logger = logging.getLogger("trionet.pool")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """What a pool has and has done, at one moment.

    Attributes:
      max_size, min_size: as they are now, see `Pool.resize`.
      size: slots taken; the six counts below it add up to it.
      idle: open, and lent to nobody.
      lent: open, and lent; those closed under their holder do not count.
      connecting: being made.
      checking, resetting: open, in the hands of ``check`` or ``reset``.
      closing: not yet closed.
      waiting: tasks that wait for a connection.
      acquired: how often one was lent.
      cancelled, timed_out: how often a task stopped waiting, for its ``timeout`` or otherwise.
      connected, connect_failures: how many dials went well, and how many did not.
      closed: how many connections were closed or are closing; ``connected`` less those open.
      reasons: the same, by reason: ``"discarded"``, ``"dead"``, ``"idle"``, ``"lifetime"``,
        ``"expired"``, ``"surplus"``, ``"check"``, ``"reset"``, ``"evicted"``, ``"closed"``,
        ``"seized"``.
    """

    max_size: int
    min_size: int
    size: int
    idle: int
    lent: int
    connecting: int
    checking: int
    resetting: int
    closing: int
    waiting: int
    acquired: int
    cancelled: int
    timed_out: int
    connected: int
    connect_failures: int
    closed: int
    reasons: dict[str, int]


def connect_error(error: Exception, attempts: int) -> PoolConnectError:
    """Make the exception that says what kept connecting from succeeding."""
    times = "" if attempts == 1 else f", {attempts} times in a row"
    problem = PoolConnectError(f"could not connect{times}: {error!r}")
    problem.__cause__ = error
    return problem


def timeout_error(
    timeout: float,
    now: PoolStatistics,
    last_error: Exception | None,
    lent: Iterable[Entry[Any]],
    budget: Budget | None,
) -> PoolTimeoutError:
    """Make the exception that says what there was instead of a connection.

    Args:
      last_error: why the last dial failed.
      lent: what somebody has; told of if the stack is known on which it was taken.
      budget: the slots shared with other keys.
    """
    text = (
        f"no connection came within {timeout:g} s: {now.size} of {now.max_size} slots taken "
        f"({now.idle} idle, {now.lent} lent, {now.connecting} connecting, "
        f"{now.checking} checked, {now.resetting} reset, {now.closing} closing), "
        f"{now.waiting} waiting"
    )
    if budget is not None:
        text += f", and {budget.taken} of {budget.limit} for all keys"
    if last_error is not None:
        text += f"; connecting failed last with {last_error!r}"
    error = PoolTimeoutError(text)
    error.__cause__ = last_error
    for entry in lent:
        if entry.where is not None:
            error.add_note(f"{entry.resource!r} is lent, since\n{''.join(entry.where)}")
    return error


def stack_here() -> list[str]:
    """Return the stack of whoever called the caller, for `Entry.where`."""
    return traceback.format_stack(limit=STACK_LIMIT)[:-2]


def log_leaks(lent: Iterable[Entry[Any]], what: str) -> None:
    """Log who has not given back a connection.

    Args:
      what: what is the matter with it.
    """
    for entry in lent:
        _logger.warning(
            "%r %s; it was acquired at\n%s", entry.resource, what, "".join(entry.where or ())
        )


def log_nesting(
    lent: Iterable[Entry[Any]], limit: int, waiting: Collection[Task], here: Task
) -> bool:
    """Log that everything is lent to tasks that wait for more, as ``here`` is about to.

    Args:
      lent: all connections of the pool, or of the key, that are lent.
      limit: how many there may be.
      waiting: the tasks that wait.

    Returns:
      Whether it is so, and was logged.
    """
    count = 0
    for entry in lent:
        count += 1
        if entry.task is not here and entry.task not in waiting:
            return False
    if count < limit:
        return False
    _logger.warning(
        "all %d connections are lent to tasks that wait for another one here: "
        "unless one of them is cancelled, none will ever be given back",
        limit,
    )
    return True
