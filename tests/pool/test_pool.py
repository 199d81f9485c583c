"""Lending: who gets what, when, and what misuse is told."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from tests.pool.peer import FakeConnection, FakePeer
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


async def hold(pool: Pool[FakeConnection], seconds: float, log: list[Any] | None = None) -> None:
    """Acquire, and hold for some time."""
    async with pool.acquire() as connection:
        if log is not None:
            log.append((trio.current_time(), connection.number))
        await trio.sleep(seconds)


# The block


async def test_a_normal_end_gives_back_and_the_next_one_gets_the_same() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        async with pool.acquire() as first:
            pass
        async with pool.acquire() as second:
            pass

        assert second is first
        assert pool.statistics().idle == 1


@pytest.mark.parametrize("leave", ["exception", "cancel"])
async def test_what_an_exception_or_a_cancel_left_half_done_is_closed(leave: str) -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        with trio.CancelScope() as scope:
            try:
                async with pool.acquire() as first:
                    if leave == "cancel":
                        scope.cancel()
                    await trio.lowlevel.checkpoint()
                    raise KeyError
            except KeyError:
                assert leave == "exception"
        await wait_all_tasks_blocked()

        assert first.closed
        assert pool.statistics().reasons == {"discarded": 1}
        async with pool.acquire() as second:
            assert second is not first


async def test_leaving_the_block_is_no_checkpoint() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        with trio.CancelScope() as scope:
            async with pool.acquire():
                scope.cancel()
            left = True

        assert left
        assert pool.statistics().idle == 1


async def test_acquiring_is_a_checkpoint_whether_it_waits_or_not() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        for _ in range(2):
            with assert_checkpoints():
                pool.put(await pool.get())
        with trio.CancelScope() as scope:
            scope.cancel()
            await pool.get()

        assert scope.cancelled_caught
        assert pool.statistics().idle == 1


async def test_an_exception_in_the_pool_s_block_leaves_as_itself() -> None:
    peer = FakePeer()
    with pytest.raises(KeyError, match="mine"):
        async with Pool(peer.connect, max_size=1, min_size=1) as pool:
            await pool.ready()
            raise KeyError("mine")

    assert not peer.open


async def test_what_crashes_the_pool_leaves_as_itself() -> None:
    class Crash(BaseException):
        pass

    peer = FakePeer()
    peer.fail = Crash()
    with pytest.raises(Crash):
        async with Pool(peer.connect, max_size=1) as pool:
            await pool.get()


async def test_a_pool_is_open_only_inside_its_block_and_has_only_one() -> None:
    pool = Pool(FakePeer().connect, max_size=1)
    with pytest.raises(RuntimeError, match="inside its block"):
        await pool.get()
    async with pool:
        pass
    with pytest.raises(PoolClosedError):
        await pool.get()
    with pytest.raises(RuntimeError, match="second time"):
        await pool.__aenter__()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_size": 0}, ValueError),
        ({"max_size": True}, TypeError),
        ({"max_size": 2, "min_size": 3}, ValueError),
        ({"max_size": 2, "min_size": -1}, ValueError),
        ({"max_size": 2, "max_waiting": 0}, ValueError),
        ({"max_size": 2, "connect_timeout": -1}, ValueError),
        ({"max_size": 2, "idle_timeout": math.nan}, ValueError),
        ({"max_size": 2, "lifetime": "1"}, TypeError),
        ({"max_size": 2, "check_after": None}, TypeError),
        ({"max_size": 2, "check": 1}, TypeError),
        ({"max_size": 2, "backoff": 1}, TypeError),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    (name,) = [n for n in arguments if n != "max_size"] or ["max_size"]
    with pytest.raises(error, match=f"{name} must.*got {arguments[name]!r}"):
        Pool(FakePeer().connect, **arguments)


def test_connect_has_to_be_callable() -> None:
    with pytest.raises(TypeError, match=r"connect must be .* got None"):
        Pool(None, max_size=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [-1, math.nan])
async def test_a_timeout_that_makes_no_sense_is_refused_before_anything_is_opened(
    timeout: float,
) -> None:
    peer = FakePeer()
    async with Pool(peer.connect, max_size=1) as pool:
        with pytest.raises(ValueError, match="timeout"):
            pool.acquire(timeout=timeout)

    assert not peer.dials


# The lease and its misuse


async def test_discarding_inside_the_block_closes_and_the_block_ends_quietly() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        async with pool.acquire() as connection:
            pool.discard(connection)
        lease = pool.acquire()
        async with lease as other:
            lease.discard()
            with pytest.raises(LeaseError):
                lease.discard()

        assert connection.closed
        assert other is not connection


async def test_putting_inside_the_block_is_giving_back_twice() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        with pytest.raises(LeaseError, match="before its block ended"):
            async with pool.acquire() as connection:
                pool.put(connection)

        assert pool.statistics().idle == 1


async def test_the_end_of_a_block_does_not_take_from_who_has_it_now() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        with pytest.raises(LeaseError):
            async with pool.acquire() as connection:
                pool.put(connection)
                again = await pool.get()

        assert again is connection
        assert pool.statistics().lent == 1
        pool.put(again)


async def test_a_lease_is_entered_once_and_knows_its_connection_only_inside() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        lease = pool.acquire()
        with pytest.raises(LeaseError, match="no connection"):
            _ = lease.resource
        async with lease as connection:
            assert lease.resource is connection
        with pytest.raises(LeaseError, match="no connection"):
            _ = lease.resource
        with pytest.raises(LeaseError, match="again"):
            await lease.__aenter__()


async def test_what_is_not_lent_cannot_be_given_back() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        connection = await pool.get()
        pool.put(connection)
        with pytest.raises(LeaseError, match="given back already"):
            pool.put(connection)
        with pytest.raises(LeaseError, match="given back already"):
            pool.discard(connection)
        with pytest.raises(LeaseError, match="not lent by this pool"):
            pool.put(FakeConnection(FakePeer(), 7))

        assert pool.statistics().size == 1


async def test_what_its_user_closed_is_not_kept() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        connection = await pool.get()
        connection.closed = True
        pool.put(connection)

        assert pool.statistics().idle == 0
        connection.closed = False


async def test_get_nowait_takes_what_is_idle_and_never_waits() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool:
        with pytest.raises(trio.WouldBlock):
            pool.get_nowait()
        pool.put(await pool.get())

        connection = pool.get_nowait()

        with pytest.raises(trio.WouldBlock):
            pool.get_nowait()
        pool.put(connection)


# Waiting


async def test_waiters_are_served_in_order(autojump_clock: trio.testing.MockClock) -> None:
    order: list[int] = []

    async def wait(number: int) -> None:
        await trio.sleep(number / 100)
        async with pool.acquire():
            order.append(number)
            await trio.sleep(1)

    async with Pool(FakePeer().connect, max_size=2) as pool, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(wait, number)

    assert order == list(range(10))


async def test_a_cancel_that_comes_after_the_hand_over_loses_nothing() -> None:
    async with Pool(FakePeer().connect, max_size=1) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        nursery.start_soon(hold, pool, math.inf)
        await wait_all_tasks_blocked()

        pool.put(connection)
        nursery.cancel_scope.cancel()

    assert pool.statistics().reasons["discarded"] == 1
    assert connection.closed


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


async def test_more_than_max_waiting_are_turned_away() -> None:
    connect = FakePeer().connect
    async with Pool(connect, max_size=1, max_waiting=2) as pool, trio.open_nursery() as nursery:
        connection = await pool.get()
        for _ in range(2):
            nursery.start_soon(hold, pool, 0)
        await wait_all_tasks_blocked()
        with pytest.raises(PoolFullError, match="2 tasks wait already; max_waiting is 2"):
            await pool.get()
        pool.put(connection)


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


# Reports


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")
async def test_a_forked_child_has_no_part_in_the_parent_s_connections() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        lent = await pool.get()
        pool.put(await pool.get())
        child = os.fork()
        if child == 0:
            try:
                pool.put(lent)
                pool.get_nowait()
            except PoolClosedError:
                os._exit(0 if not pool.statistics().idle else 2)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert pool.statistics().idle == 1
        pool.put(lent)


def test_the_errors_are_what_their_handlers_expect() -> None:
    for error in (PoolClosedError, PoolFullError, PoolTimeoutError, PoolConnectError):
        assert issubclass(error, PoolError)
    assert issubclass(LeaseError, RuntimeError)
    assert not issubclass(LeaseError, PoolError)


async def test_its_repr_says_what_matters() -> None:
    async with Pool(FakePeer().connect, max_size=2) as pool:
        lease = pool.acquire()
        assert repr(lease) == "<Lease not entered>"
        async with lease:
            assert repr(pool) == "<Pool: 1 of 2 (0 idle, 1 lent), 0 waiting>"
            assert repr(lease) == "<Lease of <connection 0>>"
        assert repr(lease) == "<Lease given back>"
    assert repr(pool) == "<Pool closed: 0 of 2 (0 idle, 0 lent), 0 waiting>"


def test_a_pause_never_overflows_and_stays_within_its_jitter() -> None:
    backoff = Backoff(first=0.05, maximum=5, jitter=0.1)
    delays = [partial(backoff.delay, failures)() for failures in (1, 2, 10, 10_000)]

    assert delays == [pytest.approx(ideal, rel=0.1001) for ideal in (0.05, 0.1, 5, 5)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": -1},
        {"factor": 0.5},
        {"maximum": math.inf},
        {"jitter": 2},
        {"attempts": 0},
        {"first": math.nan},
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Backoff.{next(iter(wrong))} must"):
        Backoff(**wrong)
