"""A network for each rule that it breaks; its docstring says how."""

from __future__ import annotations

import errno
from typing import Any

import trio

import trionet
from tests.testing.broken import PlainListener, SoundListener, SoundStream
from tests.testing.broken_streams import NeverReadable
from trionet._streams.memory import connect
from trionet._streams.memory_listener import MemoryListener
from trionet._streams.network import SystemNetwork
from trionet.abc import Network

__all__ = ("BROKEN", "SoundNetwork", "TwoPorts")


class SoundNetwork(Network):
    """Hands everything to a network of memory."""

    def __init__(self) -> None:
        self.inner = trionet.Network()

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        return await self.inner.dial(network, address, **arguments)

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        return await self.inner.listen(network, address, **arguments)


class NoNetwork:
    """Looks like a network, and is none."""

    def __init__(self) -> None:
        inner = trionet.Network()
        self.dial, self.listen = inner.dial, inner.listen


class ListensAtOnce(SoundNetwork):
    """Listens without a checkpoint."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        names = self.inner._listeners
        key = (network, address)
        found = MemoryListener(
            trionet.Address(network, name=address), None, 128, lambda: names.pop(key)
        )
        names[key] = found
        return [found]


class DialsAtOnce(SoundNetwork):
    """Dials without a checkpoint."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        listener = self.inner._listeners[network, address]
        near, far = connect((listener.address, 1), listener.address, 65536)
        listener._queue.append(far)
        return near


class NobodyListens(SoundNetwork):
    """Returns no listener."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return []


class TriosListeners(SoundNetwork):
    """Returns trio's kind of listeners."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        return [PlainListener(one) for one in await super().listen(network, address, **arguments)]


class TwoPorts(Network):
    """Listens on two ports."""

    inner = SystemNetwork()

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        return await self.inner.dial(network, address, **arguments)

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        first = await self.inner.listen(network, address, **arguments)
        return [*first, *await self.inner.listen(network, "127.0.0.1:0", **arguments)]


class OtherAddress(SoundListener):
    """Calls itself what nobody can dial."""

    @property
    def address(self) -> trionet.Address:
        return trionet.Address("memb", host="localhost", port=5)


class Unreadable(SoundNetwork):
    """Has listeners whose address reads as another."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        return [OtherAddress(one) for one in await super().listen(network, address, **arguments)]

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        return await super().dial(network, "site", **arguments)


class Swapped(SoundStream):
    """Takes its own address for its peer's."""

    @property
    def remote_address(self) -> trionet.Address:
        return self.inner.local_address


class SwapsEnds(SoundNetwork):
    """Takes a dialler's own address for its peer's."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        return Swapped(await super().dial(network, address, **arguments))


class WaitsToBeAccepted(SoundNetwork):
    """Dials until somebody has accepted."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        stream = await super().dial(network, address, **arguments)
        listener = self.inner._listeners[network, address]
        while listener._queue:
            await trio.sleep(0.01)
        return stream


class WaitsForAListener(SoundNetwork):
    """Dials until somebody listens."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        while True:
            try:
                return await super().dial(network, address, **arguments)
            except ConnectionRefusedError:
                await trio.sleep(1)


class TimesOut(SoundNetwork):
    """Says TimeoutError where nobody listens."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        try:
            return await super().dial(network, address, **arguments)
        except ConnectionRefusedError as exc:
            raise TimeoutError from exc


class SharesNames(SoundNetwork):
    """Lets a second listener take a name over."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        self.inner._listeners.pop((network, address), None)
        (listener,) = await super().listen(network, address, **arguments)
        listener._forget = lambda: self.inner._listeners.pop((network, address), None)
        return [listener]


class NotPermitted(SoundNetwork):
    """Says EACCES where somebody listens already."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        try:
            return await super().listen(network, address, **arguments)
        except OSError as exc:
            raise PermissionError(errno.EACCES, "in use") from exc


class OneTimeNames(SoundNetwork):
    """Does not give a name back."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        if address in self.used:
            raise OSError(errno.EADDRINUSE, address)
        found = await super().listen(network, address, **arguments)
        self.used.add(address)
        return found


class ListensThenLooks(SoundNetwork):
    """Looks whether it is cancelled once it listens."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        found = await super().listen(network, address, **arguments)
        await trio.lowlevel.checkpoint()
        return found


class DialsThenLooks(SoundNetwork):
    """Looks whether it is cancelled once it has dialled."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        stream = await super().dial(network, address, **arguments)
        self.kept.append(stream)
        await trio.lowlevel.checkpoint()
        return stream


class NotCancelled(SoundNetwork):
    """Dials though it is cancelled."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        with trio.CancelScope(shield=True):
            return await super().dial(network, address, **arguments)


class AnyNetwork(SoundNetwork):
    """Takes any word for a network of memory."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        return await super().listen("memb", address, **arguments)

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        return await super().dial("memb", address, **arguments)


class SaysLittle(SoundNetwork):
    """Does not name what was wrong."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        try:
            return await super().dial(network, address, **arguments)
        except ValueError:
            raise ValueError("no") from None


class AnyBacklog(SoundNetwork):
    """Takes anything for a backlog."""

    async def listen(
        self, network: str, address: str, *, backlog: Any = None, **arguments: Any
    ) -> Any:
        return await super().listen(network, address, **arguments)


class AnyOptions(SoundNetwork):
    """Takes anything for options when it dials."""

    async def dial(
        self, network: str, address: str, *, options: Any = None, **arguments: Any
    ) -> Any:
        return await super().dial(network, address, **arguments)


class NoOptions(SoundNetwork):
    """Takes no options, not even its own."""

    async def listen(
        self, network: str, address: str, *, options: Any = None, **arguments: Any
    ) -> Any:
        if options is not None:
            raise TypeError(f"options are not for us, got {options!r}")
        return await super().listen(network, address, **arguments)


class ChecksLate(SoundNetwork):
    """Listens, and then looks at the arguments."""

    async def listen(
        self, network: str, address: str, *, backlog: Any = None, **arguments: Any
    ) -> Any:
        found = await super().listen(network, address, **arguments)
        if backlog == "many":
            raise TypeError("backlog must be an int")
        return found


class ConnectsBeforeItLooks(SoundNetwork):
    """Connects, and then looks at the arguments."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        if arguments:
            await super().dial(network, address)
        return await super().dial(network, address, **arguments)


class FromAnywhere(SoundNetwork):
    """Checks the local address, and then does not use it."""

    async def dial(
        self, network: str, address: str, *, local_address: Any = None, **arguments: Any
    ) -> Any:
        if local_address is not None:
            trionet.Address.parse(network, local_address)
        return await super().dial(network, address, **arguments)


class BoundlessBacklog(SoundNetwork):
    """Lets any number of connections queue."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        (listener,) = found = await super().listen(network, address, **arguments)
        if isinstance(listener, MemoryListener):
            listener._backlog = 1000
        return found


class LeavesDiallersWaiting(SoundNetwork):
    """Lets the diallers behind a full backlog wait on when the listener closes."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        try:
            return await super().dial(network, address, **arguments)
        except ConnectionRefusedError:
            if (network, address) not in self.inner._listeners and self.full:
                await trio.sleep_forever()
            raise

    full = False

    async def listen(
        self, network: str, address: str, *, backlog: Any = None, **arguments: Any
    ) -> Any:
        self.full = backlog == 1
        return await super().listen(network, address, backlog=backlog, **arguments)


class PlainText(SoundNetwork):
    """Leaves TLS out."""

    async def listen(
        self, network: str, address: str, *, ssl_context: Any = None, **arguments: Any
    ) -> Any:
        if isinstance(ssl_context, str | int):
            raise TypeError("ssl_context")
        return await super().listen(network, address, **arguments)


class ShakesHands(SoundNetwork):
    """Does the handshake when it dials."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        stream = await super().dial(network, address, **arguments)
        if "ssl_context" in arguments:
            await stream.do_handshake()
        return stream


class NoHeader(SoundNetwork):
    """Does not read the header of a proxy."""

    async def listen(
        self, network: str, address: str, *, proxy_protocol: Any = None, **arguments: Any
    ) -> Any:
        if isinstance(proxy_protocol, str):
            raise TypeError("proxy_protocol")
        return await super().listen(network, address, **arguments)


class DiallersNotReadable(SoundNetwork):
    """Has streams that notice nothing, on the dialler's side alone."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        stream = await super().dial(network, address, **arguments)
        return NeverReadable(stream) if isinstance(stream, trionet.MemoryStream) else stream


class ReceivesNothing(SoundStream):
    """Takes 0 for a number of bytes to receive."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if max_bytes == 0:
            await trio.lowlevel.checkpoint()
            return b""
        return await super().receive_some(max_bytes)


class BreaksTriosContract(SoundNetwork):
    """Has streams that trio's own check refuses."""

    async def dial(self, network: str, address: str, **arguments: Any) -> Any:
        stream = await super().dial(network, address, **arguments)
        return ReceivesNothing(stream) if isinstance(stream, trionet.MemoryStream) else stream


class ImpatientListener(SoundListener):
    """Does not wait in wait_acceptable()."""

    async def wait_acceptable(self) -> None:
        await trio.lowlevel.checkpoint()


class BadListeners(SoundNetwork):
    """Has listeners that `check_listener` refuses."""

    async def listen(self, network: str, address: str, **arguments: Any) -> Any:
        (listener,) = found = await super().listen(network, address, **arguments)
        return [ImpatientListener(listener)] if isinstance(listener, MemoryListener) else found


BROKEN = [
    (NoNetwork, r"must be a trionet\.abc\.Network"),
    (ListensAtOnce, r"listen\(\) must execute a checkpoint"),
    (DialsAtOnce, r"dial\(\) must execute a checkpoint"),
    (NobodyListens, "at least one listener"),
    (TriosListeners, r"must return trionet\.abc\.Listeners"),
    (Unreadable, "must read as itself"),
    (SwapsEnds, "both ends of a connection must agree"),
    (WaitsToBeAccepted, r"dial\(\) must not wait for ever, whether anybody accepts or not"),
    (WaitsForAListener, "must be refused|must not wait for ever"),
    (TimesOut, r"whose listener was closed must be refused; TimeoutError\(\) was raised"),
    (SharesNames, r"must raise OSError\(EADDRINUSE\); nothing was raised"),
    (NotPermitted, r"must raise OSError\(EADDRINUSE\); PermissionError"),
    (OneTimeNames, "can be listened on again"),
    (ListensThenLooks, r"a cancelled listen\(\) must leave nothing listening"),
    (DialsThenLooks, r"a cancelled dial\(\) must leave no connection behind"),
    (NotCancelled, r"dial\(\) in a cancelled scope must raise Cancelled"),
    (AnyNetwork, "must raise ValueError"),
    (SaysLittle, "and name 'nonsense'; it says 'no'"),
    (AnyBacklog, r"listen\(\) with backlog='many' must raise TypeError; nothing was raised"),
    (AnyOptions, r"dial\(\) with options=5 must raise TypeError; nothing was raised"),
    (NoOptions, "takes the options of its network"),
    (ChecksLate, "must raise TypeError before it listens"),
    (ConnectsBeforeItLooks, "must raise TypeError before it connects"),
    (FromAnywhere, "must have that for its local_address"),
    (BoundlessBacklog, "a dialler must wait while as many connections"),
    (
        LeavesDiallersWaiting,
        "must get ConnectionRefusedError when it closes; it still waited",
    ),
    (PlainText, "With ``ssl_context`` both ends are TLS"),
    (ShakesHands, r"dial\(\) must not wait for ever"),
    (NoHeader, "PROXY header must be received, and the header must not"),
    (DiallersNotReadable, r"is_readable\(\) must turn true"),
    (BreaksTriosContract, "Its streams keep the contract"),
    (BadListeners, r"wait_acceptable\(\) must"),
]
