"""A trace as a sequence diagram: as text for Mermaid, and as a picture of its own (SVG 1.1)."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final, TypeAlias

from .flights import Flight, flights

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .trace import Event

__all__ = ("sequence_diagram", "sequence_svg")

# More than that nobody reads, and Mermaid gives up beyond 50,000 characters of text.
LAST: Final = 100

Thing: TypeAlias = "Flight | Event"


def sequence_diagram(events: Iterable[Event], *, last: int = LAST, acks: bool = False) -> str:
    """Draw who sent what to whom, as text that Mermaid turns into a picture.

    An arrow ends in a cross where the thing was lost, and in an open head where it is still on its
    way; a fault is a note over all hosts.

    Args:
      events: a `Trace`, or some of its events in order.
      last: at most so many of the last things that happened; 0 is all of them.
      acks: acknowledgements that carry nothing else, too.
    """
    things, left_out = _chosen(events, last, acks)
    hosts = _hosts(things)
    lines = ["sequenceDiagram"]
    lines += [f"    participant h{number} as {_mermaid(host)}" for host, number in hosts.items()]
    everybody = f"h0,h{len(hosts) - 1}" if len(hosts) > 1 else "h0"
    if left_out and hosts:
        lines.append(f"    Note over {everybody}: {left_out} earlier left out")
    for thing in things:
        if isinstance(thing, Flight):
            one = hosts[thing.event.source.host]
            other = hosts[thing.event.destination.host]
            label = f"{_times(thing)}: {_label(thing)}"
            head = "-x" if thing.lost else "-)" if thing.arrived is None else "->>"
            lines.append(f"    h{one}{head}h{other}: {_mermaid(label)}")
        elif hosts:
            note = _mermaid(f"{_time(thing.time)} {thing.note}")
            lines.append(f"    Note over {everybody}: {note}")
    return "\n".join(lines) + "\n"


def _chosen(events: Iterable[Event], last: int, acks: bool) -> tuple[list[Thing], int]:
    """Return what is to be drawn, and how many things are not because they are too old."""
    if isinstance(last, bool) or not isinstance(last, int):
        raise TypeError(f"last must be an int, got {last!r}")
    if last < 0:
        raise ValueError(f"last must not be negative, got {last}")
    things: list[Thing] = [
        thing
        for thing in flights(events)
        if acks or not isinstance(thing, Flight) or thing.event.kind != "ACK"
    ]
    chosen = things[-last:] if last else things
    return chosen, len(things) - len(chosen)


def _hosts(things: Iterable[Thing]) -> dict[str, int]:
    """Return the hosts, numbered in the order in which they appear."""
    hosts: dict[str, int] = {}
    for thing in things:
        if isinstance(thing, Flight):
            for end in (thing.event.source, thing.event.destination):
                hosts.setdefault(end.host, len(hosts))
    return hosts


def _time(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".")


def _label(flight: Flight) -> str:
    event = flight.event
    words = [event.kind]
    if event.protocol == "dns":
        words.append(event.payload.decode(errors="replace"))
    elif event.payload:
        words.append(f"{len(event.payload)} bytes")
    if event.kind in {"SYN", "DATAGRAM"} and event.destination.port:
        words.append(f"to port {event.destination.port}")
    if event.connection:
        words.append(f"({event.protocol} {event.connection})")
    if event.attempt:
        words.append(f"again, attempt {event.attempt + 1}")
    text = " ".join(words)
    if flight.notes:
        text += ", " + ", ".join(flight.notes)
    return text


def _times(flight: Flight) -> str:
    """Return when it was sent, and when it arrived if that was later."""
    start, end = flight.event.time, flight.arrived
    return _time(start) if end is None or end <= start else f"{_time(start)} to {_time(end)}"


def _mermaid(text: str) -> str:
    """Escape what Mermaid takes for its own: its entities are decimal, without the ampersand."""
    return "".join(
        f"#{ord(one)};" if one in '#;<>&"%' or not one.isprintable() else one for one in text
    )


# The picture

MARGIN: Final = 90
COLUMN: Final = 280
ROW: Final = 24
HEAD: Final = 40

STYLE: Final = (
    "text{font:12px sans-serif;fill:#222;paint-order:stroke;stroke:#fff;stroke-width:3px}"
    ".t{fill:#777;font-size:10px}"
    ".h{font-weight:bold;text-anchor:middle}.l{stroke:#bbb}"
    ".a{stroke:#225ea8;fill:none;marker-end:url(#to)}.c{stroke:#888;fill:none;marker-end:url(#to)}"
    ".r{stroke:#c51b2f;fill:none;marker-end:url(#to)}.f{stroke:#e08214;stroke-dasharray:4 3}"
    ".x{stroke:#c51b2f;fill:none;stroke-dasharray:4 3}"
)
MARKER: Final = (
    '<defs><marker id="to" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
    '<path d="M0,0 L8,4 L0,8 z" fill="#444"/></marker></defs>'
)


def sequence_svg(events: Iterable[Event], *, last: int = LAST, acks: bool = False) -> str:
    """Draw who sent what to whom, as an SVG picture that needs nothing else.

    Time goes down, a row for each moment at which something happened, whatever lies between them.
    Lost things are red and end in a cross, resets are red, faults are lines across.

    Args:
      events, last, acks: as for `sequence_diagram`.
    """
    things, left_out = _chosen(events, last, acks)
    hosts = _hosts(things)
    rows = _rows(things)
    width = 2 * MARGIN + COLUMN * max(1, len(hosts) - 1) + MARGIN
    height = HEAD + ROW * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f"<style>{STYLE}</style>{MARKER}",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for host, number in hosts.items():
        x = _x(number)
        parts.append(f'<text class="h" x="{x}" y="20">{escape(host)}</text>')
        parts.append(f'<line class="l" x1="{x}" y1="28" x2="{x}" y2="{height}"/>')
    if left_out:
        parts.append(f'<text class="t" x="4" y="34">{left_out} earlier left out</text>')
    shown = ""
    for (time, _), y in rows.items():
        if shown != _time(time):
            shown = _time(time)
            parts.append(f'<text class="t" x="4" y="{y + 4}">{shown}</text>')
    for number, thing in enumerate(things):
        if isinstance(thing, Flight):
            parts += _arrow(thing, hosts, rows[thing.event.time, number], _end(thing, number, rows))
        else:
            y = rows[thing.time, number]
            parts.append(f'<line class="f" x1="{MARGIN // 2}" y1="{y}" x2="{width}" y2="{y}"/>')
            parts.append(f'<text x="{MARGIN}" y="{y - 3}">{escape(thing.note)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(number: int) -> int:
    return 2 * MARGIN + number * COLUMN


def _rows(things: Sequence[Thing]) -> dict[tuple[float, int], int]:
    """Return the height of each moment: (time, number of the thing) to y, in order."""
    moments: list[tuple[float, int]] = []
    for number, thing in enumerate(things):
        if isinstance(thing, Flight):
            moments.append((thing.event.time, number))
            if thing.arrived is not None and thing.arrived > thing.event.time:
                moments.append((thing.arrived, number))
        else:
            moments.append((thing.time, number))
    return {moment: HEAD + ROW * (place + 1) for place, moment in enumerate(sorted(moments))}


def _end(flight: Flight, number: int, rows: dict[tuple[float, int], int]) -> int:
    start = rows[flight.event.time, number]
    return start if flight.arrived is None else rows[flight.arrived, number]


def _arrow(flight: Flight, hosts: dict[str, int], start: int, end: int) -> list[str]:
    event = flight.event
    x1, x2 = _x(hosts[event.source.host]), _x(hosts[event.destination.host])
    title = f"<title>{escape(str(event))}</title>"
    kind = "r" if event.kind == "RST" else "a" if event.payload else "c"
    label = escape(_label(flight))
    if x1 == x2:
        shape = f"M{x1},{start - 4} h30 v8 h-26"
        text = f'<text x="{x1 + 36}" y="{start + 4}">{label}</text>'
        return [f'<g>{title}<path class="{kind}" d="{shape}"/>{text}</g>']
    if flight.lost or flight.arrived is None:
        # It gets no further than two thirds of the way.
        x2 = x1 + (x2 - x1) * 2 // 3
    # Beside its start, where slanting arrows do not cross it.
    side, anchor = (x1 + 8, "start") if x1 < x2 else (x1 - 8, "end")
    text = f'<text style="text-anchor:{anchor}" x="{side}" y="{start - 4}">{label}</text>'
    line = f'x1="{x1}" y1="{start}" x2="{x2}" y2="{end}"'
    if flight.lost:
        cross = f"M{x2 - 5},{end - 5} l10,10 m0,-10 l-10,10"
        shape = f'<line class="x" {line}/><path class="x" d="{cross}"/>'
    else:
        shape = f'<line class="{kind}" {line}/>'
    return [f"<g>{title}{shape}{text}</g>"]
