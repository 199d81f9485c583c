"""Edge-triggered polling of many descriptors through one: epoll on Linux, kqueue on macOS."""

from __future__ import annotations

import select
import sys
from typing import Any, Final, Protocol, final

__all__ = ("EpollPoller", "KqueuePoller", "Poller", "new_poller")

# How many events one poll takes. The rest come with the next pass of the scheduler, so that a
# storm of events cannot keep other tasks from running.
BURST: Final = 512

# The select module has what its platform has; type checkers know only the one they run on.
_select: Any = select


class Poller(Protocol):
    """Registers descriptors once, and tells each change of theirs once.

    Attributes:
      gone: the flags of an event that tell of an end of file or an error.
      urgent: those that tell of urgent data, in front of which a receive stops short (tcp(7)).
    """

    gone: int
    urgent: int

    def fileno(self) -> int:
        """The descriptor that is readable while there are events."""

    def register(self, fd: int) -> None:
        """Tell about ``fd`` from now on; at once if there is something to tell."""

    def unregister(self, fd: int) -> None:
        """Tell no more about ``fd``."""

    def poll(self) -> list[tuple[int, int]]:
        """Return what changed: descriptors, and the flags of each event, without waiting."""

    def close(self) -> None:
        """Give the poller's own descriptor back."""


@final
class EpollPoller:
    """Linux: epoll(7) with EPOLLET."""

    def __init__(self, *, bytes_too: bool) -> None:
        """Make one that tells about ends of file and errors, and about bytes if asked to."""
        self._epoll = _select.epoll()
        # EPOLLRDHUP tells end of file apart from bytes, which a short read cannot.
        self._events = _select.EPOLLRDHUP | _select.EPOLLET
        if bytes_too:
            self._events |= _select.EPOLLIN | _select.EPOLLPRI
        self.gone: int = _select.EPOLLRDHUP | _select.EPOLLHUP | _select.EPOLLERR
        self.urgent: int = _select.EPOLLPRI
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def register(self, fd: int) -> None:
        """Tell about ``fd`` from now on."""
        self._epoll.register(fd, self._events)

    def unregister(self, fd: int) -> None:
        """Tell no more about ``fd``."""
        self._epoll.unregister(fd)

    def poll(self) -> list[tuple[int, int]]:
        """Return descriptors that changed, and the flags of each event."""
        found: list[tuple[int, int]] = self._epoll.poll(0, BURST)
        return found


@final
class KqueuePoller:
    """macOS and the BSDs: kqueue(2) with EV_CLEAR."""

    def __init__(self, *, bytes_too: bool) -> None:
        """Make one that tells about ends of file and errors, and about bytes if asked to."""
        self._kqueue = _select.kqueue()
        self._bytes_too = bytes_too
        self.gone: int = _select.KQ_EV_EOF
        # macOS calls it EV_OOBAND; the BSDs do not tell.
        self.urgent: int = _select.KQ_EV_FLAG1 if sys.platform == "darwin" else 0
        self.fileno = self._kqueue.fileno
        self.close = self._kqueue.close

    def register(self, fd: int) -> None:
        """Tell about ``fd`` from now on."""
        self._change(fd, _select.KQ_EV_ADD | _select.KQ_EV_CLEAR)

    def unregister(self, fd: int) -> None:
        """Tell no more about ``fd``."""
        self._change(fd, _select.KQ_EV_DELETE)

    def poll(self) -> list[tuple[int, int]]:
        """Return descriptors that changed, and the flags of each event."""
        found = [(event.ident, event.flags) for event in self._kqueue.control([], BURST, 0)]
        # EVFILT_READ tells both; there is no filter for the end alone.
        return found if self._bytes_too else [one for one in found if one[1] & self.gone]

    def _change(self, fd: int, flags: int) -> None:
        event = _select.kevent(fd, _select.KQ_FILTER_READ, flags)
        self._kqueue.control([event], 0, 0)


def new_poller(*, bytes_too: bool) -> Poller | None:
    """Return this platform's poller, or None where there is none.

    Raises:
      OSError: no descriptor is left for it.
    """
    if hasattr(select, "epoll"):
        return EpollPoller(bytes_too=bytes_too)
    if hasattr(select, "kqueue"):
        return KqueuePoller(bytes_too=bytes_too)
    return None
