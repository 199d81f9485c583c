"""Streams of a session: what `trionet.abc.Stream` asks beyond trio's contract."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.mux.support import clog, receive_all, sessions


async def test_nothing_is_sent_at_once_also_where_no_room_is_left() -> None:
    async with sessions() as pair:
        near, _far = await pair.streams()
        await clog(near)

        with trio.fail_after(1):
            await near.send_all(b"")


@pytest.mark.parametrize("kept", [b"", b"a", bytearray(b"abc")])
async def test_any_buffer_is_sent_though_others_wait(kept: bytes) -> None:
    async with sessions() as pair, trio.open_nursery() as nursery:
        near, far = await pair.streams()
        await near.send_all(bytes(262144))

        for piece in (kept, kept, memoryview(b"a-b-c-")[::2], memoryview(b"d-")[::2]):
            await near.send_all(piece)
        await near.send_eof()
        nursery.start_soon(near.receive_some)
        await wait_all_tasks_blocked()

        assert (await receive_all(far))[262144:] == bytes(kept) * 2 + b"abcd"
        await far.aclose()
