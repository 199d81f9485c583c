"""Chance, and the clocks of the wall, as libraries see them within a simulation."""

from __future__ import annotations

import os
import random
import secrets
import threading
import time
import uuid

import pytest
import trio

from trionet.testing import simulate
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
        assert time.ctime() == time.ctime(EPOCH + 90)
        assert time.strftime("%s") == str(EPOCH + 90)
        assert time.strftime("%Y", time.gmtime(0)) == "1970"

    simulate(main)


def test_sleeping_outside_of_trio_holds_everybody_up() -> None:
    async def main() -> float:
        with trio.move_on_after(5) as scope:
            time.sleep(7)
            await trio.sleep(1)
        assert scope.cancelled_caught
        with pytest.raises(ValueError, match="non-negative"):
            time.sleep(-1)
        return trio.current_time()

    started = time.monotonic()
    assert simulate(main).result == 7
    assert time.monotonic() - started < 5


def test_the_clocks_are_left_alone_if_wanted() -> None:
    async def main() -> float:
        await trio.sleep(3600)
        return time.time()

    assert abs(simulate(main, wall_clock=False).result - time.time()) < 60
