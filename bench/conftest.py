"""One line of progress for each benchmark, and what the JSON files tell of the machine."""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any

import pytest

from bench.figures import ANNOUNCED

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRESS = pytest.StashKey[tuple[int, float]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Say which benchmark is running, of how many, and since when the run goes on."""
    done, start = item.config.stash.get(PROGRESS, (0, time.monotonic()))
    item.config.stash[PROGRESS] = done + 1, start
    elapsed = int(time.monotonic() - start)
    total = len(item.session.items)
    print(f"\n>>> {done + 1} of {total}, {elapsed} s: {item.name}", flush=True)
    return (yield)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Keep what a figure depends on, and nothing that tells whose machine it was."""
    cpu = machine_info.get("cpu", {})
    kept = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "processor": cpu.get("brand_raw", platform.machine()),
        "cores": cpu.get("count"),
    }
    machine_info.clear()
    machine_info.update(kept)


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: Any) -> None:
    """Name the commit alone: a checkout's folder and branch are its owner's."""
    kept = {name: commit_info.get(name) for name in ("id", "time", "dirty")}
    commit_info.clear()
    commit_info.update(kept)


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]
) -> None:
    """Keep what was measured against what, in which versions."""
    output_json["announced"] = ANNOUNCED
