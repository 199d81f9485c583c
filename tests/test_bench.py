"""The benchmarks' own instrument: figures are judged, kept and told as they were found."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import figures, report


@pytest.fixture
def recorder() -> Any:
    return SimpleNamespace(name="bench_something", extra_info={})


def test_a_figure_is_judged_by_the_ratio_of_medians(
    recorder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = {"trionet": [1e-6, 2e-6, 9e-6], "peer": [4e-6, 4e-6, 4e-6]}

    medians = figures.show(
        recorder, "a thing", sides, wanted=[("peer", "<=", 0.5), ("peer", ">=", 2.5)]
    )

    assert medians == {"trionet": 2e-6, "peer": 4e-6}
    verdicts = recorder.extra_info["figures"][0]["asked"]
    assert [one["met"] for one in verdicts] == [True, False]
    assert "MISSED" in verdicts[1]["text"]
    assert "ours/theirs 0.500" in capsys.readouterr().out


def test_a_figure_of_our_own_is_judged_in_its_unit(recorder: Any) -> None:
    figures.show(
        recorder, "a size", {"trionet": [5632.0]}, quantity="KiB", wanted=[(None, "<=", 5.5)]
    )

    (verdict,) = recorder.extra_info["figures"][0]["asked"]
    assert verdict == {"text": "<= 5.5 KiB: 5.500, met", "met": True}


def test_the_report_holds_every_figure(recorder: Any, tmp_path: Path) -> None:
    figures.show(
        recorder,
        "a thing",
        {"trionet": [1e-6, 2e-6, 3e-6], "peer": [4e-6, 4e-6, 8e-6]},
        wanted=[("peer", "<=", 0.4)],
    )
    run = {
        "machine_info": {"python": "P", "system": "S", "processor": "C", "cores": 2},
        "announced": ["peer 1.0"],
        "benchmarks": [{"extra_info": recorder.extra_info}],
    }
    path = tmp_path / "subject.json"
    path.write_text(json.dumps(run))

    subject = report.Subject.read(path)

    page = report.page([subject])
    assert "| a thing | trionet, µs | 2.00 | 1.00 | 3.00 |  |" in page
    assert "|  | peer, µs | 4.00 | 4.00 | 8.00 | 0.500 |" in page
    assert "at most 0.4 of peer: 0.500, MISSED" in page
    assert "peer 1.0" in page


def test_what_compares_is_drawn(recorder: Any, tmp_path: Path) -> None:
    charts = pytest.importorskip("bench.charts", reason="the group bench has matplotlib")
    figures.show(recorder, "a thing", {"trionet": [1e-6], "peer": [4e-6]})

    charts.chart(recorder.extra_info["figures"], tmp_path / "drawn.svg")

    assert "<svg" in (tmp_path / "drawn.svg").read_text()
