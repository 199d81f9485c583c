"""Many connections at once, as few as suffice for the readiness hub to come in."""

from __future__ import annotations

import socket

from trionet import SocketStream


class Pairs:
    """TCP connections whose near ends are streams that a task may receive from, once each."""

    def __init__(self, count: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            pairs = []
            for _ in range(count):
                far = socket.create_connection(listener.getsockname())
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                pairs.append((SocketStream(listener.accept()[0]), far))
        self.near = [near for near, _ in pairs]
        self.far = [far for _, far in pairs]
        self.received: dict[int, bytes] = {}

    async def receive(self, index: int) -> None:
        """Receive once from one of them."""
        self.received[index] = await self.near[index].receive_some(4)

    def close(self) -> None:
        """Close all of them, at both ends."""
        for near, far in zip(self.near, self.far, strict=True):
            near.close()
            far.close()
