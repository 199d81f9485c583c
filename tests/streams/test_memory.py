"""Memory streams and listeners, by their names."""

from __future__ import annotations

import errno
import itertools
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

import trionet
from tests.helpers import cancelled_at, clog, connected, read_all

NETWORKS = pytest.mark.parametrize("network", ["memu", "memb"])


@NETWORKS
async def test_memory_streams_keep_trios_contract(network: str) -> None:
    async def make() -> Any:
        return await connected(network, "conformance")

    async def make_clogged() -> Any:
        near, far = await connected(network, "conformance")
        if network == "memb":
            await clog(near)
            await clog(far)
        return near, far

    await check_half_closeable_stream(make, make_clogged)


@pytest.mark.parametrize("buffer_size", [0, 1, 65536])
async def test_a_pair_without_a_name_keeps_trios_contract(buffer_size: int) -> None:
    async def make() -> Any:
        return trionet.memory_stream_pair(buffer_size)

    await check_half_closeable_stream(make, None)


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), ("1", TypeError), (True, TypeError)])
def test_a_pair_of_no_size_is_refused(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=repr(size)):
        trionet.memory_stream_pair(size)


@NETWORKS
async def test_a_dial_returns_once_queued_accepted_or_not(network: Any) -> None:
    (listener,) = await trionet.listen(network, "site")

    client = await trionet.dial(network, "site")

    server = await listener.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"hello")
        assert await server.receive_some() == b"hello"


@NETWORKS
async def test_both_ends_know_their_names(network: Any) -> None:
    (listener,) = await trionet.listen(network, "site")

    first = await trionet.dial(network, "site")
    second = await trionet.dial(network, "site")
    named = await trionet.dial(network, "site", local_address="me")

    assert [str(one.local_address) for one in (first, second, named)] == ["site#1", "site#2", "me"]
    for client in (first, second, named):
        server = await listener.accept()
        assert server.local_address == client.remote_address == listener.address
        assert server.remote_address == client.local_address
        assert server.local_address.network == network
    assert repr(named) == f"<MemoryStream {network} me -> site>"
    assert repr(listener) == f"<MemoryListener {network} site>"


@NETWORKS
async def test_an_unknown_name_is_refused_at_once(network: Any, autojump_clock: Any) -> None:
    with pytest.raises(ConnectionRefusedError, match="'nobody'") as caught:
        await trionet.dial(network, "nobody")
    assert caught.value.errno == errno.ECONNREFUSED
    assert trio.current_time() == 0


@NETWORKS
async def test_a_name_in_use_is_taken_and_free_again_after_close(network: Any) -> None:
    (listener,) = await trionet.listen(network, "site")
    with pytest.raises(OSError, match="'site'") as caught:
        await trionet.listen(network, "site")
    assert caught.value.errno == errno.EADDRINUSE

    await listener.aclose()

    with pytest.raises(ConnectionRefusedError):
        await trionet.dial(network, "site")
    (again,) = await trionet.listen(network, "site")
    await listener.aclose()
    assert (await trionet.dial(network, "site")).remote_address == again.address


async def test_the_same_name_on_memu_and_memb_is_two_names() -> None:
    (unbuffered,) = await trionet.listen("memu", "x")
    (buffered,) = await trionet.listen("memb", "x")

    await trionet.dial("memb", "x")

    with pytest.raises(trio.WouldBlock):
        unbuffered.accept_nowait()
    assert buffered.accept_nowait().local_address.network == "memb"


async def test_a_dial_nobody_accepts_blocks_nobody_else() -> None:
    """memconn: one such dial held a lock, and every other name hung."""
    (listener,) = await trionet.listen("memu", "busy", backlog=1)
    await trionet.dial("memu", "busy")
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as waiting:
            nursery.start_soon(_dial_into, waiting, "busy")
            await wait_all_tasks_blocked()

            (other,) = await trionet.listen("memu", "other")
            await trionet.dial("memu", "other")
            other.accept_nowait()
            await other.aclose()
            await listener.aclose()


async def _dial_into(scope: trio.CancelScope, name: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        await trionet.dial("memu", name)


async def test_a_full_backlog_makes_only_the_next_dialler_wait_and_in_order() -> None:
    (listener,) = await trionet.listen("memb", "small", backlog=2)
    done: list[int] = []

    async def dial(number: int) -> None:
        await trionet.dial("memb", "small", local_address=str(number))
        done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(dial, number)
            await wait_all_tasks_blocked()
        assert done == [0, 1]

        accepted = [str((await listener.accept()).remote_address) for _ in range(5)]

    assert done == [0, 1, 2, 3, 4]
    assert accepted == ["0", "1", "2", "3", "4"]


async def test_closing_a_listener_refuses_waiting_diallers_and_resets_queued_ones() -> None:
    """memconn: connections nobody had accepted were orphaned, their reads hung."""
    (listener,) = await trionet.listen("memu", "site", backlog=1)
    queued = await trionet.dial("memu", "site")
    refusals = []

    async def dial() -> None:
        with pytest.raises(ConnectionRefusedError):
            await trionet.dial("memu", "site")
        refusals.append(1)

    async def read() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await queued.receive_some()
        refusals.append(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        await listener.aclose()

    assert sorted(refusals) == [1, 2]
    with pytest.raises(trio.BrokenResourceError):
        await queued.send_all(b"x")
    assert queued.peer_closed()


async def test_accepted_connections_outlive_their_listener() -> None:
    (listener,) = await trionet.listen("memb", "site")
    client = await trionet.dial("memb", "site")
    server = await listener.accept()

    await listener.aclose()

    await client.send_all(b"still here")
    assert await server.receive_some() == b"still here"


async def test_a_closed_listener_says_so_to_whoever_accepts() -> None:
    (listener,) = await trionet.listen("memu", "site")
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await listener.accept()
        await listener.aclose()
    for operation in (listener.accept, listener.wait_acceptable):
        with pytest.raises(trio.ClosedResourceError):
            await operation()
    with pytest.raises(trio.ClosedResourceError):
        listener.accept_nowait()


async def test_wait_acceptable_takes_nothing() -> None:
    (listener,) = await trionet.listen("memu", "site")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.wait_acceptable)
        await wait_all_tasks_blocked()
        await trionet.dial("memu", "site")

    await listener.wait_acceptable()
    listener.accept_nowait()


@pytest.mark.parametrize("queued", [False, True])
async def test_an_accept_cancelled_at_any_checkpoint_loses_no_connection(queued: bool) -> None:
    for n in itertools.count(1):
        (listener,) = await trionet.listen("memb", "site")
        if queued:
            client = await trionet.dial("memb", "site")

        attempt = await cancelled_at(n, listener.accept)

        if not queued:
            client = await trionet.dial("memb", "site")
        server = attempt.result if attempt.finished else listener.accept_nowait()
        await client.send_all(b"x")
        assert await server.receive_some() == b"x"
        await listener.aclose()
        if attempt.last:
            return


@pytest.mark.parametrize("full", [False, True])
async def test_a_dial_cancelled_at_any_checkpoint_leaves_nothing(full: bool) -> None:
    for n in itertools.count(1):
        (listener,) = await trionet.listen("memb", "site", backlog=1)
        if full:
            await trionet.dial("memb", "site")

        attempt = await cancelled_at(n, partial(trionet.dial, "memb", "site"))

        if full:
            listener.accept_nowait()
        if attempt.finished:
            await attempt.result.send_all(b"x")
            assert await listener.accept_nowait().receive_some() == b"x"
        with pytest.raises(trio.WouldBlock):
            listener.accept_nowait()
        await listener.aclose()
        if attempt.last:
            assert attempt.finished == (not full)
            return


async def test_a_listen_cancelled_at_any_checkpoint_leaves_no_name() -> None:
    for n in itertools.count(1):
        attempt = await cancelled_at(n, partial(trionet.listen, "memu", "site"))
        assert trionet.names("memu") == (["site"] if attempt.finished else [])
        if attempt.finished:
            await attempt.result[0].aclose()
        if attempt.last:
            return


async def test_memb_loses_and_reorders_nothing_on_close() -> None:
    """memconn: close lost acknowledged writes, and oversize ones overtook queued ones."""
    client, server = await connected("memb", "site")
    sent = b""
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            for size in (10, 100_000, 1, 65_536, 70_000, 3):
                data = bytes([size % 251]) * size
                await client.send_all(data)
                sent += data
            await client.aclose()

        nursery.start_soon(send)
        received = await read_all(server)
    assert received == sent


async def test_memb_is_buffered_by_64_kib_and_bounded() -> None:
    """memconn: the second write blocked, however small."""
    client, _server = await connected("memb", "site")
    for _ in range(64):
        await client.send_all(bytes(1024))
    with trio.move_on_after(0) as scope:
        await client.send_all(b"x")
    assert scope.cancelled_caught
    assert client.bytes_sent == 65536


async def test_memb_buffers_what_its_listeners_options_say() -> None:
    (listener,) = await trionet.listen("memb", "tiny", options=trionet.MemoryOptions(buffer_size=3))
    client = await trionet.dial("memb", "tiny")
    server = await listener.accept()
    for stream in (client, server):
        await stream.send_all(b"abc")
        with trio.move_on_after(0) as scope:
            await stream.send_all(b"d")
        assert scope.cancelled_caught


async def test_reading_can_go_on_after_the_other_direction_ended() -> None:
    client, server = await connected("memb", "site")
    await client.send_eof()
    assert await server.receive_some() == b""
    await server.send_all(b"late")
    assert await client.receive_some() == b"late"
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")


async def test_state_is_known_without_waiting() -> None:
    client, server = await connected("memb", "site")
    assert not server.is_readable()
    assert not server.peer_closed()
    assert not server.closed
    assert server.unread_size() == 0

    await client.send_all(b"abc")
    assert server.is_readable()
    assert server.unread_size() == 3
    assert not server.peer_closed()
    await client.send_eof()
    assert server.peer_closed()
    await server.receive_some()
    assert server.is_readable()
    assert server.unread_size() == 0

    await server.aclose()
    assert server.closed
    assert repr(server).endswith(" closed>")
    assert client.peer_closed()
    assert (client.bytes_sent, server.bytes_received) == (3, 3)
    assert client.transport_socket is None


async def test_closing_wakes_both_sides_blocked_operations() -> None:
    """As memconn's Close does: our own operations get Closed, the peer's Broken or the end."""
    woken: list[str] = []

    async def expect(kind: type[Exception], operation: Any, *args: Any) -> None:
        with pytest.raises(kind):
            await operation(*args)
        woken.append(kind.__name__)

    async def expect_end(stream: trionet.MemoryStream) -> None:
        assert await stream.receive_some() == b""
        woken.append("end")

    empty, far_empty = await connected("memb", "site")
    full, far_full = await connected("memb", "site")
    await clog(full)
    await clog(far_full)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, trio.ClosedResourceError, empty.receive_some)
        nursery.start_soon(expect_end, far_empty)
        nursery.start_soon(expect, trio.ClosedResourceError, full.send_all, b"x")
        nursery.start_soon(expect, trio.BrokenResourceError, far_full.send_all, b"x")
        await wait_all_tasks_blocked()
        empty.close()
        full.close()
        empty.close()
    assert sorted(woken) == [
        "BrokenResourceError",
        "ClosedResourceError",
        "ClosedResourceError",
        "end",
    ]
