"""The PROXY protocol's headers: what is accepted, exactly, and what is refused."""

from __future__ import annotations

import ast
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trionet import Address, ProxyHeader, ProxyTLV
from trionet._streams import proxy_protocol
from trionet._streams.proxy_protocol import ProxyReader, crc32c

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")

V4 = (Address("tcp4", host="192.0.2.1", port=56324), Address("tcp4", host="192.0.2.11", port=443))
V6 = (Address("tcp6", host="2001:db8::1", port=1), Address("tcp6", host="::1", port=65535))
UNIX = (Address("unix", path="/run/a b"), Address("unix", path="@abstract"))

V4_BLOCK = bytes.fromhex("c0000201 c000020b dc04 01bb")


def v2(command: int, family: int, block: bytes = b"", size: int | None = None) -> bytes:
    """Build a header by hand, right or wrong."""
    return (
        SIGNATURE
        + struct.pack("!BBH", command, family, len(block) if size is None else size)
        + (block)
    )


# What is refused for good, and not for want of more.
FOR_GOOD = "^(?!the PROXY header is incomplete)"


def refused(data: bytes, match: str = FOR_GOOD) -> None:
    with pytest.raises(ValueError, match=match):
        ProxyHeader.parse(data)


def test_it_imports_nothing_but_the_standard_library_and_addresses() -> None:
    imported: set[str | None] = set()
    for node in ast.walk(ast.parse(Path(proxy_protocol.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)

    assert imported == {
        "__future__", "ipaddress", "os", "struct", "dataclasses", "enum", "typing", "_address",
        "collections.abc",
    }  # fmt: skip


# Version 1


@pytest.mark.parametrize(
    ("line", "source", "destination"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\n", *V4),
        (b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", *V6),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            Address("tcp4", host="255.255.255.255", port=65535),
            Address("tcp4", host="255.255.255.255", port=65535),
        ),
        (
            b"PROXY TCP6 " + b" ".join([b"FFFF" + b":ffff" * 7] * 2) + b" 65535 65535\r\n",
            Address("tcp6", host="ffff" + ":ffff" * 7, port=65535),
            Address("tcp6", host="ffff" + ":ffff" * 7, port=65535),
        ),
        (
            b"PROXY TCP6 ::ffff:192.0.2.1 :: 0 0\r\n",
            Address("tcp6", host="::ffff:c000:201", port=0),
            Address("tcp6", host="::", port=0),
        ),
    ],
)
def test_v1_reads_addresses(line: bytes, source: Address, destination: Address) -> None:
    assert ProxyHeader.parse(line) == ProxyHeader("v1", source, destination)


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN \r\n",
        b"PROXY UNKNOWN any junk  \xff\x00 is ignored\r\n",
        b"PROXY UNKNOWN " + b" ".join([b"ffff" + b":ffff" * 7] * 2) + b" 65535 65535\r\n",
    ],
)
def test_v1_unknown_names_nobody_whatever_follows(line: bytes) -> None:
    assert ProxyHeader.parse(line) == ProxyHeader("v1")


def test_the_longest_line_of_the_specification_is_taken_and_one_byte_more_is_not() -> None:
    junk = b"PROXY UNKNOWN ".ljust(105, b"x")

    assert ProxyHeader.parse(junk + b"\r\n") == ProxyHeader("v1")
    refused(junk + b"x\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\rGET",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\n\r\n",
        b"PROXY UNKNOWN \nGET / HTTP/1.1\r\n",
        b"PROXY UNKNOWN \rjunk\r\n",
        b"PROXY TCP4 192.0.2.01 192.0.2.11 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 1 00\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 +1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 -1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 1_0 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 1 65536\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 1 2 3\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.11 1 2 \r\n",
        b"PROXY TCP4  192.0.2.1 192.0.2.11 1 2\r\n",
        b"PROXY  TCP4 192.0.2.1 192.0.2.11 1 2\r\n",
        b"PROXY\tTCP4 192.0.2.1 192.0.2.11 1 2\r\n",
        b"PROXY TCP4 256.1.1.1 192.0.2.11 1 2\r\n",
        b"PROXY TCP4 192.0.2 192.0.2.11 1 2\r\n",
        b"PROXY TCP4 0x7f.0.0.1 192.0.2.11 1 2\r\n",
        b"PROXY TCP4 ::1 ::2 1 2\r\n",
        b"PROXY TCP4 localhost localhost 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.11 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        b"PROXY TCP6 [::1] ::1 1 2\r\n",
        b"PROXY TCP6 1::2::3 ::1 1 2\r\n",
        b"PROXY TCP6 12345::1 ::1 1 2\r\n",
        b"PROXY TCP6 ::1 192.0.2.1 1 2\r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.11 1 2\r\n",
        b"PROXY tcp4 192.0.2.1 192.0.2.11 1 2\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY \r\n" + b" " * 10,
        b"PROXYX UNKNOWN\r\n",
        b"proxy UNKNOWN\r\n",
        b"PROXY TCP4 \xd9\xa1.0.0.1 192.0.2.11 1 2\r\n",
        b" PROXY UNKNOWN\r\n",
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0",
    ],
)
def test_v1_that_departs_from_the_specification_is_refused(line: bytes) -> None:
    refused(line)


def test_cve_2021_23351_a_line_without_an_end_is_refused_at_107_bytes() -> None:
    reader = ProxyReader()
    reader.feed(b"PROXY UNKNOWN ".ljust(106, b"x"))

    with pytest.raises(ValueError, match="no CRLF within the first 107 bytes"):
        reader.feed(b"x")


def test_a_refused_line_is_quoted_escaped() -> None:
    refused(b"PROXY TCP4 \x1b[31m 192.0.2.11 1 2\r\n", match=r"\\x1b\[31m")


# Version 2


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (v2(0x21, 0x11, V4_BLOCK), ProxyHeader("v2", *V4)),
        (
            v2(0x21, 0x12, V4_BLOCK),
            ProxyHeader(
                "v2",
                Address("udp4", host="192.0.2.1", port=56324),
                Address("udp4", host="192.0.2.11", port=443),
            ),
        ),
        (
            v2(
                0x21,
                0x21,
                bytes.fromhex("20010db8" + "00" * 11 + "01" + "00" * 15 + "01 0001 ffff"),
            ),
            ProxyHeader("v2", *V6),
        ),
        (
            v2(0x21, 0x31, b"/run/a b".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")),
            ProxyHeader("v2", *UNIX),
        ),
        (
            v2(0x21, 0x32, b"/" + b"x" * 107 + bytes(108)),
            ProxyHeader(
                "v2", Address("unixgram", path="/" + "x" * 107), Address("unixgram", path="")
            ),
        ),
        (v2(0x21, 0x00), ProxyHeader("v2")),
        (v2(0x20, 0x00), ProxyHeader("v2", command="LOCAL")),
        (
            v2(0x21, 0x11, V4_BLOCK + b"\x01\0\x02h2" + b"\x04\0\0" + b"\xe0\0\x01x"),
            ProxyHeader("v2", *V4, tlvs=((1, b"h2"), (4, b""), (0xE0, b"x"))),
        ),
    ],
)
def test_v2_reads_addresses_and_tlvs(data: bytes, header: ProxyHeader) -> None:
    assert ProxyHeader.parse(data) == header
    assert header.encode() == data


def test_a_header_gives_its_tlvs_by_type() -> None:
    header = ProxyHeader("v2", *V4, tlvs=((1, b"h2"), (1, b"other"), (0xE0, b"x")))

    assert header.tlv(ProxyTLV.ALPN) == b"h2"
    assert header.tlv(0xE0) == b"x"
    assert header.tlv(ProxyTLV.AUTHORITY) is None


def test_a_file_whose_name_starts_with_an_at_sign_is_not_taken_for_an_abstract_name() -> None:
    block = b"@name".ljust(108, b"\0") + bytes(108)

    header = ProxyHeader.parse(v2(0x21, 0x31, block))

    assert header.source == Address("unix", path="./@name")


def test_all_commands_and_families_are_accepted_exactly_as_the_specification_says() -> None:
    # Zeros are addresses of every family, and then as many empty TLVs as fill the rest.
    block = bytes(216)
    addresses = {0x11: "tcp4", 0x12: "udp4", 0x21: "tcp6", 0x22: "udp6", 0x31: "unix",
                 0x32: "unixgram"}  # fmt: skip
    unspecified = {0x00, 0x01, 0x02, 0x10, 0x20, 0x30}
    for command in range(256):
        for family in range(256):
            reader = ProxyReader()
            try:
                reader.feed(v2(command, family, block))
                network = reader.header and reader.header.source and reader.header.source.network
                outcome: Any = (reader.header and reader.header.command, network)
            except ValueError:
                outcome = "refused"
            if command == 0x20:
                assert outcome == ("LOCAL", None), (command, family)
            elif command == 0x21 and family in addresses:
                assert outcome == ("PROXY", addresses[family]), (command, family)
            elif command == 0x21 and family in unspecified:
                assert outcome == ("PROXY", None), (command, family)
            else:
                assert outcome == "refused", (command, family)


@pytest.mark.parametrize("data", [v2(0x21, 0x11, V4_BLOCK + b"\x01\0\x02h2"), v2(0x20, 0)])
def test_cve_2019_14243_a_truncated_header_is_incomplete_and_never_a_crash(data: bytes) -> None:
    for size in range(len(data)):
        refused(data[:size], match=f"incomplete after {size} bytes")


@pytest.mark.parametrize(
    ("family", "least"), [(0x11, 12), (0x12, 12), (0x21, 36), (0x22, 36), (0x31, 216), (0x32, 216)]
)
def test_v2_too_short_for_its_addresses_is_refused(family: int, least: int) -> None:
    for size in (0, 1, least - 1):
        refused(v2(0x21, family, bytes(size)), match="cannot hold")
    assert ProxyHeader.parse(v2(0x21, family, bytes(least))).source is not None


def test_cve_2024_23327_a_local_header_needs_no_addresses_and_may_have_any() -> None:
    for family in range(256):
        for block in (b"", bytes(5), V4_BLOCK, b"\xff" * 40):
            header = ProxyHeader.parse(v2(0x20, family, block))
            assert (header.command, header.source) == ("LOCAL", None)


def test_cve_2024_23325_an_unspecified_family_is_accepted_without_addresses() -> None:
    for family in (0x00, 0x01, 0x02, 0x10, 0x20, 0x30):
        for block in (b"", b"\xff" * 7, bytes(250)):
            assert ProxyHeader.parse(v2(0x21, family, block)).source is None


def test_the_longest_header_is_read_whole() -> None:
    value = bytes(0xFFFF - 12 - 3)
    header = ProxyHeader("v2", *V4, tlvs=((0xE0, value),))
    data = header.encode()

    assert len(data) == 16 + 0xFFFF
    assert ProxyHeader.parse(data) == header
    with pytest.raises(ValueError, match="at most 65535 bytes"):
        ProxyHeader("v2", *V4, tlvs=((0xE0, value + b"x"),)).encode()


@pytest.mark.parametrize(
    "tlvs",
    [b"\x01", b"\x01\0", b"\x01\0\x01", b"\x01\0\x03h2", b"\x01\0\x02h2\0", b"\x04\xff\xff"],
)
def test_a_tlv_that_overruns_the_header_is_refused(tlvs: bytes) -> None:
    refused(v2(0x21, 0x11, V4_BLOCK + tlvs), match=r"overruns|are no TLV")


# The checksum


def test_crc32c_is_the_one_of_rfc_3720() -> None:
    # RFC 3720 appendix B.4 and the catalogue's check value.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("header", [ProxyHeader("v2", *V4, tlvs=((1, b"h2"),), checksum=True),
                                    ProxyHeader("v2", command="LOCAL", checksum=True)])  # fmt: skip
def test_a_checksum_is_written_and_every_flipped_bit_is_found(header: ProxyHeader) -> None:
    data = header.encode()
    assert ProxyHeader.parse(data) == header

    for at in range(12, len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            try:
                found = ProxyHeader.parse(bytes(damaged))
            except ValueError:
                continue
            # Without its checksum's TLV a header is one without a checksum.
            assert not found.checksum


def test_a_wrong_checksum_is_refused() -> None:
    data = ProxyHeader("v2", *V4, checksum=True).encode()

    refused(data[:-1] + bytes([data[-1] ^ 1]), match="CRC32C is wrong")


def test_a_checksum_of_another_size_or_twice_is_refused() -> None:
    refused(v2(0x21, 0x11, V4_BLOCK + b"\x03\0\x03abc"), match="a CRC32C of 3 bytes")
    refused(v2(0x21, 0x11, V4_BLOCK + b"\x03\0\x04abcd" * 2), match="or a second one")


# Reading in pieces


HEADERS = [
    b"PROXY TCP4 192.0.2.1 192.0.2.11 56324 443\r\n",
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n",
    v2(0x21, 0x11, V4_BLOCK + b"\x01\0\x02h2"),
    v2(0x20, 0x00),
]


@pytest.mark.parametrize("data", HEADERS)
def test_a_header_cut_anywhere_is_read_and_what_follows_is_left(data: bytes) -> None:
    whole = ProxyHeader.parse(data)
    for cut in range(len(data) + 1):
        reader = ProxyReader()
        assert reader.feed(data[:cut]) == cut
        if cut < len(data):
            assert reader.header is None
            assert reader.want > 0
            assert reader.feed(data[cut:] + b"payload") == len(data) - cut
        assert reader.header == whole
        assert reader.size == len(data)
        assert reader.want == 0
        assert reader.feed(b"payload") == 0


@pytest.mark.parametrize("data", HEADERS)
def test_bytes_wanted_exactly_are_never_the_payload(data: bytes) -> None:
    reader = ProxyReader()
    stream = data + b"x" * 200
    at = 0
    while reader.header is None:
        piece = stream[at : at + reader.want]
        exact = reader.exact
        taken = reader.feed(piece)
        assert taken == len(piece) or not exact
        at += taken

    assert at == len(data)


def test_no_more_is_looked_at_than_the_longest_line() -> None:
    reader = ProxyReader(["v1"])
    reader.feed(b"PROXY UNKNOWN x")

    assert reader.want == 107 - 15
    assert not reader.exact


def test_a_version_that_is_not_configured_is_refused_at_its_first_byte() -> None:
    with pytest.raises(ValueError, match=r"no PROXY header \(v2\)"):
        ProxyReader(["v2"]).feed(b"P")
    with pytest.raises(ValueError, match=r"no PROXY header \(v1\)"):
        ProxyReader(["v1"]).feed(b"\r")


def test_a_wrong_signature_is_refused_at_the_first_wrong_byte() -> None:
    for at in range(12):
        reader = ProxyReader()
        reader.feed(SIGNATURE[:at])
        with pytest.raises(ValueError, match="no PROXY header"):
            reader.feed(bytes([SIGNATURE[at] ^ 0x80]))


def test_two_headers_are_not_one() -> None:
    refused(HEADERS[0] * 2, match="bytes follow")


# Writing


def test_an_encoded_zone_is_left_out() -> None:
    near = Address("tcp6", host="fe80::1%eth0", port=1)

    assert b"%" not in ProxyHeader("v1", near, V6[1]).encode()
    assert ProxyHeader.parse(ProxyHeader("v2", near, V6[1]).encode()).source == Address(
        "tcp6", host="fe80::1", port=1
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"version": "v3"}, 'must be "v1" or "v2"'),
        ({"version": "v2", "command": "REMOTE"}, 'must be "PROXY" or "LOCAL"'),
        ({"version": "v2", "source": V4[0]}, "both addresses or none"),
        ({"version": "v2", "source": V4[0], "destination": V6[0]}, "of one family"),
        ({"version": "v2", "source": V4[0], "destination": V4[1], "command": "LOCAL"}, "LOCAL"),
        ({"version": "v1", "source": UNIX[0], "destination": UNIX[1]}, "no unix addresses"),
        ({"version": "v1", "tlvs": ((1, b""),)}, "version 1 has no TLVs"),
        ({"version": "v1", "command": "LOCAL"}, "version 1 has no TLVs"),
        ({"version": "v1", "checksum": True}, "version 1 has no TLVs"),
        ({"version": "v2", "tlvs": ((256, b""),)}, "from 0 to 255"),
        ({"version": "v2", "tlvs": ((3, b"abcd"),)}, "CRC32C is written by checksum=True"),
        (
            {
                "version": "v2",
                "source": Address("tcp", host="site", port=1),
                "destination": Address("tcp", host="site", port=1),
            },
            "takes IP addresses",
        ),
        (
            {
                "version": "v2",
                "source": Address("memb", name="site"),
                "destination": Address("memb", name="site"),
            },
            "no room for",
        ),
        (
            {
                "version": "v2",
                "source": Address("unix", path="x" * 109),
                "destination": Address("unix", path="x"),
            },
            "at most 108 bytes",
        ),
    ],
)
def test_a_header_that_cannot_be_written_cannot_be_made(
    arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        ProxyHeader(**arguments)


def test_a_value_that_is_no_bytes_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="must be bytes, got 'h2'"):
        ProxyHeader("v2", tlvs=((1, "h2"),))  # type: ignore[arg-type]


def addresses_of(network: str) -> st.SearchStrategy[Address]:
    if network in {"unix", "unixgram"}:
        paths = st.text(st.characters(codec="ascii", exclude_characters="\0@"), max_size=100)
        abstract = paths.filter(bool).map(lambda path: f"@{path}")
        return st.builds(Address, st.just(network), path=paths | abstract)
    ips = st.ip_addresses(v=4 if network.endswith("4") else 6).map(proxy_protocol._text)
    return st.builds(Address, st.just(network), host=ips, port=st.integers(0, 65535))


def pairs(networks: list[str]) -> st.SearchStrategy[tuple[Any, Any]]:
    both = st.sampled_from(networks).flatmap(
        lambda network: st.tuples(addresses_of(network), addresses_of(network))
    )
    return both | st.just((None, None))


TLVS = st.lists(
    st.tuples(st.integers(0, 255).filter(lambda kind: kind != 3), st.binary(max_size=40)),
    max_size=5,
).map(tuple)


@given(
    pairs(["tcp4", "tcp6"]).map(lambda pair: ProxyHeader("v1", *pair))
    | st.builds(
        lambda pair, tlvs, checksum: ProxyHeader("v2", *pair, tlvs=tlvs, checksum=checksum),
        pairs(["tcp4", "tcp6", "udp4", "udp6", "unix", "unixgram"]),
        TLVS,
        st.booleans(),
    )
    | st.builds(
        lambda tlvs, checksum: ProxyHeader("v2", command="LOCAL", tlvs=tlvs, checksum=checksum),
        TLVS,
        st.booleans(),
    ),
    st.data(),
)
def test_what_is_written_is_read_back(header: ProxyHeader, data: st.DataObject) -> None:
    encoded = header.encode()
    cut = data.draw(st.integers(0, len(encoded)))
    reader = ProxyReader()

    taken = reader.feed(encoded[:cut]) + reader.feed(encoded[cut:] + b"payload")

    assert reader.header == header
    assert taken == len(encoded)


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]),
       st.binary(max_size=200))  # fmt: skip
def test_no_bytes_make_the_reader_fail_otherwise(start: bytes, rest: bytes) -> None:
    reader = ProxyReader()
    try:
        taken = reader.feed(start + rest)
    except ValueError:
        return
    assert taken <= len(start + rest)
    if reader.header is not None:
        # What was accepted can be told again.
        assert ProxyHeader.parse(reader.header.encode()) == reader.header
