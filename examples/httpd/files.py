"""The folder that is served: from a request's path to an open file, and never out of the folder.

Everything in here that touches the disk is synchronous and runs in a thread.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import stat
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, final
from urllib.parse import unquote_to_bytes

from .conditions import Validators

__all__ = ("File", "Folder", "IsDirectory", "decode_path")

INDEX: Final = b"index.html"

# The standard library's own table; the machine's would make answers depend on the machine.
_TYPES: Final = mimetypes.MimeTypes(filenames=())
for _type, _suffix in (
    ("application/manifest+json", ".webmanifest"),
    ("application/wasm", ".wasm"),
    ("font/woff", ".woff"),
    ("font/woff2", ".woff2"),
    ("image/avif", ".avif"),
    ("image/webp", ".webp"),
    ("text/javascript", ".js"),
    ("text/javascript", ".mjs"),
    ("text/markdown", ".md"),
):
    _TYPES.add_type(_type, _suffix)

# What opening says of a path that leads to no file. The last two: to a socket, to a device.
NOTHING_THERE: Final = frozenset(
    {errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO, errno.ENODEV}
)

# What is text, whatever its type says.
TEXTUAL: Final = frozenset({"application/json", "application/manifest+json", "image/svg+xml"})


class IsDirectory(Exception):  # noqa: N818 - it is an answer, not a fault
    """The path is a directory and lacks the slash that relative links in its index need."""


@final
@dataclass(frozen=True, slots=True)
class File:
    """An open regular file.

    Attributes:
      descriptor: open for reading; the holder closes it. -1 when the content is here.
      size: bytes.
      stamp: what changes whenever the file does.
      validators: for conditional requests.
      content_type: the value of Content-Type.
      content: all of it, if it is small.
    """

    descriptor: int
    size: int
    stamp: tuple[int, ...]
    validators: Validators
    content_type: bytes
    content: bytes | None


def decode_path(path: bytes) -> tuple[bytes, ...] | None:
    """Split a request's path into names, percent-decoded; None where it can name no file.

    The last name is empty if the path ends with a slash. Refused are NUL, a slash in disguise,
    ``.`` and ``..`` and every other name with a leading dot (`.git`, say) but ``.well-known`` (RFC
    8615), and empty names: ``//host`` in a redirect would be another machine.
    """
    names = tuple(unquote_to_bytes(name) for name in path.split(b"/")[1:])
    for name in names:
        if b"/" in name or b"\0" in name:
            return None
        if name.startswith(b".") and name != b".well-known":
            return None
    if not names or any(not name for name in names[:-1]):
        return None
    return names


@final
class Folder:
    """A folder whose files are served.

    Attributes:
      root: its real path.
    """

    def __init__(self, root: str | os.PathLike[str], small_file_size: int) -> None:
        """Remember ``root``.

        Raises:
          NotADirectoryError: it is no folder.
        """
        self.root = os.path.realpath(os.fsencode(root))
        if not os.path.isdir(self.root):
            raise NotADirectoryError(f"not a folder: {os.fspath(root)!r}")
        self._small = small_file_size

    def stamp(self, names: tuple[bytes, ...]) -> tuple[int, ...] | None:
        """Return the stamp of the file at ``names``, or None if `open` would fail."""
        try:
            file = self.open(names, read=False)
        except (OSError, IsDirectory):
            return None
        os.close(file.descriptor)
        return file.stamp

    def open(self, names: tuple[bytes, ...], *, read: bool = True) -> File:
        """Open the file at ``names``, a directory's index included, and read it if it is small.

        Raises:
          IsDirectory: ``names`` lacks the slash at its end.
          FileNotFoundError: there is none, or it is outside the folder, or no regular file.
          PermissionError: it may not be read.
          OSError: the disk or the system failed.
        """
        if not names[-1]:
            names = (*names[:-1], INDEX)
        descriptor = self._open(names)
        try:
            facts = os.fstat(descriptor)
            if stat.S_ISDIR(facts.st_mode):
                raise IsDirectory
            if not stat.S_ISREG(facts.st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a regular file")
            content = None
            if read and facts.st_size <= self._small:
                content = _read_all(descriptor, facts.st_size)
        except BaseException:
            os.close(descriptor)
            raise
        if content is not None:
            os.close(descriptor)
            descriptor = -1
        size = facts.st_size if content is None else len(content)
        return File(
            descriptor,
            size,
            (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns),
            # Not later than now, which a Date field would contradict (RFC 9110 section 8.8.2.1).
            Validators(
                b'"%x-%x-%x"' % (facts.st_mtime_ns, size, facts.st_ino),
                min(int(facts.st_mtime), int(time.time())),
            ),
            _content_type(names[-1]),
            content,
        )

    def _open(self, names: tuple[bytes, ...]) -> int:
        """Open what ``names`` leads to, by links within the folder too, but not out of it.

        The real path is followed one directory at a time and without links, so that a link put
        in its way after the look at it is refused, and not followed.
        """
        try:
            real = os.path.realpath(os.path.join(self.root, *names), strict=True)
            if real != self.root and not real.startswith(os.path.join(self.root, b"")):
                raise FileNotFoundError(errno.ENOENT, "outside the folder")
            # NONBLOCK: opening a FIFO must not wait for its writer.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            with ExitStack() as opened:
                descriptor = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
                for name in real[len(self.root) :].split(b"/"):
                    if name:
                        opened.callback(os.close, descriptor)
                        descriptor = os.open(name, flags, dir_fd=descriptor)
                return descriptor
        except OSError as exc:
            if exc.errno in NOTHING_THERE:
                raise FileNotFoundError(errno.ENOENT, "no such file") from exc
            raise


def _read_all(descriptor: int, size: int) -> bytes:
    """Read a small file; if it shrinks meanwhile, what is there."""
    pieces = []
    while size > 0:
        data = os.read(descriptor, size)
        if not data:
            break
        pieces.append(data)
        size -= len(data)
    return b"".join(pieces)


def _content_type(name: bytes) -> bytes:
    kind, encoding = _TYPES.guess_type(os.fsdecode(name))
    if encoding is not None:
        # A compressed file is sent as what it is, not as an encoding to be undone on the way.
        return b"application/gzip" if encoding == "gzip" else b"application/octet-stream"
    if kind is None:
        return b"application/octet-stream"
    if kind.startswith("text/") or kind in TEXTUAL:
        kind += "; charset=utf-8"
    return kind.encode("ascii")
