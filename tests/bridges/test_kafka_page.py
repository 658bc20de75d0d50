"""What docs/how-to/bridges.md says about Kafka works."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.bridges.kafka_server import PASSWORD, STRANGER, KafkaServer, run_java
from tests.bridges.kafka_service import Service, Taken, bridge_to, service_on
from tests.bridges.sides import opened
from tests.pages import DocumentPage
from tests.support import Process
from wsgateway.bridges.bus import Bus
from wsgateway.bridges.kafka import KafkaBus

PAGE = DocumentPage("how-to/bridges.md")


@pytest.fixture
async def bus(kafka: KafkaServer) -> AsyncIterator[Bus]:
    """The bus of a bridge with the names of the page."""
    async with opened(bridge_to(kafka, prefix="ws")) as bus:
        yield bus


@pytest.fixture
async def service(kafka: KafkaServer, bus: Bus) -> AsyncIterator[Service]:
    async with service_on(kafka, "ws") as service:
        yield service


async def test_service_with_aiokafka_answers(kafka: KafkaServer, bus: Bus, tmp_path: Path) -> None:
    script = tmp_path / "service.py"
    script.write_text(PAGE.code("from aiokafka import"))
    env = {**os.environ, "KAFKA_SERVERS": kafka.address()}
    running = Process([sys.executable, str(script)], tmp_path / "log", env)
    running.spawn()
    try:
        taken = Taken(bus)
        headers = {"Ws-Id": "7", "Ws-Sender": "orders.page=2Eann", "Ws-Request": "r1"}
        await bus.produce("orders", "page=2Eann", b"hello", headers)
        key = "orders.page=2Eann"  # other tests of this page use the same topics
        while not (found := [record for record in taken.records if record.key == key]):
            await taken.wait(len(taken.records) + 1)
        answer = found[0]
        assert answer.payload == b"Got it: hello"
        assert answer.headers == {"Nats-Msg-Id": "answer-7", "Ws-Reply-To": "r1"}
    finally:
        running.kill()


def shell(command: str, kafka: KafkaServer, timeout: float = 20.0) -> str:
    """Run a command of the page to its end; return what it printed."""
    command = command.replace("localhost:9092", kafka.address())
    pipe = subprocess.PIPE
    running = subprocess.Popen(
        command, shell=True, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        printed, said = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)  # the shell, and what it has started
        printed, said = running.communicate()
    assert running.returncode == 0, f"{command}:\n{printed}{said}"
    return printed


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
async def test_commands_with_kcat_do_what_the_page_says(
    kafka: KafkaServer, bus: Bus, service: Service
) -> None:
    taken = Taken(bus)
    await asyncio.to_thread(shell, PAGE.code("-P -k orders.ann", "sh"), kafka)
    while taken.records[-1:] == [] or taken.records[-1].key != "orders.ann":
        await taken.wait(len(taken.records) + 1)
    record = taken.records[-1]
    assert record.payload == b"Your order has shipped"
    await bus.set_aside(record, "a reason")
    assert "Ws-Dead-Reason=a reason" in await asyncio.to_thread(
        shell, PAGE.code("ws.dead -C", "sh"), kafka
    )
    headers = {"Ws-Id": "1", "Ws-Sender": "orders.kate"}  # the page's service may read it later
    await bus.produce("orders", "kate", b"to the service", headers)
    watching = PAGE.code("ws.send.orders -C", "sh").replace("kcat ", "kcat -e ")
    assert "kate: to the service\n" in await asyncio.to_thread(shell, watching, kafka)


@pytest.mark.long
async def test_rights_of_the_page_are_enough(kafka: KafkaServer, prefix: str) -> None:
    await KafkaBus(bridge_to(kafka, prefix=prefix)).set_up()
    rows = re.findall(r"^\| [^|]*topic[^|]* \| (`ws\.[^|]*) \| ([a-z, ]+) \|$", PAGE.text, re.M)
    rows += [
        ("group", each) for each in re.findall(r"group \| `ws\.\S+` \| ([a-z, ]+) \|", PAGE.text)
    ]
    assert len(rows) == 5
    for names, rights in rows:
        topics = [name.replace("ws.", f"{prefix}.", 1) for name in re.findall(r"`(.*?)`", names)]
        kinds = [f"--topic={name}" for name in topics] or [f"--group={prefix}.bridge"]
        operations = [f"--operation={each.title()}" for each in rights.split(", ")]
        await asyncio.to_thread(
            run_java,
            "org.apache.kafka.tools.AclCommand",
            f"--bootstrap-server={kafka.address()}",
            "--add",
            f"--allow-principal=User:{STRANGER}",
            *kinds,
            *operations,
        )
    bridge = bridge_to(
        kafka, prefix=prefix, listener="SASL_PLAINTEXT", username=STRANGER, password=PASSWORD
    )
    async with opened(bridge, set_up=False) as bus, service_on(kafka, prefix) as service:
        await bus.ready()
        taken = Taken(bus)
        await bus.produce("orders", "ann", b"1", {})
        await service.produce("orders.ann", b"2")
        await bus.set_aside((await taken.wait(1))[0], "why")
        assert len(await service.read("dead", 1)) == 1
