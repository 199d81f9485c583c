"""The port forwarder."""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from examples import mux_forward
from tests.helpers import read_all

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Certificates

serve = partial(trionet.serve, grace=0)


class Setting:
    """A target, a gate that allows it, and a tunnel to the gate."""

    def __init__(self, certificates: Certificates, nursery: trio.Nursery) -> None:
        self.certificates = certificates
        self.nursery = nursery

    async def start(self, handler: Any) -> None:
        self.target = await self.nursery.start(serve, handler, "tcp", "127.0.0.1:0")
        self.name = str(self.target.addresses[0])
        await self.start_gate("127.0.0.1:0")
        self.tunnel = mux_forward.Tunnel(str(self.gate.addresses[0]), self.certificates.client)
        self.nursery.start_soon(self.tunnel.keep)
        self.local = await self.nursery.start(
            serve, partial(self.tunnel.forward, self.name), "tcp", "127.0.0.1:0"
        )

    async def start_gate(self, address: str) -> None:
        self.gate = await self.nursery.start(
            partial(serve, ssl_context=self.certificates.server),
            mux_forward.Gate({self.name}).session,
            "tcp",
            address,
        )

    async def connect(self) -> Any:
        return await trionet.dial("tcp", str(self.local.addresses[0]))


@pytest.fixture
async def setting(certificates: Certificates, nursery: trio.Nursery) -> Setting:
    return Setting(certificates, nursery)


async def reverse(connection: trionet.Connection) -> None:
    """Answer only once everything has come: half-close must survive the way."""
    data = await read_all(connection)
    await connection.send_all(data[::-1])


async def test_bytes_and_ends_of_file_go_through_both_ways(setting: Setting) -> None:
    await setting.start(reverse)
    payload = bytes(range(256)) * 3000

    async def one() -> None:
        async with await setting.connect() as client:
            await client.send_all(payload)
            await client.send_eof()
            assert await read_all(client) == payload[::-1]

    async with trio.open_nursery() as clients:
        for _ in range(20):
            clients.start_soon(one)
    assert setting.gate.statistics().accepted == 1


async def test_a_target_that_is_not_allowed_is_refused(setting: Setting) -> None:
    await setting.start(reverse)

    with pytest.raises(ConnectionRefusedError, match=r"127\.0\.0\.1:1 is not allowed"):
        await setting.tunnel.open("127.0.0.1:1")


async def test_a_target_that_is_down_ends_the_local_connection(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    await setting.start(reverse)
    setting.target.shutdown()
    await setting.target.wait_closed()

    async with await setting.connect() as client:
        await client.send_eof()
        assert await read_all(client) == b""
    assert "ConnectionRefusedError" in capsys.readouterr().err


async def test_a_session_that_broke_is_dialled_anew(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mux_forward, "REDIAL_AFTER", 0.01)
    await setting.start(reverse)
    async with await setting.tunnel.open(setting.name) as stream:
        await stream.send_all(b"once")
        await stream.send_eof()
        assert await read_all(stream) == b"ecno"
    address = str(setting.gate.addresses[0])

    setting.gate.shutdown()
    await setting.gate.wait_closed()
    await setting.start_gate(address)

    async with await setting.connect() as client:
        await client.send_all(b"again")
        await client.send_eof()
        assert await read_all(client) == b"niaga"


def test_it_shows_itself(capsys: pytest.CaptureFixture[str]) -> None:
    trio.run(mux_forward.show)

    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed[:-1]) == [f"CLIENT {number}" for number in range(5)]
    assert printed[-1] == "1 connection carried them all"


async def test_one_signal_ends_all_that_a_tunnel_forwards(
    certificates: Certificates, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust = tmp_path / "authority.pem"
    certificates.authority.cert_pem.write_to_path(str(trust))
    local = [f"127.0.0.1:0=127.0.0.1:{port}" for port in (1, 2, 3)]

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux_forward.run_tunnel, "127.0.0.1:1", str(trust), local)
            printed = ""
            while printed.count("leads to") < 3:
                await wait_all_tasks_blocked(0.01)
                printed += capsys.readouterr().out
            signal.raise_signal(signal.SIGTERM)
