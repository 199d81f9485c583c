"""Memory streams: round trips, bulk, and memconn's own operation, dial + write + close."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionet
from bench import figures
from bench.pairs import in_turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

ROUND_TRIPS = 3000
CHUNKS = 2000
DIALS = 2000
DIALLERS = 2

MEMORY = pytest.mark.parametrize(("network", "size"), [("memu", 0), ("memb", 65536)])


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(*figures.versions("trio"))


async def round_trips(make: Callable[[], Any], payload: bytes) -> float:
    near, far = make()

    async def echo() -> None:
        while data := await far.receive_some(len(payload)):
            await far.send_all(data)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        start = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            await near.send_all(payload)
            await near.receive_some(len(payload))
        elapsed = time.perf_counter() - start
        await near.aclose()
    return elapsed / ROUND_TRIPS


async def one_way(make: Callable[[], Any], chunk: bytes) -> float:
    near, far = make()

    async def sink() -> None:
        while await far.receive_some():
            pass

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink)
        for _ in range(CHUNKS):
            await near.send_all(chunk)
        await near.aclose()
    return (time.perf_counter() - start) / CHUNKS


@MEMORY
def bench_round_trip(benchmark: BenchmarkFixture, network: str, size: int) -> None:
    """64 bytes there and back."""
    in_turns(
        benchmark,
        partial(trio.run, round_trips, partial(trionet.memory_stream_pair, size), bytes(64)),
        {
            "trio.testing.memory_stream_pair": partial(
                trio.run, round_trips, trio.testing.memory_stream_pair, bytes(64)
            )
        },
        unit=f"a 64-byte round trip, {network}",
        wanted=[("trio.testing.memory_stream_pair", "<=", 0.40)],
    )


@MEMORY
def bench_bulk(benchmark: BenchmarkFixture, network: str, size: int) -> None:
    """64 KiB chunks, one way."""
    in_turns(
        benchmark,
        partial(trio.run, one_way, partial(trionet.memory_stream_pair, size), bytes(65536)),
        {
            "trio.testing.memory_stream_pair": partial(
                trio.run, one_way, trio.testing.memory_stream_pair, bytes(65536)
            )
        },
        unit=f"64 KiB one way, {network}",
        wanted=[("trio.testing.memory_stream_pair", "<=", 0.40)],
    )


async def read_once(stream: Any) -> None:
    await stream.receive_some(8)


async def dial_all(dial: Callable[[], Any]) -> float:
    async def dialler() -> None:
        for _ in range(DIALS // DIALLERS):
            stream = await dial()
            await stream.send_all(b"\0\1\2\3\4\5\6\7")
            await stream.aclose()

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(DIALLERS):
            nursery.start_soon(dialler)
    return (time.perf_counter() - start) / DIALS


async def dial_trionet(network: str, address: str) -> float:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(trionet.serve, read_once, network, address))
        seconds = await dial_all(partial(trionet.dial, network, str(server.addresses[0])))
        server.shutdown()
    return seconds


async def dial_trio() -> float:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, read_once, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        seconds = await dial_all(partial(trio.open_tcp_stream, "127.0.0.1", port))
        nursery.cancel_scope.cancel()
    return seconds


def bench_dial(benchmark: BenchmarkFixture) -> None:
    """memconn's operation: dial, write 8 bytes, close; a server reads them and closes."""
    in_turns(
        benchmark,
        partial(trio.run, dial_trionet, "memu", "bench"),
        {
            "trionet over tcp": partial(trio.run, dial_trionet, "tcp", "127.0.0.1:0"),
            "trio.open_tcp_stream": partial(trio.run, dial_trio),
        },
        unit="dial + 8 bytes + close, two diallers",
        wanted=[("trio.open_tcp_stream", ">=", 8.0)],
    )
