"""The client of many servers, which come and go underneath it."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trionet
from examples.fan_out import ANSWER_WITHIN, Farm, Worker, digest, numbers, show


async def start(nursery: trio.Nursery, worker: Worker, address: str = "") -> trionet.Server:
    server: trionet.Server = await nursery.start(
        partial(trionet.serve, worker, "memb", address or worker.name, grace=0)
    )
    return server


async def test_it_shows_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with trio.fail_after(30):
        await show()

    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("1000 lines: one did ")
    assert all(int(count) > 0 for count in re.findall(r"did (\d+)", first))
    assert "lost" in second
    assert "healed" in second


async def test_work_goes_to_whoever_is_there(autojump_clock: MockClock) -> None:
    workers = [Worker(name) for name in ("one", "two", "three")]
    async with trio.open_nursery() as nursery:
        servers = [await start(nursery, worker) for worker in workers]
        async with Farm(["one", "two", "three"], network="memb", capacity=3) as farm:
            held = [farm.connections.borrow() for _ in range(3)]
            for loan in held:
                await loan.__aenter__()
            for loan in held:
                await loan.__aexit__(None, None, None)
            assert len(await farm.ask_all(numbers(0, 300))) == 300
            assert all(worker.done > 0 for worker in workers)

            # Two of three go, one of them without a word.
            servers[0].shutdown()
            servers[1].shutdown(grace=0)
            before = [worker.done for worker in workers]
            answers = await farm.ask_all(numbers(300, 400))
            assert answers == {line: digest(line) for line in answers}
            assert len(answers) == 100
            assert [worker.done for worker in workers[:2]] == before[:2]

            # One comes back, another one is new, the third one goes.
            fresh = [Worker("two"), Worker("four")]
            servers += [await start(nursery, worker) for worker in fresh]
            farm.servers[2] = "four"
            servers[2].shutdown(grace=0)
            assert len(await farm.ask_all(numbers(400, 700))) == 300
            assert all(worker.done > 0 for worker in fresh)
        for server in servers:
            server.shutdown()

    assert farm.happened["lost"] >= 3
    assert farm.happened["healed"] >= 1
    assert farm.happened["scaled_up"] == 2


async def test_work_waits_while_nobody_is_there(autojump_clock: MockClock) -> None:
    answers: list[str] = []

    async def ask() -> None:
        answers.append(await farm.ask("x"))

    async with Farm(["one"], network="memb") as farm, trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(20)
        server = await start(nursery, Worker("one"))
        await trio.sleep(2)
        assert answers == [digest("x")]
        server.shutdown()


async def test_patience_ends(autojump_clock: MockClock) -> None:
    async with Farm([], network="memb", patience=7) as farm:
        with pytest.raises(trio.TooSlowError):
            await farm.ask("x")

    assert trio.current_time() == 7


async def test_a_server_that_does_not_answer_is_left_for_another(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async def mute(connection: trionet.Connection) -> None:
        await trio.sleep_forever()

    silent: Any = await nursery.start(partial(trionet.serve, mute, "memb", "mute", grace=0))
    server = await start(nursery, Worker("one"))
    async with Farm(["one", "mute"], network="memb", capacity=1) as farm:
        assert await farm.ask("x") == digest("x")
        assert trio.current_time() == ANSWER_WITHIN
        assert farm.happened == {"connected": 2, "lost": 1, "healed": 1}
    for one in (silent, server):
        one.shutdown()
