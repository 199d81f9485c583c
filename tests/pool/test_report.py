"""What a pool says of itself: errors, leaks, and tasks in each other's way."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys

import pytest
import trio

from tests.pool.peer import FakePeer, hold
from trionet import (
    Backoff,
    LeaseError,
    Pool,
    PoolClosedError,
    PoolConnectError,
    PoolError,
    PoolFullError,
    PoolTimeoutError,
)


async def test_a_timeout_says_what_is_going_on(autojump_clock: trio.testing.MockClock) -> None:
    peer = FakePeer(connect_time=0.1)
    async with Pool(peer.connect, max_size=2, backoff=Backoff(attempts=None, jitter=0)) as pool:
        connection = await pool.get()
        peer.fail = OSError("refused")
        start = trio.current_time()
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.get(timeout=2)

        assert trio.current_time() - start == 2
        assert caught.value.__cause__ is peer.fail
        assert isinstance(caught.value, trio.TooSlowError)
        text = (
            "within 2 s: 1 of 2 slots taken (0 idle, 1 lent, 0 connecting, "
            "0 checked, 0 reset, 0 closing), 0 waiting"
        )
        assert text in str(caught.value)
        assert "refused" in str(caught.value)
        assert pool.statistics().timed_out == 1
        assert pool.statistics().cancelled == 0
        pool.put(connection)
        pool.put(await pool.get(timeout=0))


async def test_a_task_that_waits_for_what_it_holds_itself_is_warned_of(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        for _ in range(2):
            async with pool.acquire():
                with pytest.raises(PoolTimeoutError):
                    await pool.get(timeout=1)

    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "none will ever be given back" in caplog.text


async def test_tasks_that_hold_one_each_and_wait_for_another_are_warned_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with Pool(FakePeer().connect, max_size=3) as pool, trio.open_nursery() as nursery:

        async def nest(delay: float) -> None:
            async with pool.acquire():
                await trio.sleep(delay)
                with contextlib.suppress(PoolTimeoutError):
                    pool.put(await pool.get(timeout=10))

        for delay in (1, 2, 3):
            nursery.start_soon(nest, delay)
        await trio.sleep(2.5)
        # The third holds one, and may well give it back.
        assert not caplog.records

    assert [record.getMessage()[:32] for record in caplog.records] == [
        "all 3 connections are lent to ta"
    ]


async def test_a_busy_pool_is_not_mistaken_for_a_deadlock(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hold, pool, 1)

    assert not caplog.records


async def test_what_was_never_given_back_is_reported_with_where_it_was_acquired(
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pool, "report_leaks", True)
    async with Pool(FakePeer().connect, max_size=2) as pool:
        await pool.get()
        connection = await pool.get()
        pool.put(connection)
        assert pool.get_nowait() is connection
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.get(timeout=1)
        await pool.drain(0)

    assert len(caplog.records) == 2
    assert caplog.text.count("test_what_was_never_given_back") == 2
    assert len(caught.value.__notes__) == 2


async def test_an_end_that_waits_for_a_leak_says_so_before_it_waits(
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pool, "report_leaks", True)
    reported: list[tuple[float, int]] = []
    async with trio.open_nursery() as nursery:
        async with Pool(FakePeer().connect, max_size=2) as pool:

            async def find_it() -> None:
                await trio.sleep(7)
                reported.append((trio.current_time(), len(caplog.records)))
                pool.put(forgotten)

            forgotten = await pool.get()
            async with pool.acquire():
                pass
            nursery.start_soon(find_it)
        assert trio.current_time() == 7

    assert reported == [(7, 1)]
    assert "the end of the pool waits for it" in caplog.text
    assert "forgotten = await pool.get()" in caplog.text


async def test_a_block_that_fails_reports_what_it_leaves_lent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "report_leaks", True)
    with pytest.raises(KeyError):
        async with Pool(FakePeer().connect, max_size=2) as pool:
            await pool.get()
            raise KeyError

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "was never given back; it was acquired at" in caplog.text
    assert "await pool.get()" in caplog.text


async def test_nothing_is_reported_unless_asked_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pool, "report_leaks", False)
    async with Pool(FakePeer().connect, max_size=2) as pool:
        await pool.get()
        await pool.drain(0)

    assert not caplog.records


@pytest.mark.parametrize(("options", "reported"), [([], "False"), (["-X", "dev"], "True")])
def test_leaks_are_reported_in_development_mode(options: list[str], reported: str) -> None:
    program = "import trionet; print(trionet.Pool.report_leaks)"
    run = subprocess.run(
        [sys.executable, *options, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONDEVMODE": ""},
    )

    assert run.stdout.strip() == reported


def test_the_errors_are_what_their_handlers_expect() -> None:
    for error in (PoolClosedError, PoolFullError, PoolTimeoutError, PoolConnectError):
        assert issubclass(error, PoolError)
    assert issubclass(LeaseError, RuntimeError)
    assert not issubclass(LeaseError, PoolError)
