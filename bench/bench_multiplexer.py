"""The multiplexer: what it costs above the pool, and above one session.

Measured beside it, in the same run: the pool with the same connections and the same settings, and
a single session's own ``open_stream``.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionet
from bench import figures
from bench.pairs import in_turns

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

# Short runs in many turns: the machine changes its speed from one second to the next.
LOANS, ROUNDS = 4_000, 25
OPENINGS, SESSIONS = 200, 8


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(*figures.versions("trio"))


class Sockets:
    """Makes real connections, which are watched."""

    def __init__(self) -> None:
        self.far: list[socket.socket] = []

    async def connect(self) -> trionet.SocketStream:
        """Make a pair and return the near end."""
        near, far = socket.socketpair()
        self.far.append(far)
        return trionet.SocketStream(near)


class Memory:
    """Makes memory connections, which are asked whether their peer has gone."""

    def __init__(self) -> None:
        self.far: list[trionet.MemoryStream] = []

    async def connect(self) -> trionet.MemoryStream:
        """Make a pair and return the near end."""
        near, far = trionet.memory_stream_pair(1024)
        self.far.append(far)
        return near


async def checkpoints() -> float:
    start = time.perf_counter()
    for _ in range(LOANS):
        await trio.lowlevel.checkpoint()
    return (time.perf_counter() - start) / LOANS


async def again_and_again(lend: Callable[[], Any]) -> float:
    async with lend():
        pass
    start = time.perf_counter()
    for _ in range(LOANS):
        async with lend():
            pass
    return (time.perf_counter() - start) / LOANS


async def of_the_pool(kind: type[Sockets | Memory], idle_timeout: float | None) -> float:
    connections = kind()
    async with trionet.Pool(
        connections.connect, max_size=1, idle_timeout=idle_timeout, lifetime=None
    ) as pool:
        seconds = await again_and_again(pool.acquire)
    for far in connections.far:
        far.close()
    return seconds


async def of_the_multiplexer(
    kind: type[Sockets | Memory], idle_timeout: float | None, what: str = "borrow"
) -> float:
    connections = kind()
    async with trionet.Multiplexer(connections.connect, idle_timeout=idle_timeout) as plex:
        seconds = await again_and_again(getattr(plex, what))
    for far in connections.far:
        far.close()
    return seconds


@pytest.mark.parametrize("idle_timeout", [None, 60.0], ids=["plain", "timeouts"])
@pytest.mark.parametrize("kind", [Sockets, Memory])
def bench_borrow_and_return(
    benchmark: BenchmarkFixture, kind: type[Sockets | Memory], idle_timeout: float | None
) -> None:
    """One task, one idle connection."""
    in_turns(
        benchmark,
        partial(trio.run, of_the_multiplexer, kind, idle_timeout),
        {
            "the pool's acquire and leave": partial(trio.run, of_the_pool, kind, idle_timeout),
            "checkpoint()": partial(trio.run, checkpoints),
            "reader()": partial(trio.run, of_the_multiplexer, kind, idle_timeout, "reader"),
        },
        unit=f"borrow and return, {kind.__name__.lower()}, idle timeout {idle_timeout}",
        rounds=ROUNDS,
        wanted=[("the pool's acquire and leave", "<=", 1.3)],
    )


async def accept(stream: trio.abc.Stream) -> None:
    """Be the server of one session: accept streams, and close them when they end."""

    async def end(channel: trionet.MuxStream) -> None:
        async with channel:
            await channel.send_all(await channel.receive_some())

    async with trionet.open_mux(stream, role="server") as session, trio.open_nursery() as nursery:
        try:
            while True:
                nursery.start_soon(end, await session.listener().accept())
        except trionet.SessionBrokenError:
            pass


Open = Callable[[], Awaitable[trionet.MuxStream]]


# All of it happens in this process, so its own time is what it takes, whoever else is about.


async def ask_again_and_again(open_stream: Open) -> float:
    """Open a stream, ask, take the answer and close it, one after the other."""
    for turn in range(OPENINGS + 1):
        if turn == 1:
            start = time.process_time()
        async with await open_stream() as channel:
            await channel.send_all(b"x")
            await channel.receive_some()
    return (time.process_time() - start) / OPENINGS


async def open_many(open_stream: Open) -> float:
    """Open streams as fast as they can be opened."""
    seconds = 0.0
    for _ in range(3):
        async with AsyncExitStack() as streams:
            start = time.process_time()
            opened = [await open_stream() for _ in range(OPENINGS)]
            seconds += time.process_time() - start
            for channel in opened:
                await streams.enter_async_context(channel)
        await trio.sleep(0.001)
    return seconds / (3 * OPENINGS)


async def of_one_session(run: Callable[[Open], Awaitable[float]]) -> float:
    near, far = trionet.memory_stream_pair(65536)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept, far)
        async with trionet.open_mux(near, role="client") as session:
            return await run(session.open_stream)


async def of_eight_sessions(run: Callable[[Open], Awaitable[float]]) -> float:
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        sessions = []
        for _ in range(SESSIONS):
            near, far = trionet.memory_stream_pair(65536)
            nursery.start_soon(accept, far)
            sessions.append(await stack.enter_async_context(trionet.open_mux(near, role="client")))
        turns = cycle([session.open_stream for session in sessions])
        return await run(lambda: next(turns)())


async def over_eight_sessions(run: Callable[[Open], Awaitable[float]]) -> float:
    async with trio.open_nursery() as nursery:
        near = []
        for _ in range(SESSIONS):
            one, far = trionet.memory_stream_pair(65536)
            near.append(one)
            nursery.start_soon(accept, far)
        async with trionet.Multiplexer(streams=near, mux=trionet.MuxConfig()) as plex:
            return await run(plex.open_stream)


def bench_open_stream(benchmark: BenchmarkFixture) -> None:
    """A stream for one question and its answer, on the least loaded of eight sessions."""
    in_turns(
        benchmark,
        partial(trio.run, over_eight_sessions, ask_again_and_again),
        {
            "a single session's own": partial(trio.run, of_one_session, ask_again_and_again),
            "the sessions' own, in turn": partial(trio.run, of_eight_sessions, ask_again_and_again),
        },
        unit=f"open a stream, ask, close, over {SESSIONS} sessions",
        rounds=ROUNDS,
        wanted=[("a single session's own", "<=", 1.1), ("the sessions' own, in turn", "<=", 1.1)],
    )


def bench_open_many_streams(benchmark: BenchmarkFixture) -> None:
    """Two hundred streams as fast as they can be opened."""
    in_turns(
        benchmark,
        partial(trio.run, over_eight_sessions, open_many),
        {
            "the sessions' own, in turn": partial(trio.run, of_eight_sessions, open_many),
            # Its writer sends in one piece what eight send in eight, and its peer acknowledges so.
            "a single session's own": partial(trio.run, of_one_session, open_many),
        },
        unit=f"open {OPENINGS} streams over {SESSIONS} sessions",
        rounds=ROUNDS,
        wanted=[("the sessions' own, in turn", "<=", 1.1)],
    )
