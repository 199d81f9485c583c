"""Frames: twelve bytes of header, and the cut in any place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.yamux.support import ACK, DATA, FIN, PING, SYN, Endpoint, data, ping, update
from trionet.yamux import Frame, split_frames

headers = st.builds(
    Frame,
    type=st.integers(1, 255),
    flags=st.integers(0, 0xFFFF),
    stream_id=st.integers(0, 0xFFFFFFFF),
    length=st.integers(0, 0xFFFFFFFF),
    body=st.just(b""),
    version=st.integers(0, 255),
)
bodies = st.binary(max_size=40).map(lambda body: data(1, body))


@given(st.lists(headers | bodies))
def test_what_is_encoded_is_decoded(frames: list[Frame]) -> None:
    assert split_frames(b"".join(frame.encode() for frame in frames)) == (frames, b"")


def test_the_header_has_the_layout_of_the_specification() -> None:
    frame = Frame(PING, SYN | ACK, 0x01020304, 0x05060708)

    assert frame.encode() == bytes([0, 2, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8])


def test_a_frame_prints_what_it_is() -> None:
    assert str(data(3, b"ab", SYN | FIN)) == "DATA SYN|FIN stream 3 length 2"
    assert str(Frame(9)) == "type 9 - stream 0 length 0"


@pytest.mark.parametrize("cut", range(29))
def test_a_frame_is_understood_wherever_it_is_cut(cut: int) -> None:
    whole = data(1, b"hello", SYN).encode() + update(1, FIN).encode()
    end = Endpoint()

    end.session.receive_data(whole[:cut])
    end.session.receive_data(whole[cut:])

    stream = end.session.accept()
    assert stream is not None
    assert end.session.read(stream) == b"hello"
    assert not stream.state.receives
    assert end.broken is None


@pytest.mark.parametrize("cut", range(1, 17))
def test_end_of_file_inside_a_frame_is_told(cut: int) -> None:
    end = Endpoint()

    end.session.receive_data(data(1, b"hello", SYN).encode()[:cut])
    end.session.receive_eof()

    where = "a header" if cut < 12 else "a body"
    assert end.broken is not None
    assert f"inside {where}" in end.broken


def test_bodies_are_passed_on_before_they_are_whole() -> None:
    end = Endpoint()

    end.session.receive_data(Frame(DATA, SYN, 1, 100).encode() + b"first")

    stream = end.session.accept()
    assert stream is not None
    assert end.session.read(stream) == b"first"


def test_a_pong_repeats_the_ping() -> None:
    assert Endpoint().told(ping(0xFFFFFFFF)) == ["PING ACK stream 0 length 4294967295"]
