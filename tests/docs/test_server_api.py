"""The page about the server API: its requests, sent by curl, have the answers that it shows."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from django.core.management import call_command

from tests.contract.topic_sessions.client import Client
from tests.docs import server_api
from tests.integration.backends import api_memory
from tests.pages import BLOCK, DocumentPage
from wsgateway.api import keys
from wsgateway.api.problems import KINDS
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.broker.connection import Connection
from wsgateway.broker.memory import MemoryBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.gateway.hub import Hub
from wsgateway.gateway.session import Session
from wsgateway.gateway.sockets import Socket
from wsgateway.identity import Identity
from wsgateway.protocol.v1 import Resume
from wsgateway.protocol.v1.endpoint import V1Endpoint

__all__ = ["api_memory"]  # a fixture

PAGE = DocumentPage("how-to/server-api.md")
SITE = "http://127.0.0.1:8000"
ANY = "…"
"""Stands for what is different each time."""


def examples() -> Iterator[tuple[str, Any]]:
    """Yield each request of the page, and the answer that follows; None if there is none."""
    request = ""
    for block in BLOCK.finditer(PAGE.text):
        if request:
            yield request, json.loads(block[2]) if block[1] == "json" else None
            request = ""
        if block[1] == "sh" and block[2].startswith("curl "):
            request = block[2]
    assert not request


def same(shown: Any, found: Any) -> bool:
    if shown == ANY:
        return isinstance(found, str) and bool(found)
    if isinstance(shown, dict) and isinstance(found, dict):
        return shown.keys() == found.keys() and all(same(shown[k], found[k]) for k in shown)
    if isinstance(shown, list) and isinstance(found, list):
        return len(shown) == len(found) and all(map(same, shown, found))
    return bool(shown == found)


@pytest.fixture
def ann(api_memory: None) -> Iterator[None]:
    """She has an open socket, as the page says.

    Its gateway is not the loop's own: that one would be draining for ever after.
    """

    async def connect(broker: Broker) -> tuple[Hub, Session]:
        made = MemoryBroker.from_settings(wsgateway_settings)
        hub = Hub(Connection(asyncio.get_running_loop(), made))
        await hub.open()
        await hub.broker.wait_ready()
        socket = Socket(Client(hub), V1Endpoint)
        session = Session(hub, Identity("orders", "ann"), socket)
        await session.start(Resume())
        return hub, session

    hub, session = runtime.call_sync(connect)
    yield

    async def leave(broker: Broker) -> None:
        await session.stop()
        await hub.close()

    runtime.call_sync(leave)


def test_requests_have_the_answers_that_the_page_shows(
    transactional_db: None,
    ann: None,
    live_server: Any,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = ModuleType("urls_of_the_page")
    exec(PAGE.code("urlpatterns"), urls.__dict__)
    monkeypatch.setitem(sys.modules, urls.__name__, urls)
    settings.ROOT_URLCONF = urls.__name__

    key = io.StringIO()
    command = shlex.split(PAGE.code("gateway key create", "sh").replace("\\\n", ""))
    call_command(*command[2:], stdout=key, stderr=io.StringIO())

    count = 0
    for request, answer in examples():
        assert SITE in request
        script = request.replace(SITE, live_server.url).replace("curl ", "curl -sS -m 20 ", 1)
        done = subprocess.run(
            ["bash", "-c", script],
            env={"KEY": key.getvalue().strip(), "PATH": "/usr/bin:/bin:/usr/local/bin"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        found = json.loads(done.stdout) if done.stdout else None
        assert same(answer, found), f"{request}\nanswers {done.stdout}"
        count += 1
    assert count >= 10


def test_page_names_every_action() -> None:
    for action, meaning in keys.ACTIONS.items():
        assert f"| `{action}` | {meaning} |" in PAGE.text


def test_every_problem_that_an_operation_has_is_in_the_table() -> None:
    statuses = {kind.status for kind in KINDS.values()}
    for operations in server_api.document()["paths"].values():
        for operation in operations.values():
            assert {int(status) for status in operation["responses"] if status >= "400"} <= statuses
