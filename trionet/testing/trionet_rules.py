"""What a `trionet.abc.Listener` must do beyond a `trio.abc.Listener`.

Each check is a function whose docstring is the rule. It gets a fresh listener, and what dials it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from .._address import Address
from .checking import (
    Attempt,
    Raises,
    bounded,
    checkpointed,
    eventually,
    expect,
    interrupted,
    settle,
    sweep,
    talk,
    who_is,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .listener_rules import Subject

__all__ = (
    "OUR_RULES",
    "accepts_the_oldest_first",
    "accepts_without_waiting",
    "closes_at_once",
    "knows_its_address",
    "leaves_an_accept_in_peace",
    "refuses_when_closed",
    "resets_what_nobody_accepted",
    "takes_nothing_when_a_wait_is_cancelled",
    "waits_for_one_task_at_a_time",
    "waits_until_acceptable",
    "wakes_a_wait_when_closed",
)


async def knows_its_address(subject: Subject) -> None:
    """A listener has one `trionet.Address`, open or closed."""
    address = subject.net.address
    expect(isinstance(address, Address), f"address must be a trionet.Address, got {address!r}")
    expect(subject.net.address == address, "address must stay the same")
    await subject.net.aclose()
    expect(subject.net.address == address, "address must stay the same when closed")


async def accepts_without_waiting(subject: Subject) -> None:
    """accept_nowait() takes a connection that is there, and raises WouldBlock without one."""
    rule = "accept_nowait() must raise WouldBlock while there is no connection"
    with Raises(trio.WouldBlock, rule=rule):
        subject.net.accept_nowait()
    async with subject.waiting() as dialled:
        accepted = _accept_nowait(subject)
    await talk(dialled[0], accepted)
    with Raises(trio.WouldBlock, rule=rule):
        subject.net.accept_nowait()


async def leaves_an_accept_in_peace(subject: Subject) -> None:
    """accept_nowait() while a task waits in accept() takes nothing and harms nothing."""
    async with subject.accepting() as got:
        with Raises(trio.WouldBlock, rule="accept_nowait() beside an accept() must not block"):
            subject.net.accept_nowait()
        dialled = await subject.dialled()
    await talk(dialled, got[0])


async def accepts_the_oldest_first(subject: Subject) -> None:
    """Connections are accepted in the order in which they came."""
    async with subject.waiting() as first, subject.waiting() as second:
        one, two = await subject.accepted(), await subject.accepted()
    near = [first[0], second[0]]
    order = [await who_is(one, near), await who_is(two, near)]
    expect(order == [0, 1], f"the oldest connection must be accepted first; the order was {order}")


async def waits_until_acceptable(subject: Subject) -> None:
    """wait_acceptable() is a checkpoint, returns when a connection is there, and takes none."""
    woken = trio.Event()

    async def wait() -> None:
        with checkpointed("wait_acceptable() must execute a checkpoint when it waited"):
            await subject.net.wait_acceptable()
        woken.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await settle()
        expect(not woken.is_set(), "wait_acceptable() must wait while there is no connection")
        async with subject.dialling() as dialled:
            with bounded("wait_acceptable() must return when a connection has come"):
                await woken.wait()
            with (
                bounded("wait_acceptable() must take no connection"),
                checkpointed("wait_acceptable() must execute a checkpoint when one is there"),
            ):
                await subject.net.wait_acceptable()
            accepted = _accept_nowait(subject)
    await talk(dialled[0], accepted)


async def takes_nothing_when_a_wait_is_cancelled(subject: Subject) -> None:
    """A cancelled wait_acceptable() takes no connection, and leaves the listener usable."""

    async def attempt(n: int) -> Attempt:
        with bounded("wait_acceptable() must return, or be cancelled, once somebody has dialled"):
            made = await interrupted(n, subject.net.wait_acceptable, then=subject.dialled)
        await subject.arrived()
        await talk(made.then, _accept_nowait(subject))
        return made

    await sweep(attempt)


async def waits_for_one_task_at_a_time(subject: Subject) -> None:
    """Of accept() and wait_acceptable() one at a time may wait; a second gets Busy."""
    operations: list[Callable[[], Awaitable[Any]]] = [
        subject.net.wait_acceptable,
        subject.net.accept,
    ]
    for first in operations:
        for second in operations:
            rule = f"{_name(second)}() while another task is in {_name(first)}() must raise Busy"
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(first)
                    await settle()
                    with bounded(rule), Raises(trio.BusyResourceError, rule=rule):
                        await second()
                    scope.cancel()


async def wakes_a_wait_when_closed(subject: Subject) -> None:
    """Closing the listener ends a wait_acceptable() that waits, with Closed; so does a next one."""
    rule = "closing the listener must end a wait_acceptable() that waits, with Closed"

    async def wait() -> None:
        with Raises(trio.ClosedResourceError, rule=rule):
            await subject.net.wait_acceptable()

    with bounded(rule):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await settle()
            subject.net.close()
    rule = "wait_acceptable() on a closed listener must raise Closed"
    with bounded(rule), Raises(trio.ClosedResourceError, rule=rule):
        await subject.net.wait_acceptable()


async def closes_at_once(subject: Subject) -> None:
    """close() needs no await and may be repeated; every operation then raises Closed."""
    rule = "close() must end an accept() that waits, with Closed"

    async def accept() -> None:
        with Raises(trio.ClosedResourceError, rule=rule):
            await subject.listener.accept()

    with bounded(rule):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await settle()
            subject.net.close()
    subject.net.close()
    with bounded("aclose() after close() must do nothing"):
        await subject.net.aclose()
    with Raises(trio.ClosedResourceError, rule="accept_nowait() when closed must raise Closed"):
        subject.net.accept_nowait()
    rule = "accept() after close() must raise Closed"
    with bounded(rule), Raises(trio.ClosedResourceError, rule=rule):
        await subject.listener.accept()


async def resets_what_nobody_accepted(subject: Subject) -> None:
    """Closing resets the connections nobody accepted, and none of them is accepted afterwards."""
    async with subject.waiting() as dialled:
        await eventually(lambda: bool(dialled), "a dialler must not wait to be accepted")
        subject.net.close()
        with Raises(trio.ClosedResourceError, rule="a connection in a closed listener is gone"):
            subject.net.accept_nowait()
        rule = "closing must reset the connections that nobody accepted"
        with bounded(rule), Raises(trio.BrokenResourceError, rule=rule):
            await dialled[0].receive_some()


async def refuses_when_closed(subject: Subject) -> None:
    """Whoever dials a closed listener is refused."""
    await subject.net.aclose()
    rule = "whoever dials a closed listener must be refused, or be reset where dialling only sends"
    with bounded(rule), Raises(OSError, trio.BrokenResourceError, rule=rule):
        stream = await subject.dialled()
        await stream.receive_some()


def _accept_nowait(subject: Subject) -> Any:
    try:
        stream = subject.net.accept_nowait()
    except trio.WouldBlock as exc:
        raise AssertionError(
            "accept_nowait() must find a connection after wait_acceptable() has returned"
        ) from exc
    expect(
        isinstance(stream, trio.abc.Stream),
        f"accept_nowait() must return a stream, and no coroutine, got {stream!r}",
    )
    subject.streams.append(stream)
    return stream


def _name(operation: Callable[[], Awaitable[Any]]) -> str:
    return getattr(operation, "__name__", repr(operation))


OUR_RULES: Final = (
    knows_its_address,
    accepts_without_waiting,
    leaves_an_accept_in_peace,
    accepts_the_oldest_first,
    waits_until_acceptable,
    takes_nothing_when_a_wait_is_cancelled,
    waits_for_one_task_at_a_time,
    wakes_a_wait_when_closed,
    closes_at_once,
    resets_what_nobody_accepted,
    refuses_when_closed,
)
