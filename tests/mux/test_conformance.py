"""trio's own idea of a stream, for streams opened from either end over every carrier."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from trio.testing import check_half_closeable_stream

from tests.mux.support import CARRIERS, clog, sessions
from trionet._mux.session import MuxConfig

if TYPE_CHECKING:
    from trionet._mux.stream import MuxStream

# The suite abandons streams with their windows full; no need to wait for them long.
CONFIG = MuxConfig(close_timeout=0.05, keepalive=None)


@pytest.mark.parametrize("clogged", [False, True], ids=["", "clogged"])
@pytest.mark.parametrize("opener", ["client", "server"])
@pytest.mark.parametrize("carrier", CARRIERS)
async def test_streams_keep_trios_contract(carrier: str, opener: str, clogged: bool) -> None:
    async with AsyncExitStack() as stack, sessions(CARRIERS[carrier], CONFIG) as pair:

        async def make() -> tuple[MuxStream, MuxStream]:
            return await pair.streams(opener)

        async def make_clogged() -> tuple[MuxStream, MuxStream]:
            near, far = await make()
            await clog(near)
            await clog(far)
            return near, far

        await check_half_closeable_stream(make, make_clogged if clogged else None)
        await stack.aclose()
