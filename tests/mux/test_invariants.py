"""The invariants of the multiplexer, whatever is done to it; see `tests.mux.plex_machine`."""

from __future__ import annotations

import os

from hypothesis import Phase, settings

from tests.mux.plex_machine import PlexMachine

PlexMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("PLEX_EXAMPLES", "100")),
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    # Shrinking a failure takes minutes: without it when only the failure counts.
    phases=[p for p in Phase if p is not Phase.shrink or "PLEX_EXAMPLES" not in os.environ],
)
TestMultiplexer = PlexMachine.TestCase
