"""Make links from these pages to the rest of the repository work on the site.

Pages link to ``../../deploy/compose.yaml`` or ``../../CHANGELOG.md``, which is right on a code
host. On the site, a file outside ``docs/`` gets a page that shows it, a folder one that lists what
is in it, and the texts of `ROOT_TEXTS` are pages like any other. What does not exist is left alone,
so that MyST warns about it.
"""

from __future__ import annotations

from html import escape
from os.path import normpath, relpath
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.addnodes import download_reference, pending_xref

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
ROOT_TEXTS = {
    "project/readme": ROOT / "README.md",
    "project/changelog": ROOT / "CHANGELOG.md",
    "project/contributing": ROOT / "CONTRIBUTING.md",
    "project/security": ROOT / "SECURITY.md",
}
"""The page, and the text that replaces what it says on a code host."""
KEY = "repository_files"
"""Where a page's metadata keep which files it links to."""
LEXERS = {".service": "systemd", ".target": "systemd", ".socket": "systemd"}
SHOWN = ("deploy/", "examples/")
"""Folders whose files are linked where a page names one in backticks."""
PICTURES = {".svg", ".png", ".gif", ".webp", ".ico"}


def insert_root_text(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace a page of `ROOT_TEXTS` by the text that it links to."""
    if text := ROOT_TEXTS.get(docname):
        app.env.note_dependency(str(text))
        source[0] = text.read_text()


def resolve_links(app: Sphinx, doctree: nodes.document) -> None:
    """Point links and pictures of the page that has just been read to where the site has them."""
    docname = app.env.current_document.docname
    base = ROOT_TEXTS.get(docname, Path(app.srcdir, docname)).parent
    files = app.env.metadata[docname].setdefault(KEY, set())
    for image in doctree.findall(nodes.image):
        if "://" not in image["uri"]:
            image["uri"] = relpath(base / image["uri"], Path(app.srcdir, docname).parent)
    for node in [*doctree.findall(pending_xref), *doctree.findall(download_reference)]:
        if node.get("reftype") != "myst" or node["reftarget"].startswith("#"):
            continue
        target, _, anchor = node["reftarget"].partition("#")
        path = _path(app, base, node, target)
        if path is None or not path.is_relative_to(ROOT):
            continue
        if (page := _page(app, path)) is not None:
            _point_to_page(node, page, node.get("reftargetid") or anchor or None)
        elif not path.is_relative_to(app.srcdir):
            files.add(path.relative_to(ROOT).as_posix())
            node.replace_self(_link_to_file(app, docname, path, node.children))
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().rstrip("/")
        if name.startswith(SHOWN) and (ROOT / name).exists() and is_in_running_text(literal):
            files.add(name)
            literal.replace_self(_link_to_file(app, docname, ROOT / name, [literal.deepcopy()]))


def is_in_running_text(node: nodes.Node) -> bool:
    """Say whether *node* is not part of a heading or a link."""
    parent = node.parent
    while parent is not None:
        if isinstance(parent, nodes.title | nodes.reference | pending_xref):
            return False
        parent = parent.parent
    return True


def _link_to_file(
    app: Sphinx, docname: str, path: Path, children: list[nodes.Node]
) -> nodes.reference:
    uri = app.builder.get_relative_uri(docname, _page_of_file(path))
    return nodes.reference("", "", *children, refuri=uri, internal=True)


def _path(app: Sphinx, base: Path, node: nodes.Element, target: str) -> Path | None:
    """Return the existing file or folder that a link means."""
    if node.get("refdomain") == "doc":  # MyST found a text and took off its suffix
        path = Path(app.srcdir, f"{target}.md")
    else:
        path = Path(normpath(base / target))
    return path if target and path.exists() else None


def _page(app: Sphinx, path: Path) -> str | None:
    """Return the page that is made of *path*."""
    for page, text in ROOT_TEXTS.items():
        if path == text and page in app.env.found_docs:
            return page
    found = app.env.path2doc(path)
    return found if found in app.env.found_docs else None


def _point_to_page(node: nodes.Element, page: str, anchor: str | None) -> None:
    attributes = node.attributes | {"refdomain": "doc", "reftarget": page, "reftargetid": anchor}
    node.replace_self(pending_xref("", *node.children, **attributes))


def _page_of_file(path: Path) -> str:
    return f"files/{path.relative_to(ROOT).as_posix()}"


# -- pages that show files ---------------------------------------------------------------


def _entries(folder: Path) -> list[Path]:
    """Return the text files in *folder*, at any depth, without what programs left there."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part[0] in "._" for part in path.relative_to(folder).parts[:-1])
        and "node_modules" not in path.parts
        and _text(path) is not None
    ]


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


def _lexer(path: Path, text: str) -> str:
    if path.name == "Procfile" and "&&" in text:
        return "text"  # what Pygments calls a Procfile has one program a line
    if path.suffix in LEXERS:
        return LEXERS[path.suffix]
    if path.suffix == ".conf" and "server {" in text:
        return "nginx"
    try:
        return str(get_lexer_for_filename(path.name, text).aliases[0])
    except ClassNotFound:
        return "text"


def _body(app: Sphinx, path: Path) -> str:
    """Return the HTML of the page that shows *path*."""
    page, name = _page_of_file(path), escape(path.relative_to(ROOT).as_posix())
    if path.is_dir():
        items = [
            f'<li><a href="{app.builder.get_relative_uri(page, _page_of_file(entry))}">'
            f"<code>{escape(entry.relative_to(path).as_posix())}</code></a></li>"
            for entry in _entries(path)
        ]
        return f"<h1><code>{name}/</code></h1><ul>{''.join(items)}</ul>"
    raw = escape(path.name)
    head = (
        f"<h1><code>{name}</code></h1>"
        f'<p>A file of the repository. <a href="{raw}" download>Download</a></p>'
    )
    text = _text(path)
    if text is None or path.suffix in PICTURES:
        return f'{head}<p><img src="{raw}" alt="{raw}"></p>' if path.suffix in PICTURES else head
    code = app.builder.highlighter.highlight_block(text, _lexer(path, text))
    return f'{head}<div class="highlight-default notranslate">{code}</div>'


def pages_of_files(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file that a page links to; copy the file beside it."""
    linked = {name for data in app.env.metadata.values() for name in data.get(KEY, ())}
    paths = {ROOT / name for name in linked}
    paths.update(entry for folder in list(paths) if folder.is_dir() for entry in _entries(folder))
    for path in sorted(paths):
        page = _page_of_file(path)
        if path.is_file():
            copy = Path(app.outdir, page)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copyfile(path, copy)
        yield page, {"title": path.name, "body": _body(app, path)}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", insert_root_text)
    app.connect("doctree-read", resolve_links, priority=400)  # before pictures are collected
    app.connect("html-collect-pages", pages_of_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
