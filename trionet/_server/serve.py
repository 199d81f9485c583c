"""The one-line forms: listen and serve in one call, and serve until a signal."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import trio

from .._errors import Ungrouped
from .._streams.network import listen
from .server import Server

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

    from .._address import Address
    from .connection import Connection
    from .facts import ShutdownReport
    from .limits import Limits

__all__ = ("serve", "serve_until_signalled")


async def serve(
    handler: Callable[[Connection], Awaitable[object]],
    network: str,
    address: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    limits: Limits | None = None,
    grace: float = 10.0,
    on_error: Callable[[Connection, Exception], object] | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> ShutdownReport:
    """Listen on ``address`` and serve: `trionet.listen` and `Server` in one call.

    ``server = await nursery.start(partial(trionet.serve, handler, "tcp", ":8080"))`` gives the
    running `Server`.

    Args, Raises: as `trionet.listen` and `Server`.

    If cancelled, handlers are cancelled at once and given ``limits.linger`` seconds to end.
    """
    server = Server(handler, limits=limits, grace=grace, on_error=on_error)
    listeners = await listen(network, address, ssl_context=ssl_context)
    with Ungrouped():
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            task_status.started(server)
    return await server.wait_closed()


async def serve_until_signalled(
    server: Server,
    listeners: Sequence[trio.abc.Listener[Any]],
    *,
    task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
) -> ShutdownReport:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the drain at once.

    Raises:
      RuntimeError: this is not the main thread, which alone gets signals.

    If cancelled, handlers are cancelled at once, as with `Server.serve`.
    """
    report: ShutdownReport | None = None

    async def obey(signals: Any) -> None:
        grace = None
        async for _ in signals:
            server.shutdown(grace)
            grace = 0.0

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals, Ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey, signals)
            report = await server.serve(listeners, task_status=task_status)
            nursery.cancel_scope.cancel()
    assert report is not None
    return report
