"""What a benchmark found: printed for whoever watches, kept for the tables and the charts."""

from __future__ import annotations

import statistics
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ("ANNOUNCED", "OURS", "Demand", "Quantity", "announce", "show", "versions")

# The side that every other is compared with.
OURS: Final = "trionet"

# How many of its unit make one of what was measured.
Quantity = Literal["µs", "ms", "s", "KiB", "bytes", "times", "connections"]
SCALES: Final[Mapping[str, float]] = {
    "µs": 1e6,
    "ms": 1e3,
    "s": 1,
    "KiB": 1 / 1024,
    "bytes": 1,
    "times": 1,
    "connections": 1,
}

# A peer, "<=" or ">=", and the ratio asked for: ours to the peer's for "<=", the peer's to ours
# for ">=". Without a peer, the bound is one of our own figure, in the quantity's unit.
Demand = tuple[str | None, Literal["<=", ">="], float]


# What was measured against what, for the file of results.
ANNOUNCED: Final[list[str]] = []


def announce(*lines: str) -> None:
    """Say what is measured against what, in which versions."""
    for line in lines:
        if line not in ANNOUNCED:
            ANNOUNCED.append(line)
            print(f"\n{line}", end="", flush=True)


def versions(*distributions: str) -> list[str]:
    """Return ``name version`` of those distributions that are installed."""
    found = []
    for name in distributions:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} (not installed)")
    return found


def show(
    benchmark: BenchmarkFixture,
    unit: str,
    sides: Mapping[str, Sequence[float]],
    *,
    quantity: Quantity = "µs",
    wanted: Sequence[Demand] = (),
) -> dict[str, float]:
    """Print and keep one figure of each side; return the medians.

    Args:
      unit: what one operation is, or one thing.
      sides: what each side took in each round, in seconds, bytes, or things.
      quantity: the unit to print it in.
    """
    scale = SCALES[quantity]
    medians = {name: statistics.median(values) for name, values in sides.items()}
    rounds = len(next(iter(sides.values())))
    print(f"\n{benchmark.name}: {unit}, median of {rounds}")
    mine = medians.get(OURS)
    rows = []
    for name, median in medians.items():
        low, high = (scale * edge(sides[name]) for edge in (min, max))
        ratio = None if name == OURS or not mine or not median else mine / median
        told = "" if ratio is None else f"   ours/theirs {ratio:.3f}"
        print(f"  {name:34} {median * scale:10.2f} {quantity}  ({low:.2f} to {high:.2f}){told}")
        rows.append(
            {"name": name, "median": median * scale, "low": low, "high": high, "ratio": ratio}
        )
    verdicts = [_judged(demand, medians, scale, quantity) for demand in wanted]
    for verdict in verdicts:
        print(f"  asked for: {verdict['text']}")
    figures = benchmark.extra_info.setdefault("figures", [])
    figures.append({"unit": unit, "quantity": quantity, "sides": rows, "asked": verdicts})
    return medians


def _judged(
    demand: Demand, medians: Mapping[str, float], scale: float, quantity: str
) -> dict[str, str | bool]:
    peer, sign, bound = demand
    mine = medians[OURS]
    if peer is None:
        value, what = mine * scale, f"{sign} {bound:g} {quantity}"
    elif sign == "<=":
        value, what = mine / medians[peer], f"at most {bound:g} of {peer}"
    else:
        value, what = medians[peer] / mine, f"at least {bound:g} times as good as {peer}"
    met = value <= bound if sign == "<=" else value >= bound
    return {"text": f"{what}: {value:.3f}, {'met' if met else 'MISSED'}", "met": met}
