"""Unmodified trio programs on a virtual network: names, connections, times and errors."""

from __future__ import annotations

import errno
import gc
import socket
import ssl
import struct
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from tests.testing.virtual import connected, drain, echo, pair, socket_pair, timed, two_hosts
from trionet.testing import Link, VirtualNetwork
from trionet.testing._run import current_run

LINKS = {
    "null": Link(),
    "latency": Link(latency=0.01),
    "jitter": Link(latency=0.01, jitter=0.05),
    "bandwidth": Link(bandwidth=1e6, latency=0.001),
    "loss": Link(loss=0.2),
    "everything": Link(latency=0.01, jitter=0.02, bandwidth=1e6, loss=0.1, segment_size=500),
}
every_link = pytest.mark.parametrize("link", LINKS.values(), ids=LINKS.keys())


async def test_serve_tcp_and_open_tcp_stream_meet(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(Link(latency=0.01)) as (_, server, client):
        listeners = await nursery.start(server.run, trio.serve_tcp, echo, 80)
        with client.context():
            took, stream = await timed(lambda: trio.open_tcp_stream("server", 80))
        await stream.send_all(b"hi")

        assert took == 0.02
        assert await timed(stream.receive_some) == (0.02, b"hi")
        assert stream.socket.getpeername() == (server.addresses[0], 80)
        assert stream.socket.getsockname()[0] == client.addresses[0]
        assert [listener.socket.getsockname()[1] for listener in listeners] == [80, 80]
        await stream.aclose()


async def test_tls_over_it_is_trios_own(autojump_clock: object, nursery: trio.Nursery) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("server")
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    data = bytes(range(256)) * 4096

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        async with trio.open_nursery() as both:
            both.start_soon(stream.send_all, data)
            assert await drain_exactly(stream, len(data)) == data
        await stream.aclose()

    async def drain_exactly(stream: trio.abc.Stream, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            received += await stream.receive_some()
        return bytes(received)

    async with two_hosts(Link(latency=0.01, bandwidth=1e6)) as (_, server, client):
        await nursery.start(server.run, trio.serve_ssl_over_tcp, serve, 443, server_side)
        with client.context():
            stream = await trio.open_ssl_over_tcp_stream("server", 443, ssl_context=client_side)
        async with trio.open_nursery() as both:
            both.start_soon(stream.send_all, data)
            assert await drain_exactly(stream, len(data)) == data
        assert await stream.receive_some() == b""
        await stream.aclose()


@every_link
async def test_a_socket_stream_passes_trios_checks(link: Link, autojump_clock: object) -> None:
    async with two_hosts(link) as (net, server, client):

        async def plain() -> Any:
            return await pair(server, client)

        async def clogged() -> Any:
            near, far = await pair(server, client, sizes=(2000, 2000))
            stream: Any
            for stream in (near, far):
                # A sender that waits is woken for a third of its buffer, so one that nobody wakes
                # may still find some room.
                while stream.socket.end.buffered < 2000:
                    await stream.socket.send(bytes(10_000))
                    await trio.sleep(100)
            return near, far

        await trio.testing.check_half_closeable_stream(plain, clogged)
        await trio.sleep(2000)

        for host in net.hosts:
            assert not host.stack.sockets
            assert not host.stack.connections
            assert not host.stack.bindings
        assert len(net._world.timeline) == 0


async def test_nobody_listening_is_refused_after_a_round_trip(autojump_clock: object) -> None:
    async with two_hosts(Link(latency=0.25)) as (_, _server, client):
        with client.context():
            sock = trio.socket.socket()
            took, error = await timed(lambda: sock.connect(("server", 80)))

            assert (took, type(error)) == (0.5, ConnectionRefusedError)
            sock.close()


async def test_an_unknown_name_and_an_address_of_nobody_are_what_linux_says(
    autojump_clock: object,
) -> None:
    async with two_hosts() as (_, _server, client):
        with client.context():
            with pytest.raises(socket.gaierror) as unknown:
                await trio.open_tcp_stream("nobody", 80)
            assert unknown.value.errno == socket.EAI_NONAME
            for address in ("192.0.2.1", "::1234"):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                with trio.socket.socket(family) as sock, pytest.raises(OSError) as nowhere:
                    await sock.connect((address, 80))
                assert nowhere.value.errno == errno.ENETUNREACH


async def test_every_host_has_a_localhost_of_its_own(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(Link(latency=1)) as (_, server, client):
        await nursery.start(server.run, trio.serve_tcp, echo, 80)

        with server.context():
            took, stream = await timed(lambda: trio.open_tcp_stream("localhost", 80))
            assert took == 0
            await stream.aclose()
        with client.context(), pytest.raises(OSError):
            await trio.open_tcp_stream("localhost", 80)


async def test_a_task_that_was_put_nowhere_lives_on_localhost(autojump_clock: object) -> None:
    async with VirtualNetwork() as net:
        with trio.socket.socket() as sock:
            await sock.bind(("127.0.0.1", 0))

            found: list[Any] = list(net.host("localhost").stack.sockets.values())
            assert found == [sock]


async def test_child_tasks_live_where_their_parent_does(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async def child() -> None:
        with trio.socket.socket() as sock:
            found.append(repr(sock))

    async def program() -> str:
        async with trio.open_nursery() as inner:
            inner.start_soon(child)
        return "done"

    found: list[str] = []
    async with two_hosts() as (_, server, _client):
        assert await server.run(program) == "done"

    assert "of server" in found[0]


async def test_ipv6_and_ipv4_are_tried_as_the_host_can_reach_them(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with VirtualNetwork() as net:
        both, four = net.host("both", ipv6=True), net.host("four")
        other = net.host("other", ipv6=True)
        await nursery.start(both.run, trio.serve_tcp, echo, 80)

        with four.context():
            stream = await trio.open_tcp_stream("both", 80)
            assert stream.socket.family == socket.AF_INET
            await stream.aclose()
        with other.context():
            stream = await trio.open_tcp_stream("both", 80)
            assert stream.socket.family == socket.AF_INET6
            assert stream.socket.getpeername() == (both.addresses[1], 80, 0, 0)
            await stream.aclose()


async def test_a_dual_stack_listener_takes_ipv4_in_ipv6s_clothes(autojump_clock: object) -> None:
    async with two_hosts() as (_, server, client):
        with server.context():
            listening = trio.socket.socket(socket.AF_INET6)
            await listening.bind(("::", 80))
            listening.listen()
        with client.context(), trio.socket.socket() as near:
            await near.connect(("server", 80))
            far, name = await listening.accept()

            assert name[0] == f"::ffff:{client.addresses[0]}"
            assert far.getsockname()[0] == f"::ffff:{server.addresses[0]}"
            far.close()
        listening.close()


async def test_a_full_backlog_lets_the_syn_come_again(autojump_clock: object) -> None:
    async with two_hosts() as (_, server, client):
        with server.context():
            listening = trio.socket.socket()
            await listening.bind(("0.0.0.0", 80))
            listening.listen(1)
        with client.context():
            socks = [trio.socket.socket() for _ in range(3)]
            await socks[0].connect(("server", 80))
            await socks[1].connect(("server", 80))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socks[2].connect, ("server", 80))
                await trio.sleep(2)
                (await listening.accept())[0].close()
            # The SYNs of 0 s and 1 s were ignored, that of 3 s was not.
            assert trio.current_time() == 3
        for sock in (*socks, listening):
            sock.close()


async def test_a_connect_that_is_cancelled_closes_its_socket(autojump_clock: object) -> None:
    async with two_hosts(Link(latency=5)) as (net, server, client):
        with server.context():
            listening = trio.socket.socket()
            await listening.bind(("0.0.0.0", 80))
            listening.listen()
        with client.context():
            sock = trio.socket.socket()
            with trio.move_on_after(7):
                await sock.connect(("server", 80))
        assert sock.fileno() == -1
        await trio.sleep(20)

        # The SYN-ACK found nobody, and was told so.
        assert not server.stack.connections
        assert [event.kind for event in net.trace][-2:] == ["RST", "RST"]
        listening.close()


async def test_half_a_connection_can_be_closed(autojump_clock: object) -> None:
    async with connected(Link(latency=0.1)) as (_, near, far):
        await near.send_all(b"question")
        await near.send_eof()

        assert await drain(far) == b"question"
        await far.send_all(b"answer")
        assert await near.receive_some() == b"answer"


async def test_closing_with_unread_bytes_resets(autojump_clock: object) -> None:
    async with connected(Link(latency=0.1)) as (_, near, far):
        await far.send_all(b"last words")
        await near.send_all(b"unread")
        await trio.sleep(1)
        far.socket.close()
        await trio.sleep(1)

        assert near.socket.is_readable()
        assert await near.socket.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            await near.socket.recv(100)
        assert await near.socket.recv(100) == b""
        with pytest.raises(BrokenPipeError):
            await near.socket.send(b"x")


async def test_a_reset_behind_an_end_of_file_is_a_broken_pipe(autojump_clock: object) -> None:
    async with connected() as (_, near, far):
        far.socket.close()
        assert await near.socket.recv(100) == b""

        assert await near.socket.send(b"into the void") == 13
        with pytest.raises(BrokenPipeError):
            await near.socket.send(b"x")


async def test_lingering_for_no_time_resets(autojump_clock: object) -> None:
    async with connected() as (_, near, far):
        far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.socket.close()

        with pytest.raises(ConnectionResetError):
            await near.socket.recv(100)


async def test_closing_sends_what_was_not_sent_yet(autojump_clock: object) -> None:
    data = bytes(100_000)
    async with connected(Link(latency=0.1, bandwidth=1e5)) as (_, near, far):
        await near.send_all(data)
        await near.aclose()

        assert await drain(far) == data
        assert trio.current_time() > 1


async def test_a_closed_listener_refuses_and_resets_what_waits(autojump_clock: object) -> None:
    async with two_hosts() as (_, server, client):
        with server.context():
            listening = trio.socket.socket()
            await listening.bind(("0.0.0.0", 80))
            listening.listen()
        with client.context():
            near = trio.socket.socket()
            await near.connect(("server", 80))
            listening.close()

            with pytest.raises(ConnectionResetError):
                await near.recv(1)
            near.close()
            with trio.socket.socket() as another, pytest.raises(ConnectionRefusedError):
                await another.connect(("server", 80))


async def test_addresses_in_use_are_refused_unless_reuse_allows_it(
    autojump_clock: object,
) -> None:
    async with two_hosts() as (_, server, client):
        with server.context():
            one, two = trio.socket.socket(), trio.socket.socket()
            await one.bind(("0.0.0.0", 80))
            with pytest.raises(OSError) as taken:
                await two.bind((server.addresses[0], 80))
            assert taken.value.errno == errno.EADDRINUSE
            with pytest.raises(OSError) as foreign:
                await two.bind((client.addresses[0], 80))
            assert foreign.value.errno == errno.EADDRNOTAVAIL
            await two.bind(("0.0.0.0", 81))
            with pytest.raises(OSError) as again:
                await two.bind(("0.0.0.0", 82))
            assert again.value.errno == errno.EINVAL
            one.close()
            with trio.socket.socket() as three:
                await three.bind(("0.0.0.0", 80))
            two.close()


async def test_a_server_can_start_again_beside_its_old_connections(
    autojump_clock: object,
) -> None:
    async with two_hosts() as (_, server, client):
        near, far = await socket_pair(server, client, port=80)
        with server.context(), trio.socket.socket() as strict, trio.socket.socket() as usual:
            with pytest.raises(OSError):
                await strict.bind(("0.0.0.0", 80))
            usual.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await usual.bind(("0.0.0.0", 80))
            usual.listen()
        near.close()
        far.close()


async def test_names_have_several_addresses_delays_and_failures(autojump_clock: object) -> None:
    async with two_hosts() as (net, server, client):
        net.dns.add("www", "192.0.2.1", server.addresses[0])
        net.dns.delay = 0.5

        infos = await trio.socket.getaddrinfo("WWW.", "http", type=socket.SOCK_STREAM)
        assert [info[4] for info in infos] == [("192.0.2.1", 80), (server.addresses[0], 80)]
        assert trio.current_time() == 0.5
        with net.dns.failing("www", socket.EAI_AGAIN), pytest.raises(socket.gaierror) as again:
            await trio.socket.getaddrinfo("www", 80)
        assert again.value.errno == socket.EAI_AGAIN
        with net.dns.slow(10, "www"), trio.move_on_after(5) as scope:
            await trio.socket.getaddrinfo("www", 80)
        assert scope.cancelled_caught
        net.dns.remove("www")
        with pytest.raises(socket.gaierror):
            await trio.socket.getaddrinfo("www", 80)
        assert await trio.socket.getnameinfo((client.addresses[0], 80), 0) == ("client", "80")


async def test_leaving_the_block_ends_programs_and_closes_sockets(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts() as (_, server, client):
        await nursery.start(server.run, trio.serve_tcp, echo, 80)
        with client.context():
            stream = await trio.open_tcp_stream("server", 80)

    assert server.running == 0
    assert stream.socket.fileno() == -1
    with pytest.raises(RuntimeError), trio.socket.socket() as real:
        real.setsockopt(1, 1, 1)
        raise RuntimeError(type(real))


async def test_an_exception_leaves_the_block_as_itself(autojump_clock: object) -> None:
    with pytest.raises(KeyError):
        async with VirtualNetwork():
            raise KeyError("as itself")


async def test_a_program_that_fails_fails_where_it_was_started(autojump_clock: object) -> None:
    async def program() -> None:
        raise KeyError("mine")

    async with two_hosts() as (_, server, _client):
        with pytest.raises(KeyError):
            await server.run(program)
        assert server.running == 0


async def test_a_socket_that_nobody_closed_is_warned_of(autojump_clock: object) -> None:
    async with VirtualNetwork() as net:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = trio.socket.socket(socket.AF_INET, kind)
            await sock.bind(("0.0.0.0", 80))
            gc.collect()
            with pytest.warns(ResourceWarning, match="virtual (tcp|udp) socket"):
                del sock
        assert len(net.leaks()) == 2
        assert not net.host("localhost").stack.bindings


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"seed": 1.5}, TypeError), ({"seed": True}, TypeError), ({"link": 0.1}, TypeError)],
)
def test_a_network_that_cannot_be_is_refused(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        VirtualNetwork(**arguments)


async def test_hosts_have_one_name_and_addresses_of_their_own(autojump_clock: object) -> None:
    async with VirtualNetwork() as net:
        one = net.host("one", addresses=["192.0.2.7"])

        assert net.host("one") is one
        assert one.addresses == ("192.0.2.7",)
        with pytest.raises(ValueError, match="already"):
            net.host("one", ipv6=True)
        with pytest.raises(ValueError, match="one's address"):
            net.host("two", addresses=["192.0.2.7"])
        with pytest.raises(ValueError, match="name"):
            net.host("")


async def test_a_network_is_entered_once_and_only_works_inside() -> None:
    net = VirtualNetwork()
    with pytest.raises(RuntimeError, match="not entered"):
        net.host("a")
    async with net:
        pass
    with pytest.raises(RuntimeError, match="once"):
        async with net:
            pass


async def test_two_networks_with_one_seed_do_the_same(autojump_clock: object) -> None:
    async def digest(seed: int) -> str:
        link = Link(latency=0.01, jitter=0.01, loss=0.1)
        async with two_hosts(link, seed) as (net, server, client):
            near, far = await pair(server, client)
            for _ in range(20):
                await near.send_all(b"x")
                await far.receive_some()
            await near.aclose()
            await far.aclose()
            await trio.sleep(100)
            events = [(str(event)[12:]) for event in net.trace]
        return "\n".join(events)

    assert await digest(1) == await digest(1)
    assert await digest(1) != await digest(2)


async def test_a_network_that_cannot_be_entered_leaves_trios_own_in_place() -> None:
    class Full:
        seed = 0

        def register(self, trace: object) -> None:
            raise KeyError(trace)

    current_run.set(Full())
    try:
        with pytest.raises(KeyError):
            await VirtualNetwork().__aenter__()
    finally:
        current_run.set(None)

    assert trio.socket.set_custom_socket_factory(None) is None
    assert trio.socket.set_custom_hostname_resolver(None) is None


async def test_networks_within_each_other_give_back_what_they_took(
    autojump_clock: object,
) -> None:
    async with VirtualNetwork() as outer:
        outer.host("outer")
        with pytest.raises(KeyError):
            async with VirtualNetwork() as inner:
                inner.host("inner")
                with trio.socket.socket() as sock:
                    assert sock.getsockname() == ("0.0.0.0", 0)
                    assert inner.leaks()
                    assert not outer.leaks()
                raise KeyError
        with trio.socket.socket():
            assert outer.leaks()
        assert await trio.socket.getaddrinfo("outer", 80)
        with pytest.raises(socket.gaierror):
            await trio.socket.getaddrinfo("inner", 80)


async def test_names_are_known_across_a_partition_and_of_a_host_without_power(
    autojump_clock: object,
) -> None:
    async with two_hosts(Link(latency=1)) as (net, server, client):
        net.partition(client, [one for one in net.hosts if one is not client])
        server.power_off()
        with client.context():
            took, infos = await timed(lambda: trio.socket.getaddrinfo("server", 80))

        assert took == 0
        assert infos[0][4] == (server.addresses[0], 80)


async def test_of_two_equal_failures_of_the_dns_the_healed_one_is_gone(
    autojump_clock: object,
) -> None:
    async with VirtualNetwork() as net:
        dns = net.dns
        with dns.failing("a", socket.EAI_AGAIN), dns.failing("a", socket.EAI_FAIL):
            with dns.failing("a", socket.EAI_AGAIN):
                pass
            with pytest.raises(socket.gaierror) as caught:
                await trio.socket.getaddrinfo("a", 80)

        assert caught.value.errno == socket.EAI_FAIL


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan")])
async def test_a_delay_of_the_dns_that_cannot_be_is_refused(seconds: float) -> None:
    async with VirtualNetwork() as net:
        with pytest.raises(ValueError, match=str(seconds)), net.dns.slow(seconds):
            pass


async def test_netstat_puts_an_ipv6_address_of_a_datagram_socket_in_brackets() -> None:
    async with VirtualNetwork() as net:
        with trio.socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            await sock.bind(("::1", 53))

            assert [line.local for line in net.netstat()] == ["[::1]:53"]
