"""The one-line forms."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

import pytest
import trio

import trionet
from tests.conftest import Certificates
from trionet import Connection, Limits, Server, ShutdownReport


async def echo(connection: Connection) -> None:
    async for data in connection:
        await connection.send_all(data)


async def test_serve_listens_and_serves_in_one_call(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    server = await nursery.start(
        partial(
            trionet.serve,
            echo,
            "memb",
            "site",
            ssl_context=certificates.server,
            limits=Limits(max_connections=5),
            grace=1,
        )
    )
    assert isinstance(server, Server)
    client = await trionet.dial("memb", "site", ssl_context=certificates.client)
    await client.send_all(b"hello")
    assert await client.receive_some() == b"hello"
    await client.aclose()
    server.shutdown()
    await server.wait_closed()
    assert server.statistics().completed == 1


async def test_serve_returns_its_report() -> None:
    reports: list[ShutdownReport] = []

    async def run(*, task_status: Any) -> None:
        reports.append(await trionet.serve(echo, "memb", "site", task_status=task_status))

    async with trio.open_nursery() as nursery:
        server = await nursery.start(run)
        server.shutdown()
    assert reports == [ShutdownReport()]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(("tcp", "nonsense"), ValueError), (("memu", ""), ValueError)],
)
async def test_serve_refuses_a_bad_address_as_itself(arguments: Any, error: Any) -> None:
    with pytest.raises(error):
        await trionet.serve(echo, *arguments)


async def test_serve_leaves_an_error_of_on_error_ungrouped() -> None:
    def fail(connection: Connection, error: Exception) -> None:
        raise KeyError("on_error")

    async def bug(connection: Connection) -> None:
        raise ValueError("a bug")

    async def dial() -> None:
        while True:
            try:
                await trionet.dial("memb", "site")
            except ConnectionRefusedError:
                await trio.sleep(0)
            else:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        with pytest.raises(KeyError, match="on_error"):
            await trionet.serve(bug, "memb", "site", on_error=fail)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_a_second_one_ends_at_once(
    number: signal.Signals, autojump_clock: Any
) -> None:
    async def never_ends(connection: Connection) -> None:
        await trio.sleep_forever()

    server = Server(never_ends, grace=1000)
    reports: list[ShutdownReport] = []

    async def serve(*, task_status: Any) -> None:
        listeners = await trionet.listen("memb", "site")
        reports.append(
            await trionet.serve_until_signalled(server, listeners, task_status=task_status)
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        await trionet.dial("memb", "site")
        await trio.testing.wait_all_tasks_blocked()
        os.kill(os.getpid(), number)
        await server.draining.wait()
        await trio.sleep(5)
        assert not reports
        os.kill(os.getpid(), number)
    assert reports == [ShutdownReport(cancelled=1)]
    assert trio.current_time() < 1000
