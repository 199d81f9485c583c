"""Requests: bytes in, `Request` objects out. llhttp reads; here is what it leaves to us.

llhttp (through httptools) refuses what RFC 9112 calls malformed: both Content-Length and
Transfer-Encoding, two lengths, bare line feeds, spaces before a colon. It bounds no sizes, knows no
Host rule, and calls back for several messages in one go when a client pipelines.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final, final

import httptools

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ("Refusal", "Request", "RequestParser")

# Without any of these a GET asks for nothing but its target, and a cached answer fits it.
SPECIAL: Final = frozenset(
    {
        b"content-length",
        b"expect",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-unmodified-since",
        b"range",
        b"transfer-encoding",
        b"upgrade",
    }
)

# RFC 3986 section 3.2.2, an optional port behind it; it may be empty. No comma, though a name may
# hold one: two Host fields, joined, must not pass for one.
HOST: Final = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(?::[0-9]*)?")

# RFC 9110 section 9.1: a method is a token. What is no HTTP at all, TLS say, does not start so.
METHOD: Final = re.compile(rb"[A-Z][A-Z0-9-]{0,31} /")

# Bytes of chunk framing a body may have beyond 16 for each of its bytes: a sender of one-byte
# chunks needs 5, one of endless chunk extensions (CVE-2023-39326) has no limit of its own. Each
# byte pays for the framing about it and no other, or a long body would earn what comes at its end.
FRAMING_SIZE: Final = 65536
FRAMING_RATIO: Final = 16


@final
class Refusal(Exception):  # noqa: N818 - it is an answer, not a fault
    """A request that is answered with an error, after which the connection closes.

    Attributes:
      status: the status code.
      reason: a sentence for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


@final
class Request:
    """One request. Its body may still be coming.

    Attributes:
      method, target: as the client wrote them.
      version: ``"1.1"``, or ``"1.0"``, or what the client claims.
      headers: by lower-case name; fields that came more than once are joined by ", ".
      keep_alive: whether the client wants the connection to last.
      plain: whether it is a GET, in HTTP/1.1, that asks for nothing but its target.
      complete: whether the whole body has come.
      body: what has come of the body and was not taken yet.
      body_size: how many bytes of the body have come.
      wire_size: how many bytes, framing included, were read for it.
      framing_size: how many bytes of framing its body's bytes have not paid for.
      refusal: why the request is not to be served, or None.
    """

    # Defaults on the class, and so no slots: most requests never set them.
    plain = False
    complete = False
    body_size = 0
    wire_size = 0
    framing_size = 0
    refusal: Refusal | None = None

    def __init__(
        self, method: bytes, target: bytes, version: str, headers: dict[bytes, bytes], keep: bool
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.keep_alive = keep
        self.body: list[bytes] = []

    @property
    def content_length(self) -> int | None:
        """The body's announced size, 0 without a body, None when it comes in chunks."""
        if b"transfer-encoding" in self.headers:
            return None
        return int(self.headers.get(b"content-length", b"0"))


@final
class RequestParser:
    """Turns one connection's bytes into requests.

    Attributes:
      requests: what has been read and not been taken yet, in order; the last one may be
        incomplete.
      in_head: whether a request's head has begun and not ended.
      refusal: why nothing more can be read, or None.
    """

    __slots__ = (
        "_begun",
        "_current",
        "_earlier",
        "_feeding",
        "_headers",
        "_host",
        "_in_trailer",
        "_parser",
        "_repeated",
        "_settings",
        "_target",
        "_trailer_size",
        "in_head",
        "refusal",
        "requests",
    )

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.requests: deque[Request] = deque()
        self.in_head = False
        self.refusal: Refusal | None = None
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._repeated = 0
        # The last Host that was looked at and found good: a client's is always the same.
        self._host = b""
        # Whose body is coming.
        self._current: Request | None = None
        # The size of the head in progress that earlier feeds brought; how many heads began in this
        # feed; the size of this feed.
        self._earlier = 0
        self._begun = 0
        self._feeding = 0
        # Whether a chunk began and has no data: the last one has none, and trailer fields behind
        # it. How many bytes of them later feeds brought.
        self._in_trailer = False
        self._trailer_size = 0
        self._parser = httptools.HttpRequestParser(self)

    @property
    def in_body(self) -> bool:
        """Whether a request's head has ended and its body has not."""
        return self._current is not None

    def feed(self, data: bytes | bytearray) -> None:
        """Read ``data``. What is wrong with it is in `refusal`, or in a request's."""
        self._feeding = len(data)
        in_body = self._current is not None
        self._begun = 0
        rest: bytes | bytearray | memoryview = data
        while True:
            try:
                self._parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as upgrade:
                self._decline_upgrade()
                if self.refusal is not None:
                    return
                rest = memoryview(rest)[upgrade.args[0] :]
            except httptools.HttpParserError as exc:
                self.refusal = self._explain(exc, data, first=not in_body and self._begun == 1)
                return
        if self.in_head:
            # Exact unless the head began behind something else in this feed; then too small, by
            # less than one feed.
            if self._begun == 0 or (self._begun == 1 and not in_body):
                self._earlier += len(data)
            if self._earlier > self._settings.max_head_size:
                self.refusal = self._head_too_large()
        elif self._in_trailer:
            # Counted here, since httptools keeps a field to itself until it ends.
            self._trailer_size += len(data)
            limit = self._settings.max_head_size
            if self._trailer_size > limit:
                self.refusal = Refusal(431, f"The trailer fields take more than {limit} bytes.")

    def _decline_upgrade(self) -> None:
        """Go on in HTTP/1.1, as a server may that does not want to switch (RFC 9110 section 7.8).

        llhttp takes what follows the head for another protocol. If that is a body, it is lost to
        us, and reading it as the next request would let one be smuggled in.
        """
        request = self.requests[-1]
        if request.method == b"CONNECT":
            request.refusal = self.refusal = Refusal(501, "This server is no proxy.")
        elif request.content_length != 0:
            request.refusal = self.refusal = Refusal(501, "Upgrade with a body is not supported.")

    def _explain(
        self, error: httptools.HttpParserError, data: bytes | bytearray, *, first: bool
    ) -> Refusal:
        if isinstance(error, httptools.HttpParserInvalidMethodError) and first:
            # llhttp knows registered methods only; RFC 9110 section 9.1 wants a 501 for others.
            if METHOD.match(data):
                return Refusal(501, "The method is not known.")
            return Refusal(400, "This is not HTTP.")
        return Refusal(400, f"{error}.")

    def _head_too_large(self) -> Refusal:
        limit = self._settings.max_head_size
        return Refusal(431, f"The request line and header fields take more than {limit} bytes.")

    # What llhttp calls

    def on_message_begin(self) -> None:
        self.in_head = True
        self._begun += 1
        self._earlier = 0
        self._target = b""
        self._headers = {}
        self._repeated = 0

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailer fields come here, too; nothing uses them (RFC 9110 section 6.5.1 allows that).
        if not self.in_head:
            return
        name = name.lower()
        headers = self._headers
        if name not in headers:
            headers[name] = value
        else:
            self._repeated += 1
            if self._repeated <= self._settings.max_fields:
                headers[name] += b", " + value

    def on_headers_complete(self) -> None:
        self.in_head = False
        parser = self._parser
        headers = self._headers
        # should_keep_alive() is right in here, and stale once the message is over.
        request = Request(
            parser.get_method(),
            self._target,
            parser.get_http_version(),
            headers,
            parser.should_keep_alive(),
        )
        settings = self._settings
        if self._earlier or self._feeding > settings.max_head_size:
            size = len(request.method) + len(request.target) + len(" HTTP/1.1\r\n") + 3
            size += sum(len(name) + len(value) + 4 for name, value in headers.items())
            if size > settings.max_head_size:
                request.refusal = self._head_too_large()
        if len(headers) + self._repeated > settings.max_fields:
            request.refusal = Refusal(431, f"More than {settings.max_fields} header fields.")
        host = headers.get(b"host")
        if host is None:
            if request.version == "1.1":
                request.refusal = Refusal(400, "HTTP/1.1 needs a Host field.")
        elif host != self._host:
            if HOST.fullmatch(host) is None:
                request.refusal = Refusal(400, "The Host field is not one host.")
            else:
                self._host = host
        if (
            request.method == b"GET"
            and request.version == "1.1"
            and request.refusal is None
            and SPECIAL.isdisjoint(headers)
        ):
            request.plain = True
        self.requests.append(request)
        self._current = request

    def on_chunk_header(self) -> None:
        self._in_trailer = True
        # The feed adds its own size when it is done, but it began before the trailer did.
        self._trailer_size = -self._feeding

    def on_body(self, data: bytes) -> None:
        assert self._current is not None
        self._in_trailer = False
        self._current.body.append(data)
        self._current.body_size += len(data)

    def on_message_complete(self) -> None:
        assert self._current is not None
        self._current.complete = True
        self._current = None
        self._in_trailer = False
