"""Draw the diagrams from the code itself: ``python docs/diagrams/draw.py``, from the root.

The states of a yamux stream come from its table of transitions. Those of a pool's connection come
from watching a pool do everything it does. The timeline of a drain comes from a server that drains
in virtual time, and the picture of a cut cable from the virtual network. Only where the boxes
stand, and the words beside the arrows, are ours; a test draws again and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import cable  # noqa: E402
import drained  # noqa: E402
import pooled  # noqa: E402
from svg import Box, Drawing  # noqa: E402

from trionet.yamux.stream import TRANSITIONS, Event, State  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("DIAGRAMS",)

OPEN, ENDING, OVER, CUT = "#e3f1e6", "#fdf3d8", "#e9ecef", "#f9e1de"


def yamux() -> str:
    """Draw the states of a stream, from `TRANSITIONS`."""
    boxes = {
        State.OPEN: Box(430, 45, 170),
        State.LOCAL_EOF: Box(200, 165, 170),
        State.REMOTE_EOF: Box(660, 165, 170),
        State.FINISHED: Box(430, 285, 170),
        State.RESET: Box(95, 285, 170),
        State.CUT: Box(765, 285, 170),
    }
    fills = {
        State.OPEN: OPEN,
        State.FINISHED: OVER,
        State.RESET: CUT,
        State.CUT: CUT,
    }
    words = {
        Event.FIN_OUT: "we end our direction",
        Event.FIN_IN: "the peer ends its own",
        Event.RESET: "reset",
    }
    drawing = Drawing(860, 325, "The states of a yamux stream")
    for (source, event), target in TRANSITIONS.items():
        if (source, event) == (State.OPEN, Event.RESET):
            # Past the box of LOCAL_EOF.
            drawing.arrow(
                boxes[source], boxes[target], words[event], bend=150, at=0.25
            )
        else:
            drawing.arrow(boxes[source], boxes[target], words[event])
    for state in State:
        notes = [
            who
            for who, may in (("we", state.sends), ("the peer", state.receives))
            if may
        ]
        note = f"{' and '.join(notes)} may send" if notes else "nobody may send"
        drawing.box(boxes[state], state.name, note, fill=fills.get(state, ENDING))
    return str(drawing)


def pool() -> str:
    """Draw the states of a pool's connection, as a pool was seen to go through them."""
    boxes = {
        "": Box(55, 45, 12, 12),
        "connecting": Box(180, 45, 140, 44),
        "idle": Box(180, 235, 140, 44),
        "lent": Box(670, 235, 140, 44),
        "checking": Box(360, 130, 140, 44),
        "resetting": Box(540, 345, 140, 44),
        "closing": Box(400, 475, 140, 44),
        "gone": Box(690, 475, 20, 20),
    }
    # The words, how the arrow bends, and where on it they stand.
    arrows: dict[tuple[str, str], tuple[str, float, float]] = {
        ("", "connecting"): ("", 0, 0.5),
        ("connecting", "idle"): ("nobody waits", 0, 0.4),
        ("connecting", "lent"): ("somebody waits", 110, 0.5),
        ("connecting", "closing"): ("too many meanwhile,|or expired", -330, 0.45),
        ("connecting", "gone"): ("it failed", 0, 0.5),
        ("idle", "lent"): ("acquire", 0, 0.4),
        ("idle", "checking"): ("acquire, after|check_after", 40, 0.45),
        ("checking", "lent"): ("it works", 30, 0.5),
        ("checking", "idle"): ("nobody waits any more", 30, 0.45),
        ("checking", "closing"): ("it does not", 0, 0.78),
        ("lent", "lent"): ("given back while|somebody waits", 0, 0.5),
        ("lent", "idle"): ("given back", -55, 0.5),
        ("lent", "resetting"): ("given back,|with reset", 25, 0.5),
        ("resetting", "idle"): ("it is as new", 0, 0.5),
        ("resetting", "lent"): ("", 25, 0.5),
        ("resetting", "closing"): ("it failed", 0, 0.5),
        ("lent", "closing"): ("exception, discard,|or doomed while lent", 150, 0.5),
        ("idle", "closing"): ("dead, old, unused,|expired, drained", -50, 0.5),
        ("closing", "gone"): ("closed: the slot is free", 0, 0.5),
    }
    drawing = Drawing(900, 510, "The states of a connection in a pool")
    seen = set(pooled.watch())
    if seen != set(arrows):
        raise AssertionError(
            f"to be drawn, or not any more: {sorted(seen ^ set(arrows))}"
        )
    for edge, (words, bend, at) in arrows.items():
        source, target = (boxes[name] for name in edge)
        if edge == ("lent", "lent"):
            drawing.loop(target, words)
            continue
        if edge == ("connecting", "gone"):
            # An end of its own: there never was a connection.
            target = Box(390, 45, 20, 20)
            drawing.dot(target.x, target.y, ring=True)
        drawing.arrow(source, target, words, bend=bend, at=at)
    for name, box in boxes.items():
        if name in {"", "gone"}:
            drawing.dot(box.x, box.y, ring=bool(name))
        else:
            fill = {"idle": OPEN, "lent": OPEN, "closing": CUT}.get(name, ENDING)
            drawing.box(box, name, fill=fill)
    return str(drawing)


def drain() -> str:
    """Draw what became of each connection of a server that drained."""
    left, scale, row = 190, 46, 34
    fills = {
        "idle": "#9bbfe0",
        "active": "#7fb58a",
        "closing": "#e4c06a",
        "forced": "#d98880",
    }
    report = drained.watch()
    height = 90 + row * len(report.lives)
    drawing = Drawing(
        860, height + 60, "A drain with a grace of 10 s and a linger of 1 s"
    )

    def x(time: float) -> float:
        return left + (time + 2) * scale

    for time, words in (
        (0.0, "shutdown()"),
        (drained.GRACE, "grace ends"),
        (drained.GRACE + drained.LINGER, "linger ends"),
    ):
        drawing.line(x(time), 52, x(time), height - 10, dashed=True)
        side = {0.0: "middle", drained.GRACE: "end"}.get(time, "start")
        drawing.text(x(time), 44, words, size=12, anchor=side)
    for number, (name, life) in enumerate(report.lives.items()):
        top = 62 + row * number
        drawing.text(left - 12, top + 15, name, size=12, anchor="end")
        for state, begin, end in life:
            drawing.bar(x(begin), x(end), top, 20, fills[state])
            if x(end) - x(begin) > 40:
                drawing.text((x(begin) + x(end)) / 2, top + 14, state, size=11)
    drawing.line(left, height - 10, x(12.4), height - 10)
    for second in range(-2, 13, 2):
        drawing.text(x(second), height + 6, f"{second} s", size=11)
    drawing.text(
        left,
        height + 40,
        f"serve() returned at {report.returned:g} s: {report.report.completed} completed, "
        f"{report.report.cancelled} cancelled, {report.report.forced} forced",
        anchor="start",
        bold=True,
    )
    return str(drawing)


DIAGRAMS: dict[str, Callable[[], str]] = {
    "yamux": yamux,
    "pool": pool,
    "drain": drain,
    "cable": cable.watch,
}

if __name__ == "__main__":
    for name, draw in DIAGRAMS.items():
        (HERE / f"{name}.svg").write_text(draw())
