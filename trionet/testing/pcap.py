"""A trace as a capture file, which Wireshark and tshark open: pcapng, of IP packets.

The format is draft-ietf-opsawg-pcapng (section 4 of it has the blocks), the packets are raw IP
(LINKTYPE_RAW). What a simulation has no need of is made up so that what reads the file sees TCP as
it is on a wire: initial sequence numbers, window scaling, checksums.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from itertools import count
from typing import TYPE_CHECKING, Final, final

from .flights import Flight, flights

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

    from .trace import Endpoint, Event

__all__ = ("capture", "write_pcap")

LINKTYPE_RAW: Final = 101

SECTION: Final = 0x0A0D0D0A
INTERFACE: Final = 1
NAMES: Final = 4
PACKET: Final = 6

END_OF_OPTIONS: Final = 0
COMMENT: Final = 1
INTERFACE_NAME: Final = 2
USER_APPLICATION: Final = 4
TIME_RESOLUTION: Final = 9

# Timestamps are in units of 10**-9 seconds.
NANOSECONDS: Final = 9

TCP: Final = 6
UDP: Final = 17
ICMP: Final = 1
ICMP6: Final = 58

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
FLAGS: Final = {
    "SYN": SYN,
    "SYN-ACK": SYN | ACK,
    "DATA": PSH | ACK,
    "ACK": ACK,
    "FIN": FIN | ACK,
    "RST": RST | ACK,
    "PROBE": ACK,
}

# RFC 7323 section 2.2: windows are in units of 2**7 bytes, as Linux has them by default. The
# maximum segment size stands beside it (RFC 9293 section 3.2), padded to four bytes.
WINDOW_SHIFT: Final = 7
SYN_OPTIONS: Final = struct.pack("!BBHBBBB", 2, 4, 16384, 3, 3, WINDOW_SHIFT, 0)

# What is left of an IP packet's 65,535 bytes beside both headers: a bigger segment is several.
PAYLOAD_MAX: Final = 65535 - 40 - 20

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def write_pcap(
    path: str | os.PathLike[str], events: Iterable[Event], *, host: str | None = None
) -> int:
    """Write the packets among ``events`` to a capture file; return how many there are.

    Args:
      path: a file, made or overwritten.
      events: a `Trace`, or some of its events in order.
      host: the name of a host: what a capture there would have shown, each packet that it sent at
        the time it did and each it received when it arrived. By default every packet of every
        host at the time it was sent, the lost ones included, with a comment that says so.

    What has no IP address, Unix sockets and questions to the DNS, is left out; faults are comments
    on the packet after them. Timestamps are trio's clock, as seconds since 1970.

    Raises:
      OSError: the file cannot be written.
    """
    packets = 0
    with open(path, "wb") as file:
        for kind, block in capture(events, host=host):
            packets += kind == PACKET
            file.write(block)
    return packets


def capture(events: Iterable[Event], *, host: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a capture file, each with its type (6 is a packet)."""
    events = list(events)
    yield (
        SECTION,
        _block(
            SECTION,
            struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _options((USER_APPLICATION, b"trionet")),
        ),
    )
    name = host or "the virtual network"
    yield (
        INTERFACE,
        _block(
            INTERFACE,
            struct.pack("<HHI", LINKTYPE_RAW, 0, 0)
            + _options(
                (INTERFACE_NAME, name.encode()),
                (TIME_RESOLUTION, bytes([NANOSECONDS])),
            ),
        ),
    )
    yield NAMES, _block(NAMES, _names(events))
    things = iter(flights(events))
    packer = _Packer()
    remarks: list[str] = []
    for event in events:
        # Each thing that was sent, and each fault, stands there in the same order.
        thing = next(things) if event.what in {"sent", "fault"} else None
        if event.what == "fault":
            remarks.append(event.note)
        elif _is_seen(event, host) and event.source.ip and event.destination.ip:
            notes = remarks + (thing.notes if isinstance(thing, Flight) else [])
            remarks = []
            for packet in packer.packets(event):
                yield PACKET, _packet(event.time, packet, notes)
                notes = []


def _is_seen(event: Event, host: str | None) -> bool:
    if event.what == "sent":
        return host is None or event.source.host == host
    # On the loopback it was seen as it was sent.
    return event.what == "delivered" and event.destination.host == host != event.source.host


@final
class _Packer:
    """Makes IP packets of events."""

    def __init__(self) -> None:
        self._identification = count(1)

    def packets(self, event: Event) -> Iterator[bytes]:
        """Yield the packets of one event: one, unless its payload is too big for that."""
        source, destination = _address(event.source), _address(event.destination)
        if event.kind == "ICMP":
            kind = ICMP if source.version == 4 else ICMP6
            yield self._ip(source, destination, kind, self._unreachable(event))
        elif event.protocol == "udp":
            datagram = _udp(event, event.payload)
            yield self._ip(source, destination, UDP, datagram)
        elif event.protocol == "tcp":
            for start in range(0, len(event.payload) or 1, PAYLOAD_MAX):
                piece = event.payload[start : start + PAYLOAD_MAX]
                yield self._ip(source, destination, TCP, _tcp(event, start, piece))

    def _ip(self, source: Address, destination: Address, protocol: int, body: bytes) -> bytes:
        body = _summed(source, destination, protocol, body)
        if source.version == 6:
            # RFC 8200 section 3: version 6, payload length, next header, hop limit 64.
            head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
            return head + source.packed + destination.packed + body
        # RFC 791 section 3.1: five words of header, do not fragment, time to live 64.
        head = struct.pack(
            "!BBHHHBBH4s4s",
            0x45,
            0,
            20 + len(body),
            next(self._identification) & 0xFFFF,
            0x4000,
            64,
            protocol,
            0,
            source.packed,
            destination.packed,
        )
        return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body

    def _unreachable(self, event: Event) -> bytes:
        """Return the message that what ``event``'s receiver sent does not get through.

        It quotes the packet (RFC 792, RFC 4443 section 3.1): its header and the first 8 bytes.
        """
        source, destination = _address(event.source), _address(event.destination)
        protocol = UDP if event.protocol == "udp" else TCP
        ports = struct.pack("!HHHH", event.destination.port, event.source.port, 8, 0)
        quoted = self._ip(destination, source, protocol, ports + bytes(12))
        if source.version == 6:
            return struct.pack("!BBHI", 1, 4 if protocol == UDP else 3, 0, 0) + quoted[:48]
        return struct.pack("!BBHI", 3, 3 if protocol == UDP else 1, 0, 0) + quoted[:28]


# Where each protocol has its checksum.
CHECKSUM_AT: Final = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}


def _summed(source: Address, destination: Address, protocol: int, body: bytes) -> bytes:
    """Return ``body`` with its checksum."""
    pseudo = b""
    if protocol != ICMP:
        # RFC 9293 section 3.1 and RFC 8200 section 8.1; that the latter has it longer does not
        # change the sum.
        pseudo = source.packed + destination.packed + struct.pack("!II", len(body), protocol)
    at = CHECKSUM_AT[protocol]
    checksum = _checksum(pseudo + body)
    if protocol == UDP:
        # RFC 768: 0 says that there is none.
        checksum = checksum or 0xFFFF
    return body[:at] + struct.pack("!H", checksum) + body[at + 2 :]


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of data that is not all zeros.

    The ones' complement sum of 16-bit words is the whole number modulo 65,535, and 65,535 where
    that is 0.
    """
    number = int.from_bytes(data, "big")
    return 0xFFFF - ((number << 8 if len(data) % 2 else number) % 0xFFFF or 0xFFFF)


def _tcp(event: Event, offset: int, payload: bytes) -> bytes:
    """Return a TCP segment without its checksum (RFC 9293 section 3.1)."""
    kind = event.kind
    flags = FLAGS[kind]
    options = SYN_OPTIONS if flags & SYN else b""
    # A probe asks for an answer with a byte that was acknowledged already.
    sequence = event.sequence + offset - (kind == "PROBE" and not payload)
    acknowledgement = 0
    if event.acknowledgement == 0 and kind == "RST":
        flags = RST
    elif flags & ACK:
        first = _first_sequence(event.connection, event.destination)
        acknowledgement = first + event.acknowledgement
    # A SYN's own window is not scaled yet (RFC 7323 section 2.2).
    window = event.window if flags & SYN else -(-event.window >> WINDOW_SHIFT)
    return (
        struct.pack(
            "!HHIIBBHHH",
            event.source.port,
            event.destination.port,
            (_first_sequence(event.connection, event.source) + sequence) & 0xFFFFFFFF,
            acknowledgement & 0xFFFFFFFF,
            (5 + len(options) // 4) << 4,
            flags,
            min(max(window, 0), 0xFFFF),
            0,
            0,
        )
        + options
        + payload
    )


def _udp(event: Event, payload: bytes) -> bytes:
    """Return a datagram without its checksum (RFC 768)."""
    source, destination = event.source.port, event.destination.port
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def _first_sequence(connection: int, end: Endpoint) -> int:
    """Return an initial sequence number, another for each end of each connection.

    Were they all 0, a port's second connection would look like the first one's retransmission.
    """
    return zlib.crc32(f"{connection} {end.ip} {end.port}".encode())


def _address(end: Endpoint) -> Address:
    address = ipaddress.ip_address(end.ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _names(events: Iterable[Event]) -> bytes:
    """Return the records of a name resolution block: Wireshark shows hosts by them."""
    names: dict[Address, str] = {}
    for event in events:
        for end in (event.source, event.destination):
            if end.ip and end.host:
                address = _address(end)
                if not address.is_loopback:
                    names.setdefault(address, end.host)
    records = b""
    for address, name in names.items():
        value = address.packed + name.encode() + b"\0"
        records += struct.pack("<HH", 1 if address.version == 4 else 2, len(value)) + _padded(value)
    return records + struct.pack("<HH", 0, 0)


def _packet(time: float, data: bytes, notes: list[str]) -> bytes:
    stamp = round(time * 10**NANOSECONDS)
    head = struct.pack("<IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, len(data), len(data))
    comments = [(COMMENT, note.encode()) for note in notes]
    return _block(PACKET, head + _padded(data) + (_options(*comments) if comments else b""))


def _block(kind: int, body: bytes) -> bytes:
    """Return a block: its type and length, and the length again behind it."""
    size = 12 + len(body)
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)


def _options(*options: tuple[int, bytes]) -> bytes:
    return b"".join(
        struct.pack("<HH", code, len(value)) + _padded(value) for code, value in options
    ) + struct.pack("<HH", END_OF_OPTIONS, 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
