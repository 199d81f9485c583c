"""The body of an answer that is the body of its request."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from trionet.abc import Stream

    from .conversation import Conversation
    from .requests import Request

__all__ = ("EchoBody",)


@final
class EchoBody:
    """Sends a request's body back while it is still coming.

    The next piece is read when the last one is sent, so a client that stops reading is soon not
    read from either.
    """

    def __init__(self, conversation: Conversation, request: Request, pieces: list[bytes]) -> None:
        """Send ``pieces``, which were read before, and then what follows."""
        self._conversation = conversation
        self._request = request
        self._pieces = pieces
        self.size = request.content_length

    async def send(self, stream: Stream) -> None:
        """Send all of it, in chunks if its size is not known.

        Raises:
          Refusal: what still came of the request was wrong; the answer is cut short.

        If cancelled, a first part was sent.
        """
        piece = b"".join(self._pieces)
        self._pieces.clear()
        while piece:
            if self.size is None:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)
            await stream.send_all(piece)
            piece = await self._conversation.read_body(self._request)
        if self.size is None:
            await stream.send_all(b"0\r\n\r\n")

    def close(self) -> None:
        """There is nothing to let go of."""
