"""Attacks on a whole process: its descriptors, its log, its restarts."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionet
from tests.server.attacked import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Certificates

ROOT = Path(__file__).parent.parent.parent

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# A server for one echo a connection; it tells when it serves.
PRELUDE = """
import logging, os, resource, socket, sys
import trio, trionet
from trionet import Server, SocketListener, serve_until_signalled

logging.basicConfig(level=logging.INFO, stream=sys.stderr)

async def answer(connection):
    await connection.send_all(await connection.receive_some())

async def main(make_listeners):
    listeners = await make_listeners()
    server = Server(answer, grace=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_until_signalled, server, listeners)
        await trio.sleep(0)
        os.write(1, f"{listeners[0].address}\\n".encode())
"""


@contextmanager
def program(script: str, *arguments: str, **more: Any) -> Iterator[tuple[Any, str]]:
    """Run a server until the block ends; its process, and what it says when it serves."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said, process.communicate()[1]
        yield process, said
    finally:
        process.kill()
        process.communicate()


def ask(sock: socket.socket) -> bytes:
    """Send a word, and return what comes back."""
    sock.sendall(b"hello")
    return sock.recv(100)


# Descriptors


FEW_DESCRIPTORS = """
async def listen():
    listeners = await trionet.listen("tcp", "127.0.0.1:0")
    used = len(os.listdir("/dev/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, used + 20))
    return listeners

trio.run(main, listen)
"""


def processor_seconds(pid: int) -> float:
    """How long the process has run on a processor: proc(5), utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descriptors_of(pid: int) -> int:
    """Count the open descriptors of another process, less those of the readiness hub.

    It makes its epoll when it first needs one, and keeps it.
    """
    links = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
    return len([link for link in links if "[eventpoll]" not in link])


@linux_only
def test_out_of_descriptors_it_neither_spins_nor_chatters_and_recovers() -> None:
    with ExitStack() as stack:
        process, address = stack.enter_context(program(FEW_DESCRIPTORS))
        where = ("127.0.0.1", int(address.rpartition(":")[2]))

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(where, timeout=5))

        with socket.create_connection(where, timeout=5) as early:
            assert ask(early) == b"hello"
            # Until the server has closed, too.
            assert early.recv(1) == b""
        base = descriptors_of(process.pid)
        clients = [connect() for _ in range(80)]
        begun, used = time.monotonic(), processor_seconds(process.pid)
        # The kernel decides when the backlog moves, and no virtual clock reaches another process.
        time.sleep(2.2)
        used = processor_seconds(process.pid) - used
        took = time.monotonic() - begun

        # A loop that spun would have taken all of it.
        assert used < took / 4
        # Who had come before the descriptors ran out is served all the same.
        assert ask(clients[0]) == b"hello"
        refused = 0
        for sock in clients:
            sock.setblocking(False)
            with suppress(BlockingIOError, ConnectionResetError):
                refused += sock.recv(1) == b""
        # The reserve descriptor turned some away politely, one every tenth of a second.
        assert 5 <= refused <= took * 10 + 5

        for sock in clients:
            sock.close()
        deadline = time.monotonic() + 5
        while True:
            # It may still be turned away, with a reset, while the backlog empties.
            with suppress(ConnectionResetError), socket.create_connection(where, timeout=5) as late:
                if ask(late) == b"hello":
                    break
            assert time.monotonic() < deadline, "it does not recover"
        while descriptors_of(process.pid) > base:
            assert time.monotonic() < deadline, "it leaks descriptors"
            time.sleep(0.01)
        # As far as it was before: as many at once.
        again = [connect() for _ in range(10)]
        assert [ask(sock) for sock in again] == [b"hello"] * 10

        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        lines = [line for line in errors.splitlines() if "cannot accept" in line]
        assert 1 <= len(lines) <= time.monotonic() - begun + 2, errors
        assert "Traceback" not in errors


# Logs


EVIL = "e\x1b[2J\r\n\x00vil\u202e\U0001f4a9"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_cve_2020_7694_what_a_peer_calls_itself_is_escaped_in_every_line(
    nursery: trio.Nursery,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    autojump_clock: Any,
    secure: bool,
) -> None:
    caplog.set_level(logging.DEBUG, "trionet")

    async def handler(connection: trionet.Connection) -> None:
        if await connection.receive_some() == b"bug":
            raise ValueError("a bug")
        await trio.sleep_forever()

    limits = trionet.Limits(handshake_timeout=3, idle_timeout=3, linger=1)
    server = trionet.Server(handler, limits=limits, grace=1)
    context = certificates.server if secure else None
    listeners = await trionet.listen("memb", "site", ssl_context=context)
    await nursery.start(server.serve, listeners)

    # Plaintext at a TLS server; silence; an error; one that is gone.
    for word in (b"GET / HTTP/1.1\r\n\r\n", b"", b"bug", b"x"):
        for ssl_context in (None, certificates.client) if secure else (None,):
            client = await trionet.dial("memb", "site", local_address=EVIL, ssl_context=ssl_context)
            if word:
                await client.send_all(word)
            await trio.sleep(1)
            await trio.aclose_forcefully(client)
    await trionet.dial("memb", "site", local_address=EVIL)
    await trio.sleep(10)
    server.shutdown()
    await server.wait_closed()

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 4
    assert any("vil" in line for line in lines)
    assert [line for line in lines if not line.isprintable()] == []


@linux_only
async def test_cve_2020_7694_the_path_of_a_unix_client_is_escaped_too(
    nursery: trio.Nursery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(connection: trionet.Connection) -> None:
        await connection.receive_some()
        raise ValueError("a bug")

    server = trionet.Server(handler)
    where = str(tmp_path / "s")
    await nursery.start(server.serve, await trionet.listen("unix", where))
    evil = str(tmp_path / "e\x1b[2J\nvil")
    async with await trionet.dial("unix", where, local_address=evil) as client:
        await client.send_all(b"x")
        assert await client.receive_some() == b""

    (record,) = caplog.records
    assert record.getMessage().isprintable()
    server.shutdown()


# Restarts


UNIX_PATH = """
trio.run(main, lambda: trionet.listen("unix", sys.argv[1]))
"""

INHERITED = """
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")

async def inherit():
    return trionet.inherited_listeners()

trio.run(main, inherit)
"""

GENERATIONS = 4
CLIENTS = 8


class Load:
    """Clients that come again and again, and what became of them."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self.results: Counter[str] = Counter()

    async def client(self) -> None:
        """One request per connection, until cancelled in between."""
        while True:
            await trio.sleep(0)
            try:
                with trio.CancelScope(shield=True), trio.fail_after(10):
                    async with trionet.SocketStream(self._connect()) as stream:
                        await stream.send_all(b"hello")
                        reply = await stream.receive_some()
                self.results["served" if reply == b"hello" else "cut"] += 1
            except BlockingIOError:
                # A full backlog: not refused, but asked to come again.
                self.results["again"] += 1
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as exc:
                self.results[type(exc).__name__] += 1


async def generations(start: Callable[[], Any], load: Load) -> list[int]:
    """Run one server after the other under load, each started before the last one ends.

    Returns:
      How many clients had been served when each took over.
    """
    served: list[int] = []
    with ExitStack() as stack:
        process = (await trio.to_thread.run_sync(stack.enter_context, start()))[0]
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(load.client)
            for _ in range(GENERATIONS):
                await trio.sleep(0.2)
                successor = (await trio.to_thread.run_sync(stack.enter_context, start()))[0]
                served.append(load.results["served"])
                # Time to take whom the backlog still held at the moment of the take-over.
                await trio.sleep(0.1)
                process.send_signal(signal.SIGTERM)
                _, errors = await trio.to_thread.run_sync(process.communicate)
                assert process.returncode == 0, errors
                assert not errors
                process = successor
            await trio.sleep(0.2)
            nursery.cancel_scope.cancel()
        served.append(load.results["served"])
    return served


def test_nobody_notices_a_restart_that_takes_a_unix_path_over(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    base = descriptors()

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        sock.connect(path)
        return sock

    load = Load(connect)
    served = trio.run(generations, partial(program, UNIX_PATH, path), load)

    assert set(load.results) <= {"served", "again"}, load.results
    # Each generation served.
    assert all(early < late for early, late in itertools.pairwise(served))
    assert descriptors() == base


def test_nobody_notices_a_restart_on_an_inherited_socket() -> None:
    base = descriptors()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as shared:
        where = shared.getsockname()
        fd = shared.fileno()

        def connect() -> socket.socket:
            # On loopback this is done at once, unless the backlog is full.
            return socket.create_connection(where, timeout=5)

        load = Load(connect)
        start = partial(program, INHERITED, str(fd), pass_fds=[fd])
        served = trio.run(generations, start, load)

    assert set(load.results) == {"served"}, load.results
    assert all(early < late for early, late in itertools.pairwise(served))
    assert descriptors() == base
