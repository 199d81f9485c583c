"""Reading requests."""

from __future__ import annotations

import pytest

from examples.httpd.requests import RequestParser
from examples.httpd.settings import Settings

TWO = (
    b"POST /echo?x=1 HTTP/1.1\r\nHost: site\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    b"GET /next HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n"
)


def parse(*pieces: bytes, settings: Settings | None = None) -> RequestParser:
    parser = RequestParser(settings or Settings())
    for piece in pieces:
        if parser.refusal is None:
            parser.feed(piece)
    return parser


@pytest.mark.parametrize("cut", range(len(TWO)))
def test_requests_are_the_same_wherever_the_bytes_are_cut(cut: int) -> None:
    parser = parse(TWO[:cut], TWO[cut:])

    first, second = parser.requests
    assert parser.refusal is None
    assert not parser.in_head
    assert (first.method, first.target, first.version) == (b"POST", b"/echo?x=1", "1.1")
    assert (b"".join(first.body), first.complete, first.keep_alive) == (b"abcde", True, True)
    # A trailer is not a header field.
    assert first.headers == {b"host": b"site", b"transfer-encoding": b"chunked"}
    assert (second.target, second.keep_alive, second.plain) == (b"/next", False, True)


def test_a_plain_get_is_recognised() -> None:
    plain = b"GET / HTTP/1.1\r\nHost: site\r\nAccept: */*\r\n\r\n"
    ranged = b"GET / HTTP/1.1\r\nHost: site\r\nRange: bytes=0-1\r\n\r\n"

    parser = parse(plain + ranged + plain.replace(b"GET", b"HEAD") + plain.replace(b"1.1", b"1.0"))

    assert [one.plain for one in parser.requests] == [True, False, False, False]


def test_fields_that_come_again_are_joined() -> None:
    parser = parse(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: x\r\nACCEPT: y\r\n\r\n")

    assert parser.requests[0].headers[b"accept"] == b"x, y"


@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.9\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_malformed_requests_are_refused(head: bytes) -> None:
    parser = parse(head)

    assert parser.refusal is not None
    assert parser.refusal.status == 400
    assert not parser.requests


@pytest.mark.parametrize("host", ["a, b", "a b", "a/b", "a@b", "[::1", "a:b", "\x80"])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    parser = parse(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))

    refusal = parser.refusal or parser.requests[0].refusal
    assert refusal is not None
    assert refusal.status == 400


def test_two_hosts_are_refused() -> None:
    parser = parse(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")

    assert parser.requests[0].refusal is not None
    assert parser.requests[0].refusal.status == 400


def test_an_unknown_method_is_told_from_what_is_no_http() -> None:
    unknown, tls = parse(b"BREW /pot HTTP/1.1\r\n\r\n"), parse(b"\x16\x03\x01")

    assert unknown.refusal is not None
    assert unknown.refusal.status == 501
    assert tls.refusal is not None
    assert tls.refusal.status == 400


@pytest.mark.parametrize("piece_size", [1000, 65536, 70000])
@pytest.mark.parametrize(("extra", "refused"), [(0, False), (1, True), (50000, True)])
def test_a_head_of_the_limit_passes_and_one_byte_more_does_not(
    piece_size: int, extra: int, refused: bool
) -> None:
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    size = 65536 - len(start) - len(b"\r\n\r\n") + extra
    head = start + b"x" * size + b"\r\n\r\n"

    parser = parse(*(head[i : i + piece_size] for i in range(0, len(head), piece_size)))

    refusal = parser.refusal or (parser.requests[0].refusal if parser.requests else None)
    assert (refusal is not None and refusal.status == 431) is refused


def test_a_head_without_end_is_refused_before_it_fills_the_memory() -> None:
    parser = parse(b"GET / HTTP/1.1\r\nX: ", *[b"x" * 1000 for _ in range(70)])

    assert parser.refusal is not None
    assert parser.refusal.status == 431


CHUNKED = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(("size", "refused"), [(1000, False), (1001, True)])
def test_trailer_fields_are_limited_as_the_head_is_however_long_the_body(
    size: int, refused: bool
) -> None:
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    trailer = b"X: " + b"x" * (size - 3)

    parser = parse(
        CHUNKED,
        *[chunk] * 8,
        b"0\r\n",
        *(trailer[i : i + 7] for i in range(0, size, 7)),
        settings=Settings(max_head_size=1000),
    )

    assert (parser.refusal is not None and parser.refusal.status == 431) is refused


def test_what_surrounds_a_trailer_does_not_count_for_it() -> None:
    message = CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\n\r\n"
    end = message[-2:]

    # Each feed holds the end of one trailer, a lot else, and the beginning of the next.
    parser = parse(
        message[:-2],
        *[end + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 50 + message[:-2]] * 20,
        settings=Settings(max_head_size=500),
    )

    assert parser.refusal is None
    assert len(parser.requests) == 21 + 50 * 20


def test_chunks_do_not_count_as_a_trailer() -> None:
    # Every feed ends behind a chunk's header, where only what comes tells it from the last.
    parser = parse(
        CHUNKED + b"3\r\n", *[b"abc\r\n3\r\n"] * 500, settings=Settings(max_head_size=500)
    )

    assert parser.refusal is None
    assert parser.requests[0].body_size == 1500


def test_too_many_fields_are_refused_repeated_or_not() -> None:
    different = b"".join(b"X%d: a\r\n" % i for i in range(128))
    same = b"X: a\r\n" * 128

    for fields in (different, same):
        parser = parse(b"GET / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n")
        assert parser.requests[0].refusal is not None
        assert parser.requests[0].refusal.status == 431


def test_an_upgrade_is_declined_and_the_next_request_is_read() -> None:
    one = b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

    # So many that declining them one inside the other would go too deep.
    parser = parse(one * 1000)

    assert parser.refusal is None
    assert len(parser.requests) == 1000


def test_the_body_of_an_upgrade_is_not_read_as_a_request() -> None:
    parser = parse(
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Content-Length: 45\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    )

    assert [one.target for one in parser.requests] == [b"/"]
    assert parser.requests[0].refusal is not None
    assert parser.requests[0].refusal.status == 501
