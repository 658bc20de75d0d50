"""Link each setting that a page names to its entry in the reference.

Writers put ``WSGATEWAY_WINDOW`` into backticks and need not care. A misspelt name is reported.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from docutils import nodes
from repository import is_in_running_text
from sphinx.addnodes import pending_xref
from sphinx.util import logging

from wsgateway.conf import SETTINGS

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PAGE = "reference/settings"
NAME = re.compile(r"WSGATEWAY_(?:[A-Z0-9]+_)*[A-Z0-9]+")
logger = logging.getLogger(__name__)


def link_settings(app: Sphinx, doctree: nodes.document) -> None:
    """Turn the names of settings into links."""
    docname = app.env.current_document.docname
    for node in list(doctree.findall(nodes.literal)):
        name = node.astext()
        if name in SETTINGS:
            if docname != PAGE and is_in_running_text(node):
                link = pending_xref(
                    "",
                    nodes.inline("", "", node.deepcopy()),
                    refdomain="doc",
                    reftype="myst",
                    reftarget=PAGE,
                    reftargetid=name.lower(),
                    refdoc=docname,
                    refexplicit=True,
                )
                node.replace_self(link)
        elif NAME.fullmatch(name):
            logger.warning("%s is not a setting", name, location=node, type="setting")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", link_settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
