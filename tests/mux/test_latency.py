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


async def test_s16_without_latency_the_link_is_full_from_the_first(
    autojump_clock: MockClock,
) -> None:
    async with sessions(link(0, RATE)) as pair:
        found = await measure(pair, 2, 4)

    assert found == pytest.approx([RATE] * 4, rel=0.05)


async def per_round_trip(pair: Pair, round_trip: float, trips: int) -> list[float]:
    """Receive for so many round trips; return how many windows came in each of them."""
    found: list[float] = []
    near = await pair.client.open_stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour, near, 1000)
        far = await pair.server.listener().accept()
        # The first byte left half a round trip ago; the last of a trip has come by its end.
        begun = trio.current_time() - round_trip / 2

        async def drink() -> None:
            while True:
                await far.receive_some()

        nursery.start_soon(drink)
        for trip in range(1, trips + 1):
            before = far.bytes_received
            await trio.sleep_until(begun + (trip + 0.4) * round_trip)
            found.append((far.bytes_received - before) / WINDOW)
        nursery.cancel_scope.cancel()
    near.reset()
    far.reset()
    return found


@pytest.mark.parametrize("round_trip", [0.02, 0.06, 0.2])
async def test_s16_a_window_doubles_each_round_trip_up_to_its_limit(
    round_trip: float, autojump_clock: MockClock
) -> None:
    """The ping that tells how far it is leaves with the first bytes read, half a trip after the
    start, and what is granted by its answer is felt two trips later, half of it at first. From then
    on each trip brings as much as the peer was granted, on a link that has room for all of it."""
    async with sessions(link(round_trip / 2, 1e10)) as pair:
        found = await per_round_trip(pair, round_trip, 9)

    assert found == [1, 1, 1.5, 3, 6, 12, 24, 48, 64]


@pytest.mark.parametrize("round_trip", [0.02, 0.06, 0.2])
async def test_s16_a_window_grows_until_the_link_is_full_and_then_it_is(
    round_trip: float, autojump_clock: MockClock
) -> None:
    rate = 2e7
    full = rate * round_trip / WINDOW
    async with sessions(link(round_trip / 2, rate)) as pair:
        found = await per_round_trip(pair, round_trip, 13)

    assert found[0] == 1
    # Ten round trips reach what carries sixty-four windows in one.
    assert found[10:] == pytest.approx([full] * 3, rel=0.05)


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
