"""Link: what it takes, and when it is nothing."""

from __future__ import annotations

from typing import Any

import pytest

from trionet import Link


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"latency": -0.1}, ValueError),
        ({"latency": float("nan")}, ValueError),
        ({"latency": "1"}, TypeError),
        ({"jitter": float("inf")}, ValueError),
        ({"bandwidth": 0}, ValueError),
        ({"bandwidth": -1}, ValueError),
        ({"bandwidth": True}, TypeError),
        ({"loss": 1.01}, ValueError),
        ({"loss": -0.01}, ValueError),
        ({"segment_size": 0}, ValueError),
        ({"segment_size": 65496}, ValueError),
        ({"segment_size": 1.5}, TypeError),
    ],
)
def test_a_link_that_cannot_be_is_refused_by_name(
    setting: dict[str, Any], error: type[Exception]
) -> None:
    (name,) = setting

    with pytest.raises(error, match=rf"Link\.{name}"):
        Link(**setting)


def test_a_link_is_null_unless_it_does_something() -> None:
    assert Link().null
    assert Link(segment_size=1).null
    assert not Link(latency=0.001).null
    assert not Link(jitter=0.001).null
    assert not Link(bandwidth=1e9).null
    assert not Link(loss=0.001).null
