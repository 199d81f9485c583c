"""Multiplexed streams, beside py-libp2p's yamux on the same carriers and a Go peer over TCP.

py-libp2p is measured where it is installed: ``pip install libp2p==0.8.1``.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import time
import tracemalloc
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import trio
import trio.testing

import trionet
from bench import figures
from bench.pairs import in_turns
from trionet._mux.session import MuxConfig, MuxSession, open_mux

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

MESSAGE = bytes(64)
ROUND_TRIPS = 1500
BULK = 24 << 20
OPENINGS = 400
STREAMS, MESSAGES = 100, 50
IDLE = 10_000

CarrierPair = tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]

# A run ends with its streams open, as a process may; tests/mux is where leaks are looked for.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Stream(Protocol):
    """What the workloads ask of a stream, trionet's or libp2p's."""

    async def send(self, data: bytes) -> None: ...
    async def receive(self) -> bytes: ...
    async def end(self) -> None: ...
    async def close(self) -> None: ...


class Mux(Protocol):
    """What they ask of a session's two ends."""

    async def open(self) -> Stream: ...
    async def accept(self) -> Stream: ...


Side = AbstractAsyncContextManager[Mux]


# Carriers


async def trios_memory() -> CarrierPair:
    return trio.testing.memory_stream_pair()


async def memory() -> CarrierPair:
    return trionet.memory_stream_pair(65536)


async def tcp() -> CarrierPair:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    async with listener:
        near: Any = await trionet.dial("tcp", str(listener.address))
        far: Any = await listener.accept()
        return near, far


CARRIERS = {"trio's memory": trios_memory, "memb": memory, "tcp": tcp}


# trionet


class OurStream:
    """Our own names."""

    __slots__ = ("close", "end", "receive", "send")

    def __init__(self, stream: Any) -> None:
        self.send = stream.send_all
        self.receive = stream.receive_some
        self.end = stream.send_eof
        self.close = stream.aclose


class Ours:
    """A client and a server in one process."""

    def __init__(self, client: MuxSession, server: MuxSession) -> None:
        self.client, self.server = client, server

    async def open(self) -> Stream:
        return OurStream(await self.client.open_stream())

    async def accept(self) -> Stream:
        return OurStream(await self.server.listener().accept())


@asynccontextmanager
async def ours(make: Callable[[], Awaitable[CarrierPair]]) -> AsyncIterator[Mux]:
    near, far = await make()
    async with (
        open_mux(near, role="client") as client,
        open_mux(far, role="server") as server,
    ):
        yield Ours(client, server)


# py-libp2p


def carrier(stream: Any, initiator: bool) -> Any:
    """What libp2p's muxer asks of a connection: libp2p's own adapter of a trio stream."""
    from libp2p.io.trio import TrioTCPStream

    adapter: Any = TrioTCPStream(stream)
    adapter.is_initiator = initiator
    adapter.get_remote_address = lambda: ("127.0.0.1", 0)
    return adapter


class TheirStream:
    """libp2p's names."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.send = stream.write
        self.end = stream.close

    async def receive(self) -> bytes:
        from libp2p.stream_muxer.exceptions import MuxedStreamEOF

        try:
            data: bytes = await self._stream.read(65536)
        except MuxedStreamEOF:
            return b""
        return data

    async def close(self) -> None:
        await self._stream.close()


class Theirs:
    """A client and a server in one process."""

    def __init__(self, client: Any, server: Any) -> None:
        self.client, self.server = client, server

    async def open(self) -> Stream:
        return TheirStream(await self.client.open_stream())

    async def accept(self) -> Stream:
        return TheirStream(await self.server.accept_stream())


@asynccontextmanager
async def theirs(make: Callable[[], Awaitable[CarrierPair]]) -> AsyncIterator[Mux]:
    from libp2p.peer.id import ID
    from libp2p.stream_muxer.yamux.yamux import Yamux

    near, far = await make()
    client = Yamux(carrier(near, True), ID(b"server"), is_initiator=True)
    server = Yamux(carrier(far, False), ID(b"client"), is_initiator=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.start)
        nursery.start_soon(server.start)
        await client.event_started.wait()
        await server.event_started.wait()
        yield Theirs(client, server)
        nursery.cancel_scope.cancel()


# Workloads: each returns seconds per operation.


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)
    await stream.close()


async def serve(mux: Mux) -> None:
    async with trio.open_nursery() as nursery:
        with suppress(trio.ClosedResourceError):
            while True:
                nursery.start_soon(echo, await mux.accept())


async def receive_size(stream: Stream, size: int) -> None:
    while size > 0:
        size -= len(await stream.receive())


async def ping_pong(mux: Mux) -> float:
    stream = await mux.open()
    start = time.perf_counter()
    for _ in range(ROUND_TRIPS):
        await stream.send(MESSAGE)
        await receive_size(stream, len(MESSAGE))
    elapsed = time.perf_counter() - start
    await stream.close()
    return elapsed / ROUND_TRIPS


async def many_small(mux: Mux) -> float:
    async def one() -> None:
        stream = await mux.open()

        async def send() -> None:
            for _ in range(MESSAGES):
                await stream.send(MESSAGE)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await receive_size(stream, MESSAGES * len(MESSAGE))
        await stream.close()

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(one)
    return (time.perf_counter() - start) / (STREAMS * MESSAGES)


async def bulk(mux: Mux) -> float:
    stream = await mux.open()
    block = bytes(65536)

    async def send() -> None:
        for _ in range(BULK // len(block)):
            await stream.send(block)

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await receive_size(stream, BULK)
    elapsed = time.perf_counter() - start
    await stream.close()
    return elapsed / (BULK / 1e6)


async def openings(mux: Mux) -> float:
    start = time.perf_counter()
    for _ in range(OPENINGS):
        stream = await mux.open()
        await stream.send(b"x")
        await receive_size(stream, 1)
        await stream.close()
    return (time.perf_counter() - start) / OPENINGS


Workload = "Callable[[Mux], Awaitable[float]]"


def run(
    side: Callable[[Callable[[], Awaitable[CarrierPair]]], Side],
    make: Callable[[], Awaitable[CarrierPair]],
    workload: Callable[[Mux], Awaitable[float]],
) -> float:
    async def main() -> float:
        async with side(make) as mux, trio.open_nursery() as nursery:
            nursery.start_soon(serve, mux)
            seconds = await workload(mux)
            nursery.cancel_scope.cancel()
        return seconds

    return trio.run(main)


async def bare_ping_pong(make: Callable[[], Awaitable[CarrierPair]]) -> float:
    near, far = await make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, OurStream(far))
        seconds = 0.0
        start = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            await near.send_all(MESSAGE)
            await near.receive_some()
        seconds = time.perf_counter() - start
        await near.aclose()
    return seconds / ROUND_TRIPS


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(*figures.versions("trio", "libp2p"))


WORKLOADS = pytest.mark.parametrize(
    ("workload", "unit", "least"),
    [
        (ping_pong, "a 64 B round trip", 4.5),
        (many_small, f"a message of {STREAMS} streams x {MESSAGES} x 64 B, echoed", 40),
        (bulk, "a MB echoed", 5),
        (openings, "open + echo 1 B + close", 3.5),
    ],
    ids=["ping_pong", "many_small", "bulk", "openings"],
)


@pytest.mark.parametrize("carrier", ["trio's memory", "tcp"])
@WORKLOADS
def bench_mux(
    benchmark: BenchmarkFixture,
    carrier: str,
    workload: Callable[[Mux], Awaitable[float]],
    unit: str,
    least: float,
) -> None:
    pytest.importorskip("libp2p", reason="pip install libp2p==0.8.1")
    in_turns(
        benchmark,
        partial(run, ours, CARRIERS[carrier], workload),
        {"libp2p": partial(run, theirs, CARRIERS[carrier], workload)},
        unit=unit,
        rounds=5,
        wanted=[("libp2p", ">=", least)],
    )


@pytest.mark.parametrize("carrier", CARRIERS)
def bench_mux_and_its_carrier(benchmark: BenchmarkFixture, carrier: str) -> None:
    make = CARRIERS[carrier]
    in_turns(
        benchmark,
        partial(run, ours, make, ping_pong),
        {"the carrier alone": partial(trio.run, bare_ping_pong, make)},
        unit="a 64 B round trip",
        # 0.45 of its speed on trio's memory pair.
        wanted=[("the carrier alone", ">=", 0.45)] if carrier == "trio's memory" else [],
    )


def percentile(values: list[float], which: int) -> float:
    return statistics.quantiles(values, n=100)[which - 1]


async def latencies(
    make: Callable[[], Awaitable[CarrierPair]], beside: bool, clock: Callable[[], float]
) -> list[float]:
    """Round trips of 64 B, alone or beside one stream that sends all it can."""
    found: list[float] = []
    async with ours(make) as mux, trio.open_nursery() as nursery:

        async def sink(stream: Stream) -> None:
            while await stream.receive():
                pass

        async def pour(stream: Stream) -> None:
            block = bytes(65536)
            while True:
                await stream.send(block)

        near = await mux.open()
        nursery.start_soon(echo, await mux.accept())
        if beside:
            nursery.start_soon(pour, await mux.open())
            nursery.start_soon(sink, await mux.accept())
        for _ in range(ROUND_TRIPS):
            start = clock()
            await near.send(MESSAGE)
            await near.receive()
            found.append(clock() - start)
        nursery.cancel_scope.cancel()
    return found[50:]


CLOCKS = {"of the processor": time.process_time, "by the clock": time.perf_counter}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("carrier", CARRIERS)
def bench_mux_beside_bulk(benchmark: BenchmarkFixture, carrier: str, clock: str) -> None:
    """Both ends are in this process, so what a round trip takes is the processor's time; the clock
    also counts what other processes take of it, where there are any."""
    make = CARRIERS[carrier]
    quiet: list[float] = []
    beside: list[float] = []

    def one_round() -> None:
        for found, bulk in ((quiet, False), (beside, True)):
            found.append(percentile(trio.run(latencies, make, bulk, CLOCKS[clock]), 99))

    benchmark.pedantic(one_round, rounds=7, iterations=1)  # type: ignore[no-untyped-call]
    figures.show(
        benchmark,
        f"the 99th percentile of 64 B round trips beside bulk, {clock}",
        {"trionet": beside, "quiet": quiet},
        wanted=[("quiet", "<=", 3)],
    )


def bench_mux_idle_streams(benchmark: BenchmarkFixture) -> None:
    """Memory of a stream, both ends of it, that has echoed a byte and waits for the next."""
    sizes: list[float] = []
    config = MuxConfig(max_inbound_streams=2 * IDLE, max_outbound_streams=2 * IDLE, keepalive=None)

    async def main() -> None:
        near, far = await memory()
        async with (
            open_mux(near, role="client", config=config) as client,
            open_mux(far, role="server", config=config) as server,
        ):
            gc.collect()
            tracemalloc.start()
            kept = []
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(IDLE):
                opened = await client.open_stream()
                accepted = await server.listener().accept()
                await opened.send_all(b"x")
                await accepted.send_all(await accepted.receive_some())
                await opened.receive_some()
                kept.append((opened, accepted))
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            sizes.append((after - before) / IDLE)
            for pair in kept:
                for stream in pair:
                    stream.reset()

    benchmark.pedantic(lambda: trio.run(main), rounds=1, iterations=1)  # type: ignore[no-untyped-call]
    figures.show(
        benchmark,
        f"memory of an idle stream's end, {IDLE:,} streams, by tracemalloc",
        {"trionet": [size / 2 for size in sizes]},
        quantity="bytes",
        wanted=[(None, "<=", 1536)],
    )


# A Go peer


@pytest.fixture(scope="module")
def go_echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the interoperability tests' Go peer."""
    from tests.interop.conftest import build

    return build(tmp_path_factory.mktemp("go"))


def start_go(binary: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [binary, "-listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()[1]


def bench_mux_go(benchmark: BenchmarkFixture, go_echo: Path) -> None:
    round_trips: dict[str, list[float]] = {"trionet": [], "Go to Go": []}
    megabytes: dict[str, list[float]] = {"trionet": [], "Go to Go": []}

    async def against_go(address: str) -> None:
        carrier = await trionet.dial("tcp", address)
        async with open_mux(carrier, role="client") as session:
            stream = OurStream(await session.open_stream())
            await stream.send(b"echo\n")
            start = time.perf_counter()
            for _ in range(ROUND_TRIPS):
                await stream.send(MESSAGE)
                await receive_size(stream, len(MESSAGE))
            round_trips["trionet"].append((time.perf_counter() - start) / ROUND_TRIPS)

            async def send() -> None:
                block = bytes(65536)
                for _ in range((64 << 20) // len(block)):
                    await stream.send(block)

            start = time.perf_counter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await receive_size(stream, 64 << 20)
            megabytes["trionet"].append((time.perf_counter() - start) / ((64 << 20) / 1e6))
            await stream.close()

    def one_round() -> None:
        process, address = start_go(go_echo)
        trio.run(against_go, address)
        process.kill()
        process.wait()
        process, address = start_go(go_echo)
        said = subprocess.run(
            [go_echo, "-connect", address, "-role", "client", "-bench", str(ROUND_TRIPS)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        process.kill()
        process.wait()
        round_trips["Go to Go"].append(float(said[1]) * 1e-6)
        megabytes["Go to Go"].append(1 / float(said[3]))

    benchmark.pedantic(one_round, rounds=3, iterations=1)  # type: ignore[no-untyped-call]
    figures.show(benchmark, "a 64 B round trip to a Go echo server over TCP", round_trips)
    figures.show(benchmark, "a MB echoed by a Go server over TCP", megabytes)
