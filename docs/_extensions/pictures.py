"""Turn pictures that are written as HTML into Sphinx's own, so that missing ones are reported.

Markdown has no way to give a picture a width or a second version for dark pages, so pages use
``<img>`` and ``<picture>``, as code hosts understand them. A ``<source>`` for dark pages becomes a
picture that Furo shows in its dark theme only.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx

WIDE = 500
"""Pixels from which a picture would be too small to read on a phone: it scrolls there."""
PICTURE = re.compile(r"<(?:img|picture|source)\b")


class Pictures(HTMLParser):
    """Collects the pictures in pieces of HTML."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[nodes.image] = []
        self.dark: str | None = None
        """The version for dark pages of the picture that comes next."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a picture."""
        values = {name: value or "" for name, value in attrs}
        if tag == "source" and "dark" in values.get("media", ""):
            self.dark = values["srcset"]
        elif tag == "img":
            options = {name: values[name] for name in ("alt", "width") if name in values}
            if "width" in options and options["width"].isdigit():
                options["width"] += "px"
            classes = ["only-light"] if self.dark else []
            self.found.append(nodes.image(uri=values["src"], classes=classes, **options))
            if self.dark:
                self.found.append(nodes.image(uri=self.dark, classes=["only-dark"], **options))
            self.dark = None


def replace_html(app: Sphinx, doctree: nodes.document) -> None:
    """Replace the pictures in the HTML of a page."""
    pictures = Pictures()  # one for all: in running text, each tag is a piece of its own
    for raw in list(doctree.findall(nodes.raw)):
        if raw.get("format") == "html" and PICTURE.search(raw.astext()):
            pictures.feed(raw.astext())
            raw.replace_self([_scrolling(image) for image in pictures.found])
            pictures.found = []


def _scrolling(image: nodes.image) -> nodes.Element:
    """Return *image*; if it is wide, in a box that scrolls."""
    width = image.get("width", "").removesuffix("px")
    if not width.isdigit() or int(width) < WIDE or not image["uri"].endswith(".svg"):
        return image
    return nodes.container("", image, classes=["wide-picture", *image["classes"]])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", replace_html, priority=300)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
