"""What holds of two sessions and the bytes between them, whatever they are made to do.

The numbers are those of the design: 1 integrity, 2 independence of chunking, 3 windows, 4 memory,
5 liveness, 6 what may be said once, 7 empty tables, 8 any bytes (test_fuzzing), 9 encoding
(test_frames, interop), 10 fairness.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from tests.yamux.fuzzing import check_state
from tests.yamux.support import ACK, FIN, RST, SYN, WINDOW, Endpoint, Joined, data, ping, update
from trionet.yamux import Frame, MuxConfig, Session, State, Stream, split_frames

SMALL = MuxConfig(
    max_frame_size=1000,
    max_outbound_streams=6,
    max_unacknowledged=4,
    linger_size=50_000,
    keepalive=None,
)


@dataclass
class End:
    """One end of a stream, and what the model knows about it."""

    session: Session
    stream: Stream
    written: bytearray = field(default_factory=bytearray)
    lent: bytes | None = None
    received: bytearray = field(default_factory=bytearray)
    other: End | None = None


class TwoSessions(RuleBasedStateMachine):
    """A client and a server that a program does anything to, over a channel cut anywhere."""

    ends = Bundle("ends")

    def __init__(self) -> None:
        super().__init__()
        self.joined = Joined(SMALL)
        self.sessions = (self.joined.client, self.joined.server)
        self.log = (bytearray(), bytearray())
        self.by_id: dict[tuple[bool, int], End] = {}
        self.written = 0
        self.reset_ids: set[int] = set()

    def pattern(self, size: int) -> bytes:
        """Bytes that differ from place to place, so that none can stand in for another."""
        start = self.written % 251
        self.written += size
        return (bytes(range(251)) * (size // 251 + 2))[start : start + size]

    def end_of(self, session: Session, stream: Stream) -> End:
        end = End(session, stream)
        other = self.by_id.get((not session.client, stream.id))
        if other is not None:
            end.other, other.other = other, end
        self.by_id[session.client, stream.id] = end
        return end

    @rule(target=ends, client=st.booleans(), weight=st.integers(1, 4))
    def open(self, client: bool, weight: int) -> End:
        session = self.sessions[not client]
        assume(session.can_open)
        return self.end_of(session, session.open(weight))

    @rule(target=ends, client=st.booleans())
    def accept(self, client: bool) -> End:
        session = self.sessions[not client]
        stream = session.accept()
        assume(stream is not None)
        assert stream is not None
        return self.end_of(session, stream)

    @rule(end=ends, size=st.integers(1, 4096))
    def put(self, end: End, size: int) -> None:
        assume(end.stream.state.sends and end.lent is None)
        piece = self.pattern(size)
        end.session.put(end.stream, piece)
        end.written += piece

    @rule(end=ends, size=st.integers(1, 600_000))
    def lend(self, end: End, size: int) -> None:
        assume(end.stream.state.sends and end.stream.lent is None)
        piece = self.pattern(size)
        end.session.lend(end.stream, memoryview(piece))
        end.lent = piece
        end.written += piece

    @rule(end=ends)
    def withdraw(self, end: End) -> None:
        """As a cancelled send does: what was not taken was never sent."""
        if end.stream.lent is not None:
            left = end.session.withdraw(end.stream)
            del end.written[len(end.written) - left :]
        end.lent = None

    @rule(end=ends, limit=st.none() | st.integers(1, 100_000))
    def read(self, end: End, limit: int | None) -> None:
        assume(end.stream.inbox is not None)
        end.received += end.session.read(end.stream, limit)

    @rule(end=ends)
    def finish(self, end: End) -> None:
        if end.stream.lent is None:
            end.session.finish(end.stream)

    @rule(end=ends)
    def close(self, end: End) -> None:
        self.withdraw(end)
        end.session.close(end.stream)

    @rule(end=ends)
    def reset(self, end: End) -> None:
        end.session.reset(end.stream)
        self.reset_ids.add(end.stream.id)

    @rule(client=st.booleans())
    def ping(self, client: bool) -> None:
        self.sessions[not client].ping()

    @rule(client=st.booleans(), budget=st.integers(1, 100_000))
    def pull(self, client: bool, budget: int) -> None:
        said = self.sessions[not client].data_to_send(budget)
        (self.joined.up if client else self.joined.down).extend(said)
        self.log[not client].extend(said)

    @rule(size=st.integers(1, 300_000))
    def deliver(self, size: int) -> None:
        self.joined.deliver(size)

    @rule()
    def settle(self) -> None:
        joined = self.joined
        while joined.up or joined.down or any(session.has_output for session in self.sessions):
            self.pull(True, 100_000)
            self.pull(False, 100_000)
            joined.deliver()

    @rule(seconds=st.sampled_from([0.01, 1, 6]))
    def wait(self, seconds: float) -> None:
        self.joined.clock.now += seconds
        for session in self.sessions:
            session.tick()

    @invariant()
    def sessions_are_valid(self) -> None:
        for session in self.sessions:
            assert session.failure is None, session.failure
            check_state(session)

    @invariant()
    def what_is_received_was_sent(self) -> None:  # 1
        for end in self.by_id.values():
            if end.other is None:
                continue
            sent = end.other.written
            assert bytes(end.received) == bytes(sent[: len(end.received)])
            whole = end.stream.state in {State.REMOTE_EOF, State.FINISHED, State.CUT}
            if whole and end.stream.inbox is None and not end.stream.closed:
                assert len(end.received) == len(sent)

    @precondition(lambda self: not self.joined.up and not self.joined.down)
    @invariant()
    def credit_is_conserved(self) -> None:  # 3
        for end in self.by_id.values():
            other = end.other
            if other is None or not end.stream.state.sends or not other.stream.state.receives:
                continue
            assert end.stream.outgoing.credit == other.stream.incoming.remaining

    @invariant()
    def nothing_is_said_twice(self) -> None:  # 6
        for log in self.log:
            frames, rest = split_frames(bytes(log))
            assert rest == b""
            flags: Counter[tuple[int, int]] = Counter()
            for frame in frames:
                for flag in (1, 2, 4, 8):
                    if frame.flags & flag and frame.type <= 1:
                        flags[frame.stream_id, flag] += 1
                if frame.type <= 1 and not frame.flags & 8:
                    assert not flags[frame.stream_id, 8], "nothing follows a reset"
                if frame.type == 0:
                    assert not flags[frame.stream_id, 4], "no data follows a FIN"
            assert set(flags.values()) <= {1}
            # Each of ours starts with SYN.
            opener = 1 if log is self.log[0] else 0
            begun: set[int] = set()
            for frame in frames:
                if frame.type <= 1 and frame.stream_id % 2 == opener:
                    assert frame.flags & 1 or frame.stream_id in begun, frame
                    begun.add(frame.stream_id)

    def frames(self, client: bool) -> list[Frame]:
        """Everything one side has said."""
        return split_frames(bytes(self.log[not client]))[0]

    def every_question_has_one_answer(self) -> None:  # 6
        for asker in (True, False):
            asked, answers = self.frames(asker), self.frames(not asker)
            pings = [frame.length for frame in asked if frame.type == 2 and frame.flags & SYN]
            assert [f.length for f in answers if f.type == 2 and f.flags & ACK] == pings
            acknowledged = Counter(f.stream_id for f in answers if f.type <= 1 and f.flags & ACK)
            accepted = {i for client, i in self.by_id if client != asker and i % 2 == asker}
            for stream_id in accepted - self.reset_ids:
                assert acknowledged[stream_id] == 1

    def teardown(self) -> None:  # 5 and 7
        self.settle()
        self.every_question_has_one_answer()
        for end in list(self.by_id.values()):
            # Whoever reads and writes to the end gets there.
            while end.stream.pending and end.other is not None and not end.other.stream.closed:
                before = end.stream.pending
                while end.other.stream.inbox is not None:
                    end.other.received += end.other.session.read(end.other.stream)
                self.settle()
                self.what_is_received_was_sent()
                assert end.stream.pending < before
        for end in list(self.by_id.values()):
            self.close(end)
        for session in self.sessions:
            session.refuse()
        self.settle()
        for _ in range(2):
            self.wait(301)
            self.settle()
        for session in self.sessions:
            assert not session.streams
            assert not session.lingering
            assert not session.tails
            assert session.budget.used == 0
            assert (session.inbound, session.outbound, session.unacknowledged) == (0, 0, 0)


TwoSessions.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTwoSessions = TwoSessions.TestCase


# What a peer may say that ends a stream at most, of three streams that it opens.
SAID = st.one_of(
    st.builds(
        data, st.sampled_from([1, 3, 5]), st.binary(max_size=2000), st.sampled_from([0, 0, 0, FIN])
    ),
    st.builds(
        update,
        st.sampled_from([1, 3, 5, 7]),
        st.sampled_from([0, ACK, FIN, RST]),
        st.integers(0, 5000),
    ),
    st.builds(ping, st.integers(0, 99), st.sampled_from([SYN, ACK])),
)


@given(st.lists(SAID, max_size=20), st.data())
@settings(deadline=None)
def test_2_output_and_state_do_not_depend_on_the_cuts(
    said: list[Frame], draw: st.DataObject
) -> None:
    opening = [data(1, b"early", SYN), update(3, SYN, 1000), data(5, b"", SYN)]
    raw = b"".join(frame.encode() for frame in opening + said)
    whole, cut = Endpoint(), Endpoint()

    whole.session.receive_data(raw)
    cuts = sorted(draw.draw(st.sets(st.integers(1, len(raw) - 1), max_size=30)))
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        cut.session.receive_data(raw[start:stop])

    assert [*map(str, whole.pull())] == [*map(str, cut.pull())]
    assert (whole.broken, sorted(whole.session.streams)) == (
        cut.broken,
        sorted(cut.session.streams),
    )
    while (stream := whole.session.accept()) is not None:
        other = cut.session.accept()
        assert other is not None
        assert (stream.id, stream.state, stream.outgoing.credit) == (
            other.id,
            other.state,
            other.outgoing.credit,
        )
        assert unread(whole, stream) == unread(cut, other)
    assert cut.session.accept() is None


def unread(end: Endpoint, stream: Stream) -> bytes:
    found = b""
    while stream.inbox is not None:
        found += end.session.read(stream, 777)
    return found


@given(st.lists(st.integers(1, 60_000), min_size=2, max_size=12), st.integers(1, 100_000))
@settings(max_examples=50, deadline=None)
def test_10_streams_with_data_are_served_alike(weights: list[int], budget: int) -> None:
    weights = [1 + weight % 3 for weight in weights]
    end = Endpoint(role="client")
    streams = [end.session.open(weight) for weight in weights]
    for stream in streams:
        end.session.put(stream, bytes(WINDOW))
    end.session.data_to_send(1)

    for _ in range(8):
        end.session.data_to_send(budget)
        if any(not stream.pending for stream in streams):
            break
        turns = [stream.sent / stream.weight for stream in streams]
        # One turn, and the frame under way, which may be twice that for the very first.
        assert max(turns) - min(turns) <= 16 * 1024 + 32 * 1024


@pytest.mark.parametrize("role", ["client", "server"])
def test_5_reading_never_waits_for_pulling(role: str) -> None:
    end = Endpoint(role=role)  # type: ignore[arg-type]
    first = 1 if role == "server" else 2
    end.feed(*(data(first + 2 * n, bytes(1000), SYN) for n in range(200)))

    read = 0
    while (stream := end.session.accept()) is not None:
        read += len(end.session.read(stream))

    assert read == 200_000


def test_4_what_is_owed_is_bounded_by_the_streams_alive() -> None:
    end = Endpoint(MuxConfig(max_inbound_streams=10, reset_burst=10**6))

    for n in range(5000):
        end.feed(data(2 * n + 1, b"x", SYN))
        stream = end.session.accept()
        if stream is not None:
            end.session.read(stream)
            end.session.put(stream, b"answer")
        end.feed(update(max(1, 2 * n - 9), RST))

    output = end.session.output
    assert len(output.control) <= 10
    assert len(output.ring) <= 10
    assert len(output.refused) <= 4096
