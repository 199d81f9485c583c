"""The Redis example against a real server, which is restarted underneath it."""

from __future__ import annotations

import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio

import trionet
from examples.redis_pool import Connection, Redis, RedisError, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVER = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(SERVER is None, reason="redis-server is not installed")


def free_port() -> int:
    """Return a port that nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; leaving the block kills it, if that has not happened yet."""
    assert SERVER is not None
    process = subprocess.Popen(
        [SERVER, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@needs_redis
async def test_commands_and_their_replies(tmp_path: Path) -> None:
    port = free_port()
    with running(port, tmp_path):
        async with Redis(f"127.0.0.1:{port}") as redis:
            replies = await redis.run(
                ("SET", "name", b"a\r\nvalue"),
                ("GET", "name"),
                ("GET", "nothing"),
                ("RPUSH", "list", 1, 2),
                ("LRANGE", "list", 0, -1),
                ("GET",),
            )

    assert replies[:5] == [b"OK", b"a\r\nvalue", None, 2, [b"1", b"2"]]
    assert isinstance(replies[5], RedisError)


@needs_redis
async def test_a_restart_of_the_server_reaches_no_user(tmp_path: Path) -> None:
    port = free_port()
    done = [0] * 8
    enough = trio.Event()

    async def use(redis: Redis, number: int) -> None:
        while not enough.is_set():
            key, value = f"key {number}", str(done[number])
            replies = await redis.run(("SET", key, value), ("GET", key))
            assert replies == [b"OK", value.encode()]
            done[number] += 1
            await trio.sleep(0.002)

    async def all_go_on() -> None:
        goal = [count + 20 for count in done]
        while any(count < wanted for count, wanted in zip(done, goal, strict=True)):
            await trio.sleep(0.01)

    with trio.fail_after(30):
        async with Redis(f"127.0.0.1:{port}", max_size=4) as redis:
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(use, redis, number)
                # The first one is not even there when they begin; each next one replaces it.
                for _ in range(3):
                    await trio.sleep(0.1)
                    with running(port, tmp_path):
                        await all_go_on()
                with running(port, tmp_path):
                    await all_go_on()
                    enough.set()
                    while nursery.child_tasks:
                        await trio.sleep(0.01)
            now = redis.pool.statistics()

    assert now.connect_failures >= 1
    assert now.connected > 4
    assert now.timed_out == now.cancelled == 0


@needs_redis
async def test_idle_connections_are_gone_when_the_server_has_gone(tmp_path: Path) -> None:
    port = free_port()
    async with Redis(f"127.0.0.1:{port}", max_size=4, patience=1) as redis:
        with running(port, tmp_path):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(redis.run, ("PING",))
            assert redis.pool.statistics().idle == 4
        with trio.fail_after(5):
            while redis.pool.statistics().idle:
                await trio.sleep(0.001)

        with pytest.raises(trionet.PoolTimeoutError, match="connecting failed last with") as caught:
            await redis.run(("PING",))
        assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("cut", range(1, 40))
async def test_replies_may_come_in_pieces(cut: int) -> None:
    near, far = trionet.memory_stream_pair(1000)
    data = b"+OK\r\n:-7\r\n$4\r\na\r\nb\r\n*2\r\n$-1\r\n*-1\r\n-ERR no\r\n"
    await far.send_all(data[:cut])
    async with trio.open_nursery() as nursery:

        async def rest() -> None:
            await trio.lowlevel.checkpoint()
            await far.send_all(data[cut:])

        nursery.start_soon(rest)
        replies = await Connection(near).pipeline(*[("X",)] * 5)

    assert replies[:4] == [b"OK", -7, b"a\r\nb", [None, None]]
    assert str(replies[4]) == "ERR no"


async def test_what_is_not_resp_and_an_early_end_break_the_connection() -> None:
    for data in (b"HTTP/1.1 400\r\n", b"$10\r\nshort"):
        near, far = trionet.memory_stream_pair(1000)
        await far.send_all(data)
        await far.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await Connection(near).pipeline(("PING",))


def test_a_command_is_an_array_of_bulk_strings() -> None:
    assert encode(("SET", b"\r\n", 12)) == b"*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$2\r\n12\r\n"
