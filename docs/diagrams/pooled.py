"""A pool of one connection doing everything a pool does, watched at every step."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

import trionet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ("watch",)

STATES = ("connecting", "idle", "lent", "checking", "resetting", "closing")


class Connection:
    """Something to pool, that takes a moment to close."""

    async def aclose(self) -> None:
        """Close."""
        await trio.sleep(0.01)


async def connect() -> Connection:
    """Take a moment."""
    await trio.sleep(0.01)
    return Connection()


async def refuse() -> Connection:
    """Fail, after a moment."""
    await trio.sleep(0.01)
    raise OSError("nobody there")


class Watching(trio.abc.Instrument):
    """Notes each change of the one connection's state."""

    def __init__(self) -> None:
        self.edges: dict[tuple[str, str], None] = {}
        self.pool: trionet.Pool[Connection] | None = None
        self.state = ""
        self.acquired = 0

    def begin(self, pool: trionet.Pool[Connection]) -> None:
        """Watch a pool that has nothing yet."""
        self.pool = pool
        self.state = ""
        self.acquired = 0

    def look(self) -> None:
        """Compare what the pool says with what it said last."""
        if self.pool is None:
            return
        now = self.pool.statistics()
        (state,) = [name for name in STATES if getattr(now, name)] or ["gone"]
        if state == "connecting" and self.state not in {"", state}:
            # Another one, in the slot of the first.
            self.edges[self.state, "gone"] = None
            self.state = ""
        again = state == self.state == "lent" and now.acquired > self.acquired
        if (state != self.state or again) and not (
            state == "gone" and self.state == ""
        ):
            self.edges[self.state, state] = None
        self.acquired = now.acquired
        self.state = "" if state == "gone" else state

    def before_task_step(self, _: trio.lowlevel.Task) -> None:
        """Look."""
        self.look()

    def after_task_step(self, _: trio.lowlevel.Task) -> None:
        """Look."""
        self.look()


async def _use(pool: trionet.Pool[Connection], seconds: float = 0) -> None:
    async with pool.acquire():
        await trio.sleep(seconds)


async def _lend_and_give_back(pool: trionet.Pool[Connection]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_use, pool, 1)
        nursery.start_soon(
            _use, pool, 1
        )  # waits, and gets it straight from the first
    await trio.sleep(1)
    await _use(pool)


async def _cancel_while(pool: trionet.Pool[Connection]) -> None:
    with trio.move_on_after(0.005):  # while it is being made, checked or reset
        await _use(pool)
    await trio.sleep(0.1)


async def _check_and_reset(pool: trionet.Pool[Connection]) -> None:
    await _lend_and_give_back(pool)
    await trio.sleep(1)
    await _cancel_while(pool)  # so that nobody wants what was checked
    await trio.sleep(1)


async def _fail(pool: trionet.Pool[Connection]) -> None:
    with suppress(trionet.PoolConnectError):
        await _use(pool)


async def _discard(pool: trionet.Pool[Connection]) -> None:
    with suppress(KeyError):
        async with pool.acquire():
            raise KeyError
    await trio.sleep(1)


async def _expire_meanwhile(pool: trionet.Pool[Connection]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_use, pool)
        await trio.sleep(0.005)
        pool.expire()


async def _works(_: Connection) -> None:
    await trio.sleep(0.01)


async def _does_not(_: Connection) -> None:
    await trio.sleep(0.01)
    raise OSError("it does not")


SCENES: list[
    tuple[Callable[[trionet.Pool[Connection]], Awaitable[None]], dict[str, Any]]
] = [
    (_lend_and_give_back, {}),
    (_cancel_while, {}),
    (_discard, {}),
    (_check_and_reset, {"check": _works, "reset": _works}),
    (_check_and_reset, {"check": _does_not}),
    (_check_and_reset, {"reset": _does_not}),
    (_expire_meanwhile, {}),
    (_fail, {"connect": refuse}),
]


async def _watch() -> list[tuple[str, str]]:
    watching = Watching()
    trio.lowlevel.add_instrument(watching)
    for scene, settings in SCENES:
        settings = {"connect": connect, **settings}
        async with trionet.Pool(max_size=1, **settings) as pool:
            watching.begin(pool)
            await scene(pool)
        watching.look()
        watching.pool = None
    return list(watching.edges)


def watch() -> list[tuple[str, str]]:
    """Return each change of state that was seen, in the order of the first time."""
    return trio.run(_watch, clock=trio.testing.MockClock(autojump_threshold=0))
