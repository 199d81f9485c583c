"""Requests known by their bytes: no answer differs from the one they would get if they were not."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import pytest
import trio

import trionet
from examples.httpd import open_application
from examples.httpd.ready import ReadyAnswers
from tests.examples.httpd.support import get, receive_all

if TYPE_CHECKING:
    from pathlib import Path

# What comes as one receive, most often; much of it looks like what is known, and is not.
PIECES = (
    get("/a.txt"),
    get("/bytes/5"),
    get("/a.txt", "X: y"),
    get("/a.txt") + get("/a.txt"),
    get("/a.txt") + get("/bytes/5"),
    get("/a.txt") + get("/a.txt")[:20],
    get("/a.txt")[:20],
    get("/a.txt")[20:],
    b"GET /bytes/3 HTTP/1.1\r\nX: ",
    b"\r\n" + get("/a.txt"),
    b"\r\n",
    get("/a.txt", "Range: bytes=2-3"),
    get("/a.txt", "If-None-Match: *"),
    get("/a.txt", "Expect: 100-continue"),
    get("/a.txt", "Content-Length: 0"),
    get("/a.txt", method="HEAD"),
    get("/missing"),
    get("/large.bin"),
    get("/echo", f"Content-Length: {len(get('/a.txt'))}", method="POST"),
    get("/echo", "Transfer-Encoding: chunked", method="POST"),
    b"%x\r\n" % len(get("/a.txt")),
    b"\r\n0\r\n\r\n",
    b"X: y\r\n\r\n",
)
LAST = (
    get("/a.txt", "Connection: close"),
    get("/a.txt", "Connection: close") + get("/a.txt"),
    b"GET /a.txt HTTP/1.0\r\n\r\n",
    b"GET /a.txt HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET /a.txt HTTP/1.1\r\n\r\n",
    b"GET /a.txt HTTP/1.1\r\nHost: a b\r\n\r\n",
    get("/a.txt", "Host: b"),
)


def script(seed: int) -> list[bytes]:
    chance = random.Random(seed)
    # Of few kinds, so that what is known comes again behind each of them.
    few = (PIECES[0], *chance.sample(PIECES, 3))
    return [*chance.choices(few, k=12), chance.choice(LAST), chance.choice(LAST)]


async def play(root: Path, pieces: list[bytes]) -> tuple[bytes, str, int]:
    """Say the pieces, each once the server has answered what came before."""
    lines: list[str] = []
    async with (
        open_application(root, write_log=lines.append) as application,
        trio.open_nursery() as nursery,
    ):
        listeners = await trionet.listen("memb", "site")
        server = trionet.Server(application.handle)
        await nursery.start(server.serve, listeners)
        received = b""
        # Over again, for a connection that ends early: what is known is the server's.
        for _ in range(3):
            stream = await trionet.dial("memb", "site", local_address="client")
            async with trio.open_nursery() as reading:

                async def read(stream: trio.abc.Stream = stream) -> None:
                    nonlocal received
                    received += await receive_all(stream) + b"<end>"

                reading.start_soon(read)
                try:
                    for piece in pieces:
                        await stream.send_all(piece)
                        # A file is read in a thread, and its answer comes when it comes.
                        while not await quiet(server):
                            pass
                    await stream.send_eof()
                except trio.BrokenResourceError:
                    pass
        server.shutdown()
        known = len(application.ready._by_head)
    answers = re.sub(rb"date: [^\r]*\r\n", b"", received)
    return answers, re.sub(r"\[.*\]", "", "".join(lines)), known


async def quiet(server: trionet.Server) -> bool:
    """Whether nothing moves any more."""
    before = [(one.bytes_received, one.bytes_sent, one.state) for one in server.connections]
    await trio.testing.wait_all_tasks_blocked(0.002)
    return before == [(one.bytes_received, one.bytes_sent, one.state) for one in server.connections]


@pytest.mark.parametrize("seed", range(40))
async def test_a_known_request_gets_what_it_would_get_unknown(
    root: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = script(seed)
    answers, log, known = await play(root, pieces)
    monkeypatch.setattr(ReadyAnswers, "remember", lambda *_: None)
    plainly, log_then, unknown = await play(root, pieces)

    assert answers == plainly
    assert log == log_then
    assert unknown == 0
    if pieces[:2] == [PIECES[0]] * 2:
        assert known
