"""The conformance suites that trio lacks: `check_listener` and `check_network`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from .checking import Named
from .listener_rules import GENERAL_RULES, listening
from .network_arguments import ARGUMENT_RULES
from .network_rules import NETWORK_RULES, Place, at_place
from .stream_rules import STREAM_RULES, check_facts
from .trionet_rules import OUR_RULES

if TYPE_CHECKING:
    from .listener_rules import Dial, ListenerMaker
    from .network_rules import NetworkMaker

__all__ = ("check_listener", "check_network")


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


async def check_network(make: NetworkMaker) -> None:
    """Check a network of your own against the rules of `trionet.abc.Network`.

    Its listeners are checked as `check_listener` does, and its streams, both ends, against the
    rules of `trionet.abc.Stream` and by `trio.testing.check_half_closeable_stream` or
    ``check_two_way_stream``. What differs by kind goes by the word that is listened on: over
    ``memu`` and ``memb`` a full backlog makes a dialler wait, over TCP the port is checked, a
    Unix path is taken over instead of being in use.

    Args:
      make: an async function that returns a network, the word to listen on (``"tcp"`` say), and
        an address on which nobody listens there. It may return the same network each time, if
        the address is free each time: whatever the check opens it closes. It is called some sixty
        times.

    Raises:
      AssertionError: a rule is broken; the message says which, and a note names the check.

    If cancelled, or after a failure, listeners and streams are closed.

    For example::

        async def make():
            return trionet.Network(), "memu", "site"


        async def test_my_network_is_one():
            await check_network(make)
    """
    for check in (*NETWORK_RULES, *ARGUMENT_RULES):
        async with at_place(make) as place:
            with Named("check_network", check):
                await check(place)
    for rule in STREAM_RULES:
        for dialler in (True, False):
            async with at_place(make) as place:
                with Named("check_network", rule):
                    near, far = await place.connect()
                    await rule(far, near) if dialler else await rule(near, far)
    async with at_place(make) as place:
        with Named("check_network", _keeps_trios_contract):
            await _keeps_trios_contract(place)
    for number in range(await _count(make)):
        await check_listener(partial(_listener_of, make, number))


async def _count(make: NetworkMaker) -> int:
    async with at_place(make) as place:
        return len(await place.listen())


async def _listener_of(make: NetworkMaker, number: int) -> tuple[trio.abc.Listener[Any], Dial]:
    """Listen, and keep one listener of those that makes."""
    network, word, address = await make()
    listeners = list(await network.listen(word, address))
    kept = listeners.pop(number)
    for other in listeners:
        await other.aclose()
    return kept, partial(network.dial, word, str(kept.address))


async def _keeps_trios_contract(place: Place) -> None:
    """Its streams keep the contract that trio's own conformance check knows."""

    async def pair() -> tuple[Any, Any]:
        return await place.connect()

    near, far = await pair()
    if all(isinstance(one, trio.abc.HalfCloseableStream) for one in (near, far)):
        await trio.testing.check_half_closeable_stream(pair, None)
    else:
        await trio.testing.check_two_way_stream(pair, None)
