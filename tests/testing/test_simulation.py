"""`simulate` and `simulated`: virtual time, and nothing left to chance."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing

import trionet
from trionet.testing import (
    Link,
    Run,
    Trace,
    VirtualNetwork,
    random_stream,
    simulate,
    simulated,
)
from trionet.testing._run import current_run
from trionet.testing.simulation import Simulation

ROOT = Path(__file__).parents[2]

# What every seed must decide: the order of tasks, chance in libraries and in the program, links
# and what is lost on them, and when TLS says what.
PROGRAM = """
import os, random, sys, uuid
from functools import partial
import trio, trionet
from trionet.testing import Link, VirtualNetwork, random_stream, simulate
from trionet.testing.certificates import Certificates

# Another memory layout in each process.
junk = [bytearray(random.Random().randrange(5000)) for _ in range(random.Random().randrange(900))]
tls = Certificates()

async def client(number, lock, log, dial):
    for turn in range(4):
        await trio.sleep(random.choice((0, 0, 0.1, random.random())))
        with trio.move_on_after(2 * random_stream("patience").random()):
            async with lock, await dial() as stream:
                await stream.send_all(b"%d" % number * random.randrange(1, 5000))
                log.append((number, turn, len(await stream.receive_some()), trio.current_time()))

async def echo(stream):
    try:
        async for data in stream:
            await stream.send_all(data + uuid.uuid4().bytes[:1])
    except trio.BrokenResourceError:
        pass

async def main():
    log = []
    link = Link(latency=0.01, jitter=0.02, loss=0.05, bandwidth=100_000)
    async with VirtualNetwork(link=link) as net, trio.open_nursery() as nursery:
        run = net.host("plain").run
        await nursery.start(run, partial(trio.serve_tcp, handler_nursery=nursery), echo, 80)
        run = net.host("secret").run
        context = tls.server_called("secret")
        await nursery.start(run, trio.serve_ssl_over_tcp, echo, 443, context)
        await nursery.start(trionet.serve, echo, "memb", "memory")
        dials = [
            partial(trio.open_tcp_stream, "plain", 80),
            partial(trio.open_ssl_over_tcp_stream, "secret", 443, ssl_context=tls.client),
            partial(trionet.dial, "memb", "memory"),
        ]
        async with trio.open_nursery() as clients:
            locks = [trio.Lock(), trio.Lock(), trio.Lock()]
            for number in range(9):
                clients.start_soon(client, number, locks[number % 3], log, dials[number // 3])
        nursery.cancel_scope.cancel()
    return log

run = simulate(main, seed=int(sys.argv[1]))
print(run.digest, run.seed, run.seeded, run.time, run.steps, len(run.trace))
print(run.result)
"""


def in_a_process_of_its_own(seed: int) -> str:
    # Explicitly random, whatever this process was told.
    environment = {**os.environ, "PYTHONHASHSEED": "random", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return done.stdout


# Of twenty processes, on a busy machine.
@pytest.mark.timeout(300)
def test_one_seed_gives_one_run_in_twenty_processes_and_another_seed_another() -> None:
    with ThreadPoolExecutor(os.cpu_count()) as several:
        *runs, other = several.map(in_a_process_of_its_own, [7] * 20 + [8])

    assert len(set(runs)) == 1
    digest, *_, steps, events = runs[0].splitlines()[0].split()
    assert len(digest) == 64
    assert int(steps) > 500
    assert int(events) > 500
    assert other.split()[0] != digest


def test_where_things_are_in_memory_does_not_matter_to_what_happens_at_one_moment() -> None:
    # There and back takes as long as the client waits, so an answer comes at the very moment at
    # which it gives up. trio looks which of the two deadlines has the lower address.
    async def echo(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in stream:
                await stream.send_all(data)

    async def client(turns: int) -> None:
        for turn in range(turns):
            elsewhere = [bytearray(layout.randrange(300)) for _ in range(layout.randrange(30))]
            async with await trio.open_tcp_stream("server", 7) as stream:
                del elsewhere[::2]
                with trio.move_on_after(0.5) as scope:
                    await stream.send_all(b"x")
                    await stream.receive_some()
                late.append(scope.cancelled_caught)
            await trio.sleep(turn / 16)

    async def main() -> None:
        link = Link(latency=0.25)
        async with VirtualNetwork(link=link) as net, trio.open_nursery() as nursery:
            await nursery.start(net.host("server").run, trio.serve_tcp, echo, 7)
            async with trio.open_nursery() as clients:
                for number in range(6):
                    clients.start_soon(client, 2 + number)
            nursery.cancel_scope.cancel()

    late: list[bool] = []
    digests = set()
    for number in range(10):
        # Not of the module's generator, which would be the run's.
        layout = random.Random(number)
        digests.add(simulate(main).digest)

    assert len(digests) == 1
    # What comes at the last moment comes in time.
    assert not any(late)


async def draws() -> tuple[list[int], float]:
    """Return the order of some tasks, and a number from the module ``random``."""
    order: list[int] = []

    async def take_turns(number: int) -> None:
        for _ in range(3):
            await trio.sleep(1)
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(take_turns, number)
    return order, random.random()


def test_a_run_tells_all_about_itself() -> None:
    run = simulate(draws, seed=3)

    assert isinstance(run, Run)
    assert run.seed == 3
    assert run.time == 3
    assert run.steps > 15
    assert sorted(run.result[0]) == sorted([*range(5)] * 3)
    assert isinstance(run.trace, Trace)
    assert (len(run.trace), run.traces) == (0, ())


def test_seeds_0_to_9_give_ten_different_runs_and_each_the_same_again() -> None:
    runs = [simulate(draws, seed=seed) for seed in range(10)]

    assert len({run.digest for run in runs}) == 10
    assert [simulate(draws, seed=seed).digest for seed in range(10)] == [r.digest for r in runs]
    assert [simulate(draws, seed=seed).result for seed in range(10)] == [r.result for r in runs]


def test_the_digest_covers_times_and_not_only_the_order() -> None:
    async def main(seconds: float) -> None:
        await trio.sleep(seconds)

    assert simulate(main, 1.0).digest == simulate(main, 1.0).digest
    assert simulate(main, 1.0).digest != simulate(main, 2.0).digest


def test_asking_for_a_digest_changes_none() -> None:
    def digest(times: int) -> str:
        simulation = Simulation(5)

        async def main() -> None:
            for _ in range(5):
                await trio.sleep(0)
                for _ in range(times):
                    simulation.digest()

        simulation.run(main)
        return simulation.digest()

    assert digest(0) == digest(3)


def test_the_digest_covers_the_traces_of_networks() -> None:
    async def main(events: int) -> None:
        trace = Trace()
        run = current_run.get()
        assert run is not None
        run.register(trace)
        for number in range(events):
            trace.fault(trio.current_time(), f"fault {number}")

    assert simulate(main, 2).digest == simulate(main, 2).digest
    assert simulate(main, 2).digest != simulate(main, 3).digest
    assert len(simulate(main, 2).trace) == 2


def test_a_thread_has_no_part_in_the_digest_but_what_it_makes_tasks_do() -> None:
    async def main() -> None:
        for _ in range(10):
            await trio.to_thread.run_sync(os.getpid)

    assert simulate(main).digest == simulate(main).digest


def test_arguments_are_handed_on_and_the_result_back() -> None:
    async def main(a: int, b: int) -> int:
        await trio.sleep(0)
        return a - b

    assert simulate(main, 5, 3).result == 2


def test_two_runs_do_not_know_each_other() -> None:
    async def main() -> str:
        (listener,) = await trionet.listen("memb", "name")
        async with listener:
            return str(trionet.names("memb"))

    assert simulate(main).result == simulate(main).result


def test_an_exception_leaves_as_it_is_with_the_seed_in_a_note() -> None:
    async def main() -> None:
        await trio.sleep(1.5)
        raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        simulate(main, seed=12)

    assert caught.value.args == ("mine",)
    (note,) = caught.value.__notes__
    assert note.startswith("seed 12, virtual time 1.5 s, ")


def test_the_note_of_a_failure_ends_with_the_last_events_on_the_network() -> None:
    async def main() -> None:
        run = current_run.get()
        assert run is not None
        trace = Trace()
        run.register(trace)
        for number in range(30):
            trace.fault(trio.current_time(), f"number {number}")
        raise KeyError

    with pytest.raises(KeyError) as caught:
        simulate(main)

    lines = caught.value.__notes__[0].splitlines()
    assert lines[1] == "The last events of 30 on the network:"
    assert [line.partition("number ")[2] for line in lines[2:]] == [str(n) for n in range(20, 30)]


def test_a_simulation_cannot_start_within_a_run() -> None:
    async def main() -> None:
        simulate(trio.sleep_forever)

    with pytest.raises(RuntimeError, match="from inside"):
        trio.run(main)


def test_two_simulations_at_once_are_refused_and_the_next_one_is_not() -> None:
    inside, may_end = threading.Event(), threading.Event()

    async def waits() -> None:
        inside.set()
        assert may_end.wait(10)

    thread = threading.Thread(target=simulate, args=(waits,))
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(RuntimeError, match="another simulation"):
            simulate(draws)
    finally:
        may_end.set()
        thread.join()
    simulate(draws)


@pytest.mark.parametrize("seed", [-1, 0, 2**80])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert simulate(draws, seed=seed).digest == simulate(draws, seed=seed).digest


@pytest.mark.parametrize("seed", ["7", 1.0, None])
def test_nothing_else_is_a_seed(seed: object) -> None:
    with pytest.raises(TypeError):
        simulate(draws, seed=seed)  # type: ignore[arg-type]


# Random streams


def test_a_random_stream_is_the_same_each_time_and_disturbs_no_other() -> None:
    async def main(others: int) -> list[float]:
        for _ in range(others):
            random_stream("another").random()
        return [random_stream("mine").random() for _ in range(3)]

    assert simulate(main, 0).result == simulate(main, 5).result
    assert len(set(simulate(main, 0).result)) == 3
    assert simulate(main, 0, seed=1).result != simulate(main, 0, seed=2).result


def test_there_are_no_random_streams_outside_of_a_simulation() -> None:
    async def main() -> None:
        random_stream("mine")

    with pytest.raises(RuntimeError, match=r"simulate\(\)"):
        trio.run(main)


# Starting over within a run


def test_a_restart_forgets_what_came_before() -> None:
    def run(steps_before: int) -> object:
        simulation = Simulation(5)

        async def main() -> object:
            for _ in range(steps_before):
                await draws()
                random_stream("mine").random()
            start = trio.current_time()
            await trio.sleep(100 - start)
            simulation.restart()
            return await draws(), os.urandom(4), random_stream("mine").random()

        return simulation.run(main)

    assert run(1) == run(4)


# The decorator


def test_a_simulated_function_runs_with_each_seed() -> None:
    seeds: list[object] = []

    @simulated(seeds=4)
    async def function() -> None:
        run = current_run.get()
        assert run is not None
        seeds.append(run.seed)

    assert not inspect.iscoroutinefunction(function)
    function()
    assert seeds == [0, 1, 2, 3]


def test_the_first_seed_that_fails_is_told_and_can_be_asked_for() -> None:
    async def loses_a_race() -> None:
        order, _ = await draws()
        assert order[0] != 4

    with pytest.raises(AssertionError) as caught:
        simulated(seeds=50)(loses_a_race)()
    seed = int(caught.value.__notes__[0].split()[1].rstrip(","))

    with pytest.raises(AssertionError):
        simulated(seeds=[seed])(loses_a_race)()
    simulated(seeds=range(seed))(loses_a_race)()


@pytest.mark.parametrize("seeds", [0, []])
def test_no_seed_at_all_is_refused(seeds: int | list[int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        simulated(seeds=seeds)


@pytest.fixture
def number() -> int:
    return 17


@simulated(seeds=2)
async def test_a_simulated_test_may_ask_for_fixtures(number: int) -> None:
    await trio.sleep(3600)
    assert number == 17


def test_options_reach_every_run() -> None:
    @simulated(seeds=1, time_limit=5)
    async def function() -> None:
        await trio.sleep(6)

    with pytest.raises(trio.TooSlowError):
        function()


def test_a_partial_is_called_by_its_functions_name() -> None:
    async def sleeper(_: int) -> None:
        await trio.sleep_forever()

    with pytest.raises(trionet.testing.Deadlock, match="\nsleeper: waits in sleep_forever"):
        simulate(functools.partial(sleeper, 1))
