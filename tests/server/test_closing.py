"""Closing after a normal end: what was sent last arrives, and it takes no longer than it may."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from tests.conftest import Certificates
from tests.helpers import read_all
from tests.server.serving import start
from trionet import Connection, Limits, ServerStatistics


async def test_a_normal_end_reads_and_drops_what_would_reset_the_reply(
    nursery: trio.Nursery,
) -> None:
    """On a socket, closing over unread input resets the connection and may eat the reply."""

    async def reply_unread(connection: Connection) -> None:
        await connection.receive_some(1)
        await connection.send_all(bytes(50_000))

    server = await start(nursery, reply_unread, "tcp", "127.0.0.1:0")
    client = await trionet.dial("tcp", str(server.addresses[0]))
    await client.send_all(bytes(20_000))
    assert len(await read_all(client)) == 50_000
    await client.aclose()
    server.shutdown()


async def test_lingering_ends_after_linger_seconds(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def reply_unread(connection: Connection) -> None:
        await connection.receive_some(1)

    server = await start(nursery, reply_unread, limits=Limits(linger=2))
    client = await trionet.dial("memb", "site")
    await client.send_all(b"xx")
    assert await client.receive_some() == b""
    await wait_all_tasks_blocked()
    assert [one.state for one in server.connections] == ["closing"]

    await trio.sleep(1.9)
    await client.send_all(b"x")
    await trio.sleep(0.2)
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    assert server.statistics().completed == 1
    server.shutdown()


async def test_lingering_ends_after_64_kib(nursery: trio.Nursery, autojump_clock: Any) -> None:
    async def reply_unread(connection: Connection) -> None:
        await connection.receive_some(1)

    server = await start(nursery, reply_unread, limits=Limits(linger=2))
    client = await trionet.dial("memb", "site")
    with pytest.raises(trio.BrokenResourceError):
        while True:
            await client.send_all(bytes(1000))
    await wait_all_tasks_blocked()
    # What was dropped, and what filled the buffers meanwhile.
    assert 65536 < client.bytes_sent < 4 * 65536
    assert trio.current_time() == 0
    assert server.statistics().completed == 1
    server.shutdown()


async def test_a_close_notify_nobody_reads_is_bounded_by_linger(
    nursery: trio.Nursery, autojump_clock: Any, certificates: Certificates
) -> None:
    done = trio.Event()

    async def handler(connection: Connection) -> None:
        await connection.receive_some()
        done.set()

    server = await start(
        nursery, handler, "memu", ssl_context=certificates.server, limits=Limits(linger=2)
    )
    client = await trionet.dial("memu", "site", ssl_context=certificates.client)
    await client.send_all(b"x")
    await done.wait()
    while server.statistics().active:
        await trio.sleep(0.25)
    assert trio.current_time() in {2, 2.25}
    assert server.statistics().completed == 1
    server.shutdown()


async def test_closing_what_start_tls_secured_is_bounded_by_linger(
    nursery: trio.Nursery, autojump_clock: Any, certificates: Certificates
) -> None:
    async def upgrade(connection: Connection) -> None:
        await connection.start_tls(certificates.server)

    server = await start(nursery, upgrade, "memu", limits=Limits(linger=2))
    client = await trionet.dial("memu", "site")
    await trionet.start_tls(client, certificates.client, server_hostname="site")
    await trio.sleep(3)
    assert server.statistics() == ServerStatistics(1, 0, 1, 0, 0)
    server.shutdown()
