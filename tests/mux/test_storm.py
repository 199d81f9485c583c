"""An hour of faults, which takes no time: work flows, nobody is stuck, nothing is lost for good."""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

import trionet
from trionet import Backoff, Multiplexer, MuxConfig
from trionet.testing import Link, VirtualNetwork, random_stream, simulate

Ask = Callable[[bytes], Awaitable[None]]

HOUR = 3600.0
CAPACITY, WORKERS = 8, 12
BACKOFF = Backoff(first=0.5, maximum=8.0, jitter=0)
# As long as a worker waits for an answer, and for a connection.
PATIENCE = 15.0


class Storm:
    """A client host, a server host, what lies between them, and what happens to it."""

    def __init__(self, net: VirtualNetwork, nursery: trio.Nursery) -> None:
        self.net = net
        self.nursery = nursery
        self.client, self.server = net.host("client"), net.host("server")
        self.chance = random_stream("storm")
        self.raging = True
        self.done: list[float] = []
        self.plex: Multiplexer
        self.failed_at: set[float] = set()
        self.hurried = 0
        self.events: list[str] = []
        self.faults: dict[str, int] = {"partition": 0, "reset": 0, "restart": 0}

    async def connect(self) -> trio.abc.Stream:
        """Dial the server, and remember how that went."""
        now, retry = trio.current_time(), self.plex._fleet.supply.retry
        # A dial may begin in the very moment in which another one fails.
        self.hurried += retry.resting and now < retry.resume_at and now not in self.failed_at
        try:
            stream = await trio.open_tcp_stream("server", 7000)
        except BaseException:
            self.failed_at.add(trio.current_time())
            raise
        return stream

    async def start_server(self, mux: bool) -> None:
        """Serve until the host goes down."""
        serve = self.serve_session if mux else self.serve_echo
        await self.nursery.start(self.server.run, trio.serve_tcp, partial(self.guard, serve), 7000)

    async def guard(
        self, serve: Callable[[trio.abc.Stream], Awaitable[None]], stream: trio.abc.Stream
    ) -> None:
        """Let a handler end with its connection."""
        try:
            async with stream:
                await serve(stream)
        except trio.BrokenResourceError:
            pass

    async def serve_echo(self, connection: trio.abc.Stream) -> None:
        """Answer each line, which is 8 bytes."""
        async for data in connection:
            await connection.send_all(data)

    async def serve_session(self, connection: trio.abc.Stream) -> None:
        """Answer on each stream of a session."""
        async with (
            trionet.open_mux(connection, role="server") as session,
            trio.open_nursery() as nursery,
        ):
            while True:
                try:
                    stream = await session.listener().accept()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                nursery.start_soon(self.answer, stream)

    async def answer(self, stream: trio.abc.Stream) -> None:
        """Answer on one stream."""
        try:
            async with stream:
                await self.serve_echo(stream)
        except trio.BrokenResourceError:
            pass

    async def rage(self, mux: bool) -> None:
        """Do something to the network every now and then."""
        chance = self.chance
        while True:
            await trio.sleep(chance.uniform(1, 30))
            if trio.current_time() > HOUR:
                break
            what = chance.choice(list(self.faults))
            self.faults[what] += 1
            if what == "partition":
                with self.net.partition(self.client, self.server):
                    await trio.sleep(chance.uniform(0.1, 40))
            elif what == "reset":
                self.net.reset(self.client, self.server)
            else:
                self.server.power_off()
                await trio.sleep(chance.uniform(0.1, 10))
                self.server.restart()
                await self.start_server(mux)
        self.raging = False

    async def work(self, ask: Ask, number: int) -> None:
        """Ask again and again, and give up an answer that does not come."""
        count = 0
        while self.raging or count == 0:
            try:
                with trio.move_on_after(PATIENCE) as scope:
                    await ask(b"%03d %04d" % (number, count % 10_000))
                if not scope.cancelled_caught:
                    count += 1
                    self.done.append(trio.current_time())
                await trio.sleep(self.chance.uniform(0, 4))
            except (trio.BrokenResourceError, OSError):
                await trio.sleep(1)

    async def talk(self, stream: trio.abc.Stream, line: bytes) -> None:
        """Send a line and take it back, twice, and think in between."""
        for pause in (self.chance.uniform(0, 6), 0):
            await stream.send_all(line)
            got = b""
            while len(got) < len(line):
                data = await stream.receive_some()
                if not data:
                    raise trio.BrokenResourceError("the server hung up")
                got += data
            assert got == line
            await trio.sleep(pause)

    def look(self) -> None:
        """Compare what happened with what may."""
        assert min(self.faults.values()) > 10, self.faults
        # Work flowed: something was done in every two minutes.
        moments = [0.0, *self.done, HOUR]
        assert max(b - a for a, b in itertools.pairwise(moments)) < 120
        # No dial began in the pause after a failure, and there were such.
        assert self.hurried == 0
        assert len(self.failed_at) > 10


async def storm(mux: bool) -> None:
    async with (
        VirtualNetwork(link=Link(latency=0.01, jitter=0.005)) as net,
        trio.open_nursery() as nursery,
    ):
        one = Storm(net, nursery)
        with one.client.context():
            await one.start_server(mux)
            await weather(one, mux)
        nursery.cancel_scope.cancel()


async def weather(one: Storm, mux: bool) -> None:
    plex = one.plex = Multiplexer(
        one.connect,
        capacity=CAPACITY,
        scale_after=0.05,
        idle_timeout=None,
        backoff=BACKOFF,
        mux=MuxConfig(keepalive=5, keepalive_timeout=5) if mux else None,
        on_event=lambda event: one.events.append(event.kind),
    )

    async def borrow(line: bytes) -> None:
        async with plex.borrow() as stream:
            await one.talk(stream, line)

    async def open_stream(line: bytes) -> None:
        async with await plex.open_stream() as stream:
            await one.talk(stream, line)

    ask: Ask = open_stream if mux else borrow
    async with plex:
        async with trio.open_nursery() as crowd:
            for number in range(WORKERS):
                crowd.start_soon(one.work, ask, number)
            await one.rage(mux)
        one.look()
        await trio.sleep(30)
        now = plex.statistics()
        assert now.waiting == now.lent == now.leaving == now.connecting == now.closing == 0
        assert now.strength == now.idle == now.size
        assert now.strength == (1 if mux else CAPACITY)
        assert now.connected - now.closed == now.size
        assert now.lost > 20
        assert one.events.count("healed") == now.healed > 5
        # And all of them work.
        with trio.fail_after(10):
            async with trio.open_nursery() as crowd:
                for number in range(now.size):
                    crowd.start_soon(ask, b"%08d" % number)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(int(os.environ.get("PLEX_STORMS", "1"))))
@pytest.mark.parametrize("mux", [False, True], ids=["halves", "sessions"])
def test_an_hour_of_partitions_resets_and_restarts(mux: bool, seed: int) -> None:
    simulate(partial(storm, mux), seed=seed, time_limit=None)
