"""Connections that a proxy forwards: the header is read, exactly, and then out of the way."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionet
from tests.helpers import cancelled_at, clog, read_all
from trionet import Address, ProxyHeader, ProxyProtocol
from trionet._streams import readiness
from trionet._streams.tls_engine import DescriptorEngine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.conftest import Certificates
    from trionet.abc import Stream

# Of this process alone: several test runs may share a machine.
ABSTRACT = f"@trionet-preface-test-{os.getpid()}"

ANYBODY = ProxyProtocol(trusted=["0.0.0.0/0", "::/0", "unix", "memu", "memb"])

CLIENT = Address("tcp4", host="192.0.2.1", port=56324)
DIALLED = Address("tcp4", host="192.0.2.11", port=443)
V1 = ProxyHeader("v1", CLIENT, DIALLED)
V2 = ProxyHeader("v2", CLIENT, DIALLED, tlvs=((1, b"h2"),), checksum=True)

NETWORKS = [("tcp", "127.0.0.1:0"), ("memb", "site"), ("memu", "site")]

everywhere = pytest.mark.parametrize(("network", "address"), NETWORKS, ids=lambda value: value)
both_versions = pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])


async def forwarded(
    network: str, address: str, settings: ProxyProtocol = ANYBODY, **arguments: Any
) -> tuple[Stream, Any]:
    """Return the proxy's end of a connection, and the stream that was accepted."""
    (listener,) = await trionet.listen(network, address, proxy_protocol=settings, **arguments)
    proxy = await trionet.dial(network, str(listener.address))
    with trio.fail_after(5):
        accepted = await listener.accept()
    await listener.aclose()
    return proxy, accepted


@everywhere
@both_versions
async def test_after_the_header_the_addresses_are_the_clients(
    network: str, address: str, header: ProxyHeader
) -> None:
    proxy, stream = await forwarded(network, address)
    async with proxy, stream:
        before = stream.local_address, stream.remote_address
        unread = stream.proxy_header
        assert unread is None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(proxy.send_all, header.encode())
            await stream.do_handshake()

        assert (stream.local_address, stream.remote_address) == (DIALLED, CLIENT)
        assert stream.proxy_header == header
        assert (stream.transport.local_address, stream.transport.remote_address) == before


@everywhere
@pytest.mark.parametrize(
    "header",
    [ProxyHeader("v1"), ProxyHeader("v2"), ProxyHeader("v2", command="LOCAL")],
    ids=["UNKNOWN", "UNSPEC", "LOCAL"],
)
async def test_a_header_that_names_nobody_leaves_the_real_addresses(
    network: str, address: str, header: ProxyHeader
) -> None:
    proxy, stream = await forwarded(network, address)
    async with proxy, stream:
        before = stream.local_address, stream.remote_address

        async with trio.open_nursery() as nursery:
            nursery.start_soon(proxy.send_all, header.encode() + b"x")
            assert await stream.receive_some(1) == b"x"

        assert (stream.local_address, stream.remote_address) == before
        assert stream.proxy_header == header


@everywhere
@both_versions
async def test_a_header_that_comes_byte_by_byte_is_read(
    network: str, address: str, header: ProxyHeader
) -> None:
    proxy, stream = await forwarded(network, address)
    async with proxy, stream:

        async def send() -> None:
            for byte in header.encode() + b"abc":
                await proxy.send_all(bytes([byte]))
                await trio.testing.wait_all_tasks_blocked(0.0005)
            await proxy.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await stream.do_handshake()
            assert await read_all(stream) == b"abc"

        assert stream.bytes_received == 3


@everywhere
@both_versions
async def test_a_header_cut_anywhere_is_read_and_the_payload_behind_it_kept(
    network: str, address: str, header: ProxyHeader
) -> None:
    data = header.encode() + b"payload"
    for cut in range(1, len(data)):
        proxy, stream = await forwarded(network, address)
        async with proxy, stream:

            async def send(proxy: Stream = proxy, cut: int = cut) -> None:
                await proxy.send_all(data[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await proxy.send_all(data[cut:])
                await proxy.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                assert await read_all(stream) == b"payload"
            assert stream.proxy_header == header
            assert stream.bytes_received == 7


@everywhere
@both_versions
async def test_header_and_payload_in_one_segment_are_told_apart(
    network: str, address: str, header: ProxyHeader
) -> None:
    proxy, stream = await forwarded(network, address)
    async with proxy, stream, trio.open_nursery() as nursery:
        nursery.start_soon(proxy.send_all, header.encode() + b"payload" + V1.encode())
        await stream.do_handshake()

        assert stream.is_readable()
        assert await stream.receive_some(7) == b"payload"
        # Only the first header is one.
        assert await stream.receive_some(1000) == V1.encode()


async def test_after_the_header_a_socket_is_shown_and_before_it_is_not() -> None:
    proxy, stream = await forwarded("tcp", "127.0.0.1:0")
    async with proxy, stream:
        assert stream.transport_socket is None
        await proxy.send_all(V1.encode() + b"abc")
        await stream.do_handshake()

        assert stream.transport_socket is stream.transport.socket
        assert stream.unread_size() == 3


@both_versions
async def test_half_a_header_on_a_socket_is_waited_for_and_not_polled(
    monkeypatch: pytest.MonkeyPatch, header: ProxyHeader
) -> None:
    waits = 0
    park: Callable[[socket.socket], Awaitable[None]] = readiness.park_readable

    async def counted(sock: socket.socket) -> None:
        nonlocal waits
        waits += 1
        await park(sock)

    monkeypatch.setattr(readiness, "park_readable", counted)
    proxy, stream = await forwarded("tcp", "127.0.0.1:0")
    async with proxy, stream, trio.open_nursery() as nursery:
        for half in (header.encode()[:10], header.encode()[10:25], header.encode()[25:40]):
            await proxy.send_all(half)
            if half == header.encode()[:10]:
                nursery.start_soon(stream.do_handshake)
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert 1 <= waits <= 3
        await proxy.send_all(header.encode()[40:])


@everywhere
@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: site\r\n\r\n",
        bytes.fromhex("16030100c8010000c40303") + bytes(200),
        b"PROXY TCP4 256.1.1.1 192.0.2.1 1 2\r\n",
        b"PROXY UNKNOWN " + b"x" * 200,
        V2.encode()[:12] + b"\x31" + V2.encode()[13:],
        V2.encode()[:-1] + b"!",
    ],
)
async def test_anything_else_is_broken_now_and_later(
    network: str, address: str, junk: bytes
) -> None:
    proxy, stream = await forwarded(network, address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio_send_ignoring_the_end, proxy, junk)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        for again in (stream.do_handshake, stream.receive_some, lambda: stream.send_all(b"x")):
            with pytest.raises(trio.BrokenResourceError, match="no PROXY header"):
                await again()
        assert stream.proxy_header is None
        assert stream.transport_socket is None
        await trio.aclose_forcefully(stream)
    await proxy.aclose()


async def trio_send_ignoring_the_end(stream: Stream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        return


@everywhere
@pytest.mark.parametrize("size", [0, 1, 15, 16, 30])
async def test_end_of_file_within_the_header_is_broken(
    network: str, address: str, size: int
) -> None:
    for header in (V1, V2):
        proxy, stream = await forwarded(network, address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_close, proxy, header.encode()[:size])
            with pytest.raises(trio.BrokenResourceError, match=f"ended after {size} bytes"):
                await stream.do_handshake()
        await stream.aclose()


async def send_and_close(stream: Stream, data: bytes) -> None:
    if data:
        await stream.send_all(data)
    await stream.aclose()


async def test_a_reset_within_the_header_is_broken() -> None:
    proxy, stream = await forwarded("tcp", "127.0.0.1:0")
    assert isinstance(proxy, trionet.SocketStream)
    async with stream:
        await proxy.send_all(V1.encode()[:20])
        proxy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        proxy.close()

        with pytest.raises(trio.BrokenResourceError, match="the connection broke"):
            await stream.do_handshake()


@pytest.mark.parametrize(
    ("trusted", "network", "address", "accepted"),
    [
        (["127.0.0.0/8"], "tcp", "127.0.0.1:0", True),
        (["127.0.0.1"], "tcp", "127.0.0.1:0", True),
        ([ipaddress.ip_network("127.0.0.0/8")], "tcp", "127.0.0.1:0", True),
        (["10.0.0.0/8", "::/0", "unix"], "tcp", "127.0.0.1:0", False),
        (["::1"], "tcp6", "[::1]:0", True),
        (["0.0.0.0/0"], "tcp6", "[::1]:0", False),
        (["unix"], "unix", ABSTRACT, True),
        (["0.0.0.0/0", "::/0", "memb"], "unix", ABSTRACT, False),
        (["memb"], "memb", "site", True),
        (["memu", "0.0.0.0/0"], "memb", "site", False),
    ],
)
async def test_only_trusted_peers_may_speak_for_others(
    trusted: Any, network: str, address: str, accepted: bool
) -> None:
    proxy, stream = await forwarded(network, address, ProxyProtocol(trusted=trusted))
    async with proxy, stream:
        await proxy.send_all(V1.encode() + b"x")
        if accepted:
            assert await stream.receive_some() == b"x"
        else:
            with pytest.raises(trio.BrokenResourceError, match="not trusted to send a PROXY"):
                await stream.do_handshake()
            with pytest.raises(trio.BrokenResourceError, match="no PROXY header"):
                await stream.receive_some()
            # Nothing of it was read.
            assert stream.unread_size() == len(V1.encode()) + 1


async def test_an_ipv4_peer_of_a_listener_for_both_families_is_found_in_ipv4_networks() -> None:
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))
    sock.listen()
    settings = ProxyProtocol(trusted=["127.0.0.0/8"])
    listener = trionet.ProxyListener(trionet.SocketListener(sock), settings)
    proxy = await trionet.dial("tcp", f"127.0.0.1:{sock.getsockname()[1]}")
    async with listener, proxy:
        await proxy.send_all(V1.encode())
        async with await listener.accept() as stream:
            await stream.do_handshake()
            assert stream.remote_address == CLIENT


@pytest.mark.parametrize("versions", [["v1"], ["v2"]])
async def test_a_version_that_is_not_configured_is_refused(versions: Any) -> None:
    settings = ProxyProtocol(versions=versions, trusted=["memb"])
    for header in (V1, V2):
        proxy, stream = await forwarded("memb", "site", settings)
        await proxy.send_all(header.encode())
        if header.version in versions:
            await stream.do_handshake()
        else:
            with pytest.raises(trio.BrokenResourceError, match="no PROXY header"):
                await stream.do_handshake()
        await proxy.aclose()
        await stream.aclose()


@everywhere
@both_versions
async def test_a_cancelled_read_goes_on_where_it_was(
    network: str, address: str, header: ProxyHeader
) -> None:
    data = header.encode() + b"payload"
    for step in range(1, 9):
        proxy, stream = await forwarded(network, address)
        async with trio.open_nursery() as nursery:

            async def send(proxy: Stream = proxy) -> None:
                for start in range(0, len(data), 9):
                    await proxy.send_all(data[start : start + 9])
                await proxy.aclose()

            nursery.start_soon(send)
            await cancelled_at(step, stream.do_handshake)
            assert await read_all(stream) == b"payload"
        assert stream.proxy_header == header
        await stream.aclose()


@everywhere
async def test_a_send_under_way_shows(network: str, address: str) -> None:
    proxy, stream = await forwarded(network, address)
    async with proxy, stream, trio.open_nursery() as nursery:
        nursery.start_soon(proxy.send_all, V1.encode())
        await stream.do_handshake()
        assert not stream.sending
        assert not trionet.BufferedStream(stream).sending
        await clog(stream)
        nursery.start_soon(stream.send_all, bytes(2))
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert stream.sending
        assert trionet.BufferedStream(stream).sending
        nursery.cancel_scope.cancel()


async def test_nothing_passes_without_a_wait_before_the_header_was_read() -> None:
    proxy, stream = await forwarded("tcp", "127.0.0.1:0")
    async with proxy, stream:
        await proxy.send_all(V2.encode() + b"payload")
        assert stream.send_nowait(b"x") == 0
        with pytest.raises(trio.WouldBlock):
            stream.receive_nowait()
        await stream.do_handshake()

        assert trionet.BufferedStream(stream).send_nowait(b"hello") == 5
        assert stream.receive_nowait() == b"payload"
        assert stream.bytes_received == 7
        with pytest.raises(trio.WouldBlock):
            stream.receive_nowait()
        assert await proxy.receive_some() == b"hello"


@everywhere
async def test_two_tasks_may_meet_in_the_handshake(network: str, address: str) -> None:
    proxy, stream = await forwarded(network, address)
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await stream.receive_some(7))

    async with proxy, stream, trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(stream.do_handshake)
        nursery.start_soon(stream.send_all, b"hello")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(proxy.send_all, V2.encode() + b"payload")
        # Sending, too, has waited for the header.
        assert await proxy.receive_some(5) == b"hello"

    assert got == [b"payload"]


async def test_closing_during_the_header_is_closed_for_whoever_reads_it() -> None:
    for network, address in NETWORKS:
        proxy, stream = await forwarded(network, address)

        async def read(stream: Any = stream) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.do_handshake()

        async with proxy, trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked(0.005)
            await stream.aclose()
        assert stream.closed
        with pytest.raises(trio.ClosedResourceError):
            await stream.do_handshake()


@everywhere
async def test_end_of_file_passes_in_both_directions(network: str, address: str) -> None:
    proxy, stream = await forwarded(network, address)
    assert isinstance(stream, trionet.HalfCloseableProxyStream)
    assert isinstance(proxy, trio.abc.HalfCloseableStream)
    async with proxy, stream, trio.open_nursery() as nursery:
        nursery.start_soon(proxy.send_all, V1.encode())
        await stream.send_eof()
        assert await proxy.receive_some() == b""
        await proxy.send_eof()
        assert await stream.receive_some() == b""
        assert stream.peer_closed()


@everywhere
@both_versions
async def test_tls_begins_right_behind_the_header(
    network: str, address: str, header: ProxyHeader, certificates: Certificates
) -> None:
    proxy, stream = await forwarded(network, address, ssl_context=certificates.server)
    assert isinstance(stream, trionet.TLSStream)
    got: list[bytes] = []

    async def answer() -> None:
        got.append(bytes(await stream.receive_some()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await proxy.send_all(header.encode())
        client = await trionet.start_tls(proxy, certificates.client, server_hostname="localhost")
        await client.send_all(b"secret")

    assert got == [b"secret"]
    # Over a socket OpenSSL works on the descriptor, header or not.
    assert isinstance(stream._engine, DescriptorEngine) == (network == "tcp")
    assert stream.remote_address == CLIENT
    assert stream.proxy_header == header
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("network", ["tcp", "memb"])
async def test_it_passes_trios_conformance_check(network: str) -> None:
    async def make() -> tuple[Any, Any]:
        address = "127.0.0.1:0" if network == "tcp" else "site"
        proxy, stream = await forwarded(network, address)
        await proxy.send_all(V2.encode())
        await stream.do_handshake()
        return proxy, stream

    await trio.testing.check_half_closeable_stream(make, None)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"trusted": []}, ValueError, "at least one network"),
        ({"trusted": "10.0.0.0/8"}, TypeError, "must be a list, got '10.0.0.0/8'"),
        ({"trusted": ["10.0.0.1/8"]}, ValueError, "host bits set"),
        ({"trusted": ["site"]}, ValueError, "'site' does not appear to be"),
        ({"trusted": [7]}, TypeError, "networks as str, got 7"),
        ({"trusted": ["unix"], "versions": ["v3"]}, ValueError, "got \\('v3',\\)"),
        ({"trusted": ["unix"], "versions": []}, ValueError, "got \\(\\)"),
        ({"trusted": ["unix"], "versions": "v1"}, TypeError, "must be a list, got 'v1'"),
    ],
)
def test_wrong_settings_are_named(arguments: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        ProxyProtocol(**arguments)


@pytest.mark.parametrize(("network", "address"), NETWORKS)
async def test_listening_with_settings_of_another_kind_opens_nothing(
    network: str, address: str
) -> None:
    with pytest.raises(TypeError, match="proxy_protocol must be a ProxyProtocol, got True"):
        await trionet.listen(network, address, proxy_protocol=True)  # type: ignore[call-overload]

    assert trionet.names("memu") == trionet.names("memb") == []
