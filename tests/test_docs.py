"""The pages in docs/ name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import trionet

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
    assert named - defined == set()


def test_the_page_on_tcpserver_names_what_there_is() -> None:
    text = (ROOT / "docs" / "tcpserver.md").read_text()
    # The right-hand side of every row.
    rows = [row.split(" | ")[-1] for row in text.splitlines() if row.startswith("| ")]
    ours = " ".join(rows)
    for kind in ("Server", "Connection", "Limits", "SocketOptions", "ProxyProtocol", "TLSListener"):
        assert hasattr(trionet, kind)
        for attribute in re.findall(rf"\b{kind}\.(\w+)", ours):
            assert hasattr(getattr(trionet, kind), attribute), f"{kind}.{attribute}"
        for arguments in re.findall(rf"\b{kind}\(([a-z_]+)=", ours):
            assert arguments in getattr(trionet, kind).__init__.__annotations__, arguments
    for attribute in re.findall(r"`(?:await )?connection\.(\w+)", ours):
        assert hasattr(trionet.Connection, attribute) or attribute in {"context", "server"}
    for attribute in re.findall(r"`server\.(\w+)", ours):
        assert hasattr(trionet.Server, attribute), attribute
