"""One stream's table of states, and its two buffers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet.yamux import State, Stream
from trionet.yamux.stream import TRANSITIONS, Event


def make() -> Stream:
    return Stream(1, 1, 262144, 0.0)


def test_every_state_can_be_reached_and_the_last_ones_are_left_by_nothing() -> None:
    assert set(TRANSITIONS.values()) | {State.OPEN} == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.RESET, State.CUT}


@pytest.mark.parametrize(("state", "event"), TRANSITIONS)
def test_no_event_gives_a_direction_back(state: State, event: Event) -> None:
    target = TRANSITIONS[state, event]

    assert (target.sends, target.receives) <= (state.sends, state.receives)
    assert target.over == (not target.sends and not target.receives)


def test_a_second_fin_is_in_no_row() -> None:
    stream = make()
    assert stream.move(Event.FIN_IN)

    assert not stream.move(Event.FIN_IN)

    assert stream.state is State.REMOTE_EOF


@given(st.lists(st.binary(min_size=1, max_size=5000)), st.data())
def test_what_arrives_is_read_in_order_whatever_the_limits(
    pieces: list[bytes], draw: st.DataObject
) -> None:
    stream = make()
    for piece in pieces:
        stream.arrive(piece)

    found = b""
    while stream.inbox is not None:
        limit = draw.draw(st.none() | st.integers(1, 6000))
        read = stream.read(limit)
        assert type(read) is bytes
        assert read
        assert limit is None or len(read) <= limit
        found += read

    assert found == b"".join(pieces)


@given(st.lists(st.binary(min_size=1, max_size=3000)), st.binary(max_size=9000), st.data())
def test_what_is_put_and_lent_is_taken_in_order(
    pieces: list[bytes], lent: bytes, draw: st.DataObject
) -> None:
    stream = make()
    for piece in pieces:
        stream.put(piece)
    if lent:
        stream.lent = memoryview(lent)
    expected = b"".join(pieces) + lent
    assert stream.pending == len(expected)

    parts: list[bytes | bytearray | memoryview] = []
    while stream.pending:
        stream.take(draw.draw(st.integers(1, stream.pending)), parts)

    assert b"".join(parts) == expected
    assert stream.sent == len(expected)


def test_small_pieces_are_kept_as_one() -> None:
    stream = make()

    for _ in range(100_000):
        stream.arrive(b"ab")

    # 35 bytes of object each would have made 3.5 MB of 200 kB.
    assert stream.inbox is not None
    assert len(stream.inbox) <= 4
    assert stream.drop_input() == 200_000
    assert stream.inbox is None


def test_a_buffer_may_be_reused_once_it_was_put() -> None:
    stream = make()
    buffer = bytearray(b"abc")

    stream.put(buffer)
    buffer[:] = b"xyz"

    parts: list[bytes | bytearray | memoryview] = []
    stream.take(3, parts)
    assert b"".join(parts) == b"abc"
