"""The conformance suites that trio lacks: `check_listener` and `check_network`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .checking import Named
from .listener_rules import GENERAL_RULES, listening
from .stream_rules import STREAM_RULES, check_facts
from .trionet_rules import OUR_RULES

if TYPE_CHECKING:
    from .listener_rules import ListenerMaker

__all__ = ("check_listener",)


async def check_listener(make: ListenerMaker) -> None:
    """Check a listener of your own against the rules of `trio.abc.Listener`.

    A listener that is a `trionet.abc.Listener` is checked against those rules as well, and the
    streams it accepts against the ones of `trionet.abc.Stream` that trio's conformance checks do
    not know. For the rest, give `trio.testing.check_two_way_stream` or
    ``check_half_closeable_stream`` pairs of a dialled and an accepted stream.

    Nothing in it depends on how fast anything is: it takes its time from trio's clock, and so runs
    under a `trio.testing.MockClock` that jumps, unless real sockets are involved.

    Args:
      make: an async function that returns a fresh listener, on which nobody has dialled, and an
        async function that dials it and returns the dialler's stream. It is called some thirty
        times. The listener, and both ends of its connections, are closed by the check; what lies
        underneath, a session or a nursery say, by whoever made it.

    Raises:
      AssertionError: a rule is broken; the message says which, and a note names the check.

    If cancelled, or after a failure, listeners and streams are closed.

    For example::

        async def make():
            (listener,) = await trionet.listen("memu", "site")
            return listener, lambda: trionet.dial("memu", "site")


        async def test_my_listener_is_one():
            await check_listener(make)
    """
    ours = True
    for check in GENERAL_RULES:
        async with listening(make) as subject:
            ours = subject.ours
            with Named("check_listener", check):
                await check(subject)
    if not ours:
        return
    for check in OUR_RULES:
        async with listening(make) as subject:
            with Named("check_listener", check):
                await check(subject)
    for rule in STREAM_RULES:
        async with listening(make) as subject:
            with Named("check_listener", rule):
                near, far = await subject.connect()
                check_facts(far)
                await rule(near, far)
