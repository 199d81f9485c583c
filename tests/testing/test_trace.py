"""The trace: what it keeps, what it forgets, and what its digest tells apart."""

from __future__ import annotations

import pytest

import trionet.testing.trace as module
from trionet.testing import Endpoint, Event, Segment, Trace

A = Endpoint("a", "10.0.0.1", 40000)
B = Endpoint("b", "fd00::2", 80)


def data(payload: bytes, sequence: int = 1) -> Segment:
    return Segment("tcp", "DATA", A, B, 1, 0, sequence, 1, 65536, payload)


def test_an_event_has_everything_of_its_segment() -> None:
    trace = Trace()

    trace.record(0.5, "dropped", data(b"xyz"), "partition")

    assert list(trace) == [
        Event(0.5, "dropped", "tcp", "DATA", A, B, 1, 0, 1, 1, 65536, b"xyz", 0, "partition")
    ]
    assert str(trace[0]) == (
        "    0.500000 dropped tcp#1 DATA a(10.0.0.1:40000) > b([fd00::2]:80) "
        "seq=1 ack=1 3 bytes: partition"
    )


def test_a_fault_is_an_event_without_a_segment() -> None:
    trace = Trace()

    trace.fault(2.0, "partition of a and b")

    assert trace[0].what == "fault"
    assert str(trace[0]) == "    2.000000 fault partition of a and b"


def test_the_tail_is_the_last_events_or_all_of_them() -> None:
    trace = Trace()
    for number in range(3):
        trace.record(float(number), "sent", data(b""))

    assert [event.time for event in trace.tail(2)] == [1, 2]
    assert [event.time for event in trace.tail(9)] == [0, 1, 2]
    assert trace.tail(0) == []
    assert [event.time for event in trace[1:]] == [1, 2]
    with pytest.raises(ValueError, match="-1"):
        trace.tail(-1)


@pytest.mark.parametrize(
    ("time", "what", "segment", "same"),
    [
        (1.0, "sent", data(b"abc"), True),
        (1.0, "sent", data(b"xyz"), True),
        (1.0000000000000002, "sent", data(b"abc"), False),
        (1.0, "delivered", data(b"abc"), False),
        (1.0, "sent", data(b"abcd"), False),
        (1.0, "sent", data(b"abc", sequence=2), False),
    ],
)
def test_the_digest_covers_all_but_the_bytes_of_a_payload(
    time: float, what: str, segment: Segment, same: bool
) -> None:
    trace, other = Trace(), Trace()
    trace.record(1.0, "sent", data(b"abc"))

    other.record(time, what, segment)

    assert (trace.digest() == other.digest()) is same


def test_what_is_forgotten_counts_and_stays_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, short = Trace(), Trace()
    for number in range(50):
        whole.record(float(number), "sent", data(b""))

    monkeypatch.setattr(module, "EVENT_LIMIT", 10)
    for number in range(50):
        short.record(float(number), "sent", data(b""))

    assert len(short) <= 10
    assert short.forgotten == 50 - len(short)
    assert short.digest() == whole.digest()


def test_payloads_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAYLOAD_LIMIT", 100)
    trace = Trace()

    for number in range(50):
        trace.record(float(number), "sent", data(b"x" * 30))

    assert len(trace) <= 3
    assert trace[-1].time == 49
