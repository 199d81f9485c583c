"""Passing bytes from one stream to another: through the kernel alone where it can.

How this works. Two sockets are joined by a pipe of the kernel's: splice(2) moves pages from the
one into the pipe and from there into the other, and this program never sees them. The pipe is
emptied before more is taken, so a slow reader slows the sender, and what is on its way at any
moment is one pipe's fill, or in the plain loop one ``receive_some``.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final, final

import trio
from trio.lowlevel import checkpoint

from .._errors import ReceiveInterrupted, Ungrouped
from ..abc import Stream
from . import readiness
from .tls_engine import socket_below

if TYPE_CHECKING:
    from types import TracebackType

    from .sockets import SocketStream

__all__ = ("copy", "relay")

# What a pipe holds on Linux unless told otherwise (pipe(7)).
PIPE_SIZE: Final = 65536

# How much may be moved without a wait before other tasks run.
TURN_SIZE: Final = 1 << 20


async def copy(source: trio.abc.ReceiveStream, destination: trio.abc.SendStream) -> int:
    """Send on what comes from ``source``, until its end of file.

    Neither is closed, and the destination is not told of the end; `relay` does that. Both may be
    the same stream, which makes an echo. Between two sockets on Linux the kernel moves the bytes.

    Returns:
      How many bytes were passed on.

    Raises:
      trio.BrokenResourceError, trio.ClosedResourceError: one of the two is broken, or closed.
      trio.BusyResourceError: another task receives from ``source`` or sends to ``destination``.

    If cancelled, what was received and not yet sent is lost, at most 64 KiB between sockets and
    one ``receive_some`` otherwise: so much as ``source.bytes_received`` has grown by more than
    ``destination.bytes_sent``. Both streams stay usable.
    """
    one_way = _OneWay(source, destination)
    await one_way.run()
    return one_way.total


async def relay(a: trio.abc.Stream, b: trio.abc.Stream) -> tuple[int, int]:
    """Pass bytes both ways between ``a`` and ``b`` until both have ended; close neither.

    End of file from one side is sent to the other, and the opposite direction goes on. A stream
    that cannot end one direction alone, one over TLS for example, can only be told by closing it:
    there the relay is over with the first end of file that would have to be told it.

    Returns:
      How many bytes went from ``a`` to ``b``, and how many from ``b`` to ``a``.

    Raises:
      trio.BrokenResourceError, trio.ClosedResourceError: one of the two is broken, or closed; the
        other direction was cancelled.

    If cancelled, each direction loses what `copy` would.
    """
    forth, back = _OneWay(a, b), _OneWay(b, a)
    with Ungrouped():
        async with trio.open_nursery() as nursery:
            for one_way in (forth, back):
                nursery.start_soon(_run_to_the_end, one_way, nursery.cancel_scope)
    return forth.total, back.total


async def _run_to_the_end(one_way: _OneWay, both: trio.CancelScope) -> None:
    await one_way.run()
    destination = one_way.destination
    # A server's connection may have had TLS put on it, and is of its old class all the same.
    encrypted = getattr(destination, "tls", None) is not None
    if isinstance(destination, trio.abc.HalfCloseableStream) and not encrypted:
        await destination.send_eof()
    else:
        both.cancel()


@final
class _OneWay:
    """One direction, and how many bytes it has passed on."""

    def __init__(self, source: trio.abc.ReceiveStream, destination: trio.abc.SendStream) -> None:
        self.source: Any = source
        self.destination: Any = destination
        self.total = 0
        self._may_splice = hasattr(os, "splice")

    async def run(self) -> None:
        while True:
            # Asked each time: a buffered stream shows its socket once its buffer is empty.
            if self._may_splice:
                pair = self._sockets()
                if pair is not None and await self._splice(*pair):
                    return
            data = await self.source.receive_some()
            if not data:
                return
            await self.destination.send_all(data)
            self.total += len(data)

    def _sockets(self) -> tuple[SocketStream, SocketStream] | None:
        if not isinstance(self.source, Stream) or not isinstance(self.destination, Stream):
            return None
        near, far = socket_below(self.source), socket_below(self.destination)
        return None if near is None or far is None else (near, far)

    async def _splice(self, near: SocketStream, far: SocketStream) -> bool:
        """Pass on everything to the end; False, and nothing, if the kernel cannot do it."""
        try:
            pipe = _KernelPipe()
        except OSError:
            # Out of descriptors: one can do without.
            self._may_splice = False
            return False
        turn = 0
        with pipe:
            await checkpoint()
            while True:
                filled = await self._fill(pipe, near)
                if filled is None:
                    self._may_splice = False
                    return False
                if not filled:
                    return True
                await self._empty(pipe, far, filled)
                turn += filled
                if turn >= TURN_SIZE:
                    turn = 0
                    await checkpoint()

    # To everybody else these two are a receive_some and a send_all of the sockets' streams: what
    # those count, and whom they keep off, is the same.

    async def _fill(self, pipe: _KernelPipe, near: SocketStream) -> int | None:
        """Receive into the empty pipe; 0 is end of file, None that the kernel cannot do it."""
        if near._receive_busy:
            raise trio.BusyResourceError("another task is receiving on this stream")
        near._receive_busy = True
        # An edge that tells of more may be used up in here.
        near._drained = False
        try:
            while True:
                try:
                    filled = os.splice(
                        near.socket.fileno(), pipe.write_end, PIPE_SIZE, flags=pipe.flags
                    )
                except BlockingIOError:
                    if near._interrupted and not near.is_readable():
                        raise ReceiveInterrupted from None
                    await readiness.park_readable(near.socket)
                else:
                    near._received += filled
                    return filled
        except OSError as exc:
            if exc.errno == errno.EINVAL and not self.total:
                return None
            raise near._translated(exc) from exc
        finally:
            near._receive_busy = False

    async def _empty(self, pipe: _KernelPipe, far: SocketStream, filled: int) -> None:
        if far._send_busy:
            raise trio.BusyResourceError("another task is sending on this stream")
        far._check_sendable()
        far._send_busy = True
        try:
            while filled:
                try:
                    sent = os.splice(pipe.read_end, far.socket.fileno(), filled, flags=pipe.flags)
                except BlockingIOError:
                    await readiness.park_writable(far.socket)
                else:
                    filled -= sent
                    far._sent += sent
                    self.total += sent
        except OSError as exc:
            raise far._translated(exc) from exc
        finally:
            far._send_busy = False


@final
class _KernelPipe:
    """A pipe for the length of a ``with`` block."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.flags = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.read_end)
        os.close(self.write_end)
