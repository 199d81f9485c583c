"""A client that spreads work over several servers, which come and go as they like.

    python -m examples.fan_out HOST:PORT HOST:PORT ...

Each server answers lines with lines; here with their SHA-256. `Farm` is what a program would use:
each piece of work borrows a connection to whatever server has one free. A connection to a server
that stops is lost, and the multiplexer dials again, where somebody still answers: to the next
server of the list, which may change at any time. Work that was under way is done again elsewhere,
since doing it twice does no harm.

Without arguments it shows itself: three servers in one process, of which one stops and one starts
while a thousand lines are worked on.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Self, final

import trio

import trionet

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable
    from types import TracebackType

LINE_SIZE = 1000

# Seconds a server gets for an answer; one that takes longer has lost its network.
ANSWER_WITHIN = 5.0


@final
class Farm:
    """Servers that all do the same, seen as one.

    ::

        async with Farm(["one.example:7000", "two.example:7000"]) as farm:
            digest = await farm.ask("a line")

    Attributes:
      servers: where they are; may be changed at any time. Connections that there are stay.
      happened: what has happened to the connections so far, and how often.
    """

    def __init__(
        self,
        servers: Iterable[str],
        *,
        network: str = "tcp",
        capacity: int = 8,
        patience: float = 30.0,
    ) -> None:
        """Prepare to connect to ``servers``.

        Args:
          network: how they are reached, as `trionet.dial` knows it.
          capacity: connections at most, to all of them together.
          patience: seconds that a piece of work may take with everything that goes wrong.
        """
        self.servers = list(servers)
        self.happened: Counter[str] = Counter()
        self._network = network
        self._patience = patience
        self._next = 0
        self.connections = trionet.Multiplexer(
            self._connect,
            capacity=capacity,
            # A connection more for who would wait longer than a dial in one data centre takes.
            scale_after=0.01,
            backoff=trionet.Backoff(maximum=1),
            on_event=lambda event: self.happened.update([event.kind]),
        )

    async def __aenter__(self) -> Self:
        await self.connections.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.connections.__aexit__(kind, exception, traceback)

    async def _connect(self) -> trio.abc.Stream:
        """Dial the server whose turn it is, or the first one after it that answers."""
        problem: OSError | None = None
        for _ in range(len(self.servers)):
            self._next += 1
            server = self.servers[self._next % len(self.servers)]
            try:
                return await trionet.dial(self._network, server)
            except OSError as exc:
                problem = exc
        raise problem or OSError("there is no server at all")

    async def ask(self, line: str) -> str:
        """Have some server work on ``line``.

        Raises:
          trio.TooSlowError: nobody has answered within the patience of this farm.

        If cancelled, some server may have done the work for nothing.
        """
        with trio.fail_after(self._patience):
            while True:
                try:
                    return await self._ask_once(line)
                except (trio.BrokenResourceError, trio.TooSlowError):
                    # The connection is closed already, as after any exception in its block. The
                    # next one may be as dead; none is asked twice.
                    continue

    async def _ask_once(self, line: str) -> str:
        async with self.connections.borrow() as stream:
            with trio.fail_after(ANSWER_WITHIN):
                await stream.send_all(line.encode() + b"\n")
                answer = await trionet.BufferedStream(stream).receive_until(b"\n", LINE_SIZE)
                return answer[:-1].decode()

    async def ask_all(self, lines: AsyncIterable[str], *, workers: int = 32) -> dict[str, str]:
        """Have all ``lines`` worked on, so many at a time.

        Raises and leaves behind what `ask` does.
        """
        answers: dict[str, str] = {}
        send, receive = trio.open_memory_channel[str](0)

        async def work(source: trio.MemoryReceiveChannel[str]) -> None:
            async with source:
                async for line in source:
                    answers[line] = await self.ask(line)

        async with trio.open_nursery() as nursery, send:
            async with receive:
                for _ in range(workers):
                    nursery.start_soon(work, receive.clone())
            async for line in lines:
                await send.send(line)
        return answers


# A server, to show it with


@final
class Worker:
    """One server, and how much it has done.

    Attributes:
      warm: it has done a hundred lines.
    """

    def __init__(self, name: str, *, takes: float = 0.0) -> None:
        """Prepare a server that needs ``takes`` seconds for a line."""
        self.name = name
        self.takes = takes
        self.done = 0
        self.warm = trio.Event()

    async def __call__(self, connection: trionet.Connection) -> None:
        """Answer each line with its digest; between two of them a drain may end it."""
        stream = trionet.BufferedStream(connection)
        while True:
            line = b""
            with connection.idle():
                try:
                    line = await stream.receive_until(b"\n", LINE_SIZE)
                except trio.BrokenResourceError:
                    return
            if not line:
                return
            await trio.sleep(self.takes)
            await connection.send_all(digest(line[:-1].decode()).encode() + b"\n")
            self.done += 1
            if self.done == 100:
                self.warm.set()


def digest(line: str) -> str:
    """Return what a server answers."""
    return hashlib.sha256(line.encode()).hexdigest()


async def numbers(first: int, last: int) -> AsyncIterable[str]:
    for number in range(first, last):
        yield f"number {number}"


async def show() -> None:
    """Work on a thousand lines while one of three servers stops and another one starts."""
    workers = [Worker(name, takes=0.01) for name in ("one", "two", "three", "four")]
    async with trio.open_nursery() as nursery:
        servers = [
            await nursery.start(partial(trionet.serve, worker, "memb", worker.name))
            for worker in workers[:3]
        ]
        async with Farm(["one", "two", "three"], network="memb", capacity=9) as farm:

            async def disturb() -> None:
                await workers[0].warm.wait()
                serve = partial(trionet.serve, workers[3], "memb", workers[3].name)
                servers.append(await nursery.start(serve))
                farm.servers[0] = "four"
                servers[0].shutdown()

            nursery.start_soon(disturb)
            answers = await farm.ask_all(numbers(0, 1000))
        assert answers == {line: digest(line) for line in answers}
        for server in servers:
            server.shutdown()
    print(f"{len(answers)} lines:", ", ".join(f"{one.name} did {one.done}" for one in workers))
    print("connections:", ", ".join(f"{n} {what}" for what, n in sorted(farm.happened.items())))


async def main(servers: list[str]) -> None:
    """Work on standard input, line by line."""
    async with Farm(servers) as farm:

        async def lines() -> AsyncIterable[str]:
            async for line in trio.wrap_file(sys.stdin):
                yield line.rstrip("\n")

        for line, answer in (await farm.ask_all(lines())).items():
            print(answer, line)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        trio.run(main, sys.argv[1:])
    else:
        trio.run(show)
