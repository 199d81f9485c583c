"""`check_listener`: sound listeners pass, and each broken one is caught by the rule it breaks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trionet
from tests.conftest import Certificates
from tests.mux.support import buffered, memory, sessions
from tests.testing.broken import PlainListener, SoundListener, maker
from tests.testing.broken_listeners import GENERAL
from tests.testing.broken_streams import STREAMS
from tests.testing.broken_trionet_listeners import OURS
from trionet import ProxyHeader, ProxyProtocol
from trionet.testing import check_listener

ANYBODY = ProxyProtocol(trusted=["0.0.0.0/0", "memb"])


def addresses(tmp_path: Path) -> dict[str, str]:
    return {
        "memu": "site",
        "memb": "site",
        "tcp4": "127.0.0.1:0",
        "tcp6": "[::1]:0",
        "unix": str(tmp_path / "socket"),
    }


@pytest.mark.parametrize("network", ["memu", "memb", "tcp4", "tcp6", "unix"])
async def test_listeners_of_every_network_pass(network: str, tmp_path: Path) -> None:
    address = addresses(tmp_path)[network]

    async def make() -> tuple[Any, Any]:
        (listener,) = await trionet.listen(network, address)
        return listener, partial(trionet.dial, network, str(listener.address))

    await check_listener(make)


@pytest.mark.parametrize("network", ["memu", "memb", "tcp4"])
async def test_tls_listeners_pass(network: str, tmp_path: Path, certificates: Certificates) -> None:
    async def make() -> tuple[Any, Any]:
        (listener,) = await trionet.listen(
            network, addresses(tmp_path)[network], ssl_context=certificates.server
        )
        address = str(listener.address)
        return listener, partial(trionet.dial, network, address, ssl_context=certificates.client)

    await check_listener(make)


@pytest.mark.parametrize("network", ["memb", "tcp4"])
async def test_proxy_listeners_pass(network: str, tmp_path: Path) -> None:
    async def make() -> tuple[Any, Any]:
        (listener,) = await trionet.listen(
            network, addresses(tmp_path)[network], proxy_protocol=ANYBODY
        )

        async def dial() -> trio.abc.Stream:
            stream = await trionet.dial(network, str(listener.address))
            await stream.send_all(ProxyHeader("v1").encode())
            return stream

        return listener, dial

    await check_listener(make)


@pytest.mark.parametrize("carrier", [memory, buffered])
@pytest.mark.parametrize("opener", ["client", "server"])
async def test_the_listener_of_a_session_passes(carrier: Any, opener: str) -> None:
    async with AsyncSessions(carrier) as open_session:

        async def make() -> tuple[Any, Any]:
            pair = await open_session()
            near, far = (
                (pair.client, pair.server) if opener == "client" else (pair.server, pair.client)
            )
            return far.listener(), near.open_stream

        await check_listener(make)


@asynccontextmanager
async def AsyncSessions(carrier: Any) -> AsyncIterator[Callable[[], Awaitable[Any]]]:  # noqa: N802
    """Open sessions in a task each, since their blocks need not end in order."""
    async with trio.open_nursery() as nursery:

        async def hold(task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
            async with sessions(carrier) as pair:
                task_status.started(pair)
                await trio.sleep_forever()

        yield partial(nursery.start, hold)
        nursery.cancel_scope.cancel()


async def test_trios_own_listener_passes() -> None:
    async def make() -> tuple[Any, Any]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        return listener, partial(trio.testing.open_stream_to_socket_listener, listener)

    await check_listener(make)


@pytest.mark.parametrize("network", ["memu", "memb"])
@pytest.mark.parametrize("kind", [PlainListener, SoundListener])
async def test_what_the_broken_ones_are_made_of_passes(
    network: str, kind: type[Any], autojump_clock: Any
) -> None:
    await check_listener(maker(kind, network))
    # It has not waited in vain for anything.
    assert trio.current_time() < 1


def name_of(value: object) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("kind", "says"), [*GENERAL, *OURS], ids=name_of)
async def test_a_listener_that_breaks_a_rule_is_caught(
    kind: type[Any], says: str, autojump_clock: Any
) -> None:
    with pytest.raises(AssertionError, match=says) as caught:
        await check_listener(maker(kind))
    assert any("in check_listener" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(("kind", "says"), STREAMS, ids=name_of)
async def test_a_listener_whose_streams_break_a_rule_is_caught(
    kind: type[Any], says: str, autojump_clock: Any
) -> None:
    with pytest.raises(AssertionError, match=says) as caught:
        await check_listener(maker(SoundListener, stream=kind))
    assert any("in check_listener" in note for note in caught.value.__notes__)
