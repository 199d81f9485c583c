"""Sessions: opening, accepting, pings, errors, draining, closing."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any, Literal

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from tests.mux.support import (
    CARRIERS,
    DEFAULTS,
    LinkStream,
    against_peer,
    clog,
    echo,
    link,
    receive_all,
    serve,
    sessions,
)
from tests.yamux.support import ACK, FIN, SYN, data, go_away, ping, update
from trionet._errors import RemoteGoAwayError, SessionBrokenError, StreamResetError
from trionet._mux.session import MuxConfig, open_mux
from trionet._streams.memory import memory_stream_pair

if TYPE_CHECKING:
    from collections.abc import Generator

    from trionet._mux.stream import MuxStream

# Opening


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_bytes_go_both_ways_on_streams_of_either_side(carrier: str) -> None:
    async with sessions(CARRIERS[carrier]) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(serve, pair.client, echo)
        nursery.start_soon(serve, pair.server, echo)

        for session in (pair.client, pair.server):
            async with await session.open_stream() as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await receive_all(stream) == b"hello"

        nursery.cancel_scope.cancel()


async def test_bad_arguments_are_refused_before_anything_is_opened() -> None:
    near, _ = memory_stream_pair()

    with pytest.raises(ValueError, match="got 'peer'"):
        async with open_mux(near, role="peer"):  # type: ignore[arg-type]
            pass
    with pytest.raises(TypeError, match=r"needs a trio\.abc\.Stream, got 5"):
        async with open_mux(5, role="client"):  # type: ignore[arg-type]
            pass
    with pytest.raises(TypeError, match="must be a MuxConfig, got None"):
        async with open_mux(near, role="client", config=None):  # type: ignore[arg-type]
            pass
    assert not near.closed

    async with sessions() as pair:
        with pytest.raises(ValueError, match="from 1 to 256, got 0"):
            await pair.client.open_stream(weight=0)
        with pytest.raises(TypeError, match=r"an int, got 1\.5"):
            await pair.client.open_stream(weight=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["client", "server"])
async def test_an_exception_leaves_the_block_as_itself(role: str) -> None:
    near, _far = memory_stream_pair()

    with pytest.raises(KeyError, match="mine"):
        async with open_mux(near, role=role):  # type: ignore[arg-type]
            raise KeyError("mine")

    assert near.closed


async def test_a_carrier_with_a_bug_ends_the_block_with_its_exception() -> None:
    class Odd(LinkStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise ZeroDivisionError

    near, _ = await link(0, 1)()
    assert isinstance(near, LinkStream)
    odd = Odd(near._incoming, near._outgoing)

    with pytest.raises(ZeroDivisionError):
        async with open_mux(odd, role="client"):
            await trio.sleep_forever()


async def test_opening_needs_no_answer_of_the_peers() -> None:
    near, _far = memory_stream_pair()

    with trio.CancelScope() as scope:
        async with open_mux(near, role="client") as session:
            stream = await session.open_stream()
            await stream.send_all(b"early")

            assert stream.stream_id == 1
            assert stream.bytes_sent == 5
            scope.cancel()


async def test_open_waits_while_too_many_are_unacknowledged_and_then_in_order() -> None:
    config = MuxConfig(max_unacknowledged=2)
    async with sessions(config=config) as pair, trio.open_nursery() as nursery:
        streams: list[MuxStream] = []

        async def open_one() -> None:
            streams.append(await pair.client.open_stream())

        def opened() -> list[int]:
            return sorted(stream.stream_id for stream in streams)

        for _ in range(4):
            nursery.start_soon(open_one)
        await wait_all_tasks_blocked()
        assert opened() == [1, 3]
        with trio.move_on_after(0) as scope:
            await pair.client.open_stream()
        assert scope.cancelled_caught

        accepted = [await pair.server.listener().accept()]
        await wait_all_tasks_blocked()
        assert opened() == [1, 3, 5]
        accepted.append(await pair.server.listener().accept())
        await wait_all_tasks_blocked()

        assert opened() == [1, 3, 5, 7]


async def test_open_waits_while_too_many_are_open() -> None:
    config = MuxConfig(max_outbound_streams=1)
    async with sessions(config=config) as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()
        opened: list[MuxStream] = []

        async def open_one() -> None:
            opened.append(await pair.client.open_stream())

        nursery.start_soon(open_one)
        await wait_all_tasks_blocked()
        assert opened == []

        await near.aclose()
        await far.aclose()
        await wait_all_tasks_blocked()

        assert [stream.stream_id for stream in opened] == [3]


async def test_s13_the_257th_stream_and_the_480th_open() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        streams = []

        async def accept_all() -> None:
            while True:
                streams.append(await pair.server.listener().accept())

        nursery.start_soon(accept_all)
        opened = [await pair.client.open_stream() for _ in range(480)]
        await wait_all_tasks_blocked()

        assert pair.client.statistics().opened_here == len(opened)
        assert pair.server.statistics().opened_there == 480
        nursery.cancel_scope.cancel()


async def test_a_refused_stream_is_reset() -> None:
    async with sessions(server_config=MuxConfig(accept_backlog=0)) as pair:
        stream = await pair.client.open_stream()

        with pytest.raises(StreamResetError, match="the peer reset it"):
            await stream.receive_some()
        with pytest.raises(StreamResetError):
            await stream.send_all(b"x")


async def test_ids_run_out_some_day() -> None:
    async with sessions() as pair:
        pair.client._driver.core.next_id = (1 << 32) - 1
        stream = await pair.client.open_stream()
        assert stream.stream_id == (1 << 32) - 1

        with pytest.raises(trio.BrokenResourceError, match="used up its stream ids"):
            await pair.client.open_stream()


# Listening


async def test_the_listener_hands_streams_out_in_order() -> None:
    async with sessions() as pair:
        opened = [await pair.client.open_stream() for _ in range(3)]
        listener = pair.server.listener()
        assert listener is pair.server.listener()
        await listener.wait_acceptable()

        accepted = [listener.accept_nowait(), await listener.accept(), await listener.accept()]

        assert [s.stream_id for s in accepted] == [s.stream_id for s in opened]
        with pytest.raises(trio.WouldBlock):
            listener.accept_nowait()


async def test_two_tasks_may_not_accept_at_once() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(pair.server.listener().accept)
        await wait_all_tasks_blocked()

        with pytest.raises(trio.BusyResourceError):
            await pair.server.listener().accept()
        with pytest.raises(trio.BusyResourceError):
            await pair.server.listener().wait_acceptable()
        nursery.cancel_scope.cancel()


async def test_a_closed_listener_refuses_and_the_session_lives_on() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()
        waiting = await pair.client.open_stream()
        await wait_all_tasks_blocked()
        listener = pair.server.listener()

        await listener.aclose()
        await listener.aclose()

        with pytest.raises(StreamResetError):
            await waiting.receive_some()
        late = await pair.client.open_stream()
        with pytest.raises(StreamResetError):
            await late.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        nursery.start_soon(echo, far)
        await near.send_all(b"still here")
        assert await near.receive_some() == b"still here"
        await near.aclose()


async def test_closing_the_listener_wakes_who_accepts() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await pair.server.listener().accept()

        nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        pair.server.listener().close()


async def test_a_server_serves_a_session_unchanged() -> None:
    async def handler(connection: trionet.Connection) -> None:
        while piece := await connection.receive_some():
            await connection.send_all(piece)

    async with sessions() as pair, trio.open_nursery() as nursery:
        server = trionet.Server(handler, grace=1)
        await nursery.start(server.serve, [pair.server.listener()])
        stream = await pair.client.open_stream()
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        assert server.statistics().active == 1

        await stream.send_eof()
        assert await receive_all(stream) == b""
        await stream.aclose()
        server.shutdown()
        await server.wait_closed()

        assert server.statistics().completed == 1
        refused = await pair.client.open_stream()
        with pytest.raises(StreamResetError):
            await refused.receive_some()


@pytest.mark.parametrize("end", ["closed by the peer", "torn", "closed here"])
async def test_a_server_drains_when_the_session_it_serves_is_over(end: str) -> None:
    finished: list[bytes | bytearray] = []

    async def handler(connection: trionet.Connection) -> None:
        begun = await connection.receive_some()
        try:
            begun += await connection.receive_some()
        finally:
            # What a handler has to do after its client left is done in peace.
            await trio.sleep(0.01)
            finished.append(begun)

    async with sessions() as pair, trio.open_nursery() as nursery:
        reports: list[trionet.ShutdownReport] = []
        server = trionet.Server(handler, on_error=lambda *_: None)

        async def serve_it() -> None:
            reports.append(await server.serve([pair.server.listener()]))

        nursery.start_soon(serve_it)
        stream = await pair.client.open_stream()
        await stream.send_all(b"half")
        await wait_all_tasks_blocked()
        assert server.statistics().active == 1

        if end == "closed by the peer":
            await pair.client.aclose()
        elif end == "closed here":
            await pair.server.aclose()
        else:
            pair.client._driver.carrier.reset()  # type: ignore[attr-defined]
        await server.wait_closed()

        assert finished == [b"half"]
        assert server.statistics().active == 0
    assert len(reports) == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_the_end_of_the_session_is_the_end_of_its_listener(waits: bool) -> None:
    async with against_peer() as (session, peer), trio.open_nursery() as nursery:
        listener = session.listener()

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError) as caught:
                await listener.wait_acceptable()
            assert isinstance(caught.value.__cause__, SessionBrokenError)

        if waits:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
        else:
            await peer.send(data(1, b"accepted late", SYN))
        await peer.stream.aclose()
        await wait_all_tasks_blocked()

        if not waits:
            await listener.wait_acceptable()
            late = listener.accept_nowait()
            assert await late.receive_some() == b"accepted late"
            with pytest.raises(SessionBrokenError, match="the carrier ended"):
                await late.receive_some()
        await wait()
        with pytest.raises(trio.ClosedResourceError) as caught:
            listener.accept_nowait()
        assert "the carrier ended" in str(caught.value.__cause__)
        # Who calls the session itself is told what became of it.
        with pytest.raises(SessionBrokenError, match="the carrier ended"):
            await listener.accept()


async def test_a_draining_server_ends_idle_waits_on_streams() -> None:
    idle_ended = trio.Event()

    async def handler(connection: trionet.Connection) -> None:
        with connection.idle() as scope:
            await connection.receive_some()
        if scope.cancelled_caught:
            idle_ended.set()

    async with sessions() as pair, trio.open_nursery() as nursery:
        server = trionet.Server(handler, grace=1)
        await nursery.start(server.serve, [pair.server.listener()])
        async with await pair.client.open_stream() as stream:
            await wait_all_tasks_blocked()

            server.shutdown()
            await idle_ended.wait()

            assert await receive_all(stream) == b""


# Pings


async def test_a_ping_measures_the_round_trip(autojump_clock: trio.testing.MockClock) -> None:
    async with sessions(link(0.03, 1e9)) as pair:
        assert await pair.client.ping() == pytest.approx(0.06)
        assert pair.client.statistics().round_trip == pytest.approx(0.06)


async def test_pings_of_many_tasks_are_answered_each(
    autojump_clock: trio.testing.MockClock,
) -> None:
    answers = []
    async with sessions(link(0.03, 1e9)) as pair, trio.open_nursery() as nursery:

        async def ping(delay: float) -> None:
            await trio.sleep(delay)
            answers.append(await pair.client.ping())

        for number in range(10):
            nursery.start_soon(ping, 0.01 * (number // 2))

    assert answers == pytest.approx([0.06] * 10)


async def test_cancelled_pings_of_a_peer_that_never_answers_leave_nothing() -> None:
    async with against_peer() as (session, _peer):
        for _ in range(100):
            with trio.move_on_after(0):
                await session.ping()
            with trio.move_on_after(0.0005):
                await session.ping()

        assert session._pingers == {}


async def test_a_cancelled_ping_leaves_the_next_one_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with sessions(link(0.03, 1e9)) as pair:
        with trio.move_on_after(0.01):
            await pair.client.ping()

        assert await pair.client.ping() == pytest.approx(0.06)


# Errors


async def test_a_reset_breaks_one_stream_and_spares_the_others() -> None:
    async with sessions() as pair:
        near, far = await pair.streams()
        other_near, other_far = await pair.streams()
        await far.send_all(b"unread")
        await wait_all_tasks_blocked()

        far.reset()
        await wait_all_tasks_blocked()

        # What was not received when the reset came is lost, as with TCP.
        with pytest.raises(StreamResetError, match="stream 1 was reset: the peer reset it"):
            await near.receive_some()
        with pytest.raises(StreamResetError):
            await near.send_all(b"x")
        with pytest.raises(StreamResetError):
            await near.send_eof()
        assert near.peer_closed()
        with pytest.raises(trio.ClosedResourceError):
            await far.receive_some()
        await other_near.send_all(b"fine")
        assert await other_far.receive_some() == b"fine"


async def test_a_reset_after_end_of_file_takes_nothing_of_it() -> None:
    async with sessions() as pair:
        near, far = await pair.streams()
        await far.send_all(b"whole")
        await far.send_eof()
        await wait_all_tasks_blocked()

        far.reset()
        await wait_all_tasks_blocked()

        assert await receive_all(near) == b"whole"
        with pytest.raises(StreamResetError):
            await near.send_all(b"x")


async def test_a_lost_carrier_breaks_all_but_what_has_arrived_stays() -> None:
    async with against_peer() as (session, peer):
        await peer.send(data(1, b"whole", SYN | FIN), data(3, b"part", SYN))
        whole, part = [await session.listener().accept() for _ in range(2)]
        waiting = await session.open_stream()
        async with trio.open_nursery() as nursery:

            async def wait(operation: object) -> None:
                with pytest.raises(SessionBrokenError, match="the carrier ended"):
                    await operation()  # type: ignore[operator]

            nursery.start_soon(wait, waiting.receive_some)
            nursery.start_soon(wait, session.listener().accept)
            await wait_all_tasks_blocked()
            await peer.stream.aclose()

        assert await receive_all(whole) == b"whole"
        assert await part.receive_some() == b"part"
        for operation in (part.receive_some, partial(part.send_all, b"x"), part.send_eof):
            with pytest.raises(SessionBrokenError):
                await operation()
        for broken in (session.open_stream, session.ping, session.drain, session.listener().accept):
            with pytest.raises(SessionBrokenError):
                await broken()
        assert part.peer_closed()
        # Closing works, and a closed stream says so.
        await part.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await part.receive_some()


async def test_what_the_carrier_raised_is_the_cause() -> None:
    async with sessions() as pair:
        near, _ = await pair.streams()
        carrier = pair.client._driver.carrier
        assert isinstance(carrier, trionet.MemoryStream)

        carrier.reset()
        await wait_all_tasks_blocked()

        with pytest.raises(SessionBrokenError) as caught:
            await near.receive_some()
        assert isinstance(caught.value.__cause__, trio.BrokenResourceError)


@pytest.mark.parametrize("cut", [5, 12, 14])
async def test_s11_a_carrier_that_ends_inside_a_frame_is_told(cut: int) -> None:
    async with against_peer() as (session, peer):
        await peer.send(update(1, SYN))
        stream = await session.listener().accept()

        await peer.stream.send_all(data(1, b"body").encode()[:cut])
        await peer.stream.aclose()

        if cut > 12:
            assert await stream.receive_some() == b"bo"
        with pytest.raises(SessionBrokenError, match="inside"):
            await stream.receive_some()


async def test_a_protocol_error_is_told_to_the_peer_and_ends_the_session() -> None:
    async with against_peer() as (session, peer):
        await peer.send(update(1, SYN))
        stream = await session.listener().accept()
        assert await peer.frames(0.01) == (["WINDOW_UPDATE ACK stream 1 length 0"], False)

        await peer.send(update(1, SYN))
        frames, _ = await peer.frames(0.01)
        assert frames == ["GO_AWAY - stream 0 length 1"]
        # What comes after the error means nothing.
        await peer.send(data(1, b"x"))

        with pytest.raises(SessionBrokenError, match="opened twice") as caught:
            await stream.receive_some()
        assert caught.value.code == 1


async def test_a_go_away_with_a_code_ends_the_session() -> None:
    async with against_peer() as (session, peer):
        await peer.send(go_away(2))

        with pytest.raises(SessionBrokenError, match="with code 2") as caught:
            await session.listener().accept()
        assert caught.value.code == 2


async def test_after_a_normal_go_away_nothing_is_opened_and_all_else_goes_on() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()
        nursery.start_soon(pair.server.drain)
        await wait_all_tasks_blocked()

        with pytest.raises(RemoteGoAwayError):
            await pair.client.open_stream()
        with pytest.raises(trio.ClosedResourceError, match="being drained"):
            await pair.server.open_stream()
        await near.send_all(b"going on")
        assert await far.receive_some() == b"going on"

        await near.aclose()
        await far.aclose()


async def test_a_go_away_wakes_who_waits_to_open() -> None:
    config = MuxConfig(max_unacknowledged=1, keepalive=None)
    async with against_peer(config) as (session, peer), trio.open_nursery() as nursery:
        first = await session.open_stream()

        async def wait() -> None:
            with pytest.raises(RemoteGoAwayError):
                await session.open_stream()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await peer.send(go_away())
        await first.aclose()


async def test_a_stream_nobody_closed_is_reset_and_reported() -> None:
    async with sessions() as pair:
        near, far = await pair.streams()

        kept = [near]
        del near
        with pytest.warns(ResourceWarning, match="was never closed"):
            kept.clear()

        with pytest.raises(StreamResetError):
            await far.receive_some()
        assert pair.client.statistics().opened_here == 0


# Draining and closing


async def test_drain_waits_for_the_last_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()

        async def end() -> None:
            await trio.sleep(3)
            await near.aclose()
            await trio.sleep(4)
            await far.aclose()

        nursery.start_soon(end)
        await pair.server.drain()

        assert trio.current_time() == 7
        await pair.server.drain()


async def test_what_was_sent_before_the_block_ended_arrives() -> None:
    near, far = memory_stream_pair()
    async with open_mux(far, role="server") as server:
        async with open_mux(near, role="client") as client:
            stream = await client.open_stream()
            await stream.send_all(b"x" * 5000)
            await stream.send_all(b"last")

        accepted = await server.listener().accept()
        assert await receive_all(accepted) == b"x" * 5000 + b"last"
        with pytest.raises(SessionBrokenError):
            await server.listener().accept()

    near, far = memory_stream_pair()
    async with open_mux(far, role="server") as server:
        async with open_mux(near, role="client") as client:
            stream = await client.open_stream()
            accepted = await server.listener().accept()
            await stream.send_all(b"x" * 5000)
            await stream.send_all(b"last")

        assert await receive_all(accepted) == b"x" * 5000 + b"last"


@pytest.mark.parametrize("by", ["accept", "Server"])
@pytest.mark.parametrize("carrier", CARRIERS)
async def test_streams_that_came_before_the_session_ended_are_accepted_after_it(
    carrier: str, by: str
) -> None:
    near, far = await CARRIERS[carrier]()
    arrived: list[bytes] = []

    async def speak() -> None:
        async with open_mux(near, role="client") as client:
            for number in range(100):
                async with await client.open_stream() as stream:
                    await stream.send_all(b"%d" % number)

    async def take(stream: trio.abc.Stream) -> None:
        async with stream:
            arrived.append(await receive_all(stream))

    async with trio.open_nursery() as nursery, open_mux(far, role="server") as server:
        nursery.start_soon(speak)
        if by == "Server":
            await trionet.Server(take).serve([server.listener()])
        else:
            with suppress(SessionBrokenError):
                while True:
                    await take(await server.listener().accept())

    assert sorted(map(int, arrived)) == [*range(100)]


async def test_closing_a_session_that_has_ended_forgets_what_nobody_accepted() -> None:
    async with against_peer() as (session, peer):
        await peer.send(data(1, b"never accepted", SYN | FIN))
        await peer.stream.aclose()
        await wait_all_tasks_blocked()
        assert session.statistics().unaccepted == 1

        await session.aclose()

        assert session.statistics().unaccepted == 0
        with pytest.raises(trio.ClosedResourceError):
            session.listener().accept_nowait()


async def test_the_go_away_is_the_last_frame() -> None:
    near, far = memory_stream_pair(1 << 20)
    async with open_mux(near, role="client") as client:
        stream = await client.open_stream()
        await stream.send_all(b"data")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.aclose)
            raw = await receive_all(far)
            await far.aclose()

    frames, rest = trionet.yamux.split_frames(raw)
    assert rest == b""
    assert [str(frame) for frame in frames] == [
        "DATA SYN stream 1 length 4",
        "WINDOW_UPDATE FIN stream 1 length 0",
        "GO_AWAY - stream 0 length 0",
    ]


async def test_operations_on_a_closed_session_raise_closed() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, _ = await pair.streams()

        async def wait(operation: object) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await operation()  # type: ignore[operator]

        nursery.start_soon(wait, near.receive_some)
        nursery.start_soon(wait, pair.client.listener().accept)
        await wait_all_tasks_blocked()
        await pair.client.aclose()

        assert pair.client.closed
        assert near.closed
        for operation in (
            near.receive_some,
            partial(near.send_all, b"x"),
            near.send_eof,
            pair.client.open_stream,
            pair.client.ping,
            pair.client.drain,
        ):
            with pytest.raises(trio.ClosedResourceError):
                await operation()
        await pair.client.aclose()


async def test_closing_waits_no_longer_than_it_may(autojump_clock: trio.testing.MockClock) -> None:
    near, _far = memory_stream_pair()

    async with open_mux(near, role="client", config=MuxConfig(close_timeout=2)) as client:
        stream = await client.open_stream()
        await stream.send_all(b"nobody reads this")

    assert trio.current_time() == 2
    assert near.closed


async def test_closing_waits_no_longer_for_a_peer_that_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, _far = memory_stream_pair(1 << 16)

    async with open_mux(near, role="client", config=MuxConfig(close_timeout=2)):
        pass

    assert trio.current_time() == 2


@pytest.mark.parametrize("half_close", [True, False])
async def test_closing_waits_for_a_peer_far_away_to_have_read_everything(
    half_close: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """A socket closed sooner meets the peer's next word with a reset, and drops the rest."""
    near, far = await link(2, 1e9)()
    carrier = near if half_close else Whole(near)
    async with open_mux(far, role="server") as server:
        async with open_mux(carrier, role="client") as client:
            stream = await client.open_stream()
            await stream.send_all(b"all of it")

        assert trio.current_time() == pytest.approx(4, abs=1e-3)
        async with await server.listener().accept() as accepted:
            assert await receive_all(accepted) == b"all of it"


@pytest.mark.parametrize("half_close", [True, False])
async def test_two_that_close_at_once_wait_for_one_round_trip(
    half_close: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async def talk(carrier: trio.abc.Stream, role: Literal["client", "server"]) -> None:
        async with open_mux(carrier if half_close else Whole(carrier), role=role):
            pass
        assert trio.current_time() <= 0.2 + 1e-3

    near, far = await link(0.1, 1e9)()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk, near, "client")
        nursery.start_soon(talk, far, "server")


async def test_a_cancelled_block_closes_the_carrier_at_once() -> None:
    near, _far = memory_stream_pair()

    with trio.CancelScope() as scope:
        async with open_mux(near, role="client") as client:
            stream = await client.open_stream()
            scope.cancel()
            await stream.receive_some()

    assert scope.cancelled_caught
    assert near.closed


class Whole(trio.abc.Stream):
    """A carrier that cannot be closed by halves, and takes some steps to pass on what came.

    As TLS does, or a session over a session.
    """

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._inner.receive_some(max_bytes)
        for _ in range(4):
            await trio.lowlevel.checkpoint()
        return data


class Slow(LinkStream):
    """A carrier that takes for ever to close, unless it is told to do so at once."""

    gone = False

    async def aclose(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.gone = True
            with trio.CancelScope() as scope:
                scope.cancel()
                await super().aclose()


@pytest.mark.parametrize(
    ("end", "seconds"), [("cancelled", 0), ("by an exception", 0), ("in time", 1.5)]
)
async def test_a_carrier_that_does_not_close_in_time_is_closed_forcefully(
    end: str, seconds: float, autojump_clock: trio.testing.MockClock
) -> None:
    near, _far = await link(0, 1e9)()
    assert isinstance(near, LinkStream)
    carrier = Slow(near._incoming, near._outgoing)

    with suppress(KeyError), trio.CancelScope() as scope:
        async with open_mux(carrier, role="client", config=MuxConfig(close_timeout=1.5)) as client:
            with trio.move_on_after(0):
                await client.ping()
            if end == "cancelled":
                scope.cancel()
            elif end == "by an exception":
                raise KeyError

    assert carrier.gone
    assert trio.current_time() == pytest.approx(seconds, abs=1e-6)


async def test_over_a_carrier_without_half_close_a_ping_is_the_last_question() -> None:
    async with sessions(CARRIERS["tls"]) as pair:
        near, far = await pair.streams()
        await near.send_all(b"all of it")
        await pair.client.aclose()

        assert await receive_all(far) == b"all of it"


# Streams


async def test_a_stream_knows_its_ends_by_the_carriers_and_its_id() -> None:
    async with sessions(CARRIERS["tcp"]) as pair:
        near, far = await pair.streams()

        assert near.local_address == far.remote_address
        assert near.remote_address.host == "127.0.0.1"
        assert str(near.remote_address).endswith("#1")
        assert str(near.remote_address).startswith("127.0.0.1:")
        assert repr(near).startswith("<MuxStream 127.0.0.1:")
        assert repr(pair.client).startswith("<MuxSession client 127.0.0.1:")
        assert "MuxListener" in repr(pair.server.listener())


async def test_interrupting_wakes_a_receive_and_loses_nothing() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()

        async def interrupted() -> None:
            with pytest.raises(trionet.abc.ReceiveInterrupted):
                await far.receive_some()

        nursery.start_soon(interrupted)
        await wait_all_tasks_blocked()
        far.interrupt_receive()
        await wait_all_tasks_blocked()
        with pytest.raises(trionet.abc.ReceiveInterrupted):
            await far.receive_some()
        await near.send_all(b"abc")
        await wait_all_tasks_blocked()
        assert far.is_readable()
        assert far.unread_size() == 3
        assert await far.receive_some() == b"abc"
        far.resume_receive()
        await near.send_eof()

        assert await far.receive_some() == b""
        assert far.bytes_received == near.bytes_sent == 3


async def test_s14_a_slow_reader_is_no_error(autojump_clock: trio.testing.MockClock) -> None:
    async with sessions(config=MuxConfig(keepalive=5)) as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()
        payload = bytes(range(256)) * 4096

        async def send() -> None:
            await near.send_all(payload)
            await near.aclose()

        nursery.start_soon(send)
        received = bytearray()
        while piece := await far.receive_some(65536):
            received += piece
            await trio.sleep(60)

        assert received == payload
        await far.aclose()


async def test_s15_an_early_close_does_not_eat_the_reply() -> None:
    """The server answers before it has read the request, and closes; the client reads late."""
    async with sessions() as pair:
        near, far = await pair.streams()
        async with trio.open_nursery() as nursery:

            async def request() -> None:
                await near.send_all(bytes(400_000))

            nursery.start_soon(request)
            await wait_all_tasks_blocked()
            await far.send_all(b"413 too large")
            await far.aclose()

        assert await receive_all(near) == b"413 too large"


async def test_s15_a_peer_that_never_ends_its_direction_is_reset_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with sessions() as pair:
        near, far = await pair.streams()
        await far.aclose()
        assert await near.receive_some() == b""

        await trio.sleep(4.9)
        assert pair.server.statistics().opened_there == 1
        # A byte, which says that the peer is there, is no reason to wait longer.
        await near.send_all(b"still talking")
        await trio.sleep(0.2)

        with pytest.raises(StreamResetError):
            await near.send_all(b"x")
        assert pair.server.statistics().opened_there == 0


async def test_a_session_runs_over_a_stream_of_another() -> None:
    async with sessions() as outer, trio.open_nursery() as nursery:

        async def carrier() -> tuple[trio.abc.Stream, trio.abc.Stream]:
            return await outer.streams()

        async with sessions(carrier) as inner:
            near, far = await inner.streams()
            nursery.start_soon(echo, far)
            await near.send_all(bytes(100_000))
            await near.send_eof()
            assert await receive_all(near) == bytes(100_000)
            await near.aclose()


async def test_s17_a_silent_peer_is_given_up_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, far = memory_stream_pair(1 << 16)
    async with open_mux(near, role="client") as session:
        stream = await session.open_stream()

        with pytest.raises(SessionBrokenError, match="silent for 50 seconds"):
            await stream.receive_some()
        assert trio.current_time() == 50
    assert not far.closed


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("_round", range(10))
def test_s17_what_came_while_the_program_was_busy_is_a_sign_of_life(
    _round: int, deep: bool
) -> None:
    """Whichever task trio runs first then, the timer's or the reader's."""
    clock = trio.testing.MockClock()

    @coroutine
    def busy(send: Any) -> Generator[Any, Any, None]:
        steps = send.__await__()
        pending = next(steps)
        # The answer is there now, and nobody has run since.
        clock.jump(DEFAULTS.keepalive_timeout + 5)
        with suppress(StopIteration):
            while True:
                pending = steps.send((yield pending))

    async def main() -> None:
        async with against_peer(DEFAULTS, wrap=Whole if deep else None) as (session, peer):
            await wait_all_tasks_blocked()
            assert DEFAULTS.keepalive is not None
            clock.jump(DEFAULTS.keepalive)
            await wait_all_tasks_blocked()

            await busy(peer.send(ping(1, ACK)))
            await wait_all_tasks_blocked()
            clock.jump(1)
            await wait_all_tasks_blocked()

            assert session._driver.error() is None
            assert session.statistics().round_trip == 25

    trio.run(main, clock=clock)


async def test_a_carrier_that_takes_nothing_is_given_up_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    near, _far = memory_stream_pair()
    async with open_mux(near, role="client", config=MuxConfig(keepalive=None)) as session:
        stream = await session.open_stream()

        with pytest.raises(SessionBrokenError, match="took nothing for 30 seconds"):
            await stream.receive_some()
        assert trio.current_time() == 30


async def test_an_echo_of_ten_windows_over_full_pipes_does_not_deadlock() -> None:
    """Both send all before they look at what comes back; only the sessions read."""
    size = 10 * 262144
    async with sessions() as pair, trio.open_nursery() as nursery:
        ends = await pair.streams()
        received = [bytearray(), bytearray()]

        async def send(stream: MuxStream) -> None:
            await stream.send_all(bytes(size))
            await stream.send_eof()

        async def receive(stream: MuxStream, into: bytearray) -> None:
            into += await receive_all(stream)

        for stream, into in zip(ends, received, strict=True):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream, into)

    assert [len(into) for into in received] == [size, size]


async def test_a_full_stream_does_not_hold_up_another() -> None:
    async with sessions() as pair:
        full, _unread = await pair.streams()
        await clog(full)
        near, far = await pair.streams()

        await near.send_all(b"past it")

        assert await far.receive_some() == b"past it"


async def test_weights_share_the_carrier_out(autojump_clock: trio.testing.MockClock) -> None:
    config = MuxConfig(window=1 << 20)
    async with sessions(link(0, 1e6), config) as pair, trio.open_nursery() as nursery:
        light = await pair.client.open_stream()
        heavy = await pair.client.open_stream(weight=3)
        accepted = [await pair.server.listener().accept() for _ in range(2)]
        assert (light.weight, heavy.weight) == (1, 3)
        for stream in (light, heavy):
            nursery.start_soon(stream.send_all, bytes(1 << 20))
        await trio.sleep(0.6)

        shares = [stream.unread_size() for stream in accepted]
        assert shares[1] / shares[0] == pytest.approx(3, rel=0.25)
        light.weight = 5
        assert light.weight == 5
        nursery.cancel_scope.cancel()


async def test_ten_thousand_short_streams_leave_empty_tables() -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        nursery.start_soon(serve, pair.server, echo)

        async def client(count: int) -> None:
            for number in range(count):
                async with await pair.client.open_stream() as stream:
                    await stream.send_all(b"%d" % number)
                    await stream.send_eof()
                    assert await receive_all(stream) == b"%d" % number

        async with trio.open_nursery() as clients:
            for _ in range(50):
                clients.start_soon(client, 200)
        await wait_all_tasks_blocked()

        for session in (pair.client, pair.server):
            now = session.statistics()
            assert (now.opened_here, now.opened_there, now.unaccepted) == (0, 0, 0)
            assert (now.unread, now.unsent, now.window_budget_used) == (0, 0, 0)
            core = session._driver.core
            assert not core.streams
            assert not core.lingering
            assert not core.tails
            assert not core.output.control
        nursery.cancel_scope.cancel()


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="window must be at least 262144, got 1"):
        MuxConfig(window=1)
    with pytest.raises(TypeError, match="max_pongs must be an int, got '3'"):
        MuxConfig(max_pongs="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="linger must be finite and not negative, got -1"):
        MuxConfig(linger=-1)
    with pytest.raises(ValueError, match="keepalive must be finite and positive, got 0"):
        MuxConfig(keepalive=0)
    with pytest.raises(ValueError, match="max_frame_size must be at most 1048576"):
        MuxConfig(max_frame_size=1 << 21)
    with pytest.raises(TypeError, match="strict_ids must be a bool"):
        MuxConfig(strict_ids=1)  # type: ignore[arg-type]
    assert MuxConfig().max_receive_memory == (1024 + 480) * 262144 + (64 << 20)
