"""Servers as programs of their own on one core, and wrk on another."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = (
    "PEERS",
    "TARGET",
    "Load",
    "Program",
    "Skipped",
    "Traffic",
    "free_port",
    "httpd",
    "nethttp",
    "python",
    "running",
    "wrk",
)

HERE: Final = os.path.dirname(__file__)
ROOT: Final = os.path.dirname(HERE)

# The server's core and everybody else's.
CORES: Final = sorted(os.sched_getaffinity(0))
SERVER_CORE: Final = CORES[0]
CLIENT_CORE: Final = CORES[-1]

# The file that everyone serves, 1 KiB.
TARGET: Final = "/1k.bin"

# Seconds a program has to listen; granian and hypercorn start processes of their own.
START_TIMEOUT: Final = 15.0


class Skipped(Exception):  # noqa: N818 - it is a reason, not a fault
    """A peer is not there; the message says why."""


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@final
class Program:
    """A server that runs in processes of its own, on the server's core."""

    def __init__(
        self, command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it, and wait until it listens."""
        self.port = port
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
        )
        try:
            self._wait_listening()
        except BaseException:
            self.stop()
            raise

    def _wait_listening(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"{self._process.args!r} ended: {self._process.returncode}")
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Return what its processes have taken, user and system."""
        return float(sum(sum(p.cpu_times()[:2]) for p in self._processes()))

    def resident(self) -> int:
        """Return how many bytes of memory its processes hold."""
        return int(sum(p.memory_info().rss for p in self._processes()))

    def stop(self) -> None:
        """End all its processes."""
        processes: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            processes = self._processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Traffic:
    """What wrk is to do.

    Attributes:
      close: a connection for each request.
      differing: no two requests are the same bytes, as with clients that each say a bit else.
    """

    close: bool = False
    connections: int = 100
    tls: bool = False
    differing: bool = False

    def __str__(self) -> str:
        return (
            f"{self.connections:,} connections, "
            f"{'Connection: close' if self.close else 'keep-alive'}"
            f"{', no two requests alike' * self.differing}{', TLS' * self.tls}"
        )


def wrk(program: Program, traffic: Traffic, *, seconds: int = 2) -> float:
    """Put load on ``program``; return the seconds one answer took.

    Raises:
      RuntimeError: an answer was not the one asked for.
    """
    connections = f"-c{traffic.connections}"
    script = ("-s", os.path.join(HERE, "peers", "differing.lua")) if traffic.differing else ()
    found = subprocess.run(
        [
            *("taskset", "-c", str(CLIENT_CORE), "wrk", "-t1", connections, f"-d{seconds}s"),
            *("-H", "Connection: close" if traffic.close else "Connection: keep-alive"),
            *script,
            f"http{'s' * traffic.tls}://127.0.0.1:{program.port}{TARGET}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    rate = re.search(r"Requests/sec: +([0-9.]+)", found.stdout)
    if rate is None or float(rate[1]) == 0 or "Non-2xx" in found.stdout:
        raise RuntimeError(f"wrk against {program.port}: {found.stdout}{found.stderr}")
    return 1 / float(rate[1])


@final
class Load:
    """wrk on one program, with the program's own time beside it."""

    def __init__(self, program: Program, traffic: Traffic) -> None:
        self.cpu: list[float] = []
        self._program = program
        self._once = partial(wrk, program, traffic)

    def __call__(self) -> float:
        """Put load on it; return the seconds one answer took."""
        cpu = self._program.cpu_seconds()
        start = time.perf_counter()
        seconds = self._once()
        answers = (time.perf_counter() - start) / seconds
        self.cpu.append((self._program.cpu_seconds() - cpu) / answers)
        return seconds


def python(*arguments: str, port: int) -> Program:
    """Run a Python program."""
    return Program([sys.executable, *arguments], port)


def httpd(folder: Path) -> Program:
    """Run the example server."""
    port = free_port()
    bind = f"tcp:127.0.0.1:{port}"
    arguments = ("-m", "examples.httpd", "--bind", bind, "--root", str(folder), "--no-access-log")
    return python(*arguments, port=port)


def _distribution(name: str, *extras: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return ", ".join(f"{one} {version(one)}" for one in (name, *extras))
    except PackageNotFoundError as exc:
        raise Skipped(f"{exc.name} is not installed: the dependency group bench has it") from None


def _uvicorn(folder: Path) -> tuple[str, Program]:
    version = _distribution("uvicorn", "uvloop", "httptools")
    port = free_port()
    options = ("--no-access-log", "--log-level", "error", "--loop", "uvloop", "--http", "httptools")
    arguments = ("-m", "uvicorn", "bench.peers.asgi:application", "--port", str(port))
    return version, python(*arguments, *options, port=port)


def _granian(folder: Path) -> tuple[str, Program]:
    version = _distribution("granian")
    port = free_port()
    options = ("--interface", "asgi", "--workers", "1", "--no-access-log", "--log-level", "error")
    arguments = ("-m", "granian", "bench.peers.asgi:application", "--port", str(port))
    return version, python(*arguments, *options, port=port)


def _hypercorn(folder: Path) -> tuple[str, Program]:
    version = _distribution("hypercorn", "h11", "trio")
    port = free_port()
    options = ("-k", "trio", "-w", "1", "--log-level", "error")
    arguments = ("-m", "hypercorn", "bench.peers.asgi:application", "-b", f"127.0.0.1:{port}")
    return version, python(*arguments, *options, port=port)


NGINX: Final = """
user {user}; daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; open_file_cache max=10;
  server {{ listen 127.0.0.1:{port}; root {folder}; }}
}}
"""


def _nginx(folder: Path) -> tuple[str, Program]:
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise Skipped("nginx is not installed")
    version = subprocess.run([found, "-v"], capture_output=True, text=True, check=True).stderr
    port = free_port()
    # The worker runs as whoever may read the folder.
    user = pwd.getpwuid(os.getuid()).pw_name
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(user=user, folder=folder, port=port))
    program = Program([found, "-e", "stderr", "-c", str(configuration)], port)
    return version.strip().removeprefix("nginx version: "), program


def nethttp(folder: Path, *arguments: str) -> tuple[str, Program]:
    """Build and run Go's net/http, and tell its version.

    Raises:
      Skipped: there is no Go.
    """
    if shutil.which("go") is None:
        raise Skipped("go is not installed")
    binary = str(folder / "nethttp")
    source = os.path.join(HERE, "peers", "nethttp.go")
    subprocess.run(["go", "build", "-o", binary, source], check=True)
    version = subprocess.run(["go", "version"], capture_output=True, text=True, check=True).stdout
    port = free_port()
    return version.strip(), Program([binary, str(port), *arguments], port, {"GOMAXPROCS": "1"})


PEERS: Final = {
    "uvicorn": _uvicorn,
    "granian": _granian,
    "hypercorn (trio)": _hypercorn,
    "nginx": _nginx,
    "Go net/http": nethttp,
}


@contextlib.contextmanager
def running(*programs: Program) -> Iterator[None]:
    """Stop ``programs`` at the end of the block."""
    try:
        yield
    finally:
        for program in programs:
            program.stop()
