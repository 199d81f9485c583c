"""The server's ways into TLS: a listener of TLS connections, and TLS on one that is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio

from .tls import TLSStream, check_tls_arguments
from .wrapping import WrappingListener

if TYPE_CHECKING:
    import ssl

    from ..abc import Listener, Stream

__all__ = ("TLSListener", "start_tls")


@final
class TLSListener(WrappingListener[TLSStream]):
    """Accepts TLS connections, not yet handshaken, from another listener.

    Attributes:
      ssl_context: what new connections are made with; it may be replaced at any time, to renew a
        certificate say, and connections already made keep theirs.
    """

    __slots__ = ("ssl_context",)

    def __init__(self, transport: Listener[Stream], ssl_context: ssl.SSLContext) -> None:
        check_tls_arguments(ssl_context, True, None)
        super().__init__(transport)
        self.ssl_context: ssl.SSLContext = ssl_context

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
