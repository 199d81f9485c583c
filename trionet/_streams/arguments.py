"""What `dial` and `listen` are given: checked before anything is opened, then put to use."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from .._address import TCP_NETWORKS, Address
from .._options import MemoryOptions, ProxyProtocol, SocketOptions
from .preface import ProxyListener, check_proxy_protocol
from .tls import TLSStream, check_tls_arguments
from .tls_listener import TLSListener

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from .. import abc

__all__ = (
    "check_backlog",
    "check_preface",
    "check_tls",
    "is_mapped_socket",
    "memory_options",
    "parse_dialled",
    "prefaced",
    "secured",
    "socket_options",
    "wrong_options",
)


def parse_dialled(network: str, address: str) -> Address:
    """Read an address that is to be dialled: port 0 is none."""
    target = Address.parse(network, address)
    if target.port == 0:
        raise ValueError(f"bad {network} address {address!r}: port 0 cannot be dialled")
    return target


def check_tls(
    target: Address, ssl_context: ssl.SSLContext | None, server_hostname: str | None
) -> str | None:
    """Return the name to ask for in the handshake, after checking that it can work."""
    if ssl_context is None:
        if server_hostname is not None:
            raise ValueError(f"server_hostname needs an ssl_context, got {server_hostname!r}")
        return None
    if server_hostname is None:
        server_hostname = _host_in(target)
    check_tls_arguments(ssl_context, False, server_hostname)
    return server_hostname


def _host_in(target: Address) -> str | None:
    if target.network in TCP_NETWORKS:
        # A fully qualified name may end in a dot; a certificate's never does.
        return (target.host or "localhost").rstrip(".")
    if target.name is None:
        return None
    try:
        # A mapped TCP address is a memory name, and its host is still what TLS is about.
        return _host_in(Address.parse("tcp", target.name))
    except ValueError:
        return target.name


def secured(
    stream: abc.Stream, ssl_context: ssl.SSLContext | None, server_hostname: str | None
) -> abc.Stream:
    """Put TLS on a dialled stream if there is a context for it."""
    if ssl_context is None:
        return stream
    return TLSStream(stream, ssl_context, server_hostname=server_hostname)


def check_preface(ssl_context: object, proxy_protocol: object) -> None:
    """Check what `listen` is to put in front of the handler's first byte."""
    if ssl_context is not None:
        check_tls_arguments(ssl_context, True, None)
    if proxy_protocol is not None:
        check_proxy_protocol(proxy_protocol)


def prefaced(
    listeners: Sequence[abc.Listener[abc.Stream]],
    ssl_context: ssl.SSLContext | None,
    proxy_protocol: ProxyProtocol | None,
) -> Sequence[abc.Listener[abc.Stream]]:
    """Put what comes before the first byte in front of listeners."""
    """Put over each listener what is read before the handler's first byte."""
    if proxy_protocol is not None:
        listeners = [ProxyListener(one, proxy_protocol) for one in listeners]
    if ssl_context is not None:
        listeners = [TLSListener(one, ssl_context) for one in listeners]
    return listeners


def check_backlog(backlog: object) -> None:
    """Check a backlog, which may be None."""
    if backlog is None:
        return
    if isinstance(backlog, bool) or not isinstance(backlog, int):
        raise TypeError(f"backlog must be an int, got {backlog!r}")
    if backlog < 1:
        raise ValueError(f"backlog must be at least 1, got {backlog}")


def socket_options(target: Address, options: object) -> SocketOptions:
    """Return the options for a socket, the default ones for None."""
    if options is None:
        return SocketOptions()
    if not isinstance(options, SocketOptions):
        wrong_options(target.network, options, "it takes a SocketOptions")
    return options


def memory_options(network: str, real: str, options: object) -> MemoryOptions | None:
    """Return how memory connections behave; None for ``memu``, which has nothing to set."""
    if isinstance(options, MemoryOptions):
        if real == "memu":
            wrong_options("memu", options, "it has no buffer to set")
        return options
    if options is not None and not is_mapped_socket(network, real, options):
        wrong_options(
            real, options, "it takes a MemoryOptions" if real == "memb" else "it has none"
        )
    return MemoryOptions() if real == "memb" else None


def is_mapped_socket(network: str, real: str, options: object) -> bool:
    """Whether a program asked for a socket and was mapped into memory: its options are moot."""
    return network != real and isinstance(options, SocketOptions)


def wrong_options(what: str, options: object, why: str) -> NoReturn:
    """Say that these options do not go with that."""
    raise TypeError(f"{what} does not go with these options, since {why}: got {options!r}")
