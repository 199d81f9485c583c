"""From bytes, cut anywhere, to frames that begin, bodies that flow and frames that end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, final

from .frames import DATA, FIN, GO_AWAY, HEADER, HEADER_SIZE, PING, WINDOW_UPDATE, ProtocolError

if TYPE_CHECKING:
    from .stream import Stream

__all__ = ("Decoder", "Handler")


class Handler(Protocol):
    """Who is told. Each may raise `ProtocolError`, after which nothing more is decoded."""

    def on_data(self, flags: int, stream_id: int, length: int) -> Stream | None:
        """Meet the header of a DATA frame, and say whose body it is; None: nobody's, drop it."""

    def on_body(self, stream: Stream, piece: bytes) -> None:
        """Take the next piece of the body, never an empty one."""

    def on_fin(self, stream: Stream) -> None:
        """Meet the end of the peer's direction, after the body it came with."""

    def on_window_update(self, flags: int, stream_id: int, delta: int) -> None:
        """Meet a window update."""

    def on_ping(self, flags: int, value: int) -> None:
        """Meet a ping or its answer."""

    def on_go_away(self, code: int) -> None:
        """Meet a go-away."""


@final
class Decoder:
    """Cuts what arrives into frames. Holds at most eleven bytes: bodies pass straight through."""

    __slots__ = ("_fin", "_handler", "_left", "_rest", "_stream")

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        # The first bytes of a header whose others have not come.
        self._rest = b""
        # The body under way: bytes to come, whose they are, and whether a FIN follows.
        self._left = 0
        self._stream: Stream | None = None
        self._fin = False

    @property
    def inside(self) -> str | None:
        """What an end of file would tear: a header, a body, or None."""
        if self._left:
            return f"a body, {self._left} bytes before its end"
        return f"a header, after {len(self._rest)} bytes of it" if self._rest else None

    def feed(self, data: bytes) -> None:
        """Decode ``data``, the next bytes from the peer.

        Raises:
          ProtocolError: the peer broke the rules; no later byte means anything.
        """
        at = 0
        if self._left:
            at = self._continue_body(data)
        elif self._rest:
            data = self._rest + data
            self._rest = b""
        handler = self._handler
        on_data, on_body = handler.on_data, handler.on_body
        unpack = HEADER.unpack_from
        end = len(data)
        while end - at >= HEADER_SIZE:
            version, kind, flags, stream_id, length = unpack(data, at)
            if version:
                raise ProtocolError(f"unknown version {version}")
            at += HEADER_SIZE
            if kind == DATA:
                stream = on_data(flags, stream_id, length)
                if length > end - at:
                    self._stream = stream
                    self._fin = bool(flags & FIN)
                    self._left = length
                    at += self._continue_body(data[at:] if at < end else b"")
                    return
                if stream is not None:
                    if length:
                        on_body(stream, data[at : at + length])
                    if flags & FIN:
                        handler.on_fin(stream)
                at += length
            elif kind == WINDOW_UPDATE:
                handler.on_window_update(flags, stream_id, length)
            elif kind == PING:
                handler.on_ping(flags, length)
            elif kind == GO_AWAY:
                handler.on_go_away(length)
            else:
                raise ProtocolError(f"unknown frame type {kind}")
        if at < end:
            self._rest = data[at:]

    def _continue_body(self, data: bytes) -> int:
        """Take from ``data`` what belongs to the body under way; return how much that was."""
        size = min(self._left, len(data))
        if not size:
            return 0
        self._left -= size
        stream = self._stream
        if stream is not None:
            self._handler.on_body(stream, data[:size])
            if not self._left and self._fin:
                self._handler.on_fin(stream)
        if not self._left:
            self._stream = None
        return size
