"""Looking ahead in a stream: exact sizes, delimiters, peeking, and what a cancel leaves."""

from __future__ import annotations

import contextlib
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import trionet
from tests.helpers import cancelled_at, connected, read_all

if TYPE_CHECKING:
    from trionet.abc import Stream


def buffered_pair(buffer_size: int = 65536) -> tuple[trionet.MemoryStream, trionet.BufferedStream]:
    near, far = trionet.memory_stream_pair(buffer_size)
    return near, trionet.BufferedStream(far)


async def test_it_passes_trios_conformance_check_for_half_closeable_streams() -> None:
    async def make() -> tuple[Any, Any]:
        near, far = trionet.memory_stream_pair(65536)
        return trionet.BufferedStream(near), trionet.BufferedStream(far)

    async def make_clogged() -> tuple[Any, Any]:
        near, far = trionet.memory_stream_pair()
        return trionet.BufferedStream(near), trionet.BufferedStream(far)

    await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_it_passes_trios_conformance_check_over_sockets() -> None:
    async def make() -> tuple[Any, Any]:
        client, server = await connected("tcp", "127.0.0.1:0")
        return trionet.BufferedStream(client), trionet.BufferedStream(server)

    await trio.testing.check_half_closeable_stream(make, None)


async def test_it_can_half_close_only_where_its_transport_can() -> None:
    near, far = trionet.memory_stream_pair()
    foreign = trio.SSLStream(trio.testing.memory_stream_pair()[0], ssl.create_default_context())
    one_way: Stream = trionet.BufferedStream(near)

    assert isinstance(trionet.BufferedStream(far), trio.abc.HalfCloseableStream)
    assert isinstance(one_way, trionet.HalfCloseableBufferedStream)
    assert not isinstance(trionet.BufferedStream(foreign), trio.abc.HalfCloseableStream)
    assert isinstance(trionet.BufferedStream(foreign), trionet.BufferedStream)


@pytest.mark.parametrize("cut", range(1, 12))
async def test_receive_exactly_joins_and_splits_what_comes(cut: int) -> None:
    near, stream = buffered_pair()
    message = b"hello world!"
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await stream.receive_exactly(5))
        got.append(await stream.receive_exactly(7))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await near.send_all(message[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await near.send_all(message[cut:])

    assert got == [b"hello", b" world!"]
    assert stream.buffered == b""


async def test_receive_exactly_nothing_is_a_checkpoint_that_returns_nothing() -> None:
    _, stream = buffered_pair()

    with trio.testing.assert_checkpoints():
        assert await stream.receive_exactly(0) == b""


async def test_end_of_file_in_the_middle_is_broken_and_keeps_what_came() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"abc")
    await near.aclose()

    with pytest.raises(trio.BrokenResourceError, match="after 3 of 8 bytes"):
        await stream.receive_exactly(8)

    assert stream.buffered == b"abc"
    assert await stream.receive_some() == b"abc"
    assert await stream.receive_some() == b""


async def test_end_of_file_without_a_delimiter_is_broken_and_keeps_what_came() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"no end")
    await near.send_eof()

    with pytest.raises(trio.BrokenResourceError, match=r"after 6 bytes without b'\\n'"):
        await stream.receive_until(b"\n", 100)

    assert await stream.receive_exactly(6) == b"no end"


@pytest.mark.parametrize("cut", range(1, 15))
async def test_receive_until_finds_a_delimiter_cut_anywhere(cut: int) -> None:
    near, stream = buffered_pair()
    message = b"first\r\nsecond\r\n"
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await stream.receive_until(b"\r\n", 20))
        got.append(await stream.receive_until(b"\r\n", 20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await near.send_all(message[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await near.send_all(message[cut:])

    assert got == [b"first\r\n", b"second\r\n"]


async def test_a_delimiter_that_ends_exactly_at_the_limit_is_found() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"12345\r\nrest")

    assert await stream.receive_until(b"\r\n", 7) == b"12345\r\n"
    assert stream.buffered == b"rest"


@pytest.mark.parametrize("sent", [b"123456\r\n", b"1234567\r\n", b"1234567890123456"])
async def test_a_delimiter_beyond_the_limit_is_too_long_and_keeps_what_came(sent: bytes) -> None:
    near, stream = buffered_pair()
    await near.send_all(sent)

    with pytest.raises(trionet.TooLongError, match=r"no b'\\r\\n' within 7 bytes"):
        await stream.receive_until(b"\r\n", 7)

    assert stream.buffered == sent


async def test_a_silent_flood_is_refused_at_the_limit_and_not_buffered_for_ever() -> None:
    near, stream = buffered_pair()

    async def flood() -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await near.send_all(bytes(1000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        with pytest.raises(trionet.TooLongError):
            await stream.receive_until(b"\n", 10_000)
        # One receive more than the limit at the most.
        assert len(stream.buffered) <= 10_000 + 65536
        await stream.aclose()


async def test_one_huge_piece_in_memory_is_not_all_buffered() -> None:
    near, far = trionet.memory_stream_pair()
    stream = trionet.BufferedStream(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(1_000_000))

        with pytest.raises(trionet.TooLongError):
            await stream.receive_until(b"\n", 100)

        assert len(stream.buffered) <= 65536
        nursery.cancel_scope.cancel()


async def test_a_changed_delimiter_or_limit_searches_from_the_front_again() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"a;b\n" + bytes(20))

    with pytest.raises(trionet.TooLongError):
        await stream.receive_until(b"|", 10)
    assert await stream.receive_until(b";", 10) == b"a;"
    assert await stream.receive_until(b"\n", 2) == b"b\n"


async def test_searching_what_trickles_in_looks_at_every_byte_about_once() -> None:
    near, stream = buffered_pair()
    looked_at = 0

    class Counting(bytearray):
        def find(self, sub: Any, start: Any = 0, end: Any = None, /) -> int:
            nonlocal looked_at
            looked_at += min(len(self), end) - start
            return super().find(sub, start, end)

    stream._buffer = Counting()
    size = 2000
    for _ in range(size):
        await near.send_all(b"x")
        with trio.move_on_after(0) as scope:
            await stream.receive_until(b"\r\n", 10_000)
        assert scope.cancelled_caught
        # The cancel came before the byte was received; this brings it into the buffer.
        await stream.peek(len(stream.buffered) + 1)
    await near.send_all(b"\r\n")

    assert await stream.receive_until(b"\r\n", 10_000) == b"x" * size + b"\r\n"
    assert looked_at < 5 * size


async def test_peek_shows_without_taking_and_tells_the_end() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"ab")

    assert await stream.peek() == b"ab"
    assert await stream.peek() == b"ab"
    await near.send_all(b"cd")
    await near.send_eof()
    assert await stream.peek(3) == b"abcd"
    assert await stream.peek(100) == b"abcd"
    assert await stream.receive_some(3) == b"abc"
    assert await stream.receive_some() == b"d"
    assert await stream.peek() == b""


async def test_receive_nowait_takes_what_is_buffered_and_nothing_else() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"abcd")

    with pytest.raises(trio.WouldBlock):
        stream.receive_nowait()
    await stream.peek()

    assert stream.receive_nowait(1) == b"a"
    assert stream.receive_nowait() == b"bcd"


async def test_buffered_bytes_count_as_readable_and_not_yet_as_received() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"abcd")
    await stream.peek()
    await near.send_all(b"ef")

    assert stream.is_readable()
    assert stream.unread_size() == 6
    assert stream.bytes_received == 0
    assert await stream.receive_exactly(3) == b"abc"
    assert stream.bytes_received == 3
    assert not stream.peer_closed()


async def test_a_socket_is_shown_only_while_nothing_is_buffered() -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    stream = trionet.BufferedStream(server)
    async with client, stream:
        assert stream.transport_socket is server.transport_socket

        await client.send_all(b"abc")
        await stream.peek()
        assert stream.transport_socket is None

        await stream.receive_exactly(3)
        assert stream.transport_socket is server.transport_socket


@pytest.mark.parametrize(
    "operation",
    [
        lambda stream: stream.receive_exactly(6),
        lambda stream: stream.receive_until(b"f", 10),
        lambda stream: stream.peek(6),
        lambda stream: stream.receive_some(),
    ],
    ids=["exactly", "until", "peek", "some"],
)
async def test_a_cancel_at_any_step_loses_no_byte(operation: Any) -> None:
    for step in range(1, 8):
        near, stream = buffered_pair(1)
        taken = b""

        async def send(near: trionet.MemoryStream = near) -> None:
            await near.send_all(b"abcdef")
            await near.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            attempt = await cancelled_at(step, partial(operation, stream))
            if attempt.finished and stream.bytes_received:
                taken = attempt.result
            assert taken + await read_all(stream) == b"abcdef"


@pytest.mark.parametrize(
    "second",
    [
        lambda stream: stream.receive_exactly(1),
        lambda stream: stream.receive_until(b"x", 3),
        lambda stream: stream.peek(),
        lambda stream: stream.receive_some(),
    ],
)
@pytest.mark.parametrize("ahead", [b"", b"ab"])
async def test_two_receivers_at_once_are_told_so(second: Any, ahead: bytes) -> None:
    near, stream = buffered_pair()
    if ahead:
        await near.send_all(ahead)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_exactly, 3)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await second(stream)
        with pytest.raises(trio.BusyResourceError):
            stream.receive_nowait()
        await near.send_all(b"xyz")


async def test_after_closing_every_call_says_closed() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"abc")
    await stream.peek()

    await stream.aclose()

    assert stream.closed
    assert stream.buffered == b""
    for call in (stream.receive_some, stream.peek, lambda: stream.receive_exactly(1)):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        stream.receive_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_until(b"x", 2)


async def test_an_interrupted_wait_keeps_what_came() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"ab")

    async def receive() -> None:
        with pytest.raises(trionet.abc.ReceiveInterrupted):
            await stream.receive_exactly(3)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        stream.interrupt_receive()
    stream.resume_receive()
    await near.send_all(b"c")

    assert await stream.receive_exactly(3) == b"abc"


async def test_bad_arguments_are_named_before_anything_is_received() -> None:
    near, stream = buffered_pair()
    await near.send_all(b"abc")
    await stream.peek()

    with pytest.raises(ValueError, match="size must be at least 0, got -1"):
        await stream.receive_exactly(-1)
    with pytest.raises(ValueError, match="delimiter must not be empty"):
        await stream.receive_until(b"", 5)
    with pytest.raises(ValueError, match="max_bytes must be at least 2, got 1"):
        await stream.receive_until(b"\r\n", 1)
    with pytest.raises(ValueError, match="max_bytes must be at least 1, got 0"):
        await stream.receive_some(0)
    with pytest.raises(TypeError):
        await stream.receive_exactly(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await stream.receive_until("\n", 5)  # type: ignore[arg-type]
    assert stream.buffered == b"abc"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=12), max_size=12),
    st.lists(st.tuples(st.sampled_from(["some", "exactly", "until"]), st.integers(1, 9))),
)
def test_any_mix_of_calls_gives_back_the_bytes_in_order(
    pieces: list[bytes], calls: list[tuple[str, int]]
) -> None:
    async def main() -> None:
        near, stream = buffered_pair(7)
        got = b""

        async def send() -> None:
            for piece in pieces:
                await near.send_all(piece)
            await near.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for kind, size in calls:
                try:
                    if kind == "some":
                        got += await stream.receive_some(size)
                    elif kind == "exactly":
                        got += await stream.receive_exactly(size)
                    else:
                        got += await stream.receive_until(b"\0", size)
                except trio.BrokenResourceError:
                    continue
            got += await read_all(stream)
        assert got == b"".join(pieces)

    trio.run(main)
