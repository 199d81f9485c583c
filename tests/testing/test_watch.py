"""What ends a simulated run early: nothing can happen, or the real world comes in."""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable

import anyio.from_thread
import anyio.to_thread
import pytest
import trio
import trio.testing

import trionet
from trionet._streams import readiness
from trionet.testing import (
    Deadlock,
    EscapeError,
    OutrunError,
    SimulationError,
    TimeLimitError,
    simulate,
    watch,
)


async def shielded(event: trio.Event) -> None:
    with trio.CancelScope(shield=True):
        await event.wait()


# Deadlocks


def test_waiting_for_nothing_is_a_deadlock() -> None:
    with pytest.raises(Deadlock, match="every task waits, and no deadline is pending"):
        simulate(trio.sleep_forever)


def test_a_deadlock_tells_when_and_who_waits_where() -> None:
    async def lonely(event: trio.Event) -> None:
        await event.wait()

    async def main() -> None:
        await trio.sleep(2.5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lonely, trio.Event())
            nursery.start_soon(trio.sleep_forever)

    with pytest.raises(Deadlock) as caught:
        simulate(main)

    first, *tree = str(caught.value).splitlines()
    assert first.endswith("(virtual time 2.5 s)")
    assert [line.partition(".py:")[0] for line in tree] == [
        "main: waits for the tasks of its nursery, test_watch",
        "├─ lonely: waits in Event.wait, test_watch",
        "└─ trio.sleep_forever: waits in sleep_forever",
    ]
    assert tree[1].endswith(": await event.wait()")


def test_a_deadlock_cancels_the_program_which_may_clean_up() -> None:
    cleaned: list[float] = []

    async def main() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            cleaned.append(trio.current_time())

    with pytest.raises(Deadlock):
        simulate(main)
    assert cleaned == [5]


def test_a_deadlock_is_raised_even_if_the_program_swallows_the_cancellation() -> None:
    async def main() -> None:
        with trio.CancelScope(), contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()

    with pytest.raises(Deadlock) as caught:
        simulate(main)
    assert caught.value.__cause__ is None


def test_what_clean_up_raises_after_a_deadlock_is_its_cause() -> None:
    async def main() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyError("in clean-up")

    with pytest.raises(Deadlock) as caught:
        simulate(main)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("in_nursery", [False, True])
def test_a_test_that_fails_or_skips_in_clean_up_does_not_hide_a_deadlock(
    *, in_nursery: bool
) -> None:
    async def task() -> None:
        try:
            await trio.sleep_forever()
        finally:
            # Not an Exception.
            pytest.skip("in clean-up")

    async def main() -> None:
        if not in_nursery:
            await task()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)

    with pytest.raises(Deadlock) as caught:
        simulate(main)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("in_nursery", [False, True])
def test_whoever_interrupts_a_clean_up_gets_their_way(*, in_nursery: bool) -> None:
    async def task() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    async def main() -> None:
        if not in_nursery:
            await task()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)

    with pytest.raises(BaseException) as caught:
        simulate(main)
    assert not isinstance(caught.value, Deadlock)


def test_shielded_tasks_do_not_turn_a_deadlock_into_a_hang() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shielded, trio.Event())
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as inner:
                    inner.start_soon(shielded, trio.Event())
                    inner.start_soon(trio.sleep_forever)

    with pytest.raises(Deadlock) as caught:
        simulate(main)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("seed", range(6))
def test_a_shielded_task_that_is_woken_is_no_longer_waited_for_by_what_it_waited_for(
    seed: int,
) -> None:
    async def waits_with_clean_up(event: trio.Event, other: trio.Event) -> None:
        with trio.CancelScope(shield=True):
            try:
                await event.wait()
            finally:
                # Perhaps the one who waited for it is gone, perhaps just woken.
                other.set()

    async def main() -> None:
        one, other = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits_with_clean_up, one, other)
            nursery.start_soon(waits_with_clean_up, other, trio.Event())
            nursery.start_soon(shielded, other)

    with pytest.raises(Deadlock) as caught:
        simulate(main, seed=seed)
    assert caught.value.__cause__ is None


def test_a_task_that_cannot_be_cancelled_is_woken_in_the_end() -> None:
    async def main() -> None:
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    with pytest.raises(Deadlock) as caught:
        simulate(main)
    assert caught.value.__cause__ is None


def test_a_shielded_loop_around_timers_does_not_turn_it_into_a_hang() -> None:
    async def main() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                while True:
                    await trio.sleep(60)

    with pytest.raises(Deadlock, match=r"virtual time 0 s"):
        simulate(main)


def test_waiting_for_all_tasks_to_block_is_no_deadlock() -> None:
    async def main() -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            for _ in range(3 * watch.IDLE_PASSES):
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        return "done"

    assert simulate(main).result == "done"


def test_a_system_task_alone_does_not_keep_the_run_alive() -> None:
    async def main() -> None:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
        await trio.sleep_forever()

    with pytest.raises(Deadlock):
        simulate(main)


def test_memory_streams_deadlock_as_everything_does() -> None:
    async def main() -> None:
        client, _server = trionet.memory_stream_pair()
        await client.send_all(b"nobody reads this")

    with pytest.raises(Deadlock, match=r"waits in \S+send, test_watch\.py"):
        simulate(main)


# The time limit


def test_a_run_with_nothing_left_but_timers_meets_its_time_limit() -> None:
    async def main() -> None:
        while True:
            await trio.sleep(10)

    with pytest.raises(
        TimeLimitError, match=r"more than 100 virtual seconds .*\nmain: .*sleep\(10\)"
    ):
        simulate(main, time_limit=100)


def test_the_time_limit_is_too_slow_in_trios_words() -> None:
    with pytest.raises(trio.TooSlowError):
        simulate(functools.partial(trio.sleep, 2 * 86_400))


def test_a_run_may_take_all_of_its_limit_or_have_none() -> None:
    assert simulate(functools.partial(trio.sleep, 100), time_limit=100).time == 100
    assert simulate(functools.partial(trio.sleep, 10**9), time_limit=None).time == 10**9


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_time_limit_that_makes_no_sense_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="time_limit must be positive"):
        simulate(trio.sleep_forever, time_limit=limit)


# Real sockets


async def receives() -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs, trio.move_on_after(5):
        await ours.recv(1)


async def sends() -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs, trio.move_on_after(5):
        while True:
            await ours.send(bytes(65536))


async def listens() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        with trio.move_on_after(5):
            await listener.accept()


async def dials() -> None:
    (listener,) = await trionet.listen("tcp4", "127.0.0.1:0")
    async with listener, await trionet.dial("tcp4", str(listener.address)) as stream:
        with trio.move_on_after(5):
            await stream.receive_some()


@pytest.mark.parametrize("program", [receives, sends, listens, dials])
def test_waiting_for_a_real_socket_ends_the_run_before_time_passes(
    program: Callable[[], Awaitable[None]],
) -> None:
    with pytest.raises(EscapeError, match=r"virtual time 0 s.*\n.*waits in .*, test_watch\.py"):
        simulate(program)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread waits for a process")
def test_a_process_is_of_the_real_world_too_and_clean_up_sees_it_end() -> None:
    ended: list[int] = []

    async def main() -> None:
        process = await trio.lowlevel.open_process([sys.executable, "-c", "input()"], stdin=-1)
        assert process.stdin is not None
        try:
            await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await process.stdin.aclose()
                ended.append(await process.wait())

    with pytest.raises(EscapeError, match="or a process of the real operating system"):
        simulate(main)
    assert ended == [1]


def test_real_sockets_that_wait_through_the_hub_are_found_too() -> None:
    waiting = readiness.DIRECT_WAITS + 1
    numbers: list[tuple[int, int]] = []

    async def main() -> None:
        pairs = [socket.socketpair() for _ in range(waiting)]
        async with trio.open_nursery() as nursery:
            for ours, _ in pairs:
                ours.setblocking(False)
                nursery.start_soon(readiness.park_readable, ours)
            try:
                await trio.testing.wait_all_tasks_blocked()
                # The ones that trio waits for itself go, the one in the hub stays.
                for ours, _ in pairs[:-1]:
                    readiness.forget(ours)
                await trio.testing.wait_all_tasks_blocked()
                numbers.append(readiness.waits())
                await trio.sleep(1)
            finally:
                for pair in pairs:
                    readiness.forget(pair[0])
                    for sock in pair:
                        sock.close()

    with pytest.raises(EscapeError):
        simulate(main)


def test_the_hubs_own_waits_are_no_escape() -> None:
    ours, theirs = socket.socketpair()
    numbers: list[tuple[int, int]] = []

    async def main() -> float:
        # As the pool watches an idle connection: nobody waits for it.
        assert readiness.watch_hangup(ours, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        numbers.append(readiness.waits())
        await trio.sleep(10)
        readiness.forget(ours)
        return trio.current_time()

    with ours, theirs:
        assert simulate(main).result == 10
    assert numbers == [(1, 0)]


# Threads


def test_virtual_time_waits_for_a_thread() -> None:
    async def main() -> bool:
        with trio.move_on_after(10) as scope:
            await trio.to_thread.run_sync(time.sleep, 0.02)
        return scope.cancelled_caught

    run = simulate(main)

    assert not run.result
    assert run.time == 0


def test_virtual_time_goes_on_while_a_thread_waits_for_a_task() -> None:
    async def main() -> None:
        def in_thread() -> None:
            trio.from_thread.run(trio.sleep, 30)

        await trio.to_thread.run_sync(in_thread)
        await trio.sleep(5)

    assert simulate(main).time == 35


def test_virtual_time_goes_on_while_a_thread_that_may_be_abandoned_waits_for_a_task() -> None:
    async def main() -> None:
        def in_thread() -> None:
            trio.from_thread.run(trio.sleep, 30)

        await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)

    assert simulate(main).time == 30


def test_virtual_time_goes_on_while_a_thread_of_anyios_waits_for_a_task() -> None:
    async def main() -> None:
        def in_thread() -> None:
            anyio.from_thread.run(anyio.sleep, 30)

        await anyio.to_thread.run_sync(in_thread)

    assert simulate(main).time == 30


def test_virtual_time_waits_for_a_thread_while_a_strangers_waits_for_a_task() -> None:
    threads: list[threading.Thread] = []

    async def main() -> bool:
        slept = trio.Event()

        async def sleeps() -> None:
            await trio.sleep(30)
            slept.set()

        stranger = functools.partial(
            trio.from_thread.run, sleeps, trio_token=trio.lowlevel.current_trio_token()
        )
        threads.append(threading.Thread(target=stranger))
        threads[0].start()
        with trio.move_on_after(10) as scope:
            await trio.to_thread.run_sync(time.sleep, 0.05)
        await slept.wait()
        return scope.cancelled_caught

    run = simulate(main)
    threads[0].join()

    assert not run.result
    assert run.time == 30


def test_virtual_time_waits_for_a_thread_while_another_task_waits_for_its_turn() -> None:
    async def main() -> None:
        limiter = trio.CapacityLimiter(1)
        with trio.move_on_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    sleep = functools.partial(trio.to_thread.run_sync, limiter=limiter)
                    nursery.start_soon(sleep, time.sleep, 0.02)

    assert simulate(main).time == 0


def test_a_thread_that_trio_does_not_count_may_still_wake_somebody() -> None:
    async def main() -> str:
        token = trio.lowlevel.current_trio_token()
        event = trio.Event()
        trio.lowlevel.start_thread_soon(
            lambda: time.sleep(0.05), lambda _: token.run_sync_soon(event.set)
        )
        await event.wait()
        return "woken"

    # The second run finds the thread of the first, which trio keeps.
    assert [simulate(main).result for _ in range(2)] == ["woken", "woken"]


def test_threads_that_trio_keeps_for_later_do_not_delay_a_deadlock() -> None:
    async def main() -> None:
        await trio.to_thread.run_sync(time.sleep, 0.001)
        await trio.sleep_forever()

    started = time.monotonic()
    with pytest.raises(Deadlock) as caught:
        simulate(main)
    assert time.monotonic() - started < watch.PATIENCE
    assert "Threads started meanwhile" not in str(caught.value)


def test_a_deadlock_waits_for_a_thread_no_longer_than_that_works() -> None:
    async def main() -> None:
        trio.lowlevel.start_thread_soon(lambda: time.sleep(0.02), lambda _: None)
        await trio.sleep_forever()

    started = time.monotonic()
    with pytest.raises(Deadlock):
        simulate(main)
    assert time.monotonic() - started < watch.PATIENCE


def test_threads_and_timers_take_turns() -> None:
    async def main() -> list[float]:
        moments = []
        for _ in range(20):
            await trio.sleep(1)
            await trio.to_thread.run_sync(time.sleep, 0.001)
            moments.append(trio.current_time())
        return moments

    assert simulate(main).result == [*range(1, 21)]


def test_a_thread_that_takes_too_long_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.05)
    may_end = threading.Event()

    async def main() -> None:
        try:
            with trio.move_on_after(10):
                await trio.to_thread.run_sync(may_end.wait, abandon_on_cancel=True)
        finally:
            may_end.set()

    with pytest.raises(OutrunError, match=r"0\.05 real seconds.*virtual time 0 s"):
        simulate(main)


def test_a_thread_that_outlasts_the_end_of_the_run_changes_nothing_about_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.02)

    async def main() -> None:
        with trio.move_on_after(10):
            # Not to be abandoned, it is waited for after the run was ended.
            await trio.to_thread.run_sync(time.sleep, 0.2)

    with pytest.raises(OutrunError, match=r"virtual time 0 s") as caught:
        simulate(main)
    assert "to_thread" in str(caught.value)


def test_a_thread_that_takes_long_is_waited_for_if_time_has_nowhere_to_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.01)

    async def main() -> str:
        await trio.to_thread.run_sync(time.sleep, 0.1)
        return "done"

    assert simulate(main).result == "done"


def test_a_thread_that_waits_for_a_task_for_ever_is_a_deadlock() -> None:
    async def main() -> None:
        def in_thread() -> None:
            trio.from_thread.run(trio.sleep_forever)

        await trio.to_thread.run_sync(in_thread)

    started = time.monotonic()
    with pytest.raises(Deadlock):
        simulate(main)
    # And nothing is to be expected from it.
    assert time.monotonic() - started < watch.PATIENCE


def test_a_strangers_thread_may_still_wake_somebody() -> None:
    async def main() -> str:
        token = trio.lowlevel.current_trio_token()
        event = trio.Event()

        def stranger() -> None:
            time.sleep(0.05)
            trio.from_thread.run_sync(event.set, trio_token=token)

        thread = threading.Thread(target=stranger)
        thread.start()
        await event.wait()
        thread.join()
        return "woken"

    assert simulate(main).result == "woken"


def test_a_strangers_thread_that_does_not_is_named_by_the_deadlock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "PATIENCE", 0.05)
    may_end = threading.Event()

    async def main() -> None:
        thread = threading.Thread(target=may_end.wait, name="the stranger")
        thread.start()
        try:
            await trio.sleep_forever()
        finally:
            may_end.set()
            thread.join()

    with pytest.raises(Deadlock, match="which trio may not know of: the stranger"):
        simulate(main)


def test_all_problems_are_of_one_kind() -> None:
    for kind in (Deadlock, EscapeError, OutrunError, TimeLimitError):
        assert issubclass(kind, SimulationError)
