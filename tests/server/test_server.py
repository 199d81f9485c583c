"""Serving, isolating and counting."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import check_half_closeable_stream, check_two_way_stream, wait_all_tasks_blocked

import trionet
from tests.conftest import Certificates
from tests.helpers import read_all
from tests.server.serving import ask, echo, start
from trionet import Connection, HalfCloseableConnection, Limits, Server, ServerStatistics


@pytest.mark.parametrize(
    ("network", "address"),
    [("memu", "site"), ("memb", "site"), ("tcp", "127.0.0.1:0"), ("unix", "PATH")],
)
async def test_a_handler_serves_whatever_the_network(
    network: str, address: str, nursery: trio.Nursery, tmp_path: Any
) -> None:
    server = await start(nursery, echo, network, address.replace("PATH", str(tmp_path / "s")))
    for _ in range(3):
        assert await ask(network, str(server.addresses[0])) == b"hello"
    server.shutdown()
    await server.wait_closed()
    assert server.statistics() == ServerStatistics(3, 0, 3, 0, 0)


async def test_one_server_serves_several_listeners(nursery: trio.Nursery) -> None:
    server = Server(echo)
    listeners = [
        *await trionet.listen("memu", "a"),
        *await trionet.listen("memb", "b"),
        *await trionet.listen("tcp", "127.0.0.1:0"),
    ]
    addresses = await nursery.start(server.serve, listeners)
    assert addresses == server.addresses
    for address in addresses:
        assert await ask(address.network, str(address)) == b"hello"
    server.shutdown()


async def connection_pair(network: str, address: str) -> tuple[Any, Any]:
    """Return a client's stream and the connection that a server's handler got for it."""
    got: list[Connection] = []
    held = trio.Event()

    async def hold(connection: Connection) -> None:
        got.append(connection)
        held.set()
        await trio.sleep_forever()

    # A system task, so that the pair outlives this function; the run ends it.
    server = Server(hold)
    listeners = await trionet.listen(network, address)
    trio.lowlevel.spawn_system_task(server.serve, listeners)
    client = await trionet.dial(listeners[0].address.network, str(listeners[0].address))
    await held.wait()
    for listener in listeners:
        await listener.aclose()
    return client, got[0]


@pytest.mark.parametrize(("network", "address"), [("memb", "site"), ("tcp", "127.0.0.1:0")])
async def test_a_connection_keeps_trios_contract(network: str, address: str) -> None:
    await check_half_closeable_stream(partial(connection_pair, network, address), None)


async def test_a_connection_over_tls_keeps_trios_contract(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    connections: dict[Any, Connection] = {}
    arrived: dict[Any, trio.Event] = {}

    async def hold(connection: Connection) -> None:
        connections[connection.remote_address] = connection
        arrived[connection.remote_address].set()
        await trio.sleep_forever()

    await start(nursery, hold, ssl_context=certificates.server)

    async def make() -> Any:
        client = await trionet.dial("memb", "site", ssl_context=certificates.client)
        event = arrived[client.local_address] = trio.Event()
        await client.do_handshake()
        await event.wait()
        return client, connections[client.local_address]

    await check_two_way_stream(make, None)
    nursery.cancel_scope.cancel()


async def test_a_connection_tells_what_the_server_knows(
    nursery: trio.Nursery, autojump_clock: Any, certificates: Certificates
) -> None:
    facts: dict[str, Any] = {}

    async def look(connection: Connection) -> None:
        await trio.sleep(1)
        connection.context["mine"] = 1
        facts.update(
            kind=type(connection),
            started_at=connection.started_at,
            context=connection.context,
            server=connection.server,
            tls=connection.tls,
            received=await connection.receive_some(),
            has_handshake=hasattr(connection, "do_handshake"),
            state=connection.state,
            socket=connection.transport_socket,
            text=repr(connection),
        )

    server = await start(nursery, look)
    client = await trionet.dial("memb", "site", local_address="me")
    await client.send_all(b"abc")
    await wait_all_tasks_blocked()
    (info,) = server.connections
    assert (str(info.remote_address), str(info.local_address)) == ("me", "site")
    assert (info.age, info.bytes_received, info.bytes_sent, info.state) == (0, 0, 0, "active")
    assert await client.receive_some() == b""

    assert facts == {
        "kind": HalfCloseableConnection,
        "started_at": 0,
        "context": {"mine": 1},
        "server": server,
        "tls": None,
        "received": b"abc",
        "has_handshake": False,
        "state": "active",
        "socket": None,
        "text": "<HalfCloseableConnection <MemoryStream memb site -> me>>",
    }
    server.shutdown()

    secure = await start(nursery, look, "memu", ssl_context=certificates.server)
    tls_client = await trionet.dial("memu", "site", ssl_context=certificates.client)
    await tls_client.send_all(b"abc")
    assert await tls_client.receive_some() == b""
    assert facts["kind"] is Connection
    assert facts["tls"].version == "TLSv1.3"
    secure.shutdown()


async def test_a_handler_that_raises_ends_its_own_connection_only(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def fragile(connection: Connection) -> None:
        if await connection.receive_some() == b"bad":
            raise ValueError("a bug")
        await trio.sleep_forever()

    server = await start(nursery, fragile)
    good = await trionet.dial("memb", "site")
    await good.send_all(b"good")
    bad = await trionet.dial("memb", "site", local_address="e\nvil")
    await bad.send_all(b"bad")

    assert await bad.receive_some() == b""
    await wait_all_tasks_blocked()
    assert server.statistics() == ServerStatistics(2, 1, 0, 1, 0)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == r"handler failed for client 'e\nvil'"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)
    nursery.cancel_scope.cancel()


async def test_a_group_reaches_on_error_as_it_is(nursery: trio.Nursery) -> None:
    seen: list[tuple[Connection, Exception]] = []
    group = ExceptionGroup("two", [ValueError("a"), KeyError("b")])

    async def fail(connection: Connection) -> None:
        raise group

    server = await start(nursery, fail, on_error=lambda *both: seen.append(both))
    client = await trionet.dial("memb", "site")
    assert await client.receive_some() == b""
    assert seen[0][1] is group
    assert isinstance(seen[0][0], Connection)
    server.shutdown()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_leaves_serve_as_itself(kind: type[BaseException]) -> None:
    async def quit_all(connection: Connection) -> None:
        raise kind("enough")

    server = Server(quit_all)
    listeners = await trionet.listen("memb", "site")
    await trionet.dial("memb", "site")
    with pytest.raises(kind, match="enough"):
        await server.serve(listeners)
    assert trionet.names("memb") == []


async def test_a_mixed_group_is_split(nursery: trio.Nursery) -> None:
    seen: list[Exception] = []

    async def both(connection: Connection) -> None:
        raise BaseExceptionGroup("both", [ValueError("a"), SystemExit("b")])

    server = Server(both, on_error=lambda _, error: seen.append(error))
    listeners = await trionet.listen("memb", "site")
    await trionet.dial("memb", "site")
    with pytest.raises(BaseExceptionGroup) as caught:
        await server.serve(listeners)
    assert [type(one) for one in caught.value.exceptions] == [SystemExit]
    (error,) = seen
    assert isinstance(error, ExceptionGroup)
    assert [str(one) for one in error.exceptions] == ["a"]


async def test_an_error_in_on_error_leaves_serve_as_itself() -> None:
    def fail(connection: Connection, error: Exception) -> None:
        raise KeyError("on_error")

    async def bug(connection: Connection) -> None:
        raise ValueError("a bug")

    server = Server(bug, on_error=fail)
    listeners = await trionet.listen("memb", "site")
    client = await trionet.dial("memb", "site")
    with pytest.raises(KeyError, match="on_error"):
        await server.serve(listeners)
    assert await client.receive_some() == b""
    assert trionet.names("memb") == []


@pytest.mark.parametrize(("network", "address"), [("memb", "site"), ("tcp", "127.0.0.1:0")])
async def test_a_peer_that_vanishes_is_counted_and_no_error(
    network: str, address: str, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(connection: Connection) -> None:
        while True:
            await connection.send_all(bytes(100_000))

    server = await start(nursery, talk, network, address)
    client = await trionet.dial(network, str(server.addresses[0]))
    await client.receive_some()
    await client.aclose()
    while server.statistics().active:
        await trio.sleep(0.001)
    assert server.statistics().failed == 1
    assert not [one for one in caplog.records if one.levelno > 10]
    server.shutdown()


async def test_a_broken_upstream_is_the_handlers_error(nursery: trio.Nursery) -> None:
    seen: list[Exception] = []

    async def proxy(connection: Connection) -> None:
        raise trio.BrokenResourceError("upstream")

    server = await start(nursery, proxy, on_error=lambda _, error: seen.append(error))
    client = await trionet.dial("memb", "site")
    assert await client.receive_some() == b""
    assert [str(one) for one in seen] == ["upstream"]
    server.shutdown()


async def test_plaintext_at_the_tls_port_ends_only_itself(
    nursery: trio.Nursery, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start(nursery, echo, "tcp", "127.0.0.1:0", ssl_context=certificates.server)
    address = str(server.addresses[0])
    plain = await trionet.dial("tcp", address)
    await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
    # Whatever comes, an alert or nothing, the connection ends.
    with contextlib.suppress(trio.BrokenResourceError):
        await read_all(plain)
    secure = await trionet.dial("tcp", address, ssl_context=certificates.client)
    await secure.send_all(b"hello")
    assert await secure.receive_some() == b"hello"
    await secure.aclose()
    await plain.aclose()
    while server.statistics().active:
        await trio.sleep(0.001)
    assert server.statistics() == ServerStatistics(2, 0, 1, 1, 0)
    assert not [one for one in caplog.records if one.levelno > 10]
    server.shutdown()


async def test_a_silent_handshake_times_out_exactly(
    nursery: trio.Nursery, autojump_clock: Any, certificates: Certificates
) -> None:
    calls: list[Connection] = []

    async def handler(connection: Connection) -> None:
        calls.append(connection)

    server = await start(
        nursery,
        handler,
        ssl_context=certificates.server,
        limits=Limits(handshake_timeout=3),
    )
    silent = await trionet.dial("memb", "site")
    trickling = await trionet.dial("memb", "site")

    async def trickle() -> None:
        try:
            for byte in b"\x16\x03\x01\x02\x00\x01":
                await trickling.send_all(bytes([byte]))
                await trio.sleep(0.9)
        except trio.BrokenResourceError:
            pass

    nursery.start_soon(trickle)
    assert await silent.receive_some() == b""
    assert trio.current_time() == 3
    assert await trickling.receive_some() == b""
    assert trio.current_time() == 3
    await wait_all_tasks_blocked()
    assert not calls
    assert server.statistics().failed == 2
    server.shutdown()


async def test_start_tls_switches_a_connection_in_use(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    async def upgrade(connection: Connection) -> None:
        assert await connection.receive_some() == b"STARTTLS"
        await connection.send_all(b"OK")
        await connection.start_tls(certificates.server)
        assert connection.tls is not None
        with pytest.raises(RuntimeError, match="TLS"):
            await connection.send_eof()  # type: ignore[attr-defined]
        await echo(connection)

    server = await start(nursery, upgrade)
    client = await trionet.dial("memb", "site")
    await client.send_all(b"STARTTLS")
    assert await client.receive_some() == b"OK"
    secure = await trionet.start_tls(client, certificates.client, server_hostname="site")
    await secure.send_all(b"hello")
    assert await secure.receive_some() == b"hello"
    await secure.aclose()
    server.shutdown()
    await server.wait_closed()
    assert server.statistics().completed == 1


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"handler": None}, TypeError, "handler"),
        ({"limits": 5}, TypeError, "limits"),
        ({"on_error": "log"}, TypeError, "on_error"),
        ({"grace": -1}, ValueError, "grace"),
        ({"grace": "10"}, TypeError, "grace"),
        ({"grace": float("nan")}, ValueError, "grace"),
    ],
)
def test_a_server_checks_its_arguments(settings: Any, error: Any, named: str) -> None:
    with pytest.raises(error, match=named):
        Server(**{"handler": echo, **settings})


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_connections": 0}, ValueError),
        ({"max_connections": 1.5}, TypeError),
        ({"max_accepts": -1}, ValueError),
        ({"overload": "drop"}, ValueError),
        ({"handshake_timeout": -1}, ValueError),
        ({"handshake_timeout": "1"}, TypeError),
        ({"linger": None}, TypeError),
        ({"linger": -0.5}, ValueError),
    ],
)
def test_limits_check_themselves(settings: Any, error: Any) -> None:
    (name,) = settings
    with pytest.raises(error, match=rf"Limits\.{name}"):
        Limits(**settings)


async def test_serve_checks_its_listeners() -> None:
    (listener,) = await trionet.listen("memb", "site")
    with pytest.raises(TypeError, match="a list of listeners, got one"):
        await Server(echo).serve(listener)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'x'"):
        await Server(echo).serve(["x"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one"):
        await Server(echo).serve([])


async def test_a_server_serves_once(nursery: trio.Nursery, autojump_clock: Any) -> None:
    server = await start(nursery, echo)
    assert repr(server) == "<Server memb site active=0>"
    with pytest.raises(RuntimeError, match="once"):
        await server.serve(await trionet.listen("memb", "other"))
    server.shutdown()
    assert repr(server) == "<Server draining memb site active=0>"
    with pytest.raises(ValueError, match="grace"):
        server.shutdown(-1)


async def test_a_tls_client_that_is_cut_off_ends_only_its_connection(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    told = []

    async def handler(connection: trionet.Connection) -> None:
        try:
            await connection.receive_some()
        finally:
            # OpenSSL itself forgets it with the connection's violent end.
            told.append(connection.tls)

    server = await nursery.start(
        partial(trionet.serve, handler, "memb", "site", ssl_context=certificates.server)
    )
    for _ in range(2):
        client = await trionet.dial("memb", "site", ssl_context=certificates.client)
        await client.do_handshake()
        # Without the close_notify that tells a proper end from a cut.
        await client.transport.aclose()
        await wait_all_tasks_blocked()

    assert [tls.version for tls in told if tls] == ["TLSv1.3", "TLSv1.3"]
    assert server.statistics().failed == 2
    assert server.statistics().active == 0


async def test_a_broken_upstream_is_the_handlers_error_over_tls_too(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    seen: list[Exception] = []

    async def proxy(connection: Connection) -> None:
        await connection.receive_some()
        raise trio.BrokenResourceError("upstream")

    server = await start(
        nursery,
        proxy,
        ssl_context=certificates.server,
        on_error=lambda _, error: seen.append(error),
    )
    client = await trionet.dial("memb", "site", ssl_context=certificates.client)
    await client.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
    assert [str(one) for one in seen] == ["upstream"]
    server.shutdown()


async def test_a_foreign_half_closeable_stream_stays_one(nursery: trio.Nursery) -> None:
    kinds: list[Any] = []

    async def half_close(connection: Connection) -> None:
        kinds.append(type(connection))
        assert isinstance(connection, HalfCloseableConnection)
        await connection.send_eof()
        kinds.append(await connection.receive_some())

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server(half_close)
    await nursery.start(server.serve, listeners)
    port = listeners[0].socket.getsockname()[1]
    client = await trionet.dial("tcp", f"127.0.0.1:{port}")
    assert await client.receive_some() == b""
    await client.send_all(b"late")
    while len(kinds) < 2:
        await trio.sleep(0.001)
    assert kinds == [HalfCloseableConnection, b"late"]
    await client.aclose()
    server.shutdown()
