"""Addresses: what `trionet.dial` takes, parsed once and printed back."""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import dataclass
from typing import Final, final

__all__ = ("MEMORY_NETWORKS", "NETWORKS", "TCP_NETWORKS", "Address", "printable")

MEMORY_NETWORKS: Final = ("memu", "memb")
TCP_NETWORKS: Final = ("tcp", "tcp4", "tcp6")
NETWORKS: Final = (*MEMORY_NETWORKS, *TCP_NETWORKS, "unix")

# sun_path is 108 bytes on Linux and 104 on the BSDs and macOS, with a NUL at its end (unix(7)).
UNIX_PATH_MAX: Final = 107 if sys.platform == "linux" else 103


@final
@dataclass(frozen=True, slots=True)
class Address:
    """One end of a stream, or where a listener listens.

    ``str(address)`` gives back what `trionet.dial` takes beside ``address.network``.

    Attributes:
      network: ``"memu"``, ``"memb"``, ``"tcp"``, ``"tcp4"``, ``"tcp6"`` or ``"unix"``; for the end
        of a stream over TCP the family it really has, so ``"tcp4"`` or ``"tcp6"`` where ``"tcp"``
        was dialled.
      host: the host of a TCP address; ``""`` stands for every local address when listening and
        for this machine when dialling.
      port: the port of a TCP address, 0 to 65535.
      path: the path of a Unix socket, with a leading ``@`` for a name in Linux's abstract
        namespace; ``""`` for an end that is bound to nothing.
      name: the name of a memory endpoint.
    """

    network: str
    host: str | None = None
    port: int | None = None
    path: str | None = None
    name: str | None = None

    @classmethod
    def parse(cls, network: str, address: str) -> Address:
        """Read ``address`` as one of ``network``.

        Raises:
          ValueError: the network is unknown or the address is not one of its; the message names
            what was got.
          TypeError: one of them is not a string.
        """
        for what, value in (("network", network), ("address", address)):
            if not isinstance(value, str):
                raise TypeError(f"the {what} must be a str, got {value!r}")
        if network in MEMORY_NETWORKS:
            if not address:
                raise ValueError(f"a {network} name must not be empty, got {address!r}")
            return cls(network, name=address)
        if network in TCP_NETWORKS:
            host, port = _parse_host_port(network, address)
            return cls(network, host=host, port=port)
        if network == "unix":
            _check_unix_path(address)
            return cls(network, path=address)
        raise ValueError(f"unknown network {network!r}: expected one of {', '.join(NETWORKS)}")

    def __str__(self) -> str:
        if self.name is not None:
            return self.name
        if self.path is not None:
            return self.path
        host = self.host or ""
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def _parse_host_port(network: str, address: str) -> tuple[str, int]:
    wrong = f"bad {network} address {address!r}"
    host, colon, digits = address.rpartition(":")
    if not colon:
        raise ValueError(f"{wrong}: expected host:port, :port or [IPv6]:port")
    # isdecimal() alone lets other scripts' digits through.
    # The length first: int() refuses thousands of digits in words of its own.
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= 5
    if not is_number or int(digits) > 65535:
        raise ValueError(f"{wrong}: the port must be a number from 0 to 65535, got {digits!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as exc:
            raise ValueError(f"{wrong}: {host!r} in brackets is not an IPv6 address") from exc
    elif any(c in host for c in ":[]"):
        raise ValueError(f"{wrong}: an IPv6 host must stand in brackets")
    _check_host(network, host, wrong)
    return host, int(digits)


def printable(address: Address) -> str:
    """Give ``address`` for a log or a repr: what its owner named it cannot break out of its line.

    Control characters and what turns text around come as escapes (CVE-2020-7694).
    """
    return repr(str(address))[1:-1]


def _check_host(network: str, host: str, wrong: str) -> None:
    if any(c.isspace() or not c.isprintable() for c in host):
        raise ValueError(f"{wrong}: the host holds white space or control characters")
    try:
        host.encode("idna")
    except UnicodeError as exc:
        if ":" not in host:
            raise ValueError(f"{wrong}: {host!r} is not a host name") from exc
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return
    if network != "tcp" and network != f"tcp{version}":
        raise ValueError(f"{wrong}: {host} is an IPv{version} address")


def _check_unix_path(path: str) -> None:
    if path in ("", "@"):
        raise ValueError(f"a unix path must not be empty, got {path!r}")
    if "\0" in path:
        raise ValueError(f"a unix path must not hold NUL characters, got {path!r}")
    if path.startswith("@") and sys.platform != "linux":
        raise ValueError(f"abstract unix addresses exist on Linux only, got {path!r}")
    size = len(os.fsencode(path))
    if size > UNIX_PATH_MAX:
        raise ValueError(f"a unix path takes at most {UNIX_PATH_MAX} bytes, got {size}: {path!r}")
