"""An ASGI application in memory: ``python examples/asgi.py`` asks it something, and drains.

The application below stands for any, a FastAPI, Starlette or Quart one say; it is served by
hypercorn's protocols on a name in memory, so it can be tested with a real client and no socket.
``"tcp", ":8080"`` in the place of ``"memb", "site"`` serves it to everybody.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx
import trio
from hypercorn.config import Config

import trionet
from trionet.integrations.httpx import Transport
from trionet.integrations.hypercorn import open_application


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Say hello, and something slow."""
    if scope["type"] == "lifespan":
        for stage in ("startup", "shutdown"):
            await receive()
            print("the application starts" if stage == "startup" else "the application stops")
            await send({"type": f"lifespan.{stage}.complete"})
        return
    if scope["path"] == "/slow":
        await trio.sleep(0.1)
        text = "this took a while"
    else:
        text = f"hello, client {scope['client'] or 'in memory'}"
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode(), "more_body": False})


async def ask(client: httpx.AsyncClient, path: str) -> None:
    """Print what the application answers."""
    response = await client.get(path)
    print(f"GET {path} -> {response.status_code} {response.text}")


async def main() -> None:
    """Serve and ask in one process. If cancelled, both end."""
    async with open_application(application, Config()) as handler, trio.open_nursery() as nursery:
        server = await nursery.start(partial(trionet.serve, handler, "memb", "site"))
        transport = Transport("memb", "site")
        async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
            await ask(client, "/hello")
            async with trio.open_nursery() as asking:
                asking.start_soon(ask, client, "/slow")
                await trio.sleep(0.05)
                server.shutdown()  # the slow answer is still given
            print(await server.wait_closed())


if __name__ == "__main__":
    trio.run(main)
