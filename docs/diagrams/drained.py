"""A server that drains in virtual time, and what its connections were doing meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio
import trio.testing

import trionet

__all__ = ("GRACE", "LINGER", "Report", "watch")

GRACE = 10.0
LINGER = 1.0

# How often we look, in virtual seconds.
LOOK = 0.25


@dataclass
class Report:
    """What was seen.

    Attributes:
      lives: for each client, its stretches: state, from when, until when; 0 is the shutdown.
      returned: when ``serve`` returned.
      report: what it returned.
    """

    lives: dict[str, list[tuple[str, float, float]]] = field(default_factory=dict)
    returned: float = 0
    report: trionet.ShutdownReport = field(default_factory=trionet.ShutdownReport)


async def _handle(connection: trionet.Connection) -> None:
    """Be what the client asks for."""
    what = bytes(await connection.receive_some())
    if what == b"idle":
        with connection.idle():
            await connection.receive_some()
    elif what == b"busy":
        await trio.sleep(5)  # 3 s of it after the shutdown
    elif what == b"slow":
        await trio.sleep_forever()
    else:
        with trio.CancelScope(shield=True):
            await connection.send_all(bytes(1000))  # which the client does not read


CLIENTS = {
    "between two requests": b"idle",
    "3 s from its end": b"busy",
    "slower than the grace": b"slow",
    "shielded, peer reads nothing": b"deaf",
}


async def _watch() -> Report:
    seen = Report()
    limits = trionet.Limits(linger=LINGER)
    server = trionet.Server(_handle, limits=limits, grace=GRACE)
    listeners = await trionet.listen("memu", "server")
    start = trio.current_time() + 2

    def now() -> float:
        return trio.current_time() - start

    async def serve(*, task_status: trio.TaskStatus[object]) -> None:
        seen.report = await server.serve(listeners, task_status=task_status)
        seen.returned = now()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        names: dict[str, str] = {}
        clients = []
        for name, what in CLIENTS.items():
            client = await trionet.dial("memu", "server")
            clients.append(client)
            names[str(client.local_address)] = name
            await client.send_all(what)
        await trio.testing.wait_all_tasks_blocked()
        while True:
            if now() == 0:
                server.shutdown()
            await trio.testing.wait_all_tasks_blocked()
            for connection in server.connections:
                life = seen.lives.setdefault(
                    names[str(connection.remote_address)], []
                )
                if not life or life[-1][0] != connection.state:
                    life.append((connection.state, now(), now()))
                life[-1] = (*life[-1][:2], now() + LOOK)
            await trio.sleep(LOOK)
    return seen


def watch() -> Report:
    """Let a server drain, and look at it all the while."""
    return trio.run(_watch, clock=trio.testing.MockClock(autojump_threshold=0))
