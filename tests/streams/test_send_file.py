"""Sending files: by the kernel over sockets, in pieces elsewhere."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from typing import IO, TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import trionet
from tests.helpers import clog, connected, read_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Certificates
    from trionet import Connection

# Of this process alone: several test runs may share a machine.
ABSTRACT = f"@trionet-send-file-{os.getpid()}"

CONTENT = bytes(range(256)) * 16384  # 4 MiB: more than any socket buffers.


@pytest.fixture
def file(tmp_path: Path) -> Iterator[IO[bytes]]:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    with path.open("rb") as opened:
        yield opened


async def sent_over_tcp(file: Any, *arguments: Any) -> tuple[int, bytes, trionet.SocketStream]:
    """Return what ``send_file`` returned, what arrived, and the (closed) stream."""
    client, server = await connected("tcp", "127.0.0.1:0")
    received = b""

    async def receive() -> None:
        nonlocal received
        received = await read_all(client)

    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        result = await server.send_file(file, *arguments)
        sent = server.bytes_sent
        await server.send_eof()
    assert sent == result == len(received)
    return result, received, server


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, None), (5, None), (0, 10), (100, 3_000_000), (len(CONTENT) - 1, 1), (7, 0), (0, 1 << 20)],
)
async def test_a_part_of_a_file_arrives(file: IO[bytes], offset: int, count: int | None) -> None:
    end = None if count is None else offset + count

    _, received, _ = await sent_over_tcp(file, offset, count)

    assert received == CONTENT[offset:end]
    assert file.tell() == 0


@pytest.mark.parametrize(
    ("offset", "count", "expected"),
    [(0, len(CONTENT) + 5, len(CONTENT)), (len(CONTENT) - 3, 10, 3), (len(CONTENT) + 9, None, 0)],
)
async def test_a_file_that_is_too_short_is_sent_as_far_as_it_goes(
    file: IO[bytes], offset: int, count: int | None, expected: int
) -> None:
    result, received, _ = await sent_over_tcp(file, offset, count)

    assert result == expected
    assert received == CONTENT[offset:]


async def test_what_has_no_descriptor_is_read() -> None:
    _, received, _ = await sent_over_tcp(io.BytesIO(CONTENT), 5, 2_000_000)

    assert received == CONTENT[5:2_000_005]


async def test_a_file_of_proc_is_read_although_it_says_it_is_empty() -> None:
    with open("/proc/self/status", "rb") as status:
        _, received, _ = await sent_over_tcp(status)

    assert b"VmRSS" in received


async def test_a_pipe_is_read_to_its_end() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"through a pipe")
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        _, received, _ = await sent_over_tcp(pipe)

    assert received == b"through a pipe"


async def test_where_the_kernel_refuses_the_file_is_read(
    file: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "not for this file system")

    monkeypatch.setattr(os, "sendfile", refuse)

    _, received, _ = await sent_over_tcp(file, 3, 1_000_000)

    assert received == CONTENT[3:1_000_003]


async def test_an_error_of_the_disk_is_not_taken_for_the_connections(
    file: IO[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "bad block")

    client, server = await connected("tcp", "127.0.0.1:0")
    async with client, server:
        with monkeypatch.context() as patch:
            patch.setattr(os, "sendfile", fail)
            with pytest.raises(OSError, match="bad block"):
                await server.send_file(file)
        await server.send_all(b"still there")
        assert await client.receive_some() == b"still there"


async def test_a_slow_reader_is_waited_for_without_holding_the_file_in_memory(
    file: IO[bytes],
) -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(server.send_file, file)
        await trio.testing.wait_all_tasks_blocked(0.02)
        waiting = server.bytes_sent
        assert waiting < len(CONTENT)
        received = b""
        while len(received) < len(CONTENT):
            received += await client.receive_some()

    assert received == CONTENT


async def test_a_cancelled_file_tells_how_much_was_sent(file: IO[bytes]) -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    async with client:
        with trio.move_on_after(0.05) as scope:
            await server.send_file(file)
        assert scope.cancelled_caught
        sent = server.bytes_sent
        assert 0 < sent < len(CONTENT)
        # It is usable: what is sent next follows.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_close, server, b"next")
            assert await read_all(client) == CONTENT[:sent] + b"next"


async def send_and_close(stream: trionet.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.aclose()


async def test_a_vanished_reader_is_broken(file: IO[bytes]) -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    async with server, trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await server.send_file(file)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.02)
        await client.aclose()


async def test_two_senders_at_once_and_senders_after_the_end_are_told_so(
    file: IO[bytes],
) -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    async with client, server:
        await clog(server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send_file, file)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(trio.BusyResourceError):
                await server.send_file(file)
            with pytest.raises(trio.BusyResourceError):
                await server.send_all(b"x")
            nursery.cancel_scope.cancel()
        await server.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await server.send_file(file)
    with pytest.raises(trio.ClosedResourceError):
        await server.send_file(file)


@pytest.mark.parametrize("count", [0, 1, None])
async def test_it_is_a_checkpoint(count: int | None) -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    with tempfile.TemporaryFile() as small:
        small.write(b"abc")
        small.flush()
        async with client, server:
            with trio.testing.assert_checkpoints():
                await server.send_file(small, 0, count)


async def test_bad_arguments_are_named_before_anything_is_sent(file: IO[bytes]) -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    async with client, server:
        with pytest.raises(ValueError, match="offset must not be negative, got -1"):
            await server.send_file(file, -1)
        with pytest.raises(ValueError, match="count must not be negative, got -1"):
            await server.send_file(file, 0, -1)
        with pytest.raises(TypeError, match="binary mode"):
            await server.send_file(io.StringIO("text"))
        with pytest.raises(TypeError, match=r"must have fileno\(\) or read\(\), got 'path'"):
            await server.send_file("path")
        with pytest.raises(TypeError):
            await server.send_file(file, 1.5)
        assert server.bytes_sent == 0


@pytest.mark.parametrize(
    ("network", "address", "tls", "proxied"),
    [
        ("tcp", "127.0.0.1:0", False, False),
        ("tcp", "127.0.0.1:0", True, False),
        ("tcp", "127.0.0.1:0", False, True),
        ("unix", ABSTRACT, False, False),
        ("memb", "site", False, False),
        ("memu", "site", False, False),
        ("memb", "site", True, False),
        ("memb", "site", False, True),
    ],
)
async def test_a_servers_connection_sends_files_over_whatever_it_has(
    nursery: trio.Nursery,
    certificates: Certificates,
    file: IO[bytes],
    network: str,
    address: str,
    tls: bool,
    proxied: bool,
) -> None:
    sent: list[int] = []

    async def handler(connection: Connection) -> None:
        sent.append(await connection.send_file(file, 1, 1_500_000))
        sent.append(connection.bytes_sent)

    settings = trionet.ProxyProtocol(trusted=["127.0.0.1", "memb"])
    listeners = await trionet.listen(
        network,
        address,
        ssl_context=certificates.server if tls else None,
        proxy_protocol=settings if proxied else None,
    )
    server = trionet.Server(handler)
    addresses = await nursery.start(server.serve, listeners)
    client = await trionet.dial(
        network,
        str(addresses[0]),
        ssl_context=certificates.client if tls else None,
        server_hostname="localhost" if tls else None,
    )
    async with client:
        if proxied:
            await client.send_all(trionet.ProxyHeader("v1").encode())
        received = await read_all(client)
    server.shutdown()
    await server.wait_closed()

    assert received == CONTENT[1:1_500_001]
    assert sent == [1_500_000, 1_500_000]


@pytest.mark.parametrize("offset", [0, 3])
async def test_what_can_be_sought_starts_at_the_offset_wherever_it_stood(offset: int) -> None:
    near, far = await connected("tcp", "127.0.0.1:0")
    file = io.BytesIO(b"0123456789")
    file.read(7)

    assert await near.send_file(file, offset) == 10 - offset
    await near.aclose()
    assert await read_all(far) == b"0123456789"[offset:]
    await far.aclose()
