"""The pool: what a lease costs, how fair a crowd is served, and what cancellation leaves.

Measured beside it, in the same run: a bare ``checkpoint()``, which is what any operation of trio
costs at least; a memory channel used as a pool, the simplest thing that could work; httpcore's
pool in the storm; and a Go channel, which is what netpool's figures measure.
"""

from __future__ import annotations

import gc
import math
import random
import shutil
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import httpcore
import pytest
import trio
from trio.testing import MockClock

import trionet
from bench import figures
from bench.pairs import in_turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

# Short runs in many turns: the machine changes its speed from one second to the next.
LEASES, ROUNDS = 4_000, 25
WORKERS, CONNECTIONS = 64, 8
WAITERS = 10_000
CANCELLATIONS = 1_000_000

# netpool's own table, nanoseconds for one Get and Put: "Basic" and "Standard".
NETPOOL = {"Basic": 42, "Standard": 118}


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(*figures.versions("trio", "httpcore"))


class Nothing:
    """A connection that costs nothing to make, to use or to close."""

    async def aclose(self) -> None:
        """Close it."""


async def connect() -> Nothing:
    return Nothing()


def plain(size: int = 1) -> trionet.Pool[Nothing]:
    """Return a pool without anything that could be left out."""
    return trionet.Pool(connect, max_size=size, idle_timeout=None, lifetime=None)


class Sockets:
    """Makes real connections, for a pool that watches them and lets them expire."""

    def __init__(self) -> None:
        self.far: list[socket.socket] = []

    async def connect(self) -> trionet.SocketStream:
        """Make a pair and return the near end."""
        near, far = socket.socketpair()
        self.far.append(far)
        return trionet.SocketStream(near)


async def checkpoints() -> float:
    start = time.perf_counter()
    for _ in range(LEASES):
        await trio.lowlevel.checkpoint()
    return (time.perf_counter() - start) / LEASES


async def acquire_and_leave(pool: trionet.Pool[Any]) -> float:
    async with pool:
        pool.put(await pool.get())
        start = time.perf_counter()
        for _ in range(LEASES):
            async with pool.acquire():
                pass
        seconds = time.perf_counter() - start
    return seconds / LEASES


async def acquire_watched() -> float:
    sockets = Sockets()
    seconds = await acquire_and_leave(trionet.Pool(sockets.connect, max_size=1))
    for far in sockets.far:
        far.close()
    return seconds


async def channel_as_pool() -> float:
    give, take = trio.open_memory_channel[Nothing](1)
    await give.send(Nothing())
    start = time.perf_counter()
    for _ in range(LEASES):
        give.send_nowait(await take.receive())
    return (time.perf_counter() - start) / LEASES


def bench_acquire_and_leave(benchmark: BenchmarkFixture) -> None:
    """One task, one idle connection."""
    in_turns(
        benchmark,
        lambda: trio.run(acquire_and_leave, plain()),
        {
            "checkpoint()": partial(trio.run, checkpoints),
            "a memory channel as a pool": partial(trio.run, channel_as_pool),
        },
        unit="acquire and leave, uncontended, nothing switched on",
        rounds=ROUNDS,
        wanted=[("checkpoint()", "<=", 1.5)],
    )


def bench_acquire_and_leave_watched(benchmark: BenchmarkFixture) -> None:
    """The same with idle timeout, lifetime, and a real socket that is watched."""
    in_turns(
        benchmark,
        partial(trio.run, acquire_watched),
        {"checkpoint()": partial(trio.run, checkpoints)},
        unit="acquire and leave, uncontended, timeouts and watching on",
        rounds=ROUNDS,
        wanted=[("checkpoint()", "<=", 2.0)],
    )


async def get_and_put(pool: trionet.Pool[Any], connections: int) -> float:
    async with pool:
        for connection in [await pool.get() for _ in range(connections)]:
            pool.put(connection)
        start = time.perf_counter()
        for _ in range(LEASES):
            pool.put(pool.get_nowait())
        seconds = time.perf_counter() - start
    return seconds / LEASES


def bench_get_nowait_and_put(benchmark: BenchmarkFixture) -> None:
    """No checkpoint at all."""
    in_turns(
        benchmark,
        lambda: trio.run(get_and_put, plain(), 1),
        {"checkpoint()": partial(trio.run, checkpoints)},
        unit="get_nowait and put",
        rounds=ROUNDS,
        wanted=[("checkpoint()", "<=", 0.25)],
    )


GO = """
package main

import ("fmt"; "net"; "time")

func main() {
    pool := make(chan net.Conn, 100)
    for i := 0; i < 50; i++ { a, _ := net.Pipe(); pool <- a }
    closed := make(chan struct{})
    const n = 5000000
    start := time.Now()
    for i := 0; i < n; i++ {
        var c net.Conn
        select { case c = <-pool: case <-closed: }
        select { case pool <- c: default: }
    }
    fmt.Println(float64(time.Since(start).Nanoseconds()) / n)
}
"""


def go_channel(folder: Path) -> float | None:
    """Measure a Go channel as a pool, in seconds; None where there is no Go."""
    go = shutil.which("go")
    if go is None:
        return None
    source = folder / "channel.go"
    source.write_text(GO)
    run = subprocess.run([go, "run", str(source)], capture_output=True, text=True, check=False)
    return float(run.stdout) * 1e-9 if run.returncode == 0 else None


def bench_netpool(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """Its operation: get and put on a pool of 100, 50 of them open, no I/O."""

    def standard() -> float:
        pool = trionet.Pool(connect, max_size=100, min_size=50, idle_timeout=60)
        return trio.run(get_and_put, pool, 50)

    in_turns(
        benchmark,
        lambda: trio.run(get_and_put, plain(100), 50),
        {"trionet, with an idle timeout": standard},
        unit="get_nowait and put, 50 of 100 open, as netpool's own benchmark",
        rounds=ROUNDS,
    )
    measured = go_channel(tmp_path)
    print(f"  netpool's published figures, ns: {NETPOOL}, on eight cores and compiled")
    if measured is None:
        print("  there is no Go here to measure")
    else:
        print(f"  a Go channel as a pool, here and now: {measured * 1e9:.0f} ns")


def without_collections() -> float:
    """Start the processor's clock, and collect no garbage until `gc.enable`.

    A collection takes as long as many waits, and strikes whoever happens to wait; what other
    programs take in between would pass for ours.
    """
    gc.collect()
    gc.disable()
    return time.process_time()


@dataclass
class Crowd:
    """What came of a crowd: seconds per lease, and the waits, by whatever clock."""

    lease: float
    waits: list[float]

    @property
    def unevenness(self) -> float:
        """The longest wait, in mean waits."""
        return max(self.waits) / statistics.mean(self.waits)


class Steps(trio.abc.Instrument):
    """A clock that counts what all tasks do, and knows nothing of the machine."""

    def __init__(self) -> None:
        self.taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count one step of any task."""
        self.taken += 1

    def now(self) -> float:
        """Return the steps so far."""
        return float(self.taken)


# The first turns are those in which the line forms.
FORMING = 3


async def crowd(
    workers: int, connections: int, clock: Callable[[], float] = time.process_time
) -> Crowd:
    """Share connections among workers, each holding one for one checkpoint."""
    waits: list[float] = []
    each = LEASES // workers
    async with plain(connections) as pool:

        async def work() -> None:
            for turn in range(each):
                asked = clock()
                async with pool.acquire():
                    if turn >= FORMING:
                        waits.append(clock() - asked)
                    await trio.lowlevel.checkpoint()

        pool.put(await pool.get())
        start = without_collections()
        async with trio.open_nursery() as nursery:
            for _ in range(workers):
                nursery.start_soon(work)
        seconds = (time.process_time() - start) / (each * workers)
        gc.enable()
    return Crowd(seconds, waits)


async def counted_crowd(workers: int, connections: int) -> Crowd:
    """Do the same by the clock that counts steps."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        return await crowd(workers, connections, steps.now)
    finally:
        trio.lowlevel.remove_instrument(steps)


async def crowd_without_a_pool(workers: int) -> Crowd:
    """Let as many tasks take turns with nothing between them but trio's scheduler.

    A wait is three checkpoints, which all tasks together need about as long for as for a lease.
    """
    waits: list[float] = []

    async def work() -> None:
        for turn in range(LEASES // workers):
            asked = time.process_time()
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            if turn >= FORMING:
                waits.append(time.process_time() - asked)

    start = without_collections()
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(work)
    gc.enable()
    return Crowd(time.process_time() - start, waits)


def bench_contended(benchmark: BenchmarkFixture) -> None:
    """64 tasks share 8 connections; each holds one for one checkpoint."""
    crowds: list[Crowd] = []

    def contended() -> float:
        crowds.append(trio.run(crowd, WORKERS, CONNECTIONS))
        return crowds[-1].lease

    in_turns(
        benchmark,
        contended,
        {"uncontended, one task": lambda: trio.run(crowd, 1, 1).lease},
        unit=f"a lease with {WORKERS} tasks on {CONNECTIONS} connections",
        rounds=ROUNDS,
        wanted=[("uncontended, one task", ">=", 0.8)],
    )
    # What is asked for is judged by the count: by time it is the machine that is judged, which is
    # what trio's own turns show beside it.
    counted = [trio.run(counted_crowd, WORKERS, CONNECTIONS) for _ in range(5)]
    figures.show(
        benchmark,
        "the longest wait for a lease, in mean waits, in steps of tasks",
        {"trionet": [crowd.unevenness for crowd in counted]},
        quantity="times",
        wanted=[(None, "<=", 1.5)],
    )
    alone = [trio.run(crowd_without_a_pool, WORKERS) for _ in crowds]
    figures.show(
        benchmark,
        "the same in processor time",
        {
            "trionet": [crowd.unevenness for crowd in crowds],
            "checkpoint() without a pool": [crowd.unevenness for crowd in alone],
        },
        quantity="times",
    )


async def cancel_waiters(waiters: int) -> float:
    async with plain(1) as pool:
        connection = await pool.get()

        async def wait() -> None:
            await pool.get()

        async with trio.open_nursery() as nursery:
            for _ in range(waiters):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().waiting == waiters
            start = without_collections()
            nursery.cancel_scope.cancel()
        seconds = (time.process_time() - start) / waiters
        gc.enable()
        assert pool.statistics().cancelled == waiters
        pool.put(connection)
    return seconds


async def cancel_sleepers(waiters: int) -> float:
    async with trio.open_nursery() as nursery:
        for _ in range(waiters):
            nursery.start_soon(trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        start = without_collections()
        nursery.cancel_scope.cancel()
    seconds = (time.process_time() - start) / waiters
    gc.enable()
    return seconds


def bench_cancel_waiters(benchmark: BenchmarkFixture) -> None:
    """All who wait give up at once; what trio itself needs for that is the peer."""
    fewer = WAITERS // 10
    in_turns(
        benchmark,
        partial(trio.run, cancel_waiters, WAITERS),
        {
            f"{fewer} waiters": partial(trio.run, cancel_waiters, fewer),
            "sleep_forever()": partial(trio.run, cancel_sleepers, WAITERS),
        },
        unit=f"cancelling one of {WAITERS} waiters",
        # Linear: ten times as many cost about ten times as much.
        # The first one depends on the machine; what trio takes by itself tells how much.
        wanted=[(None, "<=", 20), (f"{fewer} waiters", "<=", 2.0), ("sleep_forever()", "<=", 1.5)],
    )


async def spike(min_size: int) -> tuple[float, int]:
    """Return when the last of fifty requests was served, and how many connections are left."""

    async def slow() -> Nothing:
        await trio.sleep(0.150)
        return Nothing()

    async with trionet.Pool(slow, max_size=50, min_size=min_size) as pool:
        await pool.ready()
        start = trio.current_time()

        async def request() -> None:
            async with pool.acquire():
                await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(request)
        served = trio.current_time() - start
        await trio.sleep(1)
        left = pool.statistics().size
    return served, left


def bench_spike(benchmark: BenchmarkFixture) -> None:
    """Fifty requests at once, 150 ms to connect, 2 ms to use; times are virtual and exact."""

    def run(min_size: int) -> tuple[float, int]:
        return trio.run(spike, min_size, clock=MockClock(autojump_threshold=0))

    benchmark.pedantic(run, args=(5,), rounds=1)  # type: ignore[no-untyped-call]
    found = {min_size: run(min_size) for min_size in (5, 1, 0)}
    names = {5: "trionet", 1: "1 open before", 0: "none open before"}
    unit = "50 requests at once on 5 connections, 150 ms to connect, 2 ms to use"
    figures.show(
        benchmark,
        f"{unit}: until the last is served, virtual",
        {name: [found[size][0]] for size, name in names.items()},
        quantity="ms",
    )
    figures.show(
        benchmark,
        f"{unit}: left afterwards",
        {name: [float(found[size][1])] for size, name in names.items()},
        quantity="connections",
        wanted=[(None, "<=", 6)],
    )


async def storm(
    chance: random.Random,
    use: Callable[[], Awaitable[None]],
    cancellations: int,
    *,
    crew: int = 20,
) -> int:
    """Use, and cancel at random moments, until so many cancellations have struck."""
    struck = 0

    async def suffer() -> None:
        nonlocal struck
        while struck < cancellations:
            with trio.move_on_after(chance.choice([0, 0.001, 0.005, 0.02])) as scope:
                await use()
            struck += scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        for _ in range(crew):
            nursery.start_soon(suffer)
    return struck


class Counted:
    """A connection that is counted while it is open."""

    open = 0

    def __init__(self) -> None:
        Counted.open += 1

    async def aclose(self) -> None:
        """Close it."""
        Counted.open -= 1


async def our_storm(cancellations: int) -> str:
    chance = random.Random(1)

    async def slow() -> Counted:
        await trio.sleep(0.01)
        return Counted()

    async def use() -> None:
        async with pool.acquire():
            await trio.sleep(chance.choice([0, 0.001, 0.01]))

    async with trionet.Pool(slow, max_size=4, backoff=trionet.Backoff(attempts=None)) as pool:
        struck = await storm(chance, use, cancellations)
        await trio.sleep(1)
        now = pool.statistics()
        assert now.lent == now.waiting == now.connecting == now.closing == 0
        assert now.idle == now.size == Counted.open
        served = 0
        with trio.fail_after(10):
            for _ in range(100):
                await use()
                served += 1
    assert Counted.open == 0
    return f"{struck} cancellations, 0 slots lost, {served} of 100 later requests served"


class SlowBackend(httpcore.AsyncNetworkBackend):
    """A network on which connecting takes 10 ms, and each connection answers one request."""

    async def connect_tcp(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        """Connect, slowly."""
        await trio.sleep(0.01)
        answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        return httpcore.AsyncMockStream([answer])

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await trio.sleep(seconds)


async def httpcore_storm() -> str:
    """Storm until its pool serves nobody any more, or a thousand times."""
    chance = random.Random(1)
    pool = httpcore.AsyncConnectionPool(network_backend=SlowBackend(), max_connections=4)
    struck = 0

    async def use() -> None:
        try:
            await pool.request("GET", "http://site/", extensions={"timeout": {"pool": 1}})
        except httpcore.PoolTimeout:
            await trio.sleep(0.001)

    while struck < 1000:
        struck += await storm(chance, use, 1)
        await trio.sleep(1)
        try:
            await pool.request("GET", "http://site/", extensions={"timeout": {"pool": 5}})
        except httpcore.PoolTimeout:
            slots = ", ".join(connection.info() for connection in pool.connections)
            return f"dead after {struck} cancellations; its four slots say: {slots}"
    return f"{struck} cancellations survived"


def bench_cancel_storm(benchmark: BenchmarkFixture) -> None:
    """A million cancellations at random moments, in virtual time."""

    def run() -> str:
        return trio.run(our_storm, CANCELLATIONS, clock=MockClock(autojump_threshold=0))

    start = time.perf_counter()
    ours = benchmark.pedantic(run, rounds=1)  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - start
    theirs = trio.run(httpcore_storm, clock=MockClock(autojump_threshold=0))
    figures.show(
        benchmark, "a storm of cancellations on four slots", {"trionet": [seconds]}, quantity="s"
    )
    print(f"  trionet   {ours}\n  httpcore  {theirs}")
    benchmark.extra_info["notes"] = [f"trionet: {ours}", f"httpcore: {theirs}"]


async def recovery() -> tuple[float, int]:
    """Return seconds from a peer's restart until the pool has noticed, and how many it dropped."""
    sockets = Sockets()
    async with trionet.Pool(sockets.connect, max_size=100) as pool:
        for connection in [await pool.get() for _ in range(100)]:
            pool.put(connection)
        await trio.sleep(0.01)
        for far in sockets.far:
            far.close()
        start = time.perf_counter()
        while pool.statistics().idle:
            await trio.lowlevel.checkpoint()
        seconds = time.perf_counter() - start
        dropped = pool.statistics().reasons["dead"]
    return seconds, dropped


def bench_peer_restart(benchmark: BenchmarkFixture) -> None:
    """A hundred idle connections die at once."""
    seconds, dropped = math.inf, 0
    for _ in range(5):
        once, dropped = trio.run(recovery)
        seconds = min(seconds, once)
    benchmark.pedantic(trio.run, args=(recovery,), rounds=1)  # type: ignore[no-untyped-call]
    figures.show(
        benchmark,
        f"from a peer's restart until its {dropped} idle connections are gone",
        {"trionet": [seconds]},
        quantity="ms",
    )
