"""One connection: requests in, answers out, in order.

How this works. One task reads, answers and writes. What came in one receive is answered as far as
it goes before anything is sent, so that a client that pipelines costs one send for many answers.
The application's timer looks at ``deadline``; when it has passed, the timer interrupts the wait
for the client (`Conversation.expire`), which costs nothing per request. A drain interrupts the same
wait if it is one between requests, by ``connection.idle()``.

The file is long because reading, answering and closing turn on one state: what is parsed, what is
collected, and whether this was the last answer.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Final, final

import trio

from trionet.abc import ReceiveInterrupted

from .access_log import escape
from .requests import FRAMING_RATIO, FRAMING_SIZE, Refusal, RequestParser
from .responses import BODILESS, error, render_head

if TYPE_CHECKING:
    import trionet

    from .application import Application
    from .requests import Request
    from .responses import Answer, Prepared

__all__ = ("Conversation",)

# Said each time, since a stream in memory hands over all that waits where nothing is said.
RECEIVE_SIZE: Final = 65536

# Answers are collected up to this many bytes before they are sent.
OUT_SIZE: Final = 262144

# An unwanted body of this size at most is read and dropped, to keep the connection; a longer one
# costs more than a new connection would.
DISCARD_SIZE: Final = 65536

# Seconds for which what a client still sends after the last answer is read and dropped: at most,
# and while nothing comes.
LINGER: Final = 5.0
LINGER_PAUSE: Final = 1.0


@final
class Conversation:
    """What is known of one connection while it lasts.

    Attributes:
      deadline: when the client must have sent more, by trio's clock; inf while it need not.
    """

    __slots__ = (
        "_application",
        "_client",
        "_closing",
        "_draining",
        "_expired",
        "_out",
        "_out_size",
        "_own_parser",
        "connection",
        "deadline",
    )

    def __init__(self, connection: trionet.Connection, application: Application) -> None:
        self.connection = connection
        self.deadline = trio.current_time() + application.settings.head_timeout
        self._application = application
        self._draining = connection.draining
        # Made when it is first needed.
        self._own_parser: RequestParser | None = None
        self._out: list[bytes] = []
        self._out_size = 0
        self._closing = False
        self._expired = False
        self._client = ""

    @property
    def _parser(self) -> RequestParser:
        if self._own_parser is None:
            self._own_parser = RequestParser(self._application.settings)
        return self._own_parser

    def expire(self) -> None:
        """End the wait for the client; its time is up."""
        self.deadline = math.inf
        self._expired = True
        self.connection.interrupt_receive()

    async def run(self) -> None:
        """Answer until the connection ends, or is to be closed. If cancelled, midway."""
        connection = self.connection
        keep_alive_timeout = self._application.settings.keep_alive_timeout
        in_head = False
        try:
            # Most clients speak at once; one that asks for one thing is served without a wait.
            data = connection.receive_nowait(RECEIVE_SIZE)
        except trio.WouldBlock:
            data = await self._receive_next()
        while data:
            if self._expired:
                self._revive()
            now = trio.current_time()
            wire = None if in_head else self._recognise(data, now)
            if wire is not None:
                # Most often all of it goes; then the wait for the next request, which comes in any
                # case, is the checkpoint.
                sent = connection.send_nowait(wire)
                if sent < len(wire):
                    self.deadline = math.inf
                    await connection.send_all(wire[sent:])
                    now = trio.current_time()
                if self._closing:
                    return
                self.deadline = now + keep_alive_timeout
            elif await self._read(data, now, in_head):
                in_head = self._parser.in_head
            else:
                return
            if in_head:
                data = await self._receive_head()
            else:
                data = b""
                # What a drain ends is a client that says nothing more.
                with connection.idle():
                    data = await connection.receive_some(RECEIVE_SIZE)

    def _recognise(self, data: bytes | bytearray, now: float) -> bytes | None:
        """Return the answer to a request that came before, byte for byte, if it is ready."""
        if type(data) is not bytes:
            return None
        found = self._application.ready.recall(data)
        if found is None or found[1].fresh_until <= now:
            return None
        return self._say(*found, last=True)

    async def _read(self, data: bytes | bytearray, now: float, had_head: bool) -> bool:
        """Parse ``data``, and answer what it completes; return whether the connection lasts.

        Args:
          had_head: whether it goes on with a head that began earlier.
        """
        parser = self._parser
        parser.feed(data)
        if parser.requests:
            self.deadline = math.inf
            alone = not had_head and len(parser.requests) == 1 and not parser.in_head
            wire = self._take_ready(now, data if alone and type(data) is bytes else None)
            if wire is not None:
                sent = self.connection.send_nowait(wire)
                if sent < len(wire):
                    await self.connection.send_all(wire[sent:])
            if parser.requests:
                await self._answer_all()
            if self._closing:
                if parser.refusal is not None or parser.in_body:
                    await self._linger()
                return False
            had_head = False
        if parser.refusal is not None:
            await self._refuse(parser.refusal)
            return False
        settings = self._application.settings
        if not parser.in_head:
            self.deadline = trio.current_time() + settings.keep_alive_timeout
        elif not had_head:
            self.deadline = trio.current_time() + settings.head_timeout
        return True

    async def _receive_next(self) -> bytes | bytearray:
        """Wait for a request's first bytes; end of file where a drain ends the wait."""
        with self.connection.idle():
            return await self.connection.receive_some(RECEIVE_SIZE)
        return b""

    async def _receive_head(self) -> bytes | bytearray:
        """Receive more of a head; end of file where the client's time is up, after telling it."""
        try:
            return await self.connection.receive_some(RECEIVE_SIZE)
        except ReceiveInterrupted:
            await self._refuse(Refusal(408, "The request took too long to arrive."))
            return b""

    def _revive(self) -> None:
        """The time was up, but just then the client's bytes came: go on."""
        self._expired = False
        self.connection.resume_receive()

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer what never became a request."""
        answer = error(refusal.status, refusal.reason, close=True)
        self._collect(render_head(answer, connection=b"connection: close\r\n"))
        assert isinstance(answer.body, bytes)
        self._collect(answer.body)
        log = self._application.log
        if log is not None:
            log.add(self.client, "-", answer.status, answer.size)
        await self._flush()
        await self._linger()

    async def _linger(self) -> None:
        """Drop what the client still sends, so that no reset destroys the answer.

        Closing with bytes unread, or before more come, resets the connection, and the client may
        lose what it has not read yet (RFC 9112 section 9.6). If cancelled, the answer was sent.
        """
        connection = self.connection
        if connection.closed:
            return
        self.deadline = math.inf
        # After a 408 the waits for this client are interrupted.
        connection.resume_receive()
        end = trio.current_time() + LINGER
        with contextlib.suppress(trio.BrokenResourceError), trio.CancelScope() as scope:
            if isinstance(connection, trio.abc.HalfCloseableStream):
                await connection.send_eof()
            more: bytes | bytearray = b"-"
            while more:
                scope.deadline = min(end, trio.current_time() + LINGER_PAUSE)
                more = await connection.receive_some(RECEIVE_SIZE)

    def _take_ready(self, now: float, head: bytes | None = None) -> bytes | None:
        """Take the next requests as long as their answers are ready; return those answers.

        The common case, a plain GET of what is in memory, in as few steps as can be.

        Args:
          head: all that came, where that is one request.
        """
        requests = self._parser.requests
        ready = self._application.ready
        wires: list[bytes] = []
        size = 0
        while requests and size < OUT_SIZE and not self._closing:
            request = requests[0]
            if not request.plain:
                break
            prepared = ready.find(request.target)
            if prepared is None or prepared.fresh_until <= now:
                break
            requests.popleft()
            if head is not None:
                ready.remember(head, request, prepared)
            wire = self._say(request, prepared, last=not requests)
            wires.append(wire)
            size += len(wire)
        if not wires:
            return None
        return wires[0] if len(wires) == 1 else b"".join(wires)

    def _say(self, request: Request, prepared: Prepared, *, last: bool) -> bytes:
        """Return an answer that is ready, for the log too to hear; be closing if it is the last.

        Args:
          last: whether no other request waits.
        """
        # The last answer of a drain says that it is.
        if not request.keep_alive or (last and self._draining.is_set()):
            self._closing = True
        log = self._application.log
        if log is not None:
            log.add(self.client, _request_line(request), 200, len(prepared.body))
        return prepared.wire(int(time.time()), close=self._closing)

    async def _answer_all(self) -> None:
        """Answer every request that has come, and send the answers."""
        requests = self._parser.requests
        while requests and not self._closing:
            wire = self._take_ready(trio.current_time())
            if wire is None:
                await self._answer(requests.popleft())
                continue
            self._collect(wire)
            if self._out_size > OUT_SIZE:
                await self._flush()
        await self._flush()

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._application.answer(self, request)
        except Refusal as refusal:
            answer = error(refusal.status, refusal.reason, close=True)
        await self._send(request, answer)

    async def _send(self, request: Request, answer: Answer) -> None:
        """Send, or collect, an answer; then be ready for the next request, or closing."""
        close = (
            answer.close
            or not request.keep_alive
            or not (request.complete or answer.takes_body or self._can_discard(request))
            or (self._draining.is_set() and not self._parser.requests)
        )
        field = b"connection: close\r\n" if close else b""
        if not close and request.version == "1.0":
            field = b"connection: keep-alive\r\n"
        self._collect(render_head(answer, connection=field))
        body = answer.body
        size: int | None = None if answer.status in BODILESS else 0
        try:
            if request.method == b"HEAD":
                pass
            elif isinstance(body, bytes):
                self._collect(body)
                size = len(body) if size is not None else None
            else:
                await self._flush()
                before = self.connection.bytes_sent
                try:
                    await body.send(self.connection)
                except Refusal:
                    # Too late to say so; a body cut short tells the client.
                    await trio.aclose_forcefully(self.connection)
                    close = True
                finally:
                    size = self.connection.bytes_sent - before
        finally:
            if not isinstance(body, bytes):
                body.close()
            if self._application.log is not None:
                line = _request_line(request)
                self._application.log.add(self.client, line, answer.status, size)
        self._closing = close
        if self._out_size > OUT_SIZE or (close and self._out):
            await self._flush()
        if not close and not request.complete:
            await self._discard(request)

    # Reading bodies

    async def read_body(self, request: Request) -> bytes:
        """Return the next piece of a request's body, b"" at its end.

        Raises:
          Refusal: the body is malformed, too large or too slow.
          trio.BrokenResourceError: the client ended the connection within the body.

        If cancelled, nothing is lost but the connection's use.
        """
        limit = self._application.settings.max_body_size
        while not request.complete and not request.body:
            await self._receive_body(request)
        if request.body_size > limit:
            raise Refusal(413, f"The body takes more than {limit} bytes.")
        data = b"".join(request.body)
        request.body.clear()
        return data

    async def _receive_body(self, request: Request) -> None:
        """Receive once more, after sending what the client may be waiting for."""
        parser = self._parser
        if parser.refusal is not None:
            raise parser.refusal
        if request.wire_size == request.body_size == 0 and expects_continue(request):
            self._collect(b"HTTP/1.1 100 Continue\r\n\r\n")
        await self._flush()
        self.deadline = trio.current_time() + self._application.settings.body_timeout
        try:
            data = await self.connection.receive_some(RECEIVE_SIZE)
        except ReceiveInterrupted:
            raise Refusal(408, "The body took too long to arrive.") from None
        finally:
            self.deadline = math.inf
        if self._expired:
            self._revive()
        if not data:
            raise trio.BrokenResourceError("the client ended the connection within a body")
        request.wire_size += len(data)
        before = request.body_size
        parser.feed(data)
        # What else came may be the next request's, if this one is complete.
        if not request.complete:
            arrived = request.body_size - before
            unpaid = request.framing_size + len(data) - arrived * (1 + FRAMING_RATIO)
            request.framing_size = max(0, unpaid)
        if request.framing_size > FRAMING_SIZE:
            raise Refusal(400, "The body is mostly chunk framing.")

    def _can_discard(self, request: Request) -> bool:
        """Whether reading the rest of an unwanted body is worth the connection it keeps."""
        length = request.content_length
        # Who waits for 100 (Continue) may send the body or not, so what comes next is unknown.
        return length is not None and length <= DISCARD_SIZE and not expects_continue(request)

    async def _discard(self, request: Request) -> None:
        try:
            while not request.complete:
                await self._receive_body(request)
                request.body.clear()
        except Refusal:
            self._closing = True

    # Writing

    @property
    def client(self) -> str:
        """Who is at the other end, for the log."""
        if not self._client:
            # The socket may not know any more.
            with contextlib.suppress(OSError):
                address = self.connection.remote_address
                self._client = escape((address.host or str(address)).encode("latin-1", "replace"))
            self._client = self._client.replace(" ", "_") or "-"
        return self._client

    def _collect(self, data: bytes) -> None:
        if data:
            self._out.append(data)
            self._out_size += len(data)

    async def _flush(self) -> None:
        """Send what is collected. If cancelled, a first part."""
        out = self._out
        if not out:
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._out_size = 0
        await self.connection.send_all(data)


def expects_continue(request: Request) -> bool:
    """Whether the client waits for 100 (Continue); HTTP/1.0 knows no such thing."""
    return b"expect" in request.headers and request.version == "1.1"


def _request_line(request: Request) -> str:
    return escape(b"%s %s" % (request.method, request.target)) + f" HTTP/{request.version}"
