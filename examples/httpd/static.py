"""Static files: the cache of small ones, and the answer each request gets."""

from __future__ import annotations

import errno
import math
import os
import secrets
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, final
from urllib.parse import quote_from_bytes

import trio

from .bodies import FileParts
from .conditions import evaluate, select_ranges
from .files import Folder, IsDirectory, decode_path
from .responses import Answer, Prepared, error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .files import File
    from .requests import Request
    from .settings import Settings

__all__ = ("StaticFiles",)

Parts = list[bytes | tuple[int, int]]

# What an entry takes in memory beside its content, about.
ENTRY_SIZE: Final = 2048


@final
class StaticFiles:
    """A folder's files as answers, small ones kept in memory.

    A kept file is compared with the disk when it is asked for and the last look is
    ``check_interval`` old; whoever asks meanwhile gets what is kept.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        settings: Settings,
        on_forget: Callable[[Prepared], object],
    ) -> None:
        """Serve ``root``; tell ``on_forget`` which answers must not be kept any more."""
        self.folder = Folder(root, settings.small_file_size)
        self._on_forget = on_forget
        self._interval = settings.check_interval
        self._max_size = settings.cache_size
        # Oldest first; what exceeds the size goes from that end.
        self._cache: dict[tuple[bytes, ...], tuple[File, Prepared]] = {}
        self._size = 0

    async def answer(self, request: Request, path: bytes) -> tuple[Answer, Prepared | None]:
        """Answer a GET or HEAD for ``path``.

        Returns:
          The answer, and what may be sent to the next plain GET without asking here.

        If cancelled, nothing is left open.
        """
        names = decode_path(path)
        if names is None:
            return error(404), None
        try:
            file, prepared = await self._find(names)
        except IsDirectory:
            location = quote_from_bytes(path, safe="/%:@!$&'()*+,;=~-._").encode() + b"/"
            return error(301, fields=b"location: " + location + b"\r\n"), None
        except FileNotFoundError:
            return error(404), None
        except PermissionError:
            return error(403), None
        except OSError as exc:
            exhausted = exc.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
            return error(503 if exhausted else 500), None
        if prepared is not None and request.plain:
            return prepared.answer, prepared
        return _answer(request, file), None

    async def _find(self, names: tuple[bytes, ...]) -> tuple[File, Prepared | None]:
        """Return a kept file, or open it, and keep it if it is small."""
        now = trio.current_time()
        found = self._cache.get(names)
        if found is not None:
            file, prepared = found
            if now < prepared.fresh_until:
                return found
            # Before the look and not after it, so that of all who ask now one looks.
            prepared.fresh_until = now + self._interval
            stamp = await trio.to_thread.run_sync(self.folder.stamp, names)
            if stamp == file.stamp:
                return found
            self._forget(names, found)
        file = await trio.to_thread.run_sync(self.folder.open, names)
        if file.content is None:
            return file, None
        answer = Answer(200, _fields(file), file.content)
        prepared = Prepared(answer, now + self._interval)
        self._keep(names, (file, prepared))
        return file, prepared

    def _keep(self, names: tuple[bytes, ...], found: tuple[File, Prepared]) -> None:
        if names in self._cache:
            # Two opened it at once.
            self._forget(names, self._cache[names])
        if _cost(found[0]) > self._max_size:
            found[1].fresh_until = -math.inf
            return
        self._cache[names] = found
        self._size += _cost(found[0])
        while self._size > self._max_size:
            oldest = next(iter(self._cache))
            self._forget(oldest, self._cache[oldest])

    def _forget(self, names: tuple[bytes, ...], found: tuple[File, Prepared]) -> None:
        # Whoever holds it must not use it any more.
        found[1].fresh_until = -math.inf
        if self._cache.get(names) is found:
            del self._cache[names]
            self._size -= _cost(found[0])
            self._on_forget(found[1])


def _cost(file: File) -> int:
    """Return what keeping a file takes: its bytes, and twice more as they go on the wire."""
    # There they differ by whether the connection lasts.
    return 3 * file.size + ENTRY_SIZE


def _fields(file: File) -> bytes:
    return b"content-type: %s\r\n%saccept-ranges: bytes\r\n" % (
        file.content_type,
        _validator_fields(file),
    )


def _validator_fields(file: File) -> bytes:
    modified = formatdate(file.validators.modified, usegmt=True).encode()
    return b"etag: %s\r\nlast-modified: %s\r\n" % (file.validators.etag, modified)


def _answer(request: Request, file: File) -> Answer:
    """Answer with the file, with parts of it, or with what its preconditions say.

    An open descriptor goes into the answer's body, or is closed here.
    """
    verdict = evaluate(request.method, request.headers, file.validators)
    ranges = None
    if verdict == 200 and request.method == b"GET":
        ranges = select_ranges(request.headers, file.validators, file.size)
    if verdict != 200 or ranges == []:
        if file.descriptor >= 0:
            os.close(file.descriptor)
        if verdict == 304:
            return Answer(304, _validator_fields(file))
        if verdict == 412:
            return error(412)
        return error(416, fields=b"content-range: bytes */%d\r\n" % file.size)
    if ranges is None:
        return Answer(200, _fields(file), _body(file, [(0, file.size)]))
    if len(ranges) == 1:
        start, stop = ranges[0]
        fields = _fields(file) + b"content-range: bytes %d-%d/%d\r\n" % (
            start,
            stop - 1,
            file.size,
        )
        return Answer(206, fields, _body(file, [(start, stop)]))
    boundary = secrets.token_hex(12).encode()
    fields = b"content-type: multipart/byteranges; boundary=%s\r\n" % boundary
    fields += _validator_fields(file) + b"accept-ranges: bytes\r\n"
    return Answer(206, fields, _body(file, _multipart(file, ranges, boundary)))


def _multipart(file: File, ranges: Sequence[tuple[int, int]], boundary: bytes) -> Parts:
    """Lay out several parts as RFC 9110 section 14.6 wants them."""
    parts: Parts = []
    for start, stop in ranges:
        lead = b"\r\n" if parts else b""
        parts.extend(
            (
                b"%s--%s\r\ncontent-type: %s\r\ncontent-range: bytes %d-%d/%d\r\n\r\n"
                % (lead, boundary, file.content_type, start, stop - 1, file.size),
                (start, stop),
            )
        )
    parts.append(b"\r\n--%s--\r\n" % boundary)
    return parts


def _body(file: File, parts: Parts) -> bytes | FileParts:
    if file.content is None:
        return FileParts(file.descriptor, parts)
    content = file.content
    return b"".join(p if isinstance(p, bytes) else content[p[0] : p[1]] for p in parts)
