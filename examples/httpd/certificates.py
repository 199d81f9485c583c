"""Certificates for TLS: the ones given, or throw-away ones."""

from __future__ import annotations

import ssl
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ("given_certificate", "throw_away_certificate")


def given_certificate(certificate: str, key: str) -> ssl.SSLContext:
    """Make a server's context from PEM files.

    Raises:
      OSError: a file cannot be read.
      ssl.SSLError: they are not a certificate chain and its key.
    """
    context = _server_context()
    context.load_cert_chain(certificate, key)
    return context


@contextmanager
def throw_away_certificate(names: Sequence[str]) -> Iterator[tuple[ssl.SSLContext, str]]:
    """Make a certificate for ``names``, and an authority that nobody knows.

    Yields:
      A server's context, and the path of the authority's certificate, for clients to trust; the
      file is removed at the end.
    """
    # Here, so that a server with real certificates does not need it.
    import trustme

    authority = trustme.CA()
    context = _server_context()
    authority.issue_cert(*names).configure_cert(context)
    with tempfile.NamedTemporaryFile(prefix="httpd-ca-", suffix=".pem") as file:
        file.write(authority.cert_pem.bytes())
        file.flush()
        yield context, file.name


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context
