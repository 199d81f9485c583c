"""What tests of processes start, and where they find it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.server.programs import Program

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    """A list for the programs a test starts; what is in it at the end is killed."""
    started: list[Program] = []
    yield started
    for program in started:
        program.kill()


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a Unix socket may be."""
    return str(tmp_path / "socket")
