"""Fixtures that several rooms share."""

from __future__ import annotations

import signal
import ssl
from dataclasses import dataclass

import pytest
import trustme

# The plugin of our own is named for those who have not installed trionet.
pytest_plugins = ("pytester", "trionet.pytest_plugin")


@dataclass(frozen=True)
class Certificates:
    """A throw-away authority, and the contexts of a server and a client that trust it."""

    authority: trustme.CA
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def authority() -> tuple[trustme.CA, trustme.LeafCert]:
    """A throw-away authority, and a certificate for ``localhost``, ``127.0.0.1`` and ``site``."""
    authority = trustme.CA()
    return authority, authority.issue_cert("localhost", "127.0.0.1", "site")


@pytest.fixture
def certificates(authority: tuple[trustme.CA, trustme.LeafCert]) -> Certificates:
    """TLS contexts for those names; each test has its own, since libraries change what they get."""
    issuer, certificate = authority
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    issuer.configure_trust(client)
    return Certificates(issuer, server, client)


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C mean what it means elsewhere, where a shell's background job would ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name abstract sockets alike in every process: their own names have the process in them."""
    return "abstract" if isinstance(val, str) and val.startswith("@") else None
