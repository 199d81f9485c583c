"""The tree holds what it promises: one way through it, and nothing public without a word."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import trionet
import trionet.abc
import trionet.testing

ROOT = Path(trionet.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# A file imports from wings further down only, or from files before it in its own wing.
WINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "yamux",
        (
            "frames",
            "config",
            "window",
            "stream",
            "output",
            "decoder",
            "timers",
            "inbound",
            "session",
        ),
    ),
    ("bottom", ("_errors", "_options", "_address")),
    ("seam", ("abc",)),
    (
        "_streams",
        (
            "pipe",
            "segment",
            "timeline",
            "line",
            "inbox",
            "wire",
            "wrapping",
            "poller",
            "entry",
            "readiness",
            "memory",
            "memory_listener",
            "files",
            "sockets",
            "socket_listener",
            "foreign",
            "buffered",
            "proxy_protocol",
            "preface",
            "tls_engine",
            "relay",
            "tls",
            "tls_listener",
            "tuning",
            "system",
            "arguments",
            "network",
        ),
    ),
    (
        "_server",
        (
            "limits",
            "facts",
            "hosts",
            "connection",
            "closing",
            "accept",
            "timekeeper",
            "server",
            "serve",
            "workers",
            "process",
        ),
    ),
    (
        "_pool",
        (
            "waiters",
            "watch",
            "entry",
            "alarm",
            "settings",
            "attempt",
            "retry",
            "supply",
            "report",
            "lease",
            "upkeep",
            "lender",
            "lifecycle",
            "pool",
            "group",
            "keyed",
        ),
    ),
    (
        "_mux",
        (
            "driver",
            "stream",
            "listener",
            "session",
            "duplex",
            "halves",
            "loan",
            "plan",
            "fleet",
            "lending",
            "sessions",
            "multiplexer",
        ),
    ),
    (
        "testing",
        (
            "checking",
            "stream_rules",
            "listener_rules",
            "trionet_rules",
            "network_rules",
            "network_arguments",
            "conformance",
            "faulty",
            "trace",
            "flights",
            "pcap",
            "diagram",
            "_run",
            "rules",
            "routes",
            "world",
            "tcp",
            "stack",
            "sockopts",
            "sockets",
            "stream_sockets",
            "datagrams",
            "streams",
            "dns",
            "host",
            "faults",
            "netstat",
            "network",
            "problems",
            "scheduler",
            "entropy",
            "wall_clock",
            "task_tree",
            "threads",
            "watch",
            "simulation",
            "certificates",
        ),
    ),
    ("integrations", ("httpx", "_to_anyio", "anyio", "prometheus", "websocket", "hypercorn")),
    ("top", ("__init__", "pytest_plugin")),
)
# Beside each other, and blind to each other.
SIBLINGS = ({"_server", "_pool"},)


def place(module: str) -> tuple[int, int]:
    """Return the wing and the place in it of a module such as ``_streams.pipe``."""
    wing, _, rest = module.partition(".")
    for number, (name, files) in enumerate(WINGS):
        if wing == name:
            # The package itself stands before its files: it imports none of them.
            return number, files.index(rest.split(".")[0]) if rest else -1
        if wing in files:
            return number, files.index(wing)
    raise AssertionError(f"{module} has no place in the house: add it to WINGS")


def name_of(source: Path) -> str:
    parts = list(source.relative_to(ROOT).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


def imports_of(source: Path) -> set[str]:
    """Return the modules of trionet that ``source`` imports anywhere, functions included."""
    package = ["trionet", *source.relative_to(ROOT).parts[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names = [origin]
            # `from . import x` names a module only where x is one.
            for alias in node.names:
                path = ROOT.joinpath(*f"{origin}.{alias.name}".split(".")[1:])
                if path.with_suffix(".py").exists() or path.is_dir():
                    names.append(f"{origin}.{alias.name}")
        found.update(name.removeprefix("trionet.") for name in names if name.startswith("trionet."))
    return found


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_imports_only_go_down_the_house(source: Path) -> None:
    module = name_of(source)
    here = place(module)

    for imported in imports_of(source):
        if imported.startswith(f"{module}."):
            continue  # a package may gather its own files
        there = place(imported)
        assert there < here or there[1] == -1, f"{module} imports {imported}, which is above it"
        pair = {module.partition(".")[0], imported.partition(".")[0]}
        assert pair not in SIBLINGS, f"{module} imports {imported}"


def test_the_import_test_sees_an_import_that_goes_up(tmp_path: Path) -> None:
    assert place("_streams.pipe") < place("_streams.memory") < place("_server.server")
    assert "_streams.pipe" in imports_of(ROOT / "_streams" / "memory.py")
    assert "_errors" in imports_of(ROOT / "_streams" / "pipe.py")


def exported(source: Path) -> set[str]:
    """Return the names that a module of ``X as X`` imports re-exports."""
    return {
        alias.asname
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None and alias.asname == alias.name
    }


def test_all_equals_what_is_exported() -> None:
    assert set(trionet.__all__) == exported(ROOT / "__init__.py")
    assert set(trionet.testing.__all__) == exported(ROOT / "testing" / "__init__.py")


@pytest.mark.parametrize(
    "source", [source for source in SOURCES if source.name != "__init__.py"], ids=name_of
)
def test_every_module_lists_what_it_defines_for_others(source: Path) -> None:
    tree = ast.parse(source.read_text())
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    listed = ast.literal_eval(assigned["__all__"])
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name for name in defined if not name.startswith("_")} <= set(listed)


def public_objects() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for module in (trionet, trionet.abc, trionet.testing):
        for name in module.__all__:
            thing = getattr(module, name)
            found.append((f"{module.__name__}.{name}", thing))
            if inspect.isclass(thing):
                found += [
                    (f"{module.__name__}.{name}.{attribute}", member)
                    for attribute, member in vars(thing).items()
                    if not attribute.startswith("_")
                    and (callable(member) or isinstance(member, property | classmethod))
                ]
    return found


@pytest.mark.parametrize(
    ("name", "thing"),
    [pytest.param(name, thing, id=name) for name, thing in public_objects()],
)
def test_every_public_object_has_a_docstring(name: str, thing: object) -> None:
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    assert text.splitlines()[0].rstrip().endswith((".", ":", "``", "!")), (
        f"{name}: the first line is not a sentence"
    )


def test_every_source_file_says_what_it_is() -> None:
    for source in SOURCES:
        assert ast.get_docstring(ast.parse(source.read_text())), f"{source} has no docstring"
