"""What the pages on React, htmx and the JavaScript client show, as it stands there, in Chromium."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.acceptance.browser import Page, browser
from tests.acceptance.shop import Shop, build_shop
from tests.support import ROOT, Process, listening, running, site_env, wait_for
from wsgateway.broker.embedded import EmbeddedServer, free_port

pytestmark = pytest.mark.timeout(120)  # npm and Vite take their time on a busy machine

MODULES = ROOT / "tests/js/node_modules"
PAGE = ROOT / "docs/how-to/react.md"
LINES = "[...document.querySelectorAll('li')].map((line) => line.textContent)"
STATUS = "document.querySelector('[role=status]').textContent"
STATE = "document.querySelector('#connection')?.textContent"
COUNT_SOCKETS = """
  window.sockets = [];
  window.WebSocket = class extends WebSocket {
    constructor(url, ...rest) {
      super(url, ...rest);
      if (String(url).includes('/ws/')) sockets.push(this);
    }
  };
"""
TSCONFIG = {
    "compilerOptions": {
        "target": "es2023",
        "lib": ["ES2023", "DOM", "DOM.Iterable"],
        "types": ["vite/client"],
        "module": "esnext",
        "moduleResolution": "bundler",
        "moduleDetection": "force",
        "verbatimModuleSyntax": True,
        "erasableSyntaxOnly": True,
        "jsx": "react-jsx",
        "strict": True,
        "noEmit": True,
        "noUnusedLocals": True,
        "noUnusedParameters": True,
        "skipLibCheck": True,
    },
    "include": ["src", "vite.config.ts"],
}
"""As `npm create vite` writes it for the template react-ts."""
INDEX = """<!doctype html>
<html lang="en">
  <head><meta charset="UTF-8" /><title>frontend</title></head>
  <body><div id="root"></div><script type="module" src="/src/main.tsx"></script></body>
</html>
"""
SWAP = """
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { Orders } from "./Orders";

function Pages() {
  const [page, setPage] = useState(1);
  return (
    <>
      {page < 3 ? <Orders key={page} /> : <p>Goodbye</p>}
      <button id="next" onClick={() => setPage(page + 1)}>Page {page}</button>
    </>
  );
}

createRoot(document.getElementById("root")!).render(<StrictMode><Pages /></StrictMode>);
"""
"""Two pages with the component, which React mounts again, and one without it."""


@pytest.fixture(scope="module")
def shop(nats_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    if not (MODULES / "vite").exists() or shutil.which("npm") is None:
        pytest.skip('needs what "npm install" in tests/js fetches from the registry')
    with build_shop(tmp_path_factory.mktemp("shop"), nats_server.url) as shop:
        yield shop


@pytest.fixture(scope="module")
def frontend(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Vite project with the files of the page, into which the packed client was installed.

    React and Vite themselves are in the folder above, where Node looks for them, too.
    """
    npm = shutil.which("npm") or "npm"
    folder = tmp_path_factory.mktemp("npm") / "frontend"
    (folder / "src").mkdir(parents=True)
    (folder.parent / "node_modules").symlink_to(MODULES)
    for name, text in re.findall(r"```tsx?\n// (\S+)\n(.*?)```", PAGE.read_text(), re.S):
        (folder / name).write_text(text.replace("http://127.0.0.1:8000", shop.gateway.http("")))
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    (folder / "tsconfig.json").write_text(json.dumps(TSCONFIG))
    (folder / "index.html").write_text(INDEX)
    (folder / "swap.html").write_text(INDEX.replace("main.tsx", "swap.tsx"))
    (folder / "src/swap.tsx").write_text(SWAP)
    run(npm, "pack", "--silent", ROOT / "wsgateway/static/wsgateway", cwd=folder)
    quiet = ("--offline", "--no-audit", "--no-fund")
    [tarball] = folder.glob("*.tgz")
    run(npm, "install", *quiet, f"./{tarball.name}", cwd=folder)
    return folder


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def vite(folder: Path, *command: str) -> Iterator[str]:
    """Run Vite's server for development, or with ``preview`` for what it built; give its origin."""
    port = free_port()
    node = shutil.which("node") or "node"
    options = ["--host", "127.0.0.1", "--port", str(port), "--strictPort"]
    arguments = [node, str(MODULES / "vite/bin/vite.js"), *command, *options]
    process = Process(arguments, folder / "vite.log", site_env(), folder)
    process.spawn()
    origin = f"http://127.0.0.1:{port}"
    with running(process):
        wait_for(lambda: listening(port) or not process.running, 30, "Vite listens")
        assert process.running, process.output
        if "preview" not in command:
            warm_up(origin, folder)
        try:
            yield origin
        except BaseException as error:
            error.add_note(f"Vite said:\n{process.output}")
            raise


def warm_up(origin: str, folder: Path) -> None:
    """Wait until Vite has bundled what the pages import.

    It reloads a page that is open by then, and a message that the page had processed is gone.
    """
    for name in ("main", "swap"):
        with urllib.request.urlopen(f"{origin}/src/{name}.tsx", timeout=60) as answer:
            answer.read()
    wait_for((folder / "node_modules/.vite/deps/_metadata.json").exists, 60, "Vite has bundled")


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path) as page:
        await page.command("Page.addScriptToEvaluateOnNewDocument", source=COUNT_SOCKETS)
        yield page


def test_types_and_build_of_a_vite_project(frontend: Path) -> None:
    tsc = MODULES / ".bin/tsc"
    run(tsc, "--project", frontend, cwd=frontend)
    [source] = frontend.glob("src/useGateway.ts")
    assert len(source.read_text().splitlines()) <= 60

    wrong = frontend / "src/wrong.ts"
    wrong.write_text('import { WsGateway } from "wsgateway";\nnew WsGateway(1, { devise: "x" });\n')
    done = subprocess.run([tsc, "-p", frontend], cwd=frontend, capture_output=True, text=True)
    wrong.unlink()
    assert done.stdout.count("wrong.ts") == 1, "the package's types are not those that count"


async def test_react_in_strict_mode_behind_vites_proxy(
    frontend: Path, shop: Shop, page: Page
) -> None:
    """One socket for components that mount twice, are two, or follow each other; none without."""
    with vite(frontend) as origin:
        await page.open(f"{origin}/admin/login/?next=/admin/")
        await page.run("id_username.value = id_password.value = 'ann'")
        await page.run("document.querySelector('form').submit()")
        await page.wait("location.pathname === '/admin/'")
        await page.open(f"{origin}/")
        await page.wait(f"{STATE} === 'open'")
        assert await page.run("sockets.length") == 1
        await shop.send("ann", "one")
        await page.wait(f"{LINES}.length === 1")
        await order(page, "tea")
        await page.wait("document.querySelector('input').value === ''")
        await page.wait(f"{LINES}.length === 2")
        assert (await page.run(LINES))[0] == "one"
        assert await page.run("sockets.length") == 1

        await page.open(f"{origin}/swap.html")
        await page.wait("sockets.at(-1)?.readyState === 1")
        await page.run("document.querySelector('#next').click()")
        await page.wait("document.querySelector('#next').textContent === 'Page 2'")
        await shop.send("ann", "two")
        await page.wait(f"{LINES}.includes('two')")
        assert await page.run("sockets.map((socket) => socket.readyState)") == [1]
        await page.run("document.querySelector('#next').click()")
        await page.wait("sockets[0].readyState === 3")
        assert await page.run("sockets.length") == 1, "nobody needs a connection now"


async def order(page: Page, item: str) -> None:
    await page.run(f"document.querySelector('input').value = {json.dumps(item)}")
    await page.run("document.querySelector('form').requestSubmit()")


async def test_react_build_goes_offline_and_resumes(frontend: Path, shop: Shop, page: Page) -> None:
    run(MODULES / ".bin/vite", "build", "--logLevel", "warn", cwd=frontend)
    with vite(frontend, "preview") as origin:
        await shop.log_in(page, "bob")
        await page.open(f"{origin}/")
        await page.wait(f"{STATE} === 'open'")
        await shop.send("bob", "before")
        await page.wait(f"{LINES}.length === 1")
        await page.network(offline=True)
        await page.run("sockets.at(-1).close()")
        await page.wait(f"{STATE} === 'offline'")
        await order(page, "tea")
        await shop.send("bob", "meanwhile")
        await page.network(offline=False)
        await page.wait(f"{STATE} === 'open'")
        await page.wait("document.querySelector('input').value === ''")
        await page.wait(f"{LINES}.length === 3")
        assert (await page.run(LINES))[:2] == ["before", "meanwhile"]
        assert await page.run("document.querySelector('[role=alert]').textContent") == ""


async def open_shop(page: Page, shop: Shop, user: str, template: str) -> None:
    """Open a page of *user* and wait for its socket."""
    await shop.log_in(page, user)
    await page.open(shop.gateway.http(f"/shop/{template}.html"))
    await page.wait("sockets.at(-1)?.readyState === 1")


@asynccontextmanager
async def both_versions(
    page: Page, shop: Shop, user: str, template: str
) -> AsyncIterator[tuple[Page, Page]]:
    """Open the page for htmx 2, and the one for htmx 4 in another tab."""
    async with page.another() as tab:
        await tab.command("Page.addScriptToEvaluateOnNewDocument", source=COUNT_SOCKETS)
        await open_shop(page, shop, user, template)
        await open_shop(tab, shop, user, f"{template}_htmx4")
        yield page, tab


async def test_htmx_extension_shows_fragments_and_reconnects(shop: Shop, page: Page) -> None:
    """A gateway that stopped closed raw sockets with 1001, after which the extension gave up."""
    wanted = []
    async with both_versions(page, shop, "cid", "orders") as tabs:

        async def orders_from_each_tab_arrive_in_both(*items: str) -> None:
            for tab, item in zip(tabs, items, strict=True):
                await order(tab, item)
                await tab.wait("document.querySelector('input').value === ''")
                wanted.append(item)
                for each in tabs:
                    await each.wait(f"{LINES}.length === {len(wanted)}")
                    assert await each.run(LINES) == wanted

        await orders_from_each_tab_arrive_in_both("<b>tea</b>", "milk")
        await asyncio.to_thread(shop.gateway.restart)
        for each in tabs:
            await each.command("Page.bringToFront")
            await each.wait("sockets.length > 1 && sockets.at(-1).readyState === 1")
        await orders_from_each_tab_arrive_in_both("coffee", "sugar")
    await page.open(shop.gateway.http("/shop/orders.html"))
    assert await page.run(LINES) == wanted, "the list is part of the page"


async def test_htmx_with_acknowledgements_loses_no_order(shop: Shop, page: Page) -> None:
    async with both_versions(page, shop, "dora", "orders_acknowledged") as tabs:
        await order(page, "tea")
        for each in tabs:
            await each.wait(f"{LINES}.includes('tea')")
        await page.wait(f"{STATUS} === 'Ordered.'")
        shop.gateway.kill()
        for each, item in zip(tabs, ("coffee", "sugar"), strict=True):
            await each.wait("sockets.at(-1).readyState === 3")
            await order(each, item)
            await each.wait(f"{STATUS} === 'Waiting for a connection…'")
            assert await each.run("document.querySelector('input').value") == item
        await asyncio.to_thread(shop.gateway.start)
        for each in tabs:
            await each.command("Page.bringToFront")
            await each.wait(f"{LINES}.length === 3 && {STATUS} === 'Ordered.'")
            assert await each.run("document.querySelector('input').value") == ""
            assert sorted(await each.run(LINES)) == ["coffee", "sugar", "tea"]


async def test_page_that_missed_updates_reloads_once(shop: Shop, page: Page) -> None:
    """It reloaded for ever: the gateway says so until the device has acknowledged something."""
    count = "sessionStorage.loads = Number(sessionStorage.loads ?? 0) + 1"
    await page.command("Page.addScriptToEvaluateOnNewDocument", source=count)
    await open_shop(page, shop, "eve", "orders_acknowledged")
    await shop.send("eve", "<p id='before' hx-swap-oob='beforeend:main'>before</p>")
    await page.wait("document.querySelector('main').textContent.includes('before')")
    await page.network(offline=True)
    await page.run("sockets.at(-1).close()")
    loads = int(await page.run("sessionStorage.loads"))
    await shop.send("eve", "<p>missed</p>")
    await shop.empty_inboxes()
    await page.network(offline=False)
    await page.wait(f"sessionStorage.loads > {loads} && sockets.at(-1)?.readyState === 1")
    await order(page, "tea")
    await page.wait(f"{LINES}.length === 1 && {STATUS} === 'Ordered.'")
    assert int(await page.run("sessionStorage.loads")) == loads + 1


async def test_templates_find_the_client_under_its_hashed_name(shop: Shop, page: Page) -> None:
    """As docs/reference/client-javascript.md shows, with the storage that Django recommends."""
    for name in ("inline", "mapped"):
        await open_shop(page, shop, "fay", name)
        await shop.send("fay", f"for {name}")  # whose inbox no other test counts
        await page.wait(f"document.querySelector('#last').textContent === 'for {name}'")
        entries = "performance.getEntriesByType('resource').map((entry) => entry.name)"
        scripts = {url.rpartition("/")[2] for url in await page.run(entries)}
        hashed = [script for script in scripts if re.fullmatch(r"wsgateway\.\w{12}\.js", script)]
        assert len(hashed) == 1, scripts
