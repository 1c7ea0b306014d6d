"""The site: `make docs` writes the pages (pages.py), and Sphinx builds them from here. Nothing is fetched, ever."""

import shutil
from importlib.metadata import distribution
from pathlib import Path

project = "specialize_nb"
author = "The specialize_nb authors"
copyright = author
language = "en"

extensions = ["myst_nb", "sphinx.ext.mathjax"]
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks hold what they show
nb_merge_streams = True
nb_number_source_lines = False
numfig = True
nitpicky = True  # every link the pages make must lead somewhere...
nitpick_ignore_regex = [("py:class", ".*")]  # ...but types in signatures may be other packages'
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True
smartquotes = False

html_theme = "furo"
html_title = "specialize_nb"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": dict.fromkeys(("color-brand-primary", "color-brand-content", "color-api-name"), "#22577a"),
    "dark_css_variables": dict.fromkeys(("color-brand-primary", "color-brand-content", "color-api-name"), "#8ecae6"),
    "top_of_page_buttons": [],
}

mathjax_path = "mathjax/tex-chtml.js"


def copy_mathjax(app, error):
    """The one script and the fonts that math needs, out of the package that carries all of MathJax."""
    source = Path(distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax"))
    target, fonts = Path(app.outdir) / "_static" / "mathjax", "output/chtml/fonts/woff-v2"
    if error is None:
        shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)
        shutil.copy(source / "tex-chtml.js", target)


def setup(app):
    app.connect("build-finished", copy_mathjax)
