"""What the parts of one virtual network share."""

from __future__ import annotations

import ipaddress
import random
from typing import TYPE_CHECKING, Protocol, final

from .._options import Link
from .._streams.timeline import current_timeline
from .routes import Route
from .trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .._streams.timeline import Timeline
    from .rules import Rule

__all__ = ("Place", "World")


class Place(Protocol):
    """A host's network stack, as others see it.

    Attributes:
      name: the host's.
      off: it has no power.
    """

    name: str
    off: bool


@final
class World:
    """The state that hosts, routes and sockets of a network have in common.

    Attributes:
      seed: the root of everything random here.
      link: what lies between two hosts for which nothing else was said.
      rules: the rules in force, the newest first.
      places: who has which address.
      routes: those that were needed so far, by the names of their ends.
    """

    def __init__(self, seed: int, link: Link, crash: Callable[[Exception], None]) -> None:
        self.seed: int = seed
        self.link: Link = link
        self.timeline: Timeline = current_timeline()
        self.trace: Trace = Trace()
        self.rules: list[tuple[Rule]] = []
        self.places: dict[str, Place] = {}
        self.routes: dict[tuple[str, str], Route] = {}
        # Sockets that nobody closed before the garbage collector did, as text.
        self.abandoned: list[str] = []
        self.crash: Callable[[Exception], None] = crash
        self._connections = 0
        self._sockets = 0
        # The next host's address, in 10.0.0.0/8 and fd00::/8 (RFC 1918, RFC 4193).
        self._address = 0

    def random(self, name: str) -> random.Random:
        """Return a stream of random numbers of its own: asking for another does not shift it."""
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - not a secret

    def route(self, source: Place, destination: Place) -> Route:
        """Return the way from one host to another."""
        key = (source.name, destination.name)
        route = self.routes.get(key)
        if route is None:
            # Whoever talks to itself does so without a wire.
            link = Link() if source is destination else self.link
            chance = self.random(f"link/{key[0]}>{key[1]}")
            route = self.routes[key] = Route(self, *key, link, chance)
            # Once if they are one, as power_off() counts.
            route.down = len({one.name for one in (source, destination) if one.off})
            route.refresh()
        return route

    def refresh(self) -> None:
        """Let all routes see that the rules are others."""
        for route in self.routes.values():
            route.refresh()

    def next_connection(self) -> int:
        """Return a number for a connection."""
        self._connections += 1
        return self._connections

    def next_socket(self) -> int:
        """Return a number for a socket."""
        self._sockets += 1
        return self._sockets

    def new_addresses(self, *, ipv6: bool) -> Iterator[str]:
        """Give a host its addresses, of which nobody else has any."""
        while True:
            self._address += 1
            four = str(ipaddress.IPv4Address("10.0.0.0") + self._address)
            six = str(ipaddress.IPv6Address("fd00::") + self._address)
            if four not in self.places and six not in self.places:
                break
        yield four
        if ipv6:
            yield six
