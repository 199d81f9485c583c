"""anyio's streams from trionet's and back, against anyio itself."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import pytest
import trio
import trio.testing
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.stapled import StapledObjectStream
from anyio.streams.tls import TLSAttribute, TLSConnectable, TLSListener, TLSStream

import trionet
from examples.echo import echo
from tests.helpers import connected
from trionet.integrations.anyio import (
    ByteStream,
    Connectable,
    Listener,
    from_anyio,
    open_listener,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Certificates

NETWORKS = pytest.mark.parametrize("network", ["memu", "memb", "tcp", "unix"])


def pair(buffer_size: int = 100) -> tuple[ByteStream, trionet.MemoryStream]:
    near, far = trionet.memory_stream_pair(buffer_size)
    return ByteStream(near), far


async def anyio_tcp() -> tuple[Any, Any]:
    """Make a TCP connection of anyio's own."""
    near, far = socket.socketpair()
    return (
        await anyio.abc.UNIXSocketStream.from_socket(near),
        await anyio.abc.UNIXSocketStream.from_socket(far),
    )


# A trionet stream as anyio's


async def test_end_of_file_is_end_of_stream_again_and_again() -> None:
    near, far = pair()
    await far.send_all(b"last words")
    await far.aclose()

    assert await near.receive(4) == b"last"
    assert await near.receive() == b" words"
    for _ in range(2):
        with pytest.raises(anyio.EndOfStream):
            await near.receive()


async def test_iterating_ends_with_the_stream() -> None:
    near, far = pair()
    await far.send_all(b"all")
    await far.send_eof()

    assert [data async for data in near] == [b"all"]


async def test_a_closed_stream_says_so_in_anyio_words() -> None:
    near, _far = pair()
    await near.aclose()
    await near.aclose()

    with pytest.raises(anyio.ClosedResourceError) as receiving:
        await near.receive()
    with pytest.raises(anyio.ClosedResourceError):
        await near.send(b"x")
    assert isinstance(receiving.value.__cause__, trio.ClosedResourceError)


async def test_closing_wakes_a_receiver_with_closed(nursery: trio.Nursery) -> None:
    near, _far = pair()

    async def receive() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await near.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()


async def test_a_peer_that_is_gone_is_a_broken_resource() -> None:
    near, far = pair()
    await far.aclose()

    with pytest.raises(anyio.BrokenResourceError) as caught:
        await near.send(b"x")
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError)


async def test_two_tasks_at_once_are_busy(nursery: trio.Nursery) -> None:
    near, far = pair(1)
    nursery.start_soon(near.receive)
    nursery.start_soon(near.send, b"more than fits")
    await trio.testing.wait_all_tasks_blocked()

    with pytest.raises(anyio.BusyResourceError, match="reading from"):
        await near.receive()
    with pytest.raises(anyio.BusyResourceError, match="writing to"):
        await near.send(b"y")
    with pytest.raises(anyio.BusyResourceError, match="writing to"):
        await near.send_eof()
    await far.send_all(b"z")
    assert await far.receive_some(1) == b"m"
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("size", [0, -1])
async def test_nothing_less_than_a_byte_can_be_asked_for(size: int) -> None:
    near, _far = pair()

    with pytest.raises(ValueError, match=f"got {size}"):
        await near.receive(size)


async def test_no_more_than_64_kib_come_at_once() -> None:
    near, far = pair(200_000)
    await far.send_all(bytes(150_000))

    assert len(await near.receive()) == 65536


async def test_end_of_file_can_be_sent_twice_and_no_data_after_it() -> None:
    near, far = pair()
    await near.send_eof()
    await near.send_eof()

    assert await far.receive_some() == b""
    with pytest.raises(anyio.ClosedResourceError):
        await near.send(b"x")
    await far.send_all(b"still")
    assert await near.receive() == b"still"


async def test_a_cancelled_receive_loses_nothing() -> None:
    near, far = pair()
    with anyio.move_on_after(0):
        await near.receive()
    await far.send_all(b"kept")

    assert await near.receive() == b"kept"


def test_only_streams_and_listeners_are_wrapped() -> None:
    with pytest.raises(TypeError, match=r"must be a trio\.abc.Stream, got 3"):
        ByteStream(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a trio\.abc.Listener, got 3"):
        Listener(3)  # type: ignore[arg-type]


async def test_what_anyio_builds_on_byte_streams_works() -> None:
    near, far = pair()
    buffered = BufferedByteReceiveStream(near)
    await far.send_all(b"a line\nand 4 more")

    assert await buffered.receive_until(b"\n", 100) == b"a line"
    assert await buffered.receive_exactly(5) == b"and 4"


# Extra attributes


async def test_a_tcp_stream_has_the_attributes_of_a_socket() -> None:
    near, far = await connected("tcp", "127.0.0.1:0")
    stream = ByteStream(near)

    assert stream.extra(SocketAttribute.family) == socket.AF_INET
    assert stream.extra(SocketAttribute.raw_socket) is near.socket
    assert stream.extra(SocketAttribute.local_address) == near.socket.getsockname()
    assert stream.extra(SocketAttribute.local_port) == near.socket.getsockname()[1]
    assert stream.extra(SocketAttribute.remote_address) == near.socket.getpeername()
    assert stream.extra(SocketAttribute.remote_port) == near.socket.getpeername()[1]
    assert stream.extra(TLSAttribute.tls_version, None) is None
    await stream.aclose()
    await far.aclose()


async def test_a_memory_stream_has_names_and_nothing_of_a_socket() -> None:
    near, far = await connected("memb", "shop")
    stream = ByteStream(near)

    assert stream.extra(SocketAttribute.remote_address) == "shop"
    assert stream.extra(SocketAttribute.local_address) == str(near.local_address)
    for attribute in (SocketAttribute.raw_socket, SocketAttribute.family):
        with pytest.raises(anyio.TypedAttributeLookupError):
            stream.extra(attribute)
    with pytest.raises(anyio.TypedAttributeLookupError):
        stream.extra(SocketAttribute.remote_port)
    await far.aclose()


async def test_a_unix_stream_has_its_path(tmp_path: Path) -> None:
    near, far = await connected("unix", str(tmp_path / "s"))
    stream = ByteStream(near)

    assert stream.extra(SocketAttribute.remote_address) == str(tmp_path / "s")
    assert stream.extra(SocketAttribute.family) == socket.AF_UNIX
    await near.aclose()
    await far.aclose()


@pytest.mark.parametrize("network", ["memb", "tcp"])
async def test_a_tls_stream_has_the_attributes_of_tls(
    network: str, certificates: Certificates, nursery: trio.Nursery
) -> None:
    seen: dict[str, Any] = {}

    async def handler(connection: trionet.Connection) -> None:
        stream = ByteStream(connection)
        seen["server_side"] = stream.extra(TLSAttribute.server_side)
        seen["ciphers"] = stream.extra(TLSAttribute.shared_ciphers)
        await echo(connection)

    address = "127.0.0.1:0" if network == "tcp" else "tls"
    server = await nursery.start(
        partial(trionet.serve, handler, network, address, ssl_context=certificates.server)
    )
    raw = await trionet.dial(
        network,
        str(server.addresses[0]),
        ssl_context=certificates.client,
        server_hostname="localhost",
    )
    stream = ByteStream(raw)

    assert stream.extra(TLSAttribute.tls_version, None) is None  # not before the handshake
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"
    assert stream.extra(TLSAttribute.tls_version) == "TLSv1.3"
    assert stream.extra(TLSAttribute.alpn_protocol) is None
    assert stream.extra(TLSAttribute.cipher)[1] == "TLSv1.3"
    assert stream.extra(TLSAttribute.server_side) is False
    assert stream.extra(TLSAttribute.shared_ciphers) is None
    assert stream.extra(TLSAttribute.standard_compatible) is True
    assert stream.extra(TLSAttribute.ssl_object).version() == "TLSv1.3"
    certificate = stream.extra(TLSAttribute.peer_certificate)
    assert certificate is not None
    assert ("DNS", "localhost") in certificate["subjectAltName"]
    assert stream.extra(TLSAttribute.peer_certificate_binary)
    assert (stream.extra(SocketAttribute.raw_socket, None) is None) == (network == "memb")
    assert seen["server_side"] is True
    assert seen["ciphers"]
    with pytest.raises(NotImplementedError):
        await stream.send_eof()
    await stream.aclose()
    server.shutdown()


# Listeners and connectables


@NETWORKS
async def test_an_anyio_server_serves_on_any_network(
    network: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    address = {"tcp": "127.0.0.1:0", "unix": str(tmp_path / "s")}.get(network, "shout")

    async def shout(stream: ByteStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send(data.upper())

    inner = (await trionet.listen(network, address))[0]
    listener = Listener(inner)
    where = listener.extra(SocketAttribute.local_address)
    assert where == (
        (inner.address.host, inner.address.port) if network == "tcp" else str(inner.address)
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, shout)
        async with await Connectable(network, str(inner.address)).connect() as stream:
            await stream.send(b"hello")
            assert await stream.receive() == b"HELLO"
        tasks.cancel_scope.cancel()
    await listener.aclose()


async def test_a_handler_in_a_task_group_of_its_own_outlives_the_serving() -> None:
    inner = (await trionet.listen("memb", "door"))[0]
    listener = Listener(inner)
    served: list[bytes] = []

    async def handler(stream: ByteStream) -> None:
        served.append(await stream.receive())
        await stream.aclose()

    async with anyio.create_task_group() as handlers:
        async with anyio.create_task_group() as serving:
            serving.start_soon(listener.serve, handler, handlers)
            stream = await Connectable("memb", "door").connect()
            await trio.testing.wait_all_tasks_blocked()
            serving.cancel_scope.cancel()
        await stream.send(b"late")
    assert served == [b"late"]
    await listener.aclose()
    await stream.aclose()


async def test_a_closed_listener_says_so_in_anyio_words() -> None:
    listener = Listener((await trionet.listen("memb", "door"))[0])
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await listener.accept()

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError, match="accepting"):
            await listener.accept()
        await listener.aclose()


async def test_a_refused_dial_is_a_failed_connection() -> None:
    with pytest.raises(anyio.ConnectionFailed, match="cannot connect to memu nobody") as caught:
        await Connectable("memu", "nobody").connect()
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_a_failed_handshake_is_a_failed_connection_and_leaves_nothing_open(
    certificates: Certificates, nursery: trio.Nursery
) -> None:
    server = await nursery.start(
        partial(trionet.serve, echo, "memb", "tls", ssl_context=certificates.server)
    )
    connectable = Connectable(
        "memb", "tls", ssl_context=certificates.client, server_hostname="another"
    )

    with pytest.raises(anyio.ConnectionFailed, match="certificate"):
        await connectable.connect()
    await trio.testing.wait_all_tasks_blocked()
    assert server.statistics().failed == 1
    server.shutdown()


async def test_anyios_tls_runs_over_a_trionet_connectable(
    certificates: Certificates, nursery: trio.Nursery
) -> None:
    server = await nursery.start(
        partial(trionet.serve, echo, "memb", "tls", ssl_context=certificates.server)
    )
    connectable = TLSConnectable(
        Connectable("memb", "tls"), hostname="localhost", ssl_context=certificates.client
    )
    async with await connectable.connect() as stream:
        await stream.send(b"two libraries, one handshake")
        assert await stream.receive() == b"two libraries, one handshake"
    server.shutdown()


# And back


async def test_a_wrapped_stream_comes_back_as_itself() -> None:
    near, _far = trionet.memory_stream_pair()

    assert from_anyio(ByteStream(near)) is near


async def test_a_socket_of_anyios_passes_trios_conformance_checks() -> None:
    async def make() -> tuple[Any, Any]:
        near, far = await anyio_tcp()
        return from_anyio(near), from_anyio(far)

    await trio.testing.check_half_closeable_stream(make, None)


async def test_a_stream_of_bytes_objects_passes_trios_conformance_checks() -> None:
    async def make() -> tuple[Any, Any]:
        there_in, there_out = anyio.create_memory_object_stream[bytes](8)
        back_in, back_out = anyio.create_memory_object_stream[bytes](8)
        return (
            from_anyio(StapledObjectStream(there_in, back_out)),
            from_anyio(StapledObjectStream(back_in, there_out)),
        )

    # A memory object stream, closed under a task that waits in it, tells the peer and not the
    # task; only that is why the check of closing under a waiting task is not among these.
    near, far = await make()
    await near.send_all(bytearray(b"abc"))
    assert await far.receive_some(1) == b"a"
    assert await far.receive_some(1) == b"b"
    assert await far.receive_some() == b"c"
    await near.send_all(b"")
    await near.send_eof()
    assert await far.receive_some() == b""
    assert await far.receive_some() == b""
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"x")
    await far.send_all(b"back")
    assert await near.receive_some() == b"back"
    await far.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await far.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await far.send_all(b"")
    await near.aclose()


async def test_an_empty_object_is_no_end_of_file() -> None:
    send, receive = anyio.create_memory_object_stream[bytes](8)
    stream = from_anyio(StapledObjectStream(send, receive))
    await send.send(b"")
    await send.send(b"after nothing")

    assert await stream.receive_some() == b"after nothing"
    await stream.aclose()


async def test_a_socket_of_anyios_keeps_its_addresses() -> None:
    async def hang_up(stream: anyio.abc.SocketStream) -> None:
        await stream.aclose()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, hang_up)
            theirs = await anyio.connect_tcp("127.0.0.1", port)
            async with from_anyio(theirs) as stream:
                assert str(stream.remote_address) == f"127.0.0.1:{port}"
                assert stream.local_address.network == "tcp4"
                assert await stream.receive_some() == b""
                assert stream.is_readable()
            tasks.cancel_scope.cancel()


async def test_anyios_tls_cannot_be_half_closed_and_its_truncation_is_broken(
    certificates: Certificates,
) -> None:
    near, far = await anyio_tcp()
    ends: list[trionet.abc.Stream] = []

    async def wrap(stream: Any, context: ssl.SSLContext, hostname: str | None) -> None:
        tls = await TLSStream.wrap(stream, hostname=hostname, ssl_context=context)
        ends.append(from_anyio(tls))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wrap, far, certificates.server, None)
        await wrap(near, certificates.client, "localhost")
        await trio.testing.wait_all_tasks_blocked()
    one, other = ends

    assert not isinstance(one, trio.abc.HalfCloseableStream)
    await one.send_all(b"hello")
    assert await other.receive_some() == b"hello"
    await (near if one.stream._stream.transport_stream is near else far).aclose()  # type: ignore[attr-defined]
    with pytest.raises(trio.BrokenResourceError):
        await other.receive_some()
    await trio.aclose_forcefully(other)
    with contextlib.suppress(trio.BrokenResourceError):
        await trio.aclose_forcefully(one)


async def test_a_server_serves_an_anyio_listener_and_drains(nursery: trio.Nursery) -> None:
    theirs = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = theirs.extra(SocketAttribute.local_port)
    server = trionet.Server(echo)

    async with open_listener(theirs) as listener:
        await nursery.start(server.serve, [listener])
        async with await trionet.dial("tcp", f"127.0.0.1:{port}") as client:
            await client.send_all(b"hello")
            assert await client.receive_some() == b"hello"
            server.shutdown()
            assert await client.receive_some() == b""
        assert (await server.wait_closed()).completed == 1
    with pytest.raises(ConnectionRefusedError):
        await trionet.dial("tcp", f"127.0.0.1:{port}")


async def test_anyios_tls_listener_handshakes_before_the_server_sees_the_client(
    certificates: Certificates, nursery: trio.Nursery
) -> None:
    theirs = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = theirs.extra(SocketAttribute.local_port)
    server = trionet.Server(echo)

    async with open_listener(TLSListener(theirs, certificates.server)) as listener:
        await nursery.start(server.serve, [listener])
        client = await trionet.dial(
            "tcp",
            f"127.0.0.1:{port}",
            ssl_context=certificates.client,
            server_hostname="localhost",
        )
        async with client:
            await client.send_all(b"hello")
            assert await client.receive_some() == b"hello"
        server.shutdown()
        await server.wait_closed()


class Scripted(anyio.abc.Listener[Any]):
    """An anyio listener that accepts what it is given, then fails or waits."""

    def __init__(self, streams: list[Any], failure: BaseException | None = None) -> None:
        self.streams = streams
        self.failure = failure

    async def serve(self, handler: Any, task_group: Any = None) -> None:
        """Hand out the streams, each to a handler of its own."""
        async with anyio.create_task_group() as tasks:
            for stream in self.streams:
                tasks.start_soon(handler, stream)
            await trio.testing.wait_all_tasks_blocked()
            if self.failure is not None:
                raise self.failure
            await anyio.sleep_forever()

    async def aclose(self) -> None:
        """Close nothing."""
        await trio.lowlevel.checkpoint()


async def test_what_waits_is_bounded_and_the_end_of_the_block_closes_it() -> None:
    pairs = [pair() for _ in range(130)]
    async with open_listener(Scripted([near for near, _ in pairs])) as listener:
        await trio.testing.wait_all_tasks_blocked()
        assert sum(near.stream.closed for near, _ in pairs) == 2
        first = await listener.accept()
    assert sum(near.stream.closed for near, _ in pairs) == 129
    assert not first.closed
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_listener_that_fails_is_told_where_it_accepts_or_at_the_end() -> None:
    failure = OSError(errno.EMFILE, "too many")
    with pytest.raises(OSError, match="too many") as caught:
        async with open_listener(Scripted([], failure)) as listener:
            await listener.accept()
    assert caught.value is failure
    with pytest.raises(OSError, match="too many"):
        async with open_listener(Scripted([], failure)):
            await trio.testing.wait_all_tasks_blocked()


async def test_what_was_accepted_before_a_failure_is_still_served() -> None:
    near, _far = pair()
    with pytest.raises(OSError, match="too many"):
        async with open_listener(Scripted([near], OSError(errno.EMFILE, "too many"))) as listener:
            await trio.testing.wait_all_tasks_blocked()
            assert await listener.accept() is near.stream
            await listener.accept()


async def test_what_a_failed_listener_had_accepted_is_closed_with_the_block() -> None:
    near, _far = pair()
    with pytest.raises(OSError, match="too many"):
        async with open_listener(Scripted([near], OSError(errno.EMFILE, "too many"))):
            await trio.testing.wait_all_tasks_blocked()
    assert near.stream.closed


async def test_a_listener_that_crashes_ends_the_block() -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_listener(Scripted([], ZeroDivisionError())) as listener:
            await listener.accept()


async def test_an_exception_leaves_the_block_as_itself() -> None:
    with pytest.raises(KeyError):
        async with open_listener(Scripted([])):
            raise KeyError


async def test_only_anyios_things_lead_back() -> None:
    near, _far = trionet.memory_stream_pair()
    with pytest.raises(TypeError, match="must be an anyio ByteStream or ObjectStream"):
        from_anyio(near)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be an anyio\.abc\.Listener, got 3"):
        async with open_listener(3):  # type: ignore[arg-type]
            pass
