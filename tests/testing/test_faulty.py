"""`FaultyStream`: a link over a stream that knows nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import check_half_closeable_stream, check_two_way_stream, wait_all_tasks_blocked

import trionet
from tests.conftest import Certificates
from tests.helpers import cancelled_at, connected, read_all
from tests.testing.broken import SoundListener
from trionet import memory_stream_pair
from trionet.testing import FaultyStream, HalfCloseableFaultyStream, Link, check_listener

LINKS = {
    "null": Link(),
    "latency": Link(latency=0.3),
    "jitter": Link(latency=0.1, jitter=0.5),
    "bandwidth": Link(bandwidth=1e6),
    "pieces": Link(latency=0.01, segment_size=100),
    "loss": Link(latency=0.02, loss=0.3),
}

links = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)


async def over_memory(link: Link, size: int = 65536) -> tuple[HalfCloseableFaultyStream, Any]:
    near, far = memory_stream_pair(size)
    return HalfCloseableFaultyStream(near, link), far


@links
@pytest.mark.parametrize("size", [0, 65536], ids=["memu", "memb"])
async def test_under_every_link_trios_contract_is_kept(
    link: Link, size: int, autojump_clock: Any
) -> None:
    async def make() -> tuple[Any, Any]:
        return await over_memory(link, size)

    async def both() -> tuple[Any, Any]:
        near, far = memory_stream_pair(size)
        return HalfCloseableFaultyStream(near, link), HalfCloseableFaultyStream(far, link)

    async def clogged() -> tuple[Any, Any]:
        near, far = memory_stream_pair(0)
        pair = [HalfCloseableFaultyStream(one, link, buffer_size=64) for one in (near, far)]
        for one in pair:
            # Far more than a round trip takes, retransmissions included.
            while True:
                with trio.move_on_after(1000) as scope:
                    await one.send_all(bytes(16))
                if scope.cancelled_caught:
                    break
        return pair[0], pair[1]

    await check_half_closeable_stream(make, None)
    # What is full stays full only where no word of room is on its way again and again.
    await check_half_closeable_stream(both, None if link.loss else clogged)


async def test_over_real_sockets_in_real_time_trios_contract_is_kept() -> None:
    async def make() -> tuple[Any, Any]:
        near, far = await connected("tcp", "127.0.0.1:0")
        return HalfCloseableFaultyStream(near, Link(latency=0.001, jitter=0.001)), far

    await check_half_closeable_stream(make, None)


async def test_over_tls_trios_contract_is_kept(certificates: Certificates) -> None:
    async def make() -> tuple[Any, Any]:
        near, far = await connected("tcp", "127.0.0.1:0")
        client = trionet.TLSStream(near, certificates.client, server_hostname="localhost")
        server = trionet.TLSStream(far, certificates.server, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            nursery.start_soon(server.do_handshake)
        return FaultyStream(client, Link(latency=0.001)), server

    await check_two_way_stream(make, None)


async def test_tls_runs_over_a_faulty_stream(
    certificates: Certificates, autojump_clock: Any
) -> None:
    near, far = memory_stream_pair(65536)
    faulty = HalfCloseableFaultyStream(near, Link(latency=0.5))
    client = trionet.TLSStream(faulty, certificates.client, server_hostname="localhost")
    server = trionet.TLSStream(far, certificates.server, server_side=True)
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, b"x" * 100_000)
        got = 0
        while got < 100_000:
            got += len(await client.receive_some())
    # ClientHello, ServerHello, Finished, then data: TLS 1.3 has it flow after one round trip and
    # a half.
    assert trio.current_time() >= 1.5


@pytest.mark.parametrize("network", ["memu", "memb"])
async def test_its_facts_are_a_trionet_streams(network: str, autojump_clock: Any) -> None:
    class Far(SoundListener):
        stream = lambda self, inner: FaultyStream(inner, Link(latency=0.2))  # type: ignore[assignment] # noqa: E731

    async def make() -> tuple[Any, Any]:
        net = trionet.Network()
        (inner,) = await net.listen("memb" if network == "memb" else "memu", "site")
        return Far(inner), lambda: net.dial(network, "site")

    await check_listener(make)


async def test_bytes_take_the_latency_each_way(autojump_clock: Any) -> None:
    near, far = await over_memory(Link(latency=0.25))

    await near.send_all(b"ping")
    assert trio.current_time() == 0
    assert await far.receive_some() == b"ping"
    assert trio.current_time() == 0.25

    await far.send_all(b"pong")
    assert await near.receive_some() == b"pong"
    assert trio.current_time() == 0.5
    assert (near.bytes_sent, near.bytes_received) == (4, 4)


async def test_bytes_come_as_slowly_as_the_bandwidth_lets_them(autojump_clock: Any) -> None:
    near, far = await over_memory(Link(bandwidth=1000, segment_size=500))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, bytes(10_000))
        times = []
        got = 0
        while got < 10_000:
            got += len(await far.receive_some())
            times.append(trio.current_time())
    assert times == [pytest.approx(0.5 * (n + 1)) for n in range(20)]


@pytest.mark.parametrize("link", [LINKS["loss"], LINKS["jitter"]], ids=["loss", "jitter"])
async def test_nothing_is_missing_and_nothing_out_of_order(link: Link, autojump_clock: Any) -> None:
    data = bytes(range(256)) * 2000
    near, far = await over_memory(link)

    async def send(stream: Any) -> None:
        for start in range(0, len(data), 7777):
            await stream.send_all(data[start : start + 7777])
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, near)
        nursery.start_soon(send, far)

        async def receive(stream: Any) -> None:
            assert await read_all(stream) == data

        nursery.start_soon(receive, near)
        nursery.start_soon(receive, far)


async def test_what_is_lost_comes_when_tcp_would_send_it_again(autojump_clock: Any) -> None:
    near, far = await over_memory(Link(loss=1.0))
    await near.send_all(b"again")
    await trio.sleep(1)
    near.link = Link()
    assert await far.receive_some() == b"again"
    # 0.2 s after the first time, then 0.4 and 0.8 more.
    assert trio.current_time() == pytest.approx(1.4)


async def test_what_was_sent_before_the_close_is_delivered(autojump_clock: Any) -> None:
    near, far = await over_memory(Link(latency=3, bandwidth=1000))
    await near.send_all(bytes(2000))
    await near.aclose()
    assert trio.current_time() == 0
    assert near.closed

    assert await read_all(far) == bytes(2000)
    assert trio.current_time() == 5
    await wait_all_tasks_blocked()
    assert far.peer_closed()
    with pytest.raises(trio.BrokenResourceError):
        await far.send_all(b"x")


async def test_bytes_for_a_closed_end_reset_the_connection(autojump_clock: Any) -> None:
    near, far = await over_memory(Link(latency=1), size=0)
    await near.send_all(b"not read yet")
    await near.aclose()
    # The close has arrived, and what was sent before it waits for a reader.
    await trio.sleep(2)
    await far.send_all(b"for nobody")
    await wait_all_tasks_blocked()
    with pytest.raises(trio.BrokenResourceError):
        await far.receive_some()
    assert trio.current_time() == 2


async def test_end_of_file_takes_its_way_and_leaves_the_other_way_open(
    autojump_clock: Any,
) -> None:
    near, far = await over_memory(Link(latency=1))
    await near.send_eof()
    assert await far.receive_some() == b""
    assert trio.current_time() == 1
    await far.send_all(b"still")
    assert await near.receive_some() == b"still"
    await far.send_eof()
    assert await near.receive_some() == b""
    assert trio.current_time() == 3


async def test_ended_both_ways_it_still_hands_on_all_of_it(autojump_clock: Any) -> None:
    """Both ends of file have crossed the link before the transport has taken the bytes."""
    near, far = await over_memory(Link(), size=0)
    await far.send_eof()
    await near.send_all(bytes(100_000))
    await near.send_eof()
    await trio.sleep(10)
    assert await read_all(far) == bytes(100_000)


async def test_a_reset_breaks_both_ends_and_leaves_what_had_arrived(autojump_clock: Any) -> None:
    near, far = await over_memory(Link(latency=1))
    await far.send_all(b"arrived")
    await near.send_all(b"lost")
    await trio.sleep(1.5)
    assert await far.receive_some() == b"lost"

    near.reset()
    assert near.closed
    with pytest.raises(trio.BrokenResourceError):
        await near.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await far.receive_some()
    assert trio.current_time() == 2.5


async def test_a_reset_resets_a_socket_below() -> None:
    near, far = await connected("tcp", "127.0.0.1:0")
    async with far:
        FaultyStream(near, Link(latency=0.001)).reset()
        with pytest.raises(trio.BrokenResourceError) as caught, trio.fail_after(5):
            await far.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_trios_own_streams_are_taken_and_reset_too() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = FaultyStream(await trio.testing.open_stream_to_socket_listener(listener), Link())
        async with await listener.accept() as far:
            await near.send_all(b"hello")
            assert await far.receive_some() == b"hello"
            near.reset()
            with pytest.raises(trio.BrokenResourceError) as caught, trio.fail_after(5):
                await far.receive_some()
            assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_what_breaks_the_transport_is_the_cause_here(autojump_clock: Any) -> None:
    near, far = await over_memory(Link(latency=1))
    await far.send_all(b"before")
    await trio.sleep(0.5)
    far.reset()

    assert await near.receive_some() == b"before"
    for operation in (near.receive_some, lambda: near.send_all(b"x")):
        with pytest.raises(trio.BrokenResourceError) as caught:
            await operation()
        assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
    assert trio.current_time() == 1.5
    await near.aclose()


class Odd(trio.abc.Stream):
    """Raises what no stream should."""

    closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise ZeroDivisionError("odd")

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        self.closed = True
        raise KeyError("odd")


async def test_whatever_the_transport_raises_only_breaks_the_connection(
    autojump_clock: Any,
) -> None:
    odd = Odd()
    near = FaultyStream(odd, Link(latency=1))
    await near.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await near.receive_some()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert odd.closed
    await near.aclose()


async def test_a_sender_waits_when_the_link_is_full(autojump_clock: Any) -> None:
    near, far = memory_stream_pair(0)
    faulty = FaultyStream(near, Link(latency=0.1), buffer_size=1000)
    with trio.move_on_after(60) as scope:
        await faulty.send_all(bytes(100_000))
    assert scope.cancelled_caught
    # Both ends' buffers, and the piece that waits in the transport.
    sent = faulty.bytes_sent
    assert 2000 <= sent <= 3000

    await faulty.aclose()
    assert len(await read_all(far)) == sent


@pytest.mark.parametrize("link", [Link(), Link(latency=0.1)], ids=["null", "latency"])
async def test_a_cancelled_receive_loses_nothing(link: Link, autojump_clock: Any) -> None:
    n = 0
    while True:
        near, far = await over_memory(link)
        await far.send_all(b"abc")
        if n % 2:
            await trio.sleep(1)
        attempt = await cancelled_at(n, lambda near=near: near.receive_some())  # type: ignore[misc]
        if not attempt.finished:
            assert await near.receive_some() == b"abc"
        await near.aclose()
        if attempt.last and n > 4:
            return
        n += 1


async def test_a_cancelled_send_tells_how_much_went(autojump_clock: Any) -> None:
    data = bytes(range(250)) * 40
    for n in range(8):
        near, far = memory_stream_pair(0)
        faulty = FaultyStream(near, Link(latency=0.1), buffer_size=1000)
        await cancelled_at(n, lambda faulty=faulty: faulty.send_all(data))  # type: ignore[misc]
        sent = faulty.bytes_sent
        await faulty.aclose()
        assert await read_all(far) == data[:sent]


async def test_a_close_that_is_cancelled_closes(autojump_clock: Any) -> None:
    near, far = await over_memory(Link(latency=1))
    await near.send_all(b"x")
    await trio.aclose_forcefully(near)
    assert near.closed
    assert await read_all(far) == b"x"


def test_a_stream_that_nobody_closes_ends_with_its_run() -> None:
    async def main() -> trionet.SocketStream:
        near, far = await connected("tcp", "127.0.0.1:0")
        await FaultyStream(near, Link(latency=60)).send_all(b"never arrives")
        await far.aclose()
        stream: trionet.SocketStream = near
        return stream

    assert trio.run(main).closed


def test_the_same_root_of_chance_loses_the_same() -> None:
    async def main() -> list[float]:
        near, far = await over_memory(Link(loss=0.5, segment_size=10))
        await near.send_all(bytes(200))
        await near.aclose()
        times = []
        while await far.receive_some(10):
            times.append(trio.current_time())
        return times

    def run() -> list[float]:
        return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    assert run() == run()
    assert run()[-1] > 0


@pytest.mark.parametrize(
    ("stream", "link", "size", "error", "named"),
    [
        (5, Link(), 10, TypeError, "got 5"),
        (None, 0.3, 10, TypeError, r"link must be a Link, got 0\.3"),
        (None, Link(), "many", TypeError, "got 'many'"),
        (None, Link(), True, TypeError, "got True"),
        (None, Link(), 0, ValueError, "got 0"),
    ],
)
async def test_wrong_arguments_are_named(
    stream: Any, link: Any, size: Any, error: type[Exception], named: str
) -> None:
    stream = memory_stream_pair()[0] if stream is None else stream
    with pytest.raises(error, match=named):
        FaultyStream(stream, link, buffer_size=size)


async def test_what_cannot_end_one_direction_is_refused_where_that_is_asked() -> None:
    with pytest.raises(TypeError, match=r"needs a trio\.abc\.HalfCloseableStream"):
        HalfCloseableFaultyStream(Odd(), Link())  # type: ignore[arg-type]
    near, _ = memory_stream_pair()
    faulty = FaultyStream(near, Link())
    with pytest.raises(TypeError, match="got None"):
        faulty.link = None  # type: ignore[assignment]
    assert "FaultyStream over <MemoryStream" in repr(faulty)
    assert (faulty.local_address, faulty.remote_address) == (
        near.local_address,
        near.remote_address,
    )
