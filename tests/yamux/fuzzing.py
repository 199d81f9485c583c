"""What must hold for any bytes a peer may send: used by the tests and by ``nox -s fuzz``.

The input is a script. Its first byte chooses role and limits; then each step takes a byte that says
what happens next: raw bytes come in, a frame with plausible fields comes in, or the program does
something of its own. So mutation finds deep states, and any script at all is valid.
"""

from __future__ import annotations

from tests.yamux.support import Clock
from trionet.yamux import Frame, MuxConfig, Session, State, Stream, split_frames

CONFIGS = (
    MuxConfig(),
    MuxConfig(
        accept_backlog=2, max_inbound_streams=3, max_pongs=2, reset_burst=5, strict_ids=False
    ),
    MuxConfig(window=300_000, max_window=400_000, window_budget=150_000, linger_size=1000),
    MuxConfig(max_unacknowledged=1, max_outbound_streams=2, max_frame_size=7, keepalive=None),
)
FLAGS = (0, 0, 0, 1, 1, 2, 4, 8, 3, 5, 9, 12, 0xFFF0, 15)
LENGTHS = (0, 1, 2, 1000, 131072, 262144, 262145, 1 << 24, (1 << 24) + 1, (1 << 32) - 1)


class Script:
    """Bytes, taken from the front; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    @property
    def over(self) -> bool:
        return self.at >= len(self.data)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]


def check_script(data: bytes) -> Session:
    """Play ``data`` to a session, and assert after each step what must always hold."""
    script = Script(data)
    choice = script.byte()
    clock = Clock()
    session = Session(
        "client" if choice & 4 else "server", CONFIGS[choice % len(CONFIGS)], clock=clock
    )
    streams: list[Stream] = []
    said = bytearray()
    while not script.over:
        _step(script, session, clock, streams, said)
        check_state(session)
    _check_end(session, said)
    return session


def _step(
    script: Script, session: Session, clock: Clock, streams: list[Stream], said: bytearray
) -> None:
    what = script.byte() % 16
    if what < 7:
        session.receive_data(_frame(script).encode())
    elif what == 7:
        session.receive_data(script.take(script.byte()))
    elif what == 8:
        # A header alone; what follows is its body, whatever it is.
        session.receive_data(_frame(script).encode()[:12])
    elif what == 9:
        said += session.data_to_send(1000 * script.byte() + 1)
    elif what == 10:
        clock.now += script.byte() / 4
        session.tick()
        assert session.next_timeout > clock.now
    elif session.failure is None and not session.closing:
        _act(what, script, session, streams)
    elif what == 12:
        # What came before the end is still to be had.
        accepted = session.accept()
        while accepted is not None and accepted.inbox is not None:
            session.read(accepted)


def _act(what: int, script: Script, session: Session, streams: list[Stream]) -> None:
    if what == 11:
        if session.can_open:
            streams.append(session.open(1 + script.byte() % 3))
        return
    if what == 12:
        accepted = session.accept()
        if accepted is not None:
            streams.append(accepted)
        return
    if what == 13 and not streams:
        (session.ping, session.go_away, session.shut)[script.byte() % 3]()
        return
    if not streams:
        return
    stream = streams[script.byte() % len(streams)]
    how = script.byte() % 6
    if what == 13 and stream.inbox is not None and not stream.closed:
        session.read(stream, script.byte() * 300 or None)
    elif what == 14 and stream.state.sends:
        session.put(stream, bytes(script.byte() * 50))
    elif how == 0:
        session.finish(stream)
    elif how == 1:
        session.close(stream)
    elif how == 2:
        session.reset(stream)


def _frame(script: Script) -> Frame:
    pick = script.byte()
    kind = pick % 5 if pick < 250 else pick
    flags = FLAGS[script.byte() % len(FLAGS)]
    stream_id = script.byte() % 12
    length = LENGTHS[script.byte() % len(LENGTHS)]
    body = bytes(min(length, 300_000)) if kind == 0 else b""
    return Frame(kind, flags, stream_id, length, body)


def check_state(session: Session) -> None:
    """Assert what holds for a session at any time."""
    config, output = session.config, session.output
    assert len(output.pongs) <= config.max_pongs
    assert len(output.refused) <= config.reset_burst + 10_000
    assert session.inbound <= config.max_inbound_streams
    assert session.outbound <= config.max_outbound_streams
    assert 0 <= session.unacknowledged <= config.max_unacknowledged
    assert len(session.backlog) <= config.accept_backlog
    assert session.inbound + session.outbound == len(session.streams)
    assert not (session.silent and session.has_output)
    # Whatever is owed is owed to a stream that is counted.
    live = set(session.streams.values())
    assert set(output.control) <= live
    assert set(output.ring) <= live
    assert session.failure is not None or set(session.backlog.values()) <= live
    assert output._bulk is None or output._bulk in live
    assert sum(stream.incoming.extra for stream in live) == session.budget.used
    for stream in live:
        window = stream.incoming
        assert 0 <= stream.outgoing.credit < 1 << 32
        assert window.remaining >= 0
        assert window.consumed >= 0
        assert stream.unread <= window.buffered <= window.size <= config.max_window
        assert stream.in_ring == (stream in output.ring)
        if stream.state is State.RESET:
            assert not stream.pending
            assert not stream.unread
        if stream.due and stream not in output.control:
            assert stream.pending, stream
    unread = sum(stream.unread for stream in live)
    assert unread <= config.max_receive_memory


def _check_end(session: Session, said: bytearray) -> None:
    """Assert that what was said is well-formed, and that a session that broke is silent."""
    for _ in range(100_000):
        if not session.has_output:
            break
        said += session.data_to_send()
    assert not session.has_output
    frames, rest = split_frames(bytes(said))
    assert rest == b""
    own = 1 if session.client else 0
    finished: set[tuple[int, int]] = set()
    for number, frame in enumerate(frames):
        assert frame.version == 0
        assert frame.type <= 3
        if frame.type == 3 and frame.length:
            assert number == len(frames) - 1, "a go-away with a code is the last frame"
        if frame.stream_id and session.config.strict_ids:
            for flag in (1, 2, 4, 8):
                if frame.flags & flag:
                    assert (frame.stream_id, flag) not in finished, frame
                    finished.add((frame.stream_id, flag))
            assert not frame.flags & 1 or frame.stream_id % 2 == own
    if session.failure is not None:
        assert session.silent
        assert session.data_to_send() == b""
