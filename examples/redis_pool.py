"""A pool of connections to Redis: pipelined commands, to a server that may restart at any time.

    python -m examples.redis_pool [HOST:PORT]

`Connection` speaks as much of RESP2 as commands and their replies need. `Redis` is what a program
would use: each call borrows a connection for one pipeline. Connections that die while nobody uses
them are gone before anybody gets them; while the server is away the pool keeps trying, and callers
wait as long as their patience lasts.
"""

from __future__ import annotations

import itertools
import sys
from functools import partial
from typing import TYPE_CHECKING, Self, TypeAlias, final

import trio

import trionet

if TYPE_CHECKING:
    import socket
    from types import TracebackType

Reply: TypeAlias = "bytes | int | RedisError | list[Reply] | None"


class RedisError(Exception):
    """The server's answer to a command was an error."""


@final
class Connection:
    """One connection to a Redis server; use by one task at a time."""

    def __init__(self, stream: trionet.abc.Stream) -> None:
        self._stream = stream
        self._received = bytearray()

    @property
    def transport_socket(self) -> socket.socket | None:
        """The socket below, which the pool watches for the server's going away."""
        return self._stream.transport_socket

    @property
    def closed(self) -> bool:
        """Whether this connection was closed."""
        return self._stream.closed

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def pipeline(self, *commands: tuple[str | bytes | int, ...]) -> list[Reply]:
        """Send all ``commands`` at once, and return their replies in order.

        Raises:
          trio.BrokenResourceError: the server has gone; some of them may have been executed.

        If cancelled, the connection is of no more use: replies may be under way.
        """
        await self._stream.send_all(b"".join(map(encode, commands)))
        return [await self._reply() for _ in commands]

    async def _reply(self) -> Reply:
        line = await self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b"-":
            return RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else (await self._exactly(int(rest) + 2))[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [await self._reply() for _ in range(int(rest))]
        raise trio.BrokenResourceError(f"this is not RESP2: {line!r}")

    async def _line(self) -> bytes:
        while (end := self._received.find(b"\r\n")) < 0:
            await self._more()
        return (await self._exactly(end + 2))[:-2]

    async def _exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            await self._more()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def _more(self) -> None:
        data = await self._stream.receive_some()
        if not data:
            raise trio.BrokenResourceError("the server has closed the connection")
        self._received += data


def encode(command: tuple[str | bytes | int, ...]) -> bytes:
    """Return a command as RESP2 sends it: an array of bulk strings."""
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


async def connect(address: str) -> Connection:
    """Connect, and see that the server answers: one that has just started still loads its data."""
    stream = await trionet.dial("tcp", address)
    connection = Connection(stream)
    try:
        await ping(connection)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return connection


async def ping(connection: Connection) -> None:
    """Raise unless the server answers a PING as it should."""
    (reply,) = await connection.pipeline(("PING",))
    if reply != b"PONG":
        raise trio.BrokenResourceError(f"the server answers {reply!r}")


@final
class Redis:
    """A Redis server, whatever happens to it in between.

    ::

        async with Redis("localhost:6379") as redis:
            await redis.run(("SET", "name", "value"), ("GET", "name"))
    """

    def __init__(self, address: str, *, max_size: int = 10, patience: float = 30.0) -> None:
        """Prepare to connect to ``address``.

        Args:
          patience: seconds that a call waits for a connection.
        """
        self._patience = patience
        self.pool = trionet.Pool(
            partial(connect, address),
            max_size=max_size,
            connect_timeout=5,
            # A server that restarts is not worth a word to anybody who can wait.
            backoff=trionet.Backoff(maximum=1, attempts=None),
            check=ping,
            check_after=10,
        )

    async def __aenter__(self) -> Self:
        await self.pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.pool.__aexit__(kind, exception, traceback)

    async def run(self, *commands: tuple[str | bytes | int, ...]) -> list[Reply]:
        """Run commands in one pipeline, again if the server went away meanwhile.

        Only for what may be executed twice: a SET, but not an INCR.

        Raises:
          trionet.PoolTimeoutError: there was no connection within `patience` seconds.
          trio.BrokenResourceError: the server still hangs up after `patience` seconds.

        If cancelled, some of the commands may have been executed.
        """
        pauses = trionet.Backoff(maximum=1)
        deadline = trio.current_time() + self._patience
        for failures in itertools.count(1):
            try:
                left = max(0, deadline - trio.current_time())
                async with self.pool.acquire(timeout=left) as connection:
                    return await connection.pipeline(*commands)
            except trio.BrokenResourceError:
                # The connection is closed already, as after any exception in the block.
                if trio.current_time() >= deadline:
                    raise
            await trio.sleep(pauses.delay(failures))
        raise AssertionError("there is no last failure")


async def main(address: str) -> None:
    """Let fifty tasks share four connections, and say what that took."""
    async with Redis(address, max_size=4) as redis:

        async def work(number: int) -> None:
            for turn in range(20):
                name, value = f"trionet:{number}", f"{turn}"
                _, got = await redis.run(("SET", name, value, "EX", 60), ("GET", name))
                assert got == value.encode()

        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(work, number)
        seconds = trio.current_time() - start
        print(f"2000 commands in 1000 pipelines took {seconds:.3f} s: {redis.pool}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "localhost:6379")
