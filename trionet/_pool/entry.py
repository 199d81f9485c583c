"""One open connection of a pool, and how it is seen to have died while nobody uses it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from .watch import find_hangup_probe, find_probe, find_socket, is_gone, stop_watching, watch

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from .watch import AnySocket

__all__ = ("Entry",)

T = TypeVar("T")


@final
class Entry(Generic[T]):
    """One open connection.

    Attributes:
      detour: whether a return has more to do than to put it back on the shelf.
      doomed: why it is to be closed when it comes back; empty while it is not.
      holder: the lease that has it, if it was lent to one.
      task: who took it, where that is known.
      where: the stack it was taken on, if leaks are reported.
      reporter: the connection, if it has a ``closed`` that says something, else None.
      probe: to be asked before it is handed out; if it is watched all the time, only while stale.
      stale: whether it has been idle for so long that its peer may have spoken out of turn.
      aging: whether it becomes ``stale``: it is watched, which tells of its peer's going away,
        but not of bytes that nobody asked for.
      born: when it was made.
      used: whether it was ever lent.
      watched: its socket is watched for as long as it lives.
      watched_idle: its socket is to be watched, but only while it is idle.
    """

    __slots__ = (
        "_announces",
        "_gone",
        "aging",
        "born",
        "detour",
        "doomed",
        "expires_at",
        "holder",
        "idle_since",
        "key",
        "probe",
        "reporter",
        "resource",
        "socket",
        "stale",
        "task",
        "used",
        "watched",
        "watched_idle",
        "where",
    )

    def __init__(self, resource: T, born: float) -> None:
        self.resource: T = resource
        self.key: int = id(resource)
        self.born: float = born
        self.expires_at: float = math.inf
        self.used: bool = False
        self.idle_since: float = -math.inf
        self.doomed: str = ""
        self.holder: object = None
        self.task: trio.lowlevel.Task | None = None
        self.where: list[str] | None = None
        closed = getattr(resource, "closed", None)
        # Some have a method of that name, which is true whatever it would return.
        self.reporter: Any = None if closed is None or callable(closed) else resource
        self.probe: Callable[[], bool] | None = find_probe(resource)
        self.socket: AnySocket | None
        self.socket, self._announces = find_socket(resource)
        gone = getattr(resource, "peer_closed", None)
        self._gone: Callable[[], bool] | None = gone if callable(gone) else None
        self.aging: bool = False
        self.stale: bool = False
        self.watched: bool = False
        self.watched_idle: bool = False
        self.detour: bool = False

    def doom(self, reason: str) -> None:
        """Have it closed, for ``reason``, as soon as it comes back."""
        self.doomed = self.doomed or reason
        self.detour = True

    def watch(self, callback: Callable[[], object]) -> None:
        """Have ``callback()`` called when the peer goes away, if not always, then while idle."""
        if self.socket is None:
            return
        if self._announces:
            self.watched = watch(self.socket, callback)
        elif watch(self.socket, callback):
            stop_watching(self.socket)
            self.watched_idle = self.detour = True
        if self.watched:
            self.aging = self.probe is not None
        elif self.watched_idle and self.probe is None:
            # What TLS leaves unread, session tickets say, makes it readable for no reason.
            self.probe = find_hangup_probe(self.socket)
        if self._gone is None and (self.watched or self.watched_idle):
            self._gone = find_hangup_probe(self.socket)

    def resume_watch(self, callback: Callable[[], object]) -> None:
        """Watch what is ``watched_idle`` as it becomes idle."""
        assert self.socket is not None
        watch(self.socket, callback)

    def stop_watch(self) -> None:
        """Watch it no more, or no more until it is idle again."""
        if (self.watched or self.watched_idle) and self.socket is not None:
            stop_watching(self.socket)

    def is_closed(self) -> bool:
        """Whether somebody closed it here."""
        if self.reporter is not None:
            try:
                return bool(self.reporter.closed)
            except Exception:  # noqa: BLE001 - it may run any code, and is no good if that fails
                return True
        return self.socket is not None and is_gone(self.socket)

    @property
    def doubtful(self) -> bool:
        """Whether `is_dead` may find something now that is not known already."""
        return self.probe is not None and (self.stale or not self.watched)

    def is_dead(self) -> bool:
        """Whether its peer has gone, or spoken out of turn."""
        probe = self.probe
        if self._gone is not None and not self.used:
            # What waits for its first user may be a greeting.
            probe = self._gone
        assert probe is not None
        try:
            return probe()
        except Exception:  # noqa: BLE001 - what cannot even say whether it works does not
            return True
