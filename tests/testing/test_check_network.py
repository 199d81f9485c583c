"""`check_network`: sound networks pass, and each broken one is caught by the rule it breaks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio

import trionet
from tests.testing.broken_networks import BROKEN, SoundNetwork, TwoPorts
from trionet._streams.network import SystemNetwork
from trionet.testing import check_network

ABSTRACT = f"@trionet-check-network-{os.getpid()}"


@pytest.mark.parametrize("network", ["memu", "memb"])
async def test_networks_of_memory_pass(network: str, autojump_clock: Any) -> None:
    async def make() -> tuple[trionet.Network, str, str]:
        return trionet.Network(), network, "site"

    await check_network(make)
    # It has not waited in vain for anything.
    assert trio.current_time() < 1


@pytest.mark.parametrize("behind", [trionet.Network, SystemNetwork])
@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("tcp", ":0"),
        ("tcp", "localhost:0"),
        ("tcp4", "127.0.0.1:0"),
        ("tcp6", "[::1]:0"),
        ("unix", ""),
        ("unix", ABSTRACT),
    ],
)
async def test_networks_of_the_system_pass(
    behind: type[Any], network: str, address: str, tmp_path: Path
) -> None:
    async def make() -> tuple[Any, str, str]:
        return behind(), network, address or str(tmp_path / "socket")

    await check_network(make)


async def test_what_the_broken_ones_are_made_of_passes(autojump_clock: Any) -> None:
    async def make() -> tuple[SoundNetwork, str, str]:
        return SoundNetwork(), "memb", "site"

    await check_network(make)


@pytest.mark.parametrize(("kind", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_network_that_breaks_a_rule_is_caught(
    kind: type[Any], says: str, autojump_clock: Any
) -> None:
    async def make() -> tuple[Any, str, str]:
        return kind(), "memb", "site"

    with pytest.raises(AssertionError, match=says) as caught:
        await check_network(make)
    assert any("in check_" in note for note in caught.value.__notes__)


async def test_a_network_that_listens_on_two_ports_is_caught() -> None:
    async def make() -> tuple[TwoPorts, str, str]:
        return TwoPorts(), "tcp", "127.0.0.1:0"

    with pytest.raises(AssertionError, match="must have one port"):
        await check_network(make)
