"""The PROXY protocol, versions 1 and 2, without input or output.

A proxy in front of a server tells it, ahead of the first byte, who the client is; the format is
HAProxy's (``proxy-protocol.txt``, sections 2.1 and 2.2). `ProxyHeader` is such a header and
`ProxyReader` reads one from pieces, taking exactly the header and nothing behind it: how many bytes
may be asked for next it says itself, since TLS, say, begins with the byte after.

Nothing here guesses. A header is either exactly what the specification describes, or it is refused
as early as can be. (One file for both versions, though long: they share their addresses, their
checks and the reader that tells them apart.)
"""

from __future__ import annotations

import ipaddress
import os
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Literal, final

from .._address import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("ProxyHeader", "ProxyReader", "ProxyTLV", "Version", "crc32c")

Version = Literal["v1", "v2"]

V1_PREFIX: Final = b"PROXY "

# Section 2.1: the longest line, CRLF included ("UNKNOWN" and two full IPv6 addresses), and the
# shortest, "PROXY UNKNOWN". Whatever comes, so many bytes belong to a header of either version.
V1_MAX: Final = 107
V1_MIN: Final = 15

# Section 2.2: 12 bytes of signature; version and command, 4 bits each; family and transport, 4
# bits each; the size of what follows, 2 bytes in network order.
SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
V2_FIXED: Final = struct.Struct("!12sBBH")

# Family and transport as one byte, to the network its addresses are of.
FAMILIES: Final = {
    0x11: "tcp4",
    0x12: "udp4",
    0x21: "tcp6",
    0x22: "udp6",
    0x31: "unix",
    0x32: "unixgram",
}
NUMBERS: Final = {network: number for number, network in FAMILIES.items()}

# How many bytes of addresses each family has: 2 x (4 + 2), 2 x (16 + 2), 2 x 108.
ADDRESS_SIZES: Final = (0, 12, 36, 216)
UNIX_SIZE: Final = 108

CHECKSUM_SIZE: Final = 4


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            # RFC 4960 appendix B: the Castagnoli polynomial, bits reversed.
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


CRC32C_TABLE: Final = _crc32c_table()


def crc32c(data: bytes | bytearray) -> int:
    """Return the CRC32C of ``data``, as RFC 4960 appendix B computes it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ CRC32C_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class ProxyTLV(IntEnum):
    """The types of what a version 2 header may carry beside addresses (section 2.2)."""

    ALPN = 0x01
    AUTHORITY = 0x02
    CRC32C = 0x03
    NOOP = 0x04
    UNIQUE_ID = 0x05
    SSL = 0x20
    SSL_VERSION = 0x21
    SSL_CN = 0x22
    SSL_CIPHER = 0x23
    SSL_SIG_ALG = 0x24
    SSL_KEY_ALG = 0x25
    NETNS = 0x30


@final
@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a proxy says of the connection it forwards.

    Attributes:
      version: the format, ``"v1"`` (a line of text) or ``"v2"`` (binary).
      source: the client, or None where the proxy does not say: then the proxy itself is the peer.
        Its network is ``"tcp4"``, ``"tcp6"`` or ``"unix"``, in version 2 also ``"udp4"``,
        ``"udp6"`` or ``"unixgram"``.
      destination: what the client dialled; None exactly where ``source`` is.
      command: ``"PROXY"``, or ``"LOCAL"`` for a connection of the proxy's own, such as a health
        check; version 2 only.
      tlvs: (type, value) pairs in their order, the checksum's left out; version 2 only. The
        values are the proxy's words, as they came: escape them before they meet a log.
      checksum: whether there is a CRC32C; it was checked where a header was read, and is computed
        where one is written. Version 2 only.
    """

    version: Version
    source: Address | None = None
    destination: Address | None = None
    command: Literal["PROXY", "LOCAL"] = field(default="PROXY", kw_only=True)
    tlvs: tuple[tuple[int, bytes], ...] = field(default=(), kw_only=True)
    checksum: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.version not in {"v1", "v2"}:
            raise ValueError(f'the version must be "v1" or "v2", got {self.version!r}')
        if self.command not in {"PROXY", "LOCAL"}:
            raise ValueError(f'the command must be "PROXY" or "LOCAL", got {self.command!r}')
        if (self.source is None) != (self.destination is None):
            raise ValueError(
                "a header has both addresses or none, "
                f"got source {self.source!r} and destination {self.destination!r}"
            )
        if self.command == "LOCAL" and self.source is not None:
            raise ValueError(f"a LOCAL header has no addresses, got source {self.source!r}")
        if self.source is not None and self.destination is not None:
            network = _family_of(self.source)
            if network != _family_of(self.destination):
                raise ValueError(
                    f"both addresses must be of one family, got {self.source!r} and "
                    f"{self.destination!r}"
                )
            if self.version == "v1" and network not in {"tcp4", "tcp6"}:
                raise ValueError(f"version 1 has no {network} addresses, got {self.source!r}")
        for kind, value in self.tlvs:
            if not 0 <= kind <= 255 or kind == ProxyTLV.CRC32C:
                raise ValueError(
                    f"a TLV's type must be from 0 to 255, and CRC32C is written by checksum=True, "
                    f"got {kind!r}"
                )
            if not isinstance(value, bytes):
                raise TypeError(f"a TLV's value must be bytes, got {value!r}")
        if self.version == "v1" and (self.tlvs or self.checksum or self.command == "LOCAL"):
            raise ValueError("version 1 has no TLVs, no checksum and no LOCAL command")

    @classmethod
    def parse(cls, data: bytes) -> ProxyHeader:
        """Read ``data``, which is one header and nothing else.

        Raises:
          ValueError: it is not; the message says where it departs from the specification.
        """
        reader = ProxyReader()
        size = reader.feed(data)
        if reader.header is None:
            raise ValueError(f"the PROXY header is incomplete after {len(data)} bytes")
        if size < len(data):
            raise ValueError(f"{len(data) - size} bytes follow the PROXY header")
        return reader.header

    def tlv(self, kind: int) -> bytes | None:
        """Return the value of the first TLV of type ``kind``, or None."""
        return next((value for found, value in self.tlvs if found == kind), None)

    def encode(self) -> bytes:
        """Return the header as it goes over the wire, to be sent at once and ahead of all else.

        An IPv6 zone (``%eth0``) is left out: it has no meaning on another machine.

        Raises:
          ValueError: it is longer than its format can be.
        """
        if self.version == "v1":
            return _encode_v1(self)
        block = _encode_addresses(self.source, self.destination)
        tlvs = [*self.tlvs]
        if self.checksum:
            tlvs.append((ProxyTLV.CRC32C, bytes(CHECKSUM_SIZE)))
        for kind, value in tlvs:
            if len(value) > 0xFFFF:
                raise ValueError(f"a TLV takes at most 65535 bytes, got {len(value)}")
            block += struct.pack("!BH", kind, len(value)) + value
        if len(block) > 0xFFFF:
            raise ValueError(f"a header takes at most 65535 bytes, got {len(block)}")
        family = 0 if self.source is None else NUMBERS[_family_of(self.source)]
        command = 0x20 | (self.command == "PROXY")
        data = V2_FIXED.pack(SIGNATURE, command, family, len(block)) + block
        if self.checksum:
            # It covers the whole header with its own field zero (section 2.2.3).
            data = data[:-CHECKSUM_SIZE] + struct.pack("!I", crc32c(data))
        return data


@final
class ProxyReader:
    """Reads one header from pieces of any size.

    Attributes:
      header: the header, once it is complete.
    """

    __slots__ = ("_buffer", "_versions", "header")

    def __init__(self, versions: Sequence[Version] = ("v1", "v2")) -> None:
        """Prepare to read a header of one of ``versions``; the others are refused."""
        self._versions = tuple(versions)
        self._buffer = bytearray()
        self.header: ProxyHeader | None = None

    @property
    def size(self) -> int:
        """How many bytes of the header have been read."""
        return len(self._buffer)

    @property
    def want(self) -> int:
        """How many more bytes there is a use for; 0 once the header is complete."""
        if self.header is not None:
            return 0
        have = len(self._buffer)
        if self._version() == "v2":
            total = V2_FIXED.size
            if have >= total:
                total += int.from_bytes(self._buffer[14:16], "big")
        else:
            total = V1_MIN if have < V1_MIN else V1_MAX
        return total - have

    @property
    def exact(self) -> bool:
        """Whether all of the bytes that `want` tells belong to the header, whatever they are.

        If not, they may only be looked at: `feed` says how many of them are the header's.
        """
        return self._version() == "v2" or len(self._buffer) < V1_MIN

    def feed(self, data: bytes) -> int:
        """Go on with ``data``.

        Returns:
          How many bytes of it belong to the header: all, unless the header is complete now.

        Raises:
          ValueError: this is no header; the message says why. The connection must be dropped.
        """
        if self.header is not None:
            return 0
        before = len(self._buffer)
        self._buffer += data
        size = self._find_end()
        if size is None:
            return len(data)
        del self._buffer[size:]
        line = bytes(self._buffer)
        self.header = _parse_v1(line[:-2]) if self._version() == "v1" else _parse_v2(line)
        return size - before

    def _version(self) -> Version | None:
        """Return what the first byte tells, or which one alone would be taken, or None."""
        if self._buffer:
            return "v1" if self._buffer[0] == V1_PREFIX[0] else "v2"
        return self._versions[0] if len(self._versions) == 1 else None

    def _find_end(self) -> int | None:
        """Return the size of the header, or None if it is not all here; refuse what is none."""
        buffer = self._buffer
        if not buffer:
            return None
        version = self._version()
        prefix = V1_PREFIX if version == "v1" else SIGNATURE
        if version not in self._versions or not prefix.startswith(buffer[: len(prefix)]):
            raise ValueError(
                f"no PROXY header ({' or '.join(self._versions)}): it starts with "
                f"{bytes(buffer[:16])!r}"
            )
        return self._find_v1_end() if version == "v1" else self._find_v2_end()

    def _find_v1_end(self) -> int | None:
        line = self._buffer[:V1_MAX]
        breaks = [at for at in (line.find(b"\r"), line.find(b"\n")) if at >= 0]
        if not breaks:
            if len(line) == V1_MAX:
                raise ValueError(f"no CRLF within the first {V1_MAX} bytes: {bytes(line)!r}")
            return None
        end = min(breaks)
        rest = line[end : end + 2]
        if rest == b"\r" and len(line) < V1_MAX:
            return None
        if rest != b"\r\n":
            raise ValueError(f"the line does not end with CRLF: {bytes(line[: end + 2])!r}")
        return end + 2

    def _find_v2_end(self) -> int | None:
        buffer = self._buffer
        if len(buffer) > 12 and buffer[12] not in {0x20, 0x21}:
            raise ValueError(f"unknown version and command 0x{buffer[12]:02x}")
        if len(buffer) < V2_FIXED.size:
            return None
        _, command, family, size = V2_FIXED.unpack(buffer[: V2_FIXED.size])
        if command == 0x21:
            # A LOCAL header's family is ignored, whatever it is.
            if family >> 4 > 3 or family & 15 > 2:
                raise ValueError(f"unknown family and transport 0x{family:02x}")
            if family in FAMILIES and size < ADDRESS_SIZES[family >> 4]:
                raise ValueError(f"{size} bytes cannot hold {FAMILIES[family]} addresses")
        total: int = V2_FIXED.size + size
        return total if len(buffer) >= total else None


def _family_of(address: Address) -> str:
    """Return the network that ``address`` has in a header."""
    if not isinstance(address, Address):
        raise TypeError(f"addresses in a header must be Address objects, got {address!r}")
    if address.network in {"unix", "unixgram"} and address.path is not None:
        if len(_unix_bytes(address.path)) > UNIX_SIZE:
            raise ValueError(f"a unix path in a header takes at most 108 bytes, got {address!r}")
        return address.network
    if address.network[:3] in {"tcp", "udp"} and address.host is not None:
        try:
            version = _ip(address).version
        except ValueError:
            raise ValueError(f"a header takes IP addresses, got {address!r}") from None
        port_is_right = isinstance(address.port, int) and 0 <= address.port <= 0xFFFF
        if address.network[3:] in {"", str(version)} and port_is_right:
            return f"{address.network[:3]}{version}"
    raise ValueError(f"a header has no room for {address!r}")


def _ip(address: Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address((address.host or "").partition("%")[0])


def _unix_bytes(path: str) -> bytes:
    return b"\0" + os.fsencode(path[1:]) if path.startswith("@") else os.fsencode(path)


# Version 1


def _encode_v1(header: ProxyHeader) -> bytes:
    if header.source is None or header.destination is None:
        return b"PROXY UNKNOWN\r\n"
    family = _family_of(header.source).upper()
    source, destination = (_text(_ip(one)) for one in (header.source, header.destination))
    ports = f"{header.source.port} {header.destination.port}"
    return f"PROXY {family} {source} {destination} {ports}\r\n".encode("ascii")


def _text(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        # Python 3.13 writes its end in dots, for which the specification has no words.
        return f"::ffff:{int(address) >> 16 & 0xFFFF:x}:{int(address) & 0xFFFF:x}"
    return str(address)


def _parse_v1(line: bytes) -> ProxyHeader:
    # What follows UNKNOWN is to be ignored (section 2.1).
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return ProxyHeader("v1")
    try:
        _, family, source, destination, *ports = line.decode("ascii").split(" ")
        network = {"TCP4": "tcp4", "TCP6": "tcp6"}[family]
        near, far = (_parse_port(port) for port in ports)
        return ProxyHeader(
            "v1",
            Address(network, host=_parse_ip(network, source), port=near),
            Address(network, host=_parse_ip(network, destination), port=far),
        )
    except (ValueError, KeyError) as exc:
        raise ValueError(f"bad PROXY line {line!r}") from exc


def _parse_ip(network: str, text: str) -> str:
    if network == "tcp4":
        # Leading zeros, which some read as octal, are refused by IPv4Address.
        return _text(ipaddress.IPv4Address(text))
    if "%" in text:
        raise ValueError("zones are not allowed")
    # An end in dots ("::ffff:192.0.2.1") is what inet_ntop() gives HAProxy to send.
    return _text(ipaddress.IPv6Address(text))


def _parse_port(text: str) -> int:
    port = int(text)
    if str(port) != text or not 0 <= port <= 0xFFFF:
        raise ValueError(f"bad port {text!r}")
    return port


# Version 2


def _encode_addresses(source: Address | None, destination: Address | None) -> bytes:
    if source is None or destination is None:
        return b""
    if source.path is not None and destination.path is not None:
        return b"".join(
            _unix_bytes(path).ljust(UNIX_SIZE, b"\0") for path in (source.path, destination.path)
        )
    ports = struct.pack("!HH", source.port, destination.port)
    return _ip(source).packed + _ip(destination).packed + ports


def _parse_v2(data: bytes) -> ProxyHeader:
    _, command, family, _ = V2_FIXED.unpack_from(data)
    network = FAMILIES.get(family) if command == 0x21 else None
    # Half of what an unspecified family or transport says is unknown; skip it where the other
    # half tells how long the addresses are.
    start = V2_FIXED.size + (ADDRESS_SIZES[family >> 4] if family >> 4 <= 3 else 0)
    try:
        tlvs, checksum = _parse_tlvs(data, start)
    except ValueError:
        if network is not None:
            raise
        # LOCAL and UNSPEC: a block that is no list of TLVs is to be skipped, not understood.
        tlvs, checksum = (), None
    if checksum is not None:
        # Also for LOCAL: a header damaged into one would pass the proxy off as the client.
        at, expected = checksum
        blank = bytearray(data)
        blank[at : at + CHECKSUM_SIZE] = bytes(CHECKSUM_SIZE)
        if crc32c(blank) != expected:
            raise ValueError(f"the PROXY header's CRC32C is wrong: {expected:#010x}")
    extras: dict[str, Any] = {"tlvs": tlvs, "checksum": checksum is not None}
    if network is None:
        return ProxyHeader("v2", command="PROXY" if command == 0x21 else "LOCAL", **extras)
    return ProxyHeader("v2", *_parse_addresses(network, data[V2_FIXED.size : start]), **extras)


def _parse_addresses(network: str, block: bytes) -> tuple[Address, Address]:
    if network in {"unix", "unixgram"}:
        near, far = _unix_path(block[:UNIX_SIZE]), _unix_path(block[UNIX_SIZE:])
        return Address(network, path=near), Address(network, path=far)
    ports = struct.unpack("!HH", block[-4:])
    half = (len(block) - 4) // 2
    hosts = [_text(ipaddress.ip_address(one)) for one in (block[:half], block[half:-4])]
    return (
        Address(network, host=hosts[0], port=ports[0]),
        Address(network, host=hosts[1], port=ports[1]),
    )


def _unix_path(name: bytes) -> str:
    if name[:1] == b"\0":
        # Abstract; the padding cannot be told from NULs at the name's end, and nobody has those.
        abstract = name[1:].rstrip(b"\0")
        return "@" + os.fsdecode(abstract) if abstract else ""
    path = os.fsdecode(name.partition(b"\0")[0])
    # A file of such a name must not pass for an abstract one.
    return f"./{path}" if path.startswith("@") else path


def _parse_tlvs(
    data: bytes, at: int
) -> tuple[tuple[tuple[int, bytes], ...], tuple[int, int] | None]:
    """Return the TLVs from ``at`` on, and where a checksum is and what it says."""
    tlvs: list[tuple[int, bytes]] = []
    checksum: tuple[int, int] | None = None
    if at > len(data):
        raise ValueError("the PROXY header ends within its addresses")
    while at < len(data):
        if at + 3 > len(data):
            raise ValueError(f"{len(data) - at} bytes at the PROXY header's end are no TLV")
        kind, size = struct.unpack_from("!BH", data, at)
        at += 3
        value = data[at : at + size]
        if len(value) < size:
            raise ValueError(f"TLV 0x{kind:02x} of {size} bytes overruns the PROXY header")
        if kind != ProxyTLV.CRC32C:
            tlvs.append((kind, value))
        elif checksum is None and size == CHECKSUM_SIZE:
            checksum = (at, int.from_bytes(value, "big"))
        else:
            raise ValueError(f"a CRC32C of {size} bytes, or a second one")
        at += size
    return tuple(tlvs), checksum
