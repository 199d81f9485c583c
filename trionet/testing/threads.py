"""What the threads of this process are doing: work, or waiting for a task."""

from __future__ import annotations

import inspect
import sys
import threading
from typing import TYPE_CHECKING, Final

import trio
import trio.testing

from .task_tree import walk_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

__all__ = ("busy_threads", "keeps_threads", "other_threads", "thread_at_work")

_IN_THREAD: Final[CodeType] = inspect.unwrap(trio.to_thread.run_sync).__code__
_FROM_THREAD: Final[CodeType] = inspect.unwrap(trio.from_thread.run).__code__
# The file of what runs on behalf of a thread, and that of the threads that are kept for later.
_THREADS: Final = _IN_THREAD.co_filename
_KEPT_THREADS: Final = inspect.unwrap(trio.lowlevel.start_thread_soon).__code__.co_filename


def thread_at_work() -> bool:
    """Say whether a thread of ``trio.to_thread`` is doing anything but to wait for a task."""
    active = trio.testing.active_thread_count()
    if not active:
        return False
    root = trio.lowlevel.current_root_task()
    assert root is not None
    served = by_system_tasks = 0
    for task in walk_tasks(root):
        caller = None
        for frame, _ in task.iter_await_frames():
            code = frame.f_code
            if code.co_filename == _THREADS and code is not _IN_THREAD:
                # What a thread asked for runs in the task that waits for the thread, or, if that
                # may be abandoned or the thread is a stranger, in one of its own.
                served += caller is _IN_THREAD
                by_system_tasks += caller is None
            caller = code
    if by_system_tasks:
        by_system_tasks -= _strangers_that_ask()
    return active > served + by_system_tasks


def other_threads() -> list[threading.Thread]:
    """Return all threads but the caller's and those that trio keeps."""
    return [one for one, calls in _calls_of_threads() if not _is_kept(calls)]


def busy_threads() -> list[threading.Thread]:
    """Return the threads, but the caller's, that may still ask for something.

    That is, all but those that trio keeps for later, and those of ``trio.to_thread`` that wait for
    a task.
    """
    return [
        one
        for one, calls in _calls_of_threads()
        if not (_is_kept(calls) and (_is_idle(calls) or _FROM_THREAD in calls))
    ]


def keeps_threads() -> bool:
    """Say whether trio keeps a thread for later."""
    return any(_is_kept(calls) for _, calls in _calls_of_threads())


def _strangers_that_ask() -> int:
    """Count the threads that wait for a task of trio's, and that trio did not start."""
    return sum(_FROM_THREAD in calls and not _is_kept(calls) for _, calls in _calls_of_threads())


def _calls_of_threads() -> Iterator[tuple[threading.Thread, list[CodeType]]]:
    """Go through the threads, but the caller's, with what each is in, innermost first."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            frame = frames.get(thread.ident or 0)
            calls = []
            while frame is not None:
                calls.append(frame.f_code)
                frame = frame.f_back
            yield thread, calls


def _is_kept(calls: list[CodeType]) -> bool:
    """Say whether a thread is one of those that trio keeps."""
    return any(code.co_filename == _KEPT_THREADS for code in calls)


def _is_idle(calls: list[CodeType]) -> bool:
    """Say whether a thread that trio keeps has nothing to do."""
    # At work, there is more than one call of that file's, or something else above it.
    own = [code.co_filename == _KEPT_THREADS for code in calls]
    return own[:1] == [True] and own.count(True) == 1
