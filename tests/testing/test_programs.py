"""Other people's programs on a virtual network, as they are."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import httpx
import pytest
import trio
import trio_websocket
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext

import trionet
from examples.httpd import open_application
from tests.conftest import Certificates
from tests.testing.virtual import drain, echo, timed, two_hosts
from trionet.testing import Host, Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

# Two hosts as far from each other as two towns.
FAR = Link(latency=0.01)
ROUND_TRIP = 0.02
SITE = Path(trionet.__file__).parent.parent / "examples" / "httpd" / "site"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was posted, and in which version of HTTP."""
    assert scope["type"] == "http"
    body = b""
    more = True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    version = scope["http_version"].encode()
    fields = [(b"http-version", version), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def hypercorn(host: Host, port: int, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    """Serve `application` by hypercorn's own connection handler under trio's own server."""
    config = Config()
    wrapped = ASGIWrapper(application)
    context = WorkerContext(None)

    async def handler(stream: Any) -> None:
        await TCPServer(wrapped, config, context, {}, stream).run()

    async with trio.open_nursery() as nursery:
        if tls is None:
            await nursery.start(host.run, trio.serve_tcp, handler, port)
        else:
            tls.set_alpn_protocols(["h2", "http/1.1"])
            await nursery.start(host.run, trio.serve_ssl_over_tcp, handler, port, tls)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_httpx_talks_to_hypercorn(
    autojump_clock: object, certificates: Certificates, http2: bool
) -> None:
    body = bytes(range(256)) * 400
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.authority.issue_cert("site").configure_cert(tls)

    async with two_hosts(FAR) as (net, server, client):
        net.dns.add("site", *server.addresses)
        async with hypercorn(server, 443, tls):
            with client.context():
                async with httpx.AsyncClient(
                    verify=certificates.client, http2=http2, trust_env=False
                ) as http:
                    answers = [await http.post("https://site/", content=body) for _ in range(3)]

    assert [answer.content for answer in answers] == [body] * 3
    versions = {answer.headers["http-version"] for answer in answers}
    assert versions == {"2" if http2 else "1.1"}


async def test_httpx_keeps_its_connection_to_a_plain_hypercorn(autojump_clock: object) -> None:
    async with two_hosts(FAR) as (net, server, client), hypercorn(server, 80, None):
        with client.context():
            async with httpx.AsyncClient(trust_env=False) as http:
                first, _ = await timed(partial(http.post, "http://server/", content=b"one"))
                second, answer = await timed(partial(http.post, "http://server/", content=b"two"))

    assert answer.content == b"two"
    # Connecting is a round trip of its own.
    assert first == second + ROUND_TRIP
    assert [event.what for event in net.trace if event.kind == "SYN"] == ["sent", "delivered"]


async def test_httpx_reads_the_example_server(autojump_clock: object) -> None:
    async with two_hosts(FAR) as (_, server, client), open_application(SITE) as app:
        with server.context():
            listeners = await trionet.listen("tcp", ":80")
        async with trio.open_nursery() as nursery:
            web = trionet.Server(app.handle)
            await nursery.start(server.run, web.serve, listeners)
            with client.context():
                async with httpx.AsyncClient(trust_env=False) as http:
                    # Files are read in threads, which virtual time does not wait for.
                    page = await http.get("http://server/bytes/100000")
                    echoed = await http.post("http://server/echo", content=b"hello")
            web.shutdown()

    assert len(page.content) == 100_000
    assert echoed.content == b"hello"


async def test_httpx_gives_up_in_time_where_nobody_answers(autojump_clock: object) -> None:
    async with two_hosts(FAR) as (net, server, client), hypercorn(server, 80, None):
        with client.context(), net.partition(client, server):
            async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
                start = trio.current_time()
                with pytest.raises(httpx.ConnectTimeout):
                    await http.get("http://server/")
                assert trio.current_time() - start == 5


async def talk(request: trio_websocket.WebSocketRequest) -> None:
    """Answer each message until the peer leaves."""
    websocket = await request.accept()
    while True:
        try:
            await websocket.send_message(await websocket.get_message())
        except trio_websocket.ConnectionClosed:
            return


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
async def test_trio_websocket_meets_itself(
    autojump_clock: object, nursery: trio.Nursery, certificates: Certificates, secure: bool
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.authority.issue_cert("server").configure_cert(tls)

    async with two_hosts(FAR) as (_, server, client):
        serve = partial(trio_websocket.serve_websocket, talk, None, 80, tls if secure else None)
        await nursery.start(server.run, serve)
        with client.context():
            async with trio_websocket.open_websocket(
                "server", 80, "/", use_ssl=certificates.client if secure else False
            ) as websocket:
                await websocket.send_message("hello")
                took, answer = await timed(websocket.get_message)

    assert answer == "hello"
    assert took == ROUND_TRIP


async def test_a_websocket_ping_is_answered_after_the_partition(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(FAR) as (net, server, client):
        serve = partial(trio_websocket.serve_websocket, talk, None, 80, None)
        await nursery.start(server.run, serve)
        with client.context():
            async with trio_websocket.open_websocket("server", 80, "/", use_ssl=False) as websocket:
                with net.partition(client, server), trio.move_on_after(3) as scope:
                    await websocket.ping()
                assert scope.cancelled_caught

                await websocket.send_message("still there?")
                assert await websocket.get_message() == "still there?"


async def test_anyio_connects(autojump_clock: object, nursery: trio.Nursery) -> None:
    async with two_hosts(FAR) as (_, server, client):
        await nursery.start(server.run, trio.serve_tcp, echo, 7)
        with client.context():
            stream = await anyio.connect_tcp("server", 7)
            async with stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"
                remote = stream.extra(anyio.abc.SocketAttribute.remote_address)
                assert remote == (server.addresses[0], 7)
                await stream.send_eof()
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()


# trionet's own


@pytest.fixture
def shout() -> Callable[[trio.abc.Stream], Awaitable[None]]:
    async def handler(stream: trio.abc.Stream) -> None:
        async for data in stream:
            await stream.send_all(data.upper())

    return handler


async def test_a_server_of_trionets_drains(
    autojump_clock: object, shout: Callable[[trio.abc.Stream], Awaitable[None]]
) -> None:
    async with two_hosts(FAR) as (_, server, client), trio.open_nursery() as nursery:
        serve = partial(trionet.serve, shout, "tcp", ":80", grace=5)
        web = await nursery.start(server.run, serve)
        with client.context():
            stream = await trionet.dial("tcp", "server:80")
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello".upper()
        assert stream.remote_address == trionet.Address("tcp4", host=server.addresses[0], port=80)

        web.shutdown()
        start = trio.current_time()
        # Its handler waits for us, so it is given its grace.
        assert await drain(stream) == b""
        assert trio.current_time() - start == 5 + FAR.latency
        await stream.aclose()
        report = await web.wait_closed()
        assert (report.completed, report.cancelled, report.forced) == (0, 1, 0)


async def test_tls_of_trionets_meets_trios(
    autojump_clock: object, certificates: Certificates, nursery: trio.Nursery
) -> None:
    async with two_hosts(FAR) as (net, server, client):
        net.dns.add("site", *server.addresses)
        serve = partial(trio.serve_ssl_over_tcp, echo, 443, certificates.server)
        await nursery.start(server.run, serve)
        with client.context():
            stream = await trionet.dial("tcp", "site:443", ssl_context=certificates.client)
        async with stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"


async def test_a_pool_outlives_its_peers_restart(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(FAR) as (_, server, client):
        await nursery.start(server.run, trio.serve_tcp, echo, 80)

        async def connect() -> trionet.abc.Stream:
            with client.context():
                return await trionet.dial("tcp", "server:80")

        backoff = trionet.Backoff(attempts=None)
        async with trionet.Pool(connect, max_size=4, backoff=backoff) as pool:
            async with pool.acquire() as stream:
                await stream.send_all(b"one")
                assert await stream.receive_some() == b"one"
            server.kill()
            await trio.sleep(1)
            await nursery.start(server.run, trio.serve_tcp, echo, 80)

            async with pool.acquire(timeout=10) as stream:
                await stream.send_all(b"two")
                assert await stream.receive_some() == b"two"
            assert pool.statistics().reasons["dead"] == 1


async def test_a_session_carries_streams_between_hosts(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(FAR) as (_, server, client):

        async def serve(stream: trio.abc.Stream) -> None:
            async with trionet.open_mux(stream, role="server") as session:
                await trionet.Server(echo).serve([session.listener()])

        await nursery.start(server.run, trio.serve_tcp, serve, 80)
        with client.context():
            carrier = await trionet.dial("tcp", "server:80")
        async with trionet.open_mux(carrier, role="client") as session:
            assert round(await session.ping(), 6) == ROUND_TRIP
            async with trio.open_nursery() as streams:

                async def one(n: int) -> None:
                    async with await session.open_stream() as stream:
                        await stream.send_all(bytes([n]) * 10_000)
                        await stream.send_eof()
                        assert await drain(stream) == bytes([n]) * 10_000

                for n in range(20):
                    streams.start_soon(one, n)


async def test_a_multiplexer_lends_connections_between_hosts(
    autojump_clock: object, nursery: trio.Nursery
) -> None:
    async with two_hosts(FAR) as (_, server, client):
        await nursery.start(server.run, trio.serve_tcp, echo, 80)

        async def connect() -> trionet.abc.Stream:
            with client.context():
                return await trionet.dial("tcp", "server:80")

        async with trionet.Multiplexer(connect, capacity=4) as plex:
            for _ in range(3):
                async with plex.borrow() as stream:
                    await stream.send_all(b"hello")
                    assert await stream.receive_some() == b"hello"
            server.power_off()
            server.restart()
            await nursery.start(server.run, trio.serve_tcp, echo, 80)
            # The connection it has is half open: nothing but a send can tell.
            with pytest.raises(trio.BrokenResourceError):
                async with plex.borrow() as stream:
                    await stream.send_all(b"anybody there?")
                    await stream.receive_some()
            async with plex.borrow(timeout=10) as stream:
                await stream.send_all(b"again")
                assert await stream.receive_some() == b"again"
