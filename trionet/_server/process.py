"""A server as a process among processes: inherited sockets, readiness, several workers."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

import trio

from .._address import MEMORY_NETWORKS, Address
from .._options import Backoff, SocketOptions
from .._streams.socket_listener import SocketListener, inode_of
from .._streams.system import listen_socket_now
from .workers import Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ("inherited_listeners", "notify", "run_workers")

_logger = logging.getLogger("trionet.process")

# sd_listen_fds(3): the first descriptor a service manager passes.
FIRST_INHERITED: Final = 3

# How long the service manager may take to read a notification before it is an error.
NOTIFY_TIMEOUT: Final = 1.0

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
    listeners: list[SocketListener] = []
    try:
        for fd, name in zip(descriptors, titles, strict=True):
            listeners.append(_inherit(fd, name))
    except ValueError:
        # They are the service manager's, and nothing was taken over.
        for listener in listeners:
            listener.socket.detach()
        raise
    return listeners


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
    `trionet.serve_until_signalled` takes for a drain, the second one, too, which ends it at once;
    the third one kills them.
    When this process dies, its workers drain.

    Under systemd use ``KillMode=mixed``: by default it signals the workers as well, and two signals
    are one too many.

    Args:
      main: gets the listening sockets; `SocketListener` makes a listener of each. A Unix socket
        of ours does not know the path it was renamed to: tell it by ``address=``.
      n: how many workers; about one for each core.
      binds: what to listen on: pairs of network and address as `trionet.listen` takes them, and
        sockets that listen already, those of `inherited_listeners` say. All are closed when the
        drain begins, and a Unix path that is ours is unlinked.
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
        Supervisor(main, shares, backoff or Backoff(), stack.close).run()


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
    several = copies > 1 and target.network != "unix"
    first = listen_socket_now(target, SocketOptions(reuse_port=several))
    bound = [first]
    for listener in first:
        stack.callback(_close, listener, _inode(target))
    if several:
        for _ in range(copies - 1):
            # At the very addresses of the first, whose port may have been for the kernel to choose.
            again: list[SocketListener] = []
            for listener in first:
                more = listen_socket_now(listener.address, SocketOptions(reuse_port=True))
                stack.callback(more[0].socket.close)
                again += more
            bound.append(again)
    return [[listener.socket for listener in listeners] for listeners in bound]


def _inode(target: Address) -> tuple[int, int] | None:
    path = target.path or ""
    # An abstract name is no file, though a file may be called so.
    return None if path.startswith("@") else inode_of(path)


def _close(listener: SocketListener, inode: tuple[int, int] | None) -> None:
    # Not listener.close(): that needs trio.
    path = listener.address.path or ""
    try:
        if inode is not None and inode_of(path) == inode:
            os.unlink(path)
    except OSError as exc:
        # No reason to keep the workers from draining; the path refuses whoever dials it.
        _logger.warning("cannot remove %r: %s", path, exc)
    finally:
        listener.socket.close()
