"""Windows over distance, in virtual time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.mux.support import link, sessions
from trionet._mux.session import MuxConfig

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mux.support import Pair
    from trionet._mux.stream import MuxStream

WINDOW = 262144
RATE = 5e6  # bytes a second: 40 Mbit/s


async def pour(stream: MuxStream, seconds: float) -> None:
    with trio.move_on_after(seconds):
        while True:
            await stream.send_all(bytes(65536))


async def rates(far: MuxStream, seconds: float, steps: int) -> list[float]:
    """Receive for so long; return the bytes a second of each step."""
    found: list[float] = []
    for _ in range(steps):
        before = far.bytes_received
        with trio.move_on_after(seconds / steps):
            while True:
                await far.receive_some()
        found.append((far.bytes_received - before) / (seconds / steps))
    return found


async def measure(pair: Pair, seconds: float, steps: int) -> list[float]:
    near, far = await pair.streams()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour, near, seconds + 5)
        found = await rates(far, seconds, steps)
        nursery.cancel_scope.cancel()
    near.reset()
    far.reset()
    return found


@pytest.mark.parametrize("round_trip", [0.02, 0.06, 0.2])
async def test_a_window_that_cannot_grow_gives_window_by_round_trip(
    round_trip: float, autojump_clock: MockClock
) -> None:
    config = MuxConfig(max_window=WINDOW)
    async with sessions(link(round_trip / 2, 1e9), config) as pair:
        found = await measure(pair, 50 * round_trip, 1)

    assert found[0] == pytest.approx(WINDOW / round_trip, rel=0.2)


@pytest.mark.parametrize("round_trip", [0, 0.02, 0.06, 0.2])
async def test_s16_windows_grow_until_the_link_is_full(
    round_trip: float, autojump_clock: MockClock
) -> None:
    async with sessions(link(round_trip / 2, RATE)) as pair:
        found = await measure(pair, 6, 4)

    assert found[-1] == pytest.approx(RATE, rel=0.2)


@pytest.mark.parametrize("round_trip", [0.02, 0.06, 0.2])
async def test_s16_before_it_has_grown_one_window_comes_a_round_trip(
    round_trip: float, autojump_clock: MockClock
) -> None:
    """The ping that tells how far it is leaves with the first bytes read, half a trip after the
    start; what grows by its answer is felt two trips later."""
    async with sessions(link(round_trip / 2, 1e10)) as pair:
        near = await pair.client.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, near, 10)
            far = await pair.server.listener().accept()
            start = trio.current_time() - round_trip / 2

            async def drink() -> None:
                while True:
                    await far.receive_some()

            nursery.start_soon(drink)
            for trips, windows in ((1.4, 1), (2.4, 2)):
                await trio.sleep_until(start + trips * round_trip)
                assert far.bytes_received == windows * WINDOW
            await trio.sleep_until(start + 3.4 * round_trip)
            assert far.bytes_received > 3 * WINDOW
            nursery.cancel_scope.cancel()
        near.reset()
        far.reset()


async def test_s16_a_window_does_not_grow_on_a_path_without_latency(
    autojump_clock: MockClock,
) -> None:
    async with sessions(link(0.0005, RATE)) as pair:
        near, far = await pair.streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, near, 3)
            await rates(far, 2, 1)
            used = pair.server.statistics().window_budget_used
            nursery.cancel_scope.cancel()
        near.reset()
        far.reset()

    assert used <= WINDOW


async def test_s16_a_slow_reader_grows_nothing(autojump_clock: MockClock) -> None:
    async with sessions(link(0.1, RATE)) as pair:
        near, far = await pair.streams()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, near, 60)
            await pair.server.ping()
            for _ in range(50):
                await far.receive_some(32768)
                await trio.sleep(0.2)
            used = pair.server.statistics().window_budget_used
            nursery.cancel_scope.cancel()
        near.reset()
        far.reset()

    assert used == 0


async def test_the_round_trip_is_asked_for_by_bulk_data_only(autojump_clock: MockClock) -> None:
    async with sessions(link(0.05, RATE)) as pair:
        near, far = await pair.streams()
        for _ in range(10):
            await near.send_all(b"hello")
            await far.receive_some()
        assert pair.server.statistics().round_trip is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, near, 3)
            await rates(far, 1, 1)
            nursery.cancel_scope.cancel()
        near.reset()
        far.reset()

        measured = pair.server.statistics().round_trip

    assert measured is not None
    assert measured == pytest.approx(0.1, rel=0.3)
