"""Settings of the book: `make book`. Nothing is fetched, neither to build it nor to read it."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "Resolution matters"
author = "The resolution-matters authors"
copyright = author
release = version = version_of("resolution-matters")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.apidoc",
    "sphinx.ext.mathjax",
    "numpydoc",
    "extension",
]
exclude_patterns = ["_build", "_static", "diagrams", "api/modules.rst"]

# The notebooks are executed before (docs/execute.py): here they are only shown.
nb_execution_mode = "off"
nb_merge_streams = True
nb_output_stderr = "remove"  # bars of progress, which stand still on a page
nb_ipywidgets_js = {}  # else fetched from other hosts, and the pages show widgets in their still form
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True  # equations in the middle of a paragraph or a list
myst_update_mathjax = False
myst_fence_as_directive = ["mermaid"]
suppress_warnings = [
    "myst.header",  # a notebook may go from a title to a third level
    "ref.citation",  # a docstring may name a source without a mark in its text
]

# One page for each module, from its docstrings, in which `names` in backticks are ours.
apidoc_modules = [
    {
        "path": "../src/helpers",
        "destination": "api",
        "separate_modules": True,
        "module_first": True,
        "no_headings": False,
        "max_depth": 1,
    }
]
apidoc_separate_modules = True
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say more
numpydoc_show_class_members = False
# What holds of every docstring: the place of the quotes, sections and parameters that exist, in their order.
numpydoc_validation_checks = {"GL01", "GL05", "GL06", "GL07", "GL10", "PR02", "PR03", "PR05", "PR06", "PR10"}
numpydoc_validation_checks |= {"SS01", "SS04"}
numpydoc_validation_exclude = {r"\.CubicSpline$", r"\.display$"}  # of other libraries

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_sourcelink = False
html_sidebars = {"*": [], "notebooks/*": []}  # lines of code need the width
html_context = {"default_mode": "auto"}
html_theme_options = {
    "show_toc_level": 2,
    "header_links_before_dropdown": 4,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# MathJax 2, from an installed package; `extension` copies it beside the pages.
mathjax_path = "mathjax/MathJax.js"
mathjax2_config = {
    "config": ["TeX-AMS-MML_HTMLorMML-full.js"],
    "messageStyle": "none",
    "showMathMenu": False,
    "tex2jax": {
        "inlineMath": [["\\(", "\\)"]],
        "displayMath": [["\\[", "\\]"]],
        "ignoreClass": "document",
        "processClass": "math|output_area",
    },
    "HTML-CSS": {
        "scale": 88,  # as high as the letters of the text
        "availableFonts": [],
        "preferredFont": None,
        "imageFont": None,
        "webFont": "STIX-Web",
        "linebreaks": {"automatic": True},
    },
}
