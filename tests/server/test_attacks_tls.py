"""Attacks on a server's TLS."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionet
from tests.server.attacked import KERNEL, contexts, hello_of, loud, under_attack
from trionet import Limits

if TYPE_CHECKING:
    from tests.conftest import Certificates
    from trionet import Connection

OPENSSL = shutil.which("openssl")

# Records of the handshake protocol (RFC 8446 section 5.1).
HANDSHAKE = b"\x16\x03\x01"
RECORD_HEADER = 5


@pytest.mark.parametrize("then", ["silent", "gone"])
async def test_every_prefix_of_a_hello_ends_in_time(
    autojump_clock: Any, certificates: Certificates, then: str, caplog: pytest.LogCaptureFixture
) -> None:
    autojump_clock.autojump_threshold = KERNEL
    hello = hello_of(certificates.client)
    limits = Limits(handshake_timeout=10)
    async with under_attack(**contexts(certificates, True), limits=limits) as site:
        begun = trio.current_time()
        sockets = site.connect_many(len(hello))
        for size, sock in enumerate(sockets):
            sock.sendall(hello[:size])
            if then == "gone":
                sock.shutdown(socket.SHUT_WR)
        await site.serves()

        await site.ended(sockets)

        took = trio.current_time() - begun
        assert took < 1 if then == "gone" else 10 <= took <= 10.5
        assert site.server.statistics().failed == len(hello)
    assert not loud(caplog)


@pytest.mark.parametrize("piece", [1, 7, 100])
async def test_a_hello_in_many_segments_is_a_hello(certificates: Certificates, piece: int) -> None:
    hello = hello_of(certificates.client)
    async with under_attack(**contexts(certificates, True)) as site:
        sock = site.connect()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(hello), piece):
            sock.sendall(hello[at : at + piece])
            await trio.sleep(0)
        await site.serves()
        async with trionet.SocketStream(sock) as stream:
            # A ServerHello, in a record of the handshake.
            assert (await stream.receive_some())[:1] == b"\x16"


@pytest.mark.parametrize("piece", [1, 50])
async def test_a_hello_in_many_records_is_served_or_refused(
    certificates: Certificates, piece: int, caplog: pytest.LogCaptureFixture
) -> None:
    message = hello_of(certificates.client)[RECORD_HEADER:]
    async with under_attack(**contexts(certificates, True)) as site:
        sock = site.connect()
        for at in range(0, len(message), piece):
            part = message[at : at + piece]
            sock.sendall(HANDSHAKE + len(part).to_bytes(2, "big") + part)
        await site.serves()
        async with trionet.SocketStream(sock) as stream:
            # A record of the handshake, or an alert.
            assert (await stream.receive_some())[:1] in {b"\x16", b"\x15"}
    assert not loud(caplog)


async def test_a_hello_that_announces_16_mb_is_refused_at_once_and_costs_nothing(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    record = HANDSHAKE + b"\x40\x00" + b"\x01\xff\xff\xff" + bytes(16380)
    async with under_attack(**contexts(certificates, True)) as site:
        tracemalloc.start()
        try:
            sockets = site.connect_many(20)
            for sock in sockets:
                sock.sendall(record)
            await site.serves()
            await site.ended(sockets)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 5_000_000
        assert site.server.statistics().failed == 20
    assert not loud(caplog)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: site\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        # A ClientHello of SSL 2.
        b"\x80\x2e\x01\x00\x02" + bytes(43),
        # An alert, and application data, before any hello.
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x05hello",
        b"\0" * 1000,
        b"\xff" * 1000,
    ],
    ids=["http", "ssh", "http2", "ssl2", "alert", "data", "zeros", "ones"],
)
async def test_cve_2021_22883_what_is_no_tls_leaves_no_descriptor_and_no_word(
    certificates: Certificates, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections of an unknown protocol were kept open for ever, and counted by nobody."""
    caplog.set_level(logging.DEBUG, "trionet")
    async with under_attack(**contexts(certificates, True)) as site:
        sockets = site.connect_many(100)
        for sock in sockets:
            sock.sendall(garbage)
        await site.serves()
        await site.ended(sockets)
        assert site.server.statistics().failed == 100
    assert not loud(caplog)
    lines = [one.getMessage() for one in caplog.records if "handshake failed" in one.getMessage()]
    assert len(lines) == 100
    assert not any(one.exc_info for one in caplog.records)


async def test_cve_2023_40217_no_handler_sees_a_byte_of_an_unknown_client(
    certificates: Certificates,
) -> None:
    """Plaintext from before the handshake was delivered as if its sender were authenticated."""
    strict = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.authority.issue_cert("localhost").configure_cert(strict)
    certificates.authority.configure_trust(strict)
    strict.verify_mode = ssl.CERT_REQUIRED
    known = ssl.create_default_context()
    certificates.authority.configure_trust(known)
    certificates.authority.issue_cert("client").configure_cert(known)
    seen: list[bytes | bytearray] = []

    async def handler(connection: Connection) -> None:
        assert connection.tls is not None
        assert connection.tls.peer_certificate is not None
        async for data in connection:
            seen.append(data)
            await connection.send_all(data)

    async with under_attack(handler, ssl_context=strict, client_context=known) as site:
        seen.clear()
        # Sent and closed before the server looks: nothing is left to shake hands with.
        site.server.pause()
        for closing in (socket.SHUT_WR, socket.SHUT_RDWR):
            sock = site.connect()
            sock.sendall(b"GET /secret HTTP/1.1\r\n\r\n")
            sock.shutdown(closing)
            sock.close()
        site.server.resume()
        # Over TLS 1.3 a client may send before the server has looked for its certificate.
        stranger = await trionet.dial(
            "tcp4", f"localhost:{site.port}", ssl_context=certificates.client
        )
        with pytest.raises(trio.BrokenResourceError):
            await stranger.send_all(b"secret")
            await stranger.receive_some()
        await stranger.aclose()
        assert seen == []

        await site.serves()
        assert seen == [b"hello"]


async def test_cve_2026_27448_an_sni_callback_that_fails_lets_nobody_in(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificates.authority.issue_cert("localhost", "site").configure_cert(context)

    def choose(_: object, name: str | None, __: object) -> None:
        if name != "localhost":
            raise LookupError(name)

    context.sni_callback = choose
    called: list[Connection] = []

    async def handler(connection: Connection) -> None:
        called.append(connection)
        await connection.send_all(await connection.receive_some())

    async with under_attack(
        handler, ssl_context=context, client_context=certificates.client
    ) as site:
        called.clear()
        client = await trionet.dial(
            "tcp4",
            f"localhost:{site.port}",
            ssl_context=certificates.client,
            server_hostname="site",
        )
        with pytest.raises(trio.BrokenResourceError, match="handshake failed, the peer says"):
            await client.do_handshake()
        await client.aclose()
        assert called == []
        await site.serves()
    assert [type(one.exc_value) for one in errors] == [LookupError]


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("version", "command"),
    [("-tls1_3", b"K\n"), ("-tls1_3", b"k\n"), ("-tls1_2", b"R\n")],
    ids=["update-requested", "update", "renegotiate"],
)
async def test_a_flood_of_key_updates_or_renegotiations_hurts_nobody(
    certificates: Certificates, version: str, command: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with under_attack(**contexts(certificates, True)) as site:
        attacker = await trio.lowlevel.open_process(
            [OPENSSL or "", "s_client", version, "-connect", f"127.0.0.1:{site.port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert attacker.stdin is not None
        with trio.move_on_after(10):
            try:
                await wait_until_active(site)
                for _ in range(300):
                    # One at a time: it looks for a command at the start of what it reads, and
                    # sends the rest.
                    await attacker.stdin.send_all(command)
                    await trio.sleep(0.001)
                (info,) = site.server.connections
                assert info.bytes_received < 300 * len(command) / 2
            except trio.BrokenResourceError:
                # Refused: it went away.
                pass
        await site.serves()
        attacker.kill()
        await attacker.wait()
        await attacker.stdin.aclose()
    assert not loud(caplog)


async def wait_until_active(site: Any) -> None:
    while not any(one.state == "active" for one in site.server.connections):
        await trio.sleep(0.001)
