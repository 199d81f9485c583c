"""The bytes of yamux: one header of twelve, and the words in it.

    version   u8   0
    type      u8   DATA, WINDOW_UPDATE, PING or GO_AWAY
    flags     u16  SYN, ACK, FIN, RST in any mix; unknown bits mean nothing
    stream id u32  0 is the session itself
    length    u32  DATA: bytes of body that follow; WINDOW_UPDATE: credit added; PING: a value to
                   be echoed; GO_AWAY: why

All big-endian. Only DATA carries a body.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

__all__ = (
    "ACK",
    "DATA",
    "FIN",
    "GO_AWAY",
    "HEADER",
    "HEADER_SIZE",
    "INTERNAL_ERROR",
    "NORMAL",
    "PING",
    "PROTOCOL_ERROR",
    "RST",
    "SYN",
    "VERSION",
    "WINDOW",
    "WINDOW_UPDATE",
    "Frame",
    "ProtocolError",
    "split_frames",
)

HEADER: Final = Struct("!BBHII")
HEADER_SIZE: Final = HEADER.size

VERSION: Final = 0

# Types. Plain ints: they are compared once a frame, and an enum's comparison costs ten times one.
DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

# Flags
SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8

# Why a session goes away.
NORMAL: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2

# What each side may send on a new stream before any window update; never negotiated.
WINDOW: Final = 256 * 1024

_TYPES: Final = ("DATA", "WINDOW_UPDATE", "PING", "GO_AWAY")
_FLAGS: Final = ((SYN, "SYN"), (ACK, "ACK"), (FIN, "FIN"), (RST, "RST"))


class ProtocolError(Exception):
    """The peer broke the rules; the session cannot go on."""


class Frame(NamedTuple):
    """One whole frame, for tests, tools and the curious; the session itself makes none.

    Attributes:
      type: DATA, WINDOW_UPDATE, PING, GO_AWAY, or what else was there.
      flags: SYN, ACK, FIN, RST and unknown bits, or-ed.
      stream_id: 0 for the session.
      length: the header's last field; of DATA the size of ``body``.
      body: what follows the header of DATA.
      version: 0.
    """

    type: int
    flags: int = 0
    stream_id: int = 0
    length: int = 0
    body: bytes = b""
    version: int = VERSION

    def encode(self) -> bytes:
        """Return the bytes of this frame."""
        header = HEADER.pack(self.version, self.type, self.flags, self.stream_id, self.length)
        return header + self.body

    def __str__(self) -> str:
        kind = _TYPES[self.type] if self.type < len(_TYPES) else f"type {self.type}"
        flags = "|".join(name for bit, name in _FLAGS if self.flags & bit) or "-"
        return f"{kind} {flags} stream {self.stream_id} length {self.length}"


def split_frames(data: bytes) -> tuple[list[Frame], bytes]:
    """Cut ``data`` into the whole frames at its beginning and what is left behind them."""
    frames = []
    at = 0
    while len(data) - at >= HEADER_SIZE:
        version, kind, flags, stream_id, length = HEADER.unpack_from(data, at)
        end = at + HEADER_SIZE + (length if kind == DATA else 0)
        if end > len(data):
            break
        body = bytes(data[at + HEADER_SIZE : end])
        frames.append(Frame(kind, flags, stream_id, length, body, version))
        at = end
    return frames, data[at:]
