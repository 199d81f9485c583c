"""The invariants of the keyed pool, whatever is done to it; see `tests.pool.keyed_machine`."""

from __future__ import annotations

from tests.pool.keyed_machine import KeyedPoolMachine
from tests.pool.test_invariants import SETTINGS

KeyedPoolMachine.TestCase.settings = SETTINGS
TestKeyedPool = KeyedPoolMachine.TestCase
