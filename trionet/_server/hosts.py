"""How many connections each client's machine has open."""

from __future__ import annotations

from typing import final

__all__ = ("HostCounts",)


@final
class HostCounts:
    """Counts open connections by IP address, where they are limited.

    Whoever has no IP address, a Unix or a memory client, is None: never counted, never full.
    """

    def __init__(self, limit: int | None) -> None:
        """Allow ``limit`` connections for each address, or any number if that is None."""
        self._limit = limit
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        """How many addresses have a connection."""
        return len(self._counts)

    @property
    def limited(self) -> bool:
        """Whether there is a limit; without one nobody need be counted."""
        return self._limit is not None

    def is_full(self, host: str | None) -> bool:
        """Whether ``host`` must not have another connection."""
        limit = self._limit
        return host is not None and limit is not None and self._counts.get(host, 0) >= limit

    def add(self, host: str | None) -> None:
        """Count a connection from ``host``."""
        if host is not None:
            self._counts[host] = self._counts.get(host, 0) + 1

    def remove(self, host: str | None) -> None:
        """Count one less; an address without any is forgotten."""
        if host is None:
            return
        self._counts[host] -= 1
        if not self._counts[host]:
            del self._counts[host]
