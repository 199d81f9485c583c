"""A machine that runs programs of socket operations, on whatever trio's sockets lead to.

What comes out of an operation is told in words that do not depend on where it ran: the result, the
errno, or that it waited. Ports are named by the sockets that have them.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
from collections.abc import Sequence
from typing import Any

import trio
import trio.testing

from trionet.testing import VirtualNetwork

__all__ = ("Operation", "Outcome", "on_the_kernel", "on_the_virtual_network")

# ("send", 0, 5): the name, the number of the socket, and the rest of its arguments.
Operation = tuple[Any, ...]
Outcome = object

# Real seconds without a sign of life after which an operation is taken to wait. The loopback
# delivers within the system call, so this is for a machine that does much else.
SILENCE = 0.004

HOST = "127.0.0.1"
# RFC 5737: nobody has it.
NOT_OURS = "192.0.2.1"

WAITS = "waits"


class Machine:
    """Sockets by number, and what is known of them."""

    def __init__(self) -> None:
        self.sockets: list[Any] = []
        self.ports: dict[int, str] = {}
        self.sent = 0

    async def run(self, program: Sequence[Operation]) -> list[Outcome]:
        """Run all of it, one operation after the other."""
        try:
            return [await self.outcome(operation) for operation in program]
        finally:
            for sock in self.sockets:
                sock.close()

    async def outcome(self, operation: Operation) -> Outcome:
        """Run one operation, and cancel it if it waits."""
        name, *arguments = operation
        if arguments and name != "socket" and arguments[0] >= len(self.sockets):
            return "no such socket"
        result: Outcome = WAITS

        async def attempt() -> None:
            nonlocal result
            try:
                result = await getattr(self, f"do_{name}")(*arguments)
            except OSError as exc:
                result = errno.errorcode.get(exc.errno or 0, repr(exc))
            except (trio.ClosedResourceError, ValueError, TypeError, OverflowError) as exc:
                result = type(exc).__name__
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
            await trio.testing.wait_all_tasks_blocked(SILENCE)
            nursery.cancel_scope.cancel()
        return result

    def named(self, address: Any) -> Any:
        """Return an address with its port by name."""
        if isinstance(address, tuple) and address:
            host, port, *rest = address
            known = {0: "0", **self.ports}
            return (host, known.setdefault(port, "a port"), *rest)
        return address

    def learn(self, number: int, sock: Any) -> None:
        """Name the port that a socket has, if nobody has it yet."""
        try:
            port = sock.getsockname()[1]
        except OSError:
            return
        if port:
            self.ports.setdefault(port, f"port of {number}")

    # Operations

    async def do_socket(self, kind: int) -> Outcome:
        self.sockets.append(trio.socket.socket(socket.AF_INET, kind))
        return None

    async def do_bind(self, number: int, where: str) -> Outcome:
        sock = self.sockets[number]
        await sock.bind((NOT_OURS if where == "elsewhere" else HOST, self.port(where)))
        self.learn(number, sock)
        return None

    async def do_listen(self, number: int, backlog: int) -> Outcome:
        self.sockets[number].listen(backlog)
        self.learn(number, self.sockets[number])
        return None

    async def do_connect(self, number: int, where: str) -> Outcome:
        try:
            return await self.sockets[number].connect((HOST, self.port(where)))
        finally:
            self.learn(number, self.sockets[number])

    async def do_accept(self, number: int) -> Outcome:
        sock, peer = await self.sockets[number].accept()
        self.sockets.append(sock)
        return self.named(peer)

    async def do_send(self, number: int, size: int) -> Outcome:
        # Every byte another, as far as that goes.
        data = bytes((self.sent + offset) % 251 for offset in range(size))
        count: int = await self.sockets[number].send(data)
        self.sent += count
        return count

    async def do_recv(self, number: int, size: int) -> Outcome:
        data: bytes = await self.sockets[number].recv(size)
        return data

    async def do_peek(self, number: int, size: int) -> Outcome:
        data: bytes = await self.sockets[number].recv(size, socket.MSG_PEEK)
        return data

    async def do_sendto(self, number: int, size: int, where: str) -> Outcome:
        data = bytes((self.sent + offset) % 251 for offset in range(size))
        count: int = await self.sockets[number].sendto(data, (HOST, self.port(where)))
        self.sent += count
        self.learn(number, self.sockets[number])
        return count

    async def do_recvfrom(self, number: int, size: int) -> Outcome:
        data, sender = await self.sockets[number].recvfrom(size)
        return data, self.named(sender)

    async def do_shutdown(self, number: int, how: int) -> Outcome:
        self.sockets[number].shutdown(how)
        return None

    async def do_linger(self, number: int, on: int, seconds: int) -> Outcome:
        value = struct.pack("ii", on, seconds)
        self.sockets[number].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
        return None

    async def do_option(self, number: int, name: str) -> Outcome:
        level = socket.IPPROTO_TCP if name.startswith("TCP") else socket.SOL_SOCKET
        value = self.sockets[number].getsockopt(level, getattr(socket, name))
        return errno.errorcode.get(value, value) if name == "SO_ERROR" else value

    async def do_reuse(self, number: int, on: int) -> Outcome:
        self.sockets[number].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, on)
        return None

    async def do_sockname(self, number: int) -> Outcome:
        return self.named(self.sockets[number].getsockname())

    async def do_peername(self, number: int) -> Outcome:
        return self.named(self.sockets[number].getpeername())

    async def do_is_readable(self, number: int) -> Outcome:
        return self.sockets[number].is_readable()

    async def do_wait_writable(self, number: int) -> Outcome:
        if self.sockets[number].fileno() == -1:
            # trio waits for descriptor -1 then, and takes it for busy the next time.
            return "ClosedResourceError"
        return await self.sockets[number].wait_writable()

    async def do_close(self, number: int) -> Outcome:
        self.sockets[number].close()
        return self.sockets[number].fileno()

    async def do_fileno(self, number: int) -> Outcome:
        return self.sockets[number].fileno()

    def port(self, where: str) -> int:
        """Return the port that a word means."""
        if where in {"any", "elsewhere"}:
            return 0
        # tcpmux and discard: nobody has answered there for decades.
        unused = 1 if where == "nobody" else 9
        return next((port for port, name in self.ports.items() if name == where), unused)


async def _run(program: Sequence[Operation]) -> list[Outcome]:
    return await Machine().run(program)


def on_the_kernel(program: Sequence[Operation]) -> list[Outcome]:
    """Run a program on the kernel's loopback."""
    return trio.run(_run, program)


def on_the_virtual_network(program: Sequence[Operation]) -> list[Outcome]:
    """Run a program on a virtual host's loopback."""

    async def main() -> list[Outcome]:
        outcomes: list[Outcome] = []
        async with VirtualNetwork() as net:
            outcomes += await net.host("machine").run(_run, program)
        return outcomes

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=math.inf))
