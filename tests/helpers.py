"""What tests of streams and servers need again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

import trionet
import trionet.abc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class AtStep(trio.abc.Instrument):
    """Calls ``action`` after the n-th step of one task."""

    def __init__(self, n: int, action: Callable[[], object]) -> None:
        self._left = n
        self._action = action
        self.task: trio.lowlevel.Task | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the steps of the task that is watched."""
        if task is self.task:
            self._left -= 1
            if self._left == 0:
                self._action()


@dataclass
class Attempt:
    """How `cancelled_at` went.

    Attributes:
      finished: the operation returned, cancelled or not.
      last: a greater ``n`` would make no difference.
      result: what it returned.
    """

    finished: bool
    last: bool
    result: Any


async def cancelled_at(n: int, operation: Callable[[], Awaitable[Any]]) -> Attempt:
    """Run ``operation`` and cancel it after its n-th step, or when it has come to wait for good."""
    attempt = Attempt(finished=False, last=False, result=None)
    with trio.CancelScope() as scope:
        instrument = AtStep(n, scope.cancel)
        async with trio.open_nursery() as nursery:

            async def watched() -> None:
                instrument.task = trio.lowlevel.current_task()
                attempt.result = await operation()
                attempt.finished = True
                nursery.cancel_scope.cancel()

            trio.lowlevel.add_instrument(instrument)
            try:
                nursery.start_soon(watched)
                await trio.testing.wait_all_tasks_blocked()
            finally:
                trio.lowlevel.remove_instrument(instrument)
            attempt.last = True
            scope.cancel()
    attempt.last |= attempt.finished and not scope.cancel_called
    return attempt


async def connected(network: str, address: str) -> tuple[Any, Any]:
    """Dial and accept one connection, and close its listener."""
    listeners = await trionet.listen(network, address)
    listener = listeners[0]
    accepted: list[Any] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        client = await trionet.dial(listener.address.network, str(listener.address))
    for one in listeners:
        await one.aclose()
    return client, accepted[0]


async def clog(stream: trionet.abc.Stream) -> None:
    """Fill ``stream`` until it takes no byte more, big chunks first, single bytes last.

    A socket that refused 64 KiB may still take five bytes, and the kernel moves its own bounds a
    little while it is being filled: it is full when nothing has gone for a while.
    """
    for size in (65536, 4096, 64, 1):
        refusals = 0
        while refusals < 2:
            before = stream.bytes_sent
            with trio.move_on_after(0.01):
                await stream.send_all(bytes(size))
            refusals = refusals + 1 if stream.bytes_sent == before else 0


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Receive until end of file."""
    received = bytearray()
    async for data in stream:
        received += data
    return bytes(received)
