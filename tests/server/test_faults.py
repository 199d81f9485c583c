"""Handlers that misbehave, and drains that come at the worst moment."""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionet
from tests.server.attacked import under_attack
from trionet import Connection, Limits, Server

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Certificates


async def raises(connection: Connection) -> None:
    raise ValueError("a bug")


async def raises_a_group(connection: Connection) -> None:
    raise ExceptionGroup("several", [ValueError("a bug"), ExceptionGroup("in", [KeyError("b")])])


async def raises_stop_iteration(connection: Connection) -> None:
    next(iter(()))


async def recurses(connection: Connection) -> None:
    await recurses(connection)


async def runs_out_of_memory(connection: Connection) -> None:
    raise MemoryError


async def returns_without_closing(connection: Connection) -> None:
    return


async def closes_twice(connection: Connection) -> None:
    await connection.aclose()
    await connection.aclose()


async def closes_and_goes_on(connection: Connection) -> None:
    await connection.aclose()
    await connection.send_all(b"x")


async def spawns_and_returns(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(trio.sleep, 0)


async def spawns_and_fails(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive_some)
        nursery.start_soon(trio.sleep_forever)
        await trio.sleep(0)
        raise ValueError("a bug")


async def cancels_itself(connection: Connection) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.send_all(b"x")


async def times_out(connection: Connection) -> None:
    with trio.fail_after(0):
        await trio.sleep_forever()


async def blocks_the_loop(connection: Connection) -> None:
    time.sleep(0.05)


async def receives_twice_at_once(connection: Connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.receive_some)
        nursery.start_soon(connection.receive_some)


def is_not_async(connection: Connection) -> None:
    """Written without the word async."""


FAULTS: dict[Callable[[Connection], Any], str] = {
    raises: "failed",
    raises_a_group: "failed",
    raises_stop_iteration: "failed",
    recurses: "failed",
    runs_out_of_memory: "failed",
    returns_without_closing: "completed",
    closes_twice: "completed",
    closes_and_goes_on: "failed",
    spawns_and_returns: "completed",
    spawns_and_fails: "failed",
    cancels_itself: "completed",
    times_out: "failed",
    blocks_the_loop: "completed",
    receives_twice_at_once: "failed",
    is_not_async: "failed",
}


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_fault_ends_its_own_connection_only(
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    fault: Callable[[Connection], Any],
    secure: bool,
) -> None:
    async def handler(connection: Connection) -> None:
        if await connection.receive_some() == b"hello":
            await connection.send_all(b"hello")
        else:
            await fault(connection)

    async with under_attack(
        handler,
        ssl_context=certificates.server if secure else None,
        client_context=certificates.client if secure else None,
    ) as site:
        before = site.server.statistics()
        async with await site.dial() as bystander:
            if isinstance(bystander, trionet.TLSStream):
                await bystander.do_handshake()
            for _ in range(3):
                async with await site.dial() as client:
                    await client.send_all(b"fault")
                    with pytest.raises((trio.BrokenResourceError, EOFError)):
                        if not await client.receive_some():
                            raise EOFError
            await site.serves()
            # The one that was open all the time is as good as before.
            await bystander.send_all(b"hello")
            assert await bystander.receive_some() == b"hello"
        await site.quiet()

        after = site.server.statistics()
        assert getattr(after, FAULTS[fault]) - getattr(before, FAULTS[fault]) >= 3
        assert after.failed - before.failed == (3 if FAULTS[fault] == "failed" else 0)
    errors = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(errors) == (3 if FAULTS[fault] == "failed" else 0)


async def test_a_connection_that_is_kept_never_becomes_another_clients() -> None:
    kept: list[Connection] = []

    async def handler(connection: Connection) -> None:
        kept.append(connection)
        await connection.send_all(await connection.receive_some())

    async with under_attack(handler) as site:
        kept.clear()
        for _ in range(20):
            await site.serves()
        assert len({id(connection) for connection in kept}) == 20
        await site.quiet()
        for connection in kept:
            assert connection.closed
            with pytest.raises(trio.ClosedResourceError):
                await connection.send_all(b"for somebody else")


class AtAnyStep(trio.abc.Instrument):
    """Calls ``action`` after the n-th step of whichever task."""

    def __init__(self, n: int, action: Callable[[], object]) -> None:
        self.left = n
        self._action = action

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the steps of all tasks."""
        self.left -= 1
        if self.left == 0:
            self._action()


GRACE, LINGER = 3.0, 1.0


async def one_request(client_context: Any) -> bytes:
    """Shake hands, ask, read the answer to its end; return what came."""
    received = b""
    try:
        stream = await trionet.dial("memb", "localhost", ssl_context=client_context)
        async with stream:
            await stream.send_all(b"hello")
            while data := await stream.receive_some():
                received += data
    except (trio.BrokenResourceError, ConnectionRefusedError):
        pass
    return received


async def answer_once(connection: Connection) -> None:
    with connection.idle():
        await connection.send_all(await connection.receive_some())


async def ignore_everything(connection: Connection) -> None:
    with trio.CancelScope(shield=True):
        await connection.receive_some()
        await connection.receive_some()


@pytest.mark.parametrize("grace", [None, 0.0], ids=["grace", "none"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("handler", [answer_once, ignore_everything])
async def test_a_shutdown_at_any_step_of_any_task_ends_within_grace_and_linger(
    autojump_clock: Any,
    certificates: Certificates,
    handler: Callable[[Connection], Any],
    secure: bool,
    grace: float | None,
) -> None:
    """In the accept, the handshake, the handler, the closing: n = 1, 2, 3, ..."""
    server_context = certificates.server if secure else None
    client_context = certificates.client if secure else None
    for n in itertools.count(1):
        server = Server(handler, grace=GRACE, limits=Limits(linger=LINGER))
        listeners = await trionet.listen("memb", "localhost", ssl_context=server_context)

        asked_at: list[float] = []
        replies: list[bytes] = []

        def stop(server: Server = server, asked_at: list[float] = asked_at) -> None:
            asked_at.append(trio.current_time())
            server.shutdown(grace)

        instrument = AtAnyStep(n, stop)

        async def ask(replies: list[bytes] = replies) -> None:
            replies.append(await one_request(client_context))

        async with trio.open_nursery() as clients:
            trio.lowlevel.add_instrument(instrument)
            clients.start_soon(server.serve, listeners)
            clients.start_soon(ask)
            with trio.move_on_after(1):
                await server.wait_closed()
            missed = instrument.left > 0
            trio.lowlevel.remove_instrument(instrument)
            if missed:
                stop()
            report = await server.wait_closed()
            ended_at = trio.current_time()

        assert ended_at - asked_at[-1] <= LINGER + (GRACE if grace is None else grace)
        # A whole answer, or none.
        assert replies[0] in {b"", b"hello"}
        counts = server.statistics()
        assert counts.active == 0
        assert counts.accepted == counts.completed + counts.failed + counts.rejected
        assert report.completed + report.cancelled + report.forced <= counts.accepted <= 1
        assert trionet.names("memb") == []
        if missed:
            assert n > 5
            return
