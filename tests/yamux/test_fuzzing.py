"""Any bytes at all: an error of the peer's, or a valid state, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.yamux.fuzzing import check_script, check_state
from tests.yamux.support import Endpoint

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.bin"))


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


@pytest.mark.parametrize("entry", CORPUS, ids=lambda entry: entry.stem)
def test_what_fuzzing_found_stays_good(entry: Path) -> None:
    check_script(entry.read_bytes())


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) > 50
