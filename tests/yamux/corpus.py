"""Scripts that fuzzing found, each of which reaches code that no shorter one does.

A module of its own: `fuzz` reads it before anything of trionet is imported, so that what it imports
after that can be made to count the code that is reached.
"""

from __future__ import annotations

from pathlib import Path

# One script a line, in hexadecimal, the shortest first.
CORPUS = Path(__file__).parent / "corpus.txt"


def read_corpus() -> list[bytes]:
    """Return all of them."""
    return [bytes.fromhex(line) for line in CORPUS.read_text().splitlines()]


def write_corpus(scripts: set[bytes]) -> None:
    """Keep these."""
    ordered = sorted(scripts, key=lambda script: (len(script), script))
    CORPUS.write_text("".join(f"{script.hex()}\n" for script in ordered))
