"""The set of connections heals, grows, shrinks, and tells of it."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.mux.wires import Exchange
from trionet import Backoff, Multiplexer, MultiplexerEvent, PoolTimeoutError

STEADY = Backoff(first=0.5, maximum=2.0, jitter=0)


class Log:
    """Remembers events as ``(time, kind, size)``."""

    def __init__(self) -> None:
        self.events: list[MultiplexerEvent] = []

    def __call__(self, event: MultiplexerEvent) -> None:
        self.events.append(event)

    @property
    def lines(self) -> list[tuple[float, str, int]]:
        return [(event.at, event.kind, event.size) for event in self.events]

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


async def hold(call: Any, seconds: float, served: list[float] | None = None) -> None:
    async with call():
        if served is not None:
            served.append(trio.current_time())
        await trio.sleep(seconds)


async def test_the_first_waiter_dials_at_once_and_nobody_dials_before(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange(connect_time=1)
    served: list[float] = []
    async with Multiplexer(exchange.connect) as plex, trio.open_nursery() as nursery:
        await trio.sleep(5)
        assert exchange.dialled_at == []
        nursery.start_soon(hold, plex.reader, 1, served)
        nursery.start_soon(hold, plex.writer, 1, served)

    assert exchange.dialled_at == [5]
    assert served == [6, 6]


async def test_without_scale_after_the_set_does_not_grow(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    async with Multiplexer(exchange.connect, capacity=9) as plex, trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hold, plex.borrow, 1)

    assert trio.current_time() == 5
    assert exchange.most == 1


async def test_each_waiter_older_than_scale_after_calls_for_one_more(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange(connect_time=1)
    served: list[float] = []
    plex = Multiplexer(exchange.connect, capacity=4, scale_after=2)
    async with plex, trio.open_nursery() as nursery:
        nursery.start_soon(hold, plex.borrow, 100, served)
        await trio.sleep(2.5)
        for _ in range(5):
            nursery.start_soon(hold, plex.borrow, 100, served)
            await trio.sleep(0.25)
        # The first at 0; the others when each next one had waited for 2 s, until there were 4.
        await trio.sleep(10)
        assert exchange.dialled_at == [0, 4.5, 4.75, 5.0]
        assert served == [1, 5.5, 5.75, 6.0]
        now = plex.statistics()
        assert (now.strength, now.size, now.waiting, now.scaled_up) == (4, 4, 2, 3)
        nursery.cancel_scope.cancel()


async def test_one_more_connection_serves_a_reader_and_a_writer(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    plex = Multiplexer(exchange.connect, capacity=9, scale_after=1)
    async with plex, trio.open_nursery() as nursery:
        for call in (plex.borrow, plex.reader, plex.writer, plex.reader):
            nursery.start_soon(hold, call, 10)
            await wait_all_tasks_blocked()
        await trio.sleep(2)
        assert exchange.dialled_at == [0, 1, 1]
        assert plex.statistics().waiting == 0


async def test_scale_after_zero_grows_at_once_and_never_beyond_the_capacity(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange(connect_time=1)
    plex = Multiplexer(exchange.connect, capacity=10, scale_after=0)
    async with plex, trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(hold, plex.borrow, 1)

    assert exchange.most == 10
    assert trio.current_time() == 4


async def test_who_is_served_in_time_calls_for_nothing(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    plex = Multiplexer(exchange.connect, capacity=5, scale_after=1)
    async with plex:
        for _ in range(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold, plex.borrow, 0.5)
                nursery.start_soon(hold, plex.borrow, 0.4)

    assert exchange.most == 1


async def test_what_is_not_needed_goes_and_what_was_given_stays(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    log = Log()
    plex = Multiplexer(
        exchange.connect,
        streams=[exchange.make(), exchange.make()],
        capacity=5,
        scale_after=0,
        idle_timeout=10,
        on_event=log,
    )
    async with plex:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hold, plex.borrow, 1)
        assert plex.statistics().idle == 5
        await trio.sleep(5)
        async with plex.borrow():
            pass
        await trio.sleep(4.9)
        assert plex.statistics().idle == 5
        await trio.sleep(0.2)
        now = plex.statistics()
        assert (now.idle, now.strength, now.scaled_down) == (2, 2, 3)
        await trio.sleep(100)
        assert plex.statistics().idle == 2

    assert log.lines[-3:] == [(11, "scaled_down", size) for size in (4, 3, 2)]
    assert [wire.closes for wire in exchange.wires] == [1] * 5


async def test_a_set_of_its_own_making_shrinks_to_nothing_and_begins_anew(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    async with Multiplexer(exchange.connect, idle_timeout=10) as plex:
        await hold(plex.borrow, 0)
        await trio.sleep(11)
        assert plex.statistics().size == plex.statistics().strength == 0
        await hold(plex.borrow, 0)

    assert exchange.dialled_at == [0, 11]


async def test_a_lost_connection_is_replaced_and_told_of(autojump_clock: MockClock) -> None:
    exchange = Exchange(connect_time=1)
    log = Log()
    async with Multiplexer(exchange.connect, on_event=log) as plex:
        async with plex.borrow() as stream:
            await trio.sleep(1)
            await stream.aclose()
        await trio.sleep(5)
        now = plex.statistics()
        assert (now.idle, now.lost, now.healed, now.connected) == (1, 1, 1, 2)
        assert now.reasons == {"discarded": 1}

    assert log.lines == [
        (1, "connected", 1),
        (2, "lost", 0),
        (3, "connected", 1),
        (3, "healed", 1),
    ]
    assert [event.reason for event in log.events] == ["", "discarded", "", ""]


async def test_a_set_that_was_lost_whole_comes_back_whole_spaced_by_the_backoff(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    log = Log()
    plex = Multiplexer(
        exchange.connect,
        streams=[exchange.make() for _ in range(3)],
        backoff=STEADY,
        on_event=log,
    )
    async with plex:
        await trio.sleep(10)
        exchange.fail = OSError("refused")
        loans: list[Any] = [plex.borrow() for _ in range(3)]
        for loan in loans:
            await loan.__aenter__()
        for loan in loans:
            await (await_half(loan)).aclose()
        await trio.sleep(6)
        # One at a time while nobody waits, after 0.5, 1, 2 and 2 seconds.
        assert exchange.dialled_at == [10, 10.5, 11.5, 13.5, 15.5]
        assert plex.statistics().size == 0
        exchange.fail = None
        await trio.sleep(2)
        assert plex.statistics().idle == 3
        assert plex.statistics().healed == 1

    assert log.kinds == ["connected"] * 3 + ["lost"] * 3 + ["connected"] * 3 + ["healed"]
    assert log.events[-1].at == 17.5
    assert log.events[5].size == 0


def await_half(loan: Any) -> Any:
    """Return what a loan has lent."""
    return loan._half


async def test_one_failure_empties_nothing_and_waiters_are_told_by_their_own_timeout(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    plex = Multiplexer(exchange.connect, capacity=3, scale_after=0, backoff=STEADY)
    told: list[float] = []

    async def wait(timeout: float) -> None:
        with pytest.raises(PoolTimeoutError) as caught:
            async with plex.borrow(timeout=timeout):
                pass
        assert caught.value.__cause__ is exchange.fail
        told.append(trio.current_time())

    async with plex, trio.open_nursery() as nursery:
        async with plex.borrow():
            exchange.fail = OSError("refused")
            for timeout in (3, 1, 2):
                nursery.start_soon(wait, timeout)
            await trio.sleep(4)
        assert plex.statistics().idle == 1
        assert told == [1, 2, 3]
        assert plex.statistics().connect_failures > 1


async def test_backoff_attempts_do_not_fail_a_waiter(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    exchange.fail = OSError("refused")

    async def mend() -> None:
        await trio.sleep(9)
        exchange.fail = None

    backoff = Backoff(first=1, factor=1, jitter=0, attempts=1)
    async with (
        Multiplexer(exchange.connect, backoff=backoff) as plex,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(mend)
        async with plex.borrow():
            assert trio.current_time() in {9, 10}


async def test_a_dial_that_hangs_is_given_up_after_ten_seconds(autojump_clock: MockClock) -> None:
    exchange = Exchange(connect_time=1000)
    async with Multiplexer(exchange.connect) as plex:
        with pytest.raises(PoolTimeoutError, match="connecting took too long"):
            async with plex.borrow(timeout=10.2):
                pass
        assert plex.statistics().connect_failures == 1


async def test_a_dial_outlives_who_asked_for_it(autojump_clock: MockClock) -> None:
    exchange = Exchange(connect_time=3)
    async with Multiplexer(exchange.connect) as plex:
        for _ in range(2):
            with pytest.raises(PoolTimeoutError):
                async with plex.reader(timeout=1):
                    pass
        async with plex.reader(timeout=1.5):
            assert trio.current_time() == 3
    assert exchange.dialled_at == [0]


async def test_what_nobody_misses_for_long_is_not_brought_back_for_ever(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    plex = Multiplexer(exchange.connect, capacity=2, idle_timeout=20, backoff=STEADY)
    async with plex:
        async with plex.borrow() as stream:
            await trio.sleep(2)
            exchange.fail = OSError("refused")
            await stream.aclose()
        await trio.sleep(100)
        assert plex.statistics().strength == 0
        assert exchange.dialled_at[-1] < 25
        exchange.fail = None
        async with plex.borrow():
            pass


async def test_what_somebody_waits_for_is_tried_for_ever(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    exchange.fail = OSError("refused")
    plex = Multiplexer(exchange.connect, streams=[exchange.make()], idle_timeout=20, backoff=STEADY)

    async def mend() -> None:
        await trio.sleep(1000)
        exchange.fail = None

    async with plex, trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        async with plex.borrow() as stream:
            await stream.aclose()
        async with plex.borrow():
            assert 1000 <= trio.current_time() <= 1002
        assert plex.statistics().healed == 1


async def test_what_was_given_is_brought_back_for_ever(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    plex = Multiplexer(exchange.connect, streams=[exchange.make()], idle_timeout=5, backoff=STEADY)
    async with plex:
        exchange.fail = OSError("refused")
        async with plex.borrow() as stream:
            await stream.aclose()
        await trio.sleep(1000)
        exchange.fail = None
        await trio.sleep(2)
        now = plex.statistics()
        assert (now.idle, now.strength, now.healed) == (1, 1, 1)


async def test_a_peer_that_hangs_up_at_once_is_not_dialled_in_a_hurry(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    exchange.on_connect = lambda wire: wire.far.close()
    async with Multiplexer(exchange.connect, backoff=STEADY) as plex:
        with pytest.raises(PoolTimeoutError, match="the peer hung up before any use"):
            async with plex.writer(timeout=6):
                pass
        assert exchange.dialled_at == [0, 0.5, 1.5, 3.5, 5.5]


# on_event


async def test_on_event_may_do_what_it_likes_to_the_multiplexer() -> None:
    exchange = Exchange()
    seen: list[str] = []

    def on_event(event: MultiplexerEvent) -> None:
        seen.append(event.kind)
        if event.kind == "lost":
            assert plex.statistics().size <= 2
            assert plex.add(exchange.make()) == []

    plex = Multiplexer(streams=[exchange.make()], capacity=2, on_event=on_event)
    async with plex:
        async with plex.borrow() as stream:
            await stream.aclose()
        await wait_all_tasks_blocked()
        assert plex.statistics().idle == 1

    assert seen == ["connected", "lost", "connected"]


async def test_what_on_event_raises_ends_the_block_and_leaves_as_itself() -> None:
    def on_event(event: MultiplexerEvent) -> None:
        raise KeyError(event.kind)

    exchange = Exchange()
    with pytest.raises(KeyError) as caught:
        async with Multiplexer(exchange.connect, on_event=on_event) as plex, plex.borrow():
            await trio.sleep_forever()
    assert caught.value.args == ("connected",)
    assert exchange.open == []


async def test_the_end_is_no_loss(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    log = Log()
    plex = Multiplexer(exchange.connect, streams=[exchange.make()], capacity=2, on_event=log)
    async with plex, plex.borrow():
        pass
    assert log.kinds == ["connected"]
    assert plex.statistics().reasons == {"closed": 1}
