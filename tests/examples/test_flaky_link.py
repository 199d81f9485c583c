"""The race in the example is real, is found, comes again, and is gone when it is fixed."""

from __future__ import annotations

import pytest

from examples import flaky_link
from examples.flaky_link import CarefulDirectory, Directory, call_around, hunt
from trionet.testing import Link, simulate, simulated


def seeds_that_go_wrong() -> list[int]:
    return [seed for seed in range(60) if simulate(call_around, Directory, seed=seed).result]


def test_some_seeds_find_the_race_and_others_do_not_and_few_without_losses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = seeds_that_go_wrong()
    assert 4 <= len(wrong) <= 56

    monkeypatch.setattr(flaky_link, "LINK", Link(latency=0.02, jitter=0.03))
    assert len(seeds_that_go_wrong()) < len(wrong)


def test_the_first_find_is_replayed_to_the_last_event() -> None:
    first = hunt(Directory, range(200))
    assert first is not None

    again = simulate(call_around, Directory, seed=first.seed)

    assert again.digest == first.digest
    assert again.result == first.result
    assert [str(event) for event in again.trace] == [str(event) for event in first.trace]


@simulated(seeds=200)
async def test_the_careful_client_never_gives_a_wrong_number() -> None:
    assert await call_around(CarefulDirectory) == []


def test_the_program_tells_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    flaky_link.main()

    said = capsys.readouterr().out
    assert said.startswith("Seed ")
    assert ": loss b'" in said
    assert said.endswith("The same again: True\nThe careful client, 200 seeds: no mistake\n")


@pytest.mark.seeds(20)
async def test_the_plugin_runs_the_careful_client_too(net_seed: int) -> None:
    assert await call_around(CarefulDirectory) == []
