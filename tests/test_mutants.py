"""The deliberate faults of ``nox -s mutants`` still fit the source they are made in."""

from __future__ import annotations

import ast

import pytest

from tests.mutation import Mutant
from tests.mux import mutants as mux
from tests.pool import mutants as pool
from tests.testing import mutants as testing


@pytest.mark.parametrize("mutant", [*pool.MUTANTS, *mux.MUTANTS, *testing.MUTANTS], ids=str)
def test_a_deliberate_fault_can_be_made(mutant: Mutant) -> None:
    ast.parse(mutant.applied())
