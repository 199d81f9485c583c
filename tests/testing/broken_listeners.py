"""A listener for each rule that it breaks; its docstring says how."""

from __future__ import annotations

from typing import Any

import trio

import trionet
from tests.testing.broken import PlainListener

__all__ = ("GENERAL",)


class NoListener:
    """Looks like a listener, and is none."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.accept = inner.accept
        self.aclose = inner.aclose


class Impatient(PlainListener):
    """Does not wait for a dialler."""

    async def accept(self) -> Any:
        await trio.lowlevel.checkpoint()
        try:
            return self.inner.accept_nowait()
        except trio.WouldBlock:
            return trionet.memory_stream_pair()[0]


class GivesNumbers(PlainListener):
    """Accepts what is no stream."""

    async def accept(self) -> Any:
        await super().accept()
        return 5


class NoCheckpoint(PlainListener):
    """Runs on without a checkpoint when a connection is there."""

    async def accept(self) -> Any:
        try:
            return self.inner.accept_nowait()
        except trio.WouldBlock:
            return await self.inner.accept()


class Twice(PlainListener):
    """Hands out every other connection a second time."""

    last: Any = None

    async def accept(self) -> Any:
        if self.last is not None:
            await trio.lowlevel.checkpoint()
            last, self.last = self.last, None
            return last
        self.last = await super().accept()
        return self.last


class NotCancelled(PlainListener):
    """Does not look whether it is cancelled when a connection is there."""

    async def accept(self) -> Any:
        try:
            stream = self.inner.accept_nowait()
        except trio.WouldBlock:
            return await self.inner.accept()
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()
        return stream


class Pops(PlainListener):
    """Takes the connection, and then checks whether it is cancelled."""

    async def accept(self) -> Any:
        try:
            stream = self.inner.accept_nowait()
        except trio.WouldBlock:
            return await self.inner.accept()
        await trio.lowlevel.checkpoint()
        return stream


class PopsLater(PlainListener):
    """Takes the connection between two checkpoints, the second of which may be cancelled."""

    async def accept(self) -> Any:
        await trio.lowlevel.checkpoint()
        try:
            stream = self.inner.accept_nowait()
        except trio.WouldBlock:
            return await self.inner.accept()
        await trio.lowlevel.checkpoint()
        return stream


class LosesOnArrival(PlainListener):
    """Checks again whether it is cancelled once it has waited."""

    async def accept(self) -> Any:
        waited = not self.inner._queue
        stream = await self.inner.accept()
        if waited:
            await trio.lowlevel.checkpoint()
        return stream


class Queued(PlainListener):
    """Lets a second accept wait."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.lock = trio.Lock()

    async def accept(self) -> Any:
        async with self.lock:
            return await super().accept()


class WrongWord(PlainListener):
    """Says RuntimeError to a second accept."""

    async def accept(self) -> Any:
        try:
            return await super().accept()
        except trio.BusyResourceError as exc:
            raise RuntimeError from exc


class BusyForEver(PlainListener):
    """Stays busy once an accept was cancelled."""

    busy = False

    async def accept(self) -> Any:
        if self.busy:
            raise trio.BusyResourceError
        self.busy = not self.inner._queue
        stream = await super().accept()
        self.busy = False
        return stream


class LeavesWaiting(PlainListener):
    """Leaves the one that waits where it is when closed."""

    gone = False

    async def accept(self) -> Any:
        if self.gone:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError
        return await super().accept()

    async def aclose(self) -> None:
        self.gone = True
        await trio.lowlevel.checkpoint()


class BrokenWhenClosed(PlainListener):
    """Says Broken where it was closed."""

    async def accept(self) -> Any:
        try:
            return await super().accept()
        except trio.ClosedResourceError as exc:
            raise trio.BrokenResourceError from exc


class WaitsWhenClosed(PlainListener):
    """Waits for ever to accept once it was closed."""

    gone = False

    async def accept(self) -> Any:
        if self.gone:
            await trio.sleep_forever()
        return await super().accept()

    async def aclose(self) -> None:
        self.gone = True
        await super().aclose()


class ClosesOnce(PlainListener):
    """Raises when closed a second time."""

    async def aclose(self) -> None:
        if self.inner._closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError
        await super().aclose()


class NoCheckpointInClose(PlainListener):
    """Closes without a checkpoint."""

    async def aclose(self) -> None:
        self.inner.close()


class NotClosedWhenCancelled(PlainListener):
    """Stays open if its close is cancelled."""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.inner.close()


class TakesAllWithIt(PlainListener):
    """Closes what it accepted when it is closed."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.accepted: list[Any] = []

    async def accept(self) -> Any:
        self.accepted.append(await super().accept())
        return self.accepted[-1]

    async def aclose(self) -> None:
        for stream in self.accepted:
            stream.close()
        await super().aclose()


GENERAL = [
    (NoListener, r"must be a trio\.abc\.Listener, got <tests"),
    (Impatient, r"accept\(\) must wait while nobody has dialled"),
    (GivesNumbers, r"must return a trio\.abc\.Stream, got 5"),
    (NoCheckpoint, r"accept\(\) must execute a checkpoint when a connection was there"),
    (Twice, "three diallers must be accepted once each"),
    (NotCancelled, "must raise Cancelled, even with a connection there"),
    (Pops, "must lose no connection"),
    (PopsLater, "must lose no connection"),
    (LosesOnArrival, "must lose no connection"),
    (Queued, r"a second accept\(\) must raise Busy; it still waited after 5 s"),
    (WrongWord, r"a second accept\(\) must raise Busy; RuntimeError\(\) was raised"),
    (BusyForEver, "Busy"),
    (LeavesWaiting, r"must end an accept\(\) that waits"),
    (BrokenWhenClosed, r"with Closed; BrokenResourceError\(\) was raised"),
    (WaitsWhenClosed, r"on a closed listener must raise Closed; it still waited"),
    (ClosesOnce, "Closed"),
    (NoCheckpointInClose, r"aclose\(\) must execute a checkpoint"),
    (NotClosedWhenCancelled, r"aclose\(\) in a cancelled scope must close the listener"),
    (TakesAllWithIt, "A connection that was accepted outlives its listener"),
]
