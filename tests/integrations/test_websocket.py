"""Websockets over trionet, against trio-websocket's own clients and servers and raw bytes."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio_websocket
from trio.testing import wait_all_tasks_blocked
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    ConnectionTimeout,
    DisconnectionTimeout,
    HandshakeError,
    WebSocketRequest,
)

import trionet
from tests.helpers import cancelled_at
from trionet.integrations.websocket import WebSocketOptions, open_websocket, websocket_handler

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.conftest import Certificates

NETWORKS = pytest.mark.parametrize("network", ["memu", "memb", "tcp", "unix"])
REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def shout(request: WebSocketRequest) -> None:
    """Send everything back, louder."""
    websocket = await request.accept()
    while True:
        message = await websocket.get_message()
        await websocket.send_message(message.upper())


async def start(
    nursery: trio.Nursery,
    handler: Any = shout,
    network: str = "memb",
    address: str = "chat",
    *,
    grace: float = 10,
    tls: Any = None,
    **settings: Any,
) -> trionet.Server:
    server: trionet.Server = await nursery.start(
        partial(
            trionet.serve,
            websocket_handler(handler, **settings),
            network,
            address,
            grace=grace,
            ssl_context=tls,
        )
    )
    return server


@NETWORKS
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_messages_go_both_ways_on_every_network(
    network: str,
    secure: bool,
    tmp_path: Path,
    nursery: trio.Nursery,
    certificates: Certificates,
) -> None:
    address = {"tcp": "127.0.0.1:0", "unix": str(tmp_path / "s")}.get(network, "chat")
    tls = certificates.server if secure else None
    server = await start(nursery, network=network, address=address, tls=tls)

    async with open_websocket(
        "wss://localhost/room?x=1" if secure else "ws://localhost/room?x=1",
        network,
        str(server.addresses[0]),
        ssl_context=certificates.client if secure else None,
    ) as websocket:
        await websocket.send_message("hello")
        assert await websocket.get_message() == "HELLO"
        await websocket.send_message(b"x" * 100_000)
        assert await websocket.get_message() == b"X" * 100_000
        await websocket.ping()
    server.shutdown()
    await server.wait_closed()
    assert server.statistics().completed == 1


async def test_the_server_learns_path_host_headers_and_subprotocols(
    nursery: trio.Nursery,
) -> None:
    async def handler(request: WebSocketRequest) -> None:
        headers = dict(request.headers)
        assert request.path == "/a/b?c=d"
        assert headers[b"x-colour"] == b"green"
        assert request.proposed_subprotocols == ("soap", "wamp")
        assert "chat" in str(request.local)
        websocket = await request.accept(subprotocol="wamp", extra_headers=[(b"x-a", b"b")])
        await websocket.send_message("welcome")

    await start(nursery, handler)

    async with open_websocket(
        "ws://chat:81/a/b?c=d",
        "memb",
        subprotocols=["soap", "wamp"],
        extra_headers=[(b"x-colour", b"green")],
    ) as websocket:
        assert websocket.subprotocol == "wamp"
        assert (b"x-a", b"b") in websocket.handshake_headers
        assert await websocket.get_message() == "welcome"
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.get_message()
        assert caught.value.reason is not None
        assert caught.value.reason.code == 1000


@pytest.mark.parametrize(
    ("url", "network", "where"),
    [
        ("ws://[::1]:81/", "tcp", ("tcp", "[::1]:81", b"[::1]:81")),
        ("ws://a.example", "tcp", ("tcp", "a.example:80", b"a.example")),
        ("ws://a.example:80", "tcp4", ("tcp4", "a.example:80", b"a.example")),
        ("ws://chat/x", "memu", ("memu", "chat", b"chat")),
    ],
)
async def test_without_an_address_the_url_says_where_to_go(
    url: str, network: str, where: tuple[str, str, bytes], nursery: trio.Nursery
) -> None:
    near, far = trionet.memory_stream_pair(1000)
    dialled = []

    async def dial(network: str, address: str) -> trionet.MemoryStream:
        dialled.append((network, address))
        return near

    async def answer() -> None:
        request = bytes(await far.receive_some())
        host = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"host:"))
        assert host.split(b" ", 1)[1] == where[2]
        await far.aclose()

    nursery.start_soon(answer)
    with pytest.raises(HandshakeError, match="ended the connection in the handshake"):
        async with open_websocket(url, network, dial=dial):
            pass
    assert dialled == [where[:2]]


async def test_a_network_may_stand_for_dial(nursery: trio.Nursery) -> None:
    own = trionet.Network()
    server = trionet.Server(websocket_handler(shout))
    await nursery.start(server.serve, await own.listen("memb", "chat"))

    async with open_websocket("ws://chat", "memb", dial=own) as websocket:
        await websocket.send_message("hello")
        assert await websocket.get_message() == "HELLO"


# trio-websocket on the other side


async def test_trio_websockets_own_client_is_served(nursery: trio.Nursery) -> None:
    server = await start(nursery, network="tcp", address="127.0.0.1:0")

    url = f"ws://{server.addresses[0]}/"
    async with trio_websocket.open_websocket_url(url) as websocket:
        await websocket.send_message("hello")
        assert await websocket.get_message() == "HELLO"


async def test_trio_websockets_own_server_is_reached(nursery: trio.Nursery) -> None:
    async def handler(request: WebSocketRequest) -> None:
        websocket = await request.accept()
        await websocket.send_message(f"{await websocket.get_message()!r}!")

    theirs = await nursery.start(trio_websocket.serve_websocket, handler, "127.0.0.1", 0, None)

    async with open_websocket(f"ws://127.0.0.1:{theirs.port}") as websocket:
        await websocket.send_message(b"hello")
        assert await websocket.get_message() == "b'hello'!"
    nursery.cancel_scope.cancel()


# What goes wrong


@pytest.mark.parametrize(
    ("url", "network", "address", "message"),
    [
        ("http://a", "memu", None, "expected a ws: or wss: URL"),
        ("ws://", "memu", None, "with a host"),
        ("ws://a", "unix", None, "a URL names no path"),
        ("ws://a", "tcp", "nonsense", "bad tcp address"),
    ],
)
async def test_bad_arguments_are_told_before_anything_is_opened(
    url: str, network: str, address: str | None, message: str
) -> None:
    async def dial(network: str, address: str) -> Any:
        raise AssertionError

    with pytest.raises(ValueError, match=message):
        async with open_websocket(url, network, address, dial=dial):
            pass


async def test_an_ssl_context_without_tls_is_an_error(certificates: Certificates) -> None:
    with pytest.raises(ValueError, match="is for wss: URLs"):
        async with open_websocket("ws://a", "memu", ssl_context=certificates.client):
            pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"message_queue_size": -1}, "message_queue_size must be at least 0, got -1"),
        ({"max_message_size": 0}, "max_message_size must be at least 1, got 0"),
        ({"receive_buffer_size": "x"}, "receive_buffer_size must be an int, got 'x'"),
        ({"connect_timeout": 0}, "connect_timeout must be more than 0, got 0"),
        ({"disconnect_timeout": None}, "disconnect_timeout must be a number, got None"),
    ],
)
def test_bad_options_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        WebSocketOptions(**settings)


async def test_a_refused_dial_is_a_handshake_error() -> None:
    with pytest.raises(HandshakeError, match="cannot connect to memb nobody") as caught:
        async with open_websocket("ws://nobody", "memb"):
            pass
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_a_failed_tls_handshake_is_a_handshake_error(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    await start(nursery, tls=certificates.server)

    with pytest.raises(HandshakeError, match="certificate"):
        async with open_websocket("wss://another", "memb", "chat", ssl_context=certificates.client):
            pass


async def test_a_rejection_is_told_with_its_status_and_body(nursery: trio.Nursery) -> None:
    async def handler(request: WebSocketRequest) -> None:
        await request.reject(403, body=b"members only")

    server = await start(nursery, handler)

    with pytest.raises(ConnectionRejected) as caught:
        async with open_websocket("ws://chat", "memb"):
            pass
    assert caught.value.status_code == 403
    assert caught.value.body == b"members only"
    await wait_all_tasks_blocked()
    assert server.statistics().completed == 1


async def test_a_server_that_says_nothing_is_given_up(autojump_clock: MockClock) -> None:
    near, far = trionet.memory_stream_pair(1000)

    async def dial(network: str, address: str) -> trionet.MemoryStream:
        return near

    with pytest.raises(ConnectionTimeout):
        async with open_websocket(
            "ws://a", "memu", dial=dial, options=WebSocketOptions(connect_timeout=7)
        ):
            pass
    assert trio.current_time() == 7
    assert near.closed
    assert not far.closed


async def test_a_server_that_does_not_close_is_given_up_at_the_end(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async def accept_and_stay(connection: trionet.Connection) -> None:
        async with trio.open_nursery() as inner:
            request = await trio_websocket.wrap_server_stream(inner, connection)
            websocket = await request.accept()
            await websocket.send_message("first of two that nobody takes")
            inner.cancel_scope.cancel()
        await trio.sleep_forever()

    await nursery.start(partial(trionet.serve, accept_and_stay, "memb", "chat"))
    options = WebSocketOptions(disconnect_timeout=3)

    with pytest.raises(DisconnectionTimeout):
        async with open_websocket("ws://chat", "memb", options=options):
            pass
    assert trio.current_time() == 3
    with pytest.raises(KeyError):
        async with open_websocket("ws://chat", "memb", options=options):
            raise KeyError
    assert trio.current_time() == 6
    nursery.cancel_scope.cancel()


async def test_an_exception_leaves_the_block_as_itself(nursery: trio.Nursery) -> None:
    server = await start(nursery)

    with pytest.raises(KeyError):
        async with open_websocket("ws://chat", "memb"):
            raise KeyError
    await wait_all_tasks_blocked()
    assert server.statistics().completed == 1


async def test_cancelling_at_any_step_leaves_no_connection(nursery: trio.Nursery) -> None:
    server = await start(nursery)

    async def talk() -> None:
        async with open_websocket("ws://chat", "memb") as websocket:
            await websocket.send_message("x")
            await websocket.get_message()

    for n in range(1, 1000):
        attempt = await cancelled_at(n, talk)
        await wait_all_tasks_blocked()
        assert server.statistics().active == 0, n
        if attempt.last:
            break
    assert n > 10


# The server's side


async def test_a_client_that_leaves_before_its_request_is_no_fault(nursery: trio.Nursery) -> None:
    called: list[object] = []
    server = await start(nursery, called.append)
    async with await trionet.dial("memb", "chat") as client:
        await client.send_all(b"GET / HT")
    await wait_all_tasks_blocked()

    assert server.statistics().completed == 1
    assert called == []


async def test_a_client_that_says_nothing_is_given_up(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    await start(nursery, options=WebSocketOptions(connect_timeout=5))
    async with await trionet.dial("memb", "chat") as client:
        assert await client.receive_some() == b""
    assert trio.current_time() == 5


async def test_a_request_for_something_else_is_answered_and_never_reaches_the_handler(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    called: list[object] = []
    await start(nursery, called.append)
    async with await trionet.dial("memb", "chat") as client:
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b"".join([bytes(part) async for part in client])

    assert received.startswith(b"HTTP/1.1 400")
    assert called == []
    assert trio.current_time() == 0


async def test_a_handler_that_neither_accepts_nor_rejects_ends_the_connection(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async def handler(request: WebSocketRequest) -> None:
        pass

    await start(nursery, handler)

    with pytest.raises(HandshakeError):
        async with open_websocket("ws://chat", "memb"):
            pass
    assert trio.current_time() == 0


async def test_a_handler_that_raises_is_told_and_its_client_gets_1011(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: WebSocketRequest) -> None:
        await request.accept()
        raise ZeroDivisionError

    server = await start(nursery, handler)

    async with open_websocket("ws://chat", "memb") as websocket:
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.get_message()
    assert caught.value.reason is not None
    assert caught.value.reason.code == 1011
    await wait_all_tasks_blocked()
    assert server.statistics().failed == 1
    assert "ZeroDivisionError" in caplog.text
    assert trio.current_time() == 0


async def test_a_broken_client_is_a_failed_connection_and_no_error(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = await start(nursery)
    client = await trionet.dial("memb", "chat")
    await client.send_all(REQUEST)
    assert bytes(await client.receive_some()).startswith(b"HTTP/1.1 101")
    await client.aclose()
    await wait_all_tasks_blocked()

    assert server.statistics().failed == 1
    assert caplog.text == ""


@pytest.mark.parametrize(
    "frame",
    [b"\xff\xff\xff", b"\x81\x7f" + b"\xff" * 8],
    ids=["reserved bits", "unmasked"],
)
async def test_a_client_that_breaks_the_protocol_is_let_go_at_once(
    frame: bytes, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = await start(nursery)
    async with await trionet.dial("memb", "chat") as client:
        await client.send_all(REQUEST)
        await client.receive_some()
        await client.send_all(frame)
        assert await client.receive_some() == b""
    await wait_all_tasks_blocked()
    assert server.statistics().failed == 1
    assert trio.current_time() == 0


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_message_that_is_too_large_ends_the_connection_at_once(
    side: str, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    small, usual = WebSocketOptions(max_message_size=10), WebSocketOptions()
    server = await start(nursery, options=small if side == "server" else usual)

    async with open_websocket(
        "ws://chat", "memb", options=small if side == "client" else usual
    ) as websocket:
        await websocket.send_message("x" * 11)
        with pytest.raises(ConnectionClosed) as caught:
            await websocket.get_message()
    assert caught.value.reason is not None
    assert caught.value.reason.code == 1009
    await wait_all_tasks_blocked()
    assert server.statistics().active == 0
    assert trio.current_time() <= 1  # the server's linger, for what was not read


# Drain


async def test_a_drain_tells_open_websockets_that_the_server_goes_away(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = await start(nursery)
    async with open_websocket("ws://chat", "memb") as websocket:
        await websocket.send_message("hello")
        await websocket.get_message()

        server.shutdown()

        with pytest.raises(ConnectionClosed) as caught:
            await websocket.get_message()
    assert caught.value.reason is not None
    assert caught.value.reason.code == 1001
    assert caught.value.reason.reason == "the server drains"
    assert await server.wait_closed() == trionet.ShutdownReport(completed=1)
    assert trio.current_time() == 0


async def test_a_drain_ends_the_wait_for_a_request(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = await start(nursery)
    async with await trionet.dial("memb", "chat") as client:
        await wait_all_tasks_blocked()

        server.shutdown()

        assert await client.receive_some() == b""
        assert await server.wait_closed() == trionet.ShutdownReport(completed=1)
    assert trio.current_time() == 0


async def test_without_a_drain_code_websockets_have_the_whole_grace(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = await start(nursery, drain_code=None, grace=5)
    async with open_websocket("ws://chat", "memb") as websocket:
        await websocket.send_message("hello")
        await websocket.get_message()
        server.shutdown()
        await trio.sleep(4)
        await websocket.send_message("still here")
        assert await websocket.get_message() == "STILL HERE"

        with pytest.raises(ConnectionClosed):
            await websocket.get_message()
    assert await server.wait_closed() == trionet.ShutdownReport(cancelled=1)
    assert trio.current_time() == 5


async def test_a_client_that_ignores_the_closing_has_the_grace_and_no_more(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    server = await start(nursery, grace=5)
    async with await trionet.dial("memb", "chat") as client:
        await client.send_all(REQUEST)
        await client.receive_some()
        server.shutdown()
        assert bytes(await client.receive_some())[:4] == b"\x88\x13\x03\xe9"

        report = await server.wait_closed()

    assert report == trionet.ShutdownReport(cancelled=1)
    assert trio.current_time() == 5
