"""The documentation site: what ``make site`` must refuse, and what it makes of links."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest

from tests.acceptance.browser import browser
from tests.support import ROOT

pytestmark = [
    pytest.mark.skipif(
        find_spec("sphinx") is None, reason="Sphinx is not installed; `make site` installs it"
    ),
    pytest.mark.timeout(180),  # building the site takes ten seconds, on a machine that is free
]
KINDS = ("tutorial", "how-to", "reference", "explanation")


def build(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a site in *folder* with the options of ``make site``."""
    command = (ROOT / "Makefile").read_text().split("sphinx-build", 1)[1].splitlines()[0].split()
    assert command[-3:] == ["docs", "build/site", "$(ARGS)"]
    options = [".cache" if option == ".cache/sphinx" else option for option in command[:-3]]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *options, "-c", ROOT / "docs", source, folder / "site"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


def build_pages(pages: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Build a site of these *pages*."""
    source = folder / "docs"
    indexes = dict.fromkeys((f"{kind}/index.md" for kind in KINDS), "# Index\n")
    for name, text in {"index.md": "# Site\n", **indexes, **pages}.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return build(source, folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of the documents; in CI, the one that `make site` has built."""
    if "SITE" in os.environ:
        return Path(os.environ["SITE"])
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT / "docs", folder)
    assert result.stderr == ""
    assert result.returncode == 0
    return folder / "site"


def test_site_with_broken_links_is_refused(tmp_path: Path) -> None:
    """Each kind of broken link is named; the site is not accepted."""
    broken = {
        "a page": "[text](missing.md)",
        "an anchor of another page": "[text](page.md#missing-there)",
        "an anchor of the page itself": "[text](#missing-here)",
        "a picture": "![text](missing.png)",
        "a picture in HTML": '<img src="missing-html.png" alt="">',
        "a picture for dark pages": '<picture><source media="(prefers-color-scheme: dark)" '
        'srcset="missing-dark.png"><img src="page.md" alt=""></picture>',
        "a file outside docs/": "[text](../deploy/missing.yaml)",
        "a folder outside docs/": "[text](../missing-folder/)",
        "a setting that does not exist": "`WSGATEWAY_MISSING`",
        "a reference-style link": "[text][key]\n\n[key]: missing-key.md",
    }
    index = (
        "# Index\n\n## Group\n\n- [Page](page.md): is here.\n- [Gone](missing-entry.md): is not.\n"
    )
    text = "\n\n".join(["# Page", "## Good anchor", *broken.values()])
    pages = {
        "how-to/index.md": index,
        "how-to/page.md": text,
        "how-to/missing-from-the-lists.md": "# Forgotten\n",
    }
    result = build_pages(pages, tmp_path)
    assert result.returncode != 0
    targets = (
        "missing.md",
        "missing-there",
        "missing-here",
        "missing.png",
        "missing-html.png",
        "missing-dark.png",
        "deploy/missing.yaml",
        "missing-folder/",
        "missing-key.md",
        "WSGATEWAY_MISSING is not a setting",
        "how-to/missing-entry",
        "missing-from-the-lists.md",
    )
    assert [target for target in targets if target not in result.stderr] == []


def test_links_out_of_the_documents_lead_to_pages_of_the_site(site: Path) -> None:
    """`LICENSE` and `deploy/` are outside ``docs/``, and the README is a page like any other."""
    measured = (site / "explanation/measured.html").read_text()
    assert 'href="../files/benchmarks/results/layer.csv.html"' in measured
    assert "<pre>" in (site / "files/benchmarks/results/layer.csv.html").read_text()
    raw = (ROOT / "benchmarks/results/layer.csv").read_bytes()
    assert (site / "files/benchmarks/results/layer.csv").read_bytes() == raw
    compose = (site / "how-to/deploy-compose.html").read_text()
    assert 'href="../files/deploy/docker/compose.yaml.html"' in compose  # it says only the path
    changelog = (site / "project/changelog.html").read_text()
    assert 'href="../reference/settings.html' in changelog


def test_site_asks_no_other_host_for_anything(site: Path) -> None:
    """Fonts, scripts, styles and pictures come from the site, so it works from a file server."""
    for page in site.rglob("*.html"):
        text = page.read_text()
        for attribute in (' src="', '<link rel="stylesheet" type="text/css" href="'):
            starts = [part[:8] for part in text.split(attribute)[1:]]
            assert [start for start in starts if start.startswith(("http", "//"))] == [], page
    for style in site.rglob("*.css"):
        assert "url(http" not in style.read_text(), style


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    """The URL of a file server that has the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the tests' output for the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


RESULTS = "[...document.querySelectorAll('#search-results li a')].map((link) => link.href)"
SCHEME = "getComputedStyle(document.body).colorScheme"


async def test_reader_finds_a_setting_and_pages_fit_a_phone(served: str, tmp_path: Path) -> None:
    """Search works without a server of its own; wide tables scroll in themselves."""
    async with browser(tmp_path) as page:
        await page.open(f"{served}search.html?q=WSGATEWAY_INBOX_MAX_AGE")
        found = await page.wait(f"({RESULTS}).length && ({RESULTS})")
        assert any("reference/settings.html" in link for link in found)
        await page.command(
            "Emulation.setDeviceMetricsOverride",
            width=390,
            height=800,
            deviceScaleFactor=1,
            mobile=True,
        )
        for name in ("index", "reference/metrics", "reference/commands", "reference/errors"):
            await page.open(f"{served}{name}.html")
            assert await page.run("document.documentElement.scrollWidth") == 390, name
        for theme in ("dark", "light"):  # pictures follow what the reader chose
            await page.run(f"document.body.dataset.theme = '{theme}'")
            assert await page.run(SCHEME) == theme
