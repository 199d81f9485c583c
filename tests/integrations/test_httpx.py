"""httpx over trionet, against real servers."""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import httpcore
import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from examples.httpd import open_application
from tests.helpers import cancelled_at
from trionet.integrations.httpx import Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import Certificates

NETWORKS = pytest.mark.parametrize("network", ["memu", "memb", "tcp", "unix"])
TLS = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a.txt").write_text("over trionet")
    return folder


async def start(
    nursery: trio.Nursery,
    root: Path,
    network: str,
    *,
    ssl_context: Any = None,
) -> trionet.Server:
    """Run the example server."""

    async def run(*, task_status: trio.TaskStatus[trionet.Server]) -> None:
        address = {"tcp": "127.0.0.1:0", "unix": str(root.parent / "s")}.get(network, "site")
        async with open_application(root) as application:
            await trionet.serve(
                application.handle,
                network,
                address,
                ssl_context=ssl_context,
                task_status=task_status,
            )

    server: trionet.Server = await nursery.start(run)
    return server


@NETWORKS
@TLS
async def test_requests_of_every_kind_share_one_connection(
    network: str, secure: bool, root: Path, nursery: trio.Nursery, certificates: Certificates
) -> None:
    tls = certificates.server if secure else None
    server = await start(nursery, root, network, ssl_context=tls)
    transport = Transport(network, str(server.addresses[0]), ssl_context=certificates.client)
    base = "https://site" if secure else "http://elsewhere"
    async with httpx.AsyncClient(transport=transport, base_url=base) as client:
        page = await client.get("/a.txt")
        head = await client.head("/a.txt")
        large = await client.get("/bytes/1000000")
        body = await client.post("/echo", content=b"x" * 60_000)
        async with client.stream("GET", "/bytes/300000") as response:
            streamed = [len(part) async for part in response.aiter_raw()]
        missing = await client.get("/missing")

        assert page.text == "over trionet"
        assert (head.status_code, head.content) == (200, b"")
        assert len(large.content) == 1_000_000
        assert body.content == b"x" * 60_000
        assert sum(streamed) == 300_000
        assert missing.status_code == 404
        assert server.statistics().accepted == 1


async def test_a_body_in_pieces_is_sent_in_chunks(root: Path, nursery: trio.Nursery) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(10):
            yield b"%d" % number

    await start(nursery, root, "memu")
    async with httpx.AsyncClient(transport=Transport("memu")) as client:
        response = await client.post("http://site/echo", content=pieces())

    assert response.content == b"0123456789"


@pytest.mark.parametrize("network", ["memu", "memb", "tcp"])
async def test_without_an_address_the_url_says_where_to_go(
    network: str, root: Path, nursery: trio.Nursery
) -> None:
    server = await start(nursery, root, network)
    where = str(server.addresses[0])
    async with httpx.AsyncClient(transport=Transport(network)) as client:
        assert (await client.get(f"http://{where}/a.txt")).text == "over trionet"


async def test_tcp_dials_an_ipv6_host_of_a_url() -> None:
    dialled = []

    async def dial(network: str, address: str, *, local_address: str | None = None) -> Any:
        dialled.append((network, address))
        raise ConnectionRefusedError("nobody")

    async with httpx.AsyncClient(transport=Transport(dial=dial)) as client:
        for url in ("http://[::1]:8080/", "https://example.org/", "http://example.org/"):
            with pytest.raises(httpx.ConnectError):
                await client.get(url)

    assert dialled == [("tcp", "[::1]:8080"), ("tcp", "example.org:443"), ("tcp", "example.org:80")]


async def test_a_network_of_its_own_is_dialled(nursery: trio.Nursery) -> None:
    network = trionet.Network()

    async def handler(connection: trionet.Connection) -> None:
        await connection.receive_some()
        await connection.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    server = trionet.Server(handler)
    await nursery.start(server.serve, await network.listen("memu", "site"))
    async with httpx.AsyncClient(transport=Transport("memu", dial=network)) as client:
        assert (await client.get("http://site/")).text == "ok"
    async with httpx.AsyncClient(transport=Transport("memu")) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://site/")


async def test_a_connection_that_ended_while_idle_is_not_used_again(
    root: Path, nursery: trio.Nursery
) -> None:
    first = await start(nursery, root, "memb")
    async with httpx.AsyncClient(transport=Transport("memb"), base_url="http://site") as client:
        await client.get("/bytes/1")
        first.shutdown()
        await first.wait_closed()
        second = await start(nursery, root, "memb")

        assert (await client.get("/bytes/1")).status_code == 200
        assert second.statistics().accepted == 1


async def test_a_name_nobody_listens_on_is_a_connect_error() -> None:
    async with httpx.AsyncClient(transport=Transport("memu")) as client:
        with pytest.raises(httpx.ConnectError, match="memu nobody") as caught:
            await client.get("http://nobody/")

    cause = caught.value.__cause__
    assert isinstance(cause, httpcore.ConnectError)
    assert isinstance(cause.__cause__, ConnectionRefusedError)
    assert str(caught.value.request.url) == "http://nobody/"


async def test_a_certificate_of_somebody_else_is_a_connect_error(
    root: Path, nursery: trio.Nursery, certificates: Certificates
) -> None:
    server = await start(nursery, root, "memb", ssl_context=certificates.server)
    transport = Transport("memb", "site", ssl_context=certificates.client)
    async with httpx.AsyncClient(transport=transport) as client:
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await client.get("https://other/")
    await wait_all_tasks_blocked()

    assert server.statistics().failed == 1


async def test_facts_of_the_connection_can_be_asked_for(
    root: Path, nursery: trio.Nursery, certificates: Certificates
) -> None:
    server = await start(nursery, root, "tcp", ssl_context=certificates.server)
    where = server.addresses[0]
    transport = Transport("tcp", str(where), ssl_context=certificates.client)
    async with (
        httpx.AsyncClient(transport=transport) as client,
        client.stream("GET", "https://site/a.txt") as response,
    ):
        stream = response.extensions["network_stream"]
        tls = stream.get_extra_info("ssl_object")

        assert stream.get_extra_info("server_addr") == (where.host, where.port)
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
        assert stream.get_extra_info("socket") is None
        assert stream.get_extra_info("anything else") is None
        assert tls.version() == "TLSv1.3"
        assert tls.selected_alpn_protocol() is None
        assert tls.cipher()[0].startswith("TLS_")
        assert tls.getpeercert(binary_form=True).startswith(b"\x30")
        with pytest.raises(ValueError, match="DER"):
            tls.getpeercert()


# Failures midway


async def serve_raw(nursery: trio.Nursery, handler: Any) -> trionet.Server:
    server: trionet.Server = await nursery.start(partial(trionet.serve, handler, "memu", "site"))
    return server


async def test_a_server_that_ends_within_a_body_is_an_error(nursery: trio.Nursery) -> None:
    async def handler(connection: trionet.Connection) -> None:
        await connection.receive_some()
        await connection.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")

    await serve_raw(nursery, handler)
    async with httpx.AsyncClient(transport=Transport("memu")) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("http://site/")


async def test_a_broken_connection_is_a_read_error(nursery: trio.Nursery) -> None:
    class Broken:
        """A stream whose peer resets it once it has the request."""

        async def send_all(self, data: bytes) -> None:
            await trio.lowlevel.checkpoint()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise trio.BrokenResourceError("reset by peer")

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    async def dial(network: str, address: str, *, local_address: str | None = None) -> Any:
        return Broken()

    async with httpx.AsyncClient(transport=Transport("tcp", dial=dial)) as client:
        with pytest.raises(httpx.ReadError, match="reset by peer"):
            await client.get("http://site/")


async def test_a_dial_that_takes_too_long_is_a_connect_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def dial(network: str, address: str, *, local_address: str | None = None) -> Any:
        await trio.sleep_forever()

    async with httpx.AsyncClient(transport=Transport("tcp", dial=dial), timeout=3) as client:
        with pytest.raises(httpx.ConnectTimeout, match=r"connecting to tcp site:80 .* 3 s"):
            await client.get("http://site/")

        assert trio.current_time() == 3


async def test_a_handshake_that_takes_too_long_is_a_connect_timeout(
    nursery: trio.Nursery, certificates: Certificates, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(connection: trionet.Connection) -> None:
        await connection.receive_some()
        await trio.sleep_forever()

    await serve_raw(nursery, handler)
    transport = Transport("memu", ssl_context=certificates.client)
    async with httpx.AsyncClient(transport=transport, timeout=3) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("https://site/")

        assert trio.current_time() == 3


async def test_an_answer_that_does_not_come_is_a_read_timeout(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(connection: trionet.Connection) -> None:
        await connection.receive_some()
        await trio.sleep_forever()

    await serve_raw(nursery, handler)
    async with httpx.AsyncClient(transport=Transport("memu"), timeout=3) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("http://site/")

        assert trio.current_time() == 3


async def test_a_server_that_does_not_read_is_a_write_timeout(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(connection: trionet.Connection) -> None:
        await trio.sleep_forever()

    await serve_raw(nursery, handler)
    # httpcore goes on to read after a failed write, but not after one that took too long.
    async with httpx.AsyncClient(transport=Transport("memu"), timeout=3) as client:
        with pytest.raises(httpx.WriteTimeout):
            await client.get("http://site/")

        assert trio.current_time() == 3


async def test_a_full_pool_is_a_pool_timeout(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    async def handler(connection: trionet.Connection) -> None:
        await connection.receive_some()
        await trio.sleep_forever()

    await serve_raw(nursery, handler)
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(transport=Transport("memu", limits=limits)) as client:
        nursery.start_soon(partial(client.get, "http://site/", timeout=None))
        await wait_all_tasks_blocked()
        with pytest.raises(httpx.PoolTimeout):
            await client.get("http://site/", timeout=3)

        assert trio.current_time() == 3
        nursery.cancel_scope.cancel()


async def test_closing_does_not_wait_for_a_server_that_does_not_read(
    nursery: trio.Nursery, certificates: Certificates, autojump_clock: trio.testing.MockClock
) -> None:
    # The close_notify finds nobody who takes it.
    async def handler(connection: trionet.Connection) -> None:
        await connection.receive_some()
        await connection.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await trio.sleep_forever()

    await nursery.start(
        partial(trionet.serve, handler, "memu", "site", ssl_context=certificates.server)
    )
    transport = Transport("memu", ssl_context=certificates.client)
    async with httpx.AsyncClient(transport=transport) as client:
        await client.get("https://site/")

    assert trio.current_time() == 1
    nursery.cancel_scope.cancel()


# Cancelling


@TLS
async def test_a_request_cancelled_at_any_step_leaves_the_pool_usable(
    secure: bool, root: Path, nursery: trio.Nursery, certificates: Certificates
) -> None:
    server = await start(nursery, root, "memb", ssl_context=certificates.server if secure else None)
    url = "https://site/bytes/5" if secure else "http://site/bytes/5"
    limits = httpx.Limits(max_connections=1)
    n = 0
    last = False
    while not last:
        n += 1
        transport = Transport("memb", ssl_context=certificates.client, limits=limits)
        async with httpx.AsyncClient(transport=transport) as client:
            attempt = await cancelled_at(n, partial(client.get, url))
            last = attempt.last

            # With one slot a single one lost would make this a PoolTimeout.
            assert (await client.get(url, timeout=5)).status_code == 200
    await wait_all_tasks_blocked()

    assert n > 5
    assert server.statistics().active == 0


async def test_a_request_cancelled_in_the_queue_leaves_the_pool_usable(
    root: Path, nursery: trio.Nursery
) -> None:
    await start(nursery, root, "memu")
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        transport=Transport("memu", limits=limits), base_url="http://site"
    ) as client:
        async with client.stream("GET", "/bytes/1000000"):
            for _ in range(3):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as waiting:
                        waiting.start_soon(client.get, "/bytes/1")
                        await wait_all_tasks_blocked()
                        scope.cancel()

        assert (await client.get("/bytes/1", timeout=5)).status_code == 200


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tcp", "nonsense"), "'nonsense'"),
        (("memu", ""), "must not be empty"),
        (("unix",), "needs an address"),
    ],
)
def test_bad_addresses_are_refused_before_anything_is_opened(
    arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Transport(*arguments)


def test_what_cannot_dial_is_refused() -> None:
    with pytest.raises(TypeError, match="dial must be"):
        Transport("tcp", dial="memu")  # type: ignore[arg-type]


# HTTP/2


async def test_http_2_is_spoken_where_the_handshake_chose_it(
    nursery: trio.Nursery, certificates: Certificates
) -> None:
    offered = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.authority.issue_cert("site").configure_cert(offered)
    offered.set_alpn_protocols(["h2"])

    async def handler(connection: trionet.Connection) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        await connection.send_all(state.data_to_send())
        async for data in connection:
            for event in state.receive_data(bytes(data)):
                if isinstance(event, h2.events.RequestReceived):
                    assert event.stream_id is not None
                    state.send_headers(event.stream_id, [(":status", "200")])
                    state.send_data(event.stream_id, b"two", end_stream=True)
            await connection.send_all(state.data_to_send())

    server: trionet.Server = await nursery.start(
        partial(trionet.serve, handler, "memb", "site", ssl_context=offered)
    )
    client_tls = ssl.create_default_context()
    certificates.authority.configure_trust(client_tls)
    transport = Transport("memb", ssl_context=client_tls, http2=True)
    async with httpx.AsyncClient(transport=transport) as client:
        for _ in range(3):
            response = await client.get("https://site/")
            assert (response.http_version, response.text) == ("HTTP/2", "two")

        assert server.statistics().accepted == 1
