"""Code that is not ours: run within bounds, and what became of it given back."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("EXCHANGE_LIMIT", "attempt", "close_resource")

# Seconds that close, check and reset get. Each is one exchange with the peer at most; who takes
# longer does not answer.
EXCHANGE_LIMIT: Final = 5.0

_logger = logging.getLogger("trionet.pool")


async def attempt(
    function: Callable[..., Awaitable[Any]], *args: object, scope: trio.CancelScope, what: str
) -> outcome.Outcome[Any]:
    """Run code that is not ours, and give back what it returned or raised.

    Args:
      scope: bounds it; a run that it cancelled gives a `trio.TooSlowError`.
      what: its name in that error.

    If cancelled from outside, `trio.Cancelled` propagates, as whatever is not an `Exception` does.
    """
    try:
        with scope:
            return outcome.Value(await function(*args))
    except Exception as exc:  # noqa: BLE001 - connect, check, reset, close: they may raise anything
        return outcome.Error(exc)
    return outcome.Error(trio.TooSlowError(f"{what} took too long"))


async def _aclose(resource: Any) -> None:
    # Looked up here, where what that raises is caught. There need be none beside a `close`.
    aclose = getattr(resource, "aclose", None)
    if aclose is not None:
        await aclose()


async def close_resource(
    resource: Any, close: Callable[[Any], Awaitable[object]] | None, scope: trio.CancelScope
) -> None:
    """Close a connection, within ``scope``, by ``close`` or else by its own ``aclose``.

    What that raises is logged, and no more: there is nobody who could do anything about it.
    """
    ended = await attempt(close or _aclose, resource, scope=scope, what="closing")
    if isinstance(ended, outcome.Error):
        _logger.debug("closing %r: %r", resource, ended.error)
        # An aclose that was cut short has closed all the same; anything else may not have.
        if close is not None:
            at_once = trio.CancelScope(shield=True, deadline=-math.inf)
            await attempt(_aclose, resource, scope=at_once, what="closing")
