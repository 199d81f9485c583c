"""A server and a pool watched by Prometheus: ``python examples/metrics.py`` prints some figures.

A program that runs for longer serves them: ``prometheus_client.start_http_server(9100)`` does it
from a thread of its own, and the figures are still read in trio's.
"""

from __future__ import annotations

from functools import partial

import prometheus_client
import trio

import trionet
from trionet.integrations.prometheus import Collector

SHOWN = (
    "trionet_server_connections_accepted_total",
    "trionet_server_connections_active",
    'trionet_pool_connections{pool="clients",state="idle"}',
    "trionet_pool_leases_total",
)


async def echo(connection: trionet.Connection) -> None:
    """Send back what comes."""
    async for data in connection:
        await connection.send_all(data)


async def main() -> None:
    """Serve and ask in one process. If cancelled, both end."""
    metrics = Collector()
    prometheus_client.REGISTRY.register(metrics)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(trionet.serve, echo, "memb", "echo"))
        metrics.add("echo", server)
        async with trionet.Pool(partial(trionet.dial, "memb", "echo"), max_size=2) as pool:
            metrics.add("clients", pool)
            async with pool.acquire(), pool.acquire():
                pass
            for _ in range(3):
                async with pool.acquire() as stream:
                    await stream.send_all(b"hello")
                    await stream.receive_some()
            for line in prometheus_client.generate_latest().decode().splitlines():
                if line.startswith(SHOWN):
                    print(line)
        server.shutdown()


if __name__ == "__main__":
    trio.run(main)
