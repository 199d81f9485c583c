"""What a session allows itself and its peer: every limit, with the reason for its value."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Final, final

from .frames import WINDOW

__all__ = ("MuxConfig", "check_weight")

# The largest frame some peers take (rust-yamux closes the connection above it).
MAX_FRAME_SIZE: Final = 1 << 20
MAX_WINDOW: Final = (1 << 32) - 1
# What HTTP/2 had, too; a turn of 4 MiB is long enough.
MAX_WEIGHT: Final = 256


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MuxConfig:
    """The limits and times of one session. Sizes are bytes, durations seconds.

    Whatever the peer does, a session buffers at most `max_receive_memory` bytes of its data.

    Attributes:
      window: what the peer may send on a new stream before this side reads. The protocol gives
        it 262 144 without asking, so it cannot be less.
      max_window: how far a stream's window grows with the round trip; 16 MiB carry 1.3 Gbit/s
        over 100 ms.
      window_budget: by how much the windows of all streams together may have grown.
      max_frame_size: the largest body sent in one frame. Streams that compete send less in their
        turns; alone, a stream need not cut what it sends into small pieces.
      accept_backlog: streams the peer may open before any of them is accepted; one more is reset.
      max_inbound_streams: streams of the peer's alive at once; one more is reset.
      max_outbound_streams: streams of ours alive at once; one more waits. Under 512, where
        rust-yamux closes the connection.
      max_unacknowledged: streams of ours the peer has not answered yet; one more waits. 256 is
        every known peer's backlog.
      max_pongs: pings to answer while the peer does not read; one more ends the session. The
        default is more than one receive on the carrier brings, so that a peer that reads cannot
        reach it, however long this program was busy.
      reset_rate, reset_burst: resets the peer may send or provoke, a second and at once, before
        they count as an attack (CVE-2023-44487, CVE-2025-8671) and end the session.
      strict_ids: take a stream id that comes a second time for the protocol error that it is. Ids
        need not come in order: hashicorp/yamux mixes those of streams opened at once.
      keepalive: silence after which the peer is asked for a sign of life; None: never.
      keepalive_timeout: further silence after which the peer counts as gone. It starts anew while
        the carrier takes output late: what it holds, the question too, is still on its way.
      write_stall: how long the carrier may not take one batch of output; None: for ever.
      linger, linger_size: after a stream is closed, how long and how much of what the peer still
        sends is read and dropped, before a reset tells it to stop. A reset at once would destroy
        what the peer has not read yet. The time starts anew whenever the peer shows that it reads.
      tail_timeout: how long what was sent on a stream before it was closed may wait for a peer
        that does not read.
      close_timeout: how long the end of a session may take.
    """

    window: int = WINDOW
    max_window: int = 16 << 20
    window_budget: int = 64 << 20
    max_frame_size: int = 64 * 1024
    accept_backlog: int = 256
    max_inbound_streams: int = 1024
    max_outbound_streams: int = 480
    max_unacknowledged: int = 256
    max_pongs: int = 32 * 1024
    reset_rate: float = 200.0
    reset_burst: int = 1000
    strict_ids: bool = True
    keepalive: float | None = 30.0
    keepalive_timeout: float = 20.0
    write_stall: float | None = 30.0
    linger: float = 5.0
    linger_size: int = WINDOW
    tail_timeout: float = 300.0
    close_timeout: float = 5.0

    def __post_init__(self) -> None:
        _check_int("window", self.window, WINDOW, MAX_WINDOW)
        _check_int("max_window", self.max_window, self.window, MAX_WINDOW)
        _check_int("window_budget", self.window_budget, 0)
        _check_int("max_frame_size", self.max_frame_size, 1, MAX_FRAME_SIZE)
        _check_int("accept_backlog", self.accept_backlog, 0)
        _check_int("max_inbound_streams", self.max_inbound_streams, 0)
        _check_int("max_outbound_streams", self.max_outbound_streams, 0)
        _check_int("max_unacknowledged", self.max_unacknowledged, 1)
        _check_int("max_pongs", self.max_pongs, 1)
        _check_int("reset_burst", self.reset_burst, 1)
        _check_int("linger_size", self.linger_size, 0)
        if not isinstance(self.strict_ids, bool):
            raise TypeError(f"MuxConfig.strict_ids must be a bool, got {self.strict_ids!r}")
        for name in ("keepalive", "write_stall"):
            if getattr(self, name) is not None:
                _check_time(name, getattr(self, name), positive=True)
        _check_time("reset_rate", self.reset_rate, positive=True)
        _check_time("keepalive_timeout", self.keepalive_timeout, positive=True)
        for name in ("linger", "tail_timeout", "close_timeout"):
            _check_time(name, getattr(self, name), positive=False)

    @property
    def max_receive_memory(self) -> int:
        """The most bytes of the peer's data that one session ever holds unread."""
        streams = self.max_inbound_streams + self.max_outbound_streams
        return streams * self.window + self.window_budget


def check_weight(weight: int) -> int:
    """Return ``weight``, a stream's share of the output, or raise what is wrong with it."""
    if isinstance(weight, bool) or not isinstance(weight, int):
        raise TypeError(f"a weight must be an int, got {weight!r}")
    if not 1 <= weight <= MAX_WEIGHT:
        raise ValueError(f"a weight must be from 1 to {MAX_WEIGHT}, got {weight}")
    return weight


def _check_int(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"MuxConfig.{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"MuxConfig.{name} must be at least {minimum}, got {value!r}")
    if maximum is not None and value > maximum:
        raise ValueError(f"MuxConfig.{name} must be at most {maximum}, got {value!r}")


def _check_time(name: str, value: object, *, positive: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"MuxConfig.{name} must be a number, got {value!r}")
    if not isfinite(value) or value < 0 or (positive and not value):
        least = "positive" if positive else "not negative"
        raise ValueError(f"MuxConfig.{name} must be finite and {least}, got {value!r}")
