"""The demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from examples.demo import Checks, main

if TYPE_CHECKING:
    import pytest


def test_the_demo_finds_all_of_it_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0

    printed = capsys.readouterr().out
    assert printed.count(" GET /") == 15
    assert "ShutdownReport(completed=3, cancelled=0, forced=0)  ok" in printed
    assert "WRONG" not in printed


def test_what_is_wrong_is_told_and_remembered() -> None:
    checks = Checks()

    assert checks.expect(False, "the sky is green") == "WRONG"
    assert checks.failures == ["the sky is green"]


def test_a_failed_check_is_the_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.demo.SIZES", {"/bytes/1000000": 1, "/healthz": 3})

    assert main() == 1
    assert "tls /bytes/1000000" in capsys.readouterr().err
