"""Build the documentation site: `make docs`."""

from __future__ import annotations

from typing import Any

import cifar100_tk

project = "cifar100_tk"
author = "The cifar100_tk authors"
copyright = "The cifar100_tk authors"
version = release = cifar100_tk.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "cifar100_tk"

# The notebook is shown with the outputs that are checked in; `make notebook` makes them.
nb_execution_mode = "off"
myst_heading_anchors = 3
# Links to files outside docs/, such as ../benchmarks/results/, lead somewhere in the repository but not on the site.
myst_url_schemes = ("http", "https")
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# The fields of a component say their defaults; objects without a readable repr would be printed with their address.
autodoc_preserve_defaults = True


def setup(app: Any) -> None:
    """Show docstrings as the plain text they are: `code` is written in single backquotes, as in Markdown."""
    app.connect("autodoc-process-docstring", _as_code)


def _as_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace("`", "``").replace("````", "``") for line in lines]
