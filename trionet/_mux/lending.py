"""Halves of connections, lent to tasks in the order in which they came.

How this works. Whoever wants a half takes one that is free or waits in one of three queues, for a
receive half, a send half, or both of one connection; a number says who came first. Whoever brings
one back, a dial that ends, a hang-up: each changes the state at once and then lets `_settle` look
at that one connection. What is free of it goes to the oldest who can use it. So these hold between
any two steps:

- Nobody waits while a half is free that he could use, unless it is kept for somebody older.
- A half is kept only for one who waits for both, of a connection whose other half is lent; each
  of those has a claim on one connection at most, and each connection has one claim at most. The
  oldest takes whatever connection becomes free as a whole, and passes his claim on.
- A connection is on one list at most: `idle` (the supply's: both halves are free), `receive_free`
  and `send_free` (one is, nobody has a claim), `ending` (its peer has closed, there are bytes to
  read, and nobody reads them), or on none: all is lent, kept, or on its way out.

Longer than most files here: these rules hold together only if they can be read together.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, cast, final

import trio
from trio.lowlevel import current_task, enable_ki_protection

from .._errors import LeaseError, PoolTimeoutError
from .._pool.waiters import WaitQueue
from .._pool.watch import find_hangup_probe
from .._streams.foreign import adopt
from ..abc import Stream
from .duplex import BOTH, READ, WRITE, Duplex
from .halves import (
    BorrowedStream,
    Half,
    HalfCloseableBorrowedStream,
    ReceiveHalf,
    SendHalf,
)
from .loan import Loan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.lowlevel import Task

    from .._pool.entry import Entry
    from .fleet import Fleet

__all__ = ("Switchboard",)

AnyLoan = Loan[Any]


@final
class Switchboard:
    """Lends halves; see the note on top.

    Attributes:
      everyone: all who wait, in the order in which they came.
      acquired, timed_out: as in `MultiplexerStatistics`.
    """

    def __init__(self, fleet: Fleet[trio.abc.Stream]) -> None:
        self._fleet = fleet
        self._supply = fleet.supply
        self._numbers = count(1)
        self.everyone: OrderedDict[Task, AnyLoan] = OrderedDict()
        queue = partial(
            WaitQueue[AnyLoan],
            everyone=self.everyone,
            left=self._left,
            turn=lambda loan: loan.number,
        )
        self.queues: Final = {READ: queue(), WRITE: queue(), BOTH: queue()}
        self._readers, self._writers, self._borrowers = self.queues.values()
        self.idle = self._supply.idle
        self.receive_free: dict[int, Duplex] = {}
        self.send_free: dict[int, Duplex] = {}
        self.ending: dict[int, Duplex] = {}
        self.claimed: dict[int, Duplex] = {}
        self.duplexes: dict[int, Duplex] = {}
        self.acquired = self.timed_out = 0
        timeout = self._supply.settings.idle_timeout
        self._idle_timeout = math.inf if timeout is None else timeout

    # Lending

    def take(self, loan: AnyLoan) -> Half | None:
        """Lend what is free; None if nothing is.

        Raises:
          PoolClosedError, RuntimeError: see `Fleet.require_open`.
        """
        if loan.wants == BOTH:
            if self.idle:
                entry = next(reversed(self.idle.values()))
                duplex: Any = entry.holder
                # As `_find_whole` and `_lend`: what is borrowed again and again.
                if not (entry.detour or (duplex.probe is not None and duplex.looks_ended())):
                    key = entry.key
                    del self.idle[key]
                    self._supply.lent[key] = entry
                    entry.used = True
                    self.acquired += 1
                    duplex.reader = duplex.writer = whole = duplex.whole(self, duplex, BOTH)
                    return cast("BorrowedStream", whole)
            found = self._find_whole()
        else:
            found = self._find_receive() if loan.wants == READ else self._find_send()
        if found is None:
            self._fleet.require_open()
            return None
        half = self._lend(found, loan.wants)
        self._list(found)
        return half

    @enable_ki_protection
    def queue_up(self, loan: AnyLoan, *, first: bool = False) -> Awaitable[Half]:
        """Wait for what ``loan`` wants: all that changes is done when this returns.

        Args:
          first: it was this task's turn already: it takes what is kept for others, too, and nobody
            who came later comes before it.

        If cancelled, nothing was lent.
        """
        fleet = self._fleet
        fleet.require_open()
        if fleet.exhausted:
            raise fleet.nothing_left()
        task = current_task()
        queue = self.queues[loan.wants]
        if not loan.number:
            loan.number = next(self._numbers)
            loan.since = trio.current_time()
        queue.join(task, loan, first=first)
        if first:
            self._serve_first(task)
        elif loan.wants == BOTH:
            self._seek_claim(loan)
        if task in self.everyone:
            fleet.joined(task, loan.since)
        if loan.timeout is None:
            return queue.wait(task)
        return self._wait_no_longer_than(loan, task)

    async def _wait_no_longer_than(self, loan: AnyLoan, task: Task) -> Half:
        assert loan.timeout is not None
        # Not again so long for who was handed what went on its way to him.
        with trio.move_on_at(loan.since + loan.timeout):
            half: Half = await self.queues[loan.wants].wait(task)
            return half
        self.timed_out += 1
        error = self._supply.retry.last_error
        raise PoolTimeoutError(self._describe(loan.timeout, error)) from error

    def unfit(self, half: Half) -> bool:
        """Whether ``half`` has become useless on its way; then it was taken back."""
        duplex = half._duplex
        lent = half._stream is not None
        if lent and not duplex.out and not (duplex.ended and half._wants & WRITE):
            return False
        self.acquired -= 1
        if lent:
            self.give_back(half)
        return True

    def _lend(self, duplex: Duplex, wants: int) -> Half:
        self._unlist(duplex)
        entry = duplex.entry
        self._supply.lent[entry.key] = entry
        entry.used = True
        self.acquired += 1
        half: Half
        if wants == READ:
            duplex.reader = half = ReceiveHalf(self, duplex, READ)
        elif wants == WRITE:
            duplex.writer = half = SendHalf(self, duplex, WRITE)
        else:
            half = cast("Any", duplex.whole)(self, duplex, BOTH)
            duplex.reader = duplex.writer = half
        return half

    # What is free

    def _find_whole(self) -> Duplex | None:
        while self.idle:
            duplex = cast("Duplex", next(reversed(self.idle.values())).holder)
            if self._still_there(duplex):
                return duplex
        return None

    def _find_receive(self) -> Duplex | None:
        # What will go once it has been read first, then what has one half left.
        for duplex in list(self.ending.values()):
            if duplex.has_unread():
                return duplex
            self._settle(duplex)
        while self.receive_free:
            duplex = next(reversed(self.receive_free.values()))
            if self._still_there(duplex):
                return duplex
            if duplex.entry.key in self.ending:
                return duplex
        while self.idle:
            duplex = cast("Duplex", next(reversed(self.idle.values())).holder)
            if self._still_there(duplex) or duplex.entry.key in self.ending:
                return duplex
        return None

    def _find_send(self) -> Duplex | None:
        while self.send_free:
            duplex = next(reversed(self.send_free.values()))
            if self._still_there(duplex):
                return duplex
        return self._find_whole()

    def _still_there(self, duplex: Duplex) -> bool:
        if not duplex.looks_ended():
            return True
        self._settle(duplex)
        return False

    def _list(self, duplex: Duplex) -> None:
        """Put what is free of a connection where it is found."""
        key = duplex.entry.key
        if duplex.reader is None and duplex.writer is None:
            self._supply.lent.pop(key, None)
        if duplex.ended:
            if duplex.reader is None:
                self._list_ended(duplex)
        elif duplex.claim is not None:
            pass
        elif duplex.reader is not None:
            if duplex.writer is None:
                self.send_free[key] = duplex
        elif duplex.writer is not None:
            self.receive_free[key] = duplex
        else:
            self._supply.shelve(duplex.entry)

    def _list_ended(self, duplex: Duplex) -> None:
        if duplex.has_unread():
            self.ending[duplex.entry.key] = duplex
            self._supply.alarm.set(duplex.ended_at + self._idle_timeout)
        else:
            self._take_out(duplex, "dead")
            self._retire_if_free(duplex)

    def _unlist(self, duplex: Duplex) -> None:
        entry = duplex.entry
        if entry.key in self.idle:
            self._supply.take(entry)
        self.receive_free.pop(entry.key, None)
        self.send_free.pop(entry.key, None)
        self.ending.pop(entry.key, None)

    # Taking back

    @enable_ki_protection
    def give_back(self, half: Half) -> None:
        """Take ``half`` back, and lend or keep it, or close its connection if it was harmed."""
        duplex = half._duplex
        entry = duplex.entry
        if half._receiving or half._sending:
            # Some other task is still at it.
            self.harm(half, "discarded")
        half._finish("returned")
        if duplex.out:
            self._free(half)
            self._end_use(duplex)
        elif entry.is_closed():
            self.throw_away(half)
        else:
            if half._wants != BOTH or self.everyone or entry.detour or duplex.looks_ended():
                self._free(half)
                self._settle(duplex)
                return
            # As `_settle` and `Supply.shelve`: nobody waits.
            duplex.reader = duplex.writer = None
            key = entry.key
            del self._supply.lent[key]
            if self._idle_timeout is not math.inf:
                entry.idle_since = now = trio.current_time()
                if now + self._idle_timeout < self._supply.alarm.at:
                    self._supply.alarm.set(now + self._idle_timeout)
            self.idle[key] = entry

    @enable_ki_protection
    def throw_away(self, half: Half) -> None:
        """Take ``half`` back, and close its connection, whoever has the other half."""
        half._finish("returned")
        self._free(half)
        self._take_out(half._duplex, "discarded")
        self._cut(half._duplex)

    def discard(self, half: object) -> None:
        """Close the connection of a half that is lent.

        Raises:
          LeaseError: it is not lent, or not from here.
        """
        if not isinstance(half, Half) or half._duplex.entry.holder is not half._duplex:
            raise LeaseError(f"{half!r} was not lent by this multiplexer")
        if self.duplexes.get(half._duplex.entry.key) is not half._duplex or half._stream is None:
            raise LeaseError(f"{half!r} was given back already, or is another multiplexer's")
        self.kill(half)

    @enable_ki_protection
    def kill(self, half: Half) -> None:
        """Close the connection of ``half`` now."""
        half._finish("closed")
        self._free(half)
        self._take_out(half._duplex, "discarded")
        self._cut(half._duplex)

    @enable_ki_protection
    def harm(self, half: Half, reason: str) -> None:
        """Lend nothing of it any more, and close it when the block of ``half`` ends."""
        half._duplex.harmed = True
        self._take_out(half._duplex, reason)
        self._fleet.grow()

    @enable_ki_protection
    def use_up(self, half: Half) -> None:
        """Lend nothing of it any more, and close it once all is returned."""
        self._take_out(half._duplex, "used up")
        self._fleet.grow()

    def _free(self, half: Half) -> None:
        duplex = half._duplex
        if duplex.reader is half:
            duplex.reader = None
        if duplex.writer is half:
            duplex.writer = None

    def _take_out(self, duplex: Duplex, reason: str) -> None:
        if duplex.out:
            return
        duplex.out = True
        self._unlist(duplex)
        claimant = self._release(duplex)
        self._fleet.take_out(duplex.entry, reason)
        if claimant is not None:
            self._seek_claim(claimant)

    def _end_use(self, duplex: Duplex) -> None:
        """Close a connection that is out, if that is not to wait for its other half."""
        if duplex.harmed:
            self._cut(duplex)
        else:
            self._retire_if_free(duplex)

    def _cut(self, duplex: Duplex) -> None:
        for half in (duplex.reader, duplex.writer):
            if half is not None:
                half._finish("cut")
        duplex.reader = duplex.writer = None
        self._retire_if_free(duplex)

    def _retire_if_free(self, duplex: Duplex) -> None:
        if duplex.reader is None and duplex.writer is None:
            self._supply.lent.pop(duplex.entry.key, None)
            self._supply.retire(duplex.entry, "discarded")
        # Not before: what became of the connection may be a reason for a pause.
        self._fleet.grow()

    # Bringing together

    def settle(self, entry: Entry[trio.abc.Stream]) -> None:
        """Lend what a new connection has, and keep the rest."""
        stream = adopt(entry.resource)
        half_closeable = isinstance(stream, trio.abc.HalfCloseableStream)
        whole = HalfCloseableBorrowedStream if half_closeable else BorrowedStream
        duplex = Duplex(entry, stream, whole, _find_probe(entry))
        entry.holder = duplex
        entry.detour = entry.watched_idle
        # Bytes that nobody asked for are what a reader waits for here.
        entry.aging = entry.stale = False
        self.duplexes[entry.key] = duplex
        self._settle(duplex)

    def _settle(self, duplex: Duplex) -> None:
        """Lend what is free of a connection to those who wait, the oldest first; list the rest."""
        if duplex.out:
            self._end_use(duplex)
            return
        self._unlist(duplex)
        ending = not duplex.ended and duplex.looks_ended()
        if ending:
            duplex.ended = True
            duplex.ended_at = trio.current_time()
        claimant = self._release(duplex) if duplex.ended else None
        while (loan := self._oldest_for(duplex)) is not None:
            if loan.wants == BOTH and (duplex.reader or duplex.writer) is not None:
                self._claim(duplex, loan)
                break
            self._hand_over(duplex, loan)
        self._list(duplex)
        if ending:
            # Those who can read it may; it is to be replaced all the same.
            self._fleet.take_out(duplex.entry, "dead")
            self._fleet.grow()
        if claimant is not None:
            self._seek_claim(claimant)

    def _oldest_for(self, duplex: Duplex) -> AnyLoan | None:
        """Return who comes next among those who can use what is free, or claim it."""
        readable = duplex.reader is None and (not duplex.ended or duplex.has_unread())
        writable = duplex.writer is None and not duplex.ended
        best: AnyLoan | None = None
        if readable and self._readers:
            best = _head(self._readers)
        if writable and self._writers:
            best = _older(best, _head(self._writers))
        if self._borrowers and not duplex.ended and (readable or writable):
            if readable and writable:
                best = _older(best, _head(self._borrowers))
            elif duplex.claim is not None:
                # Only those older than the claimant come before it.
                older = best is not None and best.number < duplex.claim.number
                return best if older else None
            else:
                best = _older(best, self._oldest_unclaimed())
        return best

    def _oldest_unclaimed(self) -> AnyLoan | None:
        if len(self.claimed) < len(self._borrowers):
            for loan in self._borrowers.tasks.values():
                if loan.claim is None:
                    return loan
        return None

    def _hand_over(self, duplex: Duplex, loan: AnyLoan) -> None:
        queue = self.queues[loan.wants]
        task = queue.oldest
        assert queue.tasks[task] is loan
        queue.hand_over(task, self._lend(duplex, loan.wants))
        if loan.wants == BOTH:
            self._swap_claims(duplex, loan)

    def _swap_claims(self, duplex: Duplex, loan: AnyLoan) -> None:
        """Take all claims off ``duplex``, and give the one that ``loan`` had to who loses his."""
        other = loan.claim
        claimant = self._release(duplex)
        if claimant is loan or other is duplex:
            return
        if other is not None:
            self._release(other)
            if claimant is not None:
                self._claim(other, claimant)
            # Somebody between the old claimant and the new one may come first now.
            self._settle(other)
        elif claimant is not None:
            self._seek_claim(claimant)

    def _claim(self, duplex: Duplex, loan: AnyLoan) -> None:
        self._unlist(duplex)
        duplex.claim, loan.claim = loan, duplex
        self.claimed[duplex.entry.key] = duplex

    def _release(self, duplex: Duplex) -> AnyLoan | None:
        claimant = cast("AnyLoan | None", duplex.claim)
        if claimant is not None:
            del self.claimed[duplex.entry.key]
            duplex.claim = claimant.claim = None
        return claimant

    def _seek_claim(self, loan: AnyLoan) -> None:
        """Keep a half of some connection for ``loan``, which waits for both."""
        for halves in (self.send_free, self.receive_free):
            for duplex in list(halves.values()):
                if self._still_there(duplex):
                    self._claim(duplex, loan)
                    return

    def _serve_first(self, task: Task) -> None:
        """Give somebody whose turn it was what is free, or kept for others."""
        for duplex in (
            *(cast("Duplex", entry.holder) for entry in list(self.idle.values())),
            *list(self.receive_free.values()),
            *list(self.send_free.values()),
            *list(self.ending.values()),
            *list(self.claimed.values()),
        ):
            if task not in self.everyone:
                return
            self._settle(duplex)

    def _left(self, loan: AnyLoan) -> None:
        """Take notice that somebody was cancelled while he waited."""
        duplex = loan.claim
        if duplex is not None:
            self._release(duplex)
            self._settle(duplex)

    # For the fleet

    def waiting(self) -> int:
        """How many tasks wait."""
        return len(self.everyone)

    def is_waiting(self, task: Task, since: float) -> bool:
        """Whether ``task`` still waits, as it does since then."""
        loan = self.everyone.get(task)
        return loan is not None and loan.since == since

    def needed(self, now: float, scale_after: float, most: int) -> int:
        """How many more connections those call for who have waited for ``scale_after``.

        One serves a reader and a writer.
        """
        overdue = {
            wants: sum(
                loan.since + scale_after <= now for loan in islice(queue.tasks.values(), most)
            )
            for wants, queue in self.queues.items()
        }
        return overdue[BOTH] + max(overdue[READ], overdue[WRITE])

    def hung_up(self, entry: Entry[trio.abc.Stream]) -> None:
        """Take notice that the peer of a watched connection has gone."""
        duplex = cast("Duplex", entry.holder)
        if not duplex.ended and not duplex.out:
            duplex.hung_up = True
            self._settle(duplex)

    def gone(self, entry: Entry[trio.abc.Stream]) -> None:
        """Forget a connection that is being closed."""
        self.duplexes.pop(entry.key, None)

    def sweep(self, now: float) -> float:
        """Close what its peer has ended and nobody has read for ``idle_timeout``."""
        due = math.inf
        for duplex in list(self.ending.values()):
            at = duplex.ended_at + self._idle_timeout
            if at > now:
                due = min(due, at)
            else:
                self._take_out(duplex, "dead")
                self._retire_if_free(duplex)
        return due

    def disown(self) -> None:
        """Forget all connections."""
        for duplexes in (self.receive_free, self.send_free, self.ending, self.duplexes):
            duplexes.clear()

    def fail_waiters(self, make_error: Callable[[], BaseException]) -> None:
        """Let everybody who waits hear why it is in vain."""
        for duplex in list(self.claimed.values()):
            self._release(duplex)
        for queue in self.queues.values():
            queue.fail_all(make_error)

    def stop(self) -> None:
        """Close everything that is lent, under its holders."""
        for duplex in list(self.duplexes.values()):
            for half in (duplex.reader, duplex.writer):
                if half is not None:
                    half._finish("ended")
            duplex.reader = duplex.writer = None
            self._supply.lent.pop(duplex.entry.key, None)
            scope = self._supply.retire(duplex.entry, "closed")
            if scope is not None:
                scope.cancel()

    # Telling

    def gave_up(self) -> int:
        """How many stopped waiting."""
        return sum(queue.gave_up for queue in self.queues.values())

    def lent(self, wants: int) -> int:
        """How many halves of a kind are lent; for `BOTH`, how many connections to one holder."""
        count = 0
        for entry in self._supply.lent.values():
            duplex = cast("Duplex", entry.holder)
            whole = duplex.reader is duplex.writer
            if wants == BOTH:
                count += whole
            else:
                half = duplex.reader if wants == READ else duplex.writer
                count += half is not None and not whole
        return count

    def _describe(self, timeout: float, error: Exception | None) -> str:
        fleet, supply = self._fleet, self._supply
        text = (
            f"nothing came free within {timeout:g} s: {fleet.size} of {fleet.plan.capacity} "
            f"connections ({len(supply.lent)} lent), {len(supply.dials)} connecting, "
            f"{len(self.everyone)} waiting"
        )
        return text if error is None else f"{text}; connecting failed last with {error!r}"


def _head(queue: WaitQueue[AnyLoan]) -> AnyLoan:
    return next(iter(queue.tasks.values()))


def _older(one: AnyLoan | None, other: AnyLoan | None) -> AnyLoan | None:
    if one is None or other is None:
        return one or other
    return one if one.number < other.number else other


def _find_probe(entry: Entry[trio.abc.Stream]) -> Callable[[], bool] | None:
    """Return how to ask a connection whether its peer has gone, if it has to be asked."""
    if entry.watched:
        return None
    if isinstance(entry.resource, Stream):
        return entry.resource.peer_closed
    # Where its socket cannot be watched, it cannot be asked either: it may be a virtual one.
    if entry.watched_idle and entry.socket is not None:
        return find_hangup_probe(entry.socket)
    return None
