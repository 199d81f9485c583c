"""Measuring two things in turns, and saying their ratio."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ("in_turns",)


def in_turns(
    benchmark: BenchmarkFixture,
    ours: Callable[[], float],
    peers: dict[str, Callable[[], float]],
    *,
    unit: str,
    rounds: int = 7,
    wanted: tuple[str, str, float] | list[tuple[str, str, float]] | None = None,
) -> None:
    """Run ours and each peer by turns, and print medians and the ratios of medians.

    The machine's speed drifts; within one round all sides meet the same machine.

    Args:
      ours, peers: each runs its workload once, and returns seconds per operation.
      unit: what one operation is.
      wanted: a peer's name, ``"<="`` or ``">="``, and the ratio asked for: ours to the peer's for
        ``"<="``, the peer's to ours for ``">="``. Or a list of these.
    """
    sides = {"trionet": ours, **peers}
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}

    def one_round() -> None:
        for name, run in sides.items():
            times[name].append(run())

    benchmark.pedantic(one_round, rounds=rounds, iterations=1)  # type: ignore[no-untyped-call]
    medians = {name: statistics.median(values) for name, values in times.items()}
    mine = medians["trionet"]
    print(f"\n{benchmark.name}: {unit}, median of {rounds} rounds in turns")
    for name, median in medians.items():
        low, high = min(times[name]) * 1e6, max(times[name]) * 1e6
        ratio = "" if name == "trionet" else f"   ours/theirs {mine / median:.3f}"
        print(f"  {name:34} {median * 1e6:10.2f} µs  ({low:.2f} to {high:.2f}){ratio}")
        benchmark.extra_info[name] = median
    demands = wanted if isinstance(wanted, list) else [wanted] if wanted else []
    for peer, sign, bound in demands:
        ratio_value = mine / medians[peer] if sign == "<=" else medians[peer] / mine
        met = ratio_value <= bound if sign == "<=" else ratio_value >= bound
        what = "ours/theirs" if sign == "<=" else "theirs/ours"
        word = "met" if met else "MISSED"
        print(f"  asked for: {what} {sign} {bound} against {peer}: {ratio_value:.3f}, {word}")
        benchmark.extra_info[f"asked for, {peer}"] = (
            f"{what} {sign} {bound}: {ratio_value:.3f} {word}"
        )


def versions(*modules: str) -> Sequence[str]:
    """Return ``name version`` of installed distributions, for the output."""
    from importlib.metadata import version

    return [f"{module} {version(module)}" for module in modules]
