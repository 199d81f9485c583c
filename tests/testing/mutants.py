# ruff: noqa: E501 - pieces of source are shown as they are
"""Would the invariants notice? One deliberate fault at a time, and one test has to find it.

Not collected with the other tests: run this file by name. Every mutant is a copy of the tree with
one piece of source replaced, in which the test of its invariant in `test_invariants.py` must fail.
The ninth invariant is no business of that file, the twelfth is this one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutation import Mutant, require_noticed

pytestmark = pytest.mark.timeout(200)


MUTANTS = (
    Mutant(
        1,
        "hand on what comes early before what is missing",
        "_streams/inbox.py",
        "        if sequence != self.expected:\n",
        "        if sequence < self.expected:\n",
    ),
    Mutant(
        1,
        "take again what came already",
        "_streams/inbox.py",
        "            if sequence > self.expected:\n                self.parked[sequence] = segment\n            return",
        "            if sequence > self.expected:\n                self.parked[sequence] = segment\n                return",
    ),
    Mutant(
        2,
        "send a lost FIN never again",
        "_streams/wire.py",
        '"DATA", "FIN", "STOP"})',
        '"DATA", "STOP"})',
    ),
    Mutant(
        2,
        "do not ask for a window whose opening was lost",
        "_streams/wire.py",
        "            self._schedule(*last)\n        self._probe()",
        "            self._schedule(*last)",
    ),
    Mutant(
        2,
        "do not say that a closed window is open",
        "_streams/inbox.py",
        "        self._end.room_opened()\n",
        "",
    ),
    Mutant(
        3,
        "draw from the machine's own randomness",
        "testing/world.py",
        'random.Random(f"{self.seed}/{name}")',
        "random.Random()",
    ),
    Mutant(
        4,
        "send whether or not the receiver has room",
        "_streams/wire.py",
        "        while self._unsent and self._edge > self.next and not self.broken:\n"
        "            payload = self._cut(min(self._edge - self.next, self.line.link.segment_size))",
        "        while self._unsent and not self.broken:\n"
        "            payload = self._cut(self.line.link.segment_size)",
    ),
    Mutant(
        4,
        "count what is on its way as gone from the send buffer",
        "_streams/wire.py",
        "            room = self.capacity - self._unsent - self._unacked\n",
        "            room = self.capacity - self._unsent\n",
    ),
    Mutant(
        5,
        "arrive a little early",
        "_streams/line.py",
        "        arrival += link.latency + extra",
        "        arrival += link.latency * 0.9 + extra",
    ),
    Mutant(
        5,
        "let what is sent at once pass side by side",
        "_streams/line.py",
        "            self._free_at = arrival\n",
        "",
    ),
    Mutant(
        6,
        "tell an error for ever",
        "testing/tcp.py",
        "        code, self.error = self.error, 0\n",
        "        code = self.error\n",
    ),
    Mutant(
        6,
        "lose with a reset what was received",
        "_streams/inbox.py",
        "        self.broken = True\n        self.parked.clear()",
        "        self.broken = True\n        self._drop()\n        self.parked.clear()",
    ),
    Mutant(
        7,
        "wait for room although a part is taken, which a cancel then forgets",
        "testing/stream_sockets.py",
        "            sent = end.put(view, 0, stop)\n            if sent or not stop:",
        "            sent = end.put(view, 0, stop)\n            if sent == stop:",
    ),
    Mutant(
        7,
        "hand bytes to a receiver that has gone",
        "_streams/inbox.py",
        "            self._chunks.append(data)\n            self.unread += len(data)\n            return\n        self._receiver = None",
        "            if not self._receive_busy:\n                self.received += len(data)\n                return\n"
        "            self._chunks.append(data)\n            self.unread += len(data)\n            return\n        self._receiver = None",
    ),
    Mutant(
        8,
        "leave what was to be sent again on the heap",
        "_streams/wire.py",
        "        if number is not None:\n            self.line.timeline.cancel(number)",
        "        if number is not None:\n            pass",
    ),
    Mutant(
        8,
        "keep the port of a connection that is over",
        "testing/stack.py",
        "        if self._held is not None:\n            self._stack.unbind(self._held)",
        "        if self._held is not None:",
    ),
    Mutant(
        8,
        "never be over",
        "_streams/wire.py",
        "            if inbox.send_closed and not ended and self._fin == 3:",
        "            if inbox.send_closed and ended and self._fin == 3:",
    ),
    Mutant(
        10,
        "say nothing of having closed",
        "_streams/wire.py",
        '            self._emit("STOP")\n\n    def room_opened',
        "            pass\n\n    def room_opened",
    ),
    Mutant(
        10,
        "wait for a third of the buffer to receive",
        "_streams/inbox.py",
        "        if limit is None or len(data) <= limit:",
        "        if limit is None:",
    ),
    Mutant(
        11,
        "leave a sender waiting whose stream is closed",
        "_streams/wire.py",
        '        self.send_closed = True\n        self._fail_sender(trio.ClosedResourceError("this stream was closed by another task"))\n        if not',
        "        self.send_closed = True\n        if not",
    ),
    Mutant(
        11,
        "let a receive of nothing pass",
        "testing/sockets.py",
        "    number = index(cast(",
        "    number = int(cast(",
    ),
)


def test_every_invariant_has_a_mutant() -> None:
    assert {mutant.invariant for mutant in MUTANTS} == set(range(1, 12)) - {9}


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_invariant_notices(mutant: Mutant, tmp_path: Path) -> None:
    require_noticed(
        mutant,
        tmp_path,
        *("-k", f"test_{mutant.invariant}_", "tests/testing/test_invariants.py"),
        room="testing",
        examples=("VNET_EXAMPLES", 500),
        seconds=180,
    )
