"""Keepalive and lingering over distance, in virtual time, to the millisecond."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from tests.mux.support import DEFAULTS, LinkStream, link, receive_all, sessions
from trionet._errors import SessionBrokenError, StreamResetError
from trionet._mux.session import MuxConfig

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.mux.support import Pair
    from trionet._mux.stream import MuxStream

FAST = 1e9  # bytes a second: what is sent is there, but for the latency

ROUND_TRIPS = pytest.mark.parametrize("round_trip", [0, 0.02, 0.06, 0.2])
WINDOW = 262144
# Some frames' time on the line.
MOMENT = 0.002


def cut(pair: Pair) -> None:
    carrier = pair.client._driver.carrier
    assert isinstance(carrier, LinkStream)
    carrier.cut()


async def reset_at(stream: MuxStream, moment: float) -> None:
    """Assert that ``stream`` learns of its reset at ``moment``."""
    await trio.sleep_until(moment - MOMENT)
    stream.send_nowait(b"")
    await trio.sleep_until(moment + MOMENT)
    with pytest.raises(StreamResetError):
        stream.send_nowait(b"")


@ROUND_TRIPS
async def test_s17_a_peer_that_answers_is_asked_each_half_minute_and_kept(
    round_trip: float, autojump_clock: MockClock
) -> None:
    async with sessions(link(round_trip / 2, FAST)) as pair:
        await trio.sleep(290)

        for session in (pair.client, pair.server):
            told = session.statistics()
            # Nine pings, nine answers, and nothing else.
            assert told.bytes_sent == told.bytes_received == 18 * 12
            assert told.round_trip == pytest.approx(round_trip, abs=1e-6)
        assert await pair.client.ping() == pytest.approx(round_trip, abs=1e-6)


@ROUND_TRIPS
async def test_s17_a_peer_that_falls_silent_is_given_up_fifty_seconds_after_its_last_byte(
    round_trip: float, autojump_clock: MockClock
) -> None:
    given_up: dict[str, float] = {}
    async with sessions(link(round_trip / 2, FAST)) as pair, trio.open_nursery() as nursery:

        async def wait(end: str, stream: MuxStream) -> None:
            with pytest.raises(SessionBrokenError, match="silent for 50 seconds"):
                await stream.receive_some()
            given_up[end] = trio.current_time()

        near, far = await pair.streams()
        await pair.client.ping()
        heard_at = trio.current_time()
        cut(pair)
        nursery.start_soon(wait, "client", near)
        nursery.start_soon(wait, "server", far)

    assert given_up["client"] == pytest.approx(heard_at + 50, abs=1e-6)
    # The ping had reached it half a round trip before its answer came.
    assert given_up["server"] == pytest.approx(heard_at - round_trip / 2 + 50, abs=1e-6)


@ROUND_TRIPS
async def test_s17_an_answer_that_takes_all_the_time_it_has_is_in_time(
    round_trip: float, autojump_clock: MockClock
) -> None:
    """The server never asks, so nothing but answers comes."""
    config = MuxConfig(keepalive=1, keepalive_timeout=round_trip + 0.001)
    silent = MuxConfig(keepalive=None)
    async with sessions(link(round_trip / 2, FAST), config, silent) as pair:
        await trio.sleep(100)

        assert pair.client._driver.error() is None


@pytest.mark.parametrize("round_trip", [0.02, 0.06, 0.2])
async def test_s17_an_answer_that_takes_longer_is_too_late(
    round_trip: float, autojump_clock: MockClock
) -> None:
    config = MuxConfig(keepalive=1, keepalive_timeout=round_trip - 0.001)
    silent = MuxConfig(keepalive=None)
    async with sessions(link(round_trip / 2, FAST), config, silent) as pair:
        with pytest.raises(SessionBrokenError, match="silent for"):
            await pair.client.listener().accept()

        assert trio.current_time() == pytest.approx(1 + round_trip - 0.001)


@ROUND_TRIPS
async def test_s17_a_slow_line_full_of_data_keeps_the_session_alive(
    round_trip: float, autojump_clock: MockClock
) -> None:
    """A ping behind ten seconds of data: what arrives meanwhile is sign of life enough."""
    config = MuxConfig(keepalive=1, keepalive_timeout=1)
    async with (
        sessions(link(round_trip / 2, 20_000), config) as pair,
        trio.open_nursery() as nursery,
    ):
        near, far = await pair.streams()

        async def send() -> None:
            await near.send_all(bytes(200_000))
            await near.aclose()

        nursery.start_soon(send)

        assert len(await receive_all(far)) == 200_000
        await far.aclose()
        assert trio.current_time() == pytest.approx(10 + round_trip, rel=0.05)


async def test_s17_a_ping_behind_half_a_minute_of_data_in_the_system_is_no_silence(
    autojump_clock: MockClock,
) -> None:
    """The peer has a large window, so it says nothing for longer than the keepalive waits."""
    rate, buffer, size = 100_000, 4 << 20, 20_000_000
    large = MuxConfig(window=16 << 20)
    async with (
        sessions(link(0.05, rate, buffer), DEFAULTS, large) as pair,
        trio.open_nursery() as nursery,
    ):
        near, far = await pair.streams()

        async def send() -> None:
            await near.send_all(bytes(size))
            await near.aclose()

        nursery.start_soon(send)

        assert len(await receive_all(far)) == size
        await far.aclose()
        assert trio.current_time() == pytest.approx(size / rate, rel=0.01)


@ROUND_TRIPS
async def test_s15_a_peer_that_does_not_end_is_reset_five_seconds_after_the_last_word(
    round_trip: float, autojump_clock: MockClock
) -> None:
    async with sessions(link(round_trip / 2, FAST)) as pair:
        near, far = await pair.streams()
        closed_at = trio.current_time()
        await far.send_all(b"413 too large")
        await far.aclose()

        assert await receive_all(near) == b"413 too large"
        await reset_at(near, closed_at + 5 + round_trip / 2)

        assert pair.server.statistics().opened_there == 0
        assert pair.client.statistics().opened_here == 0


@ROUND_TRIPS
async def test_s15_that_reset_takes_nothing_from_who_reads_late(
    round_trip: float, autojump_clock: MockClock
) -> None:
    async with sessions(link(round_trip / 2, FAST)) as pair:
        near, far = await pair.streams()
        await far.send_all(bytes(200_000))
        await far.aclose()

        await trio.sleep(20)
        with pytest.raises(StreamResetError):
            near.send_nowait(b"")

        assert await receive_all(near) == bytes(200_000)


@ROUND_TRIPS
async def test_s15_a_peer_that_ends_within_the_time_is_not_reset(
    round_trip: float, autojump_clock: MockClock
) -> None:
    async with sessions(link(round_trip / 2, FAST)) as pair:
        near, far = await pair.streams()
        await far.send_all(b"enough")
        await far.aclose()

        assert await receive_all(near) == b"enough"
        await trio.sleep(4)
        await near.send_all(bytes(100_000))
        await near.aclose()
        await trio.sleep(round_trip + MOMENT)

        for session in (pair.client, pair.server):
            told = session.statistics()
            assert (told.opened_here, told.opened_there, told.resets) == (0, 0, 0)


@ROUND_TRIPS
async def test_s15_a_peer_that_goes_on_sending_is_reset_when_a_window_was_dropped(
    round_trip: float, autojump_clock: MockClock
) -> None:
    rate = 1e6
    async with sessions(link(round_trip / 2, rate)) as pair:
        near, far = await pair.streams()
        await far.send_all(b"413 too large")
        await far.aclose()
        # The end of file is there before the first byte is sent.
        assert await near.receive_some() == b"413 too large"
        assert await near.receive_some() == b""
        begun = trio.current_time()

        with pytest.raises(StreamResetError):
            await near.send_all(bytes(1 << 22))

        # Half a window read makes a grant, so at most this long the line stood still.
        least = WINDOW / rate + round_trip
        assert begun + least <= trio.current_time() <= begun + 1.3 * least + round_trip
        assert pair.server.statistics().opened_there == 0
