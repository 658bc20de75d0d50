"""Each row of ``docs/troubleshooting.md`` is provoked by a test; see `tests.troubleshooting`.

Rows whose test is beside the tests of its part are found by their marker.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from tests.integration.test_jetstream import pretender
from tests.troubleshooting import Symptom, marked, rows
from wsgateway.broker.embedded import free_port
from wsgateway.broker.nats import broker_from_settings
from wsgateway.conf import settings as wsgateway_settings
from wsgateway.exceptions import WsGatewayError


def test_each_row_has_a_test_and_each_test_has_a_row() -> None:
    in_document = Counter(row.symptom for row in rows())
    assert [text for text, count in in_document.items() if count > 1] == []
    tested = {text for text, _ in marked()}
    missing = in_document.keys() - tested
    assert not missing, f"no test is marked with pytest.mark.troubleshooting({missing})"
    stray = [(text, str(path)) for text, path in marked() if text not in in_document]
    assert not stray, f"docs/troubleshooting.md has no such row: {stray}"


async def first_error() -> str:
    """Return what the first use of the broker raises."""
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        with pytest.raises(WsGatewayError) as error:
            await broker.wait_ready(5.0)
        return str(error.value)
    finally:
        await broker.close()


async def is_ready() -> None:
    """Return once the broker can be used."""
    broker = broker_from_settings(wsgateway_settings)
    await broker.open()
    try:
        await broker.wait_ready()
    finally:
        await broker.close()


# -- connecting to NATS ------------------------------------------------------------------------


@pytest.mark.troubleshooting("cannot reach NATS at …: connection refused")
async def test_nothing_listens(symptom: Symptom, nats_settings: Any) -> None:
    nats_settings.NATS_BROKER_URL = f"nats://127.0.0.1:{free_port()}"
    symptom.must_show_in(await first_error())


@pytest.mark.troubleshooting(
    "NATS … is too old: batched direct get and per-message TTL need 2.11 or later"
)
async def test_old_server(symptom: Symptom, nats_settings: Any) -> None:
    async with pretender(version="2.10.9", jetstream=True) as nats_settings.NATS_BROKER_URL:
        symptom.must_show_in(await first_error())


@pytest.mark.troubleshooting("runs without JetStream; start it with -js")
async def test_server_without_jetstream(symptom: Symptom, nats_settings: Any) -> None:
    async with pretender() as nats_settings.NATS_BROKER_URL:
        symptom.must_show_in(await first_error())


@pytest.mark.troubleshooting("stream … has max_age …, settings want …")
def test_stream_that_differs(
    symptom: Symptom, nats_settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    call_command("setup_streams")
    nats_settings.WSGATEWAY_INBOX_MAX_AGE = 3600.0
    asyncio.run(is_ready())
    symptom.must_show_in(caplog.text)
    caplog.clear()
    call_command("setup_streams")
    asyncio.run(is_ready())
    assert not symptom.is_in(caplog.text)


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.troubleshooting("(wsgateway.E001) Unknown setting WSGATEWAY_…")
def test_unknown_setting(symptom: Symptom, settings: Any) -> None:
    settings.WSGATEWAY_REPLICA = 3
    with pytest.raises(SystemCheckError) as error:
        call_command("check")
    symptom.must_show_in(str(error.value))
    assert "Did you mean WSGATEWAY_REPLICAS?" in str(error.value)


@pytest.mark.troubleshooting(
    "NATS_BROKER_URL has an entry that is not the URL of a NATS server: "
    "scheme 'ws': NATS over websockets is not supported"
)
def test_websocket_url(symptom: Symptom, settings: Any) -> None:
    settings.NATS_BROKER_URL = "ws://localhost:8080"
    with pytest.raises(SystemCheckError) as error:
        call_command("check")
    symptom.must_show_in(str(error.value))
    assert "Use nats://host:4222" in str(error.value)
