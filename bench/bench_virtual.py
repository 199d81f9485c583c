"""The virtual network: how fast virtual time goes by, and that memory pays nothing for it."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

import trionet
from bench import figures
from bench.pairs import curve
from trionet.testing import Link, VirtualNetwork, simulate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pytest_benchmark.fixture import BenchmarkFixture

# Ten virtual minutes.
BULK, BANDWIDTH = 60_000_000, 100_000
EXCHANGES = 100_000


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(*figures.versions("trio"))


def real_and_virtual(main: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Run ``main``; return the seconds that passed here, and those that passed there."""
    clock = MockClock(autojump_threshold=0)

    async def timed() -> float:
        start = trio.current_time()
        await main()
        return trio.current_time() - start

    start = time.perf_counter()
    virtual = trio.run(timed, clock=clock)
    return time.perf_counter() - start, virtual


async def bulk() -> None:
    """One stream over a slow link."""
    chunk = bytes(65536)

    async def pour(stream: trio.SocketStream) -> None:
        left = BULK
        while left:
            await stream.send_all(chunk[: min(left, len(chunk))])
            left -= min(left, len(chunk))

    async with VirtualNetwork(link=Link(latency=0.02, bandwidth=BANDWIDTH)) as net:
        server, client = net.host("server"), net.host("client")
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, trio.serve_tcp, pour, 80)
            with client.context():
                stream = await trio.open_tcp_stream("server", 80)
            received = 0
            async for data in stream:
                received += len(data)
            assert received == BULK
            nursery.cancel_scope.cancel()


def bench_virtual_bulk(benchmark: BenchmarkFixture) -> None:
    """60 MB at 100 kB/s."""
    found: list[tuple[float, float]] = []
    benchmark.pedantic(lambda: found.append(real_and_virtual(bulk)), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert all(600 <= virtual < 601 for _, virtual in found)
    figures.show(
        benchmark,
        "60 MB over a link of 100 kB/s, ten virtual minutes",
        {"trionet": [real for real, _ in found[1:]]},
        quantity="s",
        wanted=[(None, "<=", 1.0)],
    )


async def exchanges(count: int, pairs: int = 1) -> None:
    """Small requests and answers, one millisecond away."""

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with VirtualNetwork(link=Link(latency=0.001)) as net:
        server, client = net.host("server"), net.host("client")

        async def ask() -> None:
            with client.context():
                stream = await trio.open_tcp_stream("server", 80)
            async with stream:
                for _ in range(count // pairs):
                    await stream.send_all(b"a small request")
                    await stream.receive_some(100)

        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, trio.serve_tcp, echo, 80)
            async with trio.open_nursery() as clients:
                for _ in range(pairs):
                    clients.start_soon(ask)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pairs", [1, 100])
def bench_virtual_exchanges(benchmark: BenchmarkFixture, pairs: int) -> None:
    """100,000 requests and answers."""
    found: list[tuple[float, float]] = []
    run = partial(real_and_virtual, partial(exchanges, EXCHANGES, pairs))
    benchmark.pedantic(lambda: found.append(run()), rounds=3)  # type: ignore[no-untyped-call]
    figures.show(
        benchmark,
        f"a request and its answer, 1 ms of latency, {pairs} at once",
        {"trionet": [real / EXCHANGES for real, _ in found]},
        # 8,000 a second.
        wanted=[(None, "<=", 125.0)],
    )


@pytest.mark.parametrize("pairs", [1, 100])
def bench_virtual_simulated(benchmark: BenchmarkFixture, pairs: int) -> None:
    """What a seed and the watch over deadlocks and escapes cost: the same, with and without."""
    count = EXCHANGES // 5
    plain: list[float] = []
    simulated: list[float] = []

    def both() -> None:
        plain.append(real_and_virtual(partial(exchanges, count, pairs))[0] / count)
        start = time.perf_counter()
        simulate(exchanges, count, pairs)
        simulated.append((time.perf_counter() - start) / count)

    benchmark.pedantic(both, rounds=5)  # type: ignore[no-untyped-call]
    figures.show(
        benchmark,
        f"a request and its answer, 1 ms of latency, {pairs} at once",
        {"trionet": simulated, "without simulate()": plain},
    )


async def waiting() -> None:
    """A slow dialogue: heartbeats between continents for a day."""

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    async with VirtualNetwork(link=Link(latency=0.15)) as net:
        server, client = net.host("server"), net.host("client")
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, trio.serve_tcp, echo, 80)
            with client.context():
                stream = await trio.open_tcp_stream("server", 80)
            async with stream:
                for _ in range(24 * 60):
                    await stream.send_all(b"heartbeat")
                    await stream.receive_some(100)
                    await trio.sleep(60)
            nursery.cancel_scope.cancel()


async def chatting() -> None:
    """Nothing but latency: one exchange after the other, 150 ms away."""
    async with VirtualNetwork(link=Link(latency=0.15)) as net:
        server, client = net.host("server"), net.host("client")

        async def echo(stream: trio.SocketStream) -> None:
            async for data in stream:
                await stream.send_all(data)

        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, trio.serve_tcp, echo, 80)
            with client.context():
                stream = await trio.open_tcp_stream("server", 80)
            async with stream:
                for _ in range(5_000):
                    await stream.send_all(b"a question")
                    await stream.receive_some(100)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("scenario", [waiting, chatting])
def bench_virtual_latency(
    benchmark: BenchmarkFixture, scenario: Callable[[], Awaitable[None]]
) -> None:
    """How many times faster than the wall clock it goes where all is waiting."""
    found: list[tuple[float, float]] = []
    benchmark.pedantic(lambda: found.append(real_and_virtual(scenario)), rounds=5)  # type: ignore[no-untyped-call]
    figures.show(
        benchmark,
        f"a virtual second of {scenario.__name__}",
        {"trionet": [real / virtual for real, virtual in found]},
        # A thousand times faster than real time.
        wanted=[(None, "<=", 1000.0)],
    )


def bench_virtual_hosts(benchmark: BenchmarkFixture) -> None:
    """The cost of an exchange where many connections are open."""

    async def main(size: int) -> float:
        async def echo(stream: trio.SocketStream) -> None:
            async for data in stream:
                await stream.send_all(data)

        async with VirtualNetwork(link=Link(latency=0.001)) as net:
            server, client = net.host("server"), net.host("client")
            async with trio.open_nursery() as nursery:
                await nursery.start(server.run, trio.serve_tcp, echo, 80)
                with client.context():
                    streams = [await trio.open_tcp_stream("server", 80) for _ in range(size)]
                start = time.perf_counter()
                for n in range(3_000):
                    await streams[n % size].send_all(b"hello")
                    await streams[n % size].receive_some(100)
                seconds = (time.perf_counter() - start) / 3_000
                for stream in streams:
                    await stream.aclose()
                nursery.cancel_scope.cancel()
        return seconds

    curve(
        benchmark,
        lambda size: trio.run(main, size, clock=MockClock(autojump_threshold=0)),
        [1, 10, 100, 1_000],
        unit="an exchange on a virtual network",
        of="connections",
    )


def bench_virtual_memory_link(benchmark: BenchmarkFixture) -> None:
    """The same exchange on a memory name with a link."""

    async def main() -> None:
        options = trionet.MemoryOptions(link=Link(latency=0.001))

        async def echo(stream: trio.abc.Stream) -> None:
            async for data in stream:
                await stream.send_all(data)

        listeners = await trionet.listen("memb", "far", options=options)
        async with trio.open_nursery() as nursery:
            server = trionet.Server(echo)
            await nursery.start(server.serve, listeners)
            async with await trionet.dial("memb", "far") as stream:
                for _ in range(20_000):
                    await stream.send_all(b"hello")
                    await stream.receive_some(100)
            server.shutdown()

    found: list[tuple[float, float]] = []
    benchmark.pedantic(lambda: found.append(real_and_virtual(main)), rounds=3)  # type: ignore[no-untyped-call]
    figures.show(
        benchmark,
        "an exchange on a memory name with 1 ms of latency",
        {"trionet": [real / 20_000 for real, _ in found]},
    )
