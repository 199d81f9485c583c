"""What the server answers: static files, and a few services beside them."""

from __future__ import annotations

import math
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import httptools
import trio

from .access_log import AccessLog
from .bodies import Block, block
from .conversation import Conversation
from .echo import EchoBody
from .ready import ReadyAnswers
from .requests import Refusal
from .responses import Answer, Prepared, error
from .settings import Settings
from .static import StaticFiles

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable

    import trionet

    from .requests import Request

__all__ = ("Application", "open_application")

# Methods that something here answers, so 405 elsewhere; all others are 501 (RFC 9110 section 9.1).
METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT"})

READING: Final = b"GET, HEAD, OPTIONS"
WRITING: Final = b"OPTIONS, POST, PUT"

BYTES: Final = re.compile(rb"/bytes/([0-9]{1,13})")

OCTETS: Final = b"content-type: application/octet-stream\r\n"
TEXT: Final = b"content-type: text/plain; charset=utf-8\r\n"

# /bytes/N up to this size is built once and kept ready.
READY_BYTES: Final = 16384

# The echo begins once so much has come, or all: a client that sends its whole body before it
# reads would otherwise meet a server that does not read before it has sent.
ECHO_FIRST: Final = 65536


@final
class Application:
    """The HTTP server's side of every connection; made by `open_application`.

    Attributes:
      settings: its limits.
      ready: whole answers to plain GETs.
      log: where requests are noted, or None.
    """

    def __init__(
        self, root: str | os.PathLike[str], settings: Settings, log: AccessLog | None
    ) -> None:
        self.settings = settings
        self.ready = ReadyAnswers()
        self.log = log
        self._files = StaticFiles(root, settings, self.ready.forget)
        self._conversations: set[Conversation] = set()
        self._opened = trio.Event()

    async def handle(self, connection: trionet.Connection) -> None:
        """Serve one connection; the handler for `trionet.Server`. If cancelled, midway."""
        conversation = Conversation(connection, self)
        self._conversations.add(conversation)
        self._opened.set()
        try:
            await conversation.run()
        finally:
            self._conversations.remove(conversation)

    async def watch_deadlines(self) -> None:
        """Interrupt conversations whose client took too long, for ever.

        One task for all, since moving a cancel scope's deadline for every request would cost more
        than all the rest of a short answer. Every deadline lies the shortest timeout or more past
        the moment it was set, so sleeping that long at most misses none.
        """
        settings = self.settings
        shortest = min(settings.head_timeout, settings.body_timeout, settings.keep_alive_timeout)
        while True:
            if not self._conversations:
                self._opened = trio.Event()
                await self._opened.wait()
            now = trio.current_time()
            next_look = now + shortest
            for conversation in self._conversations:
                if conversation.deadline <= now:
                    conversation.expire()
                elif conversation.deadline < next_look:
                    next_look = conversation.deadline
            await trio.sleep_until(next_look)

    async def answer(self, conversation: Conversation, request: Request) -> Answer:
        """Answer one request.

        Raises:
          Refusal: the request is to be answered with an error, and the connection closed.

        If cancelled, nothing is left open.
        """
        self._check(request)
        method = request.method
        path = _path_of(request.target)
        if path is None:
            if method == b"OPTIONS" and request.target == b"*":
                return Answer(204, b"allow: %s\r\n" % b", ".join(sorted(METHODS)))
            raise Refusal(400, "The request's target is not understood.")
        allowed = WRITING if path == b"/echo" else READING
        if method == b"OPTIONS":
            return Answer(204, b"allow: %s\r\n" % allowed)
        if method not in allowed.split(b", "):
            return error(405, fields=b"allow: %s\r\n" % allowed)
        if path == b"/echo":
            return await self._echo(conversation, request)
        if path == b"/healthz":
            if conversation.connection.draining.is_set():
                return Answer(503, TEXT, b"draining\n")
            return Answer(200, TEXT + b"cache-control: no-store\r\n", b"ok\n")
        if path.startswith(b"/bytes/"):
            answer, prepared = _bytes(path)
        else:
            answer, prepared = await self._files.answer(request, path)
        # It may have been forgotten while this request waited for the disk.
        if prepared is not None and request.plain and prepared.fresh_until > trio.current_time():
            self.ready.keep(request.target, prepared)
        return answer

    def _check(self, request: Request) -> None:
        """Refuse what cannot be served whatever its target is."""
        if request.refusal is not None:
            raise request.refusal
        if request.version not in {"1.0", "1.1"}:
            raise Refusal(505, "This server speaks HTTP/1.0 and HTTP/1.1.")
        headers = request.headers
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            coding = coding.strip().lower()
            if request.version == "1.0":
                # RFC 9112 section 6.1: its framing is faulty.
                raise Refusal(400, "HTTP/1.0 has no Transfer-Encoding.")
            if coding != b"chunked":
                final_one = coding.rpartition(b",")[2].strip()
                status = 501 if final_one == b"chunked" else 400
                raise Refusal(status, "The only transfer coding understood is chunked.")
        expect = headers.get(b"expect")
        if expect is not None and expect.lower() != b"100-continue" and request.version == "1.1":
            raise Refusal(417, "The only expectation met is 100-continue.")
        limit = self.settings.max_body_size
        if (request.content_length or 0) > limit:
            raise Refusal(413, f"The body takes more than {limit} bytes.")
        if request.method not in METHODS:
            raise Refusal(501, "The method is not supported.")

    async def _echo(self, conversation: Conversation, request: Request) -> Answer:
        pieces: list[bytes] = []
        size = 0
        while size < ECHO_FIRST:
            piece = await conversation.read_body(request)
            if not piece:
                return Answer(200, OCTETS, b"".join(pieces))
            pieces.append(piece)
            size += len(piece)
        return Answer(200, OCTETS, EchoBody(conversation, request, pieces), takes_body=True)


def _bytes(path: bytes) -> tuple[Answer, Prepared | None]:
    match = BYTES.fullmatch(path)
    if match is None:
        return error(404), None
    size = int(match[1])
    if size > READY_BYTES:
        return Answer(200, OCTETS, Block(size)), None
    answer = Answer(200, OCTETS, block(size))
    return answer, Prepared(answer, math.inf)


def _path_of(target: bytes) -> bytes | None:
    """Return the path a target names, still percent-encoded; None if it has none."""
    if b"#" in target:
        return None
    if target.startswith(b"/"):
        return target.partition(b"?")[0]
    # The form a proxy is sent, which every server must take (RFC 9112 section 3.2.2).
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        return None
    if (url.schema or b"").lower() not in {b"http", b"https"}:
        return None
    path: bytes = url.path or b"/"
    return path


@asynccontextmanager
async def open_application(
    root: str | os.PathLike[str],
    *,
    settings: Settings | None = None,
    write_log: Callable[[str], object] | None = None,
) -> AsyncIterator[Application]:
    """Open the folder and start the timer; ``application.handle`` is then a server's handler.

    Args:
      root: the folder whose files are served.
      settings: `Settings` unless given.
      write_log: called in a thread with lines for the access log; None for no log. If it raises
        OSError, it is not called again.

    Raises:
      NotADirectoryError: ``root`` is no folder.

    If cancelled, the log is still written out.
    """
    log = None if write_log is None else AccessLog(write_log)
    application = Application(root, settings or Settings(), log)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(application.watch_deadlines)
            if log is not None:
                nursery.start_soon(log.run)
            yield application
            nursery.cancel_scope.cancel()
    finally:
        if log is not None:
            log.flush()
