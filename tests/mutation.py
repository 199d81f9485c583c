"""Deliberate faults: a copy of the tree with one piece of source replaced, and who notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Mutant", "require_noticed")

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
      invariant: the one it breaks.
      fault: what it is.
      file: where, below ``trionet/``.
      old, new: what stands there, and what is to stand there instead.
    """

    invariant: int
    fault: str
    file: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.fault}"

    def applied(self) -> str:
        """Return the faulty source of its file."""
        text = (ROOT / "trionet" / self.file).read_text()
        assert text.count(self.old) == 1, f"{self.file} has changed: change this mutant, too"
        return text.replace(self.old, self.new)


def require_noticed(
    mutant: Mutant,
    folder: Path,
    *arguments: str,
    room: str,
    examples: tuple[str, int],
    seconds: int,
) -> None:
    """Run pytest in a faulty copy of the tree, and require that a test fails there.

    Args:
      folder: an empty one, for the copy.
      arguments: what pytest is to run.
      room: the folder of tests that goes with it, below ``tests/``.
      examples: the variable that says how hard the machine looks, and how hard it is to.
      seconds: how long it may look.
    """
    shutil.copytree(ROOT / "trionet", folder / "trionet")
    shutil.copytree(ROOT / "tests" / room, folder / "tests" / room)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "trionet" / mutant.file).write_text(mutant.applied())
    variable, number = examples

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *arguments],
        cwd=folder,
        env={**os.environ, variable: str(number), "PYTEST_TIMEOUT": str(seconds - 20)},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )

    assert run.returncode == 1, f"nobody noticed\n{run.stdout}"
    # It has to fail for what it found, not for a slip in the replacement.
    assert "NameError" not in run.stdout, run.stdout
    assert "SyntaxError" not in run.stdout, run.stdout
