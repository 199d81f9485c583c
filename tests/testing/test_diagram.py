"""Sequence diagrams: who sent what to whom, as Mermaid's text and as a picture."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
import trio

from trionet.testing import Endpoint, Event, Link, Trace, VirtualNetwork
from trionet.testing.diagram import sequence_diagram, sequence_svg
from trionet.testing.flights import Flight, flights

SVG = "{http://www.w3.org/2000/svg}"

A, B = Endpoint("a", "10.0.0.1", 5000), Endpoint("b", "10.0.0.2", 80)


def event(
    what: str, kind: str, source: Endpoint = A, destination: Endpoint = B, **changes: Any
) -> Event:
    values: dict[str, Any] = {
        "time": 0.0,
        "protocol": "tcp",
        "connection": 1,
        "index": 0,
        "sequence": 0,
        "acknowledgement": 0,
        "window": 0,
        "payload": b"",
        "attempt": 0,
        "note": "",
    }
    return Event(what=what, kind=kind, source=source, destination=destination, **(values | changes))


NOWHERE = Endpoint("", "", 0)

STORY = [
    event("sent", "SYN"),
    event("delivered", "SYN", time=1.0),
    event("sent", "SYN-ACK", B, A, time=1.0),
    event("dropped", "SYN-ACK", B, A, time=1.0, note="loss"),
    event("fault", "", NOWHERE, NOWHERE, protocol="", time=1.5, note="partition of a; b <all>"),
    event("sent", "SYN-ACK", B, A, time=2.0, attempt=1),
    event("delivered", "SYN-ACK", B, A, time=3.0, attempt=1),
    event("sent", "ACK", time=3.0),
    event("delivered", "ACK", time=4.0),
    event("sent", "DATA", time=3.0, payload=b"hello"),
    event("held", "DATA", time=3.0, payload=b"hello"),
    event("sent", "QUERY", A, Endpoint("dns", "", 0), protocol="dns", connection=0, payload=b"b"),
]


def test_each_thing_that_was_sent_is_put_together_with_what_became_of_it() -> None:
    found = flights(STORY)

    syn, lost, fault, again, ack, data, query = found
    assert fault is STORY[4]
    assert isinstance(syn, Flight)
    assert (syn.arrived, syn.lost, syn.notes) == (1.0, None, [])
    assert isinstance(lost, Flight)
    assert (lost.arrived, lost.lost, lost.notes) == (None, "loss", ["dropped: loss"])
    assert isinstance(again, Flight)
    assert again.arrived == 3.0
    assert isinstance(ack, Flight)
    assert ack.arrived == 4.0
    assert isinstance(data, Flight)
    assert (data.arrived, data.lost, data.notes) == (None, None, ["held"])
    assert isinstance(query, Flight)
    assert query.arrived == 0.0


def test_equal_datagrams_arrive_in_the_order_they_left() -> None:
    datagram: dict[str, Any] = {"protocol": "udp", "connection": 0, "payload": b"same"}
    first, second = flights(
        [
            event("sent", "DATAGRAM", time=0.0, **datagram),
            event("sent", "DATAGRAM", time=1.0, **datagram),
            event("delivered", "DATAGRAM", time=5.0, **datagram),
            event("dropped", "DATAGRAM", time=6.0, **datagram),
        ]
    )
    assert isinstance(first, Flight)
    assert isinstance(second, Flight)
    assert (first.arrived, first.lost) == (5.0, None)
    assert (second.arrived, second.lost) == (None, "lost")


def test_what_was_sent_before_the_trace_begins_is_known_by_its_arrival() -> None:
    (only,) = flights([event("delivered", "DATA", time=2.0)])
    assert isinstance(only, Flight)
    assert only.arrived == 2.0


def test_mermaid_is_told_who_sent_what_to_whom() -> None:
    assert sequence_diagram(STORY).splitlines() == [
        "sequenceDiagram",
        "    participant h0 as a",
        "    participant h1 as b",
        "    participant h2 as dns",
        "    h0->>h1: 0 to 1: SYN to port 80 (tcp 1)",
        "    h1-xh0: 1: SYN-ACK (tcp 1), dropped: loss",
        "    Note over h0,h2: 1.5 partition of a#59; b #60;all#62;",
        "    h1->>h0: 2 to 3: SYN-ACK (tcp 1) again, attempt 2",
        "    h0-)h1: 3: DATA 5 bytes (tcp 1), held",
        "    h0->>h2: 0: QUERY b",
    ]


def test_bare_acknowledgements_are_drawn_on_demand() -> None:
    assert ": ACK" not in sequence_diagram(STORY)
    assert "    h0->>h1: 3 to 4: ACK (tcp 1)" in sequence_diagram(STORY, acks=True).splitlines()


def test_only_the_last_is_drawn_and_what_is_left_out_is_counted() -> None:
    lines = sequence_diagram(STORY, last=2).splitlines()
    assert lines[4:] == [
        "    Note over h0,h2: 4 earlier left out",
        "    h0-)h1: 3: DATA 5 bytes (tcp 1), held",
        "    h0->>h2: 0: QUERY b",
    ]
    assert len(sequence_diagram(STORY * 50, last=0).splitlines()) > 300


@pytest.mark.parametrize("draw", [sequence_diagram, sequence_svg])
@pytest.mark.parametrize(("last", "error"), [(-1, ValueError), ("5", TypeError), (True, TypeError)])
def test_a_wrong_number_is_named(draw: Any, last: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"last must .*{last!r}"):
        draw(STORY, last=last)


def test_an_empty_trace_is_an_empty_picture() -> None:
    assert sequence_diagram(Trace()) == "sequenceDiagram\n"
    assert ElementTree.fromstring(sequence_svg(Trace())).tag == f"{SVG}svg"
    fault = event("fault", "", NOWHERE, NOWHERE, protocol="", note="all is lost")
    assert sequence_diagram([fault]) == "sequenceDiagram\n"
    assert "all is lost" in sequence_svg([fault])


def test_the_picture_slants_from_when_it_was_sent_to_when_it_arrived() -> None:
    picture = ElementTree.fromstring(sequence_svg(STORY))

    groups = picture.findall(f"{SVG}g")
    titles = [group.findtext(f"{SVG}title") for group in groups]
    assert titles == [str(one) for one in STORY if one.what == "sent" and one.kind != "ACK"]
    syn, lost, again, data, query = (group.find(f"{SVG}line") for group in groups)
    assert syn is not None
    assert lost is not None
    assert again is not None
    assert data is not None
    assert query is not None

    def way(line: ElementTree.Element) -> list[int]:
        return [int(line.attrib[name]) for name in ("x1", "y1", "x2", "y2")]

    a, b = way(syn)[0], way(syn)[2]
    assert a < b
    assert way(syn)[1] < way(syn)[3]
    # Lost: it does not reach the other side, and has a cross there.
    assert (lost.attrib["class"], way(lost)[0]) == ("x", b)
    assert a < way(lost)[2] < b
    assert len(groups[1].findall(f"{SVG}path")) == 1
    assert way(again)[::2] == [b, a]
    assert way(again)[1] < way(again)[3]
    # Held: on its way.
    assert a < way(data)[2] < b
    # The dns stands to the right of both, and its question takes no time.
    assert way(query)[1] == way(query)[3]
    assert way(query)[2] > b
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert "partition of a; b <all>" in texts
    assert [text for text in texts if text in {"0", "1", "1.5", "2", "3"}] == [
        "0",
        "1",
        "1.5",
        "2",
        "3",
    ]


def test_a_host_that_talks_to_itself_is_drawn_beside_its_line() -> None:
    story = [
        event("sent", "SYN", A, A),
        event("delivered", "SYN", A, A),
    ]
    picture = ElementTree.fromstring(sequence_svg(story))
    assert picture.find(f"{SVG}g/{SVG}path") is not None
    assert "    h0->>h0: 0: SYN to port 5000 (tcp 1)" in sequence_diagram(story)


def test_names_and_notes_cannot_break_out_of_the_picture() -> None:
    bad = Endpoint("</svg><script>;#\n", "10.0.0.3", 1)
    story = [
        event("sent", "DATA", A, bad, payload=b"x"),
        event("dropped", "DATA", A, bad, note='"<'),
    ]
    picture = ElementTree.fromstring(sequence_svg(story))
    assert picture.find(f".//{SVG}script") is None
    for line in sequence_diagram(story).splitlines()[1:]:
        assert re.fullmatch(
            r"    (participant h\d as |h\dh?(->>|-x|-\))h\d: )[^;<>\n]*(#\d+;[^;<>\n]*)*", line
        )


async def test_a_network_draws_what_happened_on_it(autojump_clock: Any) -> None:
    async def client() -> None:
        with pytest.raises(OSError, match="failed"):
            await trio.open_tcp_stream("server", 80)

    async with VirtualNetwork(link=Link(latency=0.5)) as net:
        net.host("server")
        await net.host("laptop").run(client)
        text, picture = net.sequence_diagram(), net.sequence_svg()

    assert "    h0->>h2: 0 to 0.5: SYN to port 80 (tcp 1)" in text
    assert "    h2->>h0: 0.5 to 1: RST (tcp 1)" in text
    names = [one.text for one in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert {"laptop", "server", "dns"} <= set(names)
