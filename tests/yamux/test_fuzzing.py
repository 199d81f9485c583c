"""Any bytes at all: an error of the peer's, or a valid state, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.yamux.corpus import read_corpus
from tests.yamux.fuzzing import check_script, check_state
from tests.yamux.support import Endpoint

CORPUS = read_corpus()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_script_keeps_the_session_valid(script: bytes) -> None:
    check_script(script)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60)))
def test_any_bytes_keep_the_session_valid(pieces: list[bytes]) -> None:
    end = Endpoint()

    for piece in pieces:
        end.session.receive_data(piece)
        check_state(end.session)

    assert end.broken is None or end.broken.startswith(("protocol error", "the peer went away"))


@pytest.mark.parametrize("line", range(1, len(CORPUS) + 1))
def test_what_fuzzing_found_stays_good(line: int) -> None:
    check_script(CORPUS[line - 1])


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) > 50
