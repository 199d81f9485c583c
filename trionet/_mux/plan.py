"""What a multiplexer is told about its set of connections, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._options import Backoff

__all__ = ("MultiplexerEvent", "Plan")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MultiplexerEvent:
    """Something that happened to a multiplexer's connections.

    Attributes:
      kind: ``"connected"``: one more is there, dialled or added. ``"lost"``: one was taken out.
        ``"healed"``: after a loss there are as many again as before. ``"scaled_up"``: the one that
        has just connected was dialled because tasks had to wait. ``"scaled_down"``: one that
        nobody used was closed.
      at: when, by trio's clock.
      size: how many there are now, without those that are on their way out.
      reason: of ``"lost"``: ``"dead"``: its peer has gone or an operation failed. ``"used up"``:
        end of file was read or sent. ``"discarded"``: it was closed, its block raised, or a send
        was cancelled midway. ``"going away"``: the session's peer takes no new streams. Else empty.
      error: why connecting failed last, if it has not succeeded since.
    """

    kind: Literal["connected", "lost", "healed", "scaled_up", "scaled_down"]
    at: float
    size: int
    reason: str = ""
    error: Exception | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large a fleet is to be; what each field means, `trionet.Multiplexer` says."""

    capacity: int
    scale_after: float | None
    idle_timeout: float | None
    backoff: Backoff
    on_event: Callable[[MultiplexerEvent], object] | None
