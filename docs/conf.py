"""Configuration of the site (`make docs`). It is built without network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import make_pages

import gdask

project = "gdask"
copyright = "the gdask developers"
release = gdask.__version__
version = release.partition("+")[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["examples", "build", "**/README.rst"]
nitpicky = False
default_role = "literal"
add_module_names = False
napoleon_use_ivar = True  # fields of a NamedTuple are members, too
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"gdask {version}"
html_show_copyright = False

#: Pictures of docs/examples are made at build time.
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/[0-9]",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}


def setup(app: Any) -> None:
    """Make pages before sources are looked for; change links to files beside docs/."""
    make_pages.make_all()
    app.connect("source-read", _relink)


def _relink(app: Any, name: str, content: list[str]) -> None:
    path = Path(app.env.doc2path(name))
    if path.suffix == ".md" and path.parent == make_pages.DOCS:
        content[0] = make_pages.relinked(content[0], path, path)
