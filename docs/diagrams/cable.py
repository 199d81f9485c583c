"""A question over a cable that is cut for a second, as the virtual network saw it."""

from __future__ import annotations

from functools import partial

import trio

import trionet
from trionet.testing import Link, VirtualNetwork, simulate

__all__ = ("watch",)


async def _echo(connection: trionet.Connection) -> None:
    """Send back what comes."""
    async for data in connection:
        await connection.send_all(data)


async def _main() -> str:
    async with (
        VirtualNetwork(link=Link(latency=0.05)) as net,
        trio.open_nursery() as nursery,
    ):
        server = net.host("echo.example")
        serve = partial(trionet.serve, _echo, "tcp", ":7")
        await nursery.start(server.run, serve)
        # By its address, to leave out the question for its name.
        address = f"{server.addresses[0]}:7"
        async with await trionet.dial("tcp", address) as stream:
            with net.partition("localhost", "echo.example"):
                await stream.send_all(b"hello")
                await trio.sleep(1)
            await stream.receive_some()
            picture = net.sequence_svg()
        nursery.cancel_scope.cancel()
    return picture


def watch() -> str:
    """Return the picture that the network draws of itself."""
    return simulate(_main).result
