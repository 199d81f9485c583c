# ruff: noqa: E501 - pieces of source are shown as they are
"""Would the invariants notice? One deliberate fault at a time, and a machine has to find it.

Not collected with the other tests, since each fault costs seconds: run this file by name. Every
mutant is a copy of the tree with one piece of the pool's source replaced, in which
`test_invariants.py` must fail, or `test_keyed_invariants.py` for the invariants of that one alone.
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
        "dial without looking for a free slot",
        "_pool/supply.py",
        "return self.limit - self.size",
        "return self.limit",
    ),
    Mutant(
        2,
        "free the slot of a connection without having closed it",
        "_pool/attempt.py",
        "    if aclose is not None:\n        await aclose()",
        "    await trio.lowlevel.checkpoint()",
    ),
    Mutant(
        3,
        "shelve a connection although somebody waits",
        "_pool/lender.py",
        "        elif self.waiting:\n            task",
        "        elif len(self.waiting) > 1:\n            task",
    ),
    Mutant(
        4,
        "forget the waiters when a dial of an expired generation ends",
        "_pool/supply.py",
        "            self._dial_succeeded(made.unwrap(), generation)\n        self._owner.grow()",
        "            self._dial_succeeded(made.unwrap(), generation)",
    ),
    Mutant(
        4,
        "dial in a pause",
        "_pool/supply.py",
        "if self.retry.resting or self.closed or self._nursery is None",
        "if self.closed or self._nursery is None",
    ),
    Mutant(
        4,
        "dial for every waiter although connections are about",
        "_pool/lender.py",
        "allowed = 1 if supply.live else max(1, unserved)",
        "allowed = max(1, unserved)",
    ),
    Mutant(
        5,
        "keep among what is lent what was given back",
        "_pool/lender.py",
        "        if self.lent.pop(entry.key, None) is None:\n            # Closed",
        "        if self.lent.get(entry.key) is None:\n            # Closed",
    ),
    Mutant(
        6,
        "take back what was given back already",
        "_pool/lender.py",
        "        if key in self.supply.live or key in self.supply.closing:\n            raise",
        "        if key in self.idle:\n            return self.lent.setdefault(key, self.idle[key])\n"
        "        if key in self.supply.live or key in self.supply.closing:\n            raise",
    ),
    Mutant(
        7,
        "serve the youngest waiter first",
        "_pool/waiters.py",
        "next(iter(self.tasks))",
        "next(reversed(self.tasks))",
    ),
    Mutant(
        7,
        "let a newcomer overtake",
        "_pool/waiters.py",
        "        if first:\n            self._advance(task, want, self.tasks)",
        "        if first or len(self.tasks) == 2:\n"
        "            self.tasks.move_to_end(task, last=False)",
    ),
    Mutant(
        8,
        "lend what has been idle longest",
        "_pool/supply.py",
        "entry = next(reversed(self.idle.values()))",
        "entry = next(iter(self.idle.values()))",
    ),
    Mutant(
        9,
        "keep a connection after an exception in its block",
        "_pool/lease.py",
        "            self._origin.throw_away(entry)",
        "            self._origin.give_back(entry)",
    ),
    Mutant(
        9,
        "lend a connection that is known to be dead",
        "_pool/supply.py",
        "            if entry.doubtful and entry.is_dead():",
        "            if entry.doubtful and not entry.key:",
    ),
    Mutant(
        9,
        "keep connections of an expired generation when they come back",
        "_pool/supply.py",
        "            else:\n                entry.doom(reason)",
        '            else:\n                entry.doom("") if reason == "expired" else entry.doom(reason)',
    ),
    Mutant(
        9,
        "keep what a dial brings that began before everything expired",
        "_pool/supply.py",
        "generation == self._generation and self.surplus() < 0:",
        "generation <= self._generation and self.surplus() < 0:",
    ),
    Mutant(
        10,
        "lose what a dial brings when it is surplus",
        "_pool/supply.py",
        '            self.retire(entry, "surplus" if',
        '            self._free_slot() if self.live.pop(entry.key) else (entry, "surplus" if',
    ),
    Mutant(
        11,
        "wait on although cancelled",
        "_pool/waiters.py",
        "            want = self._remove(task)\n            self.gave_up += 1",
        "            if len(self.tasks) > 1:\n                return Abort.FAILED\n"
        "            want = self._remove(task)\n            self.gave_up += 1",
    ),
    Mutant(
        12,
        "lend after the end",
        "_pool/supply.py",
        '        if self.closed:\n            raise PoolClosedError("this pool is closed")\n        if',
        "        if",
    ),
    Mutant(
        12,
        "let waiters wait when the pool is closed",
        "_pool/lender.py",
        '        self.queue.fail_all(lambda: PoolClosedError("this pool was closed"))',
        "",
    ),
    Mutant(
        12,
        "forget what is still lent at the end",
        "_pool/lifecycle.py",
        "            lender.report_lent()\n            lender.supply.seize()\n",
        "            lender.report_lent()\n            lender.supply.lent.clear()\n",
    ),
    Mutant(
        13,
        "do not count what is lent to waiters",
        "_pool/lender.py",
        "        self.lent[entry.key] = entry\n        self.acquired += 1\n        entry.holder = lease",
        "        self.lent[entry.key] = entry\n        entry.holder = lease",
    ),
    Mutant(
        13,
        "count those that gave up for their timeout twice",
        "_pool/lender.py",
        "        self.timed_out += 1",
        "        self.timed_out += 2",
    ),
    Mutant(
        14,
        "let connections lie idle for ever",
        "_pool/supply.py",
        "        timeout = self.settings.idle_timeout\n        while",
        "        timeout = 2 * (self.settings.idle_timeout or math.inf)\n        while",
    ),
    Mutant(
        14,
        "close idle connections early",
        "_pool/supply.py",
        "            if oldest.idle_since + timeout > now:",
        "            if oldest.idle_since + timeout / 4 > now:",
    ),
    Mutant(
        14,
        "let connections live for longer than their lifetime",
        "_pool/supply.py",
        "expires_at = trio.current_time() + lifetime * part",
        "expires_at = trio.current_time() + lifetime / part * 1.2",
    ),
    Mutant(
        14,
        "close below min_size for idleness",
        "_pool/supply.py",
        "while timeout is not None and self.idle and len(self.live) > self.floor:",
        "while timeout is not None and self.idle:",
    ),
    Mutant(
        15,
        "do not dial when a slot becomes free",
        "_pool/supply.py",
        "        if not disowned:\n            self._owner.grow()\n\n    def _take_slot",
        "\n    def _take_slot",
    ),
    Mutant(
        15,
        "never end a pause",
        "_pool/supply.py",
        "            retry.resting = False\n            if not self.dials",
        "            retry.resume_at = math.inf\n            if not self.dials",
    ),
    Mutant(
        16,
        "dial without looking for a slot among all keys",
        "_pool/group.py",
        "                if budget.taken < budget.limit:\n                    hungry",
        "                if budget.taken <= budget.limit:\n                    hungry",
    ),
    Mutant(
        16,
        "give back a shared slot before its connection is closed",
        "_pool/supply.py",
        "        if self.budget is not None:\n            self.budget.closing += 1",
        "        if self.budget is not None:\n            self.budget.taken -= 1\n"
        "            self.budget.closing += 1",
    ),
    Mutant(
        17,
        "close nothing to make room",
        "_pool/group.py",
        "        if oldest is None:\n            return False",
        "        return False",
    ),
    Mutant(
        17,
        "leave a slot that became free at one key to that key",
        "_pool/group.py",
        "            for _, hungry in claims:\n",
        "            for _, hungry in claims:\n                if hungry is not lender:\n"
        "                    continue\n",
    ),
    Mutant(
        18,
        "keep for its key what comes free while somebody else has waited longer",
        "_pool/group.py",
        "                coming -= 1\n                if coming < 0:\n                    return True",
        "                coming -= 1",
    ),
    Mutant(
        18,
        "give room to the youngest claim first",
        "_pool/group.py",
        "heapq.heappush(claims, (first.arrived, number, lender, line))",
        "heapq.heappush(claims, (-first.arrived, number, lender, line))",
    ),
    Mutant(
        19,
        "close what was used last to make room",
        "_pool/group.py",
        "        oldest = min(",
        "        oldest = max(",
    ),
    Mutant(
        19,
        "make room for a claim that the slot being freed already serves",
        "_pool/group.py",
        "        coming = budget.closing\n        with closing(self._claims()) as claims:\n"
        "            for _, hungry",
        "        coming = 0\n        with closing(self._claims()) as claims:\n"
        "            for _, hungry",
    ),
    Mutant(
        20,
        "remember every key",
        "_pool/group.py",
        "        if supply.size or supply.retry.resting or lender.waiting:\n            return",
        "        return",
    ),
    Mutant(
        20,
        "forget what was done for a key with the key",
        "_pool/group.py",
        "        self.past.update({name: getattr(now, name) for name in COUNTS})",
        "",
    ),
)

# Those from here on are the keyed pool's alone.
FIRST_KEYED = 16


def test_every_invariant_has_a_mutant() -> None:
    assert {mutant.invariant for mutant in MUTANTS} == set(range(1, 21))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_machine_notices(mutant: Mutant, tmp_path: Path) -> None:
    name = "invariants" if mutant.invariant < FIRST_KEYED else "keyed_invariants"
    require_noticed(
        mutant,
        tmp_path,
        f"tests/pool/test_{name}.py",
        room="pool",
        examples=("POOL_EXAMPLES", 2000),
        seconds=580,
    )
