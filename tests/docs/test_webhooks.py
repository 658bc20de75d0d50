"""What docs/how-to/webhooks.md shows: its settings, and its receivers, run as they stand there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.workers import answers, no_services, offer
from tests.pages import BLOCK, DocumentPage
from tests.receiver import SECRET
from tests.support import Process, site_env
from wsgateway.broker.embedded import free_port
from wsgateway.broker.memory import MemoryBroker, reset_shared_store
from wsgateway.conf import SETTINGS
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.services.registry import get_service
from wsgateway.services.worker import Worker
from wsgateway.webhooks.config import WEBHOOK, webhook_flaws
from wsgateway.webhooks.signing import key_of, signed_headers

__all__ = ["no_services"]  # a fixture

PAGE = DocumentPage("how-to/webhooks.md")


def test_settings_of_the_page_are_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_WEBHOOK_SECRET", SECRET)
    blocks = [match[2] for match in BLOCK.finditer(PAGE.text) if match[1] == "python"]
    assert len(blocks) == 3
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        assert webhook_flaws(names["WSGATEWAY_WEBHOOKS"]) == ""


@pytest.mark.parametrize("path", ["how-to/presence-events.md", "how-to/identity.md"])
def test_settings_of_other_pages_are_possible(
    path: str, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    for name in ("EVENTS", "IDENTITY"):
        monkeypatch.setenv(f"{name}_WEBHOOK_SECRET", SECRET)
    names: dict[str, Any] = {}
    exec(DocumentPage(path).code("_WEBHOOK = {"), names)
    (name,) = [each for each in names if each.endswith("_WEBHOOK")]
    setattr(settings, name, names[name])
    assert SETTINGS[name].problem() is None
    assert set(names[name]) > {"url", "secret"}


def test_every_option_is_on_the_page() -> None:
    _, _, section = PAGE.text.partition("\n## Options\n")
    for name in WEBHOOK:
        assert f"\n| `{name}` |" in section


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def node(tmp_path: Path, port: int) -> Iterator[Process]:
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not on PATH")
    (tmp_path / "receiver.mjs").write_text(PAGE.files()["receiver.mjs"])
    env = site_env(WEBHOOK_SECRET=SECRET, PORT=str(port))
    process = Process([program, "receiver.mjs"], tmp_path / "log", env, tmp_path)
    yield process
    process.kill()


@pytest.fixture
def golang(tmp_path: Path, port: int) -> Iterator[Process]:
    program = shutil.which("go")
    if program is None:
        pytest.skip("go is not on PATH")
    (tmp_path / "receiver.go").write_text(PAGE.files()["receiver.go"])
    subprocess.run([program, "build", "receiver.go"], cwd=tmp_path, check=True)
    env = site_env(WEBHOOK_SECRET=SECRET, PORT=str(port))
    process = Process([str(tmp_path / "receiver")], tmp_path / "log", env, tmp_path)
    yield process
    process.kill()


@asynccontextmanager
async def posting(port: int, settings: Any) -> AsyncIterator[tuple[MemoryBroker, Worker]]:
    """Run a worker that posts to a receiver."""
    settings.PUBSUB_BROKER = "memory"
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_WEBHOOKS = {
        "orders": {
            "url": f"http://127.0.0.1:{port}/",
            "secret": [f"whsec_{'A' * 32}", SECRET],
            "allow_private": ["127.0.0.0/8"],
        }
    }
    reset_shared_store()
    broker = MemoryBroker.from_settings(wsgateway_settings)
    await broker.open()
    worker = Worker(get_service("orders"), broker)
    worker.start()
    try:
        yield broker, worker
    finally:
        await worker.stop(5.0)
        await broker.close()


async def check(process: Process, port: int, settings: Any) -> None:
    """Let a receiver answer, refuse, find out what is not signed, and survive broken requests."""
    process.spawn()
    url = f"http://127.0.0.1:{port}/"
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(60):
        while True:
            try:
                forged = await client.post(url, json={"user": "ann"})
                break
            except httpx.ConnectError:
                assert process.running, process.output
                await asyncio.sleep(0.02)
        assert forged.status_code == 401
        for headers in (
            {"webhook-signature": "v1,x ä"},
            {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,"},
        ):
            encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
            assert (await client.post(url, content=b"{}", headers=encoded)).status_code == 401
        with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it need not read all of it
            assert (await client.post(url, content=b"x" * 3_000_000)).status_code in (401, 413)
        for body in (b"", b"{", b"null", b"[]", b'{"data": null}', b"\xff"):
            headers = signed_headers("msg_1", int(time.time()), body, [key_of(SECRET)])
            with contextlib.suppress(httpx.RemoteProtocolError):  # as good as an error's status
                rejected = await client.post(url, content=body, headers=headers)
                assert rejected.status_code >= 400
    for broken in (b"GET", b"\0", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(broken)
        await writer.drain()
        writer.transport.abort()
    async with posting(port, settings) as (broker, _), asyncio.timeout(20):
        await offer(broker, '{"item": "tea"}', Ws_Client_Id="c1", Ws_Request="c1")
        await offer(broker, '{"milk": 1}', Ws_Client_Id="c2", Ws_Request="c2")
        while len(found := await answers(broker)) < 2:
            await asyncio.sleep(0.01)
    assert json.loads(found[0].payload) == {"item": "tea", "user": "ann", "price": 9}
    assert (found[1].error, found[1].payload) == ("no_item", b"say which item you want")


@pytest.mark.usefixtures("no_services")
async def test_receiver_in_node(node: Process, port: int, settings: Any) -> None:
    await check(node, port, settings)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.usefixtures("no_services")
async def test_receiver_in_go(golang: Process, port: int, settings: Any) -> None:
    """Compiling Go's library takes half a minute where nobody has done it before."""
    await check(golang, port, settings)
