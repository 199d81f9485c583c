"""What the reference is made of: every public name, on the page of the wing that defines it.

``.. public-names:: trionet`` documents all names in ``trionet.__all__``; with
``:defined-in: _server _pool`` only those that come from these modules. A name that is added to
``__all__`` so finds its page by itself. What one module only passes on from another that is
documented is left out there.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from homes import MODULES, autodoc, home, public_names
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class PublicNames(SphinxDirective):
    """The directive ``public-names``."""

    required_arguments = 1
    option_spec: ClassVar[Any] = {"defined-in": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Document the names."""
        module = self.arguments[0]
        lines: list[str] = []
        for name in public_names(
            module, self.options.get("defined-in", "").split()
        ):
            lines += autodoc(f"{module}.{name}")
        section = nodes.section()
        section.document = self.state.document
        content = StringList(lines, source=f"<{module}>")
        self.state.nested_parse(content, self.content_offset, section)
        return section.children


def point_home(_: Sphinx, doctree: nodes.document) -> None:
    """Make links of short names, and of names by the file that defines them, full ones."""
    homes = {
        (module, name): home(module, name)
        for module in MODULES
        for name in importlib.import_module(module).__all__
    }
    for node in doctree.findall(addnodes.pending_xref):
        if node.get("refdomain") != "py":
            continue
        target = (
            node["reftarget"].removeprefix("~").removeprefix(".").removesuffix("()")
        )
        parts = target.split(".")
        for start, name in enumerate(parts):
            path = ".".join(parts[:start])
            if path and not path.startswith("trionet"):
                break
            # The page's own module comes first, then trionet's order.
            for module in (node.get("py:module"), *MODULES):
                full = homes.get((module, name))
                if full is not None and path in {"", module, *_files(full)}:
                    node["reftarget"] = ".".join([full, *parts[start + 1 :]])
                    node["reftype"] = "obj"
                    node["refspecific"] = False
                    break


# How the pages call the objects that they speak of.
SPOKEN: Final = {
    "connection": "trionet.Connection",
    "net": "trionet.testing.VirtualNetwork",
    "plex": "trionet.Multiplexer",
    "pool": "trionet.Pool",
    "server": "trionet.Server",
    "session": "trionet.MuxSession",
}
NAME = re.compile(
    r"(?:await |async with |with )?([a-zA-Z_]\w*(?:\.\w+){0,3})(?:\(.*\))?:?"
)


def link_code(app: Sphinx, doctree: nodes.document) -> None:
    """Make links of names in the code of a Markdown page's text: `Server`, `pool.acquire()`."""
    docname = app.env.docname
    if not str(app.env.doc2path(docname)).endswith(".md"):
        return
    for node in list(doctree.findall(nodes.literal)):
        match = NAME.fullmatch(node.astext())
        unsuitable = isinstance(
            node.parent, nodes.title | nodes.reference | addnodes.pending_xref
        )
        target = None if match is None or unsuitable else full_name(match[1])
        if target is not None:
            node.replace_self(
                addnodes.pending_xref(
                    "",
                    node.deepcopy(),
                    refdomain="py",
                    reftype="obj",
                    reftarget=target,
                    refspecific=False,
                    refdoc=docname,
                    refwarn=False,
                )
            )


def full_name(spoken: str) -> str | None:
    """Return what a page means by a name, if that is in the reference."""
    first, _, rest = spoken.removeprefix("trionet.").partition(".")
    if first in SPOKEN and rest:
        full = SPOKEN[first]
    else:
        full = next(
            (
                home(module, first)
                for module in MODULES
                if first in importlib.import_module(module).__all__
            ),
            "",
        )
    if not full:
        return None
    thing = importlib.import_module(full.rpartition(".")[0])
    for name in filter(None, [full.rpartition(".")[2], *rest.split(".")]):
        if not hasattr(thing, name):
            return None
        thing = getattr(thing, name)
    return f"{full}.{rest}" if rest else full


def _files(full_name: str) -> set[str]:
    """Return the module that defines what is documented as ``full_name``."""
    module, _, name = full_name.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    return {str(getattr(thing, "__module__", ""))}


def setup(app: Sphinx) -> dict[str, bool]:
    """Be a Sphinx extension."""
    app.add_directive("public-names", PublicNames)
    app.connect("doctree-read", link_code)
    app.connect("doctree-read", point_home)
    return {"parallel_read_safe": True}
