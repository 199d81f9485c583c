"""An echo server: whatever a client sends comes back.

``python examples/echo.py`` shows it in one process; ``python examples/echo.py tcp:127.0.0.1:7777``
serves there until Ctrl-C (try it with ``nc 127.0.0.1 7777``). Networks: tcp, tcp4, tcp6, unix,
memu, memb.
"""

from __future__ import annotations

import sys
from functools import partial

import trio

import trionet
from trionet.abc import Address


async def echo(connection: trionet.Connection) -> None:
    """Send back what comes, until the client has no more to say, or the server drains."""
    while True:
        with connection.idle() as idle:
            data = await connection.receive_some()
        if idle.cancelled_caught or not data:
            return
        await connection.send_all(data)


async def serve(network: str, address: str) -> None:
    """Serve until a signal comes. If cancelled, the server ends at once."""
    listeners = await trionet.listen(network, address)
    for listener in listeners:
        print(f"echoing on {listener.address.network}:{listener.address}, until Ctrl-C", flush=True)
    report = await trionet.serve_until_signalled(trionet.Server(echo), listeners)
    print(f"stopped: {report}")


async def show() -> None:
    """Serve on a name in memory, talk to it, and stop. If cancelled, the server ends at once."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(trionet.serve, echo, "memu", "echo"))
        client = await trionet.dial("memu", "echo")
        async with client:
            for line in (b"hello", b"memory has names here"):
                await client.send_all(line)
                print(f"sent {line!r}, got back {bytes(await client.receive_some())!r}")
            # The client has not said that it is done, but between two messages is a good moment.
            server.shutdown()
            print(f"stopped: {await server.wait_closed()}")


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    if len(sys.argv) == 1:
        trio.run(show)
        return 0
    network, _, address = sys.argv[1].partition(":")
    try:
        Address.parse(network, address)
    except ValueError as exc:
        print(f"usage: python examples/echo.py [NETWORK:ADDRESS]\n{exc}", file=sys.stderr)
        return 2
    try:
        trio.run(serve, network, address)
    except OSError as exc:
        print(f"cannot serve on {sys.argv[1]}: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
