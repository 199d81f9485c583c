"""Static files, as a client sees them."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio

import trionet
from examples.httpd import Settings, open_application
from examples.httpd.files import Folder, IsDirectory, decode_path
from tests.examples.httpd.support import ResponseReader, get, receive_all, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LARGE = bytes(range(256)) * 1024


async def test_a_file_comes_with_its_type_and_validators(root: Path) -> None:
    async with serving(root) as site:
        answer = await site.ask(get("/a.txt"))

    assert (answer.status, answer.body) == (200, b"0123456789")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-length"] == "10"
    assert answer.headers["last-modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["etag"].startswith('"')
    assert answer.headers["date"].endswith(" GMT")


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/", b"<h1>front</h1>"),
        ("/index.html", b"<h1>front</h1>"),
        ("/sub/", b"<h1>sub</h1>"),
        ("/nothing.txt", b""),
        ("/large.bin", LARGE),
        ("/a.txt?v=1&/../x", b"0123456789"),
        ("/%61.txt", b"0123456789"),
        ("/with%20space%20&%20more.txt", b"space"),
        ("/inside.txt", b"0123456789"),
        ("/.well-known/security.txt", b"contact"),
        ("http://site/a.txt", b"0123456789"),
        ("http://site", b"<h1>front</h1>"),
        ("HTTP://elsewhere:80/a.txt?x", b"0123456789"),
    ],
)
async def test_targets_name_files(root: Path, target: str, body: bytes) -> None:
    async with serving(root) as site:
        first = await site.ask(get(target))
        again = await site.ask(get(target))

    assert (first.status, first.body) == (200, body)
    assert (again.status, again.body) == (200, body)


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.txt",
        "/sub/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E%2Fsecret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/....//secret.txt",
        "/%252e%252e/secret.txt",
        "/sub/..",
        "/sub/%2e%2e/a.txt",
        "/./a.txt",
        "//a.txt",
        "//etc/passwd",
        "/sub//index.html",
        "/%2fetc/passwd",
        "/a.txt%00.html",
        "/%00",
        "/a.txt/",
        "/a.txt/x",
        "/outside.txt",
        "/outside/secret.txt",
        "/sibling/a.txt",
        "/loop",
        "/fifo",
        "/.hidden",
        "/%2ehidden",
        "/missing",
        "/empty/",
        "/" + "x" * 300,
        "/" + "x/" * 3000,
        "/%ff%fe",
        "/a.txt#fragment",
        "file:///etc/passwd",
        "http://site/../secret.txt",
        "http://site/%2e%2e/secret.txt",
        "*",
    ],
)
async def test_nothing_outside_the_root_is_served(root: Path, target: str) -> None:
    async with serving(root) as site:
        answer = await site.ask(get(target))

    assert answer.status in {400, 404}
    assert b"secret" not in answer.body
    assert b"root:" not in answer.body


def test_a_link_swapped_in_after_the_look_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(root, 65536)
    look = os.path.realpath

    def swap_after(path: bytes, *, strict: bool = False) -> bytes:
        found = look(path, strict=strict)
        (root / "sub" / "index.html").unlink()
        (root / "sub").rmdir()
        (root / "sub").symlink_to(root.parent)
        (root.parent / "index.html").write_bytes(b"secret")
        return found

    monkeypatch.setattr("examples.httpd.files.os.path.realpath", swap_after)

    with pytest.raises(FileNotFoundError):
        folder.open((b"sub", b"index.html"))


def test_no_descriptor_is_left_open_by_any_path(root: Path) -> None:
    folder = Folder(root, 65536)
    before = len(os.listdir("/proc/self/fd"))

    for target in (b"/a.txt", b"/sub/", b"/sub", b"/fifo", b"/loop", b"/outside.txt", b"/missing"):
        names = decode_path(target)
        assert names is not None
        with suppress(OSError, IsDirectory):
            file = folder.open(names)
            assert file.descriptor == -1
            assert folder.stamp(names) == file.stamp

    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_directory_without_its_slash_redirects(root: Path) -> None:
    async with serving(root) as site:
        answer = await site.ask(get("/sub?x"))

    assert answer.status == 301
    assert answer.headers["location"] == "/sub/"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
async def test_a_file_that_may_not_be_read_is_forbidden(root: Path) -> None:
    (root / "a.txt").chmod(0)

    async with serving(root) as site:
        answer = await site.ask(get("/a.txt"))

    assert answer.status == 403


async def test_head_is_get_without_the_body(root: Path) -> None:
    async with serving(root) as site:
        for target in ("/a.txt", "/large.bin", "/missing", "/bytes/5"):
            whole = await site.ask_all(get(target, "Connection: close"))
            head = await site.ask_all(get(target, "Connection: close", method="HEAD"))

            assert head.endswith(b"\r\n\r\n")
            # The Date may have moved on.
            wanted = whole.partition(b"\r\n\r\n")[0].split(b"\r\n")
            assert head[:-4].split(b"\r\n")[4:] == wanted[4:]


async def test_conditional_requests_are_answered_by_304(root: Path) -> None:
    async with serving(root) as site:
        for target in ("/a.txt", "/large.bin"):
            etag = (await site.ask(get(target))).headers["etag"]
            same = await site.ask(get(target, f"If-None-Match: {etag}"))
            other = await site.ask(get(target, 'If-None-Match: "other"'))
            failed = await site.ask(get(target, 'If-Match: "other"'))

            assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)
            assert "content-length" not in same.headers
            assert other.status == 200
            assert failed.status == 412


async def test_one_range_is_a_206(root: Path) -> None:
    async with serving(root) as site:
        small = await site.ask(get("/a.txt", "Range: bytes=2-4"))
        large = await site.ask(get("/large.bin", "Range: bytes=-300000"))
        tail = await site.ask(get("/large.bin", "Range: bytes=200000-"))
        head = await site.ask_all(
            get("/a.txt", "Range: bytes=2-4", "Connection: close", method="HEAD")
        )

    assert (small.status, small.body) == (206, b"234")
    assert small.headers["content-range"] == "bytes 2-4/10"
    assert (large.status, large.body) == (206, LARGE)
    assert (tail.status, tail.body) == (206, LARGE[200000:])
    assert tail.headers["content-range"] == f"bytes 200000-{len(LARGE) - 1}/{len(LARGE)}"
    # Range is for GET alone.
    assert head.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("target", ["/a.txt", "/large.bin"])
async def test_several_ranges_come_in_parts(root: Path, target: str) -> None:
    whole = (root / target[1:]).read_bytes()
    async with serving(root) as site:
        answer = await site.ask(get(target, "Range: bytes=7-8,0-1"))

    kind, _, boundary = answer.headers["content-type"].partition("; boundary=")
    assert (answer.status, kind) == (206, "multipart/byteranges")
    assert int(answer.headers["content-length"]) == len(answer.body)
    parts = answer.body.split(b"--" + boundary.encode())
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    found = [part.partition(b"\r\n\r\n") for part in parts[1:-1]]
    assert [content for _, _, content in found] == [whole[7:9] + b"\r\n", whole[0:2] + b"\r\n"]
    assert b"content-range: bytes 7-8/%d" % len(whole) in found[0][0]


async def test_a_range_beyond_the_file_is_416(root: Path) -> None:
    async with serving(root) as site:
        answer = await site.ask(get("/a.txt", "Range: bytes=10-"))
        empty = await site.ask(get("/nothing.txt", "Range: bytes=0-"))

    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */10")
    assert (empty.status, empty.headers["content-range"]) == (416, "bytes */0")


async def test_if_range_gives_the_whole_of_another_version(root: Path) -> None:
    async with serving(root) as site:
        etag = (await site.ask(get("/a.txt"))).headers["etag"]
        same = await site.ask(get("/a.txt", "Range: bytes=0-0", f"If-Range: {etag}"))
        other = await site.ask(get("/a.txt", "Range: bytes=0-0", 'If-Range: "other"'))

    assert (same.status, same.body) == (206, b"0")
    assert (other.status, other.body) == (200, b"0123456789")


async def test_a_cached_file_is_looked_at_once_a_second(
    root: Path, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    stamp = Folder.stamp

    def count(self: Folder, names: tuple[bytes, ...]) -> tuple[int, ...] | None:
        looks.append(names)
        return stamp(self, names)

    monkeypatch.setattr(Folder, "stamp", count)
    async with serving(root) as site:
        for _ in range(3):
            await site.ask(get("/a.txt"))
        (root / "a.txt").write_bytes(b"changed")
        mock_clock.jump(0.9)
        before = await site.ask(get("/a.txt"))
        mock_clock.jump(0.2)
        after = await site.ask(get("/a.txt"))
        (root / "a.txt").unlink()
        mock_clock.jump(1.1)
        gone = await site.ask(get("/a.txt"))

    assert before.body == b"0123456789"
    assert after.body == b"changed"
    assert after.headers["etag"] != before.headers["etag"]
    assert gone.status == 404
    assert len(looks) == 2


async def test_the_cache_forgets_the_oldest_when_it_is_full(root: Path) -> None:
    settings = Settings(cache_size=5000)
    async with serving(root, settings=settings) as site:
        for _ in range(2):
            for target in ("/a.txt", "/", "/sub/", "/nothing.txt"):
                assert (await site.ask(get(target))).status == 200


async def test_a_file_that_shrinks_while_it_is_sent_ends_the_connection(root: Path) -> None:
    with (root / "large.bin").open("wb") as file:
        file.truncate(5_000_000)
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(get("/large.bin"))
        received = bytes(await stream.receive_some())
        os.truncate(root / "large.bin", 1_000_000)
        received += await receive_all(stream)

    assert b"content-length: 5000000\r\n" in received
    assert len(received) < 2_000_000


async def test_a_download_that_is_given_up_leaves_no_descriptor(root: Path) -> None:
    with (root / "large.bin").open("wb") as file:
        file.truncate(5_000_000)
    async with serving(root) as site:
        await site.ask(get("/a.txt"))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with await site.dial() as stream:
                await stream.send_all(get("/large.bin"))
                await stream.receive_some(1)
        while site.server.statistics().active:
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.001)

        assert len(os.listdir("/proc/self/fd")) == before


async def test_reading_goes_on_after_large_files(root: Path) -> None:
    async with serving(root) as site, await site.dial() as stream:
        await stream.send_all(get("/large.bin") + get("/a.txt") + get("/large.bin"))
        answers = ResponseReader(stream)

        assert (await answers.next()).body == LARGE
        assert (await answers.next()).body == b"0123456789"
        assert (await answers.next()).body == LARGE


async def test_what_is_no_regular_file_is_not_found(root: Path) -> None:
    # A fifo is there already; opening it must not wait for a writer either.
    path = root / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(path))
        async with serving(root) as site:
            with trio.fail_after(5):
                assert (await site.ask(get("/fifo"))).status == 404
                assert (await site.ask(get("/socket"))).status == 404
                assert (await site.ask(get("/socket/"))).status == 404


async def test_all_that_is_kept_of_files_stays_within_the_cache_size(tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / f"{n}.bin").write_bytes(bytes([n]) * 10_000)
    settings = Settings(cache_size=100_000)
    async with (
        open_application(tmp_path, settings=settings) as application,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(trionet.serve, application.handle, "memb", "site")
        async with await trionet.dial("memb", "site") as stream:
            answers = ResponseReader(stream)
            # Each under two targets, and twice, so that its bytes for the wire are made, too.
            for n in [*range(40), *range(40)]:
                for target in (f"/{n}.bin", f"/{n}.bin?again", f"/{n}.bin"):
                    await stream.send_all(get(target))
                    assert (await answers.next()).body == bytes([n]) * 10_000
        targets = [f"/{n}.bin{end}".encode() for n in range(40) for end in ("", "?again")]
        found = [one for one in map(application.ready.find, targets) if one is not None]
        kept = {id(one): one for one in found}.values()
        heads = [application.ready.recall(get(target.decode())) for target in targets]
        wires = [one.wire(0, close=close) for one in kept for close in (False, True)]
        held = sum(map(len, wires)) + sum(len(one.body) for one in kept)
        nursery.cancel_scope.cancel()

    assert 0 < held <= 100_000
    assert 0 < len(found) <= 2 * 3
    assert 0 < len([one for one in heads if one is not None]) <= 2 * 3


async def test_a_file_the_whole_cache_could_not_hold_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(bytes(10_000))
    (tmp_path / "small.bin").write_bytes(bytes(10))
    async with open_application(tmp_path, settings=Settings(cache_size=10_000)) as application:
        async with trio.open_nursery() as nursery:
            await nursery.start(trionet.serve, application.handle, "memb", "site")
            async with await trionet.dial("memb", "site") as stream:
                answers = ResponseReader(stream)
                for target in ("/small.bin", "/large.bin"):
                    await stream.send_all(get(target))
                    assert (await answers.next()).status == 200
            nursery.cancel_scope.cancel()

        # And the other was not driven out for it.
        assert application.ready.find(b"/small.bin") is not None
        assert application.ready.find(b"/large.bin") is None


async def test_targets_that_are_kept_ready_are_short(root: Path) -> None:
    async with open_application(root) as application, trio.open_nursery() as nursery:
        await nursery.start(trionet.serve, application.handle, "memb", "site")
        async with await trionet.dial("memb", "site") as stream:
            answers = ResponseReader(stream)
            for size in (10, 10_000):
                await stream.send_all(get("/a.txt?" + "x" * size))
                assert (await answers.next()).body == b"0123456789"
        nursery.cancel_scope.cancel()

        assert application.ready.find(b"/a.txt?" + b"x" * 10) is not None
        assert application.ready.find(b"/a.txt?" + b"x" * 10_000) is None


async def test_no_file_is_touched_on_the_event_loops_thread(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []

    def recorded(name: str) -> Callable[..., Any]:
        function = getattr(os, name)

        def record(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, threading.get_ident()))
            return function(*args, **kwargs)

        return record

    settings = Settings(check_interval=0.01)
    async with serving(root, settings=settings) as site:
        # Not fstat: of an open file it touches no disk.
        for name in ("open", "read", "pread", "lstat"):
            monkeypatch.setattr(os, name, recorded(name))
        for target in ("/a.txt", "/", "/sub", "/large.bin", "/missing", "/fifo"):
            await site.ask(get(target))
        # What is kept is looked at again, and what has changed is read again.
        (root / "a.txt").write_bytes(b"changed")
        await trio.sleep(0.02)
        assert (await site.ask(get("/a.txt"))).body == b"changed"
        assert (await site.ask(get("/large.bin", "Range: bytes=1-2,5-6"))).status == 206
        monkeypatch.undo()

    assert {name for name, _ in seen} >= {"open", "read", "pread"}
    assert threading.get_ident() not in {thread for _, thread in seen}
