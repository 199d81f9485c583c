"""Files that are sent from the disk: by the kernel over plain TCP, piece by piece over TLS."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trionet
from examples.httpd import open_application
from tests.examples.httpd.conftest import LARGE
from tests.examples.httpd.support import ResponseReader, get, receive_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.conftest import Certificates

# More than a connection over loopback holds while nobody reads.
HUGE = 32 * 1024 * 1024

plain_and_tls = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])


class Site:
    """The example server on a socket, its access log, and what it asked the kernel to send."""

    def __init__(self, server: trionet.Server, address: str, context: Any) -> None:
        self.server = server
        self.lines: list[str] = []
        self.by_kernel: list[int] = []
        self._address = address
        self._context = context

    async def dial(self) -> trionet.abc.Stream:
        stream: trionet.abc.Stream
        stream = await trionet.dial("tcp", self._address, ssl_context=self._context)
        return stream

    async def quiet(self) -> None:
        while self.server.statistics().active:
            await wait_all_tasks_blocked(0.005)

    @property
    def logged(self) -> list[tuple[str, int]]:
        """The status and the size of each line but the first; -1 where it has no size."""
        words = [line.split() for line in "".join(self.lines).splitlines()[1:]]
        return [(one[-2], int(one[-1].replace("-", "-1"))) for one in words]


@asynccontextmanager
async def serving(
    root: Path,
    certificates: Certificates | None,
    monkeypatch: pytest.MonkeyPatch,
    limits: trionet.Limits | None = None,
) -> AsyncIterator[Site]:
    """Serve ``root``; at the end the descriptors must be as many as after a first request."""
    (root / "huge.bin").touch()
    os.truncate(root / "huge.bin", HUGE)
    lines: list[str] = []
    async with (
        open_application(root, write_log=lines.append) as application,
        trio.open_nursery() as nursery,
    ):
        context = None if certificates is None else certificates.server
        listeners = await trionet.listen("tcp", "127.0.0.1:0", ssl_context=context)
        server = trionet.Server(application.handle, grace=5, limits=limits)
        await nursery.start(server.serve, listeners)
        address = str(listeners[0].address)
        site = Site(server, address, None if certificates is None else certificates.client)
        site.lines = lines
        sendfile = os.sendfile

        def recorded(out: int, fd: int, offset: int, count: int) -> int:
            site.by_kernel.append(sendfile(out, fd, offset, count))
            return site.by_kernel[-1]

        async with await site.dial() as stream:
            await stream.send_all(get("/large.bin", "Connection: close"))
            assert (await receive_all(stream)).endswith(LARGE)
        await site.quiet()
        before = len(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(os, "sendfile", recorded)

        yield site

        # A client that behaves is served after all that.
        if not server.draining.is_set():
            async with await site.dial() as stream:
                await stream.send_all(get("/a.txt", "Connection: close"))
                assert (await receive_all(stream)).endswith(b"0123456789")
            await site.quiet()
            assert len(os.listdir("/proc/self/fd")) == before
            server.shutdown()
    monkeypatch.undo()


@plain_and_tls
async def test_a_file_goes_by_the_kernel_where_nothing_stands_between(
    root: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    async with serving(root, certificates if secure else None, monkeypatch) as site:
        async with await site.dial() as stream:
            answers = ResponseReader(stream)
            for _ in range(2):
                await stream.send_all(get("/large.bin"))
                assert (await answers.next()).body == LARGE
        await site.quiet()
        assert sum(site.by_kernel) == (0 if secure else 2 * len(LARGE))

    assert site.logged[:2] == [("200", len(LARGE))] * 2


@plain_and_tls
async def test_parts_and_conditions_are_as_ever(
    root: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    async with serving(root, certificates if secure else None, monkeypatch) as site:
        async with await site.dial() as stream:
            answers = ResponseReader(stream)

            async def ask(*fields: str, method: str = "GET") -> Any:
                await stream.send_all(get("/large.bin", *fields, method=method))
                return await answers.next()

            etag = (await ask("Range: bytes=0-0")).headers["etag"]
            middle = await ask("Range: bytes=1000-200999", f"If-Range: {etag}")
            tail = await ask("Range: bytes=-5")
            several = await ask("Range: bytes=0-9,100-109")
            unchanged = await ask(f"If-None-Match: {etag}")
            refused = await ask('If-Match: "other"')
            beyond = await ask(f"Range: bytes={len(LARGE)}-")
        await site.quiet()
        by_kernel = 0 if secure else 1 + 200_000 + 5 + 20
        assert sum(site.by_kernel) == by_kernel

    assert (middle.status, middle.body) == (206, LARGE[1000:201_000])
    assert (tail.status, tail.body) == (206, LARGE[-5:])
    assert several.status == 206
    assert several.body.count(b"\r\n\r\n" + LARGE[:10] + b"\r\n--") == 1
    assert several.body.count(b"\r\n\r\n" + LARGE[100:110] + b"\r\n--") == 1
    assert (unchanged.status, refused.status, beyond.status) == (304, 412, 416)
    sizes = [1, 200_000, 5, len(several.body), -1, len(refused.body), len(beyond.body)]
    assert [size for _, size in site.logged[:7]] == sizes


@plain_and_tls
async def test_the_log_tells_what_left_of_a_download_that_was_given_up(
    root: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    async with serving(root, certificates if secure else None, monkeypatch) as site:
        stream = await site.dial()
        await stream.send_all(get("/huge.bin"))
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(1000)
        received = len(head.partition(b"\r\n\r\n")[2])
        while received < 1_000_000:
            received += len(await stream.receive_some(65536))
        await trio.aclose_forcefully(stream)
        await site.quiet()

    status, size = site.logged[0]
    assert status == "200"
    assert received <= size < HUGE


@plain_and_tls
async def test_a_download_nobody_reads_meets_the_send_timeout(
    root: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, secure: bool
) -> None:
    limits = trionet.Limits(send_timeout=0.3)
    async with serving(root, certificates if secure else None, monkeypatch, limits) as site:
        async with await site.dial() as stream:
            await stream.send_all(get("/huge.bin"))
            with trio.fail_after(10):
                await site.quiet()
        assert site.server.statistics().failed == 1

    assert site.logged[0][0] == "200"
    assert 0 < site.logged[0][1] < HUGE


async def test_a_download_that_is_read_slowly_does_not_meet_the_send_timeout(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = trionet.Limits(send_timeout=0.3)
    async with serving(root, None, monkeypatch, limits) as site, await site.dial() as stream:
        assert isinstance(stream, trionet.SocketStream)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await stream.send_all(get("/huge.bin", "Range: bytes=0-9999999"))
        received = 0
        # Several times the timeout altogether, and never so long without progress.
        while received < 10_000_000:
            data = await stream.receive_some(350_000)
            assert data, f"cut after {received} bytes"
            received += len(data)
            await trio.sleep(0.01)
        await stream.aclose()

    assert site.logged[0] == ("206", 10_000_000)


@plain_and_tls
async def test_a_drain_lets_a_download_finish_and_cuts_one_nobody_reads(
    root: Path,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
    secure: bool,
) -> None:
    # What the kernel and a thread need to do their part.
    autojump_clock.autojump_threshold = 0.2
    async with (
        serving(root, certificates if secure else None, monkeypatch) as site,
        await site.dial() as reader,
        await site.dial() as sleeper,
    ):
        for stream in (reader, sleeper):
            await stream.send_all(get("/huge.bin"))
            assert await stream.receive_some(1)
        site.server.shutdown()
        received = 1
        with suppress(trio.BrokenResourceError):
            while data := await reader.receive_some(1 << 20):
                received += len(data)
        report = await site.server.wait_closed()

    assert received > HUGE
    assert (report.completed, report.cancelled, report.forced) == (1, 1, 0)
    assert site.logged[0] == ("200", HUGE)
    assert site.logged[1][1] < HUGE


async def test_a_file_cut_short_ends_the_connection_and_is_logged_as_it_was(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(root, None, monkeypatch) as site:
        async with await site.dial() as stream:
            await stream.send_all(get("/huge.bin"))
            received = bytes(await stream.receive_some())
            os.truncate(root / "huge.bin", 1_000_000)
            received += await receive_all(stream)
        await site.quiet()

    body = len(received.partition(b"\r\n\r\n")[2])
    assert site.logged[0][1] == body < HUGE


async def test_a_disk_that_fails_ends_the_connection_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(root, None, monkeypatch) as site, await site.dial() as stream:

        def broken(*_: int) -> int:
            raise OSError(errno.EIO, "the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(os, "sendfile", broken)
            await stream.send_all(get("/huge.bin"))
            received = await receive_all(stream)
        await site.quiet()

    assert received.endswith(b"\r\n\r\n")
    assert site.logged[0] == ("200", 0)


@pytest.mark.parametrize("field", ["0-,0-,0-,0-", ",".join(f"{n}-{n}" for n in range(1000))])
async def test_cve_2011_3192_many_ranges_are_one_plain_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    async with serving(root, None, monkeypatch) as site, await site.dial() as stream:
        await stream.send_all(get("/large.bin", f"Range: bytes={field}"))
        answer = await ResponseReader(stream).next()
        await stream.aclose()

        assert (answer.status, answer.body) == (200, LARGE)
        assert sum(site.by_kernel) == len(LARGE)
