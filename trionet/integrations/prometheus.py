"""Figures of servers, pools, sessions and multiplexers, for Prometheus to collect.

Needs the extra ``trionet[prometheus]``. Nothing is registered by importing this::

    metrics = Collector()
    prometheus_client.REGISTRY.register(metrics)
    metrics.add("web", server)

Every figure is read when it is collected, so that nothing is spent while nobody asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import trio
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from .._mux.multiplexer import Multiplexer
from .._mux.session import MuxSession
from .._pool.keyed import KeyedPool
from .._pool.pool import Pool
from .._server.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

__all__ = ("Collector",)

Watched = Server | Pool[Any] | KeyedPool[Any, Any] | MuxSession | Multiplexer


@final
@dataclass(frozen=True, slots=True)
class _Family:
    """One name that is exposed.

    Attributes:
      name: without the ``_total`` that a counter gets.
      label: beside the name of what is watched, or None.
      read: takes statistics; gives the value of each of the label's values.
    """

    kind: type[CounterMetricFamily | GaugeMetricFamily]
    name: str
    text: str
    label: str | None
    read: Callable[[Any], Mapping[str, float]]


def _gauge(name: str, text: str, attribute: str) -> _Family:
    return _Family(GaugeMetricFamily, name, text, None, lambda s: {"": getattr(s, attribute)})


def _counter(name: str, text: str, attribute: str) -> _Family:
    return _Family(CounterMetricFamily, name, text, None, lambda s: {"": getattr(s, attribute)})


def _by(*attributes: str, **renamed: str) -> Callable[[Any], dict[str, float]]:
    """Read attributes under their own names, or under those given."""
    names = {**{attribute: attribute for attribute in attributes}, **renamed}
    return lambda s: {label: getattr(s, attribute) for label, attribute in names.items()}


SERVER: Final = (
    _counter(
        "trionet_server_connections_accepted",
        "Connections taken from the listeners.",
        "accepted",
    ),
    _Family(
        CounterMetricFamily,
        "trionet_server_connections_ended",
        "Connections that are over: completed (the handler returned), failed (it raised or was "
        "cancelled, or the handshake failed) or rejected (closed at once).",
        "outcome",
        _by("completed", "failed", "rejected"),
    ),
    _gauge(
        "trionet_server_connections_active",
        "Connections open now, handshaking ones included.",
        "active",
    ),
)
POOL: Final = (
    _Family(
        GaugeMetricFamily,
        "trionet_pool_connections",
        "Slots taken, by what their connections do.",
        "state",
        _by("idle", "lent", "connecting", "checking", "resetting", "closing"),
    ),
    _gauge("trionet_pool_connections_max", "Connections there may be at most.", "max_size"),
    _gauge("trionet_pool_connections_min", "Connections kept open.", "min_size"),
    _gauge("trionet_pool_waiting_tasks", "Tasks that wait for a connection.", "waiting"),
    _counter("trionet_pool_leases", "How often a connection was lent.", "acquired"),
    _Family(
        CounterMetricFamily,
        "trionet_pool_waits_abandoned",
        "Tasks that stopped waiting: timed_out (after their own timeout) or cancelled.",
        "reason",
        _by("cancelled", "timed_out"),
    ),
    _Family(
        CounterMetricFamily,
        "trionet_pool_connects",
        "Attempts to connect that are over, by outcome.",
        "outcome",
        _by(success="connected", failure="connect_failures"),
    ),
    _Family(
        CounterMetricFamily,
        "trionet_pool_connections_closed",
        "Connections closed, or being closed, by the reason for it.",
        "reason",
        lambda s: s.reasons,
    ),
)
MUX: Final = (
    _Family(
        GaugeMetricFamily,
        "trionet_mux_streams",
        "Live streams, by the side that opened them.",
        "opened",
        _by(here="opened_here", there="opened_there"),
    ),
    _gauge(
        "trionet_mux_streams_unaccepted",
        "Streams of the peer that nobody has accepted yet.",
        "unaccepted",
    ),
    _gauge(
        "trionet_mux_streams_unacknowledged",
        "Streams opened here that the peer has not answered yet.",
        "unacknowledged",
    ),
    _gauge("trionet_mux_unread_bytes", "Bytes that arrived and were not received.", "unread"),
    _gauge("trionet_mux_unsent_bytes", "Bytes that wait for credit or for the carrier.", "unsent"),
    _gauge(
        "trionet_mux_window_budget_used_bytes",
        "Bytes by which receive windows have grown.",
        "window_budget_used",
    ),
    _gauge(
        "trionet_mux_receive_memory_max_bytes",
        "The most that may ever have arrived unread.",
        "max_receive_memory",
    ),
    _counter(
        "trionet_mux_streams_reset",
        "Streams that the peer has reset, been refused, or made this side reset.",
        "resets",
    ),
    _counter(
        "trionet_mux_sent_bytes", "Bytes sent over the carrier, headers included.", "bytes_sent"
    ),
    _counter(
        "trionet_mux_received_bytes",
        "Bytes received over the carrier, headers included.",
        "bytes_received",
    ),
    _Family(
        GaugeMetricFamily,
        "trionet_mux_round_trip_seconds",
        "The round trip measured last; absent before the first one.",
        None,
        lambda s: {} if s.round_trip is None else {"": s.round_trip},
    ),
)
MULTIPLEXER: Final = (
    _Family(
        GaugeMetricFamily,
        "trionet_multiplexer_connections",
        "Connections, by what they do: leaving ones are lent no more, and still used by somebody.",
        "state",
        _by("idle", "lent", "leaving", "connecting", "closing"),
    ),
    _gauge("trionet_multiplexer_connections_max", "Connections there may be at most.", "capacity"),
    _gauge(
        "trionet_multiplexer_connections_wanted",
        "Connections there should be: what was lost is being brought back.",
        "strength",
    ),
    _Family(
        GaugeMetricFamily,
        "trionet_multiplexer_halves_lent",
        "Halves of connections that are lent: receive halves, send halves, or both of one.",
        "kind",
        _by(receive="readers", send="writers", both="borrowed"),
    ),
    _gauge("trionet_multiplexer_streams", "Streams open on the sessions.", "streams"),
    _gauge("trionet_multiplexer_waiting_tasks", "Tasks that wait for a half.", "waiting"),
    _counter(
        "trionet_multiplexer_leases",
        "How often something was lent, or a stream opened.",
        "acquired",
    ),
    _Family(
        CounterMetricFamily,
        "trionet_multiplexer_waits_abandoned",
        "Tasks that stopped waiting: timed_out (after their own timeout) or cancelled.",
        "reason",
        _by("cancelled", "timed_out"),
    ),
    _Family(
        CounterMetricFamily,
        "trionet_multiplexer_connects",
        "Attempts to connect that are over, by outcome.",
        "outcome",
        _by(success="connected", failure="connect_failures"),
    ),
    _Family(
        CounterMetricFamily,
        "trionet_multiplexer_changes",
        "How often the set of connections changed, by what happened.",
        "event",
        _by("lost", "healed", "scaled_up", "scaled_down"),
    ),
    _Family(
        CounterMetricFamily,
        "trionet_multiplexer_connections_closed",
        "Connections closed, or being closed, by the reason for it.",
        "reason",
        lambda s: s.reasons,
    ),
)
# What is watched, under the label that carries its name.
KINDS: Final[Mapping[str, tuple[tuple[type, ...], Sequence[_Family]]]] = {
    "server": ((Server,), SERVER),
    "pool": ((Pool, KeyedPool), POOL),
    "session": ((MuxSession,), MUX),
    "multiplexer": ((Multiplexer,), MULTIPLEXER),
}


@final
class Collector:
    """What `prometheus_client` collects from: register it, and `add` what shall be watched.

    Each figure has the name that `add` was given as its label ``server``, ``pool``, ``session`` or
    ``multiplexer``. A `KeyedPool` counts as one pool, whatever keys it has: keys come from outside,
    and each would be a time series of its own.

    It may be collected in another thread, as ``prometheus_client.start_http_server`` does; then
    the figures are read in trio's thread, between two steps of its tasks.
    """

    def __init__(self) -> None:
        """Make a collector that watches nothing yet."""
        # Kept by kind and name: a server and a pool may be called alike.
        self._watched: dict[tuple[str, str], Watched] = {}
        self._token: trio.lowlevel.TrioToken | None = None

    def add(self, name: str, watched: Watched) -> None:
        """Watch a server, a pool, a session or a multiplexer under ``name``, until `discard`.

        Call it in the trio run that ``watched`` belongs to; after the end of that run there is
        nothing to collect.

        Raises:
          TypeError: it is none of these, or the name is not a string.
          ValueError: another of its kind is watched under this name.
          RuntimeError: trio is not running, or what is watched belongs to another run of it.
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {name!r}")
        kind = next(
            (kind for kind, (types, _) in KINDS.items() if isinstance(watched, types)), None
        )
        if kind is None:
            raise TypeError(
                "only a Server, Pool, KeyedPool, MuxSession or Multiplexer can be watched, "
                f"got {watched!r}"
            )
        if (kind, name) in self._watched:
            raise ValueError(f"a {kind} is watched as {name!r} already")
        token = trio.lowlevel.current_trio_token()
        if self._watched and token is not self._token:
            raise RuntimeError("one Collector cannot watch two runs of trio; make another")
        self._token = token
        self._watched[kind, name] = watched

    def discard(self, watched: Watched) -> None:
        """Watch it no longer, if it was watched at all. Its figures are gone then."""
        for key in [key for key, one in self._watched.items() if one is watched]:
            del self._watched[key]

    def describe(self) -> Iterator[Metric]:
        """Give the families without figures, so that a registry knows their names."""
        for kind, (_, families) in KINDS.items():
            for family in families:
                yield _empty(kind, family)

    def collect(self) -> list[Metric]:
        """Read all figures, and give one family for each name.

        All figures of one server, pool or session are of one moment.
        """
        statistics = self._read()
        collected: list[Metric] = []
        for kind, (_, families) in KINDS.items():
            for family in families:
                metric = _empty(kind, family)
                for (watched_kind, name), figures in statistics.items():
                    if watched_kind == kind:
                        for label, value in family.read(figures).items():
                            metric.add_metric(
                                [name] if family.label is None else [name, label], value
                            )
                collected.append(metric)
        return collected

    def _read(self) -> dict[tuple[str, str], Any]:
        if self._token is None:
            return {}
        if _current_token() is self._token:
            return self._read_here()
        try:
            # Not from here: a session's streams may come and go under another thread's eyes.
            return trio.from_thread.run_sync(self._read_here, trio_token=self._token)
        except trio.RunFinishedError:
            return {}

    def _read_here(self) -> dict[tuple[str, str], Any]:
        return {key: watched.statistics() for key, watched in self._watched.items()}


def _current_token() -> trio.lowlevel.TrioToken | None:
    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None


def _empty(kind: str, family: _Family) -> CounterMetricFamily | GaugeMetricFamily:
    labels = [kind] if family.label is None else [kind, family.label]
    return family.kind(family.name, family.text, labels=labels)
