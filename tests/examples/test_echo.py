"""The echo server."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

import trionet
from examples.echo import echo

HERE = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "examples/echo.py", *arguments],
        cwd=HERE,
        env={"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_without_arguments_it_shows_something_and_ends() -> None:
    finished = run()

    assert finished.returncode == 0
    assert "sent b'hello', got back b'hello'" in finished.stdout
    assert "ShutdownReport(completed=1, cancelled=0, forced=0)" in finished.stdout


@pytest.mark.parametrize("where", ["nonsense", "tcp:nonsense", "memu:"])
def test_a_bad_address_is_told(where: str) -> None:
    finished = run(where)

    assert finished.returncode == 2
    assert "usage:" in finished.stderr


@pytest.mark.parametrize("network", ["memu", "memb", "tcp", "unix"])
async def test_it_echoes_on_any_network_and_drains(
    network: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    address = {"tcp": "127.0.0.1:0", "unix": str(tmp_path / "s")}.get(network, "echo")
    server = await nursery.start(partial(trionet.serve, echo, network, address))
    async with await trionet.dial(network, str(server.addresses[0])) as client:
        await client.send_all(b"hello")
        assert await client.receive_some() == b"hello"
        await trio.testing.wait_all_tasks_blocked()

        server.shutdown()

        assert await client.receive_some() == b""
    assert (await server.wait_closed()).completed == 1
