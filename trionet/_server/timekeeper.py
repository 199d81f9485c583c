"""The timekeeper: one task per server that ends connections whose time is up.

How this works. No operation sets a timer. Streams count their bytes anyway; the timekeeper looks
at every connection ten times per timeout, and compares the counts with those it saw last. So a
connection is never ended early, and at most a tenth of the timeout late.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .connection import Connection
    from .facts import Watched
    from .limits import Limits

__all__ = ("Timekeeper",)

_logger = logging.getLogger("trionet.server")


@final
class Timekeeper:
    """Ends the connections of one server that break its time limits."""

    def __init__(
        self,
        limits: Limits,
        connections: Iterable[Connection],
        force: Callable[[Connection], object],
    ) -> None:
        """Watch over ``connections``, a collection that changes.

        Args:
          force: closes a connection from outside, for a handler that does not heed its end.
        """
        self._limits = limits
        self._connections = connections
        self._force = force
        all_limits = (limits.idle_timeout, limits.send_timeout, limits.lifetime)
        timeouts = [one for one in all_limits if one]
        # A trifle more than a tenth, or ten periods, rounded, could fall short of the timeout, and
        # the connection would end at the eleventh look: two tenths late.
        self._period = min(timeouts) / 10 * (1 + 1e-9) if timeouts else math.inf

    @property
    def needed(self) -> bool:
        """Whether there is anything to watch for."""
        return self._period != math.inf

    async def run(self) -> None:
        """Look, sleep, look again, for ever. If cancelled, nothing changes."""
        while True:
            await trio.sleep(self._period)
            now = trio.current_time()
            for connection in list(self._connections):
                self._look(connection, now)

    def _look(self, connection: Connection, now: float) -> None:
        watched = connection._watched
        if watched is None or connection._scope is None or connection.state == "handshaking":
            # A handshake has a limit of its own, an absolute one.
            return
        if watched.ended_at == math.inf and connection._scope.cancel_called:
            # By its lifetime, which the scope itself keeps to the moment.
            watched.ended_at = now
        if watched.ended_at != math.inf:
            if now - watched.ended_at >= self._limits.linger:
                self._force(connection)
            return
        sent, received = _moved(connection)
        moved = sent + received
        if moved != watched.moved:
            watched.moved = moved
            watched.moved_at = now
        if not connection.sending:
            watched.sent_at = math.inf
        elif sent != watched.sent or watched.sent_at == math.inf:
            watched.sent_at = now
        watched.sent = sent
        limits = self._limits
        if limits.idle_timeout is not None and now - watched.moved_at >= limits.idle_timeout:
            self._end(connection, watched, now, "idle_timeout")
        elif limits.send_timeout is not None and now - watched.sent_at >= limits.send_timeout:
            self._end(connection, watched, now, "send_timeout")

    def _end(self, connection: Connection, watched: Watched, now: float, limit: str) -> None:
        watched.ended_at = now
        assert connection._scope is not None
        connection._scope.cancel(reason=f"Limits.{limit}")
        _logger.debug("%r: ended by Limits.%s", connection, limit)


def _moved(connection: Connection) -> tuple[int, int]:
    """Sum up what every layer sent and received: ciphertext may move while plaintext waits."""
    sent = received = 0
    layer: Any = connection._transport
    while layer is not None:
        sent += layer.bytes_sent
        received += layer.bytes_received
        layer = getattr(layer, "transport", None)
    return sent, received
