"""Bodies that are sent piece by piece, with the client setting the pace."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, final

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        self._descriptor = descriptor
        self._parts = parts
        self.size = sum(
            len(part) if isinstance(part, bytes) else part[1] - part[0] for part in parts
        )

    async def send(self, stream: Stream) -> None:
        """Send all of it, each piece read in a thread.

        Raises:
          OSError: the file cannot be read, or is shorter than it was.

        If cancelled, a first part was sent.
        """
        for part in self._parts:
            if isinstance(part, bytes):
                await stream.send_all(part)
            else:
                await self._send_range(stream, *part)

    async def _send_range(self, stream: Stream, start: int, stop: int) -> None:
        while start < stop:
            data = await trio.to_thread.run_sync(
                os.pread, self._descriptor, min(PIECE_SIZE, stop - start), start
            )
            if not data:
                raise OSError(f"the file ended at {start} while {stop} bytes of it were promised")
            await stream.send_all(data)
            start += len(data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
