"""Captures, as tshark reads them."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import trionet
from tests.conftest import Certificates
from trionet.testing import Endpoint, Event, Link, VirtualNetwork
from trionet.testing.pcap import write_pcap

pytestmark = pytest.mark.skipif(
    shutil.which("tshark") is None, reason="tshark, which reads the captures, is not installed"
)

CHECKED = [f"-o{protocol}.check_checksum:TRUE" for protocol in ("ip", "tcp", "udp")]

GOOD = "1"


def tshark(path: Path, *arguments: str) -> list[str]:
    command = ["tshark", "-n", "-r", str(path), *CHECKED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def fields(path: Path, *names: str, only: str = "") -> list[tuple[str, ...]]:
    """Return these fields of each packet that the filter lets through."""
    wanted = [word for name in names for word in ("-e", name)]
    rows = tshark(path, *(["-Y", only] if only else []), "-Tfields", "-Eseparator=/t", *wanted)
    return [tuple(row.split("\t")) for row in rows]


def followed(path: Path, stream: int) -> tuple[bytes, bytes]:
    """Return what tshark puts together of a TCP stream: the client's bytes, and the server's."""
    rows = tshark(path, "-q", f"-zfollow,tcp,raw,{stream}")
    there, back = bytearray(), bytearray()
    for row in rows:
        side = back if row.startswith("\t") else there
        if row.strip() and set(row.strip()) <= set("0123456789abcdef"):
            side += bytes.fromhex(row.strip())
    return bytes(there), bytes(back)


async def echo(stream: trio.SocketStream) -> None:
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        return


async def conversation(net: VirtualNetwork, client: Callable[[], Awaitable[None]]) -> None:
    """Run ``client`` on the host "laptop", beside an echo server on port 7 of "api"."""
    async with trio.open_nursery() as nursery:
        await nursery.start(net.host("api").run, trio.serve_tcp, echo, 7)
        await net.host("laptop").run(client)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def ping() -> None:
    async with await trio.open_tcp_stream("api", 7) as stream:
        await stream.send_all(b"ping")
        assert await stream.receive_some() == b"ping"
        await stream.send_eof()
        assert await stream.receive_some() == b""


async def test_a_connection_is_seen_from_its_handshake_to_its_end(
    tmp_path: Path, autojump_clock: Any
) -> None:
    path = tmp_path / "net.pcap"
    async with VirtualNetwork(link=Link(latency=0.01)) as net:
        await conversation(net, ping)
        packets = net.write_pcap(path)

    seen = fields(
        path, "frame.time_epoch", "tcp.flags.str", "tcp.seq", "tcp.ack", "tcp.len", "tcp.srcport"
    )
    assert len(seen) == packets
    client = seen[0][5]
    flags = [
        ("C" if port == client else "S") + "".join(c for c in flag if c in "SAPFR")
        for _, flag, _, _, _, port in seen
    ]
    assert flags[:6] == ["CS", "SAS", "CA", "CAP", "SA", "SAP"]
    assert [flag for flag in flags if "F" in flag] == ["CAF", "SAF"]
    # The client's first byte has number 1, its end of file the one after "ping".
    assert seen[3][2:5] == ("1", "1", "4")
    assert next(row for row, flag in zip(seen, flags, strict=True) if flag == "CAF")[2] == "5"
    assert [float(row[0]) for row in seen[:4]] == [0.0, 0.01, 0.02, 0.02]
    assert followed(path, 0) == (b"ping", b"ping")
    assert not fields(path, "frame.number", only="tcp.analysis.flags or _ws.malformed")


async def test_every_checksum_is_right_over_both_versions_of_ip(
    tmp_path: Path, autojump_clock: Any
) -> None:
    for ipv6 in (False, True):
        path = tmp_path / f"{ipv6}.pcap"
        async with VirtualNetwork() as net:
            for number, name in enumerate(("api", "laptop")):
                net.host(name, addresses=[f"fd00::{number + 1}" if ipv6 else f"10.1.0.{number}"])
            await conversation(net, ping)
            net.write_pcap(path)

        version = "ipv6" if ipv6 else "ip"
        seen = fields(path, f"{version}.src", "tcp.checksum.status", "ip.checksum.status")
        assert seen
        assert {row[1] for row in seen} == {GOOD}
        assert {row[2] for row in seen} == {"" if ipv6 else GOOD}
        addresses = {"fd00::1", "fd00::2"} if ipv6 else {"10.1.0.0", "10.1.0.1"}
        assert {row[0] for row in seen} == addresses


async def test_much_data_is_put_together_again(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "net.pcap"
    data = bytes(range(251)) * 2000

    async def client() -> None:
        stream = await trio.open_tcp_stream("api", 7)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            left = len(data)
            while left:
                left -= len(await stream.receive_some())

    link = Link(latency=0.01, bandwidth=1e7, segment_size=65495)
    async with VirtualNetwork(link=link) as net:
        await conversation(net, client)
        net.write_pcap(path)

    assert followed(path, 0) == (data, data)
    assert not fields(path, "frame.number", only="_ws.malformed or tcp.analysis.lost_segment")


async def test_what_was_lost_is_commented_and_its_retransmission_recognised(
    tmp_path: Path, autojump_clock: Any
) -> None:
    path = tmp_path / "net.pcap"

    async def client() -> None:
        async with await trio.open_tcp_stream("api", 7) as stream:
            for _ in range(20):
                await stream.send_all(b"x" * 100)
                left = 100
                while left:
                    left -= len(await stream.receive_some(left))

    async with VirtualNetwork(link=Link(latency=0.001, loss=0.2), seed=3) as net:
        await conversation(net, client)
        net.write_pcap(path)
        again = [event for event in net.trace if event.what == "sent" and event.attempt]
        lost = [event for event in net.trace if event.what == "dropped"]

    comments = [row[0] for row in fields(path, "frame.comment", only="frame.comment")]
    assert comments == ["dropped: loss"] * len(lost)
    recognised = fields(path, "frame.number", only="tcp.analysis.retransmission")
    assert len(again) == len(recognised) > 3
    assert followed(path, 0) == (b"x" * 2000, b"x" * 2000)


async def test_a_refused_connection_and_a_cut_one_end_in_a_reset(
    tmp_path: Path, autojump_clock: Any
) -> None:
    path = tmp_path / "net.pcap"

    async def client() -> None:
        with pytest.raises(OSError, match="failed"):
            await trio.open_tcp_stream("api", 8)
        stream = await trio.open_tcp_stream("api", 7)
        await stream.send_all(b"cut")
        await trio.sleep(1)
        # With bytes unread, closing resets.
        await stream.aclose()

    async with VirtualNetwork() as net:
        await conversation(net, client)
        net.write_pcap(path)

    seen = fields(path, "tcp.stream", "tcp.srcport", "tcp.dstport", only="tcp.flags.reset == 1")
    assert [row[0] for row in seen][:2] == ["0", "1"]
    assert seen[0][1] == "8"
    assert seen[1][2] == "7"


async def test_tls_is_recognised(
    tmp_path: Path, autojump_clock: Any, certificates: Certificates
) -> None:
    path = tmp_path / "net.pcap"
    context = ssl.create_default_context()
    certificates.authority.configure_trust(context)

    async def client() -> None:
        stream = await trio.open_tcp_stream("site", 443)
        async with trio.SSLStream(stream, context, server_hostname="site") as tls:
            await tls.send_all(b"secret")
            assert await tls.receive_some() == b"secret"

    async with VirtualNetwork(link=Link(latency=0.01)) as net, trio.open_nursery() as nursery:
        await nursery.start(
            net.host("site").run, trio.serve_ssl_over_tcp, echo, 443, certificates.server
        )
        await net.host("laptop").run(client)
        nursery.cancel_scope.cancel()
        net.write_pcap(path)

    hello = fields(path, "tls.handshake.extensions_server_name", only="tls.handshake.type == 1")
    assert hello == [("site",)]
    assert fields(path, "frame.number", only="tls.handshake.type == 2")
    assert fields(path, "frame.number", only="tls.record.opaque_type == 23 or tls.app_data")
    assert not fields(path, "frame.number", only="_ws.malformed")


async def test_one_hosts_capture_has_the_times_at_that_host(
    tmp_path: Path, autojump_clock: Any
) -> None:
    async with VirtualNetwork(link=Link(latency=0.25)) as net:
        await conversation(net, ping)
        for name in ("laptop", "api"):
            net.write_pcap(tmp_path / f"{name}.pcap", host=name)
        with pytest.raises(ValueError, match="no host 'nobody'"):
            net.write_pcap(tmp_path / "nobody.pcap", host="nobody")

    def handshake(name: str) -> list[float]:
        rows = fields(tmp_path / f"{name}.pcap", "frame.time_epoch")
        return [float(row[0]) for row in rows[:3]]

    assert handshake("laptop") == [0, 0.5, 0.5]
    assert handshake("api") == [0.25, 0.25, 0.75]


async def test_hosts_have_their_names(tmp_path: Path, autojump_clock: Any) -> None:
    path = tmp_path / "net.pcap"
    async with VirtualNetwork() as net:
        await conversation(net, ping)
        net.write_pcap(path)
    # -N n after -n: by the names in the file, and no others.
    assert fields_named(path) == {"api", "laptop"}


def fields_named(path: Path) -> set[str]:
    rows = tshark(path, "-Nn", "-Tfields", "-e", "ip.src_host", "-e", "ip.dst_host")
    return {name for row in rows for name in row.split("\t")}


def event(kind: str, source: Endpoint, destination: Endpoint, **changes: Any) -> Event:
    values: dict[str, Any] = {
        "time": 0.0,
        "what": "sent",
        "protocol": "tcp",
        "connection": 1,
        "index": 0,
        "sequence": 0,
        "acknowledgement": 0,
        "window": 1000,
        "payload": b"",
        "attempt": 0,
        "note": "",
    }
    return Event(kind=kind, source=source, destination=destination, **(values | changes))


V4 = Endpoint("a", "192.0.2.1", 40001), Endpoint("b", "192.0.2.2", 40053)
V6 = Endpoint("a", "2001:db8::1", 40001), Endpoint("b", "2001:db8::2", 40053)


@pytest.mark.parametrize("ends", [V4, V6], ids=["IPv4", "IPv6"])
def test_datagrams_and_what_comes_back_of_them(
    ends: tuple[Endpoint, Endpoint], tmp_path: Path
) -> None:
    path = tmp_path / "udp.pcap"
    near, far = ends
    events = [
        event("DATAGRAM", near, far, protocol="udp", payload=b"x" * size, time=size / 4)
        for size in (0, 1, 5, 60000)
    ]
    events.append(event("ICMP", far, near, protocol="udp"))

    assert write_pcap(path, events) == 5

    version = "icmp" if ends is V4 else "icmpv6"
    seen = fields(path, "udp.length", "udp.checksum.status", only=f"udp and not {version}")
    assert seen == [(str(8 + size), GOOD) for size in (0, 1, 5, 60000)]
    unreachable = ("3", "3", "40001") if ends is V4 else ("1", "4", "40001")
    answer = fields(path, f"{version}.type", f"{version}.code", "udp.srcport", only=version)
    assert answer == [unreachable]
    assert fields(path, f"{version}.checksum.status", only=version) == [(GOOD,)]
    assert not fields(path, "frame.number", only="_ws.malformed")


def test_a_connection_that_cannot_reach_its_host_is_told(tmp_path: Path) -> None:
    path = tmp_path / "icmp.pcap"
    near, far = V4
    write_pcap(path, [event("SYN", near, far), event("ICMP", far, near)])
    seen = fields(path, "icmp.type", "icmp.code", "tcp.dstport", only="icmp")
    assert seen == [("3", "1", "40053")]


def test_a_port_used_again_is_another_stream(tmp_path: Path) -> None:
    path = tmp_path / "again.pcap"
    near, far = V4
    events = []
    for connection in (1, 2):
        events += [
            event("SYN", near, far, connection=connection, time=connection),
            event("SYN-ACK", far, near, connection=connection, acknowledgement=1, time=connection),
            event(
                "FIN",
                near,
                far,
                connection=connection,
                sequence=1,
                acknowledgement=1,
                time=connection,
            ),
        ]
    write_pcap(path, events)
    assert [row[0] for row in fields(path, "tcp.stream")] == ["0", "0", "0", "1", "1", "1"]
    assert not fields(path, "frame.number", only="tcp.analysis.retransmission")


def test_a_probe_is_a_keepalive(tmp_path: Path) -> None:
    path = tmp_path / "probe.pcap"
    near, far = V4
    events = [
        event("SYN", near, far),
        event("SYN-ACK", far, near, acknowledgement=1),
        event("ACK", near, far, sequence=1, acknowledgement=1),
        event("PROBE", near, far, sequence=1, acknowledgement=1, time=2.0),
        event("ACK", far, near, sequence=1, acknowledgement=1, time=2.0, window=0),
    ]
    write_pcap(path, events)
    assert fields(path, "frame.number", only="tcp.analysis.keep_alive") == [("4",)]
    assert fields(path, "tcp.window_size") == [("1000",), ("1000",), ("1024",), ("1024",), ("0",)]


def test_what_has_no_address_is_left_out_and_a_fault_is_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "fault.pcap"
    near, far = V4
    nowhere = Endpoint("", "", 0)
    events = [
        event("DATA", Endpoint("a", "", 0), Endpoint("a", "", 0), protocol="unix", payload=b"x"),
        event("QUERY", Endpoint("a", "", 0), Endpoint("dns", "", 0), protocol="dns"),
        event("", nowhere, nowhere, what="fault", protocol="", note="partition: a, b"),
        event("SYN", near, far, time=1234567.123456789),
    ]
    assert write_pcap(path, events) == 1
    seen = fields(path, "frame.comment", "frame.time_epoch")
    assert [row[0] for row in seen] == ["partition: a, b"]
    # As exact as a float is there.
    assert float(seen[0][1]) == pytest.approx(1234567.123456789, abs=1e-9)


def test_a_segment_too_big_for_a_packet_is_two(tmp_path: Path) -> None:
    path = tmp_path / "big.pcap"
    near, far = V4
    data = bytes(range(250)) * 400
    events = [
        event("SYN", near, far),
        event("SYN-ACK", far, near, acknowledgement=1),
        event("DATA", near, far, sequence=1, acknowledgement=1, payload=data),
    ]
    assert write_pcap(path, events) == 4
    assert followed(path, 0)[0] == data


def test_a_file_that_cannot_be_written_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_pcap(tmp_path / "no" / "such.pcap", trionet.testing.Trace())
