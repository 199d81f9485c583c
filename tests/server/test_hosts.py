"""Connections counted by IP address."""

from __future__ import annotations

from trionet._server.hosts import HostCounts


def test_an_address_is_full_at_its_limit_and_forgotten_without_connections() -> None:
    hosts = HostCounts(2)
    for host in ("a", "b", "a"):
        assert not hosts.is_full(host)
        hosts.add(host)
    assert hosts.is_full("a")
    assert not hosts.is_full("b")
    assert len(hosts) == 2

    hosts.remove("a")
    assert not hosts.is_full("a")
    hosts.remove("a")
    hosts.remove("b")
    assert len(hosts) == 0


def test_who_has_no_address_is_never_full() -> None:
    hosts = HostCounts(1)
    for _ in range(3):
        hosts.add(None)
    assert not hosts.is_full(None)
    assert len(hosts) == 0
    hosts.remove(None)


def test_without_a_limit_nobody_is_full() -> None:
    hosts = HostCounts(None)
    assert not hosts.limited
    for _ in range(3):
        hosts.add("a")
    assert not hosts.is_full("a")
