"""What a pool is told once: how connections are made, lent and ended, and within which bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar, final

from .._options import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = (
    "DEFAULT_BACKOFF",
    "LenderSettings",
    "SupplySettings",
    "make_settings",
    "require_count",
    "require_duration",
    "require_seconds",
)

T = TypeVar("T")

DEFAULT_BACKOFF: Final = Backoff()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SupplySettings(Generic[T]):
    """How connections are made and ended; what each field means, `trionet.Pool` says."""

    connect_timeout: float | None
    backoff: Backoff
    idle_timeout: float | None
    lifetime: float | None
    check_after: float
    close: Callable[[T], Awaitable[object]] | None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LenderSettings(Generic[T]):
    """How a lender lends; what each field means, `trionet.Pool` says."""

    max_waiting: int | None
    check: Callable[[T], Awaitable[object]] | None
    reset: Callable[[T], Awaitable[object]] | None


def require_seconds(name: str, value: object) -> None:
    """Raise unless ``value`` is None or a number of seconds, 0 or more."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds or None, got {value!r}")
    # Written so that a NaN fails it too.
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")


def require_duration(name: str, value: object) -> None:
    """Raise unless ``value`` is None or a number of seconds, more than 0."""
    require_seconds(name, value)
    if value == 0:
        raise ValueError(f"{name} must be more than 0, or None for no limit, got {value!r}")


def require_count(name: str, value: object, *, minimum: int) -> None:
    """Raise unless ``value`` is an int, ``minimum`` or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


def make_settings(
    connect: object,
    *,
    max_waiting: int | None,
    connect_timeout: float | None,
    backoff: Backoff,
    idle_timeout: float | None,
    lifetime: float | None,
    check: Callable[[T], Awaitable[object]] | None,
    check_after: float,
    reset: Callable[[T], Awaitable[object]] | None,
    close: Callable[[T], Awaitable[object]] | None,
) -> tuple[SupplySettings[T], LenderSettings[T]]:
    """Check a pool's arguments and sort them.

    Raises:
      ValueError, TypeError: one of them makes no sense.
    """
    if not callable(connect):
        raise TypeError(f"connect must be an async function, got {connect!r}")
    for name, function in (("check", check), ("reset", reset), ("close", close)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be an async function or None, got {function!r}")
    if max_waiting is not None:
        require_count("max_waiting", max_waiting, minimum=1)
    require_seconds("connect_timeout", connect_timeout)
    # With 0 a connection would be over as soon as it is made, and the next one dialled at once.
    require_duration("idle_timeout", idle_timeout)
    require_duration("lifetime", lifetime)
    if check_after is None:
        raise TypeError("check_after must be a number of seconds, got None")
    require_seconds("check_after", check_after)
    if not isinstance(backoff, Backoff):
        raise TypeError(f"backoff must be a Backoff, got {backoff!r}")
    for_supply = SupplySettings(
        connect_timeout=connect_timeout,
        backoff=backoff,
        idle_timeout=idle_timeout,
        lifetime=lifetime,
        check_after=check_after,
        close=close,
    )
    for_lender = LenderSettings(max_waiting=max_waiting, check=check, reset=reset)
    return for_supply, for_lender
