"""Preconditions and ranges."""

from __future__ import annotations

import pytest

from examples.httpd.conditions import Validators, evaluate, parse_http_date, select_ranges

BEFORE = b"Tue, 14 Nov 2023 22:13:19 GMT"
SAME = b"Tue, 14 Nov 2023 22:13:20 GMT"
AFTER = b"Tue, 14 Nov 2023 22:13:21 GMT"
VALIDATORS = Validators(b'"v1"', 1_700_000_000)


@pytest.mark.parametrize(
    "text",
    [b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT"],
)
def test_dates_are_read_in_the_forms_that_name_their_zone(text: bytes) -> None:
    assert parse_http_date(text) == 784111777


@pytest.mark.parametrize(
    "text", [b"", b"yesterday", b"Sun, 99 Nov 1994 08:49:37 GMT", b"\xff\xfe", b"0" * 5000]
)
def test_what_is_no_date_is_none(text: bytes) -> None:
    assert parse_http_date(text) is None


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({b"if-none-match": b'"v1"'}, 304),
        ({b"if-none-match": b'W/"v1"'}, 304),
        ({b"if-none-match": b'"v0", "v1"'}, 304),
        ({b"if-none-match": b"*"}, 304),
        ({b"if-none-match": b'"v2"'}, 200),
        ({b"if-none-match": b'"xv1"'}, 200),
        ({b"if-modified-since": SAME}, 304),
        ({b"if-modified-since": AFTER}, 304),
        ({b"if-modified-since": BEFORE}, 200),
        ({b"if-modified-since": b"nonsense"}, 200),
        # If-None-Match decides alone, both ways.
        ({b"if-none-match": b'"v2"', b"if-modified-since": AFTER}, 200),
        ({b"if-none-match": b'"v1"', b"if-modified-since": BEFORE}, 304),
        ({b"if-match": b'"v1"'}, 200),
        ({b"if-match": b"*"}, 200),
        ({b"if-match": b'"v2"'}, 412),
        ({b"if-match": b'W/"v1"'}, 412),
        ({b"if-unmodified-since": SAME}, 200),
        ({b"if-unmodified-since": BEFORE}, 412),
        # If-Match decides alone, and 412 comes before 304.
        ({b"if-match": b'"v1"', b"if-unmodified-since": BEFORE}, 200),
        ({b"if-match": b'"v2"', b"if-none-match": b'"v1"'}, 412),
        ({b"if-match": b'"v1"', b"if-none-match": b'"v1"'}, 304),
    ],
)
def test_preconditions_go_in_the_order_of_the_standard(
    fields: dict[bytes, bytes], status: int
) -> None:
    assert evaluate(b"GET", fields, VALIDATORS) == status


def test_a_match_stops_a_method_that_writes() -> None:
    assert evaluate(b"PUT", {b"if-none-match": b"*"}, VALIDATORS) == 412
    assert evaluate(b"PUT", {b"if-modified-since": SAME}, VALIDATORS) == 200


@pytest.mark.parametrize(
    ("field", "ranges"),
    [
        (b"bytes=0-4", [(0, 5)]),
        (b"bytes=5-", [(5, 10)]),
        (b"bytes=-3", [(7, 10)]),
        (b"bytes=-30", [(0, 10)]),
        (b"bytes=0-99", [(0, 10)]),
        (b"bytes=9-9", [(9, 10)]),
        (b"BYTES = 0-0", [(0, 1)]),
        (b"bytes=0-0, 5-6", [(0, 1), (5, 7)]),
        (b"bytes=5-6,0-0", [(5, 7), (0, 1)]),
        (b"bytes=,0-0,,", [(0, 1)]),
        (b"bytes=0-0,50-60", [(0, 1)]),
        # Not satisfiable.
        (b"bytes=10-", []),
        (b"bytes=10-20,99-", []),
        (b"bytes=-0", []),
        (b"bytes=9999999999999999999999-", []),
        # Not understood, so the whole.
        (b"bytes=", None),
        (b"bytes", None),
        (b"bytes=-", None),
        (b"bytes=5-4", None),
        (b"bytes=a-b", None),
        (b"bytes=0-4;5-6", None),
        (b"bytes=+1-4", None),
        (b"bytes=\xd9\xa1-", None),
        (b"lines=0-4", None),
        # Overlapping or too many: also the whole.
        (b"bytes=0-5,5-9", None),
        (b"bytes=" + b",".join(b"%d-%d" % (i, i) for i in range(17)), None),
    ],
)
def test_ranges_are_found_or_ignored(field: bytes, ranges: list[tuple[int, int]] | None) -> None:
    assert select_ranges({b"range": field}, VALIDATORS, 10) == ranges


def test_an_empty_file_has_no_part() -> None:
    assert select_ranges({b"range": b"bytes=0-"}, VALIDATORS, 0) == []
    assert select_ranges({b"range": b"bytes=-5"}, VALIDATORS, 0) == []


@pytest.mark.parametrize(
    ("field", "applies"),
    [
        (b'"v1"', True),
        (b'W/"v1"', False),
        (b'"v2"', False),
        (SAME, True),
        (BEFORE, False),
        (AFTER, False),
        (b"nonsense", False),
    ],
)
def test_if_range_wants_the_very_same_version(field: bytes, applies: bool) -> None:
    found = select_ranges({b"range": b"bytes=0-0", b"if-range": field}, VALIDATORS, 10)

    assert found == ([(0, 1)] if applies else None)
