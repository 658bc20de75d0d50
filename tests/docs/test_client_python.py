"""docs/reference/client-python.md: its options are the constructor's, and its program runs."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.traffic import broker_at, stored
from tests.pages import DocumentPage
from tests.support import ROOT, Gateway, Process, running, site_env, until
from tests.unit.fake_gateway import FakeGateway
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.client import Client
from wsgateway.identity import make_token
from wsgateway.protocol.subjects import Inbox

PAGE = DocumentPage("reference/client-python.md")


def test_options_are_those_of_the_constructor() -> None:
    section = PAGE.text.partition("## Options")[2]
    told = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", section, re.M))
    parameters = inspect.signature(Client).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert told == {p.name: repr(p.default) for p in keywords}


async def test_program_of_the_page_receives(
    gateway: Gateway, nats_server: EmbeddedServer, prefix: str, tmp_path: Path, settings: Any
) -> None:
    settings.SECRET_KEY = "tests"
    text = PAGE.code("client.send").replace("127.0.0.1:8000", f"127.0.0.1:{gateway.port}")
    (tmp_path / "page.py").write_text(text.replace("…", make_token("orders", "ann")))
    env = site_env(PYTHONPATH=str(ROOT))
    program = Process([sys.executable, "page.py"], tmp_path / "page.log", env, tmp_path)
    async with gateway.connect("orders", "ann"):
        pass  # the streams exist from then on
    with running(program):
        program.spawn()
        async with broker_at([nats_server.url], prefix) as broker:
            await broker.publish(Inbox("orders", "ann"), b"hello")
            await until(lambda: "1 hello" in program.output, 20, "the program prints it")
            assert await stored(broker, "send", Inbox("orders", "ann")) == [b'{"buy":3}']


async def test_program_of_the_page_reads_and_writes_a_topic(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with FakeGateway().running() as fake:
        room = fake.topic("room.42")
        text = PAGE.code("room.send").replace("ws://127.0.0.1:8000/ws/chat/", fake.url)
        names: dict[str, Any] = {}
        exec(text.replace("asyncio.run(main())", ""), names)
        program = asyncio.create_task(names["main"]())
        await until(lambda: fake.stored)
        await room.store("hello back")
        await until(lambda: "user='bob') hello back" in capsys.readouterr().out)
        program.cancel()
        await asyncio.wait({program})
    assert [frame.data for frame in fake.stored.values()] == ['{"text":"hello"}']


async def test_program_of_the_page_says_who_comes_and_goes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with FakeGateway().running() as fake:
        lounge = fake.topic("lounge.1", users=[Inbox("orders", "ann")])
        text = PAGE.code("lounge.watch").replace("ws://127.0.0.1:8000/ws/chat/", fake.url)
        names: dict[str, Any] = {}
        exec(text.replace("asyncio.run(main())", ""), names)
        program = asyncio.create_task(names["main"]())
        await until(lambda: lounge.watchers)
        await lounge.change_users("bob")
        said = ""

        def has_left() -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return "left" in said

        await until(has_left)
        program.cancel()
        await asyncio.wait({program})
    assert said == "ann joined\nbob joined\nann left\n"
