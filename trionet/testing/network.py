"""The virtual network: hosts, links between them, and trio's sockets led to them."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Final, Self, final

import trio
from trio.lowlevel import enable_ki_protection

from .. import abc
from .._options import Link
from ._run import current_run, current_seed
from .datagrams import DatagramSocket
from .diagram import sequence_diagram, sequence_svg
from .dns import DNS
from .faults import Faults
from .host import Host, current_host
from .netstat import NetstatLine, netstat
from .pcap import write_pcap
from .sockets import UNIX
from .stack import failure
from .stream_sockets import StreamSocket
from .world import World

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import TracebackType

    from .sockets import VirtualSocket
    from .stack import Stack
    from .trace import Trace

__all__ = ("VirtualNetwork",)

# Where a task lives that was put nowhere.
HOME: Final = "localhost"


@final
class VirtualNetwork(Faults):
    """A network of virtual hosts, for as long as its ``async with`` block lasts.

    Within the block ``trio.socket`` and everything on it reach virtual hosts, in whatever task of
    this run; so do trionet's own ``tcp`` and ``unix``. Nothing of the program is changed for it. A
    task lives on the host it was put on (`Host.run`, `Host.context`), a new task on that of the
    task that started it, and the rest on one called ``localhost``.

    What bypasses it: sockets that the standard library made, ``trio.socket.from_stdlib_socket``
    and its like, threads and other processes.

    Leaving the block cancels the programs that still run on hosts, waits for them, and closes
    every socket. An exception that leaves it does so at once, as itself: the programs are cancelled
    and their sockets closed, but whoever started them waits for them.

    Attributes:
      seed: the root of everything random: jitter, loss, short reads. Each link has a stream of its
        own, so that one more does not shift the others.
      trace: what happened, event by event.
      dns: the names.
    """

    def __init__(self, seed: int | None = None, link: Link | None = None) -> None:
        """Prepare a network.

        Args:
          seed: None takes the seed of the `simulate` run this is part of, or 0 where there is
            none.
          link: what lies between any two hosts, in each direction; nothing at all unless given.
        """
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an int, got {seed!r}")
        if link is not None and not isinstance(link, Link):
            raise TypeError(f"link must be a Link, got {link!r}")
        self._seed = seed
        self._link = Link() if link is None else link
        self._world_: World | None = None
        self._hosts: dict[str, Host] = {}
        self._crash: Exception | None = None
        self._scope = trio.CancelScope()
        self._restore: list[Any] = []
        self._system: abc.Network | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<VirtualNetwork of {len(self._hosts)} hosts>"

    @property
    def seed(self) -> int:
        """The root of everything random here."""
        return self._world.seed

    @property
    def trace(self) -> Trace:
        """What happened, event by event."""
        return self._world.trace

    @property
    def hosts(self) -> list[Host]:
        """Every host there is, oldest first."""
        return list(self._hosts.values())

    # The block

    @enable_ki_protection
    async def __aenter__(self) -> Self:
        if self._world_ is not None:
            raise RuntimeError("a VirtualNetwork is entered once")
        self._world_ = world = World(current_seed(self._seed), self._link, self._on_crash)
        self.dns: DNS = DNS(world, self._here)
        self.host(HOME)
        run = current_run.get()
        if run is not None:
            run.register(world.trace)
        # From here on nothing fails: what is put in place is taken back by __aexit__.
        self._restore = [
            trio.socket.set_custom_socket_factory(_Factory(self)),
            trio.socket.set_custom_hostname_resolver(self.dns),
        ]
        self._system = abc.system_network.get()
        abc.system_network.set(_Here(self))
        self._scope.__enter__()
        return self

    @enable_ki_protection
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for host in self._hosts.values():
                host.end_programs("the virtual network's block was left")
            if exc_type is None:
                for host in self._hosts.values():
                    await host.wait_ended()
        finally:
            self._close()
            self._scope.__exit__(exc_type, exc_value, traceback)
            if self._crash is not None:
                # A rule's own error: it leaves as itself, whatever it led to.
                raise self._crash

    def _close(self) -> None:
        self._closed = True
        factory, resolver = self._restore
        trio.socket.set_custom_socket_factory(factory)
        trio.socket.set_custom_hostname_resolver(resolver)
        abc.system_network.set(self._system)
        for host in self._hosts.values():
            for sock in list(host.stack.sockets.values()):
                sock.vanish()
            for connection in list(host.stack.connections):
                connection.vanish()
        for route in self._world.routes.values():
            route.forget()

    def _on_crash(self, error: Exception) -> None:
        if self._crash is None:
            self._crash = error
            self._scope.cancel()

    # Hosts

    def host(
        self, name: str, *, addresses: tuple[str, ...] | list[str] = (), ipv6: bool = False
    ) -> Host:
        """Return the host of this name, made if there is none yet.

        Args:
          name: what the DNS knows it by, too.
          addresses: its IP addresses; unless given an IPv4 address, out of 10.0.0.0/8.
          ipv6: give it an IPv6 address as well, out of fd00::/8.

        Raises:
          ValueError: there is such a host and it is to be another, or an address is taken.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"a host needs a name, got {name!r}")
        found = self._hosts.get(name)
        if found is not None:
            if addresses or ipv6:
                raise ValueError(f"there is a host {name!r} already: {found!r}")
            return found
        world = self._world
        if addresses:
            given = tuple(str(ipaddress.ip_address(one)) for one in addresses)
        else:
            given = tuple(world.new_addresses(ipv6=ipv6))
        for one in given:
            if one in world.places:
                raise ValueError(f"{one} is {world.places[one].name}'s address already")
        host = self._hosts[name] = Host(world, name, given, self._disturbed)
        for one in given:
            world.places[one] = host.stack
        if name != HOME:
            self.dns.add(name, *given)
        return host

    # Looking

    def netstat(self) -> list[NetstatLine]:
        """Return every listening socket and every end of a connection, host by host."""
        return netstat(host.stack for host in self._hosts.values())

    def leaks(self) -> list[str]:
        """Return every socket that is open, and every one that was dropped without closing it.

        For the end of a test, when all its programs have ended; empty is what it should be.
        """
        still_open = [
            repr(sock) for host in self._hosts.values() for sock in host.stack.sockets.values()
        ]
        return still_open + self._world.abandoned

    def write_pcap(self, path: str | os.PathLike[str], *, host: str | None = None) -> int:
        """Write what was sent so far to a capture that Wireshark opens; return how many packets.

        Args:
          path: the file, made or overwritten; its format is pcapng.
          host: a host's name, for what a capture there would have shown: each packet that it sent
            at the time it did, and each it received when it arrived. Unless given, every packet
            of every host at the time it was sent, the lost ones included and commented.

        Raises:
          ValueError: there is no such host.
          OSError: the file cannot be written.
        """
        if host is not None and host not in self._hosts:
            raise ValueError(f"there is no host {host!r}, only {', '.join(self._hosts)}")
        return write_pcap(path, self.trace, host=host)

    def sequence_diagram(self, *, last: int = 100, acks: bool = False) -> str:
        """Return who sent what to whom, as text that Mermaid turns into a picture.

        Args:
          last: at most so many of the last things that happened; 0 is all of them.
          acks: acknowledgements that carry nothing else, too.
        """
        return sequence_diagram(self.trace, last=last, acks=acks)

    def sequence_svg(self, *, last: int = 100, acks: bool = False) -> str:
        """Return the picture itself, as SVG that needs nothing else; see `sequence_diagram`."""
        return sequence_svg(self.trace, last=last, acks=acks)

    # Inside

    @property
    def _world(self) -> World:
        if self._world_ is None:
            raise RuntimeError("the VirtualNetwork was not entered: async with it")
        return self._world_

    def _here(self) -> Stack:
        """Return the stack of the host the task lives on."""
        return self._here_host().stack

    def _here_host(self) -> Host:
        host = current_host.get()
        if host is None or self._hosts.get(host.name) is not host:
            host = self._hosts[HOME]
        return host

    def _socket(self, family: int, kind: int, proto: int) -> VirtualSocket:
        stack = self._here()
        if self._closed or stack.off:
            raise failure(errno.ENETDOWN, f"{stack.name} is off")
        stack.check("socket")
        # What Linux allows to be or-ed in.
        kind &= ~(getattr(socket, "SOCK_NONBLOCK", 0) | getattr(socket, "SOCK_CLOEXEC", 0))
        if family not in (socket.AF_INET, socket.AF_INET6, UNIX):
            raise failure(errno.EAFNOSUPPORT, f"family {family}")
        if kind == socket.SOCK_STREAM and proto in (0, 6 if family != UNIX else 0):
            return StreamSocket(stack, family, proto)
        if kind == socket.SOCK_DGRAM and family != UNIX and proto in (0, 17):
            return DatagramSocket(stack, family, proto)
        raise failure(errno.EPROTONOSUPPORT, f"type {kind}, protocol {proto}")


@final
class _Here(abc.Network):
    """The host that the task lives on, as trionet's own tcp and unix reach it."""

    __slots__ = ("_network",)

    def __init__(self, network: VirtualNetwork) -> None:
        self._network = network

    async def dial(self, network: str, address: str, **settings: Any) -> abc.Stream:
        """Connect from the host that the task lives on."""
        return await self._network._here_host().dial(network, address, **settings)

    async def listen(
        self, network: str, address: str, **settings: Any
    ) -> Sequence[abc.Listener[abc.Stream]]:
        """Listen on the host that the task lives on."""
        return await self._network._here_host().listen(network, address, **settings)


@final
class _Factory(trio.abc.SocketFactory):
    """Makes the sockets of a virtual network."""

    def __init__(self, network: VirtualNetwork) -> None:
        self._network = network

    def socket(
        self,
        family: int = socket.AF_INET,
        type: int = socket.SOCK_STREAM,  # noqa: A002 - the socket module's name
        proto: int = 0,
    ) -> VirtualSocket:
        """Make a socket of the host that the task lives on."""
        return self._network._socket(family, type, proto)
