"""`simulate`: a run of trio's in which a seed decides everything that is left to chance."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import operator
import random
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, final

import trio
import trio.testing

from .._streams.timeline import random_root
from ._run import current_run
from .entropy import seeded_entropy
from .problems import SimulationError
from .scheduler import reseed_scheduler, seeded_scheduler, why_unseeded
from .trace import Trace
from .wall_clock import virtual_wall_clock
from .watch import Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

__all__ = ("Run", "Simulation", "random_stream", "simulate", "simulated")

T = TypeVar("T")
P = ParamSpec("P")

# Virtual seconds, a day: what a run that has only timers left to wait for is given.
TIME_LIMIT: Final = 86_400.0
# Of the trace, in the note that a failure carries.
LAST_EVENTS: Final = 10

# The scheduler's generator, the clocks of `time` and `os.urandom` are the process's.
_one_at_a_time: Final = threading.Lock()


@final
@dataclass(frozen=True)
class Run(Generic[T]):
    """How a run of `simulate` went.

    Attributes:
      result: what ``main`` returned.
      trace: what happened on its `VirtualNetwork`; on the first, if it opened several.
      traces: what happened on each network, in the order in which their blocks were entered.
      seed: the seed.
      seeded: whether the seed decided the order of tasks, too; false with a trio whose scheduler
        cannot be seeded.
      time: how many virtual seconds the run took.
      steps: how many times a task was resumed.
    """

    result: T
    trace: Trace
    traces: tuple[Trace, ...]
    seed: int
    seeded: bool
    time: float
    steps: int
    _steps_digest: str = field(repr=False)

    @functools.cached_property
    def digest(self) -> str:
        """64 hexadecimal digits, equal for two runs that were equal.

        That is, in which the same tasks ran in the same order, and the same segments crossed the
        networks, all at the same times. Worked out when it is first asked for: a long trace takes
        as long as a fifth of its run.
        """
        return _digest(self._steps_digest, self.traces)


def _digest(steps: str, traces: Iterable[Trace]) -> str:
    digests = [steps, *(trace.digest() for trace in traces)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@final
class Simulation:
    """One run, before, while and after it takes place: what `simulate` and the plugin share."""

    def __init__(
        self,
        seed: int,
        *,
        wall_clock: bool = True,
        entropy: bool = True,
        time_limit: float | None = TIME_LIMIT,
        clock: trio.testing.MockClock | None = None,
        at_problem: Callable[[], None] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
          clock: a clock of the caller's own, with ``autojump_threshold=0``.
          at_problem: called when a `SimulationError` ends the run, before the program is
            cancelled; must not raise.

        The rest is as in `simulate`.
        """
        self.seed: int = operator.index(seed)
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit must be positive, or None, got {time_limit!r}")
        self.traces: list[Trace] = []
        self.seeded: bool = False
        self._wall_clock = wall_clock
        self._entropy = entropy
        self._streams: dict[str, random.Random] = {}
        self._system = self._generator("entropy")
        # Made here, outside of `virtual_wall_clock`: it takes the real clock that it finds.
        self._clock = trio.testing.MockClock(autojump_threshold=0) if clock is None else clock
        self._watch = Watch(self._clock, time_limit=time_limit, at_problem=at_problem)

    @property
    def time(self) -> float:
        """The virtual time, in seconds."""
        return self._clock.current_time()

    @property
    def steps(self) -> int:
        """How many times a task was resumed."""
        return self._watch.steps

    def register(self, trace: Trace) -> None:
        """Make ``trace`` part of the digest and of reports; a `VirtualNetwork` calls this."""
        self.traces.append(trace)

    def stream(self, name: str) -> random.Random:
        """Return the generator of that name: the same one each time."""
        if name not in self._streams:
            self._streams[name] = self._generator(f"program/{name}")
        return self._streams[name]

    def digest(self) -> str:
        """Return the digest of all steps and events so far."""
        return _digest(self.steps_digest(), self.traces)

    def steps_digest(self) -> str:
        """Return the digest of all steps so far, without the events on networks."""
        return self._watch.digest()

    def report(self, count: int = LAST_EVENTS) -> str:
        """Tell what was going on at the end: seed, time, and the last ``count`` events."""
        lines = [f"seed {self.seed}, virtual time {self.time:g} s, {self.steps} task steps"]
        if (why := why_unseeded()) is not None:
            lines.append(f"The seed does not decide everything: {why}.")
        for trace in self.traces:
            lines += [f"The last events of {len(trace) + trace.forgotten} on the network:"]
            lines += [f"  {event}" for event in trace.tail(count)]
        return "\n".join(lines)

    def restart(self) -> None:
        """Let the seed begin anew, within the run: whatever came before has no part in it.

        Whoever runs a test after fixtures that were set up in no certain order calls this.
        """
        self._streams.clear()
        if self.seeded:
            reseed_scheduler(self._generator("scheduler"))
        if self._entropy:
            self._system.setstate(self._generator("entropy").getstate())
            random.setstate(self._generator("random").getstate())
        self._watch.restart()

    def run(
        self,
        main: Callable[..., Awaitable[T]],
        *args: Any,
        instruments: Sequence[trio.abc.Instrument] = (),
    ) -> T:
        """Run ``main(*args)``, once only.

        Raises what `simulate` raises.
        """
        if not _one_at_a_time.acquire(blocking=False):
            raise RuntimeError("another simulation runs in this process, one at a time can")
        try:
            with contextlib.ExitStack() as world:
                self.seeded = world.enter_context(seeded_scheduler(self._generator("scheduler")))
                if self._entropy:
                    world.enter_context(seeded_entropy(self._system, self._generator("random")))
                if self._wall_clock:
                    world.enter_context(virtual_wall_clock(self._clock))
                return trio.run(
                    functools.partial(self._watched, main, *args),
                    clock=self._clock,
                    instruments=[self._watch, *instruments],
                )
        finally:
            _one_at_a_time.release()

    async def _watched(self, main: Callable[..., Awaitable[T]], *args: Any) -> T:
        current_run.set(self)
        # For the links of memory names, which no virtual network seeds.
        random_root.set(self.seed)
        try:
            with trio.CancelScope() as scope:
                self._watch.begin(scope, _name_of(main))
                result = await main(*args)
        except BaseException as exc:
            if self._watch.problem is None or _ends_the_process(exc):
                raise
            # What else is in it is what the program made of being ended.
            raise self._watch.problem from _without_problems(exc)
        if self._watch.problem is not None:
            raise self._watch.problem
        return result

    def _generator(self, name: str) -> random.Random:
        # Seeded by SHA-512 of the text, which no PYTHONHASHSEED has a part in. By name, so that
        # whoever needs one more shifts nobody else's.
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - not a secret


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _ends_the_process(exc: BaseException) -> bool:
    ends = KeyboardInterrupt, SystemExit
    if isinstance(exc, BaseExceptionGroup):
        return exc.subgroup(ends) is not None
    return isinstance(exc, ends)


def _without_problems(exc: BaseException) -> BaseException | None:
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(SimulationError)[1]
    return None if isinstance(exc, SimulationError) else exc


def simulate(
    main: Callable[..., Awaitable[T]],
    *args: Any,
    seed: int = 0,
    wall_clock: bool = True,
    entropy: bool = True,
    time_limit: float | None = TIME_LIMIT,
) -> Run[T]:
    """Run ``main(*args)`` as `trio.run` does, with virtual time and nothing left to chance.

    Time jumps to the next deadline when every task waits, so that hours take milliseconds. The
    order of tasks is drawn from the seed, and so is all that a `VirtualNetwork` in ``main``
    decides by chance, unless that has a seed of its own. Equal seeds give equal runs, on one
    machine with one set of versions, also in another process. What arrives at the very moment at
    which a cancel scope ends has arrived before. What trio itself takes from memory addresses is
    left: which of several scopes that end at the same moment ends first; and so is the moment at
    which the garbage collector finds an async generator that nobody ended.

    A thread of ``trio.to_thread`` takes no virtual time, but real time, and several at once finish
    in an order that no seed decides. A run of trio's in another thread would take its part of the
    scheduler's chance: have none meanwhile.

    Args:
      seed: any integer.
      wall_clock: let ``time.time``, ``time.monotonic`` and their kin in this thread show virtual
        time, from 1 January 2030 or 0, and ``time.sleep`` move it. ``datetime.now()`` is not
        reached.
      entropy: let ``os.urandom``, ``uuid.uuid4``, ``secrets`` and the functions of ``random`` in
        this thread draw from the seed.
      time_limit: virtual seconds after which the run is ended; a day, which no run needs unless
        it has nothing but timers left. None: no limit.

    Raises:
      Deadlock: every task waits, for nothing.
      EscapeError: a task waits for a real socket.
      OutrunError: a thread takes more than five real seconds.
      TimeLimitError: the time limit was reached.
      RuntimeError: this is a run already, or another simulation takes place in this process.

    What ``main`` raises leaves as it is, with a note that tells the seed and the last events on
    the network. Where trio's scheduler cannot be seeded, a `RuntimeWarning` says so, and the run
    takes place without.
    """
    simulation = Simulation(seed, wall_clock=wall_clock, entropy=entropy, time_limit=time_limit)
    if (why := why_unseeded()) is not None:
        warnings.warn(f"{why}; simulate() goes on without", RuntimeWarning, stacklevel=2)
    try:
        result = simulation.run(main, *args)
    except Exception as exc:
        exc.add_note(simulation.report())
        raise
    traces = tuple(simulation.traces)
    return Run(
        result=result,
        trace=traces[0] if traces else Trace(),
        traces=traces,
        seed=simulation.seed,
        seeded=simulation.seeded,
        time=simulation.time,
        steps=simulation.steps,
        _steps_digest=simulation.steps_digest(),
    )


def simulated(
    *,
    seeds: int | Iterable[int] = 20,
    wall_clock: bool = True,
    entropy: bool = True,
    time_limit: float | None = TIME_LIMIT,
) -> Callable[[Callable[P, Awaitable[object]]], Callable[P, None]]:
    """Make a test of an async function: `simulate` it with one seed after another.

    ::

        @simulated(seeds=50)
        async def test_nothing_is_lost() -> None:
            async with VirtualNetwork() as net: ...

    The first seed that fails ends it; the exception has a note that tells which. To replay it, ask
    for that one: ``@simulated(seeds=[7])``.

    Args:
      seeds: how many, from 0 on; or which.

    The rest is as in `simulate`.
    """
    chosen = [operator.index(seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds)]
    if not chosen:
        raise ValueError(f"seeds must be at least one, got {seeds!r}")

    def decorate(function: Callable[P, Awaitable[object]]) -> Callable[P, None]:
        @functools.wraps(function)
        def test(*args: P.args, **kwargs: P.kwargs) -> None:
            for seed in chosen:
                simulate(
                    functools.partial(function, *args, **kwargs),
                    seed=seed,
                    wall_clock=wall_clock,
                    entropy=entropy,
                    time_limit=time_limit,
                )

        return test

    return decorate


def random_stream(name: str) -> random.Random:
    """Return the generator of that name in this run, for what a test itself leaves to chance.

    Each name has its own, which the run's seed determines: what others draw does not shift it.

    Raises:
      RuntimeError: this is not a run of `simulate`.
    """
    run = current_run.get()
    if not isinstance(run, Simulation):
        raise RuntimeError("random_stream() is for what simulate() runs")
    return run.stream(name)
