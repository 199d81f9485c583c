"""A server behind a proxy: whose connection a handler sees, and what the header may cost."""

from __future__ import annotations

import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionet
from tests.helpers import read_all
from trionet import Address, Limits, ProxyHeader, ProxyProtocol

if TYPE_CHECKING:
    from tests.conftest import Certificates
    from trionet import Connection

TRUSTED = ProxyProtocol(trusted=["127.0.0.1", "memb", "memu"])
CLIENT = Address("tcp4", host="192.0.2.1", port=56324)
DIALLED = Address("tcp4", host="192.0.2.11", port=443)
V1 = ProxyHeader("v1", CLIENT, DIALLED)
V2 = ProxyHeader("v2", CLIENT, DIALLED, tlvs=((1, b"h2"),), checksum=True)

NETWORKS = [("tcp", "127.0.0.1:0"), ("memb", "site"), ("memu", "site")]
everywhere = pytest.mark.parametrize(("network", "address"), NETWORKS)


async def serving(
    nursery: trio.Nursery, server: trionet.Server, network: str, address: str, **arguments: Any
) -> Address:
    arguments.setdefault("proxy_protocol", TRUSTED)
    listeners = await trionet.listen(network, address, **arguments)
    addresses: list[Address] = await nursery.start(server.serve, listeners)
    return addresses[0]


async def tell(connection: Connection) -> None:
    request = await trionet.BufferedStream(connection).receive_until(b"\n", 100)
    header = connection.proxy_header
    version = header.version if header else "none"
    await connection.send_all(f"{connection.remote_address} {version} ".encode() + request)


@everywhere
@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("pieces", [1, 2, 1000])
async def test_a_handler_sees_the_client_and_its_first_byte(
    nursery: trio.Nursery, network: str, address: str, header: ProxyHeader, pieces: int
) -> None:
    server = trionet.Server(tell)
    where = await serving(nursery, server, network, address)
    data = header.encode() + b"hello\n"
    size = -(-len(data) // pieces)

    async with await trionet.dial(network, str(where)) as proxy:
        for start in range(0, len(data), size):
            await proxy.send_all(data[start : start + size])
        assert await read_all(proxy) == f"{CLIENT} {header.version} hello\n".encode()

    server.shutdown()
    await server.wait_closed()
    assert server.statistics().completed == 1


@everywhere
async def test_a_health_check_is_answered_as_the_proxy_itself(
    nursery: trio.Nursery, network: str, address: str
) -> None:
    server = trionet.Server(tell)
    where = await serving(nursery, server, network, address)

    async with await trionet.dial(network, str(where)) as proxy:
        await proxy.send_all(ProxyHeader("v2", command="LOCAL").encode() + b"ping\n")
        assert await read_all(proxy) == f"{proxy.local_address} v2 ping\n".encode()

    server.shutdown()


@everywhere
@pytest.mark.parametrize("header", [V1, V2])
async def test_cve_2021_23409_a_header_that_never_ends_meets_the_handshake_timeout(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    network: str,
    address: str,
    header: ProxyHeader,
) -> None:
    if network == "tcp":
        # A virtual clock jumps while the kernel still carries bytes.
        autojump_clock.autojump_threshold = 0.05
    server = trionet.Server(tell, limits=Limits(handshake_timeout=10))
    where = await serving(nursery, server, network, address)
    proxy = await trionet.dial(network, str(where))
    begun = trio.current_time()

    async def trickle() -> None:
        try:
            for byte in header.encode():
                await proxy.send_all(bytes([byte]))
                await trio.sleep(1)
        except trio.BrokenResourceError:
            return

    nursery.start_soon(trickle)
    try:
        end = await read_all(proxy)
    except trio.BrokenResourceError:
        # Bytes that came too late reset a socket.
        end = b""

    assert end == b""
    assert 10 <= trio.current_time() - begun < 10.5
    await proxy.aclose()
    server.shutdown()
    await server.wait_closed()
    assert server.statistics().failed == 1


@everywhere
async def test_silent_proxies_do_not_keep_a_draining_server(
    nursery: trio.Nursery, network: str, address: str
) -> None:
    server = trionet.Server(tell, limits=Limits(handshake_timeout=None))
    where = await serving(nursery, server, network, address)
    proxies = [await trionet.dial(network, str(where)) for _ in range(5)]
    while server.statistics().active < 5:
        await trio.sleep(0.001)

    with trio.fail_after(2):
        server.shutdown()
        await server.wait_closed()

    for proxy in proxies:
        await proxy.aclose()
    assert server.statistics().failed == 5


@everywhere
async def test_an_untrusted_or_wrong_peer_is_closed_without_a_word_and_without_a_traceback(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, network: str, address: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server = trionet.Server(tell)
    nobody = ProxyProtocol(trusted=["192.0.2.0/24"])
    where = await serving(nursery, server, network, address, proxy_protocol=nobody)

    proxy = await trionet.dial(network, str(where))
    assert await read_all_or_reset(proxy) == b""
    await proxy.aclose()
    server.shutdown()
    await server.wait_closed()

    assert server.statistics().failed == 1
    assert "is not trusted to send a PROXY header" in caplog.text
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert "Traceback" not in caplog.text


async def test_cve_2020_7694_what_a_peer_sent_for_a_header_is_escaped_in_the_log(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = trionet.Server(tell)
    where = await serving(nursery, server, "memb", "site")

    async with await trionet.dial("memb", str(where)) as proxy:
        await proxy.send_all(b"PROXY TCP4 \x1b[2J\x07 1.1.1.1 1 2\r\n")
        assert await read_all_or_reset(proxy) == b""
    server.shutdown()
    await server.wait_closed()

    assert "\x1b" not in caplog.text
    assert r"\x1b[2J" in caplog.text


async def read_all_or_reset(stream: trio.abc.ReceiveStream) -> bytes:
    try:
        return await read_all(stream)
    except trio.BrokenResourceError:
        return b""


@everywhere
async def test_tls_follows_the_header_in_the_same_segment(
    nursery: trio.Nursery, certificates: Certificates, network: str, address: str
) -> None:
    seen: list[Any] = []

    async def handler(connection: Connection) -> None:
        assert connection.tls is not None
        seen.append((connection.remote_address, connection.proxy_header, connection.tls.version))
        await connection.send_all(await connection.receive_some())

    server = trionet.Server(handler)
    where = await serving(nursery, server, network, address, ssl_context=certificates.server)

    proxy = await trionet.dial(network, str(where))
    await proxy.send_all(V2.encode())
    client = await trionet.start_tls(proxy, certificates.client, server_hostname="localhost")
    await client.send_all(b"secret")
    assert await client.receive_some() == b"secret"
    await trio.aclose_forcefully(client)
    server.shutdown()
    await server.wait_closed()

    assert seen == [(CLIENT, V2, "TLSv1.3")]


async def test_the_timeout_covers_header_and_tls_together(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, certificates: Certificates
) -> None:
    server = trionet.Server(tell, limits=Limits(handshake_timeout=10))
    where = await serving(nursery, server, "memb", "site", ssl_context=certificates.server)
    proxy = await trionet.dial("memb", str(where))

    await trio.sleep(9)
    await proxy.send_all(V2.encode())
    assert await read_all_or_reset(proxy) == b""

    assert trio.current_time() == pytest.approx(10)
    server.shutdown()


async def test_a_connection_snapshot_shows_the_client_once_the_header_is_there(
    nursery: trio.Nursery,
) -> None:
    server = trionet.Server(tell)
    where = await serving(nursery, server, "memb", "site")
    async with await trionet.dial("memb", str(where)) as proxy:
        await trio.testing.wait_all_tasks_blocked()
        (before,) = server.connections
        await proxy.send_all(V1.encode())
        await trio.testing.wait_all_tasks_blocked()
        (after,) = server.connections

    assert (before.remote_address, before.state) == (proxy.local_address, "handshaking")
    assert (after.remote_address, after.local_address) == (CLIENT, DIALLED)
    assert after.state == "active"
    assert after.bytes_received == 0
    server.shutdown()


async def test_what_is_sent_behind_the_header_can_be_ended_half(nursery: trio.Nursery) -> None:
    async def handler(connection: Connection) -> None:
        assert isinstance(connection, trionet.HalfCloseableConnection)
        request = await read_all(connection)
        await connection.send_all(request[::-1])

    server = trionet.Server(handler)
    where = await serving(nursery, server, "tcp", "127.0.0.1:0")
    proxy = await trionet.dial("tcp", str(where))
    assert isinstance(proxy, trionet.SocketStream)
    async with proxy:
        await proxy.send_all(V1.encode() + b"abc")
        await proxy.send_eof()
        assert await read_all(proxy) == b"cba"
    server.shutdown()


@pytest.mark.parametrize("header", [V1, V2])
async def test_cve_2021_22883_peers_that_speak_something_else_leave_no_descriptor(
    nursery: trio.Nursery, header: ProxyHeader
) -> None:
    server = trionet.Server(tell)
    where = await serving(nursery, server, "tcp", "127.0.0.1:0")
    before = descriptors()

    for junk in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), header.encode()[:-2] + b"\xff" * 200):
        for _ in range(20):
            async with await trionet.dial("tcp", str(where)) as peer:
                await peer.send_all(junk)
                assert await read_all_or_reset(peer) == b""
    with trio.fail_after(5):
        while server.statistics().active:
            await trio.sleep(0.001)

    assert descriptors() == before
    assert server.statistics().failed == 60
    server.shutdown()


@pytest.mark.parametrize("phase", ["nothing", "half", "header", "payload"])
@pytest.mark.parametrize("header", [V1, V2])
async def test_resets_at_every_phase_leave_no_descriptor_and_a_serving_server(
    nursery: trio.Nursery, header: ProxyHeader, phase: str
) -> None:
    data = {
        "nothing": b"",
        "half": header.encode()[:20],
        "header": header.encode(),
        "payload": header.encode() + b"no line",
    }[phase]
    server = trionet.Server(tell)
    where = await serving(nursery, server, "tcp", "127.0.0.1:0")
    before = descriptors()

    for pause in (0.0, 0.001):
        for _ in range(10):
            proxy: Any = await trionet.dial("tcp", str(where))
            if data:
                await proxy.send_all(data)
            await trio.sleep(pause)
            proxy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            proxy.close()
    async with await trionet.dial("tcp", str(where)) as proxy:
        await proxy.send_all(header.encode() + b"hello\n")
        assert await read_all(proxy) == f"{CLIENT} {header.version} hello\n".encode()
    with trio.fail_after(5):
        while server.statistics().active:
            await trio.sleep(0.001)

    assert descriptors() == before
    counts = server.statistics()
    assert counts.accepted == counts.completed + counts.failed
    server.shutdown()


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))
