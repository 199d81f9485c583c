"""Makes the tables and the charts of ``bench/results`` from the JSON files there.

``python -m bench.report FOLDER``: for each ``NAME.json``, which is what pytest-benchmark wrote,
a chart ``NAME.svg``; and ``README.md`` with every figure of all of them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.figures import OURS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("main",)

COLOURS: Final = {"ours": "#2a7f62", "theirs": "#9aa5b1", "line": "#444444"}

# The ids of an SVG's parts are random unless salted, and its date is today's: without both, a
# chart of the same figures is the same file.
mpl.rcParams["svg.hashsalt"] = "trionet"
METADATA: Final = {"Date": None, "Creator": None}

HEAD: Final = """# Results

Made by `nox -s bench`; [how each figure is taken, and what it says](../README.md). Lower is
better everywhere. A ratio is ours to theirs, medians of rounds in turns.
"""


@dataclass(frozen=True)
class Subject:
    """What one file of benchmarks found."""

    name: str
    machine: dict[str, Any]
    announced: list[str]
    figures: list[dict[str, Any]]
    notes: list[str]

    @classmethod
    def read(cls, path: Path) -> Subject:
        """Read what pytest-benchmark wrote."""
        run = json.loads(path.read_text())
        figures, notes = [], []
        for one in run["benchmarks"]:
            extra = one["extra_info"]
            figures += extra.get("figures", ())
            notes += extra.get("notes", ())
        return cls(path.stem, run["machine_info"], run["announced"], figures, notes)

    def asked(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield each demand and its verdict, with what it is about."""
        for figure in self.figures:
            for one in figure["asked"]:
                yield figure["unit"], one


def table(subject: Subject) -> Iterator[str]:
    """Say every figure of a subject in Markdown."""
    machine = subject.machine
    yield f"\n## {subject.name}\n\n"
    yield f"{machine['python']}, {machine['system']}, {machine['processor']} x {machine['cores']}"
    if subject.announced:
        yield f"; {', '.join(subject.announced)}"
    yield f"\n\n![{subject.name}]({subject.name}.svg)\n"
    yield "\n| what | side | median | lowest | highest | ours/theirs |\n|---|---|--:|--:|--:|--:|\n"
    for figure in subject.figures:
        what = figure["unit"]
        for side in figure["sides"]:
            spread = " | ".join(f"{side[part]:,.2f}" for part in ("median", "low", "high"))
            ratio = "" if side["ratio"] is None else f"{side['ratio']:.3f}"
            name = f"{side['name']}, {figure['quantity']}"
            yield f"| {what} | {name} | {spread} | {ratio} |\n"
            what = ""
    if asked := list(subject.asked()):
        yield "\nAsked for:\n\n" + "".join(f"- {unit}: {one['text']}\n" for unit, one in asked)
    if subject.notes:
        yield "\n" + "\n".join(f"- {note}" for note in subject.notes) + "\n"


def chart(subject: Subject, path: Path) -> None:
    """Draw what compares with somebody as bars, what grows as curves."""
    panels = [
        one
        for one in subject.figures
        if "curve" in one or any(side["ratio"] for side in one["sides"])
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


def main(folder: Path) -> None:
    """Write every chart, and the page of all tables."""
    subjects = [Subject.read(path) for path in sorted(folder.glob("*.json"))]
    text = HEAD
    for subject in subjects:
        chart(subject, folder / f"{subject.name}.svg")
        text += "".join(table(subject))
    (folder / "README.md").write_text(text)
    print(f"{folder}/README.md: {len(subjects)} subjects, {_missed(subjects)}")


def _missed(subjects: Iterable[Subject]) -> str:
    met = [bool(one["met"]) for subject in subjects for _, one in subject.asked()]
    return f"{len(met)} figures asked for, {met.count(False)} missed"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
