"""An echo server that never sees the bytes it echoes.

    python -m examples.echo_splice 127.0.0.1:7777

`trionet.copy` of a connection onto itself: on Linux the kernel moves what comes in straight back
out, through a pipe, and this program only waits. Over TLS or memory the same line copies in a
loop.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import trio

import trionet

if TYPE_CHECKING:
    from trionet import Connection


async def echo(connection: Connection) -> None:
    """Send everything back, until the client has ended."""
    await trionet.copy(connection, connection)


async def main(address: str) -> None:
    """Echo on ``address`` until SIGTERM or SIGINT."""
    server = trionet.Server(echo)
    listeners = await trionet.listen("tcp", address)
    for listener in listeners:
        print(f"echoing on {listener.address}", flush=True)
    await trionet.serve_until_signalled(server, listeners)


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7777")
