"""What a `trio.abc.Listener` must do.

Each check is a function whose docstring is the rule. It gets a fresh listener, and what dials it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import trio

from .. import abc
from .checking import (
    Attempt,
    Raises,
    bounded,
    checkpointed,
    expect,
    interrupted,
    nursery_of_check,
    settle,
    sweep,
    talk,
    who_is,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = (
    "GENERAL_RULES",
    "Dial",
    "ListenerMaker",
    "Subject",
    "accepts_each_connection_once",
    "accepts_nothing_when_closed",
    "closes_when_cancelled",
    "is_a_checkpoint_with_a_connection_there",
    "is_cancelled_beforehand",
    "is_for_one_task_at_a_time",
    "leaves_accepted_connections_alone",
    "left_over",
    "listening",
    "loses_nothing_when_cancelled",
    "loses_nothing_when_cancelled_as_it_arrives",
    "waits_for_a_dialler",
    "wakes_an_accept_when_closed",
)

Dial: TypeAlias = "Callable[[], Awaitable[trio.abc.Stream]]"
ListenerMaker: TypeAlias = "Callable[[], Awaitable[tuple[trio.abc.Listener[Any], Dial]]]"


@final
@dataclass
class Subject:
    """A listener under test, what dials it, and the streams it has led to."""

    listener: trio.abc.Listener[Any]
    dial: Dial
    streams: list[trio.abc.AsyncResource] = field(default_factory=list)

    @property
    def ours(self) -> bool:
        """Whether trionet's own rules count."""
        return isinstance(self.listener, abc.Listener)

    @property
    def net(self) -> abc.Listener[abc.Stream]:
        """The listener, for checks of trionet's own rules."""
        assert isinstance(self.listener, abc.Listener)
        return self.listener

    async def dialled(self) -> trio.abc.Stream:
        """Dial, and close the stream in the end."""
        with bounded("dialling must not wait for ever while the listener is open"):
            stream = await self.dial()
        self.streams.append(stream)
        return stream

    async def taken(self) -> Any:
        """Accept, and close the stream in the end."""
        stream = await self.listener.accept()
        expect(
            isinstance(stream, trio.abc.Stream),
            f"accept() must return a trio.abc.Stream, got {stream!r}",
        )
        self.streams.append(stream)
        return stream

    async def accepted(self) -> Any:
        """Accept what was dialled."""
        with bounded("accept() must return a connection that was dialled"):
            return await self.taken()

    @asynccontextmanager
    async def accepting(self) -> AsyncIterator[list[Any]]:
        """Run the block, in which somebody is to dial, while a task waits in accept().

        The list holds the accepted stream after the block.
        """
        got: list[Any] = []
        done = trio.Event()

        async def accept() -> None:
            with checkpointed("accept() must execute a checkpoint when it waited"):
                got.append(await self.taken())
            done.set()

        async with nursery_of_check() as nursery:
            nursery.start_soon(accept)
            await settle()
            yield got
            with bounded("an accept() that waits must return once somebody has dialled"):
                await done.wait()

    async def connect(self) -> tuple[trio.abc.Stream, Any]:
        """Dial and accept at once; return both ends."""
        dialled: list[trio.abc.Stream] = []

        async def dial() -> None:
            dialled.append(await self.dialled())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            accepted = await self.accepted()
        return dialled[0], accepted

    @asynccontextmanager
    async def dialling(self) -> AsyncIterator[list[trio.abc.Stream]]:
        """Dial while the block runs.

        The list holds the dialler's stream once there is one, at the latest after the block, in
        which the connection is to be accepted: a dialler may wait for that.
        """
        dialled: list[trio.abc.Stream] = []
        done = trio.Event()

        async def dial() -> None:
            dialled.append(await self.dialled())
            done.set()

        async with nursery_of_check() as nursery:
            nursery.start_soon(dial)
            yield dialled
            with bounded("dialling must end once the connection was accepted"):
                await done.wait()

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[list[trio.abc.Stream]]:
        """Dial, and run the block once the connection is there to be accepted."""
        async with self.dialling() as dialled:
            await self.arrived()
            yield dialled

    async def arrived(self) -> None:
        """Wait until a connection can be accepted, or as long as that makes sense."""
        await settle()
        if self.ours:
            with bounded("wait_acceptable() must return when a connection is there"):
                await self.net.wait_acceptable()


@asynccontextmanager
async def listening(make: ListenerMaker) -> AsyncIterator[Subject]:
    """Make a subject, and close everything in the end."""
    listener, dial = await make()
    subject = Subject(listener, dial)
    try:
        yield subject
    finally:
        for resource in (*subject.streams, listener):
            await trio.aclose_forcefully(resource)


# trio.abc.Listener


async def waits_for_a_dialler(subject: Subject) -> None:
    """accept() waits until somebody dials, and then returns that connection."""
    expect(
        isinstance(subject.listener, trio.abc.Listener),
        f"a listener must be a trio.abc.Listener, got {subject.listener!r}",
    )
    async with subject.accepting() as got:
        expect(not got, "accept() must wait while nobody has dialled")
        dialled = await subject.dialled()
    await talk(dialled, got[0])


async def is_a_checkpoint_with_a_connection_there(subject: Subject) -> None:
    """accept() is a checkpoint even when a connection is there already."""
    async with subject.waiting() as dialled:
        with checkpointed("accept() must execute a checkpoint when a connection was there"):
            accepted = await subject.accepted()
    await talk(dialled[0], accepted)


async def accepts_each_connection_once(subject: Subject) -> None:
    """Of several connections each is accepted exactly once."""
    pairs = [await subject.connect() for _ in range(3)]
    near = [one for one, _ in pairs]
    found = [await who_is(far, near) for _, far in pairs]
    expect(
        sorted(found) == [0, 1, 2],
        f"three diallers must be accepted once each; these were: {found}",
    )


async def is_cancelled_beforehand(subject: Subject) -> None:
    """accept() in a cancelled scope raises Cancelled, and leaves the connection where it is."""
    async with subject.waiting() as dialled:
        attempt = await interrupted(0, subject.accepted)
        expect(
            not attempt.finished,
            "accept() in a cancelled scope must raise Cancelled, even with a connection there",
        )
        accepted = await left_over(subject)
    await talk(dialled[0], accepted)


async def loses_nothing_when_cancelled(subject: Subject) -> None:
    """A cancelled accept() loses no connection that was there."""

    async def attempt(n: int) -> Attempt:
        async with subject.waiting() as dialled:
            made = await interrupted(n, subject.accepted)
            accepted = made.result if made.finished else await left_over(subject)
        await talk(dialled[0], accepted)
        return made

    await sweep(attempt)


async def loses_nothing_when_cancelled_as_it_arrives(subject: Subject) -> None:
    """A cancelled accept() loses no connection that arrives in that moment."""

    async def attempt(n: int) -> Attempt:
        with bounded("accept() must return, or be cancelled, once somebody has dialled"):
            made = await interrupted(n, subject.listener.accept, then=subject.dialled)
        accepted = made.result if made.finished else await left_over(subject)
        subject.streams.append(accepted)
        await talk(made.then, accepted)
        return made

    await sweep(attempt)


async def left_over(subject: Subject) -> Any:
    """Accept what a cancelled accept must have left."""
    with bounded("a cancelled accept() must lose no connection: the next one has to get it"):
        stream = await subject.listener.accept()
    subject.streams.append(stream)
    return stream


async def is_for_one_task_at_a_time(subject: Subject) -> None:
    """A second task in accept() gets Busy, the first goes on; cancelled, it makes room."""
    rule = "a second accept() must raise Busy"
    async with subject.accepting() as got:
        with bounded(rule), Raises(trio.BusyResourceError, rule=rule):
            await subject.listener.accept()
        dialled = await subject.dialled()
    await talk(dialled, got[0])

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(subject.taken)
            await settle()
            scope.cancel()
    dialled, accepted = await subject.connect()
    await talk(dialled, accepted)


async def wakes_an_accept_when_closed(subject: Subject) -> None:
    """Closing the listener ends an accept() that waits, with Closed."""
    rule = "closing the listener must end an accept() that waits, with Closed"

    async def accept() -> None:
        with Raises(trio.ClosedResourceError, rule=rule):
            await subject.listener.accept()

    with bounded(rule):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await settle()
            with checkpointed("aclose() must execute a checkpoint"):
                await subject.listener.aclose()


async def accepts_nothing_when_closed(subject: Subject) -> None:
    """accept() on a closed listener raises Closed; closing it again does nothing."""
    for _ in range(2):
        rule = "aclose() must return and execute a checkpoint, each time"
        with bounded(rule), checkpointed(rule):
            await subject.listener.aclose()
        rule = "accept() on a closed listener must raise Closed"
        with bounded(rule), Raises(trio.ClosedResourceError, rule=rule):
            await subject.listener.accept()


async def closes_when_cancelled(subject: Subject) -> None:
    """aclose() in a cancelled scope closes the listener nevertheless."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await subject.listener.aclose()
        raise AssertionError("aclose() in a cancelled scope must raise Cancelled, having closed")
    rule = "aclose() in a cancelled scope must close the listener nevertheless"
    with bounded(rule), Raises(trio.ClosedResourceError, rule=rule):
        await subject.listener.accept()


async def leaves_accepted_connections_alone(subject: Subject) -> None:
    """A connection that was accepted outlives its listener."""
    dialled, accepted = await subject.connect()
    await subject.listener.aclose()
    await talk(dialled, accepted)


GENERAL_RULES: Final = (
    waits_for_a_dialler,
    is_a_checkpoint_with_a_connection_there,
    accepts_each_connection_once,
    is_cancelled_beforehand,
    loses_nothing_when_cancelled,
    loses_nothing_when_cancelled_as_it_arrives,
    is_for_one_task_at_a_time,
    wakes_an_accept_when_closed,
    accepts_nothing_when_closed,
    closes_when_cancelled,
    leaves_accepted_connections_alone,
)
