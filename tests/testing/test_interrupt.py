"""Ctrl-C at each line of a virtual network's beginning and end: trio's own network is back."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

import trionet
from tests.pool.interrupt import InterruptAtLine
from trionet import abc
from trionet.testing import VirtualNetwork

NETWORK = [str(Path(trionet.__file__).parent / "testing" / "network.py")]
# No block runs more lines than this.
MOST_LINES = 500


def test_an_interrupt_at_any_line_gives_the_network_back() -> None:
    for n in range(1, MOST_LINES):
        if not trio.run(interrupted_at, n):
            return
    pytest.fail(f"it runs more than {MOST_LINES} lines")


async def interrupted_at(n: int) -> bool:
    """Enter and leave a block, and return whether that was interrupted."""
    before = abc.system_network.get()
    interrupt = InterruptAtLine(n, NETWORK)
    interrupted = False
    try:
        with interrupt:
            async with VirtualNetwork() as net:
                net.host("a")
        await trio.lowlevel.checkpoint()
    except KeyboardInterrupt:
        interrupted = True
    assert abc.system_network.get() is before, f"line {n}"
    for put in (trio.socket.set_custom_socket_factory, trio.socket.set_custom_hostname_resolver):
        left = put(None)
        assert left is None, f"line {n}"
    assert interrupted == (interrupt.left == 0)
    return interrupted
