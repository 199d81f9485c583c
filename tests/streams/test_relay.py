"""Passing bytes on: through the kernel and in a loop, with back-pressure and half-close."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionet
from tests.helpers import clog, connected, read_all

if TYPE_CHECKING:
    from tests.conftest import Certificates

spliced = pytest.mark.skipif(not hasattr(os, "splice"), reason="the system has no splice(2)")

# Of this process alone: several test runs may share a machine.
ABSTRACT = f"@trionet-relay-{os.getpid()}"

# Big and without a pattern that a lost or repeated piece could hide in.
CONTENT = random.Random(3).randbytes(3_000_000)

Pairs = [("tcp", "127.0.0.1:0"), ("unix", ABSTRACT), ("memb", "site"), ("memu", "site")]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


class Spy:
    """Counts what passed through splice(2)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moved = 0
        splice = os.splice

        def counted(*arguments: Any, **more: Any) -> int:
            moved = splice(*arguments, **more)
            self.moved += moved
            return moved

        monkeypatch.setattr(os, "splice", counted)


async def send_and_end(stream: Any, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


@pytest.mark.parametrize(("network", "address"), Pairs)
async def test_copy_passes_everything_on_and_counts_it(network: str, address: str) -> None:
    sender, source = await connected(network, address)
    destination, receiver = await connected(network, address)
    before = descriptors()
    copied = 0

    async def run() -> None:
        nonlocal copied
        copied = await trionet.copy(source, destination)
        await destination.send_eof()

    async with sender, source, destination, receiver, trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, sender, CONTENT)
        nursery.start_soon(run)
        assert await read_all(receiver) == CONTENT
        assert descriptors() <= before

    assert copied == source.bytes_received == destination.bytes_sent == len(CONTENT)


@spliced
async def test_between_sockets_the_kernel_moves_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    await test_copy_passes_everything_on_and_counts_it("tcp", "127.0.0.1:0")

    assert spy.moved == 2 * len(CONTENT)


@pytest.mark.parametrize(("network", "address"), Pairs)
async def test_copying_a_stream_onto_itself_is_an_echo(network: str, address: str) -> None:
    client, server = await connected(network, address)
    async with client, server, trio.open_nursery() as nursery:

        async def echo() -> None:
            await trionet.copy(server, server)
            await server.send_eof()

        nursery.start_soon(echo)
        nursery.start_soon(send_and_end, client, CONTENT)
        assert await read_all(client) == CONTENT


async def test_a_slow_reader_slows_the_sender() -> None:
    sender, source = await connected("tcp", "127.0.0.1:0")
    destination, receiver = await connected("tcp", "127.0.0.1:0")
    async with sender, source, destination, receiver, trio.open_nursery() as nursery:
        nursery.start_soon(trionet.copy, source, destination)
        flood = 0

        async def send() -> None:
            nonlocal flood
            while True:
                await sender.send_all(bytes(65536))
                flood += 65536

        nursery.start_soon(send)
        # The kernel moves its own bounds for a while; then nothing moves any more.
        stuck = -1
        with trio.fail_after(5):
            while flood != stuck:
                stuck = flood
                await trio.sleep(0.1)
        assert flood < 100_000_000
        # One pipe's fill at the most is neither here nor there.
        assert 0 <= source.bytes_received - destination.bytes_sent <= 65536
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("network", "address"), Pairs[:1] + Pairs[2:])
async def test_a_cancelled_copy_leaves_no_descriptor_and_both_streams_usable(
    network: str, address: str
) -> None:
    sender, source = await connected(network, address)
    destination, receiver = await connected(network, address)
    before = descriptors()
    async with sender, source, destination, receiver:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trionet.copy, source, destination)
                await sender.send_all(b"hello")
                assert await receiver.receive_some() == b"hello"
                nursery.cancel_scope.cancel()
            assert source.bytes_received == destination.bytes_sent
        assert descriptors() == before
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, b"later")
            assert await source.receive_some() == b"later"


@spliced
async def test_what_a_cancel_loses_is_told_by_the_counters() -> None:
    sender, source = await connected("tcp", "127.0.0.1:0")
    destination, receiver = await connected("tcp", "127.0.0.1:0")
    async with sender, source, receiver:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trionet.copy, source, destination)
            nursery.start_soon(sender.send_all, CONTENT * 10)
            await trio.sleep(0.2)
            nursery.cancel_scope.cancel()
        passed, taken = destination.bytes_sent, source.bytes_received
        assert passed < len(CONTENT) * 10
        assert taken - passed <= 65536
        await destination.aclose()
        assert await read_all(receiver) == (CONTENT * 10)[:passed]
        # And the next byte of the source is the one after what was taken.
        assert (CONTENT * 10)[taken:].startswith(await source.receive_some(1000))


@spliced
async def test_bytes_that_came_while_a_cancelled_copy_waited_are_received(
    nursery: trio.Nursery,
) -> None:
    # With many waiting the readiness hub is asked, whose edges come only once.
    idle = [await connected("tcp", "127.0.0.1:0") for _ in range(6)]
    for one, _ in idle:
        nursery.start_soon(one.receive_some)
    await trio.testing.wait_all_tasks_blocked()
    sender, source = await connected("tcp", "127.0.0.1:0")
    destination, receiver = await connected("tcp", "127.0.0.1:0")
    async with sender, source, destination, receiver:
        await sender.send_all(b"x")
        # A short read: the stream believes its socket empty now.
        assert await source.receive_some() == b"x"
        async with trio.open_nursery() as inner:
            inner.start_soon(trionet.copy, source, destination)
            inner.start_soon(sender.send_all, CONTENT * 10)
            await trio.sleep(0.2)
            inner.cancel_scope.cancel()
        with trio.fail_after(1):
            assert await source.receive_some()
    nursery.cancel_scope.cancel()
    for pair in idle:
        for one in pair:
            one.close()


@pytest.mark.parametrize(("network", "address"), Pairs)
async def test_a_relay_keeps_half_close(network: str, address: str) -> None:
    client, a = await connected(network, address)
    b, upstream = await connected(network, address)
    counts: tuple[int, int] = (0, 0)

    async def run() -> None:
        nonlocal counts
        counts = await trionet.relay(a, b)

    async with client, a, b, upstream, trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(send_and_end, client, CONTENT)
        # The end reaches the far side, and the answer still comes back.
        assert await read_all(upstream) == CONTENT
        nursery.start_soon(send_and_end, upstream, b"answer")
        assert await read_all(client) == b"answer"
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert not a.closed
        assert not b.closed

    assert counts == (len(CONTENT), 6)


async def test_a_relay_between_unlike_streams_goes_round_the_kernel() -> None:
    client, a = await connected("memb", "site")
    b, upstream = await connected("tcp", "127.0.0.1:0")
    async with client, a, b, upstream, trio.open_nursery() as nursery:
        nursery.start_soon(trionet.relay, a, b)
        nursery.start_soon(send_and_end, client, CONTENT)
        assert await read_all(upstream) == CONTENT
        await upstream.send_eof()
        assert await read_all(client) == b""


async def test_a_relay_onto_tls_ends_with_the_end_it_cannot_tell(
    certificates: Certificates,
) -> None:
    client, a = await connected("tcp", "127.0.0.1:0")
    b, upstream = await connected("tcp", "127.0.0.1:0")
    secured: list[trionet.TLSStream] = []

    async def far() -> None:
        secured.append(await trionet.start_tls(upstream, certificates.server, server_side=True))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(far)
        near = await trionet.start_tls(b, certificates.client, server_hostname="localhost")

    async with client, a, trio.open_nursery() as nursery:
        nursery.start_soon(send_and_end, client, b"request")
        with trio.fail_after(2):
            assert await trionet.relay(a, near) == (7, 0)
        assert await secured[0].receive_some() == b"request"
    await trio.aclose_forcefully(near)
    await trio.aclose_forcefully(secured[0])


@pytest.mark.parametrize(("network", "address"), [("tcp", "127.0.0.1:0"), ("memb", "site")])
async def test_a_broken_side_ends_a_relay_with_that_error_alone(network: str, address: str) -> None:
    client, a = await connected(network, address)
    b, upstream = await connected(network, address)
    async with client, a, b:

        async def cut() -> None:
            await trio.testing.wait_all_tasks_blocked(0.005)
            reset(upstream)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            with pytest.raises(trio.BrokenResourceError):
                await trionet.relay(a, b)


def reset(stream: Any) -> None:
    if isinstance(stream, trionet.MemoryStream):
        stream.reset()
        return
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


@pytest.mark.parametrize("which", ["source", "destination"])
async def test_a_side_that_is_closed_meanwhile_is_closed_for_the_copy(which: str) -> None:
    sender, source = await connected("tcp", "127.0.0.1:0")
    destination, receiver = await connected("tcp", "127.0.0.1:0")
    before = descriptors()

    async def copy() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await trionet.copy(source, destination)

    async with sender, source, destination, receiver, trio.open_nursery() as nursery:
        nursery.start_soon(copy)
        await trio.testing.wait_all_tasks_blocked(0.005)
        if which == "source":
            await source.aclose()
        else:
            await destination.aclose()
            await sender.send_all(b"x")
    assert descriptors() <= before


@spliced
@pytest.mark.parametrize("refusing", ["pipe2", "splice"])
async def test_where_the_kernel_refuses_a_loop_copies(
    monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE if refusing == "pipe2" else errno.EINVAL, "refused")

    monkeypatch.setattr(os, refusing, refuse)

    await test_copy_passes_everything_on_and_counts_it("tcp", "127.0.0.1:0")


@spliced
async def test_what_was_read_ahead_goes_first_and_then_the_kernel_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sender, server = await connected("tcp", "127.0.0.1:0")
    destination, receiver = await connected("tcp", "127.0.0.1:0")
    source = trionet.BufferedStream(server)
    async with sender, source, destination, receiver, trio.open_nursery() as nursery:
        await sender.send_all(b"CONNECT\r\nahead")
        assert await source.receive_until(b"\r\n", 100) == b"CONNECT\r\n"
        await source.peek(5)
        spy = Spy(monkeypatch)

        async def copy() -> None:
            await trionet.copy(source, destination)
            await destination.send_eof()

        nursery.start_soon(copy)
        nursery.start_soon(send_and_end, sender, CONTENT)
        assert await read_all(receiver) == b"ahead" + CONTENT
        assert spy.moved == 2 * len(CONTENT)
        assert source.bytes_received == 9 + 5 + len(CONTENT)


@spliced
async def test_a_flood_does_not_keep_other_tasks_from_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client, source = await connected("tcp", "127.0.0.1:0")
    calls = 0

    def never_blocks(*_: object, **__: object) -> int:
        nonlocal calls
        calls += 1
        assert calls < 1000, "nobody else runs"
        return 65536

    monkeypatch.setattr(os, "splice", never_blocks)
    async with client, source, trio.open_nursery() as nursery:
        nursery.start_soon(trionet.copy, source, source)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_a_relay_through_a_server_counts_in_its_connections(
    nursery: trio.Nursery,
) -> None:
    seen: list[Any] = []

    async def handler(connection: trionet.Connection) -> None:
        await trionet.copy(connection, connection)
        seen.append((connection.bytes_received, connection.bytes_sent))

    server = trionet.Server(handler)
    addresses = await nursery.start(server.serve, await trionet.listen("tcp", "127.0.0.1:0"))
    client: Any = await trionet.dial("tcp", str(addresses[0]))
    async with client, trio.open_nursery() as inner:
        inner.start_soon(send_and_end, client, CONTENT)
        assert await read_all(client) == CONTENT
    server.shutdown()
    await server.wait_closed()

    assert seen == [(len(CONTENT), len(CONTENT))]


@pytest.mark.parametrize("kind", ["tcp", "memb"])
async def test_a_second_receiver_or_sender_is_told_so(kind: str) -> None:
    address = "127.0.0.1:0" if kind == "tcp" else "site"
    sender, source = await connected(kind, address)
    destination, receiver = await connected(kind, address)
    async with sender, source, destination, receiver, trio.open_nursery() as nursery:
        nursery.start_soon(trionet.copy, source, destination)
        await trio.testing.wait_all_tasks_blocked(0.005)
        with pytest.raises(trio.BusyResourceError):
            await source.receive_some()
        with pytest.raises(trio.BusyResourceError):
            await trionet.copy(source, destination)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["tcp", "memb"])
async def test_a_sender_beside_a_copy_is_told_so(kind: str) -> None:
    address = "127.0.0.1:0" if kind == "tcp" else "site"
    sender, source = await connected(kind, address)
    destination, receiver = await connected(kind, address)
    async with sender, source, destination, receiver, trio.open_nursery() as nursery:
        await clog(destination)
        nursery.start_soon(trionet.copy, source, destination)
        await sender.send_all(b"x")
        await trio.testing.wait_all_tasks_blocked(0.005)

        assert destination.sending
        with pytest.raises(trio.BusyResourceError):
            await destination.send_all(b"x")

        nursery.cancel_scope.cancel()
    assert not destination.sending


@pytest.mark.parametrize(("network", "address"), [("tcp", "127.0.0.1:0"), ("memb", "site")])
async def test_a_drain_ends_an_echo_that_is_marked_as_idle(
    nursery: trio.Nursery, network: str, address: str
) -> None:
    ends: list[bool] = []

    async def handler(connection: trionet.Connection) -> None:
        with connection.idle() as scope:
            await trionet.copy(connection, connection)
        ends.append(scope.cancelled_caught)

    server = trionet.Server(handler)
    addresses = await nursery.start(server.serve, await trionet.listen(network, address))
    async with await trionet.dial(network, str(addresses[0])) as client:
        await client.send_all(b"hello")
        assert await client.receive_some() == b"hello"
        with trio.fail_after(2):
            server.shutdown()
            assert (await server.wait_closed()).completed == 1

    assert ends == [True]


async def test_a_relay_to_a_reader_that_stopped_meets_the_send_timeout(
    nursery: trio.Nursery,
) -> None:
    async def flood(connection: trionet.Connection) -> None:
        sender, source = await connected("tcp", "127.0.0.1:0")
        async with sender, source, trio.open_nursery() as inner:
            inner.start_soon(sender.send_all, bytes(50_000_000))
            await trionet.copy(source, connection)

    server = trionet.Server(flood, limits=trionet.Limits(send_timeout=0.3))
    addresses = await nursery.start(server.serve, await trionet.listen("tcp", "127.0.0.1:0"))
    async with await trionet.dial("tcp", str(addresses[0])):
        await trio.sleep(0.05)
        with trio.fail_after(5):
            while server.statistics().active:
                await trio.sleep(0.05)
    server.shutdown()

    assert server.statistics().failed == 1
