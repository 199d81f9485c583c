"""Preconditions and ranges: RFC 9110 sections 13 and 14, on nothing but header fields."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Literal, final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ("Validators", "evaluate", "parse_http_date", "select_ranges")

ETAG: Final = re.compile(rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
RANGE: Final = re.compile(rb"([0-9]*)-([0-9]*)")

# More ranges than this in one request are an attack (CVE-2011-3192) rather than a document viewer.
MAX_RANGES: Final = 16

# Beyond this many digits a position is past the end of any file, and int() gets slow.
MAX_DIGITS: Final = 18


@final
@dataclass(frozen=True, slots=True)
class Validators:
    """What tells one version of a file from another.

    Attributes:
      etag: a strong entity tag, in its quotes.
      modified: seconds since the epoch, whole, as Last-Modified tells them.
    """

    etag: bytes
    modified: int


def parse_http_date(value: bytes) -> int | None:
    """Read a date in any of the three forms of RFC 9110 section 5.6.7; None if it is no date."""
    try:
        return int(parsedate_to_datetime(value.decode("ascii")).timestamp())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def evaluate(
    method: bytes, headers: Mapping[bytes, bytes], validators: Validators
) -> Literal[200, 304, 412]:
    """Apply a request's preconditions in the order of RFC 9110 section 13.2.2; 200 is: go on."""
    if_match = headers.get(b"if-match")
    if if_match is not None:
        if not _matches(if_match, validators.etag, weakly=False):
            return 412
    else:
        date = parse_http_date(headers.get(b"if-unmodified-since", b""))
        if date is not None and validators.modified > date:
            return 412
    reads = method in (b"GET", b"HEAD")
    if_none_match = headers.get(b"if-none-match")
    if if_none_match is not None:
        if _matches(if_none_match, validators.etag, weakly=True):
            return 304 if reads else 412
    elif reads:
        date = parse_http_date(headers.get(b"if-modified-since", b""))
        if date is not None and validators.modified <= date:
            return 304
    return 200


def _matches(field: bytes, etag: bytes, *, weakly: bool) -> bool:
    """Whether ``etag``, which is strong, is in an If-Match or If-None-Match field."""
    if field.strip() == b"*":
        return True
    wanted = {etag, b"W/" + etag} if weakly else {etag}
    return not wanted.isdisjoint(ETAG.findall(field))


def select_ranges(
    headers: Mapping[bytes, bytes], validators: Validators, size: int
) -> list[tuple[int, int]] | None:
    """Return the parts a GET asks for, as pairs of start and stop.

    Returns:
      None where the whole is to be sent: no Range, one that is not understood, one that If-Range
      takes back, or one that asks for too many or overlapping parts (RFC 9110 section 14.2 lets
      a server ignore it). An empty list where no part asked for exists: 416.
    """
    field = headers.get(b"range")
    if field is None or not _if_range_holds(headers.get(b"if-range"), validators):
        return None
    unit, equals, specs = field.partition(b"=")
    if not equals or unit.strip().lower() != b"bytes":
        return None
    parsed = [RANGE.fullmatch(spec.strip(b" \t")) for spec in specs.split(b",") if spec.strip()]
    if not parsed or len(parsed) > MAX_RANGES:
        return None
    ranges: list[tuple[int, int]] = []
    for match in parsed:
        if match is None:
            return None
        found = _locate(match[1], match[2], size)
        if found is None:
            return None
        if found[0] < found[1]:
            ranges.append(found)
    ordered = sorted(ranges)
    if any(ordered[i][1] > ordered[i + 1][0] for i in range(len(ordered) - 1)):
        return None
    return ranges


def _if_range_holds(field: bytes | None, validators: Validators) -> bool:
    """Whether the parts wanted are of the version we have; compared strongly (section 13.1.5)."""
    if field is None:
        return True
    field = field.strip()
    if field.endswith(b'"'):
        return field == validators.etag
    return parse_http_date(field) == validators.modified


def _locate(first: bytes, last: bytes, size: int) -> tuple[int, int] | None:
    """Turn one range into start and stop, start = stop where it lies outside; None if malformed."""
    if len(first) > MAX_DIGITS:
        return size, size
    if not first:
        if not last:
            return None
        suffix = size if len(last) > MAX_DIGITS else int(last)
        return max(size - suffix, 0), size
    start = int(first)
    if not last or len(last) > MAX_DIGITS:
        return min(start, size), size
    stop = int(last) + 1
    if stop <= start:
        return None
    return min(start, size), min(stop, size)
