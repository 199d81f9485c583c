"""Happy eyeballs (RFC 8305), on addresses and times that the test decides."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

import trionet
from trionet._streams import system

V4, V6 = socket.AF_INET, socket.AF_INET6


@dataclass
class Internet:
    """A fake world: what names resolve to, and how long each address takes to do what."""

    addresses: list[tuple[int, str]]
    # Seconds until the attempt ends, and the error it ends with, or None.
    fates: dict[str, tuple[float, int | None]]
    started: dict[str, float] = field(default_factory=dict)
    sockets: list[socket.socket] = field(default_factory=list)

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, *args: Any, **kw: Any
    ) -> Any:
        return [
            (kind, socket.SOCK_STREAM, 6, "", (ip, port) if kind == V4 else (ip, port, 0, 0))
            for kind, ip in self.addresses
            if family in {0, kind}
        ]

    async def connect(self, sock: socket.socket, name: Any) -> None:
        self.started[name[0]] = trio.current_time()
        self.sockets.append(sock)
        delay, error = self.fates[name[0]]
        await trio.sleep(delay)
        if error is not None:
            raise OSError(error, name[0])


def install(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.socket, "getaddrinfo", internet.getaddrinfo)
    monkeypatch.setattr(system, "_connect", internet.connect)


async def test_families_take_turns_a_quarter_second_apart(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    internet = Internet(
        [(V6, "::a"), (V6, "::b"), (V4, "1.1.1.1"), (V4, "2.2.2.2")],
        {"::a": (9, None), "::b": (9, None), "1.1.1.1": (9, None), "2.2.2.2": (0.5, None)},
    )
    install(internet, monkeypatch)

    stream = await trionet.dial("tcp", "example.org:80")

    assert internet.started == {"::a": 0, "1.1.1.1": 0.25, "::b": 0.5, "2.2.2.2": 0.75}
    assert trio.current_time() == 1.25
    assert stream.transport_socket is internet.sockets[-1]
    assert [sock.fileno() != -1 for sock in internet.sockets] == [False, False, False, True]
    await stream.aclose()


async def test_a_failure_starts_the_next_attempt_at_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    internet = Internet(
        [(V6, "::a"), (V4, "1.1.1.1")],
        {"::a": (0.1, errno.ENETUNREACH), "1.1.1.1": (0.1, None)},
    )
    install(internet, monkeypatch)

    stream = await trionet.dial("tcp", "example.org:80")

    assert internet.started == {"::a": 0, "1.1.1.1": pytest.approx(0.1)}
    await stream.aclose()


async def test_one_errno_everywhere_is_that_error(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    internet = Internet(
        [(V6, "::a"), (V4, "1.1.1.1")],
        {"::a": (0, errno.ECONNREFUSED), "1.1.1.1": (0, errno.ECONNREFUSED)},
    )
    install(internet, monkeypatch)

    with pytest.raises(ConnectionRefusedError, match="::a") as caught:
        await trionet.dial("tcp", "example.org:80")
    assert caught.value.__cause__ is None
    assert all(sock.fileno() == -1 for sock in internet.sockets)


async def test_different_errors_come_as_the_first_with_the_others_as_cause(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    internet = Internet(
        [(V6, "::a"), (V4, "1.1.1.1"), (V4, "2.2.2.2")],
        {
            "::a": (0, errno.ENETUNREACH),
            "1.1.1.1": (0, errno.ECONNREFUSED),
            "2.2.2.2": (0, errno.ETIMEDOUT),
        },
    )
    install(internet, monkeypatch)

    with pytest.raises(OSError, match="::a") as caught:
        await trionet.dial("tcp", "example.org:80")
    cause = caught.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert [type(one) for one in cause.exceptions] == [ConnectionRefusedError, TimeoutError]


async def test_a_cancelled_race_leaves_no_socket_and_no_group(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    internet = Internet([(V6, "::a"), (V4, "1.1.1.1")], {"::a": (9, None), "1.1.1.1": (9, None)})
    install(internet, monkeypatch)

    with trio.move_on_after(1) as scope:
        await trionet.dial("tcp", "example.org:80")

    assert scope.cancelled_caught
    assert trio.current_time() == 1
    assert len(internet.sockets) == 2
    assert all(sock.fileno() == -1 for sock in internet.sockets)


async def test_two_winners_at_once_are_one_stream(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: Any
) -> None:
    internet = Internet(
        [(V6, "::a"), (V4, "1.1.1.1")], {"::a": (0.5, None), "1.1.1.1": (0.25, None)}
    )
    install(internet, monkeypatch)

    stream = await trionet.dial("tcp", "example.org:80")

    assert sum(sock.fileno() != -1 for sock in internet.sockets) == 1
    await stream.aclose()


@pytest.mark.parametrize(("network", "expected"), [("tcp4", "1.1.1.1"), ("tcp6", "::a")])
async def test_a_network_of_one_family_tries_only_that(
    network: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    internet = Internet([(V6, "::a"), (V4, "1.1.1.1")], {"::a": (0, None), "1.1.1.1": (0, None)})
    install(internet, monkeypatch)

    stream = await trionet.dial(network, "example.org:80")

    assert list(internet.started) == [expected]
    await stream.aclose()
