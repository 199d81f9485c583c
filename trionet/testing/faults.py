"""What can go wrong on a virtual network, each thing with its exact meaning.

Every fault is in force from the call on, and until its `Fault` is healed: by `Fault.heal`, or by
leaving the ``with`` block that it is used in.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Self, final

import trio

from .._options import Link
from .host import Host

if TYPE_CHECKING:
    from types import TracebackType

    from .._streams.segment import Segment
    from .routes import Route
    from .rules import Rule
    from .world import World

__all__ = ("Fault", "Faults", "Hosts")

Hosts = Host | str | Iterable["Host | str"]

# What `Faults.failing` knows of.
CALLS = ("socket", "connect", "listen", "accept")


@final
class Fault:
    """Something that is wrong, until it is healed.

    Attributes:
      note: what it is, in words; the trace has it too.
      active: it is in force.
    """

    def __init__(
        self, world: World, note: str, begin: Callable[[], object], end: Callable[[], object]
    ) -> None:
        self.note: str = note
        self.active: bool = True
        self._world = world
        self._end = end
        world.trace.fault(trio.current_time(), note)
        begin()

    def __repr__(self) -> str:
        return f"<Fault {self.note}{'' if self.active else ', healed'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.heal()

    def heal(self) -> None:
        """End it. A second call does nothing."""
        if self.active:
            self.active = False
            self._world.trace.fault(trio.current_time(), f"end of {self.note}")
            self._end()


class Faults:
    """The part of `VirtualNetwork` that breaks things."""

    _hosts: dict[str, Host]

    @property
    def _world(self) -> World:
        raise NotImplementedError

    # Links

    def link(self, source: Host | str, destination: Host | str) -> Link:
        """Return what lies between two hosts, in this direction."""
        return self._route(source, destination).link

    def set_link(self, a: Hosts, b: Hosts, link: Link, *, both: bool = True) -> None:
        """Put another link between two hosts, or two groups, for what is sent from now on.

        Args:
          both: in both directions; False from ``a`` to ``b`` alone.
        """
        if not isinstance(link, Link):
            raise TypeError(f"link must be a Link, got {link!r}")
        for route in self._routes(a, b, both=both):
            route.link = link
        self._disturbed()

    # Faults of links

    def partition(self, a: Hosts, b: Hosts, *, both: bool = True) -> Fault:
        """Lose everything between two hosts, or two groups, also what is on its way.

        Senders notice nothing: they go on until their buffers are full. TCP sends again 0.2, 0.6,
        1.4 ... seconds after the first time, so what was lost arrives at the next such moment
        after the fault has healed. A connection attempt gives up after 127 s, sent data after
        924.6 s or TCP_USER_TIMEOUT, both with ETIMEDOUT. A FIN or RST that was sent meanwhile and
        is not sent again leaves the other end half-open.

        Args:
          both: in both directions; False from ``a`` to ``b`` alone.
        """
        return self._between(
            "partition", "partitions", a, b, both, lambda one: one.cut("partition")
        )

    def hold(self, a: Hosts, b: Hosts, *, both: bool = True) -> Fault:
        """Keep everything between two hosts, also what is on its way, until it is released.

        As a partition, but nothing is lost: healing it delivers all at once, in order.
        """

        def release(route: Route) -> None:
            if not route.holds:
                route.release()

        return self._between("hold", "holds", a, b, both, lambda one: one.hold(), release)

    def reject(self, a: Hosts, b: Hosts, *, both: bool = True) -> Fault:
        """Refuse connections between two hosts with EHOSTUNREACH, after one way.

        Connections that there are find a black hole, as in a `partition`.
        """
        return self._between("reject", "rejects", a, b, both, lambda one: one.cut("rejected"))

    def _between(
        self,
        what: str,
        counter: str,
        a: Hosts,
        b: Hosts,
        both: bool,
        begin: Callable[[Route], object],
        end: Callable[[Route], object] | None = None,
    ) -> Fault:
        a, b = self._group(a), self._group(b)
        routes = self._routes(a, b, both=both)

        def change(by: int) -> None:
            for route in routes:
                setattr(route, counter, getattr(route, counter) + by)
                route.refresh()

        def start() -> None:
            change(1)
            for route in routes:
                begin(route)
            self._disturbed()

        def stop() -> None:
            change(-1)
            if end is not None:
                for route in routes:
                    end(route)

        arrow = "and" if both else "to"
        note = f"{what} of {_names(a)} {arrow} {_names(b)}"
        return Fault(self._world, note, start, stop)

    def rule(self, rule: Rule) -> Fault:
        """Let ``rule`` judge every segment that is sent.

        It is called with a `Segment` and returns `Deliver`, `Delay`, `Drop`, `Reset`, or None for
        no opinion. The newest rule is asked first, and the first opinion wins, also against a
        partition. What a rule raises ends the network's block with it.
        """
        if not callable(rule):
            raise TypeError(f"a rule must be callable, got {rule!r}")
        world = self._world
        # One of its own: a rule may be in force twice, with others in between.
        entry = (rule,)

        def begin() -> None:
            world.rules.insert(0, entry)
            world.refresh()
            self._disturbed()

        def end() -> None:
            world.rules[:] = [one for one in world.rules if one is not entry]
            world.refresh()

        name = getattr(rule, "__name__", repr(rule))
        return Fault(world, f"rule {name}", begin, end)

    def reset(self, a: Hosts, b: Hosts) -> int:
        """Reset every connection between two hosts, or two groups, at both ends and at once.

        What was received stays readable; then each end gets ECONNRESET once, and after that reads
        end of file and writes EPIPE.

        Returns:
          How many connections that were.
        """
        a, b = self._group(a), self._group(b)
        pairs = {(one.source, one.destination) for one in self._routes(a, b, both=True)}
        done: set[int] = set()
        self._world.trace.fault(trio.current_time(), f"reset of {_names(a)} and {_names(b)}")
        for host in self._hosts.values():
            for connection in list(host.stack.connections):
                route = connection.line
                if (route.source, route.destination) in pairs:
                    done.add(connection.connection)
                    connection.reset_both()
        return len(done)

    # Faults of hosts

    def short_reads(self, most: int, host: Host | str | None = None) -> Fault:
        """Let every receive return 1 to ``most`` bytes, drawn anew each time.

        Args:
          host: where; on all hosts unless given.
        """
        return self._short("reads", most, host)

    def short_writes(self, most: int, host: Host | str | None = None) -> Fault:
        """Let every send take 1 to ``most`` bytes, drawn anew each time.

        Args:
          host: where; on all hosts unless given.
        """
        return self._short("writes", most, host)

    def _short(self, what: str, most: int, host: Host | str | None) -> Fault:
        if isinstance(most, bool) or not isinstance(most, int):
            raise TypeError(f"most must be an int, got {most!r}")
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        limits = [getattr(one.stack, f"short_{what}") for one in self._chosen(host)]
        # One of its own: an equal limit that is in force besides is another.
        entry = (most,)

        def begin() -> None:
            for limit in limits:
                limit.append(entry)

        def end() -> None:
            for limit in limits:
                limit[:] = [one for one in limit if one is not entry]

        return Fault(self._world, f"short {what} of {most}", begin, end)

    def failing(
        self, call: str, code: int, *, host: Host | str | None = None, times: int | None = None
    ) -> Fault:
        """Let a call fail with an errno, before it does anything.

        ``failing("accept", errno.EMFILE)`` leaves connections in the backlog, as Linux does; it
        is what `trio.serve_listeners` tries again after 100 ms.

        Args:
          call: ``"socket"``, ``"connect"``, ``"listen"`` or ``"accept"``.
          code: an errno, EMFILE or ENOBUFS say.
          host: where; on all hosts unless given.
          times: how often, on each host; for as long as the fault lasts unless given.
        """
        if call not in CALLS:
            raise ValueError(f"call must be one of {', '.join(CALLS)}, got {call!r}")
        if code not in errno.errorcode:
            raise ValueError(f"code must be an errno, got {code!r}")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, got {times}")
        entries = [
            (one.stack.errors, [code, -1 if times is None else times]) for one in self._chosen(host)
        ]

        def begin() -> None:
            for errors, entry in entries:
                errors.setdefault(call, []).insert(0, entry)

        def end() -> None:
            for errors, entry in entries:
                errors[call] = [one for one in errors[call] if one is not entry]

        return Fault(self._world, f"{call} fails with {errno.errorcode[code]}", begin, end)

    async def swizzle(self, hosts: Iterable[Host | str], over: float) -> None:
        """Cut hosts off one by one and heal them in another order, all by chance.

        Within the first half of ``over`` seconds each host loses its links to all others, within
        the second each gets them back. FoundationDB calls it swizzle-clogging.

        If cancelled, all are healed.
        """
        if not 0 < over < float("inf"):
            raise ValueError(f"over must be a number of seconds above 0, got {over!r}")
        chance = self._world.random(f"swizzle/{trio.current_time()}")
        chosen = list(dict.fromkeys(self._host_of(one) for one in hosts))
        events: list[tuple[float, int, Host]] = []
        for half in (0, 1):
            order = chance.sample(chosen, len(chosen))
            times = sorted(chance.uniform(half * over / 2, (half + 1) * over / 2) for _ in order)
            events += [(time, half, host) for time, host in zip(times, order, strict=True)]
        start = trio.current_time()
        faults: dict[Host, Fault] = {}
        try:
            for time, half, host in events:
                await trio.sleep_until(start + time)
                if half:
                    faults.pop(host).heal()
                else:
                    others = [one for one in self._hosts.values() if one is not host]
                    faults[host] = self.partition(host, others)
            await trio.sleep_until(start + over)
        finally:
            for fault in faults.values():
                fault.heal()

    # Looking

    def in_flight(self) -> list[tuple[float, Segment]]:
        """Return what is on its way: when it arrives, infinity if it is held, and what it is."""
        found = [one for route in self._world.routes.values() for one in route.in_flight()]
        return sorted(found, key=lambda one: one[0])

    # Inside

    def _disturbed(self) -> None:
        """Let connections look after themselves where something may not come through now."""
        for host in self._hosts.values():
            for connection in list(host.stack.connections):
                if not connection.reliable:
                    connection.watch()
                    connection.suspect(0)

    def _host_of(self, one: Host | str) -> Host:
        host = self._hosts.get(one) if isinstance(one, str) else one
        if not isinstance(host, Host) or self._hosts.get(host.name) is not host:
            raise ValueError(f"there is no host {one!r} on this network")
        return host

    def _chosen(self, host: Host | str | None) -> list[Host]:
        return list(self._hosts.values()) if host is None else [self._host_of(host)]

    def _group(self, hosts: Hosts) -> list[Host]:
        if isinstance(hosts, Host | str):
            return [self._host_of(hosts)]
        return [self._host_of(one) for one in hosts]

    def _route(self, source: Host | str, destination: Host | str) -> Route:
        return self._world.route(self._host_of(source).stack, self._host_of(destination).stack)

    def _routes(self, a: Hosts, b: Hosts, *, both: bool) -> list[Route]:
        """Return the routes between two groups, each once."""

        ones, others = self._group(a), self._group(b)

        def directed() -> Iterator[Route]:
            for one in ones:
                for other in others:
                    if one is not other:
                        yield self._route(one, other)
                        if both:
                            yield self._route(other, one)

        routes = list(dict.fromkeys(directed()))
        if not routes:
            raise ValueError(f"nothing lies between {_names(ones)} and {_names(others)}")
        return routes


def _names(hosts: Hosts) -> str:
    if isinstance(hosts, Host | str):
        return hosts.name if isinstance(hosts, Host) else hosts
    return "+".join(_names(one) for one in hosts)
