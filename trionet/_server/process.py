"""A server as a process among processes: inherited sockets, readiness, several workers.

How this works. `run_workers` binds, forks and then only waits: for a signal, or for the time when
a dead worker is due to be started again. The parent keeps the listening sockets open, so that a
client who comes while a worker is dead waits in a backlog and is served by the next one. Each
worker holds the reading end of a pipe of which the parent alone has the other: when the parent is
gone, however that happened, the workers drain as if they had been asked to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn, final

import trio

from .._address import MEMORY_NETWORKS, Address
from .._options import Backoff, SocketOptions
from .._streams.sockets import SocketListener, inode_of
from .._streams.system import listen_socket_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ("inherited_listeners", "notify", "run_workers")

_logger = logging.getLogger("trionet.process")

# sd_listen_fds(3): the first descriptor a service manager passes.
FIRST_INHERITED: Final = 3

# How long the service manager may take to read a notification before it is an error.
NOTIFY_TIMEOUT: Final = 1.0

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


# The service manager


def inherited_listeners() -> list[SocketListener]:
    """Take over the listening sockets that systemd passed (sd_listen_fds(3)).

    Call it once, before anything else opens descriptors; the variables it reads are taken out of
    the environment, so that children do not mistake them for theirs. A Unix path is not unlinked
    when its listener closes: the socket is the service manager's, and the next process gets it.

    Returns:
      The listeners in systemd's order, each with its ``name`` (``FileDescriptorName=``); none
      where this process was not started for a socket.

    Raises:
      ValueError: what was passed is not a listening stream socket, or the variables are garbled.
    """
    pid, count, names = (
        os.environ.pop(name, None) for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if pid is None or count is None or pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdecimal()):
        raise ValueError(f"LISTEN_FDS must be a number, got {count!r}")
    descriptors = range(FIRST_INHERITED, FIRST_INHERITED + int(count))
    titles = names.split(":") if names else [None] * len(descriptors)
    if len(titles) != len(descriptors):
        raise ValueError(f"LISTEN_FDNAMES must have {count} names, got {names!r}")
    return [_inherit(fd, name) for fd, name in zip(descriptors, titles, strict=True)]


def _inherit(fd: int, name: str | None) -> SocketListener:
    what = f"descriptor {fd} ({name!r})"
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise ValueError(f"{what} is not a socket: {exc}") from exc
    try:
        return SocketListener(sock, name=name)
    except (TypeError, ValueError) as exc:
        sock.detach()
        raise ValueError(f"{what} is not a listening stream socket: {exc}") from exc


def notify(state: str) -> bool:
    """Tell the service manager how this service is (sd_notify(3)).

    Args:
      state: ``"READY=1"``, ``"STOPPING=1"``, ``"STATUS=..."`` or several of these in lines. From
        `run_workers`' workers systemd listens with ``NotifyAccess=all`` only.

    Returns:
      False where nobody wants to know, NOTIFY_SOCKET not being set.

    Raises:
      ValueError: ``state`` is empty, or NOTIFY_SOCKET is no path and no abstract name.
      OSError: the message could not be delivered; waits a second at the most.
    """
    if not state:
        raise ValueError(f"the state must not be empty, got {state!r}")
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return False
    if not name.startswith(("/", "@")):
        raise ValueError(f"NOTIFY_SOCKET must be a path or an abstract name, got {name!r}")
    address = b"\0" + os.fsencode(name[1:]) if name.startswith("@") else os.fsencode(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(NOTIFY_TIMEOUT)
        sock.connect(address)
        sock.send(state.encode())
    return True


# Workers


def run_workers(
    main: Callable[[list[socket.socket]], Awaitable[object]],
    n: int,
    *,
    binds: Sequence[tuple[str, str] | socket.socket] = (),
    reuse_port: bool = False,
    backoff: Backoff | None = None,
) -> None:
    """Serve with ``n`` processes, until SIGTERM or SIGINT and until all of them have ended.

    Call it instead of `trio.run`, from a process with no other thread. It binds first, then forks;
    each worker runs ``trio.run(main, sockets)``. A worker that ends is started again after a
    pause. The first signal is passed on to the workers as SIGTERM, which
    `trionet.serve_until_signalled` takes for a drain, the second one, too, which ends it at once.
    When this process dies, its workers drain.

    Under systemd use ``KillMode=mixed``: by default it signals the workers as well, and two signals
    are one too many.

    Args:
      main: gets the listening sockets; `SocketListener` makes a listener of each.
      n: how many workers; about one for each core.
      binds: what to listen on: pairs of network and address as `trionet.listen` takes them, and
        sockets that listen already, those of `inherited_listeners` say. A Unix path that is ours
        is unlinked at the end.
      reuse_port: give each worker a socket of its own for every TCP address (SO_REUSEPORT); the
        kernel then spreads the clients evenly, and those in the backlog of a worker that is stuck
        wait for it. Unless given, the workers share one.
      backoff: how long a worker's place stays empty; `Backoff` unless given. One that has lived
        for its ``maximum`` starts again with the ``first`` pause. Its ``attempts`` count for
        nothing here: a worker is always started again.

    Raises:
      TypeError, ValueError: an argument is wrong; nothing was opened.
      RuntimeError: there is another thread, or trio is running, or the system cannot fork.
      OSError: an address cannot be listened on.
    """
    if not callable(main):
        raise TypeError(f"main must be an async function, got {main!r}")
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n must be an int, got {n!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if backoff is not None and not isinstance(backoff, Backoff):
        raise TypeError(f"backoff must be a Backoff, got {backoff!r}")
    targets = [_target(bind) for bind in binds]
    _check_alone()
    with contextlib.ExitStack() as stack:
        sockets = [_bind(target, n if reuse_port else 1, stack) for target in targets]
        # One list for each worker; what is shared is in all of them.
        shares = [[one for bound in sockets for one in bound[i % len(bound)]] for i in range(n)]
        _Supervisor(main, shares, backoff or Backoff(), stack.close).run()


def _target(bind: Any) -> Address | socket.socket:
    if isinstance(bind, socket.socket):
        if not bind.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError(f"a socket in binds must be listening, got {bind!r}")
        return bind
    if not isinstance(bind, tuple) or len(bind) != 2:
        raise TypeError(f"binds takes (network, address) pairs and sockets, got {bind!r}")
    target = Address.parse(*bind)
    if target.network in MEMORY_NETWORKS:
        raise ValueError(f"processes cannot share memory networks, got {bind!r}")
    return target


def _check_alone() -> None:
    if not hasattr(os, "fork"):
        raise RuntimeError("run_workers needs fork, which this system does not have")
    if trio.lowlevel.in_trio_run():
        raise RuntimeError("run_workers must be called outside of trio.run")
    if threading.active_count() > 1 or threading.current_thread() is not threading.main_thread():
        # A lock that another thread holds at the fork stays locked in the child for ever.
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise RuntimeError(f"run_workers must be called with one thread running, got {names}")


def _bind(
    target: Address | socket.socket, copies: int, stack: contextlib.ExitStack
) -> list[list[socket.socket]]:
    """Return the sockets for ``target``, ``copies`` times where each is to have its own."""
    if isinstance(target, socket.socket):
        stack.callback(target.close)
        return [[target]]
    first = listen_socket_now(target, SocketOptions(reuse_port=copies > 1))
    bound = [first]
    for listener in first:
        stack.callback(_close, listener, inode_of(target.path or ""))
    if target.network != "unix":
        for _ in range(copies - 1):
            # At the very addresses of the first, whose port may have been for the kernel to choose.
            again: list[SocketListener] = []
            for listener in first:
                more = listen_socket_now(listener.address, SocketOptions(reuse_port=True))
                stack.callback(more[0].socket.close)
                again += more
            bound.append(again)
    return [[listener.socket for listener in listeners] for listeners in bound]


def _close(listener: SocketListener, inode: tuple[int, int] | None) -> None:
    # Not listener.close(): that needs trio.
    path = listener.address.path or ""
    if inode is not None and inode_of(path) == inode:
        os.unlink(path)
    listener.socket.close()


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
class _Supervisor:
    """Starts workers, waits, and starts those again that have died.

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
        self._stopping = False
        self._handlers: dict[int, Any] = {}
        self._wakeup_before = -1
        self._wakeup: tuple[int, int] = (-1, -1)
        self._lifeline: tuple[int, int] = (-1, -1)

    def run(self) -> None:
        self._set_up()
        try:
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
        signal.set_wakeup_fd(self._wakeup_before)
        for fd in (*self._wakeup, *self._lifeline):
            os.close(fd)

    def _wait(self) -> bytes:
        """Wait for signals, and return their numbers, or for the time when a worker is due."""
        timeout = None
        if not self._stopping:
            dues = [one.due for one in self._workers if one.pid is None]
            if dues:
                timeout = max(0.0, min(dues) - time.monotonic())
        ready, _, _ = select.select([self._wakeup[0]], [], [], timeout)
        return os.read(self._wakeup[0], 512) if ready else b""

    def _stop(self) -> None:
        """Pass a signal on to drain; from now on nobody is accepted and nobody started."""
        self._stopping = True
        # The workers have theirs, and close them as they drain.
        self._close_sockets()
        for worker in self._workers:
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGTERM)

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
