"""Echo servers, each a process of its own, and one client that keeps many connections busy."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from bench import figures
from bench.pairs import in_turns
from bench.programs import CLIENT_CORE, Program, free_port, python, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

MESSAGES = 20_000
MESSAGE = bytes(64)
KINDS = {
    "trionet": "trionet",
    "trio": "trio.serve_tcp",
    "asyncio-streams": "asyncio, streams",
    "asyncio": "asyncio, a Protocol",
    "uvloop-streams": "uvloop, streams",
    "uvloop": "uvloop, a Protocol",
}


@pytest.fixture(scope="module", autouse=True)
def announce() -> Iterator[None]:
    """Say what was measured, and keep the client off the servers' core."""
    figures.announce(*figures.versions("trio", "uvloop"))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CLIENT_CORE})
    yield
    os.sched_setaffinity(0, before)


class Client:
    """So many connections to one server, each with one message under way."""

    def __init__(self, program: Program, connections: int) -> None:
        self.cpu: list[float] = []
        self._program = program
        self._selector: Any = selectors.DefaultSelector()
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", program.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ)

    def __call__(self) -> float:
        """Send and receive; return seconds per message."""
        cpu = self._program.cpu_seconds()
        start = time.perf_counter()
        connections = [key.fileobj for key in self._selector.get_map().values()]
        for sock in connections:
            sock.sendall(MESSAGE)
        left = MESSAGES - len(connections)
        waiting = len(connections)
        while waiting:
            for key, _ in self._selector.select():
                assert key.fileobj.recv(64) == MESSAGE
                if left:
                    left -= 1
                    key.fileobj.sendall(MESSAGE)
                else:
                    waiting -= 1
        elapsed = time.perf_counter() - start
        self.cpu.append((self._program.cpu_seconds() - cpu) / MESSAGES)
        return elapsed / MESSAGES

    def close(self) -> None:
        """Close all connections."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()


@pytest.mark.parametrize("connections", [1, 50, 1000])
def bench_echo(benchmark: BenchmarkFixture, connections: int) -> None:
    """64 bytes to a server and back."""
    with contextlib.ExitStack() as stack:
        clients: dict[str, Client] = {}
        for kind, name in KINDS.items():
            port = free_port()
            program = python("-m", "bench.peers.loops", kind, str(port), port=port)
            stack.enter_context(running(program))
            clients[name] = stack.enter_context(contextlib.closing(Client(program, connections)))
        in_turns(
            benchmark,
            clients["trionet"],
            {name: client for name, client in clients.items() if name != "trionet"},
            unit=f"64 bytes echoed, {connections} connections",
            rounds=5,
        )
        # The first of each is the warm-up.
        processor = {name: client.cpu[1:] for name, client in clients.items()}
        figures.show(benchmark, "the server's processor time for one of them", processor)
