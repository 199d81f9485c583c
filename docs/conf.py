"""How the documentation is built: ``nox -s docs``."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

import trionet  # noqa: E402, F401 - found here, not installed: what is documented is this tree

project = "trionet"
author = "the trionet authors"
project_copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "public_names",
]
exclude_patterns = ["_build"]
# `Name` is a link where it is the name of something, and code where it is not.
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autoclass_content = "both"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
# trionet's docstrings give no types: the signatures have them.
napoleon_numpy_docstring = False
napoleon_use_ivar = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "trionet"
html_static_path = ["_static"]
html_css_files = ["trionet.css"]
html_copy_source = False
html_theme_options = {"sidebar_hide_name": False, "navigation_with_keys": True}
