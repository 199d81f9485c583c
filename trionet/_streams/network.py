"""Dialling and listening: where the name of a network becomes a stream.

Two thirds of this file are signatures, four of them overloaded so that a call with a literal
network or an ``ssl_context`` has the very type it returns; the code between them is short.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Literal, final, overload

import trio

from .. import abc
from .._address import MEMORY_NETWORKS, NETWORKS, Address
from .._options import MemoryOptions, ProxyProtocol, SocketOptions
from .arguments import (
    check_backlog,
    check_preface,
    check_tls,
    is_mapped_socket,
    memory_options,
    parse_dialled,
    prefaced,
    secured,
    socket_options,
    wrong_options,
)
from .memory_listener import BACKLOG, MemoryListener, refused
from .system import dial_socket, listen_socket

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine, Sequence

    from .memory import MemoryStream
    from .tls import TLSStream
    from .tls_listener import TLSListener

__all__ = ("Memory", "Network", "SystemNetwork", "dial", "listen", "map_network", "names")

Memory = Literal["memu", "memb"]
Options = SocketOptions | MemoryOptions


@final
class SystemNetwork(abc.Network):
    """The operating system's sockets: tcp, tcp4, tcp6 and unix."""

    __slots__ = ()

    async def dial(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        options: Options | None = None,
        local_address: str | None = None,
    ) -> abc.Stream:
        """Connect to a TCP or Unix address; see `trionet.dial`.

        If cancelled, no connection is left behind.
        """
        target = parse_dialled(network, address)
        local = None if local_address is None else Address.parse(network, local_address)
        server_hostname = check_tls(target, ssl_context, server_hostname)
        stream = await dial_socket(target, socket_options(target, options), local)
        return secured(stream, ssl_context, server_hostname)

    async def listen(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy_protocol: ProxyProtocol | None = None,
        options: Options | None = None,
        backlog: int | None = None,
    ) -> Sequence[abc.Listener[abc.Stream]]:
        """Listen on a TCP or Unix address; see `trionet.listen`.

        If cancelled, nothing is left listening.
        """
        target = Address.parse(network, address)
        check_preface(ssl_context, proxy_protocol)
        check_backlog(backlog)
        listeners = await listen_socket(target, socket_options(target, options), backlog)
        return prefaced(listeners, ssl_context, proxy_protocol)


_SYSTEM = SystemNetwork()


@final
class Network(abc.Network):
    """A namespace of memory endpoints, in front of the system's network.

    Each has its own names, ``memu`` and ``memb`` apart, and its own mapping of networks. What is
    not memory goes to the operating system, or to the virtual network that took its place.
    """

    __slots__ = ("_listeners", "_mapped")

    def __init__(self) -> None:
        self._listeners: dict[tuple[str, str], MemoryListener] = {}
        self._mapped: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Network with {len(self._listeners)} memory names>"

    def map_network(self, source: str, target: str) -> None:
        """Send every later `dial` and `listen` on network ``source`` to ``target``.

        An address is then one of ``target``'s: with ``("tcp", "memu")`` the text "example.org:80"
        is a memory name. The mapping is one step, not a chain.

        Args:
          source: a network, or any other word, which becomes the name of one.
          target: a network; ``""`` takes the mapping back.

        Raises:
          ValueError: ``source`` is empty, ``target`` is not a network, or ``source`` is memory
            and ``target`` is not.
        """
        if not isinstance(source, str) or not source:
            raise ValueError(f"the network to map must be a non-empty str, got {source!r}")
        if target == "":
            self._mapped.pop(source, None)
            return
        if target not in NETWORKS:
            raise ValueError(f"cannot map {source!r} to unknown network {target!r}")
        if source in MEMORY_NETWORKS and target not in MEMORY_NETWORKS:
            raise ValueError(f"cannot map memory ({source!r}) out of memory, to {target!r}")
        self._mapped[source] = target

    def names(self, network: str) -> list[str]:
        """Return the names listened on in ``"memu"`` or ``"memb"``, sorted.

        Raises:
          ValueError: ``network`` is neither.
        """
        if network not in MEMORY_NETWORKS:
            raise ValueError(f"names are listed for memu and memb, got {network!r}")
        return sorted(name for kind, name in self._listeners if kind == network)

    @overload
    async def dial(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        options: Options | None = None,
        local_address: str | None = None,
    ) -> TLSStream: ...

    @overload
    async def dial(
        self,
        network: Memory,
        address: str,
        *,
        ssl_context: None = None,
        server_hostname: str | None = None,
        options: Options | None = None,
        local_address: str | None = None,
    ) -> MemoryStream: ...

    @overload
    async def dial(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        options: Options | None = None,
        local_address: str | None = None,
    ) -> abc.Stream: ...

    async def dial(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        options: Options | None = None,
        local_address: str | None = None,
    ) -> abc.Stream:
        """Connect to ``address``; see `trionet.dial`.

        If cancelled, no connection is left behind.
        """
        real = self._mapped.get(network, network)
        if real not in MEMORY_NETWORKS:
            # Also what is no network at all: the system's says so.
            return await _system().dial(
                real,
                address,
                ssl_context=ssl_context,
                server_hostname=server_hostname,
                options=options,
                local_address=local_address,
            )
        listener = self._listeners.get((real, address))
        target = Address.parse(real, address) if listener is None else listener.address
        local = None if local_address is None else Address.parse(real, local_address)
        if options is not None and not is_mapped_socket(network, real, options):
            wrong_options(f"dialling {real}", options, "the listener's decide for both ends")
        server_hostname = check_tls(target, ssl_context, server_hostname)
        if listener is None:
            await trio.lowlevel.checkpoint()
            raise refused(target)
        return secured(await listener.dial(local), ssl_context, server_hostname)

    @overload
    async def listen(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext,
        proxy_protocol: ProxyProtocol | None = None,
        options: Options | None = None,
        backlog: int | None = None,
    ) -> list[TLSListener]: ...

    @overload
    async def listen(
        self,
        network: Memory,
        address: str,
        *,
        ssl_context: None = None,
        proxy_protocol: None = None,
        options: Options | None = None,
        backlog: int | None = None,
    ) -> list[MemoryListener]: ...

    @overload
    async def listen(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy_protocol: ProxyProtocol | None = None,
        options: Options | None = None,
        backlog: int | None = None,
    ) -> Sequence[abc.Listener[abc.Stream]]: ...

    async def listen(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy_protocol: ProxyProtocol | None = None,
        options: Options | None = None,
        backlog: int | None = None,
    ) -> Sequence[abc.Listener[abc.Stream]]:
        """Listen on ``address``; see `trionet.listen`.

        If cancelled, nothing is left listening.
        """
        real = self._mapped.get(network, network)
        if real not in MEMORY_NETWORKS:
            return await _system().listen(
                real,
                address,
                ssl_context=ssl_context,
                proxy_protocol=proxy_protocol,
                options=options,
                backlog=backlog,
            )
        target = Address.parse(real, address)
        check_preface(ssl_context, proxy_protocol)
        check_backlog(backlog)
        wanted = memory_options(network, real, options)
        # Checked before the name is taken, so that a cancelled call leaves nothing.
        await trio.lowlevel.checkpoint()
        key = (real, address)
        if key in self._listeners:
            raise OSError(errno.EADDRINUSE, f"{real} name {address!r} is in use")

        def forget() -> None:
            del self._listeners[key]

        listener = MemoryListener(target, wanted, BACKLOG if backlog is None else backlog, forget)
        self._listeners[key] = listener
        return prefaced([listener], ssl_context, proxy_protocol)


_default: trio.lowlevel.RunVar[Network] = trio.lowlevel.RunVar("trionet.default_network")


def _this_network() -> Network:
    try:
        return _default.get()
    except LookupError:
        network = Network()
        _default.set(network)
        return network


@overload
async def dial(
    network: str,
    address: str,
    *,
    ssl_context: ssl.SSLContext,
    server_hostname: str | None = None,
    options: Options | None = None,
    local_address: str | None = None,
) -> TLSStream: ...


@overload
async def dial(
    network: Memory,
    address: str,
    *,
    ssl_context: None = None,
    server_hostname: str | None = None,
    options: Options | None = None,
    local_address: str | None = None,
) -> MemoryStream: ...


@overload
async def dial(
    network: str,
    address: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    options: Options | None = None,
    local_address: str | None = None,
) -> abc.Stream: ...


def dial(
    network: str,
    address: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    options: Options | None = None,
    local_address: str | None = None,
) -> Coroutine[Any, Any, abc.Stream]:
    """Connect to ``address``, in this run's default `Network`.

    In memory this returns once the connection is queued, accepted or not; behind a full backlog
    it waits. Over TCP every address of the host is tried as RFC 8305 says, 0.25 s apart.

    Args:
      network: ``"memu"``, ``"memb"``, ``"tcp"``, ``"tcp4"``, ``"tcp6"`` or ``"unix"``.
      address: a name; ``"host:port"``, ``"[IPv6]:port"`` or ``":port"`` (this machine); a path,
        or ``"@name"`` in Linux's abstract namespace.
      ssl_context: put TLS on it. The handshake is done by `TLSStream.do_handshake`, or by the
        first send or receive.
      server_hostname: the name TLS asks for and checks; the host, or the memory name, unless
        given.
      options: a `SocketOptions`, for sockets.
      local_address: the address to dial from, in the form of ``address``.

    Raises:
      ValueError, TypeError: an argument is wrong; nothing was opened.
      ConnectionRefusedError: nobody listens there, or the listener closed while this waited.
      OSError: the connection failed. When several addresses failed differently, it is the first
        failure, and its ``__cause__`` a group of the others.

    If cancelled, no connection is left behind.
    """
    # A plain function that returns the network's own coroutine: one less at every step.
    return _this_network().dial(
        network,
        address,
        ssl_context=ssl_context,
        server_hostname=server_hostname,
        options=options,
        local_address=local_address,
    )


@overload
async def listen(
    network: str,
    address: str,
    *,
    ssl_context: ssl.SSLContext,
    proxy_protocol: ProxyProtocol | None = None,
    options: Options | None = None,
    backlog: int | None = None,
) -> list[TLSListener]: ...


@overload
async def listen(
    network: Memory,
    address: str,
    *,
    ssl_context: None = None,
    proxy_protocol: None = None,
    options: Options | None = None,
    backlog: int | None = None,
) -> list[MemoryListener]: ...


@overload
async def listen(
    network: str,
    address: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    proxy_protocol: ProxyProtocol | None = None,
    options: Options | None = None,
    backlog: int | None = None,
) -> Sequence[abc.Listener[abc.Stream]]: ...


async def listen(
    network: str,
    address: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    proxy_protocol: ProxyProtocol | None = None,
    options: Options | None = None,
    backlog: int | None = None,
) -> Sequence[abc.Listener[abc.Stream]]:
    """Listen on ``address``, in this run's default `Network`.

    Args:
      network: as for `trionet.dial`.
      address: as for `trionet.dial`; ``":port"`` stands for every address of this machine, IPv4
        and IPv6, and port 0 for one that is free, the same for both. A Unix path that is a
        socket already is taken over, in one step; anything else there is an error.
      ssl_context: accept `TLSStream` objects, not yet handshaken.
      proxy_protocol: expect a PROXY protocol header from a trusted proxy ahead of everything, TLS
        included; it is read by ``do_handshake``, or by the first send or receive.
      options: a `SocketOptions`, or a `MemoryOptions` for ``memb``.
      backlog: how many connections may wait to be accepted; 128 in memory and the kernel's
        maximum over sockets unless given.

    Returns:
      A list of listeners, one for each local address; in memory exactly one.

    Raises:
      ValueError, TypeError: an argument is wrong; nothing was opened.
      OSError: the address cannot be listened on; EADDRINUSE if it, or the name, is in use.

    If cancelled, nothing is left listening.
    """
    return await _this_network().listen(
        network,
        address,
        ssl_context=ssl_context,
        proxy_protocol=proxy_protocol,
        options=options,
        backlog=backlog,
    )


def map_network(source: str, target: str) -> None:
    """Send every later `dial` and `listen` on ``source`` to ``target``; see `Network.map_network`.

    Holds for this run's default `Network`.
    """
    _this_network().map_network(source, target)


def names(network: str) -> list[str]:
    """Return the memory names listened on in this run's default network; see `Network.names`."""
    return _this_network().names(network)


def _system() -> abc.Network:
    return abc.system_network.get() or _SYSTEM
