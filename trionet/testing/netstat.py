"""What a virtual network's hosts have open, as netstat(8) would show it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .._streams.segment import Endpoint
    from .stack import Stack
    from .tcp import Connection

__all__ = ("NetstatLine", "netstat")


@final
@dataclass(frozen=True, slots=True)
class NetstatLine:
    """One end of a connection, a listening socket, or a datagram socket.

    Attributes:
      host: whose it is.
      protocol: ``"tcp"``, ``"udp"`` or ``"unix"``.
      local: the local address, as text.
      remote: the other end's; ``""`` where there is none.
      state: as RFC 9293 section 3.3.2 names it: ``"LISTEN"``, ``"SYN-SENT"``, ``"ESTABLISHED"``,
        ``"CLOSE-WAIT"`` and so on; ``"OPEN"`` for datagrams.
      receive_queue: bytes that nobody has received yet; connections that wait to be accepted.
      send_queue: bytes sent and not acknowledged, or not sent yet; the backlog of a listener.
      connection: its number in the trace; 0 without one.
    """

    host: str
    protocol: str
    local: str
    remote: str
    state: str
    receive_queue: int
    send_queue: int
    connection: int

    def __str__(self) -> str:
        return (
            f"{self.host:12} {self.protocol:4} {self.receive_queue:7} {self.send_queue:7} "
            f"{self.local:24} {self.remote:24} {self.state}"
        )


def netstat(stacks: Iterable[Stack]) -> list[NetstatLine]:
    """Return all that hosts have open, host by host, listeners first."""
    return [line for stack in stacks for line in _of(stack)]


def _of(stack: Stack) -> Iterator[NetstatLine]:
    for bindings in stack.bindings.values():
        for one in bindings:
            local = f"[{one.ip}]:{one.port}" if ":" in one.ip else f"{one.ip}:{one.port}"
            if one.backlog is not None:
                yield NetstatLine(
                    stack.name, "tcp", local, "", "LISTEN", len(one.backlog), one.backlog.limit, 0
                )
            elif one.protocol == "udp":
                yield NetstatLine(stack.name, "udp", local, "", "OPEN", 0, 0, 0)
    for path, backlog in stack.paths.items():
        if backlog is not None:
            yield NetstatLine(
                stack.name, "unix", path, "", "LISTEN", len(backlog), backlog.limit, 0
            )
    for end in stack.connections:
        yield NetstatLine(
            stack.name,
            end.protocol,
            _text(end.local),
            _text(end.remote),
            _state(end),
            end.inbox.unread,
            end.buffered,
            end.connection,
        )


def _text(end: Endpoint) -> str:
    if not end.ip:
        return end.host
    return f"[{end.ip}]:{end.port}" if ":" in end.ip else f"{end.ip}:{end.port}"


def _state(end: Connection) -> str:
    if not end.is_open:
        return end.state
    told, heard = end.fin_state, end.inbox.send_closed
    if told == "none":
        return "CLOSE-WAIT" if heard else "ESTABLISHED"
    if told == "acknowledged":
        # Both, and it would not be in the list.
        return "FIN-WAIT-2"
    return "LAST-ACK" if heard else "FIN-WAIT-1"
