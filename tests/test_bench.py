"""The benchmarks' own instrument: figures are judged, kept and told as they were found."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import figures

pytest.importorskip("matplotlib", reason="the dependency group bench has it")

from bench import report


@pytest.fixture
def benchmark() -> Any:
    return SimpleNamespace(name="bench_something", extra_info={})


def test_a_figure_is_judged_by_the_ratio_of_medians(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = {"trionet": [1e-6, 2e-6, 9e-6], "peer": [4e-6, 4e-6, 4e-6]}

    medians = figures.show(
        benchmark, "a thing", sides, wanted=[("peer", "<=", 0.5), ("peer", ">=", 2.5)]
    )

    assert medians == {"trionet": 2e-6, "peer": 4e-6}
    verdicts = benchmark.extra_info["figures"][0]["asked"]
    assert [one["met"] for one in verdicts] == [True, False]
    assert "MISSED" in verdicts[1]["text"]
    assert "ours/theirs 0.500" in capsys.readouterr().out


def test_a_figure_of_our_own_is_judged_in_its_unit(benchmark: Any) -> None:
    figures.show(
        benchmark, "a size", {"trionet": [5632.0]}, quantity="KiB", wanted=[(None, "<=", 5.5)]
    )

    (verdict,) = benchmark.extra_info["figures"][0]["asked"]
    assert verdict == {"text": "<= 5.5 KiB: 5.500, met", "met": True}


def test_the_report_holds_every_figure(benchmark: Any, tmp_path: Path) -> None:
    figures.show(
        benchmark,
        "a thing",
        {"trionet": [1e-6, 2e-6, 3e-6], "peer": [4e-6, 4e-6, 8e-6]},
        wanted=[("peer", "<=", 0.4)],
    )
    run = {
        "machine_info": {"python": "P", "system": "S", "processor": "C", "cores": 2},
        "announced": ["peer 1.0"],
        "benchmarks": [{"extra_info": benchmark.extra_info}],
    }
    (tmp_path / "subject.json").write_text(json.dumps(run))

    report.main(tmp_path)

    page = (tmp_path / "README.md").read_text()
    assert "| a thing | trionet, µs | 2.00 | 1.00 | 3.00 |  |" in page
    assert "|  | peer, µs | 4.00 | 4.00 | 8.00 | 0.500 |" in page
    assert "at most 0.4 of peer: 0.500, MISSED" in page
    assert "peer 1.0" in page
    assert "<svg" in (tmp_path / "subject.svg").read_text()
