"""The cases S1 to S17 of what went wrong in other implementations, as far as frames show them.

S12 (a send cancelled in mid-frame) and S14 (a slow reader) need tasks: see tests/mux.
"""

from __future__ import annotations

import tracemalloc

import pytest

from tests.yamux.support import (
    ACK,
    DATA,
    FIN,
    RST,
    SYN,
    WINDOW,
    Endpoint,
    Joined,
    data,
    go_away,
    ping,
    update,
)
from trionet._mux.driver import READ_SIZE
from trionet.yamux import Frame, MuxConfig, State, Stream
from trionet.yamux.frames import HEADER_SIZE

PROTOCOL_ERROR = ["GO_AWAY - stream 0 length 1"]


def accept(end: Endpoint) -> Stream:
    stream = end.session.accept()
    assert stream is not None
    return stream


def opened(end: Endpoint, stream_id: int = 1) -> Stream:
    end.feed(update(stream_id, SYN))
    stream = accept(end)
    end.pull()
    return stream


# S1: a peer that does not read what it asks for


def test_s1_pings_are_answered_up_to_a_limit_then_the_session_ends() -> None:
    end = Endpoint(MuxConfig(max_pongs=64))

    end.feed(*(ping(value) for value in range(64)))
    before = end.broken
    end.feed(ping(64))

    assert before is None
    assert end.broken == "protocol error: 64 pings without reading an answer"
    assert [str(frame) for frame in end.pull()] == PROTOCOL_ERROR


def test_s1_a_peer_that_reads_is_not_taken_for_one_that_does_not() -> None:
    """However many pings come in one piece, say after this program was busy for long."""
    end = Endpoint()
    many = READ_SIZE // HEADER_SIZE

    for _ in range(3):
        told = end.told(*(ping(value) for value in range(many)))
        assert told == [f"PING ACK stream 0 length {value}" for value in range(many)]

    assert end.broken is None


def test_s1_answers_owed_to_a_stream_do_not_add_up() -> None:
    end = Endpoint(MuxConfig(keepalive=None))
    streams = [opened(end, stream_id) for stream_id in range(1, 200, 2)]

    for _ in range(130):
        for stream in streams:
            end.feed(data(stream.id, bytes(1000)), data(stream.id, bytes(1000)))
            end.session.read(stream)

    # Half a window was read long ago, and nothing pulled since; each stream owes one update.
    assert [str(frame) for frame in end.pull()] == [
        "PING SYN stream 0 length 1",
    ] + [f"WINDOW_UPDATE - stream {stream.id} length 260000" for stream in streams]


def test_s1_pings_of_ours_that_the_peer_never_answers_do_not_add_up() -> None:
    end = Endpoint()

    for _ in range(5000):
        value = end.session.ping()
        end.told(ping(1 << 31, ACK))

    assert len(end.session._pings) == 1024
    end.feed(ping(value, ACK))
    assert [answered for answered, _ in end.session.answered] == [value]


def test_s1_refusals_not_read_are_bounded_by_the_bucket() -> None:
    end = Endpoint()

    end.feed(*(update(stream_id, SYN) for stream_id in range(1, 4001, 2)))

    assert end.broken is not None
    assert "more resets" in end.broken
    assert len(end.session.output.refused) == 0


def test_s1_streams_reset_before_they_are_answered_leave_nothing_behind() -> None:
    end = Endpoint(MuxConfig(reset_burst=100_000))

    for stream_id in range(1, 20_001, 2):
        end.feed(update(stream_id, SYN))
        accept(end)
        end.feed(update(stream_id, RST))

    assert len(end.session.output.control) == 0
    assert end.session.streams == {}


# S2: a window beyond 32 bits


@pytest.mark.parametrize("delta", [0xFFFFFFFF, 0xFFFFFFFF - WINDOW + 1])
def test_s2_a_window_update_that_overflows_ends_the_session(delta: int) -> None:
    end = Endpoint()
    opened(end)

    assert end.told(update(1, 0, delta)) == PROTOCOL_ERROR

    assert end.broken is not None
    assert "stream 1" in end.broken


def test_s2_the_largest_window_there_is_does_not() -> None:
    end = Endpoint()
    stream = opened(end)

    assert end.told(update(1, 0, 0xFFFFFFFF - WINDOW)) == []

    assert stream.outgoing.credit == 0xFFFFFFFF


# S3: more than the first window with the SYN


def test_s3_too_much_with_a_new_stream_leaves_no_state() -> None:
    end = Endpoint()

    assert end.told(data(1, bytes(WINDOW + 1), SYN)) == PROTOCOL_ERROR

    assert end.session.streams == {}
    assert end.session.inbound == 0


# S4: a length, and no body


@pytest.mark.parametrize("stream_id", [1, 9])
def test_s4_a_huge_length_is_refused_at_the_header(stream_id: int) -> None:
    end = Endpoint()
    opened(end)

    tracemalloc.start()
    told = end.told(Frame(DATA, 0, stream_id, 0xFFFFFFFF))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert told == PROTOCOL_ERROR
    assert peak < 100_000


def test_s4_an_allowed_length_allocates_nothing_either() -> None:
    end = Endpoint()
    opened(end)

    tracemalloc.start()
    end.feed(Frame(DATA, 0, 1, WINDOW))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 100_000
    assert end.broken is None


# S5: flow control is enforced


def test_s5_the_byte_beyond_the_window_ends_the_session() -> None:
    end = Endpoint()
    stream = opened(end)

    assert end.told(data(1, bytes(WINDOW))) == []
    assert end.told(data(1, b"x")) == PROTOCOL_ERROR

    assert stream.unread == WINDOW


# S6: a flood of streams that nobody accepts


def test_s6_streams_beyond_the_backlog_are_reset_and_pings_answered() -> None:
    end = Endpoint()

    told = end.told(*(update(2 * n + 1, SYN) for n in range(300)), ping(5))

    assert told[0] == "PING ACK stream 0 length 5"
    assert told[1:] == [f"WINDOW_UPDATE RST stream {2 * n + 1} length 0" for n in range(256, 300)]
    assert len(end.session.backlog) == 256


def test_s6_accepting_makes_room_in_the_backlog() -> None:
    end = Endpoint(MuxConfig(accept_backlog=1))
    opened(end)

    assert end.told(update(3, SYN)) == []
    assert accept(end).id == 3


def test_s6_streams_beyond_the_limit_are_reset_though_accepted_quickly() -> None:
    end = Endpoint(MuxConfig(max_inbound_streams=2))
    opened(end, 1)
    opened(end, 3)

    assert end.told(update(5, SYN)) == ["WINDOW_UPDATE RST stream 5 length 0"]


# S7: rapid reset


def test_s7_reset_streams_leave_the_backlog_at_once() -> None:
    end = Endpoint()

    pairs = [
        frame for n in range(1000) for frame in (update(2 * n + 1, SYN), update(2 * n + 1, RST))
    ]
    assert end.told(*pairs) == []
    assert end.told(update(2001, SYN)) == []

    assert end.broken is None
    assert accept(end).id == 2001


def test_s7_so_do_those_that_had_ended_before_and_hold_data() -> None:
    end = Endpoint()

    end.feed(data(1, b"never seen", SYN | FIN), update(1, RST))

    assert end.session.accept() is None
    assert end.session.streams == {}


def test_s7_more_resets_than_the_bucket_holds_end_the_session() -> None:
    end = Endpoint(MuxConfig(reset_burst=10, reset_rate=1))

    for n in range(11):
        end.feed(update(2 * n + 1, SYN), update(2 * n + 1, RST))

    assert end.broken is not None
    assert "more resets than 1 a second and 10 at once" in end.broken


def test_s7_the_bucket_fills_again() -> None:
    end = Endpoint(MuxConfig(reset_burst=10, reset_rate=1))

    for n in range(100):
        end.feed(update(2 * n + 1, SYN), update(2 * n + 1, RST))
        end.clock.now += 1

    assert end.broken is None


def test_s7_resets_that_the_peer_provokes_count_as_well() -> None:
    end = Endpoint(MuxConfig(reset_burst=10, reset_rate=1))

    for n in range(11):
        opened(end, 2 * n + 1)
        end.feed(update(2 * n + 1, FIN), data(2 * n + 1, b"late"))
        end.pull()

    assert end.broken is not None


def test_s7_streams_opened_and_ended_at_once_fill_the_backlog_and_no_more() -> None:
    end = Endpoint()

    told = end.told(*(update(2 * n + 1, SYN | FIN) for n in range(300)))

    assert len(told) == 44
    assert len(end.session.streams) == 256


# S8: stream ids


@pytest.mark.parametrize(
    ("frames", "what"),
    [
        ([update(1, SYN), update(1, SYN)], "opened twice"),
        ([update(2, SYN)], "not an id for the peer"),
        ([data(0, b"x", SYN)], "the session itself"),
        ([update(0, 0, 5)], "the session itself"),
        ([update(5, SYN), update(3, SYN), update(3, RST), update(3, SYN)], "an id that was used"),
        ([update(1, SYN), update(1, RST), update(1, SYN)], "an id that was used"),
        ([update(1001, SYN), update(3, SYN)], "or is long past"),
    ],
)
def test_s8_a_wrong_id_ends_the_session(frames: list[Frame], what: str) -> None:
    end = Endpoint()

    assert end.told(*frames) == PROTOCOL_ERROR

    assert end.broken is not None
    assert what in end.broken


def test_s8_ids_skipped_a_moment_ago_may_still_come_once() -> None:
    """As Go sends them when several goroutines open streams at once."""
    end = Endpoint()

    end.feed(*(update(stream_id, SYN) for stream_id in (5, 9, 1, 7, 3, 11)))

    assert end.broken is None
    assert len(end.session.streams) == 6
    assert end.told(update(7, RST), update(7, SYN)) == PROTOCOL_ERROR


def test_s8_a_leap_over_millions_of_ids_costs_little() -> None:
    end = Endpoint()

    end.feed(update(0xFFFFFFFF, SYN))

    assert len(end.session._skipped_ids) == 256
    end.feed(update(0xFFFFFFFF - 512, SYN))
    assert end.broken is None


def test_s8_ids_may_be_used_again_where_that_is_allowed() -> None:
    end = Endpoint(MuxConfig(strict_ids=False))

    end.feed(update(5, SYN), update(3, SYN), update(3, RST), update(3, SYN))

    assert [accept(end).id, accept(end).id] == [5, 3]


def test_s8_a_client_expects_even_ids() -> None:
    end = Endpoint(role="client")

    end.feed(update(2, SYN))
    assert accept(end).id == 2
    end.feed(update(3, SYN))

    assert end.broken is not None


# S9: odd but known


@pytest.mark.parametrize(
    "frame",
    [
        data(7, b"zzz"),
        update(7, 0, 5),
        update(7, RST),
        update(7, FIN),
        update(7, ACK),
        update(1, ACK),
        update(1, 0, 0),
        update(1, 0xFFF0),
        data(1, b""),
        ping(42, ACK),
        ping(42, 0),
    ],
    ids=str,
)
def test_s9_what_go_ignores_is_ignored(frame: Frame) -> None:
    end = Endpoint()
    opened(end)

    assert end.told(frame) == []

    assert end.broken is None


@pytest.mark.parametrize("frame", [Frame(4), Frame(1, SYN, 1, version=1)], ids=str)
def test_s9_an_unknown_version_or_type_ends_the_session(frame: Frame) -> None:
    assert Endpoint().told(frame) == PROTOCOL_ERROR


@pytest.mark.parametrize("frame", [update(1, FIN), data(1, b"late"), data(1, b"", FIN)], ids=str)
def test_s9_going_on_after_fin_resets_the_stream_and_not_the_session(frame: Frame) -> None:
    end = Endpoint()
    stream = opened(end)
    end.feed(data(1, b"all", FIN))

    assert end.told(frame) == ["WINDOW_UPDATE RST stream 1 length 0"]

    # What came before the end stays good.
    assert end.session.read(stream) == b"all"
    assert stream.state is State.CUT
    assert end.session.streams == {}


def test_s9_frames_after_a_reset_are_dropped() -> None:
    end = Endpoint()
    stream = opened(end)

    assert end.told(update(1, RST), data(1, b"late"), update(1, 0, 5), update(1, FIN)) == []

    assert stream.unread == 0
    assert stream.why == "the peer reset it"


def test_s9_a_window_update_on_a_half_closed_stream_counts() -> None:
    end = Endpoint()
    stream = opened(end)
    end.feed(update(1, FIN))

    end.feed(update(1, 0, 100))

    assert stream.outgoing.credit == WINDOW + 100


def test_s9_nothing_is_said_after_a_protocol_error_but_the_code() -> None:
    end = Endpoint()
    end.feed(data(1, bytes(WINDOW // 2), SYN))
    stream = end.session.accept()
    assert stream is not None
    end.session.lend(stream, memoryview(bytes(WINDOW + 1)))
    end.pull()
    end.session.read(stream)

    end.feed(Frame(7))
    # As a sender does that was woken by the end.
    end.session.withdraw(stream)

    assert [str(frame) for frame in end.pull()] == PROTOCOL_ERROR
    assert end.session.silent
    assert not end.session.output.control


@pytest.mark.parametrize("code", [1, 2, 7, 4101])
def test_s9_a_go_away_with_a_code_ends_the_session_without_an_answer(code: int) -> None:
    end = Endpoint()

    assert end.told(go_away(code)) == []

    assert end.session.failure is not None
    assert end.session.failure.code == code


def test_s9_a_normal_go_away_ends_nothing() -> None:
    end = Endpoint()

    assert end.told(go_away(), data(1, b"hi", SYN)) == []

    assert end.session.peer_going_away
    assert end.session.read(accept(end)) == b"hi"


# S10: floods of very little


def test_s10_empty_data_wakes_nobody() -> None:
    end = Endpoint()
    stream = opened(end)
    stream.reader = object()

    end.feed(*(data(1, b"") for _ in range(10_000)))

    assert end.session.readable == []


def test_s10_tiny_data_takes_little_more_than_its_size() -> None:
    end = Endpoint()
    opened(end)
    flood = b"".join(data(1, b"ab").encode() for _ in range(WINDOW // 2))

    tracemalloc.start()
    end.session.receive_data(flood)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert used < 2 * WINDOW


def test_s10_tiny_window_updates_keep_nothing() -> None:
    end = Endpoint()
    stream = opened(end)

    assert end.told(*(update(1, 0, 1) for _ in range(10_000))) == []

    assert stream.outgoing.credit == WINDOW + 10_000


# S11: the carrier ends


@pytest.mark.parametrize("tail", [b"", b"\0\0\0", data(1, b"body").encode()[:14]])
def test_s11_streams_without_fin_know_that_they_were_cut(tail: bytes) -> None:
    end = Endpoint()
    ended, cut = opened(end, 1), opened(end, 3)
    end.feed(data(1, b"all", FIN), data(3, b"some"))

    end.session.receive_data(tail)
    end.session.receive_eof()

    assert end.session.failure is not None
    assert (end.session.read(ended), ended.state.receives) == (b"all", False)
    assert (end.session.read(cut), cut.state.receives) == (b"some", True)


# S13: many streams


def test_s13_ten_thousand_short_streams_leave_empty_tables() -> None:
    joined = Joined()

    for n in range(10_000):
        near = joined.client.open()
        joined.client.put(near, b"%d" % n)
        joined.client.finish(near)
        joined.settle()
        far = joined.server.accept()
        assert far is not None
        assert joined.server.read(far) == b"%d" % n
        joined.server.put(far, b"done")
        joined.server.close(far)
        joined.settle()
        assert joined.client.read(near) == b"done"
        joined.client.close(near)
        joined.settle()

    for session in (joined.client, joined.server):
        assert not session.streams
        assert not session.backlog
        assert not session.tails
        assert not session.lingering
        assert not session.output.control
        assert (session.inbound, session.outbound, session.unacknowledged) == (0, 0, 0)
        assert session.budget.used == 0


def test_s13_the_257th_stream_opens_once_one_was_acknowledged() -> None:
    joined = Joined()
    for _ in range(256):
        joined.client.open()
    joined.settle()
    assert not joined.client.can_open

    joined.server.accept()
    joined.settle()

    assert joined.client.can_open


def test_s13_any_frame_of_the_peers_acknowledges() -> None:
    end = Endpoint(MuxConfig(max_unacknowledged=1), role="client")
    end.session.open()

    end.feed(update(1, FIN))

    assert end.session.can_open


# S15: a close that does not destroy what the peer has not read


def test_s15_a_closed_stream_reads_on_until_the_peer_ends() -> None:
    joined = Joined()
    near = joined.client.open()
    joined.client.put(near, b"request")
    joined.settle()
    far = joined.server.accept()
    assert far is not None
    joined.server.put(far, b"reply")
    joined.server.close(far)
    joined.client.put(near, bytes(WINDOW // 2))
    joined.settle()

    assert joined.client.read(near) == b"reply"
    assert not near.state.receives
    joined.client.close(near)
    joined.settle()
    assert near.state is State.FINISHED
    assert joined.server.streams == {}


def test_s15_what_was_only_lent_is_not_sent_after_a_close() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.put(stream, b"kept")
    end.session.lend(stream, memoryview(b"lent"))

    end.session.close(stream)

    assert [str(frame) for frame in end.pull()] == [
        "DATA - stream 1 length 4",
        "WINDOW_UPDATE FIN stream 1 length 0",
    ]


def test_s15_a_peer_that_sends_on_for_long_is_reset() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.close(stream)
    assert [str(frame) for frame in end.pull()] == ["WINDOW_UPDATE FIN stream 1 length 0"]

    assert end.told(data(1, bytes(WINDOW))) == [f"WINDOW_UPDATE - stream 1 length {WINDOW}"]
    assert end.told(data(1, b"x")) == ["WINDOW_UPDATE RST stream 1 length 0"]
    assert end.session.streams == {}


def test_s15_a_peer_that_does_not_end_is_reset_after_a_while() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.close(stream)
    end.pull()

    end.clock.now = 4.9
    end.session.tick()
    assert end.pull() == []
    # It reads, so it is there; its time starts anew.
    end.feed(update(1, 0, 1000))
    end.clock.now = 9.8
    end.session.tick()
    assert end.pull() == []
    assert end.session.next_timeout == pytest.approx(9.9)
    end.clock.now = 9.9
    end.session.tick()

    assert [str(frame) for frame in end.pull()] == ["WINDOW_UPDATE RST stream 1 length 0"]


def test_s15_the_time_starts_when_the_last_byte_is_sent() -> None:
    end = Endpoint(MuxConfig(keepalive=None))
    stream = opened(end)
    end.session.put(stream, bytes(WINDOW))
    end.pull()
    end.session.put(stream, b"the tail, which has no credit")
    end.session.close(stream)

    end.clock.now = 250
    end.session.tick()
    assert end.pull() == []
    end.feed(update(1, 0, 1000))
    assert len(end.pull()) == 2
    end.clock.now = 254
    end.session.tick()
    assert end.pull() == []
    end.clock.now = 255
    end.session.tick()

    assert len(end.pull()) == 1


def test_s15_a_tail_that_the_peer_never_takes_is_given_up() -> None:
    end = Endpoint(MuxConfig(keepalive=None))
    stream = opened(end)
    end.session.put(stream, bytes(WINDOW + 1))
    end.pull()
    end.session.close(stream)

    assert end.session.next_timeout == 300
    end.clock.now = 300
    end.session.tick()

    assert [str(frame) for frame in end.pull()] == ["WINDOW_UPDATE RST stream 1 length 0"]


# S16: growing windows


def test_s16_what_is_received_and_not_read_grows_nothing() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.round_trip.add(1.0, 0.0)

    end.feed(data(1, bytes(WINDOW)))

    assert end.pull() == []
    assert stream.incoming.size == WINDOW


def test_s16_windows_grow_by_what_is_read_up_to_their_limit() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.round_trip.add(1.0, 0.0)

    for _ in range(40):
        end.feed(data(1, bytes(stream.incoming.remaining)))
        while stream.inbox is not None:
            end.session.read(stream)
        end.pull()

    assert stream.incoming.size == 16 << 20
    assert end.session.budget.used == (16 << 20) - WINDOW


def test_s16_the_budget_bounds_all_windows_together() -> None:
    end = Endpoint(MuxConfig(window_budget=1 << 20))
    streams = [opened(end, 2 * n + 1) for n in range(8)]
    end.session.round_trip.add(1.0, 0.0)

    for _ in range(10):
        for stream in streams:
            end.feed(data(stream.id, bytes(stream.incoming.remaining)))
            while stream.inbox is not None:
                end.session.read(stream)
        end.pull()

    assert sum(stream.incoming.extra for stream in streams) == 1 << 20
    for stream in streams:
        end.session.close(stream)
        end.feed(update(stream.id, FIN))
    end.pull()
    assert end.session.budget.used == 0


def test_s16_what_a_direction_had_grown_is_given_back_at_its_end() -> None:
    """The other may go on for hours, and other streams want to grow."""
    end = Endpoint()
    stream = opened(end)
    end.session.round_trip.add(1.0, 0.0)
    while not stream.incoming.extra:
        end.feed(data(1, bytes(stream.incoming.remaining)))
        while stream.inbox is not None:
            end.session.read(stream)
        end.pull()

    end.feed(data(1, b"the last"), update(1, FIN))
    unread = end.session.budget.used
    end.session.read(stream)

    assert unread == WINDOW
    assert end.session.budget.used == 0
    assert stream.state is State.REMOTE_EOF


def test_s16_so_it_is_where_all_was_read_before_the_end() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.round_trip.add(1.0, 0.0)
    end.feed(data(1, bytes(WINDOW)))
    while stream.inbox is not None:
        end.session.read(stream)
    assert end.session.budget.used == WINDOW

    end.feed(update(1, FIN))

    assert end.session.budget.used == 0


# S17: signs of life


def test_s17_any_byte_is_a_sign_of_life() -> None:
    end = Endpoint()

    for second in range(0, 300, 29):
        end.clock.now = second
        end.session.receive_data(b"\0")
        end.session.tick()

    assert end.broken is None
    assert end.pull() == []


def test_s17_silence_is_met_by_a_ping_and_then_by_the_end() -> None:
    end = Endpoint()

    end.clock.now = end.session.next_timeout
    assert end.clock.now == 30
    end.session.tick()
    assert [str(frame) for frame in end.pull()] == ["PING SYN stream 0 length 1"]
    assert end.session.next_timeout == 50
    end.clock.now = 50
    end.session.tick()

    assert end.broken == "the peer has been silent for 50 seconds"


def test_s17_a_byte_in_answer_is_enough() -> None:
    end = Endpoint()
    end.clock.now = 30
    end.session.tick()
    end.pull()

    end.clock.now = 49
    end.feed(data(7, b""))
    end.clock.now = 50
    end.session.tick()

    assert end.broken is None
    assert end.session.next_timeout == 79


def test_s17_a_ping_goes_before_the_data() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.put(stream, bytes(100_000))

    end.session.ping()

    assert str(end.pull()[0]) == "PING SYN stream 0 length 1"


def test_s17_a_ping_the_carrier_does_not_take_is_no_silence_of_the_peers() -> None:
    end = Endpoint(MuxConfig(write_stall=None))

    end.clock.now = 30
    end.session.tick()
    end.clock.now = 3000
    end.session.tick()

    assert end.broken is None


def test_s17_a_ping_in_what_the_carrier_holds_has_all_its_time_anew() -> None:
    end = Endpoint()
    end.clock.now = 30
    end.session.tick()
    end.pull()

    # Batches behind it are taken late, so the carrier is full, and somebody takes from it.
    for begun in (35, 49, 68):
        end.clock.now = begun
        end.session.sending()
        end.clock.now = begun + 4
        end.session.tick()
        end.session.sent()
    assert end.broken is None
    assert end.session.next_timeout == 92
    end.clock.now = 92
    end.session.tick()

    assert end.broken == "the peer has been silent for 92 seconds"


def test_s17_what_the_carrier_takes_at_once_gives_no_time() -> None:
    end = Endpoint()
    end.clock.now = 30
    end.session.tick()
    end.pull()

    end.clock.now = 45
    end.session.sending()
    end.clock.now = 45.01
    end.session.sent()
    end.clock.now = 50
    end.session.tick()

    assert end.broken == "the peer has been silent for 50 seconds"


def test_s17_while_the_carrier_takes_nothing_its_own_limit_counts() -> None:
    end = Endpoint()
    end.clock.now = 30
    end.session.tick()
    end.pull()
    end.clock.now = 45
    end.session.sending()

    end.clock.now = 50
    end.session.tick()
    before = end.broken
    end.clock.now = 70
    end.session.tick()
    assert end.broken is None
    end.clock.now = 75
    end.session.tick()

    assert before is None
    assert end.broken == "the carrier took nothing for 30 seconds"


def test_s17_a_carrier_that_takes_nothing_is_given_up() -> None:
    end = Endpoint(MuxConfig(keepalive=None))
    end.session.ping()
    end.session.data_to_send()

    assert end.session.sending() == 30
    end.clock.now = 29.9
    end.session.tick()
    assert end.broken is None
    end.clock.now = 30
    end.session.tick()

    assert end.broken == "the carrier took nothing for 30 seconds"
