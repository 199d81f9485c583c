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
    """Accepts TLS connections, not yet handshaken, from another listener."""

    __slots__ = ("_ssl_context",)

    def __init__(self, transport: Listener[Stream], ssl_context: ssl.SSLContext) -> None:
        super().__init__(transport)
        self.ssl_context = ssl_context

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """What new connections are made with.

        It may be replaced at any time, to renew a certificate say; connections already made keep
        theirs.

        Raises:
          TypeError, ValueError: what it is to be is no context for a server; it stays what it was.
        """
        return self._ssl_context

    @ssl_context.setter
    def ssl_context(self, ssl_context: ssl.SSLContext) -> None:
        # Found out here and not when the next client comes, at whom the accept loop would fail.
        check_tls_arguments(ssl_context, True, None)
        self._ssl_context = ssl_context

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
