"""Coverage-guided fuzzing of the protocol: ``python -m tests.yamux.fuzz``, or ``nox -s fuzz``.

libFuzzer, by way of atheris, mutates scripts (see `fuzzing`) for ten minutes, or for as long as
``-max_total_time=`` says. What reaches new code is added to ``corpus.txt``, one script a line in
hexadecimal, and played again by every test run; what fails is left beside it as ``crash-*``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.yamux.corpus import CORPUS, read_corpus, write_corpus

# A script of kilobytes finds nothing that one of a few hundred bytes does not.
MAX_LENGTH = 512
SECONDS = 600


def fuzz(arguments: list[str]) -> None:
    """Run libFuzzer; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["trionet.yamux"]):
        from tests.yamux.fuzzing import check_script

    def one(data: bytes) -> None:
        check_script(data)

    # To merge a corpus libFuzzer runs itself anew, by a shell and this name.
    atheris.Setup([f"{sys.executable} -m tests.yamux.fuzz", *arguments], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz in a child, then add to the corpus what reaches code that it does not."""
    if os.environ.get("TRIONET_FUZZING"):
        fuzz(sys.argv[1:])
        return 0
    scripts = read_corpus()
    with tempfile.TemporaryDirectory() as found, tempfile.TemporaryDirectory() as known:
        for number, script in enumerate(scripts):
            (Path(known) / f"{number:04}").write_bytes(script)
        limits = [f"-max_len={MAX_LENGTH}", f"-max_total_time={SECONDS}"]
        result = _child([*limits, *sys.argv[1:], found, known])
        if result == 0:
            result = _child(["-merge=1", f"-max_len={MAX_LENGTH}", known, found])
            kept = {path.read_bytes() for path in Path(known).iterdir()}
            write_corpus(kept)
            print(f"{len(kept) - len(scripts)} new scripts in {CORPUS}")
    return result


def _child(arguments: list[str]) -> int:
    environment = {**os.environ, "TRIONET_FUZZING": "1"}
    command = [sys.executable, "-m", "tests.yamux.fuzz", *arguments]
    artifacts = f"-artifact_prefix={CORPUS.parent}/"
    return os.spawnve(os.P_WAIT, sys.executable, [*command, artifacts], environment)


if __name__ == "__main__":
    raise SystemExit(main())
