"""A server on a network, and a client that says one word to it."""

from __future__ import annotations

from typing import Any

import trio

import trionet
from trionet import Connection, Server


async def echo(connection: Connection) -> None:
    """Send back what comes."""
    async for data in connection:
        await connection.send_all(data)


async def start(
    nursery: trio.Nursery,
    handler: Any,
    network: str = "memb",
    address: str = "site",
    *,
    ssl_context: Any = None,
    **settings: Any,
) -> Server:
    """Serve in ``nursery``; ``settings`` are the `Server`'s."""
    server = Server(handler, **settings)
    listeners = await trionet.listen(network, address, ssl_context=ssl_context)
    await nursery.start(server.serve, listeners)
    return server


async def ask(network: str = "memb", address: str = "site") -> bytes:
    """Send a word, and return what comes back."""
    stream = await trionet.dial(network, address)
    await stream.send_all(b"hello")
    reply = await stream.receive_some()
    await stream.aclose()
    return bytes(reply)
