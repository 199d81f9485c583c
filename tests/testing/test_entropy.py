"""Chance, and the clocks of the wall, as libraries see them within a simulation."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
import uuid
from collections.abc import Callable

import pytest
import trio

from trionet.testing import simulate
from trionet.testing.entropy import seeded_entropy
from trionet.testing.wall_clock import EPOCH


async def entropy() -> list[object]:
    return [
        os.urandom(16),
        getattr(os, "getrandom", os.urandom)(8),
        uuid.uuid4(),
        secrets.token_hex(),
        random.SystemRandom().random(),
        random.random(),
        random.sample(range(1000), 5),
    ]


def test_the_seed_decides_every_kind_of_chance() -> None:
    one, again, other = (simulate(entropy, seed=seed).result for seed in (1, 1, 2))

    assert one == again
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_the_seed_decides_where_the_modules_generator_starts_over() -> None:
    async def main(*numbers: int) -> float:
        random.seed(*numbers)
        return random.random()

    assert simulate(main, seed=1).result == simulate(main, seed=1).result
    assert simulate(main, seed=1).result != simulate(main, seed=2).result
    assert simulate(main, 5, seed=1).result == random.Random(5).random()


def test_chance_is_left_alone_if_wanted() -> None:
    one, other = (simulate(entropy, seed=1, entropy=False).result for _ in range(2))

    assert all(a != b for a, b in zip(one, other, strict=True))


def test_all_is_as_before_afterwards_even_after_a_failure() -> None:
    def everything() -> list[object]:
        return [os.urandom, vars(random)["_urandom"], time.time, time.sleep, random.getstate()]

    async def fails() -> None:
        random.random()
        raise KeyError

    before = everything()
    with pytest.raises(KeyError):
        simulate(fails)

    assert everything() == before


def test_other_threads_keep_the_real_clock_and_real_chance() -> None:
    seen: list[tuple[bytes, float]] = []

    async def main() -> None:
        def in_thread() -> None:
            seen.append((os.urandom(16), time.time()))

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()

    real = time.time()
    simulate(main, seed=1)
    simulate(main, seed=1)

    assert seen[0][0] != seen[1][0]
    assert abs(seen[0][1] - real) < 60


def test_a_function_that_is_kept_is_the_real_one_afterwards_and_virtual_in_the_next_run() -> None:
    kept: list[Callable[[], float]] = []

    async def imports() -> None:
        # As a module does that is imported for the first time within a run.
        from time import time as now

        kept.append(now)

    async def calls() -> float:
        return kept[0]()

    simulate(imports)

    assert abs(kept[0]() - time.time()) < 60
    assert simulate(calls).result == EPOCH


def test_a_stand_in_that_was_put_back_by_somebody_else_does_no_harm() -> None:
    patch = pytest.MonkeyPatch()

    async def main() -> float:
        patch.setattr(time, "perf_counter", lambda: 5.0)
        patch.setattr(time, "gmtime", lambda: None)
        return time.perf_counter()

    async def reads() -> list[object]:
        return [time.perf_counter(), time.gmtime()[0]]

    real = time.perf_counter, time.gmtime
    assert simulate(main).result == 5
    # That puts back what it found in the run.
    patch.undo()

    assert abs(time.perf_counter() - real[0]()) < 60
    assert simulate(reads).result == [0, 2030]
    assert (time.perf_counter, time.gmtime) == real


def test_blocks_of_two_threads_may_end_in_any_order() -> None:
    real = os.urandom
    entered, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with seeded_entropy(random.Random(1), random.Random(1)):
            entered.set()
            assert may_end.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with seeded_entropy(random.Random(2), random.Random(2)):
        may_end.set()
        thread.join()
        assert os.urandom(8) == random.Random(2).randbytes(8)

    assert os.urandom is real


def test_urandom_refuses_what_the_real_one_refuses() -> None:
    async def main() -> None:
        os.urandom(-1)

    with pytest.raises(ValueError, match="negative argument"):
        simulate(main)


def test_the_clocks_of_the_wall_show_virtual_time() -> None:
    async def main() -> None:
        await trio.sleep(90.5)

        assert time.monotonic() == time.perf_counter() == trio.current_time() == 90.5
        assert time.time() == EPOCH + 90.5
        assert time.monotonic_ns() == time.perf_counter_ns() == 90_500_000_000
        assert time.time_ns() == EPOCH * 10**9 + 90_500_000_000
        assert time.gmtime()[:6] == (2030, 1, 1, 0, 1, 30)
        assert time.gmtime(0)[0] == 1970
        assert time.localtime() == time.localtime(EPOCH + 90)
        assert time.ctime() == time.asctime() == time.ctime(EPOCH + 90)
        assert time.asctime(time.gmtime(0)) == "Thu Jan  1 00:00:00 1970"
        assert time.strftime("%s") == str(EPOCH + 90)
        assert time.strftime("%Y", time.gmtime(0)) == "1970"

    simulate(main)


def test_sleeping_outside_of_trio_holds_everybody_up() -> None:
    async def main() -> float:
        with trio.move_on_after(5) as scope:
            time.sleep(7)
            await trio.sleep(1)
        assert scope.cancelled_caught
        for seconds in (-1, float("nan")):
            with pytest.raises(ValueError, match="non-negative"):
                time.sleep(seconds)
        return trio.current_time()

    started = time.monotonic()
    assert simulate(main).result == 7
    assert time.monotonic() - started < 5


def test_the_clocks_are_left_alone_if_wanted() -> None:
    async def main() -> float:
        await trio.sleep(3600)
        return time.time()

    assert abs(simulate(main, wall_clock=False).result - time.time()) < 60
