"""The names of a virtual network."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, final

import trio

from .._streams.segment import Endpoint, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .stack import Stack
    from .world import World

__all__ = ("DNS",)

# What a type of 0 asks for, and the protocols that go with the types (getaddrinfo(3) on Linux).
KINDS: Final = (
    (socket.SOCK_STREAM, 6),
    (socket.SOCK_DGRAM, 17),
    (socket.SOCK_RAW, 0),
)
ROOT: Final = Endpoint("dns", "", 53)


@final
class DNS(trio.abc.HostnameResolver):
    """The names of a network: every host's own, and those that were added.

    ``localhost`` and addresses are answered by each host itself, without delay or failure.

    The server is on none of the hosts, and no link leads to it: partitions, rules and a link's
    latency do not touch it, and the name of a host without power is still known. So a test that
    cuts two hosts apart sees what their connections make of it, and nothing else; names that fail
    or take long are asked for here, by `failing`, `slow` and `delay`.

    Attributes:
      delay: seconds that every answer takes.
    """

    def __init__(self, world: World, here: Callable[[], Stack]) -> None:
        self._world = world
        self._here = here
        self.delay: float = 0.0
        self._names: dict[str, tuple[str, ...]] = {}
        # The newest last.
        self._failures: list[tuple[str | None, int]] = []
        self._delays: list[tuple[str | None, float]] = []

    def __repr__(self) -> str:
        return f"<DNS with {len(self._names)} names>"

    def add(self, name: str, *addresses: str) -> None:
        """Let ``name`` stand for addresses, in this order, of hosts or of nobody.

        Raises:
          ValueError: the name is empty, or one of the addresses is none.
        """
        if not name:
            raise ValueError(f"a name must not be empty, got {name!r}")
        if not addresses:
            raise ValueError(f"{name!r} needs at least one address, got none")
        self._names[_canonical(name)] = tuple(str(ipaddress.ip_address(one)) for one in addresses)

    def remove(self, name: str) -> None:
        """Let ``name`` be unknown.

        Raises:
          KeyError: it was.
        """
        del self._names[_canonical(name)]

    @contextmanager
    def failing(self, name: str | None = None, code: int = socket.EAI_NONAME) -> Iterator[None]:
        """Let questions for ``name``, or for every name, fail within a ``with`` block.

        Args:
          code: ``socket.EAI_NONAME``, the name does not exist, or ``socket.EAI_AGAIN``, the
            server did not answer, or another of getaddrinfo(3)'s.
        """
        entry = (None if name is None else _canonical(name), int(code))
        self._failures.append(entry)
        try:
            yield
        finally:
            self._failures = [one for one in self._failures if one is not entry]

    @contextmanager
    def slow(self, seconds: float, name: str | None = None) -> Iterator[None]:
        """Let answers for ``name``, or for every name, take so long within a ``with`` block."""
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"an answer takes 0 seconds or more, and comes, got {seconds}")
        entry = (None if name is None else _canonical(name), float(seconds))
        self._delays.append(entry)
        try:
            yield
        finally:
            self._delays = [one for one in self._delays if one is not entry]

    # What trio calls

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the socket module's name
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        """Look up a name, as ``socket.getaddrinfo`` does.

        If cancelled, nothing happened.
        """
        number = _port(port, type)
        name = _canonical(host or "localhost")
        if flags & socket.AI_NUMERICHOST:
            await trio.lowlevel.checkpoint()
            raise _gaierror(socket.EAI_NONAME)
        addresses = await self._resolve(name)
        found = self._sorted(addresses, family, flags)
        if not found:
            raise _gaierror(socket.EAI_NONAME)
        infos = [
            (
                socket.AddressFamily(socket.AF_INET6 if ":" in ip else socket.AF_INET),
                socket.SocketKind(kind),
                number_of,
                name if flags & socket.AI_CANONNAME and not place else "",
                (ip, number, 0, 0) if ":" in ip else (ip, number),
            )
            for place, ip in enumerate(found)
            for kind, number_of in KINDS
            if (not type or kind == type) and (not proto or number_of in (proto, 0))
        ]
        if not infos:
            raise _gaierror(socket.EAI_SOCKTYPE)
        return infos

    async def getnameinfo(
        self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int
    ) -> tuple[str, str]:
        """Look up an address, as ``socket.getnameinfo`` does.

        If cancelled, nothing happened.
        """
        await trio.lowlevel.checkpoint()
        ip, port = str(ipaddress.ip_address(sockaddr[0])), int(sockaddr[1])
        if flags & socket.NI_NUMERICHOST:
            return ip, str(port)
        for name, addresses in self._names.items():
            if ip in addresses:
                return name, str(port)
        if flags & socket.NI_NAMEREQD:
            raise _gaierror(socket.EAI_NONAME)
        return ip, str(port)

    async def _resolve(self, name: str) -> tuple[str, ...]:
        if name == "localhost":
            await trio.lowlevel.checkpoint()
            return ("127.0.0.1", "::1")
        here = Endpoint(self._here().name, "", 0)
        self._trace("QUERY", here, ROOT, name)
        await trio.sleep(self._pick(self._delays, name, self.delay))
        code = self._pick(self._failures, name, 0)
        addresses = () if code else self._names.get(name, ())
        if not addresses:
            code = code or socket.EAI_NONAME
            self._trace("ANSWER", ROOT, here, f"{name}: {_gaierror(code).strerror}")
            raise _gaierror(code)
        self._trace("ANSWER", ROOT, here, f"{name}: {', '.join(addresses)}")
        return addresses

    def _pick(self, entries: list[tuple[str | None, Any]], name: str, otherwise: Any) -> Any:
        for whose, value in reversed(entries):
            if whose is None or whose == name:
                return value
        return otherwise

    def _trace(self, kind: str, source: Endpoint, destination: Endpoint, text: str) -> None:
        segment = Segment("dns", kind, source, destination, payload=text.encode())
        self._world.trace.record(trio.current_time(), "sent", segment, text)

    def _sorted(self, addresses: tuple[str, ...], family: int, flags: int) -> list[str]:
        """Choose by family, and put first what this host can reach (RFC 6724 section 6)."""
        here = self._here()
        six = any(":" in own for own in here.addresses) or "::1" in addresses
        four = any(":" not in own for own in here.addresses) or "127.0.0.1" in addresses
        found = [
            ip
            for ip in addresses
            if family in (socket.AF_UNSPEC, socket.AF_INET6 if ":" in ip else socket.AF_INET)
        ]
        if not found and family == socket.AF_INET6 and flags & socket.AI_V4MAPPED:
            return [f"::ffff:{ip}" for ip in addresses]
        if flags & socket.AI_ADDRCONFIG:
            found = [ip for ip in found if (six if ":" in ip else four)]
        if addresses == ("127.0.0.1", "::1"):
            return sorted(found, key=lambda ip: ":" not in ip)
        return sorted(found, key=lambda ip: (not (six if ":" in ip else four), ":" not in ip))


def _canonical(name: bytes | str) -> str:
    if isinstance(name, bytes):
        name = name.decode("ascii", "surrogateescape")
    return name.lower().rstrip(".")


def _port(port: bytes | str | int | None, kind: int) -> int:
    if port is None:
        return 0
    if isinstance(port, int):
        return port
    text = port.decode() if isinstance(port, bytes) else port
    if text.isdecimal():
        return int(text)
    try:
        return socket.getservbyname(text, "udp" if kind == socket.SOCK_DGRAM else "tcp")
    except OSError:
        raise _gaierror(socket.EAI_SERVICE) from None


def _gaierror(code: int) -> socket.gaierror:
    # The words are the C library's, which knows them for what it raises itself only.
    words = {
        socket.EAI_NONAME: "Name or service not known",
        socket.EAI_AGAIN: "Temporary failure in name resolution",
        socket.EAI_FAIL: "Non-recoverable failure in name resolution",
        socket.EAI_SERVICE: "Servname not supported for ai_socktype",
        socket.EAI_SOCKTYPE: "ai_socktype not supported",
    }
    return socket.gaierror(code, words.get(code, f"name resolution failed with {code}"))
