"""Draws what a benchmark found as SVG, with matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.figures import OURS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ("chart",)

COLOURS: Final = {"ours": "#2a7f62", "theirs": "#9aa5b1", "line": "#444444"}

# The ids of an SVG's parts are random unless salted, and its date is today's: without both, a
# chart of the same figures is the same file.
mpl.rcParams["svg.hashsalt"] = "trionet"
METADATA: Final = {"Date": None, "Creator": None}


def chart(figures: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw what compares with somebody as bars, what grows as curves."""
    panels = [
        one for one in figures if "curve" in one or any(side["ratio"] for side in one["sides"])
    ]
    if not panels:
        return
    heights = [2.4 if "curve" in one else 0.75 + 0.30 * len(one["sides"]) for one in panels]
    figure = Figure(figsize=(8.5, sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
    for one, (axis,) in zip(panels, axes, strict=True):
        axis.set_title(one["unit"], fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        (line if "curve" in one else bars)(axis, one)
    figure.savefig(path, format="svg", metadata=METADATA)


def bars(axis: Any, figure: dict[str, Any]) -> None:
    """Draw one bar for each side, its spread as a line across its end."""
    sides = figure["sides"][::-1]
    medians = [side["median"] for side in sides]
    spread = [
        [side["median"] - side["low"] for side in sides],
        [side["high"] - side["median"] for side in sides],
    ]
    colours = [COLOURS["ours" if side["name"] == OURS else "theirs"] for side in sides]
    axis.barh(
        [side["name"] for side in sides],
        medians,
        xerr=spread,
        color=colours,
        ecolor=COLOURS["line"],
        error_kw={"linewidth": 0.8},
    )
    axis.set_xlabel(figure["quantity"], fontsize=8)


def line(axis: Any, figure: dict[str, Any]) -> None:
    """Draw the cost at each size, on a logarithmic scale of sizes."""
    sizes = figure["curve"]["sizes"]
    medians = [side["median"] for side in figure["sides"]]
    low, high = ([side[part] for side in figure["sides"]] for part in ("low", "high"))
    axis.fill_between(sizes, low, high, color=COLOURS["theirs"], alpha=0.4, linewidth=0)
    axis.plot(sizes, medians, color=COLOURS["ours"], marker="o", markersize=3)
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(figure["curve"]["of"], fontsize=8)
    axis.set_ylabel(figure["quantity"], fontsize=8)
