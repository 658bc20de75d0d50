"""How ``make site`` builds these pages: Sphinx, Markdown by MyST, the theme Furo."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_extensions"), str(DOCS.parent)]

project = "wsgateway"
author = "the wsgateway contributors"
extensions = ["myst_parser", "sphinx_copybutton", "pictures", "repository", "sidebar"]
exclude_patterns = ["_*"]

# Code hosts make the same anchors of headings
myst_heading_anchors = 6
myst_enable_extensions = ["alert"]

html_theme = "furo"
html_title = "wsgateway"
html_show_sourcelink = False
html_copy_source = False
