"""1 KiB over ASGI, for uvicorn, granian and hypercorn: as little as an application can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BODY = b"x" * 1024
FIELDS = [(b"content-type", b"application/octet-stream"), (b"content-length", b"1024")]


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer every request alike; there is nothing to start and nothing to stop."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": FIELDS})
        await send({"type": "http.response.body", "body": BODY})
