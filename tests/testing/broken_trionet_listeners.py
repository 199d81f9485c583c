"""A listener for each rule of trionet's own that it breaks; its docstring says how."""

from __future__ import annotations

from typing import Any

import trio

from tests.testing.broken import SoundListener
from trionet import Address

__all__ = ("OURS",)


class WanderingAddress(SoundListener):
    """Has another address once it is closed."""

    @property
    def address(self) -> Address:
        return Address("memb", name=f"closed: {self.inner._closed}")


class TextAddress(SoundListener):
    """Has text for an address."""

    address = "site"  # type: ignore[assignment]


class NothingNow(SoundListener):
    """Returns None where there is no connection."""

    def accept_nowait(self) -> Any:
        try:
            return super().accept_nowait()
        except trio.WouldBlock:
            return None


class AwaitedNow(SoundListener):
    """Returns a coroutine, or something like it, from accept_nowait()."""

    def accept_nowait(self) -> Any:
        stream = super().accept_nowait()
        return lambda: stream


class BusyNow(SoundListener):
    """Does not answer accept_nowait() while a task waits."""

    def accept_nowait(self) -> Any:
        if self.inner._acceptor is not None:
            raise trio.BusyResourceError
        return super().accept_nowait()


class YoungestFirst(SoundListener):
    """Accepts the youngest connection first."""

    def accept_nowait(self) -> Any:
        self.inner._queue.rotate(1)
        return super().accept_nowait()

    async def accept(self) -> Any:
        self.inner._queue.rotate(1)
        return await super().accept()


class ReturnsAtOnce(SoundListener):
    """Does not wait in wait_acceptable()."""

    async def wait_acceptable(self) -> None:
        await trio.lowlevel.checkpoint()


class TakesWhileWaiting(SoundListener):
    """Takes the connection it waits for."""

    async def wait_acceptable(self) -> None:
        stream = await self.inner.accept()
        stream.close()


class TakesWhenCancelled(SoundListener):
    """Takes the connection it waits for, and gives it back, unless it is cancelled."""

    async def wait_acceptable(self) -> None:
        stream = await self.inner.accept()
        await trio.lowlevel.checkpoint()
        self.inner._queue.append(stream)


class NoCheckpointInWait(SoundListener):
    """Runs on in wait_acceptable() when a connection is there."""

    async def wait_acceptable(self) -> None:
        if not self.inner._queue:
            await self.inner.wait_acceptable()


class WaitsBeside(SoundListener):
    """Lets a task wait for a connection beside one that accepts."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.lock = trio.Lock()

    async def wait_acceptable(self) -> None:
        async with self.lock:
            while not self.inner._queue:
                await trio.sleep(0.01)
                if self.inner._closed:
                    raise trio.ClosedResourceError


class SleepsThroughClose(SoundListener):
    """Does not notice in wait_acceptable() that it was closed."""

    waits = False

    async def wait_acceptable(self) -> None:
        if self.waits or self.inner._acceptor is not None:
            raise trio.BusyResourceError
        self.waits = True
        try:
            await trio.lowlevel.checkpoint()
            while not self.inner._queue:
                await trio.sleep(0.01)
        finally:
            self.waits = False

    async def accept(self) -> Any:
        if self.waits:
            raise trio.BusyResourceError
        return await super().accept()


class ClosesOnceAtOnce(SoundListener):
    """Raises when close() is called again."""

    def close(self) -> None:
        if self.inner._closed:
            raise trio.ClosedResourceError
        super().close()

    async def aclose(self) -> None:
        self.inner.close()
        await trio.lowlevel.checkpoint()


class ClosesLater(SoundListener):
    """Does nothing in close(), all in aclose()."""

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        self.inner.close()
        await trio.lowlevel.checkpoint()


class WouldBlockWhenClosed(SoundListener):
    """Says WouldBlock when it is closed."""

    def accept_nowait(self) -> Any:
        try:
            return super().accept_nowait()
        except trio.ClosedResourceError:
            raise trio.WouldBlock from None


class LeavesTheQueue(SoundListener):
    """Leaves the connections that nobody accepted alone, and their diallers waiting."""

    def close(self) -> None:
        self.left = list(self.inner._queue)
        self.inner._queue.clear()
        super().close()


class EndsTheQueue(SoundListener):
    """Ends the connections that nobody accepted as if all were well."""

    def close(self) -> None:
        for stream in self.inner._queue:
            stream.close()
        self.inner._queue.clear()
        super().close()


class StillThere(SoundListener):
    """Leaves its name where it is, and takes what is dialled."""

    closed = False

    def close(self) -> None:
        forget, self.inner._forget = self.inner._forget, lambda: None
        super().close()
        self.inner._forget = forget
        self.inner._closed = False
        self.closed = True

    def accept_nowait(self) -> Any:
        if self.closed:
            raise trio.ClosedResourceError
        return super().accept_nowait()

    async def accept(self) -> Any:
        if self.closed:
            raise trio.ClosedResourceError
        return await super().accept()

    async def wait_acceptable(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        await super().wait_acceptable()


OURS = [
    (WanderingAddress, "address must stay the same when closed"),
    (TextAddress, r"address must be a trionet\.Address, got 'site'"),
    (NothingNow, "must raise WouldBlock while there is no connection; nothing was raised"),
    (AwaitedNow, "must return a stream, and no coroutine"),
    (BusyNow, r"accept_nowait\(\) beside an accept\(\) must not block; BusyResourceError"),
    (YoungestFirst, r"the oldest connection must be accepted first; the order was \[1, 0\]"),
    (ReturnsAtOnce, "wait_acceptable"),
    (TakesWhileWaiting, "accept|acceptable"),
    (TakesWhenCancelled, "accept|acceptable"),
    (NoCheckpointInWait, r"wait_acceptable\(\) must execute a checkpoint when one is there"),
    (WaitsBeside, r"must raise Busy"),
    (SleepsThroughClose, r"must end a wait_acceptable\(\) that waits"),
    (ClosesOnceAtOnce, r"close\(\) needs no await and may be repeated.*ClosedResourceError"),
    (ClosesLater, r"closing the listener must end a wait_acceptable\(\)"),
    (WouldBlockWhenClosed, r"accept_nowait\(\) when closed must raise Closed; WouldBlock"),
    (LeavesTheQueue, "must reset the connections that nobody accepted; it still waited"),
    (EndsTheQueue, "must reset the connections that nobody accepted; nothing was raised"),
    (StillThere, "whoever dials a closed listener must be refused"),
]
