"""The arithmetic of flow control, which checks itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.yamux import ProtocolError
from trionet.yamux.window import CREDIT_MAX, ReceiveWindow, SendWindow, WindowBudget

KIB = 1024
WINDOW = 256 * KIB


def test_credit_may_reach_the_last_bit_and_not_pass_it() -> None:
    window = SendWindow()

    window.grant(CREDIT_MAX - WINDOW)
    with pytest.raises(ProtocolError, match="a window update of 1 takes"):
        window.grant(1)

    assert window.credit == CREDIT_MAX


def test_spending_more_than_the_credit_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        SendWindow().spend(WINDOW + 1)


def test_the_peer_may_fill_the_window_and_not_pass_it() -> None:
    window = ReceiveWindow(WINDOW, 0)

    window.arrive(WINDOW)
    with pytest.raises(ProtocolError, match="1 bytes sent with a window of 0"):
        window.arrive(1)


def test_reading_half_the_window_makes_a_grant_due() -> None:
    window = ReceiveWindow(WINDOW, 0)
    window.arrive(WINDOW)

    assert not window.consume(WINDOW // 2 - 1)
    assert window.consume(1)

    assert window.grant() == WINDOW // 2
    assert window.remaining == WINDOW // 2
    assert window.buffered == WINDOW // 2


@pytest.mark.parametrize("round_trip", [0.02, 0.06, 0.2])
def test_a_window_read_faster_than_two_round_trips_doubles(round_trip: float) -> None:
    window, budget = ReceiveWindow(WINDOW, 0), WindowBudget(1 << 30)
    window.arrive(WINDOW // 2)
    window.consume(WINDOW // 2)

    window.adapt(2 * round_trip - 0.001, round_trip, 1 << 24, budget)

    assert window.size == 2 * WINDOW
    assert budget.used == WINDOW
    # All that is new goes out with the grant.
    assert window.grant() == WINDOW // 2 + WINDOW


def test_a_window_read_slower_stays() -> None:
    window, budget = ReceiveWindow(WINDOW, 0), WindowBudget(1 << 30)
    window.arrive(WINDOW)
    window.consume(WINDOW)

    window.adapt(0.4, 0.2, 1 << 24, budget)

    assert window.size == WINDOW


def test_windows_grow_within_their_limit_and_the_budget_of_all() -> None:
    budget = WindowBudget(WINDOW + 5)
    first, second = ReceiveWindow(WINDOW, 0), ReceiveWindow(WINDOW, 0)

    for window in (first, second):
        window.arrive(WINDOW)
        window.consume(WINDOW)
        window.adapt(0, 1, 2 * WINDOW, budget)

    assert (first.size, second.size) == (2 * WINDOW, WINDOW + 5)
    assert budget.left == 0


def test_what_was_grown_is_given_back_after_a_pause() -> None:
    window, budget = ReceiveWindow(WINDOW, 0), WindowBudget(1 << 30)
    window.arrive(WINDOW)
    window.consume(WINDOW)
    window.adapt(0, 1, 1 << 24, budget)
    window.grant()
    window.arrive(WINDOW)
    window.consume(WINDOW)

    window.adapt(60, 1, 1 << 24, budget)

    assert window.size == WINDOW
    assert budget.used == 0
    assert window.grant() == 0


@given(st.data(), st.integers(WINDOW, 4 * WINDOW))
def test_every_byte_promised_is_in_one_of_three_places(draw: st.DataObject, size: int) -> None:
    window, budget = ReceiveWindow(size, 0), WindowBudget(4 * WINDOW)
    now = 0.0
    for _ in range(20):
        step = draw.draw(st.sampled_from(["arrive", "consume", "adapt", "grant"]))
        if step == "arrive":
            window.arrive(draw.draw(st.integers(0, window.remaining)))
        elif step == "consume":
            window.consume(draw.draw(st.integers(0, window.buffered)))
        elif step == "adapt":
            now += draw.draw(st.sampled_from([0.0, 0.1, 20.0]))
            window.adapt(now, 0.1, 1 << 24, budget)
        else:
            window.grant()
        assert window.buffered >= 0
        assert window.remaining >= 0
        assert window.consumed >= 0
        assert window.size == size + window.extra
        assert budget.used == window.extra
