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

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ("Subject", "main", "page")

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


def page(subjects: Iterable[Subject]) -> str:
    """Return the page of all tables."""
    return HEAD + "".join(part for subject in subjects for part in table(subject))


def main(folder: Path) -> None:
    """Write every chart, and the page of all tables."""
    # Here, since the tables need no matplotlib.
    from bench.charts import chart

    subjects = [Subject.read(path) for path in sorted(folder.glob("*.json"))]
    for subject in subjects:
        chart(subject.figures, folder / f"{subject.name}.svg")
    (folder / "README.md").write_text(page(subjects))
    print(f"{folder}/README.md: {len(subjects)} subjects, {_missed(subjects)}")


def _missed(subjects: Iterable[Subject]) -> str:
    met = [bool(one["met"]) for subject in subjects for _, one in subject.asked()]
    return f"{len(met)} figures asked for, {met.count(False)} missed"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
