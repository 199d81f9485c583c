"""trionet's own dial and listen reach the virtual host that the task lives on."""

from __future__ import annotations

import errno
import ssl
from typing import Any

import pytest
import trio
import trio.testing
import trustme

import trionet
import trionet.abc
from tests.testing.virtual import drain, echo, two_hosts
from trionet import Link, SocketOptions
from trionet.testing import (
    Host,
    VirtualListener,
    VirtualNetwork,
    VirtualStream,
    check_listener,
    check_network,
)

LINKS = {
    "null": Link(),
    "latency": Link(latency=0.01),
    "jitter": Link(latency=0.01, jitter=0.05),
    "bandwidth": Link(bandwidth=1e6, latency=0.001),
    "loss": Link(loss=0.2),
    "everything": Link(latency=0.01, jitter=0.02, bandwidth=1e6, loss=0.1, segment_size=500),
}
every_link = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())


async def stream_pair(
    server: Host, client: Host, network: str = "tcp", options: SocketOptions | None = None
) -> tuple[VirtualStream, VirtualStream]:
    address = "@name" if network == "unix" else "server:80"
    here = server if network == "unix" else client
    listener, *rest = await server.listen(network, address.replace("server", ""), options=options)
    near = await here.dial(network, address, options=options)
    far = await listener.accept()
    for one in (listener, *rest):
        one.close()
    assert isinstance(near, VirtualStream)
    assert isinstance(far, VirtualStream)
    return near, far


async def test_dial_and_listen_reach_the_host_of_the_task(autojump_clock: object) -> None:
    async with two_hosts(Link(latency=0.1)) as (_, server, client):
        with server.context():
            listeners = await trionet.listen("tcp", ":80")
        with client.context():
            near = await trionet.dial("tcp", "server:80")
        assert trio.current_time() == 0.2
        far = await listeners[0].accept()

        # The third segment of the handshake has to arrive, too.
        assert trio.current_time() == pytest.approx(0.3)
        assert [str(one.address) for one in listeners] == ["0.0.0.0:80", "[::]:80"]
        assert isinstance(near, VirtualStream)
        assert isinstance(far, VirtualStream)
        assert str(near.remote_address) == f"{server.addresses[0]}:80"
        assert far.remote_address == near.local_address
        assert near.local_address.network == "tcp4"
        assert near.transport_socket is None
        await near.send_all(b"hello")
        assert await far.receive_some() == b"hello"
        assert (near.bytes_sent, far.bytes_received) == (5, 5)
        assert "tcp4" in repr(near)
        for thing in (near, far, *listeners):
            await thing.aclose()
        assert "closed" in repr(near)
        assert "closed" in repr(listeners[0])


async def test_outside_of_the_block_the_system_is_the_network_again() -> None:
    async with VirtualNetwork():
        assert trionet.abc.system_network.get() is not None
    assert trionet.abc.system_network.get() is None


@every_link
@pytest.mark.parametrize("network", ["tcp", "unix"])
async def test_a_virtual_stream_passes_trios_checks(
    link: Link, network: str, autojump_clock: object
) -> None:
    async with two_hosts(link) as (_, server, client):

        async def plain() -> Any:
            return await stream_pair(server, client, network)

        async def clogged() -> Any:
            options = SocketOptions(send_buffer=2000, receive_buffer=2000)
            near, far = await stream_pair(server, client, network, options)
            for stream in (near, far):
                while stream._end.buffered < 2000:
                    stream.send_nowait(bytes(10_000))
                    await trio.sleep(100)
            return near, far

        await trio.testing.check_half_closeable_stream(plain, clogged)


async def test_its_listeners_pass_the_checks(autojump_clock: object) -> None:
    async with two_hosts(Link(latency=0.01)) as (_, server, client):

        async def make() -> Any:
            (listener,) = await server.listen("tcp4", ":80")
            return listener, lambda: client.dial("tcp", "server:80")

        await check_listener(make)


@pytest.mark.parametrize(
    ("network", "address"), [("tcp", "localhost:80"), ("unix", "/run/app"), ("unix", "@app")]
)
async def test_a_host_passes_the_checks_of_a_network(
    network: str, address: str, autojump_clock: object
) -> None:
    async with VirtualNetwork() as net:
        host = net.host("server")

        async def make() -> Any:
            return host, network, address

        await check_network(make)


async def test_tls_over_it(autojump_clock: object, nursery: trio.Nursery) -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("server").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)

    async with two_hosts(Link(latency=0.01)) as (_, server, client):
        serving = trionet.Server(echo)
        listeners = await server.listen("tcp", ":443", ssl_context=server_side)
        await nursery.start(serving.serve, listeners)
        with client.context():
            stream = await trionet.dial("tcp", "server:443", ssl_context=client_side)
        await stream.send_all(b"secret")
        assert await stream.receive_some() == b"secret"
        await stream.aclose()
        serving.shutdown(grace=1)
        await serving.wait_closed()


async def test_a_server_drains_and_a_pool_lends_on_virtual_hosts(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(Link(latency=0.01)) as (_, server, client):
        serving = trionet.Server(echo)
        await nursery.start(serving.serve, await server.listen("tcp", ":80"))

        async def connect() -> trionet.abc.Stream:
            return await client.dial("tcp", "server:80")

        async with trionet.Pool(connect, max_size=2) as pool:
            for _ in range(3):
                async with pool.acquire() as stream:
                    await stream.send_all(b"x")
                    assert await stream.receive_some() == b"x"
            assert len(serving.connections) == 1
            serving.shutdown(grace=0)
            report = await serving.wait_closed()
        assert report.cancelled + report.completed == 1


async def test_a_mux_runs_over_it(autojump_clock: object, nursery: trio.Nursery) -> None:
    async with two_hosts(Link(latency=0.01, bandwidth=1e6)) as (_, server, client):
        near, far = await stream_pair(server, client)
        async with (
            trionet.open_mux(near, role="client") as one,
            trionet.open_mux(far, role="server") as other,
        ):
            channel = await one.open_stream()
            await channel.send_all(bytes(100_000))
            await channel.send_eof()
            accepted = await other.listener().accept()
            assert len(await drain(accepted)) == 100_000
            assert await one.ping() >= 0.02


async def test_a_socket_stream_and_a_virtual_stream_are_two_faces_of_one_connection(
    autojump_clock: object,
) -> None:
    async with two_hosts() as (_, server, client):
        (listener, _other) = await server.listen("tcp", ":80")
        with client.context():
            trios = await trio.open_tcp_stream("server", 80)
        ours = await listener.accept()

        await trios.send_all(b"from trio's")
        assert await ours.receive_some() == b"from trio's"
        await ours.aclose()
        assert await trios.receive_some() == b""
        await trios.aclose()


async def test_a_unix_path_is_its_hosts_own_and_is_taken_over_in_one_step(
    autojump_clock: object,
) -> None:
    async with two_hosts(Link(latency=5)) as (_, server, client):
        (old,) = await server.listen("unix", "/run/app")
        with pytest.raises(FileNotFoundError):
            await client.dial("unix", "/run/app")
        (new,) = await server.listen("unix", "/run/app")
        with server.context():
            stream = await trio.open_unix_socket("/run/app")
        far = await new.accept()
        assert trio.current_time() == 0
        assert str(far.local_address) == "/run/app"
        assert str(far.remote_address) == ""
        with pytest.raises(trio.WouldBlock):
            old.accept_nowait()
        await old.aclose()
        await (await server.dial("unix", "/run/app")).aclose()
        await new.aclose()
        with pytest.raises(FileNotFoundError):
            await server.dial("unix", "/run/app")
        await stream.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"x")
        await far.aclose()


async def test_a_raw_unix_socket_leaves_its_path_behind_and_an_abstract_name_not(
    autojump_clock: object,
) -> None:
    async with VirtualNetwork() as net:
        home = net.host("localhost")
        for path, kind in (("/run/raw", ConnectionRefusedError), ("\0raw", ConnectionRefusedError)):
            sock = trio.socket.socket(trio.socket.AF_UNIX)
            await sock.bind(path)
            with trio.socket.socket(trio.socket.AF_UNIX) as second:
                with pytest.raises(OSError) as caught:
                    await second.bind(path)
                assert caught.value.errno == errno.EADDRINUSE
            sock.listen()
            sock.close()
            with trio.socket.socket(trio.socket.AF_UNIX) as late, pytest.raises(kind):
                await late.connect(path)
        assert list(home.stack.paths) == ["/run/raw"]


async def test_a_peer_that_closes_a_unix_socket_with_unread_bytes_resets(
    autojump_clock: object,
) -> None:
    async with two_hosts() as (_, server, client):
        near, far = await stream_pair(server, client, "unix")
        await near.send_all(b"unread")
        await far.aclose()

        with pytest.raises(trio.BrokenResourceError) as caught:
            await near.receive_some()
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        await near.aclose()


async def test_options_are_set_and_act(autojump_clock: object) -> None:
    async with two_hosts() as (net, server, client):
        options = SocketOptions(user_timeout=3)
        near, far = await stream_pair(server, client, options=options)
        net.partition(server, client)
        await near.send_all(b"x")

        with pytest.raises(trio.BrokenResourceError) as caught:
            await near.receive_some()
        assert isinstance(caught.value.__cause__, TimeoutError)
        assert trio.current_time() == pytest.approx(3)
        with pytest.raises(ValueError, match="for TCP"):
            await server.dial("unix", "/run/x", options=options)
        await near.aclose()
        await far.aclose()


async def test_errors_are_those_of_the_system(autojump_clock: object) -> None:
    async with two_hosts() as (_, server, client):
        with pytest.raises(ConnectionRefusedError):
            await client.dial("tcp", "server:81")
        listeners = await server.listen("tcp", ":80")
        with pytest.raises(OSError) as caught:
            await server.listen("tcp", ":80")
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError) as caught:
            await client.listen("tcp4", f"{server.addresses[0]}:80")
        assert caught.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(ValueError, match="tcp and unix"):
            await client.dial("memb", "db")
        with pytest.raises(ValueError, match="port 0"):
            await client.dial("tcp", "server:0")
        near = await client.dial("tcp", "server:80", local_address=f"{client.addresses[0]}:4000")
        assert near.local_address.port == 4000
        far = listeners[0].accept_nowait()
        assert far.remote_address.port == 4000
        await far.aclose()
        free = await server.listen("tcp", ":0")
        assert free[0].address.port == free[1].address.port
        client.power_off()
        with pytest.raises(OSError) as caught:
            await client.dial("tcp", "server:80")
        assert caught.value.errno == errno.ENETDOWN


async def test_short_writes_split_what_a_stream_sends(autojump_clock: object) -> None:
    async with two_hosts() as (net, server, client):
        near, far = await stream_pair(server, client)
        with net.short_writes(4), net.short_reads(4):
            await near.send_all(b"0123456789" * 10)
            received = bytearray()
            while len(received) < 100:
                received += await far.receive_some()
        sizes = [len(event.payload) for event in net.trace if event.kind == "DATA"]
        assert max(sizes) <= 4
        await near.aclose()
        await far.aclose()


async def test_a_receive_can_be_interrupted(autojump_clock: object) -> None:
    async with two_hosts() as (_, server, client):
        near, far = await stream_pair(server, client)
        far.interrupt_receive()
        with pytest.raises(trionet.abc.ReceiveInterrupted):
            await far.receive_some()
        far.resume_receive()
        await near.send_all(b"x")
        assert (far.unread_size(), far.is_readable(), far.peer_closed()) == (1, True, False)
        assert await far.receive_some() == b"x"
        await near.aclose()
        assert far.peer_closed()
        await far.aclose()


def test_the_listener_and_the_stream_are_trionets_own() -> None:
    assert issubclass(VirtualListener, trionet.abc.Listener)
    assert issubclass(VirtualStream, trionet.abc.Stream)
    assert issubclass(Host, trionet.abc.Network)
