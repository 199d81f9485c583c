"""Socket options: set on both ends, checked, and never ignored."""

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionet
from trionet import SocketOptions
from trionet._streams import tuning as tuning_module

if TYPE_CHECKING:
    from pathlib import Path

TCP, ANY = socket.IPPROTO_TCP, socket.SOL_SOCKET

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has all the options")

# The option, and what getsockopt(2) then says. The keepalive of Linux is inherited whole.
SAID: list[tuple[dict[str, Any], list[tuple[int, str, int]]]] = [
    ({"no_delay": True}, [(TCP, "TCP_NODELAY", 1)]),
    ({"no_delay": False}, [(TCP, "TCP_NODELAY", 0)]),
    ({"keepalive": True}, [(ANY, "SO_KEEPALIVE", 1)]),
    (
        {"keepalive": (61, 7, 3)},
        [
            (ANY, "SO_KEEPALIVE", 1),
            (TCP, "TCP_KEEPIDLE", 61),
            (TCP, "TCP_KEEPINTVL", 7),
            (TCP, "TCP_KEEPCNT", 3),
        ],
    ),
    ({"user_timeout": 12.3456}, [(TCP, "TCP_USER_TIMEOUT", 12346)]),
    ({"user_timeout": 0.001}, [(TCP, "TCP_USER_TIMEOUT", 1)]),
    ({"not_sent_low_water": 16384}, [(TCP, "TCP_NOTSENT_LOWAT", 16384)]),
    ({"reuse_port": True}, [(ANY, "SO_REUSEPORT", 1)]),
    # Linux doubles them for its bookkeeping: socket(7).
    ({"send_buffer": 30_000}, [(ANY, "SO_SNDBUF", 60_000)]),
    ({"receive_buffer": 30_000}, [(ANY, "SO_RCVBUF", 60_000)]),
]


async def three_sockets(
    listening: SocketOptions, dialling: SocketOptions
) -> tuple[list[socket.socket], list[Any]]:
    """Return the sockets of a listener, a client and what was accepted; and what to close."""
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0", options=listening)
    client = await trionet.dial("tcp", str(listener.address), options=dialling)
    # With TCP Fast Open or a deferred accept nothing happens before this.
    await client.send_all(b"first")
    server = await listener.accept()
    assert await server.receive_some() == b"first"
    assert isinstance(listener, trionet.SocketListener)
    ends = [one.transport_socket for one in (client, server)]
    return [listener.socket, *filter(None, ends)], [listener, client, server]


@linux_only
@pytest.mark.parametrize(("wanted", "said"), SAID, ids=lambda value: str(value)[:40])
async def test_an_option_is_set_on_the_listener_and_on_both_ends(
    wanted: dict[str, Any], said: list[tuple[int, str, int]]
) -> None:
    options = SocketOptions(**wanted)

    sockets, open_ones = await three_sockets(options, options)

    for level, constant, value in said:
        found = [sock.getsockopt(level, getattr(socket, constant)) for sock in sockets]
        if constant == "TCP_NODELAY":
            found = [int(bool(one)) for one in found]
        if constant == "SO_SNDBUF":
            # Of what was accepted the kernel tunes it up from there.
            assert found.pop() >= value
        assert set(found) == {value}
    for one in open_ones:
        await one.aclose()


@linux_only
async def test_nothing_is_set_unless_asked_for() -> None:
    sockets, open_ones = await three_sockets(SocketOptions(), SocketOptions())
    with socket.socket() as untouched:
        for sock in sockets[:2]:
            for constant in ("SO_KEEPALIVE", "SO_REUSEPORT"):
                assert sock.getsockopt(ANY, getattr(socket, constant)) == 0
            for constant in ("TCP_USER_TIMEOUT", "TCP_NOTSENT_LOWAT", "TCP_DEFER_ACCEPT"):
                number = getattr(socket, constant)
                assert sock.getsockopt(TCP, number) == untouched.getsockopt(TCP, number)
    for one in open_ones:
        await one.aclose()


@linux_only
async def test_a_listener_defers_accepting_until_the_first_byte() -> None:
    (listener,) = await trionet.listen("tcp", "127.0.0.1:0", options=SocketOptions(defer_accept=5))
    assert isinstance(listener, trionet.SocketListener)
    # The kernel counts in retransmissions, and rounds up to the next.
    assert listener.socket.getsockopt(TCP, socket.TCP_DEFER_ACCEPT) >= 5

    client = await trionet.dial("tcp", str(listener.address))
    with pytest.raises(trio.WouldBlock):
        listener.accept_nowait()
    await client.send_all(b"first")
    server = await listener.accept()
    assert server.is_readable()
    for one in (listener, client, server):
        await one.aclose()


@linux_only
async def test_fast_open_has_a_queue_when_listening_and_defers_the_connection_when_dialling() -> (
    None
):
    sockets, open_ones = await three_sockets(
        SocketOptions(fast_open=17), SocketOptions(fast_open=True)
    )
    listener, client, _ = sockets
    assert listener.getsockopt(TCP, socket.TCP_FASTOPEN) == 17
    assert client.getsockopt(TCP, tuning_module.LINUX_FASTOPEN_CONNECT) == 1
    assert str(open_ones[1].remote_address) == str(open_ones[0].address)
    for one in open_ones:
        await one.aclose()


@linux_only
async def test_the_receive_buffer_is_there_before_the_window_is_told() -> None:
    """The window scale goes with the first segment and never changes (RFC 7323 section 2.2)."""
    small = SocketOptions(receive_buffer=4096)

    sockets, open_ones = await three_sockets(small, small)

    # struct tcp_info: byte 6 holds the peer's window scale and, in the high half, one's own.
    scales = [sock.getsockopt(TCP, socket.TCP_INFO, 8)[6] for sock in sockets[1:]]
    assert scales == [0, 0]
    for one in open_ones:
        await one.aclose()


async def test_unix_sockets_have_buffers_too(tmp_path: Path) -> None:
    options = SocketOptions(send_buffer=30_000, receive_buffer=30_000)
    path = str(tmp_path / "s")
    (listener,) = await trionet.listen("unix", path, options=options)
    client = await trionet.dial("unix", path, options=options)
    assert client.transport_socket is not None
    assert client.transport_socket.getsockopt(ANY, socket.SO_SNDBUF) >= 30_000
    assert client.transport_socket.getsockopt(ANY, socket.SO_RCVBUF) >= 30_000
    for one in (client, listener):
        await one.aclose()


@pytest.mark.parametrize(
    "wanted",
    [
        {"keepalive": True},
        {"user_timeout": 1.5},
        {"fast_open": 5},
        {"defer_accept": 5},
        {"reuse_port": True},
        {"not_sent_low_water": 5},
    ],
)
async def test_a_unix_socket_refuses_what_is_for_tcp(
    wanted: dict[str, Any], tmp_path: Path
) -> None:
    (name,) = wanted
    path = tmp_path / "s"
    for call in (trionet.listen, trionet.dial):
        with pytest.raises(ValueError, match=rf"SocketOptions\.{name} is for TCP"):
            await call("unix", str(path), options=SocketOptions(**wanted))
    assert not path.exists()


async def test_what_makes_no_sense_for_a_socket_is_refused() -> None:
    dial, listen = trionet.dial, trionet.listen
    with pytest.raises(ValueError, match=r"defer_accept is for listening, got 5"):
        await dial("tcp", "127.0.0.1:9", options=SocketOptions(defer_accept=5))
    with pytest.raises(ValueError, match=r"fast_open is True when dialling, got 5"):
        await dial("tcp", "127.0.0.1:9", options=SocketOptions(fast_open=5))
    with pytest.raises(ValueError, match=r"fast_open is the length of a queue.*got True"):
        await listen("tcp", "127.0.0.1:0", options=SocketOptions(fast_open=True))


@pytest.mark.parametrize(
    ("wanted", "constant"),
    [
        ({"keepalive": (1, 1, 1)}, tuning_module.KEEPALIVE_IDLE),
        ({"keepalive": (1, 1, 1)}, "TCP_KEEPINTVL"),
        ({"user_timeout": 1}, "TCP_USER_TIMEOUT"),
        ({"fast_open": 5}, "TCP_FASTOPEN"),
        ({"defer_accept": 5}, "TCP_DEFER_ACCEPT"),
        ({"reuse_port": True}, "SO_REUSEPORT"),
        ({"not_sent_low_water": 5}, "TCP_NOTSENT_LOWAT"),
    ],
)
async def test_an_option_this_platform_lacks_is_an_error_that_names_it(
    wanted: dict[str, Any], constant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = wanted
    monkeypatch.delattr(socket, constant, raising=False)
    with pytest.raises(OSError, match=rf"SocketOptions\.{name}.*no {constant}") as caught:
        await trionet.listen("tcp", "127.0.0.1:0", options=SocketOptions(**wanted))
    assert caught.value.errno == errno.ENOPROTOOPT


async def test_fast_open_for_dialling_is_of_linux_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, tuning_module.FASTOPEN_CONNECT, raising=False)
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(OSError, match=r"fast_open.*no TCP_FASTOPEN_CONNECT"):
        await trionet.dial("tcp", "127.0.0.1:9", options=SocketOptions(fast_open=True))


@linux_only
async def test_a_value_the_system_refuses_is_an_error_that_names_the_option() -> None:
    # Linux probes at most 127 times.
    options = SocketOptions(keepalive=(1, 1, 128))
    with pytest.raises(OSError, match=r"SocketOptions\.keepalive.*TCP_KEEPCNT=128") as caught:
        await trionet.listen("tcp", "127.0.0.1:0", options=options)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match=r"TCP_KEEPCNT=128"):
        await trionet.dial("tcp", "127.0.0.1:9", options=options)


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"keepalive": False}, TypeError),
        ({"keepalive": 60}, TypeError),
        ({"keepalive": (1, 2)}, TypeError),
        ({"keepalive": [1, 2, 3]}, TypeError),
        ({"keepalive": (1, 2, 0)}, ValueError),
        ({"keepalive": (1.5, 2, 3)}, TypeError),
        ({"user_timeout": 0}, ValueError),
        ({"user_timeout": -1}, ValueError),
        ({"user_timeout": float("nan")}, ValueError),
        ({"user_timeout": float("inf")}, ValueError),
        ({"user_timeout": 1e9}, ValueError),
        ({"user_timeout": "1"}, TypeError),
        ({"user_timeout": True}, TypeError),
        ({"fast_open": False}, TypeError),
        ({"fast_open": 0}, ValueError),
        ({"fast_open": 1.5}, TypeError),
        ({"defer_accept": 0}, ValueError),
        ({"defer_accept": True}, TypeError),
        ({"defer_accept": 1.5}, TypeError),
        ({"send_buffer": 0}, ValueError),
        ({"send_buffer": 2**31}, ValueError),
        ({"receive_buffer": "64K"}, TypeError),
        ({"not_sent_low_water": -1}, ValueError),
        ({"reuse_port": 1}, TypeError),
        ({"no_delay": None}, TypeError),
    ],
)
def test_options_check_themselves(wanted: dict[str, Any], error: type[Exception]) -> None:
    (name,) = wanted
    with pytest.raises(error, match=rf"SocketOptions\.{name}"):
        SocketOptions(**wanted)
