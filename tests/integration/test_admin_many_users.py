"""The list of users with a thousand of them, half of them connected."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.test import Client

from tests.support import Gateway

AT_ONCE = 50


async def connect(stack: AsyncExitStack, gateway: Gateway, names: list[str]) -> None:
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        connects = [stack.enter_async_context(gateway.connect("demo", name)) for name in part]
        await asyncio.gather(*connects)


def prepare() -> Client:
    model: Any = get_user_model()
    model.objects.bulk_create(model(username=f"user{number:04}") for number in range(999))
    browser = Client()
    browser.force_login(model.objects.create_superuser("root"))
    return browser


def show(browser: Client, url: str) -> str:
    return browser.get(url).content.decode()


@pytest.mark.django_db(transaction=True)
async def test_list_of_a_thousand_users_with_half_of_them_connected(
    gateway_factory: Callable[..., Gateway], nats_settings: Any
) -> None:
    """What a page takes is measured by ``python -m benchmarks admin``."""
    nats_settings.WSGATEWAY_SERVICES = ["demo", "orders"]
    gateways = [gateway_factory(WSGATEWAY_SERVICES="demo,orders") for _ in range(2)]
    browser = await sync_to_async(prepare)()
    look = sync_to_async(show)
    async with AsyncExitStack() as stack:
        for place, gateway in enumerate(gateways):
            names = [f"user{number:04}" for number in range(999) if number % 4 == place]
            await connect(stack, gateway, names)
        page = await look(browser, "/admin/auth/user/")
        assert len(re.findall(r"online</a>", page)) == 50
        found: list[str] = []
        for number in range(1, 6):
            page = await look(browser, f"/admin/auth/user/?online=yes&p={number}")
            assert "500 users" in page
            found += re.findall(r">(user\d{4})<", page)
        assert len(found) == len(set(found)) == 500
        assert all(int(name[4:]) % 4 in (0, 1) for name in found)
