"""How ``make site`` builds these pages: Sphinx, Markdown by MyST, the theme Furo."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from sphinx.addnodes import pending_xref
from sphinx.domains.python import PyObject

if TYPE_CHECKING:
    from docutils.nodes import document
    from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_extensions"), str(DOCS.parent)]

# The Python API is read from the code, whose modules want Django
settings.configure(
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "channels",
        "wsgateway",
        "wsgateway.outbox",
    ]
)
django.setup()

project = "wsgateway"
author = "the wsgateway contributors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "pictures",
    "repository",
    "setting_links",
    "sidebar",
]
exclude_patterns = ["_*"]

# Code hosts make the same anchors of headings
myst_heading_anchors = 6
myst_enable_extensions = ["alert"]

# Docstrings put names into single backticks
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
toc_object_entries_show_parents = "hide"
napoleon_use_ivar = True
python_maximum_signature_line_length = 72
nitpick_ignore_regex = [
    (r"py:.*", r"(?!wsgateway\.).*"),  # links to other projects' documents would need their hosts
    (
        r"py:class",
        r"wsgateway\.(broker\.messages|entry_point|outbox\.models|protocol|services\.registry)\..*",
    ),
    (r"py:class", r"wsgateway\.topics\.\w+\..*"),
]

html_theme = "furo"
html_title = "wsgateway"
html_logo = html_favicon = "../project/demo/static/demo/favicon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    # The colours of the demo and of the pictures
    "light_css_variables": {
        "color-brand-primary": "#4338ca",
        "color-brand-content": "#4338ca",
        "color-brand-visited": "#6d28d9",
        "color-sidebar-link-text": "var(--color-foreground-secondary)",
        "color-sidebar-link-text--top-level": "var(--color-foreground-secondary)",
    },
    "dark_css_variables": {
        "color-brand-primary": "#a5b4fc",
        "color-brand-content": "#a5b4fc",
        "color-brand-visited": "#c4b5fd",
        "color-code-background": "#1b1d21",
        "color-sidebar-link-text": "var(--color-foreground-secondary)",
        "color-sidebar-link-text--top-level": "var(--color-foreground-secondary)",
    },
}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "github-dark"


def style_landing_page(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Give the landing page styles of its own, and no list of its headings."""
    if pagename == app.config.root_doc:
        app.add_css_file("landing.css")
        context["furo_hide_toc"] = True


def leave_builtins(app: Sphinx, doctree: document) -> None:
    """Keep `bytes` in a signature from becoming a link to a method of ours with that name."""
    for node in list(doctree.findall(pending_xref)):
        if node["reftype"] == "class" and node["reftarget"] in vars(builtins):
            node.replace_self(node.children)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("doctree-read", leave_builtins)
    app.connect("html-page-context", style_landing_page, priority=900)  # after Furo
