"""The rules of `trionet.abc.Stream` that trio's own conformance checks do not know."""

from __future__ import annotations

import socket

import trio

from .._address import Address
from .._errors import ReceiveInterrupted
from ..abc import Stream
from .checking import (
    PING,
    PONG,
    Raises,
    bounded,
    ends,
    eventually,
    expect,
    nursery_of_check,
    receive_exactly,
    settle,
    talk,
)

__all__ = (
    "STREAM_RULES",
    "check_facts",
    "closes",
    "counts_bytes",
    "interrupts_a_receive",
    "knows_that_the_peer_closed",
    "sends_a_first_part_without_waiting",
    "shows_what_waits",
)


def check_facts(stream: object) -> None:
    """Check what a stream says of itself, open or closed: addresses, repr, state."""
    if not isinstance(stream, Stream):
        raise AssertionError(f"a connection must be a trionet.abc.Stream, got {stream!r}")
    for name in ("local_address", "remote_address"):
        value = getattr(stream, name)
        expect(isinstance(value, Address), f"a stream's {name} must be an Address, got {value!r}")
    text = repr(stream)
    expect(
        "\n" not in text and text != object.__repr__(stream),
        f"a stream's repr must be one useful line, got {text}",
    )
    for name in ("closed", "sending"):
        value = getattr(stream, name)
        expect(isinstance(value, bool), f"a stream's {name} must be a bool, got {value!r}")
    sock = stream.transport_socket
    expect(
        sock is None or isinstance(sock, socket.socket),
        f"a stream's transport_socket must be a socket or None, got {sock!r}",
    )


async def counts_bytes(near: trio.abc.Stream, far: Stream) -> None:
    """A stream counts the bytes that it sent and received, and no others."""
    for times in (1, 2):
        await talk(near, far)
        counted = far.bytes_received, far.bytes_sent
        due = times * len(PING), times * len(PONG)
        expect(
            counted == due,
            f"bytes_received and bytes_sent must count what passed, {due}; they say {counted}",
        )


async def shows_what_waits(near: trio.abc.Stream, far: Stream) -> None:
    """A stream tells without waiting whether bytes or end of file wait to be received."""
    await talk(near, far)
    await settle()
    expect(not far.is_readable(), "is_readable() must be false while nothing waits")
    expect(not far.peer_closed(), "peer_closed() must be false while the peer has not closed")
    async with nursery_of_check() as nursery:
        nursery.start_soon(near.send_all, PING)
        await eventually(far.is_readable, "is_readable() must turn true when bytes arrive")
        unread = far.unread_size()
        expect(unread > 0, f"unread_size() must count the bytes that wait, {unread} is wrong")
        await _arrives(far, PING, "is_readable() and unread_size() must not take any byte")
    await settle()
    expect(not far.is_readable(), "is_readable() must turn false when all was received")


async def knows_that_the_peer_closed(near: trio.abc.Stream, far: Stream) -> None:
    """A stream tells without waiting that its peer has closed, and can then be read to the end."""
    await talk(near, far)
    # Forcefully: over a rendezvous a TLS close waits until it is read.
    await trio.aclose_forcefully(near)
    await eventually(far.peer_closed, "peer_closed() must turn true when the peer closes")
    expect(far.is_readable(), "is_readable() must be true while the end waits to be received")
    await ends(far, "a closed peer must be end of file, or Broken where it was cut short")
    expect(far.peer_closed(), "peer_closed() must stay true after the end")


async def interrupts_a_receive(near: trio.abc.Stream, far: Stream) -> None:
    """An interrupted stream does not wait to receive, loses nothing, and can be resumed."""
    await talk(near, far)
    rule = "interrupt_receive() must end a receive that waits with ReceiveInterrupted"

    async def receive() -> None:
        with Raises(ReceiveInterrupted, rule=rule):
            await far.receive_some()

    async with nursery_of_check() as nursery:
        with bounded(rule):
            async with trio.open_nursery() as waiting:
                waiting.start_soon(receive)
                await settle()
                far.interrupt_receive()
                far.interrupt_receive()
            await receive()
        nursery.start_soon(near.send_all, PING)
        await eventually(far.is_readable, "is_readable() must turn true when bytes arrive")
        await _arrives(far, PING, "an interrupted stream must still hand out what has arrived")
    far.resume_receive()
    async with trio.open_nursery() as nursery:
        rule = "resume_receive() must let a receive wait again"
        nursery.start_soon(_arrives, far, PING, rule)
        await settle()
        await near.send_all(PING)


async def sends_a_first_part_without_waiting(near: trio.abc.Stream, far: Stream) -> None:
    """What ``send_nowait`` says it took arrives, ahead of whatever is sent next."""
    await talk(near, far)
    data = bytes(range(256)) * 64
    taken = far.send_nowait(data)
    expect(
        isinstance(taken, int) and 0 <= taken <= len(data),
        f"send_nowait() must return how many of its {len(data)} bytes it took, got {taken!r}",
    )
    async with nursery_of_check() as nursery:
        nursery.start_soon(far.send_all, data[taken:])
        await _arrives(near, data, "what send_nowait() took must arrive once and in order")
    await trio.aclose_forcefully(far)
    try:
        taken = far.send_nowait(b"x")
    except trio.ClosedResourceError:
        return
    expect(taken == 0, f"send_nowait() when closed must take nothing or raise, it took {taken}")


async def closes(near: trio.abc.Stream, far: Stream) -> None:
    """A closed stream says so, keeps its addresses, and answers every question."""
    await talk(near, far)
    expect(not far.closed, "closed must be false before the stream is closed")
    addresses = far.local_address, far.remote_address
    await trio.aclose_forcefully(far)
    expect(far.closed, "closed must be true after the stream was closed")
    check_facts(far)
    expect(
        (far.local_address, far.remote_address) == addresses,
        "a closed stream must keep its addresses",
    )
    # Whatever these raise here is the failure.
    for question in (far.is_readable, far.peer_closed, far.unread_size):
        question()


async def _arrives(stream: trio.abc.ReceiveStream, data: bytes, rule: str) -> None:
    try:
        with bounded(rule):
            got = await receive_exactly(stream, len(data))
    except ReceiveInterrupted as exc:
        raise AssertionError(f"{rule}; {exc!r} was raised") from exc
    expect(got == data, f"{rule}; {len(got)} bytes came, of which the first are {got[:20]!r}")


STREAM_RULES = (
    counts_bytes,
    shows_what_waits,
    knows_that_the_peer_closed,
    interrupts_a_receive,
    sends_a_first_part_without_waiting,
    closes,
)
