"""Two example servers behind the real HAProxy, restarted under load."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "haproxy" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

CLIENTS = 6

# Where the clients come from: not where HAProxy does.
ORIGIN = "127.0.0.5" if sys.platform == "linux" else "127.0.0.1"

PATHS = {"/": None, "/bytes/10": 10, "/bytes/300000": 300_000}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [int(sock.getsockname()[1]) for sock in sockets]


@contextmanager
def server(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an example server until the block ends."""
    command = [sys.executable, "-m", "examples.httpd", "--bind", f"tcp:127.0.0.1:{port}"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--proxy-protocol", "127.0.0.1"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def haproxy(ports: dict[str, int]) -> Iterator[None]:
    assert HAPROXY is not None
    process = subprocess.Popen(
        [HAPROXY, "-db", "-q", "-f", str(CONFIG)],
        env={**os.environ, **{name: str(port) for name, port in ports.items()}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Site:
    """The site as its clients see it, and as HAProxy does."""

    def __init__(self, ports: dict[str, int]) -> None:
        self._site = f"http://127.0.0.1:{ports['SITE_PORT']}"
        self._statistics = f"http://127.0.0.1:{ports['STATISTICS_PORT']}/;csv"
        self.results: Counter[str] = Counter()

    async def visit(self) -> None:
        """Ask for one page after the other on a connection that is kept, until cancelled."""
        transport = httpx.AsyncHTTPTransport(local_address=ORIGIN)
        async with httpx.AsyncClient(transport=transport, base_url=self._site) as client:
            while True:
                for path, size in PATHS.items():
                    with trio.CancelScope(shield=True):
                        self.results[await self._ask(client, path, size)] += 1
                    await trio.sleep(0)

    @staticmethod
    async def _ask(client: httpx.AsyncClient, path: str, size: int | None) -> str:
        try:
            response = await client.get(path, timeout=15)
        except httpx.HTTPError as exc:
            return repr(exc)
        if size is not None and len(response.content) != size:
            return f"{path} had {len(response.content)} bytes"
        return str(response.status_code)

    async def wait_checked(self, *expected: str) -> None:
        """Wait until HAProxy's checks have found the two servers as expected."""
        with trio.fail_after(20):
            async with httpx.AsyncClient() as client:
                while True:
                    await trio.sleep(0.05)
                    try:
                        answer = await client.get(self._statistics)
                    except httpx.ConnectError:
                        continue
                    rows = csv.DictReader(answer.text.removeprefix("# ").splitlines())
                    states = {row["svname"]: row["status"] for row in rows}
                    if (states.get("one"), states.get("two")) == expected:
                        return

    async def wait_served(self, more: int) -> None:
        """Wait until so many more requests were answered."""
        goal = self.results.total() + more
        with trio.fail_after(20):
            while self.results.total() < goal:
                await trio.sleep(0.01)


async def restart_each(site: Site, ports: list[int], logs: list[Path]) -> None:
    """Restart each of the servers while clients come."""
    with ExitStack() as stack:
        pairs = list(zip(ports, logs, strict=True))
        running = [stack.enter_context(server(port, log)) for port, log in pairs]
        await site.wait_checked("UP", "UP")
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(site.visit)
            for number, (port, log) in enumerate(pairs):
                await site.wait_served(100)
                running[number].send_signal(signal.SIGTERM)
                assert await trio.to_thread.run_sync(running[number].wait, 20) == 0
                await site.wait_checked(*(("DOWN", "UP") if number == 0 else ("UP", "DOWN")))
                # The other one serves all of it.
                await site.wait_served(50)
                running[number] = stack.enter_context(server(port, log))
                await site.wait_checked("UP", "UP")
            await site.wait_served(100)
            nursery.cancel_scope.cancel()
        for process in running:
            process.send_signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(process.wait, 20) == 0


def test_no_request_fails_while_the_servers_are_restarted_one_after_the_other(
    tmp_path: Path,
) -> None:
    names = ["SITE_PORT", "STATISTICS_PORT", "ONE_PORT", "TWO_PORT"]
    ports = dict(zip(names, free_ports(4), strict=True))
    logs = [tmp_path / "one", tmp_path / "two"]
    site = Site(ports)

    with haproxy(ports):
        trio.run(restart_each, site, [ports["ONE_PORT"], ports["TWO_PORT"]], logs)

    assert set(site.results) == {"200"}, site.results
    for log in logs:
        text = log.read_text()
        # Both served before and after their restart, and knew whom.
        before, after = text.split("stopped: ", 1)
        assert f"\n{ORIGIN} " in before
        assert f"\n{ORIGIN} " in after
        assert "Traceback" not in text
        # Checks come from HAProxy itself.
        assert "\n127.0.0.1 - - " in text
        assert '"GET /healthz HTTP/1.1" 200' in text


def test_the_servers_turn_away_whoever_comes_without_a_header(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with server(port, tmp_path / "log"):
        for _ in range(200):
            try:
                sock = socket.create_connection(("127.0.0.1", port), timeout=5)
            except ConnectionRefusedError:
                trio.run(trio.sleep, 0.05)
            else:
                break
        with sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: site\r\n\r\n")
            with suppress(ConnectionResetError):
                assert sock.recv(100) == b""


def test_the_configuration_has_a_port_for_everything_by_default() -> None:
    assert HAPROXY is not None
    done = subprocess.run(
        [HAPROXY, "-c", "-f", str(CONFIG)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr.upper(), done.stderr
