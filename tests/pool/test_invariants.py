"""The fifteen invariants, whatever is done to the pool; see `tests.pool.machine`."""

from __future__ import annotations

import os

from hypothesis import Phase, settings

from tests.pool.machine import PoolMachine

SETTINGS = settings(
    max_examples=int(os.environ.get("POOL_EXAMPLES", "100")),
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    # Shrinking a failure takes minutes: without it when only the failure counts.
    phases=[p for p in Phase if p is not Phase.shrink or "POOL_EXAMPLES" not in os.environ],
)
PoolMachine.TestCase.settings = SETTINGS
TestPool = PoolMachine.TestCase
