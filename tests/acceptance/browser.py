"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import websockets.asyncio.client

from tests.support import until

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)

CONTRAST = """
(() => {
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => rgba(color).slice(0, 3)
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return 'white';
  };
  const texts = [...document.querySelectorAll('body *')].filter((node) =>
    node.checkVisibility() && [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim()));
  return texts.map((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), node.textContent.trim().slice(0, 40)];
  }).filter(([ratio]) => ratio < 4.5);
})()
"""
"""Texts that cannot be read well: contrast, and what they say."""

DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
SETTLED = "document.getAnimations().every((each) => each.playState !== 'running')"


class Page:
    """One tab.

    Args:
        connection: The tab's DevTools socket.
        port: Where the browser's DevTools listen.
    """

    def __init__(self, connection: websockets.asyncio.client.ClientConnection, port: int) -> None:
        self._connection = connection
        self._port = port
        self._ids = itertools.count(1)
        self._seen: list[str] = []  # what the page logged, and where it went

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        number = next(self._ids)
        request = {"id": number, "method": method, "params": params}
        await self._connection.send(json.dumps(request))
        while True:
            answer = json.loads(await asyncio.wait_for(self._connection.recv(), 30))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._see(answer)

    def _see(self, event: dict[str, Any]) -> None:
        match event:
            case {"method": "Runtime.consoleAPICalled", "params": {"args": values}}:
                shown = (str(each.get("value", each.get("description"))) for each in values)
                self._seen.append(f"console: {' '.join(shown)}")
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self._seen.append(f"exception: {details}")
            case {"method": "Page.frameNavigated", "params": {"frame": {"url": url}}}:
                self._seen.append(f"loaded {url}")

    async def crash(self) -> None:
        """Kill the tab's process; the tab answers nothing any more."""
        await self._connection.send(json.dumps({"id": 0, "method": "Page.crash"}))

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = await self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait(self, script: str, timeout: float = 30.0) -> Any:
        """Return the first true value of a JavaScript expression."""
        deadline = time.monotonic() + timeout
        while not (value := await self.run(script)):
            if time.monotonic() > deadline:
                shown = await self.run("document.documentElement.outerHTML")
                raise AssertionError("\n".join([f"never true: {script}", *self._seen, shown]))
            await asyncio.sleep(0.05)
        return value

    async def enable(self) -> None:
        """Have the tab tell what its page does, for the text of a failure."""
        await self.command("Page.enable")
        await self.command("Runtime.enable")

    async def open(self, url: str) -> None:
        """Load a page."""
        await self.command("Page.navigate", url=url)
        await self.wait(
            f"document.readyState === 'complete' && location.href === {json.dumps(url)}"
        )

    @contextlib.asynccontextmanager
    async def another(self) -> AsyncIterator[Page]:
        """Open another tab of the same browser; close it at the end."""
        target = (await self.command("Target.createTarget", url="about:blank"))["targetId"]
        url = f"ws://127.0.0.1:{self._port}/devtools/page/{target}"
        async with websockets.asyncio.client.connect(url, max_size=None, proxy=None) as connection:
            page = Page(connection, self._port)
            await page.enable()
            yield page
        await self.command("Target.closeTarget", targetId=target)

    async def network(self, *, offline: bool) -> None:
        """Cut the tab's network, or mend it."""
        await self.command("Network.enable")
        await self.command(
            "Network.emulateNetworkConditions",
            offline=offline,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    async def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show the page in a window of this size."""
        await self.command("Emulation.setScrollbarsHidden", hidden=True)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.command("Emulation.setEmulatedMedia", features=scheme)
        await self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
            screenWidth=width,
            screenHeight=height,
        )
        is_dark = "matchMedia('(prefers-color-scheme: dark)').matches"
        await self.wait(f"screen.width === {width} && {is_dark} === {str(dark).lower()}")
        await self.run(DRAWN)
        await self.wait(SETTLED)

    async def screenshot(self, path: Path, width: int, height: int, *, dark: bool = False) -> None:
        """Save a picture of the page in a window of this size."""
        await self.resize(width, height, dark=dark)
        picture = await self.command("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(picture["data"]))


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """Start Chromium with a profile in *folder*; give its only tab."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:  # .ci/run installs it
        pytest.skip("needs Chromium: apt-get install chromium")
    profile = folder / "profile"
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        await until(lambda: port_file.exists() and port_file.read_text().count("\n"), 30)
        port = port_file.read_text().splitlines()[0]
        tab = await _first_tab(int(port))
        async with websockets.asyncio.client.connect(tab, max_size=None, proxy=None) as connection:
            page = Page(connection, int(port))
            await page.enable()
            yield page
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _first_tab(port: int) -> str:
    def ask() -> str | None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            tabs = json.loads(answer.read())
        return next((t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"), None)

    for _ in range(50):
        if found := await asyncio.to_thread(ask):
            return found
        await asyncio.sleep(0.1)
    raise AssertionError("Chromium opened no tab")
