"""What systemd passes to a process, and what it is told."""

from __future__ import annotations

import os
import socket
import sys
import textwrap
import time

import pytest

import trionet
from tests.server.programs import Program

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

INHERIT = """
passed = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
passed[1].bind({path!r})
passed[1].listen()
keep = [os.dup(sock.fileno()) + 0 for sock in passed]
high = [os.dup2(fd, 50 + at) for at, fd in enumerate(keep)]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2")
"""


def inherit(programs: list[Program], path: str, script: str) -> str:
    program = Program(INHERIT.format(path=path) + textwrap.dedent(script))
    programs.append(program)
    output, errors = program.process.communicate(timeout=10)
    assert not errors
    return str(output).strip()


def test_inherited_listeners_are_taken_over_with_their_names(
    programs: list[Program], path: str
) -> None:
    output = inherit(
        programs,
        path,
        """
        os.environ["LISTEN_FDNAMES"] = "web:control"
        found = trionet.inherited_listeners()
        print([one.name for one in found])
        print([one.address.network for one in found], str(found[1].address))
        print([one.socket.fileno() for one in found], [os.get_inheritable(fd) for fd in (3, 4)])
        print([name for name in os.environ if name.startswith("LISTEN_")])
        print(trionet.inherited_listeners())

        async def main():
            async with trio.open_nursery() as nursery:
                server = Server(answer)
                await nursery.start(server.serve, found)
                async with await trionet.dial("unix", sys.argv[-1]) as client:
                    await client.send_all(b"pid\\n")
                    assert await client.receive_some() == str(os.getpid()).encode()
                server.shutdown()

        sys.argv.append(passed[1].getsockname())
        trio.run(main)
        print(os.path.exists(sys.argv[-1]))
        """,
    )

    assert output.splitlines() == [
        "['web', 'control']",
        f"['tcp4', 'unix'] {path}",
        "[3, 4] [False, False]",
        "[]",
        "[]",
        "True",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("os.environ['LISTEN_PID'] = '1'", "[]"),
        ("del os.environ['LISTEN_PID']", "[]"),
        ("del os.environ['LISTEN_FDS']", "[]"),
        ("os.environ['LISTEN_FDS'] = '0'", "[]"),
        ("pass", "[None, None]"),
        ("os.environ['LISTEN_FDS'] = '-1'", "LISTEN_FDS must be a number, got '-1'"),
        ("os.environ['LISTEN_FDNAMES'] = 'a:b:c'", "must have 2 names, got 'a:b:c'"),
        ("os.dup2(os.open('/dev/null', 0), 4)", "descriptor 4 (None) is not a socket"),
        (
            "extra = socket.socket(); os.dup2(extra.fileno(), 4)",
            "descriptor 4 (None) is not a listening",
        ),
        (
            "extra = socket.socket(type=socket.SOCK_DGRAM); os.dup2(extra.fileno(), 3)",
            "descriptor 3 (None) is not a listening stream socket",
        ),
    ],
)
def test_what_is_not_ours_or_not_right_is_not_taken(
    programs: list[Program], path: str, change: str, expected: str
) -> None:
    output = inherit(
        programs,
        path,
        f"""
        {change}
        try:
            print([one.name for one in trionet.inherited_listeners()])
        except ValueError as error:
            print(error)
            # They are still the manager's: nothing was closed.
            os.fstat(3), os.fstat(4)
        assert not [name for name in os.environ if name.startswith("LISTEN_")]
        os._exit(0) if sys.stdout.flush() is None else None
        """,
    )

    assert expected in output


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_tells_the_service_manager(
    monkeypatch: pytest.MonkeyPatch, path: str, abstract: bool
) -> None:
    if abstract and sys.platform != "linux":
        pytest.skip("abstract names are Linux's")
    name = f"@trionet-notify-{os.getpid()}" if abstract else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)

        assert trionet.notify("READY=1\nSTATUS=äh")

        assert manager.recv(1000) == "READY=1\nSTATUS=äh".encode()


def test_notify_without_a_service_manager_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)

    assert not trionet.notify("READY=1")
    with pytest.raises(ValueError, match="must not be empty"):
        trionet.notify("")


def test_a_notification_that_cannot_be_delivered_is_an_error(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with pytest.raises(FileNotFoundError):
        trionet.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")
    with pytest.raises(ValueError, match="must be a path or an abstract name, got 'vsock:2:1234'"):
        trionet.notify("READY=1")


def test_a_service_manager_that_does_not_read_is_waited_for_a_second_at_the_most(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setattr("trionet._server.process.NOTIFY_TIMEOUT", 0.05)

        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            for _ in range(10_000):
                trionet.notify("WATCHDOG=1")

        assert time.monotonic() - begun < 5
