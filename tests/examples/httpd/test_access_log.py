"""The access log."""

from __future__ import annotations

import errno
import re
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from examples.httpd.access_log import DELAY, MAX_WAITING, AccessLog, escape
from tests.examples.httpd.support import get, serving

if TYPE_CHECKING:
    from pathlib import Path


async def test_each_answer_is_a_line_in_the_common_format(root: Path) -> None:
    lines: list[str] = []
    async with serving(root, write_log=lines.append) as site:
        await site.ask_all(get("/a.txt") + get("/a.txt") + get("/missing", "Connection: close"))
        await site.ask_all(get("/large.bin", "Connection: close"))
        await site.ask_all(get("/a.txt", "If-None-Match: *", "Connection: close"))
        await site.ask_all(get("/a.txt", "Connection: close", method="HEAD"))
        await site.ask_all(b"nonsense\r\n\r\n")

    log = "".join(lines)
    date = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000\]"
    found = re.findall(rf'^\S+ - - {date} "([^"]*)" (\d+) (\S+)$', log, re.MULTILINE)
    assert found == [
        ("GET /a.txt HTTP/1.1", "200", "10"),
        ("GET /a.txt HTTP/1.1", "200", "10"),
        ("GET /missing HTTP/1.1", "404", "14"),
        ("GET /large.bin HTTP/1.1", "200", "262144"),
        ("GET /a.txt HTTP/1.1", "304", "-"),
        ("HEAD /a.txt HTTP/1.1", "200", "0"),
        ("-", "400", "34"),
    ]
    assert len(log.splitlines()) == len(found)


def test_what_a_client_sends_cannot_break_out_of_its_line() -> None:
    assert escape(b'a" 200 1\n\x1b[31m\\x\xff') == r"a\x22 200 1\x0a\x1b[31m\x5cx\xff"


async def test_quotes_in_a_target_are_escaped(root: Path) -> None:
    lines: list[str] = []
    async with serving(root, write_log=lines.append) as site:
        await site.ask(get('/"\\'))

    assert r'"GET /\x22\x5c HTTP/1.1" 404' in "".join(lines)


async def test_lines_are_not_lost_if_cancelled_before_a_thread_was_free(
    autojump_clock: trio.testing.MockClock,
) -> None:
    written: list[str] = []
    log = AccessLog(written.append)
    limiter = trio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    async with trio.open_nursery() as nursery, limiter:
        nursery.start_soon(log.run)
        log.add("a", "first", 200, 1)
        await trio.sleep(DELAY * 2)
        log.add("a", "second", 200, 1)
        nursery.cancel_scope.cancel()
    log.flush()

    text = "".join(written)
    assert text.count("\n") == 2
    assert text.index("first") < text.index("second")


async def test_a_line_whose_writing_began_is_not_written_again(root: Path) -> None:
    written: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def write(text: str) -> None:
        begun.set()
        go_on.wait(10)
        written.append(text)

    log = AccessLog(write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.add("a", "first", 200, 1)
        await trio.to_thread.run_sync(begun.wait)
        nursery.cancel_scope.cancel()
        go_on.set()
    log.flush()

    assert len(written) == 1


async def test_a_log_that_cannot_be_written_ends_the_logging_only(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts: list[str] = []

    def write(text: str) -> None:
        attempts.append(text)
        raise BrokenPipeError(errno.EPIPE, "the reader has gone")

    async with serving(root, write_log=write) as site:
        assert (await site.ask(get("/a.txt"))).status == 200
        await trio.sleep(DELAY * 3)
        assert (await site.ask(get("/a.txt"))).status == 200
        await trio.sleep(DELAY * 3)
        assert (await site.ask(get("/a.txt"))).status == 200

    assert len(attempts) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "the reader has gone" in told


async def test_a_slow_log_holds_up_nobody_and_its_losses_are_counted(root: Path) -> None:
    written: list[str] = []
    slow = threading.Event()

    def write(text: str) -> None:
        slow.wait(10)
        written.append(text)

    log = AccessLog(write)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        log.add("a", "first", 200, 1)
        await trio.sleep(DELAY * 3)
        for _ in range(MAX_WAITING + 7):
            log.add("a", "x", 200, 1)
        slow.set()
        nursery.cancel_scope.cancel()
    log.flush()

    assert "first" in written[0]
    assert "# 7 lines were dropped" in written[1]
    assert written[1].count("\n") == MAX_WAITING + 1
