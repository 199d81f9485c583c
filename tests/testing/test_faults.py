"""Every fault does what it says, at the time it says, and no more once it has healed."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio

from tests.testing.virtual import connected, drain, echo, pair, socket_pair, timed, two_hosts
from trionet.testing import Delay, Deliver, Drop, Link, Reset, Segment, VirtualNetwork

FAST = Link(latency=0.05)


async def listen_on(port: int = 80, backlog: int = 10) -> Any:
    sock = trio.socket.socket()
    await sock.bind(("0.0.0.0", port))
    sock.listen(backlog)
    return sock


async def receive_error(stream: trio.SocketStream) -> OSError:
    with pytest.raises(OSError) as caught:
        await stream.socket.recv(1)
    return caught.value


# Partitions


async def test_a_connection_attempt_into_a_black_hole_gives_up_after_127_seconds(
    autojump_clock: object,
) -> None:
    async with two_hosts(FAST) as (net, server, client):
        net.partition(client, server)
        with client.context(), trio.socket.socket() as sock:
            took, error = await timed(lambda: sock.connect(("server", 80)))

        assert (took, error.errno) == (127, errno.ETIMEDOUT)
        syns = [event.time for event in net.trace if event.what == "sent" and event.kind == "SYN"]
        assert syns == [0, 1, 3, 7, 15, 31, 63]


async def test_a_connection_attempt_succeeds_with_the_first_syn_after_the_heal(
    autojump_clock: object,
) -> None:
    async with two_hosts(FAST) as (net, server, client):
        with server.context():
            listening = await listen_on()
        fault = net.partition(client, server)
        with client.context(), trio.socket.socket() as sock:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sock.connect, ("server", 80))
                await trio.sleep(10)
                fault.heal()

        assert trio.current_time() == pytest.approx(15.1)
        listening.close()


async def test_what_is_in_flight_is_lost_and_comes_at_the_next_backoff_instant(
    autojump_clock: object,
) -> None:
    async with connected(FAST) as (net, near, far):
        start = trio.current_time()
        await near.send_all(b"in flight")
        await trio.sleep(0.01)
        with net.partition("client", "server"):
            await trio.sleep(1)

        assert await far.receive_some() == b"in flight"
        # Sent again 0.2 and 0.6 s after the first time in vain, and 1.4 s after it well.
        assert trio.current_time() - start == pytest.approx(1.45)


async def test_a_sender_goes_on_until_its_buffer_is_full_and_then_for_a_quarter_of_an_hour(
    autojump_clock: object,
) -> None:
    async with connected(FAST, sizes=(1000, 1000)) as (net, near, far):
        net.partition("client", "server")
        start = trio.current_time()
        assert await near.socket.send(bytes(5000)) == 1000

        with pytest.raises(OSError) as caught:
            await near.socket.send(b"more")
        assert caught.value.errno == errno.ETIMEDOUT
        assert trio.current_time() - start == pytest.approx(924.6)
        # It is told once, and the other end never.
        with pytest.raises(BrokenPipeError):
            await near.socket.send(b"more")
        with trio.move_on_after(3600) as scope:
            await far.receive_some()
        assert scope.cancelled_caught


async def test_one_way_partition_loses_the_acknowledgements_too(autojump_clock: object) -> None:
    async with connected(FAST) as (net, near, far):
        start = trio.current_time()
        with net.partition("server", "client", both=False):
            await near.send_all(b"x")
            assert await far.receive_some() == b"x"
            with pytest.raises(trio.BrokenResourceError) as caught:
                await near.receive_some()

        assert isinstance(caught.value.__cause__, TimeoutError)
        assert trio.current_time() - start == pytest.approx(924.6)


async def test_an_end_of_file_into_a_partition_arrives_after_it(autojump_clock: object) -> None:
    async with connected(FAST) as (net, near, far):
        with net.partition("client", "server"):
            await near.send_eof()
            await trio.sleep(30)

        assert await far.receive_some() == b""


async def test_a_reset_into_a_partition_is_lost_for_good(autojump_clock: object) -> None:
    async with connected(FAST) as (net, near, far):
        await far.send_all(b"unread")
        await trio.sleep(1)
        with net.partition("client", "server"):
            near.socket.close()
            await trio.sleep(1)

        with trio.move_on_after(3600) as scope:
            await far.receive_some()
        assert scope.cancelled_caught
        # Half-open: the first thing it sends finds out.
        await far.send_all(b"x")
        assert isinstance(await receive_error(far), ConnectionResetError)


async def test_nothing_is_reordered_by_a_partition_that_heals(autojump_clock: object) -> None:
    # What healed late arrives after what was sent later and not lost.
    async with connected(Link(latency=0.3, bandwidth=50_000, segment_size=500)) as (net, near, far):
        data = bytes(range(250)) * 70

        async def send() -> None:
            await near.send_all(data)
            await near.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(0.4)
            with net.partition("client", "server"):
                await trio.sleep(0.25)
            assert await drain(far) == data


async def test_partitions_may_overlap(autojump_clock: object) -> None:
    async with connected(FAST) as (net, near, far):
        with net.partition("client", "server"):
            with net.partition("client", "server", both=False):
                await near.send_all(b"x")
            await trio.sleep(10)
            assert not far.socket.is_readable()
        assert await far.receive_some() == b"x"


async def test_groups_are_cut_from_each_other_and_not_within(autojump_clock: object) -> None:
    async with VirtualNetwork(link=FAST) as net:
        a, b, c = (net.host(name) for name in "abc")
        near, far = await socket_pair(b, a)
        other, third = await socket_pair(c, a)
        with net.partition([a, b], "c"):
            await near.send(b"within")
            assert await far.recv(10) == b"within"
            await other.send(b"across")
            await trio.sleep(5)
            assert not third.is_readable()
        for sock in (near, far, other, third):
            sock.close()


async def test_a_full_window_that_opens_in_a_partition_is_found_open(
    autojump_clock: object,
) -> None:
    async with connected(FAST, sizes=(1000, 1000)) as (net, near, far):
        data = bytes(5000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, data)
            await trio.sleep(1)
            with net.partition("client", "server"):
                received = len(await far.receive_some())
                await trio.sleep(1)
            while received < len(data):
                received += len(await far.receive_some())


# Hold, reject, reset


async def test_what_is_held_arrives_at_the_release_at_once_and_in_order(
    autojump_clock: object,
) -> None:
    async with connected(FAST) as (net, near, far):
        await near.send_all(b"1")
        await trio.sleep(0.01)
        fault = net.hold("client", "server")
        await near.send_all(b"2")
        await trio.sleep(1000)
        assert not far.socket.is_readable()
        assert [(time, one.payload) for time, one in net.in_flight()] == [
            (float("inf"), b"1"),
            (float("inf"), b"2"),
        ]
        fault.heal()
        fault.heal()

        assert await timed(lambda: far.receive_some()) == (0, b"12")
        assert [event.kind for event in net.trace if event.what == "dropped"] == []


async def test_rejection_refuses_connections_after_one_way(autojump_clock: object) -> None:
    async with two_hosts(FAST) as (net, server, client):
        near, far = await socket_pair(server, client)
        with net.reject("client", "server"):
            with client.context(), trio.socket.socket() as sock:
                took, error = await timed(lambda: sock.connect(("server", 80)))
            assert (took, error.errno) == (0.05, errno.EHOSTUNREACH)
            await near.send(b"black hole")
            await trio.sleep(10)
            assert not far.is_readable()
        assert await far.recv(100) == b"black hole"
        near.close()
        far.close()


async def test_a_reset_is_told_once_at_both_ends_behind_what_was_received(
    autojump_clock: object,
) -> None:
    async with connected(FAST) as (net, near, far):
        await near.send_all(b"received")
        await trio.sleep(1)

        assert net.reset("client", "server") == 1

        assert await far.socket.recv(100) == b"received"
        for stream in (near, far):
            assert isinstance(await receive_error(stream), ConnectionResetError)
            assert await stream.socket.recv(1) == b""
            with pytest.raises(BrokenPipeError):
                await stream.socket.send(b"x")
        assert net.reset("client", "server") == 0


# Hosts


async def test_killing_a_host_ends_its_programs_and_closes_their_sockets(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    ended = []

    async def hold(stream: trio.SocketStream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())

    async with two_hosts(FAST) as (_, server, client):
        await nursery.start(server.run, trio.serve_tcp, hold, 80)
        with client.context():
            read = await trio.open_tcp_stream("server", 80)
            unread = await trio.open_tcp_stream("server", 80)
        await unread.send_all(b"never received")
        await trio.sleep(1)
        now = trio.current_time()
        server.kill()

        assert await timed(lambda: read.receive_some()) == (0.05, b"")
        assert isinstance(await receive_error(unread), ConnectionResetError)
        assert ended == [now, now]
        assert server.running == 0
        with client.context(), pytest.raises(OSError):
            await trio.open_tcp_stream("server", 80)
        # It can be started again.
        await nursery.start(server.run, trio.serve_tcp, echo, 80)
        with client.context():
            await (await trio.open_tcp_stream("server", 80)).aclose()
        await read.aclose()
        await unread.aclose()
        await trio.sleep(1)


async def test_a_host_without_power_is_silent_and_after_a_restart_resets_what_it_forgot(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(FAST) as (_, server, client):
        await nursery.start(server.run, trio.serve_tcp, echo, 80)
        with client.context():
            stream = await trio.open_tcp_stream("server", 80)
        server.power_off()
        with trio.move_on_after(3600) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        assert server.running == 0
        with pytest.raises(RuntimeError, match="off"):
            await server.run(trio.sleep, 1)
        server.restart()

        await stream.send_all(b"do you know me?")
        assert isinstance(await receive_error(stream), ConnectionResetError)
        await nursery.start(server.run, trio.serve_tcp, echo, 80)
        with client.context():
            await (await trio.open_tcp_stream("server", 80)).aclose()
        await stream.aclose()
        await trio.sleep(1)


async def test_a_host_without_power_is_a_black_hole(autojump_clock: object) -> None:
    async with two_hosts(FAST) as (_, server, client):
        server.power_off()
        with client.context(), trio.socket.socket() as sock:
            took, error = await timed(lambda: sock.connect(("server", 80)))
        assert (took, error.errno) == (127, errno.ETIMEDOUT)
        with server.context(), pytest.raises(OSError) as caught:
            trio.socket.socket()
        assert caught.value.errno == errno.ENETDOWN
        with pytest.raises(RuntimeError, match="off already"):
            server.power_off()
        server.restart()
        with pytest.raises(RuntimeError, match="is on"):
            server.restart()


async def test_power_off_loses_what_is_on_its_way_to_the_host_and_not_what_left_it(
    autojump_clock: object,
) -> None:
    async with two_hosts(FAST) as (_, server, client):
        near, far = await pair(server, client)
        await far.send_all(b"left in time")
        await near.send_all(b"too late")
        await trio.sleep(0.01)
        server.power_off()

        assert await near.receive_some() == b"left in time"
        with pytest.raises(trio.ClosedResourceError):
            await far.receive_some()
        await near.aclose()


async def test_a_window_closed_when_the_power_went_is_given_up(autojump_clock: object) -> None:
    async with two_hosts(FAST) as (_, server, client):
        near, _far = await pair(server, client, sizes=(1000, 1000))
        with trio.move_on_after(5):
            await near.send_all(bytes(5000))
        start = trio.current_time()
        server.power_off()

        assert (await receive_error(near)).errno == errno.ETIMEDOUT
        assert trio.current_time() - start == pytest.approx(924.6)
        await near.aclose()


# Timeouts that programs set


async def test_a_user_timeout_ends_it_on_time(autojump_clock: object) -> None:
    async with connected(FAST) as (net, near, _far):
        near.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
        net.partition("client", "server")
        start = trio.current_time()
        await near.send_all(b"x")

        assert (await receive_error(near)).errno == errno.ETIMEDOUT
        assert trio.current_time() - start == pytest.approx(5)


async def test_keepalive_finds_out_that_a_silent_peer_is_gone(autojump_clock: object) -> None:
    async with connected(FAST) as (net, near, _far):
        sock = near.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        start = trio.current_time()
        await trio.sleep(30)
        net.host("server").power_off()

        assert (await receive_error(near)).errno == errno.ETIMEDOUT
        assert trio.current_time() - start == pytest.approx(60 + 3 * 10)


async def test_keepalive_survives_a_fault_that_heals_in_time(autojump_clock: object) -> None:
    async with connected(FAST) as (net, near, _far):
        sock = near.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        with net.partition("client", "server"):
            await trio.sleep(85)

        with trio.move_on_after(100_000) as scope:
            await near.receive_some()
        assert scope.cancelled_caught


# Rules


async def test_a_rule_drops_the_segment_it_names_and_tcp_sends_it_again(
    autojump_clock: object,
) -> None:
    def third(segment: Segment) -> Drop | None:
        return Drop() if (segment.kind, segment.index, segment.attempt) == ("DATA", 2, 0) else None

    async with connected(FAST) as (net, near, far):
        times = []
        with net.rule(third):
            for _ in range(4):
                await near.send_all(b"x")
                times.append((await timed(lambda: far.receive_some()))[0])

        assert times == [0.05, 0.05, 0.25, 0.05]


async def test_a_rule_resets_delays_or_delivers(autojump_clock: object) -> None:
    async with connected(FAST) as (net, near, far):
        with net.rule(lambda one: Delay(1) if one.kind == "DATA" else None):
            await near.send_all(b"late")
            assert await timed(lambda: far.receive_some()) == (1.05, b"late")
        with net.partition("client", "server"), net.rule(lambda one: Deliver()):
            await near.send_all(b"through")
            assert await timed(lambda: far.receive_some()) == (0.05, b"through")
        with net.rule(lambda one: Reset() if one.payload == b"bad word" else None):
            await near.send_all(b"bad word")
        for stream in (near, far):
            assert isinstance(await receive_error(stream), ConnectionResetError)


async def test_the_newest_rule_is_asked_first_and_the_first_opinion_wins(
    autojump_clock: object,
) -> None:
    async with connected(FAST) as (net, near, far):
        asked = []

        def old(segment: Segment) -> Drop:
            asked.append("old")
            return Drop()

        def new(segment: Segment) -> Deliver | None:
            asked.append("new")
            return Deliver() if segment.kind == "DATA" else None

        with net.rule(old), net.rule(new):
            await near.send_all(b"x")
            assert await far.receive_some() == b"x"

        assert asked == ["new", "new", "old"]


async def test_what_a_rule_raises_leaves_the_block_as_itself(autojump_clock: object) -> None:
    def broken(segment: Segment) -> None:
        raise KeyError("my rule")

    with pytest.raises(KeyError, match="my rule"):
        async with connected(FAST) as (net, near, _far):
            net.rule(broken)
            await near.send_all(b"x")
            await trio.sleep_forever()


async def test_what_a_rule_raises_later_leaves_the_block_as_itself(
    autojump_clock: object,
) -> None:
    def broken(segment: Segment) -> None:
        # An acknowledgement is sent when something arrives, where no task is running.
        if segment.kind == "ACK":
            raise KeyError("my rule")

    with pytest.raises(KeyError, match="my rule"):
        async with connected(FAST) as (net, near, _far):
            net.rule(broken)
            await near.send_all(b"x")
            await trio.sleep_forever()


async def test_a_refusal_that_is_lost_comes_with_the_next_syn(autojump_clock: object) -> None:
    def first(segment: Segment) -> Drop | None:
        lost = segment.kind == "RST" and trio.current_time() < 0.5
        return Drop() if lost else None

    async with two_hosts(FAST) as (net, _server, client):
        with net.rule(first), client.context(), trio.socket.socket() as sock:
            took, error = await timed(lambda: sock.connect(("server", 80)))

    assert (took, type(error)) == (1.1, ConnectionRefusedError)


async def test_a_lost_syn_ack_comes_again(autojump_clock: object) -> None:
    for kind, when in (("SYN-ACK", 1.1), ("ACK", 0.1)):

        def first(segment: Segment, kind: str = kind) -> Drop | None:
            hit = (segment.kind, segment.index, segment.attempt) == (kind, 0, 0)
            return Drop() if hit else None

        async with two_hosts(FAST) as (net, server, client):
            with server.context():
                listening = await listen_on()
            with net.rule(first), client.context(), trio.socket.socket() as sock:
                assert (await timed(lambda: sock.connect(("server", 80))))[0] == when
                # The third segment of the handshake is sent again with an answer to a SYN-ACK.
                (await listening.accept())[0].close()
            listening.close()


async def test_a_rule_that_returns_something_else_is_told_so(autojump_clock: object) -> None:
    wrong: Any = lambda segment: "drop"  # noqa: E731

    with pytest.raises(TypeError, match="'drop'"):
        async with connected(FAST) as (net, near, _far):
            net.rule(wrong)
            await near.send_all(b"x")
            await trio.sleep_forever()


# Hosts' calls


async def test_short_reads_and_writes_move_a_few_bytes_at_a_time(autojump_clock: object) -> None:
    async with connected() as (net, near, far):
        with net.short_writes(3, "client"), net.short_reads(2):
            sent = await near.socket.send(b"0123456789")
            assert 1 <= sent <= 3
            assert 1 <= len(await far.socket.recv(100)) <= 2
            await near.send_all(b"0123456789")
        received = bytearray()
        while len(received) < 9:
            received += await far.receive_some()
        assert await far.socket.send(b"0123456789") == 10


async def test_accept_fails_as_often_as_it_is_told_and_loses_no_connection(
    autojump_clock: object, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_hosts() as (net, server, client):
        await nursery.start(server.run, trio.serve_tcp, echo, 80)
        with net.failing("accept", errno.EMFILE, host=server, times=2), client.context():
            # The one that waits already gets its connection; the next accept fails, and again.
            first = await trio.open_tcp_stream("server", 80)
            await trio.sleep(0.05)
            stream = await trio.open_tcp_stream("server", 80)
            await stream.send_all(b"x")
            took, data = await timed(lambda: stream.receive_some())
        assert data == b"x"
        assert 0 < took <= 0.2
        assert "EMFILE" in caplog.text
        await stream.aclose()
        await first.aclose()


async def test_calls_fail_with_what_a_test_wants(autojump_clock: object) -> None:
    async with two_hosts() as (net, _server, client):
        with client.context():
            with net.failing("socket", errno.ENFILE), pytest.raises(OSError) as caught:
                trio.socket.socket()
            assert caught.value.errno == errno.ENFILE
            sock = trio.socket.socket()
            with net.failing("connect", errno.ENOBUFS), pytest.raises(OSError) as caught:
                await sock.connect(("server", 80))
            assert caught.value.errno == errno.ENOBUFS
            with net.failing("listen", errno.EACCES, host="server"):
                sock.listen()
            sock.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: net.failing("read", errno.EIO), "'read'"),
        (lambda net: net.failing("accept", 99999), "99999"),
        (lambda net: net.failing("accept", errno.EMFILE, times=0), "got 0"),
        (lambda net: net.short_reads(0), "got 0"),
        (lambda net: net.partition("client", "nobody"), "'nobody'"),
        (lambda net: net.partition("client", "client"), "nothing lies between"),
        (lambda net: net.set_link("client", "nobody", Link()), "'nobody'"),
    ],
)
async def test_a_fault_that_cannot_be_is_refused(make: Any, message: str) -> None:
    async with two_hosts() as (net, _server, _client):
        with pytest.raises(ValueError, match=message):
            make(net)
        assert not list(net.trace)


async def test_a_link_can_be_replaced_one_way_or_both(autojump_clock: object) -> None:
    async with connected() as (net, near, far):
        net.set_link("client", "server", Link(latency=1), both=False)
        await near.send_all(b"x")
        assert await timed(lambda: far.receive_some()) == (1, b"x")
        await far.send_all(b"y")
        assert await timed(lambda: near.receive_some()) == (0, b"y")
        net.set_link("client", "server", FAST)
        assert net.link("server", "client") is net.link("client", "server") is FAST


# Compounds, and looking


async def test_a_swizzle_cuts_off_all_one_by_one_and_heals_all(autojump_clock: object) -> None:
    async with VirtualNetwork(link=FAST) as net:
        hosts = [net.host(name) for name in "abcd"]
        await net.swizzle(hosts, over=10)
        faults = [(event.time, event.note) for event in net.trace if event.what == "fault"]

        assert trio.current_time() == 10
        assert len(faults) == 8
        begun = [note.split()[2] for time, note in faults if time <= 5]
        healed = [note.split()[4] for time, note in faults if time > 5]
        assert sorted(begun) == sorted(healed) == list("abcd")
        with trio.move_on_after(5):
            await net.swizzle(hosts, over=10)
        assert all(route.clean for route in net._world.routes.values())


async def test_happy_eyeballs_get_past_a_black_hole(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with VirtualNetwork(link=FAST) as net:
        bad, good, client = net.host("bad"), net.host("good"), net.host("client")
        await nursery.start(good.run, trio.serve_tcp, echo, 80)
        net.dns.add("www", *bad.addresses, *good.addresses)
        net.partition(client, bad)
        with client.context():
            took, stream = await timed(lambda: trio.open_tcp_stream("www", 80))

        assert took == 0.25 + 0.1
        await stream.aclose()


async def test_netstat_shows_who_is_where(autojump_clock: object) -> None:
    async with two_hosts(FAST) as (net, server, client):
        with server.context():
            listening = await listen_on(80, backlog=7)
        with client.context():
            sock = trio.socket.socket()
            await sock.connect(("server", 80))
        far, _ = await listening.accept()
        await sock.send(b"abc")
        await trio.sleep(1)

        def states() -> list[tuple[str, str, int, int]]:
            return [
                (line.host, line.state, line.receive_queue, line.send_queue)
                for line in net.netstat()
            ]

        assert states() == [
            ("server", "LISTEN", 0, 7),
            ("server", "ESTABLISHED", 3, 0),
            ("client", "ESTABLISHED", 0, 0),
        ]
        sock.shutdown(socket.SHUT_WR)
        assert states()[2][1] == "FIN-WAIT-1"
        await trio.sleep(1)
        assert [state for _, state, _, _ in states()[1:]] == ["CLOSE-WAIT", "FIN-WAIT-2"]
        await far.recv(3)
        far.close()
        assert states()[1][1] == "LAST-ACK"
        await trio.sleep(1)
        sock.close()
        (line,) = net.netstat()
        assert str(line).split() == ["server", "tcp", "0", "7", "0.0.0.0:80", "LISTEN"]
        assert len(net.leaks()) == 1
        listening.close()
        assert net.leaks() == []


async def test_a_handshake_whose_answers_are_lost_gives_up_as_one_whose_questions_are(
    autojump_clock: object,
) -> None:
    async with two_hosts(FAST) as (net, server, client):
        with server.context():
            listening = await listen_on()
        net.partition(server, client, both=False)
        with client.context(), trio.socket.socket() as sock, trio.fail_after(5000):
            took, error = await timed(lambda: sock.connect(("server", 80)))

        assert (took, error.errno) == (127, errno.ETIMEDOUT)
        assert [line.state for line in net.netstat()] == ["LISTEN"]
        listening.close()


async def test_a_handshake_is_taken_up_by_whoever_listens_after_a_restart(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(FAST) as (net, server, client):
        with server.context():
            _before = await listen_on()
        fault = net.partition(server, client, both=False)
        with client.context(), trio.socket.socket() as sock:
            nursery.start_soon(sock.connect, ("server", 80))
            await trio.sleep(0.5)
            server.power_off()
            await trio.sleep(1)
            server.restart()
            fault.heal()
            with server.context():
                listening = await listen_on()
            (far, _), took = await listening.accept(), trio.current_time()

            # The SYN of 3 s, its answer, and the answer to that.
            assert took == pytest.approx(3.15)
            far.close()
        listening.close()


async def test_keepalive_finds_an_end_that_a_restart_forgot_without_any_fault_left(
    autojump_clock: object,
) -> None:
    async with two_hosts(FAST) as (_net, server, client):
        near, _far = await socket_pair(server, client)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        start = trio.current_time()
        server.power_off()
        await trio.sleep(20)
        server.restart()

        with trio.fail_after(1000), pytest.raises(ConnectionResetError):
            await near.recv(1)
        assert trio.current_time() - start == pytest.approx(60.1, abs=0.2)


async def test_keepalive_asked_for_before_the_connection_is_made_counts(
    autojump_clock: object,
) -> None:
    async with two_hosts(FAST) as (net, server, client):
        with server.context():
            listening = await listen_on()
        dropping = net.rule(lambda segment: Drop() if segment.kind == "RST" else None)
        with client.context(), trio.socket.socket() as near:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
            await near.connect(("server", 80))
            far, _ = await listening.accept()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
            await trio.sleep(5)
            dropping.heal()

            with trio.fail_after(1000), pytest.raises(ConnectionResetError):
                await near.recv(1)
        listening.close()


async def test_a_user_timeout_begins_anew_when_a_question_for_the_window_was_answered(
    autojump_clock: object,
) -> None:
    async with connected(FAST, sizes=(1000, 1000)) as (net, near, far):
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 10_000)
        for _ in range(2):
            await near.socket.send(bytes(1000))
        await trio.sleep(1)
        # Each makes it ask; the second 100 s after the first.
        for _ in range(2):
            with net.partition("client", "server"):
                await trio.sleep(1)
            await trio.sleep(100)

        assert len(await far.receive_some()) == 1000
        assert len(await far.receive_some()) == 1000


async def test_a_way_to_itself_first_asked_for_without_power_works_after_the_restart(
    autojump_clock: object,
) -> None:
    async with two_hosts(FAST) as (net, server, _client):
        server.power_off()
        assert net.link(server, server) == Link()
        server.restart()

        with server.context():
            listening = await listen_on()
            with listening, trio.socket.socket() as sock, trio.fail_after(1):
                await sock.connect(("127.0.0.1", 80))


async def test_groups_may_be_iterators(autojump_clock: object) -> None:
    async with VirtualNetwork() as net:
        a, b, c, d = (net.host(name) for name in "abcd")

        assert net.partition(iter([a, b]), iter([c, d])).note == "partition of a+b and c+d"
        assert {
            (route.source, route.destination)
            for route in net._world.routes.values()
            if route.partitions
        } == {one for x in "ab" for y in "cd" for one in ((x, y), (y, x))}


async def test_a_host_named_twice_is_swizzled_once(autojump_clock: object) -> None:
    async with two_hosts(FAST) as (net, server, client):
        await net.swizzle([server, "server", client], over=10)

        assert not any(route.partitions for route in net._world.routes.values())


async def test_of_two_equal_limits_the_one_that_healed_is_gone(autojump_clock: object) -> None:
    async with connected() as (net, near, _far):
        with net.short_writes(3), net.short_writes(1000):
            net.short_writes(3).heal()
            sent = max([await near.socket.send(bytes(1000)) for _ in range(10)])

        assert sent > 3


async def test_a_rule_that_heals_itself_hides_no_other(autojump_clock: object) -> None:
    async with connected() as (net, near, far):
        net.rule(lambda segment: Delay(1) if segment.kind == "DATA" else None)

        def once(_: Segment) -> None:
            fault.heal()

        fault = net.rule(once)
        start = trio.current_time()
        await near.send_all(b"x")
        await far.receive_some()

        assert not fault.active
        assert trio.current_time() - start == 1


async def test_a_rule_in_force_twice_is_healed_where_it_stands(autojump_clock: object) -> None:
    async with connected() as (net, near, far):

        def seconds(number: float) -> Any:
            return lambda segment: Delay(number) if segment.kind == "DATA" else None

        slow = seconds(3)
        first = net.rule(slow)
        net.rule(seconds(1))
        second = net.rule(slow)
        for fault, expected in ((first, 3), (second, 1)):
            fault.heal()
            start = trio.current_time()
            await near.send_all(b"x")
            await far.receive_some()
            assert trio.current_time() - start == expected
