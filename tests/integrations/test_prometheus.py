"""Figures for Prometheus, through prometheus_client's own registry and text formats."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import DuplicateTimeseries

import trionet
from examples.echo import echo
from trionet.integrations.prometheus import KINDS, Collector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
async def server() -> AsyncIterator[trionet.Server]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(partial(trionet.serve, echo, "memb", "echo"))
        nursery.cancel_scope.cancel()


def test_importing_registers_nothing() -> None:
    program = (
        "import prometheus_client as p; before = p.generate_latest().count(b'# HELP')\n"
        "import trionet.integrations.prometheus\n"
        "assert p.generate_latest().count(b'# HELP') == before\n"
        "assert b'trionet' not in p.generate_latest()\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_a_new_collector_has_names_and_no_figures(registry: CollectorRegistry) -> None:
    registry.register(Collector())

    assert all(not metric.samples for metric in registry.collect())
    with pytest.raises(DuplicateTimeseries):
        registry.register(Collector())


def test_names_keep_to_the_conventions() -> None:
    # https://prometheus.io/docs/practices/naming and OpenMetrics: base units in the name, and
    # _total on counters, which prometheus_client adds.
    for metric in Collector().describe():
        assert re.fullmatch(r"trionet_(server|pool|mux|multiplexer)(_[a-z]+)+", metric.name)
        assert not metric.name.endswith("_total")
        assert metric.documentation[0].isupper()
        assert metric.documentation.endswith(".")


async def test_a_servers_figures_are_its_statistics(
    registry: CollectorRegistry, server: trionet.Server
) -> None:
    metrics = Collector()
    registry.register(metrics)
    metrics.add("web", server)
    async with await trionet.dial("memb", "echo") as client:
        await client.send_all(b"hello")
        await client.receive_some()
    async with await trionet.dial("memb", "echo") as client:
        await client.send_all(b"hello")
        await client.receive_some()

        def figure(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(name, {"server": "web", **labels})

        assert figure("trionet_server_connections_accepted_total") == 2
        assert figure("trionet_server_connections_active") == 1
        assert figure("trionet_server_connections_ended_total", outcome="completed") == 1
        assert figure("trionet_server_connections_ended_total", outcome="failed") == 0
        assert figure("trionet_server_connections_ended_total", outcome="rejected") == 0


async def test_a_pools_figures_are_its_statistics(
    registry: CollectorRegistry, server: trionet.Server
) -> None:
    metrics = Collector()
    registry.register(metrics)
    connect = partial(trionet.dial, "memb", "echo")

    async with trionet.Pool(connect, max_size=2, min_size=1) as pool:
        metrics.add("echo", pool)
        async with pool.acquire(), pool.acquire() as second:

            def figure(name: str, **labels: str) -> float | None:
                return registry.get_sample_value(name, {"pool": "echo", **labels})

            async with trio.open_nursery() as waiting:
                waiting.start_soon(pool.get)
                await trio.testing.wait_all_tasks_blocked()
                assert figure("trionet_pool_waiting_tasks") == 1
                waiting.cancel_scope.cancel()
            assert figure("trionet_pool_waiting_tasks") == 0
            assert figure("trionet_pool_waits_abandoned_total", reason="cancelled") == 1
            assert figure("trionet_pool_connections", state="lent") == 2
            assert figure("trionet_pool_connections", state="idle") == 0
            assert figure("trionet_pool_connections_max") == 2
            assert figure("trionet_pool_connections_min") == 1
            assert figure("trionet_pool_leases_total") == 2
            assert figure("trionet_pool_connects_total", outcome="success") == 2
            assert figure("trionet_pool_connects_total", outcome="failure") == 0
            pool.discard(second)
            await trio.testing.wait_all_tasks_blocked()
            assert figure("trionet_pool_connections_closed_total", reason="discarded") == 1
        metrics.discard(pool)
        assert figure("trionet_pool_leases_total") is None


async def test_a_keyed_pool_is_one_pool(
    registry: CollectorRegistry, server: trionet.Server
) -> None:
    async def connect(key: str) -> Any:
        return await trionet.dial("memb", key)

    metrics = Collector()
    registry.register(metrics)
    async with trionet.KeyedPool(connect, max_total=5, max_per_key=2) as pool:
        metrics.add("all", pool)
        async with pool.acquire("echo"):
            labels = {"pool": "all", "state": "lent"}
            assert registry.get_sample_value("trionet_pool_connections", labels) == 1


async def test_a_sessions_figures_are_its_statistics(registry: CollectorRegistry) -> None:
    near, far = trionet.memory_stream_pair(65536)
    metrics = Collector()
    registry.register(metrics)
    async with (
        trionet.open_mux(near, role="client") as client,
        trionet.open_mux(far, role="server") as server,
    ):
        metrics.add("uplink", client)

        def figure(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(name, {"session": "uplink", **labels})

        assert figure("trionet_mux_round_trip_seconds") is None
        stream = await client.open_stream()
        await stream.send_all(b"hello")
        peer = await server.listener().accept()
        await peer.send_all(b"hello yourself")
        await client.ping()

        assert figure("trionet_mux_streams", opened="here") == 1
        assert figure("trionet_mux_streams", opened="there") == 0
        assert figure("trionet_mux_unread_bytes") == len(b"hello yourself")
        statistics = client.statistics()
        assert figure("trionet_mux_sent_bytes_total") == statistics.bytes_sent > 0
        assert figure("trionet_mux_received_bytes_total") == statistics.bytes_received > 0
        assert figure("trionet_mux_round_trip_seconds") == statistics.round_trip


async def test_a_multiplexers_figures_are_its_statistics(
    registry: CollectorRegistry, server: trionet.Server
) -> None:
    metrics = Collector()
    registry.register(metrics)
    connect = partial(trionet.dial, "memb", "echo")
    async with trionet.Multiplexer(connect, capacity=2) as plex:
        metrics.add("plex", plex)

        def figure(name: str, **labels: str) -> float | None:
            return registry.get_sample_value(name, {"multiplexer": "plex", **labels})

        async with plex.writer():
            assert figure("trionet_multiplexer_halves_lent", kind="send") == 1
            assert figure("trionet_multiplexer_halves_lent", kind="receive") == 0
            assert figure("trionet_multiplexer_connections", state="lent") == 1
        assert figure("trionet_multiplexer_connections", state="idle") == 1
        assert figure("trionet_multiplexer_connections_max") == 2
        assert figure("trionet_multiplexer_connections_wanted") == 1
        assert figure("trionet_multiplexer_leases_total") == 1
        assert figure("trionet_multiplexer_connects_total", outcome="success") == 1
        assert figure("trionet_multiplexer_changes_total", event="lost") == 0


async def test_two_servers_share_each_name_and_a_pool_may_be_called_like_one(
    registry: CollectorRegistry, server: trionet.Server
) -> None:
    metrics = Collector()
    registry.register(metrics)
    metrics.add("a", server)
    metrics.add("b", trionet.Server(echo))
    async with trionet.Pool(partial(trionet.dial, "memb", "echo"), max_size=1) as pool:
        metrics.add("a", pool)

        text = exposition.generate_latest(registry).decode()

    assert text.count("# TYPE trionet_server_connections_active gauge") == 1
    assert 'trionet_server_connections_active{server="a"} 0.0' in text
    assert 'trionet_server_connections_active{server="b"} 0.0' in text
    assert 'trionet_pool_connections_max{pool="a"} 1.0' in text


async def test_a_strict_parser_takes_every_family(
    registry: CollectorRegistry, server: trionet.Server
) -> None:
    metrics = Collector()
    registry.register(metrics)
    metrics.add('na"me\n', server)
    near, _far = trionet.memory_stream_pair()
    connect = partial(trionet.dial, "memb", "echo")
    async with (
        trionet.Pool(connect, max_size=1) as pool,
        trionet.Multiplexer(connect) as plex,
    ):
        metrics.add("p", pool)
        metrics.add("m", plex)
        with trio.CancelScope() as scope:
            async with trionet.open_mux(near, role="client") as session:
                metrics.add("s", session)
                text = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]
                scope.cancel()

    parsed = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}
    expected = {family.name for _, rows in KINDS.values() for family in rows}
    assert set(families) == expected
    (sample,) = families["trionet_server_connections_active"].samples
    assert sample.labels == {"server": 'na"me\n'}


async def test_another_thread_collects_through_trios(
    registry: CollectorRegistry, server: trionet.Server
) -> None:
    metrics = Collector()
    registry.register(metrics)
    metrics.add("web", server)
    read_in: list[object] = []
    original = server.statistics

    class Watching:
        """The server, telling where it is asked."""

        def statistics(self) -> Any:
            """Note the task's thread."""
            read_in.append(trio.lowlevel.current_trio_token())
            return original()

    metrics._watched["server", "web"] = Watching()  # type: ignore[assignment]

    text = await trio.to_thread.run_sync(exposition.generate_latest, registry)

    assert b'trionet_server_connections_active{server="web"} 0.0' in text
    assert read_in == [trio.lowlevel.current_trio_token()]


def test_after_the_run_there_is_nothing_to_collect(registry: CollectorRegistry) -> None:
    metrics = Collector()
    registry.register(metrics)

    async def main() -> None:
        metrics.add("web", trionet.Server(echo))

    trio.run(main)

    assert all(not metric.samples for metric in registry.collect())

    async def again() -> None:
        with pytest.raises(RuntimeError, match="two runs"):
            metrics.add("other", trionet.Server(echo))

    trio.run(again)


async def test_misuse_is_told(server: trionet.Server) -> None:
    metrics = Collector()
    metrics.add("web", server)

    with pytest.raises(ValueError, match="a server is watched as 'web' already"):
        metrics.add("web", trionet.Server(echo))
    with pytest.raises(TypeError, match="can be watched, got 3"):
        metrics.add("three", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a str, got 3"):
        metrics.add(3, server)  # type: ignore[arg-type]
    metrics.discard(trionet.Server(echo))
    metrics.discard(server)
    metrics.add("web", server)


def test_outside_of_trio_nothing_can_be_added() -> None:
    with pytest.raises(RuntimeError, match="async"):
        Collector().add("web", trionet.Server(echo))
