"""A multiplexer of yamux sessions: streams on the least loaded, and sessions that come and go."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import trionet
from tests.mux.test_fleet import STEADY, Log
from tests.mux.wires import Wire
from trionet import Multiplexer, MuxConfig, MuxStream, PoolClosedError, PoolTimeoutError

SMALL = MuxConfig(max_outbound_streams=4, keepalive=None)


class Farm:
    """Servers of sessions, one for each dial, that echo what comes on each stream.

    Attributes:
      sessions: those that were ever begun.
      fail: what connecting raises, if anything.
    """

    def __init__(self, nursery: trio.Nursery, *, connect_time: float = 0.0) -> None:
        self.nursery = nursery
        self.connect_time = connect_time
        self.fail: Exception | None = None
        self.dialled_at: list[float] = []
        self.near: list[trionet.MemoryStream] = []
        self.sessions: list[trionet.MuxSession] = []
        self.scopes: list[trio.CancelScope] = []

    async def connect(self) -> trionet.MemoryStream:
        """Connect; to be given to a multiplexer."""
        self.dialled_at.append(trio.current_time())
        await trio.sleep(self.connect_time)
        if self.fail is not None:
            raise self.fail
        return self.make()

    def make(self) -> trionet.MemoryStream:
        """Begin a server at once, and return its client's end."""
        near, far = trionet.memory_stream_pair(1 << 16)
        self.near.append(near)
        self.nursery.start_soon(self._serve, far)
        return near

    async def _serve(self, far: trio.abc.Stream) -> None:
        with trio.CancelScope() as scope:
            self.scopes.append(scope)
            async with trionet.open_mux(far, role="server", config=QUIET) as session:
                self.sessions.append(session)
                async with trio.open_nursery() as nursery:
                    try:
                        while True:
                            nursery.start_soon(self._echo, await session.listener().accept())
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        pass

    async def _echo(self, stream: MuxStream) -> None:
        try:
            async with stream:
                async for data in stream:
                    await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    @property
    def loads(self) -> list[int]:
        """How many streams each session carries."""
        return [session.statistics().opened_there for session in self.sessions]

    @property
    def open(self) -> int:
        """How many client ends are open."""
        return sum(not near.closed for near in self.near)


QUIET = MuxConfig(keepalive=None)


async def echo(stream: MuxStream, data: bytes = b"x") -> None:
    await stream.send_all(data)
    assert await stream.receive_some() == data


@pytest.fixture
async def farm(nursery: trio.Nursery) -> Farm:
    return Farm(nursery)


async def test_streams_are_opened_on_the_session_that_has_the_fewest(farm: Farm) -> None:
    streams: list[MuxStream] = []
    given = [farm.make() for _ in range(3)]
    async with Multiplexer(streams=given, mux=QUIET) as plex:
        for _ in range(9):
            streams.append(await plex.open_stream())
            await echo(streams[-1])
        assert farm.loads == [3, 3, 3]
        now = plex.statistics()
        assert (now.streams, now.lent, now.idle, now.acquired) == (9, 3, 0, 9)
        # Two of one session's end: it is the one to be used next.
        for stream in (streams[0], streams[3]):
            await stream.aclose()
        await wait_all_tasks_blocked()
        assert sorted(farm.loads) == [1, 3, 3]
        for _ in range(2):
            streams.append(await plex.open_stream())
            await echo(streams[-1])
        assert farm.loads == [3, 3, 3]
    assert farm.open == 0
    await wait_all_tasks_blocked()


async def test_what_is_asked_one_after_the_other_stays_on_one_session(farm: Farm) -> None:
    used = set()
    async with Multiplexer(streams=[farm.make() for _ in range(3)], mux=QUIET) as plex:
        for _ in range(10):
            async with await plex.open_stream() as stream:
                used.add(stream._driver)
                await echo(stream)

    assert len(used) == 1


async def test_the_first_stream_dials_and_a_session_without_streams_goes_with_time(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    farm = Farm(nursery, connect_time=1)
    async with Multiplexer(farm.connect, mux=QUIET, idle_timeout=10) as plex:
        async with await plex.open_stream(weight=3) as stream:
            assert stream.weight == 3
            assert trio.current_time() == 1
            await echo(stream)
            await trio.sleep(50)
        await wait_all_tasks_blocked()
        assert plex.statistics().idle == 1
        await trio.sleep(9.9)
        assert plex.statistics().size == 1
        await trio.sleep(0.2)
        assert plex.statistics().size == 0
        async with await plex.open_stream() as stream:
            await echo(stream)
    assert farm.open == 0


async def test_who_finds_all_sessions_full_is_served_in_turn(farm: Farm) -> None:
    served: list[int] = []

    async def ask(number: int) -> None:
        async with await plex.open_stream() as stream:
            served.append(number)
            await wait_all_tasks_blocked()
            await echo(stream)

    given = [farm.make()]
    async with Multiplexer(streams=given, mux=SMALL) as plex, trio.open_nursery() as nursery:
        held = [await plex.open_stream() for _ in range(4)]
        for number in range(3):
            nursery.start_soon(ask, number)
            await wait_all_tasks_blocked()
        assert served == []
        assert plex.statistics().waiting == 3
        for stream in held:
            await stream.aclose()
            await wait_all_tasks_blocked()

    assert served == [0, 1, 2]


async def test_it_grows_when_all_are_near_their_limit_before_anybody_waits(farm: Farm) -> None:
    plex = Multiplexer(
        farm.connect,
        capacity=3,
        scale_after=5,
        mux=MuxConfig(max_outbound_streams=10, keepalive=None),
    )
    async with plex:
        streams = []
        for count in range(1, 8):
            streams.append(await plex.open_stream())
            await wait_all_tasks_blocked()
            assert plex.statistics().size == 1, count
        streams.append(await plex.open_stream())
        await wait_all_tasks_blocked()
        now = plex.statistics()
        assert (now.size, now.scaled_up, now.waiting) == (2, 1, 0)
        # Streams go where there are fewer, until these are near their limit, too.
        for _ in range(8):
            streams.append(await plex.open_stream())
            await wait_all_tasks_blocked()
        now = plex.statistics()
        assert (now.size, now.streams, now.scaled_up) == (3, 16, 2)


async def test_without_scale_after_it_does_not_grow(autojump_clock: MockClock, farm: Farm) -> None:
    async with Multiplexer(farm.connect, capacity=3, mux=SMALL) as plex:
        streams = [await plex.open_stream() for _ in range(4)]
        with pytest.raises(PoolTimeoutError, match="1 of 3 sessions"):
            await plex.open_stream(timeout=5)
        assert plex.statistics().timed_out == 1
        assert plex.statistics().streams == len(streams)


async def test_a_session_whose_peer_goes_away_is_replaced_and_its_streams_end_in_peace(
    autojump_clock: MockClock, farm: Farm
) -> None:
    log = Log()
    async with Multiplexer(farm.connect, mux=QUIET, on_event=log) as plex:
        old = await plex.open_stream()
        await echo(old)
        farm.nursery.start_soon(farm.sessions[0].drain)
        await wait_all_tasks_blocked()
        # There is another one already, although only one is allowed, and nobody has lost anything.
        now = plex.statistics()
        assert (now.size, now.leaving, now.capacity) == (2, 1, 1)
        new = await plex.open_stream()
        await echo(new)
        await echo(old, b"still here")
        assert farm.loads == [1, 1]
        await old.aclose()
        await trio.sleep(1)
        now = plex.statistics()
        assert (now.size, now.leaving, now.lost, now.healed) == (1, 0, 1, 1)
        assert farm.near[0].closed
        await echo(new)
        await new.aclose()

    assert [(e.kind, e.reason) for e in log.events] == [
        ("connected", ""),
        ("lost", "going away"),
        ("connected", ""),
        ("healed", ""),
    ]


async def test_an_idle_session_whose_peer_goes_away_is_closed_at_once(farm: Farm) -> None:
    async with Multiplexer(farm.connect, mux=QUIET) as plex:
        async with await plex.open_stream() as stream:
            await echo(stream)
        await wait_all_tasks_blocked()
        farm.nursery.start_soon(farm.sessions[0].drain)
        await wait_all_tasks_blocked()
        now = plex.statistics()
        assert (now.size, now.leaving, now.idle) == (1, 0, 1)
        assert now.reasons == {"going away": 1}


async def test_a_session_that_breaks_is_replaced_and_its_streams_say_so(farm: Farm) -> None:
    log = Log()
    async with Multiplexer(farm.connect, mux=QUIET, backoff=STEADY, on_event=log) as plex:
        stream = await plex.open_stream()
        await echo(stream)
        farm.scopes[0].cancel()
        with pytest.raises(trionet.SessionBrokenError):
            await stream.receive_some()
        async with await plex.open_stream() as other:
            await echo(other)
        # Also when the session has been closed for it.
        await wait_all_tasks_blocked()
        assert plex.statistics().size == 1
        with pytest.raises(trionet.SessionBrokenError):
            await stream.send_all(b"x")
        await stream.aclose()

    assert log.kinds == ["connected", "lost", "connected", "healed"]
    assert log.events[1].reason == "dead"


async def test_who_waits_hears_by_his_own_timeout_why_there_is_no_session(
    autojump_clock: MockClock, farm: Farm
) -> None:
    farm.fail = OSError("refused")
    async with Multiplexer(farm.connect, mux=QUIET, backoff=STEADY) as plex:
        with pytest.raises(PoolTimeoutError, match="refused") as caught:
            await plex.open_stream(timeout=3)
        assert caught.value.__cause__ is farm.fail
        assert farm.dialled_at == [0, 0.5, 1.5]
        with trio.move_on_after(1) as scope:
            await plex.open_stream()
        assert scope.cancelled_caught
        now = plex.statistics()
        assert (now.timed_out, now.cancelled, now.waiting) == (1, 1, 0)


async def test_leaving_the_block_closes_sessions_streams_and_turns_away_who_waits(
    farm: Farm,
) -> None:
    told: list[object] = []

    async def wait() -> None:
        try:
            await plex.open_stream()
        except PoolClosedError as exc:
            told.append(exc)

    async with trio.open_nursery() as nursery, Multiplexer(farm.connect, mux=SMALL) as plex:
        streams = [await plex.open_stream() for _ in range(4)]
        await streams[0].send_all(b"the last")
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()

    assert len(told) == 1
    assert farm.open == 0
    with pytest.raises(trio.ClosedResourceError):
        await streams[0].send_all(b"x")
    with pytest.raises(PoolClosedError):
        await plex.open_stream()


async def test_an_exception_in_the_block_leaves_as_itself(farm: Farm) -> None:
    with pytest.raises(KeyError) as caught:
        async with Multiplexer(farm.connect, mux=QUIET) as plex, await plex.open_stream() as stream:
            await echo(stream)
            raise KeyError("mine")
    assert caught.value.args == ("mine",)
    assert farm.open == 0


async def test_the_two_kinds_do_not_mix(farm: Farm) -> None:
    given = farm.make()
    async with Multiplexer(capacity=2, mux=QUIET) as plex:
        with pytest.raises(RuntimeError, match="use open_stream"):
            plex.reader()
        with pytest.raises(RuntimeError, match="close their streams"):
            plex.discard(given)  # type: ignore[arg-type]
        assert plex.add(given) == []
        with pytest.raises(ValueError, match="connections already"):
            plex.add(given)
        with pytest.raises(ValueError, match="weight"):
            await plex.open_stream(weight=0)
        with pytest.raises(ValueError, match="timeout"):
            await plex.open_stream(timeout=-1)
        others: list[Any] = [farm.make(), farm.make()]
        assert plex.add(*others) == others[1:]
        async with await plex.open_stream() as stream:
            await echo(stream)
    await others[1].aclose()


async def test_a_stream_that_the_peer_opens_is_refused(farm: Farm) -> None:
    async with Multiplexer(farm.connect, mux=QUIET) as plex, await plex.open_stream() as stream:
        await echo(stream)
        async with await farm.sessions[0].open_stream() as theirs:
            with pytest.raises(trionet.StreamResetError):
                await theirs.receive_some()
        await echo(stream)


async def test_the_loss_of_the_last_session_is_told_where_none_can_be_made(farm: Farm) -> None:
    async with Multiplexer(streams=[farm.make()], mux=SMALL) as plex:
        held = [await plex.open_stream() for _ in range(4)]
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.BrokenResourceError, match="no `connect`"):
                    await plex.open_stream()

            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            farm.scopes[0].cancel()
        await wait()
        for stream in held:
            await stream.aclose()


async def test_a_connect_that_returns_no_stream_has_failed(autojump_clock: MockClock) -> None:
    async def connect() -> Any:
        return 5

    async with Multiplexer(connect, mux=QUIET) as plex:
        with pytest.raises(PoolTimeoutError, match="got 5"):
            await plex.open_stream(timeout=1)


async def test_a_connection_that_connect_returns_again_is_refused_and_goes_on(
    autojump_clock: MockClock, farm: Farm
) -> None:
    near = farm.make()

    async def connect() -> trio.abc.Stream:
        return near

    crowd = MuxConfig(max_outbound_streams=1, keepalive=None)
    async with Multiplexer(connect, capacity=2, scale_after=1, mux=crowd, backoff=STEADY) as plex:
        async with await plex.open_stream() as stream:
            with pytest.raises(PoolTimeoutError, match="a second time"):
                await plex.open_stream(timeout=3)
            await echo(stream)
        now = plex.statistics()
        assert (now.connected, now.size) == (1, 1)


async def test_a_connection_is_known_until_it_is_closed(
    autojump_clock: MockClock, farm: Farm
) -> None:
    near, other = farm.make(), farm.make()
    held, far = trionet.memory_stream_pair(1)
    quick = MuxConfig(keepalive=None, close_timeout=2)
    async with Multiplexer(farm.connect, capacity=3, mux=quick, idle_timeout=10) as plex:
        # Its peer does not read: the going away takes time.
        assert plex.add(near, held, other) == []
        await trio.sleep(10.5)
        assert plex.statistics().closing == 1
        with pytest.raises(ValueError, match="connections already"):
            plex.add(held)
        await trio.sleep(5)
        assert plex.statistics().size == 0
        assert held.closed
    await far.aclose()


async def test_a_connection_on_which_no_session_can_begin_is_closed(
    autojump_clock: MockClock,
) -> None:
    class Hostile(Wire):
        @property
        def local_address(self) -> trionet.Address:
            raise KeyError("local_address")

    wires: list[Wire] = []

    async def connect() -> trio.abc.Stream:
        wires.append(Hostile())
        return wires[-1]

    async with Multiplexer(connect, mux=QUIET, backoff=STEADY) as plex:
        with pytest.raises(PoolTimeoutError, match="local_address"):
            await plex.open_stream(timeout=1)
    assert [wire.closes for wire in wires] == [1, 1]


async def test_a_peer_that_hangs_up_at_once_is_not_dialled_in_a_hurry(
    autojump_clock: MockClock, farm: Farm
) -> None:
    dialled: list[float] = []

    async def connect() -> trio.abc.Stream:
        dialled.append(trio.current_time())
        near, far = trionet.memory_stream_pair(100)
        await far.aclose()
        return near

    async with Multiplexer(connect, streams=[farm.make()], mux=QUIET, backoff=STEADY):
        await trio.sleep(5)
        farm.scopes[0].cancel()
        await trio.sleep(4)
        assert dialled == [5, 5.5, 6.5, 8.5]


async def test_load_moves_with_the_sessions_that_are_left(
    autojump_clock: MockClock, farm: Farm
) -> None:
    plex = Multiplexer(farm.connect, streams=[farm.make() for _ in range(4)], mux=QUIET)
    async with plex, trio.open_nursery() as nursery:
        done = 0

        async def work() -> None:
            nonlocal done
            while done < 400:
                try:
                    async with await plex.open_stream() as stream:
                        await echo(stream)
                        await trio.sleep(0.01)
                        done += 1
                except trio.BrokenResourceError:
                    await trio.sleep(0.001)

        for _ in range(16):
            nursery.start_soon(work)
        for number in range(4):
            await trio.sleep(0.02)
            farm.scopes[number].cancel()
    now = plex.statistics()
    assert (now.lost, now.closed) == (4, now.connected + now.added)
    assert done >= 400
