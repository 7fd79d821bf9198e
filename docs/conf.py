"""Sphinx settings of the documentation site; ``./scripts/docs`` builds it."""

import functools
import pkgutil
import sys
from pathlib import Path
from types import FunctionType

from sphinx_gallery.sorting import FileNameSortKey

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from cusink import __version__  # noqa: E402


def members_of(name: str) -> list[str]:
    """Return the public methods and properties of a class that are written in this package: its page describes them.

    Those of a base of another package, such as the 50 of a module of PyTorch, are described there.
    """
    thing = pkgutil.resolve_name(name)
    bases = [base for base in thing.__mro__ if base.__module__.startswith("cusink.")]
    written = {member: value for base in reversed(bases) for member, value in vars(base).items()}
    kinds = (FunctionType, property, functools.cached_property, classmethod, staticmethod)
    return [member for member, value in written.items() if member[0] != "_" and isinstance(value, kinds)]


project = "cusink"
author = "cusink developers"
copyright = author  # noqa: A001
version = release = __version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # after the one above: it points that to a copy of MathJax that it puts into the site
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery"]
nitpicky = False
default_role = "autolink"  # `cusink.sinkhorn` in a docstring is a link
suppress_warnings = ["config.cache"]  # the order of the gallery is a class, which cannot be pickled

# Formulas between $$ are typeset, by MathJax here and by GitHub there. Those in docstrings are text, for terminals.
myst_enable_extensions = ["deflist", "dollarmath"]
myst_dmath_allow_labels = False
myst_heading_anchors = 3

autosummary_generate = True
templates_path = ["_templates"]
autosummary_context = {"members_of": members_of}
autodoc_typehints = "none"  # numpydoc sections say them
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r".*\.py",
    "within_subsection_order": FileNameSortKey,
    "abort_on_example_error": True,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 10**6,  # times of a machine that builds documentation mean nothing
    "write_computation_times": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "matplotlib_animations": False,
}

html_context = {"default_mode": "auto"}
html_theme = "pydata_sphinx_theme"
html_title = "cusink"
html_static_path = ["_static"]
html_css_files = ["cusink.css"]
html_show_sourcelink = False
# Pages without pages below them have no navigation of a section, and need its place.
html_sidebars = {page: [] for page in ("quick-start", "choosing", "migration", "glossary")}
html_copy_source = False
html_theme_options = {
    "logo": {"text": "cusink"},
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
