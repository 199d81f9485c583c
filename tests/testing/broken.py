"""Listeners and streams that work; a subclass overrides what it breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

import trionet
from trionet.abc import Listener, Stream

if TYPE_CHECKING:
    import socket

    from trionet import Address
    from trionet.testing.listener_rules import Dial


class SoundStream(Stream):
    """Hands everything to another stream."""

    def __init__(self, inner: trionet.MemoryStream) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"<over {self.inner!r}>"

    @property
    def local_address(self) -> Address:
        return self.inner.local_address

    @property
    def remote_address(self) -> Address:
        return self.inner.remote_address

    @property
    def closed(self) -> bool:
        return self.inner.closed

    @property
    def bytes_sent(self) -> int:
        return self.inner.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self.inner.bytes_received

    @property
    def transport_socket(self) -> socket.socket | None:
        return None

    @property
    def sending(self) -> bool:
        return self.inner.sending

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        return self.inner.send_nowait(data)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.inner.aclose()

    def is_readable(self) -> bool:
        return self.inner.is_readable()

    def unread_size(self) -> int:
        return self.inner.unread_size()

    def peer_closed(self) -> bool:
        return self.inner.peer_closed()

    def interrupt_receive(self) -> None:
        self.inner.interrupt_receive()

    def resume_receive(self) -> None:
        self.inner.resume_receive()


class PlainListener(trio.abc.Listener[trio.abc.Stream]):
    """A `trio.abc.Listener` and no more, over one in memory."""

    inner: trionet.MemoryListener

    def __init__(self, inner: trionet.MemoryListener) -> None:
        self.inner = inner

    async def accept(self) -> Any:
        return await self.inner.accept()

    async def aclose(self) -> None:
        await self.inner.aclose()


class SoundListener(Listener[Any]):
    """Hands everything to another listener, and wraps what it accepts."""

    stream: type[SoundStream] = SoundStream

    def __init__(self, inner: trionet.MemoryListener) -> None:
        self.inner = inner

    @property
    def address(self) -> Address:
        return self.inner.address

    async def accept(self) -> Any:
        return self.stream(await self.inner.accept())

    def accept_nowait(self) -> Any:
        return self.stream(self.inner.accept_nowait())

    async def wait_acceptable(self) -> None:
        await self.inner.wait_acceptable()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.inner.close()


def maker(kind: type[Any], network: str = "memb", stream: type[SoundStream] | None = None) -> Any:
    """Return what `check_listener` takes, for a listener of this class over memory."""

    async def make() -> tuple[Any, Dial]:
        net = trionet.Network()
        (inner,) = await net.listen("memb" if network == "memb" else "memu", "site")
        listener = kind(inner)
        if stream is not None:
            listener.stream = stream
        return listener, lambda: net.dial(network, "site")

    return make
