"""Listeners over listeners: each connection is wrapped, and all else is the one underneath."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from ..abc import Listener, Stream, StreamT_co

if TYPE_CHECKING:
    from .._address import Address

__all__ = ("WrappingListener",)


class WrappingListener(Listener[StreamT_co]):
    """Accepts what another listener does, each connection in a stream of its own kind.

    Attributes:
      transport: the listener underneath.
    """

    __slots__ = ("transport",)

    def __init__(self, transport: Listener[Stream]) -> None:
        self.transport: Listener[Stream] = transport

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.transport!r}>"

    @abstractmethod
    def _wrap(self, stream: Stream) -> StreamT_co:
        """Return the stream that the caller of `accept` gets."""

    @property
    def address(self) -> Address:
        """Where the transport listens."""
        return self.transport.address

    async def accept(self) -> StreamT_co:
        """Take a connection, as the transport's ``accept`` does; its handshake is to come.

        If cancelled, no connection is lost.
        """
        return self._wrap(await self.transport.accept())

    def accept_nowait(self) -> StreamT_co:
        """Take a connection, as the transport's ``accept_nowait`` does."""
        return self._wrap(self.transport.accept_nowait())

    async def wait_acceptable(self) -> None:
        """Wait as the transport does. If cancelled, nothing was taken."""
        await self.transport.wait_acceptable()

    async def aclose(self) -> None:
        """Close the transport. Cancelled or not, it is closed afterwards."""
        await self.transport.aclose()

    def close(self) -> None:
        """Close the transport at once."""
        self.transport.close()
