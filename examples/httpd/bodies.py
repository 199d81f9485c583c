"""Bodies that are sent piece by piece, with the client setting the pace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trionet
    from trionet.abc import Stream

__all__ = ("Block", "FileParts", "block")

# What is handed to one send_all: large enough that a call costs little beside the copying, small
# enough that many slow downloads together take little memory.
PIECE_SIZE: Final = 262144

_BLOCK: Final = bytes(range(32, 127)) * (PIECE_SIZE // 95 + 1)


def block(size: int) -> bytes:
    """Return the first ``size`` bytes of what `Block` sends; at most 262 144."""
    return _BLOCK[:size]


@final
class Block:
    """Printable bytes without end or meaning, for measuring."""

    def __init__(self, size: int) -> None:
        self.size = size

    async def send(self, stream: Stream) -> None:
        """Send all of it. If cancelled, a first part."""
        left = self.size
        piece = memoryview(_BLOCK)[:PIECE_SIZE]
        while left:
            part = piece[:left]
            await stream.send_all(part)
            left -= len(part)

    def close(self) -> None:
        """There is nothing to let go of."""


@final
class FileParts:
    """Parts of an open file, with bytes between them. The descriptor is closed by `close`."""

    def __init__(self, descriptor: int, parts: Sequence[bytes | tuple[int, int]]) -> None:
        """Take over ``descriptor``; a pair in ``parts`` is a start and a stop in the file."""
        self._file = open(descriptor, "rb", buffering=0)  # noqa: SIM115 - see close()
        self._parts = parts
        self.size = sum(
            len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts
        )

    async def send(self, connection: trionet.Connection) -> None:
        """Send all of it: by the kernel alone over plain TCP, else piece by piece.

        Raises:
          OSError: the file cannot be read, or is shorter than it was.

        If cancelled, a first part was sent.
        """
        for part in self._parts:
            if isinstance(part, bytes):
                await connection.send_all(part)
                continue
            start, stop = part
            sent = await connection.send_file(self._file, start, stop - start)
            if sent < stop - start:
                raise OSError(
                    f"the file ended at {start + sent} while {stop} bytes of it were promised"
                )

    def close(self) -> None:
        """Close the file."""
        self._file.close()
