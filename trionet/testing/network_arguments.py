"""What a `trionet.abc.Network` must make of the arguments of ``dial`` and ``listen``.

Each check is a function whose docstring is the rule. It gets a fresh network, on which nobody
listens.
"""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import trio

from .._address import TCP_NETWORKS, Address
from .._options import MemoryOptions, ProxyProtocol, SocketOptions
from .._streams.proxy_protocol import ProxyHeader
from .checking import (
    Raises,
    bounded,
    ends,
    eventually,
    expect,
    interrupted,
    nursery_of_check,
    receive_exactly,
    settle,
    talk,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .network_rules import Place

__all__ = (
    "ARGUMENT_RULES",
    "dials_from_a_local_address",
    "makes_diallers_wait_behind_a_full_backlog",
    "names_wrong_arguments",
    "names_wrong_networks_and_addresses",
    "reads_proxy_headers",
    "speaks_tls",
    "takes_its_own_options",
)

Wrong: TypeAlias = tuple[type[Exception], str, dict[str, Any]]

WRONG_OPTIONS: Final = (5, "fast", object())


async def names_wrong_networks_and_addresses(place: Place) -> None:
    """A network or an address that is none is a ValueError or TypeError that names it."""
    wrong: list[tuple[type[Exception], str, Any, Any]] = [
        (ValueError, "nonsense", "nonsense", place.address),
        (ValueError, "''", place.network, ""),
        (TypeError, "5", place.network, 5),
        (TypeError, "None", None, place.address),
    ]
    if place.network in TCP_NETWORKS:
        wrong += [
            (ValueError, "no-port", place.network, "no-port"),
            (ValueError, "70000", place.network, "127.0.0.1:70000"),
        ]
    calls: list[Callable[..., Awaitable[Any]]] = [place.net.dial, place.net.listen]
    for call in calls:
        for kind, named, network, address in wrong:
            rule = f"{call.__name__}({network!r}, {address!r}) must raise {kind.__name__}"
            await _is_refused(kind, named, rule, partial(call, network, address))
    if place.network in TCP_NETWORKS:
        rule = "dialling port 0 must raise ValueError"
        port_0 = partial(place.net.dial, place.network, "127.0.0.1:0")
        await _is_refused(ValueError, "0", rule, port_0)


async def names_wrong_arguments(place: Place) -> None:
    """A wrong argument is a ValueError or TypeError, raised before anything is opened."""
    address = await place.concrete()
    _, client = _contexts()
    both: list[Wrong] = [
        (TypeError, "ssl_context", {"ssl_context": "none"}),
        *((TypeError, "options", {"options": wrong}) for wrong in WRONG_OPTIONS),
        (TypeError, "options", {"options": _others_options(place)}),
    ]
    listening: list[Wrong] = [
        *both,
        (TypeError, "ssl_context", {"ssl_context": 5}),
        (TypeError, "proxy_protocol", {"proxy_protocol": "v1"}),
        (TypeError, "backlog", {"backlog": "many"}),
        (ValueError, "backlog", {"backlog": 0}),
    ]
    for kind, named, arguments in listening:
        rule = f"listen() with {_shown(arguments)} must raise {kind.__name__}"
        call = partial(place.listen, address, **arguments)
        await _is_refused(kind, named, rule, call)
        await place.refuses(address, f"{rule} before it listens")
    await place.close(await place.listen(address))

    (listener, *_) = await place.listen(address)
    dialling: list[Wrong] = [
        *both,
        (ValueError, "server_hostname", {"server_hostname": "site"}),
        (TypeError, "server_hostname", {"ssl_context": client, "server_hostname": 5}),
        (TypeError, "address", {"local_address": 5}),
        (ValueError, "''", {"local_address": ""}),
    ]
    for kind, named, arguments in dialling:
        rule = f"dial() with {_shown(arguments)} must raise {kind.__name__}"
        await _is_refused(kind, named, rule, partial(place.dial, address, **arguments))
        await settle()
        with Raises(trio.WouldBlock, rule=f"{rule} before it connects"):
            listener.accept_nowait()


async def takes_its_own_options(place: Place) -> None:
    """listen() takes the options of its network, and dial() a `SocketOptions` for a socket."""
    if place.network == "memu":
        return
    options = MemoryOptions(buffer_size=1024) if place.in_memory else SocketOptions()
    (listener, *_) = await place.listen(options=options, backlog=5)
    dialling = {} if place.in_memory else {"options": options}
    near = await place.dial(str(listener.address), **dialling)
    await talk(near, await place.accept(listener))


async def dials_from_a_local_address(place: Place) -> None:
    """With ``local_address`` the dialler's end is there, and the acceptor sees it."""
    (listener, *_) = await place.listen()
    if place.is_unix_path:
        # A file of that name would be left, and whose directory is it?
        return
    if place.network in TCP_NETWORKS:
        # Whatever it is dialled from by itself can be asked for.
        free = await place.dial(str(listener.address))
        await place.accept(listener)
        host = free.local_address.host
        local = f"[{host}]:0" if ":" in host else f"{host}:0"
    else:
        local = f"{place.address}-dialler"
    near = await place.dial(str(listener.address), local_address=local)
    far = await place.accept(listener)
    wanted, got = Address.parse(near.local_address.network, local), near.local_address
    expect(
        (got.host, got.path, got.name) == (wanted.host, wanted.path, wanted.name),
        f"a stream dialled from {local!r} must have that for its local_address, got {got!r}",
    )
    expect(
        far.remote_address == got,
        f"the acceptor must see that it was dialled from {got!r}, got {far.remote_address!r}",
    )


async def makes_diallers_wait_behind_a_full_backlog(place: Place) -> None:
    """In memory a dialler waits while the backlog is full, and is refused when it closes."""
    if not place.in_memory:
        # A kernel's backlog is a hint, and what it does with more differs.
        return
    (listener, *_) = await place.listen(backlog=1)
    first = await place.dial(place.address)
    rule = "a dialler must wait while as many connections as the backlog says are queued"
    attempt = await interrupted(
        2, partial(place.net.dial, place.network, place.address), then=settle
    )
    expect(not attempt.finished, rule)

    dialled: list[Any] = []

    async def dial() -> None:
        dialled.append(await place.net.dial(place.network, place.address))
        place.resources.append(dialled[0])

    async with nursery_of_check() as nursery:
        nursery.start_soon(dial)
        await settle()
        expect(not dialled, rule)
        await talk(first, await place.accept(listener))
        await eventually(lambda: bool(dialled), "a waiting dialler must go on when there is room")
    refused = "a dialler that waits must get ConnectionRefusedError when it closes"

    async def dial_in_vain() -> None:
        with bounded(refused), Raises(ConnectionRefusedError, rule=refused):
            await place.net.dial(place.network, place.address)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial_in_vain)
        await settle()
        listener.close()
    with Raises(trio.BrokenResourceError, rule="what was queued must break when it closes"):
        await dialled[0].receive_some()


async def speaks_tls(place: Place) -> None:
    """With ``ssl_context`` both ends are TLS, and neither dial() nor accept() shakes hands."""
    server, client = _contexts()
    (listener, *_) = await place.listen(ssl_context=server)
    address = str(listener.address)
    near = await place.dial(address, ssl_context=client)
    far = await place.accept(listener)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.do_handshake)
        nursery.start_soon(far.do_handshake)
    await talk(near, far)

    # Whoever does not speak TLS breaks the handshake, for good.
    plain = await place.dial(address)
    far = await place.accept(listener)
    async with nursery_of_check() as nursery:
        nursery.start_soon(_send_quietly, plain, b"GET / HTTP/1.1\r\nHost: site\r\n\r\n")
        nursery.start_soon(_receive_quietly, plain)
        for _ in range(2):
            rule = "a failed handshake must raise Broken, and so must every call after it"
            with bounded(rule), Raises(trio.BrokenResourceError, rule=rule):
                await far.do_handshake()

    # One that was cancelled is resumed.
    near = await place.dial(address, ssl_context=client)
    far = await place.accept(listener)
    with trio.move_on_after(0):
        await near.do_handshake()
    await talk(near, far)

    # One that never began needs no farewell.
    near = await place.dial(address, ssl_context=client)
    far = await place.accept(listener)
    with bounded("closing before the handshake must not wait for one"):
        await near.aclose()
    with bounded("a connection closed before the handshake must break it"):
        try:
            await ends(far, "a connection closed before the handshake must not carry bytes")
        finally:
            await far.aclose()


async def reads_proxy_headers(place: Place) -> None:
    """With ``proxy_protocol`` the header is read, and the client's address is the one in it."""
    trusted = ["0.0.0.0/0", "::/0", "unix", "memu", "memb"]
    client = Address("tcp4", host="192.0.2.1", port=56324)
    header = ProxyHeader("v2", client, Address("tcp4", host="192.0.2.11", port=443))
    (listener, *_) = await place.listen(proxy_protocol=ProxyProtocol(trusted=trusted))
    near = await place.dial(str(listener.address))
    far = await place.accept(listener)
    async with nursery_of_check() as nursery:
        nursery.start_soon(near.send_all, header.encode() + b"x")
        rule = "what follows a PROXY header must be received, and the header must not"
        with bounded(rule):
            data = await receive_exactly(far, 1)
        expect(data == b"x", f"{rule}; {data!r} came")
    got = far.remote_address
    expect(
        got == client,
        f"behind a proxy remote_address must be the client's {client!r}, got {got!r}",
    )


async def _is_refused(
    kind: type[Exception], named: str, rule: str, call: Callable[[], Awaitable[Any]]
) -> None:
    try:
        with bounded(rule):
            await call()
    except kind as exc:
        expect(named in str(exc), f"{rule} and name {named!r}; it says {str(exc)!r}")
    except (OSError, ValueError, TypeError, AttributeError, trio.BrokenResourceError) as exc:
        raise AssertionError(f"{rule}; {exc!r} was raised") from exc
    else:
        raise AssertionError(f"{rule}; nothing was raised")


def _others_options(place: Place) -> object:
    return SocketOptions() if place.in_memory else MemoryOptions()


def _shown(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return contexts of a server and a client that need no certificate.

    Anonymous Diffie-Hellman (RFC 5246 appendix F.1.1.1): of no use against an attacker, and all
    that a check of the plumbing needs. TLS 1.3 has no such thing.
    """
    contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in contexts:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("aNULL:@SECLEVEL=0")
    contexts[1].check_hostname = False
    contexts[1].verify_mode = ssl.CERT_NONE
    return contexts


async def _send_quietly(stream: trio.abc.SendStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        return


async def _receive_quietly(stream: trio.abc.ReceiveStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        return


ARGUMENT_RULES: Final = (
    names_wrong_networks_and_addresses,
    names_wrong_arguments,
    takes_its_own_options,
    dials_from_a_local_address,
    makes_diallers_wait_behind_a_full_backlog,
    speaks_tls,
    reads_proxy_headers,
)
