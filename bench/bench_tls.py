"""TLS: round trips of three sizes, and handshakes, against trio.SSLStream."""

from __future__ import annotations

import ssl
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

import trionet
from bench import figures
from bench.pairs import in_turns
from bench.sockets import tcp_sockets, trio_stream

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    TLS = trionet.TLSStream | trio.SSLStream[trio.SocketStream]
    Pair = tuple[TLS, TLS]

# How many round trips of each size: about a quarter of a second's worth.
COUNTS = {64: 3000, 16384: 2000, 262144: 200}
HANDSHAKES = 60

AUTHORITY = trustme.CA(key_type=trustme.KeyType.ECDSA)
CERTIFICATE = AUTHORITY.issue_cert("bench.test", key_type=trustme.KeyType.ECDSA)


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client = ssl.create_default_context()
    AUTHORITY.configure_trust(client)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERTIFICATE.configure_cert(server)
    return client, server


CLIENT, SERVER = contexts()


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(ssl.OPENSSL_VERSION, *figures.versions("trio"), "both ends in one process")


def our_pair(near: socket.socket, far: socket.socket) -> Pair:
    return (
        trionet.TLSStream(trionet.SocketStream(near), CLIENT, server_hostname="bench.test"),
        trionet.TLSStream(trionet.SocketStream(far), SERVER, server_side=True),
    )


def their_pair(near: socket.socket, far: socket.socket) -> Pair:
    return (
        trio.SSLStream(trio_stream(near), CLIENT, server_hostname="bench.test"),
        trio.SSLStream(trio_stream(far), SERVER, server_side=True),
    )


async def shake_hands(pair: Pair) -> None:
    async with trio.open_nursery() as nursery:
        for stream in pair:
            nursery.start_soon(stream.do_handshake)


async def close(pair: Pair) -> None:
    for stream in pair:
        await trio.aclose_forcefully(stream)


async def receive_exactly(stream: TLS, size: int) -> None:
    while size:
        data = await stream.receive_some(65536)
        assert data
        size -= len(data)


async def round_trips(make: Callable[[socket.socket, socket.socket], Pair], size: int) -> float:
    pair = make(*tcp_sockets())
    near, far = pair
    payload = bytes(size)
    count = COUNTS[size]

    async def echo() -> None:
        for _ in range(count):
            await receive_exactly(far, size)
            await far.send_all(payload)

    await shake_hands(pair)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        start = time.perf_counter()
        for _ in range(count):
            await near.send_all(payload)
            await receive_exactly(near, size)
        elapsed = time.perf_counter() - start
    await close(pair)
    return elapsed / count


async def handshakes(make: Callable[[socket.socket, socket.socket], Pair]) -> float:
    elapsed = 0.0
    for _ in range(HANDSHAKES):
        sockets = tcp_sockets()
        start = time.perf_counter()
        pair = make(*sockets)
        await shake_hands(pair)
        elapsed += time.perf_counter() - start
        await close(pair)
    return elapsed / HANDSHAKES


@pytest.mark.parametrize("size", COUNTS)
def bench_tls_round_trip(benchmark: BenchmarkFixture, size: int) -> None:
    """So many bytes there and back, over TCP."""
    in_turns(
        benchmark,
        partial(trio.run, round_trips, our_pair, size),
        {"trio.SSLStream": partial(trio.run, round_trips, their_pair, size)},
        unit=f"a TLS round trip of {size} bytes",
        # Of the larger ones ciphers and copies are the greater part, which both have alike.
        wanted=[("trio.SSLStream", "<=", 0.50)] if size == 64 else [],
    )


def bench_tls_handshake(benchmark: BenchmarkFixture) -> None:
    """A full handshake, ECDSA, the client's and the server's work together."""
    medians = in_turns(
        benchmark,
        partial(trio.run, handshakes, our_pair),
        {"trio.SSLStream": partial(trio.run, handshakes, their_pair)},
        unit="a full handshake, both sides",
    )
    for name, seconds in medians.items():
        print(f"  {name:34} {1 / seconds:10.0f} handshakes a second")
