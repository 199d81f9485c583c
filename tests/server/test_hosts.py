"""Connections counted by IP address, and how many a server lets one have."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from tests.conftest import Certificates
from tests.helpers import read_all
from trionet import Connection, Limits, ProxyHeader, ProxyProtocol, Server, ServerStatistics
from trionet._server.hosts import HostCounts
from trionet.abc import Address


async def echo(connection: Connection) -> None:
    async for data in connection:
        await connection.send_all(data)


def test_an_address_is_full_at_its_limit_and_forgotten_without_connections() -> None:
    hosts = HostCounts(2)
    for host in ("a", "b", "a"):
        assert not hosts.is_full(host)
        hosts.add(host)
    assert hosts.is_full("a")
    assert not hosts.is_full("b")
    assert len(hosts) == 2

    hosts.remove("a")
    assert not hosts.is_full("a")
    hosts.remove("a")
    hosts.remove("b")
    assert len(hosts) == 0


def test_who_has_no_address_is_never_full() -> None:
    hosts = HostCounts(1)
    for _ in range(3):
        hosts.add(None)
    assert not hosts.is_full(None)
    assert len(hosts) == 0
    hosts.remove(None)


def test_without_a_limit_nobody_is_full() -> None:
    hosts = HostCounts(None)
    assert not hosts.limited
    for _ in range(3):
        hosts.add("a")
    assert not hosts.is_full("a")


async def test_one_host_gets_no_more_than_its_share_and_is_forgotten(
    nursery: trio.Nursery,
) -> None:
    server = Server(echo, limits=Limits(max_connections_per_host=2))
    listeners = await trionet.listen("tcp", "127.0.0.1:0")
    await nursery.start(server.serve, listeners)
    dial = partial(trionet.dial, "tcp", str(listeners[0].address))
    clients = [await dial(local_address="127.0.0.1:0") for _ in range(3)]
    neighbour = await dial(local_address="127.0.0.2:0")

    for stream in (*clients[:2], neighbour):
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
    with pytest.raises((trio.BrokenResourceError, AssertionError)):
        assert await clients[2].receive_some() != b""
    assert server.statistics() == ServerStatistics(4, 3, 0, 0, 1)

    await clients[0].aclose()
    while server.statistics().active == 3:
        await trio.sleep(0.001)
    again = await dial(local_address="127.0.0.1:0")
    await again.send_all(b"x")
    assert await again.receive_some() == b"x"
    for stream in (*clients, neighbour, again):
        await stream.aclose()
    server.shutdown()
    await server.wait_closed()
    assert len(server._hosts) == 0


async def test_a_host_has_its_share_also_of_tls_handshakes(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    server = Server(echo, limits=Limits(max_connections_per_host=2))
    listeners = await trionet.listen("tcp", "127.0.0.1:0", ssl_context=certificates.server)
    await nursery.start(server.serve, listeners)
    dial = partial(trionet.dial, "tcp", str(listeners[0].address))
    silent = await dial(local_address="127.0.0.1:0")
    client = await dial(ssl_context=certificates.client, server_hostname="site")
    await client.do_handshake()

    # One too many, and told so at once, not only after its handshake.
    more = await dial(local_address="127.0.0.1:0")
    assert await read_all(more) == b""
    await wait_all_tasks_blocked()
    assert server.statistics() == ServerStatistics(3, 2, 0, 0, 1)

    for stream in (silent, client, more):
        await trio.aclose_forcefully(stream)
    server.shutdown(0)
    await server.wait_closed()
    assert len(server._hosts) == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_behind_a_proxy_each_client_has_a_share_and_the_proxy_has_none(
    nursery: trio.Nursery, certificates: Certificates, tls: bool
) -> None:
    server = Server(echo, limits=Limits(max_connections_per_host=1))
    listeners = await trionet.listen(
        "tcp",
        "127.0.0.1:0",
        ssl_context=certificates.server if tls else None,
        proxy_protocol=ProxyProtocol(trusted=["127.0.0.1"]),
    )
    await nursery.start(server.serve, listeners)
    where = Address("tcp4", host="127.0.0.1", port=80)
    streams: list[trionet.abc.Stream] = []

    async def come(host: str) -> trionet.abc.Stream:
        stream = await trionet.dial("tcp", str(listeners[0].address))
        streams.append(stream)
        client = Address("tcp4", host=host, port=1234)
        await stream.send_all(ProxyHeader("v2", source=client, destination=where).encode())
        if not tls:
            return stream
        return trionet.TLSStream(stream, certificates.client, server_hostname="site")

    for host in ("192.0.2.1", "192.0.2.2"):
        served = await come(host)
        await served.send_all(b"hello")
        assert await served.receive_some() == b"hello"
    turned_away = await come("192.0.2.1")
    with pytest.raises((trio.BrokenResourceError, AssertionError)):
        await turned_away.send_all(b"hello")
        assert await turned_away.receive_some() == b"hello"
    await wait_all_tasks_blocked()
    assert server.statistics() == ServerStatistics(3, 2, 0, 0, 1)

    for stream in streams:
        await stream.aclose()
    server.shutdown(0)
    await server.wait_closed()
    assert len(server._hosts) == 0
