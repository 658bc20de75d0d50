"""The examples of docs/reference/client-javascript.md, and one more, run as they stand there.

Those in templates run in `test_frontend`, which has a project with pages.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.client_page import INBOX
from tests.faults.traffic import broker_at
from tests.support import ROOT, Gateway
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.messages import REPLY_TO_HEADER, REQUEST_HEADER
from wsgateway.broker.nats import headers as hdrs
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.identity import make_token
from wsgateway.protocol.subjects import Topic

PAGE = (ROOT / "docs/reference/client-javascript.md").read_text()
TOPICS = (ROOT / "docs/how-to/topics.md").read_text()
MODULES = ROOT / "tests/js/node_modules"
BLOCKS: list[str] = re.findall(r"```js\n(.*?)```", PAGE, re.S)
NAMED = {text.split()[1]: text for text in BLOCKS if text.startswith("// ")}
SNIPPETS = [text for text in BLOCKS if not text.startswith("// ")]
SNIPPETS += re.findall(r"```js\n(.*?)```", TOPICS.replace("/ws/chat/", "/ws/orders/"), re.S)


def module_of(snippets: list[str]) -> str:
    """Return a module whose list ``snippets`` has each of them as a function of its own."""
    names = "{ WsGateway, document, fetch, localStorage, location, console, save }"
    functions = []
    for text in snippets:
        body = re.sub(r"^import .*$", "", text, flags=re.M)
        client = "_client" if "const client" in body else "client"
        run = f"async ({client}, {names}) => {{\n{body}\n}}"
        functions.append(f"{{ endless: {json.dumps('for await' in body)}, run: {run} }}")
    return "export const snippets = [\n" + ",\n".join(functions) + "\n];\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Node project with ``"type": "module"``, the client, and ws."""
    if not (MODULES / "ws").exists():
        pytest.skip('needs what "npm install" in tests/js fetches from the registry')
    project = tmp_path / "project"
    (project / "node_modules").mkdir(parents=True)
    (project / "node_modules/ws").symlink_to(MODULES / "ws")
    (project / "node_modules/wsgateway").symlink_to(ROOT / "wsgateway/static/wsgateway")
    (project / "package.json").write_text('{"type": "module"}')
    return project


@pytest.fixture
def token(settings: Any) -> str:
    settings.SECRET_KEY = "tests"
    return make_token(*INBOX)


@pytest.fixture
async def broker(nats_server: EmbeddedServer, prefix: str) -> AsyncIterator[NatsBroker]:
    async with broker_at([nats_server.url], prefix) as broker:
        yield broker


async def answer_requests(broker: NatsBroker) -> None:
    """Be the service: answer each request as soon as it is published."""
    answers = set()

    def on_message(_subject: bytes, _reply: bytes, _data: bytes, raw: bytes | None) -> None:
        if request := hdrs.decode(raw).get(REQUEST_HEADER):
            reply = broker.publish(INBOX, b'{"bought":3}', headers={REPLY_TO_HEADER: request})
            answers.add(asyncio.ensure_future(reply))

    broker.connection.subscribe(broker.subjects.send(INBOX), on_message)
    await broker.connection.confirm()


async def test_examples_do_what_the_page_says(
    gateway_factory: Callable[..., Gateway], broker: NatsBroker, folder: Path, token: str
) -> None:
    gateway = gateway_factory(
        DJANGO_SETTINGS_MODULE="tests.topics_app.settings",
        WSGATEWAY_MAY_WATCH="tests.presence_app.rights.may_watch",
    )
    async with gateway.connect(*INBOX, query="?device=first"):  # which creates the streams
        pass
    for _ in range(10):
        await broker.publish(INBOX, b'{"item":"tea"}', kind="text")
    await broker.publish(Topic("room", "42"), b"from a service", kind="text")
    await answer_requests(broker)
    (folder / "snippets.js").write_text(module_of(SNIPPETS))
    program = str(ROOT / "tests/js/examples.mjs")
    process = await asyncio.create_subprocess_exec(
        *("node", program, str(folder / "snippets.js"), gateway.http("/"), token),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(process.communicate(), 30)
    assert errors == b""
    report = json.loads(out)
    assert [1, '{"item":"tea"}'] in report["logged"]
    assert [{"bought": 3}] in report["logged"], "the reply"
    assert ["bob", False] in report["logged"], "whether a user is online"
    assert [None, "from a service"] in report["logged"], "a message of a topic"
    ann = INBOX._asdict()
    assert [{"users": [ann], "joined": [ann], "left": []}] in report["logged"], "who reads it"
    assert report["logged"].count([[ann]]) == 2, "the same, by both pages"
    assert {"item": "tea"} in report["saved"]
    assert [{"item": "tea"}] * 10 in report["saved"], "the batch"
    assert report["device"]


async def test_node_script_prints_messages(
    gateway: Gateway, broker: NatsBroker, folder: Path, token: str
) -> None:
    async with gateway.connect(*INBOX, query="?device=first"):
        pass
    await broker.publish(INBOX, b"hello", kind="text")
    (folder / "listen.js").write_text(NAMED["listen.js"])
    process = await asyncio.create_subprocess_exec(
        *("node", "listen.js", gateway.ws("/ws/orders/"), token),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"hello\n"
    finally:
        process.kill()
        await process.wait()


def test_example_of_a_test_passes_and_types_are_right(folder: Path) -> None:
    node = shutil.which("node")
    assert node
    (folder / "orders.test.js").write_text(NAMED["orders.test.js"])
    [typed] = re.findall(r"```ts\n(.*?)```", PAGE, re.S)
    (folder / "typed.ts").write_text(typed)
    tested = [node, "--test", "--test-reporter=tap"]
    done = subprocess.run(tested, cwd=folder, capture_output=True, text=True)
    assert "# pass 1\n" in done.stdout, done.stdout
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext"]
    done = subprocess.run(
        [MODULES / ".bin/tsc", *options, "typed.ts"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
