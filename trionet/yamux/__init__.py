"""yamux, the stream multiplexing protocol, as hashicorp/yamux speaks it; without any I/O.

`Session` turns bytes from a carrier into streams and streams into bytes for it. It imports the
standard library only, knows no clock but the one it is given, and never waits. `trionet.open_mux`
drives it over a trio stream.
"""

from __future__ import annotations

from .config import MuxConfig
from .frames import Frame, ProtocolError, split_frames
from .session import Failure, Session
from .stream import State, Stream

__all__ = (
    "Failure",
    "Frame",
    "MuxConfig",
    "ProtocolError",
    "Session",
    "State",
    "Stream",
    "split_frames",
)
