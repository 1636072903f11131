"""How this folder becomes the site: `sphinx-build -W --keep-going docs build/docs`.

Nothing is fetched while it is built, and the pages load nothing from elsewhere. Notebooks are shown
with the outputs that they are committed with, since the gate runs each of them once anyhow;
`-D nb_execution_mode=force` runs them anew.
"""

import re
import shutil
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

import optax_bnmask

HERE = Path(__file__).parent
# Sphinx reads no sources outside of its folder. The copy is ignored by git.
shutil.copytree(
    HERE.parent / "notebooks",
    HERE / "notebooks",
    ignore=shutil.ignore_patterns(".*"),
    dirs_exist_ok=True,
)

project = "optax_bnmask"
release = version = optax_bnmask.__version__
copyright = "the authors of optax_bnmask"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["notebooks/.*"]
myst_heading_anchors = 3  # so that pages can link to each other's sections
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # no page has a widget; by default their script comes from a CDN

default_role = "py:obj"  # names in single backticks, as docstrings have them, become links
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True  # `Attributes:` describes fields that autodoc lists already
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "optax_bnmask"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    """Mends, before napoleon reads them, docstrings that Sphinx takes for something else."""

    def mended(_app, what, name, _found, _options, lines):
        if what == "data":  # re-exported: Sphinx looks for its docstring where it is imported
            docs = ModuleAnalyzer.for_module("optax_bnmask.categories").find_attr_docs()
            lines[:] = docs["", name.rpartition(".")[2]]
        if what in {"attribute", "property"}:
            # Napoleon takes "By path: ..." for a type and a text, unless the first line is another,
            # here an empty comment.
            lines[:0] = ["..", ""]
        # A plural, `Leaf`s, which reStructuredText wants a backslash in.
        lines[:] = [re.sub(r"(?<=\w)`(?=s\b)", r"`\\ ", line) for line in lines]

    app.connect("autodoc-process-docstring", mended, priority=400)
