"""Requests that daphne is answering when it is told to end."""

from __future__ import annotations

import asyncio
import http.client
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Gateway, listening, until

ICON = "/static/demo/favicon.svg"


def get(gateway: Gateway, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("close_timeout", ["60", "0.1"])
async def test_process_ends_when_the_view_that_runs_has_ended(
    gateway_factory: Callable[..., Gateway], tmp_path: Path, close_timeout: str
) -> None:
    """It never did: the view's thread waited for an event loop that had ended before it.

    Middleware that is only synchronous, such as WhiteNoise's, makes the thread wait for the loop.
    Daphne waits for its applications, but not while one of its connections has none.
    """
    gateway = gateway_factory(
        application="tests.held_app:application",
        HELD=str(tmp_path),
        WSGATEWAY_CLOSE_TIMEOUT=close_timeout,
    )
    with socket.create_connection(("127.0.0.1", gateway.port)) as incomplete:
        incomplete.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
        answer = asyncio.create_task(asyncio.to_thread(get, gateway, "/held/"))
        await until((tmp_path / "begun").exists)
        gateway.send(signal.SIGTERM)
        await until(lambda: refuses(gateway), what="no request is taken any more")
        (tmp_path / "go").touch()
        await asyncio.to_thread(gateway.wait)
    await asyncio.wait({answer})
    if close_timeout == "60":
        assert answer.result() == (200, b"kept")
    else:
        answer.exception()  # it was cancelled if it took longer than it may


async def test_proxies_send_new_requests_elsewhere(
    gateway_factory: Callable[..., Gateway], tmp_path: Path
) -> None:
    """What came on connections that a proxy kept open was refused, and no proxy tries again then.

    New connections were accepted until the end, so that requests came on those, too.
    """
    gateway = gateway_factory(
        application="tests.held_app:application", HELD=str(tmp_path), WSGATEWAY_CLOSE_TIMEOUT="60"
    )
    kept = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)

    def ask() -> tuple[int, str | None]:
        kept.request("GET", ICON)
        response = kept.getresponse()
        response.read()
        return response.status, response.getheader("Connection")

    with socket.create_connection(("127.0.0.1", gateway.port)) as incomplete:
        # Daphne does not cancel what runs while one of its connections has no application
        incomplete.sendall(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
        assert ask() == (200, None)
        answer = asyncio.create_task(asyncio.to_thread(get, gateway, "/held/"))
        await until((tmp_path / "begun").exists)
        gateway.send(signal.SIGTERM)
        await until(lambda: not listening(gateway.port))
        assert gateway.running
        assert ask() == (200, "close")
        (tmp_path / "go").touch()
        await asyncio.to_thread(gateway.wait)
    assert await answer == (200, b"kept")


def refuses(gateway: Gateway) -> bool:
    try:
        return get(gateway, ICON)[0] == 503
    except OSError:  # nobody listens
        return True
