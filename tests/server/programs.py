"""Programs whose processes are tested from outside, and how one talks to them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

ROOT = Path(__file__).parent.parent.parent

# Every worker answers a line: its pid, or what the word asks for.
PRELUDE = """
import logging, os, signal, socket, sys
import trio, trionet
from trionet import Backoff, Server, SocketListener, run_workers, serve_until_signalled

logging.basicConfig(level=logging.INFO, stream=sys.stderr)

async def answer(connection):
    word = await trionet.BufferedStream(connection).receive_until(b"\\n", 100)
    if word == b"die\\n":
        os._exit(3)
    if word == b"slow\\n":
        await connection.send_all(b"wait ")
        await trio.sleep(0.5)
    if word == b"never\\n":
        await connection.send_all(b"wait ")
        await trio.sleep_forever()
    if word == b"sockets\\n":
        await connection.send_all(str(len(sockets_held())).encode())
    else:
        await connection.send_all(str(os.getpid()).encode())

def sockets_held():
    held = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(fd)))
        except OSError:
            continue
        with sock:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                held.append(fd)
    return held

async def main(sockets):
    server = Server(answer, grace=10)
    words = ["worker", os.getpid(), *(s.getsockname() for s in sockets)]
    # In one piece: the other workers write, too.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
    await serve_until_signalled(server, [SocketListener(sock) for sock in sockets])
"""


class Program:
    """A script in a process of its own."""

    def __init__(self, script: str, **more: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            **more,
        )

    def line(self) -> str:
        """Return the next line of its output."""
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).strip()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 8) -> tuple[int, str]:
        """Wait for its end, and return its exit code and what it said of errors."""
        _, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, errors

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def start(
    programs: list[Program], script: str, workers: int, **more: Any
) -> tuple[Program, set[int]]:
    """Start a script and wait until its workers run; return it and their pids."""
    program = Program(script, **more)
    programs.append(program)
    return program, {int(program.line().split()[1]) for _ in range(workers)}


def ask(path: str, word: str = "pid") -> socket.socket:
    """Connect to a worker and say a word; `reply` tells what it answers."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    try:
        sock.connect(path)
        sock.send(word.encode() + b"\n")
    except BaseException:
        sock.close()
        raise
    return sock


def reply(sock: socket.socket) -> str:
    """Return all that comes, and close."""
    with sock:
        received = b""
        while data := sock.recv(1000):
            received += data
    return received.decode()


def eventually(condition: Any, seconds: float = 5) -> None:
    """Wait until ``condition()``, of another process, holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Whoever is not ours to reap may be a zombie for a moment.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
