"""The server's ways into TLS: a listener of TLS connections, and TLS on one that is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from ..abc import Listener, Stream
from .tls import TLSStream, check_tls_arguments

if TYPE_CHECKING:
    import ssl

    from .._address import Address

__all__ = ("TLSListener", "start_tls")


@final
class TLSListener(Listener[TLSStream]):
    """Accepts TLS connections, not yet handshaken, from another listener.

    Attributes:
      transport: the listener underneath.
      ssl_context: what new connections are made with; it may be replaced at any time, to renew a
        certificate say, and connections already made keep theirs.
    """

    __slots__ = ("ssl_context", "transport")

    def __init__(self, transport: Listener[Stream], ssl_context: ssl.SSLContext) -> None:
        check_tls_arguments(ssl_context, True, None)
        self.transport: Listener[Stream] = transport
        self.ssl_context: ssl.SSLContext = ssl_context

    def __repr__(self) -> str:
        return f"<TLSListener over {self.transport!r}>"

    @property
    def address(self) -> Address:
        """Where the transport listens."""
        return self.transport.address

    async def accept(self) -> TLSStream:
        """Take a connection, as the transport's ``accept`` does; the handshake is to come.

        If cancelled, no connection is lost.
        """
        return self._wrap(await self.transport.accept())

    def accept_nowait(self) -> TLSStream:
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

    def _wrap(self, stream: Stream) -> TLSStream:
        return TLSStream(stream, self.ssl_context, server_side=True)


async def start_tls(
    stream: trio.abc.Stream,
    ssl_context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
) -> TLSStream:
    """Put TLS over a connection in use, and do the handshake.

    Raises:
      TypeError, ValueError: as `TLSStream`.
      trio.BrokenResourceError: the handshake failed, or ``stream`` is a `BufferedStream` that has
        plaintext buffered; the connection is closed.

    If cancelled, the connection is closed.
    """
    check_tls_arguments(ssl_context, server_side, server_hostname)
    ahead: bytes = getattr(stream, "buffered", b"")
    if ahead:
        # Whoever can write into the plaintext could else have it taken for what the peer said
        # under TLS: CVE-2011-0411.
        await trio.aclose_forcefully(stream)
        raise trio.BrokenResourceError(
            f"TLS cannot start: {len(ahead)} bytes of plaintext were received ahead of it"
        )
    tls = TLSStream(stream, ssl_context, server_side=server_side, server_hostname=server_hostname)
    try:
        await tls.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls
