"""A peer to connect to that counts, and that fails, hangs and dies when told to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from trionet import Pool


class FakeConnection:
    """What `FakePeer.connect` returns: it can be closed, once, and its peer can go away."""

    def __init__(self, peer: FakePeer, number: int) -> None:
        self.peer = peer
        self.number = number
        self.born = trio.current_time()
        self.closed = False
        self.dead = False
        self.forced = False
        self.holders = 0

    def __repr__(self) -> str:
        return f"<connection {self.number}>"

    def is_readable(self) -> bool:
        """Whether the peer has gone: nothing else ever happens to an idle connection."""
        return self.dead

    async def aclose(self) -> None:
        """Take `FakePeer.close_time` seconds to close, or no time if cancelled."""
        assert not self.closed, f"{self!r} is closed twice"
        try:
            await trio.sleep(self.peer.close_time)
        except trio.Cancelled:
            self.forced = True
            raise
        finally:
            self.closed = True
            self.peer.open.discard(self)


class FakePeer:
    """Connections are made in `connect_time` seconds, and the peer sees how many are open.

    Attributes:
      open: connections the peer sees, from the start of the handshake until they are closed.
      most: how many it saw at once.
      made: all that were ever made.
      fail: what connecting raises, if anything.
    """

    def __init__(self, *, connect_time: float = 0.0, close_time: float = 0.0) -> None:
        self.connect_time = connect_time
        self.close_time = close_time
        self.open: set[object] = set()
        self.most = 0
        self.dials = 0
        self.dialled_at: list[float] = []
        self.made: list[FakeConnection] = []
        self.fail: BaseException | None = None
        self.on_connect: Callable[[FakeConnection], object] | None = None

    async def connect(self) -> FakeConnection:
        """Connect; to be given to a pool."""
        self.dials += 1
        self.dialled_at.append(trio.current_time())
        attempt = object()
        self._appear(attempt)
        try:
            await trio.sleep(self.connect_time)
        finally:
            self.open.discard(attempt)
        if self.fail is not None:
            raise self.fail
        connection = FakeConnection(self, len(self.made))
        self.made.append(connection)
        self._appear(connection)
        if self.on_connect is not None:
            self.on_connect(connection)
        return connection

    def _appear(self, what: object) -> None:
        self.open.add(what)
        self.most = max(self.most, len(self.open))

    def die(self) -> None:
        """Restart: every connection made so far is dead."""
        for connection in self.made:
            connection.dead = True


async def hold(pool: Pool[FakeConnection], seconds: float, log: list[Any] | None = None) -> None:
    """Be a user: acquire, and hold for some time."""
    async with pool.acquire() as connection:
        if log is not None:
            log.append((trio.current_time(), connection.number))
        await trio.sleep(seconds)
