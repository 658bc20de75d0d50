"""What `/readyz` tells strangers, and the checks for django-health-check."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.test import AsyncClient
from django.urls import path
from health_check.views import HealthCheckView

from tests.integration.workers import offer
from wsgateway import health
from wsgateway.broker import runtime
from wsgateway.broker.nats import broker_from_settings
from wsgateway.broker.nats.broker import NatsBroker
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.gateway.hub import get_hub, is_draining

READY = (200, {"ready": True})


@pytest.fixture(autouse=True)
def ready_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "was_ready", True)


@pytest.fixture(autouse=True)
async def connections_closed() -> AsyncIterator[None]:
    yield
    for connection in runtime.connections():
        if connection.loop is asyncio.get_running_loop():
            await connection.close()


async def readyz() -> tuple[int, Any]:
    response = await health.ready()
    client = AsyncClient()
    answer = await client.get("/readyz")
    assert answer.content == response.content
    return answer.status_code, answer.json()


@pytest.mark.usefixtures("nats_settings")
async def test_ready() -> None:
    assert await readyz() == READY


async def test_strangers_learn_neither_addresses_nor_passwords(
    settings: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://ann:pa55word@127.0.0.1:{free_port}"
    assert await readyz() == (503, {"ready": False, "not_ready": {"broker": "not connected"}})
    assert f"127.0.0.1:{free_port}" in caplog.text
    assert "pa55word" not in caplog.text


async def test_streams_that_cannot_be_used(nats_settings: Any, broker: NatsBroker) -> None:
    name = broker.subjects.stream("recv")
    info = await broker.jetstream.api(f"STREAM.INFO.{name}")
    changed = {**info["config"], "republish": None}
    await broker.jetstream.api(f"STREAM.DELETE.{name}")
    await broker.jetstream.api(f"STREAM.CREATE.{name}", changed)
    assert await readyz() == (503, {"ready": False, "not_ready": {"streams": "misconfigured"}})


@pytest.mark.usefixtures("nats_settings")
async def test_gateway_that_drains(caplog: pytest.LogCaptureFixture) -> None:
    hub = get_hub()
    await hub.open()
    assert await readyz() == READY
    await hub.close()
    assert is_draining()
    assert await readyz() == (503, {"ready": False, "not_ready": {"gateway": "draining"}})
    assert "not ready: the gateway is draining" in caplog.text


# -- django-health-check -----------------------------------------------------------------


async def check(settings: Any, *checks: Any) -> tuple[int, Any]:
    """Return what the view of the package answers with *checks* in its configuration."""
    settings.ROOT_URLCONF = (path("health/", HealthCheckView.as_view(checks=checks)),)
    answer = await AsyncClient().get("/health/?format=json")
    return answer.status_code, answer.json()


GATEWAY = "wsgateway.health_checks.Gateway"


async def test_health_check_of_a_gateway(nats_settings: Any) -> None:
    assert await check(nats_settings, GATEWAY) == (200, {"Gateway()": "OK"})


async def test_health_check_says_what_is_wrong(settings: Any, free_port: int) -> None:
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port}"
    status, results = await check(settings, GATEWAY)
    assert (status, results) == (500, {"Gateway()": "Unavailable: broker: not connected"})


def queue(**options: Any) -> Any:
    return "wsgateway.health_checks.Queue", {"service": "orders", **options}


async def test_health_check_of_a_queue(nats_settings: Any, broker: NatsBroker) -> None:
    status, results = await check(nats_settings, queue(), queue(service="nothing"))
    assert status == 500
    assert list(results.values()) == ["OK", "Unavailable: the service does not exist"]
    await offer(broker, "waits")
    sent = time.monotonic()
    assert (await check(nats_settings, queue()))[0] == 200
    await asyncio.sleep(max(0.0, sent + 1.1 - time.monotonic()))  # the age in question
    status, results = await check(nats_settings, queue(max_age=1.0))
    assert status == 500
    assert re.fullmatch(
        r"Warning: 1 messages wait, the oldest for \d+ s", next(iter(results.values()))
    )


async def test_health_check_of_a_full_queue(nats_settings: Any) -> None:
    nats_settings.WSGATEWAY_SEND_MAX_MESSAGES = 4
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    await broker.wait_ready()
    for text in ("a", "b", "c"):
        await offer(broker, text)
    assert (await check(nats_settings, queue()))[0] == 200
    _, results = await check(nats_settings, queue(max_level=0.5))
    assert next(iter(results.values())) == "Warning: the queue is 75% full: 3 messages wait"
    await offer(broker, "d")
    _, results = await check(nats_settings, queue())
    assert next(iter(results.values())) == "Unavailable: the queue is full: 4 messages wait"
    await broker.close()
