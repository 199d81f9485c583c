"""A port forwarder in the manner of ``ssh -L``: many TCP connections over one TLS connection.

On the far side, where the targets can be reached::

    python examples/mux_forward.py serve :7000 --cert server.pem --allow 127.0.0.1:5432

On the near side, where the programs are that want to reach them::

    python examples/mux_forward.py forward far.example:7000 --trust authority.pem \\
        --local 127.0.0.1:15432=127.0.0.1:5432

Each local connection becomes a stream of one multiplexed session; its first line names the target,
and the answer's first line is ``ok`` or what went wrong. A session that breaks is dialled anew.
Without arguments it shows itself in one process.
"""

from __future__ import annotations

import argparse
import signal
import ssl
import sys
from functools import partial
from typing import Any

import trio

import trionet

# How long a new local connection waits for a session, and a dial for its target.
PATIENCE = 10.0
REDIAL_AFTER = 1.0
LINE_SIZE = 300


async def read_line(stream: trio.abc.ReceiveStream) -> str:
    """Read a short line, byte by byte: what follows it belongs to somebody else."""
    line = b""
    while not line.endswith(b"\n"):
        byte = await stream.receive_some(1)
        if not byte or len(line) > LINE_SIZE:
            raise trio.BrokenResourceError(f"no line, only {line!r}")
        line += byte
    return line[:-1].decode()


async def copy(source: trio.abc.Stream, destination: trio.abc.HalfCloseableStream) -> None:
    """Pass bytes on, then end of file; the other direction goes on."""
    while data := await source.receive_some():
        await destination.send_all(data)
    await destination.send_eof()


async def relay(one: trio.abc.HalfCloseableStream, other: trio.abc.HalfCloseableStream) -> None:
    """Copy both ways until both have ended, or one has failed."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy, one, other)
            nursery.start_soon(copy, other, one)
    except* GONE:
        pass


GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


# The far side


class Gate:
    """Takes sessions, and dials what their streams ask for.

    Attributes:
      allowed: the only targets it dials; without this it would be anybody's proxy.
    """

    def __init__(self, allowed: set[str]) -> None:
        self.allowed = allowed

    async def session(self, connection: trionet.Connection) -> None:
        """Serve the streams of one session, by a server of their own, until the peer leaves."""
        async with trionet.open_mux(connection, role="server") as session:
            await trionet.Server(self.stream).serve([session.listener()])

    async def stream(self, stream: trionet.Connection) -> None:
        """Connect one stream with the target that it names."""
        assert isinstance(stream, trionet.HalfCloseableConnection)
        target = await read_line(stream)
        if target not in self.allowed:
            await stream.send_all(f"{target} is not allowed\n".encode())
            return
        try:
            with trio.fail_after(PATIENCE):
                far: Any = await trionet.dial("tcp", target)
        except (OSError, ValueError, trio.TooSlowError) as exc:
            await stream.send_all(f"{target}: {exc!r}\n".encode())
            return
        async with far:
            await stream.send_all(b"ok\n")
            await relay(stream, far)


# The near side


class Tunnel:
    """Keeps one session to the far side, and opens streams on it."""

    def __init__(self, address: str, ssl_context: ssl.SSLContext) -> None:
        self.address = address
        self.ssl_context = ssl_context
        self._session: trionet.MuxSession | None = None
        self._ready = trio.Event()

    async def keep(self) -> None:
        """Dial, stay until the session breaks, and dial again. If cancelled, the session ends."""
        while True:
            try:
                carrier = await trionet.dial("tcp", self.address, ssl_context=self.ssl_context)
                async with trionet.open_mux(carrier, role="client") as session:
                    await session.ping()
                    self._session = session
                    self._ready.set()
                    await self._until_broken(session)
            except (OSError, trio.BrokenResourceError) as exc:
                print(f"{self.address}: {exc}; trying again", file=sys.stderr, flush=True)
            self._session, self._ready = None, trio.Event()
            await trio.sleep(REDIAL_AFTER)

    async def _until_broken(self, session: trionet.MuxSession) -> None:
        # The far side has no reason to open streams; whoever waits for one learns of the end.
        while True:
            (await session.listener().accept()).reset()

    async def open(self, target: str) -> trionet.MuxStream:
        """Open a stream that leads to ``target``. If cancelled, nothing is left of it."""
        with trio.fail_after(PATIENCE):
            while self._session is None:
                await self._ready.wait()
        stream = await self._session.open_stream()
        try:
            await stream.send_all(f"{target}\n".encode())
            answer = await read_line(stream)
            if answer != "ok":
                raise ConnectionRefusedError(answer)
        except BaseException:
            stream.reset()
            raise
        return stream

    async def forward(self, target: str, connection: trionet.Connection) -> None:
        """Carry one local connection to ``target``."""
        assert isinstance(connection, trionet.HalfCloseableConnection)
        try:
            stream = await self.open(target)
        except (OSError, trio.TooSlowError, *GONE) as exc:
            print(f"{connection.remote_address} to {target}: {exc}", file=sys.stderr, flush=True)
            return
        async with stream:
            await relay(connection, stream)


async def run_gate(address: str, certificate: str, allowed: list[str]) -> None:
    """Serve until a signal comes. If cancelled, all sessions end at once."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    listeners = await trionet.listen("tcp", address, ssl_context=context)
    print(f"forwarding from {listeners[0].address}, until Ctrl-C", flush=True)
    await trionet.serve_until_signalled(trionet.Server(Gate(set(allowed)).session), listeners)


async def run_tunnel(address: str, trust: str, local: list[str]) -> None:
    """Forward until a signal comes, and let connections end; a second one ends them.

    If cancelled, all connections end at once.
    """
    tunnel = Tunnel(address, ssl.create_default_context(cafile=trust))
    servers: list[trionet.Server] = []

    async def obey(signals: Any) -> None:
        grace = None
        async for _ in signals:
            for server in servers:
                server.shutdown(grace)
            grace = 0.0

    # One receiver for all: of several only the last would hear a signal.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tunnel.keep)
            nursery.start_soon(obey, signals)
            async with trio.open_nursery() as serving:
                for pair in local:
                    here, _, target = pair.partition("=")
                    listeners = await trionet.listen("tcp", here)
                    print(f"{listeners[0].address} leads to {target}", flush=True)
                    servers.append(trionet.Server(partial(tunnel.forward, target)))
                    serving.start_soon(servers[-1].serve, listeners)
            nursery.cancel_scope.cancel()


async def show() -> None:
    """Forward to an echo server in this process. If cancelled, everything ends at once."""
    import trustme

    authority = trustme.CA()
    near, far = ssl.create_default_context(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.configure_trust(near)
    authority.issue_cert("127.0.0.1").configure_cert(far)

    async def shout(connection: trionet.Connection) -> None:
        while data := await connection.receive_some():
            await connection.send_all(data.upper())

    async with trio.open_nursery() as nursery:
        serve = partial(trionet.serve, grace=0)
        target = await nursery.start(serve, shout, "tcp", "127.0.0.1:0")
        name = str(target.addresses[0])
        gate = await nursery.start(
            partial(serve, ssl_context=far), Gate({name}).session, "tcp", "127.0.0.1:0"
        )
        tunnel = Tunnel(str(gate.addresses[0]), near)
        nursery.start_soon(tunnel.keep)
        local = await nursery.start(serve, partial(tunnel.forward, name), "tcp", "127.0.0.1:0")

        async def talk(number: int) -> None:
            async with await trionet.dial("tcp", str(local.addresses[0])) as client:
                await client.send_all(b"client %d" % number)
                print((await client.receive_some()).decode())

        async with trio.open_nursery() as clients:
            for number in range(5):
                clients.start_soon(talk, number)
        print(f"{gate.statistics().accepted} connection carried them all")
        nursery.cancel_scope.cancel()


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    if len(sys.argv) == 1:
        trio.run(show)
        return 0
    parser = argparse.ArgumentParser(description="Many TCP connections over one TLS connection.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="the far side")
    serve.add_argument("address", help="where to listen")
    serve.add_argument("--cert", required=True, help="PEM file of certificate and key")
    serve.add_argument("--allow", action="append", required=True, metavar="HOST:PORT")
    forward = commands.add_parser("forward", help="the near side")
    forward.add_argument("address", help="where the far side listens")
    forward.add_argument("--trust", required=True, help="PEM file of the authority to trust")
    forward.add_argument("--local", action="append", required=True, metavar="HERE=TARGET")
    chosen = parser.parse_args()
    if chosen.command == "serve":
        trio.run(run_gate, chosen.address, chosen.cert, chosen.allow)
    else:
        trio.run(run_tunnel, chosen.address, chosen.trust, chosen.local)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
