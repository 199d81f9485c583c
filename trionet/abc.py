"""The seam: what every stream, listener and network of trionet is.

Code written against these classes does not know whether its bytes cross memory, a socket or a
virtual network. They extend trio's own, so whatever takes a ``trio.abc.Stream`` takes these.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from ._address import Address
from ._errors import ReceiveInterrupted

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Sequence

    from ._options import MemoryOptions, ProxyProtocol, SocketOptions

__all__ = ("Address", "Listener", "Network", "ReceiveInterrupted", "Stream")

StreamT_co = TypeVar("StreamT_co", bound="Stream", covariant=True)


class Stream(trio.abc.Stream):
    """A `trio.abc.Stream` that knows its ends and can be asked about its state without waiting."""

    __slots__ = ()

    @property
    @abstractmethod
    def local_address(self) -> Address:
        """This end."""

    @property
    @abstractmethod
    def remote_address(self) -> Address:
        """The other end."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether this end was closed here."""

    @property
    @abstractmethod
    def bytes_sent(self) -> int:
        """How many bytes ``send_all`` has handed on so far."""

    @property
    @abstractmethod
    def bytes_received(self) -> int:
        """How many bytes ``receive_some`` has returned so far."""

    @property
    def transport_socket(self) -> socket.socket | None:
        """The socket whose bytes are exactly this stream's, or None.

        None where anything stands between, TLS for example: whoever gets a socket here may move
        bytes through the kernel past this object.
        """
        return None

    @property
    def sending(self) -> bool:
        """Whether a ``send_all`` is under way; False where a stream does not tell."""
        return False

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:  # noqa: ARG002
        """Hand on a first part of ``data`` without waiting; return how many bytes that is.

        No checkpoint: whoever loops must wait elsewhere, in ``receive_some`` say. A stream that
        cannot send without waiting takes nothing ever, so ``send_all`` has to follow for the rest.

        Raises:
          trio.BusyResourceError: a task is sending.
          trio.BrokenResourceError: the connection is gone.
          trio.ClosedResourceError: this end was closed, or has sent end of file.
        """
        return 0

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | bytearray:  # noqa: ARG002
        """Receive as ``receive_some`` does where that need not wait.

        No checkpoint: whoever loops must wait elsewhere. A stream that cannot receive without
        waiting says each time that it would block, so ``receive_some`` has to follow.

        Raises:
          trio.WouldBlock: nothing waits to be received, as far as this stream can tell.
          trio.BusyResourceError: a task is receiving.
          trio.BrokenResourceError: the connection is gone.
          trio.ClosedResourceError: this end was closed.
        """
        raise trio.WouldBlock

    @abstractmethod
    def is_readable(self) -> bool:
        """Whether bytes, end of file or an error wait to be received. Never waits itself.

        For a stream in the hands of nobody, a pooled one say, true means that it is not to be
        used again: either it ended, or the peer spoke out of turn.
        """

    @abstractmethod
    def unread_size(self) -> int:
        """How many bytes wait to be received, as the transport counts them; end of file is none.

        Closing a socket with unread bytes resets the connection, which may cost the peer the last
        things it was sent (RFC 2525 section 2.17).
        """

    @abstractmethod
    def peer_closed(self) -> bool:
        """Whether end of file or a reset is known, or comes right after the bytes waiting."""

    @abstractmethod
    def interrupt_receive(self) -> None:
        """From now on, raise `ReceiveInterrupted` where ``receive_some`` would wait.

        One that waits already is woken with it, and nothing else on the stream is touched. A
        ``receive_some`` that finds bytes, or end of file, returns them as ever; no byte is lost.
        Synchronous and idempotent; `resume_receive` takes it back.
        """

    @abstractmethod
    def resume_receive(self) -> None:
        """Let ``receive_some`` wait again after `interrupt_receive`."""


class Listener(trio.abc.Listener[StreamT_co]):
    """A `trio.abc.Listener` that knows where it listens and can be drained without waiting."""

    __slots__ = ()

    @property
    @abstractmethod
    def address(self) -> Address:
        """Where this listener listens; with port 0 asked for, the port it was given."""

    @abstractmethod
    def accept_nowait(self) -> StreamT_co:
        """Take a connection that is already there.

        Raises:
          trio.WouldBlock: there is none.
          trio.ClosedResourceError: this listener is closed.
          OSError: as ``accept``.
        """

    @abstractmethod
    async def wait_acceptable(self) -> None:
        """Wait until `accept_nowait` will probably find a connection. Takes none.

        Raises:
          trio.BusyResourceError: another task is in here or in ``accept``.
          trio.ClosedResourceError: this listener is, or gets, closed.

        If cancelled, nothing was taken.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop listening at once, without a checkpoint; ``aclose`` is this and a checkpoint.

        Connections that nobody accepted are reset, and whoever dials from now on is refused.
        """


class Network(metaclass=ABCMeta):
    """Whatever can be dialled and listened on: memory, this machine, or a virtual host."""

    __slots__ = ()

    @abstractmethod
    async def dial(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        options: SocketOptions | MemoryOptions | None = None,
        local_address: str | None = None,
    ) -> Stream:
        """Connect to ``address``; see `trionet.dial`."""

    @abstractmethod
    async def listen(
        self,
        network: str,
        address: str,
        *,
        ssl_context: ssl.SSLContext | None = None,
        proxy_protocol: ProxyProtocol | None = None,
        options: SocketOptions | MemoryOptions | None = None,
        backlog: int | None = None,
    ) -> Sequence[Listener[Stream]]:
        """Listen on ``address``; see `trionet.listen`."""


# The network behind everything that is not memory, for this run: the operating system's unless a
# virtual network has put itself here. A RunVar, so that two runs never meet.
system_network: Final[trio.lowlevel.RunVar[Network | None]] = trio.lowlevel.RunVar(
    "trionet.system_network", None
)
