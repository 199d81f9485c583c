"""Virtual UDP sockets."""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any, Final, final
from weakref import ref

import outcome
import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from .._streams.segment import Endpoint, Segment
from .sockets import VirtualSocket, checked_size, plain_bytes
from .stack import Stack, failure, is_wildcard

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ("DatagramSocket",)

# RFC 768, RFC 791: what an IPv4 packet leaves beside its header and the datagram's.
LARGEST: Final = 65_507
# What every datagram counts in the receive buffer beside its bytes; a kernel counts more.
OVERHEAD: Final = 64
PEEK: Final = int(socket.MSG_PEEK)
TRUNCATED: Final = int(getattr(socket, "MSG_TRUNC", 0x20))
DONT_WAIT: Final = int(getattr(socket, "MSG_DONTWAIT", 0))

Address = tuple[str, int]


@final
class DatagramSocket(VirtualSocket):
    """A UDP socket.

    A datagram that is lost is gone; what finds nobody is answered by ICMP, which a connected
    socket reports as ECONNREFUSED; what a full receive buffer has no room for is dropped.
    """

    kind = socket.SOCK_DGRAM
    protocol = "udp"

    def __init__(self, stack: Stack, family: int, proto: int) -> None:
        self._peer: Address | None = None
        self._queue: deque[tuple[bytes, Address]] = deque()
        self._queued = 0
        self._error = 0
        self._sent = 0
        self._shut_read = False
        self._reader: trio.lowlevel.Task | None = None
        super().__init__(stack, family, proto)

    def _state(self) -> str:
        return "connected" if self._peer is not None else "open"

    def _fact(self, name: int) -> int | None:
        if name == socket.SO_ERROR:
            return self._take_error()
        return super()._fact(name)

    # Names

    async def connect(self, address: Any) -> None:
        """Choose the one peer; nothing is sent.

        If cancelled, nothing was chosen.
        """
        self.check_open()
        ip, port = await self.resolve(address)
        await checkpoint_if_cancelled()
        self.stack.check("connect")
        self.stack.locate(ip)
        source = self.stack.source_for(ip)
        if self.binding is None:
            self._bind(source)
        assert self.binding is not None
        if is_wildcard(self.binding.ip):
            self.binding.ip = source
        self._peer = (ip, port)
        await cancel_shielded_checkpoint()

    def getpeername(self) -> Any:
        """Return the one peer's address."""
        self.check_open()
        if self._peer is None:
            raise failure(errno.ENOTCONN)
        return self.named(*self._peer)

    def take_address(self, ip: str, port: int) -> None:
        """Bind to an address, port 0 to a free one."""
        super().take_address(ip, port)
        assert self.binding is not None
        self.binding.owner = ref(self)

    def _bind(self, ip: str) -> None:
        self.take_address(ip, 0)

    def _bind_somewhere(self) -> None:
        if self.binding is None:
            self._bind("::" if self.family == socket.AF_INET6 else "0.0.0.0")  # noqa: S104

    def listen(self, backlog: int = 128) -> None:  # noqa: ARG002 - the socket module's
        """Not for datagrams."""
        self.check_open()
        raise failure(errno.EOPNOTSUPP, "a datagram socket does not listen")

    async def accept(self) -> Any:
        """Not for datagrams."""
        await checkpoint()
        self.check_open()
        raise failure(errno.EOPNOTSUPP, "a datagram socket does not accept")

    # Sending

    async def sendto(self, *args: Any) -> int:
        """Send a datagram: ``sendto(data, address)`` or ``sendto(data, flags, address)``.

        If cancelled, nothing was sent.
        """
        if len(args) not in (2, 3):
            raise TypeError(f"sendto takes 2 or 3 arguments, got {len(args)}")
        self.check_open()
        ip, port = await self.resolve(args[-1])
        await checkpoint_if_cancelled()
        size = self._send(plain_bytes(args[0]), ip, port)
        await cancel_shielded_checkpoint()
        return size

    async def send(self, data: Any, flags: int = 0, /) -> int:  # noqa: ARG002
        """Send a datagram to the one peer.

        If cancelled, nothing was sent.
        """
        await checkpoint_if_cancelled()
        self.check_open()
        if self._peer is None:
            # Linux takes a port even so.
            self._bind_somewhere()
            raise failure(errno.EDESTADDRREQ)
        size = self._send(plain_bytes(data), *self._peer)
        await cancel_shielded_checkpoint()
        return size

    async def sendmsg(
        self,
        buffers: Iterable[Any],
        ancdata: Any = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        """Send a datagram made of several buffers."""
        if list(ancdata):
            raise failure(errno.EOPNOTSUPP, "a virtual socket has no ancillary data")
        data = b"".join(buffers)
        if address is None:
            return await self.send(data, flags)
        return await self.sendto(data, flags, address)

    def _send(self, data: memoryview, ip: str, port: int) -> int:
        self.check_open()
        if self._error:
            raise failure(self._take_error())
        if self._sent_eof:
            raise failure(errno.EPIPE)
        if len(data) > LARGEST:
            raise failure(errno.EMSGSIZE, f"{len(data)} bytes")
        if port == 0:
            raise failure(errno.EINVAL, "port 0")
        stack = self.stack
        target = stack.locate(ip)
        source = stack.source_for(ip)
        self._bind_somewhere()
        assert self.binding is not None
        if not is_wildcard(self.binding.ip):
            source = self.binding.ip
        segment = Segment(
            "udp",
            "DATAGRAM",
            Endpoint(stack.name, source, self.binding.port),
            Endpoint(target.name, ip, port),
            index=self._sent,
            payload=bytes(data),
        )
        self._sent += 1
        stack.world.route(stack, target).carry(segment, self, _Delivery(target, self))
        return len(data)

    async def wait_writable(self) -> None:
        """Return at once: a datagram never waits to be sent."""
        self.check_open()
        await checkpoint()

    # What a route tells its sender

    def lost(self, segment: Segment, sent_at: float) -> None:
        """A datagram that is lost is gone."""

    def reset_both(self) -> None:
        """There is no connection to reset."""

    def unreachable(self, code: int) -> None:
        """Hear from the network that nobody takes what was sent."""
        if self._peer is not None and not self._closed:
            # Linux: an unconnected socket is not told, for it would not know of which.
            self._error = code
            self._wake()

    # Receiving

    def accepts(self, source: Endpoint) -> bool:
        """Whether what comes from ``source`` is for this: from the one peer, if there is one."""
        return self._peer is None or self._peer == (source.ip, source.port)

    @property
    def is_connected(self) -> bool:
        """Whether there is one peer."""
        return self._peer is not None

    def take(self, segment: Segment) -> None:
        """Take a datagram that has arrived, if there is room."""
        if self._queued + len(segment.payload) + OVERHEAD > self.options.sizes[1]:
            world = self.stack.world
            world.trace.record(trio.current_time(), "dropped", segment, "the buffer is full")
            return
        self._queue.append((segment.payload, (segment.source.ip, segment.source.port)))
        self._queued += len(segment.payload) + OVERHEAD
        self._wake()

    def is_readable(self) -> bool:
        """Whether a receive would not wait."""
        if self._closed:
            # As trio's own, which asks poll().
            raise ValueError("file descriptor cannot be a negative integer (-1)")
        return bool(self._queue or self._error or self._shut_read)

    async def recvmsg(
        self,
        bufsize: int,
        ancbufsize: int = 0,  # noqa: ARG002 - the socket module's
        flags: int = 0,
        /,
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        """Receive a datagram, what does not fit of it lost, and from whom it is.

        If cancelled, nothing was received.
        """
        size = checked_size(bufsize)
        if flags & ~(PEEK | TRUNCATED | DONT_WAIT):
            raise failure(errno.EOPNOTSUPP, f"flags {flags:#x}")
        await checkpoint_if_cancelled()
        self.check_open()
        parked = False
        while not (self._queue or self._error or self._shut_read):
            await self._park()
            self.check_open()
            parked = True
        received = self._receive(size, keep=bool(flags & PEEK))
        if not parked:
            await cancel_shielded_checkpoint()
        return received

    def _receive(
        self, size: int, *, keep: bool
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        if self._error:
            raise failure(self._take_error())
        if not self._queue:
            return b"", [], 0, None
        data, source = self._queue[0]
        if not keep:
            self._queue.popleft()
            self._queued -= len(data) + OVERHEAD
        return data[:size], [], TRUNCATED if len(data) > size else 0, self.named(*source)

    async def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """Receive a datagram, and from whom it is."""
        data, _, _, source = await self.recvmsg(bufsize, 0, flags)
        return data, source

    async def recv(self, buflen: int, flags: int = 0, /) -> bytes:
        """Receive a datagram."""
        if checked_size(buflen) == 0:
            # Python does not ask the kernel for nothing.
            await checkpoint()
            return b""
        return (await self.recvmsg(buflen, 0, flags))[0]

    async def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """Receive a datagram into a buffer."""
        view = plain_bytes(buffer)
        data, _, _, source = await self.recvmsg(nbytes or len(view), 0, flags)
        view[: len(data)] = data
        return len(data), source

    async def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Receive a datagram into a buffer."""
        return (await self.recvfrom_into(buffer, nbytes, flags))[0]

    async def _park(self) -> None:
        if self._reader is not None:
            raise trio.BusyResourceError("another task is receiving on this socket")
        self._reader = current_task()

        def abort(_: object) -> Abort:
            self._reader = None
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def _wake(self, result: outcome.Outcome[None] | None = None) -> None:
        if self._reader is not None:
            task, self._reader = self._reader, None
            reschedule(task, result or outcome.Value(None))

    def _take_error(self) -> int:
        code, self._error = self._error, 0
        return code

    # Ending

    def shutdown(self, flag: int) -> None:
        """End one direction of a connected socket, or both."""
        self.check_open()
        if flag not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise failure(errno.EINVAL, f"how to shut down: {flag}")
        if self._peer is None:
            raise failure(errno.ENOTCONN)
        if flag != socket.SHUT_RD:
            self._sent_eof = True
        if flag != socket.SHUT_WR:
            self._shut_read = True
            self._wake()

    def let_go(self) -> None:
        """Do what close(2) does."""
        if self.binding is not None:
            self.stack.unbind(self.binding)
        self._queue.clear()
        self._wake(outcome.Error(trio.ClosedResourceError("this socket was closed")))


@final
class _Delivery:
    """Where a datagram goes: whoever has its address when it arrives."""

    __slots__ = ("_sender", "_stack", "latest")

    def __init__(self, stack: Stack, sender: DatagramSocket) -> None:
        self._stack = stack
        self._sender = sender
        # One of these each, so that datagrams may overtake one another.
        self.latest: float = 0.0

    def arrive(self, segment: Segment) -> None:
        stack, sender = self._stack, self._sender
        if segment.kind == "ICMP":
            # Linux: only of the one peer is it told, not of whom else it sends to.
            if sender.accepts(segment.source):
                sender.unreachable(errno.ECONNREFUSED)
            return
        where = segment.destination
        owners = [one.owner() for one in stack.find("udp", where.ip, where.port) if one.owner]
        found = [
            one for one in owners if isinstance(one, DatagramSocket) and one.accepts(segment.source)
        ]
        if not found:
            word = Segment("udp", "ICMP", segment.destination, segment.source)
            stack.world.route(stack, sender.stack).carry(word, sender, self)
            return
        _choose(stack, found).take(segment)


def _choose(stack: Stack, found: list[DatagramSocket]) -> DatagramSocket:
    connected = [one for one in found if one.is_connected]
    if connected or len(found) == 1:
        return (connected or found)[0]
    # Linux: SO_REUSEPORT spreads them, SO_REUSEADDR gives all to the last.
    return stack.chance.choice(found) if all(one.options.reuse_port for one in found) else found[-1]
