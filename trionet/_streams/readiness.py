"""The readiness hub: who waits for which socket.

How this works. trio's ``wait_readable`` registers a descriptor for one wake-up each time, which is
a system call and some bookkeeping a wait; for a few sockets nothing is faster. For many, each is
registered once with a poller of ours, edge-triggered, and a system task waits for that one
descriptor with trio's ``wait_readable`` and then reschedules all parked tasks of a burst. So the
first `DIRECT_WAITS` tasks that wait use trio's, and a socket that first parks beyond them moves to
the hub and stays there.

An edge comes once. It may come while nobody is parked on its socket: the entry remembers it, and
the next park returns at once. End of file and errors are remembered for good, since after them no
further edge may come. Waking somebody for nothing is always allowed: whoever parks tries again.

Where there is no poller, trio's own wait is used for all, and `watch_hangup` says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from typing import TYPE_CHECKING, Final, final

import trio
from trio.lowlevel import reschedule

from .entry import WOKEN, Entry
from .poller import new_poller

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from .poller import Poller

__all__ = (
    "Entry",
    "entry_of",
    "forget",
    "park_readable",
    "park_writable",
    "unwatch_hangup",
    "waits",
    "wake",
    "watch_hangup",
)

# With fewer tasks than this waiting, the hub's extra scheduler pass costs more than the system
# calls it saves (43 against 32 µs a TCP round trip for one pair, 24 against 39 for fifty).
DIRECT_WAITS: Final = 4

_logger = logging.getLogger("trionet.readiness")
_hubs: weakref.WeakSet[_Hub] = weakref.WeakSet()


def _after_fork() -> None:
    for hub in _hubs:
        hub.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@final
class _Hub:
    """This run's pollers and what is registered with them."""

    def __init__(self) -> None:
        self.forked = False
        # Whether the run comes to its end, and the system tasks with it.
        self._ending = False
        self.entries: dict[int, Entry] = {}
        self.direct_waits = 0
        self._edges: Poller | None = None
        self._hangups: Poller | None = None
        self._watchers: dict[int, tuple[weakref.ref[socket.socket], Callable[[], object]]] = {}

    def disown(self) -> None:
        """Use this no more: in a forked child, whose pollers are its parent's too."""
        self.forked = True
        self._forget_entries()

    def _forget_entries(self) -> list[Entry]:
        forgotten = list(self.entries.values())
        for entry in forgotten:
            entry.registered = False
        self.entries.clear()
        return forgotten

    # Readability

    def entry_of(self, sock: socket.socket, fd: int) -> Entry | None:
        """Return what is known of ``sock``, and forget what was known of a predecessor."""
        entry = self.entries.get(fd)
        if entry is not None and entry.sock() is not sock:
            self.unregister(fd)
            return None
        return entry

    def register(self, sock: socket.socket, fd: int) -> Entry | None:
        """Register ``sock``, or return None where it cannot be."""
        if self._ending:
            return None
        try:
            if self._edges is None:
                self._edges = new_poller(bytes_too=True)
                if self._edges is None:
                    return None
                trio.lowlevel.spawn_system_task(self._serve_edges, self._edges)
            self._edges.register(fd)
        except OSError:
            # Out of descriptors, or of the kernel's memory for watches: trio's wait needs neither.
            return None
        entry = self.entries[fd] = Entry(sock)
        return entry

    def unregister(self, fd: int) -> Entry | None:
        entry = self.entries.pop(fd, None)
        if entry is None:
            return None
        entry.registered = False
        if self._edges is not None:
            # Not left to close(): a forked child may keep the description open, and events of a
            # descriptor that has gone would then wake its successor's tasks for ever.
            _unregister(self._edges, fd)
        return entry

    async def _serve_edges(self, edges: Poller) -> None:
        entries = self.entries
        gone = edges.gone
        special = gone | edges.urgent
        try:
            while True:
                await trio.lowlevel.wait_readable(edges.fileno())
                for fd, events in edges.poll():
                    entry = entries.get(fd)
                    if entry is None:
                        continue
                    if events & special:
                        if events & gone:
                            entry.hung_up = True
                        else:
                            # A receive will stop short in front of it, more bytes behind. Who
                            # takes that for all there is registers anew, and is told at once.
                            self.unregister(fd)
                    task = entry.task
                    if task is None:
                        entry.ready = True
                    else:
                        entry.task = None
                        reschedule(task, WOKEN)
        except trio.Cancelled:
            # Other system tasks may still wait, shielded: from now on by trio's own means.
            self._ending = True
            for entry in self._forget_entries():
                entry.wake()
            raise
        finally:
            edges.close()
            self._edges = None
            self._forget_entries()

    def waits(self) -> tuple[int, int]:
        parked = sum(entry.task is not None for entry in self.entries.values())
        return (self._edges is not None) + (self._hangups is not None), parked

    # Hang-ups

    def watch(self, sock: socket.socket, callback: Callable[[], object]) -> bool:
        fd = sock.fileno()
        if fd in self._watchers:
            if self._watchers[fd][0]() is sock:
                raise ValueError(f"{sock!r} is watched already")
            self.unwatch(fd)
        if self._ending:
            return False
        try:
            if self._hangups is None:
                self._hangups = new_poller(bytes_too=False)
                if self._hangups is None:
                    return False
                trio.lowlevel.spawn_system_task(self._serve_hangups, self._hangups)
            self._hangups.register(fd)
        except OSError:
            return False
        self._watchers[fd] = (weakref.ref(sock), callback)
        return True

    def unwatch(self, fd: int) -> None:
        if self._watchers.pop(fd, None) is not None and self._hangups is not None:
            _unregister(self._hangups, fd)

    async def _serve_hangups(self, hangups: Poller) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(hangups.fileno())
                for fd, _ in hangups.poll():
                    sock, callback = self._watchers.get(fd, (None, None))
                    if sock is not None and sock() is not None and callback is not None:
                        self._call(callback)
        finally:
            self._ending = True
            hangups.close()
            self._hangups = None
            self._watchers.clear()

    @staticmethod
    def _call(callback: Callable[[], object]) -> None:
        try:
            callback()
        except Exception:
            # An exception out of a system task would take the whole run down.
            _logger.exception("a hang-up callback raised")


def _unregister(poller: Poller, fd: int) -> None:
    # Gone already where the socket was closed, or collected, without `forget`.
    with contextlib.suppress(OSError):
        poller.unregister(fd)


_hub: trio.lowlevel.RunVar[_Hub] = trio.lowlevel.RunVar("trionet.readiness")


def _this_hub() -> _Hub | None:
    """Return this run's hub, or None in a child forked inside it: its pollers are shared."""
    try:
        hub = _hub.get()
    except LookupError:
        hub = _Hub()
        _hubs.add(hub)
        _hub.set(hub)
    return None if hub.forked else hub


def entry_of(sock: socket.socket) -> Entry | None:
    """Return the entry of a socket that is registered with this run's hub, else None."""
    hub = _this_hub()
    return None if hub is None else hub.entry_of(sock, sock.fileno())


async def park_readable(sock: socket.socket) -> None:
    """Wait until ``sock`` is probably readable; the caller tries again, and may park again.

    Raises:
      trio.ClosedResourceError: the socket was closed (and `forget` called) meanwhile.

    If cancelled, nothing was received.
    """
    hub = _this_hub()
    if hub is None:
        await _wait_directly(sock)
        return
    fd = sock.fileno()
    if fd == -1:
        raise trio.ClosedResourceError("this socket was closed")
    entry = hub.entry_of(sock, fd)
    if entry is None and hub.direct_waits >= DIRECT_WAITS:
        entry = hub.register(sock, fd)
    if entry is None:
        hub.direct_waits += 1
        try:
            await _wait_directly(sock)
        finally:
            hub.direct_waits -= 1
        return
    await entry.park()


def wake(sock: socket.socket) -> None:
    """Make a task parked in `park_readable` on ``sock`` return as if that were ready."""
    hub = _this_hub()
    entry = hub.entry_of(sock, sock.fileno()) if hub is not None else None
    if entry is None:
        # Wakes a writer too, which tries again like everybody who parks.
        trio.lowlevel.notify_closing(sock)
    else:
        entry.wake()


def forget(sock: socket.socket) -> None:
    """Drop all that is known of ``sock``; call it right before closing the socket.

    A task parked on it wakes, and gets `trio.ClosedResourceError` when it tries again.
    """
    fd = sock.fileno()
    hub = _this_hub()
    if hub is not None:
        entry = hub.unregister(fd)
        if entry is not None:
            entry.wake()
        hub.unwatch(fd)
    trio.lowlevel.notify_closing(sock)


def watch_hangup(sock: socket.socket, callback: Callable[[], object]) -> bool:
    """Call ``callback()`` once the peer of ``sock`` has closed or reset the connection.

    Costs no task and, until it happens, no system call. The callback is synchronous, runs outside
    every task of the caller's, may come more than once, and must not raise: what it raises is
    logged. `unwatch_hangup` or `forget` ends it.

    Returns:
      False where the platform cannot tell (then the callback is never called).

    Raises:
      ValueError: the socket is watched already.
    """
    hub = _this_hub()
    return hub is not None and hub.watch(sock, callback)


def unwatch_hangup(sock: socket.socket) -> None:
    """Take `watch_hangup` back; nothing happens if ``sock`` is not watched."""
    hub = _this_hub()
    if hub is not None:
        hub.unwatch(sock.fileno())


def waits() -> tuple[int, int]:
    """Return how many waits of trio's are the hub's own, and how many tasks wait through them.

    For whoever counts the tasks that wait for a real descriptor.
    """
    hub = _this_hub()
    return (0, 0) if hub is None else hub.waits()


async def park_writable(sock: socket.socket) -> None:
    """Wait until ``sock`` is probably writable, by trio's own wait: writes rarely block.

    Raises and leaves behind what `park_readable` does.
    """
    try:
        await trio.lowlevel.wait_writable(sock)
    except trio.ClosedResourceError:
        if sock.fileno() == -1:
            raise


async def _wait_directly(sock: socket.socket) -> None:
    try:
        await trio.lowlevel.wait_readable(sock)
    except trio.ClosedResourceError:
        # `wake` borrows trio's "this is being closed"; it is not, so go and look.
        if sock.fileno() == -1:
            raise
