"""Two sessions joined by byte channels, or one facing frames made by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from trionet.yamux import Frame, MuxConfig, Session, split_frames
from trionet.yamux.frames import ACK, DATA, FIN, GO_AWAY, PING, RST, SYN, WINDOW_UPDATE

WINDOW = 262144


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def data(stream_id: int, body: bytes, flags: int = 0) -> Frame:
    return Frame(DATA, flags, stream_id, len(body), body)


def update(stream_id: int, flags: int = 0, delta: int = 0) -> Frame:
    return Frame(WINDOW_UPDATE, flags, stream_id, delta)


def ping(value: int, flags: int = SYN) -> Frame:
    return Frame(PING, flags, 0, value)


def go_away(code: int = 0) -> Frame:
    return Frame(GO_AWAY, 0, 0, code)


class Endpoint:
    """A session, and the frames it is given and gives."""

    def __init__(
        self, config: MuxConfig | None = None, role: Literal["client", "server"] = "server"
    ) -> None:
        self.clock = Clock()
        self.session = Session(role, config, clock=self.clock)
        self.rest = b""

    def feed(self, *frames: Frame) -> None:
        self.session.receive_data(b"".join(frame.encode() for frame in frames))

    def pull(self) -> list[Frame]:
        """Everything there is to be sent, as frames."""
        found: list[Frame] = []
        while self.session.has_output:
            frames, self.rest = split_frames(self.rest + self.session.data_to_send())
            found += frames
        assert not self.rest
        return found

    def told(self, *frames: Frame) -> list[str]:
        """Feed frames and return what comes of it, in words."""
        self.feed(*frames)
        return [str(frame) for frame in self.pull()]

    @property
    def broken(self) -> str | None:
        failure = self.session.failure
        return failure and failure.reason


@dataclass
class Joined:
    """A client and a server, and the bytes under way between them."""

    config: MuxConfig = field(default_factory=MuxConfig)

    def __post_init__(self) -> None:
        self.clock = Clock()
        self.client = Session("client", self.config, clock=self.clock)
        self.server = Session("server", self.config, clock=self.clock)
        self.up = bytearray()
        self.down = bytearray()

    def pull(self) -> None:
        """Move what either has to send onto its channel."""
        for session, channel in ((self.client, self.up), (self.server, self.down)):
            while session.has_output:
                channel += session.data_to_send()

    def deliver(self, size: int | None = None) -> None:
        """Hand over what is under way, at most ``size`` bytes each way."""
        for channel, session in ((self.up, self.server), (self.down, self.client)):
            piece = bytes(channel[:size])
            del channel[:size]
            if piece:
                session.receive_data(piece)

    def settle(self) -> None:
        """Let both talk until neither has anything to say."""
        while True:
            self.pull()
            if not self.up and not self.down:
                return
            self.deliver()


__all__ = (
    "ACK",
    "DATA",
    "FIN",
    "GO_AWAY",
    "PING",
    "RST",
    "SYN",
    "WINDOW",
    "WINDOW_UPDATE",
    "Clock",
    "Endpoint",
    "Joined",
    "data",
    "go_away",
    "ping",
    "update",
)
