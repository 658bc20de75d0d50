"""Whose connection a response may take over, and when the kernel ends it."""

from __future__ import annotations

import json
import socket
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from wsgateway.conf import settings
from wsgateway.gateway import uvicorn_responses
from wsgateway.gateway.responses import expire
from wsgateway.sse import serve_events


async def send(event: Any) -> None:
    """Stand in for the server's."""


@pytest.mark.parametrize(("version", "is_alone"), [("1.1", True), ("1.0", True), ("2", False)])
async def test_response_takes_over_no_connection_that_others_share(
    version: str, is_alone: bool
) -> None:
    """Over HTTP/2, the end of one response cut all others of the browser."""
    closed = SimpleNamespace(
        set_write_buffer_limits=None, get_protocol=lambda: None, is_closing=lambda: True
    )

    class Request:
        flow = None
        transport = closed
        scope = {"http_version": version}  # noqa: RUF012 - uvicorn's, too

        async def send(self, event: Any) -> None:
            """Stand in for uvicorn's."""

    response = uvicorn_responses.response(Request().send, send, ())
    assert (response is not None) is is_alone


async def test_daphne_over_http_2_is_refused_with_a_cure() -> None:
    """Its send never waits, so what a reader did not read filled the gateway's memory."""
    answered: list[Any] = []

    async def handle_reply(request: Any, event: Any) -> None:
        answered.append(event)

    stream = SimpleNamespace(streamID=1)  # Twisted's H2Stream
    daphnes = partial(handle_reply, SimpleNamespace(registerProducer=None, channel=stream))
    scope = {"type": "http", "method": "GET", "path": "/orders/", "headers": []}
    await serve_events(scope, no_more, daphnes)
    begin, body = answered
    assert begin["status"] == 505
    assert "HTTP/1.1 to daphne" in json.loads(body["body"])["detail"]


async def no_more() -> Any:
    """Stand in for a client that sends nothing else."""
    raise AssertionError


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT"
)
def test_kernel_ends_a_connection_whose_reader_has_vanished() -> None:
    """A phone that changed networks stayed online for a quarter of an hour."""
    with socket.socket() as connection:
        expire(connection)
        found = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert found == (settings.PING_INTERVAL + settings.PING_TIMEOUT) * 1000
    expire(None)  # behind TLS, a server may not show it
