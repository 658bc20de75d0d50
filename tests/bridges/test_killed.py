"""``manage.py runbridge`` in processes of its own, which are killed in the middle of traffic."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bridges.counting import all_of, came, in_order
from tests.bridges.sides import Side
from tests.integration.workers import answers, no_services, offer
from tests.support import Process, close_soon, site_env, until
from wsgateway.bridges.buses import make_bus
from wsgateway.broker.embedded import EmbeddedServer
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings

__all__ = ["no_services"]  # a fixture

pytestmark = [
    pytest.mark.long,  # those of one bus kill bridges as well, in fewer seconds
    pytest.mark.timeout(180),
    pytest.mark.usefixtures("no_services"),
]

USERS = [f"user{number}" for number in range(6)]
EACH = 40


class BridgeProcess(Process):
    """``manage.py runbridge`` beside others."""

    def __init__(self, folder: Path, name: str, env: dict[str, str]) -> None:
        self.ready_file = folder / f"{name}.ready"
        command = [sys.executable, "manage.py", "runbridge", "warehouse", "--noreload"]
        command += ["--ready-file", str(self.ready_file)]
        super().__init__(command, folder / f"{name}.log", site_env(**env))

    async def start(self) -> None:
        self.ready_file.unlink(missing_ok=True)
        await asyncio.to_thread(self.spawn)
        await until(lambda: self.ready_file.exists() or self._ended(), 60, "ready")


@pytest.fixture
def processes(
    side: Side, nats_server: EmbeddedServer, settings: Any, tmp_path: Path
) -> Iterator[list[BridgeProcess]]:
    """Two bridges that share the work, not started."""
    options = side.options()
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = nats_server.url
    settings.WSGATEWAY_PREFIX = side.prefix
    settings.WSGATEWAY_STORAGE = "memory"
    settings.WSGATEWAY_SERVICES = None
    settings.WSGATEWAY_ACK_WAIT = 1.0
    settings.WSGATEWAY_BRIDGES = {"warehouse": options}
    env = {
        "DEBUG": "1",
        "SECRET_KEY": "tests",
        "DJANGO_SETTINGS_MODULE": "tests.service_app.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}",
        "NATS_BROKER_URL": nats_server.url,
        "WSGATEWAY_PREFIX": side.prefix,
        "WSGATEWAY_STORAGE": "memory",
        "WSGATEWAY_ACK_WAIT": "1",
        "WSGATEWAY_BRIDGES": json.dumps({"warehouse": options}),
    }
    made = [BridgeProcess(tmp_path, name, env) for name in ("one", "other")]
    yield made
    for process in made:
        process.kill()


async def test_bridges_that_are_killed_lose_nothing_and_keep_the_order(
    side: Side, processes: list[BridgeProcess]
) -> None:
    await make_bus(side.bridge()).set_up()
    await side.serve("orders")
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.set_up()
    await asyncio.gather(*(process.start() for process in processes))

    async def traffic() -> None:
        for number in range(EACH):
            for user in USERS:
                await offer(broker, f"{number}", user=user)
                await side.produce(f"orders.{user}", b"%d" % number, id=f"{user}-{number}")

    talking = asyncio.create_task(traffic())
    try:
        # Kafka takes ten seconds to notice each that is gone, and half of its work is its own
        victims = processes[: 1 if side.url.startswith("kafka") else 2]
        for victim in victims:
            await asyncio.sleep(0.2)  # some traffic, whatever it is: any moment must do
            victim.kill()
            await victim.start()
        await talking
        seen = await side.sent_until("orders", all_of(len(USERS) * EACH))
        # One message of each user was on its way when a bridge was killed
        found = in_order(came(seen), repeats=len(USERS) * len(victims))
        assert list(found.values()) == [list(range(EACH))] * len(USERS)
        for user in USERS:
            async with asyncio.timeout(40):
                while len(stored := await answers(broker, user)) < EACH:
                    await asyncio.sleep(0.05)
            # The ids make NATS store each once, whatever came again
            assert [int(message.payload) for message in stored] == list(range(EACH))
    finally:
        talking.cancel()
        await close_soon(broker.close)
    for process in processes:
        process.send(signal.SIGTERM)
    for process in processes:
        assert await asyncio.to_thread(process.wait) == 0
        assert not process.ready_file.exists()
        assert "warehouse: ended (" in process.output
