"""Measuring several things in turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.figures import OURS, show

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.figures import Demand

__all__ = ("curve", "in_turns")


def in_turns(
    benchmark: BenchmarkFixture,
    ours: Callable[[], float],
    peers: Mapping[str, Callable[[], float]],
    *,
    unit: str,
    rounds: int = 7,
    wanted: Sequence[Demand] = (),
) -> dict[str, float]:
    """Run ours and each peer by turns, and show medians and the ratios of medians.

    The machine's speed drifts; within one round all sides meet the same machine.

    Args:
      ours, peers: each runs its workload once, and returns seconds per operation.
      unit: what one operation is.
      wanted: what was asked for.

    Returns:
      The medians, in seconds.
    """
    sides = {OURS: ours, **peers}
    for run in sides.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in sides}

    def one_round() -> None:
        for name, run in sides.items():
            times[name].append(run())

    benchmark.pedantic(one_round, rounds=rounds, iterations=1)  # type: ignore[no-untyped-call]
    return show(benchmark, unit, times, wanted=wanted)


def curve(
    benchmark: BenchmarkFixture,
    run: Callable[[int], float],
    sizes: Sequence[int],
    *,
    unit: str,
    of: str,
    rounds: int = 5,
    flat: float = 2.0,
) -> None:
    """Run one workload at several sizes by turns, and see whether its cost stays flat.

    Args:
      run: takes a size, and returns seconds per operation.
      unit: what one operation is.
      of: what there are so many of.
      flat: how many times the cheapest size's cost the dearest may be.
    """
    run(sizes[0])
    times: dict[int, list[float]] = {size: [] for size in sizes}

    def one_round() -> None:
        for size in sizes:
            times[size].append(run(size))

    benchmark.pedantic(one_round, rounds=rounds, iterations=1)  # type: ignore[no-untyped-call]
    medians = show(benchmark, unit, {f"{size:,} {of}": values for size, values in times.items()})
    factor = max(medians.values()) / min(medians.values())
    met = factor <= flat
    text = f"flat within {flat:g} times from {sizes[0]:,} to {sizes[-1]:,} {of}: {factor:.2f}"
    print(f"  asked for: {text}, {'met' if met else 'MISSED'}")
    figure = benchmark.extra_info["figures"][-1]
    figure["asked"].append({"text": f"{text}, {'met' if met else 'MISSED'}", "met": met})
    figure["curve"] = {"of": of, "sizes": list(sizes)}
