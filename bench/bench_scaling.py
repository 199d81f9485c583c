"""What one operation costs where there are many: connections, streams, waiters, deadlines.

Each workload does the same number of operations at every size, so the curve is the price of the
others being there: it should be flat.
"""

from __future__ import annotations

import gc
import resource
import time
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionet
from bench import figures
from bench.pairs import curve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

OPERATIONS = 4_000
SIZES = (1, 10, 100, 1_000, 10_000)
MESSAGE = bytes(64)


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(*figures.versions("trio"))


class Stopwatch:
    """Seconds of this process, in which no garbage is collected.

    A full collection visits every connection there is, at a moment that has nothing to do with
    the operation it strikes.
    """

    seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what passes inside the block."""
        gc.collect()
        gc.disable()
        start = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - start
        gc.enable()


async def echo(connection: trio.abc.Stream) -> None:
    async with connection:
        async for data in connection:
            await connection.send_all(data)


async def round_trips(streams: list[Any]) -> float:
    """One round trip on each in turn, until there were enough."""
    watch = Stopwatch()
    with watch.running():
        for stream in islice(cycle(streams), OPERATIONS):
            await stream.send_all(MESSAGE)
            await stream.receive_some(64)
    return watch.seconds / OPERATIONS


async def connected(network: str, address: str, size: int) -> float:
    """Open so many connections to a server with every limit, and use each in turn."""
    limits = trionet.Limits(
        max_connections=2 * size, idle_timeout=3600, send_timeout=3600, lifetime=7200
    )
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(trionet.serve, echo, network, address, limits=limits))
        target = str(server.addresses[0])
        streams = [await trionet.dial(network, target) for _ in range(size)]
        # Each was served once before the clock starts: accepting is not what is measured.
        for stream in streams:
            await stream.send_all(b"x")
            await stream.receive_some(1)
        seconds = await round_trips(streams)
        for stream in streams:
            await trio.aclose_forcefully(stream)
        server.shutdown()
    return seconds


def descriptors() -> int:
    """How many TCP connections this process can hold both ends of."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (soft - 100) // 2


@pytest.mark.parametrize(("network", "address"), [("memb", "many"), ("tcp", "127.0.0.1:0")])
def bench_connections(benchmark: BenchmarkFixture, network: str, address: str) -> None:
    """A round trip on one of many connections."""
    most = descriptors() if network == "tcp" else SIZES[-1]
    sizes = [size for size in SIZES if size <= most]
    if sizes[-1] < SIZES[-1]:
        sizes.append(most)
    curve(
        benchmark,
        lambda size: trio.run(connected, network, address, size),
        sizes,
        unit=f"a 64-byte round trip with all limits set, {network}",
        of="connections",
        rounds=3,
    )


async def multiplexed(size: int) -> float:
    """Open so many streams in one session, and use each in turn."""
    config = trionet.MuxConfig(
        max_inbound_streams=2 * size + 2, max_outbound_streams=2 * size + 2, keepalive=None
    )
    near, far = trionet.memory_stream_pair(65536)
    async with (
        trionet.open_mux(near, role="client", config=config) as client,
        trionet.open_mux(far, role="server", config=config) as server,
        trio.open_nursery() as nursery,
    ):
        streams = []
        for _ in range(size):
            stream = await client.open_stream()
            await stream.send_all(b"x")
            nursery.start_soon(echo, await server.listener().accept())
            await stream.receive_some(1)
            streams.append(stream)
        seconds = await round_trips(streams)
        for stream in streams:
            await stream.aclose()
    return seconds


def bench_streams(benchmark: BenchmarkFixture) -> None:
    """A round trip on one of many streams of a session."""
    curve(
        benchmark,
        lambda size: trio.run(multiplexed, size),
        SIZES,
        unit="a 64-byte round trip in a session",
        of="streams",
        rounds=3,
    )


class Nothing:
    """A connection that costs nothing to make, to use or to close."""

    async def aclose(self) -> None:
        """Close it."""


async def queued(size: int) -> float:
    """Let so many tasks wait for one connection, each going to the end of the line again."""

    async def connect() -> Nothing:
        return Nothing()

    watch = Stopwatch()
    leases = 0
    enough = trio.Event()

    async def work() -> None:
        nonlocal leases
        while True:
            async with pool.acquire():
                leases += 1
                if leases == OPERATIONS:
                    enough.set()

    async with trionet.Pool(connect, max_size=1) as pool, trio.open_nursery() as nursery:
        held = await pool.get()
        for _ in range(size):
            nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        with watch.running():
            pool.put(held)
            await enough.wait()
        nursery.cancel_scope.cancel()
    return watch.seconds / OPERATIONS


def bench_waiters(benchmark: BenchmarkFixture) -> None:
    """A lease, handed over to the first of many who wait."""
    curve(
        benchmark,
        lambda size: trio.run(queued, size),
        SIZES,
        unit="a lease handed to the next in line",
        of="waiters",
    )
