"""Who is taken in, who waits, who is turned away, and what a listener may do wrong."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from tests.server.serving import ask, echo, start
from trionet import Connection, Limits, Server, ServerStatistics


async def test_pause_leaves_clients_in_the_backlog_until_there_is_room(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    running: list[int] = []
    most = 0

    async def work(connection: Connection) -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        await trio.sleep(1)
        running.pop()

    server = Server(work, limits=Limits(max_connections=2))
    listeners = [*await trionet.listen("memb", "a"), *await trionet.listen("memu", "b")]
    await nursery.start(server.serve, listeners)
    clients = [await trionet.dial(*("memb", "a") if n % 2 else ("memu", "b")) for n in range(7)]
    await wait_all_tasks_blocked()
    assert server.statistics() == ServerStatistics(2, 2, 0, 0, 0)

    async with trio.open_nursery() as waiting:
        for client in clients:
            waiting.start_soon(client.receive_some)

    assert most == 2
    assert trio.current_time() == 4
    server.shutdown()
    await server.wait_closed()
    assert server.statistics() == ServerStatistics(7, 0, 7, 0, 0)


async def test_reject_closes_at_once_what_has_no_room(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def work(connection: Connection) -> None:
        await trio.sleep(1)

    server = await start(nursery, work, limits=Limits(max_connections=2, overload="reject"))
    clients = [await trionet.dial("memb", "site") for _ in range(5)]
    ended: list[float] = []
    async with trio.open_nursery() as waiting:

        async def wait(client: trionet.MemoryStream) -> None:
            assert await client.receive_some() == b""
            ended.append(trio.current_time())

        for client in clients:
            waiting.start_soon(wait, client)
    assert sorted(ended) == [0, 0, 0, 1, 1]
    assert server.statistics() == ServerStatistics(5, 0, 2, 0, 3)
    assert len(ended) == 5
    server.shutdown()


async def test_the_last_of_max_accepts_starts_the_drain(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, echo, limits=Limits(max_accepts=2))
    assert await ask() == b"hello"
    assert not server.draining.is_set()
    await wait_all_tasks_blocked()
    assert await ask() == b"hello"
    with pytest.raises(ConnectionRefusedError):
        await ask()
    assert (await server.wait_closed()).completed == 1
    assert server.statistics().accepted == 2


async def test_a_paused_server_accepts_nobody_until_it_resumes(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, echo)
    server.pause()
    client = await trionet.dial("memb", "site")
    await client.send_all(b"hello")
    await wait_all_tasks_blocked()
    assert server.statistics().accepted == 0
    server.resume()
    assert await client.receive_some() == b"hello"
    server.shutdown()


class Exhausted:
    """Makes the accepts of every memory listener fail as the given errors say, then work."""

    def __init__(self, patch: pytest.MonkeyPatch, *codes: int | None) -> None:
        self._real = trionet.MemoryListener.accept_nowait
        self._codes = iter(codes)
        patch.setattr(trionet.MemoryListener, "accept_nowait", lambda one: self.accept_nowait(one))

    def accept_nowait(self, listener: trionet.MemoryListener) -> trionet.MemoryStream:
        code = next(self._codes, None)
        if code is not None:
            raise OSError(code, "no descriptors")
        return self._real(listener)


async def test_a_client_is_refused_politely_with_the_reserve_descriptor(
    nursery: trio.Nursery, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Exhausted(monkeypatch, errno.EMFILE)
    server = await start(nursery, echo)
    refused = await trionet.dial("memb", "site")
    assert await refused.receive_some() == b""
    assert trio.current_time() == 0
    assert await ask() == b"hello"
    server.shutdown()
    await server.wait_closed()
    assert server.statistics() == ServerStatistics(2, 0, 1, 0, 1)


async def test_exhaustion_is_waited_out_and_logged_once_a_second(
    nursery: trio.Nursery,
    autojump_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Each round of it fails twice: not even the reserve helps.
    Exhausted(monkeypatch, *[errno.ENFILE] * 24)
    server = await start(nursery, echo)
    assert await ask() == b"hello"
    assert trio.current_time() == pytest.approx(1.2)
    assert len(caplog.records) == 2
    assert "trying again" in caplog.text
    server.shutdown()


async def test_a_listener_that_fails_ends_serve_after_a_drain(
    autojump_clock: Any,
) -> None:
    (listener,) = await trionet.listen("memb", "site")

    def accept_nowait(self: Any) -> Any:
        raise OSError(errno.EBADF, "gone")

    server = Server(echo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trionet.MemoryListener, "accept_nowait", accept_nowait)
        await trionet.dial("memb", "site")
        with pytest.raises(OSError, match="gone"):
            await server.serve([listener])
    assert trionet.names("memb") == []


async def test_serve_ends_when_its_listeners_were_closed(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = Server(echo)
    (listener,) = await trionet.listen("memb", "site")
    await nursery.start(server.serve, [listener])
    await wait_all_tasks_blocked()
    await listener.aclose()
    assert (await server.wait_closed()).completed == 0


async def test_a_foreign_listener_holds_at_most_one_client_unstarted(
    nursery: trio.Nursery,
) -> None:
    running: list[Connection] = []
    go = trio.Event()

    async def work(connection: Connection) -> None:
        running.append(connection)
        await go.wait()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server(work, limits=Limits(max_connections=1))
    await nursery.start(server.serve, listeners)
    port = listeners[0].socket.getsockname()[1]
    clients = [await trionet.dial("tcp", f"127.0.0.1:{port}") for _ in range(3)]
    while not running:
        await trio.sleep(0.001)
    for _ in range(10):
        await trio.sleep(0.001)
    assert server.statistics() == ServerStatistics(1, 1, 0, 0, 0)
    assert running[0].remote_address == clients[0].local_address
    go.set()
    for client in clients:
        assert await client.receive_some() == b""
        await client.aclose()
    server.shutdown()
    await server.wait_closed()
    assert server.statistics() == ServerStatistics(3, 0, 3, 0, 0)


async def test_a_reset_before_accept_hurts_nobody(nursery: trio.Nursery) -> None:
    server = Server(echo)
    listeners = await trionet.listen("tcp", "127.0.0.1:0")
    port = listeners[0].address.port
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port or 0)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await nursery.start(server.serve, listeners)
    assert await ask("tcp", str(listeners[0].address)) == b"hello"
    server.shutdown()
    await server.wait_closed()
    counts = server.statistics()
    assert counts.accepted == counts.completed + counts.failed == 4
