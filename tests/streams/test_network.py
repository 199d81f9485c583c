"""Dial and listen: names, mapping, options, and what reaches the system."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio

import trionet
import trionet.abc
from tests.conftest import Certificates
from trionet import MemoryOptions, Network, SocketOptions


async def test_each_network_has_its_own_names() -> None:
    one, other = Network(), Network()
    await one.listen("memu", "site")

    assert one.names("memu") == ["site"]
    assert other.names("memu") == trionet.names("memu") == one.names("memb") == []
    with pytest.raises(ConnectionRefusedError):
        await other.dial("memu", "site")
    assert repr(one) == "<Network with 1 memory names>"


def test_two_runs_never_meet() -> None:
    async def listen() -> None:
        await trionet.listen("memu", "site")
        trionet.map_network("tcp", "memu")

    async def look() -> list[str]:
        with pytest.raises(ValueError, match="nonsense"):
            await trionet.dial("tcp", "nonsense")
        return trionet.names("memu")

    trio.run(listen)
    assert trio.run(look) == []


async def test_names_are_sorted_and_of_memory_only() -> None:
    network = Network()
    for name in ("b", "a", "c"):
        await network.listen("memb", name)
    assert network.names("memb") == ["a", "b", "c"]
    with pytest.raises(ValueError, match="'tcp'"):
        network.names("tcp")


async def test_mapping_tcp_to_memb_really_buffers() -> None:
    """memconn: connections of a mapped network kept its name, and so were unbuffered."""
    network = Network()
    network.map_network("tcp", "memb")
    (listener,) = await network.listen("tcp", "example.org:80")
    client = await network.dial("tcp", "example.org:80")

    await client.send_all(b"before anybody accepts")

    assert isinstance(client, trionet.MemoryStream)
    assert network.names("memb") == ["example.org:80"]
    assert client.remote_address == trionet.Address("memb", name="example.org:80")
    server = await listener.accept()
    assert await server.receive_some() == b"before anybody accepts"


async def test_an_empty_target_takes_a_mapping_back() -> None:
    network = Network()
    network.map_network("tcp", "memu")
    network.map_network("tcp", "")
    with pytest.raises(ValueError, match="'plain name'"):
        await network.dial("tcp", "plain name")
    network.map_network("never mapped", "")


async def test_a_mapping_is_one_step() -> None:
    network = Network()
    network.map_network("tcp", "memu")
    network.map_network("memu", "memb")
    await network.listen("tcp", "x")
    assert network.names("memu") == ["x"]
    await network.listen("memu", "y")
    assert network.names("memb") == ["y"]


async def test_a_word_of_ones_own_becomes_a_network() -> None:
    network = Network()
    network.map_network("db", "memb")
    await network.listen("db", "users")
    assert isinstance(await network.dial("db", "users"), trionet.MemoryStream)


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [("tcp", "nowhere", "'nowhere'"), ("", "memu", "''"), ("memu", "tcp", "'memu'")],
)
def test_a_mapping_that_cannot_work_is_refused(source: str, target: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Network().map_network(source, target)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("memu", MemoryOptions()),
        ("memu", SocketOptions()),
        ("memb", SocketOptions()),
        ("tcp", MemoryOptions()),
        ("unix", MemoryOptions()),
        ("memb", 5),
        ("tcp", "fast"),
    ],
)
async def test_options_of_the_wrong_kind_are_an_error(network: str, options: Any) -> None:
    address = {"tcp": "127.0.0.1:0", "unix": "/nowhere/at/all"}.get(network, "site")
    with pytest.raises(TypeError, match="options"):
        await trionet.listen(network, address, options=options)
    with pytest.raises(TypeError, match="options"):
        await trionet.dial(network, address.replace(":0", ":9"), options=options)
    assert trionet.names("memu") == trionet.names("memb") == []


async def test_a_dialler_has_no_memory_options_to_give() -> None:
    await trionet.listen("memb", "site")
    with pytest.raises(TypeError, match="the listener's"):
        await trionet.dial("memb", "site", options=MemoryOptions())


async def test_a_mapped_program_keeps_its_socket_options() -> None:
    network = Network()
    network.map_network("tcp", "memb")
    await network.listen("tcp", "a:1", options=SocketOptions(reuse_port=True))
    await network.dial("tcp", "a:1", options=SocketOptions(no_delay=False))
    await network.listen("tcp", "a:2", options=MemoryOptions(buffer_size=1))


@pytest.mark.parametrize(
    ("backlog", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)]
)
@pytest.mark.parametrize("network", ["memu", "tcp"])
async def test_a_bad_backlog_is_refused(network: str, backlog: Any, error: Any) -> None:
    with pytest.raises(error, match="backlog"):
        await trionet.listen(network, "127.0.0.1:0", backlog=backlog)


@pytest.mark.parametrize(
    "options",
    [{"buffer_size": 0}, {"buffer_size": -1}, {"buffer_size": "1"}, {"buffer_size": True}],
)
def test_memory_options_check_themselves(options: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"MemoryOptions\.buffer_size"):
        MemoryOptions(**options)


@pytest.mark.parametrize("options", [{"no_delay": 1}, {"reuse_port": "yes"}])
def test_socket_options_check_themselves(options: Any) -> None:
    with pytest.raises(TypeError, match=r"SocketOptions\."):
        SocketOptions(**options)


async def test_tls_arguments_are_checked_before_anything_is_opened(
    certificates: Certificates,
) -> None:
    with pytest.raises(TypeError, match="ssl_context"):
        await trionet.dial("memu", "nobody", ssl_context="tls")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="ssl_context"):
        await trionet.listen("tcp", "127.0.0.1:0", ssl_context=5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="server_hostname needs an ssl_context"):
        await trionet.dial("memu", "nobody", server_hostname="x")
    with pytest.raises(ValueError, match="server_hostname is needed"):
        await trionet.dial("unix", "/nowhere", ssl_context=certificates.client)
    with pytest.raises(TypeError, match="server_hostname must be a str, got 5"):
        await trionet.dial(
            "memu",
            "nobody",
            ssl_context=certificates.client,
            server_hostname=5,  # type: ignore[call-overload]
        )


@pytest.mark.parametrize(
    ("network", "address", "expected"),
    [
        ("memb", "site", "site"),
        ("memb", "site:443", "site"),
        ("tcp", "localhost:1", "localhost"),
        ("tcp", ":1", "localhost"),
    ],
)
async def test_the_host_is_what_tls_asks_for(
    network: str, address: str, expected: str, certificates: Certificates
) -> None:
    seen: list[str] = []

    class Context(ssl.SSLContext):
        """Only remembers what it was asked for."""

    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    net = Network()
    net.map_network("tcp", "memb")
    await net.listen(network, address)
    stream = await net.dial(network, address, ssl_context=context)
    seen.append(str(stream.server_hostname))
    assert seen == [expected]


async def test_what_is_not_memory_goes_to_the_system_network_of_the_run() -> None:
    class Elsewhere(trionet.abc.Network):
        """A network that answers every dial with one end of a pair."""

        async def dial(self, network: str, address: str, **settings: Any) -> trionet.abc.Stream:
            self.dialled = (network, address)
            return trionet.memory_stream_pair()[0]

        async def listen(self, network: str, address: str, **settings: Any) -> Any:
            self.listened = (network, address)
            return []

    elsewhere = Elsewhere()
    token = trionet.abc.system_network.set(elsewhere)
    try:
        await trionet.dial("tcp", "example.org:80")
        await trionet.listen("unix", "/run/x")
    finally:
        trionet.abc.system_network.reset(token)
    assert elsewhere.dialled == ("tcp", "example.org:80")
    assert elsewhere.listened == ("unix", "/run/x")
