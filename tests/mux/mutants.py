# ruff: noqa: E501 - pieces of source are shown as they are
"""Would the multiplexer's machine notice? One deliberate fault at a time, and it has to find it.

Not collected with the other tests, since each fault costs seconds: run this file by name. Every
mutant is a copy of the tree with one piece of source replaced, in which `test_invariants.py` must
fail; the numbers are those of `tests.mux.plex_machine`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation import Mutant, require_noticed

# A mutant that is found late, or not at all, takes its time.
pytestmark = pytest.mark.timeout(600)


MUTANTS = (
    Mutant(
        1,
        "take over more than there is room for",
        "_mux/multiplexer.py",
        "room = max(0, fleet.supply.limit - fleet.supply.size)",
        "room = max(1, fleet.supply.limit - fleet.supply.size)",
    ),
    Mutant(
        1,
        "dial for all who wait, free slot or not",
        "_mux/fleet.py",
        "return max(0, min(wanted - dialling, room))",
        "return max(0, wanted - dialling)",
    ),
    Mutant(
        2,
        "lend a send half that is lent",
        "_mux/lending.py",
        "writable = duplex.writer is None and not duplex.ended\n        best",
        "writable = not duplex.ended\n        best",
    ),
    Mutant(
        2,
        "keep on a list of free halves what was lent whole",
        "_mux/lending.py",
        "        self.receive_free.pop(entry.key, None)\n",
        "        self.receive_free.get(entry.key)\n",
    ),
    Mutant(
        3,
        "shelve a whole connection although somebody waits",
        "_mux/lending.py",
        "if half._wants != BOTH or self.everyone or entry.detour",
        "if half._wants != BOTH or entry.detour",
    ),
    Mutant(
        3,
        "go on keeping a half for somebody who was cancelled",
        "_mux/lending.py",
        "            self._release(duplex)\n            self._settle(duplex)\n\n    # For the fleet",
        "            self._release(duplex)\n\n    # For the fleet",
    ),
    Mutant(
        4,
        "give a half that is kept to somebody younger",
        "_mux/lending.py",
        "best.number < duplex.claim.number",
        "best.number != duplex.claim.number",
    ),
    Mutant(
        4,
        "lend a whole connection to the youngest",
        "_mux/lending.py",
        "return one if one.number < other.number else other",
        "return one if one.number > other.number else other",
    ),
    Mutant(
        4,
        "put who was turned back behind those who came later",
        "_mux/lending.py",
        "queue.join(task, loan, first=first)",
        "queue.join(task, loan)",
    ),
    Mutant(
        5,
        "wait on although cancelled",
        "_pool/waiters.py",
        "            want = self._remove(task)\n            self.gave_up += 1",
        "            if len(self.tasks) > 1:\n                return Abort.FAILED\n"
        "            want = self._remove(task)\n            self.gave_up += 1",
    ),
    Mutant(
        6,
        "keep a connection after an exception in its block",
        "_mux/loan.py",
        "            self._lender.throw_away(half)",
        "            self._lender.give_back(half)",
    ),
    Mutant(
        6,
        "keep a connection after a send that was cancelled midway",
        "_mux/halves.py",
        "                broken = isinstance(exc, trio.BrokenResourceError | OSError)\n                self._keeper.harm(",
        "                broken = isinstance(exc, trio.BrokenResourceError | OSError)\n                broken and self._keeper.harm(",
    ),
    Mutant(
        6,
        "lend what has gone on its way",
        "_mux/lending.py",
        "if lent and not duplex.out and not (duplex.ended and half._wants & WRITE):",
        "if half._wants:",
    ),
    Mutant(
        6,
        "lend to a writer what its peer has ended",
        "_mux/lending.py",
        "        if not duplex.looks_ended():\n            return True\n        self._settle(duplex)",
        "        if not duplex.hung_up:\n            return True\n        self._settle(duplex)",
    ),
    Mutant(
        7,
        "heal nothing",
        "_mux/fleet.py",
        "missing = self.strength - size\n",
        "missing = 0\n",
    ),
    Mutant(
        7,
        "be content with less after each loss",
        "_mux/fleet.py",
        "        self.lost += 1\n",
        "        self.lost += 1\n        self.strength = self.size\n",
    ),
    Mutant(
        7,
        "dial in a pause",
        "_pool/supply.py",
        "if self.retry.resting or self.closed or self._nursery is None",
        "if self.closed or self._nursery is None",
    ),
    Mutant(
        7,
        "never grow",
        "_mux/fleet.py",
        "        if scale_after is not None:\n            now",
        "        if scale_after is None:\n            scale_after = 0\n            now",
    ),
    Mutant(
        8,
        "do not dial when a slot becomes free",
        "_pool/supply.py",
        "        if not disowned:\n            self._owner.grow()\n\n    def _take_slot",
        "\n    def _take_slot",
    ),
    Mutant(
        9,
        "let waiters wait when all is over",
        "_mux/fleet.py",
        '        self.usage.fail_waiters(lambda: PoolClosedError("this multiplexer was closed"))\n',
        "",
    ),
    Mutant(
        9,
        "forget what somebody still uses after it was taken out",
        "_mux/lending.py",
        "        if duplex.harmed:\n            self._cut(duplex)\n        else:",
        "        if not duplex.harmed:",
    ),
    Mutant(
        10,
        "count those that gave up for their timeout twice",
        "_mux/lending.py",
        "        self.timed_out += 1",
        "        self.timed_out += 2",
    ),
    Mutant(
        10,
        "count what was lost on its way as lent",
        "_mux/lending.py",
        "        self.acquired -= 1\n",
        "",
    ),
)


def test_every_invariant_has_a_mutant() -> None:
    assert {mutant.invariant for mutant in MUTANTS} == set(range(1, 11))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_machine_notices(mutant: Mutant, tmp_path: Path) -> None:
    require_noticed(
        mutant,
        tmp_path,
        "tests/mux/test_invariants.py",
        room="mux",
        examples=("PLEX_EXAMPLES", 1000),
        seconds=580,
    )
