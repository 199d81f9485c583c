"""ASGI applications on any trionet listener, with hypercorn's HTTP: 1.1, 2 and websockets.

Needs the extra ``trionet[hypercorn]``. The protocols are hypercorn's; connections, their limits
and the drain are those of `Server`, and so an application is served in memory too::

    async with open_application(app) as handler:
        await trionet.serve(handler, "memb", "site")

How this works. A connection's task reads, and hands what it read to hypercorn's protocol, which
starts a task for each request and says when none is under way. The reading is what ends a
connection: where it would wait it is interrupted, once the server drains and no request is under
way, or once the protocol has said that it is done. Bytes that are there already are served first.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Final, cast, final

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.statsd import StatsdLogger
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import LifespanTimeoutError, wrap_app

from .._errors import ReceiveInterrupted, Ungrouped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from hypercorn.events import Event
    from hypercorn.typing import AppWrapper, ConnectionState, Framework

    from .._address import Address
    from .._server.connection import Connection

__all__ = ("open_application",)

RECEIVE_SIZE: Final = 65536

# RFC 6455 section 7.4.1: the server goes down.
GOING_AWAY: Final = 1001


@final
class _Terminated:
    """Hypercorn's event for "finish what is under way, begin nothing": the server drains."""

    def __init__(self, draining: trio.Event) -> None:
        self._draining = draining

    def is_set(self) -> bool:
        return self._draining.is_set()

    async def wait(self) -> None:
        await self._draining.wait()

    async def set(self) -> None:
        raise AssertionError("only a Server begins to drain")

    async def clear(self) -> None:
        raise AssertionError("no Server ends to drain")


@final
class _Context(WorkerContext):
    """What hypercorn's protocols know of where they run, for one connection."""

    def __init__(self, requests: WorkerContext, draining: trio.Event) -> None:
        super().__init__(None)
        self._requests = requests
        self.terminated = _Terminated(draining)

    async def mark_request(self) -> None:
        await self._requests.mark_request()


@final
class _Life:
    """Hypercorn's lifespan, of an application that may end it at any time, a WSGI one at once."""

    def __init__(self, lifespan: Lifespan) -> None:
        self._lifespan = lifespan
        self._over = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._lifespan.handle_lifespan(task_status=task_status)
        self._over.set()

    async def start(self) -> None:
        lifespan = self._lifespan
        # Hypercorn sets this when the application has returned, and when it has raised.
        if not lifespan.shutdown.is_set():
            with contextlib.suppress(trio.BrokenResourceError):
                await lifespan.wait_for_startup()
        if lifespan.shutdown.is_set():
            # If it said that it cannot start, that is about to end this task.
            await self._over.wait()

    async def stop(self) -> None:
        if not self._lifespan.shutdown.is_set():
            with contextlib.suppress(trio.BrokenResourceError):
                await self._lifespan.wait_for_shutdown()


@contextlib.asynccontextmanager
async def open_application(
    app: Framework, config: Config | None = None
) -> AsyncIterator[Callable[[Connection], Awaitable[None]]]:
    """Start an ASGI or WSGI application, for an ``async with`` block; its value serves connections.

    The value is a handler for `Server` and `serve`. The application's lifespan is the block's:
    "startup" when it is entered, "shutdown" when it is left, which is to be after the drain; if
    the block is cancelled there is no "shutdown".

    Of ``config`` counts what is about protocols and applications: ``keep_alive_timeout``,
    ``read_timeout``, ``h2_max_concurrent_streams``, ``websocket_max_message_size``,
    ``max_requests`` (then the server drains), ``server_names``, the logs, ``startup_timeout`` and
    their kin. Where it listens, its certificates and its ``graceful_timeout`` do not: a listener's
    ``ssl_context`` has to offer HTTP/2 itself (``set_alpn_protocols(["h2", "http/1.1"])``), and a
    drain is the server's.

    When the server drains, requests under way are finished; connections without one end at once;
    websockets are closed with code 1001. As with hypercorn, a client that ends its side counts as
    gone, whatever it still waits for.

    Raises:
      hypercorn.utils.LifespanFailureError: the application says that it cannot start, or stop.
      hypercorn.utils.LifespanTimeoutError: it took too long for either.
    """
    config = config or Config()
    config.set_statsd_logger_class(StatsdLogger)
    wrapped = wrap_app(app, config.wsgi_max_body_size, None)
    state: dict[str, Any] = {}
    lifespan = Lifespan(wrapped, config, state)
    requests = WorkerContext(config.max_requests)

    async def handler(connection: Connection) -> None:
        conversation = _Conversation(connection, wrapped, config, requests)
        await conversation.run(cast("ConnectionState", state.copy()))

    with Ungrouped():
        async with trio.open_nursery() as nursery:
            life = _Life(lifespan)
            await nursery.start(life.run)
            await life.start()
            try:
                yield handler
            except Exception:
                # What the block raised says more than an application that does not stop.
                with contextlib.suppress(LifespanTimeoutError):
                    await life.stop()
                raise
            await life.stop()
            nursery.cancel_scope.cancel()


@final
class _Conversation:
    """One connection, between the server and hypercorn's protocol."""

    def __init__(
        self, connection: Connection, app: AppWrapper, config: Config, requests: WorkerContext
    ) -> None:
        self._connection = connection
        self._app = app
        self._config = config
        self._requests = requests
        self._sending = trio.Lock()
        self._protocol: ProtocolWrapper
        # Around each receive; its deadline changes while it waits.
        self._receiving = trio.CancelScope()
        self._idle = True
        self._idle_since = trio.current_time()
        self._done = False

    async def run(self, state: ConnectionState) -> None:
        """Serve until the client leaves or the protocol is done. If cancelled, requests are too."""
        connection = self._connection
        tls = connection.tls
        with Ungrouped(), Ungrouped():
            async with trio.open_nursery() as around:
                async with TaskGroup() as requests:
                    self._protocol = ProtocolWrapper(
                        self._app,
                        self._config,
                        _Context(self._requests, connection.draining),
                        requests,
                        state,
                        tls is not None,
                        _client(connection.remote_address),
                        _server(connection.local_address),
                        self._send,
                        "http/1.1" if tls is None else tls.alpn_protocol,
                    )
                    around.start_soon(self._drain)
                    if self._requests.max_requests is not None:
                        around.start_soon(self._obey_max_requests)
                    await self._protocol.initiate()
                    await self._receive()
                around.cancel_scope.cancel()
        # The server may have to read what is left, so that the close does not eat the answer.
        connection.resume_receive()

    async def _receive(self) -> None:
        """Hand everything that comes to the protocol, until there is no more to come."""
        self._look()
        while not self._done:
            self._receiving = trio.CancelScope()
            self._set_deadline()
            data: bytes | bytearray = b""
            try:
                with self._receiving:
                    data = await self._connection.receive_some(RECEIVE_SIZE)
            except (trio.BrokenResourceError, trio.ClosedResourceError, ReceiveInterrupted):
                break
            if self._done or self._receiving.cancelled_caught:
                break
            await self._protocol.handle(RawData(bytes(data)))
            if not data:
                break
            protocol = self._protocol.protocol
            if isinstance(protocol, H2Protocol):
                # Where HTTP/2 began as a request of 1.1, that never ended.
                self._note(idle=protocol.idle)
        await self._protocol.handle(Closed())

    def _set_deadline(self) -> None:
        config = self._config
        deadline = trio.current_time() + (config.read_timeout or math.inf)
        if self._idle:
            # From when the last request ended, whatever has come of the next one's head since.
            deadline = min(deadline, self._idle_since + config.keep_alive_timeout)
        self._receiving.deadline = deadline

    def _look(self) -> None:
        """Interrupt the reading if this connection is at its end, or let it go on."""
        if self._done or (self._idle and self._connection.draining.is_set()):
            self._connection.interrupt_receive()
        else:
            self._connection.resume_receive()

    async def _send(self, event: Event) -> None:
        """Do what the protocol asks for."""
        if isinstance(event, RawData):
            try:
                async with self._sending:
                    await self._connection.send_all(event.data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._protocol.handle(Closed())
        elif isinstance(event, Closed):
            self._done = True
            self._look()
            await self._protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._note(idle=event.idle)

    def _note(self, *, idle: bool) -> None:
        """Note whether a request is under way."""
        if idle != self._idle:
            self._idle = idle
            self._idle_since = trio.current_time()
            self._set_deadline()
            self._look()

    async def _drain(self) -> None:
        """When the server drains, say goodbye where there is nothing under way."""
        await self._connection.draining.wait()
        protocol = self._protocol.protocol
        if isinstance(protocol, H2Protocol):
            websockets: list[Any] = list(protocol.streams.values())
            if self._idle:
                protocol.connection.close_connection()
                await self._send(RawData(protocol.connection.data_to_send()))
        else:
            websockets = [protocol.stream]
        for stream in websockets:
            if isinstance(stream, WSStream) and stream.state is ASGIWebsocketState.CONNECTED:
                # As if the application had said it, which hears of the end as of any other.
                await stream.app_send(
                    {
                        "type": "websocket.close",
                        "code": GOING_AWAY,
                        "reason": "the server drains",
                    }
                )
        self._look()

    async def _obey_max_requests(self) -> None:
        await self._requests.terminate.wait()
        self._connection.server.shutdown()


def _client(address: Address) -> tuple[str, int] | None:
    """Return what ASGI's scope calls ``client``: a host and a port, or None."""
    if address.host is None or address.port is None:
        return None
    return address.host, address.port


def _server(address: Address) -> tuple[str, int] | None:
    """Return what ASGI's scope calls ``server``; a path or a name has no port."""
    # hypercorn's annotation has no None for a port; ASGI's specification has.
    return str(address) if address.host is None else address.host, address.port  # type: ignore[return-value]
