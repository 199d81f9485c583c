"""A chat over websockets, in memory: ``python examples/websocket_chat.py`` shows it, and ends.

Whatever a member says goes to everybody else. When the server drains, members are told that it
goes away. Put ``"tcp", "127.0.0.1:8080"`` in the place of ``"memb", "chat"``, and browsers can
join.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest

import trionet
from trionet.integrations.websocket import open_websocket, websocket_handler


class Room:
    """Everybody who is there."""

    def __init__(self) -> None:
        self._members: set[WebSocketConnection] = set()

    async def handle(self, request: WebSocketRequest) -> None:
        """Be a member's websocket. If cancelled, the member has left."""
        name = request.path.strip("/")
        member = await request.accept()
        self._members.add(member)
        try:
            while True:
                message = await member.get_message()
                for other in self._members - {member}:
                    # A member that has just left takes nothing.
                    with suppress(ConnectionClosed):
                        await other.send_message(f"{name}: {message!s}")
        finally:
            self._members.discard(member)


async def main() -> None:
    """Serve, and let two members talk. If cancelled, everything ends."""
    async with trio.open_nursery() as nursery:
        serve = partial(trionet.serve, websocket_handler(Room().handle), "memb", "chat")
        server = await nursery.start(serve)
        async with (
            open_websocket("ws://chat/bob", "memb") as bob,
            open_websocket("ws://chat/ann", "memb") as ann,
        ):
            for message in ("hello bob", "are you there?"):
                await ann.send_message(message)
                print(await bob.get_message())
            server.shutdown()
            try:
                await bob.get_message()
            except ConnectionClosed as exc:
                if exc.reason is not None:
                    print(f"closed: {exc.reason.code} {exc.reason.reason}")


if __name__ == "__main__":
    trio.run(main)
