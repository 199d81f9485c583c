"""The parent of worker processes: starts them, waits, and starts those again that have died.

How this works. The parent only waits: for a signal, or for the time when a dead worker is due to be
started again. It keeps the listening sockets open, so that a client who comes while a worker is
dead waits in a backlog and is served by the next one. Each worker holds the reading end of a pipe
of which the parent alone has the other: when the parent is gone, however that happened, the workers
drain as if they had been asked to.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from .._options import Backoff

__all__ = ("Supervisor",)

_logger = logging.getLogger("trionet.process")

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


@final
class _Worker:
    """A place for a worker: its process if it has one, and when it is due to get one if not."""

    def __init__(self, number: int, sockets: list[socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.pid: int | None = None
        self.born = 0.0
        self.due = 0.0
        self.failures = 0


@final
class Supervisor:
    """Starts workers, waits, and starts those again that have died; `run` does it all.

    All in one thread: signals only write into a pipe (signal.set_wakeup_fd), on which `_wait` waits
    and after which the state changes, one step at a time.
    """

    def __init__(
        self,
        main: Callable[[list[socket.socket]], Awaitable[object]],
        shares: list[list[socket.socket]],
        backoff: Backoff,
        close_sockets: Callable[[], object],
    ) -> None:
        self._main = main
        self._workers = [_Worker(number, share) for number, share in enumerate(shares)]
        self._backoff = backoff
        self._close_sockets = close_sockets
        # How many signals to stop have come.
        self._stops = 0
        self._handlers: dict[int, Any] = {}
        self._wakeup_before: int | None = None
        self._wakeup: tuple[int, int] = (-1, -1)
        self._lifeline: tuple[int, int] = (-1, -1)

    def run(self) -> None:
        try:
            self._set_up()
            while not self._stopping or any(one.pid is not None for one in self._workers):
                self._start_due()
                for number in self._wait():
                    if number in STOPPING:
                        self._stop()
                self._reap()
        except BaseException:
            self._stop()
            for worker in self._workers:
                if worker.pid is not None:
                    os.waitpid(worker.pid, 0)
            raise
        finally:
            self._tear_down()

    # Waiting

    def _set_up(self) -> None:
        self._lifeline = os.pipe()
        self._wakeup = os.pipe()
        for fd in self._wakeup:
            os.set_blocking(fd, False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        for number in (*STOPPING, signal.SIGCHLD):
            # Without a handler of Python's own nothing would be written.
            before = signal.signal(number, lambda *_: None)
            # None is what something other than Python installed, and nothing can bring back.
            self._handlers[number] = signal.SIG_DFL if before is None else before

    def _tear_down(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._wakeup_before is not None:
            signal.set_wakeup_fd(self._wakeup_before)
        for fd in (*self._wakeup, *self._lifeline):
            # Out of descriptors, the set-up may have come to none of them.
            if fd != -1:
                os.close(fd)

    def _wait(self) -> bytes:
        """Wait for signals, and return their numbers, or for the time when a worker is due."""
        timeout = None
        if not self._stopping:
            dues = [one.due for one in self._workers if one.pid is None]
            if dues:
                timeout = max(0.0, min(dues) - time.monotonic())
        # Not select(): the sockets opened before may leave only numbers that it does not take.
        poll = select.poll()
        poll.register(self._wakeup[0], select.POLLIN)
        # Whole milliseconds, rounded up: a worker is not due a moment before its time.
        ready = poll.poll(None if timeout is None else math.ceil(timeout * 1000))
        return os.read(self._wakeup[0], 512) if ready else b""

    @property
    def _stopping(self) -> bool:
        return self._stops > 0

    def _stop(self) -> None:
        """Pass a signal on to drain; from now on nobody is accepted and nobody started."""
        self._stops += 1
        # The workers have theirs, and close them as they drain.
        self._close_sockets()
        for worker in self._workers:
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGTERM if self._stops < 3 else signal.SIGKILL)

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.pid is None:
                continue
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if not pid:
                continue
            worker.pid = None
            code = os.waitstatus_to_exitcode(status)
            if self._stopping:
                level = logging.INFO if code in {0, -signal.SIGTERM} else logging.ERROR
                _logger.log(level, "worker %d (%d) ended with %d", worker.number, pid, code)
            else:
                pause = self._postpone(worker)
                _logger.error(
                    "worker %d (%d) ended with %d; the next one starts in %.2f s",
                    worker.number,
                    pid,
                    code,
                    pause,
                )

    def _postpone(self, worker: _Worker) -> float:
        """Set when a worker's place is due again, and return the pause until then."""
        now = time.monotonic()
        # One that lived long was no failed start.
        lived_long = now - worker.born >= self._backoff.maximum
        worker.failures = 1 if lived_long else worker.failures + 1
        pause = self._backoff.delay(worker.failures)
        worker.due = now + pause
        return pause

    # Starting

    def _start_due(self) -> None:
        if self._stopping:
            return
        for worker in self._workers:
            if worker.pid is None and worker.due <= time.monotonic():
                worker.born = time.monotonic()
                try:
                    self._start(worker)
                except OSError as exc:
                    pause = self._postpone(worker)
                    _logger.error("cannot fork, trying again in %.2f s: %s", pause, exc)

    def _start(self, worker: _Worker) -> None:
        # What this process has not written yet, its child would write once more.
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal between the fork and the child's own handlers would meet ours there and vanish.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self._handlers.keys())
        try:
            pid = os.fork()
            if not pid:
                self._work(worker, blocked)
            worker.pid = pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _work(self, worker: _Worker, blocked: Any) -> NoReturn:
        """Be a worker: run ``main`` and exit, past everything the parent would do at its end."""
        code = 1
        try:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            # A group of its own: Ctrl-C is for the parent, who passes it on once.
            os.setpgid(0, 0)
            for fd in (*self._wakeup, self._lifeline[1]):
                os.close(fd)
            mine = {sock.fileno() for sock in worker.sockets}
            for other in self._workers:
                for sock in other.sockets:
                    if sock.fileno() not in mine:
                        sock.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            trio.run(_run_main, self._main, worker.sockets, self._lifeline[0])
            code = 0
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
            if not isinstance(exc.code, int | None):
                print(exc.code, file=sys.stderr)
        except BaseException:  # noqa: BLE001
            # Nothing may unwind into the parent's stack, of which this is a copy.
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


async def _run_main(
    main: Callable[[list[socket.socket]], Awaitable[object]],
    sockets: list[socket.socket],
    lifeline: int,
) -> None:
    trio.lowlevel.spawn_system_task(_drain_when_orphaned, lifeline)
    await main(sockets)


async def _drain_when_orphaned(lifeline: int) -> None:
    # Nothing is ever written: it becomes readable when the parent, who held the other end, is gone.
    await trio.lowlevel.wait_readable(lifeline)
    os.kill(os.getpid(), signal.SIGTERM)
