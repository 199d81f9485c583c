"""Files over streams: what a file is asked before it is sent, and sending it piece by piece."""

from __future__ import annotations

import io
import os
import stat
from operator import index
from typing import IO, TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("check_file", "kernel_file", "send_by_reading")

# Big enough that the hop into a thread is small beside it, small enough to lie in memory a
# thousand times over.
CHUNK: Final = 131072


def check_file(file: object, offset: int, count: int | None) -> tuple[int, int | None]:
    """Return ``offset`` and ``count`` as the ints they are, after checking all three.

    Raises:
      TypeError: ``file`` is not a binary file, or a number is none.
      ValueError: a number is negative.
    """
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"the file must be open in binary mode, got {file!r}")
    if not (hasattr(file, "fileno") or hasattr(file, "read")):
        raise TypeError(f"the file must have fileno() or read(), got {file!r}")
    offset = index(offset)
    if offset < 0:
        raise ValueError(f"offset must not be negative, got {offset}")
    if count is not None:
        count = index(count)
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
    return offset, count


def kernel_file(file: IO[bytes]) -> tuple[int, int] | None:
    """Return the descriptor and size of a file that the kernel can read by itself, or None.

    None for anything that is no regular file, and for an empty one: those of /proc say so, too.
    """
    fd = _descriptor(file)
    if fd is None:
        return None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return None
    return fd, found.st_size


async def send_by_reading(
    stream: trio.abc.SendStream, file: IO[bytes], offset: int, count: int | None
) -> int:
    """Send a file's bytes, each piece read in a thread, and return how many those were.

    If cancelled, the stream gets a first part; a read that has begun is waited for.
    """
    read = _reader(file, offset)
    total = 0
    while count is None or total < count:
        size = CHUNK if count is None else min(CHUNK, count - total)
        data = await trio.to_thread.run_sync(read, offset + total, size)
        if not data:
            return total
        await stream.send_all(data)
        total += len(data)
    await trio.lowlevel.checkpoint()
    return total


def _reader(file: IO[bytes], offset: int) -> Callable[[int, int], bytes]:
    fd = _descriptor(file)
    if fd is not None and stat.S_ISREG(os.fstat(fd).st_mode):
        # Leaves the file's own position alone, as sendfile does.
        return lambda at, size: os.pread(fd, size, at)
    sought = False

    def read(_: int, size: int) -> bytes:
        nonlocal sought
        # What cannot be sought, a pipe, starts where it is; asked to start elsewhere, it says so.
        if not sought and (offset or _is_seekable(file)):
            file.seek(offset)
        sought = True
        return file.read(size)

    return read


def _is_seekable(file: IO[bytes]) -> bool:
    seekable = getattr(file, "seekable", None)
    return seekable is not None and bool(seekable())


def _descriptor(file: IO[bytes]) -> int | None:
    try:
        return file.fileno()
    except (AttributeError, OSError):
        # BytesIO and its kind.
        return None
