"""PROXY headers as the real HAProxy writes them, health checks included."""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionet
from tests.helpers import read_all

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")

CONFIG = """
defaults
  mode tcp
  timeout connect 2s
  timeout client 5s
  timeout server 5s
listen front
  bind 127.0.0.1:{front}
  bind [::1]:{front}
  unique-id-format trionet-%ci
  server back 127.0.0.1:{back} {options}
"""

VERSIONS = {
    "v1": "send-proxy",
    "v2": "send-proxy-v2",
    "checksum": "send-proxy-v2 proxy-v2-options crc32c,unique-id",
    "checked": "send-proxy-v2 proxy-v2-options crc32c check inter 50ms",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[Any]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**values: Any) -> None:
        config = tmp_path / "haproxy.cfg"
        config.write_text(CONFIG.format(**values))
        assert HAPROXY is not None
        started.append(
            subprocess.Popen(
                [HAPROXY, "-db", "-q", "-f", str(config)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    yield start
    for process in started:
        process.kill()
        process.wait()


async def dial(address: str) -> Any:
    """Dial as soon as HAProxy listens."""
    with trio.fail_after(5):
        while True:
            try:
                return await trionet.dial("tcp", address)
            except ConnectionRefusedError:
                await trio.sleep(0.02)


@pytest.mark.parametrize("kind", VERSIONS)
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_the_client_behind_haproxy_is_known(
    nursery: trio.Nursery, haproxy: Any, kind: str, host: str
) -> None:
    seen: list[trionet.ProxyHeader | None] = []

    async def handler(connection: trionet.Connection) -> None:
        seen.append(connection.proxy_header)
        data = await connection.receive_some()
        await connection.send_all(f"{connection.remote_address} ".encode() + data)

    server = trionet.Server(handler)
    settings = trionet.ProxyProtocol(trusted=["127.0.0.1"])
    listeners = await trionet.listen("tcp", "127.0.0.1:0", proxy_protocol=settings)
    addresses = await nursery.start(server.serve, listeners)
    front = free_port()
    haproxy(front=front, back=addresses[0].port, options=VERSIONS[kind])

    async with await dial(f"{host}:{front}") as client:
        await client.send_all(b"hello")
        assert await read_all(client) == f"{client.local_address} hello".encode()

    header = next(one for one in seen if one is not None and one.command == "PROXY")
    assert header.version == ("v1" if kind == "v1" else "v2")
    assert header.checksum == (kind in {"checksum", "checked"})
    if kind == "checksum":
        unique = header.tlv(trionet.ProxyTLV.UNIQUE_ID)
        assert unique == f"trionet-{host.strip('[]')}".encode()
    if kind == "checked":
        with trio.fail_after(5):
            while not any(one is not None and one.command == "LOCAL" for one in seen):
                await trio.sleep(0.02)
    server.shutdown(0)


async def test_haproxy_understands_the_headers_written_here(
    nursery: trio.Nursery, haproxy: Any
) -> None:
    async def handler(connection: trionet.Connection) -> None:
        await connection.receive_some()
        await connection.send_all(str(connection.remote_address).encode())

    server = trionet.Server(handler)
    settings = trionet.ProxyProtocol(trusted=["127.0.0.1"])
    listeners = await trionet.listen("tcp", "127.0.0.1:0", proxy_protocol=settings)
    addresses = await nursery.start(server.serve, listeners)
    front = free_port()
    # It takes our header, and passes what it read on in one of its own.
    haproxy(front=f"{front} accept-proxy", back=addresses[0].port, options="send-proxy-v2")
    for version in ("v1", "v2"):
        for client in ("192.0.2.7", "2001:db8::7"):
            family = "tcp6" if ":" in client else "tcp4"
            source = trionet.Address(family, host=client, port=4711)
            destination = trionet.Address(family, host=client, port=443)
            checksum = version == "v2"
            header = trionet.ProxyHeader(
                version,
                source,
                destination,
                checksum=checksum,
            )
            async with await dial(f"127.0.0.1:{front}") as proxy:
                await proxy.send_all(header.encode() + b"x")
                assert await read_all(proxy) == str(source).encode()
    server.shutdown(0)
