"""TLS over sockets and over memory."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import ssl
from typing import Any

import pytest
import trio
from trio.testing import check_two_way_stream, wait_all_tasks_blocked

import trionet
from tests.conftest import Certificates
from tests.helpers import cancelled_at, clog, connected

OVER = pytest.mark.parametrize(
    ("network", "address"), [("memb", "site"), ("memu", "site"), ("tcp", "localhost:0")]
)


async def tls_pair(network: str, address: str, certificates: Certificates) -> tuple[Any, Any]:
    """Dial and accept one TLS connection, not yet handshaken."""
    if network == "tcp":
        address = "127.0.0.1:0"
    listeners = await trionet.listen(network, address, ssl_context=certificates.server)
    client = await trionet.dial(network, str(listeners[0].address), ssl_context=certificates.client)
    server = await listeners[0].accept()
    for one in listeners:
        await one.aclose()
    return client, server


async def both(one: Any, other: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(other)


@pytest.mark.parametrize(("network", "address"), [("memb", "site"), ("tcp", "localhost:0")])
async def test_tls_keeps_trios_contract(
    network: str, address: str, certificates: Certificates
) -> None:
    async def make() -> Any:
        client, server = await tls_pair(network, address, certificates)
        await both(client.do_handshake, server.do_handshake)
        return client, server

    await check_two_way_stream(make, None)


@OVER
async def test_the_first_send_and_receive_do_the_handshake(
    network: str, address: str, certificates: Certificates
) -> None:
    client, server = await tls_pair(network, address, certificates)
    assert (client.tls, server.tls) == (None, None)
    assert "not handshaken" in repr(client)
    received = []

    async def receive() -> None:
        # Over memu the close_notify, too, waits for somebody to read it.
        while data := await server.receive_some():
            received.append(data)
        await trio.aclose_forcefully(server)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await client.send_all(b"hello")
        await client.aclose()

    assert received == [b"hello"]
    assert client.tls.version == server.tls.version == "TLSv1.3"
    assert client.tls.cipher
    assert client.tls.peer_certificate
    assert server.tls.peer_certificate is None
    assert client.local_address == server.remote_address
    assert (client.bytes_sent, server.bytes_received) == (5, 5)
    assert client.transport_socket is None


async def test_alpn_is_what_both_sides_chose(certificates: Certificates) -> None:
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.authority.issue_cert("site").configure_cert(server_context)
    server_context.set_alpn_protocols(["h2", "http/1.1"])
    client_context = ssl.create_default_context()
    certificates.authority.configure_trust(client_context)
    client_context.set_alpn_protocols(["http/1.1"])
    (listener,) = await trionet.listen("memb", "site", ssl_context=server_context)
    client = await trionet.dial("memb", "site", ssl_context=client_context)
    server = await listener.accept()

    await both(client.do_handshake, server.do_handshake)

    assert client.tls is not None
    assert client.tls.alpn_protocol == server.tls.alpn_protocol == "http/1.1"  # type: ignore[union-attr]


async def test_two_tasks_may_meet_in_the_handshake(certificates: Certificates) -> None:
    client, server = await tls_pair("memb", "site", certificates)
    received = []

    async def receive(stream: Any) -> None:
        received.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        for stream, data in ((client, b"from client"), (server, b"from server")):
            nursery.start_soon(receive, stream)
            nursery.start_soon(stream.send_all, data)

    assert sorted(received) == [b"from client", b"from server"]


async def test_a_failed_handshake_breaks_both_tasks_and_every_later_call(
    certificates: Certificates, autojump_clock: Any
) -> None:
    """trio.SSLStream leaves the second task waiting for ever."""
    near, far = trionet.memory_stream_pair(65536)
    stream = trionet.TLSStream(near, certificates.server, server_side=True)
    broken: list[str] = []

    async def expect_broken(operation: Any, *args: Any) -> None:
        with pytest.raises(trio.BrokenResourceError) as caught:
            await operation(*args)
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        broken.append(operation.__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_broken, stream.receive_some)
        nursery.start_soon(expect_broken, stream.send_all, b"x")
        await wait_all_tasks_blocked()
        await far.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with trio.fail_after(1):
        await expect_broken(stream.do_handshake)
        await expect_broken(stream.wait_send_all_might_not_block)
    assert len(broken) == 4
    await stream.aclose()


async def test_a_connection_reset_before_the_handshake_leaves_no_descriptor_open(
    certificates: Certificates,
) -> None:
    """The standard library forgets the one that it had taken over: filterwarnings sees that."""
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    client = await trionet.dial(
        "tcp", str(listener.address), ssl_context=certificates.client, server_hostname="localhost"
    )
    await listener.aclose()

    with trio.fail_after(5):
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await client.do_handshake()
    await client.aclose()
    gc.collect()


async def test_a_wrong_certificate_fails_on_the_clients_side(certificates: Certificates) -> None:
    (listener,) = await trionet.listen("memb", "site", ssl_context=certificates.server)
    client = await trionet.dial("memb", "site", ssl_context=ssl.create_default_context())
    server = await listener.accept()

    async def expect_broken(stream: Any) -> None:
        with pytest.raises(trio.BrokenResourceError, match="TLS handshake failed"):
            await stream.do_handshake()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_broken, client)
        nursery.start_soon(expect_broken, server)


async def test_a_cut_connection_is_broken_and_a_closed_one_ends(
    certificates: Certificates,
) -> None:
    client, server = await tls_pair("memb", "site", certificates)
    await both(client.do_handshake, server.do_handshake)
    await client.send_all(b"bye")
    await client.aclose()
    assert await server.receive_some() == b"bye"
    assert await server.receive_some() == b""

    client, server = await tls_pair("memb", "site", certificates)
    await both(client.do_handshake, server.do_handshake)
    await client.transport.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some()
    await server.aclose()


async def test_closing_before_the_handshake_does_none(certificates: Certificates) -> None:
    client, server = await tls_pair("memu", "site", certificates)
    await client.aclose()
    assert client.closed
    with pytest.raises(trio.BrokenResourceError):
        await server.do_handshake()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")
    await server.aclose()
    await server.aclose()


async def test_a_receive_can_be_interrupted(certificates: Certificates) -> None:
    client, server = await tls_pair("memb", "site", certificates)
    await both(client.do_handshake, server.do_handshake)
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trionet.abc.ReceiveInterrupted):
                await server.receive_some()

        nursery.start_soon(receive)
        await wait_all_tasks_blocked()
        server.interrupt_receive()
    server.resume_receive()
    await client.send_all(b"goes on")
    assert server.is_readable()
    assert await server.receive_some() == b"goes on"


async def test_a_listeners_context_can_be_replaced(certificates: Certificates) -> None:
    (listener,) = await trionet.listen("memb", "site", ssl_context=certificates.server)
    fresh = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    other = type(certificates.authority)()
    other.issue_cert("site").configure_cert(fresh)
    trust = ssl.create_default_context()
    other.configure_trust(trust)

    listener.ssl_context = fresh

    client = await trionet.dial("memb", "site", ssl_context=trust)
    server = await listener.accept()
    await both(client.do_handshake, server.do_handshake)
    assert repr(listener) == "<TLSListener over <MemoryListener memb site>>"
    await listener.aclose()


async def test_a_listeners_context_is_not_replaced_by_what_is_none(
    certificates: Certificates,
) -> None:
    (listener,) = await trionet.listen("memb", "site", ssl_context=certificates.server)
    with pytest.raises(TypeError, match=r"ssl_context must be an ssl\.SSLContext, got None"):
        listener.ssl_context = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="a client's"):
        listener.ssl_context = certificates.client

    assert listener.ssl_context is certificates.server
    await listener.aclose()


async def test_start_tls_switches_a_connection_in_use(certificates: Certificates) -> None:
    client, server = await connected("memb", "site")
    await client.send_all(b"STARTTLS")
    assert await server.receive_some() == b"STARTTLS"
    streams: dict[str, trionet.TLSStream] = {}

    async def switch(name: str, stream: Any, context: ssl.SSLContext, **settings: Any) -> None:
        streams[name] = await trionet.start_tls(stream, context, **settings)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: switch("client", client, certificates.client, server_hostname="site")
        )
        nursery.start_soon(lambda: switch("server", server, certificates.server, server_side=True))
    await streams["client"].send_all(b"secret")
    assert await streams["server"].receive_some() == b"secret"


async def test_start_tls_closes_what_it_cannot_secure(certificates: Certificates) -> None:
    client, server = await connected("memb", "site")
    await client.send_all(b"this is no ClientHello at all")
    with pytest.raises(trio.BrokenResourceError):
        await trionet.start_tls(server, certificates.server, server_side=True)
    assert server.closed
    with pytest.raises(ValueError, match="server_hostname is for clients"):
        await trionet.start_tls(
            client, certificates.server, server_side=True, server_hostname="site"
        )


async def test_tls_runs_over_a_foreign_stream(certificates: Certificates) -> None:
    near, far = trio.testing.memory_stream_pair()
    client = trionet.TLSStream(near, certificates.client, server_hostname="site")
    server = trionet.TLSStream(far, certificates.server, server_side=True)
    await both(client.do_handshake, server.do_handshake)
    await client.send_all(b"hello")
    assert await server.receive_some() == b"hello"
    assert client.local_address.network == "unknown"


@OVER
async def test_a_handshake_cancelled_at_any_step_goes_on_with_the_next_caller(
    network: str, address: str, certificates: Certificates
) -> None:
    for side in ("client", "server"):
        for n in itertools.count(1):
            client, server = await tls_pair(network, address, certificates)
            near, far = (client, server) if side == "client" else (server, client)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(far.do_handshake)
                attempt = await cancelled_at(n, near.do_handshake)
                with trio.fail_after(5):
                    await near.do_handshake()
            received: list[bytes] = []

            async def receive(stream: Any = far, received: list[bytes] = received) -> None:
                received.append(await stream.receive_some())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await near.send_all(b"whole")
            assert received == [b"whole"]
            await trio.aclose_forcefully(near)
            await trio.aclose_forcefully(far)
            if attempt.last:
                break


@pytest.mark.parametrize(("network", "address"), [("memb", "site"), ("tcp", "localhost:0")])
async def test_a_cancelled_send_leaves_the_records_whole(
    network: str, address: str, certificates: Certificates
) -> None:
    client, server = await tls_pair(network, address, certificates)
    await both(client.do_handshake, server.do_handshake)
    data = os.urandom(20_000_000)
    with trio.move_on_after(0.1) as scope:
        await client.send_all(data)
    assert scope.cancelled_caught
    received = bytearray()
    async with trio.open_nursery() as nursery:

        async def finish() -> None:
            with trio.move_on_after(0):
                await client.send_all(b"never begun: cancelled before")
            await client.send_all(b"and the end")
            await client.aclose()

        nursery.start_soon(finish)
        while piece := await server.receive_some():
            received += piece
    assert received.endswith(b"and the end")
    body = bytes(received).removesuffix(b"and the end")
    assert data.startswith(body)
    assert client.bytes_sent == len(received) == server.bytes_received
    await server.aclose()


@pytest.mark.parametrize(("network", "address"), [("memb", "site"), ("tcp", "localhost:0")])
async def test_a_receive_cancelled_at_any_step_loses_nothing(
    network: str, address: str, certificates: Certificates
) -> None:
    client, server = await tls_pair(network, address, certificates)
    await both(client.do_handshake, server.do_handshake)
    for n in itertools.count(1):
        await client.send_all(b"abc")
        attempt = await cancelled_at(n, server.receive_some)
        received = attempt.result if attempt.finished else b""
        while len(received) < 3:
            received += await server.receive_some()
        assert received == b"abc"
        if attempt.last:
            break
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


async def test_a_connection_at_rest_is_not_readable_for_its_session_tickets(
    certificates: Certificates,
) -> None:
    """A pool would throw a healthy client away: it is readable, so the peer spoke out of turn."""
    client, server = await tls_pair("tcp", "localhost:0", certificates)
    await both(client.do_handshake, server.do_handshake)
    while not client.transport.is_readable():
        await trio.sleep(0.001)

    assert not client.is_readable()

    await server.send_all(b"out of turn")
    while not client.is_readable():
        await trio.sleep(0.001)
    assert client.is_readable()
    assert await client.receive_some(3) == b"out"
    assert client.is_readable()
    assert await client.receive_some() == b" of turn"
    await server.aclose()
    while not client.is_readable():
        await trio.sleep(0.001)
    assert await client.receive_some() == b""
    await client.aclose()


async def test_one_task_sends_while_another_receives_over_a_full_connection(
    certificates: Certificates,
) -> None:
    for network in ("memb", "tcp"):
        client, server = await tls_pair(network, "site", certificates)
        await both(client.do_handshake, server.do_handshake)
        data = os.urandom(3_000_000)
        received: dict[Any, bytearray] = {client: bytearray(), server: bytearray()}

        async def receive(
            stream: Any, received: dict[Any, bytearray] = received, size: int = len(data)
        ) -> None:
            while len(received[stream]) < size:
                received[stream] += await stream.receive_some()

        async with trio.open_nursery() as nursery:
            for stream in (client, server):
                nursery.start_soon(stream.send_all, data)
                nursery.start_soon(receive, stream)
        assert received[client] == received[server] == data
        await trio.aclose_forcefully(client)
        await trio.aclose_forcefully(server)


async def test_closing_wakes_whoever_waits(certificates: Certificates) -> None:
    client, server = await tls_pair("tcp", "localhost:0", certificates)
    await both(client.do_handshake, server.do_handshake)
    await clog(server)

    async def expect_closed(operation: Any, *args: Any) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await operation(*args)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, server.receive_some)
        nursery.start_soon(expect_closed, server.send_all, b"x")
        await wait_all_tasks_blocked()
        with trio.move_on_after(0.05):
            await server.aclose()
    assert server.closed
    await client.aclose()


@pytest.mark.parametrize("network", ["memb", "tcp"])
async def test_a_failed_handshake_says_which_side_refused(
    network: str, certificates: Certificates
) -> None:
    listeners = await trionet.listen(
        network, "site" if network == "memb" else "127.0.0.1:0", ssl_context=certificates.server
    )
    client = await trionet.dial(
        network,
        str(listeners[0].address),
        ssl_context=ssl.create_default_context(),
        server_hostname="site",
    )
    server = await listeners[0].accept()

    async def expect(stream: Any, words: str) -> None:
        with pytest.raises(trio.BrokenResourceError, match=words):
            await stream.do_handshake()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, client, "on this side.*certificate verify failed")
        nursery.start_soon(expect, server, "the peer says.*unknown ca")
    await listeners[0].aclose()


async def test_nothing_a_client_sent_is_delivered_before_it_is_known(
    certificates: Certificates,
) -> None:
    """CVE-2023-40217: bytes from before the handshake were read as if authenticated."""
    strict = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.authority.issue_cert("localhost").configure_cert(strict)
    certificates.authority.configure_trust(strict)
    strict.verify_mode = ssl.CERT_REQUIRED
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0", ssl_context=strict)

    with socket.create_connection(("127.0.0.1", listener.address.port or 0)) as plain:
        plain.sendall(b"GET /secret HTTP/1.1\r\n\r\n")
    server = await listener.accept()
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some()
    assert server.bytes_received == 0
    await server.aclose()

    # A client without a certificate, over TLS 1.3, believes itself connected at first.
    client = await trionet.dial(
        "tcp", f"localhost:{listener.address.port}", ssl_context=certificates.client
    )
    server = await listener.accept()

    async def talk() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(b"secret")
            await client.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()
        assert server.bytes_received == 0
        await server.aclose()
    await client.aclose()
    await listener.aclose()


async def test_a_cancelled_send_over_a_foreign_stream_breaks_it(
    certificates: Certificates,
) -> None:
    near, far = trio.testing.memory_stream_pair()
    client = trionet.TLSStream(near, certificates.client, server_hostname="site")
    server = trionet.TLSStream(far, certificates.server, server_side=True)
    await both(client.do_handshake, server.do_handshake)
    near.send_stream.send_all_hook = trio.sleep_forever
    with trio.move_on_after(0.01):
        await client.send_all(b"half")
    with pytest.raises(trio.BrokenResourceError, match="cancelled send"):
        await client.send_all(b"more")


async def test_bytes_sent_tells_what_a_cancelled_send_will_deliver(
    certificates: Certificates,
) -> None:
    client, server = await tls_pair("tcp", "localhost:0", certificates)
    await both(client.do_handshake, server.do_handshake)
    buffer = bytearray(os.urandom(10_000_000))
    view = memoryview(buffer)
    with trio.move_on_after(0.1) as scope:
        await client.send_all(view)
    assert scope.cancelled_caught
    promised = client.bytes_sent
    # Nothing of the caller's is kept: the buffer can be resized, and changed.
    view.release()
    sent = bytes(buffer[:promised])
    buffer.clear()

    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        while piece := await server.receive_some():
            received += piece
    assert received == sent
    await server.aclose()


async def test_tls_over_tls_survives_a_cancelled_send(certificates: Certificates) -> None:
    outer_client, outer_server = await tls_pair("tcp", "localhost:0", certificates)
    client = trionet.TLSStream(outer_client, certificates.client, server_hostname="site")
    server = trionet.TLSStream(outer_server, certificates.server, server_side=True)
    await both(client.do_handshake, server.do_handshake)
    data = os.urandom(10_000_000)
    with trio.move_on_after(0.2) as scope:
        await client.send_all(data)
    assert scope.cancelled_caught
    received = bytearray()
    async with trio.open_nursery() as nursery:

        async def finish() -> None:
            await client.send_all(b"and the end")
            await client.aclose()

        nursery.start_soon(finish)
        while piece := await server.receive_some():
            received += piece
    assert received.endswith(b"and the end")
    assert data.startswith(received.removesuffix(b"and the end"))
    await server.aclose()


async def test_a_second_aclose_cuts_the_first_ones_farewell_short(
    certificates: Certificates, autojump_clock: Any
) -> None:
    client, server = await tls_pair("memu", "site", certificates)
    await both(client.do_handshake, server.do_handshake)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.aclose)
        await wait_all_tasks_blocked()
        assert not server.transport.closed
        await trio.aclose_forcefully(server)
        assert server.transport.closed
    assert trio.current_time() == 0


async def test_an_interrupted_stream_still_leads_a_handshake(certificates: Certificates) -> None:
    client, server = await tls_pair("memb", "site", certificates)
    client.interrupt_receive()
    received = []

    async def receive() -> None:
        received.append(await server.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await client.send_all(b"hello")
    assert received == [b"hello"]
    with pytest.raises(trionet.abc.ReceiveInterrupted):
        await client.receive_some()


async def test_a_context_of_the_wrong_side_is_refused(certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="a client's"):
        await trionet.listen("memu", "site", ssl_context=certificates.client)
    with pytest.raises(ValueError, match="a server's"):
        await trionet.dial("memu", "site", ssl_context=certificates.server)
    with pytest.raises(ValueError, match=r"'\.x' is not a host name"):
        await trionet.dial("memu", "site", ssl_context=certificates.client, server_hostname=".x")
    assert trionet.names("memu") == []
