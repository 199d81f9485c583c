"""What can go wrong, and how a nursery of ours is kept out of sight.

trionet speaks trio's four words for resources and the operating system's for
addresses, so that a handler written on memory works on TCP::

    trio.ClosedResourceError    you closed it
    trio.BrokenResourceError    the other side, or what lies between, is gone
      TooLongError              it sent more than was allowed before its delimiter
    trio.BusyResourceError      two tasks did what one task at a time may do
    trio.WouldBlock             a ``*_nowait`` found nothing
    ConnectionRefusedError      nobody listens there
    OSError(EADDRINUSE)         somebody already does
    ValueError / TypeError      the call itself is wrong; nothing was opened

A pool adds reasons of its own::

    PoolError
        PoolClosedError         also trio.ClosedResourceError
        PoolConnectError
        PoolFullError
        PoolTimeoutError        also trio.TooSlowError
    RuntimeError
        LeaseError              what was given back was not lent, or not any more

A class of our own stands below the word it refines::

    trio.BrokenResourceError
      StreamResetError          this stream is over, its session is not
      SessionBrokenError        the session is over, and all its streams
      RemoteGoAwayError         the peer takes no new streams, those there are live on
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

if TYPE_CHECKING:
    from types import TracebackType

__all__ = (
    "LeaseError",
    "PoolClosedError",
    "PoolConnectError",
    "PoolError",
    "PoolFullError",
    "PoolTimeoutError",
    "ReceiveInterrupted",
    "RemoteGoAwayError",
    "SessionBrokenError",
    "StreamResetError",
    "TooLongError",
    "Ungrouped",
)


@final
class TooLongError(trio.BrokenResourceError):
    """The peer's message has no end within the size that was allowed for it.

    The connection still works, and what came stays to be received: a handler can answer before it
    closes, with HTTP's 431 say.
    """


@final
class ReceiveInterrupted(BaseException):
    """A ``receive_some`` would have waited, and its stream had been told not to.

    Raised on demand of `trionet.abc.Stream.interrupt_receive` alone, which is how a draining
    server ends a wait inside ``connection.idle()``. Like `trio.Cancelled` it is not an
    ``Exception``, so that a parser's ``except Exception`` on the way does not swallow it.
    """


@final
class Ungrouped:
    """Take one nursery's own wrapping off an exception: ``with Ungrouped():`` around the nursery.

    A nursery that is an implementation detail must not show: an exception that left its block, or
    the one child that failed, leaves as itself. Only one layer is taken off, so a group that the
    user raised stays a group; two failures at once stay together.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(exception, BaseExceptionGroup) or len(exception.exceptions) != 1:
            return
        only = exception.exceptions[0]
        context = only.__context__
        try:
            raise only
        finally:
            # Raising inside __exit__ chains the group to it; the group is what we are hiding.
            only.__context__ = context


class PoolError(Exception):
    """A pool did not lend a connection; one of its subclasses says why."""


@final
class PoolClosedError(PoolError, trio.ClosedResourceError):
    """The pool was closed, is draining, or belongs to the process this one was forked from."""


@final
class PoolFullError(PoolError):
    """As many tasks wait for a connection as ``max_waiting`` allows."""


@final
class PoolTimeoutError(PoolError, trio.TooSlowError):
    """No connection came within ``acquire(timeout=)``.

    The message carries the pool's sizes; ``__cause__`` is the last failure to connect, if
    connecting has not succeeded since.
    """


@final
class PoolConnectError(PoolError):
    """Connecting failed as often as the pool's `Backoff` allows; ``__cause__`` says how."""


@final
class LeaseError(RuntimeError):
    """A connection was given back twice, to the wrong pool, or used after it was given back."""


@final
class StreamResetError(trio.BrokenResourceError):
    """A stream of a multiplexed session was cut short; the session and its other streams live."""


@final
class SessionBrokenError(trio.BrokenResourceError):
    """A multiplexed session is gone, and all its streams with it.

    What the carrier raised, if it did, is the ``__cause__``.

    Attributes:
      reason: what happened, in words.
      code: the go-away code that was sent or received, or None where there was none.
    """

    def __init__(self, reason: str, *, code: int | None = None) -> None:
        super().__init__(f"the session is broken: {reason}")
        self.reason = reason
        self.code = code


@final
class RemoteGoAwayError(trio.BrokenResourceError):
    """The peer of a multiplexed session takes no new streams; those there are live on."""
