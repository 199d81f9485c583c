"""Limits of time, in exact virtual times."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from tests.conftest import Certificates
from trionet import Connection, Limits, Server, ServerStatistics


async def start(nursery: trio.Nursery, handler: Any, limits: Limits, **settings: Any) -> Server:
    server = Server(handler, limits=limits, **settings)
    await nursery.start(server.serve, await trionet.listen("memb", "site"))
    return server


async def echo(connection: Connection) -> None:
    async for data in connection:
        await connection.send_all(data)


async def ended(server: Server) -> float:
    """Wait until no connection is open; return when that was, to a hundredth."""
    while server.statistics().active:
        await trio.sleep(0.01)
    return round(trio.current_time(), 2)


async def test_an_idle_connection_ends_never_early_and_at_most_a_tenth_late(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, echo, Limits(idle_timeout=10))
    client = await trionet.dial("memb", "site")
    # Bytes either way count, whenever they come.
    for _ in range(5):
        await trio.sleep(7.3)
        await client.send_all(b"x")
        assert await client.receive_some() == b"x"
    last = trio.current_time()

    assert 10 <= await ended(server) - last <= 11.01
    assert await client.receive_some() == b""
    assert server.statistics() == ServerStatistics(1, 0, 0, 1, 0)
    server.shutdown()


@pytest.mark.parametrize("timeout", [0.7, 1, 3, 7, 10])
async def test_it_is_at_most_a_tenth_late_whatever_ten_tenths_add_up_to(
    nursery: trio.Nursery, autojump_clock: Any, timeout: float
) -> None:
    ended_at = []

    async def listen(connection: Connection) -> None:
        try:
            while await connection.receive_some():
                pass
        finally:
            ended_at.append(trio.current_time())

    server = await start(nursery, listen, Limits(idle_timeout=timeout))
    client = await trionet.dial("memb", "site")
    last = timeout / 50
    await trio.sleep(last)
    await client.send_all(b"x")

    assert await client.receive_some() == b""
    assert timeout <= ended_at[0] - last <= 1.1 * timeout
    server.shutdown()


@pytest.mark.parametrize("began", [0, 0.95, 1.95])
async def test_a_send_that_moves_nothing_has_all_of_its_time(
    nursery: trio.Nursery, autojump_clock: Any, began: float
) -> None:
    ended_at = []

    async def send(connection: Connection) -> None:
        await trio.sleep(began)
        try:
            await connection.send_all(b"x")
        finally:
            ended_at.append(trio.current_time())

    server = Server(send, limits=Limits(send_timeout=10))
    # Without a buffer nothing of it leaves while the client does not read.
    await nursery.start(server.serve, await trionet.listen("memu", "site"))
    await trionet.dial("memu", "site")
    await trio.sleep(20)

    assert 10 <= ended_at[0] - began <= 11.01
    server.shutdown()


async def test_a_client_that_does_not_read_is_ended_and_memory_stays_flat(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def flood(connection: Connection) -> None:
        with trio.CancelScope(shield=True):
            await connection.send_all(bytes(100_000_000))

    server = await start(nursery, flood, Limits(send_timeout=5, linger=1))
    client = await trionet.dial("memb", "site")
    # A slow reader is none that does not read.
    for _ in range(20):
        await trio.sleep(4)
        await client.receive_some(1000)
    last = trio.current_time()

    # Cancelled in time, and closed from outside a second later, since the handler is shielded.
    assert 6 <= await ended(server) - last <= 7.51
    assert server.statistics().failed == 1
    server.shutdown()


async def test_a_send_timeout_does_not_end_who_waits_for_a_silent_client(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, echo, Limits(send_timeout=1))
    client = await trionet.dial("memb", "site")
    await trio.sleep(100)
    await client.send_all(b"still here")
    assert await client.receive_some() == b"still here"
    server.shutdown(0)


async def test_a_lifetime_is_exact_whatever_the_traffic(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, echo, Limits(lifetime=30))
    client = await trionet.dial("memb", "site")
    replies = 0
    while await client.receive_some() if replies else True:
        try:
            await trio.sleep(1.75)
            await client.send_all(b"x")
        except trio.BrokenResourceError:
            break
        replies += 1
    assert replies == 17
    assert server.statistics().failed == 1
    server.shutdown()


async def test_a_lifetime_counts_from_the_accept_and_bounds_the_handshake(
    nursery: trio.Nursery, autojump_clock: Any, certificates: Certificates
) -> None:
    server = Server(echo, limits=Limits(lifetime=3, handshake_timeout=10))
    listeners = await trionet.listen("memb", "site", ssl_context=certificates.server)
    await nursery.start(server.serve, listeners)
    silent = await trionet.dial("memb", "site")
    client = await trionet.dial("memb", "site", ssl_context=certificates.client)
    await client.do_handshake()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    assert await silent.receive_some() == b""
    assert trio.current_time() == 3
    server.shutdown()


async def test_a_drain_is_not_held_up_by_the_timekeeper(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, echo, Limits(idle_timeout=1000, send_timeout=1000), grace=5)
    await trionet.dial("memb", "site")
    await wait_all_tasks_blocked()
    server.shutdown()
    assert (await server.wait_closed()).cancelled == 1
    assert trio.current_time() == 5


async def test_limits_hold_during_a_drain_too(nursery: trio.Nursery, autojump_clock: Any) -> None:
    server = await start(nursery, echo, Limits(idle_timeout=2), grace=50)
    await trionet.dial("memb", "site")
    await wait_all_tasks_blocked()
    server.shutdown()
    await server.wait_closed()
    assert 2 <= trio.current_time() <= 2.21


@pytest.mark.parametrize("name", ["idle_timeout", "send_timeout"])
def test_a_timeout_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name):
        Limits(**{name: -1})  # type: ignore[arg-type]


async def test_a_lifetime_ends_a_handler_that_shields_itself_too(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def flood(connection: Connection) -> None:
        with trio.CancelScope(shield=True):
            await connection.send_all(bytes(100_000_000))

    server = await start(nursery, flood, Limits(lifetime=5, linger=1))
    await trionet.dial("memb", "site")
    await wait_all_tasks_blocked()
    # Both looks are at most a tenth of the lifetime late.
    assert 6 <= await ended(server) <= 7.01
    server.shutdown()


async def test_a_lifetime_bounds_the_closing_too(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def work(connection: Connection) -> None:
        await trio.sleep(9)

    server = await start(nursery, work, Limits(lifetime=10, linger=5))
    client = await trionet.dial("memb", "site")
    # Unread at the end, and so the server waits for more.
    await client.send_all(b"x")
    assert await client.receive_some() == b""
    assert trio.current_time() == 9

    assert await ended(server) <= 10.01
    assert server.statistics().completed == 1
    server.shutdown()


async def test_ciphertext_that_moves_is_progress(
    nursery: trio.Nursery, autojump_clock: Any, certificates: Certificates
) -> None:
    async def reply(connection: Connection) -> None:
        await connection.send_all(bytes(200_000))

    server = Server(reply, limits=Limits(send_timeout=10))
    listeners = await trionet.listen("memb", "site", ssl_context=certificates.server)
    await nursery.start(server.serve, listeners)
    raw = await trionet.dial("memb", "site")
    client = trionet.TLSStream(raw, certificates.client, server_hostname="site")
    await client.do_handshake()
    # 64 KiB of plaintext at a time leave in 65 seconds, at 1,000 bytes of ciphertext a second.
    received = 0
    while received < 200_000:
        data = await raw.receive_some(1000)
        assert data, f"cut after {received} bytes"
        received += len(data)
        await trio.sleep(1)
    server.shutdown()
