"""What travels: a piece of a connection, or a datagram, with both its ends."""

from __future__ import annotations

from typing import NamedTuple, final

__all__ = ("Endpoint", "Segment")


class Endpoint(NamedTuple):
    """One end of what travels.

    Attributes:
      host: the host's name.
      ip: its address, IPv4 or IPv6 as text; ``""`` where there is none, as with Unix sockets.
      port: the port; 0 where there is none.
    """

    host: str
    ip: str
    port: int

    def __str__(self) -> str:
        if not self.ip:
            return self.host
        ip = f"[{self.ip}]" if ":" in self.ip else self.ip
        return f"{self.host}({ip}:{self.port})"


@final
class Segment:
    """One piece of a connection, one datagram, one question to the DNS.

    Never changed once sent: the trace keeps it. One that is sent again is a new one, with the same
    sequence number and one more in ``attempt``.

    Attributes:
      protocol: ``"tcp"``, ``"unix"``, ``"udp"`` or ``"dns"``.
      kind: ``"SYN"``, ``"SYN-ACK"``, ``"DATA"``, ``"ACK"``, ``"FIN"``, ``"RST"``, ``"PROBE"``
        (keepalive, or a closed window's); ``"DATAGRAM"``; ``"ICMP"`` (unreachable); ``"QUERY"``
        and ``"ANSWER"``.
      source: where it comes from.
      destination: where it goes to.
      connection: the number of the connection in its network, from 1; 0 without one.
      index: how many of this kind this end of the connection has sent before; one that is sent
        again keeps its index.
      sequence: of the first byte (RFC 9293 section 3.4), from 0, which is the SYN's; without the
        wrap at 2**32. A SYN and a FIN take one number each.
      acknowledgement: the next sequence number expected from the other end; 0 in a SYN.
      window: how many bytes beyond that the sender of this has room for.
      payload: the bytes.
      attempt: how often it was sent before.
    """

    __slots__ = (
        "acknowledgement",
        "attempt",
        "connection",
        "destination",
        "index",
        "kind",
        "payload",
        "protocol",
        "sequence",
        "source",
        "window",
    )

    def __init__(
        self,
        protocol: str,
        kind: str,
        source: Endpoint,
        destination: Endpoint,
        connection: int = 0,
        index: int = 0,
        sequence: int = 0,
        acknowledgement: int = 0,
        window: int = 0,
        payload: bytes = b"",
        attempt: int = 0,
    ) -> None:
        self.protocol: str = protocol
        self.kind: str = kind
        self.source: Endpoint = source
        self.destination: Endpoint = destination
        self.connection: int = connection
        self.index: int = index
        self.sequence: int = sequence
        self.acknowledgement: int = acknowledgement
        self.window: int = window
        self.payload: bytes = payload
        self.attempt: int = attempt

    def __repr__(self) -> str:
        number = f" #{self.connection}" if self.connection else ""
        again = f" (sent {self.attempt + 1} times)" if self.attempt else ""
        size = f" {len(self.payload)} bytes" if self.payload else ""
        return (
            f"<{self.protocol}{number} {self.kind} {self.source} > {self.destination} "
            f"seq={self.sequence} ack={self.acknowledgement}{size}{again}>"
        )
