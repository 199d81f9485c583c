"""The example server on TCP, TLS and memory at once, fetched from and then drained.

``python -m examples.demo`` prints a line for each fetch and what the drain found; it exits with 0
only if everything was as it should be.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import sys
from typing import TYPE_CHECKING, Final

import httpx
import trio
import trustme

import trionet
from trionet.integrations.httpx import Transport

from .httpd import open_application

if TYPE_CHECKING:
    from collections.abc import Sequence

SITE: Final = os.path.join(os.path.dirname(__file__), "httpd", "site")

# What is fetched from each network, and the file it must equal; None where size alone is checked.
PAGES: Final = (
    ("/", "index.html"),
    ("/style.css", "style.css"),
    ("/guide/", "guide/index.html"),
    ("/bytes/1000000", None),
    ("/healthz", None),
)
SIZES: Final = {"/bytes/1000000": 1_000_000, "/healthz": 3}

# The slow download: more than the sockets between will hold, so that the drain finds it unfinished.
SLOW_SIZE: Final = 50_000_000
SLOW_SECONDS: Final = 1.0

GRACE: Final = 10.0


class Checks:
    """What was expected and did not come."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def expect(self, holds: bool, what: str) -> str:
        """Note a failure, and return a word for the line that is printed."""
        if holds:
            return "ok"
        self.failures.append(what)
        return "WRONG"


async def fetch_pages(name: str, client: httpx.AsyncClient, checks: Checks) -> None:
    """Fetch every page, a line for each. If cancelled, the rest is left out."""
    for path, file in PAGES:
        started = trio.current_time()
        response = await client.get(path)
        took = trio.current_time() - started
        right = response.status_code == 200
        if file is None:
            right = right and len(response.content) == SIZES[path]
        else:
            wanted = await trio.Path(SITE, file).read_bytes()
            right = right and response.content == wanted
        word = checks.expect(right, f"{name} {path}")
        print(
            f"{name:5} GET {path:15} {response.status_code} "
            f"{len(response.content):>9,} bytes {took * 1000:8.2f} ms  {word}"
        )


async def drain(
    server: trionet.Server, client: httpx.AsyncClient, address: str, checks: Checks
) -> None:
    """Stop the server in the middle of a slow download. If cancelled, the download is cut."""
    received = 0
    async with client.stream("GET", f"/bytes/{SLOW_SIZE}") as response:
        async for part in response.aiter_raw():
            if not received:
                open_now = server.statistics().active
                print(f"\nshutdown() with {open_now} connections open, one in a slow download")
                started = trio.current_time()
                server.shutdown()
                await trio.sleep(0.1)
                await check_refused(address, checks)
                left = server.statistics().active
                word = checks.expect(left == 1, f"{left} connections after 0.1 s")
                print(f"after 0.1 s: {left} open, the idle ones are gone  {word}")
            received += len(part)
            await trio.sleep(SLOW_SECONDS * len(part) / SLOW_SIZE)
    took = trio.current_time() - started
    word = checks.expect(received == SLOW_SIZE, f"the download had {received} bytes")
    print(f"the download went on for {took:.2f} s and got {received:,} bytes  {word}")
    report = await server.wait_closed()
    whole = report == trionet.ShutdownReport(completed=open_now)
    print(f"{report}  {checks.expect(whole, f'the report was {report}')}")
    end = trio.current_time() - started
    print(f"the server ended after {end:.2f} of {GRACE:g} s  {checks.expect(end < GRACE, 'slow')}")


async def check_refused(address: str, checks: Checks) -> None:
    """Dial the draining server, which takes nobody in. If cancelled, nothing is left open."""
    try:
        async with await trionet.dial("tcp", address):
            refused = False
    except ConnectionRefusedError:
        refused = True
    print(f"a new client is refused  {checks.expect(refused, 'a new client was let in')}")


def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Make a throw-away certificate: a server's context, and that of clients who trust it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def demo(checks: Checks) -> None:
    """Serve, fetch, drain. If cancelled, the server ends at once."""
    server_tls, client_tls = certificates()
    async with open_application(SITE) as application, trio.open_nursery() as nursery:
        server = trionet.Server(application.handle, grace=GRACE)
        tcp: Sequence[trionet.abc.Listener[trionet.abc.Stream]]
        tcp = await trionet.listen("tcp", "127.0.0.1:0")
        tls = await trionet.listen("tcp", "127.0.0.1:0", ssl_context=server_tls)
        memory = await trionet.listen("memu", "site")
        addresses = await nursery.start(server.serve, [*tcp, *tls, *memory])
        print("serving on " + ", ".join(f"{one.network}:{one}" for one in addresses) + "\n")
        plain, secure = str(addresses[0]), str(addresses[1])
        async with contextlib.AsyncExitStack() as stack:
            clients = {
                "tcp": httpx.AsyncClient(
                    transport=Transport("tcp", plain), base_url=f"http://{plain}"
                ),
                "tls": httpx.AsyncClient(
                    transport=Transport("tcp", secure, ssl_context=client_tls),
                    base_url="https://localhost",
                ),
                "memu": httpx.AsyncClient(transport=Transport("memu"), base_url="http://site"),
            }
            for name, client in clients.items():
                await stack.enter_async_context(client)
                await fetch_pages(name, client, checks)
            made = server.statistics().accepted
            word = checks.expect(made == len(clients), f"{made} connections for 3 clients")
            print(f"{made} connections for {len(PAGES) * len(clients)} requests  {word}")
            await drain(server, clients["tcp"], plain, checks)


def main() -> int:
    """Run the demo; return the exit status."""
    checks = Checks()
    trio.run(demo, checks)
    if checks.failures:
        print("\nwrong: " + "; ".join(checks.failures), file=sys.stderr)
        return 1
    print("\nall of it was right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
