"""The two private names of trio's, and what they are good for."""

from __future__ import annotations

import random

import pytest
import trio
import trio._core._run

from trionet.testing import scheduler, simulate
from trionet.testing.scheduler import GENERATOR, SWITCH, seeded_scheduler, why_unseeded


async def order_of_eight() -> list[int]:
    """Return in which order eight tasks run that become runnable together, four times over."""
    order: list[int] = []

    async def step(number: int) -> None:
        for _ in range(4):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(step, number)
    return order


def ordered_by(seed: int) -> list[int]:
    with seeded_scheduler(random.Random(seed)) as seeded:
        assert seeded
        return trio.run(order_of_eight)


def test_this_trio_has_both_names() -> None:
    """If this fails, trio has changed: seeds decide no order until `scheduler.py` follows it."""
    assert why_unseeded() is None


def test_this_trio_shuffles_by_them() -> None:
    """If this fails, trio has the names and makes another use of them: see `scheduler.py`."""
    orders = {seed: ordered_by(seed) for seed in range(10)}

    assert all(ordered_by(seed) == order for seed, order in orders.items())
    assert len({tuple(order) for order in orders.values()}) == 10


def test_trios_own_generator_and_switch_are_put_back() -> None:
    before = getattr(trio._core._run, GENERATOR).getstate(), getattr(trio._core._run, SWITCH)

    ordered_by(1)

    assert before == (
        getattr(trio._core._run, GENERATOR).getstate(),
        getattr(trio._core._run, SWITCH),
    )


def test_the_callers_generator_is_not_drawn_from() -> None:
    generator = random.Random(5)
    with seeded_scheduler(generator):
        trio.run(order_of_eight)

    assert generator.getstate() == random.Random(5).getstate()


@pytest.mark.parametrize("constant", ["GENERATOR", "SWITCH"])
def test_a_trio_without_one_of_the_names_is_told_by_that_name(
    constant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The names are not deleted, since trio needs them; others are looked for.
    monkeypatch.setattr(scheduler, constant, "gone")

    why = why_unseeded()

    assert why is not None
    assert trio.__version__ in why
    assert "trio._core._run.gone (found None)" in why


def test_a_name_that_has_become_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "SWITCH", "current_task")

    why = why_unseeded()

    assert why is not None
    assert "no bool trio._core._run.current_task" in why
    with seeded_scheduler(random.Random(1)) as seeded:
        assert not seeded


def test_without_them_a_simulation_runs_unseeded_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "GENERATOR", "gone")

    with pytest.warns(
        RuntimeWarning, match=r"no Random trio\._core\._run\.gone .* goes on without"
    ):
        run = simulate(order_of_eight, seed=3)

    assert not run.seeded
    assert sorted(run.result) == sorted([*range(8)] * 4)


def test_with_them_a_simulation_is_seeded() -> None:
    assert simulate(order_of_eight, seed=3).seeded
