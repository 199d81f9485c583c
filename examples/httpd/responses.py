"""Answers: status, header fields and a body, and how they look on the wire."""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol, final

if TYPE_CHECKING:
    import trionet

__all__ = ("Answer", "Body", "Prepared", "date_line", "error", "render_head", "status_line")

# Fields of every answer. nosniff: what a file is, its name says, and never its content.
COMMON: Final = b"server: trionet-httpd\r\nx-content-type-options: nosniff\r\n"

_lines: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
# As RFC 9110 calls them; what the standard library says depends on its version.
_lines[413] = b"HTTP/1.1 413 Content Too Large\r\n"
_lines[416] = b"HTTP/1.1 416 Range Not Satisfiable\r\n"

# No body and no length, whatever the answer (RFC 9110 sections 15.3.5 and 15.4.5).
BODILESS: Final = frozenset({204, 304})


class Body(Protocol):
    """A body that is sent piece by piece."""

    @property
    def size(self) -> int | None:
        """Its bytes, or None where that is not known: it is then sent in chunks."""

    async def send(self, connection: trionet.Connection, /) -> None:
        """Send all of it. If cancelled, a first part."""

    def close(self) -> None:
        """Let go of what it was read from."""


@final
class Answer:
    """What is to be said to one request.

    Attributes:
      status: the status code.
      fields: header fields, each with its CRLF; framing, date and connection are added later.
      body: the body, in memory or to be sent piece by piece.
      close: whether the connection must not be used after this.
      takes_body: whether sending the body reads the rest of the request's.
    """

    __slots__ = ("body", "close", "fields", "status", "takes_body")

    def __init__(
        self,
        status: int,
        fields: bytes = b"",
        body: bytes | Body = b"",
        *,
        close: bool = False,
        takes_body: bool = False,
    ) -> None:
        self.status = status
        self.fields = fields
        self.body = body
        self.close = close
        self.takes_body = takes_body

    @property
    def size(self) -> int | None:
        """The body's size in bytes, or None where that is not known."""
        return len(self.body) if isinstance(self.body, bytes) else self.body.size


def error(status: int, reason: str = "", fields: bytes = b"", *, close: bool = False) -> Answer:
    """Make an answer that tells a person what went wrong."""
    phrase = status_line(status)[9:-2].decode()
    body = f"{phrase}\n{reason}\n" if reason else f"{phrase}\n"
    fields += b"content-type: text/plain; charset=utf-8\r\n"
    return Answer(status, fields, body.encode(), close=close)


def status_line(status: int) -> bytes:
    """Return the first line of an answer, with its CRLF."""
    return _lines[status]


def render_head(answer: Answer, *, connection: bytes) -> bytes:
    """Return all of an answer but its body.

    Args:
      connection: the Connection field, with its CRLF, or nothing.
    """
    size = answer.size
    if answer.status in BODILESS:
        framing = b""
    elif size is None:
        framing = b"transfer-encoding: chunked\r\n"
    else:
        framing = b"content-length: %d\r\n" % size
    return b"".join(
        (
            _lines[answer.status],
            COMMON,
            date_line(int(time.time())),
            answer.fields,
            framing,
            connection,
            b"\r\n",
        )
    )


# A cache of one, the same for every server in the process.
_date: tuple[int, bytes] = (0, b"")


def date_line(second: int) -> bytes:
    """Return the Date field for ``second``, as time.time() counts; made once a second."""
    global _date
    if _date[0] != second:
        _date = (second, f"date: {formatdate(second, usegmt=True)}\r\n".encode())
    return _date[1]


@final
class Prepared:
    """A whole 200 answer to a plain GET, kept as the bytes that go on the wire.

    Attributes:
      answer: the answer.
      fresh_until: the moment, by trio's clock, until which it may be used as it is.
    """

    __slots__ = ("_closing", "_lasting", "_second", "answer", "body", "fresh_until")

    def __init__(self, answer: Answer, fresh_until: float) -> None:
        assert isinstance(answer.body, bytes)
        self.answer = answer
        self.body = answer.body
        self.fresh_until = fresh_until
        # Both made when they are first asked for, and again every second.
        self._second = 0
        self._lasting = b""
        self._closing = b""

    def wire(self, second: int, *, close: bool) -> bytes:
        """Return head and body, with the Date of ``second``, which is now.

        Args:
          close: whether to tell that the connection ends with this answer.
        """
        if self._second != second:
            self._second = second
            self._lasting = self._closing = b""
        if close:
            if not self._closing:
                head = render_head(self.answer, connection=b"connection: close\r\n")
                self._closing = head + self.body
            return self._closing
        if not self._lasting:
            self._lasting = render_head(self.answer, connection=b"") + self.body
        return self._lasting
