"""Certificates that are made for a test and thrown away, by trustme."""

from __future__ import annotations

import random
import ssl
from typing import TYPE_CHECKING, Final, final

from .entropy import seeded_entropy

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import trustme

__all__ = ("Certificates",)

# Whom a test is most likely to call by TLS when it has no other name.
LOCAL: Final = ("localhost", "127.0.0.1", "::1")


@final
class Certificates:
    """An authority of its own, TLS contexts of servers that it vouches for, and of their clients.

    The keys are RSA: the signatures of elliptic curves vary in size, and with them what crosses a
    network, and when. Serial numbers and names have no part in chance either. That makes two
    handshakes equal, but for the bytes that OpenSSL draws.

    Attributes:
      authority: trustme's, for what is not provided here, client certificates for example.
      client: a client's context, which trusts the authority, too.
    """

    def __init__(self) -> None:
        """Make an authority, which takes some tenths of a second, as each server's context does.

        Raises:
          ImportError: trustme is not installed.
        """
        import trustme

        with _no_chance("authority"):
            self.authority: trustme.CA = trustme.CA(key_type=trustme.KeyType.RSA)
        self.client: ssl.SSLContext = ssl.create_default_context()
        self.authority.configure_trust(self.client)
        self._servers: dict[tuple[str, ...], ssl.SSLContext] = {}

    @property
    def server(self) -> ssl.SSLContext:
        """The context of a server called ``localhost``, ``127.0.0.1`` or ``::1``."""
        return self.server_called(*LOCAL)

    def server_called(self, *names: str) -> ssl.SSLContext:
        """Return the context of a server with these names, or addresses; the same each time.

        Raises:
          ValueError: there are none.
        """
        import trustme

        if not names:
            raise ValueError("a server needs a name")
        if names not in self._servers:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            with _no_chance(repr(names)):
                certificate = self.authority.issue_cert(*names, key_type=trustme.KeyType.RSA)
            certificate.configure_cert(context)
            self._servers[names] = context
        return self._servers[names]


def _no_chance(what: str) -> AbstractContextManager[None]:
    # A serial number that starts with a zero byte is a byte shorter than others.
    return seeded_entropy(random.Random(what), random.Random(what))  # noqa: S311 - not a secret
