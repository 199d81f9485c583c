"""Addresses: what is taken, what is refused, and what is printed back."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import trionet
from trionet import Address

GOOD = [
    ("memu", "site", {"name": "site"}),
    ("memb", "host:80", {"name": "host:80"}),
    ("tcp", "example.org:80", {"host": "example.org", "port": 80}),
    ("tcp", ":0", {"host": "", "port": 0}),
    ("tcp", "127.0.0.1:65535", {"host": "127.0.0.1", "port": 65535}),
    ("tcp4", "127.0.0.1:1", {"host": "127.0.0.1", "port": 1}),
    ("tcp6", "[::1]:8080", {"host": "::1", "port": 8080}),
    ("tcp", "[fe80::1%lo]:8080", {"host": "fe80::1%lo", "port": 8080}),
    ("unix", "/run/x.sock", {"path": "/run/x.sock"}),
]


@pytest.mark.parametrize(("network", "text", "parts"), GOOD)
def test_an_address_is_parsed_and_printed_back(
    network: str, text: str, parts: dict[str, Any]
) -> None:
    address = Address.parse(network, text)

    assert address == Address(network, **parts)
    assert str(address) == text
    assert Address.parse(network, str(address)) == address


BAD = [
    ("memu", ""),
    ("memb", ""),
    ("tcp", ""),
    ("tcp", "nonsense"),
    ("tcp", "host:"),
    ("tcp", "host:http"),
    ("tcp", "host:-1"),
    ("tcp", "host: 80"),
    ("tcp", "host:+80"),
    ("tcp", "host:٣"),
    ("tcp", "host:70000"),
    ("tcp", "host:65536"),
    ("tcp", "::1:80"),
    ("tcp", "[::1:80"),
    ("tcp", "[host]:80"),
    ("tcp", "[127.0.0.1]:80"),
    ("tcp", "a b:80"),
    ("tcp", "a\0b:80"),
    ("tcp", "a..b:80"),
    ("tcp", f"{'a' * 64}.org:80"),
    ("tcp4", "[::1]:80"),
    ("tcp6", "127.0.0.1:80"),
    ("unix", ""),
    ("unix", "@"),
    ("unix", "/tmp/a\0b"),
    ("unix", "/" + "a" * 200),
    ("udp", "host:80"),
    ("", "host:80"),
]


@pytest.mark.parametrize(("network", "text"), BAD)
async def test_a_bad_address_is_refused_by_name_before_anything_is_opened(
    network: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*args: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket", opened)
    shown = repr(text) if network not in {"udp", ""} else repr(network)

    for operation in (trionet.dial, trionet.listen):
        with pytest.raises(ValueError) as caught:
            await operation(network, text)
        assert shown in str(caught.value)


@pytest.mark.parametrize(("network", "text"), [(None, "x"), ("memu", None), ("tcp", 80)])
def test_only_strings_are_addresses(network: Any, text: Any) -> None:
    with pytest.raises(TypeError):
        Address.parse(network, text)


async def test_port_0_cannot_be_dialled() -> None:
    with pytest.raises(ValueError, match="port 0"):
        await trionet.dial("tcp", "localhost:0")


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses exist on Linux only")
def test_an_abstract_address_keeps_its_at_sign() -> None:
    assert str(Address.parse("unix", "@name")) == "@name"
