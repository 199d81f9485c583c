"""The readiness hub: who is woken, when, and what is left behind."""

from __future__ import annotations

import os
import resource
import select
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.streams.pairs import Pairs
from trionet import SocketStream
from trionet._streams import poller, readiness
from trionet._streams.poller import KqueuePoller

pytestmark = pytest.mark.skipif(
    not hasattr(select, "epoll"), reason="these tests look for descriptors as Linux has them"
)


class FakeKqueue:
    """kqueue(2) with EVFILT_READ and EV_CLEAR, on top of epoll."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self.close = self._epoll.close

    def control(self, changes: list[Any], count: int, timeout: float) -> list[Any]:
        for fd, _filter, flags in changes:
            if flags & FakeSelect.KQ_EV_DELETE:
                self._epoll.unregister(fd)
            else:
                assert flags == FakeSelect.KQ_EV_ADD | FakeSelect.KQ_EV_CLEAR
                self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        if not count:
            return []
        return [
            SimpleNamespace(
                ident=fd, flags=FakeSelect.KQ_EV_EOF if events & select.EPOLLRDHUP else 0
            )
            for fd, events in self._epoll.poll(timeout, count)
        ]


class FakeSelect:
    """The select module of a Mac."""

    KQ_EV_ADD, KQ_EV_DELETE, KQ_EV_CLEAR, KQ_EV_EOF, KQ_FILTER_READ = 0x1, 0x2, 0x20, 0x8000, -1
    kqueue = FakeKqueue

    @staticmethod
    def kevent(fd: int, kind: int, flags: int) -> tuple[int, int, int]:
        assert kind == FakeSelect.KQ_FILTER_READ
        return fd, kind, flags


@pytest.fixture(autouse=True, params=["epoll", "kqueue"])
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with either poller."""
    if request.param == "kqueue":
        monkeypatch.setattr(poller, "_select", FakeSelect)
        monkeypatch.setattr(
            readiness, "new_poller", lambda *, bytes_too: KqueuePoller(bytes_too=bytes_too)
        )


def registered() -> int:
    return len(readiness._hub.get().entries)


async def test_few_sockets_wait_by_themselves_and_many_through_the_hub() -> None:
    pairs = Pairs(10)
    async with trio.open_nursery() as nursery:
        for index in range(10):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        assert registered() == 10 - readiness.DIRECT_WAITS

        for index, far in enumerate(pairs.far):
            far.send(bytes([index]))
    assert pairs.received == {index: bytes([index]) for index in range(10)}
    pairs.close()
    assert registered() == 0


async def test_what_comes_between_two_parks_is_not_missed() -> None:
    pairs = Pairs(8)
    for round_number in range(5):
        async with trio.open_nursery() as nursery:
            for index in range(8):
                nursery.start_soon(pairs.receive, index)
            await wait_all_tasks_blocked()
            for far in pairs.far:
                far.send(b"abcdefg"[: round_number + 1])
        if round_number == 4:
            # Five bytes came and four were read: the fifth is there without a new edge.
            assert await pairs.near[7].receive_some(4) == b"e"
            assert await pairs.near[0].receive_some(4) == b"e"
    pairs.close()


async def test_end_of_file_behind_a_short_read_is_not_waited_for() -> None:
    pairs = Pairs(8)
    async with trio.open_nursery() as nursery:
        for index in range(8):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        for far in pairs.far:
            far.send(b"ab")
            far.close()
    assert set(pairs.received.values()) == {b"ab"}
    for near in pairs.near:
        with trio.fail_after(1):
            assert await near.receive_some(4) == b""
            assert await near.receive_some(4) == b""
    pairs.close()


async def test_closing_wakes_a_parked_task_with_closed() -> None:
    pairs = Pairs(8)
    closed: list[int] = []

    async def expect_closed(index: int) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await pairs.near[index].receive_some()
        closed.append(index)

    async with trio.open_nursery() as nursery:
        for index in range(8):
            nursery.start_soon(expect_closed, index)
        await wait_all_tasks_blocked()
        for near in pairs.near:
            near.close()
    assert sorted(closed) == list(range(8))
    assert registered() == 0
    pairs.close()


async def test_a_cancelled_park_leaves_the_socket_ready_for_the_next() -> None:
    pairs = Pairs(8)
    async with trio.open_nursery() as nursery:
        for index in range(8):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not pairs.received

    for far in pairs.far:
        far.send(b"late")
    for index in range(8):
        await pairs.receive(index)
    assert set(pairs.received.values()) == {b"late"}
    pairs.close()


async def test_a_reused_descriptor_does_not_inherit_an_event() -> None:
    pairs = Pairs(6)

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await pairs.near[5].receive_some()

    async with trio.open_nursery() as nursery:
        for index in range(5):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        nursery.start_soon(expect_closed)
        await wait_all_tasks_blocked()
        assert pairs.near[5].socket.fileno() in readiness._hub.get().entries
        old = pairs.near[5].socket.fileno()
        pairs.far[5].send(b"x")
        # The edge is in the epoll, and nobody has polled it yet.
        pairs.near[5].close()
        near, far = socket.socketpair()
        stream = SocketStream(near if near.fileno() == old else far)
        other = far if near.fileno() == old else near
        assert stream.socket.fileno() == old
        with trio.move_on_after(0.01) as scope:
            await stream.receive_some()
        assert scope.cancelled_caught
        other.send(b"y")
        assert await stream.receive_some() == b"y"
        stream.close()
        other.close()
        nursery.cancel_scope.cancel()
    pairs.close()


async def test_a_spurious_wake_is_no_byte() -> None:
    pairs = Pairs(8)
    async with trio.open_nursery() as nursery:
        for index in range(8):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        for near in pairs.near:
            readiness.wake(near.socket)
        await wait_all_tasks_blocked()
        assert not pairs.received
        for far in pairs.far:
            far.send(b"real")
    assert set(pairs.received.values()) == {b"real"}
    pairs.close()


async def test_a_hang_up_calls_back_once_it_happens() -> None:
    near, far = socket.socketpair()
    calls: list[int] = []
    assert readiness.watch_hangup(near, lambda: calls.append(1))
    far.send(b"bytes are no hang-up")
    await wait_all_tasks_blocked()
    assert calls == []

    far.close()
    while not calls:
        await trio.sleep(0.001)

    readiness.forget(near)
    near.close()


async def test_a_socket_is_watched_once() -> None:
    near, far = socket.socketpair()
    readiness.watch_hangup(near, list)
    with pytest.raises(ValueError, match="watched already"):
        readiness.watch_hangup(near, list)
    readiness.forget(near)
    near.close()
    far.close()


@pytest.mark.parametrize("failing", [None, OSError(24, "no descriptors")])
async def test_without_a_poller_all_sockets_wait_by_themselves(
    failing: OSError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*, bytes_too: bool) -> None:
        if failing is not None:
            raise failing

    monkeypatch.setattr(readiness, "new_poller", none)
    pairs = Pairs(10)
    async with trio.open_nursery() as nursery:
        for index in range(10):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        assert registered() == 0
        assert not readiness.watch_hangup(pairs.near[0].socket, list)
        for far in pairs.far:
            far.send(b"ping")
    assert len(pairs.received) == 10
    pairs.close()


async def test_an_unwatched_socket_calls_nobody() -> None:
    near, far = socket.socketpair()
    calls: list[int] = []
    readiness.watch_hangup(near, lambda: calls.append(1))
    readiness.unwatch_hangup(near)
    readiness.unwatch_hangup(near)
    far.close()
    for _ in range(5):
        await trio.sleep(0.001)
    assert calls == []
    near.close()


async def test_a_callback_that_raises_is_logged_and_the_next_still_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ValueError("a bug")

    for near, _far in pairs:
        readiness.watch_hangup(near, fail)
    for _near, far in pairs:
        far.close()
    while len(calls) < 2:
        await trio.sleep(0.001)
    assert "a hang-up callback raised" in caplog.text
    for near, _far in pairs:
        readiness.forget(near)
        near.close()


def test_the_hubs_descriptors_end_with_the_run() -> None:
    async def main() -> None:
        pairs = Pairs(8)
        async with trio.open_nursery() as nursery:
            for index in range(8):
                nursery.start_soon(pairs.receive, index)
            await wait_all_tasks_blocked()
            readiness.watch_hangup(pairs.near[0].socket, list)
            await trio.sleep(0)
            nursery.cancel_scope.cancel()
        pairs.close()

    trio.run(main)
    base = len(os.listdir("/proc/self/fd"))
    trio.run(main)
    assert len(os.listdir("/proc/self/fd")) == base


def test_a_child_forked_inside_a_run_does_not_touch_the_hub() -> None:
    async def main() -> bool:
        pairs = Pairs(8)
        async with trio.open_nursery() as nursery:
            for index in range(8):
                nursery.start_soon(pairs.receive, index)
            await wait_all_tasks_blocked()
            # What the hook does in a real child.
            readiness._after_fork()
            watched = readiness.watch_hangup(pairs.near[0].socket, list)
            nursery.cancel_scope.cancel()
        pairs.close()
        return watched

    assert trio.run(main) is False


def test_a_forked_child_has_no_place_in_its_parents_hub() -> None:
    async def main() -> tuple[int, bool]:
        pairs = Pairs(8)
        async with trio.open_nursery() as nursery:
            for index in range(8):
                nursery.start_soon(pairs.receive, index)
            await wait_all_tasks_blocked()
            # Some wait by themselves, whoever came first.
            waiting = [one.socket for one in pairs.near if readiness.entry_of(one.socket)]
            entry = readiness.entry_of(waiting[0])
            assert entry is not None
            child = os.fork()
            if not child:
                known = [entry.registered, readiness.entry_of(waiting[0]) is not None]
                os._exit(int(any(known)))
            _, status = os.waitpid(child, 0)
            here = entry.registered
            nursery.cancel_scope.cancel()
        pairs.close()
        return os.waitstatus_to_exitcode(status), here

    assert trio.run(main) == (0, True)


@pytest.mark.skipif(
    resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 11_000,
    reason="5,000 socket pairs need 11,000 descriptors, more than the hard limit",
)
async def test_five_thousand_sockets_are_served_through_one_wait() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 11_000), hard))
    try:
        pairs = Pairs(5000)
        async with trio.open_nursery() as nursery:
            for index in range(5000):
                nursery.start_soon(pairs.receive, index)
            await wait_all_tasks_blocked()
            assert registered() == 5000 - readiness.DIRECT_WAITS
            for far in pairs.far:
                far.send(b"ping")
        assert len(pairs.received) == 5000
        pairs.close()
        assert registered() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_cancelled_wait_does_not_use_a_remembered_edge_up() -> None:
    pairs = Pairs(8)
    async with trio.open_nursery() as nursery:
        for index in range(7):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        # A short read, so that the next receive waits at once; and a wait, which registers it.
        pairs.far[7].send(b"one")
        await pairs.receive(7)
        with trio.move_on_after(0.001):
            await pairs.receive(7)
        pairs.far[7].send(b"two")
        for _ in range(5):
            await trio.sleep(0.001)
        with trio.move_on_after(0):
            await pairs.receive(7)

        with trio.fail_after(2):
            await pairs.receive(7)
        assert pairs.received[7] == b"two"
        nursery.cancel_scope.cancel()
    pairs.close()


async def test_a_socket_dropped_unclosed_leaves_its_number_to_a_successor() -> None:
    pairs = Pairs(8)
    async with trio.open_nursery() as nursery:
        for index in range(7):
            nursery.start_soon(pairs.receive, index)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0.001):
            await pairs.receive(7)
        dropped = pairs.near.pop().socket
        calls: list[int] = []
        readiness.watch_hangup(dropped, lambda: calls.append(1))
        spare, far = socket.socketpair()
        # What collecting it does: its descriptor is closed, and nobody said `forget`.
        number = dropped.detach()
        near = socket.socket(fileno=os.dup2(spare.fileno(), number))
        spare.close()
        stream = SocketStream(near)
        async with trio.open_nursery() as inner:
            received = []

            async def receive() -> None:
                received.append(await stream.receive_some())

            inner.start_soon(receive)
            await wait_all_tasks_blocked()
            far.send(b"for the successor")
        assert received == [b"for the successor"]
        assert readiness.watch_hangup(near, list)
        stream.close()
        assert stream.closed
        far.close()
        pairs.far.pop().close()
        assert calls == []
        nursery.cancel_scope.cancel()
    pairs.close()


def test_whoever_still_waits_when_the_run_ends_is_woken_by_trios_own_wait() -> None:
    received: list[bytes] = []

    async def wait_to_the_last(stream: SocketStream) -> None:
        with trio.fail_after(3), trio.CancelScope(shield=True):
            received.append(await stream.receive_some())
            stream.close()

    async def speak_late(pairs: Pairs) -> None:
        try:
            await trio.sleep_forever()
        finally:
            # The hub was cancelled at the same time, and is gone after a few more steps.
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                for far in pairs.far:
                    far.send(b"late")
                    far.close()

    async def main() -> None:
        pairs = Pairs(8)
        trio.lowlevel.spawn_system_task(speak_late, pairs)
        for near in pairs.near:
            trio.lowlevel.spawn_system_task(wait_to_the_last, near)
        await wait_all_tasks_blocked()
        assert registered() == 8 - readiness.DIRECT_WAITS

    trio.run(main)
    assert received == [b"late"] * 8
