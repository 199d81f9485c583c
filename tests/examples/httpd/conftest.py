"""A folder to serve."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Past what is kept in memory, so that it is sent from the file.
LARGE = bytes(range(256)) * 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a few files, and one beside it that must never be served."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "index.html").write_bytes(b"<h1>front</h1>")
    (folder / "sub" / "index.html").write_bytes(b"<h1>sub</h1>")
    (folder / "a.txt").write_bytes(b"0123456789")
    (folder / "nothing.txt").write_bytes(b"")
    (folder / "large.bin").write_bytes(LARGE)
    (folder / "with space & more.txt").write_bytes(b"space")
    (folder / ".hidden").write_bytes(b"secret")
    (folder / ".well-known").mkdir()
    (folder / ".well-known" / "security.txt").write_bytes(b"contact")
    (tmp_path / "secret.txt").write_bytes(b"secret")
    (tmp_path / "root-evil").mkdir()
    (tmp_path / "root-evil" / "a.txt").write_bytes(b"secret")
    (folder / "inside.txt").symlink_to("a.txt")
    (folder / "outside.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "sibling").symlink_to(tmp_path / "root-evil")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    # A whole second, so that Last-Modified tells all there is.
    os.utime(folder / "a.txt", (1_700_000_000, 1_700_000_000))
    return folder
