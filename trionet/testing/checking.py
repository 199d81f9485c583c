"""What the conformance suites are made of: expectations that name the rule they are about."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, final

import trio
import trio.testing

from .._errors import Ungrouped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from types import TracebackType

__all__ = (
    "PATIENCE",
    "Attempt",
    "Named",
    "Raises",
    "bounded",
    "checkpointed",
    "ends",
    "eventually",
    "expect",
    "interrupted",
    "nursery_of_check",
    "receive_exactly",
    "settle",
    "sweep",
    "talk",
    "who_is",
)

# Seconds after which a wait that ought to end is a failure. Virtual under a mock clock; in real
# time far more than a loopback or a handshake takes on a busy machine.
PATIENCE: Final = 5.0

# Real seconds of silence after which the kernel is taken to have passed on what it was given.
CUSHION: Final = 0.002

# No operation takes so many steps; whoever reaches it is not getting anywhere.
MAX_STEPS: Final = 100


def expect(holds: bool, rule: str) -> None:
    """Raise AssertionError with ``rule`` as its message unless it holds."""
    if not holds:
        raise AssertionError(rule)


@final
class Raises:
    """Expect one of some exceptions: ``with Raises(trio.BusyResourceError, rule="..."):``."""

    __slots__ = ("_kinds", "_rule")

    def __init__(self, *kinds: type[BaseException], rule: str) -> None:
        self._kinds = kinds
        self._rule = rule

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if isinstance(exception, self._kinds):
            return True
        if exception is None:
            raise AssertionError(f"{self._rule}; nothing was raised")
        if isinstance(exception, AssertionError) or not isinstance(exception, Exception):
            return False
        raise AssertionError(f"{self._rule}; {exception!r} was raised") from exception


@contextmanager
def bounded(rule: str) -> Iterator[None]:
    """Give the block `PATIENCE` to end by itself."""
    with trio.move_on_after(PATIENCE) as scope:
        yield
    if scope.cancelled_caught:
        raise AssertionError(f"{rule}; it still waited after {PATIENCE:g} s")


@contextmanager
def checkpointed(rule: str) -> Iterator[None]:
    """Expect the block to execute a full checkpoint: a cancel point and a schedule point."""
    try:
        with trio.testing.assert_checkpoints():
            yield
    except AssertionError as exc:
        if "assert_checkpoints" not in str(exc):
            raise
        raise AssertionError(rule) from exc


@final
class Named:
    """Say which check it is that fails: ``with Named("check_listener", check):``.

    Whatever leaves the block as an exception leaves as AssertionError, since a check says of what
    it expects that it does, and with a note that names the check.
    """

    __slots__ = ("_note", "_rule")

    def __init__(self, suite: str, check: Callable[..., object]) -> None:
        self._rule = (check.__doc__ or "").splitlines()[0]
        self._note = f"in {suite}, {check.__name__}: {self._rule}"

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(exception, Exception):
            return
        failure = _first_failure(exception)
        if not isinstance(failure, AssertionError):
            failure = AssertionError(f"{self._rule} But {failure!r} was raised")
        failure.add_note(self._note)
        if failure is not exception:
            raise failure from exception


def _first_failure(exception: Exception) -> Exception:
    """Return the one exception that tells what is wrong, out of a group."""
    if not isinstance(exception, ExceptionGroup):
        return exception
    leaves = [_first_failure(one) for one in exception.exceptions]
    return next((one for one in leaves if isinstance(one, AssertionError)), leaves[0])


@asynccontextmanager
async def nursery_of_check() -> AsyncIterator[trio.Nursery]:
    """Open a nursery from which a single failure leaves as itself, and which ends with its body."""
    with Ungrouped():
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()


async def settle() -> None:
    """Let every task go as far as it can without time passing."""
    await trio.testing.wait_all_tasks_blocked(CUSHION)


async def eventually(holds: Callable[[], bool], rule: str) -> None:
    """Wait until a state of the outside world holds.

    It sleeps and looks again: what a stream can be asked without waiting, nobody announces.
    """
    with bounded(rule):
        pause = 0.0
        while not holds():
            await trio.sleep(pause)
            pause = min(0.05, 2 * pause + 0.001)


@final
class _Watch(trio.abc.Instrument):
    """Calls ``action`` after the n-th step that the watched tasks take, all together."""

    def __init__(self, n: int, action: Callable[[], object]) -> None:
        self._left = n
        self._action = action
        self.tasks: set[trio.lowlevel.Task] = set()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a step."""
        if task in self.tasks:
            self._left -= 1
            if self._left == 0:
                self._action()


@final
@dataclass
class Attempt:
    """How an `interrupted` operation went.

    Attributes:
      finished: it returned, cancelled or not.
      result: what it returned.
      cancelled: the cancellation was in time to be seen.
      then: what ``then`` returned.
    """

    finished: bool = False
    result: Any = None
    cancelled: bool = False
    then: Any = None


async def interrupted(
    n: int,
    operation: Callable[[], Awaitable[Any]],
    *,
    then: Callable[[], Awaitable[Any]] | None = None,
) -> Attempt:
    """Run ``operation`` and cancel it after the n-th step; 0 cancels it before it starts.

    Args:
      n: counts the steps of the operation's task, and of the one that runs ``then``.
      operation: what to cancel.
      then: what lets it finish, run once it has come to wait. Never cancelled.
    """
    attempt = Attempt()
    scope = trio.CancelScope()
    watch = _Watch(n, scope.cancel)
    if n == 0:
        scope.cancel()

    async def run() -> None:
        watch.tasks.add(trio.lowlevel.current_task())
        with scope:
            attempt.result = await operation()
            attempt.finished = True

    async def run_then(action: Callable[[], Awaitable[Any]]) -> None:
        watch.tasks.add(trio.lowlevel.current_task())
        attempt.then = await action()

    trio.lowlevel.add_instrument(watch)
    try:
        with Ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                if then is not None:
                    await settle()
                    nursery.start_soon(run_then, then)
    finally:
        trio.lowlevel.remove_instrument(watch)
    attempt.cancelled = scope.cancel_called
    return attempt


async def sweep(attempt: Callable[[int], Awaitable[Attempt]]) -> None:
    """Run ``attempt`` with 0, 1, 2 ... until the cancellation comes too late."""
    for n in range(MAX_STEPS):
        made = await attempt(n)
        if made.finished and not made.cancelled:
            return
    raise AssertionError(f"it had not finished after {MAX_STEPS} steps of its task")


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """Receive ``size`` bytes, or what comes before end of file."""
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


PING, PONG = b"from the dialler", b"and back again"


async def talk(dialled: trio.abc.Stream, accepted: trio.abc.Stream) -> None:
    """Send a few bytes both ways, all at once: over TLS, neither side may wait for the other.

    The dialler sends `PING`, the acceptor `PONG`.
    """
    rule = "an accepted connection must carry bytes to and from its dialler"

    async def send(stream: trio.abc.Stream, data: bytes) -> None:
        await stream.send_all(data)

    async def receive(stream: trio.abc.Stream, data: bytes) -> None:
        got = await receive_exactly(stream, len(data))
        expect(got == data, f"{rule}; {got!r} came instead of {data!r}")

    with bounded(rule), Ungrouped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, dialled, PING)
            nursery.start_soon(receive, accepted, PING)
            nursery.start_soon(send, accepted, PONG)
            nursery.start_soon(receive, dialled, PONG)


async def who_is(accepted: trio.abc.Stream, dialled: Sequence[trio.abc.Stream]) -> int:
    """Return which of ``dialled`` is the other end of ``accepted``.

    Each dialler sends its number. Asked again, those that were not received yet are the same.
    """

    async def send(number: int, stream: trio.abc.Stream) -> None:
        try:
            await stream.send_all(bytes([number]))
        except (trio.BrokenResourceError, trio.BusyResourceError):
            return

    async def receive(stream: trio.abc.Stream) -> None:
        try:
            # What a handshake sends after it: over a rendezvous the acceptor waits for its reader.
            await stream.receive_some()
        except (trio.BrokenResourceError, trio.BusyResourceError):
            return

    async with nursery_of_check() as nursery:
        for number, stream in enumerate(dialled):
            nursery.start_soon(send, number, stream)
            nursery.start_soon(receive, stream)
        rule = "an accepted connection must have a dialler at its other end"
        with bounded(rule):
            data = await accepted.receive_some(1)
        expect(len(data) == 1 and data[0] < len(dialled), f"{rule}; {data!r} came from it")
    return data[0]


async def ends(stream: trio.abc.Stream, rule: str) -> None:
    """Expect ``stream`` to end, by end of file or by a reset, without a byte."""
    with bounded(rule):
        try:
            data = await stream.receive_some()
        except trio.BrokenResourceError:
            return
    expect(not data, f"{rule}; {data!r} came")
