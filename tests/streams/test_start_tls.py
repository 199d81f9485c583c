"""Starting TLS in the middle of a connection that looked ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

import trionet

if TYPE_CHECKING:
    from tests.conftest import Certificates


async def test_cve_2011_0411_plaintext_sent_behind_starttls_is_not_taken_for_ciphertext(
    certificates: Certificates,
) -> None:
    client, far = trionet.memory_stream_pair(65536)
    server = trionet.BufferedStream(far)
    await client.send_all(b"STARTTLS\r\nRCPT TO:<injected>\r\n")
    assert await server.receive_until(b"\r\n", 100) == b"STARTTLS\r\n"

    with pytest.raises(trio.BrokenResourceError, match="20 bytes of plaintext"):
        await trionet.start_tls(server, certificates.server, server_side=True)

    assert server.closed
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"more")


async def test_a_client_does_not_take_an_injected_reply_for_ciphertext_either(
    certificates: Certificates,
) -> None:
    server, far = trionet.memory_stream_pair(65536)
    client = trionet.BufferedStream(far)
    await server.send_all(b"220 ready\r\n250 injected\r\n")
    await client.receive_until(b"\r\n", 100)

    with pytest.raises(trio.BrokenResourceError, match="14 bytes of plaintext"):
        await trionet.start_tls(client, certificates.client, server_hostname="localhost")

    assert client.closed


async def test_with_nothing_buffered_tls_starts_over_a_buffered_stream(
    certificates: Certificates,
) -> None:
    near, far = trionet.memory_stream_pair(65536)
    server = trionet.BufferedStream(far)
    await near.send_all(b"STARTTLS\r\n")
    await server.receive_until(b"\r\n", 100)
    got: list[bytes | bytearray] = []

    async def serve() -> None:
        secured = await trionet.start_tls(server, certificates.server, server_side=True)
        got.append(await secured.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        client = await trionet.start_tls(near, certificates.client, server_hostname="localhost")
        await client.send_all(b"secret")

    assert got == [b"secret"]


async def test_wrong_arguments_leave_a_stream_with_plaintext_alone(
    certificates: Certificates,
) -> None:
    near, far = trionet.memory_stream_pair(65536)
    stream = trionet.BufferedStream(far)
    await near.send_all(b"plain")
    await stream.peek()

    with pytest.raises(ValueError, match="server_hostname is needed"):
        await trionet.start_tls(stream, certificates.client)

    assert await stream.receive_some() == b"plain"
