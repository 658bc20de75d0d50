"""Build the sidebar from the lists in the index pages, so that each page is listed once.

``<kind>/index.md`` is plain Markdown, which code hosts show as it is: a heading for each group, and
below it items such as ``- [A page](page.md): what it is for.`` Here, each group becomes a table of
contents, with its heading as the caption. Links after the colon do not count.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

KINDS = {
    "tutorial": "Tutorial",
    "how-to": "How to",
    "reference": "Reference",
    "explanation": "Explanation",
}
NESTED = ("explanation/decisions/index",)
"""Pages below which their list's pages appear in the sidebar."""
PROJECT = [
    "README <project/readme>",
    "project/changelog",
    "project/contributing",
    "project/security",
]
ITEM = re.compile(r"[-*\d.]+ (?P<links>\[.*)")
LINK = re.compile(r"\]\((?P<page>[^):#]+)\.md\)")


def groups(kind: str, index: str) -> list[tuple[str, list[str]]]:
    """Return the caption and the pages of each group that *index*, the text of a page, lists."""
    found: list[tuple[str, list[str]]] = [(KINDS[kind], [f"{kind}/index"])]
    for line in index.splitlines():
        if line.startswith("## "):
            caption = f"{KINDS[kind]}: {line[3:]}"
            if len(found) == 1 and len(found[0][1]) == 1:
                found[0] = (caption, found[0][1])
            else:
                found.append((caption, []))
        elif item := ITEM.match(line):
            links = LINK.findall(item["links"].partition("): ")[0] + ")")
            found[-1][1].extend(normpath(str(PurePosixPath(kind, page))) for page in links)
    return found


def add_tables_of_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append what the sidebar shows to the landing page, and to pages with pages below them."""
    if docname in NESTED:
        items = [item["links"] for item in map(ITEM.match, source[0].splitlines()) if item]
        pages = [page for links in items for page in LINK.findall(links)]
        source[0] += _table_of_contents("", pages)
    if docname != app.config.root_doc:
        return
    for kind in KINDS:
        path = Path(app.srcdir, kind, "index.md")
        app.env.note_dependency(str(path))
        for caption, pages in groups(kind, path.read_text()):
            entries = [f"Overview <{p}>" if p == f"{kind}/index" else p for p in pages]
            source[0] += _table_of_contents(caption, entries)
    source[0] += _table_of_contents("Project", PROJECT)


def _table_of_contents(caption: str, entries: list[str]) -> str:
    options = [":hidden:", *([f":caption: '{caption}'"] if caption else [])]
    lines = ["", "```{toctree}", *options, *entries, "```", ""]
    return "\n".join(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", add_tables_of_contents)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
