"""What docs/how-to/other-languages.md shows works: the program as it is, and the commands."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from tests.pages import DocumentPage
from tests.support import ROOT, Gateway, Process, site_env
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.client import GatewayError, connect
from wsgateway.protocol.subjects import encode_token

DOCUMENT = DocumentPage("how-to/other-languages.md")
PAGE = DOCUMENT.text


@pytest.fixture
def gateway(gateway_factory: Callable[..., Gateway]) -> Gateway:
    """A gateway whose site lists the page's service."""
    return gateway_factory(WSGATEWAY_SERVICES="prices")


@pytest.fixture
def service(tmp_path: Path, nats_server: EmbeddedServer, prefix: str) -> Iterator[Process]:
    """The program from the page, with the tests' npm packages."""
    node = shutil.which("node")
    assert node, "these tests need Node.js"
    (tmp_path / "prices.mjs").write_text(DOCUMENT.code("consumers.add", "js"))
    (tmp_path / "send.mjs").write_text(DOCUMENT.code("sale-1", "js"))
    (tmp_path / "node_modules").symlink_to(ROOT / "tests/js/node_modules")
    env = site_env(NATS_BROKER_URL=nats_server.url, WSGATEWAY_PREFIX=prefix)
    process = Process([node, "prices.mjs"], tmp_path / "prices.log", env, tmp_path)
    yield process
    process.kill()


def client_of(gateway: Gateway, **options: Any) -> Any:
    cookies = {"Cookie": "service=prices; user=ann@example.com"}
    url = gateway.ws("/ws/prices/")
    return connect(url, additional_headers=cookies, proxy=None, **options)


async def test_service_in_javascript_answers_and_survives_sigkill(
    gateway: Gateway, service: Process, nats_server: EmbeddedServer, prefix: str
) -> None:
    async with client_of(gateway) as client, await nats.connect(nats_server.url) as connection:
        stream = f"{prefix.upper()}_SEND_prices"
        # asked while there is no service: it waits in the queue
        asking = asyncio.create_task(client.request({"item": "tea"}))
        async with asyncio.timeout(20):
            while not (await connection.jsm().stream_info(stream)).state.messages:
                await asyncio.sleep(0.01)
        service.spawn()
        assert (await asyncio.wait_for(asking, 30)).json() == {"item": "tea", "price": 9}
        with pytest.raises(GatewayError, match=r"send .*item") as caught:
            await client.request("no JSON")
        assert caught.value.code == "bad_request"
        # killed with the request in its hands: it comes again, before the client gives up
        service.send(signal.SIGSTOP)
        asking = asyncio.create_task(client.request({"item": "coffee"}))
        async with asyncio.timeout(20):
            while not (await connection.jsm().consumer_info(stream, "prices")).num_ack_pending:
                await asyncio.sleep(0.01)
        service.kill()
        service.spawn()
        assert (await asyncio.wait_for(asking, 40)).json() == {"item": "coffee", "price": 18}
    assert service.running, service.output


def test_escaping_example() -> None:
    assert encode_token("ann@example.com") == "ann=40example=2Ecom"
    assert "`ann@example.com` becomes `ann=40example=2Ecom`" in PAGE


async def test_message_from_javascript_arrives_once(gateway: Gateway, service: Process) -> None:
    async with gateway.connect("prices", "ann") as raw:
        for _ in range(2):  # with the same id
            node, _ = service.command
            program = await asyncio.create_subprocess_exec(
                node, "send.mjs", cwd=service.cwd, env=service.env
            )
            assert await asyncio.wait_for(program.wait(), 20) == 0
        assert await asyncio.wait_for(raw.recv(), 10) == '{"sale":true}'
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(raw.recv(), 0.2)


async def test_commands_of_the_page_publish_and_show(
    gateway: Gateway, nats_server: EmbeddedServer, nats_command: str, prefix: str
) -> None:
    """With NATS' own tool."""

    async def run(line: str) -> str:
        line = line.replace("ws.recv", f"{prefix}.recv").replace("WS_", f"{prefix.upper()}_")
        program = await asyncio.create_subprocess_exec(
            nats_command,
            *shlex.split(line)[1:],
            env=site_env(NATS_URL=nats_server.url),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(program.communicate(), 20)
        assert program.returncode == 0, line
        return output.decode()

    publishing = re.findall(r"^nats pub .*$", PAGE, re.M)
    assert len(publishing) == 2
    (showing,) = re.findall(r"^nats stream get .*$", PAGE, re.M)
    async with gateway.connect("prices", "ann") as raw:
        for line in publishing:
            await run(line)
            assert await asyncio.wait_for(raw.recv(), 10) == shlex.split(line)[3]
    assert '{"sale":true}' in await run(showing)
