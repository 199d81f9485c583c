"""How a session ends."""

from __future__ import annotations

from tests.yamux.support import ACK, SYN, WINDOW, Endpoint, data, go_away, ping, update
from trionet.yamux import Frame, MuxConfig, Stream

GOODBYE = "GO_AWAY - stream 0 length 0"


def opened(end: Endpoint) -> Stream:
    end.feed(update(1, SYN))
    stream = end.session.accept()
    assert stream is not None
    end.pull()
    return stream


def test_the_last_word_waits_for_what_was_sent_before() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.put(stream, bytes(WINDOW))
    end.pull()
    end.session.put(stream, b"no credit")

    end.session.shut()

    assert end.pull() == []
    assert end.told(update(1, 0, 100)) == [
        "DATA - stream 1 length 9",
        "WINDOW_UPDATE FIN stream 1 length 0",
        GOODBYE,
    ]


def test_a_session_that_closes_refuses_new_streams() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.put(stream, bytes(WINDOW + 1))
    end.pull()

    end.session.shut()

    assert end.told(data(3, b"late", SYN)) == ["WINDOW_UPDATE RST stream 3 length 0"]


def test_after_the_last_word_nothing_is_said_whatever_comes() -> None:
    end = Endpoint()
    stream = opened(end)
    end.session.shut()
    assert [str(frame) for frame in end.pull()][-1] == GOODBYE

    end.feed(ping(1), update(3, SYN), update(stream.id, 0, 5), data(stream.id, bytes(200_000)))

    assert end.broken is None
    assert end.session.silent
    assert not end.session.has_output
    assert end.session.data_to_send() == b""


def test_a_session_that_asks_whether_it_was_heard_answers_the_same_question() -> None:
    """Two that close at once would both wait in vain."""
    end = Endpoint()
    end.session.shut(barrier=True)
    assert [str(frame) for frame in end.pull()] == ["PING SYN stream 0 length 1", GOODBYE]

    assert end.told(ping(7), go_away(), update(1, SYN)) == ["PING ACK stream 0 length 7"]
    before = end.session.heard_out
    assert end.told(ping(1, ACK)) == []

    assert (before, end.session.heard_out) == (False, True)
    assert end.told(Frame(7)) == []
    assert end.session.silent


def test_a_tail_that_nobody_takes_is_given_up_though_the_session_closes() -> None:
    end = Endpoint(MuxConfig(keepalive=None, tail_timeout=3))
    stream = opened(end)
    end.session.put(stream, bytes(WINDOW + 1))
    end.pull()
    end.session.close(stream)

    end.clock.now = 2
    end.session.shut()
    assert end.pull() == []
    end.clock.now = end.session.next_timeout
    end.session.tick()

    assert end.clock.now == 3
    assert [str(frame) for frame in end.pull()] == [
        "WINDOW_UPDATE RST stream 1 length 0",
        GOODBYE,
    ]
