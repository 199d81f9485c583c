"""How much is said at once, and in which order."""

from __future__ import annotations

from tests.yamux.support import RST, WINDOW, Endpoint, update
from trionet.yamux import MuxConfig, Stream

BATCH = 64 * 1024
TURN = 16 * 1024
HEADER = 12


def client(streams: int) -> tuple[Endpoint, list[Stream]]:
    """A client whose streams have been announced, each with credit for more than it will send."""
    end = Endpoint(MuxConfig(keepalive=None), role="client")
    opened = [end.session.open() for _ in range(streams)]
    end.pull()
    end.feed(*(update(stream.id, 0, 1 << 24) for stream in opened))
    return end, opened


def batch(end: Endpoint) -> int:
    """Pull one batch; return how many bytes it has."""
    return len(end.session.data_to_send())


def test_a_stream_alone_fills_its_batches() -> None:
    end, (bulk,) = client(1)
    end.session.put(bulk, bytes(1 << 20))

    assert [batch(end) for _ in range(3)] == [HEADER + BATCH] * 3


def test_beside_short_messages_a_batch_is_one_turn_of_each_stream() -> None:
    end, (bulk, chat) = client(2)
    end.session.put(bulk, bytes(1 << 22))
    batch(end)
    end.session.put(chat, b"hello")

    sizes = [batch(end) for _ in range(20)]

    # What the message leaves of its turn goes to the other one.
    assert sizes[0] == 3 * HEADER + 2 * TURN + len(b"hello")
    assert sizes[1:16] == [HEADER + TURN] * 15
    # Nothing short has come since.
    assert sizes[16:] == [HEADER + BATCH] * 4


def test_a_stream_that_sends_heads_and_bodies_is_no_company_to_itself() -> None:
    end, (stream,) = client(1)
    end.session.put(stream, bytes(BATCH))
    batch(end)

    sizes = []
    for _ in range(4):
        end.session.put(stream, b"head")
        batch(end)
        end.session.lend(stream, memoryview(bytes(BATCH)))
        sizes.append(batch(end))

    assert sizes == [HEADER + BATCH] * 4


def test_streams_with_much_to_send_share_whole_batches() -> None:
    end, streams = client(4)
    for stream in streams:
        end.session.put(stream, bytes(1 << 20))

    assert [batch(end) for _ in range(3)] == [4 * HEADER + BATCH] * 3


def test_new_streams_with_data_leave_half_of_each_batch_to_the_others() -> None:
    end, (bulk,) = client(1)
    end.session.put(bulk, bytes(1 << 22))
    batch(end)
    before = bulk.sent

    for _ in range(8):
        for _ in range(16):
            end.session.put(end.session.open(), bytes(4096))
        assert batch(end) <= BATCH + 32 * HEADER + 4096

    assert bulk.sent - before >= 3 * TURN


def test_a_stream_that_is_over_is_remembered_by_nobody() -> None:
    end, (bulk, _) = client(2)
    end.session.put(bulk, bytes(BATCH))
    batch(end)

    end.feed(update(bulk.id, RST))

    assert end.session.output._bulk is None


def test_control_goes_before_data_and_a_ping_before_both() -> None:
    end, (bulk, other) = client(2)
    end.session.put(bulk, bytes(WINDOW))
    end.session.finish(other)
    end.session.ping()

    assert [str(frame) for frame in end.pull()][:3] == [
        "PING SYN stream 0 length 1",
        f"WINDOW_UPDATE FIN stream {other.id} length 0",
        f"DATA - stream {bulk.id} length {BATCH}",
    ]
