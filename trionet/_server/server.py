"""The server: accept, isolate, drain.

How this works. ``serve`` runs one accept loop per listener, in a nursery of their own, and one
task per connection, in another; a connection's task does its handshake, its handler and its
closing. ``shutdown`` is synchronous: it cancels the accept loops, closes the listeners and gives
the handlers' nursery a deadline, so between its call and its return the server stops taking
anybody in. ``serve`` then waits for the last connection; when the deadline, or a cancellation from
outside, has cancelled the handlers, it waits ``linger`` longer, shielded, and closes from outside
the streams of those that are still there.

Counters are changed in `admit`, `refuse` and `_leave` only, and the set of connections with
them: accepted = active + completed + failed + rejected at every moment. What could be taken out
is in files of its own: accepting, closing, timekeeping; what is left is one state machine.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, final

import trio

from .._address import printable
from .._errors import ReceiveInterrupted, Ungrouped
from .._streams.preface import is_proxied
from ..abc import Listener, Stream
from .accept import Accepting
from .closing import close_politely
from .connection import Connection, HalfCloseableConnection
from .facts import ConnectionInfo, ServerStatistics, ShutdownReport, Watched
from .hosts import HostCounts
from .limits import Limits, check_seconds
from .timekeeper import Timekeeper

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .._address import Address

__all__ = ("Server",)

_logger = logging.getLogger("trionet.server")


@final
class Server:
    """Serves each client of its listeners with a task of its own, and stops gracefully.

    A handler that raises ends its own connection and nobody else's. Nothing here limits how long
    a handler may take: cancel scopes inside it do.
    """

    def __init__(
        self,
        handler: Callable[[Connection], Awaitable[object]],
        *,
        limits: Limits | None = None,
        grace: float = 10.0,
        on_error: Callable[[Connection, Exception], object] | None = None,
    ) -> None:
        """Prepare a server; `serve` runs it, once.

        Args:
          handler: called with each `Connection`. When it returns, the connection is closed
            politely; when it raises, forcefully.
          limits: `Limits` unless given.
          grace: seconds that handlers have to finish once the server drains. 10 by default, a
            third of what Kubernetes gives a whole pod.
          on_error: called with the connection and what its handler raised; synchronous. By
            default a log record. What it raises itself ends the server.

        Raises:
          TypeError, ValueError: an argument is wrong.
        """
        if not callable(handler):
            raise TypeError(f"handler must be an async function, got {handler!r}")
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f"limits must be a Limits, got {limits!r}")
        if on_error is not None and not callable(on_error):
            raise TypeError(f"on_error must be a function, got {on_error!r}")
        check_seconds("grace", grace)
        self._handler = handler
        self._limits = limits or Limits()
        self._grace = grace
        self._on_error = on_error or _log_error
        self._served = False
        self._paused = False
        self._failure: Exception | None = None
        self._listeners: tuple[trio.abc.Listener[Any], ...] = ()
        self._accepting = trio.CancelScope()
        self._handlers: trio.Nursery | None = None
        # An insertion-ordered set of what is open.
        self._connections: dict[Connection, None] = {}
        self._accepted = self._completed = self._failed = self._rejected = 0
        self._hosts = HostCounts(self._limits.max_connections_per_host)
        self._timekeeper = Timekeeper(
            self._limits, self._connections.keys(), self._close_from_outside
        )
        self._watching = trio.CancelScope()
        # Accept loops that found no room, or a pause, wait for this; whoever makes room sets it.
        self._room: trio.Event | None = None
        self._deadline = math.inf
        self._reported: set[Connection] = set()
        self._report = {"completed": 0, "cancelled": 0, "forced": 0}
        self._empty = trio.Event()
        self._closed = trio.Event()
        self.draining: trio.Event = trio.Event()

    def __repr__(self) -> str:
        where = ", ".join(f"{a.network} {printable(a)}" for a in self.addresses)
        state = "closed" if self._closed.is_set() else "draining" if self.draining.is_set() else ""
        return f"<Server {' '.join(filter(None, (state, where)))} active={len(self._connections)}>"

    @property
    def addresses(self) -> list[Address]:
        """Where it listens, one for each listener that knows its address."""
        return [one.address for one in self._listeners if isinstance(one, Listener)]

    @property
    def connections(self) -> list[ConnectionInfo]:
        """Facts of each open connection, oldest first."""
        now = trio.current_time()
        return [
            ConnectionInfo(
                remote_address=one.remote_address,
                local_address=one.local_address,
                age=now - one.started_at,
                bytes_received=one.bytes_received,
                bytes_sent=one.bytes_sent,
                state=one.state,
            )
            for one in self._connections
        ]

    def statistics(self) -> ServerStatistics:
        """Return the counts as they are now."""
        return ServerStatistics(
            accepted=self._accepted,
            active=len(self._connections),
            completed=self._completed,
            failed=self._failed,
            rejected=self._rejected,
        )

    def pause(self) -> None:
        """Accept nobody until `resume`; clients wait in the listeners' backlogs."""
        self._paused = True

    def resume(self) -> None:
        """Accept again after `pause`."""
        self._paused = False
        self._make_room()

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[Any]],
        *,
        task_status: trio.TaskStatus[list[Address]] = trio.TASK_STATUS_IGNORED,
    ) -> ShutdownReport:
        """Serve until `shutdown`, or until every listener was closed; then drain and return.

        Once it serves, the listeners are the server's, and closed at the end in any case.

        Args:
          listeners: what `trionet.listen` returns, or any `trio.abc.Listener` objects.
          task_status: ``nursery.start`` gets the list of addresses.

        Raises:
          RuntimeError: this server has served already; the listeners are not touched.
          TypeError, ValueError: these are no listeners, or none.
          OSError: a listener failed; raised after a drain.
          Exception: what ``on_error`` raised.

        If cancelled, handlers are cancelled at once and given `Limits.linger` seconds to end.
        """
        self._check_listeners(listeners)
        if self._served:
            raise RuntimeError("a Server serves once; make another")
        self._served = True
        self._listeners = tuple(listeners)
        try:
            with Ungrouped():
                async with trio.open_nursery() as handlers:
                    self._handlers = handlers
                    if self._timekeeper.needed:
                        handlers.start_soon(self._watch)
                    await self._accept_and_drain(task_status)
        finally:
            self._closed.set()
        if self._failure is not None:
            raise self._failure
        return ShutdownReport(**self._report)

    def shutdown(self, grace: float | None = None) -> None:
        """Start to drain: take nobody in any more, and give handlers time to finish.

        Synchronous and idempotent; call it from a handler, or anywhere else in trio. New clients
        are refused at once. Handshakes and waits in ``connection.idle()`` end now. Other handlers
        have ``grace`` seconds; then they are cancelled, and `Limits.linger` seconds later their
        streams are closed. ``serve`` returns when the last one has ended, at once if none is open.

        Args:
          grace: seconds; the server's own unless given. A second call can only shorten it.
        """
        if grace is None:
            grace = self._grace
        check_seconds("grace", grace)
        if self._closed.is_set():
            return
        self._accepting.cancel(reason="the server drains")
        if not self.draining.is_set():
            self.draining.set()
            for connection in self._connections:
                self._end_wait(connection)
        if not self._connections:
            self._empty.set()
        if self._handlers is not None:
            self._deadline = min(self._deadline, trio.current_time() + grace)
            self._handlers.cancel_scope.deadline = self._deadline
        # Last, since only this calls code that is not ours.
        for listener in self._listeners:
            if isinstance(listener, Listener):
                listener.close()

    async def wait_closed(self) -> ShutdownReport:
        """Wait until `serve` has ended, and return its report. If cancelled, nothing changes."""
        await self._closed.wait()
        return ShutdownReport(**self._report)

    # Accepting

    async def _accept_and_drain(self, task_status: trio.TaskStatus[list[Address]]) -> None:
        try:
            if self.draining.is_set():
                task_status.started(self.addresses)
            else:
                with self._accepting:
                    await self._accept_all(task_status)
            # Also where every listener was closed by somebody else: the same as being asked.
            self.shutdown()
            await self._close_foreign_listeners()
            await self._empty.wait()
            self._watching.cancel()
        except BaseException:
            # Cancelled from outside, or at the deadline of the drain: for this task, which is in
            # the handlers' nursery, the two look alike.
            self.shutdown(0)
            await self._close_foreign_listeners()
            await self._force()
            raise

    async def _watch(self) -> None:
        with self._watching:
            await self._timekeeper.run()

    async def _accept_all(self, task_status: trio.TaskStatus[list[Address]]) -> None:
        accepting = Accepting(self)
        with Ungrouped(), accepting:
            async with trio.open_nursery() as acceptors:
                for listener in self._listeners:
                    acceptors.start_soon(accepting.run, listener)
                task_status.started(self.addresses)

    def has_room(self) -> bool:
        """Whether another connection may be admitted now, or be rejected."""
        if self._paused:
            return False
        limits = self._limits
        if limits.max_accepts is not None and self._accepted >= limits.max_accepts:
            return False
        return (
            limits.max_connections is None
            or limits.overload == "reject"
            or len(self._connections) < limits.max_connections
        )

    async def wait_room(self) -> None:
        """Wait until `has_room`. If cancelled, nothing changes."""
        while not self.has_room():
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    def admit(self, transport: Stream) -> None:
        """Count an accepted stream, and start its task or turn it away."""
        assert self._handlers is not None
        limits = self._limits
        full = (
            limits.max_connections is not None and len(self._connections) >= limits.max_connections
        )
        host = None
        if self._hosts.limited and not is_proxied(transport):
            # A proxy's connections are all its own until it says whose they are.
            host = transport.remote_address.host
            full = full or self._hosts.is_full(host)
        if full or self.draining.is_set():
            self.refuse(transport)
            return
        self._accepted += 1
        half = isinstance(transport, trio.abc.HalfCloseableStream)
        kind = HalfCloseableConnection if half else Connection
        connection = kind(transport, self, trio.current_time())
        self._connections[connection] = None
        if host is not None:
            connection._host = host
            self._hosts.add(host)
        handshakes = hasattr(transport, "do_handshake")
        if handshakes:
            connection._phase = "handshaking"
        if self._timekeeper.needed:
            connection._watched = Watched(connection.started_at)
        if handshakes or connection._watched is not None or limits.lifetime is not None:
            connection._scope = trio.CancelScope(deadline=self._deadline_of(connection))
            self._handlers.start_soon(self._converse_within, connection._scope, connection)
        else:
            self._handlers.start_soon(self._converse, connection)
        if self._accepted == limits.max_accepts:
            self.shutdown()

    def refuse(self, transport: Stream) -> None:
        """Count an accepted stream, and close it at once."""
        assert self._handlers is not None
        self._accepted += 1
        self._rejected += 1
        close = getattr(transport, "close", None)
        if close is None:
            self._handlers.start_soon(self._discard, transport)
        else:
            close()
        if self._accepted == self._limits.max_accepts:
            self.shutdown()

    def fail(self, error: Exception) -> None:
        """Drain, and let `serve` raise ``error`` afterwards."""
        self._failure = error
        self.shutdown()

    def _deadline_of(self, connection: Connection) -> float:
        """When the scope of ``connection`` ends in its present phase."""
        limits = self._limits
        deadline = math.inf
        if connection._phase == "handshaking" and limits.handshake_timeout is not None:
            deadline = connection.started_at + limits.handshake_timeout
        if limits.lifetime is not None:
            deadline = min(deadline, connection.started_at + limits.lifetime)
        return deadline

    # One connection

    async def _converse_within(self, scope: trio.CancelScope, connection: Connection) -> None:
        """Run a connection whose transport has a handshake to do, in its one cancel scope."""
        with scope:
            await self._converse(connection)
        if scope.cancelled_caught:
            _logger.debug("%r did not finish in time", connection)

    async def _converse(self, connection: Connection) -> None:
        """Run one connection from its handshake to its closing, and let no error of it out."""
        returned = False
        try:
            if connection._phase == "handshaking":
                await self._shake_hands(connection)
            if connection._phase == "active":
                await self._handler(connection)
                returned = True
                if connection._phase == "active":
                    connection._phase = "closing"
                await close_politely(connection._transport, connection._scope, self._limits.linger)
        except Exception as exc:  # noqa: BLE001
            # The one place where everything is caught: what a handler raises is its client's.
            self._handle(connection, exc, returned=returned)
        except ReceiveInterrupted:
            # A receive outside of idle() that was interrupted: this connection's end, no more.
            _logger.debug("%r: a receive outside of idle() met the drain", connection)
        except BaseExceptionGroup as group:
            _, group_rest = group.split(ReceiveInterrupted)
            if group_rest is None:
                return
            errors, others = group_rest.split(Exception)
            if errors is not None:
                self._handle(connection, errors, returned=returned)
            if others is not None:
                raise others from None
        finally:
            try:
                if not connection.closed:
                    await self._discard(connection._transport)
            finally:
                self._leave(connection, returned=returned)

    async def _discard(self, transport: Stream) -> None:
        try:
            await trio.aclose_forcefully(transport)
        except Exception as exc:  # noqa: BLE001
            # A foreign stream's failing close is no reason to stop serving others.
            _logger.debug("%r: closing failed: %r", transport, exc)

    async def _shake_hands(self, connection: Connection) -> None:
        """Do what the transport needs before its first byte; if it worked, the client is active."""
        scope = connection._scope
        assert scope is not None
        transport: Any = connection._transport
        try:
            await transport.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            _logger.debug("%r: the handshake failed: %s", connection, exc)
            return
        # A handshake may win the race against its end; the end counts.
        if scope.cancel_called:
            return
        if self._hosts.limited and connection._host is None:
            host = connection.remote_address.host
            if self._hosts.is_full(host):
                connection._phase = "rejected"
                return
            connection._host = host
            self._hosts.add(host)
        connection._phase = "active"
        scope.deadline = self._deadline_of(connection)
        if connection._watched is not None:
            connection._watched.moved_at = trio.current_time()

    def _handle(self, connection: Connection, error: Exception, *, returned: bool) -> None:
        if returned or _peer_vanished(connection, error):
            _logger.debug("%r: the client went away: %r", connection, error)
        else:
            self._on_error(connection, error)

    def _leave(self, connection: Connection, *, returned: bool) -> None:
        """Forget a connection that has ended, and count how."""
        assert self._handlers is not None
        if not returned and not self.draining.is_set() and _cancelled_from_outside(connection):
            # Before serve's own task had its turn: the report is to count this one, too.
            self.shutdown(0)
        del self._connections[connection]
        self._hosts.remove(connection._host)
        if connection._phase == "rejected":
            self._rejected += 1
        elif returned:
            self._completed += 1
        else:
            self._failed += 1
        if connection in self._reported:
            if connection._phase == "forced":
                self._report["forced"] += 1
            elif self._handlers.cancel_scope.cancel_called:
                self._report["cancelled"] += 1
            else:
                self._report["completed"] += 1
        if self._room is not None:
            self._make_room()
        if self.draining.is_set() and not self._connections:
            self._empty.set()

    # Draining

    def _end_wait(self, connection: Connection) -> None:
        """End what a drain ends at once: a handshake, or a wait marked as idle."""
        if connection._phase == "handshaking":
            assert connection._scope is not None
            connection._scope.cancel(reason="the server drains")
            return
        connection._draining = True
        self._reported.add(connection)
        if connection._idle is not None:
            connection._transport.interrupt_receive()

    async def _force(self) -> None:
        """Wait until ``linger`` seconds after the deadline, then close what is still open."""
        with trio.CancelScope(shield=True, deadline=self._deadline + self._limits.linger):
            await self._empty.wait()
        for connection in list(self._connections):
            self._close_from_outside(connection)

    def _close_from_outside(self, connection: Connection) -> None:
        """Close a stream under a handler that does not heed its end."""
        assert self._handlers is not None
        if connection._phase != "forced":
            connection._phase = "forced"
            # In a task of its own: the timekeeper waits for nobody.
            self._handlers.start_soon(self._discard, connection._transport)

    async def _close_foreign_listeners(self) -> None:
        for listener in self._listeners:
            if not isinstance(listener, Listener):
                await trio.aclose_forcefully(listener)

    @staticmethod
    def _check_listeners(listeners: Sequence[trio.abc.Listener[Any]]) -> None:
        if isinstance(listeners, trio.abc.Listener):
            raise TypeError(f"serve takes a list of listeners, got one: {listeners!r}")
        for listener in listeners:
            if not isinstance(listener, trio.abc.Listener):
                raise TypeError(f"serve takes trio.abc.Listener objects, got {listener!r}")
        if not listeners:
            raise ValueError("serve needs at least one listener, got none")


def _cancelled_from_outside(connection: Connection) -> bool:
    """Whether the task of ``connection`` is being cancelled, and not by a limit of its own."""
    scope = connection._scope
    own = scope is not None and scope.cancel_called
    return not own and trio.current_effective_deadline() == -math.inf


def _peer_vanished(connection: Connection, error: Exception) -> bool:
    """Whether ``error`` says no more than that this connection's own peer is gone."""
    gone: tuple[type[Exception], ...] = (trio.BrokenResourceError,)
    if connection._phase == "forced":
        gone = (trio.BrokenResourceError, trio.ClosedResourceError)
    if isinstance(error, ExceptionGroup):
        _, others = error.split(gone)
        if others is not None:
            return False
    elif not isinstance(error, gone):
        return False
    # A broken upstream of the handler's raises the same; then this connection is still whole.
    return connection.closed or connection.peer_closed()


def _log_error(connection: Connection, error: Exception) -> None:
    # %r, since a client may choose what its address looks like.
    _logger.error("handler failed for client %r", str(connection.remote_address), exc_info=error)
