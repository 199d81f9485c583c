"""What a receive takes for granted: that a short one has emptied the socket, and where it errs."""

from __future__ import annotations

import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.streams.pairs import Pairs
from trionet import SocketStream
from trionet._streams import readiness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# The hub is edge-triggered: who waits there for bytes that have come already waits for ever.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bytes as Linux cuts them")


@asynccontextmanager
async def in_the_hub(stream: SocketStream) -> AsyncIterator[None]:
    """Let so many others wait that the stream has a place in the hub."""
    pairs = Pairs(readiness.DIRECT_WAITS)
    async with trio.open_nursery() as nursery:
        for index in range(readiness.DIRECT_WAITS):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as once:
            once.start_soon(stream.receive_some)
            await wait_all_tasks_blocked()
            once.cancel_scope.cancel()
        assert readiness.entry_of(stream.socket) is not None
        yield
        nursery.cancel_scope.cancel()
    pairs.close()


class Steps(trio.abc.Instrument):
    """Counts the steps of the task that made it."""

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


async def receive_all_of(stream: SocketStream, size: int) -> tuple[bytes, int]:
    """Receive ``size`` bytes; return them, and in how many steps of the task that went."""
    received = b""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        with trio.move_on_after(1):
            while len(received) < size:
                received += await stream.receive_some()
    finally:
        trio.lowlevel.remove_instrument(steps)
    return received, steps.count


@pytest.mark.parametrize("later", [False, True])
async def test_what_comes_behind_urgent_data_is_received(later: bool) -> None:
    pairs = Pairs(1)
    (near,), (far,) = pairs.near, pairs.far
    async with in_the_hub(near), trio.open_nursery() as nursery:

        async def speak() -> None:
            await wait_all_tasks_blocked()
            far.send(b"one")
            # As telnet does, to have what comes next read at once (RFC 854, "Synch").
            far.send(b"!", socket.MSG_OOB)
            if later:
                await wait_all_tasks_blocked()
            far.send(b"two")

        nursery.start_soon(speak)
        received, steps = await receive_all_of(near, 6)
    assert received == b"onetwo"
    # Each wake-up is for something: nobody turns around and around.
    assert steps < 12
    pairs.close()


async def test_urgent_data_alone_wakes_nobody_again_and_again() -> None:
    pairs = Pairs(1)
    (near,), (far,) = pairs.near, pairs.far
    async with in_the_hub(near), trio.open_nursery() as nursery:

        async def speak() -> None:
            await wait_all_tasks_blocked()
            far.send(b"!", socket.MSG_OOB)
            for _ in range(20):
                await trio.sleep(0.001)
            far.send(b"word")

        nursery.start_soon(speak)
        received, steps = await receive_all_of(near, 4)
    assert received == b"word"
    assert steps < 12
    pairs.close()


async def test_what_comes_behind_a_descriptor_is_received() -> None:
    sock, far = socket.socketpair()
    near = SocketStream(sock)
    async with in_the_hub(near), trio.open_nursery() as nursery:

        async def speak() -> None:
            await wait_all_tasks_blocked()
            # A receive ends behind what a descriptor came with, whatever else is there (unix(7)).
            socket.send_fds(far, [b"one"], [far.fileno()])
            far.send(b"two")

        nursery.start_soon(speak)
        received, _ = await receive_all_of(near, 6)
    assert received == b"onetwo"
    near.close()
    far.close()


async def test_a_socket_closed_past_its_stream_is_not_waited_for() -> None:
    pairs = Pairs(1)
    (near,), (far,) = pairs.near, pairs.far
    async with in_the_hub(near):
        far.send(b"short")
        assert await near.receive_some() == b"short"
        near.socket.close()
        assert near.closed
        with trio.fail_after(1), pytest.raises(trio.ClosedResourceError):
            await near.receive_some()
    far.close()
