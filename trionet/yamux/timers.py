"""What passes with time: signs of life, round trips, deadlines in order, a bucket of tokens."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final, Generic, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

__all__ = ("Deadlines", "Keepalive", "RoundTrip", "TokenBucket")

KeyT = TypeVar("KeyT", bound="Hashable")


@final
class TokenBucket:
    """So many at once, and so many a second after that."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Take one; return False if there was none."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@final
class Deadlines(Generic[KeyT]):
    """Deadlines that all lie equally far ahead, so the order they were set in is their order."""

    __slots__ = ("_after", "_at")

    def __init__(self, after: float) -> None:
        self._after = after
        self._at: dict[KeyT, float] = {}

    def __contains__(self, key: KeyT) -> bool:
        return key in self._at

    def __len__(self) -> int:
        return len(self._at)

    @property
    def next(self) -> float:
        """The first of them."""
        return next(iter(self._at.values()), inf)

    def start(self, key: KeyT, now: float) -> None:
        """Set a deadline, or set it anew."""
        self._at.pop(key, None)
        self._at[key] = now + self._after

    def cancel(self, key: KeyT) -> None:
        """Forget a deadline, if there is one."""
        self._at.pop(key, None)

    def clear(self) -> None:
        """Forget all."""
        self._at.clear()

    def expired(self, now: float) -> Iterator[KeyT]:
        """Remove and give those that have passed."""
        while self._at:
            key, at = next(iter(self._at.items()))
            if at > now:
                return
            del self._at[key]
            yield key


@final
class Keepalive:
    """Whether the peer is there. Any byte of it counts, so load never looks like death.

    Attributes:
      heard_at: when the last byte came; the session sets it, and `asked` to False.
      asked: a ping asks the peer for a sign of life.
    """

    __slots__ = ("_asked_at", "_interval", "_timeout", "asked", "heard_at")

    def __init__(self, interval: float | None, timeout: float, now: float) -> None:
        self._interval = inf if interval is None else interval
        self._timeout = timeout
        self.heard_at: float = now
        self.asked: bool = False
        # None while our question waits behind output that the carrier does not take: that is no
        # silence of the peer's, and the limit on a stalled carrier watches it.
        self._asked_at: float | None = None

    @property
    def next(self) -> float:
        """When `tick` has something to say."""
        if not self.asked:
            return self.heard_at + self._interval
        return inf if self._asked_at is None else self._asked_at + self._timeout

    def sent(self, now: float) -> None:
        """Note that a ping left."""
        if self.asked and self._asked_at is None:
            self._asked_at = now

    def restart(self, now: float) -> None:
        """Give the peer all of its time anew to answer a ping that left."""
        if self._asked_at is not None:
            self._asked_at = now

    def tick(self, now: float) -> str | None:
        """Return ``"ask"`` if a ping is due, ``"dead"`` if its time is over, or None."""
        if now < self.next:
            return None
        if self.asked:
            return "dead"
        self.asked = True
        self._asked_at = None
        return "ask"


# The least of the last few: a ping that met a full queue says little about the path.
SAMPLES: Final = 4

# While bulk data flows a round trip is measured so often.
MEASURE_EVERY: Final = 5.0


@final
class RoundTrip:
    """The round trip, by pings.

    Attributes:
      latest: the last one measured, or None.
    """

    __slots__ = ("_measured_at", "_samples", "latest")

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._measured_at = -inf
        self.latest: float | None = None

    @property
    def best(self) -> float | None:
        """The shortest of the recent ones."""
        return min(self._samples, default=None)

    def add(self, sample: float, now: float) -> None:
        """Note a round trip."""
        self.latest = sample
        self._samples.append(sample)
        self._measured_at = now

    def stale(self, now: float) -> bool:
        """Whether it is time to measure again."""
        return now - self._measured_at >= MEASURE_EVERY
