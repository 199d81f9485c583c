"""What a virtual host's kernel keeps: its addresses, its ports, and who has them.

One file, since a binding, the stack that holds it and the door a SYN knocks at know each other.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from typing import TYPE_CHECKING, Final, Protocol, final
from weakref import WeakValueDictionary

import trio

from .._streams.segment import Endpoint, Segment
from .tcp import Backlog, Connection

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from .world import World

__all__ = ("EPHEMERAL", "Binding", "Openable", "Stack", "failure", "is_wildcard")

# net.ipv4.ip_local_port_range.
EPHEMERAL: Final = range(32768, 61000)


def failure(code: int, about: str = "") -> OSError:
    """Return an error of the system, of the right subclass."""
    return OSError(code, f"{os.strerror(code)}: {about}" if about else os.strerror(code))


def is_wildcard(ip: str) -> bool:
    """Whether an address stands for every address of its family, or both."""
    return ip in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


class Openable(Protocol):
    """A socket, as the host that has it sees it."""

    def close(self) -> None:
        """Close it as a kernel does whose process is gone."""

    def vanish(self) -> None:
        """Close it without a word."""


@final
class Binding:
    """A local address in use: a bound socket's, or an accepted connection's.

    Attributes:
      protocol: ``"tcp"`` or ``"udp"``.
      ip, port: the address.
      dual: it stands for IPv4 too, being ``::`` without IPV6_V6ONLY.
      reuse_address, reuse_port: SO_REUSEADDR and SO_REUSEPORT, as they were then.
      backlog: where connections go, if it listens.
      owner: a weak reference to the socket that takes datagrams.
    """

    __slots__ = (
        "backlog",
        "dual",
        "ip",
        "owner",
        "port",
        "protocol",
        "reuse_address",
        "reuse_port",
    )

    def __init__(
        self,
        protocol: str,
        ip: str,
        port: int,
        *,
        dual: bool = False,
        reuse_address: bool = False,
        reuse_port: bool = False,
    ) -> None:
        self.protocol: str = protocol
        self.ip: str = ip
        self.port: int = port
        self.dual: bool = dual
        self.reuse_address: bool = reuse_address
        self.reuse_port: bool = reuse_port
        self.backlog: Backlog | None = None
        self.owner: Callable[[], object] | None = None

    def covers(self, ip: str) -> bool:
        """Whether what is sent to ``ip`` is for this."""
        if self.ip == ip:
            return True
        return is_wildcard(self.ip) and (self.dual or (":" in self.ip) == (":" in ip))

    def clashes(self, other: Binding) -> bool:
        """Whether the two cannot be at once (as inet_csk_bind_conflict has it)."""
        if not (self.covers(other.ip) or other.covers(self.ip)):
            return False
        if self.reuse_port and other.reuse_port:
            return False
        listening = self.backlog is not None or other.backlog is not None
        return listening or not (self.reuse_address and other.reuse_address)


@final
class Stack:
    """A host's network stack.

    Attributes:
      name: the host's.
      addresses: its own, without the loopback ones.
      off: it has no power.
      bindings: local addresses in use, by protocol and port.
      sockets: the open ones, by number.
      connections: those that are not over, oldest first.
      paths: Unix socket paths, and who listens there; None where nobody does any more.
      errors: errors that calls fail with, by call, the newest first; see `Host.failing`.
      short_reads, short_writes: the most a recv or send moves, or None; the newest last.
    """

    def __init__(self, world: World, name: str, addresses: tuple[str, ...]) -> None:
        self.world: World = world
        self.name: str = name
        self.addresses: tuple[str, ...] = addresses
        self.off: bool = False
        self.bindings: dict[tuple[str, int], list[Binding]] = {}
        # Weak: a socket that nobody holds any more is closed, as by a process that drops it.
        self.sockets: WeakValueDictionary[int, Openable] = WeakValueDictionary()
        self.connections: dict[Connection, None] = {}
        self.paths: dict[str, Backlog | None] = {}
        self.errors: dict[str, list[list[int]]] = {}
        self.short_reads: list[tuple[int]] = []
        self.short_writes: list[tuple[int]] = []
        self.chance: random.Random = world.random(f"host/{name}")
        self._next_port = EPHEMERAL.start

    def __repr__(self) -> str:
        return f"<Stack of {self.name}>"

    def check(self, call: str) -> None:
        """Raise what a test has said that ``call`` fails with now."""
        for error in self.errors.get(call, ()):
            code, left = error
            if left:
                # A negative number never comes to 0.
                error[1] -= 1
                raise failure(code, f"{call} on {self.name}, as the test wants it")

    def short(self, size: int, limits: list[tuple[int]]) -> int:
        """Return how many of ``size`` bytes a call moves: `short_reads`, `short_writes`."""
        return self.chance.randint(1, min(size, *limits[-1])) if limits and size else size

    # Addresses

    def owns(self, ip: str) -> bool:
        """Whether ``ip`` is this host's, a loopback address included."""
        return ip in self.addresses or ipaddress.ip_address(ip).is_loopback

    def locate(self, ip: str) -> Stack:
        """Return whose address ``ip`` is.

        Raises:
          OSError: ENETUNREACH: nobody's.
        """
        if self.owns(ip) or is_wildcard(ip):
            return self
        found = self.world.places.get(ip)
        if not isinstance(found, Stack):
            raise failure(errno.ENETUNREACH, f"no host has the address {ip}")
        return found

    def source_for(self, ip: str) -> str:
        """Return the address that what is sent to ``ip`` comes from.

        Raises:
          OSError: ENETUNREACH: this host has none of its family.
        """
        if self.owns(ip):
            return ip
        for own in self.addresses:
            if (":" in own) == (":" in ip):
                return own
        family = "IPv6" if ":" in ip else "IPv4"
        raise failure(errno.ENETUNREACH, f"{self.name} has no {family} address")

    def clear(self) -> None:
        """Forget whatever is left, as a machine without power does."""
        self.bindings.clear()
        self.paths.clear()
        self._next_port = EPHEMERAL.start

    # Ports

    def bind(self, binding: Binding) -> None:
        """Take a local address; port 0 is replaced by one that is free.

        Raises:
          OSError: EADDRNOTAVAIL, EADDRINUSE.
        """
        self.check_owns(binding.ip)
        if binding.port == 0:
            binding.port = self._free_port(binding.protocol)
        else:
            for other in self.bindings.get((binding.protocol, binding.port), ()):
                if binding.clashes(other):
                    where = f"{self.name}, {binding.ip} port {binding.port}"
                    raise failure(errno.EADDRINUSE, where)
        self.keep(binding)

    def check_owns(self, ip: str) -> None:
        """Raise EADDRNOTAVAIL if this host does not have an address."""
        if not is_wildcard(ip) and not self.owns(ip):
            raise failure(errno.EADDRNOTAVAIL, f"{self.name} does not have {ip}")

    def keep(self, binding: Binding) -> None:
        """Note an address in use, whatever else is there."""
        self.bindings.setdefault((binding.protocol, binding.port), []).append(binding)

    def check_listen(self, binding: Binding) -> None:
        """Raise EADDRINUSE if somebody listens already where ``binding`` is going to."""
        for other in self.bindings[binding.protocol, binding.port]:
            if other is binding or other.backlog is None:
                continue
            if binding.clashes(other):
                where = f"{self.name}, {binding.ip} port {binding.port}"
                raise failure(errno.EADDRINUSE, where)

    def unbind(self, binding: Binding) -> None:
        """Give an address back."""
        key = (binding.protocol, binding.port)
        holders = self.bindings.get(key, [])
        if binding in holders:
            # After a restart it is not.
            holders.remove(binding)
            if not holders:
                del self.bindings[key]

    def find(self, protocol: str, ip: str, port: int) -> list[Binding]:
        """Return who takes what is sent to an address: the most exact; several share a port."""
        found = [one for one in self.bindings.get((protocol, port), ()) if one.covers(ip)]
        if protocol == "tcp":
            found = [one for one in found if one.backlog is not None]
        exact = [one for one in found if one.ip == ip]
        return exact or [one for one in found if not one.dual] or found

    def _free_port(self, protocol: str) -> int:
        for _ in EPHEMERAL:
            port = self._next_port
            self._next_port = port + 1 if port + 1 in EPHEMERAL else EPHEMERAL.start
            if (protocol, port) not in self.bindings:
                return port
        raise failure(errno.EADDRINUSE, f"{self.name} has no port left")

    # Connections

    def open(
        self,
        local: Endpoint,
        remote: Endpoint,
        target: Stack,
        sizes: tuple[int, int],
        held: Binding,
    ) -> Connection:
        """Begin a connection to ``target``: send a SYN."""
        connection = Connection(
            self.world.route(self, target),
            local,
            remote,
            protocol="tcp",
            connection=self.world.next_connection(),
            sizes=sizes,
            state="SYN-SENT",
            on_over=_Release(self, held),
        )
        self.connections[connection] = None
        connection.peer = _Door(self, target, connection, None)
        connection.knock("SYN")
        return connection

    def open_path(
        self, near: str, path: str, backlog: Backlog, sizes: tuple[int, int]
    ) -> Connection:
        """Connect to a Unix socket of this host: that takes no time."""
        connection = Connection(
            self.world.route(self, self),
            Endpoint(near, "", 0),
            Endpoint(path, "", 0),
            protocol="unix",
            connection=self.world.next_connection(),
            sizes=sizes,
            state="SYN-SENT",
            on_over=_Release(self, None),
        )
        self.connections[connection] = None
        connection.peer = _Door(self, self, connection, backlog)
        connection.knock("SYN")
        return connection

    def answer(self, segment: Segment, caller: Connection, origin: Stack) -> Connection | None:
        """Take a SYN: let whoever listens there have a new connection, or refuse it."""
        listeners = self.find("tcp", segment.destination.ip, segment.destination.port)
        if not listeners:
            self.world.route(self, origin).carry(_refusal(segment), _Refuser(caller), caller)
            return None
        chosen = listeners[0]
        if len(listeners) > 1:
            chosen = self.chance.choice(listeners)
        backlog = chosen.backlog
        assert backlog is not None
        if backlog.full:
            # Linux says nothing, and the SYN comes again.
            now = trio.current_time()
            self.world.trace.record(now, "dropped", segment, "the backlog is full")
            if not caller.broken:
                caller.lost(segment, caller.sent_at(segment))
            return None
        held = Binding(
            "tcp",
            segment.destination.ip,
            segment.destination.port,
            reuse_address=chosen.reuse_address,
            reuse_port=chosen.reuse_port,
        )
        self.keep(held)
        return self.accepted(segment, caller, origin, backlog, held)

    def accepted(
        self,
        segment: Segment,
        caller: Connection,
        origin: Stack,
        backlog: Backlog,
        held: Binding | None,
    ) -> Connection:
        """Make this side's end of a connection that has been asked for."""
        connection = Connection(
            self.world.route(self, origin),
            segment.destination,
            segment.source,
            protocol=segment.protocol,
            connection=segment.connection,
            sizes=backlog.sizes,
            state="SYN-RECEIVED",
            on_over=_Release(self, held),
        )
        connection.backlog = backlog
        backlog.pending += 1
        connection.peer = caller
        caller.peer = connection
        self.connections[connection] = None
        connection.allow(segment)
        connection.knock("SYN-ACK")
        return connection


@final
class _Release:
    """What a host does when a connection is over."""

    __slots__ = ("_held", "_stack")

    def __init__(self, stack: Stack, held: Binding | None) -> None:
        self._stack = stack
        self._held = held

    def __call__(self, connection: Connection) -> None:
        self._stack.connections.pop(connection, None)
        if self._held is not None:
            self._stack.unbind(self._held)
            self._held = None


@final
class _Door:
    """Where a SYN goes, before there is another end: to a host."""

    __slots__ = ("_backlog", "_caller", "_child", "_origin", "_stack", "latest")

    def __init__(
        self, origin: Stack, stack: Stack, caller: Connection, backlog: Backlog | None
    ) -> None:
        self._origin = origin
        self._stack = stack
        self._caller = caller
        self._backlog = backlog
        self.latest: float = 0.0
        self._child: Connection | None = None

    def arrive(self, segment: Segment) -> None:
        if segment.kind != "SYN":
            return
        if self._backlog is not None:
            self._child = self._stack.accepted(
                segment, self._caller, self._origin, self._backlog, None
            )
        elif self._child is None or self._child.broken:
            self._child = self._stack.answer(segment, self._caller, self._origin)
        else:
            self._child.arrive(segment)
        if self._child is not None:
            self._child.door = self

    def suspect(self, acknowledgement: int, edge: int = 0) -> None:
        """Nothing comes from here whose loss anybody would notice."""


@final
class _Refuser:
    """Sends a refusal, for a host on which nobody listens."""

    __slots__ = ("_caller",)

    def __init__(self, caller: Connection) -> None:
        self._caller = caller

    def lost(self, segment: Segment, sent_at: float) -> None:  # noqa: ARG002
        """A refusal that is lost is not sent again; the SYN is."""
        self._caller.suspect(segment.acknowledgement)

    def reset_both(self) -> None:
        """There is nothing to reset."""

    def unreachable(self, code: int) -> None:
        """There is nobody to tell."""


def _refusal(segment: Segment) -> Segment:
    return Segment(
        segment.protocol,
        "RST",
        segment.destination,
        segment.source,
        segment.connection,
        acknowledgement=segment.sequence + 1,
    )
