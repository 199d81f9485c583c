"""A transfer both ways between two virtual hosts, drawn by Hypothesis, and what was seen of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio
from hypothesis import strategies as st

from tests.testing.virtual import socket_pair, two_hosts
from trionet.testing import Event, Fault, Link, Run, Segment, VirtualNetwork, simulate

__all__ = ("FAULTS", "Observation", "Scenario", "observe", "observe_run", "scenarios")

FAULTS = ("partition", "one way", "hold")
# A sender gives up after 924.6 s; what heals within seconds is far from it.
LIMIT = 3000.0


@dataclass(frozen=True)
class Scenario:
    """What is to happen.

    Attributes:
      chunks: the sizes of what each side sends, the client's first.
      pauses: seconds between the chunks sent, and between receives.
      most: how many bytes a receive asks for.
      faults: (when, as a part of the time the transfer takes without faults; what; how long).
      cancels: seconds after which a send or receive is cancelled and tried again; () for never.
    """

    link: Link
    sizes: tuple[int, int]
    chunks: tuple[tuple[int, ...], tuple[int, ...]]
    pauses: tuple[float, float]
    most: int
    faults: tuple[tuple[float, str, float], ...] = ()
    cancels: tuple[float, ...] = ()
    seed: int = 0


@dataclass
class Observation:
    """What was seen.

    Attributes:
      sent, received: by the client and the server; received from the other.
      clean: whether each received end of file, and not an error.
      took: virtual seconds until both had.
      overfull: how many bytes were in buffers and on the way beyond what the buffers hold.
      left: what was left behind after both had closed.
      events: the trace.
    """

    sent: list[bytearray] = field(default_factory=lambda: [bytearray(), bytearray()])
    received: list[bytearray] = field(default_factory=lambda: [bytearray(), bytearray()])
    clean: list[bool] = field(default_factory=lambda: [False, False])
    took: float = 0.0
    overfull: int = 0
    left: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


LINKS = st.builds(
    Link,
    latency=st.sampled_from([0.0, 0.01, 0.3]),
    jitter=st.sampled_from([0.0, 0.05]),
    bandwidth=st.sampled_from([None, 20_000.0, 1e6]),
    loss=st.sampled_from([0.0, 0.0, 0.1]),
    segment_size=st.sampled_from([100, 1000, 16384]),
)


@st.composite
def scenarios(
    draw: st.DrawFn, *, faults: tuple[str, ...] = FAULTS, cancels: bool = False
) -> Scenario:
    """Draw a scenario with such faults."""
    link = draw(LINKS)
    sizes = draw(st.sampled_from([(1000, 1000), (300, 2000), (2000, 300), (50_000, 50_000)]))
    # So many segments at most that a run takes milliseconds.
    largest = 40 * min(*sizes, link.segment_size)
    chunks = st.lists(st.integers(0, max(1, largest // 6)), max_size=6).map(tuple)
    pauses = st.sampled_from([0.0, 0.05])
    fault = st.tuples(st.floats(0, 1), st.sampled_from(faults), st.floats(0.01, 5))
    return Scenario(
        link=link,
        sizes=sizes,
        chunks=(draw(chunks), draw(chunks)),
        pauses=(draw(pauses), draw(pauses)),
        most=draw(st.sampled_from([1 + largest // 30, 65536])),
        faults=tuple(draw(st.lists(fault, max_size=4))) if faults else (),
        cancels=tuple(draw(st.lists(st.floats(0, 0.4), min_size=1, max_size=5))) if cancels else (),
        seed=draw(st.integers(0, 5)),
    )


def observe(scenario: Scenario) -> Observation:
    """Let it happen; what breaks raises."""
    return observe_run(scenario).result


def observe_run(scenario: Scenario) -> Run[Observation]:
    """Let it happen: the faults when there is something for them to disturb."""
    whole = 0.0
    if scenario.faults:
        quiet = replace(scenario, faults=())
        whole = simulate(_Transfer(quiet, 0.0).run, seed=scenario.seed, time_limit=None).result.took
    return simulate(_Transfer(scenario, whole).run, seed=scenario.seed, time_limit=None)


class _Transfer:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario, whole: float) -> None:
        self._scenario = scenario
        self._whole = whole
        self._seen = Observation()
        self._cancels = 0

    async def run(self) -> Observation:
        scenario, seen = self._scenario, self._seen
        async with two_hosts(scenario.link, scenario.seed) as (net, server, client):
            near, far = await socket_pair(server, client, sizes=scenario.sizes)
            start = trio.current_time()
            with trio.move_on_after(LIMIT), self._watching(net, near, far):
                async with trio.open_nursery() as nursery:
                    for side, sock in enumerate((near, far)):
                        nursery.start_soon(self._send, side, sock)
                        nursery.start_soon(self._receive, side, sock)
                    for when, what, duration in scenario.faults:
                        nursery.start_soon(self._fault, net, when, what, duration)
            # The last fault may outlast the transfer.
            seen.took = trio.current_time() - start
            near.close()
            far.close()
            await trio.sleep(LIMIT)
            seen.left = left_behind(net)
            seen.events = list(net.trace)
        return seen

    @contextmanager
    def _watching(self, net: VirtualNetwork, near: Any, far: Any) -> Iterator[None]:
        """Look at the buffers whenever something is sent."""
        room = sum(self._scenario.sizes)

        def look(segment: Segment) -> None:
            for one, other in ((near.end, far.end), (far.end, near.end)):
                inbox = other.inbox
                # What was not acknowledged may be at the other end already.
                both = max(0, min(inbox.expected - one._acked, one.in_flight))
                over = (
                    one.buffered + inbox.held - both - room,
                    one.buffered - one.capacity,
                    inbox.held - inbox.capacity,
                )
                self._seen.overfull = max(self._seen.overfull, *over)

        with net.rule(look):
            yield

    async def _fault(self, net: VirtualNetwork, when: float, what: str, duration: float) -> None:
        await trio.sleep(when * self._whole)
        fault: Fault
        if what == "hold":
            fault = net.hold("client", "server")
        else:
            fault = net.partition("client", "server", both=what == "partition")
        with fault:
            await trio.sleep(duration)

    def _patience(self) -> float:
        cancels = self._scenario.cancels
        if not cancels:
            return float("inf")
        self._cancels += 1
        # Every other try is left alone, so that there is progress whatever was drawn.
        return cancels[self._cancels // 2 % len(cancels)] if self._cancels % 2 else float("inf")

    async def _send(self, side: int, sock: Any) -> None:
        scenario = self._scenario
        number = 0
        for size in scenario.chunks[side]:
            data = bytes((number + place) % 251 for place in range(size))
            number += size
            while data:
                sent = 0
                with trio.move_on_after(self._patience()):
                    sent = await sock.send(data)
                self._seen.sent[side] += data[:sent]
                data = data[sent:]
                if scenario.cancels:
                    await trio.sleep(0.01)
            await trio.sleep(scenario.pauses[0])
        sock.shutdown(trio.socket.SHUT_WR)

    async def _receive(self, side: int, sock: Any) -> None:
        scenario = self._scenario
        while True:
            data: bytes | None = None
            with trio.move_on_after(self._patience()):
                data = await sock.recv(scenario.most)
            if data == b"":
                self._seen.clean[side] = True
                return
            self._seen.received[side] += data or b""
            await trio.sleep(scenario.pauses[1] if data else 0.01)


def left_behind(net: VirtualNetwork) -> list[str]:
    """Say what a network still holds."""
    found = [repr(line) for line in net.netstat()] + net.leaks()
    for host in net.hosts:
        found += [f"{host.name} {key} is bound" for key in host.stack.bindings]
        found += [f"{end!r} parks segments" for end in host.stack.connections if end.inbox.parked]
    if len(net._world.timeline):
        found.append(f"{len(net._world.timeline)} things are to happen")
    return found + [f"in flight: {one}" for one in net.in_flight()]
