"""The pages in docs/ name what there is, and their code runs."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import trionet

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


# Code
#
# The Python blocks of a page run in order and share their names, as a reader who types them would
# have it. A block with an `await` of its own is run by trio, in virtual time. What a reader need
# not see, because a page is about something else, stands in a comment `<!-- setup ... -->` before
# the block; if that defines `around()`, an async context manager, the blocks with an `await` run
# inside of it. A block of `text` is what the block before it prints.


@dataclass
class Block:
    """A piece of a page: its kind, its text, and the line where that begins."""

    kind: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    pattern = r"^```(python|text)\n(.*?)^```$|^<!-- (setup)\n(.*?)^-->$"
    text = page.read_text()
    return [
        Block(
            match[1] or match[3],
            match[2] or match[4] or "",
            text.count("\n", 0, match.start(2 if match[1] else 4)),
        )
        for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)
    ]


def run_block(page: Path, block: Block, names: dict[str, Any]) -> str:
    """Run one block; return what it printed."""
    # Where it stands on the page, for the traceback.
    source = "\n" * block.line + block.text
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(source, str(page), "exec", flags, dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if not code.co_flags & inspect.CO_COROUTINE:
            exec(code, names)
        else:

            async def run() -> None:
                async with names.get("around", contextlib.nullcontext)():
                    await eval(code, names)

            # Jumps only after a moment, so that the kernel has its time, where there are sockets.
            trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0.02))
    return printed.getvalue()


@by_page
def test_the_code_of_a_page_runs_and_prints_what_it_says(page: Path) -> None:
    names: dict[str, Any] = {"__name__": page.stem}
    printed: str | None = None
    for block in blocks_of(page):
        if block.kind == "text":
            assert printed is not None, f"{page}:{block.line}: no code before this output"
            assert printed == block.text, f"{page}:{block.line}"
            printed = None
        else:
            printed = run_block(page, block, names)


def test_a_page_that_lies_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- setup\nx = 1\n-->\n```python\nimport trio\nawait trio.sleep(x)\nprint(x)\n```\n"
        "\n```text\n2\n```\n```sh\nnot python\n```\n"
    )

    with pytest.raises(AssertionError):
        test_the_code_of_a_page_runs_and_prints_what_it_says(page)
    assert [block.kind for block in blocks_of(page)] == ["setup", "python", "text"]


@by_page
def test_every_block_says_what_it_is_in(page: Path) -> None:
    # A block in no language, or in one that is taken for another, would go untested.
    fences = re.findall(r"^```(.*)$", page.read_text(), re.MULTILINE)
    known = {"python", "text", "sh", "go", "yaml", "ini", "cfg", "pycon", "toml"}
    assert {fence for fence in fences[::2] if not fence.startswith("{")} <= known


# Diagrams


@pytest.mark.parametrize("name", ["yamux", "pool", "drain", "cable"])
def test_a_diagram_is_what_the_code_draws(name: str) -> None:
    folder = DOCS / "diagrams"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import draw; print(draw.DIAGRAMS[sys.argv[2]](), end='')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder), name],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert run.stderr == ""
    # If not, and the code is right: python docs/diagrams/draw.py, and look at the picture.
    assert run.stdout == (folder / f"{name}.svg").read_text()


# Names


@by_page
def test_every_test_a_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", page.read_text()))
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    defined = {name for source in sources for name in re.findall(r"def (test_\w+)", source)}
    assert named - defined == set()


@by_page
def test_every_file_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`((?:examples|tests|bench|docs|trionet)/[\w./]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def homes() -> Any:
    spec = importlib.util.spec_from_file_location("homes", DOCS / "_ext" / "homes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference() -> None:
    where = homes()
    directive = r"^\.\. public-names:: (\S+)(?:\n +:defined-in: (.+))?$"
    documented: list[str] = []
    for page in (DOCS / "reference").glob("*.rst"):
        for module, wings in re.findall(directive, page.read_text(), re.MULTILINE):
            documented += [f"{module}.{name}" for name in where.public_names(module, wings.split())]

    public = {
        where.home(module, name)
        for module in where.MODULES
        for name in importlib.import_module(module).__all__
    }
    assert sorted(documented) == sorted(public)  # each once


def test_every_public_module_is_in_the_reference() -> None:
    package = ROOT / "trionet"
    public = {
        ".".join(("trionet", *path.relative_to(package).with_suffix("").parts))
        for path in (*package.glob("[a-z]*.py"), *package.glob("integrations/[a-z]*.py"))
    }
    public |= {"trionet", "trionet.testing", "trionet.yamux"}
    # Fixtures, which pytest lists, and the reference of `trionet.testing` speaks of.
    assert public - {"trionet.pytest_plugin"} == set(homes().MODULES)


def test_the_page_on_tcpserver_names_what_there_is() -> None:
    text = (DOCS / "tcpserver.md").read_text()
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
