"""What holds on a virtual network, whatever Hypothesis does on it.

The numbers are those by which `tests/testing/mutants.py` breaks each. The ninth, equal outcomes on
the kernel's loopback, has tests of its own.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import trionet
from tests.testing.observed import LINKS, Scenario, observe, observe_run, scenarios
from tests.testing.virtual import socket_pair, two_hosts
from trionet.testing import Link, VirtualNetwork, simulate

EXAMPLES = int(os.environ.get("VNET_EXAMPLES", "0"))


def examples(count: int) -> settings:
    """Try so many examples; more, and without shrinking, when only the failure counts."""
    return settings(
        max_examples=EXAMPLES or count,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        phases=[p for p in Phase if p is not Phase.shrink or not EXAMPLES],
    )


@examples(40)
@given(scenarios())
def test_1_what_is_received_is_a_first_part_of_what_was_sent(scenario: Scenario) -> None:
    seen = observe(scenario)

    for side in (0, 1):
        sent, received = seen.sent[1 - side], seen.received[side]
        assert sent[: len(received)] == received
        assert not seen.clean[side] or sent == received


@examples(40)
@given(scenarios())
def test_2_what_heals_delays_and_loses_nothing(scenario: Scenario) -> None:
    seen = observe(scenario)

    assert seen.clean == [True, True]
    assert [len(one) for one in seen.sent] == [sum(chunks) for chunks in scenario.chunks]
    assert seen.received == seen.sent[::-1]
    # Four faults of five seconds, each doubling a timeout once more than it lasts; losses of a
    # tenth; and 40 times a buffer at 20 kB/s.
    assert seen.took < 1500


@examples(15)
@given(scenarios())
def test_3_the_same_seed_and_the_same_program_leave_the_same_trace(scenario: Scenario) -> None:
    one, other = observe_run(scenario), observe_run(scenario)

    assert one.digest == other.digest
    assert list(one.trace) == list(other.trace)


@examples(40)
@given(scenarios())
def test_4_buffers_and_what_is_on_its_way_never_hold_more_than_the_buffers(
    scenario: Scenario,
) -> None:
    assert observe(scenario).overfull <= 0


@examples(40)
@given(scenarios(faults=("partition", "one way")))
def test_5_nothing_is_faster_than_its_link(scenario: Scenario) -> None:
    link = scenario.link
    left: dict[Any, float] = {}
    first: dict[str, float] = {}
    moved: dict[str, int] = defaultdict(int)
    for event in observe(scenario).events:
        key = (event.source, event.kind, event.index, event.sequence, event.attempt)
        host = event.source.host
        if event.protocol != "tcp":
            continue
        if event.what == "sent":
            left[key] = event.time
            if event.payload:
                first.setdefault(host, event.time)
        elif event.what == "delivered":
            assert event.time >= left.pop(key) + link.latency - 1e-9
            moved[host] += len(event.payload)
            if link.bandwidth is not None and event.payload:
                passed = event.time - link.latency - first[host]
                assert moved[host] <= link.bandwidth * passed + 1e-3


@examples(40)
@given(
    link=LINKS,
    waiting=st.integers(0, 300),
    end=st.sampled_from(["reset", "unread", "linger", "close", "eof"]),
)
def test_6_a_direction_ends_once_and_an_error_is_told_once(
    link: Link, waiting: int, end: str
) -> None:
    async def main() -> list[Any]:
        async with two_hosts(link) as (net, server, client):
            near, far = await socket_pair(server, client)
            await far.send(bytes(waiting) or b"x")
            await near.send(b"unread")
            await trio.sleep(60)
            if end == "reset":
                net.reset(server, client)
            elif end == "eof":
                far.shutdown(trio.socket.SHUT_WR)
            else:
                if end == "close":
                    await far.recv(100)
                elif end == "linger":
                    far.setsockopt(
                        trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                    )
                far.close()
            await trio.sleep(60)
            seen: list[Any] = []
            with trio.move_on_after(60):
                while len(seen) < 5:
                    try:
                        data = await near.recv(100_000)
                    except OSError as exc:
                        seen.append(type(exc))
                    else:
                        if data or seen:
                            seen.append("data" if data else "end")
                        else:
                            seen.append("end")
            near.close()
            far.close()
            return seen

    seen = simulate(main).result
    errors = end in {"reset", "unread", "linger"}
    if not seen[1:]:
        # The RST was lost, which no RST is after: half-open.
        assert link.loss
        assert errors
        return
    assert seen[0] == "data"
    assert seen[1:] == ([ConnectionResetError] if errors else ["end"]) + ["end"] * 3


@examples(40)
@given(scenarios(cancels=True))
def test_7_a_cancel_loses_and_doubles_nothing(scenario: Scenario) -> None:
    seen = observe(scenario)

    assert seen.clean == [True, True]
    assert seen.received == seen.sent[::-1]


@examples(40)
@given(scenarios())
def test_8_nothing_is_left_once_both_ends_have_closed(scenario: Scenario) -> None:
    assert observe(scenario).left == []


OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(
            # Of nothing trio's pair takes any amount, to a closed peer too; we do not.
            st.tuples(st.just("send"), st.integers(1, 5000)),
            st.tuples(st.just("receive"), st.integers(1, 5000)),
            st.tuples(st.just("eof"), st.just(0)),
            st.tuples(st.just("close"), st.just(0)),
        ),
    ),
    max_size=12,
)


@examples(60)
@given(OPERATIONS)
def test_10_a_null_link_a_memory_stream_and_trios_own_are_alike(operations: Any) -> None:
    async def outcomes(pair: Any) -> list[Any]:
        seen: list[Any] = []
        unread = [0, 0]
        closed = [False, False]
        for side, (what, size) in operations:
            stream = pair[side]
            try:
                with trio.move_on_after(1) as scope:
                    if what == "send":
                        await stream.send_all(bytes(size))
                        unread[1 - side] += size
                        seen.append("sent")
                    elif what == "eof" and not closed[side]:
                        # trio's pair does not mind an end of file after a close; we do.
                        await stream.send_eof()
                        seen.append("ended")
                    elif what == "receive":
                        received = await receive(stream, min(size, unread[side] or 1))
                        unread[side] -= received
                        seen.append(received)
                    elif what == "close" and not unread[side]:
                        # Where bytes are unread TCP resets, and memory does not.
                        await stream.aclose()
                        closed[side] = True
                        seen.append("closed")
                if scope.cancelled_caught:
                    seen.append("waits")
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                seen.append(type(exc).__name__)
            # What a closed peer answers has come by now.
            await trio.sleep(1)
        return seen

    async def receive(stream: Any, size: int) -> int:
        received = 0
        while received < size:
            data = await stream.receive_some(size - received)
            if not data:
                break
            received += len(data)
        return received

    async def virtual() -> list[Any]:
        async with VirtualNetwork() as net:
            host = net.host("host")
            # Unix sockets know at once that their peer is closed, as memory does.
            (listener,) = await host.listen("unix", "@name")
            near = await host.dial("unix", "@name")
            far = await listener.accept()
            async with listener, near, far:
                return await outcomes((near, far))

    async def memory() -> list[Any]:
        return await outcomes(trionet.memory_stream_pair(262_144))

    async def trios() -> list[Any]:
        return await outcomes(trio.testing.memory_stream_pair())

    assert simulate(virtual).result == simulate(memory).result == simulate(trios).result


@examples(6)
@given(LINKS)
def test_11_trios_checks_pass_over_every_link(link: Link) -> None:
    async def main() -> None:
        async with two_hosts(link) as (_, server, client):

            async def plain() -> Any:
                near, far = await socket_pair(server, client)
                return trio.SocketStream(near), trio.SocketStream(far)

            async def clogged() -> Any:
                near, far = await socket_pair(server, client, sizes=(500, 500))
                for sock in (near, far):
                    while sock.end.buffered < 500:
                        await sock.send(bytes(5000))
                        await trio.sleep(100)
                return trio.SocketStream(near), trio.SocketStream(far)

            await trio.testing.check_half_closeable_stream(plain, clogged)

    simulate(main, time_limit=None)


def test_a_scenario_without_faults_disturbs_nothing() -> None:
    link = Link(latency=0.01, bandwidth=20_000.0)
    quiet = Scenario(link, (1000, 1000), ((5000,), (5000,)), (0.0, 0.0), 65536)
    loud = Scenario(
        link, (1000, 1000), ((5000,), (5000,)), (0.0, 0.0), 65536, ((0.5, "partition", 2.0),)
    )

    # Else every fault would come too late to matter, and the properties hold of nothing.
    assert observe(quiet).took < 2
    assert observe(loud).took > 2
    assert any(event.what == "dropped" for event in observe(loud).events)


def test_links_of_memory_names_follow_the_seed_of_the_run() -> None:
    async def main() -> float:
        network = trionet.Network()
        options = trionet.MemoryOptions(link=Link(jitter=1))
        await network.listen("memb", "db", options=options)
        await network.dial("memb", "db")
        return trio.current_time()

    assert simulate(main, seed=1).result == simulate(main, seed=1).result
    assert simulate(main, seed=1).result != simulate(main, seed=2).result


pytestmark = pytest.mark.timeout(120)
