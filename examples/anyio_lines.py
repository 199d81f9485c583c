"""A server and a client written for anyio, on a name in memory; neither knows.

``python examples/anyio_lines.py`` talks a little, and ends. Put ``"tcp", "127.0.0.1:7777"`` in the
place of ``"memb", "lines"``, and the same two functions use a network.
"""

from __future__ import annotations

import anyio
import anyio.abc
import trio
from anyio.streams.buffered import BufferedByteReceiveStream

import trionet
from trionet.integrations.anyio import Connectable, Listener


async def count(stream: anyio.abc.ByteStream) -> None:
    """Answer each line with its number of words; anyio and nothing else."""
    lines = BufferedByteReceiveStream(stream)
    async with stream:
        while True:
            try:
                line = await lines.receive_until(b"\n", 1000)
            except (anyio.EndOfStream, anyio.IncompleteRead):
                return
            await stream.send(b"%d\n" % len(line.split()))


async def ask(connectable: anyio.abc.ByteStreamConnectable) -> None:
    """Send two lines, and print what comes back."""
    async with await connectable.connect() as stream:
        answers = BufferedByteReceiveStream(stream)
        for line in (b"to be or not to be\n", b"that is the question\n"):
            await stream.send(line)
            answer = await answers.receive_until(b"\n", 100)
            print(f"{line.decode().strip()}: {answer.decode()} words")


async def main() -> None:
    """Serve and ask in one process. If cancelled, both end."""
    listener = Listener((await trionet.listen("memb", "lines"))[0])
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, count)
        await ask(Connectable("memb", "lines"))
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
