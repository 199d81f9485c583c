"""What a `trionet.abc.Network` must do: names, dialling, refusing, cancelling.

Each check is a function whose docstring is the rule. It gets a fresh network, on which nobody
listens.
"""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

import trio

from .. import abc
from .._address import MEMORY_NETWORKS, TCP_NETWORKS, Address
from .checking import (
    Attempt,
    Raises,
    bounded,
    checkpointed,
    ends,
    expect,
    interrupted,
    nursery_of_check,
    settle,
    sweep,
    talk,
)
from .stream_rules import check_facts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

__all__ = (
    "NETWORK_RULES",
    "NetworkMaker",
    "Place",
    "at_place",
    "dials_before_anybody_accepts",
    "dials_wholly_or_not",
    "gives_the_address_back",
    "listens_and_dials",
    "listens_on_one_port",
    "listens_wholly_or_not",
    "refuses_an_address_in_use",
    "refuses_where_nobody_listens",
    "tells_both_ends",
)

NetworkMaker: TypeAlias = "Callable[[], Awaitable[tuple[abc.Network, str, str]]]"


@final
@dataclass
class Place:
    """A network under test, the word and the address to listen on, and what that has led to."""

    net: abc.Network
    network: str
    address: str
    resources: list[trio.abc.AsyncResource] = field(default_factory=list)

    @property
    def in_memory(self) -> bool:
        """Whether the words of memory count: a backlog that diallers wait for, names."""
        return self.network in MEMORY_NETWORKS

    @property
    def is_unix_path(self) -> bool:
        """Whether the address is a file, which a second listener takes over."""
        return self.network == "unix" and not self.address.startswith("@")

    async def listen(self, address: str | None = None, **arguments: Any) -> list[Any]:
        """Listen, and close the listeners in the end."""
        with bounded("listen() must not wait for ever"):
            listeners = await self.net.listen(
                self.network, self.address if address is None else address, **arguments
            )
        found = list(listeners)
        self.resources += found
        return found

    async def dial(self, address: str, **arguments: Any) -> Any:
        """Dial, and close the stream in the end."""
        with bounded("dial() must not wait for ever, whether anybody accepts or not"):
            stream = await self.net.dial(self.network, address, **arguments)
        self.resources.append(stream)
        return stream

    async def accept(self, listener: abc.Listener[Any]) -> Any:
        """Accept, and close the stream in the end."""
        with bounded("what was dialled must be accepted"):
            stream = await listener.accept()
        self.resources.append(stream)
        return stream

    async def connect(self) -> tuple[Any, Any]:
        """Listen, dial, accept, stop listening; return both ends."""
        listeners = await self.listen()
        near = await self.dial(str(listeners[0].address))
        far = await self.accept(listeners[0])
        await self.close(listeners)
        return near, far

    async def concrete(self) -> str:
        """Return the address, with a port that was free a moment ago where none was given."""
        listeners = await self.listen()
        address = str(listeners[0].address)
        await self.close(listeners)
        return address

    async def close(self, resources: Sequence[trio.abc.AsyncResource]) -> None:
        """Close some listeners or streams, one after the other."""
        for one in resources:
            await trio.aclose_forcefully(one)

    async def refuses(self, address: str, rule: str) -> None:
        """Expect that nobody listens on ``address``."""
        # A Unix path that does not exist is no file to the system, which it says.
        kinds = (ConnectionRefusedError, *([FileNotFoundError] if self.network == "unix" else []))
        with Raises(*kinds, rule=rule):
            await self.dial(address)


@asynccontextmanager
async def at_place(make: NetworkMaker) -> AsyncIterator[Place]:
    """Make a place, and close everything in the end."""
    place = Place(*await make())
    try:
        yield place
    finally:
        for resource in reversed(place.resources):
            await trio.aclose_forcefully(resource)


async def listens_and_dials(place: Place) -> None:
    """listen() returns listeners; what dial() returns is connected to what one of them accepts."""
    expect(
        isinstance(place.net, abc.Network),
        f"a network must be a trionet.abc.Network, got {place.net!r}",
    )
    with checkpointed("listen() must execute a checkpoint"):
        listeners = await place.listen()
    expect(len(listeners) > 0, "listen() must return at least one listener")
    for listener in listeners:
        expect(
            isinstance(listener, abc.Listener),
            f"listen() must return trionet.abc.Listeners, got {listener!r}",
        )
        with checkpointed("dial() must execute a checkpoint"):
            near = await place.dial(str(listener.address))
        far = await place.accept(listener)
        check_facts(near)
        check_facts(far)
        await talk(near, far)


async def listens_on_one_port(place: Place) -> None:
    """All listeners of one listen() have one port, which is not 0."""
    listeners = await place.listen()
    for listener in listeners:
        address = listener.address
        parsed = Address.parse(address.network, str(address))
        expect(parsed == address, f"{address!r} must read as itself, its text gives {parsed!r}")
    if place.network in TCP_NETWORKS:
        ports = {listener.address.port for listener in listeners}
        expect(
            len(ports) == 1 and 0 not in ports,
            f"all listeners of one listen() must have one port, they have {ports}",
        )


async def tells_both_ends(place: Place) -> None:
    """Either end of a connection has the other's local address as its remote one."""
    listener = (await place.listen())[0]
    near = await place.dial(str(listener.address))
    far = await place.accept(listener)
    for one, other in ((near, far), (far, near)):
        expect(
            one.remote_address == other.local_address,
            f"both ends of a connection must agree on its addresses: {one!r} is connected to "
            f"{other.local_address!r} and takes it for {one.remote_address!r}",
        )
    # A listener for all addresses has none of them for its own.
    dialled, reached = listener.address, near.remote_address
    expect(
        dialled.port == reached.port if place.network in TCP_NETWORKS else dialled == reached,
        f"a dialler's remote_address must be what it dialled, {dialled!r}, got {reached!r}",
    )


async def dials_before_anybody_accepts(place: Place) -> None:
    """dial() returns though nobody accepts, and what was sent meanwhile is there later."""
    listener = (await place.listen())[0]
    first = await place.dial(str(listener.address))
    second = await place.dial(str(listener.address))
    async with nursery_of_check() as nursery:
        nursery.start_soon(first.send_all, b"early")
        await settle()
        far = await place.accept(listener)
        with bounded("what was sent before the connection was accepted must arrive"):
            data = await far.receive_some(5)
        expect(data == b"early", f"what was sent before accept() must arrive, {data!r} did")
    await talk(second, await place.accept(listener))


async def refuses_where_nobody_listens(place: Place) -> None:
    """An address that nobody listens on, or not any more, is refused at once."""
    listeners = await place.listen()
    address = str(listeners[0].address)
    near = await place.dial(address)
    far = await place.accept(listeners[0])
    await place.close(listeners)
    await place.refuses(address, "an address whose listener was closed must be refused")
    await talk(near, far)


async def refuses_an_address_in_use(place: Place) -> None:
    """Listening where somebody listens is EADDRINUSE; a Unix path is taken over instead."""
    (listener, *_) = await place.listen()
    address = str(listener.address)
    if place.is_unix_path:
        (second, *_) = await place.listen(address)
        near = await place.dial(address)
        await talk(near, await place.accept(second))
        await trio.aclose_forcefully(listener)
        await talk(await place.dial(address), await place.accept(second))
        return
    rule = "listening on an address in use must raise OSError(EADDRINUSE)"
    try:
        await place.listen(address)
    except OSError as exc:
        expect(exc.errno == errno.EADDRINUSE, f"{rule}; {exc!r} was raised")
    else:
        raise AssertionError(f"{rule}; nothing was raised")
    near = await place.dial(address)
    await talk(near, await place.accept(listener))


async def gives_the_address_back(place: Place) -> None:
    """A closed listener's address can be listened on again."""
    address = await place.concrete()
    for _ in range(2):
        listeners = await place.listen(address)
        near = await place.dial(address)
        await talk(near, await place.accept(listeners[0]))
        await place.close(listeners)


async def listens_wholly_or_not(place: Place) -> None:
    """A cancelled listen() leaves nothing listening, and the address free."""
    address = await place.concrete()

    async def attempt(n: int) -> Attempt:
        made = await interrupted(n, lambda: place.listen(address))
        expect(n > 0 or not made.finished, "listen() in a cancelled scope must raise Cancelled")
        if made.finished:
            await place.close(made.result)
        rule = "a cancelled listen() must leave nothing listening"
        await place.refuses(address, rule)
        try:
            listeners = await place.listen(address)
        except OSError as exc:
            raise AssertionError(f"{rule}; {exc!r} was raised") from exc
        await place.close(listeners)
        return made

    await sweep(attempt)


async def dials_wholly_or_not(place: Place) -> None:
    """A cancelled dial() leaves no connection: one that is accepted nevertheless has ended."""
    (listener, *_) = await place.listen()
    address = str(listener.address)
    rule = "a cancelled dial() must leave no connection behind"

    async def attempt(n: int) -> Attempt:
        made = await interrupted(n, lambda: place.dial(address))
        expect(n > 0 or not made.finished, "dial() in a cancelled scope must raise Cancelled")
        if made.finished:
            await trio.aclose_forcefully(made.result)
        await settle()
        while True:
            try:
                far = listener.accept_nowait()
            except trio.WouldBlock:
                return made
            place.resources.append(far)
            await ends(far, rule)

    await sweep(attempt)


NETWORK_RULES: Final = (
    listens_and_dials,
    listens_on_one_port,
    tells_both_ends,
    dials_before_anybody_accepts,
    refuses_where_nobody_listens,
    refuses_an_address_in_use,
    gives_the_address_back,
    listens_wholly_or_not,
    dials_wholly_or_not,
)
