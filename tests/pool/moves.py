"""What the machines of this room have in common: what users, peers and time do, and the end."""

from __future__ import annotations

from functools import partial

import trio
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.pool.stage import Stage
from trionet import PoolClosedError


class Moves(Stage):
    """A stage on which somebody is cancelled, a dial answered, a connection dies; and its end."""

    @precondition(lambda self: self.in_state("waiting") or self.in_state("holding"))
    @rule(which=st.integers(0, 9))
    def cancel(self, which: int) -> None:
        """Somebody who waits or holds is cancelled."""
        active = self.in_state("waiting") + self.in_state("holding")
        self.move(active[which % len(active)].scope.cancel)

    @precondition(lambda self: self.in_state("holding"))
    @rule(which=st.integers(0, 9), what=st.sampled_from(["release"] * 4 + ["raise", "discard"]))
    def let_go(self, which: int, what: str) -> None:
        """A body ends."""
        holding = self.in_state("holding")
        self.move(lambda: holding[which % len(holding)].tell(what))

    @precondition(lambda self: self.pending)
    @rule(which=st.integers(0, 3), well=st.sampled_from([True, True, True, False]))
    def answer(self, which: int, well: bool) -> None:
        """A peer answers a dial, or refuses it."""
        dial = self.pending[which % len(self.pending)]
        dial.error = None if well else OSError("refused")
        self.move(dial.decided.set)

    @precondition(lambda self: self.idle())
    @rule(which=st.integers(0, 3))
    def die(self, which: int) -> None:
        """The peer of an idle connection goes away."""
        idle = self.idle()

        def action() -> None:
            idle[which % len(idle)].dead = True

        self.move(action)

    @precondition(lambda self: any(not c.closing for c in self.made))
    @rule(which=st.integers(0, 3), mood=st.sampled_from(["well", "ill", "mute"]))
    def sicken(self, which: int, mood: str) -> None:
        """The peer of a connection will answer badly, or not at all."""
        alive = [c for c in self.made if not c.closing]

        def action() -> None:
            alive[which % len(alive)].mood = mood

        self.move(action)

    @rule(seconds=st.sampled_from([0.01, 0.5, 0.6, 2.0, 3.0, 5.0, 9.5, 10.0, 28.0, 40.0]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.move(lambda: self.jump(seconds))

    # The end

    def teardown(self) -> None:
        """Let everybody have a turn, then end the pool in one of the four ways."""
        try:
            if not self.failed_move:
                self.everybody_gets_a_turn()
                self.the_end()
        finally:
            trio.from_thread.run_sync(self.over.set, trio_token=self.token)
            self.thread.join()

    def be_generous(self) -> None:
        """Answer every dial, give back what is held, and let time pass."""
        for connection in self.made:
            connection.mood = "well"
        for dial in self.pending:
            dial.decided.set()
        for client in self.in_state("holding"):
            client.tell("release")
        self.put_back()
        self.jump(1.0)

    def everybody_gets_a_turn(self) -> None:
        """Invariant 15."""
        for _ in range(40):
            self.move(self.be_generous, single=False)
            if not self.in_state("waiting"):
                break
        assert not self.in_state("waiting"), "15: somebody waits for ever"
        self.move(self.acquire_task)
        last = self.clients[-1]
        for _ in range(12):
            self.move(self.be_generous, single=False)
        assert last.state == "done"
        assert last.connection is not None, "15: nobody can be served any more"

    def the_end(self) -> None:
        """Invariant 12."""

        def more_than_can_be_served() -> None:
            self.crowd()
            for dial in self.pending:
                dial.decided.set()

        self.move(more_than_can_be_served, single=False)

        def leave() -> None:
            self.ending = True
            self.leave.set()
            if self.end == "cancel":
                self.block_scope.cancel()

        self.move(leave, single=False)
        assert not self.in_state("waiting"), "12: somebody waits in a closed pool"
        if self.end == "normal":
            for client in self.in_state("holding"):
                self.move(partial(client.tell, "release"), single=False)
        for _ in range(8):
            self.move(lambda: self.jump(1.0), single=False)
        assert self.left, "12: the block does not end"
        assert all(connection.gone for connection in self.made), "12: something is open"
        assert not self.pool.statistics().size, "12: a slot is taken"
        for client in self.in_state("holding"):
            self.move(partial(client.tell, "release"), single=False)
        self.move(self.acquire_task)
        assert isinstance(self.clients[-1].error, PoolClosedError), "12: it lends after the end"
        assert not any(client.state != "done" for client in self.clients)
