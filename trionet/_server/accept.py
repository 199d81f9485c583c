"""The accept loop: one task per listener, which takes clients in bursts while there is room."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import trio

from .._streams.foreign import adopt
from ..abc import Listener

if TYPE_CHECKING:
    from ..abc import Stream

__all__ = ("Accepting", "Door")

_logger = logging.getLogger("trionet.server")

# How many connections one listener takes before other tasks run.
ACCEPT_BURST: Final = 64

# accept(2): the system is out of descriptors or memory; the client stays in the backlog.
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Seconds until an exhausted listener tries again; trio's own serve_listeners waits as long.
EXHAUSTED_DELAY: Final = 0.1

# Seconds between two log lines that say the same.
LOG_INTERVAL: Final = 1.0


class Door(Protocol):
    """What the accept loops of a server ask it."""

    def has_room(self) -> bool:
        """Whether another connection may be admitted now."""

    async def wait_room(self) -> None:
        """Wait until it may. If cancelled, nothing changes."""

    def admit(self, transport: Stream) -> None:
        """Take an accepted stream in, or turn it away."""

    def refuse(self, transport: Stream) -> None:
        """Turn an accepted stream away."""

    def fail(self, error: Exception) -> None:
        """Note that a listener is of no use any more."""


@final
class Accepting:
    """The accept loops of one server, and the descriptor they keep in reserve.

    A process that is out of descriptors cannot even tell its clients so: they sit in the backlog.
    The reserve is given up for a moment to accept and close them.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self._logged_at = -math.inf
        self._reserve: int | None = None

    def __enter__(self) -> None:
        self._restock()

    def __exit__(self, *exc: object) -> None:
        self._give_up_reserve()

    async def run(self, listener: trio.abc.Listener[Any]) -> None:
        """Accept from ``listener`` until it is closed, or fails and so ends the server.

        If cancelled, a client that was accepted and not yet admitted is closed.
        """
        while True:
            try:
                if isinstance(listener, Listener):
                    await self._accept(listener)
                else:
                    await self._accept_foreign(listener)
            except trio.ClosedResourceError:
                return
            except OSError as exc:
                if exc.errno not in EXHAUSTED:
                    self._door.fail(exc)
                    return
                self._log(listener, exc)
                if isinstance(listener, Listener):
                    self._turn_away(listener)
                await trio.sleep(EXHAUSTED_DELAY)

    async def _accept(self, listener: Listener[Stream]) -> None:
        door = self._door
        while True:
            await door.wait_room()
            await listener.wait_acceptable()
            # Asked each time: those it admits take room, and so did others while it waited.
            for _ in range(ACCEPT_BURST):
                if not door.has_room():
                    break
                try:
                    stream = listener.accept_nowait()
                except trio.WouldBlock:
                    break
                door.admit(stream)

    async def _accept_foreign(self, listener: trio.abc.Listener[Any]) -> None:
        while True:
            await self._door.wait_room()
            stream = await listener.accept()
            try:
                # It could not be asked to wait, so its client waits here, unstarted.
                await self._door.wait_room()
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            self._door.admit(adopt(stream))

    def _log(self, listener: trio.abc.Listener[Any], error: OSError) -> None:
        now = trio.current_time()
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            _logger.error("cannot accept on %r, trying again: %s", listener, error)

    def _turn_away(self, listener: Listener[Stream]) -> None:
        """Refuse one client with the reserve descriptor; the next pause frees it again."""
        self._give_up_reserve()
        with contextlib.suppress(trio.WouldBlock, OSError):
            stream = listener.accept_nowait()
            self._door.refuse(stream)
        self._restock()

    def _restock(self) -> None:
        # None left even for this: then clients wait in the backlog until there are.
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def _give_up_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
