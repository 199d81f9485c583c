"""Answers that are ready, and requests that are known by their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

import trionet
from examples.httpd import Settings, open_application
from examples.httpd.ready import MAX_HEAD, MAX_READY, MAX_READY_TARGET, ReadyAnswers
from examples.httpd.requests import Request
from examples.httpd.responses import Answer, Prepared
from tests.examples.httpd.support import ResponseReader, get, receive_all, serving

if TYPE_CHECKING:
    from pathlib import Path


def kept() -> tuple[Request, Prepared]:
    request = Request(b"GET", b"/", "1.1", {}, True)
    return request, Prepared(Answer(200, b"", b"body"), 1.0)


def test_past_the_bound_all_are_forgotten_and_the_newest_is_there() -> None:
    ready = ReadyAnswers()
    request, prepared = kept()
    for n in range(MAX_READY + 1):
        ready.keep(b"/%d" % n, prepared)
        for _ in range(2):
            ready.remember(b"GET /%d HTTP/1.1\r\n\r\n" % n, request, prepared)

    assert ready.find(b"/0") is None
    assert ready.find(b"/%d" % MAX_READY) is prepared
    assert ready.recall(b"GET /0 HTTP/1.1\r\n\r\n") is None
    assert ready.recall(b"GET /%d HTTP/1.1\r\n\r\n" % MAX_READY) == (request, prepared)


def test_what_is_long_or_goes_on_behind_the_empty_line_is_not_kept() -> None:
    ready = ReadyAnswers()
    request, prepared = kept()
    longest = b"x" * (MAX_HEAD - 4) + b"\r\n\r\n"
    for head in (longest, b"x" + longest, b"GET / HTTP/1.1\r\n\r\nGE", b"GET / HTTP/1.1\r\n"):
        for _ in range(2):
            ready.remember(head, request, prepared)
    ready.keep(b"x" * (MAX_READY_TARGET + 1), prepared)

    assert ready.recall(longest) == (request, prepared)
    assert ready.recall(b"x" + longest) is None
    assert ready.recall(b"GET / HTTP/1.1\r\n\r\nGE") is None
    assert ready.recall(b"GET / HTTP/1.1\r\n") is None
    assert ready.find(b"x" * (MAX_READY_TARGET + 1)) is None


def test_a_head_is_kept_when_it_comes_again_and_many_others_may_come_between() -> None:
    ready = ReadyAnswers()
    request, prepared = kept()
    head = b"GET / HTTP/1.1\r\n\r\n"
    ready.remember(head, request, prepared)
    assert ready.recall(head) is None
    for n in range(MAX_READY - 1):
        ready.remember(b"GET /%d HTTP/1.1\r\n\r\n" % n, request, prepared)

    ready.remember(head, request, prepared)
    assert ready.recall(head) == (request, prepared)
    # So many that came once are forgotten, and do not add up.
    for n in range(3 * MAX_READY):
        ready.remember(b"GET /other/%d HTTP/1.1\r\n\r\n" % n, request, prepared)
    assert len(ready._seen) <= MAX_READY


def test_an_answer_that_is_let_go_of_is_found_nowhere() -> None:
    ready = ReadyAnswers()
    request, prepared = kept()
    _, other = kept()
    for target, one in ((b"/a", prepared), (b"/b", other), (b"/c", prepared)):
        ready.keep(target, one)
        for _ in range(2):
            ready.remember(target + b"\r\n\r\n", request, one)

    ready.forget(prepared)

    assert [ready.find(t) for t in (b"/a", b"/b", b"/c")] == [None, other, None]
    assert ready.recall(b"/a\r\n\r\n") is None
    assert ready.recall(b"/b\r\n\r\n") == (request, other)


async def test_a_request_that_is_known_is_answered_and_logged_as_before(root: Path) -> None:
    lines: list[str] = []
    async with serving(root, write_log=lines.append) as site, await site.dial() as stream:
        answers = ResponseReader(stream)
        for _ in range(5):
            await stream.send_all(get("/a.txt"))
            assert (await answers.next()).body == b"0123456789"
        # Asked in other words, by many at once, and in pieces: each goes its own way.
        for words in (get("/a.txt", "Range: bytes=2-3"), get("/a.txt", "X: y"), get("/a.txt")):
            await stream.send_all(words)
        await stream.send_all(get("/a.txt")[:9])
        await stream.send_all(get("/a.txt")[9:])
        bodies = [(await answers.next()).body for _ in range(4)]

    assert bodies == [b"23", b"0123456789", b"0123456789", b"0123456789"]
    text = "".join(lines)
    assert text.count('"GET /a.txt HTTP/1.1" 200 10\n') == 8
    assert text.count('"GET /a.txt HTTP/1.1" 206 2\n') == 1


async def test_bytes_that_begin_as_a_known_request_does_not_end_there(root: Path) -> None:
    known = get("/a.txt")
    async with serving(root) as site, await site.dial() as stream:
        answers = ResponseReader(stream)
        for _ in range(4):
            await stream.send_all(known)
            await answers.next()
        # The middle of a head is no request, whatever it looks like.
        await stream.send_all(b"GET /bytes/3 HTTP/1.1\r\nX: ")
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(known)
        answer = await answers.next()

    assert answer.body == b' !"'


@pytest.mark.parametrize("times", range(1, 6))
async def test_a_known_request_to_close_closes(root: Path, times: int) -> None:
    async with serving(root) as site:
        for _ in range(times):
            received = await site.ask_all(get("/a.txt", "Connection: close"))

        assert received.count(b"connection: close\r\n") == 1
        assert received.endswith(b"0123456789")


async def test_a_file_that_changes_is_not_known_any_more(
    root: Path, mock_clock: trio.testing.MockClock
) -> None:
    settings = Settings(check_interval=5)
    async with serving(root, settings=settings) as site, await site.dial() as stream:
        answers = ResponseReader(stream)
        for _ in range(4):
            await stream.send_all(get("/a.txt"))
            assert (await answers.next()).body == b"0123456789"
        (root / "a.txt").write_bytes(b"changed")
        await stream.send_all(get("/a.txt"))
        assert (await answers.next()).body == b"0123456789"
        mock_clock.jump(5)
        for _ in range(4):
            await stream.send_all(get("/a.txt"))
            assert (await answers.next()).body == b"changed"


async def test_a_known_request_met_by_a_drain_is_answered_as_the_last(root: Path) -> None:
    async with open_application(root) as application, trio.open_nursery() as nursery:
        listeners = await trionet.listen("tcp", "127.0.0.1:0")
        server = trionet.Server(application.handle)
        await nursery.start(server.serve, listeners)
        async with await trionet.dial("tcp", str(listeners[0].address)) as stream:
            assert isinstance(stream, trionet.SocketStream)
            answers = ResponseReader(stream)
            for _ in range(4):
                await stream.send_all(get("/bytes/5"))
                await answers.next()
            # Both before the connection's task has its turn.
            assert stream.send_nowait(get("/bytes/5")) == len(get("/bytes/5"))
            server.shutdown()
            rest = await receive_all(stream)

    assert b"connection: close\r\n" in rest
    assert rest.endswith(b' !"#$')


async def test_the_first_request_of_a_connection_is_answered_without_a_wait(root: Path) -> None:
    class Counter(trio.abc.Instrument):
        steps = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.steps += "_converse" in task.name

    counter = Counter()
    closing = get("/bytes/5", "Connection: close")
    async with open_application(root) as application, trio.open_nursery() as nursery:
        listeners = await trionet.listen("tcp", "127.0.0.1:0")
        server = trionet.Server(application.handle)
        await nursery.start(server.serve, listeners)
        for _ in range(4):
            stream = await trionet.dial("tcp", str(listeners[0].address))
            # Sent before the server has had a turn to accept it.
            trio.lowlevel.add_instrument(counter)
            counter.steps = 0
            assert isinstance(stream, trionet.SocketStream)
            stream.socket.send(closing)
            assert (await receive_all(stream)).endswith(b' !"#$')
            trio.lowlevel.remove_instrument(counter)
            await stream.aclose()
        server.shutdown()

    # Counted at all, the task has one step to answer in and perhaps one to close in.
    assert 1 <= counter.steps <= 2
