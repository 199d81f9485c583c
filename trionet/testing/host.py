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

    def __init__(
        self,
        world: World,
        name: str,
        addresses: tuple[str, ...],
        disturbed: Callable[[], object],
    ) -> None:
        self.name: str = name
        self.addresses: tuple[str, ...] = addresses
        self._world = world
        self._disturbed = disturbed
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

    # What can happen to it

    def kill(self) -> None:
        """End every program here, as a signal that cannot be caught does.

        The kernel closes their sockets: with a FIN, or with a RST where bytes were not received.
        Programs may run here again at once.
        """
        self._world.trace.fault(trio.current_time(), f"{self.name} was killed")
        self.end_programs(f"the host {self.name} was killed")
        for sock in list(self._stack.sockets.values()):
            sock.close()

    def power_off(self) -> None:
        """Cut the power: programs end, and nothing leaves this host any more.

        The other ends of its connections hear nothing. What is on its way to it is lost, what
        has left it arrives.

        Raises:
          RuntimeError: it is off.
        """
        stack = self._stack
        if stack.off:
            raise RuntimeError(f"{self.name} is off already")
        self._world.trace.fault(trio.current_time(), f"{self.name} lost its power")
        stack.off = True
        self.end_programs(f"the host {self.name} lost its power")
        for route in self._world.routes.values():
            if self.name in (route.source, route.destination):
                route.down += 1
                route.refresh()
                if route.destination == self.name:
                    route.cut(f"{self.name} is off")
        for sock in list(stack.sockets.values()):
            sock.vanish()
        for connection in list(stack.connections):
            connection.vanish()
        stack.clear()
        self._disturbed()

    def restart(self) -> None:
        """Give it power again, with nothing open; programs are started by whoever wants them.

        Whatever arrives for a connection from before is answered with a RST.

        Raises:
          RuntimeError: it is on.
        """
        if not self._stack.off:
            raise RuntimeError(f"{self.name} is on: power_off() comes before restart()")
        self._world.trace.fault(trio.current_time(), f"{self.name} started again")
        self._stack.off = False
        for route in self._world.routes.values():
            if self.name in (route.source, route.destination):
                route.down -= 1
                route.refresh()

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
