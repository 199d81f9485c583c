"""Attacks on any server: silence, a trickle, a reader that does not read, resets."""

from __future__ import annotations

import socket
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from tests.server.attacked import KERNEL, Site, contexts, echo, hello_of, loud, reset, under_attack
from trionet import Limits

if TYPE_CHECKING:
    from tests.conftest import Certificates
    from trionet import Connection

MANY = 500

plain_and_tls = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])


@plain_and_tls
async def test_500_silent_clients_are_closed_in_time_and_hold_up_nobody(
    autojump_clock: Any, certificates: Certificates, secure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    autojump_clock.autojump_threshold = KERNEL
    limits = Limits(handshake_timeout=10, idle_timeout=10)
    async with under_attack(**contexts(certificates, secure), limits=limits) as site:
        begun = trio.current_time()
        silent = site.connect_many(MANY)
        await site.serves()
        while site.server.statistics().active < MANY:
            await trio.sleep(0)
        assert trio.current_time() - begun < 1

        await site.ended(silent)

        # The idle timeout may be a tenth late; a handshake's is exact.
        assert 10 <= trio.current_time() - begun <= (11.5 if not secure else 10.5)
        assert site.server.statistics().failed == MANY
    assert not loud(caplog)


async def test_cve_2024_28854_unfinished_handshakes_do_not_keep_their_places(
    autojump_clock: Any, certificates: Certificates
) -> None:
    """A cap without a timeout is a lock: whoever holds all places holds them for ever."""
    autojump_clock.autojump_threshold = KERNEL
    limits = Limits(handshake_timeout=3, max_connections=20)
    async with under_attack(**contexts(certificates, True), limits=limits) as site:
        begun = trio.current_time()
        silent = site.connect_many(20)
        while site.server.statistics().active < 20:
            await trio.sleep(0)

        # No place is free: the client waits in the backlog, and is served once one is.
        await site.serves()

        assert 3 <= trio.current_time() - begun <= 3.5
        await site.ended(silent)


async def test_a_silent_handshake_is_nobody_elses_wait(certificates: Certificates) -> None:
    """PyKMIP's issue 430: a handshake in the accept loop, waited for by all."""
    async with under_attack(**contexts(certificates, True)) as site:
        silent = site.connect()
        for _ in range(3):
            await site.serves()
        silent.close()


async def test_cve_2007_6750_a_byte_now_and_then_does_not_move_the_end_of_a_handshake(
    autojump_clock: Any, certificates: Certificates
) -> None:
    autojump_clock.autojump_threshold = KERNEL
    limits = Limits(handshake_timeout=10)
    async with under_attack(**contexts(certificates, True), limits=limits) as site:
        begun = trio.current_time()
        sock = site.connect()
        sent = 0
        # A record of 512 bytes, one each time before anybody's patience could end.
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50):
            try:
                sock.send(bytes([byte]))
            except OSError:
                break
            sent += 1
            await trio.sleep(9.9 / 10)
            if sent == 5:
                await site.serves()

        await site.ended([sock])

        # Nine were within the time; two more may go before the reset is back.
        assert 10 <= sent <= 13
        assert trio.current_time() - begun <= 13
        assert site.server.statistics().failed == 1


async def test_cve_2007_6750_a_byte_now_and_then_does_not_outlive_the_lifetime(
    autojump_clock: Any,
) -> None:
    autojump_clock.autojump_threshold = KERNEL
    async with under_attack(limits=Limits(idle_timeout=10, lifetime=60)) as site:
        await site.serves()
        begun = trio.current_time()
        async with await site.dial() as stream:
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                while True:
                    await stream.send_all(b"x")
                    assert await stream.receive_some() == b"x"
                    await trio.sleep(9)

        assert 60 <= trio.current_time() - begun <= 64


class Flood:
    """A handler that sends 100 MB, and knows how far it came."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.block = bytes(100_000_000)

    async def __call__(self, connection: Connection) -> None:
        if await connection.receive_some() == b"hello":
            await connection.send_all(b"hello")
            return
        self.connection = connection
        await connection.send_all(self.block)


@plain_and_tls
async def test_a_client_that_does_not_read_100_mb_costs_no_memory_and_is_ended(
    autojump_clock: Any, certificates: Certificates, secure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    autojump_clock.autojump_threshold = KERNEL
    flood = Flood()
    limits = Limits(send_timeout=5)
    async with under_attack(flood, **contexts(certificates, secure), limits=limits) as site:
        async with await site.dial() as stream:
            tracemalloc.start()
            try:
                await stream.send_all(b"all of it")
                await trio.sleep(1)
                await site.serves()
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert flood.connection is not None
            # The kernel's buffers took this, and the rest is nowhere.
            assert 0 < flood.connection.bytes_sent < 20_000_000
            assert peak < 1_000_000

            begun = trio.current_time()
            await site.quiet()
            assert 3 <= trio.current_time() - begun <= 6
        assert site.server.statistics().failed == 1
    assert not loud(caplog)


@plain_and_tls
async def test_a_client_that_does_not_read_is_cut_at_the_end_of_the_grace(
    autojump_clock: Any, certificates: Certificates, secure: bool
) -> None:
    autojump_clock.autojump_threshold = KERNEL
    listeners = await trionet.listen(
        "tcp", "127.0.0.1:0", ssl_context=certificates.server if secure else None
    )
    server = trionet.Server(Flood(), grace=5)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        site = Site(server, certificates.client if secure else None)
        async with await site.dial() as stream:
            await stream.send_all(b"all of it")
            await trio.sleep(1)
            server.shutdown()
            assert (await server.wait_closed()).cancelled == 1
            assert trio.current_time() == pytest.approx(6, abs=0.1)


# Resets


@plain_and_tls
async def test_resets_before_the_accept_are_survived(
    certificates: Certificates, secure: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with under_attack(**contexts(certificates, secure)) as site:
        site.server.pause()
        for sock in site.connect_many(50):
            sock.send(b"something")
            reset(sock)
        site.server.resume()
        await site.serves()
    assert not loud(caplog)


@pytest.mark.parametrize("size", [0, 1, 5, 100, None])
async def test_resets_in_the_handshake_are_survived(
    certificates: Certificates, size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    hello = hello_of(certificates.client)
    async with under_attack(**contexts(certificates, True)) as site:
        sockets = site.connect_many(50)
        for sock in sockets:
            sock.send(hello[:size])
        await site.serves()
        await wait_all_tasks_blocked()
        for sock in sockets:
            # With all of it sent, the server's flight waits unread.
            reset(sock)
        await site.serves()
    assert not loud(caplog)


async def trickle_down(connection: Connection) -> None:
    """Echo a word; for anything else do what it says."""
    word = await connection.receive_some(5)
    if word == b"read-":
        await connection.receive_some()
    elif word == b"write":
        while True:
            await connection.send_all(bytes(100_000))
    elif word == b"close":
        # Returns with input unread: closing lingers for it.
        return
    else:
        await connection.send_all(word)


@plain_and_tls
@pytest.mark.parametrize("phase", [b"read-", b"write", b"close"])
async def test_resets_in_and_after_the_handler_are_survived(
    certificates: Certificates, secure: bool, phase: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with under_attack(trickle_down, **contexts(certificates, secure)) as site:
        clients = [await site.dial() for _ in range(20)]
        for client in clients:
            await client.send_all(phase)
            if phase == b"close":
                await client.send_all(b"unread" * 1000)
        await site.serves()
        for client in clients:
            transport = client.transport if isinstance(client, trionet.TLSStream) else client
            sock = transport.transport_socket
            assert isinstance(sock, socket.socket)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await trio.aclose_forcefully(client)
        await site.serves()
    assert not loud(caplog)


async def test_a_storm_of_resets_between_good_clients(caplog: pytest.LogCaptureFixture) -> None:
    async with under_attack(echo) as site:
        for _ in range(20):
            for sock in site.connect_many(20):
                reset(sock)
            await site.serves()
    assert not loud(caplog)
