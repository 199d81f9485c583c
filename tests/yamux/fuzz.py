"""Coverage-guided fuzzing of the protocol: ``python -m tests.yamux.fuzz``, or ``nox -s fuzz``.

libFuzzer, by way of atheris, mutates scripts (see `fuzzing`) for ten minutes, or for as long as
``-max_total_time=`` says. What reaches new code is added to ``tests/yamux/corpus``, one file each,
and played again by every test run; what fails is left beside it as ``crash-*``.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

# A script of kilobytes finds nothing that one of a few hundred bytes does not.
MAX_LENGTH = 512
SECONDS = 600

CORPUS = Path(__file__).parent / "corpus"


def fuzz(arguments: list[str]) -> None:
    """Run libFuzzer on the corpus; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["trionet.yamux"]):
        from tests.yamux.fuzzing import check_script

    def one(data: bytes) -> None:
        check_script(data)

    # To merge a corpus libFuzzer runs itself anew, by a shell and this name.
    atheris.Setup([f"{sys.executable} -m tests.yamux.fuzz", *arguments], one)
    atheris.Fuzz()


def keep(found: Path) -> int:
    """Copy what libFuzzer kept into the corpus; return how many files were new."""
    known = {path.name for path in CORPUS.glob("*.bin")}
    new = 0
    for path in found.iterdir():
        data = path.read_bytes()
        name = f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
        if name not in known:
            (CORPUS / name).write_bytes(data)
            new += 1
    return new


def main() -> int:
    """Fuzz in a child, then shrink what it found to what the corpus lacks."""
    CORPUS.mkdir(exist_ok=True)
    if os.environ.get("TRIONET_FUZZING"):
        fuzz(sys.argv[1:])
        return 0
    with tempfile.TemporaryDirectory() as found, tempfile.TemporaryDirectory() as merged:
        limits = [f"-max_len={MAX_LENGTH}", f"-max_total_time={SECONDS}"]
        result = _child([*limits, *sys.argv[1:], found, str(CORPUS)])
        if result == 0:
            result = _child(["-merge=1", f"-max_len={MAX_LENGTH}", merged, str(CORPUS), found])
            print(f"{keep(Path(merged))} new entries in {CORPUS}")
    return result


def _child(arguments: list[str]) -> int:
    environment = {**os.environ, "TRIONET_FUZZING": "1"}
    command = [sys.executable, "-m", "tests.yamux.fuzz", *arguments]
    artifacts = f"-artifact_prefix={CORPUS.parent}/"
    return os.spawnve(os.P_WAIT, sys.executable, [*command, artifacts], environment)


if __name__ == "__main__":
    raise SystemExit(main())
