"""What the tests of the Python client share: a gateway, and clients of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.unit.fake_gateway import FakeGateway
from wsgateway.client import Backoff, Client, connect

FAST = Backoff(initial=0.02, cap=0.05, jitter=0.5)


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    async with FakeGateway().running() as fake:
        yield fake


def client_of(gateway: FakeGateway, **options: Any) -> Client:
    return connect(gateway.url, **{"backoff": FAST, "proxy": None, **options})


async def take(client: Client, number: int) -> list[Any]:
    async with asyncio.timeout(20):
        return [(await client.recv()).data for _ in range(number)]
