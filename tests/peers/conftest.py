"""The server and prefix that the swapped-in layers use."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.peers.swap import Target
from wsgateway.broker import runtime


@pytest.fixture(autouse=True)
def _quiet_broker(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Their tests count every log record, and ours tells of each connection.

    It also warns of a layer that is elsewhere than the settings say.
    """
    caplog.set_level("WARNING", "wsgateway.broker")
    settings.PUBSUB_BROKER = "nats"
    settings.NATS_BROKER_URL = ",".join(Target.servers)
    settings.WSGATEWAY_PREFIX = Target.prefix


@pytest.fixture(autouse=True)
def _settled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tests of capacity count on what Redis has stored when `group_send` returns."""
    monkeypatch.setattr(Target, "settled", "group_send_capacity" in request.node.name)


@pytest.fixture(autouse=True, scope="module")
def _target(nats_server: Any) -> Iterator[None]:
    Target.servers = [nats_server.url]
    Target.prefix = f"p{secrets.token_hex(4)}"
    yield
    runtime.stop_background()  # their tests do not close what synchronous callers share
