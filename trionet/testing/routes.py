"""Lines with faults: what goes from one virtual host to another, traced, judged by rules."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Protocol, final

import trio

from .._streams.line import Flight, Line, Receiver, Sender
from .rules import Delay, Deliver, Drop, Reset, is_verdict

if TYPE_CHECKING:
    import random

    from .._options import Link
    from .._streams.segment import Segment
    from .._streams.timeline import Timeline
    from .rules import Rule
    from .trace import Trace

__all__ = ("Route", "Surroundings")


class Surroundings(Protocol):
    """What the routes of a network share.

    Attributes:
      timeline, trace: those of the network.
      rules: the rules in force, the newest first.
    """

    timeline: Timeline
    trace: Trace
    rules: list[tuple[Rule]]

    def crash(self, error: Exception) -> None:
        """End the network's block with ``error``: a rule raised it."""


@final
class Route(Line):
    """One direction between two hosts.

    Attributes:
      source, destination: the names of the hosts.
      clean: nothing is to be asked: no fault, no rule, both hosts up.
      partitions, holds, rejects: how many such faults are in force here.
      down: how many of its two ends are off.
      held: what a hold keeps, in the order it is to arrive in.
    """

    __slots__ = (
        "_world",
        "clean",
        "destination",
        "down",
        "held",
        "holds",
        "partitions",
        "rejects",
        "source",
    )

    def __init__(
        self, world: Surroundings, source: str, destination: str, link: Link, chance: random.Random
    ) -> None:
        super().__init__(world.timeline, link, chance)
        self._world = world
        self.source: str = source
        self.destination: str = destination
        self.partitions: int = 0
        self.holds: int = 0
        self.rejects: int = 0
        self.down: int = 0
        self.held: list[Flight] = []
        self.clean: bool = True
        self.refresh()

    def __repr__(self) -> str:
        return f"<Route {self.source} > {self.destination} {self.link}>"

    @property
    def reliable(self) -> bool:
        """Whether all that is sent will arrive."""
        return self.clean and not self.link.loss

    def refresh(self) -> None:
        """Find out anew whether there is anything to ask."""
        faults = self.partitions or self.holds or self.rejects or self.down
        self.clean = not faults and not self._world.rules

    def carry(self, segment: Segment, sender: Sender, receiver: Receiver) -> None:
        """Send a segment, if nothing is in its way."""
        now = self.timeline.time()
        self._world.trace.record(now, "sent", segment)
        flight = (segment, sender, receiver, now)
        if not self.clean and self._judged(flight):
            return
        if self.link.loss and self._random.random() < self.link.loss:
            self._lose(flight, "loss")
        else:
            self._launch(flight, 0.0)

    def due(self, flight: Flight) -> None:
        """Let a segment arrive."""
        self._world.trace.record(self.timeline.time(), "delivered", flight[0])
        flight[2].arrive(flight[0])

    def in_flight(self) -> list[tuple[float, Segment]]:
        """Return (arrival, segment) for all that is on its way, in order; held for ever: inf."""
        flying = [(time, item[0]) for time, _, item in self.timeline.scheduled(self)]
        return flying + [(float("inf"), flight[0]) for flight in self.held]

    def cut(self, reason: str) -> None:
        """Lose what is on its way."""
        for flight in self._caught():
            self._lose(flight, reason)
        held, self.held = self.held, []
        for flight in held:
            self._lose(flight, reason)

    def hold(self) -> None:
        """Keep what is on its way."""
        for flight in self._caught():
            self._keep(flight)

    def release(self) -> None:
        """Let arrive what was kept, now."""
        held, self.held = self.held, []
        for flight in held:
            self._world.trace.record(trio.current_time(), "released", flight[0])
            self.timeline.post(self, flight)

    def forget(self) -> None:
        """Drop all, and tell nobody: the network is gone."""
        self._caught()
        self.held.clear()

    def _caught(self) -> list[Flight]:
        caught = self.timeline.scheduled(self)
        for _, number, _ in caught:
            self.timeline.cancel(number)
        return [flight for _, _, flight in caught]

    def _keep(self, flight: Flight) -> None:
        self._world.trace.record(trio.current_time(), "held", flight[0])
        self.held.append(flight)

    def _lose(self, flight: Flight, reason: str) -> None:
        segment, sender, _, sent_at = flight
        self._world.trace.record(trio.current_time(), "dropped", segment, reason)
        sender.lost(segment, sent_at)

    def _judged(self, flight: Flight) -> bool:
        """Ask the rules, then the faults; whether they have dealt with it."""
        segment = flight[0]
        if self.down:
            self._lose(flight, "host is off")
            return True
        for (rule,) in list(self._world.rules):
            verdict = self._ask(rule, segment)
            if verdict is not None:
                self._obey(verdict, flight)
                return True
        if self.partitions:
            self._lose(flight, "partition")
        elif self.rejects:
            self._reject(flight)
        elif self.holds:
            self._keep(flight)
        else:
            return False
        return True

    def _ask(self, rule: Rule, segment: Segment) -> object:
        try:
            verdict = rule(segment)
            if not is_verdict(verdict):
                raise TypeError(
                    f"a rule must return Deliver(), Delay(s), Drop(), Reset() or None, "
                    f"got {verdict!r} from {rule!r}"
                )
        except Exception as exc:  # noqa: BLE001 - it leaves the network's block, as itself
            self._world.crash(exc)
            return None
        return verdict

    def _obey(self, verdict: object, flight: Flight) -> None:
        segment, sender, _, _ = flight
        match verdict:
            case Deliver():
                self._launch(flight, 0.0)
            case Delay(seconds):
                note = f"by {seconds} s"
                self._world.trace.record(trio.current_time(), "delayed", segment, note)
                self._launch(flight, seconds)
            case Drop():
                self._lose(flight, "rule")
            case Reset():
                self._world.trace.record(trio.current_time(), "dropped", segment, "reset by rule")
                self.timeline.post(_Later(), sender)

    def _reject(self, flight: Flight) -> None:
        segment, sender, _, _ = flight
        if segment.kind not in {"SYN", "DATAGRAM"}:
            self._lose(flight, "rejected")
            return
        now = trio.current_time()
        self._world.trace.record(now, "dropped", segment, "rejected")
        # Whoever refuses stands at the other end of the link, and its word comes the same way.
        self.timeline.at(now + self.link.latency, _Unreachable(), sender)


@final
class _Unreachable:
    """The word of an ICMP message that a host cannot be reached."""

    __slots__ = ()

    def due(self, sender: Any) -> None:
        sender.unreachable(errno.EHOSTUNREACH)


@final
class _Later:
    """A reset of both ends, once whoever is sending right now is done with it."""

    __slots__ = ()

    def due(self, sender: Any) -> None:
        sender.reset_both()
