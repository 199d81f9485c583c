"""Connections to multiplex that count what is done to them, and fail when they are told to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

import trionet
import trionet.abc

if TYPE_CHECKING:
    from collections.abc import Callable


class Wire(trionet.abc.Stream, trio.abc.HalfCloseableStream):
    """One end of a memory connection that remembers who used it and how often it was closed.

    Attributes:
      far: the peer's end.
      closes: how often ``aclose`` was called.
      readers, writers: how many have each half, as those who have it say.
      tainted: it must not be lent any more.
    """

    def __init__(self, number: int = 0, buffer_size: int = 1024) -> None:
        self.number = number
        self.near, self.far = trionet.memory_stream_pair(buffer_size)
        self.closes = 0
        self.close_time = 0.0
        self.readers = self.writers = 0
        self.tainted = False

    def __repr__(self) -> str:
        return f"<wire {self.number}>"

    @property
    def local_address(self) -> trionet.Address:
        return self.near.local_address

    @property
    def remote_address(self) -> trionet.Address:
        return self.near.remote_address

    @property
    def closed(self) -> bool:
        return self.near.closed

    @property
    def gone(self) -> bool:
        """Whether it is closed at this end."""
        return self.near.closed

    @property
    def bytes_sent(self) -> int:
        return self.near.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self.near.bytes_received

    def is_readable(self) -> bool:
        return self.near.is_readable()

    def unread_size(self) -> int:
        return self.near.unread_size()

    def peer_closed(self) -> bool:
        return self.near.peer_closed()

    def interrupt_receive(self) -> None:
        self.near.interrupt_receive()

    def resume_receive(self) -> None:
        self.near.resume_receive()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        return self.near.send_nowait(data)

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | bytearray:
        return self.near.receive_nowait(max_bytes)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.near.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.near.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.near.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self.near.send_eof()

    async def aclose(self) -> None:
        self.closes += 1
        assert self.closes == 1, f"{self!r} is closed twice"
        try:
            await trio.sleep(self.close_time)
        finally:
            self.near.close()


class Exchange:
    """Makes wires, in `connect_time` seconds, and sees how many are open at once.

    Attributes:
      wires: all that were made.
      most: how many were open or being made at once.
      fail: what connecting raises, if anything.
    """

    def __init__(self, *, connect_time: float = 0.0, buffer_size: int = 1024) -> None:
        self.connect_time = connect_time
        self.buffer_size = buffer_size
        self.wires: list[Wire] = []
        self.dialling = 0
        self.dialled_at: list[float] = []
        self.most = 0
        self.made_by_hand = 0
        self.fail: Exception | None = None
        self.on_connect: Callable[[Wire], object] | None = None

    async def connect(self) -> Wire:
        """Connect; to be given to a multiplexer."""
        self.dialled_at.append(trio.current_time())
        self.dialling += 1
        self._count()
        try:
            await trio.sleep(self.connect_time)
        finally:
            self.dialling -= 1
        if self.fail is not None:
            raise self.fail
        return self._make()

    def make(self) -> Wire:
        """Make a wire at once, for who hands it over himself."""
        self.made_by_hand += 1
        return self._make()

    def _make(self) -> Wire:
        wire = Wire(len(self.wires), self.buffer_size)
        self.wires.append(wire)
        self._count()
        if self.on_connect is not None:
            self.on_connect(wire)
        return wire

    def _count(self) -> None:
        self.most = max(self.most, self.dialling + len(self.open))

    @property
    def open(self) -> list[Wire]:
        """The wires that are open at the near end."""
        return [wire for wire in self.wires if not wire.gone]


__all__ = ("Exchange", "Wire")
