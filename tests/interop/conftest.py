"""The Go peer: built once, started as often as a test likes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

SOURCE = Path(__file__).parent / "peer"
PACKAGE = "golang-github-hashicorp-yamux-dev"


class GoPeer:
    """A running peer.

    Attributes:
      port: where it listens, if it does.
      lines: what it printed so far.
    """

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = b""
        self.lines: list[str] = []
        self.port = 0

    async def line(self, start: str) -> str:
        """Wait for a line that begins with ``start`` and was not asked for yet."""
        assert self._process.stdout is not None
        with trio.fail_after(20):
            while True:
                for line in self.lines:
                    if line.startswith(start):
                        self.lines.remove(line)
                        return line
                data = await self._process.stdout.receive_some()
                assert data, f"the peer ended without saying {start!r}"
                *whole, self._rest = (self._rest + data).split(b"\n")
                self.lines += [line.decode() for line in whole]


StartPeer = Callable[..., AbstractAsyncContextManager[GoPeer]]


def gopath() -> str | None:
    """Find where Debian keeps the sources of hashicorp/yamux."""
    if shutil.which("dpkg") is None:
        return None
    listed = subprocess.run(["dpkg", "-L", PACKAGE], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        root, found, _ = line.partition("/src/github.com/hashicorp/yamux")
        if found:
            return root
    return None


def build(folder: Path) -> Path:
    """Build the peer, or skip where that cannot be."""
    if shutil.which("go") is None:
        pytest.skip("no Go compiler: apt-get install golang-go")
    path = gopath()
    if path is None:
        pytest.skip(f"no sources of hashicorp/yamux: apt-get install {PACKAGE}")
    binary = folder / "peer"
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOPATH": path,
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "",
    }
    subprocess.run(["go", "build", "-o", binary, "."], cwd=SOURCE, env=environment, check=True)
    return binary


@pytest.fixture(scope="session")
def go_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The peer, built once."""
    return build(tmp_path_factory.mktemp("go"))


@pytest.fixture
def start_peer(go_binary: Path) -> StartPeer:
    """Start the peer with arguments; it is killed when the block ends."""

    @asynccontextmanager
    async def start(*arguments: str) -> AsyncIterator[GoPeer]:
        process = await trio.lowlevel.open_process(
            [str(go_binary), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            peer = GoPeer(process)
            if "-listen" in arguments:
                peer.port = int((await peer.line("LISTEN")).rpartition(":")[2])
            yield peer
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await process.wait()
            assert process.stdout is not None
            await trio.aclose_forcefully(process.stdout)

    return start
