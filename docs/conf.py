"""Sphinx configuration."""

import os
import shutil
import sys
from pathlib import Path

import sthist

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "_ext")]
import argument_tables  # noqa: E402
import import_picture  # noqa: E402
import inventories  # noqa: E402
from reference_pages import source_link as linkcode_resolve  # noqa: E402, F401

os.environ["STHIST_DOCS"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm, of widgets that pages do not have

# Notebooks live beside the package, for those who only want them; Sphinx reads below its own folder only.
shutil.copytree(HERE.parent / "tutorials", HERE / "generated" / "tutorials", dirs_exist_ok=True)

argument_tables.write(HERE / "generated")
import_picture.write(HERE / "generated")

project = "sthist"
author = "The sthist developers"
copyright = "2026, The sthist developers"
version = release = sthist.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.linkcode",
    "sphinx.ext.napoleon",
    "reference_pages",
    "sphinx_copybutton",
    "sphinx_design",
]
intersphinx_mapping = inventories.write(HERE / "generated" / "inventories")
nitpicky = True
nitpick_ignore = [
    ("py:class", "shapely.geometry.base.BaseGeometry"),  # shapely documents its subclasses alone
    ("py:attr", "limits"),  # an attribute of Overlay that only its own list of parameters names
    ("py:class", "sthist.models.RegressionConfig"),  # the base of several settings, which has no page
]
templates_path = ["_templates"]
autosummary_generate = True
autodoc_typehints = "none"  # reference_pages puts types into the lists of parameters
autodoc_member_order = "bysource"
napoleon_google_docstring = False
nb_execution_mode = "force"
nb_execution_timeout = 600  # per cell; the slowest takes seconds, and machines may be loaded
nb_execution_raise_on_error = True
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "**.ipynb_checkpoints", "generated/arguments_*.md"]
html_theme = "sphinx_book_theme"
html_title = "sthist"
html_static_path = ["_static"]
html_theme_options = {
    "show_navbar_depth": 1,
    "repository_url": "https://github.com/scverse/sthist",
    "use_repository_button": True,
}
