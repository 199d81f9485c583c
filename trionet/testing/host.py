"""Virtual hosts: where a task lives, and what can happen to it there."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import trio

from .. import abc
from .._address import MEMORY_NETWORKS, Address
from .._streams.arguments import (
    check_backlog,
    check_preface,
    check_tls,
    parse_dialled,
    prefaced,
    secured,
    socket_options,
)
from .._streams.system import dial_addresses, listen_addresses
from .._streams.tuning import Tuning, tuning
from .sockets import UNIX
from .stack import Stack, failure
from .stream_sockets import StreamSocket
from .streams import VirtualListener, VirtualStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from .._options import MemoryOptions, ProxyProtocol, SocketOptions
    from .world import World

__all__ = ("Host", "current_host")

# What Linux cuts a backlog down to (net.core.somaxconn).
SOMAXCONN: Final = 4096

# Inherited by the tasks that a task starts.
current_host: Final[ContextVar[Host | None]] = ContextVar("trionet.host", default=None)


@final
class Host(abc.Network):
    """A machine on a `VirtualNetwork`; made by its `host`.

    Attributes:
      name: by which others find it.
      addresses: its IP addresses, as text; the loopback ones, which every host has, apart.
    """

    def __init__(
        self,
        world: World,
        name: str,
        addresses: tuple[str, ...],
        disturbed: Callable[[], object],
    ) -> None:
        self.name: str = name
        self.addresses: tuple[str, ...] = addresses
        self._world = world
        self._disturbed = disturbed
        self._stack = Stack(world, name, addresses)
        # The scopes of the programs that run here, oldest first.
        self._programs: dict[trio.CancelScope, None] = {}
        self._ended: trio.Event | None = None

    def __repr__(self) -> str:
        state = ", off" if self._stack.off else ""
        return f"<Host {self.name} {' '.join(self.addresses)}{state}>"

    @property
    def running(self) -> int:
        """How many programs `run` here."""
        return len(self._programs)

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return not self._stack.off

    async def run(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        task_status: trio.TaskStatus[Any] | None = None,
    ) -> Any:
        """Run a program here: its sockets, and those of all tasks it starts, are this host's.

        ``await nursery.start(host.run, trio.serve_tcp, handler, 80)`` works as without the host.

        Returns:
          What ``async_fn`` returns; None if the host was killed or lost its power meanwhile.

        Raises:
          RuntimeError: the host is off.

        If cancelled, so is ``async_fn``.
        """
        if self._stack.off:
            raise RuntimeError(f"{self.name} is off: restart() it before a program can run there")
        result: Any = None
        token = current_host.set(self)
        try:
            with trio.CancelScope() as scope:
                self._programs[scope] = None
                try:
                    if task_status is None:
                        result = await async_fn(*args)
                    else:
                        result = await async_fn(*args, task_status=task_status)
                finally:
                    del self._programs[scope]
                    if self._ended is not None and not self._programs:
                        self._ended.set()
        finally:
            current_host.reset(token)
        return result

    @contextmanager
    def context(self) -> Iterator[None]:
        """Let the task live here within a ``with`` block, with all it starts there.

        Not for a `kill` or `power_off` to end: that is what `run` is for.
        """
        token = current_host.set(self)
        try:
            yield
        finally:
            current_host.reset(token)

    # As a Network

    async def dial(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        options: SocketOptions | MemoryOptions | None = None,
        local_address: str | None = None,
    ) -> abc.Stream:
        """Connect from here to a TCP or Unix address; see `trionet.dial`.

        `trionet.dial` itself comes here, on a host's tasks. Unix paths are each host's own.

        If cancelled, no connection is left behind.
        """
        target = parse_dialled(network, address)
        _check_network(network)
        local = None if local_address is None else Address.parse(network, local_address)
        server_hostname = check_tls(target, ssl_context, server_hostname)
        wanted = tuning(socket_options(target, options), "dialling", unix=network == "unix")
        with self.context():
            if network == "unix":
                stream = await self._dial_unix(target, local, wanted)
            else:
                stream = await dial_addresses(target, local, partial(self._attempt, wanted))
        return secured(stream, ssl_context, server_hostname)

    async def listen(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy_protocol: ProxyProtocol | None = None,
        options: SocketOptions | MemoryOptions | None = None,
        backlog: int | None = None,
    ) -> Sequence[abc.Listener[abc.Stream]]:
        """Listen here on a TCP or Unix address; see `trionet.listen`.

        If cancelled, nothing is left listening.
        """
        target = Address.parse(network, address)
        _check_network(network)
        check_preface(ssl_context, proxy_protocol)
        check_backlog(backlog)
        wanted = tuning(socket_options(target, options), "listening", unix=network == "unix")
        # net.core.somaxconn, which cuts down what is asked for.
        room = SOMAXCONN if backlog is None else min(backlog, SOMAXCONN)
        listeners: list[VirtualListener]
        if network == "unix":
            await trio.lowlevel.checkpoint()
            sock = self._socket(UNIX or socket.AF_UNSPEC, wanted)
            try:
                sock.listen_path(target.path or "", room)
            except OSError:
                sock.close()
                raise
            listeners = [VirtualListener(sock)]
        else:
            with self.context():
                listeners = await listen_addresses(target, partial(self._listen_one, wanted, room))
        return prefaced(listeners, ssl_context, proxy_protocol)

    async def _dial_unix(
        self, target: Address, local: Address | None, wanted: Tuning
    ) -> VirtualStream:
        sock = self._socket(UNIX or socket.AF_UNSPEC, wanted)
        try:
            if local is not None:
                sock.bind_path(local.path or "")
            await sock.connect(_unix_name(target))
        except BaseException:
            sock.close()
            raise
        return VirtualStream(sock, target)

    async def _attempt(
        self, wanted: Tuning, family: int, name: Any, local_name: Any
    ) -> VirtualStream:
        sock = self._socket(family, wanted)
        try:
            if local_name is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.take_address(local_name[0], local_name[1])
            await sock.connect(name)
        except BaseException:
            sock.close()
            raise
        return VirtualStream(sock)

    def _listen_one(self, wanted: Tuning, backlog: int, family: int, name: Any) -> VirtualListener:
        sock = self._socket(family, wanted)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.take_address(name[0], name[1])
            sock.listen(backlog)
            for setting in wanted.listening:
                setting.apply(sock)
        except BaseException:
            sock.close()
            raise
        return VirtualListener(sock)

    def _socket(self, family: int, wanted: Tuning) -> StreamSocket:
        if self._stack.off:
            raise failure(errno.ENETDOWN, f"{self.name} is off")
        self._stack.check("socket")
        sock = StreamSocket(self._stack, family, 0)
        try:
            for setting in wanted.before:
                setting.apply(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    # What can happen to it

    def kill(self) -> None:
        """End every program here, as a signal that cannot be caught does.

        The kernel closes their sockets: with a FIN, or with a RST where bytes were not received.
        Programs may run here again at once.
        """
        self._world.trace.fault(trio.current_time(), f"{self.name} was killed")
        self.end_programs(f"the host {self.name} was killed")
        for sock in list(self._stack.sockets.values()):
            sock.close()

    def power_off(self) -> None:
        """Cut the power: programs end, and nothing leaves this host any more.

        The other ends of its connections hear nothing. What is on its way to it is lost, what
        has left it arrives.

        Raises:
          RuntimeError: it is off.
        """
        stack = self._stack
        if stack.off:
            raise RuntimeError(f"{self.name} is off already")
        self._world.trace.fault(trio.current_time(), f"{self.name} lost its power")
        stack.off = True
        self.end_programs(f"the host {self.name} lost its power")
        for route in self._world.routes.values():
            if self.name in (route.source, route.destination):
                route.down += 1
                route.refresh()
                if route.destination == self.name:
                    route.cut(f"{self.name} is off")
        for sock in list(stack.sockets.values()):
            sock.vanish()
        for connection in list(stack.connections):
            connection.vanish()
        stack.clear()
        self._disturbed()

    def restart(self) -> None:
        """Give it power again, with nothing open; programs are started by whoever wants them.

        Whatever arrives for a connection from before is answered with a RST.

        Raises:
          RuntimeError: it is on.
        """
        if not self._stack.off:
            raise RuntimeError(f"{self.name} is on: power_off() comes before restart()")
        self._world.trace.fault(trio.current_time(), f"{self.name} started again")
        self._stack.off = False
        for route in self._world.routes.values():
            if self.name in (route.source, route.destination):
                route.down -= 1
                route.refresh()

    # For the network

    @property
    def stack(self) -> Stack:
        """Its network stack."""
        return self._stack

    def end_programs(self, reason: str) -> None:
        """Cancel all that runs here."""
        for scope in list(self._programs):
            scope.cancel(reason)

    async def wait_ended(self) -> None:
        """Wait until nothing runs here any more."""
        if self._programs:
            self._ended = trio.Event()
            await self._ended.wait()


def _check_network(network: str) -> None:
    if network in MEMORY_NETWORKS:
        raise ValueError(f"a virtual host has tcp and unix, got {network!r}: see trionet.Network")


def _unix_name(address: Address) -> str | bytes:
    path = address.path or ""
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path
