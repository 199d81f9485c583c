"""ASGI applications by hypercorn's protocols on trionet's servers."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trio
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError
from trio.testing import wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, ConnectionRejected

import trionet
from tests.helpers import read_all
from trionet.integrations.httpx import Transport
from trionet.integrations.hypercorn import open_application
from trionet.integrations.websocket import open_websocket

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

    from tests.conftest import Certificates

NETWORKS = pytest.mark.parametrize("network", ["memu", "memb", "tcp", "unix"])
GET = b"GET %s HTTP/1.1\r\nHost: site\r\n\r\n"


class App:
    """An application that does what the path says, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.scopes: list[Any] = []
        self.release = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Be an ASGI application."""
        self.scopes.append(scope)
        await getattr(self, scope["type"])(scope, receive, send)

    async def lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        """Start and stop."""
        scope["state"]["started"] = True
        for stage in ("startup", "shutdown"):
            message = await receive()
            assert message["type"] == f"lifespan.{stage}"
            self.told.append(stage)
            await send({"type": f"lifespan.{stage}.complete"})

    async def http(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with facts, what was sent, a lot, late, or an error."""
        body = b""
        more = scope["path"] != "/early"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.told.append("disconnect")
                return
            body += message["body"]
            more = message["more_body"]
        if scope["path"] == "/wait":
            self.told.append("waiting")
            await self.release.wait()
        elif scope["path"] == "/disconnect":
            self.told.append((await receive())["type"])
        elif scope["path"] == "/crash":
            raise ZeroDivisionError
        elif scope["path"] == "/large":
            body = b"x" * 300_000
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:], "more_body": False})

    async def websocket(self, scope: Any, receive: Any, send: Any) -> None:
        """Shout back, until the client leaves."""
        assert (await receive())["type"] == "websocket.connect"
        if scope["path"] == "/closed":
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                self.told.append(f"left {message['code']}")
                return
            await send({"type": "websocket.send", "text": message["text"].upper()})


@pytest.fixture
def app() -> App:
    return App()


async def start(
    nursery: trio.Nursery,
    app: Any,
    network: str = "memb",
    address: str = "site",
    *,
    config: Config | None = None,
    tls: ssl.SSLContext | None = None,
    grace: float = 10,
) -> trionet.Server:
    async def run(*, task_status: trio.TaskStatus[trionet.Server]) -> None:
        async with open_application(app, config) as handler:
            await trionet.serve(
                handler,
                network,
                address,
                ssl_context=tls,
                grace=grace,
                task_status=task_status,
            )

    server: trionet.Server = await nursery.start(run)
    return server


def client(server: trionet.Server, **settings: Any) -> httpx.AsyncClient:
    address = server.addresses[0]
    network = "tcp" if address.port else address.network
    settings.setdefault("timeout", 5)
    http2 = settings.pop("http2", False)
    transport = Transport(network, str(address), ssl_context=settings.pop("tls", None), http2=http2)
    return httpx.AsyncClient(transport=transport, **settings)


@NETWORKS
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_requests_are_answered_on_every_network(
    network: str,
    secure: bool,
    tmp_path: Path,
    app: App,
    nursery: trio.Nursery,
    certificates: Certificates,
) -> None:
    address = {"tcp": "127.0.0.1:0", "unix": str(tmp_path / "s")}.get(network, "site")
    tls = certificates.server if secure else None
    server = await start(nursery, app, network, address, tls=tls)

    base = "https://site" if secure else "http://site"
    async with client(server, base_url=base, tls=certificates.client) as http:
        for size in (0, 3, 60_000):
            response = await http.post("/echo?a=b", content=b"x" * size)
            assert response.status_code == 200
            assert response.content == b"x" * size
        assert len((await http.get("/large")).content) == 300_000
        assert server.statistics().accepted == 1
    scope = app.scopes[1]
    assert scope["scheme"] == base.partition(":")[0]
    assert scope["http_version"] == "1.1"
    assert scope["query_string"] == b"a=b"
    assert scope["state"] == {"started": True}


async def test_the_scope_tells_who_speaks_to_whom(
    app: App, nursery: trio.Nursery, tmp_path: Path
) -> None:
    tcp = await start(nursery, app, "tcp", "127.0.0.1:0")
    async with client(tcp) as http:
        await http.get("http://site/")
    assert app.scopes[-1]["client"][0] == "127.0.0.1"
    assert app.scopes[-1]["server"] == ("127.0.0.1", tcp.addresses[0].port)

    memory = await start(nursery, app, "memb", "site")
    async with client(memory) as http:
        await http.get("http://site/")
    assert app.scopes[-1]["client"] is None
    assert app.scopes[-1]["server"] == ("site", None)

    unix = await start(nursery, app, "unix", str(tmp_path / "s"))
    async with client(unix) as http:
        await http.get("http://site/")
    assert app.scopes[-1]["server"] == (str(tmp_path / "s"), None)


async def test_behind_a_proxy_the_client_is_the_proxys_client(
    app: App, nursery: trio.Nursery
) -> None:
    async with open_application(app) as handler:
        server = trionet.Server(handler)
        listeners = await trionet.listen(
            "memb", "site", proxy_protocol=trionet.ProxyProtocol(trusted=["memb"])
        )
        await nursery.start(server.serve, listeners)
        async with await trionet.dial("memb", "site") as stream:
            await stream.send_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 443\r\n" + GET % b"/")
            await stream.receive_some()
        assert app.scopes[-1]["client"] == ("192.0.2.7", 5000)
        server.shutdown()
        await server.wait_closed()


def offering_h2(context: ssl.SSLContext) -> ssl.SSLContext:
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.mark.parametrize("network", ["memb", "tcp"])
async def test_http_2_is_spoken_where_tls_agrees_on_it(
    network: str, app: App, nursery: trio.Nursery, certificates: Certificates
) -> None:
    address = "127.0.0.1:0" if network == "tcp" else "site"
    server = await start(nursery, app, network, address, tls=offering_h2(certificates.server))
    settings = {"http2": True, "tls": certificates.client, "base_url": "https://site"}
    async with client(server, **settings) as http:
        answers: list[httpx.Response] = []

        async def ask(size: int) -> None:
            answers.append(await http.post("/echo", content=b"x" * size))

        async with trio.open_nursery() as asking:
            for size in (0, 100, 40_000, 100_000):
                asking.start_soon(ask, size)
        assert sorted(len(one.content) for one in answers) == [0, 100, 40_000, 100_000]
        assert {one.http_version for one in answers} == {"HTTP/2"}
        assert server.statistics().accepted == 1
    server.shutdown()
    await server.wait_closed()


async def test_http_2_is_understood_without_tls_from_one_who_begins_with_it(
    app: App, nursery: trio.Nursery
) -> None:
    await start(nursery, app)
    protocol = h2.connection.H2Connection()
    protocol.initiate_connection()
    async with await trionet.dial("memb", "site") as stream:
        head = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "site")]
        protocol.send_headers(1, head, end_stream=True)
        await stream.send_all(protocol.data_to_send())
        seen: list[type] = []
        while h2.events.StreamEnded not in seen:
            seen += map(type, protocol.receive_data(await stream.receive_some()))
        assert h2.events.ResponseReceived in seen
    assert app.scopes[-1]["http_version"] == "2"


@pytest.mark.parametrize("http2", [False, True], ids=["1.1", "2"])
async def test_an_application_that_raises_is_logged_and_answered_with_500(
    http2: bool,
    app: App,
    nursery: trio.Nursery,
    certificates: Certificates,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tls = offering_h2(certificates.server) if http2 else None
    server = await start(nursery, app, tls=tls)
    base = "https://site" if http2 else "http://site"
    async with client(server, base_url=base, http2=http2, tls=certificates.client) as http:
        assert (await http.get("/crash")).status_code == 500
        assert (await http.get("/")).status_code == 200
    assert "ZeroDivisionError" in capsys.readouterr().err


async def test_nonsense_is_answered_with_400_and_the_connection_closed(
    app: App, nursery: trio.Nursery
) -> None:
    server = await start(nursery, app)
    async with await trionet.dial("memb", "site") as stream:
        await stream.send_all(b"nonsense\r\n\r\n")
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400")
    await wait_all_tasks_blocked()
    assert server.statistics().active == 0


async def test_what_a_client_still_sends_is_dropped_so_that_the_answer_is_not_lost(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await start(nursery, app)
    async with await trionet.dial("memb", "site") as stream:
        await stream.send_all(b"nonsense\r\n\r\n" + bytes(100_000))
        await trio.sleep(0.5)  # of the second that the server lingers
        await stream.send_all(bytes(10_000))
        assert (await read_all(stream)).startswith(b"HTTP/1.1 400")


async def test_pipelined_requests_are_answered_in_order(app: App, nursery: trio.Nursery) -> None:
    await start(nursery, app)
    async with await trionet.dial("memb", "site") as stream:
        one = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n%d"
        await stream.send_all(one % 1 + one % 2 + one % 3)
        received = b""
        while received.count(b"\r\n0\r\n\r\n") < 3:
            received += await stream.receive_some()
    bodies = [part.split(b"\r\n")[-1] for part in received.split(b"\r\n0\r\n\r\n")[:3]]
    assert bodies == [b"1", b"2", b"3"]


async def test_a_client_that_leaves_is_told_to_the_application(
    app: App, nursery: trio.Nursery
) -> None:
    server = await start(nursery, app)
    stream = await trionet.dial("memb", "site")
    await stream.send_all(GET % b"/disconnect")
    await wait_all_tasks_blocked()
    await stream.aclose()
    await wait_all_tasks_blocked()

    assert app.told == ["startup", "http.disconnect"]
    assert server.statistics().active == 0


async def test_wsgi_applications_are_served(nursery: trio.Nursery) -> None:
    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    server = await start(nursery, wsgi)
    async with client(server) as http:
        assert (await http.get("http://site/plain/old")).text == "/plain/old"


# Time


async def test_an_idle_connection_is_kept_for_the_keep_alive_timeout(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    config = Config()
    config.keep_alive_timeout = 7
    await start(nursery, app, config=config)
    async with await trionet.dial("memb", "site") as stream:
        await trio.sleep(6)
        await stream.send_all(GET % b"/")
        await stream.receive_some()
        await trio.sleep(3)
        await stream.send_all(b"GET / HT")  # the beginning of a request buys no time
        assert b"".join([bytes(part) async for part in stream]) is not None
    assert trio.current_time() == 13


async def test_a_request_under_way_has_no_such_timeout(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    config = Config()
    config.keep_alive_timeout = 7
    await start(nursery, app, config=config)
    async with await trionet.dial("memb", "site") as stream:
        await stream.send_all(GET % b"/wait")
        await trio.sleep(100)
        app.release.set()
        assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 200")
        assert await read_all(stream) is not None
    assert trio.current_time() == 107


async def test_a_body_that_stops_coming_meets_the_read_timeout(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    config = Config()
    config.read_timeout = 4
    await start(nursery, app, config=config)
    async with await trionet.dial("memb", "site") as stream:
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        assert await read_all(stream) == b""
    assert trio.current_time() == 4
    assert app.told == ["startup", "disconnect"]


# Drain


async def test_a_drain_ends_idle_connections_at_once_and_lets_requests_finish(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    server = await start(nursery, app)
    idle = await trionet.dial("memb", "site")
    await idle.send_all(GET % b"/")
    await idle.receive_some()
    silent = await trionet.dial("memb", "site")
    busy = await trionet.dial("memb", "site")
    await busy.send_all(GET % b"/wait")
    await wait_all_tasks_blocked()

    server.shutdown()
    await wait_all_tasks_blocked()

    assert await read_all(silent) == b""
    await read_all(idle)
    assert server.statistics().active == 1
    await trio.sleep(3)
    app.release.set()
    assert (await read_all(busy)).endswith(b"\r\n0\r\n\r\n")
    assert await server.wait_closed() == trionet.ShutdownReport(completed=3)
    assert trio.current_time() == 3
    await wait_all_tasks_blocked()
    assert app.told == ["startup", "waiting", "shutdown"]


async def test_a_request_that_came_before_the_drain_is_answered(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    server = await start(nursery, app)
    stream = await trionet.dial("memb", "site")
    await wait_all_tasks_blocked()
    await stream.send_all(GET % b"/")

    server.shutdown()

    assert (await read_all(stream)).startswith(b"HTTP/1.1 200")
    assert await server.wait_closed() == trionet.ShutdownReport(completed=1)
    assert trio.current_time() == 0


async def test_a_request_that_takes_too_long_is_cancelled_at_the_end_of_the_grace(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    server = await start(nursery, app, grace=5)
    stream = await trionet.dial("memb", "site")
    await stream.send_all(GET % b"/wait")
    await wait_all_tasks_blocked()

    server.shutdown()

    assert await server.wait_closed() == trionet.ShutdownReport(cancelled=1)
    assert trio.current_time() == 5
    await stream.aclose()


async def test_a_drain_tells_an_idle_http_2_client_to_go_away(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    server = await start(nursery, app)
    protocol = h2.connection.H2Connection()
    protocol.initiate_connection()
    stream = await trionet.dial("memb", "site")
    await stream.send_all(protocol.data_to_send())
    await wait_all_tasks_blocked()

    server.shutdown()

    events = protocol.receive_data(await read_all(stream))
    assert h2.events.ConnectionTerminated in map(type, events)
    assert await server.wait_closed() == trionet.ShutdownReport(completed=1)
    assert trio.current_time() == 0


async def test_a_drain_lets_http_2_streams_finish_and_begins_none(
    app: App, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    server = await start(nursery, app)
    protocol = h2.connection.H2Connection()
    protocol.initiate_connection()
    head = [(":method", "GET"), (":path", "/wait"), (":scheme", "http"), (":authority", "site")]
    protocol.send_headers(1, head, end_stream=True)
    stream = await trionet.dial("memb", "site")
    await stream.send_all(protocol.data_to_send())
    await wait_all_tasks_blocked()

    server.shutdown()
    protocol.send_headers(3, head, end_stream=True)
    await stream.send_all(protocol.data_to_send())
    await wait_all_tasks_blocked()
    app.release.set()

    events = protocol.receive_data(await read_all(stream))
    assert [one.stream_id for one in events if isinstance(one, h2.events.StreamReset)] == [3]
    assert [one.stream_id for one in events if isinstance(one, h2.events.StreamEnded)] == [1]
    assert h2.events.ConnectionTerminated in map(type, events)
    assert await server.wait_closed() == trionet.ShutdownReport(completed=1)
    assert trio.current_time() == 0


async def test_after_max_requests_the_server_drains(app: App, nursery: trio.Nursery) -> None:
    config = Config()
    config.max_requests = 2
    server = await start(nursery, app, config=config)
    async with client(server, base_url="http://site") as http:
        for _ in range(3):
            assert (await http.get("/")).status_code == 200
    await server.wait_closed()
    assert server.draining.is_set()


# Websockets


@pytest.mark.parametrize("network", ["memb", "tcp"])
async def test_websockets_are_served(network: str, app: App, nursery: trio.Nursery) -> None:
    address = "127.0.0.1:0" if network == "tcp" else "site"
    server = await start(nursery, app, network, address)
    async with open_websocket("ws://site/", network, str(server.addresses[0])) as websocket:
        await websocket.send_message("hello")
        assert await websocket.get_message() == "HELLO"
    server.shutdown()
    await server.wait_closed()
    assert app.told[1].startswith("left 100")


async def test_a_websocket_may_be_rejected(app: App, nursery: trio.Nursery) -> None:
    await start(nursery, app)
    with pytest.raises(ConnectionRejected) as caught:
        async with open_websocket("ws://site/closed", "memb"):
            pass
    assert caught.value.status_code == 403


async def test_a_drain_closes_websockets_with_1001(
    app: App,
    nursery: trio.Nursery,
    autojump_clock: MockClock,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = await start(nursery, app)
    async with open_websocket("ws://site/", "memb") as websocket:
        await websocket.send_message("hello")
        assert await websocket.get_message() == "HELLO"

        server.shutdown()

        with pytest.raises(ConnectionClosed) as caught:
            await websocket.get_message()
        assert caught.value.reason is not None
        assert (caught.value.reason.code, caught.value.reason.reason) == (
            1001,
            "the server drains",
        )
    assert await server.wait_closed() == trionet.ShutdownReport(completed=1)
    assert trio.current_time() == 0
    await wait_all_tasks_blocked()
    assert app.told == ["startup", "left 1000", "shutdown"]
    assert capsys.readouterr().err == ""


# Lifespan


async def test_an_application_that_cannot_start_ends_the_block_before_it_begins() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(LifespanFailureError, match="no database"):
        async with open_application(app):
            raise AssertionError


async def test_an_application_that_does_not_start_in_time_is_given_up(
    autojump_clock: MockClock,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    config = Config()
    config.startup_timeout = 9
    with pytest.raises(LifespanTimeoutError):
        async with open_application(app, config):
            raise AssertionError
    assert trio.current_time() == 9


async def test_an_application_without_a_lifespan_is_served(
    nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    server = await start(nursery, app)
    async with client(server) as http:
        assert (await http.get("http://site/")).status_code == 204
    server.shutdown()
    await server.wait_closed()


async def test_an_exception_leaves_the_block_as_itself_after_the_shutdown(app: App) -> None:
    with pytest.raises(KeyError):
        async with open_application(app):
            raise KeyError
    assert app.told == ["startup", "shutdown"]


async def test_a_cancelled_block_ends_at_once_without_a_shutdown(app: App) -> None:
    with trio.CancelScope() as scope:
        async with open_application(app):
            scope.cancel()
            await trio.sleep_forever()
    assert app.told == ["startup"]
