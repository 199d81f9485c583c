"""A stream for each rule of `trionet.abc.Stream` that it breaks; its docstring says how."""

from __future__ import annotations

from typing import Any

import trio

from tests.testing.broken import SoundStream
from trionet.abc import ReceiveInterrupted

__all__ = ("STREAMS",)


class NoStream(trio.abc.Stream):
    """Is trio's kind of stream, and not trionet's."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        got: bytes = await self.inner.receive_some(max_bytes)
        return got

    async def aclose(self) -> None:
        await self.inner.aclose()


class Anonymous(SoundStream):
    """Has no address for its peer."""

    remote_address = None  # type: ignore[assignment]


class DumbRepr(SoundStream):
    """Has the repr that every object has."""

    __repr__ = object.__repr__


class LongRepr(SoundStream):
    """Has a repr of two lines."""

    def __repr__(self) -> str:
        return "<a stream\nof two lines>"


class CountsCalls(SoundStream):
    """Counts receives instead of bytes."""

    calls = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.calls += 1
        return await super().receive_some(max_bytes)

    @property
    def bytes_received(self) -> int:
        return self.calls


class SentNothing(SoundStream):
    """Does not count what it sent."""

    bytes_sent = 0


class AlwaysReadable(SoundStream):
    """Claims that something waits where nothing does."""

    def is_readable(self) -> bool:
        return True


class NeverReadable(SoundStream):
    """Does not notice what waits."""

    def is_readable(self) -> bool:
        return False


class LooksByTaking(SoundStream):
    """Takes a byte to see whether there is one."""

    def is_readable(self) -> bool:
        there = self.inner.is_readable()
        if self.inner._incoming.unread:
            self.inner._incoming._take(1)
        return there


class NothingUnread(SoundStream):
    """Does not count what waits."""

    def unread_size(self) -> int:
        return 0


class ClosedTooEarly(SoundStream):
    """Takes every peer for gone."""

    def peer_closed(self) -> bool:
        return True


class NeverClosedByPeer(SoundStream):
    """Takes no peer for gone."""

    def peer_closed(self) -> bool:
        return False


class ForgetsThatItEnded(SoundStream):
    """Does not know any more that the peer closed, once end of file was received."""

    ended = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await super().receive_some(max_bytes)
        self.ended = not data
        return data

    def peer_closed(self) -> bool:
        return not self.ended and super().peer_closed()


class NotInterrupted(SoundStream):
    """Lets a receive wait on when it is interrupted."""

    def interrupt_receive(self) -> None:
        pass


class InterruptedByBroken(SoundStream):
    """Says Broken where it was interrupted."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            return await super().receive_some(max_bytes)
        except ReceiveInterrupted as exc:
            raise trio.BrokenResourceError from exc


class InterruptedOnce(SoundStream):
    """Is interrupted once, and then waits again."""

    def interrupt_receive(self) -> None:
        self.inner.interrupt_receive()
        self.inner.resume_receive()


class HoldsBackWhenInterrupted(SoundStream):
    """Hands out nothing while interrupted, not even what has arrived."""

    interrupted = False

    def interrupt_receive(self) -> None:
        self.interrupted = True
        super().interrupt_receive()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.interrupted:
            await trio.lowlevel.checkpoint()
            raise ReceiveInterrupted
        return await super().receive_some(max_bytes)


class InterruptedForEver(SoundStream):
    """Cannot be resumed."""

    def resume_receive(self) -> None:
        pass


class TakesAndForgets(SoundStream):
    """Claims to have sent what it has not."""

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        return min(5, len(data))


class SendsAndDenies(SoundStream):
    """Sends, and says that it has not."""

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        pipe: Any = self.inner._outgoing
        piece = bytes(memoryview(data)[:5])
        pipe._chunks.append(piece)
        pipe.unread += len(piece)
        return 0


class TakesTooMuch(SoundStream):
    """Says that it took more than there was."""

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        return len(data) + 1


class TakesWhenClosed(SoundStream):
    """Takes bytes though it is closed."""

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        return len(data) if self.closed else 0


class NeverClosed(SoundStream):
    """Does not say that it is closed."""

    closed = False


class ForgetsItsPeer(SoundStream):
    """Has another address once it is closed."""

    @property
    def remote_address(self) -> Any:
        return self.local_address if self.closed else self.inner.remote_address


class SilentWhenClosed(SoundStream):
    """Raises where it is asked about a closed stream."""

    def unread_size(self) -> int:
        if self.closed:
            raise trio.ClosedResourceError
        return super().unread_size()


STREAMS = [
    (NoStream, r"must be a trionet\.abc\.Stream"),
    (Anonymous, "remote_address must be an Address, got None"),
    (DumbRepr, "repr must be one useful line"),
    (LongRepr, "repr must be one useful line"),
    (CountsCalls, "bytes_received and bytes_sent must count what passed"),
    (SentNothing, "bytes_received and bytes_sent must count what passed"),
    (AlwaysReadable, r"is_readable\(\) must be false while nothing waits"),
    (NeverReadable, r"is_readable\(\) must turn true when bytes arrive"),
    (LooksByTaking, "must not take any byte"),
    (NothingUnread, r"unread_size\(\) must count the bytes that wait"),
    (ClosedTooEarly, r"peer_closed\(\) must be false"),
    (NeverClosedByPeer, r"peer_closed\(\) must turn true"),
    (ForgetsThatItEnded, r"peer_closed\(\) must stay true"),
    (NotInterrupted, r"interrupt_receive\(\) must end a receive that waits"),
    (InterruptedByBroken, r"with ReceiveInterrupted; BrokenResourceError\(\) was raised"),
    (InterruptedOnce, r"interrupt_receive\(\) must end a receive"),
    (HoldsBackWhenInterrupted, "must still hand out what has arrived"),
    (InterruptedForEver, r"resume_receive\(\) must let a receive wait again"),
    (TakesAndForgets, "must arrive"),
    (SendsAndDenies, "must arrive once and in order"),
    (TakesTooMuch, r"send_nowait\(\) must return how many of its 16384 bytes"),
    (TakesWhenClosed, r"send_nowait\(\) when closed must take nothing"),
    (NeverClosed, "closed must be true after"),
    (ForgetsItsPeer, "a closed stream must keep its addresses"),
    (SilentWhenClosed, r"answers every question\. But ClosedResourceError\(\) was raised"),
]
