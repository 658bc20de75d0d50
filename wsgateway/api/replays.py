"""Requests that come again: whether what was stored under their id is the same message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial

from wsgateway.api.problems import Problem
from wsgateway.broker import runtime
from wsgateway.broker.base import Broker
from wsgateway.exceptions import BrokerError
from wsgateway.protocol.frames import Frame
from wsgateway.publish import AnyOutgoing, Outcome, Receipt

__all__ = ["checked"]

AT_ONCE = 16
"""Messages that one request reads at the same time."""


async def checked(messages: Sequence[AnyOutgoing], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes, with a `Problem` for each id that belongs to another message.

    A first message that is gone, or cannot be read now, counts as the same. Source: the IETF's
    draft on the header ``Idempotency-Key``, 2.7.

    Args:
        messages: What was published.
        outcomes: What became of each.
    """
    found = list(outcomes)
    duplicates = [
        index
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, Receipt) and outcome.duplicate
    ]
    turn = asyncio.Semaphore(AT_ONCE)

    async def check(index: int) -> None:
        outcome = outcomes[index]
        assert isinstance(outcome, Receipt)
        async with turn:
            if not await _is_same(messages[index], outcome.offset):
                text = (
                    f"this id was used for another message, which is stored at offset "
                    f"{outcome.offset}; give each message an id of its own"
                )
                found[index] = Problem("id-reused", text)

    await asyncio.gather(*map(check, duplicates))
    return found


async def _is_same(message: AnyOutgoing, offset: int) -> bool:
    try:
        first = await runtime.call(partial(_read, message, offset))
    except BrokerError:
        return True
    _, frame = message.prepare()
    if first is None or first == frame:
        return True
    return first.text and frame.text and _same_json(first.payload, frame.payload)


async def _read(message: AnyOutgoing, offset: int, broker: Broker) -> Frame | None:
    """Return what is stored at *offset*; None if nothing is."""
    address, _ = message.prepare()
    batch = await broker.log(address).read_after(address, offset - 1, limit=1)
    return next((each.frame for each in batch.messages if each.offset == offset), None)


def _same_json(one: bytes, other: bytes) -> bool:
    """Say whether both mean the same: some languages order members differently each time."""
    try:
        first, second = (json.dumps(json.loads(each), sort_keys=True) for each in (one, other))
    except (ValueError, RecursionError):
        return False
    return first == second
