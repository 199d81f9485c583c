"""Streams and listeners on real sockets."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
import struct
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

import trionet
from tests.helpers import cancelled_at, clog, connected, read_all
from trionet import SocketListener, SocketOptions, SocketStream
from trionet.abc import ReceiveInterrupted

HAS_IPV6 = socket.has_ipv6


def tcp_networks() -> list[Any]:
    no_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
    return [("tcp", "127.0.0.1:0"), pytest.param("tcp6", "[::1]:0", marks=no_ipv6)]


@pytest.mark.parametrize(("network", "address"), [*tcp_networks(), ("unix", "PATH")])
async def test_sockets_keep_trios_contract(network: str, address: str, tmp_path: Path) -> None:
    address = address.replace("PATH", str(tmp_path / "s"))

    async def make() -> Any:
        return await connected(network, address)

    async def make_clogged() -> Any:
        near, far = await make()
        for stream in (near, far):
            # Fixed sizes: a kernel that tunes them makes room in a connection that was full.
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        await clog(near)
        await clog(far)
        return near, far

    await check_half_closeable_stream(make, make_clogged)


@pytest.mark.parametrize(("network", "address"), tcp_networks())
async def test_both_ends_know_their_addresses(network: str, address: str) -> None:
    (listener,) = await trionet.listen(network, address)
    client = await trionet.dial(network, str(listener.address))
    server = await listener.accept()

    assert server.local_address == client.remote_address == listener.address
    assert server.remote_address == client.local_address
    assert listener.address.port
    assert repr(client) == (
        f"<SocketStream {client.local_address.network} {client.local_address}"
        f" -> {listener.address}>"
    )
    for one in (client, server, listener):
        await one.aclose()
    assert repr(client) == "<SocketStream closed>"
    assert repr(listener).endswith(" closed>")


@pytest.mark.parametrize(
    ("unspecified", "reached"), [("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "::1")]
)
async def test_whoever_dials_the_unspecified_address_sees_the_one_it_reached(
    unspecified: str, reached: str
) -> None:
    (listener,) = await trionet.listen("tcp", unspecified)
    async with (
        listener,
        await trionet.dial("tcp", str(listener.address)) as client,
        await listener.accept() as server,
    ):
        assert client.remote_address == server.local_address
        assert client.remote_address.host == reached


async def test_no_host_means_both_families_on_one_port() -> None:
    listeners = await trionet.listen("tcp", ":0")

    assert len({one.address.port for one in listeners}) == 1
    if HAS_IPV6:
        assert [one.address.network for one in listeners] == ["tcp4", "tcp6"]
    for one in listeners:
        client = await trionet.dial(one.address.network, f":{one.address.port}")
        server = await one.accept()
        assert server.remote_address == client.local_address
        for closing in (client, server, one):
            await closing.aclose()


async def test_a_port_that_is_taken_in_the_second_family_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trionet._streams import system

    real = system._listen_one
    refusals = iter([False, True, False, False])

    def unlucky(family: int, name: Any, **settings: Any) -> Any:
        if next(refusals):
            raise OSError(errno.EADDRINUSE, "taken")
        return real(family, name, **settings)

    monkeypatch.setattr(system, "_listen_one", unlucky)
    listeners = await trionet.listen("tcp", ":0")
    assert len({one.address.port for one in listeners}) == 1
    for one in listeners:
        await one.aclose()


async def test_a_port_in_use_is_an_error_with_the_address() -> None:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    with pytest.raises(OSError, match=str(listener.address)) as caught:
        await trionet.listen("tcp", str(listener.address))
    assert caught.value.errno == errno.EADDRINUSE
    await listener.aclose()


async def test_a_refused_port_is_connection_refused() -> None:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    await listener.aclose()
    with pytest.raises(ConnectionRefusedError, match=str(listener.address)):
        await trionet.dial("tcp", str(listener.address))


async def test_no_delay_is_set_on_both_ends_unless_unwanted() -> None:
    for wanted in (True, False):
        options = SocketOptions(no_delay=wanted)
        (listener,) = await trionet.listen("tcp", "127.0.0.1:0", options=options)
        client = await trionet.dial("tcp", str(listener.address), options=options)
        server = await listener.accept()
        for stream in (client, server):
            assert isinstance(stream, SocketStream)
            value = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert bool(value) is wanted
            await stream.aclose()
        await listener.aclose()


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
async def test_reuse_port_lets_two_listeners_share_it() -> None:
    options = SocketOptions(reuse_port=True)
    (first,) = await trionet.listen("tcp", "127.0.0.1:0", options=options)
    (second,) = await trionet.listen("tcp", str(first.address), options=options)
    with pytest.raises(OSError, match=str(first.address)):
        await trionet.listen("tcp", str(first.address))
    await first.aclose()
    await second.aclose()


async def test_it_can_be_dialled_from_an_address_of_ones_own() -> None:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    client = await trionet.dial("tcp", str(listener.address), local_address="127.0.0.1:0")
    server = await listener.accept()
    assert server.remote_address.host == "127.0.0.1"
    with pytest.raises(OSError, match="no address family in common"):
        await trionet.dial("tcp", str(listener.address), local_address="[::1]:0")
    for one in (client, server, listener):
        await one.aclose()


async def test_a_reset_is_broken_with_the_systems_error_as_cause() -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await server.aclose()

    with pytest.raises(trio.BrokenResourceError) as caught:
        await client.receive_some()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert client.peer_closed()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    await client.aclose()


async def test_a_client_that_resets_before_accept_still_has_its_address() -> None:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    client = socket.create_connection(("127.0.0.1", listener.address.port))
    name = client.getsockname()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()

    server = await listener.accept()

    assert (server.remote_address.host, server.remote_address.port) == name
    with pytest.raises(trio.BrokenResourceError):
        await server.receive_some()
    await server.aclose()
    await listener.aclose()


async def test_state_is_known_without_waiting() -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    assert not server.is_readable()
    assert not server.peer_closed()
    assert server.transport_socket is server.socket

    await client.send_all(b"abc")
    while not server.is_readable():
        await trio.sleep(0)
    assert server.unread_size() == 3
    assert not server.peer_closed()
    await client.send_eof()
    while not server.peer_closed():
        await trio.sleep(0)
    assert server.unread_size() == 3
    assert await server.receive_some() == b"abc"
    assert server.is_readable()
    assert server.unread_size() == 0
    assert await server.receive_some() == b""

    await server.aclose()
    assert server.closed
    assert not server.is_readable()
    assert not server.peer_closed()
    assert server.unread_size() == 0
    assert (client.bytes_sent, server.bytes_received) == (3, 3)
    await client.aclose()


async def test_a_receive_can_be_interrupted_and_a_send_beside_it_is_not() -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    await clog(server)
    events: list[str] = []

    async def receive() -> None:
        with pytest.raises(ReceiveInterrupted):
            await server.receive_some()
        events.append("interrupted")

    async def send() -> None:
        await server.send_all(bytes(100_000))
        events.append("sent")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        server.interrupt_receive()
        await wait_all_tasks_blocked()
        assert events == ["interrupted"]
        with pytest.raises(ReceiveInterrupted):
            await server.receive_some()

        await client.send_all(b"bytes that are there")
        while not server.is_readable():
            await trio.sleep(0)
        assert await server.receive_some() == b"bytes that are there"

        server.resume_receive()
        await client.send_all(b"more")
        assert await server.receive_some() == b"more"
        nursery.start_soon(read_all, client)
        while events != ["interrupted", "sent"]:
            await trio.sleep(0)
        await server.aclose()
    await client.aclose()


async def test_an_accept_cancelled_at_any_checkpoint_loses_no_connection() -> None:
    for n in itertools.count(1):
        (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
        client = await trionet.dial("tcp", str(listener.address))

        attempt = await cancelled_at(n, listener.accept)

        server = attempt.result if attempt.finished else await listener.accept()
        assert server.remote_address == client.local_address
        for one in (client, server, listener):
            await one.aclose()
        if attempt.last:
            return


async def test_a_dial_cancelled_at_any_checkpoint_leaves_no_descriptor() -> None:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    base = len(os.listdir(folder))
    for n in itertools.count(1):
        attempt = await cancelled_at(n, partial(trionet.dial, "tcp", str(listener.address)))
        if attempt.finished:
            await attempt.result.aclose()
        assert len(os.listdir(folder)) == base
        if attempt.last:
            break
    await listener.aclose()


async def test_a_receive_cancelled_at_any_checkpoint_loses_nothing() -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    for n in itertools.count(1):
        await client.send_all(b"abc")
        while not server.is_readable():
            await trio.sleep(0)
        attempt = await cancelled_at(n, server.receive_some)
        assert (attempt.result if attempt.finished else await server.receive_some()) == b"abc"
        if attempt.last:
            break
    await client.aclose()
    await server.aclose()


async def test_a_cancelled_send_leaves_the_stream_usable() -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    data = os.urandom(20_000_000)
    with trio.move_on_after(0.05):
        await client.send_all(data)
    sent = client.bytes_sent
    assert sent < len(data)

    received = bytearray()
    async with trio.open_nursery() as nursery:

        async def finish() -> None:
            await client.send_all(b"and the end")
            await client.aclose()

        nursery.start_soon(finish)
        received += await read_all(server)
    assert received == data[:sent] + b"and the end"
    await server.aclose()


async def test_a_unix_path_appears_only_when_it_listens_and_goes_with_its_owner(
    tmp_path: Path,
) -> None:
    path = tmp_path / "server.sock"
    (listener,) = await trionet.listen("unix", str(path))

    assert stat.S_ISSOCK(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["server.sock"]
    client = await trionet.dial("unix", str(path))
    server = await listener.accept()
    assert str(server.local_address) == str(client.remote_address) == str(path)
    assert str(server.remote_address) == ""

    await listener.aclose()
    assert not path.exists()
    for one in (client, server):
        await one.aclose()


async def test_a_cancelled_listen_leaves_no_unix_path(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    with trio.CancelScope() as scope:
        scope.cancel()
        await trionet.listen("unix", str(path))

    assert scope.cancelled_caught
    assert os.listdir(tmp_path) == []


async def test_a_successor_takes_a_unix_path_over_and_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    (old,) = await trionet.listen("unix", str(path))
    (new,) = await trionet.listen("unix", str(path))

    await old.aclose()

    assert path.exists()
    client = await trionet.dial("unix", str(path))
    await (await new.accept()).aclose()
    await client.aclose()
    await new.aclose()
    assert not path.exists()


async def test_what_is_no_socket_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("data")
    with pytest.raises(OSError, match=r"precious\.txt exists and is not a socket") as caught:
        await trionet.listen("unix", str(path))
    assert caught.value.errno == errno.EADDRINUSE
    assert path.read_text() == "data"
    assert os.listdir(tmp_path) == ["precious.txt"]


async def test_a_unix_path_in_no_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await trionet.listen("unix", str(tmp_path / "missing" / "s"))
    with pytest.raises(FileNotFoundError):
        await trionet.dial("unix", str(tmp_path / "missing" / "s"))


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses exist on Linux only")
async def test_an_abstract_unix_name_is_listened_on_and_dialled() -> None:
    name = f"@trionet-test-{os.getpid()}"
    (listener,) = await trionet.listen("unix", name)
    with pytest.raises(OSError, match=name):
        await trionet.listen("unix", name)
    client = await trionet.dial("unix", name)
    assert str(client.remote_address) == name
    for one in (client, await listener.accept(), listener):
        await one.aclose()


async def test_only_stream_sockets_are_taken_over() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        with pytest.raises(TypeError, match="stream socket"):
            SocketStream(datagrams)
        with pytest.raises(TypeError, match="stream socket"):
            SocketListener(datagrams)
    with socket.socket() as idle, pytest.raises(ValueError, match="listening socket"):
        SocketListener(idle)
    with trio.socket.socket() as other, pytest.raises(TypeError, match="stream socket"):
        SocketStream(other)  # type: ignore[arg-type]


async def test_closing_a_listener_wakes_its_acceptor() -> None:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0")
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()

        nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await listener.wait_acceptable()
        listener.close()
        listener.close()
    with pytest.raises(trio.ClosedResourceError):
        listener.accept_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await listener.wait_acceptable()


async def test_a_path_that_cannot_be_removed_does_not_keep_a_listener_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that bound its path as root and dropped its privileges since."""
    (listener,) = await trionet.listen("unix", str(tmp_path / "s"))

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "not yours")

    monkeypatch.setattr(os, "unlink", refuse)
    listener.close()
    assert listener.socket.fileno() == -1  # type: ignore[attr-defined]
    assert "cannot remove" in caplog.text
    with pytest.raises(ConnectionRefusedError):
        await trionet.dial("unix", str(tmp_path / "s"))


async def test_a_dialled_stream_knows_its_peer_after_a_reset() -> None:
    client, server = await connected("tcp", "127.0.0.1:0")
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    name = server.local_address
    await server.aclose()
    while not client.peer_closed():
        await trio.sleep(0.001)
    assert repr(client).endswith(f"-> {name}>")
    await client.aclose()


async def test_send_nowait_sends_what_the_kernel_takes() -> None:
    near, far = map(SocketStream, socket.socketpair())

    assert near.send_nowait(b"") == 0
    assert near.send_nowait(b"hello") == 5
    assert near.bytes_sent == 5
    assert await far.receive_some() == b"hello"

    total = 0
    while count := near.send_nowait(bytes(65536)):
        total += count
    # Full: nothing more is taken, and nothing is raised.
    assert near.send_nowait(b"x") == 0
    received = 0
    while received < total:
        received += len(await far.receive_some())
    assert received == total == near.bytes_sent - 5
    near.close()
    far.close()


async def test_send_nowait_has_the_errors_of_send_all() -> None:
    near, far = map(SocketStream, socket.socketpair())
    while near.send_nowait(bytes(65536)):
        pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, b"waits")
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            near.send_nowait(b"x")
        nursery.cancel_scope.cancel()
    await near.send_eof()
    for nothing_or_something in (b"", b"x"):
        with pytest.raises(trio.ClosedResourceError, match="end of file"):
            near.send_nowait(nothing_or_something)
    near.close()
    for nothing_or_something in (b"", b"x"):
        with pytest.raises(trio.ClosedResourceError):
            near.send_nowait(nothing_or_something)
    with pytest.raises(trio.BrokenResourceError):
        for _ in range(3):
            far.send_nowait(b"x")
    far.close()


async def test_send_nowait_takes_nothing_where_sending_may_wait() -> None:
    near, far = trionet.memory_stream_pair()

    assert near.send_nowait(b"x") == 0
    assert not far.is_readable()


async def test_receive_nowait_takes_what_is_there_and_says_when_nothing_is() -> None:
    near, far = map(SocketStream, socket.socketpair())

    with pytest.raises(trio.WouldBlock):
        far.receive_nowait()
    await near.send_all(b"hello")
    assert far.receive_nowait(2) == b"he"
    assert far.receive_nowait() == b"llo"
    assert far.bytes_received == 5
    with pytest.raises(trio.WouldBlock):
        far.receive_nowait()
    # A receive that waits comes after it as after one of its own kind.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            far.receive_nowait()
        await near.send_all(b"x")
    await near.send_eof()
    assert far.receive_nowait() == far.receive_nowait() == await far.receive_some() == b""
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_bytes"):
            far.receive_nowait(wrong)
    near.close()
    far.close()
    with pytest.raises(trio.ClosedResourceError):
        far.receive_nowait()


async def test_receive_nowait_tells_of_a_reset() -> None:
    near, far = await connected("tcp", "127.0.0.1:0")
    near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()

    with pytest.raises(trio.BrokenResourceError):
        far.receive_nowait()
    far.close()


async def test_receive_nowait_blocks_on_a_stream_that_cannot_tell() -> None:
    near, far = trionet.memory_stream_pair(10)
    await near.send_all(b"x")

    with pytest.raises(trio.WouldBlock):
        far.receive_nowait()
    assert await far.receive_some() == b"x"


@pytest.mark.parametrize("wait", [trio.lowlevel.wait_readable, trio.lowlevel.wait_writable])
@pytest.mark.parametrize("name", ["socket", "transport_socket"])
async def test_who_waits_for_the_socket_itself_is_woken_by_its_close(wait: Any, name: str) -> None:
    near, far = map(SocketStream, socket.socketpair())
    while near.send_nowait(bytes(65536)):
        pass
    woken: list[bool] = []

    async def wait_directly() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await wait(getattr(near, name))
        woken.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_directly)
        await wait_all_tasks_blocked()
        near.close()

    assert woken == [True]
    far.close()
