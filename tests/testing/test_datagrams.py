"""UDP between virtual hosts: datagrams are lost, overtaken, refused and dropped, never changed."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio

from tests.testing.virtual import timed, two_hosts
from trionet.testing import Drop, Host, Link, VirtualNetwork


async def bound(host: Host, port: int = 53, family: int = socket.AF_INET) -> Any:
    with host.context():
        sock = trio.socket.socket(family, socket.SOCK_DGRAM)
    await sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    return sock


async def test_a_datagram_arrives_whole_with_its_senders_address(autojump_clock: object) -> None:
    async with two_hosts(Link(latency=0.1)) as (_, server, client):
        far, near = await bound(server), await bound(client, 4000)

        assert await near.sendto(b"question", ("server", 53)) == 8
        assert await timed(lambda: far.recvfrom(100)) == (
            0.1,
            (b"question", (client.addresses[0], 4000)),
        )
        await far.sendto(b"", 0, (client.addresses[0], 4000))
        assert await near.recv(100) == b""
        near.close()
        far.close()


async def test_what_does_not_fit_is_cut_off_and_lost(autojump_clock: object) -> None:
    async with two_hosts() as (_, server, client):
        far, near = await bound(server), await bound(client, 4000)
        await near.sendto(b"0123456789", ("server", 53))
        await near.sendmsg([b"ab", b"cd"], [], 0, ("server", 53))

        assert await far.recv(4, socket.MSG_PEEK) == b"0123"
        assert await far.recvmsg(4) == (b"0123", [], socket.MSG_TRUNC, near_name(client))
        buffer = bytearray(10)
        assert await far.recvfrom_into(buffer) == (4, near_name(client))
        assert buffer[:4] == b"abcd"
        near.close()
        far.close()


def near_name(client: Host) -> tuple[str, int]:
    return (client.addresses[0], 4000)


async def test_datagrams_are_lost_and_overtake_each_other(autojump_clock: object) -> None:
    async with two_hosts(Link(jitter=1, loss=0.3), seed=3) as (_, server, client):
        far, near = await bound(server), await bound(client, 4000)
        for number in range(100):
            await near.sendto(bytes([number]), ("server", 53))
        await trio.sleep(2)
        got = []
        while far.is_readable():
            got += await far.recv(1)

        assert 50 < len(got) < 90
        assert len(set(got)) == len(got)
        assert got != sorted(got)
        near.close()
        far.close()


async def test_a_connected_socket_is_told_that_nobody_is_there(autojump_clock: object) -> None:
    async with two_hosts(Link(latency=0.1)) as (net, server, client):
        near = await bound(client, 4000)
        await near.sendto(b"x", ("server", 53))
        await trio.sleep(1)
        assert not near.is_readable()
        await near.connect(("server", 53))
        assert near.getpeername() == (server.addresses[0], 53)
        await near.send(b"x")
        took, error = await timed(lambda: near.recv(1))
        assert (took, error.errno) == (0.2, errno.ECONNREFUSED)
        with net.reject(client, server):
            await near.send(b"x")
            took, error = await timed(lambda: near.recv(1))
        assert (took, error.errno) == (0.1, errno.EHOSTUNREACH)
        near.close()


async def test_a_connected_socket_hears_its_peer_alone(autojump_clock: object) -> None:
    async with VirtualNetwork() as net:
        a, b, c = (net.host(name) for name in "abc")
        one, two, three = await bound(a), await bound(b), await bound(c)
        await one.connect(("b", 53))
        await three.sendto(b"stranger", ("a", 53))
        await two.sendto(b"peer", ("a", 53))

        assert await one.recv(100) == b"peer"
        assert not one.is_readable()
        for sock in (one, two, three):
            sock.close()


async def test_a_full_buffer_drops_what_comes(autojump_clock: object) -> None:
    async with two_hosts() as (net, server, client):
        far, near = await bound(server), await bound(client, 4000)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1000)
        for _ in range(5):
            await near.sendto(bytes(300), ("server", 53))

        dropped = [event.note for event in net.trace if event.what == "dropped"]
        assert dropped == ["the buffer is full"] * 3
        assert len(await far.recv(1000)) == 300
        near.close()
        far.close()


async def test_rules_and_partitions_hold_for_datagrams(autojump_clock: object) -> None:
    async with two_hosts() as (net, server, client):
        far, near = await bound(server), await bound(client, 4000)
        with net.partition(client, server):
            await near.sendto(b"partition", ("server", 53))
        with net.rule(lambda one: Drop() if one.payload == b"rule" else None):
            await near.sendto(b"rule", ("server", 53))
            await near.sendto(b"good", ("server", 53))

        assert await far.recv(100) == b"good"
        assert not far.is_readable()
        near.close()
        far.close()


async def test_ipv4_and_ipv6_have_ports_of_their_own(autojump_clock: object) -> None:
    async with VirtualNetwork() as net:
        host = net.host("host", ipv6=True)
        with host.context():
            six = trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            await six.bind(("::", 53))
            four = await bound(host)
            await four.sendto(b"4", ("127.0.0.1", 53))
            await six.sendto(b"6", (host.addresses[1], 53))
        assert await four.recv(10) == b"4"
        assert (await six.recvfrom(10))[1] == (host.addresses[1], 53, 0, 0)
        four.close()
        six.close()


async def test_errors_are_those_of_linux(autojump_clock: object) -> None:
    async with two_hosts() as (_, _server, client):
        sock, taken = await bound(client, 4000), await bound(client, 4001)
        for operation, code in (
            (lambda: sock.send(b"x"), errno.EDESTADDRREQ),
            (lambda: sock.sendto(bytes(65508), ("server", 53)), errno.EMSGSIZE),
            (lambda: sock.sendto(b"x", ("192.0.2.1", 53)), errno.ENETUNREACH),
            (lambda: sock.sendto(b"x", ("server", 0)), errno.EINVAL),
            (lambda: sock.accept(), errno.EOPNOTSUPP),
        ):
            _, error = await timed(operation)
            assert error.errno == code
        for call in (lambda: sock.shutdown(2), sock.getpeername):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(OSError) as caught:
            sock.listen()
        assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(OSError) as caught:
            await bound(client, 4001)
        assert caught.value.errno == errno.EADDRINUSE
        sock.close()
        taken.close()
        _, error = await timed(lambda: sock.recv(1))
        assert error.errno == errno.EBADF


async def test_two_readers_are_busy_and_a_close_wakes_the_one(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts() as (_, server, _client):
        sock = await bound(server)

        async def closed() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await sock.recv(1)

        nursery.start_soon(closed)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await sock.recv(1)
        sock.close()
