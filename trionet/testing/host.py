"""Virtual hosts: where a task lives, and what can happen to it there."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, final

import trio

from .stack import Stack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .world import World

__all__ = ("Host", "current_host")

# Inherited by the tasks that a task starts.
current_host: Final[ContextVar[Host | None]] = ContextVar("trionet.host", default=None)


@final
class Host:
    """A machine on a `VirtualNetwork`; made by its `host`.

    Attributes:
      name: by which others find it.
      addresses: its IP addresses, as text; the loopback ones, which every host has, apart.
    """

    def __init__(self, world: World, name: str, addresses: tuple[str, ...]) -> None:
        self.name: str = name
        self.addresses: tuple[str, ...] = addresses
        self._world = world
        self._stack = Stack(world, name, addresses)
        # The scopes of the programs that run here, oldest first.
        self._programs: dict[trio.CancelScope, None] = {}
        self._ended: trio.Event | None = None

    def __repr__(self) -> str:
        state = ", off" if self._stack.off else ""
        return f"<Host {self.name} {' '.join(self.addresses)}{state}>"

    @property
    def running(self) -> int:
        """How many programs `run` here."""
        return len(self._programs)

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return not self._stack.off

    async def run(
        self,
        async_fn: Callable[..., Awaitable[Any]],
        *args: Any,
        task_status: trio.TaskStatus[Any] | None = None,
    ) -> Any:
        """Run a program here: its sockets, and those of all tasks it starts, are this host's.

        ``await nursery.start(host.run, trio.serve_tcp, handler, 80)`` works as without the host.

        Returns:
          What ``async_fn`` returns; None if the host was killed or lost its power meanwhile.

        Raises:
          RuntimeError: the host is off.

        If cancelled, so is ``async_fn``.
        """
        if self._stack.off:
            raise RuntimeError(f"{self.name} is off: restart() it before a program can run there")
        result: Any = None
        token = current_host.set(self)
        try:
            with trio.CancelScope() as scope:
                self._programs[scope] = None
                try:
                    if task_status is None:
                        result = await async_fn(*args)
                    else:
                        result = await async_fn(*args, task_status=task_status)
                finally:
                    del self._programs[scope]
                    if self._ended is not None and not self._programs:
                        self._ended.set()
        finally:
            current_host.reset(token)
        return result

    @contextmanager
    def context(self) -> Iterator[None]:
        """Let the task live here within a ``with`` block, with all it starts there.

        Not for a `kill` or `power_off` to end: that is what `run` is for.
        """
        token = current_host.set(self)
        try:
            yield
        finally:
            current_host.reset(token)

    # For the network

    @property
    def stack(self) -> Stack:
        """Its network stack."""
        return self._stack

    def end_programs(self, reason: str) -> None:
        """Cancel all that runs here."""
        for scope in list(self._programs):
            scope.cancel(reason)

    async def wait_ended(self) -> None:
        """Wait until nothing runs here any more."""
        if self._programs:
            self._ended = trio.Event()
            await self._ended.wait()
