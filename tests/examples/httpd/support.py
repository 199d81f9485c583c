"""A client for raw bytes, and a server for it to talk to."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import httptools
import trio

import trionet
from examples.httpd import Settings, open_application

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable


class Response:
    """One answer, as read from the wire."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    def __repr__(self) -> str:
        return f"<{self.status} {self.headers} {self.body[:60]!r}>"


class ResponseReader:
    """Reads answers off a stream, one after the other; 100 (Continue) among them."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._parser: Any = httptools.HttpResponseParser(self)
        self._current = Response()
        self._done: list[Response] = []

    async def next(self) -> Response:
        """Return the next answer."""
        while not self._done:
            data = await self._stream.receive_some()
            assert data, f"the connection ended within {self._current}"
            self._parser.feed_data(data)
        return self._done.pop(0)

    async def at_end(self) -> bool:
        """Whether the server ended the connection, with nothing more to say."""
        return not self._done and await self._stream.receive_some() == b""

    def on_message_begin(self) -> None:
        self._current = Response()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._current.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._current.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        self._current.body += data

    def on_message_complete(self) -> None:
        self._done.append(self._current)


class Served:
    """The example server, running on a memory network."""

    def __init__(self, server: trionet.Server, network: str) -> None:
        self.server = server
        self.network = network

    async def dial(self) -> trionet.abc.Stream:
        """Connect to it."""
        return await trionet.dial(self.network, "site")

    async def ask(self, raw: bytes) -> Response:
        """Send ``raw`` on a connection of its own, and return the first answer."""
        async with await self.dial() as stream:
            await stream.send_all(raw)
            return await ResponseReader(stream).next()

    async def ask_all(self, raw: bytes) -> bytes:
        """Send ``raw``, and return what comes until the server ends the connection."""
        async with await self.dial() as stream:
            await stream.send_all(raw)
            return await receive_all(stream)


async def receive_all(stream: trio.abc.Stream) -> bytes:
    """Return what comes until the connection ends, properly or not."""
    received = b""
    with suppress(trio.BrokenResourceError):
        while data := await stream.receive_some():
            received += data
    return received


@asynccontextmanager
async def serving(
    root: str | os.PathLike[str],
    *,
    network: str = "memb",
    settings: Settings | None = None,
    write_log: Callable[[str], object] | None = None,
    grace: float = 10.0,
) -> AsyncIterator[Served]:
    """Run the example server; buffered, so that a test may send all before it reads."""
    async with (
        open_application(root, settings=settings, write_log=write_log) as application,
        trio.open_nursery() as nursery,
    ):
        serve = partial(trionet.serve, application.handle, network, "site", grace=grace)
        yield Served(await nursery.start(serve), network)
        nursery.cancel_scope.cancel()


def get(target: str, *fields: str, method: str = "GET") -> bytes:
    """Write an HTTP/1.1 request without a body."""
    lines = [f"{method} {target} HTTP/1.1", "Host: site", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")
