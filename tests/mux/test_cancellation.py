"""Cancelling any operation at any step harms its own stream no further than it says, and no other.

This is S12: a send cancelled in the middle of a frame must not become a piece of another stream.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.helpers import Attempt, cancelled_at
from tests.mux.support import CARRIERS, Pair, clog, echo, receive_all, serve, sessions
from trionet._mux.session import MuxConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trionet._mux.stream import MuxStream

PATTERN = bytes(range(251))
SIZES = [1, 4096, 5000, 70_000, 600_000]


def pattern(size: int) -> bytes:
    return (PATTERN * (size // 251 + 1))[:size]


class Witness:
    """A stream of its own, whose every byte must come back, whatever is cancelled meanwhile.

    Attributes:
      rounds: how many messages have.
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._stop = False
        self._left = trio.Event()
        self.rounds = 0

    async def run(self) -> None:
        """Send and compare, one message after another, until told to stop."""
        async with await self._pair.server.open_stream() as stream:
            while not self._stop:
                message = b"%d," % self.rounds * 50
                await stream.send_all(message)
                received = b""
                while len(received) < len(message):
                    received += await stream.receive_some()
                assert received == message
                self.rounds += 1
            await stream.send_eof()
            assert await receive_all(stream) == b""
        self._left.set()

    async def stop(self) -> None:
        """See that it has not come to a standstill."""
        with trio.fail_after(5):
            before = self.rounds
            while self.rounds < before + 2:
                await trio.lowlevel.checkpoint()
            self._stop = True
            await self._left.wait()


async def sweep(
    carrier: str, scenario: Callable[[Pair, int], Awaitable[bool]], config: MuxConfig
) -> None:
    """Play ``scenario`` cancelled at step 1, 2, 3 ... until that makes no difference."""
    for step in itertools.count(1):
        async with sessions(CARRIERS[carrier], config) as pair, trio.open_nursery() as nursery:
            # The witness's stream is opened by the server, those of a scenario by the client.
            nursery.start_soon(serve, pair.client, echo)
            witness = Witness(pair)
            nursery.start_soon(witness.run)
            await wait_some()
            last = await scenario(pair, step)
            await witness.stop()
            nursery.cancel_scope.cancel()
        if last:
            assert step > 1
            return


class AnyStep(trio.abc.Instrument):
    """Cancels a scope at the n-th step of whichever task, so also while the one waits."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self.scope = scope
        self.left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def cancelled_at_any(step: int, operation: Callable[[], Awaitable[Any]]) -> Attempt:
    """Run ``operation`` and cancel it at the n-th step of the whole run."""
    attempt = Attempt(finished=False, last=False, result=None)
    with trio.CancelScope() as scope:
        instrument = AnyStep(scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            attempt.result = await operation()
            attempt.finished = True
        finally:
            trio.lowlevel.remove_instrument(instrument)
    attempt.last = not scope.cancel_called
    return attempt


async def wait_some() -> None:
    for _ in range(20):
        await trio.lowlevel.checkpoint()


CONFIG = MuxConfig(keepalive=None)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("carrier", ["memu", "memb"])
async def test_s12_a_cancelled_send_has_sent_just_what_it_says(carrier: str, size: int) -> None:
    async def scenario(pair: Pair, step: int) -> bool:
        near, far = await pair.streams()
        received = bytearray()

        async def receive() -> None:
            received.extend(await receive_all(far))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await near.send_all(b"before")
            buffer = bytearray(pattern(size))
            attempt = await cancelled_at_any(step, partial(near.send_all, buffer))
            committed = near.bytes_sent - 6
            # The buffer is the caller's again.
            buffer[:] = bytes(len(buffer))
            await near.send_all(b"after")
            await near.send_eof()
        assert 0 <= committed <= size
        assert not attempt.finished or committed == size
        assert received == b"before" + pattern(size)[:committed] + b"after"
        await near.aclose()
        await far.aclose()
        return attempt.last

    await sweep(carrier, scenario, CONFIG)


@pytest.mark.parametrize("carrier", ["memu", "memb"])
async def test_s12_a_cancelled_receive_has_received_nothing(carrier: str) -> None:
    async def scenario(pair: Pair, step: int) -> bool:
        near, far = await pair.streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, pattern(100_000))
            attempt = await cancelled_at_any(step, far.receive_some)
            received = attempt.result or b""
            while len(received) < 100_000:
                received += await far.receive_some()
        assert received == pattern(100_000)
        assert far.bytes_received == 100_000
        await near.aclose()
        await far.aclose()
        return attempt.last

    await sweep(carrier, scenario, CONFIG)


async def test_s12_a_cancelled_receive_that_waits_loses_nothing() -> None:
    async def scenario(pair: Pair, step: int) -> bool:
        near, far = await pair.streams()
        async with trio.open_nursery() as nursery:

            async def send_later() -> None:
                await wait_some()
                await near.send_all(b"hello")

            nursery.start_soon(send_later)
            attempt = await cancelled_at_any(step, far.receive_some)
            assert (attempt.result or await far.receive_some()) == b"hello"
        await near.aclose()
        await far.aclose()
        return attempt.last

    await sweep("memu", scenario, CONFIG)


async def test_s12_a_cancelled_open_uses_no_id_and_holds_no_slot() -> None:
    config = MuxConfig(keepalive=None, max_outbound_streams=2)

    async def scenario(pair: Pair, step: int) -> bool:
        first, first_far = await pair.streams()
        second, second_far = await pair.streams()
        async with trio.open_nursery() as nursery:

            async def make_room() -> None:
                await wait_some()
                await first.aclose()
                await first_far.aclose()

            nursery.start_soon(make_room)
            attempt = await cancelled_at_any(step, pair.client.open_stream)
        opened = attempt.result or await pair.client.open_stream()
        assert opened.stream_id == 5
        accepted = await pair.server.listener().accept()
        for stream in (second, second_far, opened, accepted):
            await stream.aclose()
        await wait_some()
        assert pair.client.statistics().opened_here == 0
        return attempt.last

    await sweep("memu", scenario, config)


async def test_s12_a_cancelled_accept_loses_no_stream() -> None:
    async def scenario(pair: Pair, step: int) -> bool:
        async with trio.open_nursery() as nursery:
            opened: list[MuxStream] = []

            async def open_later() -> None:
                await wait_some()
                opened.append(await pair.client.open_stream())

            nursery.start_soon(open_later)
            attempt = await cancelled_at_any(step, pair.server.listener().accept)
            accepted = attempt.result or await pair.server.listener().accept()
        assert accepted.stream_id == opened[0].stream_id == 1
        await accepted.aclose()
        await opened[0].aclose()
        return attempt.last

    await sweep("memu", scenario, CONFIG)


async def test_s12_a_cancelled_aclose_has_closed_and_loses_nothing() -> None:
    async def scenario(pair: Pair, step: int) -> bool:
        near, far = await pair.streams()
        await near.send_all(pattern(4096))
        attempt = await cancelled_at(step, near.aclose)
        assert near.closed
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"x")
        assert await receive_all(far) == pattern(4096)
        await far.aclose()
        return attempt.last

    await sweep("memu", scenario, CONFIG)


async def test_s12_a_cancelled_send_eof_has_sent_it_or_not() -> None:
    async def scenario(pair: Pair, step: int) -> bool:
        near, far = await pair.streams()
        await near.send_all(b"all")
        attempt = await cancelled_at(step, near.send_eof)
        await near.send_eof()
        assert await receive_all(far) == b"all"
        await near.aclose()
        await far.aclose()
        return attempt.last

    await sweep("memu", scenario, CONFIG)


@pytest.mark.parametrize(
    "operation", ["send_all", "send_eof", "receive_some", "open_stream", "accept", "aclose"]
)
async def test_s12_what_is_cancelled_before_it_begins_does_nothing_but_close(
    operation: str,
) -> None:
    async with sessions(config=CONFIG) as pair:
        near, far = await pair.streams()
        waiting = await pair.client.open_stream()
        await far.send_all(b"to be received")
        await wait_all_tasks_blocked()
        listener = pair.server.listener()
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "send_all": partial(near.send_all, b"never sent"),
            "send_eof": near.send_eof,
            "receive_some": near.receive_some,
            "open_stream": pair.client.open_stream,
            "accept": listener.accept,
            "aclose": near.aclose,
        }

        with trio.CancelScope() as scope:
            scope.cancel()
            await calls[operation]()

        assert scope.cancelled_caught
        assert near.closed == (operation == "aclose")
        if not near.closed:
            assert await near.receive_some() == b"to be received"
            await near.send_all(b"sent")
            await near.send_eof()
        assert await receive_all(far) == (b"" if near.closed else b"sent")
        accepted = await listener.accept()
        opened = await pair.client.open_stream()
        assert (accepted.stream_id, opened.stream_id) == (3, 5)
        for stream in (near, far, waiting, accepted, opened):
            await stream.aclose()


@pytest.mark.parametrize("operation", ["send_all", "wait_send_all_might_not_block"])
async def test_a_cancelled_wait_for_credit_leaves_the_stream_usable(operation: str) -> None:
    async with sessions(config=CONFIG) as pair:
        near, far = await pair.streams()
        await clog(near)
        before = near.bytes_sent
        with trio.move_on_after(0.01) as scope:
            arguments: list[Any] = [b"more"] if operation == "send_all" else []
            await getattr(near, operation)(*arguments)
        assert scope.cancelled_caught
        assert near.bytes_sent == before

        await near.send_eof()
        assert len(await receive_all(far)) == before
        await near.aclose()
        await far.aclose()


@pytest.mark.parametrize("carrier", ["memu", "memb"])
async def test_a_session_cancelled_at_any_step_closes_its_carrier(carrier: str) -> None:
    from trionet._mux.session import open_mux

    for step in itertools.count(1):
        near, far = await CARRIERS[carrier]()

        async def talk(carrier: trio.abc.Stream = near) -> None:
            async with open_mux(carrier, role="client") as client:
                stream = await client.open_stream()
                await stream.send_all(bytes(20_000))
                await stream.send_eof()
                await receive_all(stream)
                await stream.aclose()

        async with open_mux(far, role="server") as server, trio.open_nursery() as nursery:
            with trio.move_on_after(5):
                nursery.start_soon(_serve_until_broken, server)
                attempt = await cancelled_at_any(step, talk)
            nursery.cancel_scope.cancel()
        assert near.closed  # type: ignore[attr-defined]
        if attempt.last:
            assert step > 5
            return


async def _serve_until_broken(session: Any) -> None:
    while True:
        try:
            stream = await session.listener().accept()
            await echo(stream)
        except trio.BrokenResourceError:
            return
