"""tcpserver's six tests, as servers of four kinds: ``seed_http KIND TEST PORT [CERTIFICATE]``.

Kinds: ``trionet``, ``trio`` (`trio.serve_tcp` with h11) and ``uvloop`` (an `asyncio.Protocol` with
httptools and no back-pressure). The answers are tcpserver's to the byte: 1,161 of them in test 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
import time
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

import trionet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("TESTS", "Test")

KEY: Final = b"0123456789ABCDEF"


@dataclass(frozen=True)
class Test:
    """What one test asks for: how much of what, and what happens then."""

    __test__ = False  # for pytest

    size: int = 1024
    keep_alive: bool = True
    encrypted: bool = False
    # Seconds that a task sleeps once it has answered.
    pause: float = 0.0

    def body(self) -> bytes:
        """Make the body; encrypted, it is another every time."""
        if not self.encrypted:
            return b"a" * self.size
        padder = PKCS7(128).padder()
        padded = padder.update(b"a" * self.size) + padder.finalize()
        vector = os.urandom(16)
        encryptor = Cipher(algorithms.AES(KEY), modes.CBC(vector)).encryptor()
        return vector + encryptor.update(padded) + encryptor.finalize()


TESTS: Final = {
    "1": Test(keep_alive=False),
    "2": Test(),
    "3": Test(keep_alive=False, encrypted=True),
    "4": Test(encrypted=True),
    "5": Test(size=128, pause=0.001),
    "6": Test(size=16384, keep_alive=False),
}


class Answers:
    """Makes answers, with a date that is made once a second."""

    def __init__(self, test: Test) -> None:
        self.test = test
        self._fixed = None if test.encrypted else test.body()
        self._second = 0
        self._head = b""

    def fields(self, size: int) -> list[tuple[str, str]]:
        """Return the header fields of an answer of so many bytes."""
        return [
            ("Server", "tsrv"),
            ("Connection", "keep-alive" if self.test.keep_alive else "close"),
            ("Date", formatdate(time.time(), usegmt=True)),
            ("Content-Type", "text/plain"),
            ("Content-Length", str(size)),
        ]

    def body(self) -> bytes:
        """Return the next body."""
        return self._fixed if self._fixed is not None else self.test.body()

    def whole(self) -> bytes:
        """Return the next answer, head and body."""
        body = self.body()
        now = int(time.time())
        if now != self._second:
            self._second = now
            lines = "".join(f"{name}: {value}\r\n" for name, value in self.fields(len(body)))
            self._head = f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode()
        return self._head + body


class Requests:
    """Counts the requests that httptools finds."""

    def __init__(self) -> None:
        import httptools

        self.complete = 0
        self.feed: Callable[[bytes | bytearray], None] = httptools.HttpRequestParser(self).feed_data

    def on_message_complete(self) -> None:
        """Count one."""
        self.complete += 1


async def serve_trionet(answers: Answers, port: int, tls: ssl.SSLContext | None) -> None:
    """Serve on `trionet.Server`. If cancelled, every connection ends."""
    test = answers.test

    async def handle(connection: trionet.Connection) -> None:
        requests = Requests()
        while data := await connection.receive_some(65536):
            requests.feed(data)
            while requests.complete:
                requests.complete -= 1
                await connection.send_all(answers.whole())
                if test.pause:
                    await trio.sleep(test.pause)
                if not test.keep_alive:
                    return

    listeners = await trionet.listen("tcp", f"127.0.0.1:{port}", ssl_context=tls)
    await trionet.Server(handle).serve(listeners)


async def answer_by_h11(answers: Answers, stream: trio.abc.Stream) -> None:
    """Answer every request on one connection. If cancelled, midway."""
    import h11

    test = answers.test
    connection = h11.Connection(h11.SERVER)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.EndOfMessage):
            body = answers.body()
            response = h11.Response(status_code=200, headers=answers.fields(len(body)))
            parts = (response, h11.Data(data=body), h11.EndOfMessage())
            await stream.send_all(b"".join(connection.send(part) or b"" for part in parts))
            if test.pause:
                await trio.sleep(test.pause)
            if not test.keep_alive:
                return
            connection.start_next_cycle()
        elif isinstance(event, h11.ConnectionClosed):
            return


async def serve_trio(answers: Answers, port: int, tls: ssl.SSLContext | None) -> None:
    """Serve on trio's own functions, with h11. If cancelled, every connection ends."""

    async def handle(stream: trio.abc.Stream) -> None:
        # A client that is gone would take the server with it.
        with contextlib.suppress(trio.BrokenResourceError):
            await answer_by_h11(answers, stream)

    if tls is None:
        await trio.serve_tcp(handle, port, host="127.0.0.1")
    else:
        await trio.serve_ssl_over_tcp(handle, port, tls, host="127.0.0.1")


class Protocol(asyncio.Protocol):
    """Answers whatever comes, and never waits for a slow reader."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._requests = Requests()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request in it."""
        self._requests.feed(data)
        while self._requests.complete:
            self._requests.complete -= 1
            test = self._answers.test
            self._transport.write(self._answers.whole())
            if test.pause:
                # A client waits for its answer before it asks again, and so would a task's sleep.
                self._transport.pause_reading()
                asyncio.get_running_loop().call_later(test.pause, self._resume)
            if not test.keep_alive:
                self._transport.close()
                return

    def _resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


async def serve_uvloop(answers: Answers, port: int, tls: ssl.SSLContext | None) -> None:
    """Serve on asyncio's protocols. If cancelled, it stops listening."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        partial(Protocol, answers), "127.0.0.1", port, ssl=tls, backlog=1024
    )
    await server.serve_forever()


def main(kind: str, number: str, port: str, certificate: str = "") -> None:
    """Serve one test until killed."""
    answers = Answers(TESTS[number])
    tls = None
    if certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    if kind == "uvloop":
        import uvloop

        uvloop.run(serve_uvloop(answers, int(port), tls))
    else:
        serve: Callable[..., Awaitable[None]] = serve_trionet if kind == "trionet" else serve_trio
        trio.run(serve, answers, int(port), tls)


if __name__ == "__main__":
    main(*sys.argv[1:])
