"""A TCP proxy: passes every connection on to one upstream server.

    python -m examples.tcp_proxy 127.0.0.1:8080 example.org:80
    python -m examples.tcp_proxy 127.0.0.1:8080 127.0.0.1:9000 --send-proxy

Between sockets the kernel moves the bytes; a slow reader slows the sender, and end of file passes
through one direction at a time. With ``--send-proxy`` the upstream server is told who the client
is, by a PROXY protocol header (listen there with ``proxy_protocol=``). On SIGTERM it drains.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

import trionet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trionet import Connection
    from trionet.abc import Listener, Stream

logger = logging.getLogger("tcp_proxy")


async def forward(client: Connection, *, upstream: str, send_proxy: bool = False) -> None:
    """Pass one client's bytes on to ``upstream`` and back."""
    try:
        server = await trionet.dial("tcp", upstream)
    except OSError as exc:
        logger.warning("cannot reach %s for %s: %s", upstream, client.remote_address, exc)
        return
    # Whoever's fault it is that a connection broke: closing both is all there is to do.
    async with server:
        with contextlib.suppress(trio.BrokenResourceError):
            if send_proxy:
                header = trionet.ProxyHeader("v2", client.remote_address, client.local_address)
                await server.send_all(header.encode())
            await trionet.relay(client, server)


async def run(
    listeners: Sequence[Listener[Stream]],
    upstream: str,
    *,
    send_proxy: bool = False,
    task_status: trio.TaskStatus[list[trionet.Address]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until SIGTERM or SIGINT."""
    handler = partial(forward, upstream=upstream, send_proxy=send_proxy)
    server = trionet.Server(handler, limits=trionet.Limits(max_connections=10_000))
    await trionet.serve_until_signalled(server, listeners, task_status=task_status)


async def main(listen: str, upstream: str, send_proxy: bool) -> None:
    """Listen and forward."""
    listeners = await trionet.listen("tcp", listen)
    for listener in listeners:
        logger.info("forwarding %s to %s", listener.address, upstream)
    await run(listeners, upstream, send_proxy=send_proxy)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Forward TCP connections to one server.")
    parser.add_argument("listen", help="host:port or :port to listen on")
    parser.add_argument("upstream", help="host:port to forward to")
    parser.add_argument("--send-proxy", action="store_true", help="tell it who the client is")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    trio.run(main, options.listen, options.upstream, options.send_proxy)
