"""The operating system's sockets: what is dialled and listened on when it is not memory.

Long, since a name stands for several addresses both ways: dialling races them, listening takes one
port on all of them. That half is for any kind of socket, a virtual host's too.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import socket
import stat
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, final

import trio

from .._address import UNIX_PATH_MAX, Address
from .._errors import Ungrouped
from . import readiness
from .socket_listener import SocketListener, inode_of
from .sockets import SocketStream
from .tuning import Tuning, tuning

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from .._options import SocketOptions

__all__ = (
    "ATTEMPT_DELAY",
    "Connected",
    "Listening",
    "dial_addresses",
    "dial_socket",
    "listen_addresses",
    "listen_socket",
    "listen_socket_now",
)

# RFC 8305 section 5, "Connection Attempt Delay": the recommended value, in seconds.
ATTEMPT_DELAY: Final = 0.25

# A listener without a host asks for port 0 once and for the second family's same port once; how
# often another pair is tried when that one is taken.
PORT_ATTEMPTS: Final = 16

# The unspecified address is dialled as this machine, and is nobody's own.
REACHED: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound to it

FAMILIES: Final = {"tcp": socket.AF_UNSPEC, "tcp4": socket.AF_INET, "tcp6": socket.AF_INET6}


async def dial_socket(
    target: Address, options: SocketOptions, local: Address | None
) -> SocketStream:
    """Connect to a TCP or Unix address.

    If cancelled, no socket is left behind.
    """
    wanted = tuning(options, "dialling", unix=target.network == "unix")
    if target.network == "unix":
        sock = _new_socket(socket.AF_UNIX, wanted)
        try:
            if local is not None:
                sock.bind(_unix_name(local))
            await _connect(sock, _unix_name(target))
        except BaseException:
            sock.close()
            raise
        return SocketStream(sock, local=local, remote=target)

    async def attempt(family: int, name: Any, local_name: Any) -> SocketStream:
        sock = await _connected(family, name, local_name, wanted)
        # Its name is kept: a socket whose peer is gone does not know it any more.
        host, *rest = name
        return SocketStream(sock, peername=(REACHED.get(host, host), *rest))

    return await dial_addresses(target, local, attempt)


async def dial_addresses(
    target: Address,
    local: Address | None,
    attempt: Callable[[int, Any, Any], Awaitable[ConnectedT]],
) -> ConnectedT:
    """Connect to one of the addresses a host has, by happy eyeballs.

    Args:
      attempt: connects to one, given the family, its name and the local one to bind to, or None.

    If cancelled, so are the attempts.
    """
    infos = await _resolve(target, passive=False)
    locals_ = [None] if local is None else await _resolve(local, passive=True)
    attempts = [
        _Attempt(partial(attempt, family, name, _name_for(family, locals_)))
        for family, name in _interleaved(infos)
        if local is None or _name_for(family, locals_) is not None
    ]
    if not attempts:
        raise OSError(errno.EADDRNOTAVAIL, f"{target} and {local} have no address family in common")
    if len(attempts) == 1:
        return await attempts[0].run()
    return await _race(attempts)


class Connected(Protocol):
    """What an attempt makes."""

    def close(self) -> None:
        """Close it at once."""


ConnectedT = TypeVar("ConnectedT", bound=Connected)


@final
class _Attempt(Generic[ConnectedT]):
    """One address to try, and how that went."""

    def __init__(self, run: Callable[[], Awaitable[ConnectedT]]) -> None:
        self.run = run
        self.failed = trio.Event()


async def _connected(family: int, name: Any, local_name: Any, wanted: Tuning) -> socket.socket:
    sock = _new_socket(family, wanted)
    try:
        if local_name is not None:
            # Several connections may leave from one port, as long as the far ends differ.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(local_name)
        await _connect(sock, name)
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(attempts: Sequence[_Attempt[ConnectedT]]) -> ConnectedT:
    """Happy eyeballs (RFC 8305): each attempt starts when the one before failed or lingers."""
    winner: ConnectedT | None = None
    errors: list[OSError] = []

    async def attempt(one: _Attempt[ConnectedT]) -> None:
        nonlocal winner
        try:
            connected = await one.run()
        except OSError as exc:
            errors.append(exc)
            one.failed.set()
            return
        if winner is None:
            winner = connected
            nursery.cancel_scope.cancel()
        else:
            # Two connected within one pass of the scheduler.
            connected.close()

    try:
        with Ungrouped():
            async with trio.open_nursery() as nursery:
                for one in attempts:
                    nursery.start_soon(attempt, one)
                    with trio.move_on_after(ATTEMPT_DELAY):
                        await one.failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is not None:
        return winner
    first, *others = errors
    if others and any(error.errno != first.errno for error in others):
        raise first from ExceptionGroup("the other attempts failed, too", others)
    raise first


async def _connect(sock: socket.socket, name: Any) -> None:
    code = sock.connect_ex(name)
    if code == errno.EAGAIN and sock.family == getattr(socket, "AF_UNIX", None):
        # A Unix listener's backlog is full. Linux does not say when there is room again.
        raise BlockingIOError(code, f"{os.strerror(code)}: the listener's backlog is full")
    if code in {errno.EINPROGRESS, errno.EINTR}:
        await readiness.park_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    else:
        await trio.lowlevel.checkpoint()
    if code:
        # OSError() picks the subclass: ConnectionRefusedError, TimeoutError, ...
        raise OSError(code, f"{os.strerror(code)}: {_printable(name)}")


async def listen_socket(
    target: Address, options: SocketOptions, backlog: int | None
) -> list[SocketListener]:
    """Listen on a TCP or Unix address: one listener for each local address it stands for.

    If cancelled, or one of several fails, no socket is left behind.
    """
    wanted = tuning(options, "listening", unix=target.network == "unix")
    if target.network == "unix":
        # Before anything is opened, so that a cancelled call leaves nothing.
        await trio.lowlevel.checkpoint()
        return [_listen_unix(target, wanted, backlog)]
    return await listen_addresses(target, partial(_listen_one, wanted=wanted, backlog=backlog))


async def listen_addresses(
    target: Address, listen_one: Callable[[int, Any], ListeningT]
) -> list[ListeningT]:
    """Listen on each local address that ``target`` stands for, on one port.

    Args:
      listen_one: listens on one, given the family and its name.

    If cancelled, or one of several fails, nothing is left listening.
    """
    return _listen_on_all(await _resolve(target, passive=True), target, listen_one)


class Listening(Protocol):
    """What `listen_addresses` makes some of."""

    @property
    def address(self) -> Address:
        """Where it listens."""

    def abandon(self) -> None:
        """Close it; nobody waits on it, and there may be no trio yet."""


ListeningT = TypeVar("ListeningT", bound=Listening)


def listen_socket_now(target: Address, options: SocketOptions) -> list[SocketListener]:
    """Listen as `listen_socket` does, outside of trio; a name is looked up here and then."""
    wanted = tuning(options, "listening", unix=target.network == "unix")
    if target.network == "unix":
        return [_listen_unix(target, wanted, None)]
    infos = socket.getaddrinfo(
        target.host or None,
        target.port,
        FAMILIES[target.network],
        socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE,
    )
    one = partial(_listen_one, wanted=wanted, backlog=None)
    return _listen_on_all(_sorted(infos, target, passive=True), target, one)


def _listen_on_all(
    infos: list[tuple[int, Any]], target: Address, listen_one: Callable[[int, Any], ListeningT]
) -> list[ListeningT]:
    for attempt in range(PORT_ATTEMPTS):
        try:
            return _listen_tcp(infos, listen_one, may_lack_family=not target.host)
        except OSError as exc:
            # Only the port we took from the first listener's luck can be had elsewhere.
            taken = exc.errno == errno.EADDRINUSE and target.port == 0
            if not taken or attempt == PORT_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _listen_tcp(
    infos: Iterable[tuple[int, Any]],
    listen_one: Callable[[int, Any], ListeningT],
    *,
    may_lack_family: bool,
) -> list[ListeningT]:
    listeners: list[ListeningT] = []
    lacking: OSError | None = None
    try:
        for family, name in infos:
            if name[1] == 0 and listeners:
                name = (name[0], listeners[0].address.port, *name[2:])
            try:
                listeners.append(listen_one(family, name))
            except OSError as exc:
                # A machine without IPv6 has it in its resolver all the same.
                if not may_lack_family or exc.errno not in {
                    errno.EAFNOSUPPORT,
                    errno.EADDRNOTAVAIL,
                }:
                    raise
                lacking = exc
    except BaseException:
        for listener in listeners:
            listener.abandon()
        raise
    if not listeners and lacking is not None:
        raise lacking
    return listeners


def _listen_one(family: int, name: Any, wanted: Tuning, backlog: int | None) -> SocketListener:
    sock = _new_socket(family, wanted)
    try:
        if sys.platform != "win32":
            # Without it a restarted server waits for its predecessor's TIME_WAIT connections.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Else this listener would also take, or clash over, the IPv4 port.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind(name)
        except OSError as exc:
            raise OSError(exc.errno, f"{exc.strerror}: {_printable(name)}") from exc
        sock.listen(_backlog(backlog))
        for setting in wanted.listening:
            setting.apply(sock)
        return SocketListener(sock)
    except BaseException:
        sock.close()
        raise


def _listen_unix(target: Address, wanted: Tuning, backlog: int | None) -> SocketListener:
    path = target.path or ""
    sock = _new_socket(socket.AF_UNIX, wanted)
    temporary: str | None = None
    try:
        if path.startswith("@"):
            try:
                sock.bind(_unix_name(target))
            except OSError as exc:
                raise OSError(exc.errno, f"{exc.strerror}: {path}") from exc
            sock.listen(_backlog(backlog))
            return SocketListener(sock, address=target)
        _check_replaceable(path)
        # Bound beside and renamed: the path never names a socket that does not listen yet, and a
        # successor replaces its predecessor without a moment in which dialling fails.
        temporary = _temporary_path(path)
        sock.bind(temporary)
        sock.listen(_backlog(backlog))
        inode = inode_of(temporary)
        os.rename(temporary, path)
        temporary = None
        return SocketListener(sock, address=target, inode=inode)
    except BaseException:
        sock.close()
        if temporary is not None and os.path.lexists(temporary):
            os.unlink(temporary)
        raise


def _check_replaceable(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EADDRINUSE, f"{path} exists and is not a socket")


def _temporary_path(path: str) -> str:
    temporary = os.path.join(os.path.dirname(path), f".{secrets.token_hex(4)}")
    if len(os.fsencode(temporary)) > UNIX_PATH_MAX:
        raise ValueError(
            f"a unix path to listen on needs room for a temporary name beside it: {path!r} is "
            f"{len(os.fsencode(temporary)) - UNIX_PATH_MAX} bytes too long"
        )
    return temporary


def _new_socket(family: int, wanted: Tuning) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        for setting in wanted.before:
            setting.apply(sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _resolve(target: Address, *, passive: bool) -> list[tuple[int, Any]]:
    """Return (family, socket name) for each address that ``target`` stands for."""
    host = target.host or None
    flags = socket.AI_PASSIVE if passive else 0
    infos = await trio.socket.getaddrinfo(
        host, target.port, FAMILIES[target.network], socket.SOCK_STREAM, flags=flags
    )
    return _sorted(infos, target, passive=passive)


def _sorted(infos: Iterable[Any], target: Address, *, passive: bool) -> list[tuple[int, Any]]:
    found = [(int(family), name) for family, _, _, _, name in infos]
    if passive and not target.host:
        # IPv4 first: its port 0 is the one that more programs would be confused to miss.
        found.sort(key=lambda pair: pair[0] != socket.AF_INET)
    return list(dict.fromkeys(found))


def _interleaved(infos: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """Order by turns of family, starting with the resolver's favourite (RFC 8305 section 4)."""
    if not infos:
        return []
    favourite = infos[0][0]
    ours = [info for info in infos if info[0] == favourite]
    others = [info for info in infos if info[0] != favourite]
    turns = itertools.zip_longest(ours, others)
    return [info for pair in turns for info in pair if info is not None]


def _name_for(family: int, infos: Sequence[tuple[int, Any] | None]) -> Any:
    return next((info[1] for info in infos if info is not None and info[0] == family), None)


def _unix_name(address: Address) -> str | bytes:
    path = address.path or ""
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path


def _backlog(backlog: int | None) -> int:
    # The kernel cuts it down to its own maximum (SOMAXCONN, net.core.somaxconn).
    return 65535 if backlog is None else backlog


def _printable(name: Any) -> str:
    if isinstance(name, tuple):
        return str(Address("tcp", host=name[0], port=name[1]))
    return os.fsdecode(name).replace("\0", "@")
