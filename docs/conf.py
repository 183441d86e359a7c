"""Sphinx settings; ``make check`` builds into ``docs/_build`` and takes no warning."""

from importlib import resources
from importlib.metadata import version as installed_version

project = "acktr"
author = "The acktr authors"
project_copyright = f"2026, {author}"
release = version = installed_version("acktr")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
highlight_language = "python"

# Formulas need no network: MathJax lies beside the pages. This one file, the same as in mathjax 3.2.2 of
# npm (sha256 d4295dc3...), draws glyphs as SVG and loads nothing more; its menu would.
_MATHJAX = resources.files("sphinx-mathjax-offline") / "static" / "mathjax" / "tex-svg.js"
html_static_path = [str(_MATHJAX)]
mathjax_path = _MATHJAX.name
mathjax3_config = {"options": {"enableMenu": False}}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = f"acktr {release}"
