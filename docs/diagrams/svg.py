"""Just enough of SVG: boxes, arrows between them, text and bars, as text that never varies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ("Box", "Drawing")

INK = "#22303c"
SOFT = "#6b7a88"
FONT = "font-family='ui-sans-serif,system-ui,sans-serif'"


@dataclass(frozen=True)
class Box:
    """A box around its middle."""

    x: float
    y: float
    width: float = 150
    height: float = 50

    def edge(
        self, towards: tuple[float, float], gap: float = 3
    ) -> tuple[float, float]:
        """Where a line from the middle to a point leaves the box."""
        dx, dy = towards[0] - self.x, towards[1] - self.y
        # How far along the line each pair of sides is; the nearer one is met first.
        scale = min(
            (self.width / 2 + gap) / abs(dx) if dx else math.inf,
            (self.height / 2 + gap) / abs(dy) if dy else math.inf,
        )
        return self.x + dx * scale, self.y + dy * scale


class Drawing:
    """A picture that grows by calls, and is text in the end."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
            f"width='{width}' height='{height}' role='img' {FONT}>",
            f"<title>{escape(title)}</title>",
            "<defs><marker id='head' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='8' "
            f"markerHeight='8' orient='auto-start-reverse'><path d='M0,1 L10,5 L0,9 z' "
            f"fill='{SOFT}'/></marker></defs>",
        ]

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 13,
        colour: str = INK,
        anchor: str = "middle",
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        """Write a line of text, its base line at ``y``."""
        weight = " font-weight='600'" if bold else ""
        paper = (
            " paint-order='stroke' stroke='#fcfcfa' stroke-width='5' stroke-linejoin='round'"
            if halo
            else ""
        )
        self._parts.append(
            f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{colour}' "
            f"text-anchor='{anchor}'{weight}{paper}>{escape(words)}</text>"
        )

    def box(
        self, box: Box, name: str, note: str = "", *, fill: str = "#e8f0f8"
    ) -> None:
        """Draw a state: its name, and what it means."""
        left, top = box.x - box.width / 2, box.y - box.height / 2
        self._parts.append(
            f"<rect x='{left:g}' y='{top:g}' width='{box.width:g}' height='{box.height:g}' rx='8' "
            f"fill='{fill}' stroke='{SOFT}'/>"
        )
        self.text(box.x, box.y - 3 if note else box.y + 5, name, bold=True, size=14)
        if note:
            self.text(box.x, box.y + 15, note, size=11, colour=SOFT)

    def dot(self, x: float, y: float, *, ring: bool = False) -> None:
        """Draw a beginning, or with a ring an end."""
        if ring:
            self._parts.append(
                f"<circle cx='{x:g}' cy='{y:g}' r='10' fill='none' stroke='{INK}'/>"
            )
        self._parts.append(f"<circle cx='{x:g}' cy='{y:g}' r='6' fill='{INK}'/>")

    def arrow(
        self,
        source: Box,
        target: Box,
        words: str = "",
        *,
        bend: float = 0,
        at: float = 0.5,
    ) -> None:
        """Draw an arrow; ``bend`` pushes its middle to the left, seen along it.

        The words, in lines divided by a bar, stand ``at`` this part of the way.
        """
        dx, dy = target.x - source.x, target.y - source.y
        length = math.hypot(dx, dy) or 1
        middle = (
            (source.x + target.x) / 2 + bend * dy / length,
            (source.y + target.y) / 2 - bend * dx / length,
        )
        (x1, y1), (x2, y2) = source.edge(middle), target.edge(middle, 4)
        if not bend:
            middle = (x1 + x2) / 2, (y1 + y2) / 2
        self._parts.append(
            f"<path d='M{x1:.1f},{y1:.1f} Q{middle[0]:.1f},{middle[1]:.1f} {x2:.1f},{y2:.1f}' "
            f"fill='none' stroke='{SOFT}' stroke-width='1.5' marker-end='url(#head)'/>"
        )
        rest = 1 - at
        x = rest * rest * x1 + 2 * rest * at * middle[0] + at * at * x2
        y = rest * rest * y1 + 2 * rest * at * middle[1] + at * at * y2
        lines = words.split("|") if words else []
        for number, line in enumerate(lines):
            top = y + 4 - 14 * (len(lines) - 1) / 2
            self.text(
                round(x, 1), round(top + 14 * number, 1), line, size=12, halo=True
            )

    def loop(self, box: Box, words: str) -> None:
        """Draw an arrow from a box back to itself, on its right."""
        x, y = box.x + box.width / 2 + 3, box.y
        self._parts.append(
            f"<path d='M{x:g},{y - 10:g} C{x + 40:g},{y - 32:g} {x + 40:g},{y + 32:g} "
            f"{x + 1:g},{y + 10:g}' fill='none' stroke='{SOFT}' stroke-width='1.5' "
            f"marker-end='url(#head)'/>"
        )
        for number, line in enumerate(words.split("|")):
            self.text(x + 36, y - 2 + 14 * number, line, size=12, anchor="start")

    def bar(self, x1: float, x2: float, y: float, height: float, fill: str) -> None:
        """Draw a stretch of time."""
        self._parts.append(
            f"<rect x='{x1:g}' y='{y:g}' width='{x2 - x1:g}' height='{height:g}' rx='3' "
            f"fill='{fill}'/>"
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False
    ) -> None:
        """Draw a straight line."""
        dashes = " stroke-dasharray='4 4'" if dashed else ""
        self._parts.append(
            f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{SOFT}'{dashes}/>"
        )
