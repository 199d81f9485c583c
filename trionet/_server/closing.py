"""Closing a connection so that what was sent last still arrives."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import trio

from .._errors import ReceiveInterrupted

if TYPE_CHECKING:
    from ..abc import Stream

__all__ = ("close_politely",)

# What a client may still send while its connection is being closed: a request that was on its way.
LINGER_SIZE: Final = 65536


async def close_politely(transport: Stream, scope: trio.CancelScope | None, linger: float) -> None:
    """Close after a normal end, within ``linger`` seconds; at once if nothing stands against it.

    A socket closed with unread input resets the connection, and the reset may overtake and destroy
    the reply (RFC 9112 section 9.6). So unread input is read and dropped first, and only then.

    Args:
      scope: the cancel scope the caller is in already, or None where one is made if need be.

    If cancelled, also by ``scope`` when the time is up, closing is left to the caller.
    """
    if transport.closed:
        return
    unread = transport.unread_size() > 0
    if not unread and (close := getattr(transport, "close", None)) is not None:
        # This transport has no farewell to send: its aclose() is this and a scheduler pass, which
        # a connection that ends anyway can do without.
        close()
    elif scope is not None:
        # Not beyond its own: a connection's lifetime counts its closing.
        scope.deadline = min(scope.deadline, trio.current_time() + linger)
        await _finish(transport, unread=unread)
    else:
        with trio.move_on_after(linger):
            await _finish(transport, unread=unread)


async def _finish(transport: Stream, *, unread: bool) -> None:
    # TLS, say, has a farewell, which may wait for the peer.
    if unread:
        if isinstance(transport, trio.abc.HalfCloseableStream):
            await transport.send_eof()
        else:
            # Its end can only be told by closing: drop what is here, and wait for nothing more.
            transport.interrupt_receive()
        with contextlib.suppress(ReceiveInterrupted):
            await _drop(transport)
    await transport.aclose()


async def _drop(transport: Stream) -> None:
    dropped = 0
    while dropped < LINGER_SIZE:
        data = await transport.receive_some()
        if not data:
            return
        dropped += len(data)
