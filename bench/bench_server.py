"""Servers: TCP round trips, HTTP under load, what bookkeeping costs, idle connections' memory."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

import trionet
from bench import figures
from bench.pairs import in_turns
from bench.programs import PEERS, Load, Program, Skipped, Traffic, free_port, httpd, python, running
from bench.sockets import tcp_sockets, trio_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.figures import Demand

ROUND_TRIPS = 6000
PAYLOAD = bytes(64)
IDLE_CONNECTIONS = 5000
LOOPS = ("-m", "bench.peers.loops")

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Program]]:
    """Start the example server and each peer that is there, and tell which."""
    folder = tmp_path_factory.mktemp("www")
    (folder / "1k.bin").write_bytes(b"x" * 1024)
    with contextlib.ExitStack() as stack:
        programs = {"trionet": httpd(folder)}
        stack.enter_context(running(programs["trionet"]))
        figures.announce(*figures.versions("trio", "httptools"))
        for name, start in PEERS.items():
            try:
                version, programs[name] = start(folder)
            except Skipped as exc:
                figures.announce(f"{name}: skipped, {exc}")
            else:
                stack.enter_context(running(programs[name]))
                figures.announce(version)
        yield programs


def under_load(
    benchmark: BenchmarkFixture,
    programs: dict[str, Program],
    wanted: list[Demand],
    traffic: Traffic,
) -> None:
    loads = {name: Load(program, traffic) for name, program in programs.items()}
    ours = loads["trionet"]
    theirs: dict[str, Callable[[], float]] = {k: v for k, v in loads.items() if k != "trionet"}
    in_turns(
        benchmark,
        ours,
        theirs,
        unit=f"1 KiB, {traffic}",
        rounds=5,
        wanted=[one for one in wanted if one[0] in programs],
    )
    # The first of each is the warm-up.
    processor = {name: load.cpu[1:] for name, load in loads.items()}
    figures.show(benchmark, f"processor time of one answer, {traffic}", processor)


@needs_wrk
def bench_http_keep_alive(benchmark: BenchmarkFixture, servers: dict[str, Program]) -> None:
    """100 connections that stay."""
    wanted: list[Demand] = [
        ("uvicorn", ">=", 1.8),
        ("granian", ">=", 1.1),
        ("hypercorn (trio)", ">=", 25.0),
        ("nginx", ">=", 1.0),
        ("Go net/http", ">=", 1.0),
    ]
    under_load(benchmark, servers, wanted, Traffic())


@needs_wrk
def bench_http_keep_alive_differing(
    benchmark: BenchmarkFixture, servers: dict[str, Program]
) -> None:
    """The same where each request must be parsed: the server knows one that comes again."""
    under_load(benchmark, servers, [], Traffic(differing=True))


@needs_wrk
def bench_http_close(benchmark: BenchmarkFixture, servers: dict[str, Program]) -> None:
    """100 at a time, each for one request."""
    wanted: list[Demand] = [
        ("uvicorn", ">=", 1.8),
        ("nginx", ">=", 1.0),
        ("Go net/http", ">=", 1.0),
    ]
    under_load(benchmark, servers, wanted, Traffic(close=True))


@needs_wrk
def bench_bookkeeping(benchmark: BenchmarkFixture) -> None:
    """`trionet.Server` with every limit against a handler loop in a nursery."""
    ports = [free_port(), free_port()]
    served = python(*LOOPS, "served", str(ports[0]), port=ports[0])
    bare = python(*LOOPS, "bare", str(ports[1]), port=ports[1])
    with running(served, bare):
        under_load(
            benchmark,
            {"trionet": served, "bare loop": bare},
            [("bare loop", "<=", 1.1)],
            Traffic(),
        )


# Round trips


async def one_pair(near: trio.abc.Stream, count: int) -> None:
    for _ in range(count):
        await near.send_all(PAYLOAD)
        await near.receive_some(64)


async def echo(far: trio.abc.Stream) -> None:
    while data := await far.receive_some(64):
        await far.send_all(data)


async def round_trips(wrap: Callable[[socket.socket], trio.abc.Stream], pairs: int) -> float:
    streams = [tuple(map(wrap, tcp_sockets())) for _ in range(pairs)]
    async with trio.open_nursery() as echoes:
        for _, far in streams:
            echoes.start_soon(echo, far)
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for near, _ in streams:
                nursery.start_soon(one_pair, near, ROUND_TRIPS // pairs)
        elapsed = time.perf_counter() - start
        for near, _ in streams:
            await near.aclose()
    for _, far in streams:
        await far.aclose()
    return elapsed / ROUND_TRIPS


@pytest.mark.parametrize(("pairs", "bound"), [(1, 0.80), (50, 0.68)])
def bench_round_trip(benchmark: BenchmarkFixture, pairs: int, bound: float) -> None:
    """64 bytes there and back over TCP, both ends in one process."""
    in_turns(
        benchmark,
        partial(trio.run, round_trips, trionet.SocketStream, pairs),
        {"trio.SocketStream": partial(trio.run, round_trips, trio_stream, pairs)},
        unit=f"a 64-byte TCP round trip, {pairs} at once",
        wanted=[("trio.SocketStream", "<=", bound)],
    )


# Memory


def resident_each(kind: str) -> float:
    port = free_port()
    program = python(*LOOPS, kind, str(port), port=port)
    with running(program), contextlib.ExitStack() as clients:

        def dial() -> None:
            sock = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            sock.sendall(b"\0")
            assert sock.recv(1) == b"\0"

        # What the first connections bring in is the server's, not theirs.
        for _ in range(100):
            dial()
        before = program.resident()
        for _ in range(IDLE_CONNECTIONS):
            dial()
        return (program.resident() - before) / IDLE_CONNECTIONS


def bench_idle_memory(benchmark: BenchmarkFixture) -> None:
    """5,000 connections that wait after one byte each: what each adds to its server."""
    sizes: dict[str, list[float]] = {"trionet": [], "trio": []}

    def one_round() -> None:
        for kind, found in sizes.items():
            found.append(resident_each(kind))

    benchmark.pedantic(one_round, rounds=3, iterations=1)  # type: ignore[no-untyped-call]
    figures.show(
        benchmark,
        "resident memory of an idle connection",
        sizes,
        quantity="KiB",
        wanted=[(None, "<=", 5.5)],
    )
