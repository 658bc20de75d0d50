"""The server API while NATS does not answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.backends import HELLO, Caller, problem
from wsgateway import declared
from wsgateway.broker import runtime
from wsgateway.broker.embedded import EmbeddedServer

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.api_site.urls")]


def test_request_that_timed_out_is_stored_once_when_it_is_sent_again(
    own_server: EmbeddedServer, settings: Any
) -> None:
    """It may be stored or not: here it is, once the server goes on."""
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = own_server.url
    settings.WSGATEWAY_BROKER_TIMEOUT = settings.WSGATEWAY_PUBLISH_TIMEOUT = 1.0
    declared.discover()
    runtime.reset()
    caller = Caller()
    try:
        assert caller.post("publish", {**HELLO, "msg_id": "1"}).status_code == 200
        own_server.pause()
        response = caller.post("publish", {**HELLO, "msg_id": "2"})
        problem(response, 503, "broker-unavailable")
        assert response.headers["Retry-After"] == "1"
        own_server.resume()
        settings.WSGATEWAY_BROKER_TIMEOUT = settings.WSGATEWAY_PUBLISH_TIMEOUT = 20.0
        receipt = caller.post("publish", {**HELLO, "msg_id": "2"}).json()
        assert receipt["offset"] == 2  # whichever of the two the server has read first
        page = caller.get("history/user", service="orders", user="ann").json()
        assert [each["offset"] for each in page["messages"]] == [1, 2]
    finally:
        own_server.resume()
        runtime.stop_background()  # or it asks for the server until the process ends
