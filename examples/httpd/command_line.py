"""The command line: what to serve, where, and how it ends."""

from __future__ import annotations

import argparse
import math
import os
import ssl
import sys
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

import trionet
from trionet.abc import Address

from .application import open_application
from .certificates import given_certificate, throw_away_certificate
from .files import Folder
from .workers import adopt, serve_with_workers, why_not_shared

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from trionet.abc import Listener, Stream

__all__ = ("main",)

SITE: Final = os.path.join(os.path.dirname(__file__), "site")

DEFAULT_BIND: Final = ("tcp", "127.0.0.1:8080")


class _BadBindError(Exception):
    """An address that reads well and that nothing can listen on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if not options.bind and not options.tls_bind:
        options.bind = [DEFAULT_BIND]
    if (options.cert is None) != (options.key is None):
        parser.error("--cert and --key go together")
    if options.cert is not None and not options.tls_bind:
        parser.error("--cert and --key are for --tls-bind, which is missing")
    if options.workers > 1 and (problem := why_not_shared(options)):
        parser.error(problem)
    with ExitStack() as stack:
        context = None
        if options.cert is not None:
            try:
                context = given_certificate(options.cert, options.key)
            except (OSError, ssl.SSLError) as exc:
                parser.error(f"cannot use --cert {options.cert} with --key {options.key}: {exc}")
        elif options.tls_bind:
            names = _names(options.tls_bind)
            context, authority = stack.enter_context(throw_away_certificate(names))
            _tell(f"throw-away certificate for {', '.join(names)}; its authority: {authority}")
        status = 0
        try:
            if options.workers == 1:
                trio.run(_serve, options, context)
            else:
                serve_with_workers(options, partial(_serve, options, context))
        except* _BadBindError as group:
            print(f"httpd: {group.exceptions[0]}", file=sys.stderr)
            status = 2
        except* OSError as group:
            for error in group.exceptions:
                print(f"httpd: {error}", file=sys.stderr)
            status = 1
    _settle_output()
    return status


async def _serve(
    options: argparse.Namespace,
    context: ssl.SSLContext | None,
    sockets: Sequence[socket.socket] | None = None,
) -> None:
    """Listen, tell, serve, and tell how it ended. If cancelled, the server ends at once.

    Args:
      sockets: what a worker listens on, bound already.
    """
    trusted = options.proxy_protocol
    proxies = trionet.ProxyProtocol(trusted=trusted) if trusted else None
    if sockets is None:
        listeners = await _listen_to_all(options, context, proxies)
    else:
        listeners = adopt(sockets, options.tls_bind, context, proxies)
        for listener in listeners:
            _tell(_describe(listener.address, isinstance(listener, trionet.TLSListener)))
    write_log = None if options.no_access_log else _write_log
    async with open_application(options.root, write_log=write_log) as application:
        limits = trionet.Limits(
            max_connections=options.max_connections, send_timeout=options.send_timeout
        )
        server = trionet.Server(application.handle, limits=limits, grace=options.grace)
        _tell(f"serving {options.root}; Ctrl-C or SIGTERM drains for at most {options.grace:g} s,")
        _tell("a second one stops at once")
        report = await trionet.serve_until_signalled(server, listeners)
    _tell(f"stopped: {report}")


async def _listen_to_all(
    options: argparse.Namespace,
    context: ssl.SSLContext | None,
    proxies: trionet.ProxyProtocol | None,
) -> list[Listener[Stream]]:
    """Listen on every address asked for. If cancelled, nothing is left listening."""
    listeners: list[Listener[Stream]] = []
    try:
        for bind in options.bind:
            listeners += await _listen(bind, None, proxies)
        for bind in options.tls_bind:
            listeners += await _listen(bind, context, proxies)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


async def _listen(
    bind: tuple[str, str],
    context: ssl.SSLContext | None,
    proxies: trionet.ProxyProtocol | None,
) -> Sequence[Listener[Stream]]:
    """Listen on one address, and tell. If cancelled, nothing is left listening."""
    network, address = bind
    try:
        listeners = await trionet.listen(
            network, address, ssl_context=context, proxy_protocol=proxies
        )
    except OSError as exc:
        raise OSError(f"cannot listen on {network}:{address}: {exc}") from exc
    except ValueError as exc:
        raise _BadBindError(f"cannot listen on {network}:{address}: {exc}") from exc
    for listener in listeners:
        _tell(_describe(listener.address, context is not None))
    return listeners


def _describe(address: Address, secure: bool) -> str:
    scheme = "https" if secure else "http"
    if address.port is not None:
        where = f"{scheme}://{address}/"
        # An address that stands for all of them cannot be opened by a browser.
        if address.host in {"0.0.0.0", "::", ""}:
            where = f"{scheme}://localhost:{address.port}/"
    elif address.path is not None:
        where = f"{scheme}, as in curl --unix-socket"
    else:
        where = f"{scheme}, for programs in this process"
    return f"listening on {address.network}:{address}  ({where})"


def _tell(text: str) -> None:
    """Print a line for whoever is there to read it; serving does not depend on that."""
    with suppress(OSError):
        print(text, flush=True)


def _write_log(text: str) -> None:
    # Not sys.stdout.write: there is no sys.stdout if the program was started without one.
    print(text, end="", flush=True)


def _settle_output() -> None:
    """Let go of output that nobody takes, or the interpreter, ending, would call it a failure."""
    try:
        print(end="", flush=True)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _names(binds: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names a certificate needs so that clients of ``binds`` accept it."""
    names = ["localhost", "127.0.0.1", "::1"]
    for network, text in binds:
        address = Address.parse(network, text)
        name = address.name or address.host
        if name and name not in names and name.isascii() and "*" not in name and "%" not in name:
            names.append(name)
    return names


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.httpd",
        description="Serve a folder over HTTP/1.1, with /healthz, /echo and /bytes/N beside it.",
        epilog="Networks: tcp, tcp4, tcp6, unix, memu, memb; for example tcp:127.0.0.1:8080, "
        "tcp::8080 (every address), unix:/run/site.sock.",
    )
    bind = {"action": "append", "default": [], "type": _bind, "metavar": "NETWORK:ADDRESS"}
    parser.add_argument(
        "--bind",
        help="serve HTTP here; may be repeated (tcp:127.0.0.1:8080 if no bind is given)",
        **bind,  # type: ignore[arg-type]
    )
    parser.add_argument(
        "--tls-bind",
        help="serve HTTPS here; may be repeated",
        **bind,  # type: ignore[arg-type]
    )
    parser.add_argument("--cert", metavar="FILE", help="certificate chain for --tls-bind, in PEM")
    parser.add_argument("--key", metavar="FILE", help="its private key; a throw-away one if absent")
    parser.add_argument(
        "--proxy-protocol",
        metavar="PROXY",
        action="append",
        default=[],
        type=_trusted,
        help="expect a PROXY protocol header on every connection, and only from this proxy: "
        "an address, a network such as 10.0.0.0/8, or unix; may be repeated",
    )
    parser.add_argument(
        "--root", metavar="DIR", type=_root, default=SITE, help="the folder; a small site if absent"
    )
    parser.add_argument("--no-access-log", action="store_true", help="do not print requests")
    parser.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_seconds,
        default=10.0,
        help="what unfinished answers get when the server stops (default %(default)g)",
    )
    parser.add_argument(
        "--max-connections",
        metavar="N",
        type=_count,
        default=10_000,
        help="more clients wait until others have gone (default %(default)d)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_count,
        default=1,
        help="serve with so many processes, one for each core say (default %(default)d); for "
        "binds with a tcp port of their own",
    )
    parser.add_argument(
        "--send-timeout",
        metavar="SECONDS",
        type=_timeout,
        default=30.0,
        help="cut a client that takes nothing of its answer for so long (default %(default)g)",
    )
    return parser


def _bind(text: str) -> tuple[str, str]:
    network, colon, address = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"expected NETWORK:ADDRESS, got {text!r}")
    try:
        Address.parse(network, address)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return network, address


def _trusted(text: str) -> str:
    try:
        trionet.ProxyProtocol(trusted=[text])
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


def _root(text: str) -> str:
    try:
        Folder(text, 1)
    except (OSError, ValueError) as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds, got {text!r}")
    return value


def _timeout(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected seconds above zero, got {text!r}")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number above zero, got {text!r}")
    return value
