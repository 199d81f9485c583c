"""A race in a small client: found by seeds, replayed, and fixed.

    python -m examples.flaky_link

The client asks a directory for telephone numbers, one line each way, over one connection that its
tasks share. Its callers are impatient: they give each question 250 ms. That is enough, unless a
segment is lost and sent again; but then somebody else may get a wrong number. `hunt` lets client
and server talk, unchanged, over a link that loses one segment in a hundred, under one seed after
another. ``docs/flaky_link.md`` tells the story.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import trio

import trionet
from trionet.testing import Link, Run, VirtualNetwork, random_stream, simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

NUMBERS = {"ada": "0001", "grace": "0002", "edsger": "0003", "barbara": "0004"}
# Bytes; more than any line has.
LINE_SIZE = 100
# Seconds that a caller waits for an answer: what a lost segment costs, and a bit.
PATIENCE = 0.25
# 40 to 100 ms for a question and its answer; one segment in a hundred comes 200 ms late.
LINK = Link(latency=0.02, jitter=0.03, loss=0.01)


class Directory:
    """A client of the directory, for any number of tasks."""

    def __init__(self, host: str, port: int) -> None:
        """Prepare to ask the server at ``host`` and ``port``."""
        self._address = host, port
        self._stream: trionet.BufferedStream | None = None
        self._lock = trio.Lock()

    async def look_up(self, name: str) -> str:
        """Return somebody's number."""
        async with self._lock:
            stream = await self._connected()
            await stream.send_all(name.encode() + b"\n")
            return (await stream.receive_until(b"\n", LINE_SIZE)).decode().strip()

    async def _connected(self) -> trionet.BufferedStream:
        if self._stream is None:
            self._stream = trionet.BufferedStream(await trio.open_tcp_stream(*self._address))
        return self._stream

    async def aclose(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.aclose()


class CarefulDirectory(Directory):
    """The same client without the race."""

    async def look_up(self, name: str) -> str:
        """Return somebody's number."""
        async with self._lock:
            stream = await self._connected()
            try:
                await stream.send_all(name.encode() + b"\n")
                return (await stream.receive_until(b"\n", LINE_SIZE)).decode().strip()
            except BaseException:
                # An answer may be under way. Whoever asks next would take it for theirs.
                self._stream = None
                await trio.aclose_forcefully(stream)
                raise


async def answer(stream: trio.SocketStream) -> None:
    """Serve one connection of the directory."""
    lines = trionet.BufferedStream(stream)
    # How a connection ends: the client went, in peace or not.
    with contextlib.suppress(trio.BrokenResourceError):
        while True:
            name = (await lines.receive_until(b"\n", LINE_SIZE)).decode().strip()
            await lines.send_all(NUMBERS[name].encode() + b"\n")


class Mistake(NamedTuple):
    """A wrong number, and when it was given."""

    time: float
    text: str


async def call_around(make: Callable[[str, int], Directory]) -> list[Mistake]:
    """Let everybody look up their own number now and then; return who got another's."""
    mistakes: list[Mistake] = []

    async def look_up_own(directory: Directory, name: str) -> None:
        chance = random_stream(name)
        for _ in range(5):
            await trio.sleep(chance.uniform(0, 3))
            # Whoever gets no answer tries again later.
            with trio.move_on_after(PATIENCE):
                number = await directory.look_up(name)
                if number != NUMBERS[name]:
                    text = f"{name} has {NUMBERS[name]}, not {number}"
                    mistakes.append(Mistake(trio.current_time(), text))

    async with VirtualNetwork(link=LINK) as net, trio.open_nursery() as nursery:
        server = net.host("directory.example")
        await nursery.start(server.run, trio.serve_tcp, answer, 79)
        directory = make("directory.example", 79)
        async with trio.open_nursery() as callers:
            for name in NUMBERS:
                callers.start_soon(look_up_own, directory, name)
        await directory.aclose()
        nursery.cancel_scope.cancel()
    return mistakes


def hunt(make: Callable[[str, int], Directory], seeds: Iterable[int]) -> Run[list[Mistake]] | None:
    """Return the first run that goes wrong, or None if all go well."""
    for seed in seeds:
        run = simulate(call_around, make, seed=seed)
        if run.result:
            return run
    return None


def main() -> None:
    """Hunt, show, replay, and see that the fix is one."""
    run = hunt(Directory, range(200))
    assert run is not None
    mistake = run.result[0]
    print(f"Seed {run.seed}, at {mistake.time:.3f} s: {mistake.text}. What came before:")
    said = [event for event in run.trace if event.payload and event.time <= mistake.time]
    for event in said[-12:]:
        print(f"  {event} {event.payload!r}")
    again = simulate(call_around, Directory, seed=run.seed)
    print(f"The same again: {again.digest == run.digest}")
    print(f"The careful client, 200 seeds: {hunt(CarefulDirectory, range(200)) or 'no mistake'}")


if __name__ == "__main__":
    main()
