"""What the contract suites share: inboxes, and how to fill and read them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from wsgateway.broker.base import Broker
from wsgateway.protocol.frames import Frame
from wsgateway.protocol.subjects import Inbox

ANN = Inbox("orders", "ann")
BOB = Inbox("orders", "bob")
CAROL = Inbox("orders", "carol")


def text(data: str) -> Frame:
    return Frame.of(data)


async def fill(broker: Broker, inbox: Inbox, count: int) -> list[int]:
    return [(await broker.publish(inbox, b"%d" % n)).offset for n in range(count)]


async def offsets(broker: Broker, inbox: Inbox, after: int = 0, limit: int = 1000) -> list[int]:
    return [m.offset for m in (await broker.inboxes.read_after(inbox, after, limit=limit)).messages]


async def eventually(check: Callable[[], Awaitable[Any]], what: str, timeout: float = 20.0) -> Any:
    async with asyncio.timeout(timeout):
        while not (result := await check()):
            await asyncio.sleep(0.02)
    assert result, what
    return result
