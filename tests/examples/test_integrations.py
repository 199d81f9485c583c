"""The example programs around other people's libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]

PRINTED = {
    "asgi": (
        "the application starts\n"
        "GET /hello -> 200 hello, client in memory\n"
        "GET /slow -> 200 this took a while\n"
        "ShutdownReport(completed=1, cancelled=0, forced=0)\n"
        "the application stops\n"
    ),
    "websocket_chat": "ann: hello bob\nann: are you there?\nclosed: 1001 the server drains\n",
    "metrics": (
        'trionet_server_connections_accepted_total{server="echo"} 2.0\n'
        'trionet_server_connections_active{server="echo"} 2.0\n'
        'trionet_pool_connections{pool="clients",state="idle"} 2.0\n'
        'trionet_pool_leases_total{pool="clients"} 5.0\n'
    ),
    "anyio_lines": "to be or not to be: 6 words\nthat is the question: 4 words\n",
}


@pytest.mark.parametrize("name", PRINTED)
def test_it_prints_what_it_should_and_ends(name: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-W", "error", f"examples/{name}.py"],
        cwd=HERE,
        env={"PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert finished.stderr == ""
    assert finished.stdout == PRINTED[name]
