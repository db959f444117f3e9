"""How the pages are built: ``sphinx-build -W -b html docs docs/_build/html``.

No network is needed. The gallery's examples are shown without being run; ``-D plot_gallery=1`` runs
them, on the real model.
"""

import re
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.config import Config

import skgpt

project = "skgpt"
author = "the skgpt developers"
copyright = author
version = release = skgpt.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold what can't be pickled
default_role = "py:obj"  # a link if it is the name of something here, else code
smartquotes = False  # "auto" is something to type

myst_heading_anchors = 3  # so that page.md#a-heading leads somewhere here as on a code host

# The reference's pages are named generated/skgpt.<name>.html: that is where scikit-learn's HTML
# representation of an estimator links to.
autosummary_generate = True
autodoc_typehints = "none"  # the docstrings describe the types
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
numpydoc_show_class_members = False  # the template lists the methods
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "ignore_pattern": r"^(?!plot_)",  # scripts for the command line, and what the examples share
    "within_subsection_order": "FileNameSortKey",
    "doc_module": ("skgpt",),
    "backreferences_dir": "generated/backreferences",
    "remove_config_comments": True,
    "show_memory": False,
    "write_computation_times": False,
}
plot_gallery = "False"  # a text, as on the command line

html_theme = "pydata_sphinx_theme"
html_title = f"skgpt {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["skgpt.css"]
html_sidebars = {"getting_started": []}  # no pages below it
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}

_EXAMPLE = re.compile(r"\]\(((?:\.\./)*)\.\./examples/(plot_\w+)\.py\)")
_ROLE = re.compile(r":(?P<role>ref|term|doc):`~?(?P<words>[^`<]*?)(?:\s*<[^`>]*>)?`")


def lead_into_the_gallery(app: Sphinx, page: str, source: list[str]) -> None:
    """Have links to an example's source, right on a code host, lead to its page here."""
    source[0] = _EXAMPLE.sub(r"](\1auto_examples/\2.rst)", source[0])


def drop_references_of_sklearn(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Leave the words of references to scikit-learn's own pages, which inherited methods have."""

    def words(found: re.Match[str]) -> str:
        return f"``{found['words']}``" if found["role"] == "term" else found["words"]

    lines[:] = _ROLE.sub(words, "\n".join(lines)).split("\n")


def take_rst_headers_only(app: Sphinx, config: Config) -> None:
    """Have a README.md, which is for readers of the source, open no part of the gallery."""
    config.sphinx_gallery_conf["source_suffix"] = {".rst": "restructuredtext"}


def setup(app: Sphinx) -> None:
    """Connect the above: behind numpydoc, and behind the gallery's filling in of its settings."""
    app.add_lexer("mermaid", TextLexer)  # a code host draws it, these pages show its text
    app.connect("config-inited", take_rst_headers_only, priority=20)
    app.connect("source-read", lead_into_the_gallery)
    app.connect("autodoc-process-docstring", drop_references_of_sklearn, priority=900)
