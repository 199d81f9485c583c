"""Passing bytes on between two TCP connections: by splice, and by a loop over trio's streams.

The sender and the receiver are another process, so that what is measured is the relay's own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionet
from bench import figures
from bench.pairs import in_turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pytest_benchmark.fixture import BenchmarkFixture

MIB = 256
FILE_MIB = 64

# Sends so many MiB to the first port and receives them from the second.
FAR_SIDE = """
import socket, sys, threading
out, back = (socket.create_connection(("127.0.0.1", int(port))) for port in sys.argv[1:3])
def send():
    chunk = bytes(1 << 20)
    for _ in range(int(sys.argv[3])):
        out.sendall(chunk)
    out.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while back.recv(1 << 20):
    pass
"""


@pytest.fixture(scope="module", autouse=True)
def announce() -> None:
    """Say what was measured."""
    figures.announce(*figures.versions("trio"))


async def copy_by_loop(source: Any, destination: Any) -> None:
    """Do what a program without `trionet.copy` would, on trio's own streams."""
    source, destination = (
        trio.SocketStream(trio.socket.from_stdlib_socket(one.socket))
        for one in (source, destination)
    )
    async for data in source:
        await destination.send_all(data)


async def copied(
    copy: Callable[[Any, Any], Awaitable[object]], clock: Callable[[], float], mib: int
) -> float:
    """Return the seconds that one MiB takes."""
    listeners = [(await trionet.listen("tcp", "127.0.0.1:0"))[0] for _ in range(2)]
    ports = [str(listener.address.port) for listener in listeners]
    far = subprocess.Popen([sys.executable, "-c", FAR_SIDE, *ports, str(mib)])
    source, destination = [await listener.accept() for listener in listeners]
    start = clock()
    await copy(source, destination)
    elapsed = clock() - start
    for one in (source, destination, *listeners):
        await trio.aclose_forcefully(one)
    await trio.to_thread.run_sync(far.wait)
    return elapsed / (mib or 1)


@pytest.mark.parametrize("clock", [time.perf_counter, time.process_time], ids=["wall", "cpu"])
def bench_copy(benchmark: BenchmarkFixture, clock: Callable[[], float]) -> None:
    """One MiB through the relay: time that passes, and time the relay's process uses."""
    in_turns(
        benchmark,
        partial(trio.run, copied, trionet.copy, clock, MIB),
        {"trio.SocketStream, a loop": partial(trio.run, copied, copy_by_loop, clock, MIB)},
        unit="1 MiB",
        rounds=5,
    )


async def filed(kernel: bool, clock: Callable[[], float], path: str) -> float:
    """Return the seconds that one MiB of a file takes."""

    async def by_kernel(_: Any, destination: trionet.SocketStream) -> None:
        with open(path, "rb") as file:
            await destination.send_file(file)
        await destination.send_eof()

    async def by_reading(_: Any, destination: trionet.SocketStream) -> None:
        async with await trio.open_file(path, "rb") as file:
            while data := await file.read(65536):
                await destination.send_all(data)
        await destination.send_eof()

    return await copied(by_kernel if kernel else by_reading, clock, 0) / FILE_MIB


def bench_send_file(benchmark: BenchmarkFixture) -> None:
    """One MiB of a file in memory to a reader that keeps up."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(FILE_MIB << 20))
        file.flush()
        in_turns(
            benchmark,
            partial(trio.run, filed, True, time.perf_counter, file.name),
            {
                "trio.open_file, read and send": partial(
                    trio.run, filed, False, time.perf_counter, file.name
                )
            },
            unit="1 MiB",
            rounds=5,
        )
