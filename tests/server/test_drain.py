"""The drain, in exact virtual times."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from tests.conftest import Certificates
from tests.helpers import AtStep, read_all
from trionet import Connection, Limits, Server, ShutdownReport


async def start(
    nursery: trio.Nursery, handler: Any, *, network: str = "memb", **settings: Any
) -> Server:
    server = Server(handler, **settings)
    await nursery.start(server.serve, await trionet.listen(network, "site"))
    return server


async def dial() -> trionet.MemoryStream:
    stream = await trionet.dial("memb", "site")
    await wait_all_tasks_blocked()
    return stream


async def never_ends(connection: Connection) -> None:
    await trio.sleep_forever()


async def answer_requests(connection: Connection) -> None:
    """A keep-alive protocol: each request is answered after a second."""
    while not connection.draining.is_set():
        with connection.idle() as scope:
            data = await connection.receive_some()
        if scope.cancelled_caught or not data:
            return
        await trio.sleep(1)
        await connection.send_all(b"reply to " + data)


async def test_an_idle_server_returns_at_once(nursery: trio.Nursery, autojump_clock: Any) -> None:
    server = await start(nursery, never_ends)
    server.shutdown()
    assert await server.wait_closed() == ShutdownReport()
    assert trio.current_time() == 0


async def test_new_clients_are_refused_the_moment_shutdown_returns(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, never_ends, grace=5)
    await dial()

    server.shutdown()

    with pytest.raises(ConnectionRefusedError):
        await trionet.dial("memb", "site")
    assert trio.current_time() == 0
    assert not server._closed.is_set()


async def test_an_idle_keep_alive_connection_ends_at_once(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, answer_requests, grace=5)
    client = await dial()
    await client.send_all(b"one")
    assert await client.receive_some() == b"reply to one"
    await wait_all_tasks_blocked()

    server.shutdown()

    assert await server.wait_closed() == ShutdownReport(completed=1)
    assert trio.current_time() == 1
    assert await client.receive_some() == b""


async def test_a_request_that_is_there_is_still_answered(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    """Its bytes and the drain meet: the receive that has them returns them."""
    server = await start(nursery, answer_requests, grace=5)
    client = await dial()

    await client.send_all(b"just in time")
    server.shutdown()

    assert await read_all(client) == b"reply to just in time"
    assert await server.wait_closed() == ShutdownReport(completed=1)
    assert trio.current_time() == 1


async def test_a_busy_reply_completes_byte_for_byte_within_the_grace(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    body = bytes(range(256)) * 4000

    async def reply_slowly(connection: Connection) -> None:
        for offset in range(0, len(body), 100_000):
            await connection.send_all(body[offset : offset + 100_000])
            await trio.sleep(0.25)

    server = await start(nursery, reply_slowly, grace=5)
    client = await dial()
    server.shutdown()

    assert await read_all(client) == body
    assert await server.wait_closed() == ShutdownReport(completed=1)
    # Eleven pieces, a quarter of a second each, and not a moment longer.
    assert trio.current_time() == 2.75


async def test_serve_returns_the_instant_the_last_one_ends(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def sleep(connection: Connection) -> None:
        await trio.sleep(float(await connection.receive_some()))

    server = await start(nursery, sleep, grace=100)
    for seconds in (b"3", b"7.5", b"5"):
        await (await dial()).send_all(seconds)
    await wait_all_tasks_blocked()

    server.shutdown()

    assert await server.wait_closed() == ShutdownReport(completed=3)
    assert trio.current_time() == 7.5


async def test_handlers_are_cancelled_at_the_end_of_the_grace(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, never_ends, grace=5)
    client = await dial()

    server.shutdown()

    assert await server.wait_closed() == ShutdownReport(cancelled=1)
    assert trio.current_time() == 5
    assert await client.receive_some() == b""
    assert server.statistics().failed == 1


async def send_shielded(connection: Connection) -> None:
    with trio.CancelScope(shield=True):
        await connection.send_all(bytes(10_000_000))


async def test_a_shielded_send_is_cut_at_grace_and_linger(
    nursery: trio.Nursery, autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start(nursery, send_shielded, grace=5, limits=Limits(linger=2))
    await dial()

    server.shutdown()

    assert await server.wait_closed() == ShutdownReport(forced=1)
    assert trio.current_time() == 7
    assert not caplog.records


async def test_a_handler_that_ends_while_it_lingers_was_cancelled_not_forced(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def tidy_up(connection: Connection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.5)

    server = await start(nursery, tidy_up, grace=5)
    await dial()
    server.shutdown()
    assert await server.wait_closed() == ShutdownReport(cancelled=1)
    assert trio.current_time() == 5.5


async def test_the_report_counts_each_connection_once(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def handler(connection: Connection) -> None:
        kind = await connection.receive_some()
        if kind == b"ends":
            await trio.sleep(1)
        elif kind == b"raises":
            await trio.sleep(2)
            raise ValueError("a bug")
        elif kind == b"sleeps":
            await trio.sleep_forever()
        else:
            await send_shielded(connection)

    errors: list[Exception] = []
    server = await start(
        nursery, handler, grace=5, on_error=lambda _connection, error: errors.append(error)
    )
    for kind in (b"ends", b"raises", b"sleeps", b"shields"):
        await (await dial()).send_all(kind)
    await wait_all_tasks_blocked()

    server.shutdown()

    assert await server.wait_closed() == ShutdownReport(completed=2, cancelled=1, forced=1)
    assert trio.current_time() == 6
    assert [str(error) for error in errors] == ["a bug"]


async def test_a_second_shutdown_can_only_shorten(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    server = await start(nursery, never_ends, grace=50)
    await dial()
    server.shutdown()
    await trio.sleep(1)
    server.shutdown(3)
    server.shutdown(40)
    await server.wait_closed()
    assert trio.current_time() == 4
    server.shutdown(1)


async def test_cancelling_serve_from_outside_is_grace_0(autojump_clock: Any) -> None:
    server = Server(send_shielded, grace=50, limits=Limits(linger=2))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, await trionet.listen("memb", "site"))
            await dial()
            await trio.sleep(1)
            scope.cancel()
    assert trio.current_time() == 3
    assert await server.wait_closed() == ShutdownReport(forced=1)
    with pytest.raises(ConnectionRefusedError):
        await trionet.dial("memb", "site")


async def test_cancelling_serve_during_a_drain_ends_it(autojump_clock: Any) -> None:
    server = Server(never_ends, grace=math.inf)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, await trionet.listen("memb", "site"))
            await dial()
            server.shutdown()
            await trio.sleep(100)
            scope.cancel()
    assert trio.current_time() == 100
    assert await server.wait_closed() == ShutdownReport(cancelled=1)


async def test_a_handler_may_shut_its_server_down(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def stop(connection: Connection) -> None:
        connection.server.shutdown()
        assert connection.draining.is_set()
        await connection.send_all(b"stopping")

    server = await start(nursery, stop)
    client = await trionet.dial("memb", "site")
    assert await read_all(client) == b"stopping"
    assert await server.wait_closed() == ShutdownReport(completed=1)
    assert trio.current_time() == 0


async def test_shutdown_before_serve_closes_the_listeners_and_returns(
    autojump_clock: Any,
) -> None:
    server = Server(never_ends)
    server.shutdown()
    listeners = await trionet.listen("memb", "site")
    assert await server.serve(listeners) == ShutdownReport()
    assert trionet.names("memb") == []


async def test_a_silent_handshake_ends_with_the_drain_and_is_not_counted(
    nursery: trio.Nursery, autojump_clock: Any, certificates: Certificates
) -> None:
    server = Server(never_ends, grace=5)
    await nursery.start(
        server.serve, await trionet.listen("memb", "site", ssl_context=certificates.server)
    )
    client = await dial()
    assert [one.state for one in server.connections] == ["handshaking"]

    server.shutdown()

    assert await server.wait_closed() == ShutdownReport()
    assert trio.current_time() == 0
    assert await client.receive_some() == b""
    assert server.statistics().failed == 1


async def test_a_connection_accepted_in_the_same_instant_as_the_drain_never_hangs(
    nursery: trio.Nursery, autojump_clock: Any, certificates: Certificates
) -> None:
    server = Server(never_ends, grace=5)
    await nursery.start(
        server.serve, await trionet.listen("memb", "site", ssl_context=certificates.server)
    )
    client = await trionet.dial("memb", "site")
    server.shutdown()
    await server.wait_closed()
    assert trio.current_time() == 0
    with contextlib.suppress(trio.BrokenResourceError):
        assert await client.receive_some() == b""


async def test_an_idle_block_entered_while_draining_ends_at_its_first_wait(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    seen: list[Any] = []

    async def handler(connection: Connection) -> None:
        await connection.draining.wait()
        with connection.idle() as scope:
            seen.append(await connection.receive_some())
            seen.append(await connection.receive_some())
        seen.append(scope.cancelled_caught)
        with trio.move_on_after(1) as outside:
            await connection.receive_some()
        seen.append(outside.cancelled_caught)

    server = await start(nursery, handler)
    client = await dial()
    await client.send_all(b"waiting bytes")
    server.shutdown()
    await server.wait_closed()
    assert seen == [b"waiting bytes", True, True]
    assert trio.current_time() == 1


async def test_only_the_receive_in_an_idle_block_is_interrupted(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    seen: list[str] = []

    async def handler(connection: Connection) -> None:
        with connection.idle() as scope:
            await trio.sleep(2)
            seen.append("slept")
            await connection.receive_some()
            seen.append("never")
        assert scope.cancelled_caught
        assert connection.state == "active"

    server = await start(nursery, handler)
    await dial()
    assert [one.state for one in server.connections] == ["idle"]
    server.shutdown()
    await server.wait_closed()
    assert seen == ["slept"]
    assert trio.current_time() == 2


async def test_an_idle_block_with_a_nursery_inside_is_left_quietly_too(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def handler(connection: Connection) -> None:
        with connection.idle() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(connection.receive_some)
        assert scope.cancelled_caught

    server = await start(nursery, handler)
    await dial()
    server.shutdown()
    assert await server.wait_closed() == ShutdownReport(completed=1)
    assert server.statistics().completed == 1


async def test_an_idle_block_ends_over_a_foreign_stream_too(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    class Foreign(trio.abc.Listener[trio.abc.Stream]):
        """Accepts one stream that trionet did not make."""

        def __init__(self, stream: trio.abc.Stream) -> None:
            self.streams = [stream]
            self.closed = False

        async def accept(self) -> trio.abc.Stream:
            if not self.streams:
                await trio.sleep_forever()
            return self.streams.pop()

        async def aclose(self) -> None:
            self.closed = True

    near, far = trio.testing.memory_stream_pair()
    listener = Foreign(far)
    server = Server(answer_requests)
    await nursery.start(server.serve, [listener])
    await near.send_all(b"hi")
    assert await near.receive_some() == b"reply to hi"
    await wait_all_tasks_blocked()
    server.shutdown()
    assert await server.wait_closed() == ShutdownReport(completed=1)
    assert trio.current_time() == 1
    assert listener.closed
    assert await near.receive_some() == b""


async def converse() -> bytes:
    """Two requests, and what came back of them before the server went away."""
    replies = b""
    with contextlib.suppress(trio.BrokenResourceError, ConnectionRefusedError):
        client = await trionet.dial("memb", "site")
        for request in (b"a", b"b"):
            await client.send_all(request)
            replies += await client.receive_some()
        await client.aclose()
    return replies


async def test_shutdown_at_every_checkpoint_of_a_conversation_always_ends(
    autojump_clock: Any,
) -> None:
    """For n = 1, 2, 3, ...: the drain comes after the n-th step of the client."""
    for n in itertools.count(1):
        server = Server(answer_requests, grace=3)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, await trionet.listen("memb", "site"))
            stop = AtStep(n, server.shutdown)
            stop.task = trio.lowlevel.current_task()
            trio.lowlevel.add_instrument(stop)
            replies = await converse()
            trio.lowlevel.remove_instrument(stop)
            undisturbed = not server.draining.is_set()
            server.shutdown()

        # Whole replies or none, within the two seconds that serving both takes.
        assert replies in {b"", b"reply to a", b"reply to areply to b"}
        assert trio.current_time() - begun <= 2
        counts = server.statistics()
        assert counts.active == 0
        assert counts.accepted == counts.completed + counts.failed + counts.rejected
        if undisturbed:
            assert replies == b"reply to areply to b"
            return


async def test_a_handler_that_asks_again_and_again_is_cancelled_at_the_deadline(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    """It never looks at cancelled_caught, and must not keep the others from running."""

    async def stubborn(connection: Connection) -> None:
        while True:
            with connection.idle():
                await connection.receive_some()

    server = await start(nursery, stubborn, grace=0.1)
    await dial()
    # Real time passes nowhere here: the deadline comes when the handler lets the clock run.
    server.shutdown(0)
    assert await server.wait_closed() == ShutdownReport(cancelled=1)


async def test_an_interrupted_receive_outside_of_idle_ends_its_own_connection_only(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def reads_beside(connection: Connection) -> None:
        if await connection.receive_some() == b"polite":
            await trio.sleep(3)
            await connection.send_all(b"bye")
            return
        async with trio.open_nursery() as inner:
            inner.start_soon(connection.receive_some)
            with connection.idle():
                await trio.sleep_forever()

    server = await start(nursery, reads_beside, grace=10)
    clients = {name: await dial() for name in (b"polite", b"odd")}
    for name, client in clients.items():
        await client.send_all(name)
    await wait_all_tasks_blocked()

    server.shutdown()

    assert await read_all(clients[b"odd"]) == b""
    assert trio.current_time() == 0
    assert await read_all(clients[b"polite"]) == b"bye"
    assert await server.wait_closed() == ShutdownReport(completed=2)


async def test_a_stream_closed_from_outside_is_forced_however_its_handler_takes_it(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    async def swallow(connection: Connection) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            await send_shielded(connection)

    server = await start(nursery, swallow, grace=1, limits=Limits(linger=1))
    await dial()
    server.shutdown()
    assert await server.wait_closed() == ShutdownReport(forced=1)
    assert trio.current_time() == 2


async def test_whoever_is_cancelled_first_the_report_counts_all(autojump_clock: Any) -> None:
    for _ in range(10):
        server = Server(never_ends)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, await trionet.listen("memb", "site"))
            for _ in range(5):
                await dial()
            nursery.cancel_scope.cancel()
        assert await server.wait_closed() == ShutdownReport(cancelled=5)
