"""The workloads by which MemConn and tcpserver were measured, recreated.

netpool's is in ``bench_pool.py``, and Plex has none. Their published figures are Go's on other
machines: they say what the workload is, not who is faster.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
import socket
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import trionet
from bench import figures
from bench.pairs import in_turns
from bench.peers.seed_http import TESTS
from bench.programs import Load, Skipped, Traffic, free_port, nethttp, python, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.programs import Program

# MemConn's README was measured with eight processors, so with eight diallers.
DIALLERS = 8
DIALS = 1600
PAYLOAD = bytes(range(8))
# tcpserver's: 1,000 connections.
CONNECTIONS = 1000
# A signature of 4,096 bits takes one core some 5 ms. With a thousand connections nothing but
# handshakes would be measured, and tcpserver's figure with them cannot be full handshakes either.
TLS_CONNECTIONS = 100

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(*figures.versions("trio", "h11", "httptools", "uvloop"))


# MemConn


async def read_once(stream: trio.abc.Stream) -> None:
    await stream.receive_some(8)


async def dial_all(dial: Callable[[], Awaitable[Any]], deadline: bool) -> float:
    async def once() -> None:
        stream = await dial()
        try:
            await stream.send_all(PAYLOAD)
        finally:
            await stream.aclose()

    async def dialler() -> None:
        for _ in range(DIALS // DIALLERS):
            if deadline:
                with trio.fail_after(60):
                    await once()
            else:
                await once()

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(DIALLERS):
            nursery.start_soon(dialler)
    return (time.perf_counter() - start) / DIALS


def reset_on_close(sock: Any) -> None:
    """Let closing send RST, so that no port stays in TIME_WAIT; MemConn's benchmark does so."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def ours(network: str, address: str, deadline: bool) -> float:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(trionet.serve, read_once, network, address))
        target = str(server.addresses[0])

        async def dial() -> trio.abc.Stream:
            stream = await trionet.dial(network, target)
            if network == "tcp":
                reset_on_close(stream.transport_socket)
            return stream

        seconds = await dial_all(dial, deadline)
        server.shutdown()
    return seconds


async def trios_tcp(deadline: bool) -> float:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, read_once, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]

        async def dial() -> trio.abc.Stream:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            reset_on_close(stream.socket)
            return stream

        seconds = await dial_all(dial, deadline)
        nursery.cancel_scope.cancel()
    return seconds


@pytest.mark.parametrize("deadline", [False, True], ids=["", "deadline"])
def bench_memconn(benchmark: BenchmarkFixture, deadline: bool, tmp_path: Path) -> None:
    """Dial, write 8 bytes, close; a server reads them and closes."""
    in_turns(
        benchmark,
        partial(trio.run, ours, "memu", "bench", deadline),
        {
            "trionet, memb": partial(trio.run, ours, "memb", "bench", deadline),
            "trionet, unix": partial(trio.run, ours, "unix", str(tmp_path / "socket"), deadline),
            "trionet, tcp": partial(trio.run, ours, "tcp", "127.0.0.1:0", deadline),
            "trio, tcp": partial(trio.run, trios_tcp, deadline),
        },
        unit=f"dial + 8 bytes + close, {DIALLERS} diallers{', a deadline each' * deadline}",
    )
    published = "4.0, unix 24.1, tcp 76.5" if deadline else "3.2, unix 24.6, tcp 62.6"
    note = f"MemConn's own README, µs on eight processors: memu {published}"
    print(f"  {note}")
    benchmark.extra_info["notes"] = [note]


# tcpserver


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make a self-signed certificate of RSA with 4,096 bits, as tcpserver's benchmark has."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    path.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + signed.public_bytes(encoding)
    )
    return str(path)


def programs(number: str, certificate: str, folder: Path) -> dict[str, Program]:
    """Start one server of each kind for one test."""
    names = {"trionet": "trionet", "trio": "trio.serve_tcp + h11", "uvloop": "uvloop, a Protocol"}
    started: dict[str, Program] = {}
    for kind, name in names.items():
        port = free_port()
        arguments = (kind, number, str(port), *([certificate] if certificate else []))
        started[name] = python("-m", "bench.peers.seed_http", *arguments, port=port)
    with contextlib.suppress(Skipped):
        version, started["Go net/http"] = nethttp(folder, number, certificate)
        figures.announce(version)
    return started


@needs_wrk
@pytest.mark.parametrize(
    ("number", "tls"), [*((number, False) for number in TESTS), ("1", True), ("2", True)]
)
def bench_tcpserver(
    benchmark: BenchmarkFixture, number: str, tls: bool, certificate: str, tmp_path: Path
) -> None:
    """One of tcpserver's tests, with its thousand connections."""
    traffic = Traffic(
        close=not TESTS[number].keep_alive,
        connections=TLS_CONNECTIONS if tls else CONNECTIONS,
        tls=tls,
    )
    started = programs(number, certificate if tls else "", tmp_path)
    with running(*started.values()):
        loads: dict[str, Callable[[], float]] = {
            name: Load(program, traffic) for name, program in started.items()
        }
        mine = loads.pop("trionet")
        in_turns(
            benchmark,
            mine,
            loads,
            unit=f"tcpserver's test {number}{', TLS' * tls}: one answer",
            rounds=2 if tls else 3,
        )
