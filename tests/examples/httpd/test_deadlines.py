"""Time limits and drains of a connection, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

import trionet
from examples.httpd import Settings, open_application
from tests.examples.httpd.support import ResponseReader, get, receive_all, serving

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("raw", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\nX", b"GET / HTTP/1.1\r\n"])
async def test_a_head_that_does_not_end_gets_408_at_the_deadline(
    root: Path, raw: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memu") as site, await site.dial() as stream:
        await trio.sleep(3)
        await stream.send_all(raw)
        answers = ResponseReader(stream)
        answer = await answers.next()

        assert trio.current_time() == 13
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await answers.at_end()


async def test_cve_2018_12122_trickling_bytes_do_not_move_the_deadline(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memb") as site, await site.dial() as stream:
        start = trio.current_time()
        answers = ResponseReader(stream)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def trickle() -> None:
                for byte in get("/", "X: " + "x" * 100):
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(1.5)

            assert (await answers.next()).status == 408
            assert trio.current_time() == start + 10
            nursery.cancel_scope.cancel()


async def test_a_silent_client_is_closed_without_a_word(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memu") as site, await site.dial() as stream:
        assert await stream.receive_some() == b""
        assert trio.current_time() == 10


async def test_an_idle_connection_is_kept_for_its_time(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memu") as site, await site.dial() as stream:
        answers = ResponseReader(stream)
        for _ in range(3):
            await stream.send_all(get("/bytes/5"))
            await answers.next()
            await trio.sleep(74)
        assert await answers.at_end()

        assert trio.current_time() == 3 * 74 + 1


async def test_a_body_that_stalls_gets_408(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memu") as site, await site.dial() as stream:
        raw = get("/echo", "Content-Length: 10", method="POST") + b"0123456789"
        await stream.send_all(raw[:-5])
        await trio.sleep(20)
        await stream.send_all(raw[-5:-2])
        answer = await ResponseReader(stream).next()

        assert trio.current_time() == 50
        assert answer.status == 408


# Draining, exactly


async def test_a_drain_ends_idle_connections_at_once(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memu") as site, await site.dial() as stream:
        await stream.send_all(get("/bytes/5"))
        answers = ResponseReader(stream)
        await answers.next()
        await trio.testing.wait_all_tasks_blocked()

        site.server.shutdown()
        report = await site.server.wait_closed()

        assert trio.current_time() == 0
        assert (report.completed, report.cancelled, report.forced) == (1, 0, 0)
        assert await answers.at_end()


async def test_a_drain_finishes_the_answer_it_interrupts(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memu") as site, await site.dial() as stream:
        await stream.send_all(get("/bytes/1000000"))
        received = bytes(await stream.receive_some(1000))
        site.server.shutdown()
        while data := await stream.receive_some(100_000):
            received += data
            await trio.sleep(0.5)
        report = await site.server.wait_closed()

        body = received.partition(b"\r\n\r\n")[2]
        assert len(body) == 1_000_000
        assert (report.completed, report.cancelled, report.forced) == (1, 0, 0)
        assert trio.current_time() < 10


async def test_a_client_that_does_not_read_is_cut_after_grace_and_linger(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memu", grace=5) as site, await site.dial() as stream:
        await stream.send_all(get("/bytes/1000000"))
        await stream.receive_some(1000)
        site.server.shutdown()
        report = await site.server.wait_closed()

        assert trio.current_time() == 5
        assert (report.completed, report.cancelled, report.forced) == (0, 1, 0)


async def test_while_draining_the_last_answer_closes_and_health_turns_503(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root, network="memu") as site, await site.dial() as stream:
        answers = ResponseReader(stream)
        # A head that has begun is waited for.
        await stream.send_all(get("/healthz")[:-2])
        await trio.testing.wait_all_tasks_blocked()
        site.server.shutdown()
        await trio.sleep(2)
        await stream.send_all(b"\r\n" + get("/bytes/3"))

        health = await answers.next()
        last = await answers.next()
        assert (health.status, health.headers.get("connection")) == (503, None)
        assert (last.status, last.headers["connection"]) == (200, "close")
        assert await answers.at_end()
        report = await site.server.wait_closed()
        assert trio.current_time() == 2
        assert report.completed == 1


# The last word to a client that still sends


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (get("/echo", "Content-Length: 999999999", method="POST"), b"413"),
        (get("/a.txt", "Content-Length: 9999999", method="POST"), b"405"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000, b"431"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
async def test_an_early_answer_reaches_a_client_that_sends_before_it_reads(
    root: Path, head: bytes, status: bytes
) -> None:
    async with open_application(root) as application, trio.open_nursery() as nursery:
        listeners = await trionet.listen("tcp", "127.0.0.1:0")
        server = trionet.Server(application.handle)
        await nursery.start(server.serve, listeners)
        async with await trionet.dial("tcp", str(listeners[0].address)) as stream:
            await stream.send_all(head)
            # Long enough apart for the server to answer, and to be reset by what follows.
            for _ in range(20):
                await trio.sleep(0.01)
                await stream.send_all(bytes(200_000))

            assert (await receive_all(stream)).startswith(b"HTTP/1.1 " + status)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "raw",
    [b"GET / HTTP/1.1\r\nX: ", get("/echo", "Content-Length: 99999", method="POST")],
    ids=["head", "body"],
)
async def test_a_408_reaches_a_client_that_sends_on(root: Path, raw: bytes) -> None:
    settings = Settings(head_timeout=0.1, body_timeout=0.1)
    async with (
        open_application(root, settings=settings) as application,
        trio.open_nursery() as nursery,
    ):
        listeners = await trionet.listen("tcp", "127.0.0.1:0")
        await nursery.start(trionet.Server(application.handle).serve, listeners)
        async with await trionet.dial("tcp", str(listeners[0].address)) as stream:
            await stream.send_all(raw)
            await trio.sleep(0.3)
            for _ in range(10):
                await stream.send_all(b"x" * 1000)
                await trio.sleep(0.01)

            assert (await receive_all(stream)).startswith(b"HTTP/1.1 408 ")
        nursery.cancel_scope.cancel()


async def test_a_client_that_never_stops_sending_is_cut_in_the_end(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(b"nonsense\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.5)

        # Five seconds, then the server's own linger of one, and the next attempt to send.
        assert 5 <= trio.current_time() <= 7


async def test_a_client_that_says_no_more_is_not_waited_for_long(
    root: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(b"nonsense\r\n\r\n")
        await receive_all(stream)

        await trio.sleep_until(0.99)
        assert len(site.server.connections) == 1
        await trio.sleep_until(1.01)
        assert not site.server.connections
