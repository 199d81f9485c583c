"""Which page of the reference has which name: pure functions, which the tests use, too."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("MODULES", "autodoc", "home", "public_names")

# Where a name is documented that several modules have: the first of these that has it.
MODULES: Final = (
    "trionet",
    "trionet.abc",
    "trionet.testing",
    "trionet.yamux",
    "trionet.integrations.anyio",
    "trionet.integrations.httpx",
    "trionet.integrations.hypercorn",
    "trionet.integrations.prometheus",
    "trionet.integrations.websocket",
)


def home(module: str, name: str) -> str:
    """Return the full name under which ``module``'s ``name`` is documented."""
    thing = getattr(importlib.import_module(module), name)
    for candidate in MODULES:
        owner = importlib.import_module(candidate)
        if name in owner.__all__ and getattr(owner, name) is thing:
            return f"{candidate}.{name}"
    raise AssertionError(f"{module}.{name} is in no module that is documented")


def wing(thing: object) -> str:
    """Return the part of trionet that defines ``thing``: ``_server``, ``abc``, ``yamux``."""
    return str(getattr(thing, "__module__", "trionet._")).split(".")[1]


def public_names(module: str, wings: Sequence[str] = ()) -> list[str]:
    """Return the names of ``module`` that have their home there, in the order of the page."""
    owner = importlib.import_module(module)
    names = [
        name for name in owner.__all__ if home(module, name) == f"{module}.{name}"
    ]
    if wings:
        names = [name for name in names if wing(getattr(owner, name)) in wings]

    def rank(name: str) -> tuple[int, str]:
        thing = getattr(owner, name)
        if not inspect.isclass(thing):
            return 0, name
        return (2 if issubclass(thing, BaseException) else 1), name

    return sorted(names, key=rank)


def attributes(docstring: str) -> list[str]:
    """Return the names in the section "Attributes" of a docstring."""
    _, _, section = docstring.partition("\nAttributes:\n")
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^  (\w+(?:, \w+)*):", section, re.MULTILINE)
    return [name for row in rows for name in row.split(", ")]


def autodoc(full_name: str) -> list[str]:
    """Return the lines that have Sphinx document one name."""
    module, _, name = full_name.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    if not inspect.isclass(thing):
        return [f".. autofunction:: {full_name}", ""]
    if issubclass(thing, BaseException):
        return [f".. autoexception:: {full_name}", "   :show-inheritance:", ""]
    lines = [
        f".. autoclass:: {full_name}",
        "   :members:",
        "   :inherited-members: object, int, str, tuple, Enum, Generic, ABC, AsyncResource",
    ]
    if getattr(thing, "_is_protocol", False):
        lines.append("   :special-members: __call__")
    # What the docstring lists is documented there.
    listed = attributes(inspect.getdoc(thing) or "")
    if listed:
        lines.append(f"   :exclude-members: {', '.join(listed)}")
    return [*lines, ""]
