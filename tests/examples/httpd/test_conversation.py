"""What a connection does, request by request."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from examples.httpd import Settings
from tests.examples.httpd.support import ResponseReader, get, receive_all, serving

if TYPE_CHECKING:
    from pathlib import Path


def post(body: bytes, *fields: str, target: str = "/echo") -> bytes:
    return get(target, f"Content-Length: {len(body)}", *fields, method="POST") + body


def chunked(*chunks: bytes) -> bytes:
    head = get("/echo", "Transfer-Encoding: chunked", method="POST")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (*chunks, b""))


async def test_pipelined_requests_are_answered_in_order_and_in_one_send(root: Path) -> None:
    async with serving(root) as site, await site.dial() as stream:
        await site.ask(get("/a.txt"))
        await stream.send_all(
            b"".join(get(f"/bytes/{n}") for n in range(20)) + post(b"echo") + get("/a.txt")
        )
        answers = ResponseReader(stream)
        got = [await answers.next() for _ in range(22)]

    assert [len(one.body) for one in got] == [*range(20), 4, 10]


async def test_an_answer_kept_ready_says_that_it_is_the_last(root: Path) -> None:
    async with serving(root) as site:
        await site.ask(get("/bytes/5"))
        async with await site.dial() as stream:
            last = get("/bytes/5", "Connection: close")
            await stream.send_all(get("/bytes/5") + last + get("/bytes/5"))
            lasting, closing, *others = (await receive_all(stream)).split(b"HTTP/1.1 200 OK")[1:]

    assert b"connection: close" not in lasting
    assert b"connection: close" in closing
    assert others == []


async def test_a_request_may_come_byte_by_byte(root: Path) -> None:
    async with serving(root) as site, await site.dial() as stream:
        answers = ResponseReader(stream)
        for _ in range(2):
            for byte in post(b"abc"):
                await stream.send_all(bytes([byte]))

            assert (await answers.next()).body == b"abc"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (get("relative"), 400),
        (get("*"), 400),
        (get("ftp://site/"), 400),
        (get("/", method="BREW"), 501),
        (get("/", method="DELETE"), 501),
        (get("/", method="TRACE"), 501),
        (get("site:80", method="CONNECT"), 501),
        (get("/", "Content-Length: 0", method="POST"), 405),
        (get("/echo"), 405),
        (get("/healthz", "Content-Length: 0", method="PUT"), 405),
        (get("/", "Expect: miracles"), 417),
        (get("/", "Transfer-Encoding: gzip, chunked", method="POST") + b"0\r\n\r\n", 501),
        (get("/", "Transfer-Encoding: gzip", method="POST"), 400),
        (b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (get("/", "X: " + "x" * 65536), 431),
        (get("/" + "x" * 65536), 431),
        (get("/", *["X: y"] * 200), 431),
        (get("/echo", "Content-Length: 67108865", method="POST"), 413),
        (get("/missing"), 404),
        (get("/bytes/"), 404),
        (get("/bytes/-1"), 404),
        (get("/bytes/99999999999999"), 404),
        (get("/bytes/0"), 200),
        (get("/healthz"), 200),
        (get("/", method="OPTIONS"), 204),
        (get("*", method="OPTIONS"), 204),
    ],
)
async def test_statuses(root: Path, raw: bytes, status: int) -> None:
    async with serving(root) as site:
        answer = await site.ask(raw)

        assert answer.status == status
        # Whatever it was, the next client is served.
        assert (await site.ask(get("/healthz"))).status == 200


async def test_a_405_tells_what_is_allowed(root: Path) -> None:
    async with serving(root) as site:
        reading = await site.ask(post(b"", target="/"))
        writing = await site.ask(get("/echo"))
        options = await site.ask(get("/echo", method="OPTIONS"))

    assert reading.headers["allow"] == "GET, HEAD, OPTIONS"
    assert writing.headers["allow"] == "OPTIONS, POST, PUT"
    assert options.headers["allow"] == "OPTIONS, POST, PUT"


async def test_after_a_malformed_request_nothing_is_read(root: Path) -> None:
    raw = get("/a.txt") + b"GET / HTTP/1.1\r\nno colon\r\n\r\n" + get("/bytes/7")
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(raw)
        answers = ResponseReader(stream)

        assert (await answers.next()).status == 200
        refused = await answers.next()
        assert (refused.status, refused.headers["connection"]) == (400, "close")
        assert await answers.at_end()


async def test_a_body_cannot_smuggle_a_request(root: Path) -> None:
    inner = get("/bytes/7")
    both = (
        get("/echo", f"Content-Length: {len(inner)}", "Transfer-Encoding: chunked", method="POST")
        + b"0\r\n\r\n"
        + inner
    )
    upgrade = post(inner, "Connection: Upgrade", "Upgrade: h2c")
    async with serving(root) as site:
        for raw, status in ((both, b"400"), (upgrade, b"501")):
            received = await site.ask_all(raw)

            assert received.startswith(b"HTTP/1.1 " + status)
            assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("wish", ["close", "keep-alive", None])
async def test_the_connection_lasts_as_the_client_wishes(
    root: Path, version: str, wish: str | None
) -> None:
    field = "" if wish is None else f"Connection: {wish}\r\n"
    lasts = wish == "keep-alive" or (version == "1.1" and wish is None)
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(f"GET / HTTP/{version}\r\nHost: a\r\n{field}\r\n".encode())
        answers = ResponseReader(stream)
        answer = await answers.next()

        assert answer.status == 200
        wanted = None if version == "1.1" else "keep-alive"
        assert answer.headers.get("connection") == (wanted if lasts else "close")
        if lasts:
            await stream.send_all(get("/a.txt"))
            assert (await answers.next()).body == b"0123456789"
        else:
            assert await answers.at_end()


async def test_http_1_0_needs_no_host(root: Path) -> None:
    async with serving(root) as site:
        assert (await site.ask(b"GET /a.txt HTTP/1.0\r\n\r\n")).body == b"0123456789"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1_000_000])
async def test_bodies_are_echoed(root: Path, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    pieces = [body[i : i + 5000] for i in range(0, size, 5000)]
    for raw in (post(body), chunked(*pieces)):
        async with (
            serving(root) as site,
            await site.dial() as stream,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(stream.send_all, raw + get("/a.txt"))
            answers = ResponseReader(stream)

            assert (await answers.next()).body == body
            assert (await answers.next()).body == b"0123456789"


async def test_an_echo_stops_reading_from_a_client_that_does_not_read(root: Path) -> None:
    head = get("/echo", "Content-Length: 50000000", method="POST")
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(head)
        with trio.move_on_after(0.2) as scope:
            while True:
                await stream.send_all(bytes(65536))

        assert scope.cancelled_caught
        # What both directions' buffers hold, what the echo collects first, and one receive.
        assert stream.bytes_sent < 8 * 65536
        assert site.server.connections[0].state == "active"


async def test_a_client_that_asks_first_is_told_to_continue(root: Path) -> None:
    async with serving(root) as site, await site.dial() as stream:
        answers = ResponseReader(stream)
        for _ in range(2):
            whole = post(b"abc", "Expect: 100-continue")
            await stream.send_all(whole[:-3])
            assert (await answers.next()).status == 100
            await stream.send_all(whole[-3:])
            assert (await answers.next()).body == b"abc"


async def test_a_body_that_came_already_needs_no_100(root: Path) -> None:
    async with serving(root) as site:
        answer = await site.ask(post(b"abc", "Expect: 100-Continue"))

    assert (answer.status, answer.body) == (200, b"abc")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (get("/", "Content-Length: 3", "Expect: 100-continue", method="POST"), 405),
        (get("/echo", "Content-Length: 999999999", "Expect: 100-continue", method="PUT"), 413),
    ],
)
async def test_a_client_that_asks_first_may_be_told_no(
    root: Path, head: bytes, status: int
) -> None:
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(head)
        answers = ResponseReader(stream)
        answer = await answers.next()

        # Whether the body comes now cannot be known.
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert await answers.at_end()


async def test_a_small_unwanted_body_is_dropped_and_a_large_one_ends_the_connection(
    root: Path,
) -> None:
    async with serving(root) as site, await site.dial() as stream:
        answers = ResponseReader(stream)
        small = post(bytes(1000), target="/a.txt")
        await stream.send_all(small[:-500])
        assert (await answers.next()).status == 405
        await stream.send_all(small[-500:] + get("/a.txt"))
        assert (await answers.next()).body == b"0123456789"

        await stream.send_all(get("/a.txt", "Content-Length: 65537", method="POST"))
        answer = await answers.next()
        assert (answer.status, answer.headers["connection"]) == (405, "close")
        assert await answers.at_end()


async def test_a_body_in_chunks_has_the_same_limit(root: Path) -> None:
    settings = Settings(max_body_size=1000)
    async with serving(root, settings=settings) as site:
        fits = await site.ask(chunked(bytes(500), bytes(500)))
        too_large = await site.ask(chunked(bytes(500), bytes(501)))
        announced = await site.ask(post(bytes(1001)))

    assert fits.status == 200
    assert too_large.status == 413
    assert announced.status == 413


async def test_an_echo_that_grows_too_large_is_cut(root: Path) -> None:
    settings = Settings(max_body_size=300_000)
    async with serving(root, settings=settings) as site, await site.dial() as stream:

        async def send() -> None:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(chunked(*[bytes(10_000)] * 60))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            received = await receive_all(stream)

    assert received.startswith(b"HTTP/1.1 200 ")
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("bad", [b"zz\r\nabc\r\n", b"3\r\nabcd\r\n", b"-1\r\n\r\n"])
async def test_a_malformed_chunk_is_refused(root: Path, bad: bytes) -> None:
    raw = get("/echo", "Transfer-Encoding: chunked", method="POST") + b"2\r\nok\r\n" + bad
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(raw)
        answers = ResponseReader(stream)

        assert (await answers.next()).status == 400
        assert await answers.at_end()


async def test_cve_2023_39326_endless_chunk_extensions_are_refused(root: Path) -> None:
    raw = get("/echo", "Transfer-Encoding: chunked", method="POST")
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(raw + b"1;")
        for _ in range(10):
            await stream.send_all(b"x" * 10_000)

        assert (await ResponseReader(stream).next()).status == 400


async def test_a_long_body_earns_no_endless_framing_afterwards(root: Path) -> None:
    async with serving(root) as site, await site.dial() as stream, trio.open_nursery() as nursery:
        await stream.send_all(get("/echo", "Transfer-Encoding: chunked", method="POST"))
        nursery.start_soon(receive_all, stream)
        for _ in range(16):
            await stream.send_all(b"10000\r\n" + bytes(65536) + b"\r\n")
        before = stream.bytes_sent

        with pytest.raises(trio.BrokenResourceError):
            for _ in range(100):
                await stream.send_all(b"1;" + b"x" * 65534)

        # What is allowed, and what may be under way in the buffers.
        assert stream.bytes_sent - before < 6 * 65536


async def test_what_is_pipelined_behind_a_body_is_not_its_framing(root: Path) -> None:
    pipelined = get("/bytes/1") * 2000
    async with (
        serving(root) as site,
        await site.dial() as stream,
        trio.open_nursery() as nursery,
    ):
        await stream.send_all(get("/echo", "Transfer-Encoding: chunked", method="POST"))
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(b"1;" + b"x" * 5000)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(stream.send_all, b"\r\nx\r\n0\r\n\r\n" + pipelined)
        answers = ResponseReader(stream)

        assert (await answers.next()).body == b"x"
        for _ in range(2000):
            assert (await answers.next()).status == 200


async def test_a_client_that_leaves_within_a_body_ends_only_its_connection(root: Path) -> None:
    async with serving(root) as site:
        async with await site.dial() as stream:
            await stream.send_all(post(b"abc")[:-1])
            await trio.testing.wait_all_tasks_blocked()
        while site.server.statistics().active:
            await trio.testing.wait_all_tasks_blocked()

        assert (await site.ask(get("/healthz"))).status == 200
