"""The example proxy and the example echo, over real sockets."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import trio

import trionet
from examples import echo_splice, tcp_proxy
from tests.helpers import read_all

CONTENT = random.Random(5).randbytes(1_000_000)


async def start(
    nursery: trio.Nursery, handler: Any, **arguments: Any
) -> tuple[trionet.Server, str]:
    server = trionet.Server(handler)
    listeners = await trionet.listen("tcp", "127.0.0.1:0", **arguments)
    addresses = await nursery.start(server.serve, listeners)
    return server, str(addresses[0])


async def exchange(address: str, data: bytes) -> tuple[bytes, str]:
    """Return what comes back for ``data``, and the address it was sent from."""
    client: Any = await trionet.dial("tcp", address)
    async with client, trio.open_nursery() as nursery:

        async def send() -> None:
            await client.send_all(data)
            await client.send_eof()

        nursery.start_soon(send)
        return await read_all(client), str(client.local_address)


async def test_the_proxy_forwards_to_the_echo_and_back(nursery: trio.Nursery) -> None:
    _, upstream = await start(nursery, echo_splice.echo)
    proxy, address = await start(nursery, partial(tcp_proxy.forward, upstream=upstream))

    assert (await exchange(address, CONTENT))[0] == CONTENT

    proxy.shutdown()
    assert (await proxy.wait_closed()).cancelled == 0
    nursery.cancel_scope.cancel()


async def test_the_proxy_tells_the_server_behind_it_who_the_client_is(
    nursery: trio.Nursery,
) -> None:
    async def tell(connection: trionet.Connection) -> None:
        request = await read_all(connection)
        await connection.send_all(f"{connection.remote_address} ".encode() + request)

    settings = trionet.ProxyProtocol(trusted=["127.0.0.1"])
    _, upstream = await start(nursery, tell, proxy_protocol=settings)
    _, address = await start(
        nursery, partial(tcp_proxy.forward, upstream=upstream, send_proxy=True)
    )

    reply, client = await exchange(address, b"hello")

    assert reply == f"{client} hello".encode()
    nursery.cancel_scope.cancel()


async def test_a_client_of_an_upstream_that_is_down_is_closed(nursery: trio.Nursery) -> None:
    (nobody,) = await trionet.listen("tcp", "127.0.0.1:0")
    upstream = str(nobody.address)
    await nobody.aclose()
    proxy, address = await start(nursery, partial(tcp_proxy.forward, upstream=upstream))

    client = await trionet.dial("tcp", address)
    async with client:
        assert await client.receive_some() == b""

    assert proxy.statistics().failed == 0
    nursery.cancel_scope.cancel()
